//! A timing wheel with one deadline for each connection.
//!
//! The wheel has nine levels of 256 buckets. A bucket of the first level is one tick of 64 ms, and a bucket of
//! each further level is eight times as long. A deadline goes to the finest level that reaches it, and stays
//! there. So a deadline up to 16 s ahead is exact to the tick, one up to 131 s to half a second, and any to
//! 1/31 of how far ahead it was set. A slot's bucket is its whole deadline, and nothing moves from level to
//! level. Setting and clearing are O(1). The links are in one array, 8 bytes a slot. After Varghese and Lauck,
//! "Hashed and hierarchical timing wheels" (1987), scheme 7, the variant with rounding.
//!
//! Deadlines are lazy: a frame from the client only notes the time. When a deadline fires too early, the caller
//! sets it again.

/// Milliseconds of a tick, as a power of two: 64 ms.
const TICK_BITS: u32 = 6;
/// Ticks of a bucket are a power of two as well: 3 more for each level.
const STEP_BITS: u32 = 3;
/// So many levels reach over all ticks: 256 * 8^8 = 2^32.
const LEVELS: u32 = 9;
const BUCKETS: u32 = 256;
/// Words that have a bit for each bucket of a level.
const WORDS: u32 = BUCKETS / u64::BITS;
/// The last tick, after eight years. Deadlines beyond it fire at it.
const TICK_MAX: u32 = (BUCKETS - 1) << (STEP_BITS * (LEVELS - 1));
const NONE: u32 = u32::MAX;

/// Deadlines of slots.
#[derive(Debug)]
pub struct Timers {
    links: Vec<Link>,
    levels: Box<[Level; LEVELS as usize]>,
    /// The next tick to expire. Buckets that end before it are empty.
    tick: u32,
    /// Slots that have a deadline.
    armed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    /// The first slot of each bucket.
    heads: [u32; BUCKETS as usize],
    /// A bit for each bucket that is not empty.
    occupied: [u64; WORDS as usize],
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    /// The link before, or the bucket where [`HEAD`] is set. `NONE`: not in a bucket.
    prev: u32,
}

const VACANT: Link = Link { next: NONE, prev: NONE };

/// Set in `prev`: the other bits are a bucket's number, counted through all levels.
const HEAD: u32 = 1 << 31;

impl Timers {
    /// A wheel that starts at time zero.
    #[must_use]
    pub fn new() -> Self {
        let levels = Box::new([Level::EMPTY; LEVELS as usize]);
        Self { links: Vec::new(), levels, tick: 0, armed: 0 }
    }

    /// Sets a slot's deadline in place of an earlier one. It never fires early, and fires late by at most one tick or
    /// 1/31 of the time until then.
    pub fn set(&mut self, slot: u32, deadline_ms: u64) {
        self.clear(slot);
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, VACANT);
        }
        let tick = u32::try_from((deadline_ms >> TICK_BITS) + 1).unwrap_or(TICK_MAX);
        let tick = tick.min(TICK_MAX).max(self.tick);
        self.armed += 1;
        self.link(slot, tick);
    }

    /// Clears a slot's deadline, if it has one.
    pub fn clear(&mut self, slot: u32) {
        if self.links.get(slot as usize).is_some_and(|link| link.prev != NONE) {
            self.unlink(slot);
            self.armed -= 1;
        }
    }

    /// Milliseconds until a deadline may fire; `None` when none is set.
    #[must_use]
    pub fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let ticks = (0_u32..).zip(self.levels.iter()).filter_map(|(number, level)| {
            let first = bucket_of(self.tick, number);
            let bucket = u64::from(first + level.first_occupied(first)?);
            Some(bucket << (STEP_BITS * number))
        });
        let at_ms = ticks.min()? << TICK_BITS;
        Some(at_ms.saturating_sub(now_ms))
    }

    /// Calls `on_expired` with each slot whose deadline has passed, at most `slots_max` of them, and clears it.
    /// Returns whether there may be more.
    pub fn expire(
        &mut self,
        now_ms: u64,
        slots_max: usize,
        mut on_expired: impl FnMut(u32),
    ) -> bool {
        let now = u32::try_from(now_ms >> TICK_BITS).unwrap_or(NONE);
        if self.armed == 0 {
            self.tick = self.tick.max(now);
            return false;
        }
        let mut left = slots_max;
        while self.tick <= now {
            // The levels that have a bucket which ends with this tick.
            let levels_ending = (self.tick.trailing_zeros() / STEP_BITS + 1).min(LEVELS);
            for number in 0..levels_ending {
                let bucket = (self.tick >> (STEP_BITS * number)) % BUCKETS;
                loop {
                    let slot = self.levels[number as usize].heads[bucket as usize];
                    if slot == NONE {
                        break;
                    }
                    if left == 0 {
                        return true;
                    }
                    left -= 1;
                    self.clear(slot);
                    on_expired(slot);
                }
            }
            self.tick += 1;
        }
        false
    }

    /// Puts a slot into the bucket that ends with `tick`, or into the first within reach that ends after it.
    fn link(&mut self, slot: u32, tick: u32) {
        let reaches =
            |&number: &u32| bucket_of(tick, number) - bucket_of(self.tick, number) < BUCKETS;
        let number = (0..LEVELS).find(reaches).expect("the last level reaches over all ticks");
        let bucket = bucket_of(tick, number) % BUCKETS;
        let level = &mut self.levels[number as usize];
        let head = std::mem::replace(&mut level.heads[bucket as usize], slot);
        level.occupied[bucket as usize / 64] |= 1 << (bucket % 64);
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        self.links[slot as usize] = Link { next: head, prev: HEAD | (number * BUCKETS + bucket) };
    }

    fn unlink(&mut self, slot: u32) {
        let Link { next, prev } = std::mem::replace(&mut self.links[slot as usize], VACANT);
        if prev & HEAD == 0 {
            self.links[prev as usize].next = next;
        } else {
            let number = prev & !HEAD;
            let (level, bucket) = (&mut self.levels[(number / BUCKETS) as usize], number % BUCKETS);
            level.heads[bucket as usize] = next;
            if next == NONE {
                level.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
            }
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
    }
}

impl Level {
    const EMPTY: Self = Self { heads: [NONE; BUCKETS as usize], occupied: [0; WORDS as usize] };

    /// The distance from the bucket numbered `first` to the first bucket that is not empty.
    fn first_occupied(&self, first: u32) -> Option<u32> {
        let first = first % BUCKETS;
        // The word that holds the first bucket comes twice: its end at the start, the rest at the end.
        (0..=WORDS).find_map(|step| {
            let word = (first / 64 + step) % WORDS;
            let end = u64::MAX << (first % 64);
            // The bits of `end` are known to be zero when the word comes the second time.
            let wanted = if step == 0 { end } else { u64::MAX };
            let occupied = self.occupied[word as usize] & wanted;
            let bucket = word * 64 + occupied.trailing_zeros();
            (occupied != 0).then(|| (bucket + BUCKETS - first) % BUCKETS)
        })
    }
}

/// The number of the first bucket of a level that ends with this tick or after it. Numbers do not wrap: the
/// bucket is stored at its number modulo [`BUCKETS`].
fn bucket_of(tick: u32, level: u32) -> u32 {
    tick.div_ceil(1 << (STEP_BITS * level))
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
        // Two at a time, as when there are many.
        while timers.expire(now_ms, 2, |slot| slots.push(slot)) {}
        slots.sort_unstable();
        slots
    }

    #[test]
    fn no_more_expire_at_once_than_may() {
        let mut timers = Timers::new();
        (0..5).for_each(|slot| timers.set(slot, 1_000));
        let mut counts = Vec::new();
        loop {
            let mut count = 0;
            let more = timers.expire(2_000, 2, |_| count += 1);
            counts.push(count);
            if !more {
                break;
            }
            assert_eq!(timers.next_in_ms(2_000), Some(0));
        }
        assert_eq!(counts, [2, 2, 1]);
        assert_eq!(timers.next_in_ms(2_000), None);
    }

    #[test]
    fn a_wheel_without_a_deadline_is_not_walked_through() {
        let mut timers = Timers::new();
        timers.set(3, 1_000);
        timers.set(4, 1_000);
        timers.clear(3);
        timers.clear(3);
        assert_eq!(expired(&mut timers, 2_000), [4]);
        assert_eq!(timers.armed, 0);
        // Hundreds of years of ticks would take minutes.
        assert!(!timers.expire(u64::MAX, 1, |_| ()));
        assert_eq!(timers.tick, NONE);
    }

    /// A deadline set so far ahead fires by then: its tick, and what the wheel rounds it up by.
    fn latest(deadline_ms: u64, ahead_ms: u64) -> u64 {
        deadline_ms + 64 + ahead_ms / 31
    }

    #[test]
    fn a_link_is_small() {
        assert_eq!(size_of::<Link>(), 8);
    }

    #[test]
    fn deadlines_fire_hardly_late_and_never_early() {
        for start in [0, 1_000, 16_383, 123_456_789] {
            for ahead in [0, 1, 63, 64, 10_000, 16_383, 16_384, 75_000, 5_000_000, 50_000_000] {
                let mut timers = Timers::new();
                assert!(expired(&mut timers, start).is_empty());
                let deadline = start + ahead;
                timers.set(3, deadline);
                assert!(expired(&mut timers, deadline.saturating_sub(1)).is_empty());
                assert_eq!(expired(&mut timers, latest(deadline, ahead)), [3], "{start} + {ahead}");
                assert_eq!(timers.next_in_ms(deadline), None);
            }
        }
    }

    #[test]
    fn what_is_sixteen_seconds_ahead_fires_to_the_tick() {
        let mut timers = Timers::new();
        assert!(expired(&mut timers, 1_000).is_empty());
        timers.set(3, 17_000);
        assert_eq!(timers.next_in_ms(1_000), Some(16_024));
        assert!(expired(&mut timers, 17_000).is_empty());
        assert_eq!(expired(&mut timers, 17_064), [3]);
    }

    proptest! {
        #[test]
        fn a_wheel_is_a_map_of_deadlines(
            steps in prop::collection::vec((0_u32..20, 0_u64..2_000_000, 0_u64..30_000), 1..200),
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
                    model.insert(slot, (now + delay, latest(now + delay, delay)));
                }
                // Waiting as long as the wheel says misses nothing.
                let wait = timers.next_in_ms(now);
                prop_assert_eq!(wait.is_none(), model.is_empty());
                if let Some(wait) = wait {
                    prop_assert!(model.values().all(|&(_, latest)| now + wait <= latest));
                }
                now += pass;
                for slot in expired(&mut timers, now) {
                    let deadline = model.remove(&slot);
                    prop_assert!(deadline.is_some_and(|(deadline, _)| deadline < now));
                }
                prop_assert!(model.values().all(|&(_, latest)| latest > now));
            }
        }
    }
}
