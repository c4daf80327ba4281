//! The clients' side of the simulated network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tidegate::driver::sim::{Arrived, Faults, PeerId, Sim};
use tidegate::wire::proxy::ProxyRules;
use tidegate::wire::websocket::upgrade::{TokenSources, UpgradeRules};
use tidegate::wire::{Settings, Wire, Wired};

use crate::World;
use crate::wire::{WireKind, certificate};
use crate::world::SteppedDriver;

/// The client's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The shard that it is connected to.
    pub shard: usize,
    /// Its name in that shard's network.
    pub id: PeerId,
}

/// A simulated driver whose clock does not advance while the shard waits: only the world moves it, and the
/// clock jumps that `faults` allow.
#[must_use]
pub fn sim(seed: u64, now: Instant, faults: Faults) -> Sim {
    let mut sim = Sim::new(seed, now, faults);
    sim.set_wait_max(Duration::ZERO);
    sim
}

/// A simulated driver, perhaps with wires.
pub trait SimDriver: SteppedDriver {
    /// The simulation itself.
    fn sim(&mut self) -> &mut Sim;
}

impl SimDriver for Sim {
    fn sim(&mut self) -> &mut Sim {
        self
    }
}

impl SteppedDriver for Wired<Sim> {
    fn set_now(&mut self, now: Instant) {
        self.driver().set_now(now);
    }
}

impl SimDriver for Wired<Sim> {
    fn sim(&mut self) -> &mut Sim {
        self.driver()
    }
}

/// Settings of a driver whose connections have a wire.
///
/// # Panics
/// Never.
#[must_use]
pub fn wire_settings(kind: WireKind) -> Settings {
    let everybody = ["0.0.0.0/0".parse().expect("a network")];
    let rules = || UpgradeRules {
        path: "/".to_owned(),
        origins: Vec::new(),
        request_bytes_max: 8 * 1024,
        token: TokenSources::default(),
    };
    let wire = Wire {
        proxy: kind.proxy.then(|| Arc::new(ProxyRules::new("proxied", everybody))),
        tls: kind.tls.then(|| Arc::new(ArcSwap::new(Arc::clone(&certificate().server)))),
        websocket: kind.websocket.then(|| Arc::new(rules())),
    };
    Settings { wires: vec![wire], ..Settings::default() }
}

/// A simulated driver whose connections have a wire.
#[must_use]
pub fn wired(kind: WireKind, sim: Sim) -> Wired<Sim> {
    Wired::new(sim, wire_settings(kind))
}

impl<D: SimDriver> World<D> {
    /// Connects. The shard accepts the connection in a later turn.
    pub fn connect(&mut self, shard: usize) -> Peer {
        let id = self.drivers[shard].sim().connect().expect("the shard listens");
        Peer { shard, id }
    }

    /// Writes as much as the network takes; says how many bytes.
    pub fn write(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        self.drivers[peer.shard].sim().write(peer.id, bytes)
    }

    /// Writes everything: the network must have room for it.
    pub fn write_all(&mut self, peer: Peer, bytes: &[u8]) {
        assert_eq!(self.write(peer, bytes), bytes.len(), "the network takes all of it");
    }

    /// Takes at most `bytes_max` bytes of what has arrived: at least 1.
    pub fn read_at_most(&mut self, peer: Peer, bytes_max: usize) -> Arrived {
        self.drivers[peer.shard].sim().read_at_most(peer.id, bytes_max)
    }

    /// Bounds the bytes that may arrive before they are read: with 0 the gateway can send nothing.
    pub fn set_window(&mut self, peer: Peer, bytes: usize) {
        self.drivers[peer.shard].sim().set_window(peer.id, bytes);
    }

    /// The client sends no more, and may still read.
    pub fn half_close(&mut self, peer: Peer) {
        self.drivers[peer.shard].sim().half_close(peer.id);
    }

    /// Closes the client's socket: a reset, if it leaves bytes unread.
    pub fn hang_up(&mut self, peer: Peer) {
        self.drivers[peer.shard].sim().hang_up(peer.id);
    }

    /// Resets the connection: what was on its way in either direction is lost.
    pub fn reset(&mut self, peer: Peer) {
        self.drivers[peer.shard].sim().reset(peer.id);
    }
}
