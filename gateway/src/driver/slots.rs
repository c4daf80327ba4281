//! A table with generations: what a driver knows of each of its connections.
//!
//! Each driver has one. A value is found only by the whole [`ConnId`], so a late command never reaches the
//! connection that has the slot by then.

use super::{ConnId, GENERATIONS};

/// Values by [`ConnId`]. A freed slot is reused first, so the table stays dense.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Entry<T>>,
    /// Slots that are free.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, value: T) -> ConnId {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return ConnId { slot, generation: entry.generation };
        }
        let slot = u32::try_from(self.entries.len()).expect("fewer connections than 2^32");
        self.entries.push(Entry { generation: 0, value: Some(value) });
        ConnId { slot, generation: 0 }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        let entry = self.entries.get_mut(conn.slot as usize)?;
        if entry.generation == conn.generation { entry.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<T> {
        let entry = self.entries.get_mut(conn.slot as usize)?;
        if entry.generation != conn.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) % GENERATIONS;
        self.free.push(conn.slot);
        Some(value)
    }

    /// Every connection, in the order of their slots.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnId> {
        (0_u32..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(slot, entry)| ConnId { slot, generation: entry.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_finds_nothing() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(second.slot, first.slot);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut 'b'));
        assert_eq!(slots.ids().collect::<Vec<_>>(), [second]);
    }
}
