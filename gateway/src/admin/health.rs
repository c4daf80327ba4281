//! Answers `/healthz` and `/readyz`.
//!
//! A timer asks the shards and the HTTP gateway, and a request reads only the last result. So health is answered at once even
//! if they hang, and costs them the same however often it is requested.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use metrics::gauge;
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};

use super::app::App;
use super::error::ApiError;
use crate::control::{Control, Readiness};
use crate::service::{Liveness, ServingThread, Silence};

/// Time between two checks.
const TICK: Duration = Duration::from_millis(500);

/// Publishes the threads that hang, as long as there are subscribers.
pub(super) async fn watch(control: Arc<dyn Control>, silent: watch::Sender<Vec<Silence>>) {
    let mut liveness = Liveness::new(control);
    let mut ticks = time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !silent.is_closed() {
        ticks.tick().await;
        liveness.check();
        let now: Vec<_> = liveness.silent().collect();
        let is_shard = |silence: &&Silence| silence.thread != ServingThread::Http;
        let shards = now.iter().filter(is_shard).count();
        #[expect(clippy::cast_precision_loss, reason = "at most 256 shards")]
        gauge!("tidegate_unresponsive_shards").set(shards as f64);
        log_changes(&silent.borrow(), &now);
        silent.send_replace(now);
    }
}

fn log_changes(before: &[Silence], now: &[Silence]) {
    let is_new = |one: &&Silence, others: &[Silence]| others.iter().all(|s| s.thread != one.thread);
    for Silence { thread, lasts } in now.iter().filter(|silence| is_new(silence, before)) {
        let seconds = lasts.as_secs();
        match thread {
            ServingThread::Shard(shard) => tracing::error!(
                shard,
                seconds,
                "a shard hangs: does a handler with Placement::Shard block?"
            ),
            ServingThread::Http => tracing::error!(
                seconds,
                "the HTTP gateway hangs: does a handler with Placement::Shard block?"
            ),
        }
    }
    for Silence { thread, .. } in before.iter().filter(|silence| is_new(silence, now)) {
        match thread {
            ServingThread::Shard(shard) => {
                tracing::info!(shard, "a shard that hung answers again, or has ended");
            }
            ServingThread::Http => {
                tracing::info!("the HTTP gateway, which hung, answers again, or has ended");
            }
        }
    }
}

/// 200 while every shard and the HTTP gateway answer.
pub(super) async fn alive(State(app): State<App>) -> Result<&'static str, ApiError> {
    app.all_threads_answer()?;
    Ok("ok\n")
}

/// 200 while every shard and the HTTP gateway answer, new connections are accepted, and tokens can be verified. The text says also whether
/// Redis is away: then the gateway serves its own clients, and pushes of other gateways come when Redis is back.
pub(super) async fn ready(State(app): State<App>) -> Result<String, ApiError> {
    match app.control.readiness() {
        // This comes first: a successor waits for it, and need not wait for shards that hang.
        Readiness::Draining => Err(ApiError::Draining),
        Readiness::Starting => Err(ApiError::Starting),
        Readiness::Ready => {
            app.all_threads_answer()?;
            if let Some(why) = app.about.missing_keys() {
                return Err(ApiError::NoKeys(why));
            }
            // Where session tokens are in Redis, no login succeeds without it.
            if let Some(seconds) = app.redis_away_s(true) {
                return Err(ApiError::RedisAway(seconds));
            }
            Ok(match app.redis_away_s(false) {
                None => "ready\n".to_owned(),
                Some(seconds) => {
                    format!(
                        "ready; Redis has been away for {seconds} s: this gateway serves its own clients\n"
                    )
                }
            })
        }
    }
}
