//! `POST /reload`: reads the certificates again, on a thread of its own.

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use tokio::time::timeout;

use super::app::App;
use super::error::ApiError;
use super::ids;

/// What was read again.
#[derive(Serialize)]
pub(super) struct Reloaded {
    certificates: &'static str,
}

pub(super) async fn reload(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Reloaded>, ApiError> {
    ids::no_parameters(request.uri())?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let Some(certificates) = app.about.certificates().cloned() else {
        return Ok(Json(Reloaded { certificates: "none" }));
    };
    // Files may be on a disk that hangs. Other requests must not wait for it, and nor must this one.
    let reload = move || {
        let reloaded = certificates.reload();
        match &reloaded {
            Ok(true) => tracing::info!("new connections get the new certificates"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the new certificates can't be used"),
        }
        reloaded
    };
    let reloaded = timeout(app.timeouts.answer, tokio::task::spawn_blocking(reload)).await;
    let reloaded = reloaded.map_err(|_| ApiError::SlowFiles)?.map_err(|_| ApiError::Failed)?;
    let certificates = match reloaded {
        Ok(true) => "changed",
        Ok(false) => "unchanged",
        Err(error) => return Err(ApiError::BadCertificates(error.to_string())),
    };
    Ok(Json(Reloaded { certificates }))
}
