//! Typed -> checked: ranges, names, and rules between keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use tidegate_backend::Placement;
use tidegate_protocol::limits::IDLE_INTERVAL_TENTHS;
use tracing_subscriber::EnvFilter;

use super::addresses;
use super::checked::*;
use super::layers::Origins;
use super::nearest::nearest;
use super::typed::{self, DEMO, Typed};
use super::values::{Checked, Checker, quoted};
use crate::driver::uring;

/// A day: the maximum of most timeouts.
pub(super) const DAY_MS: i64 = 86_400_000;

/// The maximum of `coalesce_us`: longer delays would be felt.
const COALESCE_US_MAX: i64 = 10_000;

/// Lowest age at which connections end, where they do.
const AGE_MIN: Duration = Duration::from_secs(1);

pub(super) const KIB: i64 = 1024;
pub(super) const MIB: i64 = 1024 * KIB;
pub(super) const GIB: i64 = 1024 * MIB;

/// Makes the configuration that the gateway uses.
pub(super) fn check(typed: &Typed, origins: &Origins) -> Checked<Config> {
    let checker = Checker { origins };
    let shards = match checker.number("shards", typed.shards, 0..=256)? {
        0 => u16::try_from(cores().min(256)).expect("256 fits"),
        shards => shards,
    };
    let (driver, driver_refusal) = checker.driver(&typed.driver)?;
    let coalesce_us: u32 = checker.number("coalesce_us", typed.coalesce_us, 0..=COALESCE_US_MAX)?;
    let http_connections = checker.http_connections_max(typed, shards)?;
    let limits = checker.limits(&typed.limits, driver, shards, http_connections)?;
    let listen = checker.plain_listener(typed)?;
    let listeners = checker.listeners(&typed.listeners, &limits)?;
    let tls = checker.tls(&typed.tls, &listeners)?;
    let addresses = checker.client_addresses(listen, &listeners)?;
    let (http_listeners, listeners): (Vec<_>, Vec<_>) =
        listeners.into_iter().partition(|listener| listener.wire.is_http());
    checker.clients_of_shards(listen, &listeners)?;
    let routes = checker.routes(&typed.routes, &typed.backends)?;
    let http = checker.http(typed, http_listeners, &routes, http_connections)?;
    let backends = checker.backends(typed)?;
    let redis = checker.redis(&typed.redis)?;
    Ok(Config {
        reload_on_change: typed.reload_on_change,
        listen,
        listeners,
        tls,
        http,
        shards,
        driver,
        driver_refusal,
        coalesce: Duration::from_micros(coalesce_us.into()),
        admin: checker.admin(&typed.admin, &limits, &addresses)?,
        auth: checker.auth(&typed.auth, &addresses, redis.is_some())?,
        session: checker.session(&typed.session)?,
        limits,
        addresses: checker.address_limits(&typed.addresses, redis.is_some())?,
        socket: checker.socket(&typed.socket)?,
        rooms: checker.rooms(&typed.rooms, &typed.room_policies)?,
        redis,
        routes,
        backends,
        log: checker.log(&typed.log)?,
        shutdown: checker.shutdown(&typed.shutdown)?,
    })
}

impl Checker<'_> {
    /// The driver to use. Where "auto" can't have io_uring, also why.
    fn driver(&self, driver: &str) -> Checked<(DriverKind, Option<String>)> {
        let kinds = [DriverKind::Epoll, DriverKind::Uring].map(|kind| (kind.name(), Some(kind)));
        let choices = [("auto", None), kinds[0], kinds[1]];
        let choice = self.choice("driver", driver, &choices)?;
        if choice == Some(DriverKind::Epoll) {
            return Ok((DriverKind::Epoll, None));
        }
        match (uring::probe(), choice) {
            (Ok(()), _) => Ok((DriverKind::Uring, None)),
            (Err(error), None) => Ok((DriverKind::Epoll, Some(error.to_string()))),
            (Err(error), Some(_)) => {
                let reason = format!("{error}; or use \"auto\" or \"epoll\"");
                Err(self.refuse("driver", quoted(driver), reason))
            }
        }
    }

    fn admin(
        &self,
        admin: &typed::Admin,
        limits: &LimitsConfig,
        clients: &[SocketAddr],
    ) -> Checked<AdminConfig> {
        let listen = self.address("admin.listen", &admin.listen)?;
        if let Some(clients) = clients.iter().find(|clients| addresses::overlap(listen, **clients))
        {
            let reason = format!(
                "clients connect there too (at {clients}): operators need another port, as in \
                 \"{}\"",
                SocketAddr::new(listen.ip(), clients.port().checked_add(1).unwrap_or(7401))
            );
            return Err(self.refuse("admin.listen", quoted(&admin.listen), reason));
        }
        Ok(AdminConfig {
            listen,
            token_file: self.path("admin.token_file", &admin.token_file)?,
            body_bytes_max: limits.frame_to_client_bytes_max,
        })
    }

    fn session(&self, session: &typed::Session) -> Checked<SessionConfig> {
        let key = "session.heartbeat_interval_ms";
        let interval = self.millis(key, session.heartbeat_interval_ms, 1..=DAY_MS)?;
        let key = "session.idle_timeout_ms";
        let mut idle_timeout = self.millis(key, session.idle_timeout_ms, 0..=10 * DAY_MS)?;
        if idle_timeout.is_zero() {
            let tenths =
                u32::try_from(IDLE_INTERVAL_TENTHS).expect("the protocol's factor is small");
            idle_timeout = interval * tenths / 10;
        }
        if idle_timeout <= interval {
            let reason = format!(
                "this must be more than session.heartbeat_interval_ms ({}), or every client is closed \
                 before its next heartbeat; 0 means 2.5 intervals",
                interval.as_millis()
            );
            return Err(self.refuse(key, session.idle_timeout_ms, reason));
        }
        let key = "session.connections_per_user_max";
        let many = self.number(key, session.connections_per_user_max, 1..=10_000)?;
        let logins = [("newest-wins", 1), ("many", many)];
        let on_expiry = [OnTokenExpiry::Ignore, OnTokenExpiry::Close];
        let on_expiry = on_expiry.map(|choice| (choice.name(), choice));
        let key = "session.on_token_expiry";
        let on_token_expiry = self.choice(key, &session.on_token_expiry, &on_expiry)?;
        let key = "session.age_max_ms";
        let age_max = self.millis(key, session.age_max_ms, 0..=30 * DAY_MS)?;
        if !age_max.is_zero() && age_max < AGE_MIN {
            let reason = "this must be 0 or at least 1000: a shorter age is a loop of reconnects (it is in milliseconds)";
            return Err(self.refuse(key, session.age_max_ms, reason));
        }
        let slow = [SlowPushes::Close, SlowPushes::Skip, SlowPushes::Latest];
        let slow = slow.map(|choice| (choice.name(), choice));
        let slow_pushes = self.choice("session.slow_pushes", &session.slow_pushes, &slow)?;
        let key = "session.token_expiry_grace_ms";
        Ok(SessionConfig {
            slow_pushes,
            heartbeat_interval: interval,
            idle_timeout,
            connections_per_user_max: self.choice("session.login", &session.login, &logins)?,
            on_token_expiry,
            token_expiry_grace: self.millis(key, session.token_expiry_grace_ms, 0..=DAY_MS)?,
            age_max: Some(age_max).filter(|age_max| !age_max.is_zero()),
        })
    }

    fn socket(&self, socket: &typed::Socket) -> Checked<SocketConfig> {
        let user_timeout_ms = socket.user_timeout_ms;
        Ok(SocketConfig {
            backlog: self.number("socket.backlog", socket.backlog, 1..=1_000_000)?,
            send_buffer_bytes: self.number(
                "socket.send_buffer_bytes",
                socket.send_buffer_bytes,
                4 * KIB..=64 * MIB,
            )?,
            user_timeout: self.millis("socket.user_timeout_ms", user_timeout_ms, 0..=DAY_MS)?,
        })
    }

    /// The configured backends, and the demo backend where a route names it.
    fn backends(&self, typed: &Typed) -> Checked<Vec<BackendConfig>> {
        let used = |name: &String| {
            name != DEMO
                || self.origins.is_set("backends.demo")
                || typed.routes.iter().any(|route| route.backend == DEMO)
        };
        let names = typed.backends.iter().filter(|(name, _)| used(name));
        names.map(|(name, backend)| self.backend(name, backend)).collect()
    }

    fn backend(&self, name: &str, backend: &typed::Backend) -> Checked<BackendConfig> {
        let key = |key| format!("backends.{name}.{key}");
        self.plain_name("backends", name, "a backend's")?;
        let placements = [
            ("auto", None),
            ("worker", Some(Placement::Worker)),
            ("shard", Some(Placement::Shard)),
        ];
        let queue_calls_max = backend.queue_calls_max;
        Ok(BackendConfig {
            name: name.to_owned(),
            placement: self.choice(&key("placement"), &backend.placement, &placements)?,
            workers: match self.number(&key("workers"), backend.workers, 0..=1024)? {
                0 => cores(),
                workers => workers,
            },
            queue_calls_max: self.number(
                &key("queue_calls_max"),
                queue_calls_max,
                1..=10_000_000,
            )?,
            queue_bytes_max: self.number(
                &key("queue_bytes_max"),
                backend.queue_bytes_max,
                1..=1024 * GIB,
            )?,
            batch_calls_max: self.number(
                &key("batch_calls_max"),
                backend.batch_calls_max,
                1..=10_000,
            )?,
            circuit_timeouts: Some(self.number(
                &key("circuit_timeouts"),
                backend.circuit_timeouts,
                0..=1_000_000,
            )?)
            .filter(|&timeouts| timeouts > 0),
        })
    }

    fn routes(
        &self,
        routes: &[typed::Route],
        backends: &BTreeMap<String, typed::Backend>,
    ) -> Checked<Vec<RouteConfig>> {
        let mut checked = Vec::with_capacity(routes.len());
        for (index, route) in routes.iter().enumerate() {
            checked.push((index, self.route(index, route, backends)?));
        }
        checked.sort_by_key(|(_, route)| route.first_type);
        for pair in checked.windows(2) {
            let [(first_index, first), (index, route)] = pair else { continue };
            if route.first_type <= first.last_type {
                let reason = format!(
                    "this overlaps with routes[{first_index}].types = [{}, {}] (to backend \"{}\"): a \
                     type goes to one backend",
                    first.first_type, first.last_type, first.backend
                );
                let types = format!("[{}, {}]", route.first_type, route.last_type);
                return Err(self.refuse(&format!("routes[{index}].types"), types, reason));
            }
        }
        Ok(checked.into_iter().map(|(_, route)| route).collect())
    }

    fn route(
        &self,
        index: usize,
        route: &typed::Route,
        backends: &BTreeMap<String, typed::Backend>,
    ) -> Checked<RouteConfig> {
        let key = |key| format!("routes[{index}].{key}");
        let (first_type, last_type) = self.types(&key("types"), &route.types)?;
        if !backends.contains_key(&route.backend) {
            let names = backends.keys().map(|name| quoted(name)).collect::<Vec<_>>();
            let hint = nearest(&route.backend, backends.keys().map(String::as_str))
                .map_or_else(String::new, |near| format!(" (did you mean \"{near}\"?)"));
            let reason = format!(
                "there is no such backend{hint}: known are {}. The program brings a handler for each",
                names.join(", ")
            );
            return Err(self.refuse(&key("backend"), quoted(&route.backend), reason));
        }
        Ok(RouteConfig {
            first_type,
            last_type,
            backend: route.backend.clone(),
            timeout: self.millis(&key("timeout_ms"), route.timeout_ms, 1..=DAY_MS)?,
            in_flight_max: self.number(
                &key("in_flight_max"),
                route.in_flight_max,
                1..=10_000_000,
            )?,
            waiting_max: Some(self.millis(
                &key("waiting_ms_max"),
                route.waiting_ms_max,
                0..=DAY_MS,
            )?)
            .filter(|waiting_max| !waiting_max.is_zero()),
            rate: self.call_rate(
                (&key("calls_per_second_max"), route.calls_per_second_max),
                (&key("calls_burst_max"), route.calls_burst_max),
            )?,
            user_rate: self.call_rate(
                (&key("user_calls_per_second_max"), route.user_calls_per_second_max),
                (&key("user_calls_burst_max"), route.user_calls_burst_max),
            )?,
        })
    }

    /// A rate of two keys; without a bound where the first is 0.
    fn call_rate(&self, rate: (&str, i64), burst: (&str, i64)) -> Checked<CallRate> {
        let per_second = self.number(rate.0, rate.1, 0..=1_000_000)?;
        Ok(CallRate {
            per_second_max: Some(per_second).filter(|&per_second| per_second > 0),
            burst_max: self.number(burst.0, burst.1, 1..=1_000_000)?,
        })
    }

    fn log(&self, log: &typed::Log) -> Checked<LogConfig> {
        let refuse = |reason: &str| {
            let reason = format!("{reason}; write info, or warn,tidegate=debug");
            self.refuse("log.filter", quoted(&log.filter), reason)
        };
        EnvFilter::try_new(&log.filter).map_err(|error| refuse(&error.to_string()))?;
        if let Some(word) = unknown_level(&log.filter) {
            let levels = LEVELS.join(", ");
            return Err(refuse(&format!("\"{word}\" is no level: there are {levels}")));
        }
        let formats = [LogFormat::Text, LogFormat::Json].map(|format| (format.name(), format));
        Ok(LogConfig {
            filter: log.filter.clone(),
            format: self.choice("log.format", &log.format, &formats)?,
        })
    }

    fn shutdown(&self, shutdown: &typed::Shutdown) -> Checked<ShutdownConfig> {
        let (drain_ms, retry_ms) = (shutdown.drain_timeout_ms, shutdown.retry_after_ms);
        let (grace_ms, window_ms) = (shutdown.ready_grace_ms, shutdown.goodbye_window_ms);
        Ok(ShutdownConfig {
            ready_grace: self.millis("shutdown.ready_grace_ms", grace_ms, 0..=DAY_MS)?,
            goodbye_window: self.millis("shutdown.goodbye_window_ms", window_ms, 0..=DAY_MS)?,
            drain_timeout: self.millis("shutdown.drain_timeout_ms", drain_ms, 0..=DAY_MS)?,
            retry_after: self.millis("shutdown.retry_after_ms", retry_ms, 0..=DAY_MS)?,
        })
    }
}

/// The levels: a part of a filter without a target is one of these.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The first part of a filter that is neither a level nor assigns one to a target. The filter would take a mistyped
/// level for a target, and nothing would be logged.
fn unknown_level(filter: &str) -> Option<&str> {
    let is_known = |part: &str| {
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        is_level || part.is_empty() || part.contains(['=', '[', '{', '}', ']'])
    };
    filter.split(',').map(str::trim).find(|part| !is_known(part))
}

pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
