//! A timing wheel with one deadline for each connection.
//!
//! Two levels of 256 buckets, ticks of 64 ms: 16 s in the first, 70 minutes in the second, and what
//! lies further comes round again. Setting and clearing are O(1); the links live in one array beside
//! the connections, 12 bytes each. After Varghese and Lauck, "Hashed and hierarchical timing wheels"
//! (1987), scheme 7.
//!
//! Deadlines are kept lazily: a sign of life only notes the time, and a deadline that fires too early
//! is set again by whoever looks at it.

/// Milliseconds of a tick, as a power of two: 64 ms. A deadline fires at most this much late.
const TICK_BITS: u32 = 6;
const LEVEL_BITS: u32 = 8;
const BUCKETS: usize = 1 << LEVEL_BITS;
const NONE: u32 = u32::MAX;

/// Deadlines of slots.
#[derive(Debug)]
pub struct Timers {
    links: Vec<Link>,
    /// Heads of the buckets: the first level's, then the second's.
    heads: Box<[u32]>,
    /// The next tick to look at.
    tick: u32,
    set: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    /// The link before; a bucket's head where [`HEAD`] is set; `NONE`: not in a bucket.
    prev: u32,
    tick: u32,
}

/// In `prev`: the rest is a bucket.
const HEAD: u32 = 1 << 31;

impl Timers {
    /// A wheel that starts at time zero.
    #[must_use]
    pub fn new() -> Self {
        let heads = vec![NONE; 2 * BUCKETS].into_boxed_slice();
        Self { links: Vec::new(), heads, tick: 0, set: 0 }
    }

    /// Sets a slot's deadline, instead of the one it had.
    pub fn set(&mut self, slot: u32, deadline_ms: u64) {
        self.clear(slot);
        if self.links.len() <= slot as usize {
            let vacant = Link { next: NONE, prev: NONE, tick: 0 };
            self.links.resize(slot as usize + 1, vacant);
        }
        let tick = u32::try_from((deadline_ms >> TICK_BITS) + 1).unwrap_or(NONE).max(self.tick);
        self.links[slot as usize].tick = tick;
        self.set += 1;
        self.link(slot);
    }

    /// Clears a slot's deadline, if it has one.
    pub fn clear(&mut self, slot: u32) {
        if self.links.get(slot as usize).is_some_and(|link| link.prev != NONE) {
            self.unlink(slot);
            self.set -= 1;
        }
    }

    /// Milliseconds until there may be something to do; `None` when nothing is set.
    #[must_use]
    pub fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        if self.set == 0 {
            return None;
        }
        let first = self.tick as usize % BUCKETS;
        // The first bucket that holds something, but no further than where the second level unfolds:
        // now, where the coming tick begins a round that was not looked at yet.
        let to_unfold = BUCKETS - first;
        let folded = first == 0 && self.heads[self.second_level(self.tick)] != NONE;
        let ticks = (0..to_unfold)
            .find(|ahead| folded || self.heads[first + ahead] != NONE)
            .unwrap_or(to_unfold);
        let at_ms = (u64::from(self.tick) + ticks as u64) << TICK_BITS;
        Some(at_ms.saturating_sub(now_ms))
    }

    /// Hands each slot whose deadline has passed to `expired`, and clears it.
    pub fn expire(&mut self, now_ms: u64, mut expired: impl FnMut(u32)) {
        let now = u32::try_from(now_ms >> TICK_BITS).unwrap_or(NONE);
        if self.set == 0 {
            self.tick = self.tick.max(now);
            return;
        }
        while self.tick <= now {
            if (self.tick as usize).is_multiple_of(BUCKETS) {
                self.unfold();
            }
            let bucket = self.tick as usize % BUCKETS;
            while self.heads[bucket] != NONE {
                let slot = self.heads[bucket];
                self.clear(slot);
                expired(slot);
            }
            self.tick += 1;
        }
    }

    /// The second level's bucket of a tick.
    fn second_level(&self, tick: u32) -> usize {
        BUCKETS + (tick >> LEVEL_BITS) as usize % BUCKETS
    }

    /// Spreads the second level's bucket for the coming round over the first level.
    fn unfold(&mut self) {
        let bucket = self.second_level(self.tick);
        let mut slot = std::mem::replace(&mut self.heads[bucket], NONE);
        while slot != NONE {
            let next = self.links[slot as usize].next;
            self.link(slot);
            slot = next;
        }
    }

    fn link(&mut self, slot: u32) {
        let tick = self.links[slot as usize].tick;
        let round = tick >> LEVEL_BITS;
        let bucket = if round == self.tick >> LEVEL_BITS {
            tick as usize % BUCKETS
        } else {
            // Further than the second level reaches: it waits in the last bucket and goes round.
            let ahead = (round - (self.tick >> LEVEL_BITS)).min((1 << LEVEL_BITS) - 1);
            BUCKETS + ((self.tick >> LEVEL_BITS) + ahead) as usize % BUCKETS
        };
        let head = self.heads[bucket];
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        let link = &mut self.links[slot as usize];
        link.next = head;
        link.prev = HEAD | u32::try_from(bucket).expect("512 buckets");
        self.heads[bucket] = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let Link { next, prev, .. } = self.links[slot as usize];
        if prev & HEAD == 0 {
            self.links[prev as usize].next = next;
        } else {
            self.heads[(prev & !HEAD) as usize] = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        self.links[slot as usize].prev = NONE;
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn expired(timers: &mut Timers, now_ms: u64) -> Vec<u32> {
        let mut slots = Vec::new();
        timers.expire(now_ms, |slot| slots.push(slot));
        slots.sort_unstable();
        slots
    }

    #[test]
    fn deadlines_fire_late_by_a_tick_at_most_and_never_early() {
        for deadline in [0, 1, 63, 64, 10_000, 16_383, 16_384, 75_000, 5_000_000, 50_000_000] {
            let mut timers = Timers::new();
            timers.set(3, deadline);
            assert!(expired(&mut timers, deadline.saturating_sub(1)).is_empty());
            assert_eq!(expired(&mut timers, deadline + 64), [3], "{deadline}");
            assert_eq!(timers.next_in_ms(deadline), None);
        }
    }

    proptest! {
        #[test]
        fn a_wheel_is_a_map_of_deadlines(
            steps in prop::collection::vec((0_u32..20, 0_u64..100_000, 0_u64..3_000), 1..200),
        ) {
            let mut timers = Timers::new();
            let mut model = HashMap::new();
            let mut now = 0;
            for (slot, delay, pass) in steps {
                if delay % 5 == 0 {
                    timers.clear(slot);
                    model.remove(&slot);
                } else {
                    timers.set(slot, now + delay);
                    model.insert(slot, now + delay);
                }
                // Waiting as long as the wheel says misses nothing.
                let wait = timers.next_in_ms(now);
                prop_assert_eq!(wait.is_none(), model.is_empty());
                if let (Some(wait), Some(next)) = (wait, model.values().min()) {
                    prop_assert!(now + wait <= next + 64);
                }
                now += pass;
                for slot in expired(&mut timers, now) {
                    let deadline = model.remove(&slot);
                    prop_assert!(deadline.is_some_and(|deadline| deadline < now));
                }
                prop_assert!(model.values().all(|deadline| deadline + 64 > now));
            }
        }
    }
}
