//! The kernel's accept queue of a listening socket, and how it is emptied before the socket closes.
//!
//! The drivers of real sockets use this, and who listens for operators; it owns no socket.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Taken for the queue's size where the kernel does not tell it: the default of `socket.backlog`.
const CAPACITY_UNKNOWN: u32 = 4096;

/// The beginning of the kernel's `struct tcp_info` (linux/tcp.h), which grows from version to version: the
/// kernel fills as much as it is asked for, and all versions have this much. The binding panics if the kernel
/// fills less than it is asked for, so nothing behind it may be asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(unreachable_pub, reason = "the macro makes TcpInfo public")]
pub struct TcpInfoStart {
    state_and_options: [u8; 8],
    timeouts_and_sizes: [u32; 4],
    /// Of a socket that listens: how many connections wait to be accepted.
    tcpi_unacked: u32,
    /// Of a socket that listens: how many may wait.
    tcpi_sacked: u32,
}

const _: () = assert!(size_of::<TcpInfoStart>() == 32, "as in Linux 2.4 and all later versions");

sockopt_impl!(
    /// What TCP knows of a socket: tcp(7), TCP_INFO.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    TcpInfoStart
);

/// How many connections wait to be accepted; 0 where the kernel does not tell.
pub(super) fn waiting(listener: &impl AsFd) -> u32 {
    getsockopt(listener, TcpInfo).map_or(0, |info| info.tcpi_unacked)
}

/// Whether a connection waits to be accepted, or one comes within a time.
pub(crate) fn is_waited_for(listener: &impl AsFd, within: Duration) -> bool {
    let mut listener = [PollFd::new(listener, PollFlags::IN)];
    let within = Timespec::try_from(within).ok();
    poll(&mut listener, within.as_ref()).is_ok_and(|count| count > 0)
}

/// The last connections to accept before a listening socket closes.
///
/// The queue is first in, first out: after as many accepts as it holds, all those are in that waited when
/// this began, however many more have come.
#[derive(Debug)]
pub(super) struct LastAccepts {
    left: u32,
    /// Until then the driver waits for room.
    pub(super) until: Instant,
}

impl LastAccepts {
    pub(super) fn new(listener: &impl AsFd, until: Instant) -> Self {
        let capacity = getsockopt(listener, TcpInfo).map(|info| info.tcpi_sacked);
        // The kernel takes one more than it says.
        Self { left: capacity.unwrap_or(CAPACITY_UNKNOWN).saturating_add(1), until }
    }

    /// Counts a connection that was accepted.
    pub(super) fn count(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether to go on, for those who wait: `able` says whether one can be accepted now.
    pub(super) fn go_on(&self, able: bool, now: Instant) -> bool {
        self.left > 0 && (able || now < self.until)
    }

    /// Whether one more may be accepted.
    pub(super) fn has_left(&self) -> bool {
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn the_kernel_tells_who_waits_and_how_many_may() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any_port.into()).unwrap();
        listener.listen(5).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let last = LastAccepts::new(&listener, Instant::now());
        assert_eq!((last.left, waiting(&listener)), (6, 0));
        let _waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(is_waited_for(&listener, Duration::from_secs(30)));
        assert_eq!(waiting(&listener), 3);
    }
}
