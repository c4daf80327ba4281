//! A shard, a driver and clients: simulated, or over loopback.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::clock::WallClock;
use tidegate::driver::Driver;
use tidegate::driver::sim::{Arrived, Faults, Sim};
use tidegate::parts::Parts;
use tidegate::shard::mailbox::Message;
use tidegate::wire::Wired;
use tidegate_backend::batch::Wake;
use tidegate_testing::wire::{WireClient, WireKind};
use tidegate_testing::{Peer, World, sim, wire_settings, wired};

use crate::play::setup;
use crate::script::CLIENTS;

/// The time between two reads of sockets that have nothing.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// The clients' end of the connections, and a way to let the shard run.
pub(crate) trait Network {
    /// Writes as much as the connection takes; says how many bytes.
    fn write(&mut self, client: usize, bytes: &[u8]) -> usize;
    fn half_close(&mut self, client: usize);
    fn read(&mut self, client: usize) -> Arrived;
    /// Lets the shard work.
    fn pass(&mut self);
}

/// Clients that speak through a wire.
pub(crate) struct OverWire<N> {
    network: N,
    clients: Vec<WireClient>,
    ends: [bool; CLIENTS],
}

impl<N: Network> OverWire<N> {
    pub(crate) fn new(kind: WireKind, network: N) -> Self {
        let clients = (0..CLIENTS).map(|client| WireClient::new(kind, client as u64)).collect();
        Self { network, clients, ends: [false; CLIENTS] }
    }

    fn flush(&mut self, client: usize) {
        let wire = &mut self.clients[client];
        // Nothing may be written after the end, not even no bytes.
        if !wire.out.is_empty() {
            let written = self.network.write(client, &wire.out);
            wire.out.drain(..written);
        }
        if self.ends[client] && wire.out.is_empty() && wire.is_open() {
            self.ends[client] = false;
            self.network.half_close(client);
        }
    }
}

impl<N: Network> Network for OverWire<N> {
    fn write(&mut self, client: usize, bytes: &[u8]) -> usize {
        let count = self.clients[client].send(bytes);
        self.flush(client);
        count
    }

    fn half_close(&mut self, client: usize) {
        self.clients[client].end();
        self.ends[client] = true;
        self.flush(client);
    }

    fn read(&mut self, client: usize) -> Arrived {
        self.flush(client);
        match self.network.read(client) {
            Arrived::Bytes(bytes) => self.clients[client].receive(&bytes),
            Arrived::Nothing => {}
            end => return end,
        }
        self.flush(client);
        match std::mem::take(&mut self.clients[client].received) {
            received if received.is_empty() => Arrived::Nothing,
            received => Arrived::Bytes(received.into()),
        }
    }

    fn pass(&mut self) {
        self.network.pass();
    }
}

pub(crate) struct Simulated {
    world: World<Wired<Sim>>,
    peers: Vec<Peer>,
}

impl Simulated {
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(WireKind::PLAIN, seed)
    }

    pub(crate) fn on(kind: WireKind, seed: u64) -> Self {
        let faults = Faults {
            cut: 0.5,
            short_send: 0.5,
            late_send: 0.5,
            late_reply: 0.5,
            stall: 0.02,
            accept_delay: 0.5,
            shuffle: true,
            ..Faults::default()
        };
        let mut world = setup().world_on(|_, now| wired(kind, sim(seed, now, faults.clone())));
        let peers = (0..CLIENTS).map(|_| world.connect(0)).collect();
        Self { world, peers }
    }
}

impl Network for Simulated {
    fn write(&mut self, client: usize, bytes: &[u8]) -> usize {
        self.world.write(self.peers[client], bytes)
    }

    fn half_close(&mut self, client: usize) {
        self.world.half_close(self.peers[client]);
    }

    fn read(&mut self, client: usize) -> Arrived {
        self.world.read_at_most(self.peers[client], usize::MAX)
    }

    fn pass(&mut self) {
        // Handshakes begin at a rate.
        self.world.advance(Duration::from_millis(1));
        self.world.turns(1);
    }
}

/// A shard with its own thread and real sockets, as in the gateway.
pub(crate) struct Sockets {
    parts: Parts,
    streams: Vec<TcpStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Sockets {
    pub(crate) fn new<D: Driver + Send + 'static>(
        kind: WireKind,
        new: impl FnOnce(TcpListener) -> io::Result<D>,
        waker: impl FnOnce(&D) -> Arc<dyn Wake>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let driver = new(listener).unwrap();
        let waker = waker(&driver);
        let mut driver = Wired::new(driver, wire_settings(kind));
        let (parts, _) = setup().assemble(Instant::now(), WallClock::system());
        parts.shared.addresses[0].mailbox().set_waker(waker);
        let shard_parts = parts.clone();
        let thread = thread::spawn(move || shard_parts.shard(0).run(&mut driver));
        let connect = |_| {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        Self { parts, streams: (0..CLIENTS).map(connect).collect(), thread: Some(thread) }
    }
}

impl Network for Sockets {
    fn write(&mut self, client: usize, bytes: &[u8]) -> usize {
        match self.streams[client].write(bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("client {client} can't write: {error}"),
        }
    }

    fn half_close(&mut self, client: usize) {
        self.streams[client].shutdown(Shutdown::Write).unwrap();
    }

    fn read(&mut self, client: usize) -> Arrived {
        let mut buffer = vec![0; 16 * 1024];
        match self.streams[client].read(&mut buffer) {
            Ok(0) => Arrived::End,
            Ok(count) => Arrived::Bytes(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Arrived::Nothing,
            Err(_) => Arrived::Reset,
        }
    }

    fn pass(&mut self) {
        thread::park_timeout(LOOK_AGAIN);
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.parts.hub.set_stopped();
        self.parts.hub.tell_all(|| Message::Stop);
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}
