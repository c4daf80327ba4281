//! Why there is no connection to Redis, and what an operator can do about it.

use redis::RedisError;

use crate::config::{RedisKind, RedisTarget};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Redis can't be reached, or refuses.
    #[error("{0}")]
    Redis(String),
    /// Redis can't be reached, or refuses, and there is something to do about it.
    #[error("{reason}: {hint}")]
    Mistaken {
        /// What the client says.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The server is a replica: a failover is under way, or the URL names one.
    #[error("{0} is a replica, which takes no writes")]
    Replica(String),
}

impl LinkError {
    /// What an attempt to connect failed with.
    #[must_use]
    pub fn of(target: &RedisTarget, error: &RedisError) -> Self {
        // The parser's errors have several lines.
        let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        match hint(target, &reason) {
            Some(hint) => Self::Mistaken { reason, hint },
            None => Self::Redis(reason),
        }
    }
}

/// What to do about an error with this text. A Cluster's client has nothing but the text of a node's error.
fn hint(target: &RedisTarget, reason: &str) -> Option<&'static str> {
    let has = |part: &str| reason.contains(part);
    let is_unreadable = has("Parse error") || has("Unexpected `");
    // An authority that was made anew under its old name signs with another key: `BadSignature`.
    let is_foreign = has("UnknownIssuer") || has("BadSignature");
    let hint = if has("NOAUTH") && target.kind == RedisKind::Sentinel {
        "a password is missing. Set redis.password_file to that of the Redis servers; the Sentinels must have none"
    } else if has("NOAUTH") {
        "a password is missing. Set redis.password_file"
    } else if has("WRONGPASS") {
        "check the user in the URL, and the password in redis.password_file, which wins over one in the URL"
    } else if has("NOPERM") || has("NoPerm") {
        "the user's access rules do not allow it. \"Access rules\" in backend/REDIS.md has those of a gateway"
    } else if is_foreign && target.ca.is_some() {
        "no certificate in redis.ca_file has signed the server's. Set it to the file of the authority that did"
    } else if is_foreign {
        "no authority that this machine trusts has signed the server's certificate. Set redis.ca_file to the one that did"
    } else if has("NotValidForName") || has("not valid for name") {
        "the server's certificate is for other names. Use one of them in the URL"
    } else if target.is_tls && has("timed out") {
        "nothing answers in time. Check host, port and firewall; or the port may not speak TLS: use the server's tls-port"
    } else if target.is_tls && has("InvalidContentType") {
        "the port may not speak TLS. Use the server's tls-port, or a URL without TLS, as redis:// instead of rediss://"
    } else if is_unreadable && has("Unexpected `21`") {
        "the port speaks TLS. Use rediss:// instead of redis://"
    } else if !target.is_tls && (has("Connection reset") || has("unexpected end of file")) {
        "the server closed the connection. If its port speaks TLS, use rediss:// instead of redis://"
    } else if is_unreadable {
        "what answers is not Redis. Check host and port in the URL"
    } else if has("cluster support disabled") {
        "the server is not a node of a Cluster. Use redis:// instead of redis-cluster://"
    } else if has("does not point to a sentinel") {
        "what answers is not a Sentinel. Use its port (26379), or redis:// to connect to a server directly"
    } else {
        return None;
    };
    Some(hint)
}
