//! Checks `[addresses]`: what one address, and its network, may have.

use std::time::Duration;

use super::check::DAY_MS;
use super::typed;
use super::values::{Checked, Checker};
use crate::limits::addresses::{PrefixLimits, Settings};
use crate::limits::rate_sketch::Rate;

/// Most connections of one address.
const CONNECTIONS_MAX: i64 = 67_108_864;

/// Highest of the rates.
const RATE_MAX: i64 = 1_000_000;

impl Checker<'_> {
    pub(super) fn address_limits(
        &self,
        addresses: &typed::Addresses,
        has_redis: bool,
    ) -> Checked<Settings> {
        if addresses.shares_bans && !has_redis {
            let reason = "bans are shared through Redis, and redis.url is not set: set it too";
            return Err(self.refuse("addresses.shares_bans", true, reason));
        }
        let count = |key: &str, value: i64, max: i64| -> Checked<Option<u32>> {
            let number = self.number::<u32>(&format!("addresses.{key}"), value, 0..=max)?;
            Ok((number > 0).then_some(number))
        };
        let connections = |key, value| count(key, value, CONNECTIONS_MAX);
        let accepts = |key: &str, value, burst: i64| -> Checked<(Option<Rate>, u32)> {
            let burst_key = key.replace("per_second", "burst");
            let burst = self.number(&format!("addresses.{burst_key}"), burst, 1..=RATE_MAX)?;
            let rate = |number| Rate::new(number, Duration::from_secs(1), burst);
            Ok((count(key, value, RATE_MAX)?.map(rate), burst))
        };
        let failed_logins = |key, value| -> Checked<Option<Rate>> {
            let rate = |number| Rate::new(number, Duration::from_secs(60), number);
            Ok(count(key, value, RATE_MAX)?.map(rate))
        };
        let (host_accepts, host_burst) = accepts(
            "accepts_per_second_max",
            addresses.accepts_per_second_max,
            addresses.accepts_burst_max,
        )?;
        let (network_accepts, network_burst) = accepts(
            "network_accepts_per_second_max",
            addresses.network_accepts_per_second_max,
            addresses.network_accepts_burst_max,
        )?;
        let host = PrefixLimits {
            connections_max: connections("connections_max", addresses.connections_max)?,
            accepts: host_accepts,
            accepts_burst_max: host_burst,
            failed_logins: failed_logins(
                "failed_logins_per_minute_max",
                addresses.failed_logins_per_minute_max,
            )?,
        };
        let network = PrefixLimits {
            connections_max: connections(
                "network_connections_max",
                addresses.network_connections_max,
            )?,
            accepts: network_accepts,
            accepts_burst_max: network_burst,
            failed_logins: failed_logins(
                "network_failed_logins_per_minute_max",
                addresses.network_failed_logins_per_minute_max,
            )?,
        };
        let key = "addresses.retry_after_ms";
        Ok(Settings {
            host,
            network,
            exempt: self.networks("addresses.exempt", &addresses.exempt)?,
            ban: self.millis("addresses.ban_ms", addresses.ban_ms, 1_000..=30 * DAY_MS)?,
            shares_bans: addresses.shares_bans,
            retry_after: self.millis(key, addresses.retry_after_ms, 0..=DAY_MS)?,
        })
    }
}
