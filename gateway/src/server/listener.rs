//! The listening sockets: one for each shard, on one port.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::StartError;
use crate::config::Config;

/// How long the address may still be in use: a gateway on io_uring that was killed is gone before the kernel
/// has ended what it had under way, accepts among it.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);

/// Between two tries to have the address.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// One listening socket for each shard, on the same port.
pub(super) fn listen(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let fail = |cause| StartError::Listen { address: config.listen, cause };
    let mut address = config.listen;
    let mut listeners = Vec::new();
    if address.port() != 0 {
        // SO_REUSEPORT would let two gateways share a port unnoticed: who is there already says no.
        claim(address, config).map_err(fail)?;
    }
    for _ in 0..config.shards {
        let listener = bind(address, config, true).map_err(fail)?;
        address = listener.local_addr().map_err(fail)?;
        listeners.push(listener);
    }
    for listener in &listeners {
        let backlog = i32::try_from(config.socket.backlog).unwrap_or(i32::MAX);
        SockRef::from(listener).listen(backlog).map_err(fail)?;
    }
    Ok(listeners)
}

/// Sees to it that nobody else listens, or is about to stop.
fn claim(address: SocketAddr, config: &Config) -> io::Result<()> {
    let until = Instant::now() + RELEASED_WITHIN;
    loop {
        match bind(address, config, false) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(TRY_AGAIN);
            }
            claimed => return claimed.map(drop),
        }
    }
}

/// Binds, and sets what accepted sockets inherit (tcp(7), socket(7)): nothing is set on each.
fn bind(address: SocketAddr, config: &Config, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(config.socket.user_timeout))?;
    socket.set_send_buffer_size(config.socket.send_buffer_bytes)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
