//! The operators' listening socket, and how a gateway that drains hands its port over.
//!
//! A gateway that drains serves its operators to the end: orchestrators ask whether it is ready, and operators
//! who watch the drain ask for metrics. A gateway that starts meanwhile on the same address is the one that
//! operators need from then on, and must not wait for the other's drain. So a draining gateway lets its
//! successor share the port, and the kernel sends new connections only to the successor. The old gateway keeps
//! the connections that it has.
//!
//! Only a gateway of the same user can be a successor (socket(7), SO_REUSEPORT).

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::driver::accept_queue;
use crate::holder::{ASK_TIMEOUT, AddressError, Wait, drains, once_released};

/// Connections that the kernel queues until they are accepted, as far as `net.core.somaxconn` allows. A peer that
/// finds the queue full tries again after a second; in a longer queue it would wait as long for those before it
/// (see `connection_table`).
pub(super) const BACKLOG: u16 = 4000;

/// `SO_SNDBUF` of a connection, in bytes. It bounds what the kernel keeps for a client that does not read its answers.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Lets a successor share the port. See the [module](self).
#[derive(Debug)]
pub(crate) struct HandOver {
    /// The listening socket; `None`: the kernel can't send new connections only to the successor.
    socket: Option<TcpListener>,
}

impl HandOver {
    /// From now on a successor may listen on the same address.
    pub(crate) fn allow(&self) {
        if let Some(socket) = &self.socket
            && let Err(error) = SockRef::from(socket).set_reuse_port(true)
        {
            tracing::warn!(%error, "the operators' port can't be handed over to a new gateway");
        }
    }
}

/// Listens on an address, alone or beside a gateway that drains. Waits for it.
///
/// # Errors
/// When it stays in use, or the wait was interrupted.
pub(super) fn bind(
    address: SocketAddr,
    wait: &Wait<'_>,
) -> Result<(TcpListener, HandOver), AddressError> {
    let open = || match listen(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && drains(address, wait.interrupted) => {
            tracing::info!(%address, "taking the operators' port over from a gateway that drains");
            succeed(address)
        }
        other => other,
    };
    // A gateway that drains and can't be joined is another user's. This one has the clients' port already, so its
    // clients must not wait for the end of that drain.
    once_released(address, wait, || false, open)
}

/// Listens, unless another socket does.
fn listen(address: SocketAddr) -> io::Result<(TcpListener, HandOver)> {
    let socket = bound(address, false)?;
    // The group must exist before the socket listens. SO_REUSEPORT is off again by then, so nobody shares the port
    // until it is handed over.
    socket.set_reuse_port(true)?;
    let can_be_steered = prefer_second(&socket).is_ok();
    socket.set_reuse_port(false)?;
    socket.listen(BACKLOG.into())?;
    let listener = TcpListener::from(socket);
    let socket = if can_be_steered { Some(listener.try_clone()?) } else { None };
    Ok((listener, HandOver { socket }))
}

/// Listens beside a gateway that drains. Fails unless new connections come here from now on, so that only one of two
/// gateways that start meanwhile has the port.
fn succeed(address: SocketAddr) -> io::Result<(TcpListener, HandOver)> {
    let socket = bound(address, true)?;
    socket.listen(BACKLOG.into())?;
    let listener = TcpListener::from(socket);
    let _to_whom = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
    if !accept_queue::is_waited_for(&listener, ASK_TIMEOUT) {
        return Err(ErrorKind::AddrInUse.into());
    }
    let socket = Some(listener.try_clone()?);
    Ok((listener, HandOver { socket }))
}

fn bound(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Accepted sockets inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Has the kernel give new connections to the second socket of the port's group, the successor's. A number
/// beyond the group's size is ignored: while there is one socket, it gets them. When the first is closed,
/// the second becomes the first, and the same holds for its own successor.
fn prefer_second(socket: &Socket) -> io::Result<()> {
    let code = u16::try_from(libc::BPF_RET | libc::BPF_K).map_err(io::Error::other)?;
    let mut filter = [libc::sock_filter { code, jt: 0, jf: 0, k: 1 }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    Ok(setsockopt(socket, AttachReusePortCbpf, &program)?)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read as _, Write as _};
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Does not wait.
    pub(in super::super) const AT_ONCE: Wait<'_> =
        Wait { patience: Duration::ZERO, interrupted: &|| false };

    fn refused(bound: Result<(TcpListener, HandOver), AddressError>) -> ErrorKind {
        match bound.unwrap_err() {
            AddressError::Refused(error) => error.kind(),
            AddressError::Interrupted => unreachable!(),
        }
    }

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Answers everybody on this listener with a text, until one says that it is the end.
    fn answer(listener: TcpListener, text: &'static str) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                match stream.read(&mut request).unwrap() {
                    0 => {}
                    count if request[..count] == *b"end" => return,
                    _ => stream.write_all(text.as_bytes()).unwrap(),
                }
            }
        })
    }

    fn asked(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn end(address: SocketAddr, thread: thread::JoinHandle<()>) {
        TcpStream::connect(address).unwrap().write_all(b"end").unwrap();
        thread.join().unwrap();
    }

    const DRAINS: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"code\":\"draining\"}";

    #[test]
    fn new_connections_go_to_the_successor_of_a_gateway_that_drains() {
        let (first, hand_over) = bind(any_port(), &AT_ONCE).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(succeed(address).unwrap_err().kind(), ErrorKind::AddrInUse, "it serves");
        hand_over.allow();
        let answering = answer(first, DRAINS);
        (0..20).for_each(|_| assert_eq!(asked(address), DRAINS));
        let (second, hand_over) = bind(address, &AT_ONCE).unwrap();
        let _answering = answer(second, "second");
        (0..50).for_each(|_| assert_eq!(asked(address), "second"));
        // A gateway that comes later, or came at the same time, gets no connections and does not have the port.
        for late in [bind(address, &AT_ONCE), succeed(address).map_err(AddressError::Refused)] {
            assert_eq!(refused(late), ErrorKind::AddrInUse);
        }
        (0..50).for_each(|_| assert_eq!(asked(address), "second"));
        drop((answering, hand_over));
    }

    #[test]
    fn a_successor_has_successors() {
        let (mut last, mut hand_over) = bind(any_port(), &AT_ONCE).unwrap();
        let address = last.local_addr().unwrap();
        for _ in 0..3 {
            hand_over.allow();
            let (next, next_hand_over) = succeed(address).unwrap();
            // The one before is gone.
            (last, hand_over) = (next, next_hand_over);
            let _probe = last.accept().unwrap();
            let stream = TcpStream::connect(address).unwrap();
            let (_, peer) = last.accept().unwrap();
            assert_eq!(peer, stream.local_addr().unwrap());
        }
    }

    #[test]
    fn the_port_of_a_gateway_that_serves_is_left_alone() {
        let starts = "HTTP/1.1 503 No\r\n\r\n{\"error\":\"draining\",\"code\":\"starting\"}";
        for says in ["HTTP/1.1 200 OK\r\n\r\nready", "HTTP/1.1 503 No\r\n\r\nfull", starts, ""] {
            let (listener, hand_over) = bind(any_port(), &AT_ONCE).unwrap();
            let address = listener.local_addr().unwrap();
            hand_over.allow();
            let thread = answer(listener, says);
            assert_eq!(refused(bind(address, &AT_ONCE)), ErrorKind::AddrInUse, "{says:?}");
            end(address, thread);
        }
    }
}
