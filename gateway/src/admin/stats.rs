//! `GET /stats`: what the gateway is, and what its shards count.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::app::App;
use super::drain::DrainInfo;
use super::error::ApiError;
use super::ids;
use super::silence::Unresponsive;
use crate::about::About;
use crate::control::ShardInfo;
use crate::service::{ServingThread, Silence};
use std::net::SocketAddr;

#[derive(Serialize)]
pub(super) struct Stats {
    /// Whether it accepts new connections, every shard and the HTTP gateway answer, there are keys to verify tokens with, and Redis where tokens are there.
    ready: bool,
    gateway: Gateway,
    totals: Totals,
    /// The shards that have answered.
    shards: Vec<ShardInfo>,
    /// What has not answered. Such a shard is in no total.
    #[serde(flatten)]
    unresponsive: Unresponsive,
    /// The shards that have ended: the gateway stops.
    ended_shards: Vec<u16>,
}

/// What the gateway is.
#[derive(Serialize)]
struct Gateway {
    #[serde(flatten)]
    about: About,
    uptime_ms: u64,
    /// `starting`, `ready` or `draining`.
    state: &'static str,
    /// How far the drain has come; `null`: there is none.
    drain: Option<DrainInfo>,
    admin_listen: SocketAddr,
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
    rings: u64,
}

pub(super) async fn stats(State(app): State<App>, uri: Uri) -> Result<Json<Stats>, ApiError> {
    ids::no_parameters(&uri)?;
    let silent = app.silent.borrow().clone();
    let mut unresponsive = Unresponsive::from(silent.as_slice());
    // A shard that hangs is not asked again: its questions would pile up.
    let hangs =
        |shard: &u16| silent.iter().any(|silence| silence.thread == ServingThread::Shard(*shard));
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
                let thread = ServingThread::Shard(shard);
                unresponsive.add(&Silence { thread, lasts: app.timeouts.answer });
            }
        }
    }
    let ready = app.control.is_ready()
        && unresponsive.is_empty()
        && app.about.missing_keys().is_none()
        && app.redis_away_s(true).is_none();
    // The shards end before what is left of the HTTP gateway.
    let drain = DrainInfo::of(&shards).or((!ended_shards.is_empty()).then_some(DrainInfo::LAST));
    let gateway = Gateway::of(&app, drain);
    Ok(Json(Stats { ready, gateway, totals, shards, unresponsive, ended_shards }))
}

impl Gateway {
    fn of(app: &App, drain: Option<DrainInfo>) -> Self {
        Self {
            about: app.about.now(),
            uptime_ms: u64::try_from(app.about.uptime().as_millis()).unwrap_or(u64::MAX),
            state: app.control.readiness().name(),
            drain,
            admin_listen: app.admin_listen,
        }
    }
}

impl Totals {
    fn add(&mut self, shard: &ShardInfo) {
        self.connections += shard.connections;
        self.sessions += shard.sessions;
        self.users += shard.users;
        self.memberships += shard.memberships;
        self.calls_in_flight += shard.calls_in_flight;
        self.outbox_bytes += shard.outbox_bytes;
        self.rings += shard.rings;
    }
}
