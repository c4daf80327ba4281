//! What is free goes back to the kernel once a burst is over.
//!
//! glibc's allocator gives back what is free at the end of its heap, and one small block that lives there
//! keeps megabytes. A shard's [`Burst`] tells when it is worth asking for the rest; [`Heap`] asks, for all
//! shards.

use std::sync::atomic::{AtomicU64, Ordering};

/// Messages of up to so many bytes live in memory that is kept for them: they don't make a burst.
pub const SHORT_BYTES: usize = 1024;

/// Bytes of longer messages within one look that make a burst.
const BURST_BYTES_MIN: usize = 256 * 1024;

/// Quiet for so long, and it is over. Traffic that comes and goes faster stays warm.
const QUIET_MS: u64 = 2000;

/// The least time between two times that memory is given back: it takes each free page from all, and the
/// next burst has to fetch it again.
const INTERVAL_MS: u64 = 30_000;

/// Watches how many bytes of long messages there are.
#[derive(Debug, Default)]
pub struct Burst {
    /// Since the last look.
    bytes: usize,
    /// When one was last seen, until what it left has been given back.
    seen_at_ms: Option<u64>,
}

impl Burst {
    /// A message was received or sent.
    #[inline]
    pub const fn add(&mut self, bytes: usize) {
        if bytes > SHORT_BYTES {
            self.bytes += bytes;
        }
    }

    /// When there was a burst that is over, and has not been dealt with. To be asked several times a
    /// second.
    pub fn over_since_ms(&mut self, now_ms: u64) -> Option<u64> {
        if std::mem::take(&mut self.bytes) >= BURST_BYTES_MIN {
            self.seen_at_ms = Some(now_ms);
        }
        self.seen_at_ms.filter(|&seen_at_ms| now_ms - seen_at_ms >= QUIET_MS)
    }

    /// Nothing is left of it.
    pub const fn dealt_with(&mut self) {
        self.seen_at_ms = None;
    }
}

/// Whose turn it is to give memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Who asks.
    Mine,
    /// Another shard has done it since.
    Done,
    /// It is too soon.
    Later,
}

/// The process's heap.
#[derive(Debug, Default)]
pub struct Heap {
    /// When memory was last given back, on the shards' clock; 0: never.
    given_back_at_ms: AtomicU64,
}

impl Heap {
    /// Asks for a shard whose burst has been over since `over_since_ms`. One whose turn it is
    /// [gives back](Self::give_back).
    pub fn turn(&self, over_since_ms: u64, now_ms: u64) -> Turn {
        let last_ms = self.given_back_at_ms.load(Ordering::Relaxed);
        if last_ms > over_since_ms {
            return Turn::Done;
        }
        if last_ms > 0 && now_ms < last_ms + INTERVAL_MS {
            return Turn::Later;
        }
        let (at, relaxed) = (&self.given_back_at_ms, Ordering::Relaxed);
        match at.compare_exchange(last_ms, now_ms, relaxed, relaxed) {
            Ok(_) => Turn::Mine,
            Err(_) => Turn::Done,
        }
    }

    /// Gives whole free pages back to the kernel, all shards': some milliseconds for megabytes. Without
    /// glibc there is nobody to ask.
    pub fn give_back(&self) {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        #[expect(unsafe_code, reason = "the C library has no other door, and keeps megabytes")]
        // SAFETY: malloc_trim(3) takes the allocator's own locks, and touches nothing that is in use.
        unsafe {
            libc::malloc_trim(0);
        }
    }
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
        burst.dealt_with();
        assert_eq!(burst.over_since_ms(now_ms + 2), None);
    }

    #[test]
    fn short_messages_are_no_burst() {
        let mut burst = Burst::default();
        for _ in 0..BURST_BYTES_MIN {
            burst.add(SHORT_BYTES);
        }
        assert_eq!((burst.over_since_ms(1), burst.over_since_ms(9999)), (None, None));
    }

    #[test]
    fn one_gives_back_for_all_and_not_too_often() {
        let heap = Heap::default();
        assert_eq!(heap.turn(1000, 4000), Turn::Mine);
        assert_eq!(heap.turn(1500, 4000), Turn::Done);
        assert_eq!(heap.turn(5000, 8000), Turn::Later);
        assert_eq!(heap.turn(5000, 4000 + INTERVAL_MS), Turn::Mine);
    }
}
