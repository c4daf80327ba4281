//! When calls of a route are refused because they would wait too long.
//!
//! The bound is on the wait that a new call would have: the calls that wait for a worker, times the time in which the workers take
//! one (Little's law). There are two bounds, as CoDel has them (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012), with
//! the values of a server rather than a router (Maurer, "Fail at Scale", ACM Queue 2015). A burst may wait for up to the
//! *interval*, `waiting_ms_max`. A queue that stands, in which even the shortest wait is above the *target*, a tenth of it, for as
//! long as an interval, or one that has reached the interval, is not a burst: from then on no call may wait longer than the
//! target, so that those that are answered are answered soon. It ends when hardly any call is refused.
//!
//! CoDel drops at the head of the queue, and at a growing rate, so that senders of one flow slow down. Here the newest call is refused
//! at once: it costs least, its client can go elsewhere, and none that has waited is thrown away.

use tidegate_backend::pool::Load;

use crate::limits::places::NS_PER_MS;

/// The target is the interval divided by this. CoDel's is a tenth or a twentieth of it.
const TARGET_PART: u64 = 10;

/// How long calls are counted until it is decided whether shedding ends, in milliseconds.
const PERIOD_MS: u64 = 1_000;

/// Shedding ends when at most one call of this many was refused in a period.
const ADMITTED_MIN: u64 = 100;

/// What a shard knows of a route's waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shedding {
    interval_ms: u64,
    /// Since when the queue stands.
    standing_since_ms: Option<u64>,
    /// `None`: bursts may wait.
    period: Option<Period>,
}

/// A period in which no call may wait longer than the target.
#[derive(Clone, Copy, Debug)]
struct Period {
    ends_ms: u64,
    asked: u64,
    refused: u64,
}

impl Period {
    const fn new(now_ms: u64) -> Self {
        Self { ends_ms: now_ms + PERIOD_MS, asked: 0, refused: 0 }
    }
}

impl Shedding {
    /// `waiting_ms_max`: at least 1.
    #[must_use]
    pub(super) const fn new(waiting_ms_max: u64) -> Self {
        Self { interval_ms: waiting_ms_max, standing_since_ms: None, period: None }
    }

    /// Whether a call may be submitted, which would be one of those of `load`. As many as there are `workers` may always
    /// wait, or workers would be idle between two calls.
    #[inline]
    pub(super) fn admits(&mut self, load: Load, workers: usize, now_ms: u64) -> bool {
        let interval_ns = self.interval_ms * NS_PER_MS;
        let target_ns = interval_ns / TARGET_PART;
        if load.standing_ns < target_ns {
            self.standing_since_ms = None;
        } else {
            let since_ms = *self.standing_since_ms.get_or_insert(now_ms);
            if now_ms.saturating_sub(since_ms) >= self.interval_ms && self.period.is_none() {
                self.period = Some(Period::new(now_ms));
            }
        }
        if self.period.is_some_and(|period| now_ms >= period.ends_ms) {
            let calm = |period: &Period| period.refused * ADMITTED_MIN <= period.asked;
            self.period = self.period.filter(|period| !calm(period)).map(|_| Period::new(now_ms));
        }
        let bound_ns = if self.period.is_some() { target_ns } else { interval_ns };
        let admits = load.waiting_calls < workers || load.wait_ns() < bound_ns;
        if !admits {
            self.period.get_or_insert_with(|| Period::new(now_ms)).refused += 1;
        }
        if let Some(period) = &mut self.period {
            period.asked += 1;
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = NS_PER_MS;

    /// One call in a millisecond.
    fn load(waiting_calls: usize, standing_ms: u64) -> Load {
        Load { waiting_calls, per_call_ns: MS, standing_ns: standing_ms * MS }
    }

    #[test]
    fn a_burst_may_wait_for_the_interval() {
        let mut shedding = Shedding::new(100);
        for calls in 0..100 {
            assert!(shedding.admits(load(calls, 0), 2, 0), "{calls}");
        }
        assert!(!shedding.admits(load(100, 0), 2, 0));
        // From now on none may wait longer than a tenth of it.
        assert!(!shedding.admits(load(10, 0), 2, 5));
        assert!(shedding.admits(load(9, 0), 2, 5));
    }

    #[test]
    fn a_queue_that_stands_is_shortened() {
        let mut shedding = Shedding::new(100);
        assert!(shedding.admits(load(50, 10), 2, 0));
        assert!(shedding.admits(load(50, 9), 2, 50), "it has ended meanwhile");
        assert!(shedding.admits(load(50, 10), 2, 60));
        assert!(shedding.admits(load(50, 30), 2, 159));
        assert!(!shedding.admits(load(50, 30), 2, 160));
    }

    #[test]
    fn shedding_ends_when_hardly_any_call_is_refused() {
        let mut shedding = Shedding::new(100);
        assert!(!shedding.admits(load(100, 0), 2, 0));
        let mut second = |refused: usize, now_ms: u64| {
            let mut ask = |calls| shedding.admits(load(calls, 0), 2, now_ms);
            assert_eq!((0..refused).filter(|_| ask(10)).count(), 0);
            assert_eq!((0..200 - refused).filter(|_| ask(9)).count(), 200 - refused);
        };
        second(3, 500);
        second(2, 1_500);
        assert!(shedding.admits(load(99, 0), 2, 2_500), "bursts may wait again");
    }

    #[test]
    fn each_worker_may_have_a_call_that_waits() {
        let mut shedding = Shedding::new(1);
        assert!(shedding.admits(load(1, 500), 2, 0));
        assert!(!shedding.admits(load(2, 500), 2, 0));
        assert!(shedding.admits(Load::default(), 2, 0));
    }

    #[test]
    fn nothing_is_refused_while_the_rate_of_the_workers_is_unknown() {
        let mut shedding = Shedding::new(1);
        let unknown = Load { waiting_calls: 1_000, ..Load::default() };
        assert!(shedding.admits(unknown, 2, 0));
    }
}
