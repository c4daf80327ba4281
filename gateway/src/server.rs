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
mod warnings;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{self, Receiver, Sender};
use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_backend::pool::{Pool, PoolOptions};
use tidegate_backend::{Gateway, Handler, Placement};

use crate::about::About;
use crate::admin::{self, AdminError, AdminServer, HandOver};
use crate::auth::{KeyError, Verifier};
use crate::clock::WallClock;
use crate::cluster;
use crate::cluster::links::Concern;
use crate::cluster::registry::Line;
use crate::cluster::run::{ClusterThread, Surroundings};
use crate::cluster::status::Status;
use crate::config::nearest;
use crate::config::{AuthMode, BackendConfig, Config, ListenerConfig, Sources, WireKind};
use crate::control::{Control, Drains, Readiness};
use crate::holder::{AddressError, PATIENCE, Wait};
use crate::http::{self, HttpPhase, HttpServer, MessageError};
use crate::hub::Hub;
use crate::metrics_page::MetricsPage;
use crate::offset_file::{self, OffsetFileError, OffsetKeeper};
use crate::parts::{Keys, Origin, Parts};
use crate::reload::{FileWatch, Reloader};
use crate::router::Backend;
use crate::secret::{SecretError, check_secret, load_or_create_secret};
use crate::shard::command::CommandLimiter;
use crate::shard::mailbox::{Address, Message};
use crate::shard::stats;
use crate::tickets::Tickets;
use crate::wire::certificates::{self, CertificateError, Certificates};
use crate::wire::{self, Wire};
pub use listener::ClientAddress;
use listener::{ListenError, Listeners, listen};
use threads::{Report, start_shards};
use warnings::warnings;

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
        "can't listen for clients on {address}: {cause}; choose another address with {}",
        flag_of(key)
    )]
    Listen {
        /// The key that names it.
        key: String,
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        cause: io::Error,
    },
    /// The certificates can't be used.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
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
    /// The system refuses a thread, epoll, or random numbers.
    #[error("the system refused what a gateway needs")]
    System(#[from] io::Error),
    /// The thread of the Redis connections ended unexpectedly.
    #[error("the thread that speaks with Redis failed: {0}")]
    Cluster(String),
    /// The messages that HTTP routes name can't be used.
    #[error(transparent)]
    Messages(#[from] MessageError),
    /// The thread that serves HTTP ended unexpectedly.
    #[error("the thread that serves HTTP failed: {0}")]
    Http(String),
    /// A shard ended unexpectedly.
    #[error("shard {shard} failed: {reason}")]
    Shard {
        /// The shard.
        shard: u16,
        /// Why.
        reason: String,
    },
}

impl StartError {
    /// A thread has ended with a failure, and has reported itself as this: see [`Server::ended`].
    #[must_use]
    pub fn of_thread(number: u16, reason: String) -> Self {
        match number {
            CLUSTER => Self::Cluster(reason),
            HTTP => Self::Http(reason),
            shard => Self::Shard { shard, reason },
        }
    }
}

impl From<ListenError> for StartError {
    fn from(ListenError { key, address, cause }: ListenError) -> Self {
        match cause {
            AddressError::Interrupted => Self::Interrupted,
            AddressError::Refused(cause) => Self::Listen { key, address, cause },
        }
    }
}

impl From<AdminError> for StartError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Interrupted => Self::Interrupted,
            error => Self::Admin(error),
        }
    }
}

/// The number under which the thread of the Redis connections reports its end. No shard has this number.
const CLUSTER: u16 = u16::MAX;

/// What the thread of HTTP reports itself as.
const HTTP: u16 = u16::MAX - 1;

/// The ways into what is not a shard, as far as the cluster's thread needs them.
struct Ways {
    inbox: cluster::Inbox,
    http: Option<Address>,
}

/// A gateway that is not started yet.
pub struct Builder {
    config: Config,
    handlers: Vec<(String, Arc<dyn Handler>)>,
    metrics: Option<PrometheusHandle>,
    sources: Option<Sources>,
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Server {
    client_addresses: Vec<ClientAddress>,
    certificates: Option<Arc<Certificates>>,
    hub: Arc<Hub>,
    /// Has a message once the gateway drains.
    drain_began: Receiver<()>,
    gateway: Gateway,
    admin: AdminServer,
    /// How each shard ended.
    ended: Receiver<(u16, Result<(), String>)>,
    threads: Vec<thread::JoinHandle<()>>,
    /// Serves HTTP, where a listener has it.
    http: Option<HttpServer>,
    reloader: Arc<Reloader>,
    _file_watch: Option<FileWatch>,
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

    /// Has reloads load the configuration from here again. Without it they only read the files that it names.
    #[must_use]
    pub fn sources(mut self, sources: Sources) -> Self {
        self.sources = Some(sources);
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
    /// Returns warnings: what is valid in the configuration, but probably a mistake. [`Self::start`] logs them.
    ///
    /// # Errors
    /// [`StartError`]: what [`Self::start`] would fail with.
    pub fn check(&self) -> Result<Vec<String>, StartError> {
        for backend in &self.config.backends {
            handler_of(backend, &self.handlers)?;
        }
        Verifier::check(&self.config.auth)?;
        let certificates = certificates(&self.config)?;
        http::check(&self.config.http)?;
        self.config.rooms.offset_file.as_deref().map(offset_file::read).transpose()?;
        check_secret(&self.config.admin.token_file).map_err(AdminError::Token)?;
        check_secret(&self.config.rooms.ticket_key_file).map_err(StartError::TicketKey)?;
        Ok(warnings(&self.config, certificates.as_ref()))
    }

    /// Starts listening. If another process holds an address, this waits for it: as long as `GET /readyz` at the
    /// operators' address says that a gateway drains there, and 3 seconds more.
    ///
    /// # Errors
    /// [`StartError`]. Nothing runs then.
    pub fn start(self) -> Result<Server, StartError> {
        self.start_unless(|| false)
    }

    /// Like [`Self::start`], but it polls `interrupted` while it waits for an address.
    /// Once the answer is true, it has to stay true.
    ///
    /// # Errors
    /// [`StartError`], also [`StartError::Interrupted`]. Nothing runs then.
    pub fn start_unless(self, interrupted: impl Fn() -> bool) -> Result<Server, StartError> {
        let Self { config, handlers, metrics, sources } = self;
        let wait = Wait { patience: PATIENCE, interrupted: &interrupted };
        // Before a secret is made.
        for backend in &config.backends {
            handler_of(backend, &handlers)?;
        }
        let keys = keys(&config, &interrupted)?;
        let ticket_key = keys.tickets.fingerprint().to_owned();
        let certificates = watched_certificates(&config)?;
        let http_routes = http::load_routes(&config.http)?;
        let Listeners { addresses: client_addresses, by_shard, http: http_sockets } =
            listen(&config, &wait)?;
        let wires = wires(&config, certificates.as_deref());
        let admin_config = config.admin.clone();
        let (started, wall_clock) = (Instant::now(), WallClock::system());
        let offset_file = config.rooms.offset_file.clone();
        let first_offset = offset_file::first_offset(offset_file.as_deref(), wall_clock.unix_us())?;
        let (session_key, log_key) = (random_number()?, random_number()?);
        let origin = Origin { started, first_offset, wall_clock, session_key, log_key };
        stats::describe();
        let about =
            About::new(&config, client_addresses[0].address).with_cluster(cluster_status(&config)?);
        about.export();
        let (line, status) = (about.line(), about.cluster().cloned());
        let (address, inbox) = cluster::channel();
        let address = config.redis.is_some().then_some(address);
        let parts = Parts::new(config, keys, origin, address, |config, gateway| {
            let backends = config.backends.iter();
            backends.map(|backend| start_backend(backend, &handlers, gateway)).collect()
        })?;
        let Parts { hub, gateway, .. } = parts.clone();
        // Before the operators' HTTP asks whether its thread runs.
        let http_address = (!http_sockets.is_empty()).then(|| hub.add_http());
        let metrics = match metrics {
            Some(metrics) => MetricsPage::new(metrics, &parts.shared),
            None => detached_metrics().into(),
        };
        let limits = &parts.shared.settings().config.limits;
        let limiter = CommandLimiter::new(limits.commands_max, limits.commands_bytes_max);
        let limiter = Arc::new(limiter);
        let reloader =
            Reloader::new(parts.clone(), sources, certificates.clone(), Arc::clone(&limiter));
        let reloader = Arc::new(reloader);
        let about = about
            .with_address_limits(Arc::clone(&parts.shared.address_limits))
            .with_reloader(Arc::clone(&reloader));
        let control = Arc::clone(&hub) as Arc<dyn Control>;
        let admin = admin::serve_once_released(&admin_config, control, metrics, about, &wait)?;
        let (report, ended) = channel::unbounded();
        let keeper = offset_file.map(|path| OffsetKeeper::start(path, first_offset, started));
        let offset_keeper = keeper.transpose()?;
        let line = Line { admin_listen: admin.local_addr().to_string(), ticket_key, ..line };
        let ways = Ways { inbox, http: http_address.clone() };
        let cluster = start_cluster(&parts, ways, (status, limiter), line, report.clone())?;
        // Before shards accept clients. Those that connect meanwhile wait in the kernel's queue.
        cluster.iter().for_each(|cluster| cluster.wait_for_everybody(&interrupted));
        // They end if the start fails.
        reloader.start_signature_threads()?;
        let threads = start_shards(by_shard, &wires, &parts, &report)?;
        let listeners = (http_sockets, certificates.clone());
        let http = start_http(&parts, http_address, listeners, http_routes, report)?;
        let drain_began = Beside::attach(&hub, &admin, http.as_ref());
        let file_watch = FileWatch::start(&reloader)?;
        hub.set_readiness(Readiness::Ready);
        Ok(Server {
            client_addresses,
            certificates,
            hub,
            drain_began,
            gateway,
            admin,
            ended,
            threads,
            http,
            reloader,
            _file_watch: file_watch,
            cluster,
            offset_keeper,
        })
    }
}

/// How the operator changes the key of an address.
fn flag_of(key: &str) -> String {
    if key == "listen" { "--listen (the key listen)".into() } else { format!("the key {key}") }
}

/// The certificates, which are read again when they change. The log has what clients may not like about them.
fn watched_certificates(config: &Config) -> Result<Option<Arc<Certificates>>, StartError> {
    let certificates = certificates(config)?.map(Arc::new);
    let warnings = warnings(config, certificates.as_deref());
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    certificates.as_ref().map(certificates::watch).transpose()?;
    Ok(certificates)
}

/// The certificates, if a listener needs any.
fn certificates(config: &Config) -> Result<Option<Certificates>, CertificateError> {
    let mut listeners = config.listeners.iter().chain(&config.http.listeners);
    let needed = listeners.any(|listener| listener.wire.has_tls());
    needed.then(|| Certificates::load(config.tls.clone())).transpose()
}

/// The wires of all listeners, in the order of the drivers' numbers.
fn wires(config: &Config, certificates: Option<&Certificates>) -> wire::Settings {
    let of_listener = |listener: &ListenerConfig| Wire {
        proxy: listener.proxy_rules(),
        tls: certificates.and_then(|certificates| match listener.wire {
            WireKind::Tls => Some(certificates.tls()),
            WireKind::Wss => Some(certificates.websocket()),
            WireKind::Tcp | WireKind::Ws | WireKind::Http | WireKind::Https => None,
        }),
        websocket: listener.upgrade.clone().map(Arc::new),
    };
    let plain = config.listen.map(|_| Wire::default());
    wire::Settings {
        wires: plain.into_iter().chain(config.listeners.iter().map(of_listener)).collect(),
        message_bytes_max: config.limits.message_bytes_max,
        open_timeout: config.limits.open_timeout,
        handshakes_per_second: config.tls.handshakes_per_second_max,
        marks_messages: false,
    }
}

impl Server {
    /// Starts to build a gateway.
    #[must_use]
    pub const fn builder(config: Config) -> Builder {
        Builder { config, handlers: Vec::new(), metrics: None, sources: None }
    }

    /// Where clients connect: with plain TCP, if there is such a listener, or else at the first one.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.client_addresses[0].address
    }

    /// All addresses where clients connect. The plain one comes first.
    #[must_use]
    pub fn client_addresses(&self) -> &[ClientAddress] {
        &self.client_addresses
    }

    /// The certificates, which can be read again; `None`: no listener has TLS.
    #[must_use]
    pub const fn certificates(&self) -> Option<&Arc<Certificates>> {
        self.certificates.as_ref()
    }

    /// What reloads the gateway. A clone that is kept keeps the backends, their workers included, also after [`Self::wait`].
    #[must_use]
    pub const fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
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

    /// Drains: says that it is not ready for `shutdown.ready_grace_ms`, then accepts no new connections, and closes each connection
    /// with 108 once its answers are sent. [`Self::wait`] returns when the last is closed, or the drain's time is over.
    pub fn shutdown(&self) {
        self.hub.drain();
    }

    /// Drains in a hurry: all goodbyes are sent now, and answers have a second. A drain that is under way is hurried.
    pub fn hurry(&self) {
        self.hub.hurry_drain();
    }

    /// Receives a message when the gateway begins to drain, whether [`Self::shutdown`] or an operator asks for it.
    #[must_use]
    pub const fn drain_began(&self) -> &Receiver<()> {
        &self.drain_began
    }

    /// Ends at once: connections get no 108.
    pub fn stop(&self) {
        self.hub.set_readiness(Readiness::Draining);
        self.hub.set_stopped();
        self.hub.tell_all(|| Message::Stop);
        self.http.iter().for_each(HttpServer::stop);
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
    pub fn wait(mut self) -> Result<(), StartError> {
        let mut outcome = Ok(());
        for _ in 0..self.threads.len() {
            if let Ok((shard, Err(reason))) = self.ended.recv() {
                outcome = Err(StartError::of_thread(shard, reason));
                self.stop();
            }
        }
        if let Some(http) = self.http.take() {
            http.join();
        }
        self.hub.set_stopped();
        for thread in self.threads {
            // The thread has reported how it ended.
            drop(thread.join());
        }
        self.reloader.end_signature_threads();
        if let Some(cluster) = self.cluster {
            cluster.stop();
        }
        drop(self.offset_keeper);
        self.admin.shutdown();
        outcome
    }
}

/// What drains beside the shards.
#[derive(Debug)]
struct Beside {
    hand_over: Weak<HandOver>,
    http_phase: Option<HttpPhase>,
    began: Sender<()>,
}

impl Beside {
    /// Has the hub drain these, too. Returns what has a message once the gateway drains.
    fn attach(hub: &Hub, admin: &AdminServer, http: Option<&HttpServer>) -> Receiver<()> {
        let (began, drain_began) = channel::bounded(1);
        let http_phase = http.map(HttpServer::phase);
        hub.drain_beside(Arc::new(Self { hand_over: admin.hand_over(), http_phase, began }));
        drain_began
    }
}

impl Drains for Beside {
    fn drain(&self) {
        self.hand_over.upgrade().inspect(|hand_over| hand_over.allow());
        self.http_phase.iter().for_each(HttpPhase::drain);
        // The receiver is gone when the server itself was dropped.
        let _ = self.began.try_send(());
    }

    fn hurry(&self) {
        self.http_phase.iter().for_each(HttpPhase::hurry);
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

/// The keys of tokens and tickets. It waits for a key set from a URL, before the gateway listens: no client waits meanwhile.
fn keys(config: &Config, interrupted: &impl Fn() -> bool) -> Result<Keys, StartError> {
    let verifier = Verifier::new(&config.auth)?;
    verifier.wait_for_keys(interrupted);
    let ticket_key = load_or_create_secret(&config.rooms.ticket_key_file);
    let ticket_key = ticket_key.map_err(StartError::TicketKey)?;
    let tickets = Tickets::new(ticket_key.as_bytes(), config.rooms.ticket_ttl);
    Ok(Keys { verifier, tickets })
}

/// Starts the thread of the Redis connections, if the configuration names a Redis.
fn start_cluster(
    parts: &Parts,
    ways: Ways,
    (status, limiter): (Option<Status>, Arc<CommandLimiter>),
    line: Line,
    report: Sender<Report>,
) -> io::Result<Option<ClusterThread>> {
    let shared = &parts.shared;
    let settings = shared.settings();
    let config = &settings.config;
    let (Some(redis), Some(address), Some(status)) = (&config.redis, &shared.cluster, status)
    else {
        return Ok(None);
    };
    cluster::metrics::describe();
    let surroundings = Surroundings {
        redis: redis.clone(),
        config: config.clone(),
        started: shared.started,
        wall_clock: shared.wall_clock.clone(),
        shards: shared.addresses.clone(),
        http: ways.http,
        address_limits: Arc::clone(&shared.address_limits),
        limiter,
        status,
        line,
        control: Arc::clone(&parts.hub) as Arc<dyn Control>,
    };
    // Joins would wait for it forever. The receiver is gone when the server itself was dropped.
    let on_panic = move |reason| drop(report.send((CLUSTER, Err(reason))));
    ClusterThread::start(surroundings, ways.inbox, address.clone(), on_panic).map(Some)
}

/// Starts the thread that serves HTTP, if there is an address that answers come to.
fn start_http(
    parts: &Parts,
    address: Option<Address>,
    (sockets, certificates): (Vec<TcpListener>, Option<Arc<Certificates>>),
    routes: http::Routes,
    report: Sender<Report>,
) -> io::Result<Option<HttpServer>> {
    let Some(address) = address else { return Ok(None) };
    let around = http::Surroundings { parts: parts.clone(), address, sockets, certificates };
    // The receiver is gone when the server itself was dropped.
    let on_failure = move |reason| drop(report.send((HTTP, Err(reason))));
    let started = HttpServer::start(around, routes, on_failure).inspect_err(|_| {
        // The shards that run already must not go on without it.
        parts.hub.set_stopped();
        parts.hub.tell_all(|| Message::Stop);
    });
    started.map(Some)
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
    let backend = Backend::new(&config.name, Arc::clone(handler), pool);
    Ok(backend.with_circuit(config.circuit_timeouts))
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
