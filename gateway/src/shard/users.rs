//! The user directory: where each user's sessions live.
//!
//! A user's entry is kept by one shard, its home, so that two logins on two shards meet somewhere and
//! are put in order. The other shards tell the home when sessions come and go.

use hashbrown::HashMap;
use tidegate_backend::UserId;

use crate::session_id::Place;

/// Places by user, for the users whose home is here.
#[derive(Debug, Default)]
pub struct Users {
    entries: HashMap<UserId, Entry>,
}

/// Most users have one session: 16 bytes.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "keeps the common case small")]
enum Entry {
    One(Place),
    /// Oldest first; at least one.
    Many(Box<Vec<Place>>),
}

impl Entry {
    fn places(&self) -> &[Place] {
        match self {
            Self::One(place) => std::slice::from_ref(place),
            Self::Many(places) => places,
        }
    }
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
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A user's sessions, oldest first.
    #[must_use]
    pub fn places(&self, user_id: UserId) -> &[Place] {
        self.entries.get(&user_id).map_or(&[], Entry::places)
    }

    /// Adds a session. Where that makes more than `sessions_max`, the oldest is taken out and returned.
    #[must_use]
    pub fn register(
        &mut self,
        user_id: UserId,
        place: Place,
        sessions_max: usize,
    ) -> Option<Place> {
        let Some(entry) = self.entries.get_mut(&user_id) else {
            self.entries.insert(user_id, Entry::One(place));
            return None;
        };
        match entry {
            Entry::One(oldest) if sessions_max == 1 => Some(std::mem::replace(oldest, place)),
            Entry::One(oldest) => {
                *entry = Entry::Many(Box::new(vec![*oldest, place]));
                None
            }
            Entry::Many(places) => {
                places.push(place);
                (places.len() > sessions_max).then(|| places.remove(0))
            }
        }
    }

    /// Takes a session out; does nothing when it is out already.
    pub fn deregister(&mut self, user_id: UserId, place: Place) {
        let Some(entry) = self.entries.get_mut(&user_id) else { return };
        let gone = match entry {
            Entry::One(only) => *only == place,
            Entry::Many(places) => {
                places.retain(|known| *known != place);
                places.is_empty()
            }
        };
        if gone {
            self.entries.remove(&user_id);
        }
    }

    /// Takes all of a user's sessions out.
    pub fn take(&mut self, user_id: UserId) -> Vec<Place> {
        self.entries.remove(&user_id).map_or_else(Vec::new, |entry| entry.places().to_vec())
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
    fn homes_are_spread() {
        let mut counts = [0; 4];
        (0..4000).for_each(|user_id| counts[usize::from(home(user_id, 4))] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
