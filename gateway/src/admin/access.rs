//! Checks the token of a request that needs it, and moves the request to the thread `admin-work`.

use axum::body::HttpBody as _;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;
use tokio::task::AbortHandle;

use super::app::App;
use super::connection_table::ConnectionHandle;
use super::error::ApiError;
use crate::http_io::bearer;

/// Passes on a request with the token, whose connection then keeps its slot. The thread `admin-work` does the
/// rest, so the thread that accepts, reads and answers health never waits for it.
pub(super) async fn demand_token(
    State(app): State<App>,
    Extension(connection): Extension<ConnectionHandle>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let sent = bearer(request.headers()).ok_or(ApiError::NoToken)?;
    if !bool::from(sent.as_bytes().ct_eq(app.token.as_bytes())) {
        return Err(ApiError::WrongToken);
    }
    connection.mark_authenticated();
    // Where there is one, the body is still to come.
    connection.set_working(request.body().is_end_stream());
    let working = app.work.spawn(next.run(request));
    let _abort = AbortOnDrop(working.abort_handle());
    working.await.map_err(|_| ApiError::Failed)
}

/// A request whose connection is gone needs no answer.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
