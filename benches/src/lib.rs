//! The parts that the floors share. A floor is the least work that a server can do for a kind of traffic: no
//! protocol, no
//! state, no backend. It has one thread with an epoll, or several where the connections need several descriptor tables.
//! What a gateway costs above its floor is the gateway's own cost.

pub mod clients;
pub mod wire;

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
/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 4096;
/// The size of the receive buffer.
pub const BUFFER_BYTES: usize = 128 * 1024;

/// A listening socket, an epoll, and its events.
#[expect(missing_debug_implementations, reason = "rustix's events have none")]
pub struct Floor {
    epoll: OwnedFd,
    listener: OwnedFd,
    events: Vec<Event>,
}

/// A connection that is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The connection's descriptor.
    pub fd: usize,
    /// A read returns bytes or the end of the stream.
    pub readable: bool,
    /// A write takes bytes.
    pub writable: bool,
}

impl Floor {
    /// Listens on a free loopback port and prints it as the first line. The process ends when its standard input is
    /// closed.
    ///
    /// # Errors
    /// A system call failed.
    pub fn listen() -> anyhow::Result<Self> {
        Self::listen_until(|| ())
    }

    /// As [`Self::listen`], with something to do before the process ends.
    ///
    /// # Errors
    /// A system call failed.
    pub fn listen_until(at_the_end: impl FnOnce() + Send + 'static) -> anyhow::Result<Self> {
        let floor = Self::listen_on(0)?;
        floor.announce(at_the_end)?;
        Ok(floor)
    }

    /// Listens on this loopback port, which other sockets may share (SO_REUSEPORT), or on a free one where it is 0.
    ///
    /// # Errors
    /// A system call failed.
    pub fn listen_on(port: u16) -> anyhow::Result<Self> {
        let floor = Self::from_listener(listener(port)?)?;
        floor.start_accepting()?;
        Ok(floor)
    }

    /// Uses this listening socket. [`Self::start_accepting`] makes the epoll report its connections.
    ///
    /// # Errors
    /// The epoll can't be created.
    pub fn from_listener(listener: OwnedFd) -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, listener, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Starts to report new connections.
    ///
    /// # Errors
    /// epoll fails.
    pub fn start_accepting(&self) -> anyhow::Result<()> {
        Ok(add(&self.epoll, &self.listener)?)
    }

    /// Stops reporting new connections.
    ///
    /// # Errors
    /// epoll fails.
    pub fn stop_accepting(&self) -> anyhow::Result<()> {
        Ok(epoll::delete(&self.epoll, &self.listener)?)
    }

    /// The port it listens on.
    ///
    /// # Errors
    /// A system call failed.
    pub fn port(&self) -> anyhow::Result<u16> {
        Ok(SocketAddrV4::try_from(getsockname(&self.listener)?)?.port())
    }

    /// Prints the port as the first line. The process ends when its standard input is closed, after `at_the_end`.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn announce(&self, at_the_end: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        println!("{}", self.port()?);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            at_the_end();
            std::process::exit(0)
        })?;
        Ok(())
    }

    /// Waits for an event, at most for `timeout_ns`.
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

    /// The events of the last wait. `None` is the listener.
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

    /// Accepts all queued connections, with TCP_NODELAY.
    ///
    /// # Errors
    /// A connection can't be set up. One that has closed meanwhile is no error.
    pub fn accept(&self, mut accepted: impl FnMut(usize, OwnedFd)) -> anyhow::Result<()> {
        self.accept_while(|fd, socket| {
            accepted(fd, socket);
            true
        })
    }

    /// As [`Self::accept`], until `accepted` returns false.
    ///
    /// # Errors
    /// A connection can't be set up. One that has closed meanwhile is no error.
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

/// A socket that listens on this loopback port, which others may share (SO_REUSEPORT), or on a free one where it is 0.
///
/// # Errors
/// A system call failed.
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

/// A descriptor as an index. It identifies the connection while that is open.
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
    /// No connections yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(floor: &Floor) -> anyhow::Result<Self> {
        Ok(Self { epoll: floor.epoll.try_clone()?, slots: Vec::new() })
    }

    /// Adds a connection.
    pub fn insert(&mut self, fd: usize, socket: OwnedFd) {
        if fd >= self.slots.len() {
            self.slots.resize_with(fd + 1, || None);
        }
        self.slots[fd] = Some(Connection { socket, tail: Vec::new() });
    }

    /// Calls `act` with a connection. Closes it on [`Gone`]. Where bytes remain unsent, asks the epoll to report when
    /// the socket
    /// takes more.
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
    /// Bytes that the socket did not take.
    tail: Vec<u8>,
}

/// The connection has ended.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

impl Connection {
    /// Sends back what was received. Reads once, and again only while a read fills the buffer.
    ///
    /// # Errors
    /// The connection has ended.
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

    /// Reads once. `None`: there is nothing to read.
    ///
    /// # Errors
    /// The connection has ended.
    #[inline]
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Gone> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Gone),
                Ok((bytes, _)) => return Ok(Some(bytes)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// Sends bytes, and keeps those that the socket does not take. Returns whether all are sent.
    ///
    /// # Errors
    /// The connection has ended.
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

    /// Whether unsent bytes are kept.
    #[must_use]
    pub fn has_tail(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Sends the kept bytes. Returns whether all are sent.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send_tail(&mut self) -> Result<bool, Gone> {
        let tail = std::mem::take(&mut self.tail);
        self.send(&tail)
    }

    /// Reads and discards all received bytes.
    ///
    /// # Errors
    /// The connection has ended.
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
