//! The rate limit of one connection: the generic cell rate algorithm (ITU-T I.371), and the waits of those it refuses.
//!
//! A limiter keeps the theoretical arrival time of the next request at the configured rate. Each request moves it on
//! by one interval. A request is too early while that time is more than a burst ahead of now.
//!
//! A refusal names how long to wait: each request has its [place](Places) after the one before it, at the rate.
//!
//! The limiters are in a table beside the connections, 16 bytes each, so a gateway without a limit has no table.

use crate::limits::places::{NS_PER_MS, Places};

/// The rate, and a limiter for each of a shard's connections.
#[derive(Debug)]
pub struct RateLimiters {
    rate: Rate,
    /// By slot.
    limiters: Vec<RateLimiter>,
}

/// One connection's state. Times are in nanoseconds on the shard's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimiter {
    /// The theoretical arrival time.
    arrival_ns: u64,
    /// When requests that were refused are to be retried.
    places: Places,
}

/// A rate, the same for all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that a request costs.
    interval_ns: u64,
    /// Nanoseconds that a connection may be ahead.
    tolerance_ns: u64,
}

impl Rate {
    /// `per_second` requests, of which `burst` may come at once: each 1 to 1,000,000.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.max(1) - 1) }
    }

    /// As [`Self::new`], of which each of `shards` has an equal share: the `burst` may be rounded up.
    #[must_use]
    pub fn shared(per_second: u32, burst: u32, shards: u16) -> Self {
        let interval_ns = 1_000_000_000 * u64::from(shards) / u64::from(per_second.max(1));
        let burst = u64::from(burst.max(1)).div_ceil(u64::from(shards.max(1)));
        Self { interval_ns, tolerance_ns: interval_ns * (burst - 1) }
    }
}

impl RateLimiters {
    /// No connection has sent a request yet.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { rate, limiters: Vec::new() }
    }

    /// The rate.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Each slot below `slots` may have a connection, which has sent no request yet.
    pub fn reset_all(&mut self, slots: usize) {
        self.limiters.clear();
        self.limiters.resize(slots, RateLimiter::new());
    }

    /// The slot has a new connection.
    pub fn reset(&mut self, slot: u32) {
        let index = slot as usize;
        if self.limiters.len() <= index {
            self.limiters.resize(index + 1, RateLimiter::new());
        }
        self.limiters[index] = RateLimiter::new();
    }

    /// Admits a request of the slot's connection, unless it is too early.
    ///
    /// # Errors
    /// The milliseconds that this request has to wait: 1 to [`WAIT_MS_MAX`](crate::limits::places::WAIT_MS_MAX).
    #[inline]
    pub fn admit(&mut self, slot: u32, now_ms: u64) -> Result<(), u32> {
        self.limiters[slot as usize].admit(self.rate, now_ms)
    }
}

impl RateLimiter {
    /// The limiter of a connection that has sent no request yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { arrival_ns: 0, places: Places::new() }
    }

    /// Admits a request, unless it is too early.
    ///
    /// # Errors
    /// The milliseconds that this request has to wait: 1 to [`WAIT_MS_MAX`](crate::limits::places::WAIT_MS_MAX).
    pub fn admit(&mut self, rate: Rate, now_ms: u64) -> Result<(), u32> {
        let now_ns = now_ms * NS_PER_MS;
        let arrival_ns = self.arrival_ns.max(now_ns);
        let first_ns = arrival_ns.saturating_sub(rate.tolerance_ns);
        if first_ns > now_ns {
            return Err(self.places.next(first_ns, rate.interval_ns, now_ns));
        }
        self.arrival_ns = arrival_ns + rate.interval_ns;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `asked` requests at one time get through.
    fn at_once(limiter: &mut RateLimiter, rate: Rate, now_ms: u64, asked: usize) -> usize {
        (0..asked).filter(|_| limiter.admit(rate, now_ms).is_ok()).count()
    }

    #[test]
    fn a_burst_goes_through_and_then_the_rate_holds() {
        let rate = Rate::new(10, 5);
        let mut limiter = RateLimiter::new();
        assert_eq!(at_once(&mut limiter, rate, 1_000, 5), 5);
        assert_eq!(limiter.admit(rate, 1_000), Err(100));
        assert_eq!(limiter.admit(rate, 1_099), Err(101), "the time before is taken");
        assert_eq!(limiter.admit(rate, 1_100), Ok(()));
        let passed = (1_100..11_100).filter(|&ms| limiter.admit(rate, ms).is_ok()).count();
        assert!((99..=101).contains(&passed), "{passed}");
    }

    #[test]
    fn requests_that_are_refused_together_wait_one_interval_more_each() {
        let rate = Rate::new(2, 3);
        let mut limiter = RateLimiter::new();
        assert_eq!(at_once(&mut limiter, rate, 1_000, 3), 3);
        let waits: Vec<_> = (0..10).map(|_| limiter.admit(rate, 1_000).unwrap_err()).collect();
        assert_eq!(waits, [500, 1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 4_500, 5_000]);
        // All that are retried at their time are admitted. Another one waits until after them.
        assert_eq!(limiter.admit(rate, 1_200), Err(5_300));
        for wait_ms in waits {
            assert_eq!(limiter.admit(rate, 1_000 + u64::from(wait_ms)), Ok(()));
        }
        assert_eq!(limiter.admit(rate, 6_000), Err(1_000), "the time at 6,500 is taken");
        assert_eq!(limiter.admit(rate, 6_500), Ok(()));
        // Once the times are over, the next burst starts again.
        assert_eq!(at_once(&mut limiter, rate, 60_000, 3), 3);
        assert_eq!(limiter.admit(rate, 60_000), Err(500));
    }

    #[test]
    fn the_waits_of_a_client_that_does_not_wait_are_bounded_and_stay_spread() {
        let rate = Rate::new(2, 1);
        let mut limiter = RateLimiter::new();
        assert_eq!(limiter.admit(rate, 1_000), Ok(()));
        let mut counts = std::collections::BTreeMap::<u32, usize>::new();
        for _ in 0..6_000 {
            *counts.entry(limiter.admit(rate, 1_000).unwrap_err()).or_default() += 1;
        }
        assert_eq!(counts.len(), 60, "30 s have 60 intervals: {counts:?}");
        assert!(counts.values().all(|&count| count == 100), "{counts:?}");
        assert_eq!(counts.last_key_value(), Some((&30_000, &100)));
    }

    #[test]
    fn a_limiter_is_small() {
        assert_eq!(size_of::<RateLimiter>(), 16);
    }

    #[test]
    fn each_connection_has_its_own_rate() {
        let mut limiters = RateLimiters::new(Rate::new(1, 1));
        limiters.reset(2);
        limiters.reset(0);
        assert_eq!(limiters.admit(2, 0), Ok(()));
        assert_eq!(limiters.admit(2, 0), Err(1_000));
        assert_eq!(limiters.admit(0, 0), Ok(()));
        limiters.reset(2);
        assert_eq!(limiters.admit(2, 0), Ok(()), "the slot has another connection");
    }

    #[test]
    fn the_ends_of_the_ranges_hold() {
        let mut slow = RateLimiter::new();
        let rate = Rate::new(1, 1_000_000);
        assert_eq!(at_once(&mut slow, rate, 0, 1_000_000), 1_000_000);
        assert_eq!(slow.admit(rate, 0), Err(1_000));
        // Two weeks later all of the burst is there again, and no more.
        assert_eq!(at_once(&mut slow, rate, 14 * 86_400_000, 1_100_000), 1_000_000);

        let mut fast = RateLimiter::new();
        let rate = Rate::new(60_000, 100);
        let passed: usize = (0..1_000).map(|ms| at_once(&mut fast, rate, ms, 200)).sum();
        assert!((60_000..=60_100).contains(&passed), "{passed}");
    }
}
