//! HTTP for operators, on a thread of its own: metrics, health, push, kick, and a page to look at.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page for operators |
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200, or 503 while new connections are not welcome |
//! | `GET /metrics` | metrics, as Prometheus reads them |
//! | `GET /stats` | `{"ready", "totals", "shards"}`: of each shard its driver, rings and figures |
//! | `GET /users/{id}` | a user's connections |
//! | `GET /rooms/{id}` | a room; `*` is everybody's |
//! | `POST /push/users/{id}?type=N` | pushes the body; `{"connections": n}` |
//! | `POST /push/rooms/{id}?type=N` | likewise; 0 connections is no error, see below |
//! | `POST /push/all?type=N` | likewise |
//! | `POST /users/{id}/kick` | closes a user's connections with 107; `{"connections": n}` |
//!
//! All but the first three need `Authorization: Bearer <token>`, with the token of
//! `admin.token_file`; Prometheus sends it with `authorization: { credentials_file: <path> }` in its
//! `scrape_config`. A room's id is percent-encoded. An error is `{"error": "..."}`: 400 what was asked
//! makes no sense, 401 no token, 404 no such room, 413 the body is too long, 503 with `Retry-After`
//! overloaded or stopping, 504 no answer within [`ANSWER_TIMEOUT`].
//!
//! A push opens its room where there is none: who joins it later by naming an offset gets the push. So a
//! name that was mistyped is answered like an empty room's, with 200 and `{"connections": 0}`, and leaves a
//! room for `rooms.idle_ttl_ms`. `GET /rooms/{id}` tells them apart beforehand: 404.
//!
//! What is asked goes through [`Control`]; this module knows no shard and no connection.

mod access;
mod api;
mod binding;
mod error;
mod listener;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::config::AdminConfig;
use crate::control::Control;
use crate::metrics_page::MetricsPage;
use crate::secret::{SecretError, load_or_create_secret};
use crate::server::RELEASED_WITHIN;

use api::App;
use binding::HandOver;
use listener::BoundedListener;

/// How long a request may take, its body's arrival included. Later: 504.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long requests under way may take when the server is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Why there is no server: the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address can't be listened on.
    #[error("can't listen for operators on {address}: {cause}; choose another with --admin")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// There is no token.
    #[error("admin.token_file: {0}")]
    Token(SecretError),
    /// The system gives no thread, or no poller.
    #[error("can't start the operators' HTTP server")]
    Start(#[from] io::Error),
}

/// A running server. Dropping it stops it too, without waiting for it.
#[derive(Debug)]
pub struct AdminServer {
    local_addr: SocketAddr,
    hand_over: HandOver,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl AdminServer {
    /// Where it listens: the port is never 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Lets a gateway that starts have the address, and new connections with it. To be called when this
    /// one drains.
    pub fn allow_successor(&self) {
        self.hand_over.allow();
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
) -> Result<AdminServer, AdminError> {
    serve_with(config, control, metrics, ANSWER_TIMEOUT)
}

fn serve_with(
    config: &AdminConfig,
    control: Arc<dyn Control>,
    metrics: impl Into<MetricsPage>,
    answer_timeout: Duration,
) -> Result<AdminServer, AdminError> {
    let token = load_or_create_secret(&config.token_file).map_err(AdminError::Token)?;
    let address = config.listen;
    let (listener, hand_over) = binding::bind(address, RELEASED_WITHIN)
        .map_err(|cause| AdminError::Bind { address, cause })?;
    listener.set_nonblocking(true)?;
    let local_addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let app = App {
        control,
        metrics: metrics.into(),
        token: token.into(),
        body_bytes_max: config.body_bytes_max,
        answer_timeout,
    };
    let (stop, stopped) = oneshot::channel();
    let work = move || {
        if let Err(error) = run(&runtime, listener, app, stopped) {
            tracing::error!(%error, "the operators' HTTP server has ended");
        }
    };
    let thread = thread::Builder::new().name("admin".into()).spawn(work)?;
    Ok(AdminServer { local_addr, hand_over, stop, thread })
}

fn run(
    runtime: &Runtime,
    listener: TcpListener,
    app: App,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    runtime.block_on(async {
        let listener = BoundedListener::new(tokio::net::TcpListener::from_std(listener)?);
        let (drain, draining) = oneshot::channel::<()>();
        let server = axum::serve(listener, api::router(app)).with_graceful_shutdown(async {
            // It never comes: its sender is dropped below.
            drop(draining.await);
        });
        let server = tokio::spawn(server.into_future());
        drop(stopped.await);
        drop(drain);
        // Who has not got its answer by then goes without: the runtime's end closes it.
        drop(tokio::time::timeout(SHUTDOWN_GRACE, server).await);
        Ok(())
    })
}
