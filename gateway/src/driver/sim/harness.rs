//! What a test does with the simulation: as the peers, with the clock and with the faults. The driver never
//! calls it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Arrived, Faults, PeerId, Sim};

impl Sim {
    /// What time it is.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Moves the clock on, never back.
    pub fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Bounds how long one poll may wait: with zero, only [`Self::set_now`] and clock jumps move time.
    pub const fn set_wait_max(&mut self, wait_max: Duration) {
        self.wait_max = wait_max;
    }

    /// How many connections the accept queue holds. It bounds the accepts of
    /// [`stop_listening`](crate::driver::Driver::stop_listening) alone: more may wait.
    pub const fn set_accept_queue_max(&mut self, connections: u32) {
        self.accept_queue_max = connections;
    }

    /// How long the last poll could have waited: zero when there was something to do, `None` without an end.
    #[must_use]
    pub const fn idle_for(&self) -> Option<Duration> {
        self.idle_for
    }

    /// Sets what may go wrong from now on. Stalls that have begun end.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.list();
        for index in 0..self.order.len() {
            if let Some(socket) = self.sockets.get_mut(self.order[index]) {
                socket.stalled_polls = 0;
            }
        }
    }

    /// Connects to the first listening socket. `None`: it is closed.
    pub fn connect(&mut self) -> Option<PeerId> {
        self.connect_at(0)
    }

    /// Connects to a listening socket, counted from 0. `None`: it is closed.
    pub fn connect_at(&mut self, listener: u8) -> Option<PeerId> {
        self.accept_state.listens().then(|| self.network.connect(listener))
    }

    /// Writes bytes, as many as the connection holds. Says how many.
    pub fn write(&mut self, peer: PeerId, bytes: &[u8]) -> usize {
        self.network.write(peer, bytes)
    }

    /// Takes all bytes that have arrived, or says why no more will.
    pub fn read(&mut self, peer: PeerId) -> Arrived {
        self.network.read(peer, usize::MAX)
    }

    /// Takes at most `bytes_max` of the bytes that have arrived. `bytes_max` is at least 1.
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

    /// Closes the peer's socket, as an app that ends does. It is a reset if bytes are unread.
    pub fn hang_up(&mut self, peer: PeerId) {
        self.network.hang_up(peer);
    }

    /// Resets the connection. The bytes on their way in both directions are lost.
    pub fn reset(&mut self, peer: PeerId) {
        self.network.reset(peer);
    }

    /// The address that a peer connects from.
    #[must_use]
    pub const fn address(peer: PeerId) -> SocketAddr {
        peer.address()
    }
}
