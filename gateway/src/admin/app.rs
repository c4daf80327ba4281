//! The state that all requests share, and what a handler does with it: read a body, give a command, wait for the
//! shards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest as _, Request};
use axum::http::{StatusCode, header};
use bytes::Bytes;
use tidegate_backend::publisher::{Command, Done};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::access::Refusals;
use super::connection_table::ConnectionHandle;
use super::error::ApiError;
use super::metrics_cache::MetricsCache;
use super::rebalance::Rebalancer;
use super::silence::Silent;
use crate::about::About;
use crate::control::{Control, Reply};

/// The state that handlers share.
#[derive(Clone)]
pub(super) struct App {
    pub(super) control: Arc<dyn Control>,
    pub(super) metrics: Arc<MetricsCache>,
    pub(super) about: Arc<About>,
    /// Where operators connect.
    pub(super) admin_listen: SocketAddr,
    pub(super) token: Arc<str>,
    pub(super) body_bytes_max: usize,
    pub(super) timeouts: Timeouts,
    /// The thread that answers requests with the token.
    pub(super) work: Handle,
    pub(super) silent: Silent,
    pub(super) refusals: Arc<Refusals>,
    pub(super) rebalancer: Arc<Rebalancer>,
}

/// How long a request may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For its head, from when the connection waits for it. Later: closed.
    pub(super) head: Duration,
    /// For its whole body. Later: 408.
    pub(super) body: Duration,
    /// For the shards, from when all of it has arrived. Later: 504.
    pub(super) answer: Duration,
    /// Of the answer to a request without the token.
    pub(super) refusal: Duration,
}

/// Where several pushes are given in one request.
pub(super) const PUSH_MANY: &str = "/push";

/// Bytes of the body of such a request, where one push may have `bytes_max`: that one push fits in base64.
pub(super) const fn many_bytes_max(bytes_max: usize) -> usize {
    bytes_max.saturating_mul(2)
}

impl App {
    /// Reads a request's body.
    pub(super) async fn body(&self, request: Request) -> Result<Bytes, ApiError> {
        if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(ApiError::EncodedBody(encoding));
        }
        let is_many = request.uri().path() == PUSH_MANY;
        let connection = request.extensions().get::<ConnectionHandle>().cloned();
        let body = Bytes::from_request(request, &());
        let limit = self.timeouts.body;
        let arrived = timeout(limit, body).await.map_err(|_| ApiError::LateBody(limit))?;
        connection.iter().for_each(|connection| connection.set_working(true));
        arrived.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE if is_many => {
                ApiError::PushesTooLong { bytes_max: many_bytes_max(self.body_bytes_max) }
            }
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLong { bytes_max: self.body_bytes_max },
            _ => ApiError::BadBody(rejection.body_text()),
        })
    }

    /// Gives a command, and waits until it is done.
    pub(super) async fn command(&self, command: Command) -> Result<Done, ApiError> {
        Ok(self.answer(self.control.command(command)).await??)
    }

    /// Waits for a shard's answer.
    pub(super) async fn answer<T>(&self, reply: Reply<T>) -> Result<T, ApiError> {
        let answered = timeout(self.timeouts.answer, reply).await;
        let answered = answered.map_err(|_| ApiError::Timeout(self.silent.borrow().clone()))?;
        answered.map_err(|_| ApiError::Stopping)
    }

    /// How long Redis has been away: see [`Status::away_s`](crate::cluster::status::Status::away_s).
    pub(super) fn redis_away_s(&self, for_logins: bool) -> Option<u64> {
        self.about.cluster()?.away_s(for_logins)
    }

    /// An error where shards or the HTTP gateway do not answer.
    pub(super) fn all_threads_answer(&self) -> Result<(), ApiError> {
        let silent = self.silent.borrow().clone();
        if silent.is_empty() { Ok(()) } else { Err(ApiError::Silent(silent)) }
    }
}
