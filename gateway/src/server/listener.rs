//! The listening sockets: one for each shard, on one port.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::StartError;
use crate::config::Config;

/// One listening socket for each shard, on the same port.
pub(super) fn listen(config: &Config) -> Result<Vec<TcpListener>, StartError> {
    let fail = |cause| StartError::Listen { address: config.listen, cause };
    let mut address = config.listen;
    let mut listeners = Vec::new();
    if address.port() != 0 {
        // SO_REUSEPORT would let two gateways share a port unnoticed: who is there already says no.
        drop(bind(address, config, false).map_err(fail)?);
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
