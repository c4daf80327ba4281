//! What the shard keeps of one connection.
//!
//! An idle connection is 40 bytes here and owns no heap memory: it borrows an outbox from the shard's pool
//! while there is something to send, and has an inbox while a frame is incomplete. What few gateways use is in
//! tables beside this one: rate limits, and the spans of log lines. Memberships belong to the rooms.

use bitflags::bitflags;
use tidegate_backend::UserId;
use tidegate_protocol::Reassembler;

use super::outbox::OutboxId;

/// The phases of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The slot holds no connection.
    Vacant,
    /// Its wire is not open yet. Nothing comes from it, and nothing that is sent would reach it.
    Opening,
    /// It has not authenticated.
    Anonymous,
    /// Its token verified; the user's home shard has not registered it yet. Nothing is read.
    Registering,
    /// It has a session.
    Open,
    /// Its last frames go out; then its sending side is shut down. Nothing is read.
    Closing,
    /// Its sending side is shut down. What still comes is discarded, so that the kernel does not
    /// reset the connection, which would discard the last frames.
    Lingering,
    /// It is to be closed at once, or the driver closes it already.
    Aborted,
}

bitflags! {
    /// Facts about a connection that are true or false.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// It is in the list of connections to flush at the end of the turn.
        const LISTED_FOR_FLUSH = 1;
        /// Reading its frames is paused: it has too many calls or too many unsent bytes, its token is being verified
        /// or its session opened, or answers on this thread have to be sent first.
        const READ_PAUSED = 1 << 1;
        /// The driver has paused receiving, since reading was paused when the connection was last flushed.
        const RECEIVE_PAUSED = 1 << 2;
        /// A room has pushes for it that could not be sent when a round of its room came to it.
        const PENDING_PUSHES = 1 << 3;
        /// The peer has shut down its sending side.
        const PEER_ENDED = 1 << 4;
        /// Its session is open, and the answer waits for its rooms: nothing is read, and no push is sent.
        const RESUMING = 1 << 5;
        /// Its token is being verified by another thread: without a session nothing is read.
        const VERIFYING = 1 << 6;
        /// It is to reconnect, as the gateway drains, rebalances or finds it too old: it gets the answers that it waits
        /// for, and then the goodbye. Its requests are refused.
        const LEAVING = 1 << 7;
    }
}

/// One connection. Nearly all of it is read or written for each message.
#[derive(Debug)]
pub struct Connection {
    /// Counts the connections of the slot, so that an old id does not match a new connection.
    pub generation: u32,
    /// Its phase.
    pub phase: Phase,
    /// Failed attempts to authenticate.
    pub auth_failures: u8,
    /// Facts about it.
    pub flags: Flags,
    /// Its user, once the phase is `Registering` or later; 0 before.
    pub user_id: UserId,
    /// The incomplete frame, and frames that were not read yet because reading is paused.
    pub inbox: Reassembler,
    /// What waits to be sent; `None` for most, most of the time.
    pub outbox: Option<OutboxId>,
    /// Bytes of the send under way; 0: none.
    pub in_flight_bytes: u32,
    /// When the last frame came, on the shard's clock.
    pub last_seen_ms: u32,
    /// Calls that wait for their answer.
    pub calls: u16,
    /// When it was accepted, in seconds on the shard's clock, which wrap after 18 hours.
    pub accepted_s: u16,
}

impl Connection {
    /// A slot without a connection.
    #[must_use]
    pub const fn vacant() -> Self {
        Self {
            generation: 0,
            phase: Phase::Vacant,
            auth_failures: 0,
            flags: Flags::empty(),
            user_id: 0,
            inbox: Reassembler::new(),
            outbox: None,
            in_flight_bytes: 0,
            last_seen_ms: 0,
            calls: 0,
            accepted_s: 0,
        }
    }

    /// A connection that was just accepted.
    #[must_use]
    pub const fn accepted(generation: u32, now_ms: u32) -> Self {
        let mut connection = Self::vacant();
        connection.generation = generation;
        connection.phase = Phase::Anonymous;
        connection.last_seen_ms = now_ms;
        connection
    }

    /// Whether one of these flags is set.
    #[inline]
    #[must_use]
    pub const fn has(&self, flags: Flags) -> bool {
        self.flags.intersects(flags)
    }

    /// Whether its wire is not open yet.
    #[inline]
    #[must_use]
    pub const fn is_opening(&self) -> bool {
        matches!(self.phase, Phase::Opening)
    }

    /// Whether nothing more is read from it or written for it: it is about to close, or is gone.
    #[inline]
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Lingering | Phase::Aborted | Phase::Vacant)
    }

    /// Whether it has the answers to all that it asked, and its peer will ask no more.
    #[inline]
    #[must_use]
    pub const fn has_finished(&self) -> bool {
        self.has(Flags::PEER_ENDED)
            && !self.has(Flags::READ_PAUSED.union(Flags::RESUMING).union(Flags::VERIFYING))
            && self.calls == 0
            && matches!(self.phase, Phase::Opening | Phase::Anonymous | Phase::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<Connection>(), 40);
    }

    #[test]
    fn a_connection_has_finished_when_nothing_is_to_be_answered() {
        let mut connection = Connection::accepted(1, 0);
        assert!(!connection.has_finished(), "its peer may still ask");
        connection.flags |= Flags::PEER_ENDED;
        assert!(connection.has_finished());
        connection.calls = 1;
        assert!(!connection.has_finished());
        connection.calls = 0;
        connection.flags |= Flags::READ_PAUSED;
        assert!(!connection.has_finished(), "frames are left to read");
        connection.flags = Flags::PEER_ENDED | Flags::VERIFYING;
        assert!(!connection.has_finished(), "its authentication is to be answered");
        connection.flags -= Flags::VERIFYING;
        connection.phase = Phase::Registering;
        assert!(!connection.has_finished());
    }
}
