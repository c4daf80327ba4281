//! How often something happens for each key, in fixed memory: a token bucket for every key that there can be.
//!
//! A token bucket is one number here, the time at which it would be full again (the generic cell rate algorithm, ITU-T I.371,
//! annex A). A bucket whose time has passed is full, and so needs no memory: the quiet cost nothing. Each key has a cell in each of
//! four rows, as in a count-min sketch, and its bucket is the cell with the earliest time. A cell is only ever set later, and
//! only to what its key has taken ("conservative update": Estan and Varghese, "New Directions in Traffic Measurement and
//! Accounting", 2002). So a key never gets more than its rate. It gets less only where others have lately used *all* of its cells. Of a
//! million keys in a minute that take one token each, none is refused (tested here). Where `n` keys have emptied their buckets, of `w`
//! cells in a row, a part `(n / w)^4` of all others finds its own empty too: of 2^18 cells and 20,000 such keys, 3 in
//! 100,000.
//!
//! Threads share it without a lock. Two that take from one bucket at the same time may be given the same token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::prefix::Key;

/// Rows.
const ROWS: u32 = 4;

/// A rate: `burst` at once, and then one each interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many in the period.
    pub count: u32,
    /// How many at once.
    pub burst: u32,
    interval_us: u64,
}

impl Rate {
    /// `count` in a `period`, and `burst` at once. At least one each, and at most one in a microsecond.
    #[must_use]
    pub fn new(count: u32, period: Duration, burst: u32) -> Self {
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        let interval_us = (period_us / u64::from(count.max(1))).max(1);
        Self { count, burst: burst.max(1), interval_us }
    }
}

/// Token buckets by key.
#[derive(Debug)]
pub struct RateSketch {
    /// When each bucket would be full: microseconds on the caller's clock.
    rows: [Box<[AtomicU64]>; ROWS as usize],
    mask: u32,
}

impl RateSketch {
    /// One with `2^bits` cells in a row: `32 * 2^bits` bytes. `bits`: at most 30.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let cells = 1_u32 << bits.min(30);
        let row = || (0..cells).map(|_| AtomicU64::new(0)).collect();
        Self { rows: std::array::from_fn(|_| row()), mask: cells - 1 }
    }

    fn cells(&self, key: Key) -> impl Iterator<Item = &AtomicU64> {
        (0..ROWS).zip(&self.rows).map(move |(number, row)| &row[key.cell(number, self.mask)])
    }

    /// When the key's bucket is full.
    fn full_at_us(&self, key: Key) -> u64 {
        self.cells(key).map(|cell| cell.load(Ordering::Relaxed)).fold(u64::MAX, u64::min)
    }

    /// Takes a token.
    ///
    /// # Errors
    /// The bucket is empty: how long until it has one.
    pub fn take(&self, key: Key, rate: Rate, now_us: u64) -> Result<(), Duration> {
        let full_at_us = self.check(key, rate, now_us)?;
        let full_at_us = full_at_us.saturating_add(rate.interval_us);
        self.cells(key).for_each(|cell| {
            cell.fetch_max(full_at_us, Ordering::Relaxed);
        });
        Ok(())
    }

    /// Gives a place in a schedule, as [`Places`](crate::limits::places::Places) do: `first` from now, or one interval after the key's
    /// place before. Returns the time until it, in microseconds: up to `wait_us_max`, unless `first` is longer.
    pub fn place(
        &self,
        key: Key,
        rate: Rate,
        first: Duration,
        wait_us_max: u64,
        now_us: u64,
    ) -> u64 {
        let first_us = u64::try_from(first.as_micros()).unwrap_or(u64::MAX);
        let after_us = self.full_at_us(key).saturating_add(rate.interval_us);
        let place_us = after_us.max(now_us.saturating_add(first_us));
        self.cells(key).for_each(|cell| {
            cell.fetch_max(place_us, Ordering::Relaxed);
        });
        // Places that are too far are given out from the first one again.
        let beyond_us = place_us - now_us - first_us;
        let round_us = wait_us_max.saturating_sub(first_us) / rate.interval_us * rate.interval_us;
        first_us + beyond_us.checked_rem(round_us).unwrap_or(0)
    }

    /// Whether the bucket has a token, which stays there. Returns when it is full.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn check(&self, key: Key, rate: Rate, now_us: u64) -> Result<u64, Duration> {
        let full_at_us = self.full_at_us(key).max(now_us);
        let lacking_us = full_at_us - now_us;
        let most_us = (u64::from(rate.burst) - 1).saturating_mul(rate.interval_us);
        match lacking_us.checked_sub(most_us) {
            None | Some(0) => Ok(full_at_us),
            Some(wait_us) => Err(Duration::from_micros(wait_us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::prefix::{Keys, Prefix, Width};
    use std::net::Ipv4Addr;

    const SECOND: u64 = 1_000_000;

    fn key(keys: &Keys, number: u32) -> Key {
        keys.of(Prefix::new(Ipv4Addr::from_bits(number).into(), Width::Host))
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let (keys, sketch) = (Keys::default(), RateSketch::new(10));
        let (key, rate) = (key(&keys, 1), Rate::new(10, Duration::from_secs(1), 3));
        let start = 5 * SECOND;
        for _ in 0..3 {
            assert_eq!(sketch.take(key, rate, start), Ok(()));
        }
        assert_eq!(sketch.take(key, rate, start), Err(Duration::from_millis(100)));
        assert_eq!(sketch.take(key, rate, start + 99_999), Err(Duration::from_micros(1)));
        assert_eq!(sketch.take(key, rate, start + 100_000), Ok(()));
        assert!(sketch.take(key, rate, start + 100_000).is_err());
        // For 10 s as much as it may, each 10 ms.
        let taken = (1..=1000_u64)
            .filter(|tick| sketch.take(key, rate, start + 100_000 + tick * 10_000).is_ok());
        assert_eq!(taken.count(), 100);
        // After a pause it is full, and no more than full.
        let later = start + 100 * SECOND;
        assert_eq!((0..9).filter(|_| sketch.take(key, rate, later).is_ok()).count(), 3);
    }

    #[test]
    fn a_check_takes_nothing() {
        let (keys, sketch) = (Keys::default(), RateSketch::new(10));
        let (key, rate) = (key(&keys, 1), Rate::new(1, Duration::from_secs(60), 1));
        assert!(sketch.check(key, rate, 0).is_ok() && sketch.check(key, rate, 0).is_ok());
        sketch.take(key, rate, 0).unwrap();
        assert_eq!(sketch.check(key, rate, SECOND), Err(Duration::from_secs(59)));
    }

    #[test]
    fn a_million_addresses_in_a_minute_cost_none_of_them_a_token() {
        const KEYS: u32 = 1_000_000;
        let (keys, sketch) = (Keys::default(), RateSketch::new(16));
        let rate = Rate::new(10, Duration::from_secs(1), 20);
        let refused = (0..KEYS).filter(|number| {
            let now_us = u64::from(*number) * 60 * SECOND / u64::from(KEYS);
            sketch.take(key(&keys, *number), rate, now_us).is_err()
        });
        assert_eq!(refused.count(), 0);
    }

    #[test]
    fn one_that_takes_too_much_is_refused_among_a_million_others() {
        let (keys, sketch) = (Keys::default(), RateSketch::new(16));
        let rate = Rate::new(10, Duration::from_secs(1), 20);
        let greedy = key(&keys, u32::MAX);
        // Its 100 a second for 10 s, and 16,667 others a second.
        let (mut taken, mut refused) = (0, 0);
        for number in 0..166_670_u32 {
            let now_us = u64::from(number) * 60;
            refused += u32::from(sketch.take(key(&keys, number), rate, now_us).is_err());
            if number % 166 == 0 {
                taken += u32::from(sketch.take(greedy, rate, now_us).is_ok());
            }
        }
        assert!((118..=120).contains(&taken), "{taken} of 20 + 10 * 10");
        assert_eq!(refused, 0);
    }
}
