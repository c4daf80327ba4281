//! Messages to a shard about tokens: from the thread that speaks with Redis, and from those that check signatures.

use tidegate_backend::UserId;

use crate::auth::{AuthError, TokenDigest};
use crate::driver::ConnId;

/// What became of a token that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Redis holds it.
    Known {
        /// Milliseconds until its end. `None`: it has none.
        ends_in_ms: Option<u64>,
    },
    /// Redis does not hold it.
    Unknown,
    /// Redis did not say in time.
    Unavailable,
}

/// A message about tokens.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum TokenMessage {
    /// A connection's token was looked up. Each lookup has one verdict.
    Verdict { conn: ConnId, verdict: Verdict },
    /// The signature of a connection's token was checked, or can't be. Each check has one verdict.
    Signature { conn: ConnId, signed: Result<(), AuthError> },
    /// Close the sessions of the user that came with this token with 110; `None`: with any.
    Revoke { user_id: UserId, token: Option<TokenDigest> },
    /// The token of a session ends at another time than before.
    NewEnd { conn: ConnId, token: TokenDigest, ends_in_ms: Option<u64> },
    /// Say which tokens the sessions in the slots from this one on came with: a page of them.
    List { from: u32 },
}

/// A session's token, as a shard lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub struct ListedToken {
    pub conn: ConnId,
    pub user_id: UserId,
    pub token: TokenDigest,
    /// Milliseconds until its end, as the shard knows it. `None`: it has none.
    pub ends_in_ms: Option<u64>,
}

/// A page of the tokens that a shard's sessions came with.
#[derive(Debug)]
pub struct TokenPage {
    /// The shard.
    pub shard: u16,
    /// The slot at which the page begins.
    pub from: u32,
    /// The tokens.
    pub tokens: Vec<ListedToken>,
    /// The slot at which the next page begins.
    pub next: Option<u32>,
}
