//! The rate limit of one connection: the generic cell rate algorithm (ITU-T I.371) in eight bytes.
//!
//! A limiter keeps one time: the theoretical arrival time of the next request at the configured rate. Each request
//! moves it on by one interval. A request is too early while that time is more than a burst ahead of now.
//!
//! The limiters are in a table beside the connections, so a gateway without a limit has no table.

/// The rate, and a limiter for each of a shard's connections.
#[derive(Debug)]
pub struct RateLimiters {
    rate: Rate,
    /// By slot.
    limiters: Vec<RateLimiter>,
}

/// One connection's state.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimiter {
    /// The theoretical arrival time, in nanoseconds on the shard's clock.
    arrival_ns: u64,
}

/// A rate, the same for all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that a request costs.
    interval_ns: u64,
    /// Nanoseconds that a connection may be ahead.
    tolerance_ns: u64,
}

const NS_PER_MS: u64 = 1_000_000;

impl Rate {
    /// `per_second` requests, of which `burst` may come at once: each 1 to 1,000,000.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.max(1) - 1) }
    }
}

impl RateLimiters {
    /// No connection has sent a request yet.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { rate, limiters: Vec::new() }
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
    /// The milliseconds to wait, at least 1.
    #[inline]
    pub fn admit(&mut self, slot: u32, now_ms: u64) -> Result<(), u32> {
        self.limiters[slot as usize].admit(self.rate, now_ms)
    }
}

impl RateLimiter {
    /// The limiter of a connection that has sent no request yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { arrival_ns: 0 }
    }

    /// Admits a request, unless it is too early.
    ///
    /// # Errors
    /// The milliseconds to wait, at least 1.
    pub fn admit(&mut self, rate: Rate, now_ms: u64) -> Result<(), u32> {
        let now_ns = now_ms * NS_PER_MS;
        let arrival_ns = self.arrival_ns.max(now_ns);
        let early_ns = (arrival_ns - now_ns).saturating_sub(rate.tolerance_ns);
        if early_ns > 0 {
            return Err(u32::try_from(early_ns.div_ceil(NS_PER_MS)).unwrap_or(u32::MAX));
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
        assert_eq!(at_once(&mut limiter, rate, 1_000, 9), 5);
        assert_eq!(limiter.admit(rate, 1_000), Err(100));
        assert_eq!(limiter.admit(rate, 1_099), Err(1));
        assert_eq!(limiter.admit(rate, 1_100), Ok(()));
        let passed = (1_100..11_100).filter(|&ms| limiter.admit(rate, ms).is_ok()).count();
        assert!((99..=101).contains(&passed), "{passed}");
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
        assert_eq!(at_once(&mut slow, rate, 0, 1_100_000), 1_000_000);
        assert_eq!(slow.admit(rate, 0), Err(1_000));
        // Two weeks later all of the burst is there again, and no more.
        assert_eq!(at_once(&mut slow, rate, 14 * 86_400_000, 1_100_000), 1_000_000);

        let mut fast = RateLimiter::new();
        let rate = Rate::new(60_000, 100);
        let passed: usize = (0..1_000).map(|ms| at_once(&mut fast, rate, ms, 200)).sum();
        assert!((60_000..=60_100).contains(&passed), "{passed}");
    }
}
