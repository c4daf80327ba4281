//! The limits by address together: what becomes of an accept, a failed login, a close.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use metrics::{Counter, counter};
use tidegate_backend::log_limit::LogLimit;

use super::ban_changes::{BanChange, BanChanges};
use super::bans::{Bans, Maker};
use super::counts::Counts;
use super::prefix::{Key, Keys, Prefix, Width};
use super::rate_sketch::{Rate, RateSketch};

/// Cells in a row of a sketch, as a power of two: 8 MiB for each sketch.
const RATE_BITS: u32 = 18;

/// The limits of one width of prefix. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Open connections.
    pub connections_max: Option<u32>,
    /// Accepts.
    pub accepts: Option<Rate>,
    /// How many accepts there may be at once, also while there is no limit.
    pub accepts_burst_max: u32,
    /// Failed logins. One more, and the prefix is banned.
    pub failed_logins: Option<Rate>,
}

impl PrefixLimits {
    const fn is_some(&self) -> bool {
        self.connections_max.is_some() || self.accepts.is_some() || self.failed_logins.is_some()
    }
}

/// What the limits are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Of a host: an IPv4 address, or an IPv6 /64.
    pub host: PrefixLimits,
    /// Of a network: an IPv4 /24, or an IPv6 /48.
    pub network: PrefixLimits,
    /// How long a ban lasts.
    pub ban: Duration,
    /// Whether bans hold at all gateways of a system.
    pub shares_bans: bool,
    /// Networks whose addresses have no limit.
    pub exempt: Vec<IpNet>,
    /// How long a refused client is asked to wait, at least; it is spread up to twice as long.
    pub retry_after: Duration,
}

impl Settings {
    const fn is_some(&self) -> bool {
        self.host.is_some() || self.network.is_some()
    }
}

/// What an operator's change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperatorChange {
    /// Whether the prefix was banned before, at this gateway.
    pub was_banned: bool,
    /// Whether other gateways will learn it. `None`: bans are not shared.
    pub is_shared: Option<bool>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its address, or the network of it, is banned.
    Banned,
    /// It has too many connections.
    Connections,
    /// Too many were accepted from it lately.
    Accepts,
}

impl Refusal {
    /// The name of the limit.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Banned => "banned",
            Self::Connections => "address_connections",
            Self::Accepts => "address_accepts",
        }
    }
}

/// What an address counts under.
#[derive(Clone, Copy)]
struct Pair {
    host: Key,
    network: Key,
}

/// What is counted of one width of prefix.
#[derive(Debug)]
struct Counted {
    connections: Counts,
    /// Made when there is a limit for the first time, and kept.
    accepts: OnceLock<RateSketch>,
    /// Likewise.
    failed_logins: OnceLock<RateSketch>,
}

impl Counted {
    fn new(limits: &PrefixLimits) -> Self {
        let counted = Self {
            connections: Counts::default(),
            accepts: OnceLock::new(),
            failed_logins: OnceLock::new(),
        };
        counted.prepare(limits);
        counted
    }

    /// Makes what these limits need.
    fn prepare(&self, limits: &PrefixLimits) {
        let sketch = || RateSketch::new(RATE_BITS);
        if limits.accepts.is_some() {
            self.accepts.get_or_init(sketch);
        }
        if limits.failed_logins.is_some() {
            self.failed_logins.get_or_init(sketch);
        }
    }
}

/// The metrics: name and help text.
pub const METRICS: [(&str, &str); 5] = [
    (
        "tidegate_failed_logins_total",
        "Logins with a token that may be guessed, from addresses that have limits.",
    ),
    ("tidegate_bans_total", "Bans of addresses and networks for failed logins: see `tide bans`."),
    ("tidegate_bans_cut_total", "Bans that ended early, as there were more than 65,536 at a time."),
    (
        "tidegate_bans_heard_total",
        "Bans that this gateway took from other gateways: addresses.shares_bans.",
    ),
    (
        "tidegate_bans_unshared_total",
        "Bans, and ends of bans, that other gateways do not learn: too many waited for Redis, or it refuses them.",
    ),
];

#[derive(Debug)]
struct Counters {
    failed_logins: Counter,
    bans: Counter,
    bans_cut: Counter,
    bans_heard: Counter,
    bans_unshared: Counter,
}

impl Counters {
    fn new() -> Self {
        let [failed_logins, bans, bans_cut, bans_heard, bans_unshared] =
            METRICS.map(|(name, _)| counter!(name));
        Self { failed_logins, bans, bans_cut, bans_heard, bans_unshared }
    }
}

/// The limits by address, for all shards and the HTTP gateway: one address has its limit in all of them together.
#[derive(Debug)]
pub struct AddressLimits {
    settings: ArcSwap<Settings>,
    started: Instant,
    keys: Keys,
    host: Counted,
    network: Counted,
    bans: Bans,
    /// What other gateways are to learn. `None`: bans are not shared.
    changes: Option<BanChanges>,
    counters: Counters,
    refusals: LogLimit,
    new_bans: LogLimit,
}

impl AddressLimits {
    /// `started`: when the shards' clocks started.
    #[must_use]
    pub fn new(settings: Settings, started: Instant) -> Self {
        Self {
            host: Counted::new(&settings.host),
            network: Counted::new(&settings.network),
            changes: settings.shares_bans.then(BanChanges::default),
            settings: ArcSwap::from_pointee(settings),
            started,
            keys: Keys::default(),
            bans: Bans::default(),
            counters: Counters::new(),
            refusals: LogLimit::new(),
            new_bans: LogLimit::new(),
        }
    }

    /// Uses other limits from now on. Connections that were counted count on. Those that came while there was no limit are
    /// not counted. Bans stay.
    pub fn reconfigure(&self, settings: &Settings) {
        self.host.prepare(&settings.host);
        self.network.prepare(&settings.network);
        self.settings.store(Arc::new(settings.clone()));
    }

    /// The time now, in microseconds on the shards' clock: for callers that have no clock.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether there is a limit, or a ban.
    #[inline]
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.settings.load().is_some() || self.bans.count() > 0
    }

    /// A connection has come from this address. Returns whether it is counted, until [`Self::close`].
    ///
    /// # Errors
    /// It is not to be served.
    pub fn accept(&self, address: IpAddr, now_us: u64) -> Result<bool, Refusal> {
        if !self.is_some() || self.is_exempt(address) {
            return Ok(false);
        }
        let [host, network] =
            [Width::Host, Width::Network].map(|width| Prefix::new(address, width));
        let counted = Pair { host: self.keys.of(host), network: self.keys.of(network) };
        let now_ms = now_us / 1000;
        let admitted = if self.bans.contain_any([host, network], now_ms) {
            Err(Refusal::Banned)
        } else {
            self.take_accept(counted, now_us).and_then(|()| self.add_connection(counted))
        };
        if let Err(refusal) = admitted
            && let Some(suppressed) = self.refusals.allow_at(now_ms)
        {
            let limit = refusal.label();
            tracing::warn!(address = %host, limit, suppressed, "refused, by [addresses]: a connection");
        }
        admitted.map(|()| true)
    }

    fn take_accept(&self, counted: Pair, now_us: u64) -> Result<(), Refusal> {
        let settings = self.settings.load();
        let Settings { host, network, .. } = &**settings;
        let [of_host, of_network] = [
            (self.host.accepts.get().zip(host.accepts), counted.host),
            (self.network.accepts.get().zip(network.accepts), counted.network),
        ];
        // A connection that the network's limit refuses takes no token of the host.
        if let (Some((sketch, rate)), key) = of_network {
            sketch.check(key, rate, now_us).map_err(|_| Refusal::Accepts)?;
        }
        for (limit, key) in [of_host, of_network] {
            if let Some((sketch, rate)) = limit {
                sketch.take(key, rate, now_us).map_err(|_| Refusal::Accepts)?;
            }
        }
        Ok(())
    }

    fn add_connection(&self, Pair { host, network }: Pair) -> Result<(), Refusal> {
        let settings = self.settings.load();
        let max = |limits: &PrefixLimits| limits.connections_max.unwrap_or(u32::MAX);
        if !self.host.connections.add(host, max(&settings.host)) {
            return Err(Refusal::Connections);
        }
        if !self.network.connections.add(network, max(&settings.network)) {
            self.host.connections.remove(host);
            return Err(Refusal::Connections);
        }
        Ok(())
    }

    /// A connection from this address that was counted is closed.
    pub fn close(&self, address: IpAddr) {
        let [host, network] =
            [Width::Host, Width::Network].map(|width| Prefix::new(address, width));
        self.remove(Pair { host: self.keys.of(host), network: self.keys.of(network) });
    }

    fn remove(&self, Pair { host, network }: Pair) {
        self.host.connections.remove(host);
        self.network.connections.remove(network);
    }

    /// A login from this address has failed with a token that may be guessed: see [`AuthError::is_guess`](crate::auth::AuthError::is_guess).
    pub fn login_failed(&self, address: IpAddr, now_us: u64) {
        let settings = self.settings.load();
        if !settings.is_some() || self.is_exempt(address) {
            return;
        }
        self.counters.failed_logins.increment(1);
        let Settings { host, network, .. } = &**settings;
        let limits = [
            (self.host.failed_logins.get().zip(host.failed_logins), Width::Host),
            (self.network.failed_logins.get().zip(network.failed_logins), Width::Network),
        ];
        for (limit, width) in limits {
            let prefix = Prefix::new(address, width);
            if let Some((sketch, rate)) = limit
                && sketch.take(self.keys.of(prefix), rate, now_us).is_err()
            {
                self.ban(prefix, width, now_us / 1000);
            }
        }
    }

    fn ban(&self, prefix: Prefix, width: Width, now_ms: u64) {
        if self.bans.contain_any([prefix, prefix], now_ms) {
            return;
        }
        let ban_ms = u64::try_from(self.settings.load().ban.as_millis()).unwrap_or(u64::MAX);
        let until_ms = now_ms.saturating_add(ban_ms);
        self.add_ban(prefix, Maker::Limit, until_ms, now_ms);
        self.counters.bans.increment(1);
        let _ = self.share(BanChange::Add { prefix, maker: Maker::Limit, until_ms });
        if let Some(suppressed) = self.new_bans.allow_at(now_ms) {
            let limit = match width {
                Width::Host => "addresses.failed_logins_per_minute_max",
                Width::Network => "addresses.network_failed_logins_per_minute_max",
            };
            let seconds = ban_ms / 1000;
            tracing::warn!(
                %prefix,
                seconds,
                limit,
                suppressed,
                "banned, as there were too many failed logins; `tide bans lift` ends a ban"
            );
        }
    }

    fn add_ban(&self, prefix: Prefix, maker: Maker, until_ms: u64, now_ms: u64) {
        let has_forgotten = self.bans.add(prefix, maker, until_ms, now_ms);
        self.counters.bans_cut.increment(u64::from(has_forgotten));
    }

    /// Has other gateways learn a change. `None`: bans are not shared. `false`: too many changes wait.
    fn share(&self, change: BanChange) -> Option<bool> {
        let is_taken = self.changes.as_ref()?.push(change);
        self.counters.bans_unshared.increment(u64::from(!is_taken));
        Some(is_taken)
    }

    /// A change can't be shared: Redis refuses it.
    pub fn count_unshared(&self) {
        self.counters.bans_unshared.increment(1);
    }

    /// Bans a prefix from now on, in place of earlier bans of it.
    pub fn ban_for_operator(&self, prefix: Prefix, lasts: Duration) -> OperatorChange {
        let now_ms = self.now_us() / 1000;
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        let (maker, until_ms) = (Maker::Operator, now_ms.saturating_add(lasts_ms));
        let was_banned = self.bans.lift(prefix, now_ms);
        self.add_ban(prefix, maker, until_ms, now_ms);
        let is_shared = self.share(BanChange::Add { prefix, maker, until_ms });
        OperatorChange { was_banned, is_shared }
    }

    /// An operator ends a ban.
    pub fn lift_ban(&self, prefix: Prefix) -> OperatorChange {
        let was_banned = self.bans.lift(prefix, self.now_us() / 1000);
        OperatorChange { was_banned, is_shared: self.share(BanChange::Lift { prefix }) }
    }

    /// The next change that other gateways are to learn.
    pub fn next_change(&self) -> Option<BanChange> {
        self.changes.as_ref()?.pop()
    }

    /// Whether no change waits that other gateways are to learn.
    #[must_use]
    pub fn has_shared_all(&self) -> bool {
        self.changes.as_ref().is_none_or(BanChanges::is_empty)
    }

    /// Whether bans are shared.
    #[must_use]
    pub const fn shares_bans(&self) -> bool {
        self.changes.is_some()
    }

    /// Applies a change that gateways share. All apply all of them in one order, so all have the same bans. An address that is exempt
    /// here is not banned here. `is_own`: this gateway has shared it.
    pub fn apply_shared(&self, change: BanChange, is_own: bool, now_ms: u64) {
        let (prefix, maker, until_ms) = match change {
            BanChange::Add { prefix, maker, until_ms } => (prefix, maker, until_ms),
            BanChange::Lift { prefix } => (prefix, Maker::Operator, 0),
        };
        if maker == Maker::Operator {
            self.bans.lift(prefix, now_ms);
        }
        if until_ms <= now_ms || self.is_exempt(prefix.address()) {
            return;
        }
        self.add_ban(prefix, maker, until_ms, now_ms);
        if is_own {
            return;
        }
        self.counters.bans_heard.increment(1);
        if let Some(suppressed) = self.new_bans.allow_at(now_ms) {
            let seconds = (until_ms - now_ms) / 1000;
            tracing::info!(%prefix, seconds, suppressed, "banned, as another gateway has banned it");
        }
    }

    /// Whether an address has no limit.
    #[must_use]
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.settings.load().exempt.iter().any(|network| network.contains(&address))
    }

    /// The bans: for operators.
    #[must_use]
    pub const fn bans(&self) -> &Bans {
        &self.bans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn peer(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn limits(settings: Settings) -> AddressLimits {
        AddressLimits::new(settings, Instant::now())
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let limits = limits(Settings::default());
        assert_eq!(limits.accept(peer("192.0.2.1"), 0), Ok(false));
        assert!(limits.host.accepts.get().is_none() && limits.network.accepts.get().is_none());
    }

    #[test]
    fn a_host_has_its_connections_and_gets_them_back() {
        let host = PrefixLimits { connections_max: Some(2), ..Default::default() };
        let limits = limits(Settings { host, ..Default::default() });
        let accept = |address| limits.accept(peer(address), 0);
        assert_eq!(accept("192.0.2.1"), Ok(true));
        assert!(accept("192.0.2.1").is_ok());
        assert_eq!(accept("192.0.2.1"), Err(Refusal::Connections));
        assert!(accept("192.0.2.2").is_ok());
        limits.close(peer("192.0.2.1"));
        assert!(accept("192.0.2.1").is_ok());
        assert_eq!(accept("192.0.2.1"), Err(Refusal::Connections));
    }

    #[test]
    fn a_network_has_its_connections_whatever_its_hosts_have() {
        let network = PrefixLimits { connections_max: Some(3), ..Default::default() };
        let limits = limits(Settings { network, ..Default::default() });
        let accept = |number: u16| limits.accept(peer(&format!("2001:db8:1:{number:x}::1")), 0);
        assert!((0..3).all(|number| accept(number) == Ok(true)));
        assert_eq!(accept(3), Err(Refusal::Connections));
        assert!(limits.accept(peer("2001:db8:2::1"), 0).is_ok());
        limits.close(peer("2001:db8:1:0::1"));
        assert!(accept(3).is_ok());
    }

    #[test]
    fn accepts_have_a_rate_and_the_network_is_asked_first() {
        let rate = |count, burst| Some(Rate::new(count, Duration::from_secs(1), burst));
        let host = PrefixLimits { accepts: rate(1, 2), ..Default::default() };
        let network = PrefixLimits { accepts: rate(1, 3), ..Default::default() };
        let limits = limits(Settings { host, network, ..Default::default() });
        let accept = |address, now_us| limits.accept(peer(address), now_us).map(drop);
        assert_eq!(accept("192.0.2.1", 0), Ok(()));
        assert_eq!(accept("192.0.2.1", 0), Ok(()));
        assert_eq!(accept("192.0.2.1", 0), Err(Refusal::Accepts), "the host");
        assert_eq!(accept("192.0.2.2", 0), Ok(()));
        assert_eq!(accept("192.0.2.2", 0), Err(Refusal::Accepts), "the network");
        assert_eq!(accept("192.0.2.2", SECOND), Ok(()));
    }

    #[test]
    fn too_many_failed_logins_ban_an_address_for_a_time() {
        let failed_logins = Some(Rate::new(60, Duration::from_secs(60), 5));
        let host = PrefixLimits { failed_logins, ..Default::default() };
        let ban = Duration::from_secs(30);
        let limits = limits(Settings { host, ban, ..Default::default() });
        let (bad, good) = (peer("192.0.2.1"), peer("192.0.2.2"));
        for _ in 0..5 {
            limits.login_failed(bad, SECOND);
            assert!(limits.accept(bad, SECOND).is_ok());
        }
        limits.login_failed(bad, SECOND);
        assert_eq!(limits.accept(bad, SECOND), Err(Refusal::Banned));
        assert!(limits.accept(good, SECOND).is_ok());
        assert_eq!(limits.accept(bad, 31 * SECOND - 1000), Err(Refusal::Banned));
        assert!(limits.accept(bad, 31 * SECOND).is_ok());
    }

    #[test]
    fn limits_can_be_set_changed_and_lifted_while_connections_are_open() {
        let limits = limits(Settings::default());
        let with_max = |max| {
            let host = PrefixLimits {
                connections_max: Some(max),
                accepts: Some(Rate::new(100, Duration::from_secs(1), 100)),
                ..Default::default()
            };
            Settings { host, ..Default::default() }
        };
        let accept = || limits.accept(peer("192.0.2.1"), 0);
        assert_eq!(accept(), Ok(false), "it came before there was a limit");
        limits.reconfigure(&with_max(1));
        assert_eq!((accept(), accept()), (Ok(true), Err(Refusal::Connections)));
        limits.reconfigure(&with_max(2));
        assert_eq!((accept(), accept()), (Ok(true), Err(Refusal::Connections)));
        limits.reconfigure(&Settings::default());
        assert_eq!(accept(), Ok(false));
        limits.close(peer("192.0.2.1"));
        limits.reconfigure(&with_max(2));
        assert_eq!((accept(), accept()), (Ok(true), Err(Refusal::Connections)));
    }

    #[test]
    fn exempt_networks_have_no_limit() {
        let one = Some(Rate::new(1, Duration::from_secs(60), 1));
        let host = PrefixLimits {
            connections_max: Some(1),
            accepts: one,
            failed_logins: one,
            ..Default::default()
        };
        let exempt = vec!["127.0.0.0/8".parse().unwrap()];
        let limits = limits(Settings { host, exempt, ..Default::default() });
        for _ in 0..5 {
            limits.login_failed(peer("127.0.0.9"), 0);
            assert_eq!(limits.accept(peer("127.0.0.9"), 0), Ok(false));
            assert_eq!(limits.accept(peer("::ffff:127.0.0.9"), 0), Ok(false));
        }
    }
}
