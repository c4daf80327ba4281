//! A whole gateway: listeners, shards, backends and the operators' HTTP, started and stopped together.
//!
//! ```no_run
//! use tidegate::Server;
//! use tidegate::config::Config;
//! use tidegate_backend::demo::Demo;
//!
//! # fn main() -> Result<(), tidegate::server::StartError> {
//! let server = Server::builder(Config::embedded_default()).handler("demo", Demo::default()).start()?;
//! println!("listening on {}", server.client_address());
//! server.shutdown();
//! server.wait()?;
//! # Ok(())
//! # }
//! ```

mod listener;
mod threads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam::channel::{self, Receiver, Sender};
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_backend::pool::{Pool, PoolOptions};
use tidegate_backend::{Gateway, Handler, Placement};

use crate::about::About;
use crate::admin::{self, AdminError, AdminServer};
use crate::auth::{KeyError, Verifier};
use crate::clock::WallClock;
use crate::cluster;
use crate::cluster::links::Concern;
use crate::cluster::registry::Line;
use crate::cluster::run::{ClusterThread, Surroundings};
use crate::cluster::status::Status;
use crate::config::nearest;
use crate::config::{AuthMode, BackendConfig, Config};
use crate::control::{Control, Readiness};
use crate::holder::{AddressError, PATIENCE, Wait};
use crate::hub::Hub;
use crate::metrics_page::MetricsPage;
use crate::offset_file::{self, OffsetFileError, OffsetKeeper};
use crate::parts::{Keys, Origin, Parts};
use crate::router::Backend;
use crate::secret::{SecretError, check_secret, load_or_create_secret};
use crate::shard::command::CommandLimiter;
use crate::shard::mailbox::Message;
use crate::shard::stats;
use crate::tickets::{self, Tickets};
use listener::listen;
use threads::{Report, start_shards};

/// Why a gateway did not start, or failed. The operator can fix it.
///
/// A cause that is part of the text is no `source`, so that a printed chain of errors says it once.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The token's key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The offset file can't be used.
    #[error(transparent)]
    OffsetFile(#[from] OffsetFileError),
    /// The tickets' key can't be used.
    #[error("rooms.ticket_key_file: {0}")]
    TicketKey(SecretError),
    /// The clients' address can't be listened on.
    #[error(
        "can't listen for clients on {address}: {cause}; choose another address with --listen (the key listen)"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        cause: io::Error,
    },
    /// The operators' HTTP did not start.
    #[error(transparent)]
    Admin(AdminError),
    /// It was interrupted: see [`Builder::start_unless`].
    #[error("the start was interrupted while it waited for an address")]
    Interrupted,
    /// A configured backend has no handler.
    #[error(
        "the configuration has the backend {name:?}, for which this program brings no handler{hint}: it has {known}. \
         Remove [backends.{name}] and the [[routes]] to it, or give the program a handler of this name"
    )]
    UnknownBackend {
        /// The backend.
        name: String,
        /// A question that names a similar backend; empty where there is none.
        hint: String,
        /// The handlers of the program.
        known: String,
    },
    /// The system gives no thread, no epoll, or no random numbers.
    #[error("the system refused what a gateway needs")]
    System(#[from] io::Error),
    /// The thread that speaks with Redis ended unexpectedly.
    #[error("the thread that speaks with Redis failed: {0}")]
    Cluster(String),
    /// A shard ended unexpectedly.
    #[error("shard {shard} failed: {reason}")]
    Shard {
        /// The shard.
        shard: u16,
        /// Why.
        reason: String,
    },
}

impl From<AdminError> for StartError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Interrupted => Self::Interrupted,
            error => Self::Admin(error),
        }
    }
}

/// What the thread that speaks with Redis reports itself as, beside the shards: no shard has this number.
const CLUSTER: u16 = u16::MAX;

/// A gateway that is not started yet.
pub struct Builder {
    config: Config,
    handlers: Vec<(String, Arc<dyn Handler>)>,
    metrics: Option<PrometheusHandle>,
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Server {
    client_address: SocketAddr,
    hub: Arc<Hub>,
    gateway: Gateway,
    admin: AdminServer,
    /// How each shard ended.
    ended: Receiver<(u16, Result<(), String>)>,
    threads: Vec<thread::JoinHandle<()>>,
    /// Speaks with Redis, where the gateway is one of several.
    cluster: Option<ClusterThread>,
    /// Keeps the offset file up to date while shards run.
    offset_keeper: Option<OffsetKeeper>,
}

impl Builder {
    /// Serves the backend that the configuration calls `name`.
    #[must_use]
    pub fn handler(mut self, name: impl Into<String>, handler: impl Handler) -> Self {
        self.handlers.push((name.into(), Arc::new(handler)));
        self
    }

    /// Shows operators the metrics of a recorder that the program has installed. Without it they see none.
    #[must_use]
    pub fn metrics(mut self, metrics: PrometheusHandle) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Checks what can be checked without starting anything: each backend has a handler, and the keys and tokens
    /// that exist can be used. It makes no file.
    ///
    /// # Errors
    /// [`StartError`]: what [`Self::start`] would fail with.
    pub fn check(&self) -> Result<(), StartError> {
        for backend in &self.config.backends {
            handler_of(backend, &self.handlers)?;
        }
        Verifier::check(&self.config.auth)?;
        self.config.rooms.offset_file.as_deref().map(offset_file::read).transpose()?;
        check_secret(&self.config.admin.token_file).map_err(AdminError::Token)?;
        check_secret(&self.config.rooms.ticket_key_file).map_err(StartError::TicketKey)?;
        Ok(())
    }

    /// Starts listening. If another process holds an address, this waits for it: as long as `GET /readyz` at the
    /// operators' address says that a gateway drains there, and 3 seconds more.
    ///
    /// # Errors
    /// [`StartError`]. Nothing runs then.
    pub fn start(self) -> Result<Server, StartError> {
        self.start_unless(|| false)
    }

    /// Like [`Self::start`], but while it waits for an address it asks again and again whether it is interrupted.
    /// Once the answer is true, it has to stay true.
    ///
    /// # Errors
    /// [`StartError`], also [`StartError::Interrupted`]. Nothing runs then.
    pub fn start_unless(self, interrupted: impl Fn() -> bool) -> Result<Server, StartError> {
        let Self { config, handlers, metrics } = self;
        let wait = Wait { patience: PATIENCE, interrupted: &interrupted };
        // Before a secret is made.
        for backend in &config.backends {
            handler_of(backend, &handlers)?;
        }
        let verifier = Verifier::new(&config.auth)?;
        // Before it listens, so that no client waits meanwhile.
        verifier.wait_for_keys(&interrupted);
        let ticket_key = load_or_create_secret(&config.rooms.ticket_key_file);
        let ticket_key = ticket_key.map_err(StartError::TicketKey)?;
        let tickets = Tickets::new(ticket_key.as_bytes(), config.rooms.ticket_ttl);
        let ticket_key = tickets::fingerprint(ticket_key.as_bytes());
        let listeners = listen(&config, &wait).map_err(|error| match error {
            AddressError::Interrupted => StartError::Interrupted,
            AddressError::Refused(cause) => StartError::Listen { address: config.listen, cause },
        })?;
        let client_address = listeners[0].local_addr()?;
        let admin_config = config.admin.clone();
        let (started, wall_clock) = (Instant::now(), WallClock::system());
        let offset_file = config.rooms.offset_file.clone();
        let first_offset = offset_file::first_offset(offset_file.as_deref(), wall_clock.unix_us())?;
        let (session_key, log_key) = (random_number()?, random_number()?);
        let origin = Origin { started, first_offset, wall_clock, session_key, log_key };
        stats::describe();
        let about = About::new(&config, client_address)
            .with_key_set(verifier.key_set_status())
            .with_cluster(cluster_status(&config)?);
        about.export();
        let (line, status) = (about.line(), about.cluster().cloned());
        let (address, inbox) = cluster::channel();
        let address = config.redis.is_some().then_some(address);
        let keys = Keys { verifier, tickets };
        let parts = Parts::new(config, keys, origin, address, |config, gateway| {
            let backends = config.backends.iter();
            backends.map(|backend| start_backend(backend, &handlers, gateway)).collect()
        })?;
        let Parts { hub, gateway, .. } = parts.clone();
        let metrics = match metrics {
            Some(metrics) => MetricsPage::new(metrics, &parts.shared),
            None => detached_metrics().into(),
        };
        let control = Arc::clone(&hub) as Arc<dyn Control>;
        let admin = admin::serve_once_released(&admin_config, control, metrics, about, &wait)?;
        let (report, ended) = channel::unbounded();
        let keeper = offset_file.map(|path| OffsetKeeper::start(path, first_offset, started));
        let offset_keeper = keeper.transpose()?;
        let line = Line { admin_listen: admin.local_addr().to_string(), ticket_key, ..line };
        let cluster = start_cluster(&parts, inbox, status, line, report.clone())?;
        // Before shards accept clients. Those that connect meanwhile wait in the kernel's queue.
        cluster.iter().for_each(|cluster| cluster.wait_for_everybody(&interrupted));
        let threads = start_shards(listeners, &parts, &report)?;
        hub.set_readiness(Readiness::Ready);
        Ok(Server { client_address, hub, gateway, admin, ended, threads, cluster, offset_keeper })
    }
}

impl Server {
    /// Starts to build a gateway.
    #[must_use]
    pub const fn builder(config: Config) -> Builder {
        Builder { config, handlers: Vec::new(), metrics: None }
    }

    /// Where clients connect.
    #[must_use]
    pub const fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Where operators connect.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// The gateway, as a backend sees it.
    #[must_use]
    pub const fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// What operators can ask.
    #[must_use]
    pub fn control(&self) -> Arc<dyn Control> {
        Arc::clone(&self.hub) as Arc<dyn Control>
    }

    /// Drains: accepts no new connections, and closes each connection with 108 once its answers are sent.
    /// [`Self::wait`] returns when the last is closed, or `shutdown.drain_timeout_ms` is over.
    pub fn shutdown(&self) {
        self.hub.set_readiness(Readiness::Draining);
        self.admin.allow_successor();
        self.hub.tell_all(|| Message::Drain);
    }

    /// Ends at once: connections get no 108.
    pub fn stop(&self) {
        self.hub.set_readiness(Readiness::Draining);
        self.hub.set_stopped();
        self.hub.tell_all(|| Message::Stop);
    }

    /// Receives a message from each shard that ends, whether that was requested or not. See [`Self::wait`].
    #[must_use]
    pub const fn ended(&self) -> &Receiver<(u16, Result<(), String>)> {
        &self.ended
    }

    /// Waits until all shards have ended, and ends the operators' HTTP.
    ///
    /// # Errors
    /// [`StartError::Shard`] when one ended unexpectedly.
    pub fn wait(self) -> Result<(), StartError> {
        let mut outcome = Ok(());
        for _ in 0..self.threads.len() {
            if let Ok((shard, Err(reason))) = self.ended.recv() {
                outcome = Err(match shard {
                    CLUSTER => StartError::Cluster(reason),
                    shard => StartError::Shard { shard, reason },
                });
                self.stop();
            }
        }
        self.hub.set_stopped();
        for thread in self.threads {
            // The thread has reported how it ended.
            drop(thread.join());
        }
        if let Some(cluster) = self.cluster {
            cluster.stop();
        }
        drop(self.offset_keeper);
        self.admin.shutdown();
        outcome
    }
}

/// What operators are shown of the gateways that form one system; `None`: this one is alone.
fn cluster_status(config: &Config) -> io::Result<Option<Status>> {
    let Some(redis) = &config.redis else { return Ok(None) };
    let status = Status::new(&format!("{:08x}", random_number()? >> 32));
    let has_tokens = config.auth.mode == AuthMode::Redis;
    status.add_link(Concern::Pushes.name(), redis.pushes.to_string(), false);
    status.add_link(Concern::Presence.name(), redis.presence.to_string(), false);
    if has_tokens {
        status.add_link(Concern::Tokens.name(), redis.tokens.to_string(), true);
    }
    Ok(Some(status))
}

/// Starts the thread that speaks with Redis, if the configuration names one.
fn start_cluster(
    parts: &Parts,
    inbox: cluster::Inbox,
    status: Option<Status>,
    line: Line,
    report: Sender<Report>,
) -> io::Result<Option<ClusterThread>> {
    let shared = &parts.shared;
    let (Some(redis), Some(address), Some(status)) =
        (&shared.config.redis, &shared.cluster, status)
    else {
        return Ok(None);
    };
    cluster::metrics::describe();
    let limits = &shared.config.limits;
    let limiter = CommandLimiter::new(limits.commands_max, limits.commands_bytes_max);
    let surroundings = Surroundings {
        redis: redis.clone(),
        config: shared.config.clone(),
        started: shared.started,
        wall_clock: shared.wall_clock.clone(),
        shards: shared.addresses.clone(),
        limiter: Arc::new(limiter),
        status,
        line,
        control: Arc::clone(&parts.hub) as Arc<dyn Control>,
    };
    // Joins would wait for it forever. The receiver is gone when the server itself was dropped.
    let on_panic = move |reason| drop(report.send((CLUSTER, Err(reason))));
    ClusterThread::start(surroundings, inbox, address.clone(), on_panic).map(Some)
}

fn handler_of<'a>(
    config: &BackendConfig,
    handlers: &'a [(String, Arc<dyn Handler>)],
) -> Result<&'a Arc<dyn Handler>, StartError> {
    let found = handlers.iter().find(|(name, _)| *name == config.name);
    found.map(|(_, handler)| handler).ok_or_else(|| {
        let names = || handlers.iter().map(|(name, _)| name.as_str());
        let hint = nearest(&config.name, names())
            .map_or_else(String::new, |near| format!(" (did you mean \"{near}\"?)"));
        let known = names().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        StartError::UnknownBackend { name: config.name.clone(), hint, known }
    })
}

fn start_backend(
    config: &BackendConfig,
    handlers: &[(String, Arc<dyn Handler>)],
    gateway: &Gateway,
) -> Result<Backend, StartError> {
    let handler = handler_of(config, handlers)?;
    let pool = match config.placement.unwrap_or_else(|| handler.placement()) {
        Placement::Shard => None,
        Placement::Worker => {
            let options = PoolOptions {
                workers: config.workers,
                queue_calls_max: config.queue_calls_max,
                queue_bytes_max: config.queue_bytes_max,
                batch_calls_max: config.batch_calls_max,
            };
            Some(Pool::start(&config.name, handler, gateway, options)?)
        }
    };
    Ok(Backend { name: config.name.as_str().into(), handler: Arc::clone(handler), pool })
}

/// A page without metrics, for a program that installs no recorder.
fn detached_metrics() -> PrometheusHandle {
    metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle()
}

fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_ne_bytes(bytes))
}
