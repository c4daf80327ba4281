//! `POST /drain`: drains the gateway, as SIGTERM does. `GET /stats` shows the progress.

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::ids;
use crate::control::{DrainPhase, Readiness, ShardInfo};

/// The answer to an order.
#[derive(Serialize)]
pub(super) struct Ordered {
    /// Whether the gateway drained already.
    drained_already: bool,
    /// Whether the drain is hurried.
    hurry: bool,
}

/// How far the drain of all shards together has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DrainInfo {
    /// The earliest phase that a shard is in.
    phase: DrainPhase,
    /// When the last shard stops waiting for answers, in milliseconds from now.
    left_ms: u64,
}

impl DrainInfo {
    /// All shards have ended.
    pub(super) const LAST: Self = Self { phase: DrainPhase::Answers, left_ms: 0 };

    /// `None`: no shard drains.
    pub(super) fn of(shards: &[ShardInfo]) -> Option<Self> {
        let drains = || shards.iter().filter_map(|shard| shard.drain);
        let phase = drains().map(|drain| drain.phase).min()?;
        let left_ms = drains().map(|drain| drain.left_ms).max()?;
        Some(Self { phase, left_ms })
    }
}

pub(super) async fn drain(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Ordered>, ApiError> {
    let [hurry] = ids::named(request.uri(), ["hurry"])?;
    let hurry = match hurry {
        None | Some("false") => false,
        Some("true") => true,
        Some(value) => {
            let (name, allowed) = ("hurry", "true or false");
            return Err(ApiError::BadNumber { name, value: value.to_owned(), allowed });
        }
    };
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let drained_already = match app.control.readiness() {
        Readiness::Starting => return Err(ApiError::Starting),
        Readiness::Draining => true,
        Readiness::Ready => false,
    };
    tracing::info!(hurry, drained_already, "an operator drains this gateway");
    if hurry {
        app.control.hurry_drain();
    } else {
        app.control.drain();
    }
    Ok(Json(Ordered { drained_already, hurry }))
}
