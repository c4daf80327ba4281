//! The peers of simulated connections, and the bytes between: what TCP keeps in its buffers.
//!
//! [`Network`] owns both. The driver takes the gateway's end through [`Side`], and a test the peers' ends
//! through the harness. It loses bytes as TCP does: an end that closes while it has unread bytes, or gets
//! some later, resets the connection, and a reset discards what the other end has not read.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{Bytes, BytesMut};

use crate::driver::CloseCause;

/// What a connection holds of a peer's bytes before the gateway receives them.
const UNRECEIVED_BYTES_MAX: usize = 512 * 1024;

/// What a connection holds of the gateway's bytes before the peer reads them, unless a test says otherwise.
const WINDOW_BYTES: usize = 256 * 1024;

/// Names a peer. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u32);

impl PeerId {
    /// A unique address in 10.0.0.0/8.
    pub(super) const fn address(self) -> SocketAddr {
        let [_, a, b, c] = self.0.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), 40_000)
    }
}

/// The result of a peer's read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Bytes: at least one.
    Bytes(Bytes),
    /// Nothing now, and the connection is open.
    Nothing,
    /// The gateway has shut down its sending side, or has closed, and everything was read.
    End,
    /// The connection was reset.
    Reset,
}

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Network {
    peers: BTreeMap<PeerId, Peer>,
    /// Those that wait to be accepted, each at one of the listening sockets.
    waiting: VecDeque<(PeerId, u8)>,
    next: u32,
}

#[derive(Debug)]
struct Peer {
    /// Written by the peer, not received by the gateway.
    to_gateway: BytesMut,
    /// Sent by the gateway, not read by the peer.
    to_peer: BytesMut,
    /// Bound on `to_peer`.
    window: usize,
    /// The peer writes no more.
    ended: bool,
    /// The gateway sends no more.
    shut_down: bool,
    /// The gateway has closed its end.
    closed: bool,
    /// The peer has closed its end, and reads no more.
    gone: bool,
    /// The connection was reset: it no longer carries bytes.
    reset: bool,
}

/// The gateway's end of a connection.
pub(super) struct Side<'a>(Option<&'a mut Peer>);

impl Side<'_> {
    pub(super) fn unreceived_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |peer| peer.to_gateway.len())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.as_ref().is_some_and(|peer| peer.ended)
    }

    pub(super) fn is_reset(&self) -> bool {
        self.0.as_ref().is_none_or(|peer| peer.reset)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.as_ref().is_none_or(|peer| peer.gone)
    }

    /// How many more bytes the peer's window takes.
    pub(super) fn writable_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |peer| peer.window.saturating_sub(peer.to_peer.len()))
    }

    pub(super) fn receive(&mut self, count: usize) -> BytesMut {
        self.0.as_mut().map_or_else(BytesMut::new, |peer| peer.to_gateway.split_to(count))
    }

    pub(super) fn arrive(&mut self, bytes: &[u8]) {
        if let Some(peer) = &mut self.0 {
            peer.to_peer.extend_from_slice(bytes);
        }
    }

    pub(super) fn shut_down(&mut self) {
        if let Some(peer) = &mut self.0 {
            peer.shut_down = true;
        }
    }
}

impl Peer {
    fn discard_all(&mut self) {
        self.reset = true;
        self.to_gateway = BytesMut::new();
        self.to_peer = BytesMut::new();
    }
}

impl Network {
    pub(super) fn connect(&mut self, listener: u8) -> PeerId {
        let id = PeerId(self.next);
        self.next += 1;
        let peer = Peer {
            to_gateway: BytesMut::new(),
            to_peer: BytesMut::new(),
            window: WINDOW_BYTES,
            ended: false,
            shut_down: false,
            closed: false,
            gone: false,
            reset: false,
        };
        self.peers.insert(id, peer);
        self.waiting.push_back((id, listener));
        id
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn next_waiting(&mut self) -> Option<(PeerId, u8)> {
        self.waiting.pop_front()
    }

    /// The listening socket is closed: resets the connections that wait. Says how many they were.
    pub(super) fn refuse_waiting(&mut self) -> u32 {
        let mut count = 0;
        while let Some((id, _)) = self.waiting.pop_front() {
            self.close(id, CloseCause::Reset);
            count += 1;
        }
        count
    }

    pub(super) fn side(&mut self, id: PeerId) -> Side<'_> {
        Side(self.peers.get_mut(&id))
    }

    /// Closes the gateway's end: by the core, or by a failure.
    pub(super) fn close(&mut self, id: PeerId, cause: CloseCause) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.closed = true;
        peer.shut_down = true;
        if cause != CloseCause::Local || !peer.to_gateway.is_empty() {
            peer.discard_all();
        }
        self.free_if_closed(id);
    }

    pub(super) fn write(&mut self, id: PeerId, bytes: &[u8]) -> usize {
        let Some(peer) = self.peers.get_mut(&id) else { return 0 };
        if peer.closed && !bytes.is_empty() {
            peer.discard_all();
        }
        if peer.reset || peer.ended {
            return 0;
        }
        let count = bytes.len().min(UNRECEIVED_BYTES_MAX - peer.to_gateway.len());
        peer.to_gateway.extend_from_slice(&bytes[..count]);
        count
    }

    pub(super) fn read(&mut self, id: PeerId, bytes_max: usize) -> Arrived {
        let Some(peer) = self.peers.get_mut(&id) else { return Arrived::Reset };
        if peer.reset {
            return Arrived::Reset;
        }
        if peer.to_peer.is_empty() {
            return if peer.shut_down { Arrived::End } else { Arrived::Nothing };
        }
        let count = peer.to_peer.len().min(bytes_max);
        Arrived::Bytes(peer.to_peer.split_to(count).freeze())
    }

    pub(super) fn set_window(&mut self, id: PeerId, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.window = bytes;
        }
    }

    pub(super) fn half_close(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.ended = true;
        }
    }

    pub(super) fn hang_up(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.ended = true;
        peer.gone = true;
        if !peer.to_peer.is_empty() {
            peer.discard_all();
        }
        self.free_if_closed(id);
    }

    pub(super) fn reset(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.gone = true;
        peer.discard_all();
        self.free_if_closed(id);
    }

    /// Frees a connection that both ends have closed.
    fn free_if_closed(&mut self, id: PeerId) {
        if self.peers.get(&id).is_some_and(|peer| peer.gone && peer.closed) {
            self.peers.remove(&id);
        }
    }
}
