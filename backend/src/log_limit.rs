//! A limit on log lines that others cause.
//!
//! A client that makes a handler panic, or asks for answers that are too long, can do so thousands
//! of times a second. The first time is worth a line at once; what follows is worth a number.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How often one cause may be logged, in milliseconds.
pub const EVERY_MS: u64 = 10_000;

/// Where [`LogLimit::allow`] counts milliseconds from.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Lets through one line of a cause each [`EVERY_MS`], and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the next line may come, in milliseconds.
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    /// A limit that lets the first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self { next_ms: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line may be logged now: `Some` with how many were suppressed since the last one.
    pub fn allow(&self) -> Option<u64> {
        let now = STARTED.elapsed();
        self.allow_at(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
    }

    /// As [`Self::allow`], at `now_ms` on a clock of the caller's, which must be the same at each call.
    pub fn allow_at(&self, now_ms: u64) -> Option<u64> {
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let after_ms = now_ms.saturating_add(EVERY_MS);
        let is_due = now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(next_ms, after_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_due {
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
    fn the_first_is_let_through_and_the_next_one_tells_of_those_between() {
        let limit = LogLimit::new();
        assert_eq!(limit.allow_at(5), Some(0));
        assert_eq!(limit.allow_at(5), None);
        assert_eq!(limit.allow_at(4 + EVERY_MS), None);
        assert_eq!(limit.allow_at(5 + EVERY_MS), Some(2));
        assert_eq!(limit.allow_at(6 + EVERY_MS), None);
        assert_eq!(LogLimit::new().allow(), Some(0));
    }
}
