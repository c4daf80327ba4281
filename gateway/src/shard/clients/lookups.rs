//! Authentications whose tokens are being looked up in Redis.
//!
//! An entry exists from the authentication until the verdict, or the connection's end, so this table is empty most of the
//! time. A connection has one entry at most. A lookup counts until its verdict has arrived, also where its connection has
//! ended: so clients that come and go can't fill the queues behind the bound.

use std::collections::HashMap;

use tidegate_backend::UserId;

use crate::auth::{AuthError, TokenDigest};
use crate::driver::ConnId;

/// Bytes of rooms' positions that lookups hold, at most, for each lookup that may be under way: the positions of some
/// ten rooms. A client may send 16 KiB of them.
const RESUME_BYTES: usize = 1024;

/// What is kept of an authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The user that the token has to prove.
    pub user_id: UserId,
    /// The token.
    pub token: TokenDigest,
    /// The sequence of the authentication.
    pub sequence: u64,
    /// The client's positions in its rooms, as it sent them.
    pub resume: Box<[u8]>,
}

/// The lookups of a shard.
#[derive(Debug)]
pub struct Lookups {
    /// By slot, with the generation of the connection.
    entries: HashMap<u32, (u32, Lookup)>,
    lookups_max: usize,
    /// Lookups without a verdict; at least as many as there are entries.
    under_way: usize,
    /// Bytes of the entries' positions.
    resume_bytes: usize,
}

impl Lookups {
    /// The share of one of `shards` in the gateway's bound.
    #[must_use]
    pub fn new(lookups_max: usize, shards: u16) -> Self {
        let lookups_max = lookups_max.div_ceil(usize::from(shards));
        Self { entries: HashMap::new(), lookups_max, under_way: 0, resume_bytes: 0 }
    }

    /// Lookups without a verdict.
    #[must_use]
    pub const fn under_way(&self) -> usize {
        self.under_way
    }

    /// A connection's token is looked up from now on.
    ///
    /// # Errors
    /// [`AuthError::TooManyLookups`]: the bound is reached, or one of this connection is under way.
    pub fn begin(&mut self, conn: ConnId, lookup: Lookup) -> Result<(), AuthError> {
        let resume_bytes = self.resume_bytes + lookup.resume.len();
        if self.under_way >= self.lookups_max
            || resume_bytes > self.lookups_max.saturating_mul(RESUME_BYTES).max(MIN_RESUME_BYTES)
            || self.entries.contains_key(&conn.slot)
        {
            return Err(AuthError::TooManyLookups);
        }
        self.under_way += 1;
        self.resume_bytes = resume_bytes;
        self.entries.insert(conn.slot, (conn.generation, lookup));
        Ok(())
    }

    /// The verdict on a connection's token has arrived. Returns the lookup, unless the connection has ended.
    pub fn end(&mut self, conn: ConnId) -> Option<Lookup> {
        self.under_way -= 1;
        let (generation, _) = self.entries.get(&conn.slot)?;
        // The slot may have its next connection.
        if *generation == conn.generation { self.take(conn.slot) } else { None }
    }

    /// The connection in the slot is about to close.
    pub fn remove(&mut self, slot: u32) {
        if !self.entries.is_empty() {
            self.take(slot);
        }
    }

    fn take(&mut self, slot: u32) -> Option<Lookup> {
        let (_, lookup) = self.entries.remove(&slot)?;
        self.resume_bytes -= lookup.resume.len();
        Some(lookup)
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.entries.shrink_to_fit();
    }
}

/// Bytes of positions that may wait whatever the bound: the longest authentication.
const MIN_RESUME_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(resume_bytes: usize) -> Lookup {
        let token = TokenDigest::of("token");
        Lookup { user_id: 7, token, sequence: 1, resume: vec![0; resume_bytes].into() }
    }

    fn conn(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    #[test]
    fn a_lookup_counts_until_its_verdict_though_its_connection_has_ended() {
        let mut lookups = Lookups::new(3, 2);
        assert_eq!(lookups.begin(conn(1, 1), lookup(5)), Ok(()));
        assert_eq!(lookups.begin(conn(1, 1), lookup(5)), Err(AuthError::TooManyLookups));
        lookups.remove(1);
        // The slot has its next connection.
        assert_eq!(lookups.begin(conn(1, 2), lookup(5)), Ok(()));
        assert_eq!(lookups.begin(conn(2, 1), lookup(5)), Err(AuthError::TooManyLookups));
        assert_eq!(lookups.end(conn(1, 1)), None, "the verdict is the earlier connection's");
        assert_eq!(lookups.end(conn(1, 2)), Some(lookup(5)));
        assert_eq!((lookups.under_way(), lookups.resume_bytes), (0, 0));
        assert!(lookups.entries.is_empty());
    }

    #[test]
    fn positions_have_a_bound_of_their_own() {
        let mut lookups = Lookups::new(20, 1);
        assert_eq!(lookups.begin(conn(0, 1), lookup(16 * 1024)), Ok(()));
        assert_eq!(lookups.begin(conn(1, 1), lookup(4 * 1024)), Ok(()));
        assert_eq!(lookups.begin(conn(2, 1), lookup(1)), Err(AuthError::TooManyLookups));
        assert_eq!(lookups.begin(conn(2, 1), lookup(0)), Ok(()));
        lookups.remove(0);
        assert_eq!(lookups.begin(conn(3, 1), lookup(16 * 1024)), Ok(()));
        assert_eq!(Lookups::new(1, 1).begin(conn(0, 1), lookup(16 * 1024)), Ok(()));
    }
}
