//! The kernel's accept queue of a listening socket: its length, its capacity, and its end.
//!
//! The drivers of real sockets and the listeners of HTTP call it. It is system calls alone: it owns no
//! socket and decides nothing. [`accept_state`](super::accept_state) decides when a driver's listening socket
//! closes.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

/// Taken for the queue's size where the kernel does not say it: the default of `socket.backlog`.
const CAPACITY_UNKNOWN: u32 = 4096;

/// The beginning of the kernel's `struct tcp_info` (linux/tcp.h). The struct grows from version to version:
/// the kernel fills as many bytes as it is asked for, up to its own size, and every version has these. The
/// binding panics if the kernel fills fewer bytes than it is asked for, so no later field may be asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(unreachable_pub, reason = "the macro makes TcpInfo public")]
pub struct TcpInfoStart {
    state_and_options: [u8; 8],
    timeouts_and_sizes: [u32; 4],
    /// Of a listening socket: how many connections wait to be accepted.
    tcpi_unacked: u32,
    /// Of a listening socket: how many may wait.
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

/// How many connections the queue may hold.
pub(crate) fn capacity(listener: &impl AsFd) -> u32 {
    let backlog = getsockopt(listener, TcpInfo).map(|info| info.tcpi_sacked);
    // The kernel takes one connection more than the backlog says.
    backlog.unwrap_or(CAPACITY_UNKNOWN).saturating_add(1)
}

/// How many connections wait to be accepted; 0 where the kernel does not say.
fn waiting(listener: &impl AsFd) -> u32 {
    getsockopt(listener, TcpInfo).map_or(0, |info| info.tcpi_unacked)
}

/// Whether a connection waits to be accepted, or one comes within a time.
pub(crate) fn is_waited_for(listener: &impl AsFd, within: Duration) -> bool {
    let mut listener = [PollFd::new(listener, PollFlags::IN)];
    let within = Timespec::try_from(within).ok();
    poll(&mut listener, within.as_ref()).is_ok_and(|count| count > 0)
}

/// Closes a listening socket. Says how many connections still waited: the kernel resets them.
pub(crate) fn close(listener: impl AsFd) -> u32 {
    let reset = waiting(&listener);
    // Each thread may have its own table of descriptors, a copy with this socket in it. To close one
    // copy does not stop the socket listening. A shutdown does: listen(2) is undone for all copies.
    let _ = shutdown(&listener, Shutdown::Read);
    reset
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn listening(backlog: i32) -> (Socket, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(backlog).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        (listener, address)
    }

    #[test]
    fn length_and_capacity_come_from_the_kernel() {
        let (listener, address) = listening(5);
        assert_eq!((capacity(&listener), waiting(&listener)), (6, 0));
        assert!(!is_waited_for(&listener, Duration::ZERO));
        let _waiting: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(is_waited_for(&listener, Duration::from_secs(30)));
        assert_eq!(waiting(&listener), 3);
    }

    #[test]
    fn a_closed_listener_refuses_though_a_copy_of_its_descriptor_is_open() {
        let (listener, address) = listening(5);
        let _copy = listener.try_clone().unwrap();
        let _waiting = TcpStream::connect(address).unwrap();
        assert!(is_waited_for(&listener, Duration::from_secs(30)));
        assert_eq!(close(listener), 1);
        assert!(TcpStream::connect(address).is_err());
    }
}
