//! When sessions end with their tokens, where `session.on_token_expiry` is `close`.
//!
//! A token ends at a date of the wall clock. The date is converted once, at the authentication, to the shard's
//! clock. So nothing that happens to the wall clock later moves the end of a session. A client that
//! authenticates again has the date of its new token converted by the wall clock of that moment.
//!
//! The ends are in a table beside the connections, so a gateway that ignores them has no table.

use crate::auth::TokenEnd;
use crate::config::{Config, OnTokenExpiry};
use crate::shard::clock::{Clock, millis};

/// The end of a session that does not end with its token.
pub const NEVER: u64 = u64::MAX;

/// When a shard's sessions end with their tokens.
#[derive(Debug)]
pub struct TokenEnds {
    /// How long a session outlives its token, in milliseconds: the leeway of the clocks and the grace period.
    extra_ms: u64,
    /// When the session in each slot ends, on the shard's clock. An authentication sets it, so a new connection of the
    /// slot does not see the end of an earlier one.
    ends_ms: Vec<u64>,
}

impl TokenEnds {
    /// The table, unless the configuration ignores the ends of tokens.
    #[must_use]
    pub fn new(config: &Config) -> Option<Self> {
        let extra = config.auth.leeway + config.session.token_expiry_grace;
        let is_used = config.session.on_token_expiry == OnTokenExpiry::Close;
        is_used.then(|| Self { extra_ms: millis(extra), ends_ms: Vec::new() })
    }

    /// Uses another leeway and grace period for the tokens that are shown from now on.
    pub fn reconfigure(&mut self, config: &Config) {
        self.extra_ms = millis(config.auth.leeway + config.session.token_expiry_grace);
    }

    /// The slot's client has authenticated with a token that ends then.
    pub fn set(&mut self, slot: u32, end: TokenEnd, clock: &Clock) {
        let index = slot as usize;
        if self.ends_ms.len() <= index {
            self.ends_ms.resize(index + 1, NEVER);
        }
        self.ends_ms[index] = match end {
            TokenEnd::Never => NEVER,
            // A token is accepted for the leeway longer, so its end may have passed, but not by more.
            TokenEnd::At { unix_ms } => unix_ms
                .saturating_add(self.extra_ms)
                .saturating_sub(clock.unix_ms())
                .saturating_add(clock.now_ms()),
        };
    }

    /// When the session in a slot ends, on the shard's clock; or [`NEVER`].
    #[inline]
    #[must_use]
    pub fn end_ms(&self, slot: u32) -> u64 {
        self.ends_ms.get(slot as usize).copied().unwrap_or(NEVER)
    }

    /// Milliseconds until the token ends, as the client is sent them: at least 1, since 0 says that it does not end the
    /// session.
    #[must_use]
    pub fn expires_in_ms(&self, slot: u32, now_ms: u64) -> u64 {
        match self.end_ms(slot) {
            NEVER => 0,
            end_ms => end_ms.saturating_sub(now_ms).saturating_sub(self.extra_ms).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::WallClock;

    const UNIX_MS: u64 = 1_700_000_000_000;

    fn ends(leeway_ms: u64, grace_ms: u64) -> TokenEnds {
        let mut config = Config::embedded_default();
        assert!(TokenEnds::new(&config).is_none(), "the default is to ignore them");
        config.auth.leeway = Duration::from_millis(leeway_ms);
        config.session.on_token_expiry = OnTokenExpiry::Close;
        config.session.token_expiry_grace = Duration::from_millis(grace_ms);
        TokenEnds::new(&config).unwrap()
    }

    fn at(unix_ms: u64) -> TokenEnd {
        TokenEnd::At { unix_ms }
    }

    /// A shard's clock at 2,000 ms, and a wall clock that can be set.
    fn clock() -> (Clock, Arc<AtomicU64>) {
        let unix_ms = Arc::new(AtomicU64::new(UNIX_MS));
        let read = Arc::clone(&unix_ms);
        let wall = WallClock::new(move || Duration::from_millis(read.load(Ordering::Relaxed)));
        let started = Instant::now();
        let mut clock = Clock::new(started, wall);
        clock.on_woken(started + Duration::from_secs(2), 0);
        (clock, unix_ms)
    }

    #[test]
    fn a_session_ends_the_leeway_and_the_grace_period_after_its_token() {
        let (mut ends, (clock, _)) = (ends(5_000, 30_000), clock());
        ends.set(3, at(UNIX_MS + 60_000), &clock);
        assert_eq!(ends.end_ms(3), 2_000 + 60_000 + 35_000);
        assert_eq!(ends.expires_in_ms(3, 2_000), 60_000);
        assert_eq!(ends.expires_in_ms(3, 61_999), 1);
        assert_eq!(ends.expires_in_ms(3, 90_000), 1, "0 would say that it does not end");
        assert_eq!((ends.end_ms(2), ends.expires_in_ms(2, 2_000)), (NEVER, 0));
        assert_eq!((ends.end_ms(9), ends.expires_in_ms(9, 2_000)), (NEVER, 0));
        // A token whose end has passed is accepted for the leeway.
        ends.set(3, at(UNIX_MS - 4_999), &clock);
        assert_eq!((ends.end_ms(3), ends.expires_in_ms(3, 2_000)), (2_000 + 30_001, 1));
        ends.set(3, TokenEnd::Never, &clock);
        assert_eq!((ends.end_ms(3), ends.expires_in_ms(3, 2_000)), (NEVER, 0));
        ends.set(3, at(u64::MAX), &clock);
        assert!(ends.end_ms(3) > u64::MAX / 2, "after all time");
    }

    #[test]
    fn a_wall_clock_that_is_set_moves_no_end_but_that_of_a_later_authentication() {
        let (mut ends, (clock, unix_ms)) = (ends(0, 0), clock());
        ends.set(0, at(UNIX_MS + 60_000), &clock);
        for set_to in [UNIX_MS - 3_600_000, UNIX_MS + 3_600_000] {
            unix_ms.store(set_to, Ordering::Relaxed);
            assert_eq!((ends.end_ms(0), ends.expires_in_ms(0, 2_000)), (62_000, 60_000));
        }
        unix_ms.store(UNIX_MS - 40_000, Ordering::Relaxed);
        ends.set(0, at(UNIX_MS + 60_000), &clock);
        assert_eq!(ends.end_ms(0), 102_000);
    }
}
