//! What every guarded request passes first: the token, and the way to the thread that answers it.

use axum::body::HttpBody as _;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;
use tokio::task::AbortHandle;

use super::api::App;
use super::connections::Place;
use super::error::ApiError;

/// Lets through who sends the token, and has its connection keep its place. The rest is done on the thread
/// that works, so that the one which accepts, reads and tells of health never waits for it.
pub(super) async fn demand_token(
    State(app): State<App>,
    Extension(place): Extension<Place>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let sent = bearer(request.headers()).unwrap_or_default();
    if !bool::from(sent.as_bytes().ct_eq(app.token.as_bytes())) {
        return Err(ApiError::Unauthorized);
    }
    place.prove();
    // Where there is one, the body is still to come.
    place.set_working(request.body().is_end_stream());
    let working = app.work.spawn(next.run(request));
    let _abort = AbortOnDrop(working.abort_handle());
    working.await.map_err(|_| ApiError::Failed)
}

/// Whose connection is gone needs no answer.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
