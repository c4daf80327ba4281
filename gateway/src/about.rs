//! What a running gateway is: the facts that hold from its start to its end, and its configuration.
//!
//! Operators read them in `/stats`, and so does `tide doctor`, which would otherwise have to guess them from the
//! outside.

use std::net::SocketAddr;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::gauge;
use serde::Serialize;
use serde_json::Value;
use tidegate_machine::files::Files;
use tidegate_machine::{descriptors, memory};

use crate::cluster::registry::{Figures, Line};
use crate::cluster::status::Status;
use crate::config::Config;
use crate::limits::addresses::{AddressLimits, Settings};
use crate::reload::{ReloadInfo, Reloader};

/// The version of the gateway.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the running gateway is.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Its version.
    version: &'static str,
    /// Its process, as its own PID namespace numbers it.
    pid: u32,
    /// When it started, in milliseconds since 1970.
    start_time_unix_ms: u64,
    /// Where clients connect: the port is never 0.
    listen: SocketAddr,
    /// How it talks to the kernel: `epoll` or `uring`.
    driver: &'static str,
    /// Why it is not io_uring, where `driver = "auto"` would have taken that.
    driver_refusal: Option<String>,
    /// The limit of descriptors (`RLIMIT_NOFILE`) of each table; `null` is no limit.
    descriptors_max: Option<u64>,
    /// The memory that bounds it, in bytes: the machine's, or what its control group allows.
    memory_bytes_max: u64,
    /// Connections that it accepts at most.
    connections_max: usize,
    /// What decides that: see [`tidegate_machine::capacity::Basis::name`].
    connections_max_basis: &'static str,
    /// The configuration that it uses, by key.
    config: Value,
    /// Its reloads.
    reload: ReloadInfo,
    #[serde(skip)]
    started: Instant,
    /// `None`: this gateway is alone.
    #[serde(skip)]
    cluster: Option<Status>,
    /// `None`: it can't be reloaded.
    #[serde(skip)]
    reloader: Option<Arc<Reloader>>,
    #[serde(skip)]
    address_limits: Arc<AddressLimits>,
}

impl About {
    /// What a gateway is that starts now with this configuration, and listens here.
    #[must_use]
    pub fn new(config: &Config, listen: SocketAddr) -> Self {
        let started = Instant::now();
        let start_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            pid: process::id(),
            start_time_unix_ms: u64::try_from(start_time.as_millis()).unwrap_or(u64::MAX),
            listen,
            driver: config.driver.name(),
            driver_refusal: config.driver_refusal.clone(),
            descriptors_max: descriptors::limit(),
            memory_bytes_max: memory::Limit::of_caller(&Files::system()).bytes,
            connections_max: config.limits.connections_max,
            connections_max_basis: config.limits.connections_max_basis.name(),
            config: config.effective(),
            started,
            address_limits: Arc::new(AddressLimits::new(Settings::default(), started)),
            reload: ReloadInfo::default(),
            cluster: None,
            reloader: None,
        }
    }

    /// Why there are no keys to verify tokens with; `None`: there are.
    #[must_use]
    pub fn missing_keys(&self) -> Option<String> {
        self.reloader.as_ref()?.key_set_status()?.missing()
    }

    /// Knows also what reloads the gateway.
    #[must_use]
    pub fn with_reloader(self, reloader: Arc<Reloader>) -> Self {
        Self { reloader: Some(reloader), ..self }
    }

    /// What reloads the gateway; `None`: it can't be reloaded.
    #[must_use]
    pub const fn reloader(&self) -> Option<&Arc<Reloader>> {
        self.reloader.as_ref()
    }

    /// The same, as it is now: with the configuration of the last reload.
    #[must_use]
    pub fn now(&self) -> Self {
        let Some(reloader) = &self.reloader else { return self.clone() };
        let config = reloader.settings().config.effective();
        Self { config, reload: reloader.info(), ..self.clone() }
    }

    /// Knows also the limits by address, whose bans operators may see and change.
    #[must_use]
    pub fn with_address_limits(self, address_limits: Arc<AddressLimits>) -> Self {
        Self { address_limits, ..self }
    }

    /// The limits by address.
    #[must_use]
    pub fn address_limits(&self) -> &AddressLimits {
        &self.address_limits
    }

    /// Says also what is known of Redis and of the other gateways.
    #[must_use]
    pub fn with_cluster(self, cluster: Option<Status>) -> Self {
        Self { cluster, ..self }
    }

    /// What is known of Redis and of the other gateways; `None`: this one is alone.
    #[must_use]
    pub const fn cluster(&self) -> Option<&Status> {
        self.cluster.as_ref()
    }

    /// What the gateway reports about itself to others, as far as it is here.
    #[must_use]
    pub fn line(&self) -> Line {
        let figures = Figures {
            connections_max: u64::try_from(self.connections_max).unwrap_or(u64::MAX),
            ..Figures::default()
        };
        Line {
            listen: self.listen.to_string(),
            version: self.version.to_owned(),
            start_time_unix_ms: self.start_time_unix_ms,
            figures,
            ..Line::of_this_machine()
        }
    }

    /// How long it has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Sets the metrics that hold from start to end.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn export(&self) {
        gauge!("tidegate_build_info", "version" => VERSION).set(1.0);
        gauge!("tidegate_connections_max").set(self.connections_max as f64);
        gauge!("process_start_time_seconds").set(self.start_time_unix_ms as f64 / 1e3);
    }
}
