//! Errors of requests, and how operators see them.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tidegate_backend::publisher::{PushError, RoomIdError};

use super::silence::Unresponsive;
use crate::control::DRAINING;
use crate::reload::ReloadError;
use crate::service::Silence;

/// `Retry-After` of a 503, in seconds: overload is over sooner, a restart takes longer.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// `WWW-Authenticate` of a 401. `tide` sends the token only where this was the answer to a request without it.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"tidegate\"");

/// Why a request fails, grouped by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    // Mistakes of the operator.
    #[error(
        "the request has no token: send `Authorization: Bearer <token>`, with the token in the gateway's \
         admin.token_file"
    )]
    NoToken,
    #[error(
        "the token is wrong: it is not the one in the gateway's admin.token_file, which each gateway has for \
         itself"
    )]
    WrongToken,
    #[error(
        "{0:?} is no user id: it is a whole number from 0 to 18446744073709551615, in plain digits: no sign, no \
         zero before it, not percent-encoded"
    )]
    BadUser(String),
    #[error("{0}; in a path it is percent-encoded UTF-8")]
    BadRoom(String),
    #[error("a push needs a type: add ?type=N, with N from 1 to 2147483647")]
    NoType,
    #[error(
        "type = {0:?}: a push's type is a whole number from 1 to 2147483647, in plain digits: no sign, no zero \
         before it, not percent-encoded"
    )]
    BadType(String),
    #[error(
        "key = {0:?}: it has a % without two hexadecimal digits: in a parameter a push's key is percent-encoded, and a \
         % itself is %25"
    )]
    BadKey(String),
    #[error(
        "ttl_ms = {0:?}: a push's time to live is a whole number of milliseconds from 1 to 4294967295, in plain digits"
    )]
    BadTtl(String),
    #[error("the body is no JSON array of pushes: {0}")]
    BadPushes(String),
    #[error("push {index} of the array: {reason}; nothing was pushed")]
    BadPush { index: usize, reason: String },
    #[error("the array has {count} pushes; one request takes at most {count_max}")]
    TooManyPushes { count: usize, count_max: usize },
    #[error(
        "there is no parameter {0:?} here: POST /push/... takes `type`, `key` and `ttl_ms`; POST /cluster/rebalance takes \
         `count`, `per_second`, `spare_s` and `dry_run`; POST /drain takes `hurry`; nothing else takes any"
    )]
    BadParameter(String),
    #[error("the parameter {0:?} is repeated: give it once")]
    RepeatedParameter(String),
    #[error("this takes no body: the path and the parameters name all that it needs")]
    UnexpectedBody,
    #[error("{name} = {value:?}: it is {allowed}")]
    BadNumber { name: &'static str, value: String, allowed: &'static str },
    #[error(
        "this gateway is alone: redis.url is not set. Set the same redis.url for all gateways that serve the same clients, \
         and restart them; README.md says how, under \"Operate it\""
    )]
    NoCluster,
    #[error(
        "prefix = {0:?}: this must be an IPv4 address or /24, or an IPv6 address, /64 or /48, as in ?prefix=192.0.2.0/24"
    )]
    BadPrefix(String),
    #[error("{0} is in addresses.exempt, so a ban of it would do nothing")]
    ExemptPrefix(String),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error(
        "this gateway does not know the others, since redis.url is not set: say how many clients to send away, with \
         ?count=N"
    )]
    NoCount,
    #[error(
        "there is no other gateway that could take clients: none is in the registry that is alive and not draining; see \
         GET /cluster"
    )]
    Alone,
    #[error(
        "what is known of the other gateways is too old, since Redis is away: wait until it is back, or say how many \
         clients to send away, with ?count=N"
    )]
    OldRegistry,
    #[error(
        "a rebalance is running already: GET /cluster/rebalance shows it, and DELETE /cluster/rebalance ends it"
    )]
    RebalanceRuns,
    #[error("this gateway is draining: it sends all of its clients away already")]
    DrainsAnyway,
    #[error("the body has Content-Encoding {0:?}: it is pushed unchanged, so send it uncompressed")]
    EncodedBody(String),
    #[error("the body did not arrive whole: {0}")]
    BadBody(String),
    #[error(
        "the body did not arrive within {} s, so nothing was done: send as many bytes as Content-Length says, or \
         the last chunk", .0.as_secs_f64()
    )]
    LateBody(Duration),
    #[error("the body is longer than limits.frame_to_client_bytes_max ({bytes_max})")]
    TooLong { bytes_max: usize },
    #[error("the body is longer than twice limits.frame_to_client_bytes_max ({bytes_max})")]
    PushesTooLong { bytes_max: usize },
    #[error("there is no room {0:?}: a room exists while it has members or pushes to remember")]
    NoRoom(String),
    #[error(
        "there is no {method} {path}: GET / shows a page, and the gateway's README.md lists the other paths; only GET / \
         ends in a slash"
    )]
    NoPath { method: String, path: String },
    #[error("{path} does not take {method}; the header Allow says what it takes")]
    BadMethod { method: String, path: String },

    // Failures of the gateway.
    #[error("{0}")]
    Refused(#[from] PushError),
    #[error("the gateway is stopping")]
    Stopping,
    #[error("the gateway does not take connections yet: it is starting")]
    Starting,
    #[error("the gateway does not take new connections: it is draining")]
    Draining,
    #[error(
        "there are no keys to verify tokens with, so each client gets 104: auth.jwks_url gave none since the start: {0}"
    )]
    NoKeys(String),
    #[error(
        "new clients can't log in: Redis, which holds the tokens, has been away for {0} s; clients with a session are served"
    )]
    RedisAway(u64),
    #[error("{}: does a handler with Placement::Shard block? Restart the gateway if it persists", names(.0))]
    Silent(Vec<Silence>),
    #[error(
        "the shards did not answer in time{}; whether it was done is unknown: see /healthz and /stats",
        also(.0)
    )]
    Timeout(Vec<Silence>),
    #[error(
        "the reload has not ended in time: does a disk hang, or auth.jwks_url? If it ends later, it counts all the same: the \
         gateway's log and /stats say what came of it"
    )]
    SlowFiles,
    #[error("the gateway failed on this request: its log says why")]
    Failed,
}

/// An error as JSON.
#[derive(Serialize)]
struct ErrorBody {
    /// For people.
    error: String,
    /// For programs: it never changes.
    code: &'static str,
    #[serde(flatten, skip_serializing_if = "Unresponsive::is_empty")]
    unresponsive: Unresponsive,
}

fn names(silent: &[Silence]) -> String {
    let name = |Silence { thread, lasts }: &Silence| {
        format!("{thread} has not answered for {} s", lasts.as_secs())
    };
    silent.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn also(silent: &[Silence]) -> String {
    if silent.is_empty() { String::new() } else { format!(" ({})", names(silent)) }
}

impl ApiError {
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoToken => (StatusCode::UNAUTHORIZED, "no_token"),
            Self::WrongToken => (StatusCode::UNAUTHORIZED, "wrong_token"),
            Self::BadUser(_) => (StatusCode::BAD_REQUEST, "bad_user_id"),
            Self::BadRoom(_) => (StatusCode::BAD_REQUEST, "bad_room_id"),
            Self::NoType => (StatusCode::BAD_REQUEST, "no_type"),
            Self::BadType(_) => (StatusCode::BAD_REQUEST, "bad_type"),
            Self::BadKey(_) => (StatusCode::BAD_REQUEST, "bad_key"),
            Self::BadTtl(_) => (StatusCode::BAD_REQUEST, "bad_ttl"),
            Self::BadPushes(_) => (StatusCode::BAD_REQUEST, "bad_pushes"),
            Self::BadPush { .. } => (StatusCode::BAD_REQUEST, "bad_push"),
            Self::TooManyPushes { .. } => (StatusCode::BAD_REQUEST, "too_many_pushes"),
            Self::BadParameter(_) => (StatusCode::BAD_REQUEST, "bad_parameter"),
            Self::RepeatedParameter(_) => (StatusCode::BAD_REQUEST, "repeated_parameter"),
            Self::BadNumber { .. } => (StatusCode::BAD_REQUEST, "bad_number"),
            Self::Reload(error) => reload_refused(error),
            Self::BadPrefix(_) => (StatusCode::BAD_REQUEST, "bad_prefix"),
            Self::ExemptPrefix(_) => (StatusCode::CONFLICT, "exempt"),
            Self::NoCluster => (StatusCode::NOT_FOUND, "no_cluster"),
            Self::NoCount => (StatusCode::BAD_REQUEST, "no_count"),
            Self::Alone => (StatusCode::CONFLICT, "alone"),
            Self::OldRegistry => (StatusCode::CONFLICT, "redis_away"),
            Self::RebalanceRuns => (StatusCode::CONFLICT, "rebalance_runs"),
            Self::DrainsAnyway => (StatusCode::CONFLICT, DRAINING),
            Self::RedisAway(_) => (StatusCode::SERVICE_UNAVAILABLE, "redis_away"),
            Self::UnexpectedBody => (StatusCode::BAD_REQUEST, "unexpected_body"),
            Self::BadBody(_) => (StatusCode::BAD_REQUEST, "bad_body"),
            Self::NoRoom(_) => (StatusCode::NOT_FOUND, "no_room"),
            Self::NoPath { .. } => (StatusCode::NOT_FOUND, "no_path"),
            Self::BadMethod { .. } => (StatusCode::METHOD_NOT_ALLOWED, "bad_method"),
            Self::LateBody(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::TooLong { .. } | Self::PushesTooLong { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_long")
            }
            Self::EncodedBody(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded_body"),
            Self::Refused(refusal) => refused(*refusal),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
            Self::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, DRAINING),
            Self::NoKeys(_) => (StatusCode::SERVICE_UNAVAILABLE, "no_keys"),
            Self::Silent(_) => (StatusCode::SERVICE_UNAVAILABLE, "shards_hang"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "shard_timeout"),
            Self::SlowFiles => (StatusCode::GATEWAY_TIMEOUT, "slow_files"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        }
    }

    fn unresponsive(&self) -> Unresponsive {
        match self {
            Self::Silent(silent) | Self::Timeout(silent) => silent.as_slice().into(),
            _ => Unresponsive::default(),
        }
    }
}

fn reload_refused(error: &ReloadError) -> (StatusCode, &'static str) {
    match error {
        ReloadError::Busy | ReloadError::FileChanges => (StatusCode::CONFLICT, "reload_runs"),
        ReloadError::NotServing => (StatusCode::CONFLICT, "not_serving"),
        ReloadError::Certificates(_) => (StatusCode::UNPROCESSABLE_ENTITY, "bad_certificates"),
        ReloadError::NeedsRestart(_) => (StatusCode::UNPROCESSABLE_ENTITY, "needs_restart"),
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "bad_configuration"),
    }
}

/// The status of a refused command, and its code for programs.
pub(super) fn refused(refusal: PushError) -> (StatusCode, &'static str) {
    match refusal {
        PushError::BadType(_) => (StatusCode::BAD_REQUEST, "bad_type"),
        PushError::BadKey(_) => (StatusCode::BAD_REQUEST, "bad_key"),
        PushError::BadTtl(_) => (StatusCode::BAD_REQUEST, "bad_ttl"),
        PushError::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_long"),
        PushError::UnknownSession => (StatusCode::NOT_FOUND, "unknown_session"),
        PushError::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, "redis_unreachable"),
        PushError::Refused => (StatusCode::BAD_GATEWAY, "redis_refused"),
        PushError::SessionGone => (StatusCode::NOT_FOUND, "session_gone"),
        PushError::TooManyJoins { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_joins"),
        PushError::TooManyRooms { .. } => (StatusCode::CONFLICT, "too_many_rooms"),
        PushError::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        PushError::RoomsFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "rooms_full"),
        PushError::KeysFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "keys_full"),
        PushError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    }
}

impl From<RoomIdError> for ApiError {
    fn from(error: RoomIdError) -> Self {
        Self::BadRoom(match error {
            RoomIdError::Reserved => format!("{error}; POST /push/all pushes to it"),
            _ => error.to_string(),
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let unresponsive = self.unresponsive();
        let body = ErrorBody { error: self.to_string(), code, unresponsive };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
            }
            StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
