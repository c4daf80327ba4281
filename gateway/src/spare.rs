//! Memory that tables keep for reuse, and that is freed after a storm: where a table needs no more than a quarter of it.

use std::collections::VecDeque;
use std::hash::Hash;

use hashbrown::HashMap;

/// Entries that a table keeps room for, whatever it has needed.
pub(crate) const SPARE_ENTRIES: usize = 1024;

/// To what a table of this length and capacity is to shrink: no more than a quarter of it is used.
const fn shrunk(len: usize, capacity: usize) -> Option<usize> {
    let needed = if len > SPARE_ENTRIES { len } else { SPARE_ENTRIES };
    if capacity / 4 >= needed { Some(2 * len) } else { None }
}

pub(crate) fn shrink_map<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if let Some(capacity) = shrunk(map.len(), map.capacity()) {
        map.shrink_to(capacity);
    }
}

pub(crate) fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    if let Some(capacity) = shrunk(queue.len(), queue.capacity()) {
        queue.shrink_to(capacity);
    }
}

pub(crate) fn shrink_list<T>(list: &mut Vec<T>) {
    if let Some(capacity) = shrunk(list.len(), list.capacity()) {
        list.shrink_to(capacity);
    }
}
