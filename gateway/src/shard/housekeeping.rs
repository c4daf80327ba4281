//! Housekeeping: what a shard does a few times a second, and whether the memory of a burst is to be freed.

use crate::allocator::{Burst, Heap, Trim};

/// How often figures are exported, idle rooms closed and memory given back, in milliseconds.
const INTERVAL_MS: u64 = 250;

/// A shard's housekeeping. See the [module](self).
#[derive(Debug, Default)]
pub struct Housekeeping {
    next_at_ms: u64,
    burst: Burst,
}

impl Housekeeping {
    /// When it is due next, on the shard's clock.
    #[must_use]
    pub const fn next_at_ms(&self) -> u64 {
        self.next_at_ms
    }

    /// Whether housekeeping is due. If so, the next one is scheduled.
    pub fn start(&mut self, now_ms: u64) -> bool {
        let is_due = now_ms >= self.next_at_ms;
        if is_due {
            self.next_at_ms = now_ms + INTERVAL_MS;
        }
        is_due
    }

    /// Makes it due at this time, if that is earlier.
    pub fn bring_forward(&mut self, at_ms: u64) {
        self.next_at_ms = self.next_at_ms.min(at_ms);
    }

    /// Adds bytes that were freed since the last call. Once a burst is over, returns whether the caller trims
    /// the heap after it has freed its spare memory.
    pub fn trim(&mut self, freed_bytes: usize, heap: &Heap, now_ms: u64) -> Option<Trim> {
        self.burst.add(freed_bytes);
        let over_since_ms = self.burst.over_since_ms(now_ms)?;
        let trim = heap.may_trim(over_since_ms, now_ms);
        if trim == Trim::Later {
            return None;
        }
        self.burst.finish();
        Some(trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_once_and_after_each_interval_unless_it_is_brought_forward() {
        let mut housekeeping = Housekeeping::default();
        assert!(housekeeping.start(7));
        assert!(!housekeeping.start(7 + INTERVAL_MS - 1));
        assert!(housekeeping.start(7 + INTERVAL_MS));
        housekeeping.bring_forward(300);
        housekeeping.bring_forward(1_000);
        assert_eq!(housekeeping.next_at_ms(), 300);
        assert!(housekeeping.start(300));
    }

    #[test]
    fn a_burst_is_trimmed_once() {
        let (mut housekeeping, heap) = (Housekeeping::default(), Heap::default());
        assert_eq!(housekeeping.trim(1 << 20, &heap, 1_000), None, "it is not over yet");
        assert_eq!(housekeeping.trim(0, &heap, 10_000), Some(Trim::Now));
        assert_eq!(housekeeping.trim(0, &heap, 20_000), None);
    }
}
