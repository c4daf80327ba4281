//! `GET /cluster`: Redis, and all gateways that serve the same clients.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::ids;
use super::rebalance::RebalanceInfo;
use crate::cluster::registry::Peer;
use crate::cluster::status::LinkStatus;

#[derive(Serialize)]
pub(super) struct Cluster {
    /// The id of this gateway's run.
    gateway: String,
    /// Each connection to Redis.
    redis: Vec<LinkStatus>,
    /// Gateways that are alive, then those that are gone.
    gateways: Vec<Peer>,
    /// How long ago they were read from Redis; `null`: never yet.
    gateways_age_ms: Option<u64>,
    totals: Totals,
    /// The progress of this gateway's last rebalance; `null`: there was none.
    rebalance: Option<RebalanceInfo>,
}

/// Sums over the gateways that are alive. Rooms are left out: one that two gateways follow would count twice.
#[derive(Default, Serialize)]
struct Totals {
    alive: u64,
    gone: u64,
    connections: u64,
    connections_max: u64,
    sessions: u64,
    users: u64,
    rooms_behind: u64,
    pushes_waiting: u64,
}

pub(super) async fn cluster(State(app): State<App>, uri: Uri) -> Result<Json<Cluster>, ApiError> {
    ids::no_parameters(&uri)?;
    let status = app.about.cluster().ok_or(ApiError::NoCluster)?;
    let (gateways, age) = status.peers();
    let mut totals = Totals::default();
    gateways.iter().for_each(|gateway| totals.add(gateway));
    let as_ms = |age: std::time::Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(Cluster {
        gateway: status.gateway().to_owned(),
        redis: status.links(),
        gateways,
        gateways_age_ms: age.map(as_ms),
        totals,
        rebalance: app.rebalancer.info(),
    }))
}

impl Totals {
    fn add(&mut self, gateway: &Peer) {
        if !gateway.is_alive() {
            self.gone += 1;
            return;
        }
        let figures = &gateway.line.figures;
        self.alive += 1;
        self.connections += figures.connections;
        self.connections_max += figures.connections_max;
        self.sessions += figures.sessions;
        self.users += figures.users;
        self.rooms_behind += figures.rooms_behind;
        self.pushes_waiting += figures.pushes_waiting;
    }
}
