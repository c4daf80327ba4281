//! Free memory goes back to the kernel once a burst is over.
//!
//! glibc's allocator returns free memory at the end of its heap only, so one small block that lives there keeps
//! megabytes. A shard's [`Burst`] decides when a request for the rest is worth its cost. [`Heap`] makes the
//! request, for all shards.

use std::sync::atomic::{AtomicU64, Ordering};

/// Messages up to this length, in bytes, live in buffers that are kept. They do not make a burst.
pub const SHORT_BYTES: usize = 1024;

/// Bytes of longer messages between two looks that make a burst.
const BURST_BYTES_MIN: usize = 256 * 1024;

/// Quiet time after which a burst is over, in milliseconds. A shorter pause does not end it.
const QUIET_MS: u64 = 2000;

/// The least time between two requests: each takes all free pages of the process, and the
/// next burst has to fault them in again.
const INTERVAL_MS: u64 = 30_000;

/// A smaller container keeps its memory: 25 KiB are not worth the work.
const KEPT_ENTRIES: usize = 1024;

/// Detects when a burst of long messages is over.
#[derive(Debug, Default)]
pub struct Burst {
    /// Bytes of long messages since the last look.
    bytes: usize,
    /// When a burst was last seen, until its memory has been given back.
    seen_at_ms: Option<u64>,
}

impl Burst {
    /// Adds bytes of messages longer than [`SHORT_BYTES`].
    #[inline]
    pub const fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// When a burst ended whose memory was not given back yet. Call it several times a
    /// second.
    pub fn over_since_ms(&mut self, now_ms: u64) -> Option<u64> {
        if std::mem::take(&mut self.bytes) >= BURST_BYTES_MIN {
            self.seen_at_ms = Some(now_ms);
        }
        self.seen_at_ms.filter(|&seen_at_ms| now_ms - seen_at_ms >= QUIET_MS)
    }

    /// The burst's memory has been given back.
    pub const fn finish(&mut self) {
        self.seen_at_ms = None;
    }
}

/// Whether the caller trims the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trim {
    /// It does.
    Now,
    /// Another shard has done it since the burst ended.
    Done,
    /// It is too soon: ask again.
    Later,
}

/// The process's heap.
#[derive(Debug, Default)]
pub struct Heap {
    /// When the heap was last trimmed, on the shards' clock; 0: not yet.
    trimmed_at_ms: AtomicU64,
}

impl Heap {
    /// Decides for a shard whose burst has been over since `over_since_ms`. On [`Trim::Now`] it calls
    /// [`Self::trim`].
    pub fn may_trim(&self, over_since_ms: u64, now_ms: u64) -> Trim {
        let last_ms = self.trimmed_at_ms.load(Ordering::Relaxed);
        if last_ms > over_since_ms {
            return Trim::Done;
        }
        if last_ms > 0 && now_ms < last_ms + INTERVAL_MS {
            return Trim::Later;
        }
        let (at, relaxed) = (&self.trimmed_at_ms, Ordering::Relaxed);
        match at.compare_exchange(last_ms, now_ms, relaxed, relaxed) {
            Ok(_) => Trim::Now,
            Err(_) => Trim::Done,
        }
    }

    /// Gives free whole pages of the process back to the kernel. That takes some milliseconds for megabytes. Without
    /// glibc it does nothing.
    pub fn trim(&self) {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        #[expect(
            unsafe_code,
            reason = "the C library has no other interface for it, and keeps megabytes"
        )]
        // SAFETY: malloc_trim(3) takes the allocator's own locks, and touches nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Whether a container is so empty that it should be shrunk. A container that shrinks keeps room for
/// twice its entries, and shrinks again only after three quarters of that are gone. So shrinking costs each entry no
/// more than growing did.
#[must_use]
pub const fn should_shrink(len: usize, capacity: usize) -> bool {
    capacity > KEPT_ENTRIES && len < capacity / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_when_it_was_quiet_for_long_enough() {
        let mut burst = Burst::default();
        burst.add(BURST_BYTES_MIN - 1);
        assert_eq!(burst.over_since_ms(0), None);
        assert_eq!(burst.over_since_ms(QUIET_MS), None);
        // Load that comes and goes around the threshold is one burst.
        let mut now_ms = 10_000;
        for _ in 0..100 {
            burst.add(BURST_BYTES_MIN);
            assert_eq!(burst.over_since_ms(now_ms), None);
            burst.add(BURST_BYTES_MIN - 1);
            assert_eq!(burst.over_since_ms(now_ms + QUIET_MS - 1), None);
            now_ms += QUIET_MS;
        }
        let seen_at_ms = now_ms - QUIET_MS;
        assert_eq!(burst.over_since_ms(now_ms), Some(seen_at_ms));
        assert_eq!(burst.over_since_ms(now_ms + 1), Some(seen_at_ms));
        burst.finish();
        assert_eq!(burst.over_since_ms(now_ms + 2), None);
    }

    #[test]
    fn one_shard_trims_for_all_and_not_too_often() {
        let heap = Heap::default();
        assert_eq!(heap.may_trim(1000, 4000), Trim::Now);
        assert_eq!(heap.may_trim(1500, 4000), Trim::Done);
        assert_eq!(heap.may_trim(5000, 8000), Trim::Later);
        assert_eq!(heap.may_trim(5000, 4000 + INTERVAL_MS), Trim::Now);
    }

    #[test]
    fn a_large_container_with_an_eighth_of_its_entries_should_shrink() {
        assert!(should_shrink(199, 1_600) && !should_shrink(200, 1_600));
        assert!(
            should_shrink(0, 1_025) && !should_shrink(0, 1_024),
            "a small one keeps its memory"
        );
    }
}
