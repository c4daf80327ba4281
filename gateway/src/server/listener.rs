//! The listening sockets: for each listener, one for each shard, on one port.
//!
//! SO_REUSEPORT lets the shards' sockets share the port, and would let a second gateway share it too. So the first
//! socket of a gateway listens without it. listen(2) then fails if anybody listens on an overlapping address: the
//! kernel checks that under the port's lock. From then on it fails for every other socket without SO_REUSEPORT, also
//! for another gateway's first one. The socket itself is the claim, so a crash leaves nothing behind.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{Config, ListenerConfig, WireKind};
use crate::holder::{AddressError, Wait, drains, once_released};

/// Where clients connect, and what they speak there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The listener's name in the configuration; empty: the key `listen`.
    pub name: String,
    /// What it speaks.
    pub wire: WireKind,
    /// The address.
    pub address: SocketAddr,
    /// The path of a WebSocket; empty where that is `/`, and on other wires.
    pub path: String,
    /// Whether each connection has to begin with a PROXY header.
    pub wants_proxy_header: bool,
}

impl ClientAddress {
    /// Of the key `listen`.
    const fn plain(address: SocketAddr) -> Self {
        Self {
            name: String::new(),
            wire: WireKind::Tcp,
            address,
            path: String::new(),
            wants_proxy_header: false,
        }
    }

    /// As configured: port 0 stands for one that the kernel picks.
    fn configured(listener: &ListenerConfig) -> Self {
        let path = listener.upgrade.as_ref().map(|rules| rules.path.clone());
        Self {
            name: listener.name.clone(),
            wire: listener.wire,
            address: listener.listen,
            path: path.filter(|path| path != "/").unwrap_or_default(),
            wants_proxy_header: !listener.proxy_from.is_empty(),
        }
    }
}

/// All listening sockets of a gateway.
#[derive(Debug)]
pub(super) struct Listeners {
    /// In the order of the drivers' numbers, and then those of HTTP. The plain one comes first, if there is one.
    pub(super) addresses: Vec<ClientAddress>,
    /// For each shard, one for each address.
    pub(super) by_shard: Vec<Vec<TcpListener>>,
    /// One for each listener of the HTTP gateway. Their addresses come last.
    pub(super) http: Vec<TcpListener>,
}

/// Why a listener's address can't be listened on.
#[derive(Debug)]
pub(super) struct ListenError {
    /// Which key names the address.
    pub(super) key: String,
    pub(super) address: SocketAddr,
    pub(super) cause: AddressError,
}

impl ListenError {
    fn new(name: &str, address: SocketAddr, cause: AddressError) -> Self {
        let key =
            if name.is_empty() { "listen".into() } else { format!("listeners.{name}.listen") };
        Self { key, address, cause }
    }
}

/// Opens all listening sockets.
pub(super) fn listen(config: &Config, wait: &Wait<'_>) -> Result<Listeners, ListenError> {
    let plain = config.listen.map(ClientAddress::plain);
    let others = config.listeners.iter().map(ClientAddress::configured);
    let shards = usize::from(config.shards);
    let mut by_shard: Vec<Vec<TcpListener>> = (0..shards).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for mut clients in plain.into_iter().chain(others) {
        let refuse = |cause| ListenError::new(&clients.name, clients.address, cause);
        let sockets = listen_at(clients.address, config, wait).map_err(refuse)?;
        let address = sockets[0].local_addr();
        let address = address.map_err(|error| refuse(AddressError::Refused(error)))?;
        for (of_shard, socket) in by_shard.iter_mut().zip(sockets) {
            of_shard.push(socket);
        }
        clients.address = address;
        addresses.push(clients);
    }
    let mut http = Vec::new();
    for listener in &config.http.listeners {
        let mut clients = ClientAddress::configured(listener);
        let refuse = |cause| ListenError::new(&clients.name, clients.address, cause);
        let socket = claim(clients.address, config, wait).map_err(refuse)?;
        let address = socket.local_addr();
        clients.address = address.map_err(|error| refuse(AddressError::Refused(error)))?;
        addresses.push(clients);
        http.push(socket);
    }
    Ok(Listeners { addresses, by_shard, http })
}

/// The first socket on a port, which no other gateway has.
///
/// Whether the port's holder is a gateway that drains is asked at this gateway's own operators' address, which the
/// two share.
fn claim(
    listen: SocketAddr,
    config: &Config,
    wait: &Wait<'_>,
) -> Result<TcpListener, AddressError> {
    let drains = || drains(config.admin.listen, wait.interrupted);
    once_released(listen, wait, drains, || open(listen, config, Port::Own))
}

/// One listening socket for each shard, on the same port.
fn listen_at(
    listen: SocketAddr,
    config: &Config,
    wait: &Wait<'_>,
) -> Result<Vec<TcpListener>, AddressError> {
    let first = claim(listen, config, wait)?;
    let address = first.local_addr().map_err(AddressError::Refused)?;
    SockRef::from(&first).set_reuse_port(true).map_err(AddressError::Refused)?;
    let mut listeners = vec![first];
    while listeners.len() < usize::from(config.shards) {
        // This gateway has the port. A bind of another one may still make this bind fail for a moment.
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
        let mut config = Config { listen: Some(listen), shards, ..Config::embedded_default() };
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
        let wait = Wait { patience, interrupted: &|| false };
        listen_at(config.listen.unwrap(), config, &wait).map_err(|error| match error {
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
