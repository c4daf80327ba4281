//! Accepts connections whose peers are still there.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;
use tokio::task;

use crate::driver::accept_queue;

/// A connection, and its peer's address.
pub(crate) type Accepted = (TcpStream, SocketAddr);

/// How long accepting waits after the system had no descriptor for it.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Dead connections that are accepted and dropped in one go, before other tasks have their turn.
const DEAD_MAX: usize = 256;

/// The kernel's queue of connections to accept.
///
/// Peers that connect and reset over and over fill it with dead connections. Here each of them costs three system
/// calls: no registration with the poller, no slot and no task.
pub(crate) struct AcceptQueue {
    /// Accepts without waiting.
    listener: TcpListener,
    /// The same socket. Waits for a connection.
    waiting: tokio::net::TcpListener,
}

impl AcceptQueue {
    /// Of a listener that does not block.
    pub(crate) fn new(listener: TcpListener) -> io::Result<Self> {
        let waiting = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        Ok(Self { listener, waiting })
    }

    /// Accepts the next connection whose peer is still there. A caller that stops to wait loses no connection.
    pub(crate) async fn next(&self) -> io::Result<Accepted> {
        loop {
            // All that wait.
            let mut left = u32::MAX;
            if let Some(accepted) = self.next_waiting(&mut left).await? {
                return Ok(accepted);
            }
            match self.waiting.accept().await {
                Ok((stream, peer)) if is_live(&stream) => return Ok((stream, peer)),
                Ok(_) => {}
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Accepts the next connection whose peer is still there, and that waits already. `None`: there is none among the next
    /// `left`. Each accept takes one off.
    pub(crate) async fn next_waiting(&self, left: &mut u32) -> io::Result<Option<Accepted>> {
        loop {
            for _ in 0..DEAD_MAX {
                if *left == 0 {
                    return Ok(None);
                }
                match self.listener.accept() {
                    Ok((stream, peer)) => {
                        *left -= 1;
                        if is_live(&stream) {
                            stream.set_nonblocking(true)?;
                            return Ok(Some((TcpStream::from_std(stream)?, peer)));
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    Err(error) if is_of_the_peer(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            task::yield_now().await;
        }
    }

    /// How many connections the queue may hold.
    pub(crate) fn capacity(&self) -> u32 {
        accept_queue::capacity(&self.listener)
    }

    /// Ends listening. Returns how many connections still waited: the kernel resets them.
    pub(crate) fn close(self) -> u32 {
        accept_queue::close(self.listener)
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Whether the peer has neither reset the connection nor ended it without a request.
fn is_live(stream: impl AsFd) -> bool {
    let mut byte = [0; 1];
    match recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, bytes)) => bytes > 0,
        Err(error) => error == Errno::AGAIN || error == Errno::INTR,
    }
}
