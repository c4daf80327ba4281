//! How many of something each key has, in fixed memory: a count-min sketch (Cormode and Muthukrishnan, "An Improved Data Stream
//! Summary: The Count-Min Sketch and its Applications", 2005).
//!
//! Each key has one cell in each of [`ROWS`] rows. To add is to increment them, to remove to decrement them, and the count is the
//! lowest of them: the cell that the key shares with fewest others. So it is never too low, and too high only where the key shares
//! *all* of its cells. With `n` keys that have one each and `w` cells in a row, a cell holds `n / w` of others on average, as a Poisson
//! distribution does; a row is too high by `k` or more with its tail probability `p(k)`, and all are with `p(k)^4`. For a million keys and
//! 2^18 cells (4 MiB): too high by 16 or more for 3 keys in 10^20.
//!
//! Threads share it without a lock. Cells are incremented one after the other, so two threads that add to one key at the same
//! time may both be told the higher count.

use std::sync::atomic::{AtomicU32, Ordering};

use super::prefix::Key;

/// Rows.
pub const ROWS: u32 = 4;

/// Counts by key.
#[derive(Debug)]
pub struct CountSketch {
    rows: [Box<[AtomicU32]>; ROWS as usize],
    mask: u32,
}

impl CountSketch {
    /// One with `2^bits` cells in a row: `16 * 2^bits` bytes. `bits`: at most 30.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let cells = 1_u32 << bits.min(30);
        let row = || (0..cells).map(|_| AtomicU32::new(0)).collect();
        Self { rows: std::array::from_fn(|_| row()), mask: cells - 1 }
    }

    fn cells(&self, key: Key) -> impl Iterator<Item = &AtomicU32> {
        (0..ROWS).zip(&self.rows).map(move |(number, row)| &row[key.cell(number, self.mask)])
    }

    /// Adds one. Returns how many there are with it, at least.
    pub fn add(&self, key: Key) -> u32 {
        let counts = self.cells(key).map(|cell| cell.fetch_add(1, Ordering::Relaxed));
        counts.fold(u32::MAX, u32::min).saturating_add(1)
    }

    /// Removes one that was added.
    pub fn remove(&self, key: Key) {
        self.cells(key).for_each(|cell| {
            cell.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// How many there are, at least.
    #[must_use]
    pub fn count(&self, key: Key) -> u32 {
        self.cells(key).map(|cell| cell.load(Ordering::Relaxed)).fold(u32::MAX, u32::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::prefix::{Keys, Prefix, Width};
    use std::net::Ipv4Addr;

    fn key(keys: &Keys, number: u32) -> Key {
        keys.of(Prefix::new(Ipv4Addr::from_bits(number).into(), Width::Host))
    }

    #[test]
    fn a_key_has_what_was_added_and_not_removed() {
        let (keys, sketch) = (Keys::default(), CountSketch::new(10));
        let (one, other) = (key(&keys, 1), key(&keys, 2));
        assert_eq!((sketch.add(one), sketch.add(one), sketch.add(other)), (1, 2, 1));
        sketch.remove(one);
        assert_eq!((sketch.count(one), sketch.count(other)), (1, 1));
        sketch.remove(one);
        sketch.remove(other);
        assert_eq!((sketch.count(one), sketch.count(other)), (0, 0));
    }

    #[test]
    fn among_a_million_keys_no_count_is_low_and_few_are_high() {
        const KEYS: u32 = 1_000_000;
        let (keys, sketch) = (Keys::default(), CountSketch::new(18));
        (0..KEYS).for_each(|number| {
            sketch.add(key(&keys, number));
        });
        let counts: Vec<u32> = (0..KEYS).map(|number| sketch.count(key(&keys, number))).collect();
        assert!(counts.iter().all(|count| *count >= 1));
        // One too many or more: all four cells have another. 1 - e^-3.8 is 0.978, to the fourth 0.91.
        assert_eq!(counts.iter().filter(|count| **count > 16).count(), 0);
        (0..KEYS).for_each(|number| sketch.remove(key(&keys, number)));
        assert!(sketch.rows.iter().flatten().all(|cell| cell.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn threads_lose_no_count() {
        let (keys, sketch) = (Keys::default(), CountSketch::new(4));
        let key = key(&keys, 7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..10_000).for_each(|_| {
                        sketch.add(key);
                    });
                });
            }
        });
        assert_eq!(sketch.count(key), 40_000);
    }
}
