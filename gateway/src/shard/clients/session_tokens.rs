//! Which token each session came with, where tokens are in Redis and can be revoked.
//!
//! The table is beside the connections. It has 40 bytes for each slot, and about 8 for each session, by which a
//! user's sessions are found. A gateway whose tokens can't be revoked has no entry.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use tidegate_backend::UserId;

use crate::auth::TokenDigest;

/// Slots that one page looks at, at most.
const PAGE_SLOTS: usize = 1_000;

/// A token that ends so soon is not listed: it would have expired before it is looked up.
const ENDS_SOON_S: u32 = 60;

/// The end of a token that has none, in seconds on the shard's clock.
const NEVER_S: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: TokenDigest,
    /// When it ends, in seconds on the shard's clock, or [`NEVER_S`].
    ends_s: u32,
}

/// A session's token on a page: slot, token, milliseconds until its end.
pub type PageEntry = (u32, TokenDigest, Option<u64>);

/// The tokens of a shard's sessions, by slot. `user_of` says whose session is in a slot.
#[derive(Debug, Default)]
pub struct SessionTokens {
    entries: Vec<Option<Entry>>,
    /// The slots that have an entry, by their users.
    slots: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl SessionTokens {
    /// The session in a slot came with this token, or has shown it since.
    pub fn set(
        &mut self,
        slot: u32,
        token: TokenDigest,
        ends_ms: Option<u64>,
        user_of: impl Fn(u32) -> UserId,
    ) {
        let index = slot as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        let entry = Entry { token, ends_s: ends_ms.map_or(NEVER_S, seconds) };
        if self.entries[index].replace(entry).is_none() {
            let hash = |slot: u32| self.hasher.hash_one(user_of(slot));
            self.slots.insert_unique(hash(slot), slot, |&slot| hash(slot));
        }
    }

    /// The session in the slot ends.
    pub fn remove(&mut self, slot: u32, user_id: UserId) {
        if self.entries.get_mut(slot as usize).and_then(Option::take).is_some() {
            let hash = self.hasher.hash_one(user_id);
            if let Ok(found) = self.slots.find_entry(hash, |&other| other == slot) {
                found.remove();
            }
        }
    }

    /// The token of the session in a slot ends then. `false`: it is another token's session by now.
    pub fn set_end(&mut self, slot: u32, token: TokenDigest, ends_ms: Option<u64>) -> bool {
        match self.entries.get_mut(slot as usize) {
            Some(Some(entry)) if entry.token == token => {
                entry.ends_s = ends_ms.map_or(NEVER_S, seconds);
                true
            }
            _ => false,
        }
    }

    /// The slots of the user's sessions that came with this token; `None`: with any.
    #[must_use]
    pub fn slots_of(
        &self,
        user_id: UserId,
        token: Option<TokenDigest>,
        user_of: impl Fn(u32) -> UserId,
    ) -> Vec<u32> {
        let came_with = |slot: u32| {
            let entry = self.entries.get(slot as usize).copied().flatten();
            entry.is_some_and(|entry| token.is_none_or(|token| entry.token == token))
        };
        let slots = self.slots.iter_hash(self.hasher.hash_one(user_id)).copied();
        slots.filter(|&slot| user_of(slot) == user_id && came_with(slot)).collect()
    }

    /// The tokens of the sessions in the slots from this one on, and the slot at which the next page begins. Tokens that
    /// have ended, or will soon, are left out: Redis expires them.
    #[must_use]
    pub fn page(&self, from: u32, now_ms: u64) -> (Vec<PageEntry>, Option<u32>) {
        let now_s = seconds(now_ms);
        let rest = self.entries.get(from as usize..).unwrap_or_default();
        let slots = (from..).zip(rest.iter().take(PAGE_SLOTS));
        let listed = slots.filter_map(|(slot, entry)| {
            let Entry { token, ends_s } = (*entry)?;
            let ends_in_ms =
                (ends_s != NEVER_S).then(|| u64::from(ends_s.saturating_sub(now_s)) * 1000);
            let is_soon = ends_s < now_s.saturating_add(ENDS_SOON_S);
            (!is_soon).then_some((slot, token, ends_in_ms))
        });
        let next = u32::try_from(PAGE_SLOTS).ok().and_then(|slots| from.checked_add(slots));
        (listed.collect(), next.filter(|_| rest.len() > PAGE_SLOTS))
    }
}

/// Seconds of a time on the shard's clock, cut off. It runs for 136 years.
fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(NEVER_S - 1).min(NEVER_S - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slot 10 to 19 are sessions of user 1, and so on.
    fn user_of(slot: u32) -> UserId {
        u64::from(slot / 10)
    }

    fn token(name: &str) -> TokenDigest {
        TokenDigest::of(name)
    }

    fn set(tokens: &mut SessionTokens, slot: u32, name: &str, ends_ms: Option<u64>) {
        tokens.set(slot, token(name), ends_ms, user_of);
    }

    fn slots(tokens: &SessionTokens, user_id: UserId, name: Option<&str>) -> Vec<u32> {
        let mut slots = tokens.slots_of(user_id, name.map(token), user_of);
        slots.sort_unstable();
        slots
    }

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Option<Entry>>() <= 40);
    }

    #[test]
    fn the_sessions_of_a_user_are_found_by_their_token() {
        let mut tokens = SessionTokens::default();
        (0..1_000).for_each(|slot| set(&mut tokens, slot, "a", None));
        set(&mut tokens, 12, "b", None);
        assert_eq!(slots(&tokens, 1, None), (10..20).collect::<Vec<_>>());
        assert_eq!(slots(&tokens, 1, Some("b")), [12]);
        assert_eq!(slots(&tokens, 2, Some("b")), [0; 0]);
        for slot in 10..20 {
            tokens.remove(slot, 1);
            tokens.remove(slot, 1);
        }
        assert_eq!((slots(&tokens, 1, None), tokens.slots.len()), (vec![], 990));
        // The slot's next connection is another user's.
        tokens.remove(20, 2);
        tokens.set(20, token("c"), None, |slot| if slot == 20 { 1 } else { user_of(slot) });
        let owner = |slot| if slot == 20 { 1 } else { user_of(slot) };
        assert_eq!(tokens.slots_of(1, None, owner), [20]);
        assert_eq!(tokens.slots_of(2, Some(token("c")), owner), [0; 0]);
    }

    #[test]
    fn pages_list_each_token_once_but_those_that_end_soon() {
        let mut tokens = SessionTokens::default();
        for slot in [0, 999, 1_000, 2_500] {
            set(&mut tokens, slot, "a", None);
        }
        set(&mut tokens, 5, "ended", Some(1_000));
        set(&mut tokens, 6, "ends soon", Some(60_000));
        set(&mut tokens, 7, "ends later", Some(200_000));
        let (mut from, mut listed) = (Some(0), Vec::new());
        while let Some(at) = from {
            let (page, next) = tokens.page(at, 10_000);
            listed.extend(page.into_iter().map(|(slot, _, ends_in_ms)| (slot, ends_in_ms)));
            from = next;
        }
        let expected = [(0, None), (7, Some(190_000)), (999, None), (1_000, None), (2_500, None)];
        assert_eq!(listed, expected);
        assert!(tokens.set_end(6, token("ends soon"), None));
        assert!(
            !tokens.set_end(6, token("another"), None) && !tokens.set_end(9_999, token("a"), None)
        );
        assert_eq!(tokens.page(0, 10_000).0[1].0, 6);
        assert_eq!(tokens.page(9_999, 0), (vec![], None));
    }
}
