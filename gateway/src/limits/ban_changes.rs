//! Bans that other gateways are to learn, until the thread that speaks with Redis takes them.
//!
//! Shards and operators add to the queue and never wait: when it is full, a change is not shared.

use crossbeam::queue::ArrayQueue;

use super::bans::Maker;
use super::prefix::Prefix;

/// Changes that wait, at most. They take 200 KiB.
pub const CHANGES_MAX: usize = 4096;

/// Of these, places that only operators' changes may take: an attacker who causes bans can't take them.
const OPERATORS: usize = 256;

/// A ban is made, or ended by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanChange {
    /// It is made.
    Add {
        /// What is banned.
        prefix: Prefix,
        /// What made the ban. An operator's replaces earlier bans of the prefix.
        maker: Maker,
        /// Its end, on this gateway's clock, in milliseconds.
        until_ms: u64,
    },
    /// An operator has ended it.
    Lift {
        /// What is no longer banned.
        prefix: Prefix,
    },
}

impl BanChange {
    /// Whether an operator has made it.
    #[must_use]
    pub const fn is_operators(&self) -> bool {
        !matches!(self, Self::Add { maker: Maker::Limit, .. })
    }
}

/// The queue. See the [module](self).
#[derive(Debug)]
pub struct BanChanges(ArrayQueue<BanChange>);

impl Default for BanChanges {
    fn default() -> Self {
        Self(ArrayQueue::new(CHANGES_MAX))
    }
}

impl BanChanges {
    /// Adds a change. Returns whether there was room for it.
    pub fn push(&self, change: BanChange) -> bool {
        let has_place = change.is_operators() || self.0.len() < CHANGES_MAX - OPERATORS;
        has_place && self.0.push(change).is_ok()
    }

    /// Whether no change waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the oldest change.
    pub fn pop(&self) -> Option<BanChange> {
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::prefix::Width;
    use super::*;

    #[test]
    fn a_full_queue_takes_no_further_change_and_operators_have_places_of_their_own() {
        let changes = BanChanges::default();
        let prefix = |number: usize| {
            let bits = u32::try_from(number).unwrap();
            Prefix::new(Ipv4Addr::from_bits(bits).into(), Width::Host)
        };
        let limit =
            |number| BanChange::Add { prefix: prefix(number), maker: Maker::Limit, until_ms: 9 };
        let taken = (0..CHANGES_MAX).take_while(|&number| changes.push(limit(number))).count();
        assert_eq!(taken, CHANGES_MAX - OPERATORS);
        let lift = |number| BanChange::Lift { prefix: prefix(number) };
        let taken = (0..CHANGES_MAX).take_while(|&number| changes.push(lift(number))).count();
        assert_eq!(taken, OPERATORS);
        assert_eq!(changes.pop(), Some(limit(0)));
        assert!(!changes.push(limit(0)) && changes.push(lift(0)));
    }
}
