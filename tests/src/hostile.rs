//! Hostile connections to the operators' HTTP: many at once, on one thread, until they are dropped. A connection
//! that the gateway ends is made again at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

use crate::until;

/// The time between two writes of the kinds that write byte by byte, and the longest wait for a socket.
const DRIP: Duration = Duration::from_millis(100);

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a hostile connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Silent,
    DripsItsHead,
    EndlessHead,
    ManyHeaders,
    EndlessLine,
    StalledBody,
    DripsItsBody,
    ChunksWithoutEnd,
    HalfClosed,
    /// With the token: requests more than the kernel buffers, and reads nothing.
    NeverReads,
    /// Without the token: requests the page, and reads nothing.
    NeverReadsThePage,
    StaysAfterItsAnswer,
    /// With the token.
    StaysWithTheToken,
    /// Requests health again and again, and reads each answer.
    AsksAgain,
    /// Requests health again and again, with many requests per write.
    AsksPipelined,
    /// Requests health without a pause, and reads the answers.
    AsksWithoutPause,
    ConnectsAndCloses,
    ConnectsAndResets,
    TlsHello,
    Http2,
    Http10,
    WaitsToContinue,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 22] = [
        Self::Silent,
        Self::DripsItsHead,
        Self::EndlessHead,
        Self::ManyHeaders,
        Self::EndlessLine,
        Self::StalledBody,
        Self::DripsItsBody,
        Self::ChunksWithoutEnd,
        Self::HalfClosed,
        Self::NeverReads,
        Self::NeverReadsThePage,
        Self::StaysAfterItsAnswer,
        Self::StaysWithTheToken,
        Self::AsksAgain,
        Self::AsksPipelined,
        Self::AsksWithoutPause,
        Self::ConnectsAndCloses,
        Self::ConnectsAndResets,
        Self::TlsHello,
        Self::Http2,
        Self::Http10,
        Self::WaitsToContinue,
    ];

    /// What it sends first.
    fn opening(self, token: &str) -> Vec<u8> {
        let push = "POST /push/all?type=5 HTTP/1.1\r\nHost: x\r\n";
        let guarded = format!("Host: x\r\nAuthorization: Bearer {token}\r\n");
        let text = match self {
            Self::Silent | Self::ConnectsAndCloses | Self::ConnectsAndResets => String::new(),
            Self::DripsItsHead => "GET /healthz HTTP/1.1\r\nHost: x\r\n".into(),
            Self::EndlessHead => "GET /healthz HTTP/1.1\r\nX: ".into(),
            Self::ManyHeaders => format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(200)),
            Self::EndlessLine => "GET /".into(),
            Self::StalledBody | Self::DripsItsBody => {
                format!("{push}Authorization: Bearer {token}\r\nContent-Length: 4000\r\n\r\nx")
            }
            Self::ChunksWithoutEnd => {
                format!("{push}Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n")
            }
            Self::HalfClosed => "GET /healthz HTTP/1.1\r\nHost: x".into(),
            Self::NeverReads => format!("GET /metrics HTTP/1.1\r\n{guarded}\r\n").repeat(200),
            Self::NeverReadsThePage => "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000),
            Self::AsksPipelined | Self::AsksWithoutPause => HEALTH.repeat(50),
            Self::StaysAfterItsAnswer | Self::AsksAgain => HEALTH.into(),
            Self::StaysWithTheToken => format!("GET /stats HTTP/1.1\r\n{guarded}\r\n"),
            Self::TlsHello => "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}".into(),
            Self::Http2 => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            Self::Http10 => "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(),
            Self::WaitsToContinue => {
                format!("{push}{guarded}Expect: 100-continue\r\nContent-Length: 4000\r\n\r\n")
            }
        };
        text.into_bytes()
    }

    /// What it sends at intervals.
    const fn drip(self) -> &'static [u8] {
        match self {
            Self::DripsItsHead => b"X: y\r\n",
            Self::DripsItsBody => b"x",
            Self::EndlessLine | Self::EndlessHead => &[b'x'; 1000],
            Self::ChunksWithoutEnd => b"1\r\nx\r\n",
            _ => b"",
        }
    }

    const fn reads(self) -> bool {
        !matches!(self, Self::NeverReads | Self::NeverReadsThePage)
    }
}

/// Hostile connections of one kind. They are closed when this is dropped.
#[derive(Debug)]
pub struct HostileConnections {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Connections established, reconnects included.
    made: AtomicUsize,
}

impl HostileConnections {
    /// Makes the connections, and waits until as many have been established.
    #[must_use]
    pub fn new(kind: Kind, count: usize, address: SocketAddr, token: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let (of_thread, opening) = (Arc::clone(&shared), kind.opening(token));
        let thread = thread::spawn(move || {
            let mut connections: Vec<_> =
                (0..count).map(|_| HostileConnection::new(kind, address)).collect();
            let mut dripped_at = Instant::now();
            while !of_thread.stop.load(Ordering::Relaxed) {
                wait(&connections);
                let drips = dripped_at.elapsed() > DRIP;
                if drips {
                    dripped_at = Instant::now();
                }
                for connection in &mut connections {
                    if connection.step(&opening, drips) {
                        of_thread.made.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let connections = Self { shared, thread: Some(thread) };
        until("all of them have connected", || (connections.made() >= count).then_some(()));
        connections
    }

    /// Connections established so far.
    #[must_use]
    pub fn made(&self) -> usize {
        self.shared.made.load(Ordering::Relaxed)
    }
}

impl Drop for HostileConnections {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread has printed its panic.
            drop(thread.join());
        }
    }
}

/// A hostile connection.
struct HostileConnection {
    kind: Kind,
    address: SocketAddr,
    stream: TcpStream,
    connected: bool,
    sent: usize,
}

impl HostileConnection {
    fn new(kind: Kind, address: SocketAddr) -> Self {
        Self { kind, address, stream: connect(address), connected: false, sent: 0 }
    }

    fn reconnect(&mut self) {
        *self = Self::new(self.kind, self.address);
    }

    /// The events that it waits for.
    fn interest(&self) -> PollFlags {
        let writes = !self.connected || self.sent < usize::MAX;
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::OUT, writes);
        interest.set(PollFlags::IN, self.kind.reads());
        interest
    }

    /// Connects, writes and reads as far as possible. Returns whether it has just been established.
    fn step(&mut self, opening: &[u8], drips: bool) -> bool {
        let mut connects = false;
        if !self.connected {
            if !matches!(self.stream.take_error(), Ok(None)) {
                self.reconnect();
                return false;
            }
            if self.stream.peer_addr().is_err() {
                return false;
            }
            (self.connected, connects) = (true, true);
        }
        match self.kind {
            Kind::ConnectsAndCloses => self.reconnect(),
            Kind::ConnectsAndResets => {
                drop(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
                self.reconnect();
            }
            _ => self.talk(opening, drips),
        }
        connects
    }

    fn talk(&mut self, opening: &[u8], drips: bool) {
        if self.sent < opening.len() {
            match self.stream.write(&opening[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return self.reconnect(),
            }
        }
        if (opening.len()..usize::MAX).contains(&self.sent) {
            self.sent = if self.kind == Kind::AsksWithoutPause { 0 } else { usize::MAX };
            if self.kind == Kind::HalfClosed {
                drop(self.stream.shutdown(Shutdown::Write));
            }
        }
        if drips && self.sent == usize::MAX && !self.kind.drip().is_empty() {
            match self.stream.write(self.kind.drip()) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return self.reconnect(),
                _ => {}
            }
        }
        if self.kind.reads() {
            match self.stream.read(&mut [0; 4096]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(count) if count > 0 => {
                    if matches!(self.kind, Kind::AsksAgain | Kind::AsksPipelined) {
                        self.sent = 0;
                    }
                }
                _ => self.reconnect(),
            }
        } else if !matches!(self.stream.take_error(), Ok(None)) {
            self.reconnect();
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    // The connect is in progress; `step` gets its result.
    drop(socket.connect(&address.into()));
    socket.into()
}

/// Waits until one of the connections can make progress.
fn wait(connections: &[HostileConnection]) {
    let mut watched: Vec<_> = connections
        .iter()
        .map(|connection| PollFd::new(&connection.stream, connection.interest()))
        .collect();
    let limit = Timespec::try_from(DRIP).unwrap();
    match poll(&mut watched, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => panic!("{error}"),
    }
}
