//! When connections are too old, where `session.age_max_ms` is set.
//!
//! Connections that came together must not go together: each may become up to an eighth less old than it may. Their
//! successors keep what that spreads, and spread further.
//!
//! The ends are in a table beside the connections, so a gateway without the key has no table.

use super::token_ends::NEVER;
use crate::config::Config;
use crate::driver::ConnId;
use crate::shard::clock::millis;

/// Times are kept in units of 64 ms, as deadlines are: 32 bits of them are more than eight years.
const TICK_BITS: u32 = 6;

/// By which part of the highest age a connection may end earlier.
const DITHER_PART: u64 = 8;

/// When a shard's connections are too old.
#[derive(Debug)]
pub struct Ages {
    age_max_ms: u64,
    /// How long a connection that is too old may wait for its answers, in milliseconds.
    answers_ms: u64,
    /// When the connection in each slot is too old, in ticks of the shard's clock. An accept sets it.
    ends: Vec<u32>,
}

impl Ages {
    /// The table, if the configuration has a highest age.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        let answers_ms = millis(config.shutdown.drain_timeout);
        let age_max = config.session.age_max?;
        Some(Self { age_max_ms: millis(age_max), answers_ms, ends: Vec::new() })
    }

    /// The same ends, and the highest age of another table for connections that come from now on.
    #[must_use]
    pub fn with_settings_of(self, other: &Self) -> Self {
        let Self { age_max_ms, answers_ms, .. } = *other;
        Self { age_max_ms, answers_ms, ends: self.ends }
    }

    /// A connection was accepted.
    pub fn set(&mut self, conn: ConnId, now_ms: u64) {
        let index = conn.slot as usize;
        if self.ends.len() <= index {
            self.ends.resize(index + 1, u32::MAX);
        }
        let spread = u64::from(spread(conn, now_ms));
        let earlier_ms = (u128::from(self.age_max_ms / DITHER_PART) * u128::from(spread)) >> 32;
        let earlier_ms = u64::try_from(earlier_ms).unwrap_or(0);
        let end = now_ms.saturating_add(self.age_max_ms - earlier_ms) >> TICK_BITS;
        self.ends[index] = u32::try_from(end).unwrap_or(u32::MAX);
    }

    /// When the connection in a slot is too old, on the shard's clock.
    #[must_use]
    pub fn end_ms(&self, slot: u32) -> u64 {
        match self.ends.get(slot as usize) {
            Some(&end) if end < u32::MAX => u64::from(end) << TICK_BITS,
            _ => NEVER,
        }
    }

    /// Until when a connection that is too old may wait for its answers, on the shard's clock.
    #[must_use]
    pub fn answers_until_ms(&self, slot: u32) -> u64 {
        self.end_ms(slot).saturating_add(self.answers_ms)
    }
}

/// A number that differs between connections, also between those of the same slot (splitmix64).
fn spread(conn: ConnId, now_ms: u64) -> u32 {
    let mut bits = (u64::from(conn.slot) << 32) | u64::from(conn.generation);
    bits = (bits ^ now_ms.rotate_left(48)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((bits ^ (bits >> 31)) >> 32).expect("32 bits are left")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ages(age_max: Duration) -> Ages {
        let mut config = Config::embedded_default();
        assert!(Ages::new(&config).is_none(), "the default is no highest age");
        config.session.age_max = Some(age_max);
        Ages::new(&config).unwrap()
    }

    #[test]
    fn connections_that_come_together_end_evenly_over_an_eighth_of_the_age() {
        let hour = Duration::from_secs(3_600);
        let (mut ages, now_ms) = (ages(hour), 5_000);
        let conn = |slot| ConnId { slot, generation: 1 };
        (0..8_000).for_each(|slot| ages.set(conn(slot), now_ms));
        let latest_ms = now_ms + millis(hour);
        let mut eighths = [0; 8];
        for slot in 0..8_000 {
            let earlier_ms = latest_ms - ages.end_ms(slot);
            // A tick of 64 ms is rounded down.
            assert!(earlier_ms <= 450_000 + 64, "{earlier_ms}");
            eighths[usize::try_from(earlier_ms * 8 / 450_065).unwrap()] += 1;
        }
        assert!(eighths.iter().all(|count| (880..1_120).contains(count)), "{eighths:?}");
    }

    #[test]
    fn the_next_connection_of_a_slot_gets_an_end_of_its_own() {
        let mut ages = ages(Duration::from_secs(80));
        assert_eq!(ages.end_ms(3), NEVER);
        let mut ends: Vec<_> = (0..20)
            .map(|generation| {
                ages.set(ConnId { slot: 3, generation }, 0);
                ages.end_ms(3)
            })
            .collect();
        assert_eq!(ages.end_ms(2), NEVER);
        assert!(ends.iter().all(|end| (69_900..=80_000).contains(end)), "{ends:?}");
        ends.sort_unstable();
        ends.dedup();
        assert!(ends.len() > 15, "{ends:?}");
        assert_eq!(ages.answers_until_ms(3), ages.end_ms(3) + 10_000);
    }

    #[test]
    fn an_age_beyond_the_clock_never_ends() {
        let mut ages = ages(Duration::from_millis(u64::MAX));
        ages.set(ConnId { slot: 0, generation: 0 }, 1);
        assert_eq!((ages.end_ms(0), ages.answers_until_ms(0)), (NEVER, NEVER));
    }
}
