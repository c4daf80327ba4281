//! The user directory: where each user's sessions live.
//!
//! A user's entry is kept by one shard, its home, so that two logins on two shards meet somewhere and
//! are put in order. The other shards tell the home when sessions come and go.
//!
//! Most users have one session. Theirs are in a table of their own, whose entries are the user and the
//! place and nothing that tells one from many: 16 bytes, and the table's one byte for each.

use std::hash::Hash;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tidegate_backend::UserId;

use crate::session_id::Place;

/// Entries below which a table keeps its memory: 17 KiB are not worth the work.
const KEPT_ENTRIES: usize = 1024;

/// Places by user, for the users whose home is here.
#[derive(Debug, Default)]
pub struct Users {
    /// Users with one session. None of them is in `several`.
    single: HashMap<UserId, Place>,
    /// Users with two sessions at least, oldest first.
    several: HashMap<UserId, Vec<Place>>,
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
        match self.single.get(&user_id) {
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
        match self.single.entry(user_id) {
            Entry::Vacant(entry) => {
                entry.insert(place);
                None
            }
            Entry::Occupied(mut entry) if sessions_max == 1 => Some(entry.insert(place)),
            Entry::Occupied(entry) => {
                self.several.insert(user_id, vec![entry.remove(), place]);
                None
            }
        }
    }

    /// Takes a session out; does nothing when it is out already.
    pub fn deregister(&mut self, user_id: UserId, place: Place) {
        if let Some(only) = self.single.get(&user_id) {
            if *only == place {
                self.single.remove(&user_id);
                give_back(&mut self.single);
            }
        } else if let Some(places) = self.several.get_mut(&user_id) {
            places.retain(|known| *known != place);
            if let [only] = places[..] {
                self.several.remove(&user_id);
                give_back(&mut self.several);
                self.single.insert(user_id, only);
            }
        }
    }

    /// Takes all of a user's sessions out.
    pub fn take(&mut self, user_id: UserId) -> Vec<Place> {
        let places = match self.single.remove(&user_id) {
            Some(only) => vec![only],
            None => self.several.remove(&user_id).unwrap_or_default(),
        };
        give_back(&mut self.single);
        give_back(&mut self.several);
        places
    }
}

/// Gives back what a table grew to, once most of it has gone. A table that shrinks has room for twice
/// what is left, so it shrinks again only after three quarters of that have gone: all of it together
/// costs each entry no more than the growing did.
fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > KEPT_ENTRIES && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests {
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
        let full = users.single.capacity();
        for user_id in 0..19_900 {
            users.deregister(user_id, place(1));
        }
        assert!(users.single.capacity() < full / 8, "{}", users.single.capacity());
        assert!((19_900..20_000).all(|user_id| users.places(user_id) == [place(1)]));
    }

    #[test]
    fn homes_are_spread() {
        let mut counts = [0; 4];
        (0..4000).for_each(|user_id| counts[usize::from(home(user_id, 4))] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
