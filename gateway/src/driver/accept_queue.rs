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

sockopt_impl!(
    /// What TCP knows of a socket: tcp(7), TCP_INFO. Of one that listens, `tcpi_unacked` is how many
    /// connections wait to be accepted, and `tcpi_sacked` how many may.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
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
