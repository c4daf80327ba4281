//! The peers' face of the simulation: what a client does with its end of a connection.

use std::net::SocketAddr;

use super::{Arrived, PeerId, Sim};

impl Sim {
    /// Connects; `None` when nobody listens.
    pub fn connect(&mut self) -> Option<PeerId> {
        self.acceptor.listening.then(|| self.network.connect())
    }

    /// Writes bytes, as many as there is room for; says how many.
    pub fn write(&mut self, peer: PeerId, bytes: &[u8]) -> usize {
        self.network.write(peer, bytes)
    }

    /// Takes all that has arrived, or says why no more will.
    pub fn read(&mut self, peer: PeerId) -> Arrived {
        self.network.read(peer, usize::MAX)
    }

    /// Takes at most `bytes_max` of what has arrived: at least 1.
    pub fn read_at_most(&mut self, peer: PeerId, bytes_max: usize) -> Arrived {
        self.network.read(peer, bytes_max)
    }

    /// Bounds the bytes that may arrive before they are read; 0 stalls the gateway's sends.
    pub fn set_window(&mut self, peer: PeerId, bytes: usize) {
        self.network.set_window(peer, bytes);
    }

    /// Shuts down the peer's sending side. It may still read.
    pub fn half_close(&mut self, peer: PeerId) {
        self.network.half_close(peer);
    }

    /// Closes the peer's socket for good, as an app that ends: reset, where it leaves bytes unread.
    pub fn hang_up(&mut self, peer: PeerId) {
        self.network.hang_up(peer);
    }

    /// Resets the connection; what was on its way, either way, is lost.
    pub fn reset(&mut self, peer: PeerId) {
        self.network.reset(peer);
    }

    /// Where a peer connects from.
    #[must_use]
    pub const fn address(peer: PeerId) -> SocketAddr {
        peer.address()
    }
}
