//! How often one session may join and leave rooms, whichever backend has it do so.
//!
//! Each join and each leave visits the room's home, and can open a room. So a client that a backend lets join and leave as it
//! asks could keep the shards busy with it. The rate is a token bucket for each session in a [`RateSketch`]: a session that
//! does neither costs nothing, and backends on any thread share it without a lock.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use metrics::{Counter, counter};
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{PushError, SessionId};

use super::prefix::Key;
use super::rate_sketch::{Rate, RateSketch};
use crate::config::RoomsConfig;

/// Cells of a row of the sketch: 2^16, which are 2 MiB in all. Of 5,000 sessions at their limit, others are refused 3 in
/// 100,000 times.
const CELL_BITS: u32 = 16;

const SECOND: Duration = Duration::from_secs(1);

/// The metric: name and help text.
pub const REFUSED: (&str, &str) = (
    "tidegate_room_commands_limited_total",
    "Joins and leaves refused because their session gave more than rooms.joins_per_second_max.",
);

/// The rate of joins and leaves of each session.
#[derive(Debug)]
pub struct MembershipRate {
    rate: Rate,
    sketch: RateSketch,
    hasher: RandomState,
    started: Instant,
    refused: Counter,
    refusals: LogLimit,
}

impl MembershipRate {
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

    /// Takes a join or a leave of a session.
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
                "refused a join or a leave: the session gives more than rooms.joins_per_second_max"
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
        let limit = MembershipRate::new(Rate::new(10, SECOND, 3), Instant::now());
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
