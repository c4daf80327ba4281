//! How often one session may join rooms, over all backends.
//!
//! Each join visits the room's home, and can open a room. So a client whose backend joins rooms on the client's request
//! could keep the shards busy. Leaves are free: one that follows no join changes nothing, and a backend must always be able to
//! end a membership. The rate is a token bucket for each session in a [`RateSketch`]: a session that does not join costs
//! nothing, and backends on any thread share it without a lock. A client that logs in again has a new session, and a full
//! bucket: `addresses` limits how often it may do that.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use metrics::{Counter, counter};
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{PushError, SessionId};

use super::prefix::Key;
use super::rate_sketch::{Rate, RateSketch};
use crate::config::RoomsConfig;

/// Cells of a row of the sketch: 2^18, which are 8 MiB in all. While 20,000 sessions are at their limit, 3 of 100,000 joins of
/// other sessions are refused; while 50,000 are, 1 of 800.
const CELL_BITS: u32 = 18;

const SECOND: Duration = Duration::from_secs(1);

/// The metric: name and help text.
pub const REFUSED: (&str, &str) = (
    "tidegate_room_commands_limited_total",
    "Joins refused because their session joined rooms more often than rooms.joins_per_second_max allows.",
);

/// The rate of joins of each session.
#[derive(Debug)]
pub struct JoinRate {
    rate: Rate,
    sketch: RateSketch,
    hasher: RandomState,
    started: Instant,
    refused: Counter,
    refusals: LogLimit,
}

impl JoinRate {
    /// What is configured; `None`: there is no limit.
    #[must_use]
    pub fn of_config(rooms: &RoomsConfig, started: Instant) -> Option<Self> {
        let rate = Rate::new(rooms.joins_per_second_max?, SECOND, rooms.joins_burst_max);
        Some(Self::new(rate, started))
    }

    /// `started`: when the clock of the rate starts.
    #[must_use]
    pub fn new(rate: Rate, started: Instant) -> Self {
        Self {
            rate,
            sketch: RateSketch::new(CELL_BITS),
            hasher: RandomState::new(),
            started,
            refused: counter!(REFUSED.0),
            refusals: LogLimit::new(),
        }
    }

    /// Takes a join of a session.
    ///
    /// # Errors
    /// [`PushError::TooManyJoins`].
    pub fn take(&self, session: SessionId) -> Result<(), PushError> {
        let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.take_at(session, now_us)
    }

    fn take_at(&self, session: SessionId, now_us: u64) -> Result<(), PushError> {
        let key = Key(self.hasher.hash_one(session));
        if self.sketch.take(key, self.rate, now_us).is_ok() {
            return Ok(());
        }
        self.refused.increment(1);
        if let Some(suppressed) = self.refusals.allow_at(now_us / 1_000) {
            let session = format!("{:016x}", session.0);
            tracing::warn!(
                session,
                suppressed,
                "refused a join: the session joins rooms more often than rooms.joins_per_second_max allows"
            );
        }
        Err(PushError::TooManyJoins { per_second_max: self.rate.count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_its_own_rate() {
        let limit = JoinRate::new(Rate::new(10, SECOND, 3), Instant::now());
        let taken = |session, now_us| {
            (0..10).filter(|_| limit.take_at(SessionId(session), now_us).is_ok()).count()
        };
        assert_eq!(taken(1, 1_000_000), 3);
        assert_eq!(taken(2, 1_000_000), 3);
        assert_eq!(taken(1, 1_100_000), 1);
        let refused = Err(PushError::TooManyJoins { per_second_max: 10 });
        assert_eq!(limit.take_at(SessionId(1), 1_100_000), refused);
        assert_eq!(taken(1, 9_000_000), 3);
    }
}
