//! Homes and replicas: which shard numbers a room's pushes, and which shards follow it.
//!
//! A shard subscribes with its first member and gets a copy of the log. When its last member has left, it asks
//! the home to end the subscription, and says how many joins it has seen. The home ends it only if it has sent
//! no further join.

use tidegate_backend::RoomId;

use super::message::{RoomEffect, RoomMessage};

/// What a shard is to a room.
#[derive(Debug)]
pub enum Role {
    /// It numbers the pushes and passes them on to the shards with members.
    Home {
        /// The other shards with members.
        subscribers: Subscribers,
    },
    /// It follows the home.
    Replica {
        /// How many joins the home has sent.
        joins: u64,
    },
}

impl Role {
    /// What this shard is to everybody's room, which all shards follow from the start.
    #[must_use]
    pub fn in_everybodys_room(shard: u16, shards: u16) -> Self {
        if shard != home(&RoomId::everybody(), shards) {
            return Self::Replica { joins: 0 };
        }
        let others = (0..shards).filter(|&other| other != shard);
        Self::Home { subscribers: Subscribers { joins: others.map(|other| (other, 0)).collect() } }
    }
}

/// The shards that follow a room, and how many joins each was sent.
#[derive(Debug, Default)]
pub struct Subscribers {
    joins: Vec<(u16, u64)>,
}

impl Subscribers {
    /// Whether no other shard has members.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.joins.is_empty()
    }

    /// Posts a message to each of the shards.
    pub fn post_to_each(
        &self,
        message: impl Fn() -> RoomMessage,
    ) -> impl Iterator<Item = RoomEffect> {
        self.joins.iter().map(move |&(shard, _)| RoomEffect::Post(shard, message()))
    }

    /// Counts a join that is sent to a shard. Returns whether the shard subscribes with it: then it needs the log.
    pub fn count_join(&mut self, shard: u16) -> bool {
        match self.joins.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, joins)) => {
                *joins += 1;
                false
            }
            None => {
                self.joins.push((shard, 1));
                true
            }
        }
    }

    /// Ends a shard's subscription, unless a join is on its way there: then the shard has seen fewer joins than it was
    /// sent. Returns whether it has ended.
    pub fn end(&mut self, shard: u16, joins: u64) -> bool {
        let before = self.joins.len();
        self.joins.retain(|&subscriber| subscriber != (shard, joins));
        self.joins.len() < before
    }
}

/// The shard that is a room's home. Everybody's is the first.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a remainder below shards")]
pub fn home(room: &RoomId, shards: u16) -> u16 {
    if room.is_everybody() {
        return 0;
    }
    // FNV-1a: short, and the same on every thread. A client gains nothing by steering a room to a shard.
    let hash = room.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % u64::from(shards)) as u16
}
