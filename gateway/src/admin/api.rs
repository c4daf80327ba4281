//! The requests and their answers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_backend::publisher::{RoomId, Target, UserId};

use super::access;
use super::error::ApiError;
use crate::control::{Control, Reply, RoomInfo, ShardInfo, UserInfo};
use crate::metrics_page::MetricsPage;

/// The page for operators. It holds nothing secret and loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The page may run its own script and ask this server, and nothing else; nobody may frame it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What Prometheus' text format is called.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What answers need.
#[derive(Clone)]
pub(super) struct App {
    pub(super) control: Arc<dyn Control>,
    pub(super) metrics: MetricsPage,
    pub(super) token: Arc<str>,
    pub(super) body_bytes_max: usize,
    pub(super) answer_timeout: Duration,
}

type Answer<T> = Result<Json<T>, ApiError>;

/// All requests that are answered.
pub(super) fn router(app: App) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/stats", get(stats))
        .route("/users/{id}", get(user))
        .route("/users/{id}/kick", post(kick))
        .route("/rooms/{id}", get(room))
        .route("/push/users/{id}", post(push_user))
        .route("/push/rooms/{id}", post(push_room))
        .route("/push/all", post(push_all))
        .route_layer(middleware::from_fn_with_state(app.clone(), access::demand_token));
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(guarded)
        .fallback(no_path)
        .method_not_allowed_fallback(bad_method)
        .layer(DefaultBodyLimit::max(app.body_bytes_max))
        .layer(middleware::from_fn_with_state(app.clone(), access::limit_time))
        .with_state(app)
}

#[derive(Deserialize)]
struct PushQuery {
    /// A text, so that one that is no number gets our own message.
    r#type: Option<String>,
}

/// How many connections something went to.
#[derive(Serialize)]
struct Reached {
    connections: u64,
}

#[derive(Serialize)]
struct Stats {
    ready: bool,
    totals: Totals,
    shards: Vec<ShardInfo>,
}

/// Sums over the shards. Rooms are left out: one with members on two shards would count twice.
#[derive(Default, Serialize)]
struct Totals {
    connections: u64,
    sessions: u64,
    users: u64,
    memberships: u64,
    calls_in_flight: u64,
    outbox_bytes: u64,
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

async fn ready(State(app): State<App>) -> Result<&'static str, ApiError> {
    if app.control.is_ready() { Ok("ready\n") } else { Err(ApiError::NotReady) }
}

async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], app.metrics.render()).into_response()
}

async fn stats(State(app): State<App>) -> Answer<Stats> {
    let mut totals = Totals::default();
    let mut shards = Vec::new();
    // All shards are asked before the first is waited for.
    for reply in app.control.stats() {
        let shard = answer(reply).await?;
        totals.connections += shard.connections;
        totals.sessions += shard.sessions;
        totals.users += shard.users;
        totals.memberships += shard.memberships;
        totals.calls_in_flight += shard.calls_in_flight;
        totals.outbox_bytes += shard.outbox_bytes;
        shards.push(shard);
    }
    Ok(Json(Stats { ready: app.control.is_ready(), totals, shards }))
}

async fn user(State(app): State<App>, id: PathId) -> Answer<UserInfo> {
    Ok(Json(answer(app.control.user(user_id(id)?)).await?))
}

async fn room(State(app): State<App>, id: PathId) -> Answer<RoomInfo> {
    let id = match text(id).map_err(ApiError::BadRoom)? {
        id if id == "*" => RoomId::everybody(),
        id => RoomId::new(id)?,
    };
    let found = answer(app.control.room(id.clone())).await?;
    found.map(Json).ok_or_else(|| ApiError::NoRoom(id.to_string()))
}

async fn kick(State(app): State<App>, id: PathId) -> Answer<Reached> {
    let user_id = user_id(id)?;
    let connections = answer(app.control.kick(user_id)?).await?;
    tracing::info!(user_id, connections, "an operator kicked a user");
    Ok(Json(Reached { connections }))
}

async fn push_user(
    State(app): State<App>,
    id: PathId,
    query: Query<PushQuery>,
    body: Body,
) -> Answer<Reached> {
    push(&app, Target::User(user_id(id)?), query, body).await
}

async fn push_room(
    State(app): State<App>,
    id: PathId,
    query: Query<PushQuery>,
    body: Body,
) -> Answer<Reached> {
    let room = RoomId::new(text(id).map_err(ApiError::BadRoom)?)?;
    push(&app, Target::Room(room), query, body).await
}

async fn push_all(State(app): State<App>, query: Query<PushQuery>, body: Body) -> Answer<Reached> {
    push(&app, Target::Room(RoomId::everybody()), query, body).await
}

async fn push(
    app: &App,
    target: Target,
    Query(query): Query<PushQuery>,
    body: Body,
) -> Answer<Reached> {
    let kind = query.r#type.ok_or(ApiError::NoType)?;
    let kind = match kind.parse::<i32>() {
        Ok(kind) if kind > 0 => kind,
        _ => return Err(ApiError::BadType(kind)),
    };
    let biz_data = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLong { bytes_max: app.body_bytes_max },
        _ => ApiError::BadBody(rejection.body_text()),
    })?;
    let connections = answer(app.control.push(target, kind, biz_data)?).await?;
    Ok(Json(Reached { connections }))
}

async fn no_path(method: Method, uri: Uri) -> ApiError {
    ApiError::NoPath { method: method.to_string(), path: uri.path().to_owned() }
}

async fn bad_method(method: Method, uri: Uri) -> ApiError {
    ApiError::BadMethod { method: method.to_string(), path: uri.path().to_owned() }
}

/// An id in the path, as it came.
type PathId = Result<Path<String>, PathRejection>;

/// A request's body, or why it did not come.
type Body = Result<Bytes, BytesRejection>;

fn text(id: PathId) -> Result<String, String> {
    id.map(|Path(id)| id).map_err(|rejection| rejection.body_text())
}

fn user_id(id: PathId) -> Result<UserId, ApiError> {
    let id = text(id).map_err(ApiError::BadUser)?;
    id.parse().map_err(|_| ApiError::BadUser(id))
}

/// Waits for the shards' answer.
async fn answer<T>(reply: Reply<T>) -> Result<T, ApiError> {
    reply.await.map_err(|_| ApiError::Stopping)
}
