//! One connection: what the gateway remembers of a phone, and what it may do next.
//!
//! A connection is sans-IO. The shard hands it bytes and tells it the time; it keeps a cut frame and
//! says whether it wants more. An idle one owns no heap memory: its outbox is borrowed from the
//! shard's pool while there is something in it, and its inbox exists while a frame is cut. What few
//! gateways want of every connection, the shard keeps beside them, and only where it is wanted: how
//! fast each asks (see [`rate`]), and the spans of their log lines.

pub mod outbox;
pub mod rate;

use tidegate_backend::UserId;
use tidegate_protocol::Reassembler;

use crate::transport::Plain;
use outbox::OutboxId;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The slot holds no connection.
    Vacant,
    /// It has not authenticated.
    Anonymous,
    /// Its token verified; the user's home shard has not registered it yet. Nothing is read.
    Registering,
    /// It has a session.
    Open,
    /// Its last frames go out; then its sending side is shut down. Nothing is read.
    Closing,
    /// Its sending side is shut down. What still comes is thrown away, so that the kernel doesn't
    /// reset the connection and take the last frames with it.
    Lingering,
    /// It is to be closed at once, or the driver was told to.
    Aborted,
}

/// What a connection remembers: three quarters of a cache line, and nearly all of it is what a message
/// touches.
#[derive(Debug)]
pub struct Connection {
    /// Which of the slot's connections it is.
    pub generation: u32,
    /// How far it has come.
    pub phase: Phase,
    /// Failed tries to authenticate.
    pub auth_failures: u8,
    /// Yes or no.
    pub flags: Flags,
    /// Whose it is, once the phase is `Registering` or later; 0 before.
    pub user_id: UserId,
    /// The cut frame, and frames not looked at while the connection holds.
    pub inbox: Reassembler,
    /// What waits to be sent; `None` for most, most of the time.
    pub outbox: Option<OutboxId>,
    /// Bytes of the send under way; 0: none.
    pub in_flight_bytes: u32,
    /// The first of its memberships: a list through the shard's membership table.
    pub first_membership: Option<MembershipId>,
    /// How many memberships there are, everybody's room included.
    pub memberships: u16,
    /// Calls that wait for their answer.
    pub calls: u16,
    /// When the last frame came, on the shard's clock.
    pub last_seen_ms: u32,
    /// What the wire adds to the protocol.
    pub transport: Plain,
}

/// A place in the shard's membership table, never zero so that an `Option` of it takes 4 bytes.
pub type MembershipId = std::num::NonZeroU32;

/// Facts about a connection that are true or false.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one connection")]
pub struct Flags {
    /// It stands in the list of those to flush at the end of the turn.
    pub touched: bool,
    /// Reading stopped for one of the reasons of [`Connection::holds`], or for unsent bytes.
    pub held: bool,
    /// The driver was told to pause receiving.
    pub paused: bool,
    /// A room that it is in has something for it that could not be sent when its turn came.
    pub owed: bool,
    /// The peer has shut down its sending side.
    pub ended: bool,
}

impl Connection {
    /// A slot without a connection.
    #[must_use]
    pub const fn vacant() -> Self {
        Self {
            generation: 0,
            phase: Phase::Vacant,
            auth_failures: 0,
            flags: Flags { touched: false, held: false, paused: false, owed: false, ended: false },
            user_id: 0,
            inbox: Reassembler::new(),
            outbox: None,
            in_flight_bytes: 0,
            first_membership: None,
            memberships: 0,
            calls: 0,
            last_seen_ms: 0,
            transport: Plain,
        }
    }

    /// A connection that just came in.
    #[must_use]
    pub const fn accepted(generation: u32, now_ms: u32) -> Self {
        let mut connection = Self::vacant();
        connection.generation = generation;
        connection.phase = Phase::Anonymous;
        connection.last_seen_ms = now_ms;
        connection
    }

    /// Whether requests are not to be read now: each reason ends with an event that reads on.
    #[must_use]
    pub fn holds(&self, calls_max: u16) -> bool {
        self.phase == Phase::Registering || self.calls >= calls_max
    }

    /// Whether its last word is spoken: nothing more is read from it or written for it.
    #[must_use]
    pub const fn is_going(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Lingering | Phase::Aborted | Phase::Vacant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<Connection>(), 48);
    }
}
