//! The parts that the programs share which play many clients: [`connect`], [`Sources`], [`Poller`] and [`asks`].

use std::io::BufRead as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// Begins to connect from `source`. The kernel chooses the port when it knows both addresses, so that a port can serve several
/// destinations.
///
/// # Errors
/// A system call failed.
pub fn connect(source: IpAddr, to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    setsockopt(&socket, IpBindAddressNoPort, &true)
        .map_err(|error| Errno::from_raw_os_error(error as i32))?;
    bind(&socket, &SocketAddr::new(source, 0))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Consecutive source addresses, used in rotation.
#[derive(Clone, Copy, Debug)]
pub struct Sources {
    /// The first one.
    pub first: Ipv4Addr,
    /// How many: at least 1.
    pub count: u32,
}

impl Sources {
    /// The source address of client `index`.
    #[must_use]
    pub fn of(self, index: usize) -> IpAddr {
        let offset = u32::try_from(index % self.count.max(1) as usize).unwrap_or_default();
        Ipv4Addr::from_bits(self.first.to_bits() + offset).into()
    }
}

/// An epoll whose sockets have numbers.
#[expect(missing_debug_implementations, reason = "rustix's events have none")]
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// An epoll without sockets.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn new() -> anyhow::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("no epoll")?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Reports each change of this socket, until it is closed.
    ///
    /// # Errors
    /// No memory is left.
    pub fn add(&self, socket: impl AsFd, index: usize) -> Result<(), Errno> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), flags)
    }

    /// Waits for changes. Returns the numbers of the sockets that have changed.
    ///
    /// # Errors
    /// epoll fails.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<Vec<usize>> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into()?,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll failed"),
        }
        let index = |event: &Event| usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
        Ok(self.events.iter().map(index).collect())
    }
}

/// The lines of the standard input, as they come. It is disconnected at their end.
#[must_use]
pub fn asks() -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock().lines().map_while(Result::ok);
        while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
    });
    receiver
}
