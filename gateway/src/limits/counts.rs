//! How many connections each prefix has, exactly.
//!
//! A prefix has an entry while it has a connection, so there are never more entries than connections, which
//! `limits.connections_max` bounds. The table is in parts with a lock each, which a shard holds for one look.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::prefix::Key;

/// Parts: enough that two of some tens of shards seldom meet at one.
const PARTS: usize = 64;

/// Counts by key.
#[derive(Debug)]
pub struct Counts {
    parts: [Mutex<HashMap<u64, u32>>; PARTS],
}

impl Default for Counts {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Counts {
    #[expect(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    fn part(&self, Key(key): Key) -> MutexGuard<'_, HashMap<u64, u32>> {
        let part = &self.parts[(key % PARTS as u64) as usize];
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, if there are fewer than `max`. Returns whether there were.
    pub fn add(&self, key: Key, max: u32) -> bool {
        let mut part = self.part(key);
        let count = part.entry(key.0).or_insert(0);
        if *count < max {
            *count += 1;
            return true;
        }
        if max == 0 {
            part.remove(&key.0);
        }
        false
    }

    /// Removes one that was added.
    pub fn remove(&self, key: Key) {
        let mut part = self.part(key);
        if let Some(count) = part.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                part.remove(&key.0);
            }
        }
        // After a storm.
        if part.capacity() > 1024 && part.len() < part.capacity() / 8 {
            let len = part.len();
            part.shrink_to(2 * len);
        }
    }

    /// Keys that have one or more.
    #[cfg(test)]
    fn keys(&self) -> usize {
        self.parts.iter().map(|part| part.lock().unwrap().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::limits::prefix::{Keys, Prefix, Width};

    fn key(keys: &Keys, number: u32) -> Key {
        keys.of(Prefix::new(Ipv4Addr::from_bits(number).into(), Width::Host))
    }

    #[test]
    fn a_key_has_what_was_added_and_not_removed() {
        let (keys, counts) = (Keys::default(), Counts::default());
        let (one, other) = (key(&keys, 1), key(&keys, 2));
        assert!(counts.add(one, 2) && counts.add(one, 2) && !counts.add(one, 2));
        assert!(counts.add(other, 1) && !counts.add(other, 1));
        counts.remove(one);
        assert!(counts.add(one, 2) && !counts.add(one, 2));
        counts.remove(one);
        counts.remove(one);
        counts.remove(other);
        assert_eq!(counts.keys(), 0);
        assert!(!counts.add(one, 0));
        assert_eq!(counts.keys(), 0);
    }

    #[test]
    fn among_a_million_keys_none_is_counted_for_another_and_all_memory_comes_back() {
        const KEYS: u32 = 1_000_000;
        let (keys, counts) = (Keys::default(), Counts::default());
        assert!((0..KEYS).all(|number| counts.add(key(&keys, number), 1)));
        assert!((0..KEYS).all(|number| !counts.add(key(&keys, number), 1)));
        (0..KEYS).for_each(|number| counts.remove(key(&keys, number)));
        let capacity: usize = counts.parts.iter().map(|part| part.lock().unwrap().capacity()).sum();
        assert!(counts.keys() == 0 && capacity <= PARTS * 1024, "{capacity}");
    }

    #[test]
    fn threads_lose_no_count() {
        let (keys, counts) = (Keys::default(), Counts::default());
        let key = key(&keys, 7);
        let added = std::thread::scope(|scope| {
            let threads = [(); 4]
                .map(|()| scope.spawn(|| (0..10_000).filter(|_| counts.add(key, 30_000)).count()));
            threads.map(|thread| thread.join().unwrap()).iter().sum::<usize>()
        });
        assert_eq!(added, 30_000);
    }
}
