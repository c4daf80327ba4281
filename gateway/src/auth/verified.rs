//! The tokens whose signatures were verified: a table in which all shards look before they have a signature checked.
//!
//! A client reconnects to any shard, so all shards share one table. It has no lock: an entry is 128 bits of a hash in two atomic
//! integers. A reader may see halves of two entries, and a writer may overwrite another one. Neither makes a forged token
//! look verified. For that its hash would have to consist of halves that are in the table, and the hash is keyed
//! with a random number of this process: nobody can compute it outside.
//!
//! The hash is of the token and of the key that verifies it. So a token is unknown here once its key has been replaced. A
//! token's claims are read each time; what is remembered is its signature alone.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::jws::Key;

/// Entries of a set: 64 bytes, a cache line.
const WAYS: usize = 4;

/// What a token is known by here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenId {
    high: u64,
    low: u64,
}

impl TokenId {
    /// No token has it, but by a chance of 1 in 2^128. Then that token's signature is checked each time.
    const NONE: Self = Self { high: 0, low: 0 };
}

/// One entry.
#[derive(Debug, Default)]
struct Way {
    high: AtomicU64,
    low: AtomicU64,
}

impl Way {
    fn get(&self) -> TokenId {
        TokenId { high: self.high.load(Ordering::Relaxed), low: self.low.load(Ordering::Relaxed) }
    }

    fn set(&self, id: TokenId) {
        self.high.store(id.high, Ordering::Relaxed);
        self.low.store(id.low, Ordering::Relaxed);
    }
}

/// Entries that share a place, the one used last first. A token can be in one set alone.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Way; WAYS]);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct VerifiedTokens {
    sets: Box<[Set]>,
    key: [u8; 32],
}

impl VerifiedTokens {
    /// A table for at least `tokens_max` tokens, rounded up to a power of two; 0: none is remembered.
    pub(super) fn new(tokens_max: usize) -> Self {
        let sets = match tokens_max.div_ceil(WAYS) {
            0 => 0,
            sets => sets.next_power_of_two(),
        };
        Self { sets: (0..sets).map(|_| Set::default()).collect(), key: random_key() }
    }

    /// What a token is known by, with the key that has to verify it.
    pub(super) fn id(&self, token: &str, key: &Key) -> TokenId {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(key.id);
        hash.update(token.as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        let half = |range: std::ops::Range<usize>| {
            hash[range].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        TokenId { high: half(0..8), low: half(8..16) }
    }

    /// Whether the signature was verified, as far as this is remembered.
    pub(super) fn contains(&self, id: TokenId) -> bool {
        let Some(Set(ways)) = self.set(id) else { return false };
        let found = ways.iter().position(|way| way.get() == id && id != TokenId::NONE);
        if let Some(place) = found {
            use_last(ways, place, id);
        }
        found.is_some()
    }

    /// Remembers that the signature was verified, in place of the token of its set that was used longest ago.
    pub(super) fn insert(&self, id: TokenId) {
        if let Some(Set(ways)) = self.set(id) {
            let place = ways.iter().position(|way| way.get() == id);
            use_last(ways, place.unwrap_or(WAYS - 1), id);
        }
    }

    fn set(&self, id: TokenId) -> Option<&Set> {
        let mask = (self.sets.len() as u64).checked_sub(1)?;
        #[expect(clippy::cast_possible_truncation, reason = "it is below a length")]
        self.sets.get((id.low & mask) as usize)
    }
}

/// Puts an entry first, and the ones before its place one further.
fn use_last(ways: &[Way; WAYS], place: usize, id: TokenId) {
    for before in (0..place).rev() {
        ways[before + 1].set(ways[before].get());
    }
    if ways[0].get() != id {
        ways[0].set(id);
    }
}

/// A random key, from the generator that the standard library's hash tables are keyed with.
fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    for (part, number) in key.chunks_exact_mut(8).zip(0_u64..) {
        part.copy_from_slice(&RandomState::new().hash_one(number).to_ne_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey};

    use super::*;

    fn key(bytes: &[u8]) -> Key {
        Key::new(DecodingKey::from_ed_der(bytes), Algorithm::EdDSA, &[bytes])
    }

    #[test]
    fn a_token_is_found_with_its_key_and_with_no_other() {
        let verified = VerifiedTokens::new(100);
        let (old, new) = (key(&[1; 32]), key(&[2; 32]));
        let id = verified.id("a", &old);
        assert!(!verified.contains(id));
        verified.insert(id);
        assert!(verified.contains(id) && verified.contains(verified.id("a", &key(&[1; 32]))));
        assert!(
            !verified.contains(verified.id("a", &new))
                && !verified.contains(verified.id("b", &old))
        );
        assert!(!VerifiedTokens::new(100).contains(id), "each process has its own hash");
    }

    #[test]
    fn the_token_that_was_used_longest_ago_goes_first() {
        // One set.
        let verified = VerifiedTokens::new(WAYS);
        let id = |low| TokenId { high: 7, low };
        (1..=4).for_each(|low| verified.insert(id(low)));
        assert!(verified.contains(id(1)));
        verified.insert(id(5));
        verified.insert(id(5));
        let left: Vec<_> = (1..=5).filter(|low| verified.contains(id(*low))).collect();
        assert_eq!(left, [1, 3, 4, 5]);
    }

    #[test]
    fn the_table_has_the_size_that_is_configured_and_may_be_none() {
        assert_eq!(size_of::<Set>(), 64);
        for (tokens_max, sets) in [(0, 0), (1, 1), (5, 2), (262_144, 65_536)] {
            assert_eq!(VerifiedTokens::new(tokens_max).sets.len(), sets);
        }
        let none = VerifiedTokens::new(0);
        let id = TokenId { high: 1, low: 1 };
        none.insert(id);
        assert!(!none.contains(id));
        assert!(!VerifiedTokens::new(8).contains(TokenId::NONE), "a vacant entry is no token");
    }
}
