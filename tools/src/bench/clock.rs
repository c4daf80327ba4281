//! The run's clock, and the times of an evenly spaced sequence.

use std::time::Instant;

/// Nanoseconds since the run started.
pub(super) type Nanos = u64;

/// The time since the run started.
pub(super) fn nanos_since(origin: Instant) -> Nanos {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
}

/// When item `number` of an evenly spaced sequence is due, after item 0.
#[inline]
pub(super) fn due_after(number: u64, interval_ns: f64) -> Nanos {
    due_at(number as f64, interval_ns)
}

/// The same for a number of intervals that need not be whole.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a cast saturates: the time is never reached")]
pub(super) fn due_at(intervals: f64, interval_ns: f64) -> Nanos {
    (intervals * interval_ns) as Nanos
}
