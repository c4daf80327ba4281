//! What the floors share. A floor is the least that a server can do for a kind of traffic: no
//! protocol, no state, no backend; one thread and its epoll, or as many as tables of descriptors are needed.
//! What a gateway costs above it is the gateway's own.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, getsockname,
    listen, recv, send, socket_with, sockopt,
};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;
/// The one receive buffer's size.
pub const BUFFER_BYTES: usize = 128 * 1024;

/// A listening socket, an epoll, and what is ready.
#[expect(missing_debug_implementations, reason = "rustix's events have none")]
pub struct Floor {
    epoll: OwnedFd,
    listener: OwnedFd,
    events: Vec<Event>,
}

/// What can be done with a connection.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The connection's descriptor.
    pub fd: usize,
    /// There is something to read, be it the end.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
}

impl Floor {
    /// Listens on a free port of the loopback and prints it, as the first line. The process ends
    /// when its standard input does.
    ///
    /// # Errors
    /// The system has no socket to give.
    pub fn listen() -> anyhow::Result<Self> {
        Self::listen_until(|| ())
    }

    /// The same, with something to do before the process ends.
    ///
    /// # Errors
    /// The system has no socket to give.
    pub fn listen_until(at_the_end: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        let floor = Self::beside(0)?;
        floor.announce(at_the_end)?;
        Ok(floor)
    }

    /// Listens on this port of the loopback beside others that do, or on a free one where it is 0.
    ///
    /// # Errors
    /// The system has no socket to give.
    pub fn beside(port: u16) -> anyhow::Result<Self> {
        let floor = Self::of(listener(port)?)?;
        floor.attend()?;
        Ok(floor)
    }

    /// Has this listening socket, and does not hear of those who come before it [attends](Self::attend).
    ///
    /// # Errors
    /// The system has no epoll to give.
    pub fn of(listener: OwnedFd) -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, listener, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Hears of those who come.
    ///
    /// # Errors
    /// epoll fails.
    pub fn attend(&self) -> anyhow::Result<()> {
        Ok(add(&self.epoll, &self.listener)?)
    }

    /// Hears no more of those who come.
    ///
    /// # Errors
    /// epoll fails.
    pub fn turn_away(&self) -> anyhow::Result<()> {
        Ok(epoll::delete(&self.epoll, &self.listener)?)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn port(&self) -> anyhow::Result<u16> {
        Ok(SocketAddrV4::try_from(getsockname(&self.listener)?)?.port())
    }

    /// Prints the port as the first line. The process ends when its standard input does, after
    /// `at_the_end`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn announce(&self, at_the_end: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        println!("{}", self.port()?);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            at_the_end();
            std::process::exit(0)
        })?;
        Ok(())
    }

    /// Waits until something is ready, or at most `timeout_ns`.
    ///
    /// # Errors
    /// epoll fails.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> anyhow::Result<()> {
        let timeout = timeout_ns.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000).cast_signed(),
            tv_nsec: (ns % 1_000_000_000).cast_signed(),
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("epoll failed"),
        }
    }

    /// What the last wait brought: `None` is the listener.
    pub fn ready(&self) -> impl Iterator<Item = Option<Ready>> + '_ {
        let listener = index(self.listener.as_fd());
        self.events.iter().map(move |event| {
            let (fd, flags) = (usize::try_from(event.data.u64()).unwrap_or_default(), event.flags);
            (fd != listener).then(|| Ready {
                fd,
                readable: flags.intersects(
                    EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR,
                ),
                writable: flags.contains(EventFlags::OUT),
            })
        })
    }

    /// Accepts all that wait, with the options of a good server.
    ///
    /// # Errors
    /// A connection can't be set up; one that is gone already is not an error.
    pub fn accept(&self, mut accepted: impl FnMut(usize, OwnedFd)) -> anyhow::Result<()> {
        self.accept_while(|fd, socket| {
            accepted(fd, socket);
            true
        })
    }

    /// The same, for as long as `accepted` says that there may be more.
    ///
    /// # Errors
    /// A connection can't be set up; one that is gone already is not an error.
    pub fn accept_while(
        &self,
        mut accepted: impl FnMut(usize, OwnedFd) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    add(&self.epoll, &socket)?;
                    if !accepted(index(socket.as_fd()), socket) {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error).context("cannot accept"),
            }
        }
    }
}

/// A socket that listens on this port of the loopback beside others that do, or on a free one where it is 0.
///
/// # Errors
/// The system has no socket to give.
pub fn listener(port: u16) -> anyhow::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn add(epoll: &OwnedFd, socket: &OwnedFd) -> Result<(), Errno> {
    let data = EventData::new_u64(index(socket.as_fd()) as u64);
    epoll::add(epoll, socket, data, EventFlags::IN | EventFlags::RDHUP | EventFlags::ET)
}

/// A descriptor as an index: it names its connection for as long as that is open.
fn index(fd: BorrowedFd<'_>) -> usize {
    usize::try_from(fd.as_raw_fd()).unwrap_or_default()
}

/// Connections by descriptor.
#[derive(Debug)]
pub struct Connections {
    epoll: OwnedFd,
    slots: Vec<Option<Connection>>,
}

impl Connections {
    /// None yet.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new(floor: &Floor) -> anyhow::Result<Self> {
        Ok(Self { epoll: floor.epoll.try_clone()?, slots: Vec::new() })
    }

    /// Takes a connection in.
    pub fn insert(&mut self, fd: usize, socket: OwnedFd) {
        if fd >= self.slots.len() {
            self.slots.resize_with(fd + 1, || None);
        }
        self.slots[fd] = Some(Connection { socket, tail: Vec::new() });
    }

    /// Does something with a connection. Closes it when that says that it is over; hears when there
    /// is room again when something could not be sent.
    #[inline]
    pub fn with(&mut self, fd: usize, act: impl FnOnce(&mut Connection) -> Result<(), Gone>) {
        let Some(connection) = self.slots.get_mut(fd).and_then(Option::as_mut) else { return };
        let mut gone = act(connection).is_err();
        if !gone && connection.has_tail() {
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            let data = EventData::new_u64(fd as u64);
            gone = epoll::modify(&self.epoll, &connection.socket, data, flags).is_err();
        }
        if gone {
            self.slots[fd] = None;
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// What the socket had no room for.
    tail: Vec<u8>,
}

/// The connection is over.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

impl Connection {
    /// Answers what came with the same bytes: reads once, and again only while the buffer came
    /// back full.
    ///
    /// # Errors
    /// It is over.
    #[inline]
    pub fn echo(&mut self, ready: Ready, buffer: &mut [u8]) -> Result<(), Gone> {
        if self.has_tail() {
            if !ready.writable || !self.send_tail()? {
                return Ok(());
            }
        } else if !ready.readable {
            return Ok(());
        }
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Gone),
                Ok((bytes, _)) => {
                    if !self.send(&buffer[..bytes])? || bytes < buffer.len() {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Sends; keeps the tail that the socket has no room for. Says whether all is sent.
    ///
    /// # Errors
    /// The connection is over.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> Result<bool, Gone> {
        let mut sent = 0;
        while sent < bytes.len() {
            match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => {
                    self.tail.extend_from_slice(&bytes[sent..]);
                    return Ok(false);
                }
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        Ok(true)
    }

    /// Whether something is kept that the socket had no room for.
    #[must_use]
    pub fn has_tail(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Sends what was kept. Says whether all is sent.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_tail(&mut self) -> Result<bool, Gone> {
        let tail = std::mem::take(&mut self.tail);
        self.send(&tail)
    }

    /// Reads and forgets all that came.
    ///
    /// # Errors
    /// The connection is over.
    pub fn skip_input(&mut self, buffer: &mut [u8]) -> Result<(), Gone> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Gone),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
    }
}
