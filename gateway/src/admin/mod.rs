//! HTTP for operators, on separate threads: metrics, health, push, kick, and a page to look at.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page for operators |
//! | `GET /healthz` | 200 while every shard and the HTTP gateway answer; 503 names those that have not for [`SILENCE_MAX`] |
//! | `GET /readyz` | likewise, and 503 while new connections are not accepted, or there are no keys to verify tokens with; while Redis is away 200, with a text that says so |
//! | `GET /metrics` | metrics, as Prometheus reads them |
//! | `GET /stats` | `{"ready", "gateway", "totals", "shards", "unresponsive_shards", "http_silent_ms", "ended_shards"}`: what the gateway is, and each shard's driver, rings and figures, or how long it has not answered |
//! | `POST /reload` | loads the configuration again: `{"result", "generation", "changes", "certificates", "unconfirmed"}` |
//! | `POST /drain` | drains the gateway; `hurry` hurries the drain that is under way |
//! | `GET /users/{id}` | a user's connections |
//! | `GET /rooms/{id}` | a room; `*` is everybody's |
//! | `GET /cluster` | `{"gateway", "redis", "gateways", "totals", "rebalance", ...}`: Redis, and what each gateway says of itself; 404 where `redis.url` is not set |
//! | `POST /cluster/rebalance` | sends clients to other gateways, at a pace; `count`, `per_second`, `spare_s`, `dry_run` |
//! | `GET /cluster/rebalance` | its progress; `null`: there was none |
//! | `DELETE /cluster/rebalance` | ends it |
//! | `GET /bans` | `{"count", "bans": [{"prefix", "seconds_left"}]}`: addresses that are banned, at most 1,000, those first that end first |
//! | `POST /bans?prefix=P` | bans an address or a network, for `seconds` (3,600); `{"prefix", "was_banned"}`, and `"shared"` where gateways share bans: whether others will learn it |
//! | `POST /bans/lift?prefix=P` | ends a ban; likewise |
//! | `POST /push/users/{id}?type=N` | pushes the body; `{"connections": n}` |
//! | `POST /push/rooms/{id}?type=N` | likewise; 0 connections is no error, see below |
//! | `POST /push/all?type=N` | likewise |
//! | `POST /push` | several pushes in a JSON array; an array of what each alone would be answered |
//! | `POST /users/{id}/kick` | closes a user's connections with 110; `{"connections": n}` |
//! | `POST /rooms/{id}/expel/{user}` | ends a user's memberships of a room; `{"connections": n}` |
//!
//! All but the first three need `Authorization: Bearer <token>`, with the token of
//! `admin.token_file`; Prometheus sends it with `authorization: { credentials_file: <path> }` in its
//! `scrape_config`. A room's id and a push's key are percent-encoded, and nothing else is: numbers are plain digits.
//! Nothing but a single push (`type`, `key` and `ttl_ms`), a rebalance, a drain and a ban takes parameters, each once. Health and the
//! page ignore what they are given.
//!
//! An error is `{"error": "...", "code": "..."}`: the first for people, the second for programs. 400 the
//! request makes no sense, 401 no token or a wrong one, 404 no such room or path, 405 no such method, 408 the
//! body stalled, 409 a rebalance runs already, or there is no other gateway, 413 it is too long, 415 it is compressed, 503 with `Retry-After` refused, overloaded, hanging,
//! starting, without keys, draining or stopping, 504 no answer of a shard within [`ANSWER_TIMEOUT`]. A path that is not there
//! is 404 also without the token: there is nothing secret about it. What is no HTTP/1 at all, or has a head of
//! more than 16 KiB, is answered by the library, which sends 400, 414 or 431 without a body; a head that stalls
//! is not answered.
//!
//! A push opens its room if there is none, so that a client that joins later with an offset gets the push. So a push to
//! a mistyped name is answered like one to an empty room, with 200 and `{"connections": 0}`, and leaves a room for
//! `rooms.idle_ttl_ms`. `GET /rooms/{id}` tells the two apart beforehand: 404. If the room can't be opened because its
//! home shard has `rooms.rooms_per_shard_max` rooms, nothing is pushed: 503.
//!
//! The thread `admin` accepts connections, reads requests, answers health and refuses requests without the token.
//! It never blocks and does no long work. The thread `admin-work` answers requests with the token. So health is
//! answered while `admin-work` renders a million metrics. An answer without the token ends its connection, and 401 comes after
//! [`REFUSAL_DELAY`]: `access` says why.
//! `connection_table` says how many connections are open at once, and which is closed for a new connection.
//!
//! Requests reach the shards through [`Control`]; this module knows no shard and none of their connections.

mod access;
mod api;
mod app;
mod bans;
mod binding;
mod cluster;
mod connection_table;
mod connections;
mod drain;
mod error;
mod health;
mod ids;
mod metrics_cache;
mod pushes;
mod rebalance;
mod reload;
mod silence;
mod stats;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};

use crate::about::About;
use crate::config::AdminConfig;
use crate::control::Control;
use crate::holder::{AddressError, PATIENCE, Wait};
use crate::metrics_page::MetricsPage;
use crate::secret::{SecretError, load_or_create_secret};
#[cfg(doc)]
use crate::service::SILENCE_MAX;

use crate::http_io::accept::AcceptQueue;
pub use access::REFUSAL_DELAY;
use access::Refusals;
use app::{App, Timeouts};
pub(crate) use binding::HandOver;
use connections::HttpService;
use metrics_cache::MetricsCache;
use rebalance::Rebalancer;

/// How long the shards may take to answer. Later: 504.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a request's body may take to come. Later: 408.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests for files that are read at once. One that hangs keeps a thread.
const BLOCKING_THREADS_MAX: usize = 2;

/// How long requests under way may take when the server is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Why there is no server. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address can't be listened on.
    #[error(
        "can't listen for operators on {address}: {cause}; choose another address with --admin (the key admin.listen)"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// There is no token.
    #[error("admin.token_file: {0}")]
    Token(SecretError),
    /// The start was interrupted.
    #[error("the start was interrupted while it waited for the operators' address")]
    Interrupted,
    /// The system gives no thread, or no poller.
    #[error("can't start the operators' HTTP server")]
    Start(#[from] io::Error),
}

/// A running server. Dropping it stops it too, without waiting for it.
#[derive(Debug)]
pub struct AdminServer {
    local_addr: SocketAddr,
    hand_over: Arc<HandOver>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl AdminServer {
    /// Where it listens: the port is never 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What lets a gateway that starts share the address and get its new connections, when this gateway drains. It keeps the
    /// address in use no longer than the server does.
    pub(crate) fn hand_over(&self) -> Weak<HandOver> {
        Arc::downgrade(&self.hand_over)
    }

    /// Stops it and waits until it is gone: at most about a second, for requests under way.
    pub fn shutdown(self) {
        // Dropping it is the signal.
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the operators' HTTP server had panicked");
        }
    }
}

/// Starts the server. It listens when this returns.
///
/// # Errors
/// [`AdminError`] when it can't listen, has no token, or gets no thread.
pub fn serve(
    config: &AdminConfig,
    control: Arc<dyn Control>,
    metrics: impl Into<MetricsPage>,
    about: About,
) -> Result<AdminServer, AdminError> {
    serve_once_released(
        config,
        control,
        metrics,
        about,
        &Wait { patience: PATIENCE, interrupted: &|| false },
    )
}

/// Like [`serve`], with another wait for the address.
pub(crate) fn serve_once_released(
    config: &AdminConfig,
    control: Arc<dyn Control>,
    metrics: impl Into<MetricsPage>,
    about: About,
    wait: &Wait<'_>,
) -> Result<AdminServer, AdminError> {
    let timeouts = Timeouts {
        head: connections::HEAD_TIMEOUT,
        body: BODY_TIMEOUT,
        answer: ANSWER_TIMEOUT,
        refusal: REFUSAL_DELAY,
    };
    serve_with(config, control, metrics, about, timeouts, wait)
}

fn serve_with(
    config: &AdminConfig,
    control: Arc<dyn Control>,
    metrics: impl Into<MetricsPage>,
    about: About,
    timeouts: Timeouts,
    wait: &Wait<'_>,
) -> Result<AdminServer, AdminError> {
    let token = load_or_create_secret(&config.token_file).map_err(AdminError::Token)?;
    let address = config.listen;
    let (listener, hand_over) = binding::bind(address, wait).map_err(|error| match error {
        AddressError::Interrupted => AdminError::Interrupted,
        AddressError::Refused(cause) => AdminError::Bind { address, cause },
    })?;
    listener.set_nonblocking(true)?;
    let local_addr = listener.local_addr()?;
    let front = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()?;
    let (silence, silent) = watch::channel(Vec::new());
    let app = App {
        control: Arc::clone(&control),
        metrics: Arc::new(MetricsCache::new(metrics.into())),
        about: Arc::new(about),
        admin_listen: local_addr,
        token: token.into(),
        body_bytes_max: config.body_bytes_max,
        timeouts,
        work: work.handle().clone(),
        rebalancer: Arc::new(Rebalancer::default()),
        silent,
        refusals: Arc::new(Refusals::new()),
    };
    let (end_work, work_ended) = oneshot::channel::<()>();
    thread::Builder::new().name("admin-work".into()).spawn(move || {
        // Its sender is dropped with the thread below.
        drop(work.block_on(work_ended));
    })?;
    let (stop, stopped) = oneshot::channel();
    let run_front = move || {
        front.spawn(health::watch(control, silence));
        if let Err(error) = run(&front, listener, app, stopped) {
            tracing::error!(%error, "the operators' HTTP server has ended");
        }
        drop(end_work);
    };
    let thread = thread::Builder::new().name("admin".into()).spawn(run_front)?;
    Ok(AdminServer { local_addr, hand_over: Arc::new(hand_over), stop, thread })
}

fn run(
    front: &Runtime,
    listener: TcpListener,
    app: App,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    front.block_on(async {
        let queue = AcceptQueue::new(listener)?;
        let head_timeout = app.timeouts.head;
        let service = HttpService { router: api::router(app), head_timeout };
        // A request that is not answered within the grace is not answered: the runtime's end closes its connection.
        connections::serve(queue, service, stopped, SHUTDOWN_GRACE).await;
        Ok(())
    })
}
