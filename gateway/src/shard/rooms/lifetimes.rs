//! Which pushes of one log have a time to live, and when it is over.
//!
//! Only a log with such pushes has this. The log asks it for what is over, and empties those frames. An empty frame keeps
//! its offset, so a member that reads past it misses one push, and no later offset changes.

use std::collections::{BTreeSet, VecDeque};

/// Memory of a push with a time to live beyond its frame: its entries here.
pub const LIFETIME_BYTES: usize = 96;

/// The time to live of a push that has none: it never ends.
pub const NEVER_MS: u64 = u64::MAX;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Lifetimes {
    /// Ascending by offset. The same pushes as in `by_end`, and those whose time is over.
    by_offset: VecDeque<Lifetime>,
    /// When each ends, on the shard's clock, and its offset.
    by_end: BTreeSet<(u64, u64)>,
    /// The highest offset of a push whose time is over; 0 if there is none.
    last_ended: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lifetime {
    offset: u64,
    ends_ms: u64,
    /// How many members the push was counted for when it was appended.
    counted: usize,
    has_ended: bool,
}

impl Lifetimes {
    /// Adds a push behind all others. `counted`: the members that it was counted for.
    pub fn add(&mut self, offset: u64, ends_ms: u64, counted: usize) {
        debug_assert!(self.by_offset.back().is_none_or(|last| last.offset < offset), "ascending");
        self.by_offset.push_back(Lifetime { offset, ends_ms, counted, has_ended: false });
        self.by_end.insert((ends_ms, offset));
    }

    /// When the next one ends.
    #[must_use]
    pub fn next_end_ms(&self) -> Option<u64> {
        self.by_end.first().map(|&(ends_ms, _)| ends_ms)
    }

    /// The offset of a push whose time is over since the last call, if there is one.
    pub fn take_ended(&mut self, now_ms: u64) -> Option<u64> {
        let &(ends_ms, offset) = self.by_end.first()?;
        if ends_ms > now_ms {
            return None;
        }
        self.by_end.pop_first();
        self.last_ended = self.last_ended.max(offset);
        if let Ok(index) = self.by_offset.binary_search_by_key(&offset, |entry| entry.offset) {
            self.by_offset[index].has_ended = true;
        }
        Some(offset)
    }

    /// Whether the time of some push from this offset on is over.
    #[must_use]
    pub const fn has_ended_from(&self, from: u64) -> bool {
        self.last_ended >= from && self.last_ended > 0
    }

    /// The pushes from one offset on, before another, whose time is over, and how many members each was counted for.
    pub fn ended_between(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, usize)> {
        let first = self.by_offset.partition_point(|entry| entry.offset < from);
        let range = self.by_offset.range(first..).take_while(move |entry| entry.offset < to);
        range.filter(|entry| entry.has_ended).map(|entry| (entry.offset, entry.counted))
    }

    /// The log has dropped the pushes before this offset. Returns how many of them had a time to live.
    pub fn forget_before(&mut self, first: u64) -> usize {
        let count = self.by_offset.partition_point(|entry| entry.offset < first);
        for Lifetime { offset, ends_ms, .. } in self.by_offset.drain(..count) {
            self.by_end.remove(&(ends_ms, offset));
        }
        count
    }

    /// The log has lost the pushes from this offset on. Returns how many of them had a time to live.
    pub fn forget_from(&mut self, end: u64) -> usize {
        let kept = self.by_offset.partition_point(|entry| entry.offset < end);
        let lost = self.by_offset.split_off(kept);
        for Lifetime { offset, ends_ms, .. } in &lost {
            self.by_end.remove(&(*ends_ms, *offset));
        }
        self.last_ended = self.last_ended.min(end.saturating_sub(1));
        lost.len()
    }

    /// Whether no push of the log has a time to live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_offset.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(lifetimes: &mut Lifetimes, now_ms: u64) -> Vec<u64> {
        std::iter::from_fn(|| lifetimes.take_ended(now_ms)).collect()
    }

    #[test]
    fn pushes_end_in_the_order_of_their_times_and_keep_their_places() {
        let mut lifetimes = Lifetimes::default();
        for (offset, ends_ms) in [(10, 300), (12, 100), (13, 200), (15, 100)] {
            lifetimes.add(offset, ends_ms, 2);
        }
        assert_eq!(lifetimes.next_end_ms(), Some(100));
        assert!(ended(&mut lifetimes, 99).is_empty());
        assert!(!lifetimes.has_ended_from(0));
        assert_eq!(ended(&mut lifetimes, 200), [12, 15, 13]);
        assert_eq!(lifetimes.next_end_ms(), Some(300));
        assert!(lifetimes.has_ended_from(15) && !lifetimes.has_ended_from(16));
        let between = |from, to| lifetimes.ended_between(from, to).collect::<Vec<_>>();
        assert_eq!(between(0, 100), [(12, 2), (13, 2), (15, 2)]);
        assert_eq!(between(13, 15), [(13, 2)]);
        assert!(between(10, 12).is_empty());
    }

    #[test]
    fn what_the_log_drops_is_forgotten_whether_it_has_ended_or_not() {
        let mut lifetimes = Lifetimes::default();
        for (offset, ends_ms) in [(10, 300), (12, 100), (13, 200)] {
            lifetimes.add(offset, ends_ms, 0);
        }
        assert_eq!(ended(&mut lifetimes, 100), [12]);
        assert_eq!(lifetimes.forget_before(10), 0);
        assert_eq!(lifetimes.forget_before(13), 2);
        assert_eq!((lifetimes.next_end_ms(), lifetimes.is_empty()), (Some(200), false));
        assert_eq!(lifetimes.forget_before(14), 1);
        assert_eq!((lifetimes.next_end_ms(), lifetimes.is_empty()), (None, true));
    }
}
