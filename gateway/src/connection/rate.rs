//! How fast one connection may ask: the generic cell rate algorithm (ITU-T I.371) in four bytes.
//!
//! It remembers one time: when the connection would be even with its rate. Asking moves that time on
//! by one interval; asking is too early while it lies more than a burst ahead of now.

/// One connection's state.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimiter {
    /// When it is even, in [`Rate`] ticks on the shard's clock.
    even_at: u32,
}

/// A rate, the same for all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Ticks that a request costs.
    interval: u32,
    /// Ticks that a connection may be ahead.
    tolerance: u32,
}

/// Ticks of a millisecond.
const TICKS_PER_MS: u64 = 100;

impl Rate {
    /// `per_second` requests, of which `burst` may come at once: 1 to 100,000 and 1 to 10,000.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = (100_000 / per_second.clamp(1, 100_000)).max(1);
        Self { interval, tolerance: interval.saturating_mul(burst.max(1) - 1) }
    }
}

impl RateLimiter {
    /// A connection that has asked nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { even_at: 0 }
    }

    /// Lets a request through, or says how many milliseconds too early it is.
    ///
    /// # Errors
    /// The milliseconds to wait, at least 1.
    #[expect(clippy::cast_possible_truncation, reason = "a clock that wraps, compared as one")]
    pub fn ask(&mut self, rate: Rate, now_ms: u64) -> Result<(), u32> {
        let now = (now_ms * TICKS_PER_MS) as u32;
        let mut ahead = self.even_at.wrapping_sub(now);
        if ahead > rate.tolerance.saturating_add(rate.interval) {
            // Further than asking ever leads: it lies behind, however long ago.
            ahead = 0;
        }
        if ahead > rate.tolerance {
            return Err((ahead - rate.tolerance).div_ceil(TICKS_PER_MS as u32));
        }
        self.even_at = now.wrapping_add(ahead).wrapping_add(rate.interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_through_and_then_the_rate_holds() {
        let rate = Rate::new(10, 5);
        let mut limiter = RateLimiter::new();
        for _ in 0..5 {
            assert_eq!(limiter.ask(rate, 1_000), Ok(()));
        }
        assert_eq!(limiter.ask(rate, 1_000), Err(100));
        assert_eq!(limiter.ask(rate, 1_099), Err(1));
        assert_eq!(limiter.ask(rate, 1_100), Ok(()));
        let passed = (1_100..11_100).filter(|&ms| limiter.ask(rate, ms).is_ok()).count();
        assert!((99..=101).contains(&passed), "{passed}");
    }

    #[test]
    fn it_survives_the_clock_wrapping() {
        let rate = Rate::new(10, 1);
        let mut limiter = RateLimiter::new();
        let wrap_ms = u64::from(u32::MAX) / TICKS_PER_MS;
        for ms in [wrap_ms / 2 - 100, wrap_ms - 100, wrap_ms, wrap_ms + 100, 2 * wrap_ms] {
            assert_eq!(limiter.ask(rate, ms), Ok(()), "{ms}");
            assert!(limiter.ask(rate, ms + 1).is_err(), "{ms}");
        }
    }
}
