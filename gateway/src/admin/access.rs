//! What every request passes first: the clock, and for most of them the token.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::api::App;
use super::error::ApiError;

/// Lets through who sends the token.
pub(super) async fn demand_token(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let sent = bearer(request.headers()).unwrap_or_default();
    if !bool::from(sent.as_bytes().ct_eq(app.token.as_bytes())) {
        return Err(ApiError::Unauthorized);
    }
    Ok(next.run(request).await)
}

/// Answers 504 where nothing else does in time.
pub(super) async fn limit_time(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    tokio::time::timeout(app.answer_timeout, next.run(request)).await.map_err(|_| ApiError::Timeout)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
