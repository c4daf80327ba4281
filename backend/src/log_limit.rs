//! A limit on log lines that clients can cause.
//!
//! A client that makes a handler panic, or that asks for answers which are too long, can do so thousands
//! of times a second. The first time is logged at once. The next line says how often it happened since.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The least time between two log lines of one cause, in milliseconds.
pub const EVERY_MS: u64 = 10_000;

/// When the clock of [`LogLimit::allow`] started.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Allows one line of a cause in each [`EVERY_MS`], and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the next line is allowed, in milliseconds.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    /// A limit that allows the first line.
    #[must_use]
    pub const fn new() -> Self {
        Self { next_ms: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line is allowed now: `Some` with the number of lines suppressed since the last one.
    pub fn allow(&self) -> Option<u64> {
        let now = STARTED.elapsed();
        self.allow_at(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }

    /// As [`Self::allow`], at `now_ms` on the caller's clock, which must be the same one in each call.
    pub fn allow_at(&self, now_ms: u64) -> Option<u64> {
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let after_ms = now_ms.saturating_add(EVERY_MS);
        let is_allowed = now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(next_ms, after_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_allowed {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_allowed_and_the_next_one_counts_those_between() {
        let limit = LogLimit::new();
        assert_eq!(limit.allow_at(5), Some(0));
        assert_eq!(limit.allow_at(5), None);
        assert_eq!(limit.allow_at(4 + EVERY_MS), None);
        assert_eq!(limit.allow_at(5 + EVERY_MS), Some(2));
        assert_eq!(limit.allow_at(6 + EVERY_MS), None);
        assert_eq!(LogLimit::new().allow(), Some(0));
    }
}
