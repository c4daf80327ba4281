//! Authentications whose tokens are verified apart from the shard: looked up in Redis, or waiting for the check of their
//! signature.
//!
//! An entry exists from the authentication until the verdict, or the connection's end, so this table is empty most of the
//! time. A connection has one entry at most. A verification counts until its verdict has arrived, also where its connection
//! has ended: so clients that come and go can't fill the queues behind the bound.
//!
//! Lookups in Redis have their bound here. Checks of signatures have theirs in their queue, which is fair between
//! addresses: a bound of each shard would let one address take it all.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_backend::UserId;

use crate::auth::signatures::SignatureCheck;
use crate::auth::{AuthError, TokenDigest};
use crate::config::{AuthMode, Config};
use crate::driver::ConnId;

/// Bytes of rooms' positions that lookups hold, at most, for each lookup that may be under way: the positions of some
/// ten rooms. A client may send 16 KiB of them.
const RESUME_BYTES: usize = 1024;

/// What an authentication waits for.
#[derive(Clone, Debug)]
pub enum Proof {
    /// That Redis knows the token.
    Redis(TokenDigest),
    /// That the signature is checked. Who checks it drops the check once this is gone.
    Signature(Arc<SignatureCheck>),
}

/// What is kept of an authentication.
#[derive(Clone, Debug)]
pub struct PendingLogin {
    /// The user that the token has to prove.
    pub user_id: UserId,
    /// What proves the user.
    pub proof: Proof,
    /// The sequence of the authentication.
    pub sequence: u64,
    /// The client's positions in its rooms, as it sent them.
    pub resume: Box<[u8]>,
}

/// The verifications of a shard.
#[derive(Debug)]
pub struct Verifications {
    /// By slot, with the generation of the connection.
    entries: HashMap<u32, (u32, PendingLogin)>,
    /// The most that may be under way.
    max: usize,
    /// Verifications without a verdict; at least as many as there are entries.
    under_way: usize,
    /// Bytes of the entries' positions.
    resume_bytes: usize,
}

impl Verifications {
    /// None yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        match config.auth.mode {
            // A share of the gateway's bound.
            AuthMode::Redis => {
                Self::at_most(config.auth.lookups_max.div_ceil(usize::from(config.shards)))
            }
            AuthMode::Jwt { .. } | AuthMode::Demo => Self::at_most(usize::MAX),
        }
    }

    fn at_most(max: usize) -> Self {
        Self { entries: HashMap::new(), max, under_way: 0, resume_bytes: 0 }
    }

    /// A connection's token is verified from now on.
    ///
    /// # Errors
    /// [`AuthError::TooManyVerifications`]: the bound is reached, or one of this connection is under way.
    pub fn begin(&mut self, conn: ConnId, login: PendingLogin) -> Result<(), AuthError> {
        let resume_bytes = self.resume_bytes + login.resume.len();
        if self.under_way >= self.max
            || resume_bytes > self.max.saturating_mul(RESUME_BYTES).max(MIN_RESUME_BYTES)
            || self.entries.contains_key(&conn.slot)
        {
            return Err(AuthError::TooManyVerifications);
        }
        self.under_way += 1;
        self.resume_bytes = resume_bytes;
        self.entries.insert(conn.slot, (conn.generation, login));
        Ok(())
    }

    /// The verdict on a connection's token has arrived. Returns the authentication, unless the connection has ended.
    pub fn end(&mut self, conn: ConnId) -> Option<PendingLogin> {
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

    fn take(&mut self, slot: u32) -> Option<PendingLogin> {
        let (_, login) = self.entries.remove(&slot)?;
        self.resume_bytes -= login.resume.len();
        Some(login)
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

    fn login(resume_bytes: usize) -> PendingLogin {
        let proof = Proof::Redis(TokenDigest::of("token"));
        PendingLogin { user_id: 7, proof, sequence: 1, resume: vec![0; resume_bytes].into() }
    }

    fn conn(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    #[test]
    fn a_verification_counts_until_its_verdict_though_its_connection_has_ended() {
        let mut verifications = Verifications::at_most(2);
        assert_eq!(verifications.begin(conn(1, 1), login(5)), Ok(()));
        assert_eq!(verifications.begin(conn(1, 1), login(5)), Err(AuthError::TooManyVerifications));
        verifications.remove(1);
        // The slot has its next connection.
        assert_eq!(verifications.begin(conn(1, 2), login(5)), Ok(()));
        assert_eq!(verifications.begin(conn(2, 1), login(5)), Err(AuthError::TooManyVerifications));
        assert!(verifications.end(conn(1, 1)).is_none(), "the verdict is the earlier connection's");
        assert_eq!(verifications.end(conn(1, 2)).map(|login| login.resume.len()), Some(5));
        assert_eq!((verifications.under_way, verifications.resume_bytes), (0, 0));
        assert!(verifications.entries.is_empty());
    }

    #[test]
    fn positions_have_a_bound_of_their_own() {
        let mut verifications = Verifications::at_most(20);
        assert_eq!(verifications.begin(conn(0, 1), login(16 * 1024)), Ok(()));
        assert_eq!(verifications.begin(conn(1, 1), login(4 * 1024)), Ok(()));
        assert_eq!(verifications.begin(conn(2, 1), login(1)), Err(AuthError::TooManyVerifications));
        assert_eq!(verifications.begin(conn(2, 1), login(0)), Ok(()));
        verifications.remove(0);
        assert_eq!(verifications.begin(conn(3, 1), login(16 * 1024)), Ok(()));
        assert_eq!(Verifications::at_most(1).begin(conn(0, 1), login(16 * 1024)), Ok(()));
    }
}
