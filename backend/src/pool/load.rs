//! How loaded the workers are: how long calls wait for one, and how fast calls are taken.
//!
//! Measured in windows, under the lock of the queue, when calls are taken and when a shard flushes. While a window passes in which
//! a line always waits for a worker, its calls are the rate at which the workers serve, and the shortest wait in it is
//! that of a standing queue (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 2012: a burst makes some calls wait, and only a
//! queue that stands makes all of them wait). A call behind another one of its own connection is no sign of load: where no other line
//! waits, workers count as idle.

use std::time::{Duration, Instant};

/// The shortest window: CoDel's interval, which is a burst that no backend has to be protected from.
const WINDOW: Duration = Duration::from_millis(100);

/// Calls of each worker that a window has at least, or what a slow handler serves would be known by chance.
const CALLS_PER_WORKER_MIN: u64 = 2;

/// How loaded the workers of a pool are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Calls that wait for a worker; 0 while each of them waits for a call of its own connection.
    pub waiting_calls: usize,
    /// The time in which the workers together take one call, in nanoseconds; 0 while unknown.
    pub per_call_ns: u64,
    /// The shortest wait in the last window, in nanoseconds; 0 where a worker was idle in it.
    pub standing_ns: u64,
}

impl Load {
    /// How long a call that is submitted now will probably wait, in nanoseconds.
    #[inline]
    #[must_use]
    pub const fn wait_ns(&self) -> u64 {
        (self.waiting_calls as u64).saturating_mul(self.per_call_ns)
    }
}

/// Measures the load. It belongs to the queue's lock.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    workers: u64,
    /// When the window began; `None`: nothing was measured.
    began: Option<Instant>,
    /// Calls taken in the window.
    taken: u64,
    /// The shortest wait in the window.
    least_wait: Duration,
    /// There was a moment in the window at which no line waited.
    was_idle: bool,
    /// What a call takes on a worker, on average.
    handling: Duration,
    per_call: Duration,
    standing: Duration,
}

impl LoadMeter {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers: workers as u64,
            began: None,
            taken: 0,
            least_wait: Duration::MAX,
            was_idle: false,
            handling: Duration::ZERO,
            per_call: Duration::ZERO,
            standing: Duration::ZERO,
        }
    }

    /// Calls were taken that had waited for so long. `handling`: what the worker's last calls took, on average.
    #[inline]
    pub(crate) fn note_taken(&mut self, calls: usize, waited: Duration, handling: Duration) {
        self.taken += calls as u64;
        self.least_wait = self.least_wait.min(waited);
        self.handling = handling;
        if self.per_call.is_zero() {
            self.per_call = divide(handling, self.workers);
        }
    }

    /// Time has passed. `is_idle`: no line waits for a worker.
    #[inline]
    pub(crate) fn update(&mut self, now: Instant, is_idle: bool) {
        self.was_idle |= is_idle;
        let passed = now.saturating_duration_since(*self.began.get_or_insert(now));
        if passed >= WINDOW {
            self.measure(now, passed, is_idle);
        }
    }

    fn measure(&mut self, now: Instant, passed: Duration, is_idle: bool) {
        if self.was_idle {
            // What was taken is what was asked for, not what could be served.
            self.per_call = divide(self.handling, self.workers);
            self.standing = Duration::ZERO;
        } else if self.taken >= self.workers * CALLS_PER_WORKER_MIN {
            self.per_call = divide(passed, self.taken);
            self.standing = self.least_wait;
        } else {
            // The handlers are slow, or hang: each worker may be about to take its next call.
            let at_least = divide(passed, self.taken + self.workers);
            self.per_call = self.per_call.max(at_least);
            return;
        }
        self.began = Some(now);
        self.taken = 0;
        self.least_wait = Duration::MAX;
        self.was_idle = is_idle;
    }

    /// The time in which the workers take one call, and the shortest wait, in nanoseconds.
    #[inline]
    pub(crate) fn figures(&self) -> (u64, u64) {
        (nanos(self.per_call), nanos(self.standing))
    }
}

fn divide(time: Duration, by: u64) -> Duration {
    Duration::from_nanos(nanos(time) / by.max(1))
}

#[inline]
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Two workers, and a clock.
    struct World {
        meter: LoadMeter,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let (mut meter, now) = (LoadMeter::new(2), Instant::now());
            meter.update(now, true);
            Self { meter, now }
        }

        /// A call is taken each `each` for a while. Lines wait meanwhile, unless it `is_idle`.
        fn serve(&mut self, calls: u32, each: Duration, waited: Duration, is_idle: bool) {
            for _ in 0..calls {
                self.now += each;
                self.meter.note_taken(1, waited, each * 2);
                self.meter.update(self.now, is_idle);
            }
        }

        fn figures(&self) -> (Duration, Duration) {
            let (per_call, standing) = self.meter.figures();
            (Duration::from_nanos(per_call), Duration::from_nanos(standing))
        }
    }

    #[test]
    fn idle_workers_have_no_standing_queue_and_serve_what_handling_takes() {
        let mut world = World::new();
        assert_eq!(world.figures(), (Duration::ZERO, Duration::ZERO), "nothing is known");
        // Calls wait since a burst came, but now and then none waits.
        world.serve(150, MS, 30 * MS, true);
        assert_eq!(world.figures(), (MS, Duration::ZERO));
        // One call each second says nothing about what could be served.
        world.now += 1000 * MS;
        world.meter.note_taken(1, MS, 4 * MS);
        world.meter.update(world.now, true);
        assert_eq!(world.figures(), (2 * MS, Duration::ZERO));
    }

    #[test]
    fn a_queue_stands_when_the_shortest_wait_of_a_window_is_long() {
        let mut world = World::new();
        world.serve(100, MS, 20 * MS, false);
        assert_eq!(world.figures().1, Duration::ZERO, "it was idle at the start");
        world.serve(99, MS, 25 * MS, false);
        world.serve(1, MS, 20 * MS, false);
        assert_eq!(world.figures(), (MS, 20 * MS));
        world.serve(99, MS, 25 * MS, false);
        world.serve(1, MS, Duration::ZERO, false);
        assert_eq!(world.figures(), (MS, Duration::ZERO), "one call has not waited");
    }

    #[test]
    fn handlers_that_hang_make_the_next_calls_wait_longer_and_longer() {
        let mut world = World::new();
        world.serve(200, MS, 20 * MS, false);
        assert_eq!(world.figures().0, MS);
        // Until a window has enough calls, both workers may be about to take one.
        for (passed_ms, want_ms) in [(50, 1), (450, 250), (1500, 1000)] {
            world.now += passed_ms * MS;
            world.meter.update(world.now, false);
            assert_eq!(world.figures().0, want_ms * MS);
        }
        // They answer again.
        world.serve(4, MS, 2000 * MS, false);
        world.serve(100, MS, 10 * MS, false);
        assert_eq!(world.figures(), (MS, 10 * MS));
    }

    #[test]
    fn the_wait_of_the_next_call_follows_from_those_that_wait() {
        let load = Load { waiting_calls: 12, per_call_ns: 500_000, standing_ns: 0 };
        assert_eq!(load.wait_ns(), 6_000_000);
        assert_eq!(Load { waiting_calls: 12, ..Load::default() }.wait_ns(), 0, "unknown");
    }
}
