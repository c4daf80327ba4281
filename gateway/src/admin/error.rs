//! What goes wrong with a request, and what the operator is told.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidegate_backend::publisher::{PushError, RoomIdError};

/// What clients are told to wait after a 503, in seconds: overload passes, a restart takes longer.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error(
        "this needs `Authorization: Bearer <token>`, with the token in the gateway's admin.token_file"
    )]
    Unauthorized,
    #[error("{0:?} is no user id: it is a whole number from 0 to 18446744073709551615")]
    BadUser(String),
    #[error("{0}; in a path it is percent-encoded UTF-8")]
    BadRoom(String),
    #[error("a push needs a type: add ?type=N, with N from 1 to 2147483647")]
    NoType,
    #[error("type = {0:?}: a push's type is a whole number from 1 to 2147483647")]
    BadType(String),
    #[error("the body did not arrive whole: {0}")]
    BadBody(String),
    #[error("the body is longer than limits.max_frame_to_client_bytes ({bytes_max})")]
    TooLong { bytes_max: usize },
    #[error("there is no room {0:?}: a room exists while it has members or pushes to remember")]
    NoRoom(String),
    #[error(
        "there is no {method} {path}: GET / shows a page, the gateway's README.md lists the rest"
    )]
    NoPath { method: String, path: String },
    #[error("{path} does not take {method}; the header Allow says what it takes")]
    BadMethod { method: String, path: String },
    #[error("{0}")]
    Refused(#[from] PushError),
    #[error("the gateway is stopping")]
    Stopping,
    #[error("the gateway does not take new connections: it is starting, or draining")]
    NotReady,
    #[error("the shards did not answer in time; whether it was done is unknown: look at /stats")]
    Timeout,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::BadUser(_)
            | Self::BadRoom(_)
            | Self::NoType
            | Self::BadType(_)
            | Self::BadBody(_)
            | Self::Refused(PushError::BadType(_)) => StatusCode::BAD_REQUEST,
            Self::NoRoom(_) | Self::NoPath { .. } | Self::Refused(PushError::UnknownSession) => {
                StatusCode::NOT_FOUND
            }
            Self::BadMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLong { .. } | Self::Refused(PushError::TooLong { .. }) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Refused(PushError::Overloaded | PushError::Stopping)
            | Self::Stopping
            | Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
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
        let status = self.status();
        let mut response = (status, Json(json!({ "error": self.to_string() }))).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
            }
            _ => {}
        }
        response
    }
}
