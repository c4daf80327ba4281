//! `POST /reload`: loads the configuration again, on a thread of its own.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};

use tokio::time::timeout;

use super::app::App;
use super::error::ApiError;
use super::ids;
use crate::reload::{Reloaded, Trigger};

pub(super) async fn reload(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Reloaded>, ApiError> {
    ids::no_parameters(request.uri())?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let reloader = app.about.reloader().map(Arc::clone).ok_or(ApiError::Starting)?;
    // Files may be on a disk that hangs. Other requests must not wait for it, and nor must this one.
    let reload = tokio::task::spawn_blocking(move || reloader.reload(Trigger::Operator));
    let reloaded = timeout(app.timeouts.answer, reload).await;
    let reloaded = reloaded.map_err(|_| ApiError::SlowFiles)?.map_err(|_| ApiError::Failed)?;
    Ok(Json(reloaded?))
}
