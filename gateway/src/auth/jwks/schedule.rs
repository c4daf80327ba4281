//! When the set is read: regularly, soon after a failure, and early when a token names an unknown key.

use std::time::{Duration, Instant};

/// The least time between two reads that tokens cause. Any client can send a token with an invented `kid`, so this is
/// the most that all clients together can make the gateway ask.
pub(super) const EARLY_INTERVAL: Duration = Duration::from_secs(10);

/// The time from a failed read to the next one. It doubles with each further failure, up to the regular interval.
const RETRY: Duration = Duration::from_secs(1);

/// When to read next. The clock comes from outside.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The next regular read, or the next try after a failure.
    next: Instant,
    /// From when on an early read is allowed.
    early_from: Instant,
    /// Failed reads since the last good one.
    failures: u32,
}

impl Schedule {
    /// The first read is due at once.
    pub(super) const fn new(now: Instant) -> Self {
        Self { next: now, early_from: now, failures: 0 }
    }

    /// When the next read is due. `is_wanted`: a token has named an unknown key.
    pub(super) fn due(&self, is_wanted: bool) -> Instant {
        if is_wanted { self.next.min(self.early_from) } else { self.next }
    }

    /// A read begins.
    pub(super) fn begin(&mut self, is_wanted: bool, now: Instant) {
        if is_wanted {
            self.early_from = now + EARLY_INTERVAL;
        }
    }

    /// A read has ended. `interval`: the time between two regular reads. `jitter`: a number from 0 to 1, which spreads gateways that
    /// were started together.
    pub(super) fn end(&mut self, succeeded: bool, interval: Duration, jitter: f64, now: Instant) {
        let wait = if succeeded {
            self.failures = 0;
            interval
        } else {
            self.failures = self.failures.saturating_add(1);
            let doublings = (self.failures - 1).min(16);
            (RETRY * (1 << doublings)).min(interval)
        };
        self.next = now + wait.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 8.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn unknown_keys_cause_at_most_one_read_in_ten_seconds() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(false, start);
        schedule.end(true, 10 * MINUTE, 0.0, start);
        let (mut reads, mut now) = (0, start);
        // Tokens with unknown keys come all the time.
        while now < start + MINUTE {
            if schedule.due(true) <= now {
                schedule.begin(true, now);
                // The longer a read takes, the fewer there are.
                schedule.end(true, 10 * MINUTE, 0.0, now + SECOND);
                reads += 1;
            }
            now += SECOND / 10;
        }
        assert_eq!(reads, 6, "at 0, 10, 20, 30, 40 and 50 s");
        assert!(schedule.due(false) > now, "nothing is due without them");
    }

    #[test]
    fn reads_are_regular_and_failures_are_repeated_soon_and_then_more_slowly() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.due(false), start);
        let mut waits = |outcomes: &[bool]| -> Vec<u64> {
            let wait = |&outcome| {
                schedule.end(outcome, 10 * SECOND, 0.0, start);
                (schedule.due(false) - start).as_secs()
            };
            outcomes.iter().map(wait).collect()
        };
        assert_eq!(waits(&[true, false, false, false, false]), [10, 1, 2, 4, 8]);
        assert_eq!(waits(&[false; 100])[99], 10, "no later than regularly");
        assert_eq!(waits(&[true, false]), [10, 1]);
        schedule.end(true, 10 * SECOND, 1.0, start);
        assert_eq!(schedule.due(false) - start, 10 * SECOND * 7 / 8, "gateways are spread");
    }
}
