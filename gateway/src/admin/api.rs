//! The paths that are served, and the handlers that only ask the shards.

use axum::extract::{DefaultBodyLimit, Extension, Request, State};
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Serialize;
use tidegate_backend::publisher::{Command, Done, Nobody, RoomId, Target};

use super::app::{self, App, PUSH_MANY};
use super::error::ApiError;
use super::metrics_cache::Arrived;
use super::{access, bans, cluster, drain, health, ids, pushes, rebalance, reload, stats};
use crate::control::{RoomInfo, UserInfo};

/// The page for operators. It holds nothing secret and loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The page may use its own script and style, which the hashes name, and ask this server. Nothing else is
/// allowed, and no other site may frame it. A test checks that the hashes match the page.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; \
     script-src 'sha256-bY0MuIFkkOEdWZPK3ri2LXgCN+8c3DL7ce6CE4AQXuY='; \
     style-src 'sha256-6o2cDPCjw5H3iirQuq5ZYyQBoWYozLRt45UDc131LbY='; \
     connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer<T> = Result<Json<T>, ApiError>;

/// All requests that are answered.
pub(super) fn router(app: App) -> Router {
    let many_bytes_max = app::many_bytes_max(app.body_bytes_max);
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/stats", get(stats::stats))
        .route("/cluster", get(cluster::cluster))
        .route(
            "/cluster/rebalance",
            get(rebalance::show).post(rebalance::start).delete(rebalance::cancel),
        )
        .route("/reload", post(reload::reload))
        .route("/drain", post(drain::drain))
        .route("/bans", get(bans::list).post(bans::add))
        .route("/bans/lift", post(bans::lift))
        .route("/users/{id}", get(user))
        .route("/users/{id}/kick", post(kick))
        .route("/rooms/{id}", get(room))
        .route("/rooms/{id}/expel/{user}", post(expel))
        .route(PUSH_MANY, post(push_many).layer(DefaultBodyLimit::max(many_bytes_max)))
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

/// How many connections a command reached.
#[derive(Serialize)]
struct Reached {
    connections: u64,
}

/// How many connections a push was offered to, and if to none, why.
#[derive(Serialize)]
pub(super) struct Pushed {
    connections: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nobody: Option<&'static str>,
}

impl From<Done> for Pushed {
    fn from(done: Done) -> Self {
        Self { connections: done.connections, nobody: done.nobody.map(Nobody::name) }
    }
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

async fn expel(State(app): State<App>, request: Request) -> Answer<Reached> {
    let room = ids::room(request.uri(), 2)?;
    let user_id = ids::user(request.uri(), 4)?;
    ids::no_parameters(request.uri())?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let command = Command::Expel { user_id, room: room.clone() };
    let connections = app.command(command).await?.connections;
    tracing::info!(user_id, %room, connections, "an operator expelled a user from a room");
    Ok(Json(Reached { connections }))
}

async fn push_user(State(app): State<App>, request: Request) -> Answer<Pushed> {
    let target = Target::User(ids::user(request.uri(), 3)?);
    push(&app, target, request).await
}

async fn push_room(State(app): State<App>, request: Request) -> Answer<Pushed> {
    let target = Target::Room(ids::room(request.uri(), 3)?);
    push(&app, target, request).await
}

async fn push_all(State(app): State<App>, request: Request) -> Answer<Pushed> {
    push(&app, Target::Room(RoomId::everybody()), request).await
}

async fn push(app: &App, target: Target, request: Request) -> Answer<Pushed> {
    let mut push = ids::push(target, request.uri(), request.headers())?;
    push.biz_data = app.body(request).await?;
    Ok(Json(app.command(Command::Push(push)).await?.into()))
}

async fn push_many(State(app): State<App>, request: Request) -> Answer<Vec<pushes::Outcome>> {
    ids::no_parameters(request.uri())?;
    let pushes = pushes::parse(&app.body(request).await?)?;
    let outcomes = app.answer(app.control.push_many(pushes)).await?;
    Ok(Json(outcomes.into_iter().map(pushes::Outcome::from).collect()))
}

async fn no_path(method: Method, uri: Uri) -> ApiError {
    ApiError::NoPath { method: method.to_string(), path: uri.path().to_owned() }
}

async fn bad_method(method: Method, uri: Uri) -> ApiError {
    ApiError::BadMethod { method: method.to_string(), path: uri.path().to_owned() }
}
