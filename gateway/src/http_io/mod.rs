//! What the operators' HTTP and the clients' have in common: accepting, and a stream with deadlines.

pub(crate) mod accept;
pub(crate) mod stream;

use std::io;

use axum::http::{HeaderMap, header};

/// Why the gateway closed a connection. `None`: the peer or the network closed it.
pub(crate) fn cause_of(error: &hyper::Error, answered: bool) -> Option<&'static str> {
    let timed_out = || {
        let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
        (source.kind() == io::ErrorKind::TimedOut).then_some("write_timeout")
    };
    match error {
        _ if error.is_timeout() => Some(if answered { "idle" } else { "head_timeout" }),
        _ if error.is_parse() => Some("malformed"),
        _ => timed_out(),
    }
}

/// The token that a request sends, if it sends one.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = Some(token.trim()).filter(|token| !token.is_empty())?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}
