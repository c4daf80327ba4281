//! The paths that are served, and the handlers that only ask the shards.

use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tidegate_backend::publisher::{Command, RoomId, Target};

use super::app::App;
use super::error::ApiError;
use super::metrics_cache::Arrived;
use super::{access, health, ids, stats};
use crate::control::{RoomInfo, UserInfo};

/// The page for operators. It holds nothing secret and loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The page may use its own script and style, which the hashes name, and ask this server. Nothing else is
/// allowed, and nobody may frame it. A test demands that the hashes fit the page.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; \
     script-src 'sha256-+IV2GaTZiVR5epRgtVrvsd5dVEdNGnZ2nCTrCXKQfYM='; \
     style-src 'sha256-+VdFJmx+roZJ2DdSfQf9/6ASCamt8hjRhwFgD3unSDw='; \
     connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer<T> = Result<Json<T>, ApiError>;

/// All requests that are answered.
pub(super) fn router(app: App) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/stats", get(stats::stats))
        .route("/users/{id}", get(user))
        .route("/users/{id}/kick", post(kick))
        .route("/rooms/{id}", get(room))
        .route("/push/users/{id}", post(push_user))
        .route("/push/rooms/{id}", post(push_room))
        .route("/push/all", post(push_all))
        .route_layer(middleware::from_fn_with_state(app.clone(), access::demand_token));
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .merge(guarded)
        .fallback(no_path)
        .method_not_allowed_fallback(bad_method)
        .layer(DefaultBodyLimit::max(app.body_bytes_max))
        .with_state(app)
}

/// How many connections a push or a kick reached.
#[derive(Serialize)]
struct Reached {
    connections: u64,
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

async fn metrics(
    State(app): State<App>,
    Extension(Arrived(at)): Extension<Arrived>,
    uri: Uri,
) -> Result<Response, ApiError> {
    ids::no_parameters(&uri)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], app.metrics.text(at)).into_response())
}

async fn user(State(app): State<App>, uri: Uri) -> Answer<UserInfo> {
    let id = ids::user(&uri, 2)?;
    ids::no_parameters(&uri)?;
    Ok(Json(app.answer(app.control.user(id)).await?))
}

async fn room(State(app): State<App>, uri: Uri) -> Answer<RoomInfo> {
    let id = ids::any_room(&uri, 2)?;
    ids::no_parameters(&uri)?;
    let found = app.answer(app.control.room(id.clone())).await?;
    found.map(Json).ok_or_else(|| ApiError::NoRoom(id.to_string()))
}

async fn kick(State(app): State<App>, request: Request) -> Answer<Reached> {
    let user_id = ids::user(request.uri(), 2)?;
    ids::no_parameters(request.uri())?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let connections = app.command(Command::Kick { user_id }).await?.connections;
    tracing::info!(user_id, connections, "an operator kicked a user");
    Ok(Json(Reached { connections }))
}

async fn push_user(State(app): State<App>, request: Request) -> Answer<Reached> {
    let target = Target::User(ids::user(request.uri(), 3)?);
    push(&app, target, request).await
}

async fn push_room(State(app): State<App>, request: Request) -> Answer<Reached> {
    let target = Target::Room(ids::room(request.uri(), 3)?);
    push(&app, target, request).await
}

async fn push_all(State(app): State<App>, request: Request) -> Answer<Reached> {
    push(&app, Target::Room(RoomId::everybody()), request).await
}

async fn push(app: &App, target: Target, request: Request) -> Answer<Reached> {
    let kind = ids::kind(request.uri())?;
    let biz_data = app.body(request).await?;
    let connections = app.command(Command::Push { target, kind, biz_data }).await?.connections;
    Ok(Json(Reached { connections }))
}

async fn no_path(method: Method, uri: Uri) -> ApiError {
    ApiError::NoPath { method: method.to_string(), path: uri.path().to_owned() }
}

async fn bad_method(method: Method, uri: Uri) -> ApiError {
    ApiError::BadMethod { method: method.to_string(), path: uri.path().to_owned() }
}
