//! The clients' side of the simulated network.

use std::time::{Duration, Instant};

use tidegate::driver::sim::{Arrived, Faults, PeerId, Sim};

use crate::World;

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

impl World {
    /// Connects. The shard accepts the connection in a later turn.
    pub fn connect(&mut self, shard: usize) -> Peer {
        let id = self.drivers[shard].connect().expect("the shard listens");
        Peer { shard, id }
    }

    /// Writes as much as the network takes; says how many bytes.
    pub fn write(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        self.drivers[peer.shard].write(peer.id, bytes)
    }

    /// Writes everything: the network must have room for it.
    pub fn write_all(&mut self, peer: Peer, bytes: &[u8]) {
        assert_eq!(self.write(peer, bytes), bytes.len(), "the network takes all of it");
    }

    /// Takes at most `bytes_max` bytes of what has arrived: at least 1.
    pub fn read_at_most(&mut self, peer: Peer, bytes_max: usize) -> Arrived {
        self.drivers[peer.shard].read_at_most(peer.id, bytes_max)
    }

    /// Bounds the bytes that may arrive before they are read: with 0 the gateway can send nothing.
    pub fn set_window(&mut self, peer: Peer, bytes: usize) {
        self.drivers[peer.shard].set_window(peer.id, bytes);
    }

    /// The client sends no more, and may still read.
    pub fn half_close(&mut self, peer: Peer) {
        self.drivers[peer.shard].half_close(peer.id);
    }

    /// Closes the client's socket: a reset, if it leaves bytes unread.
    pub fn hang_up(&mut self, peer: Peer) {
        self.drivers[peer.shard].hang_up(peer.id);
    }

    /// Resets the connection: what was on its way in either direction is lost.
    pub fn reset(&mut self, peer: Peer) {
        self.drivers[peer.shard].reset(peer.id);
    }
}
