//! The listening sockets: one for each shard, on one port.
//!
//! SO_REUSEPORT lets the shards' sockets share the port, and would let a second gateway share it too. So the first
//! socket of a gateway listens without it. listen(2) then fails if anybody listens on an overlapping address: the
//! kernel checks that under the port's lock. From then on it fails for every other socket without SO_REUSEPORT, also
//! for another gateway's first one. The socket itself is the claim, so a crash leaves nothing behind.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Config;
use crate::holder::{AddressError, Wait, drains, once_released};

/// One listening socket for each shard, on the same port.
///
/// Whether the port's holder is a gateway that drains is asked at this gateway's own operators' address, which the
/// two share.
pub(super) fn listen(config: &Config, wait: &Wait<'_>) -> Result<Vec<TcpListener>, AddressError> {
    let drains = || drains(config.admin.listen, wait.interrupted);
    let own = || open(config.listen, config, Port::Own);
    let first = once_released(config.listen, wait, drains, own)?;
    let address = first.local_addr().map_err(AddressError::Refused)?;
    SockRef::from(&first).set_reuse_port(true).map_err(AddressError::Refused)?;
    let mut listeners = vec![first];
    while listeners.len() < usize::from(config.shards) {
        // This gateway has the port. Another one that tries to bind it may be in the way for a moment.
        let shared = || open(address, config, Port::Shared);
        listeners.push(once_released(address, wait, || false, shared)?);
    }
    Ok(listeners)
}

/// Whether a socket shares its port with other sockets that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Own,
    Shared,
}

/// Binds and listens, and sets the options that accepted sockets inherit (tcp(7), socket(7)). So accepted sockets need
/// no system call for them.
fn open(address: SocketAddr, config: &Config, port: Port) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(port == Port::Shared)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(config.socket.user_timeout))?;
    socket.set_send_buffer_size(config.socket.send_buffer_bytes)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(config.socket.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn config(listen: SocketAddr, shards: u16) -> Config {
        let mut config = Config { listen, shards, ..Config::embedded_default() };
        config.admin.listen = any_port();
        config
    }

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// A port of 127.0.0.1 that is free, and below those that the kernel gives to others meanwhile.
    fn free_port() -> u16 {
        let candidates = || fastrand::u16(10_000..20_000);
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        std::iter::repeat_with(candidates).find(is_free).unwrap()
    }

    fn listen_within(config: &Config, patience: Duration) -> io::Result<Vec<TcpListener>> {
        listen(config, &Wait { patience, interrupted: &|| false }).map_err(|error| match error {
            AddressError::Refused(error) => error,
            AddressError::Interrupted => unreachable!(),
        })
    }

    /// Two start together on overlapping addresses, again and again.
    fn race(one: &str, other: &str) {
        let port = free_port();
        let config = |ip: &str| config(format!("{ip}:{port}").parse().unwrap(), 4);
        let configs = [config(one), config(other)];
        for round in 0..50 {
            let start = Barrier::new(2);
            let open = |config: &Config| {
                start.wait();
                listen_within(config, Duration::from_millis(100))
            };
            let opened = thread::scope(|scope| {
                let threads = configs.each_ref().map(|config| scope.spawn(|| open(config)));
                threads.map(|thread| thread.join().unwrap())
            });
            let winners = opened.iter().filter(|opened| opened.is_ok()).count();
            assert_eq!(winners, 1, "round {round}: {one} and {other}: {opened:?}");
            let lost = opened.iter().find_map(|opened| opened.as_ref().err()).unwrap();
            assert_eq!(lost.kind(), ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn of_two_that_start_together_one_has_the_port() {
        let pairs = [
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("[::]", "0.0.0.0"),
            ("[::]", "127.0.0.1"),
            ("[::1]", "[::]"),
        ];
        thread::scope(|scope| {
            for (one, other) in pairs {
                scope.spawn(move || race(one, other));
            }
        });
    }

    #[test]
    fn connections_go_to_all_shards() {
        let listeners = listen_within(&config(any_port(), 4), Duration::ZERO).unwrap();
        let address = listeners[0].local_addr().unwrap();
        listeners.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        let streams: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        let accepted =
            |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
        let counts: Vec<_> = listeners.iter().map(accepted).collect();
        assert_eq!(counts.iter().sum::<usize>(), streams.len());
        assert!(counts.iter().all(|&count| count > 10), "{counts:?}");
    }

    #[test]
    fn a_port_is_available_once_it_is_released() {
        let holder = listen_within(&config(any_port(), 2), Duration::ZERO).unwrap();
        let address = holder[0].local_addr().unwrap();
        let mut holder = Some(holder);
        let wait = Wait { patience: Duration::from_secs(60), interrupted: &|| false };
        let got = once_released(
            address,
            &wait,
            || false,
            || {
                let opened = open(address, &config(address, 1), Port::Own);
                // It was in use once.
                assert_eq!(opened.is_err(), holder.take().is_some());
                opened
            },
        );
        assert_eq!(got.unwrap().local_addr().unwrap(), address);
    }
}
