//! The user directory: the addresses of each user's sessions.
//!
//! Most users have one session. Their entries stand in a dense array: user and address, 16 bytes. A hash table
//! holds the entries' numbers, 5 bytes each. A hash table's capacity is a power of two and may be 2.3 times
//! what it needs, so the large part of an entry stays out of it.

use std::hash::BuildHasher as _;
use std::mem;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use tidegate_backend::UserId;

use crate::allocator::should_shrink;
use crate::session_id::SessionAddr;

/// Session addresses by user, for the users whose home is this shard.
#[derive(Debug, Default)]
pub struct Directory {
    /// Users with one session. None of them is in `several`.
    single: Singles,
    /// Users with two sessions at least, oldest first.
    several: HashMap<UserId, Vec<SessionAddr>>,
}

/// Users with one session each.
#[derive(Debug, Default)]
struct Singles {
    entries: Vec<(UserId, SessionAddr)>,
    /// Numbers of entries, by user.
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

/// The shard that keeps a user's entry.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the high half of the product is below shards")]
pub fn home(user_id: UserId, shards: u16) -> u16 {
    let mixed = user_id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * u128::from(shards)) >> 64) as u16
}

impl Directory {
    /// Users with at least one session.
    #[must_use]
    pub fn len(&self) -> usize {
        self.single.len() + self.several.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A user's sessions, oldest first.
    #[must_use]
    pub fn sessions(&self, user_id: UserId) -> &[SessionAddr] {
        match self.single.get(user_id) {
            Some(only) => std::slice::from_ref(only),
            None => self.several.get(&user_id).map_or(&[], Vec::as_slice),
        }
    }

    /// Adds a session. If that makes more than `sessions_max`, removes the oldest and returns it.
    #[must_use]
    pub fn register(
        &mut self,
        user_id: UserId,
        addr: SessionAddr,
        sessions_max: usize,
    ) -> Option<SessionAddr> {
        if let Some(addrs) = self.several.get_mut(&user_id) {
            addrs.push(addr);
            return (addrs.len() > sessions_max).then(|| addrs.remove(0));
        }
        match self.single.insert(user_id, addr) {
            Some(only) if sessions_max > 1 => {
                self.single.remove(user_id);
                self.several.insert(user_id, vec![only, addr]);
                None
            }
            before => before,
        }
    }

    /// Removes a session. Does nothing if it was removed before.
    pub fn deregister(&mut self, user_id: UserId, addr: SessionAddr) {
        if let Some(only) = self.single.get(user_id) {
            if *only == addr {
                self.single.remove(user_id);
                self.single.shrink();
            }
        } else if let Some(addrs) = self.several.get_mut(&user_id) {
            addrs.retain(|known| *known != addr);
            if let [only] = addrs[..] {
                self.several.remove(&user_id);
                self.shrink_several();
                self.single.insert(user_id, only);
            }
        }
    }

    /// Removes all of a user's sessions.
    pub fn take(&mut self, user_id: UserId) -> Vec<SessionAddr> {
        let addrs = match self.single.remove(user_id) {
            Some(only) => vec![only],
            None => self.several.remove(&user_id).unwrap_or_default(),
        };
        self.single.shrink();
        self.shrink_several();
        addrs
    }

    fn shrink_several(&mut self) {
        if should_shrink(self.several.len(), self.several.capacity()) {
            self.several.shrink_to(2 * self.several.len());
        }
    }
}

impl Singles {
    const fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, user_id: UserId) -> Option<&SessionAddr> {
        let hash = self.hasher.hash_one(user_id);
        let same = |&number: &u32| self.entries[number as usize].0 == user_id;
        self.numbers.find(hash, same).map(|&number| &self.entries[number as usize].1)
    }

    /// Inserts a user's session; returns the one that was there.
    fn insert(&mut self, user_id: UserId, addr: SessionAddr) -> Option<SessionAddr> {
        if self.numbers.len() == self.numbers.capacity() {
            self.grow();
        }
        let Self { entries, numbers, hasher } = self;
        let same = |&number: &u32| entries[number as usize].0 == user_id;
        let hash = |&number: &u32| hasher.hash_one(entries[number as usize].0);
        match numbers.entry(hasher.hash_one(user_id), same, hash) {
            Entry::Vacant(entry) => {
                let number = u32::try_from(entries.len()).expect("fewer users than 2^32");
                entry.insert(number);
                entries.push((user_id, addr));
                None
            }
            Entry::Occupied(entry) => {
                Some(mem::replace(&mut entries[*entry.get() as usize].1, addr))
            }
        }
    }

    fn remove(&mut self, user_id: UserId) -> Option<SessionAddr> {
        let Self { entries, numbers, hasher } = self;
        let same = |&number: &u32| entries[number as usize].0 == user_id;
        let entry = numbers.find_entry(hasher.hash_one(user_id), same).ok()?;
        let (number, _) = entry.remove();
        let (_, addr) = entries.swap_remove(number as usize);
        // The last entry moved to the free position, so its number changed.
        if let Some(&(moved, _)) = entries.get(number as usize) {
            let last = entries.len();
            let it = numbers.find_mut(hasher.hash_one(moved), |&known| known as usize == last);
            *it.expect("each entry's number is in the table") = number;
        }
        Some(addr)
    }

    /// Doubles the table's capacity. It is refilled in the order of the entries, which reads memory
    /// sequentially. A table that grows automatically reads the entries in its own order, which misses the cache.
    fn grow(&mut self) {
        let Self { entries, numbers, hasher } = self;
        let hash = |&number: &u32| hasher.hash_one(entries[number as usize].0);
        *numbers = HashTable::with_capacity(2 * entries.len());
        for (number, (user_id, _)) in (0..).zip(entries.iter()) {
            numbers.insert_unique(hasher.hash_one(user_id), number, hash);
        }
    }

    fn shrink(&mut self) {
        let Self { entries, numbers, hasher } = self;
        if should_shrink(entries.len(), entries.capacity()) {
            entries.shrink_to(2 * entries.len());
            let hash = |&number: &u32| hasher.hash_one(entries[number as usize].0);
            numbers.shrink_to(2 * entries.len(), hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::driver::ConnId;

    fn addr(slot: u32) -> SessionAddr {
        SessionAddr::new(0, ConnId { slot, generation: 1 })
    }

    #[test]
    fn the_oldest_session_is_evicted_when_there_are_too_many() {
        let mut directory = Directory::default();
        assert_eq!(directory.register(7, addr(1), 1), None);
        assert_eq!(directory.register(7, addr(2), 1), Some(addr(1)));
        directory.deregister(7, addr(1));
        assert_eq!(directory.sessions(7), [addr(2)]);
        assert_eq!(directory.register(7, addr(3), 3), None);
        assert_eq!(directory.register(7, addr(4), 3), None);
        assert_eq!(directory.register(7, addr(5), 3), Some(addr(2)));
        assert_eq!(directory.take(7), [addr(3), addr(4), addr(5)]);
        assert!(directory.is_empty());
    }

    #[test]
    fn a_user_without_sessions_is_forgotten() {
        let mut directory = Directory::default();
        let _ = directory.register(7, addr(1), 2);
        let _ = directory.register(7, addr(2), 2);
        directory.deregister(7, addr(1));
        directory.deregister(7, addr(2));
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn sessions_open_and_close_in_any_order() {
        const SESSIONS_MAX: usize = 3;
        let mut directory = Directory::default();
        let mut known = BTreeMap::<UserId, Vec<SessionAddr>>::new();
        let mut random = 7_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % bound
        };
        for step in 0..100_000 {
            // Waves: at first more come, then more go.
            let comes = below(8) < if step / 20_000 % 2 == 0 { 6 } else { 2 };
            let user_id = below(5000);
            let addrs = known.entry(user_id).or_default();
            if comes {
                addrs.push(addr(step));
                let oldest = (addrs.len() > SESSIONS_MAX).then(|| addrs.remove(0));
                assert_eq!(directory.register(user_id, addr(step), SESSIONS_MAX), oldest);
            } else if !addrs.is_empty() {
                let left = addrs.remove(step as usize % addrs.len());
                directory.deregister(user_id, left);
            }
        }
        known.retain(|_, addrs| !addrs.is_empty());
        assert_eq!(directory.len(), known.len());
        for user_id in 0..5000 {
            assert_eq!(
                directory.sessions(user_id),
                known.get(&user_id).map_or(&[][..], Vec::as_slice)
            );
        }
        for (user_id, addrs) in known {
            assert_eq!(directory.take(user_id), addrs);
        }
        assert!(directory.is_empty());
    }

    #[test]
    fn a_user_with_one_session_takes_16_bytes() {
        assert_eq!(size_of::<(UserId, SessionAddr)>(), 16);
    }

    #[test]
    fn a_user_left_with_one_session_moves_to_the_dense_array() {
        let mut directory = Directory::default();
        let _ = directory.register(7, addr(1), 3);
        let _ = directory.register(7, addr(2), 3);
        directory.deregister(7, addr(3));
        assert_eq!(directory.sessions(7), [addr(1), addr(2)]);
        directory.deregister(7, addr(1));
        assert_eq!((directory.sessions(7), directory.len()), (&[addr(2)][..], 1));
        assert!(directory.several.is_empty());
        assert_eq!(directory.register(7, addr(4), 3), None);
        assert_eq!(directory.sessions(7), [addr(2), addr(4)]);
    }

    #[test]
    fn memory_of_many_users_is_given_back() {
        let mut directory = Directory::default();
        for user_id in 0..20_000 {
            let _ = directory.register(user_id, addr(1), 1);
        }
        let full = directory.single.entries.capacity();
        for user_id in 0..19_900 {
            directory.deregister(user_id, addr(1));
        }
        let Singles { entries, numbers, .. } = &directory.single;
        assert!(entries.capacity() < full / 8, "{}", entries.capacity());
        assert!(numbers.capacity() < full / 8, "{}", numbers.capacity());
        assert!((19_900..20_000).all(|user_id| directory.sessions(user_id) == [addr(1)]));
    }

    #[test]
    fn homes_are_spread() {
        let mut counts = [0; 4];
        (0..4000).for_each(|user_id| counts[usize::from(home(user_id, 4))] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
