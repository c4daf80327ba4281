//! `/cluster/rebalance`: sends clients to other gateways, at a pace.
//!
//! How many: what this gateway has beyond its share, as the registry says it, or what the operator says. The shards do
//! the work; see [`crate::shard::rebalance`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Uri;
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::ids;
use crate::cluster::registry::{self, Surplus};
use crate::control::Readiness;
use crate::shard::rebalance::{Order, Progress, divide};

/// Clients sent away a second, where the operator says nothing: a login of each costs the other gateways little.
const PER_SECOND: u64 = 200;

/// How long ago a client must have connected, in seconds, where the operator gives no value.
const SPARED_S: u16 = 60;

/// The highest age of the registry that is acted on.
const REGISTRY_AGE_MAX: Duration = Duration::from_secs(10);

/// The last rebalance of this gateway.
#[derive(Default)]
pub(super) struct Rebalancer {
    last: Mutex<Option<Arc<Progress>>>,
}

/// The progress of a rebalance.
#[derive(Serialize)]
pub(super) struct RebalanceInfo {
    /// `running`, `done` or `cancelled`.
    state: &'static str,
    /// Clients to send away.
    count: u64,
    /// Clients that were sent away.
    sent: u64,
    per_second: u64,
    spare_s: u16,
}

/// The answer to an order.
#[derive(Serialize)]
pub(super) struct Ordered {
    /// Whether it only computes, and sends no client away.
    dry_run: bool,
    /// Clients to send away.
    count: u64,
    per_second: u64,
    spare_s: u16,
    /// Clients that came long enough ago to be sent away.
    movable: u64,
    /// What the registry says; `null` where the operator said how many.
    #[serde(flatten)]
    surplus: Option<Surplus>,
}

impl Rebalancer {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Progress>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The progress of the last one; `None`: there was none.
    pub(super) fn info(&self) -> Option<RebalanceInfo> {
        self.lock().as_deref().map(RebalanceInfo::of)
    }
}

impl RebalanceInfo {
    fn of(progress: &Progress) -> Self {
        let Order { count, per_second, spared_s } = progress.order();
        let state = match (progress.has_ended(), progress.is_cancelled()) {
            (false, false) => "running",
            (_, true) => "cancelled",
            (true, false) => "done",
        };
        Self { state, count, sent: progress.sent(), per_second, spare_s: spared_s }
    }
}

pub(super) async fn show(
    State(app): State<App>,
    uri: Uri,
) -> Result<Json<Option<RebalanceInfo>>, ApiError> {
    ids::no_parameters(&uri)?;
    Ok(Json(app.rebalancer.info()))
}

pub(super) async fn cancel(
    State(app): State<App>,
    uri: Uri,
) -> Result<Json<Option<RebalanceInfo>>, ApiError> {
    ids::no_parameters(&uri)?;
    if let Some(progress) = app.rebalancer.lock().as_ref().filter(|last| !last.has_ended()) {
        progress.cancel();
        tracing::info!(sent = progress.sent(), "an operator ended a rebalance");
    }
    Ok(Json(app.rebalancer.info()))
}

pub(super) async fn start(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Ordered>, ApiError> {
    let asked = Asked::read(request.uri())?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    match app.control.readiness() {
        Readiness::Starting => return Err(ApiError::Starting),
        Readiness::Draining => return Err(ApiError::DrainsAnyway),
        Readiness::Ready => {}
    }
    let surplus = if asked.count.is_none() { Some(surplus(&app)?) } else { None };
    let wanted = asked.count.or(surplus.map(|surplus| surplus.surplus)).unwrap_or(0);
    let Asked { per_second, spared_s, dry_run, .. } = asked;
    let movable = movable(&app, spared_s).await?;
    let all_movable = movable.iter().sum();
    let count = wanted.min(all_movable);
    if !dry_run && count > 0 {
        send_away(&app, Order { count, per_second, spared_s }, &movable)?;
    }
    let spare_s = spared_s;
    Ok(Json(Ordered { dry_run, count, per_second, spare_s, movable: all_movable, surplus }))
}

/// What the registry says that this gateway has beyond its share.
fn surplus(app: &App) -> Result<Surplus, ApiError> {
    let status = app.about.cluster().ok_or(ApiError::NoCount)?;
    let (peers, age) = status.peers();
    if age.is_none_or(|age| age > REGISTRY_AGE_MAX) {
        return Err(ApiError::OldRegistry);
    }
    registry::surplus(status.gateway(), &peers).ok_or(ApiError::Alone)
}

/// Clients of each shard that came long enough ago to be sent away.
async fn movable(app: &App, spared_s: u16) -> Result<Vec<u64>, ApiError> {
    let ask = |shard| app.control.count_movable(shard, spared_s);
    let asked: Vec<_> = (0..app.control.shards()).map(ask).collect();
    let mut movable = Vec::new();
    for reply in asked {
        movable.push(app.answer(reply).await?);
    }
    Ok(movable)
}

fn send_away(app: &App, order: Order, movable: &[u64]) -> Result<(), ApiError> {
    // Held from the check to the start, so that two operators do not start two.
    let mut last = app.rebalancer.lock();
    if last.as_ref().is_some_and(|last| !last.has_ended()) {
        return Err(ApiError::RebalanceRuns);
    }
    let (progress, shares) = divide(order, movable);
    for (shard, share) in (0..).zip(shares) {
        if let Some(share) = share {
            app.control.send_away(shard, share);
        }
    }
    *last = Some(progress);
    drop(last);
    let Order { count, per_second, spared_s } = order;
    tracing::info!(count, per_second, spared_s, "an operator sends clients to other gateways");
    Ok(())
}

/// The parameters of an order.
struct Asked {
    count: Option<u64>,
    per_second: u64,
    spared_s: u16,
    dry_run: bool,
}

impl Asked {
    fn read(uri: &Uri) -> Result<Self, ApiError> {
        let [count, per_second, spared_s, dry_run] =
            ids::named(uri, ["count", "per_second", "spare_s", "dry_run"])?;
        let bad = |name, value: &str, allowed| ApiError::BadNumber {
            name,
            value: value.to_owned(),
            allowed,
        };
        let read = |name, value: Option<&str>, least: u64, most: u64, allowed| {
            let number = |value: &str| {
                let number = ids::number(value).filter(|number| (least..=most).contains(number));
                number.ok_or_else(|| bad(name, value, allowed))
            };
            value.map(number).transpose()
        };
        let count = read(
            "count",
            count,
            1,
            1_000_000_000,
            "a whole number from 1 to 1000000000, in plain digits",
        )?;
        let per_second = read(
            "per_second",
            per_second,
            1,
            20_000,
            "a whole number from 1 to 20000, in plain digits",
        )?;
        let spared_s =
            read("spare_s", spared_s, 0, 3_600, "a whole number from 0 to 3600, in plain digits")?;
        let dry_run = match dry_run {
            None | Some("false") => false,
            Some("true") => true,
            Some(value) => {
                return Err(ApiError::BadNumber {
                    name: "dry_run",
                    value: value.to_owned(),
                    allowed: "true or false",
                });
            }
        };
        Ok(Self {
            count,
            per_second: per_second.unwrap_or(PER_SECOND),
            spared_s: spared_s.map_or(SPARED_S, |s| u16::try_from(s).unwrap_or(SPARED_S)),
            dry_run,
        })
    }
}
