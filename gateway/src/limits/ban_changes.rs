//! Bans that other gateways are to learn, until the thread that speaks with Redis takes them.
//!
//! Shards and operators add to the queue and never wait: when it is full, a change is not shared.

use crossbeam::queue::ArrayQueue;

use super::bans::Maker;
use super::prefix::Prefix;

/// Changes that wait, at most. The thread takes a thousand a second and more.
pub const CHANGES_MAX: usize = 4096;

/// A ban is made, or ended by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BanChange {
    /// It is made.
    Add {
        /// What is banned.
        prefix: Prefix,
        /// What made the ban.
        maker: Maker,
        /// Its end, on this gateway's clock, in milliseconds.
        until_ms: u64,
    },
    /// It is ended.
    Lift {
        /// What is no longer banned.
        prefix: Prefix,
    },
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
        self.0.push(change).is_ok()
    }

    /// Takes the oldest change.
    pub fn pop(&self) -> Option<BanChange> {
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_takes_no_further_change() {
        let changes = BanChanges::default();
        let lift = |number: u32| BanChange::Lift {
            prefix: Prefix::new(
                std::net::Ipv4Addr::from_bits(number).into(),
                super::super::prefix::Width::Host,
            ),
        };
        for number in 0..u32::try_from(CHANGES_MAX).unwrap() {
            assert!(changes.push(lift(number)));
        }
        assert!(!changes.push(lift(9_999)));
        assert_eq!(changes.pop(), Some(lift(0)));
        assert!(changes.push(lift(9_999)));
    }
}
