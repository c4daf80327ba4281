//! How logs are named: their ids, and the numbers of their rooms.

use crate::session_id::scramble;

/// Names a log. Offsets of logs with different ids have nothing to do with each other. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub(super) u64);

impl LogId {
    /// The id of a log that gateways share: 0 names none.
    #[must_use]
    pub const fn shared(id: u64) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Draws the ids of one shard's logs: `SplitMix64` (Steele, Lea and Flood 2014) from a random start. Two shards, or two
/// gateways, draw the same id with a probability of about logs² / 2^64.
#[derive(Clone, Debug)]
pub struct LogIds {
    state: u64,
}

impl LogIds {
    /// The ids of a shard. `key` is a number that differs from run to run.
    #[must_use]
    pub const fn new(key: u64, shard: u16) -> Self {
        Self { state: scramble(key ^ (shard as u64) << 48) }
    }

    /// The id of everybody's room, which all shards know.
    #[must_use]
    pub const fn of_everybodys_room(key: u64) -> LogId {
        // No shard has this number.
        Self::new(key, u16::MAX).draw()
    }

    /// Draws one.
    pub const fn draw(&mut self) -> LogId {
        loop {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let id = scramble(self.state);
            if id != 0 {
                return LogId(id);
            }
        }
    }
}

/// How a log is named on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogName {
    /// The log's id.
    pub id: LogId,
    /// The room's number, which its frames carry.
    pub number: u32,
}
