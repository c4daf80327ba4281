//! The requests and their answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension, FromRequest as _, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::Serialize;
use tidegate_backend::publisher::{Command, RoomId, Target};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection_table::ConnectionHandle;
use super::error::ApiError;
use super::health::{self, Silent};
use super::{access, ids};
use crate::control::{Control, Reply, RoomInfo, ShardInfo, UserInfo};
use crate::metrics_page::MetricsPage;
use crate::service::Silence;

/// The page for operators. It holds nothing secret and loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The page may run its own script and ask this server, and nothing else; nobody may frame it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The state that handlers share.
#[derive(Clone)]
pub(super) struct App {
    pub(super) control: Arc<dyn Control>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) token: Arc<str>,
    pub(super) body_bytes_max: usize,
    pub(super) timeouts: Timeouts,
    /// The thread that answers what needs the token.
    pub(super) work: Handle,
    pub(super) silent: Silent,
}

/// When a request's head was there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// The metrics' text. Requests that arrive at the same time share one: it is rendered once for all of them.
pub(super) struct Metrics {
    page: MetricsPage,
    /// When the last rendering began, and its text.
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Metrics {
    pub(super) fn new(page: MetricsPage) -> Self {
        Self { page, last: Mutex::new(None) }
    }

    /// The metrics at this time, or later.
    fn text(&self, at: Instant) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((begun, text)) = &*last
            && *begun >= at
        {
            return text.clone();
        }
        let (begun, text) = (Instant::now(), Bytes::from(self.page.render()));
        *last = Some((begun, text.clone()));
        text
    }
}

/// How long a request may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For its head, from when the connection waits for it. Later: closed.
    pub(super) head: Duration,
    /// For the whole of its body. Later: 408.
    pub(super) body: Duration,
    /// For the shards, from when all of it is there. Later: 504.
    pub(super) answer: Duration,
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
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .merge(guarded)
        .fallback(no_path)
        .method_not_allowed_fallback(bad_method)
        .layer(DefaultBodyLimit::max(app.body_bytes_max))
        .with_state(app)
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
    /// Those that have answered.
    shards: Vec<ShardInfo>,
    /// Those that have not, and are in no total: they hang.
    silent_shards: Vec<SilentShard>,
    /// Those that have ended: the gateway stops.
    ended_shards: Vec<u16>,
}

/// A shard that hangs, as JSON.
#[derive(Serialize)]
pub(super) struct SilentShard {
    shard: u16,
    silent_ms: u64,
}

impl From<&Silence> for SilentShard {
    fn from(silence: &Silence) -> Self {
        let silent_ms = u64::try_from(silence.lasts.as_millis()).unwrap_or(u64::MAX);
        Self { shard: silence.shard, silent_ms }
    }
}

/// Sums over the shards that have answered. Rooms are left out: one with members on two shards would count twice.
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

async fn metrics(
    State(app): State<App>,
    Extension(Arrived(at)): Extension<Arrived>,
    uri: Uri,
) -> Result<Response, ApiError> {
    ids::no_parameters(&uri)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], app.metrics.text(at)).into_response())
}

async fn stats(State(app): State<App>, uri: Uri) -> Answer<Stats> {
    ids::no_parameters(&uri)?;
    let silent = app.silent.borrow().clone();
    let mut silent_shards: Vec<_> = silent.iter().map(SilentShard::from).collect();
    // A shard that hangs is not asked again: its questions would pile up.
    let hangs = |shard: &u16| silent.iter().any(|silence| silence.shard == *shard);
    let asked: Vec<_> = (0..app.control.shards())
        .filter(|shard| !hangs(shard))
        // All shards are asked before the first is waited for.
        .map(|shard| (shard, app.control.shard(shard)))
        .collect();
    let (began, mut totals) = (Instant::now(), Totals::default());
    let (mut shards, mut ended_shards) = (Vec::new(), Vec::new());
    for (shard, reply) in asked {
        match timeout_at(began + app.timeouts.answer, reply).await {
            Ok(Ok(info)) => {
                totals.add(&info);
                shards.push(info);
            }
            Ok(Err(_)) => ended_shards.push(shard),
            Err(_) => {
                let silence = Silence { shard, lasts: app.timeouts.answer };
                silent_shards.push(SilentShard::from(&silence));
            }
        }
    }
    let ready = app.control.is_ready() && silent_shards.is_empty();
    Ok(Json(Stats { ready, totals, shards, silent_shards, ended_shards }))
}

impl Totals {
    fn add(&mut self, shard: &ShardInfo) {
        self.connections += shard.connections;
        self.sessions += shard.sessions;
        self.users += shard.users;
        self.memberships += shard.memberships;
        self.calls_in_flight += shard.calls_in_flight;
        self.outbox_bytes += shard.outbox_bytes;
    }
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
    let reached = app.command(Command::Kick { user_id }).await?;
    let connections = reached.connections;
    tracing::info!(user_id, connections, "an operator kicked a user");
    Ok(reached)
}

async fn push_user(State(app): State<App>, request: Request) -> Answer<Reached> {
    let target = Target::User(ids::user(request.uri(), 3)?);
    app.push(target, request).await
}

async fn push_room(State(app): State<App>, request: Request) -> Answer<Reached> {
    let target = Target::Room(ids::room(request.uri(), 3)?);
    app.push(target, request).await
}

async fn push_all(State(app): State<App>, request: Request) -> Answer<Reached> {
    app.push(Target::Room(RoomId::everybody()), request).await
}

async fn no_path(method: Method, uri: Uri) -> ApiError {
    ApiError::NoPath { method: method.to_string(), path: uri.path().to_owned() }
}

async fn bad_method(method: Method, uri: Uri) -> ApiError {
    ApiError::BadMethod { method: method.to_string(), path: uri.path().to_owned() }
}

impl App {
    async fn push(&self, target: Target, request: Request) -> Answer<Reached> {
        let kind = ids::kind(request.uri())?;
        let biz_data = self.body(request).await?;
        self.command(Command::Push { target, kind, biz_data }).await
    }

    /// Reads a request's body.
    async fn body(&self, request: Request) -> Result<Bytes, ApiError> {
        if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(ApiError::EncodedBody(encoding));
        }
        let connection = request.extensions().get::<ConnectionHandle>().cloned();
        let body = Bytes::from_request(request, &());
        let limit = self.timeouts.body;
        let arrived = timeout(limit, body).await.map_err(|_| ApiError::LateBody(limit))?;
        connection.iter().for_each(|connection| connection.set_working(true));
        arrived.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLong { bytes_max: self.body_bytes_max },
            _ => ApiError::BadBody(rejection.body_text()),
        })
    }

    async fn command(&self, command: Command) -> Answer<Reached> {
        let done = self.answer(self.control.command(command)).await??;
        Ok(Json(Reached { connections: done.connections }))
    }

    /// Waits for a shard's answer.
    async fn answer<T>(&self, reply: Reply<T>) -> Result<T, ApiError> {
        let answered = timeout(self.timeouts.answer, reply).await;
        let answered = answered.map_err(|_| ApiError::Timeout(self.silent.borrow().clone()))?;
        answered.map_err(|_| ApiError::Stopping)
    }
}
