//! The user directory: where each user's sessions live.
//!
//! A user's entry is kept by one shard, its home, so that two logins on two shards meet somewhere and
//! are put in order. The other shards tell the home when sessions come and go.
//!
//! Most users have one session. Theirs are in a row of their own, whose entries are the user and the
//! place and nothing that tells one from many: 16 bytes. A table finds them by their numbers in it. It is a
//! power of two, up to 2.3 times as large as it need be, and its 5 bytes bear that better than 17 would.

use std::hash::BuildHasher as _;
use std::mem;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use tidegate_backend::UserId;

use crate::session_id::Place;

/// Entries below which memory is kept: some 25 KiB are not worth the work.
const KEPT_ENTRIES: usize = 1024;

/// Places by user, for the users whose home is here.
#[derive(Debug, Default)]
pub struct Users {
    /// Users with one session. None of them is in `several`.
    single: Singles,
    /// Users with two sessions at least, oldest first.
    several: HashMap<UserId, Vec<Place>>,
}

/// Users with one place each.
#[derive(Debug, Default)]
struct Singles {
    entries: Vec<(UserId, Place)>,
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

impl Users {
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
    pub fn places(&self, user_id: UserId) -> &[Place] {
        match self.single.get(user_id) {
            Some(only) => std::slice::from_ref(only),
            None => self.several.get(&user_id).map_or(&[], Vec::as_slice),
        }
    }

    /// Adds a session. Where that makes more than `sessions_max`, the oldest is taken out and returned.
    #[must_use]
    pub fn register(
        &mut self,
        user_id: UserId,
        place: Place,
        sessions_max: usize,
    ) -> Option<Place> {
        if let Some(places) = self.several.get_mut(&user_id) {
            places.push(place);
            return (places.len() > sessions_max).then(|| places.remove(0));
        }
        match self.single.insert(user_id, place) {
            Some(only) if sessions_max > 1 => {
                self.single.remove(user_id);
                self.several.insert(user_id, vec![only, place]);
                None
            }
            before => before,
        }
    }

    /// Takes a session out; does nothing when it is out already.
    pub fn deregister(&mut self, user_id: UserId, place: Place) {
        if let Some(only) = self.single.get(user_id) {
            if *only == place {
                self.single.remove(user_id);
                self.single.give_back();
            }
        } else if let Some(places) = self.several.get_mut(&user_id) {
            places.retain(|known| *known != place);
            if let [only] = places[..] {
                self.several.remove(&user_id);
                self.give_back_several();
                self.single.insert(user_id, only);
            }
        }
    }

    /// Takes all of a user's sessions out.
    pub fn take(&mut self, user_id: UserId) -> Vec<Place> {
        let places = match self.single.remove(user_id) {
            Some(only) => vec![only],
            None => self.several.remove(&user_id).unwrap_or_default(),
        };
        self.single.give_back();
        self.give_back_several();
        places
    }

    fn give_back_several(&mut self) {
        if has_shrunk(self.several.len(), self.several.capacity()) {
            self.several.shrink_to(2 * self.several.len());
        }
    }
}

impl Singles {
    const fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, user_id: UserId) -> Option<&Place> {
        let hash = self.hasher.hash_one(user_id);
        let same = |&number: &u32| self.entries[number as usize].0 == user_id;
        self.numbers.find(hash, same).map(|&number| &self.entries[number as usize].1)
    }

    /// Puts a user's place in; returns the one that was there.
    fn insert(&mut self, user_id: UserId, place: Place) -> Option<Place> {
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
                entries.push((user_id, place));
                None
            }
            Entry::Occupied(entry) => {
                Some(mem::replace(&mut entries[*entry.get() as usize].1, place))
            }
        }
    }

    fn remove(&mut self, user_id: UserId) -> Option<Place> {
        let Self { entries, numbers, hasher } = self;
        let same = |&number: &u32| entries[number as usize].0 == user_id;
        let entry = numbers.find_entry(hasher.hash_one(user_id), same).ok()?;
        let (number, _) = entry.remove();
        let (_, place) = entries.swap_remove(number as usize);
        // The last has taken its number.
        if let Some(&(moved, _)) = entries.get(number as usize) {
            let last = entries.len();
            let it = numbers.find_mut(hasher.hash_one(moved), |&known| known as usize == last);
            *it.expect("each entry's number is in the table") = number;
        }
        Some(place)
    }

    /// Makes room for as many again. To put the entries in one after the other reads them as they lie;
    /// a table that grows by itself goes by its own order, and finds each anywhere.
    fn grow(&mut self) {
        let Self { entries, numbers, hasher } = self;
        let hash = |&number: &u32| hasher.hash_one(entries[number as usize].0);
        *numbers = HashTable::with_capacity(2 * entries.len());
        for (number, (user_id, _)) in (0..).zip(entries.iter()) {
            numbers.insert_unique(hasher.hash_one(user_id), number, hash);
        }
    }

    fn give_back(&mut self) {
        let Self { entries, numbers, hasher } = self;
        if has_shrunk(entries.len(), entries.capacity()) {
            entries.shrink_to(2 * entries.len());
            let hash = |&number: &u32| hasher.hash_one(entries[number as usize].0);
            numbers.shrink_to(2 * entries.len(), hash);
        }
    }
}

/// Whether most of what something grew to has gone, so that it should give memory back. When it shrinks, it
/// keeps room for twice what is left, so it shrinks again only after three quarters of that have gone: all
/// of it together costs each entry no more than the growing did.
const fn has_shrunk(len: usize, capacity: usize) -> bool {
    capacity > KEPT_ENTRIES && len < capacity / 8
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::driver::ConnId;

    fn place(slot: u32) -> Place {
        Place::new(0, ConnId { slot, generation: 1 })
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut users = Users::default();
        assert_eq!(users.register(7, place(1), 1), None);
        assert_eq!(users.register(7, place(2), 1), Some(place(1)));
        users.deregister(7, place(1));
        assert_eq!(users.places(7), [place(2)]);
        assert_eq!(users.register(7, place(3), 3), None);
        assert_eq!(users.register(7, place(4), 3), None);
        assert_eq!(users.register(7, place(5), 3), Some(place(2)));
        assert_eq!(users.take(7), [place(3), place(4), place(5)]);
        assert!(users.is_empty());
    }

    #[test]
    fn a_user_without_sessions_is_forgotten() {
        let mut users = Users::default();
        let _ = users.register(7, place(1), 2);
        let _ = users.register(7, place(2), 2);
        users.deregister(7, place(1));
        users.deregister(7, place(2));
        assert_eq!(users.len(), 0);
    }

    #[test]
    fn users_come_and_go_in_any_order() {
        const SESSIONS_MAX: usize = 3;
        let mut users = Users::default();
        let mut known = BTreeMap::<UserId, Vec<Place>>::new();
        let mut random = 7_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % bound
        };
        for step in 0..100_000 {
            // Waves: at first more come, then more go.
            let comes = below(8) < if step / 20_000 % 2 == 0 { 6 } else { 2 };
            let user_id = below(5000);
            let places = known.entry(user_id).or_default();
            if comes {
                places.push(place(step));
                let oldest = (places.len() > SESSIONS_MAX).then(|| places.remove(0));
                assert_eq!(users.register(user_id, place(step), SESSIONS_MAX), oldest);
            } else if !places.is_empty() {
                let left = places.remove(step as usize % places.len());
                users.deregister(user_id, left);
            }
        }
        known.retain(|_, places| !places.is_empty());
        assert_eq!(users.len(), known.len());
        for user_id in 0..5000 {
            assert_eq!(users.places(user_id), known.get(&user_id).map_or(&[][..], Vec::as_slice));
        }
        for (user_id, places) in known {
            assert_eq!(users.take(user_id), places);
        }
        assert!(users.is_empty());
    }

    #[test]
    fn a_user_with_one_session_takes_16_bytes() {
        assert_eq!(size_of::<(UserId, Place)>(), 16);
    }

    #[test]
    fn the_last_of_several_is_a_single_one() {
        let mut users = Users::default();
        let _ = users.register(7, place(1), 3);
        let _ = users.register(7, place(2), 3);
        users.deregister(7, place(3));
        assert_eq!(users.places(7), [place(1), place(2)]);
        users.deregister(7, place(1));
        assert_eq!((users.places(7), users.len()), (&[place(2)][..], 1));
        assert!(users.several.is_empty());
        assert_eq!(users.register(7, place(4), 3), None);
        assert_eq!(users.places(7), [place(2), place(4)]);
    }

    #[test]
    fn what_many_users_took_is_given_back() {
        let mut users = Users::default();
        for user_id in 0..20_000 {
            let _ = users.register(user_id, place(1), 1);
        }
        let full = users.single.entries.capacity();
        for user_id in 0..19_900 {
            users.deregister(user_id, place(1));
        }
        let Singles { entries, numbers, .. } = &users.single;
        assert!(entries.capacity() < full / 8, "{}", entries.capacity());
        assert!(numbers.capacity() < full / 8, "{}", numbers.capacity());
        assert!((19_900..20_000).all(|user_id| users.places(user_id) == [place(1)]));
    }

    #[test]
    fn homes_are_spread() {
        let mut counts = [0; 4];
        (0..4000).for_each(|user_id| counts[usize::from(home(user_id, 4))] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
