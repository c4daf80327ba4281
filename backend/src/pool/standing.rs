//! How long calls may wait for a worker, by whether the queue stands.
//!
//! A burst makes calls wait for a while, and then the queue is empty again. A queue that has not been empty for long is no
//! burst: more comes in than the workers can serve, and it would grow until calls time out. So while the queue was empty
//! within the last `waiting_max`, calls may wait, and none is shed. When it was not, it *stands*, and a call that has waited
//! longer than a small part of that is shed, the oldest first. So those that are handled have waited for a short time, and the
//! workers always have calls. It ends as soon as the queue is empty once: there is no estimate, and nothing to go stale.
//!
//! The rule is that of Maurer, "Fail at Scale" (ACM Queue 2015), after CoDel (Nichols and Jacobson, "Controlling Queue
//! Delay", ACM Queue 2012). A queue is empty when no line waits for a worker: calls behind an earlier one of their own connection
//! are no sign of overload.

use std::time::{Duration, Instant};

/// In a queue that stands, calls may wait for this part of `waiting_max`: 5 of 100 ms, as in the paper.
const STANDING_PART: u32 = 20;

/// The shortest wait after which a call is shed: CoDel's target. Shards submit their calls once in a turn, and the scheduler gives a
/// worker its core again after some milliseconds: with less, calls would be shed that no worker had a chance to take.
const STANDING_MIN: Duration = Duration::from_millis(5);

/// How long calls may wait for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitBound {
    waiting_max: Duration,
    standing_max: Duration,
}

impl WaitBound {
    /// The bounds for bursts of this length.
    #[must_use]
    pub fn new(waiting_max: Duration) -> Self {
        let standing_max = (waiting_max / STANDING_PART).max(STANDING_MIN).min(waiting_max);
        Self { waiting_max, standing_max }
    }

    /// How long a call may wait while the queue stands.
    #[must_use]
    pub const fn standing_max(&self) -> Duration {
        self.standing_max
    }
}

/// Whether the queue stands.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// When no line waited for the last time; `None`: no line ever waited.
    last_empty: Option<Instant>,
    /// The least `waiting_max` of all bounds; `None`: there is no bound.
    waiting_max_least: Option<Duration>,
    /// It stood for that long, at the last [`Self::note`].
    is_shedding: bool,
}

impl Standing {
    /// Whether calls may have a bound.
    #[inline]
    pub(super) const fn has_bounds(&self) -> bool {
        self.waiting_max_least.is_some()
    }

    pub(super) const fn is_shedding(&self) -> bool {
        self.is_shedding
    }

    /// Calls may have this bound.
    pub(super) fn add(&mut self, bound: &WaitBound) {
        let least = self.waiting_max_least.unwrap_or(Duration::MAX);
        self.waiting_max_least = Some(least.min(bound.waiting_max));
    }

    /// Notes at `now` whether no line waits.
    #[inline]
    pub(super) fn note(&mut self, now: Instant, is_empty: bool) {
        let Some(least) = self.waiting_max_least else { return };
        if is_empty {
            // A shard's time may be older than a worker's.
            self.last_empty = self.last_empty.max(Some(now));
            self.is_shedding = false;
        } else {
            self.is_shedding = self.stands_for(least, now);
        }
    }

    /// Whether a call with this bound has waited too long.
    #[inline]
    pub(super) fn is_too_long(&self, bound: WaitBound, waited: Duration, now: Instant) -> bool {
        waited >= bound.standing_max && self.stands_for(bound.waiting_max, now)
    }

    fn stands_for(&self, time: Duration, now: Instant) -> bool {
        self.last_empty.is_some_and(|empty| now.saturating_duration_since(empty) >= time)
    }
}

#[cfg(test)]
mod tests;
