//! Why a request fails, and how its client sees that: the status, and the code that a session would get.

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use serde::Serialize;
use tidegate_backend::Code;
use tidegate_backend::handler::Failure;

use crate::auth::AuthError;

/// The answer to a client.
pub(super) type Answer = Response<Full<Bytes>>;

/// `WWW-Authenticate` of a 401 to a request without a token.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"tidegate\"");

/// The same to a request with a token that is no good (RFC 6750, 3.1).
const REFUSAL: HeaderValue =
    HeaderValue::from_static("Bearer realm=\"tidegate\", error=\"invalid_token\"");

/// Each status that a client may get, apart from 200 and 204, and what it means: the document that describes the routes is
/// made of it.
pub(super) const STATUSES: [(u16, &str); 15] = [
    (400, "106: the request, its query or its body is not what it should be"),
    (401, "100: there is no token, or it is no good"),
    (403, "106: pages of this origin may not send requests"),
    (404, "105: there is no such path, or no backend for its type"),
    (405, "106: the path does not take this method; Allow says which it takes"),
    (406, "106: the client does not accept what the answer would be"),
    (408, "106: the body did not arrive in time"),
    (413, "106: the body is too long"),
    (414, "the path is too long"),
    (415, "106: the body has another type than it should have, or is compressed"),
    (429, "103: too many requests; try again after Retry-After"),
    (431, "the head is too long"),
    (502, "101: the backend failed"),
    (
        503,
        "104 or 108: overloaded, draining, or the token can't be verified now; try again after Retry-After",
    ),
    (504, "102: the backend did not answer in time"),
];

/// Why a request fails, grouped by whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    // Mistakes of the client.
    #[error(
        "the request has both Content-Length and Transfer-Encoding, or its length can't be known"
    )]
    AmbiguousLength,
    #[error("an HTTP/1.1 request has exactly one Host header")]
    BadHost,
    #[error("pages of this origin may not send requests")]
    BadOrigin,
    #[error("there is no such path")]
    NoPath,
    #[error("this path does not take this method; the header Allow says which it takes")]
    BadMethod {
        /// The value of `Allow`.
        allow: &'static str,
    },
    #[error("the request has no token: send `Authorization: Bearer <token>`")]
    NoToken,
    #[error(
        "the token does not say whose it is: send the user's number in the header Tidegate-User"
    )]
    NoUser,
    #[error("Tidegate-User is no number of a user")]
    BadUser,
    #[error("{}", .0.text_for_client())]
    BadToken(AuthError),
    #[error("the answer would be {0}, which the request does not accept")]
    NotAcceptable(&'static str),
    #[error("the body has to be application/json, in UTF-8")]
    UnsupportedType,
    #[error("the body is compressed: send it as it is")]
    CompressedBody,
    #[error("the body is longer than {0} bytes")]
    BodyTooLong(usize),
    #[error("the body did not arrive in time")]
    LateBody,
    #[error("the body did not arrive whole")]
    BrokenBody,
    #[error("the body is not the JSON that this path takes: {0}")]
    BadJson(String),
    #[error("the query is not what this path takes: {0}")]
    BadQuery(String),

    // Failures behind the gateway, or its own.
    #[error("{}", text_of(.0))]
    Failed(Failure),
    #[error("the backend's answer can't be passed on")]
    BadAnswer,
}

fn text_of(failure: &Failure) -> &'static str {
    match failure.code {
        Code::Unauthenticated => "the backend takes this user for not authenticated",
        Code::Timeout => "the backend did not answer in time; whether it acted is unknown",
        Code::RateLimited => "too many requests",
        Code::Overloaded => {
            "the gateway or the backend is overloaded; the request was not handed over"
        }
        Code::NoRoute => "no backend serves this path",
        Code::Draining => "the gateway drains: connect again",
        _ => "the backend failed",
    }
}

/// A number of ten bits that neighbouring slots don't share, as shards spread waits.
const fn spread(slot: u32) -> u32 {
    slot.wrapping_mul(0x9e37_79b9) >> 22
}

/// A wait of once to twice this, spread by slot, so that clients do not all come back at once.
pub(super) fn spread_ms(wait_ms: u32, slot: u32) -> u32 {
    let more_ms = u64::from(wait_ms) * u64::from(spread(slot)) / 1024;
    wait_ms.saturating_add(u32::try_from(more_ms).unwrap_or(u32::MAX))
}

/// How long a client should wait where nothing else says it: half a second to one and a half, so that `Retry-After`, in whole
/// seconds, differs too.
const fn unadvised_wait_ms(slot: u32) -> u32 {
    500 + spread(slot)
}

/// An error as JSON.
#[derive(Serialize)]
struct ErrorBody {
    /// For programs: the code that a session would get.
    code: u32,
    /// For people.
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u32>,
}

impl HttpError {
    /// The code that a session would get.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::NoPath => Code::NoRoute,
            Self::NoToken | Self::NoUser | Self::BadUser => Code::Unauthenticated,
            Self::BadToken(error) if error.is_unknowable() => Code::Overloaded,
            Self::BadToken(_) => Code::Unauthenticated,
            // A backend may fail a call with any code. The other codes have a meaning for sessions only.
            Self::Failed(failure) if failure.code.fails_request() => failure.code,
            Self::Failed(_) | Self::BadAnswer => Code::BackendFailed,
            _ => Code::Malformed,
        }
    }

    /// The status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::BadOrigin => StatusCode::FORBIDDEN,
            Self::BadMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::UnsupportedType | Self::CompressedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LateBody => StatusCode::REQUEST_TIMEOUT,
            _ => match self.code() {
                Code::Unauthenticated => StatusCode::UNAUTHORIZED,
                Code::NoRoute => StatusCode::NOT_FOUND,
                Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
                Code::Overloaded | Code::Draining => StatusCode::SERVICE_UNAVAILABLE,
                Code::Timeout => StatusCode::GATEWAY_TIMEOUT,
                Code::BackendFailed => StatusCode::BAD_GATEWAY,
                _ => StatusCode::BAD_REQUEST,
            },
        }
    }

    /// Whether what follows on the connection can't be read.
    fn ends_connection(&self) -> bool {
        let drains = matches!(self, Self::Failed(failure) if failure.code == Code::Draining);
        let is_unread = matches!(
            self,
            Self::AmbiguousLength | Self::BodyTooLong(_) | Self::LateBody | Self::BrokenBody
        );
        drains || is_unread
    }

    /// `slot`: the request's, by which waits are spread.
    fn retry_after_ms(&self, slot: u32) -> Option<u32> {
        let advised = match self {
            Self::Failed(failure) => failure.retry_after_ms,
            _ => 0,
        };
        let waits = matches!(self.code(), Code::RateLimited | Code::Overloaded | Code::Draining);
        waits.then_some(if advised == 0 { unadvised_wait_ms(slot) } else { advised })
    }

    /// The answer. `slot`: the request's, by which waits are spread.
    pub(super) fn answer(&self, slot: u32) -> Answer {
        let retry_after_ms = self.retry_after_ms(slot);
        let body =
            ErrorBody { code: self.code().number(), error: self.to_string(), retry_after_ms };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        *answer.status_mut() = self.status();
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::NoToken => headers.insert(header::WWW_AUTHENTICATE, CHALLENGE),
            _ if self.status() == StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, REFUSAL)
            }
            Self::BadMethod { allow } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow))
            }
            _ => None,
        };
        if let Some(ms) = retry_after_ms {
            headers.insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
        }
        if self.ends_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_of_a_failed_call_has_its_status() {
        let expected = [
            (Code::Unauthenticated, 401, 100, false),
            (Code::BackendFailed, 502, 101, false),
            (Code::Timeout, 504, 102, false),
            (Code::RateLimited, 429, 103, true),
            (Code::Overloaded, 503, 104, true),
            (Code::NoRoute, 404, 105, false),
            (Code::Malformed, 502, 101, false),
            (Code::Replaced, 502, 101, false),
            (Code::Draining, 503, 108, true),
            (Code::Idle, 502, 101, false),
            (Code::Kicked, 502, 101, false),
        ];
        assert_eq!(expected.map(|(code, ..)| code), Code::ALL);
        for (code, status, number, waits) in expected {
            let error = HttpError::Failed(Failure { code, retry_after_ms: 1_500 });
            let answer = error.answer(0);
            assert_eq!((answer.status().as_u16(), error.code().number()), (status, number));
            let wait = answer.headers().get(header::RETRY_AFTER).map(|wait| wait.as_bytes());
            assert_eq!(wait, waits.then_some(&b"2"[..]));
            assert!(STATUSES.iter().any(|&(known, _)| known == status), "{status}");
        }
    }

    #[test]
    fn the_waits_of_requests_that_fail_together_are_spread() {
        let overloaded = HttpError::Failed(Code::Overloaded.into());
        for error in [overloaded, HttpError::BadToken(AuthError::RedisUnavailable)] {
            let after = |slot| error.answer(slot).headers()[header::RETRY_AFTER].clone();
            let soon = (0..1_000).filter(|&slot| after(slot) == "1").count();
            assert!((400..600).contains(&soon) && (0..1_000).all(|slot| after(slot) <= "2"));
        }
        let drains: Vec<_> = (0..1_000).map(|slot| spread_ms(2_000, slot)).collect();
        assert!(drains.iter().all(|wait| (2_000..4_000).contains(wait)));
        let soon = drains.iter().filter(|&&wait| wait < 3_000).count();
        assert!((400..600).contains(&soon), "{soon}");
    }
}
