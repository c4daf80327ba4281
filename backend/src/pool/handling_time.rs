//! How long a call will probably take, so that workers prefer calls that are answered in time.
//!
//! Under overload the queue is as long as the timeout: the oldest call is always about to expire. A worker that
//! took it would work for a client that has its 102 when the answer comes. So a worker leaves a call that would
//! expire while it is handled to the end, after all that can be answered in time. This is a preference: a wrong
//! estimate costs a place in the queue, and never an answer.

use std::time::{Duration, Instant};

/// How far the shards' clocks, which count timeouts by the millisecond, may be ahead of a worker's; and the way
/// of an answer back to its shard.
const WAY_BACK: Duration = Duration::from_millis(2);

/// A running estimate of the time that handling takes: its mean and its mean deviation, as TCP estimates round trips
/// (Jacobson 1988; RFC 6298). It follows a change within some ten calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HandlingTime {
    /// `None`: no call was measured.
    estimate: Option<Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    mean: Duration,
    deviation: Duration,
}

impl HandlingTime {
    /// Counts how long one call took.
    #[inline]
    pub(crate) fn note(&mut self, took: Duration) {
        self.estimate = Some(match self.estimate {
            None => Estimate { mean: took, deviation: took / 2 },
            Some(Estimate { mean, deviation }) => Estimate {
                mean: mean - mean / 8 + took / 8,
                deviation: deviation - deviation / 4 + mean.abs_diff(took) / 4,
            },
        });
    }

    /// Nearly all calls take less, until the answer is with the shard. Zero while none was measured.
    #[inline]
    pub(crate) fn upper_bound(&self) -> Duration {
        self.estimate
            .map_or(Duration::ZERO, |Estimate { mean, deviation }| mean + deviation * 4 + WAY_BACK)
    }
}

/// When a call is taken, and how long its handling will probably take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) at: Instant,
    pub(crate) handling: Duration,
}

impl Start {
    /// Whether a call that has this timeout, and has waited for so long, would expire before it is answered. In
    /// the first half of its timeout no call is late, whatever the calls before it took.
    #[inline]
    pub(crate) fn is_late(&self, waited: Duration, timeout: Duration) -> bool {
        waited + self.handling.min(timeout / 2) >= timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_bound_follows_what_calls_take() {
        let mut time = HandlingTime::default();
        assert_eq!(time.upper_bound(), Duration::ZERO);
        (0..100).for_each(|_| time.note(10 * MS));
        let steady = time.upper_bound();
        assert!(steady >= 10 * MS && steady < 13 * MS, "{steady:?}");
        time.note(50 * MS);
        assert!(time.upper_bound() > 50 * MS, "what varies needs more");
        (0..100).for_each(|_| time.note(MS));
        assert!(time.upper_bound() < 5 * MS);
    }

    #[test]
    fn a_call_is_late_that_would_expire_while_it_is_handled() {
        let start = |handling| Start { at: Instant::now(), handling };
        assert!(!start(Duration::ZERO).is_late(99 * MS, 100 * MS));
        assert!(start(Duration::ZERO).is_late(100 * MS, 100 * MS));
        assert!(!start(10 * MS).is_late(89 * MS, 100 * MS));
        assert!(start(10 * MS).is_late(90 * MS, 100 * MS));
        assert!(!start(500 * MS).is_late(49 * MS, 100 * MS), "the first half of the timeout");
        assert!(start(500 * MS).is_late(50 * MS, 100 * MS));
    }
}
