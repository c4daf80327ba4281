//! `/bans`: which addresses are banned. Operators may ban others, and lift bans.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::Uri;
use serde::Serialize;

use super::app::App;
use super::error::ApiError;
use super::ids;
use crate::limits::addresses::{AddressLimits, OperatorChange};
use crate::limits::prefix::Prefix;

/// Bans that one answer lists, at most.
const LISTED_MAX: usize = 1_000;

/// The longest ban, in seconds: 30 days.
const SECONDS_MAX: u64 = 2_592_000;

/// The bans.
#[derive(Serialize)]
pub(super) struct BansInfo {
    /// How many there are.
    count: usize,
    /// Those that end first: 1,000 at most.
    bans: Vec<BanInfo>,
}

/// One ban.
#[derive(Serialize)]
struct BanInfo {
    /// An address or a network.
    prefix: String,
    /// How long it still lasts.
    seconds_left: u64,
}

/// What a change came to.
#[derive(Serialize)]
pub(super) struct Changed {
    /// Which prefix.
    prefix: String,
    /// Whether it was banned before.
    was_banned: bool,
    /// Whether other gateways will learn it. It is missing where bans are not shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<bool>,
}

fn info(limits: &AddressLimits) -> BansInfo {
    let now_ms = limits.now_us() / 1000;
    limits.bans().remove_ended(now_ms);
    let bans =
        limits.bans().list(LISTED_MAX, now_ms).into_iter().map(|(prefix, until_ms)| BanInfo {
            prefix: prefix.to_string(),
            seconds_left: until_ms.saturating_sub(now_ms).div_ceil(1000),
        });
    let bans = bans.collect();
    BansInfo { count: limits.bans().count(), bans }
}

pub(super) async fn list(State(app): State<App>, uri: Uri) -> Result<Json<BansInfo>, ApiError> {
    ids::no_parameters(&uri)?;
    Ok(Json(info(app.about.address_limits())))
}

pub(super) async fn add(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Changed>, ApiError> {
    let [prefix, seconds] = ids::named(request.uri(), ["prefix", "seconds"])?;
    let prefix = read_prefix(prefix)?;
    let bad = |value: &str| ApiError::BadNumber {
        name: "seconds",
        value: value.to_owned(),
        allowed: "a whole number from 1 to 2592000, in plain digits",
    };
    let seconds = seconds.unwrap_or("3600");
    let seconds = ids::number::<u64>(seconds)
        .filter(|number| (1..=SECONDS_MAX).contains(number))
        .ok_or_else(|| bad(seconds))?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let limits = app.about.address_limits();
    if limits.is_exempt(prefix.address()) {
        return Err(ApiError::ExemptPrefix(prefix.to_string()));
    }
    let change = limits.ban_for_operator(prefix, Duration::from_secs(seconds));
    tracing::info!(%prefix, seconds, "an operator banned it");
    Ok(Json(changed(prefix, change)))
}

pub(super) async fn lift(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Changed>, ApiError> {
    let [prefix] = ids::named(request.uri(), ["prefix"])?;
    let prefix = read_prefix(prefix)?;
    if !app.body(request).await?.is_empty() {
        return Err(ApiError::UnexpectedBody);
    }
    let limits = app.about.address_limits();
    let change = limits.lift_ban(prefix);
    tracing::info!(%prefix, was_banned = change.was_banned, "an operator lifted a ban");
    Ok(Json(changed(prefix, change)))
}

fn changed(prefix: Prefix, change: OperatorChange) -> Changed {
    let OperatorChange { was_banned, is_shared } = change;
    Changed { prefix: prefix.to_string(), was_banned, shared: is_shared }
}

/// A host or a network, as `GET /bans` shows it.
fn read_prefix(value: Option<&str>) -> Result<Prefix, ApiError> {
    let text = value.unwrap_or_default();
    text.parse().map_err(|()| ApiError::BadPrefix(text.to_owned()))
}
