//! How often each user may call a route, in fixed memory: a [sketch](super::rate_sketch) of token buckets, one of each user and
//! route, that all shards share. A user who calls seldom takes no memory.
//!
//! A second sketch has the [places](crate::limits::places) of refused calls: when the user's last one is to be retried.

use std::time::Duration;

use super::prefix::{Key, Keys};
use super::rate_sketch::{Rate, RateSketch};
use crate::limits::places::WAIT_MS_MAX;

/// The base-2 logarithm of the cells in a row: 4 MiB for each of the two sketches. While 10,000 users of a route have emptied their
/// buckets, of the others 3 in 100,000 find theirs empty too.
const BITS: u32 = 17;

/// The longest wait, in microseconds.
const WAIT_US_MAX: u64 = WAIT_MS_MAX * 1_000;

/// The buckets of all users.
#[derive(Debug)]
pub struct UserRates {
    keys: Keys,
    tokens: RateSketch,
    places: RateSketch,
}

impl Default for UserRates {
    fn default() -> Self {
        let [tokens, places] = [RateSketch::new(BITS), RateSketch::new(BITS)];
        Self { keys: Keys::default(), tokens, places }
    }
}

impl UserRates {
    /// The key of a user's bucket for the route with this first type.
    #[must_use]
    pub fn key(&self, first_type: i32, user_id: u64) -> Key {
        self.keys.of_user(first_type, user_id)
    }

    /// Whether there is a token, which stays there.
    ///
    /// # Errors
    /// In how many milliseconds this call is to be retried.
    pub fn check(&self, key: Key, rate: Rate, now_us: u64) -> Result<(), u32> {
        self.tokens.check(key, rate, now_us).map(drop).map_err(|wait| {
            let wait_us = self.places.place(key, rate, wait, WAIT_US_MAX, now_us);
            u32::try_from(wait_us.div_ceil(1_000)).unwrap_or(u32::MAX)
        })
    }

    /// Takes a token, if there still is one: another shard may have taken it since the check.
    pub fn take(&self, key: Key, rate: Rate, now_us: u64) {
        let _: Result<(), Duration> = self.tokens.take(key, rate, now_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn ask(rates: &UserRates, user_id: u64, rate: Rate, now_us: u64) -> Result<(), u32> {
        let key = rates.key(1, user_id);
        rates.check(key, rate, now_us)?;
        rates.take(key, rate, now_us);
        Ok(())
    }

    #[test]
    fn each_user_has_a_rate_and_refused_calls_wait_one_interval_more_each() {
        let rates = UserRates::default();
        let rate = Rate::new(2, Duration::from_secs(1), 3);
        for user_id in 1..=2 {
            for _ in 0..3 {
                assert_eq!(ask(&rates, user_id, rate, SECOND), Ok(()));
            }
            let waits: Vec<_> =
                (0..4).map(|_| ask(&rates, user_id, rate, SECOND).unwrap_err()).collect();
            assert_eq!(waits, [500, 1_000, 1_500, 2_000]);
        }
        let other_route = rates.key(2, 1);
        assert_eq!(rates.check(other_route, rate, SECOND), Ok(()));
        assert_eq!(ask(&rates, 1, rate, 3 * SECOND / 2), Ok(()));
    }

    #[test]
    fn waits_stay_spread_and_bounded_whatever_a_user_sends() {
        let rates = UserRates::default();
        let rate = Rate::new(2, Duration::from_secs(1), 1);
        assert_eq!(ask(&rates, 7, rate, SECOND), Ok(()));
        let mut counts = std::collections::BTreeMap::<u32, usize>::new();
        for _ in 0..600 {
            *counts.entry(ask(&rates, 7, rate, SECOND).unwrap_err()).or_default() += 1;
        }
        assert!(counts.len() >= 59 && counts.values().all(|&count| count <= 12), "{counts:?}");
        assert!(*counts.last_key_value().unwrap().0 <= 30_000);
    }
}
