//! A value for each connection that has one, found by the connection's slot.
//!
//! A hash map of a million small values costs about as much as the values: its table is between half and seven eighths
//! full, and each entry repeats the whole id. Slots are dense, so here the values stand in chunks by slot. A chunk exists while
//! one of its slots has a value: connections without one cost nothing, unless they are among others in a chunk.

use crate::driver::ConnId;

/// Slots of one chunk.
const SLOTS: usize = 64;

#[derive(Debug)]
struct Chunk<T> {
    /// One bit for each slot that has a value.
    present: u64,
    /// Whose value it is. A slot is used again, by a connection of another generation.
    generations: [u32; SLOTS],
    values: [T; SLOTS],
}

/// Values of connections. `T::default()` stands where there is none.
#[derive(Debug)]
pub(crate) struct Table<T>(Vec<Option<Box<Chunk<T>>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

const fn place(conn: ConnId) -> (usize, usize) {
    (conn.slot as usize / SLOTS, conn.slot as usize % SLOTS)
}

impl<T: Default> Table<T> {
    /// Sets a connection's value. One of an older connection on the slot is forgotten.
    pub(crate) fn insert(&mut self, conn: ConnId, value: T) {
        let (index, at) = place(conn);
        if index >= self.0.len() {
            self.0.resize_with(index + 1, || None);
        }
        let chunk = self.0[index].get_or_insert_with(|| {
            let values = std::array::from_fn(|_| T::default());
            Box::new(Chunk { present: 0, generations: [0; SLOTS], values })
        });
        chunk.present |= 1 << at;
        chunk.generations[at] = conn.generation;
        chunk.values[at] = value;
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        let (index, at) = place(conn);
        let chunk = self.0.get_mut(index)?.as_mut()?;
        let is_there = chunk.present >> at & 1 == 1 && chunk.generations[at] == conn.generation;
        is_there.then(|| &mut chunk.values[at])
    }

    pub(crate) fn contains(&self, conn: ConnId) -> bool {
        let (index, at) = place(conn);
        self.0.get(index).and_then(Option::as_ref).is_some_and(|chunk| {
            chunk.present >> at & 1 == 1 && chunk.generations[at] == conn.generation
        })
    }

    /// Takes a connection's value. The memory of a chunk without values is given back.
    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<T> {
        let value = std::mem::take(self.get_mut(conn)?);
        let (index, at) = place(conn);
        if let Some(chunk) = &mut self.0[index] {
            chunk.present &= !(1 << at);
            if chunk.present == 0 {
                self.0[index] = None;
            }
        }
        Some(value)
    }

    /// Frees the places of chunks behind the last one.
    pub(crate) fn free_spare_memory(&mut self) {
        let used = self.0.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.0.truncate(used);
        crate::spare::shrink_list(&mut self.0);
    }

    /// Whether no memory was ever needed.
    #[cfg(test)]
    pub(crate) const fn is_unused(&self) -> bool {
        self.0.capacity() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn conn(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    #[test]
    fn a_value_is_its_connections_alone() {
        let mut table = Table::default();
        assert_eq!(table.get_mut(conn(5, 0)), None::<&mut u32>);
        for slot in [0, 5, 63, 64, 1000] {
            table.insert(conn(slot, 1), slot + 1);
        }
        for slot in [0, 5, 63, 64, 1000] {
            assert_eq!(table.get_mut(conn(slot, 1)), Some(&mut (slot + 1)));
            assert!(table.contains(conn(slot, 1)));
            // An older connection on the slot, and a later one.
            for generation in [0, 2] {
                assert!(!table.contains(conn(slot, generation)));
                assert_eq!(table.get_mut(conn(slot, generation)), None);
                assert_eq!(table.remove(conn(slot, generation)), None);
            }
        }
        for slot in [1, 62, 65, 999, 1001, 1_000_000] {
            assert!(!table.contains(conn(slot, 1)) && table.remove(conn(slot, 1)).is_none());
        }
        assert_eq!(table.remove(conn(5, 1)), Some(6));
        assert_eq!(table.remove(conn(5, 1)), None);
        table.insert(conn(5, 2), 7);
        assert_eq!(table.get_mut(conn(5, 1)), None);
        assert_eq!(table.remove(conn(5, 2)), Some(7));
    }

    #[test]
    fn a_chunk_exists_while_it_has_a_value() {
        let mut table = Table::default();
        let chunks = |table: &Table<u8>| table.0.iter().flatten().count();
        (0..200).for_each(|slot| table.insert(conn(slot, 0), 1));
        assert_eq!(chunks(&table), 4);
        (0..199).for_each(|slot| assert_eq!(table.remove(conn(slot, 0)), Some(1)));
        assert_eq!(chunks(&table), 1);
        assert_eq!(table.remove(conn(199, 0)), Some(1));
        assert_eq!(chunks(&table), 0);
    }
}
