//! The newest push of each type to the user of a slow connection, where `session.slow_pushes` is `latest`.
//!
//! They wait beside the outbox, so that a newer one can take the place of an older one. While some wait, a send of the connection
//! is under way or due. When one is done, they go into the outbox, oldest first, as far as it has room: so they make it no
//! longer than pushes that find it short, and no push overtakes an older one. Only a connection with such pushes has an entry.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// Types of pushes that wait for one connection, at most.
const TYPES_MAX: usize = 16;

/// What waits, by slot. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct LatestPushes {
    by_slot: HashMap<u32, Waiting>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Oldest first; no two of the same type.
    frames: VecDeque<(i32, Bytes)>,
    bytes: usize,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It waits.
    Added,
    /// It waits in the place of an older one of its type, which is dropped.
    Replaced,
    /// It is dropped: too many types or bytes wait.
    Dropped,
}

impl LatestPushes {
    /// Bytes that wait, of all connections.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits for any connection.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Whether something waits for a connection.
    #[inline]
    pub(super) fn has(&self, slot: u32) -> bool {
        !self.is_empty() && self.by_slot.contains_key(&slot)
    }

    /// Keeps a push, if at most `bytes_max` wait for the connection then, or this one alone.
    pub(super) fn keep(&mut self, slot: u32, kind: i32, frame: &Bytes, bytes_max: usize) -> Kept {
        let waiting = self.by_slot.entry(slot).or_default();
        let older = waiting.frames.iter().position(|&(other, _)| other == kind);
        let older_bytes = older.map_or(0, |index| waiting.frames[index].1.len());
        let has_place = older.is_some() || waiting.frames.len() < TYPES_MAX;
        let others = waiting.bytes - older_bytes;
        if !has_place || others > 0 && others + frame.len() > bytes_max {
            return Kept::Dropped;
        }
        if let Some(index) = older {
            waiting.frames.remove(index);
        }
        waiting.frames.push_back((kind, frame.clone()));
        waiting.bytes = others + frame.len();
        self.bytes = self.bytes - older_bytes + frame.len();
        if older.is_some() { Kept::Replaced } else { Kept::Added }
    }

    /// Takes the oldest push that waits for a connection.
    pub(super) fn take_oldest(&mut self, slot: u32) -> Option<Bytes> {
        let waiting = self.by_slot.get_mut(&slot)?;
        let (_, frame) = waiting.frames.pop_front()?;
        waiting.bytes -= frame.len();
        self.bytes -= frame.len();
        if waiting.frames.is_empty() {
            self.remove(slot);
        }
        Some(frame)
    }

    /// Drops what waits for a connection. Returns how many pushes that was.
    pub(super) fn remove(&mut self, slot: u32) -> usize {
        let Some(waiting) = self.by_slot.remove(&slot) else { return 0 };
        self.bytes -= waiting.bytes;
        if self.by_slot.is_empty() {
            self.by_slot = HashMap::new();
        }
        waiting.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn the_newest_of_each_type_waits_in_order() {
        let mut latest = LatestPushes::default();
        for (kind, text, kept) in [
            (5, "a", Kept::Added),
            (6, "bb", Kept::Added),
            (5, "ccc", Kept::Replaced),
            (7, "too long", Kept::Dropped),
            (6, "also long", Kept::Dropped),
        ] {
            assert_eq!(latest.keep(3, kind, &frame(text), 5), kept, "{text}");
        }
        // A long one waits alone: it is the newest of its type.
        assert_eq!(latest.keep(4, 5, &frame("too long"), 5), Kept::Added);
        assert_eq!(latest.keep(4, 5, &frame("also long"), 5), Kept::Replaced);
        assert_eq!(latest.keep(4, 6, &frame("x"), 5), Kept::Dropped);
        assert_eq!((latest.bytes(), latest.has(4), latest.has(5)), (14, true, false));
        assert_eq!(latest.remove(4), 1);
        assert_eq!((latest.take_oldest(4), latest.remove(4)), (None, 0));
        let taken: Vec<_> = std::iter::from_fn(|| latest.take_oldest(3)).collect();
        assert_eq!(taken, ["bb", "ccc"]);
        assert!(latest.is_empty() && latest.bytes() == 0);
    }

    #[test]
    fn the_types_of_a_connection_are_bounded() {
        let mut latest = LatestPushes::default();
        for kind in 1..=20 {
            let kept = if kind <= 16 { Kept::Added } else { Kept::Dropped };
            assert_eq!(latest.keep(3, kind, &frame("x"), 100), kept);
        }
        assert_eq!(latest.keep(3, 7, &frame("y"), 100), Kept::Replaced);
    }
}
