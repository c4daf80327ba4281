//! When refused requests are to be retried.
//!
//! If all that are refused together got the same wait, they would be retried together, and nearly all would be refused again. So
//! each gets a place in a schedule, which comes one interval after the place of the refusal before. When the places are
//! [`WAIT_MS_MAX`] ahead (or at another end), they start again at the first time that is free. So waits stay spread whatever clients send, and
//! nothing is kept for a single request.

/// The longest wait of a refused request, in milliseconds: as long as clients wait for an answer.
pub const WAIT_MS_MAX: u64 = 30_000;

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// A schedule. Times are in nanoseconds on the shard's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Places {
    /// When the request that was refused last is to be retried.
    last_ns: u64,
}

impl Places {
    /// A schedule without places.
    #[must_use]
    pub const fn new() -> Self {
        Self { last_ns: 0 }
    }

    /// How long the request that is refused now has to wait, in milliseconds: 1 to [`WAIT_MS_MAX`], unless
    /// `first_ns` is later.
    /// `first_ns`: the first time at which a request may be retried, after `now_ns`. `interval_ns`: the time between two places.
    pub fn next(&mut self, first_ns: u64, interval_ns: u64, now_ns: u64) -> u32 {
        self.next_until(now_ns + WAIT_MS_MAX * NS_PER_MS, first_ns, interval_ns, now_ns)
    }

    /// As [`Self::next`]; places after `end_ns` are not used.
    pub fn next_until(&mut self, end_ns: u64, first_ns: u64, interval_ns: u64, now_ns: u64) -> u32 {
        let next_ns = first_ns.max(self.last_ns.saturating_add(interval_ns));
        let is_far = next_ns > end_ns;
        self.last_ns = if is_far { first_ns } else { next_ns };
        u32::try_from((self.last_ns - now_ns).div_ceil(NS_PER_MS)).unwrap_or(u32::MAX)
    }
}
