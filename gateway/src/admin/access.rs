//! Checks the token of a request that needs it, and moves the request to the thread `admin-work`.
//!
//! A request without a token, or with a wrong one, is counted. One with a wrong token is a guess: the log has a line for it, at
//! most one in 10 s, and its answer comes after [`REFUSAL_DELAY`]. One without a token guesses nothing, and `tide` sends one
//! before each command to see that a gateway answers: it is refused at once. The right token is never delayed, also from an
//! address with failures.
//!
//! The delay holds a task and the connection's slot, and no thread. Such a connection is not protected from eviction
//! (see [`connection_table`](super::connection_table)), so it keeps neither health nor an operator out. At most
//! [`DELAYED_MAX`] answers are delayed at once, and others are not, so that the other slots stay free for connections that
//! are about to send their token. The delay slows down scripts that wait for each answer. One that does not wait can try
//! thousands a second; against that the token has 256 random bits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use metrics::counter;
use subtle::ConstantTimeEq;
use tidegate_backend::log_limit::LogLimit;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::app::App;
use super::connection_table::ConnectionHandle;
use super::error::ApiError;
use crate::http_io::bearer;

/// How long a request with a wrong token waits for its answer.
pub const REFUSAL_DELAY: Duration = Duration::from_secs(1);

/// Answers that are delayed at once: less than half of the connections' slots.
const DELAYED_MAX: usize = 16;

/// Counts requests that were refused for their token.
pub(super) const REFUSED: &str = "tidegate_operator_tokens_refused_total";

/// Why a request was refused: the values of the label `reason` of [`REFUSED`].
const REASONS: [&str; 2] = [NO_TOKEN, WRONG_TOKEN];
const NO_TOKEN: &str = "no_token";
const WRONG_TOKEN: &str = "wrong_token";

/// The address that a request comes from. `connections` adds it to each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// What requests with a wrong token have: log lines, which are limited, and answers that are delayed.
#[derive(Debug)]
pub(super) struct Refusals {
    lines: LogLimit,
    delayed: AtomicUsize,
}

impl Refusals {
    pub(super) fn new() -> Self {
        REASONS.iter().for_each(|&reason| counter!(REFUSED, "reason" => reason).increment(0));
        Self { lines: LogLimit::new(), delayed: AtomicUsize::new(0) }
    }

    /// A request came with a wrong token. Returns when it may be answered.
    async fn wrong_token(&self, peer: SocketAddr, delay: Duration) {
        if let Some(suppressed) = self.lines.allow() {
            let reason = WRONG_TOKEN;
            tracing::warn!(%peer, reason, suppressed, "refused an operator's request: its token is not that of admin.token_file");
        }
        self.delay(delay).await;
    }

    /// Waits for the delay of an answer, unless as many answers wait as may.
    async fn delay(&self, delay: Duration) {
        let before = self.delayed.fetch_add(1, Ordering::Relaxed);
        let _delayed = Delayed(&self.delayed);
        if before < DELAYED_MAX {
            sleep(delay).await;
        }
    }
}

/// An answer that is delayed, also one whose connection is gone before.
struct Delayed<'a>(&'a AtomicUsize);

impl Drop for Delayed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes on a request with the token, whose connection then keeps its slot. The thread `admin-work` does the
/// rest, so the thread that accepts, reads and answers health never waits for it.
pub(super) async fn demand_token(
    State(app): State<App>,
    Extension(connection): Extension<ConnectionHandle>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Err((error, reason)) = check_token(&app.token, bearer(request.headers())) {
        counter!(REFUSED, "reason" => reason).increment(1);
        if reason == WRONG_TOKEN {
            app.refusals.wrong_token(peer, app.timeouts.refusal).await;
        }
        return Err(error);
    }
    connection.mark_authenticated();
    // Where there is one, the body is still to come.
    connection.set_working(request.body().is_end_stream());
    let working = app.work.spawn(next.run(request));
    let _abort = AbortOnDrop(working.abort_handle());
    working.await.map_err(|_| ApiError::Failed)
}

fn check_token(token: &str, sent: Option<&str>) -> Result<(), (ApiError, &'static str)> {
    let sent = sent.ok_or((ApiError::NoToken, NO_TOKEN))?;
    if bool::from(sent.as_bytes().ct_eq(token.as_bytes())) {
        Ok(())
    } else {
        Err((ApiError::WrongToken, WRONG_TOKEN))
    }
}

/// A request whose connection is gone needs no answer.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn no_more_answers_are_delayed_than_may_be() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _time = runtime.enter();
        let refusals = Refusals::new();
        let hour = Duration::from_secs(3600);
        let mut context = Context::from_waker(Waker::noop());
        let mut delayed: Vec<_> =
            (0..DELAYED_MAX).map(|_| Box::pin(refusals.delay(hour))).collect();
        assert!(delayed.iter_mut().all(|delay| delay.as_mut().poll(&mut context).is_pending()));
        assert_eq!(pin!(refusals.delay(hour)).poll(&mut context), Poll::Ready(()));
        // One whose connection is gone makes room for another.
        delayed.pop();
        assert!(pin!(refusals.delay(hour)).poll(&mut context).is_pending());
    }
}
