//! A minimal gateway for tests: one thread, real sockets, the server half of the protocol crate.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use prost::Message as _;
use tidegate_protocol::proto::demo::{JoinRoom, RoomMessage, SayInRoom};
use tidegate_protocol::proto::v1;
use tidegate_protocol::resume::Positions;
use tidegate_protocol::server::{self, Incoming};
use tidegate_protocol::{Code, Reassembler};

/// The type that is answered with 103 and a `retry_after_ms`.
pub(crate) const LIMITED: i32 = 50;
/// The type that ends the session with 107.
pub(crate) const KICK: i32 = 51;
/// The type that is never answered.
pub(crate) const SILENT: i32 = 52;
/// The type that is answered at once. Then the gateway waits for [`Gateway::release`] and for a heartbeat, pushes `late`,
/// and closes.
pub(crate) const LATE: i32 = 53;

/// The room's last offset at the start.
const FIRST_OFFSET: u64 = 30;
/// The identity of its log.
const LOG: u64 = 5;
/// The proof of each membership.
const TICKET: &[u8] = b"proof";

/// The running gateway. It ends when it is dropped.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    /// `None` when it is stopping.
    released: Option<Sender<()>>,
    stopping: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

/// One room, whatever its name, that all connections share.
struct Served {
    /// The room's number: another one on each connection.
    number: u32,
    offset: u64,
    released: Receiver<()>,
}

impl Gateway {
    /// Listens on a free port and serves one connection after another.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (released, receiver) = mpsc::channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let is_stopping = Arc::clone(&stopping);
        let serving = thread::spawn(move || {
            let mut served = Served { number: 1, offset: FIRST_OFFSET, released: receiver };
            for stream in listener.incoming() {
                if is_stopping.load(Ordering::Acquire) {
                    return;
                }
                served.serve(stream.unwrap());
            }
        });
        Self { address, released: Some(released), stopping, serving: Some(serving) }
    }

    /// Lets a [`LATE`] request continue.
    pub(crate) fn release(&self) {
        self.released.as_ref().unwrap().send(()).unwrap();
    }
}

/// All clients have ended by then, and so have their connections.
impl Drop for Gateway {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.released = None;
        // This connection wakes the accepting thread. It is refused where the thread has ended already.
        drop(TcpStream::connect(self.address));
        let ended = self.serving.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the test's gateway panicked: see above");
    }
}

impl Served {
    fn serve(&mut self, mut stream: TcpStream) {
        self.number += 1;
        let mut reassembler = Reassembler::new();
        let mut buffer = [0; 4096];
        let mut waits_for_heartbeat = false;
        loop {
            let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
            let mut out = Vec::new();
            let mut closes = false;
            let mut frames = reassembler.frames(&buffer[..count], 65_536);
            while let Some(payload) = frames.next().unwrap() {
                match Incoming::decode(payload).unwrap() {
                    Incoming::Heartbeat { sequence } => {
                        server::put_pong(&mut out, sequence, 1_000);
                        if waits_for_heartbeat {
                            server::put_push(&mut out, LATE, b"late", 0, 0);
                            closes = true;
                        }
                    }
                    Incoming::Authenticate { user_id, token, resume, sequence } => {
                        if token == format!("token-{user_id}") {
                            self.put_session(&mut out, resume, sequence);
                        } else {
                            server::put_failure(&mut out, 0, sequence, Code::Unauthenticated, 0);
                        }
                    }
                    Incoming::Business { kind: LATE, sequence, .. } => {
                        server::put_answer(&mut out, LATE, sequence, b"");
                        let gone = stream.write_all(&std::mem::take(&mut out)).is_err();
                        if gone || self.released.recv().is_err() {
                            return;
                        }
                        waits_for_heartbeat = true;
                    }
                    Incoming::Business { kind, biz_data, sequence } => {
                        closes |= kind == KICK;
                        self.put_business(&mut out, kind, biz_data, sequence);
                    }
                }
            }
            drop(frames);
            if stream.write_all(&out).is_err() || closes {
                return;
            }
        }
    }

    fn put_business(&mut self, out: &mut Vec<u8>, kind: i32, biz_data: &[u8], sequence: u64) {
        match kind {
            1 => server::put_answer(out, kind, sequence, biz_data),
            10 => {
                let JoinRoom { room, .. } = JoinRoom::decode(biz_data).unwrap();
                let joined = v1::notice::What::Joined(self.room(&room, v1::Recovery::NotAsked));
                server::put_notice(out, &v1::Notice { what: Some(joined) });
                server::put_answer(out, kind, sequence, b"");
            }
            12 => {
                let SayInRoom { room, text } = SayInRoom::decode(biz_data).unwrap();
                self.offset += 1;
                self.put_said(out, &room, std::str::from_utf8(&text).unwrap());
                server::put_answer(out, kind, sequence, b"");
            }
            LIMITED => server::put_failure(out, kind, sequence, Code::RateLimited, 250),
            KICK => {
                server::put_answer(out, kind, sequence, b"");
                server::put_goodbye(out, Code::Replaced, 0);
            }
            SILENT => {}
            _ => server::put_failure(out, kind, sequence, Code::NoRoute, 0),
        }
    }

    fn put_said(&self, out: &mut Vec<u8>, room: &str, text: &str) {
        let text = text.to_owned().into();
        let message = RoomMessage { room: room.to_owned(), from_user_id: 9, text };
        server::put_push(out, 12, &message.encode_to_vec(), self.offset, self.number);
    }

    /// A client that resumes has missed two pushes of each room. The log holds the second of them.
    fn put_session(&mut self, out: &mut Vec<u8>, resume: Positions<'_>, sequence: u64) {
        let everybody = v1::Room { name: "*".into(), number: 1, log: LOG, ..v1::Room::default() };
        let mut rooms = vec![everybody];
        let named: Vec<_> = resume.iter().filter(|position| position.room != "*").collect();
        for position in &named {
            assert_eq!((position.log, position.ticket), (LOG, TICKET));
            self.offset += 2;
            rooms.push(self.room(position.room, v1::Recovery::Gap));
        }
        let session = v1::Session {
            session_id: u64::from(self.number) + 3,
            heartbeat_interval_ms: 20,
            server_time_ms: 1_000,
            rooms,
            ..v1::Session::default()
        };
        server::put_session(out, sequence, &session);
        for position in named {
            self.put_said(out, position.room, &format!("since {}", position.offset));
        }
    }

    fn room(&self, name: &str, recovery: v1::Recovery) -> v1::Room {
        v1::Room {
            name: name.to_owned(),
            number: self.number,
            log: LOG,
            head: self.offset,
            recovery: recovery.into(),
            ticket: TICKET.into(),
        }
    }
}
