//! Reload: loads the configuration and the files that it names again, and has all threads use them.
//!
//! A reload has two halves. The first one runs on the caller's thread, which is no shard: it loads, checks, reads files and
//! compares. All that can fail is in it, and until its end nothing has changed. The second one can't fail: it replaces the
//! [`Settings`], sends them to each shard and to the HTTP gateway, and waits until each has applied them.
//!
//! A key that can't change at run time has the whole reload refused, so that the file and what runs never differ without the
//! operator's knowledge. One reload runs at a time.

mod file_watch;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel;
use metrics::{counter, gauge};
use serde::Serialize;
use tracing_subscriber::filter::ParseError;

use crate::auth::signatures::SignatureThreads;
use crate::auth::{KeyError, KeySetStatus, Renewed};
use crate::cluster::message::ToCluster;
use crate::config::{Change, Config, ConfigError, Fingerprint, RoomsConfig, Sources, Written};
use crate::control::{Control as _, Readiness};
use crate::parts::Parts;
use crate::secret::{SecretError, load_secret};
use crate::settings::{NewSettings, Settings};
use crate::shard::command::CommandLimiter;
use crate::shard::stats::{GENERATION, RELOADS};
use crate::telemetry::NewFilter;
use crate::tickets::Tickets;
use crate::wire::certificates::{CertificateError, Certificates, Prepared};

pub(crate) use file_watch::FileWatch;

/// How long a reload waits until each thread has applied the settings. They do it all the same when they come to it.
const APPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Why nothing has changed. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is wrong.
    #[error("nothing has changed: {0}")]
    Config(#[from] ConfigError),
    /// Keys differ that only a restart changes.
    #[error(
        "nothing has changed, since these keys change only with a restart: {}. Restart the gateway to change them, or set them back",
        listed(.0)
    )]
    NeedsRestart(Vec<Change>),
    /// A route leads to a backend that does not run.
    #[error(
        "nothing has changed, since routes lead to the backend {0:?}, which this gateway has not started: backends start and end \
         only with the gateway. Restart it to add the backend"
    )]
    NoBackend(String),
    /// The class of rooms differs, where gateways share them.
    #[error(
        "nothing has changed, since rooms {0:?} would get another class: where redis.url is set, rooms.class and that of \
         room_policies change only with a restart of all gateways"
    )]
    RoomClass(String),
    /// The keys of tokens can't be used.
    #[error("nothing has changed: {0}")]
    Key(#[from] KeyError),
    /// The key of tickets can't be used.
    #[error("nothing has changed: rooms.ticket_key_file: {0}")]
    TicketKey(SecretError),
    /// The certificates can't be used.
    #[error("nothing has changed, since the new certificates can't be used: {0}")]
    Certificates(#[from] CertificateError),
    /// The filter of the log can't be parsed.
    #[error("nothing has changed: log.filter: {0}")]
    Filter(#[from] ParseError),
    /// The system gives no threads to check signatures.
    #[error("nothing has changed: there are no threads to check signatures: {0}")]
    Threads(io::Error),
    /// The file's watch was to load a file that turns the watch off.
    #[error(
        "nothing has changed: the file no longer has reload_on_change = true, as a file that is not written to its end. \
         `tide reload` or SIGHUP loads it all the same"
    )]
    EndsWatch,
    /// The file's watch was to load a file that is being written.
    #[error("nothing has changed: the file is being written")]
    FileChanges,
    /// Another reload has not ended.
    #[error(
        "another reload has not ended, so this one was not begun: it waits for a file or for auth.jwks_url. Try again"
    )]
    Busy,
    /// The gateway starts or drains.
    #[error("the gateway starts or drains, so nothing was read again")]
    NotServing,
}

fn listed(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; ")
}

/// What has asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Trigger {
    /// An operator, over HTTP.
    #[serde(rename = "operator")]
    Operator,
    /// SIGHUP.
    #[serde(rename = "SIGHUP")]
    Signal,
    /// The configuration's file has changed.
    #[serde(rename = "file")]
    File,
    /// The program that the gateway is part of.
    #[serde(rename = "program")]
    Program,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Operator => "an operator's reload",
            Self::Signal => "SIGHUP",
            Self::File => "the reload of a changed file",
            Self::Program => "the program's reload",
        })
    }
}

/// What a reload came to.
#[derive(Clone, Debug, Serialize)]
pub struct Reloaded {
    /// `applied`, or `unchanged`: nothing differs from what the gateway uses.
    pub result: &'static str,
    /// How many reloads have changed something since the start.
    pub generation: u64,
    /// What has changed: each a key with its values, or a key whose file has changed.
    pub changes: Vec<String>,
    /// `changed`, `unchanged`, or `none`: no listener has TLS.
    pub certificates: &'static str,
    /// The shards that have not said yet that they have applied it; the number after the last shard's is the HTTP gateway.
    pub unconfirmed: Vec<u16>,
}

/// What `/stats` says of reloads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReloadInfo {
    generation: u64,
    last: Option<LastReload>,
}

#[derive(Clone, Debug, Serialize)]
struct LastReload {
    unix_ms: u64,
    by: Trigger,
    /// `applied`, `unchanged` or `refused`.
    result: &'static str,
    changes: Vec<String>,
    /// Why it was refused.
    error: Option<String>,
}

/// Reloads a gateway. See the [module](self).
pub struct Reloader {
    parts: Parts,
    /// `None`: the program has made the configuration, so only files are read again.
    sources: Option<Sources>,
    certificates: Option<Arc<Certificates>>,
    /// The bound on pushes that come from Redis.
    cluster_limiter: Arc<CommandLimiter>,
    /// Check tokens' signatures, where these take long.
    signature_threads: Mutex<Option<SignatureThreads>>,
    /// The configuration that is in use, as it was written. Locked while a reload runs.
    written: Mutex<Option<Written>>,
    /// A reload by a signal waits for the one that runs.
    signal_waits: AtomicBool,
    generation: AtomicU64,
    last: Mutex<Option<LastReload>>,
}

/// All that can fail has been done.
struct Plan {
    settings: Settings,
    written: Option<Written>,
    certificates: Option<Prepared>,
    filter: NewFilter,
    new_threads: Option<SignatureThreads>,
    changes: Vec<String>,
}

impl Reloader {
    /// For a gateway that begins to run with these parts.
    pub(crate) fn new(
        parts: Parts,
        sources: Option<Sources>,
        certificates: Option<Arc<Certificates>>,
        cluster_limiter: Arc<CommandLimiter>,
    ) -> Self {
        for result in ["applied", "unchanged", "refused"] {
            counter!(RELOADS, "result" => result).increment(0);
        }
        gauge!(GENERATION).set(0.0);
        Self {
            written: Mutex::new(sources.as_ref().map(|sources| sources.written().clone())),
            parts,
            sources,
            certificates,
            cluster_limiter,
            signature_threads: Mutex::new(None),
            signal_waits: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            last: Mutex::new(None),
        }
    }

    /// Reloads, and logs what it came to. It reads files and may fetch a key set, so it takes a while: never call it on a shard.
    ///
    /// # Errors
    /// [`ReloadError`]: then nothing has changed.
    pub fn reload(&self, by: Trigger) -> Result<Reloaded, ReloadError> {
        let reloaded = self.try_lock().and_then(|written| self.reload_locked(written, None));
        self.log(by, &reloaded);
        reloaded
    }

    /// Reloads, after the reload that runs, if one does: that one may have read the files before they changed. A call while another
    /// one waits does nothing, since that one reads the files later.
    pub(crate) fn reload_by_signal(&self) {
        if self.signal_waits.swap(true, Ordering::AcqRel) {
            return;
        }
        let written = lock(&self.written);
        self.signal_waits.store(false, Ordering::Release);
        self.log(Trigger::Signal, &self.reload_locked(written, None));
    }

    /// Reloads if the file holds this, and still asks for reloads by itself. Of the same refusals in a row the log has the first.
    fn reload_watched(&self, file: Fingerprint) -> Result<Reloaded, ReloadError> {
        let reloaded = self.try_lock().and_then(|written| self.reload_locked(written, Some(file)));
        // The next look tries again.
        if !matches!(
            reloaded,
            Err(ReloadError::Busy | ReloadError::FileChanges | ReloadError::NotServing)
        ) {
            self.log(Trigger::File, &reloaded);
        }
        reloaded
    }

    /// What the file in use held when it was loaded; `None`: a reload runs, or there is no file.
    fn file_in_use(&self) -> Option<Fingerprint> {
        self.try_lock().ok()?.as_ref()?.file()
    }

    fn log(&self, by: Trigger, reloaded: &Result<Reloaded, ReloadError>) {
        let (result, changes, error) = match reloaded {
            Ok(reloaded) => (reloaded.result, reloaded.changes.clone(), None),
            Err(error) => ("refused", Vec::new(), Some(error.to_string())),
        };
        counter!(RELOADS, "result" => result).increment(1);
        let mut last = lock(&self.last);
        let is_known =
            |last: &LastReload| by == Trigger::File && last.by == by && last.error == error;
        let is_repeated = error.is_some() && last.as_ref().is_some_and(is_known);
        match reloaded {
            Err(_) if is_repeated => {}
            Err(error) => tracing::error!(%error, "{by}: refused"),
            Ok(Reloaded { result: "unchanged", .. }) => {
                tracing::info!("{by}: nothing has changed");
            }
            Ok(Reloaded { generation, changes, unconfirmed, .. }) => {
                let changes = changes.join("; ");
                tracing::info!(generation, changes, "{by}: applied");
                if !unconfirmed.is_empty() {
                    tracing::warn!(
                        shards = ?unconfirmed,
                        "these have not applied the reload yet: does a handler with Placement::Shard block?"
                    );
                }
            }
        }
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let unix_ms = u64::try_from(unix_ms).unwrap_or(u64::MAX);
        *last = Some(LastReload { unix_ms, by, result, changes, error });
    }

    /// What `/stats` says of reloads.
    #[must_use]
    pub fn info(&self) -> ReloadInfo {
        let generation = self.generation.load(Ordering::Relaxed);
        ReloadInfo { generation, last: lock(&self.last).clone() }
    }

    /// The settings of the gateway.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.parts.shared.settings()
    }

    /// Whether there is a key set; `None`: none is needed.
    pub(crate) fn key_set_status(&self) -> Option<KeySetStatus> {
        self.settings().verifier.key_set_status()
    }

    /// Where the configuration comes from; `None`: the program has made it.
    pub(crate) const fn sources(&self) -> Option<&Sources> {
        self.sources.as_ref()
    }

    /// Starts the threads that check tokens' signatures, if these take long.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn start_signature_threads(&self) -> io::Result<()> {
        *lock(&self.signature_threads) = signature_threads(&self.settings())?;
        Ok(())
    }

    /// Ends them.
    pub(crate) fn end_signature_threads(&self) {
        let threads = lock(&self.signature_threads).take();
        threads.into_iter().for_each(SignatureThreads::join);
    }

    fn try_lock(&self) -> Result<MutexGuard<'_, Option<Written>>, ReloadError> {
        match self.written.try_lock() {
            Ok(written) => Ok(written),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(ReloadError::Busy),
        }
    }

    /// `file`: what the file has to hold, where its watch asks.
    fn reload_locked(
        &self,
        mut written: MutexGuard<'_, Option<Written>>,
        file: Option<Fingerprint>,
    ) -> Result<Reloaded, ReloadError> {
        let plan = self.plan(written.as_ref(), file)?;
        // Files may have taken a while.
        if self.parts.hub.readiness() != Readiness::Ready {
            return Err(ReloadError::NotServing);
        }
        plan.settings.verifier.keep_up_to_date(&plan.settings.config.auth);
        written.clone_from(&plan.written);
        let certificates = match (&self.certificates, &plan.certificates) {
            (None, _) => "none",
            (_, None) => "unchanged",
            (_, Some(prepared)) if prepared.has_new_contents() => "changed",
            (_, Some(_)) => "unchanged",
        };
        if plan.changes.is_empty() {
            let (generation, changes, unconfirmed) =
                (self.generation.load(Ordering::Relaxed), Vec::new(), Vec::new());
            let result = "unchanged";
            return Ok(Reloaded { result, generation, changes, certificates, unconfirmed });
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let changes = plan.changes.clone();
        let unconfirmed = self.commit(plan);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        gauge!(GENERATION).set(generation as f64);
        Ok(Reloaded { result: "applied", generation, changes, certificates, unconfirmed })
    }

    /// The first half: all that can fail.
    fn plan(
        &self,
        before: Option<&Written>,
        file: Option<Fingerprint>,
    ) -> Result<Plan, ReloadError> {
        if self.parts.hub.readiness() != Readiness::Ready {
            return Err(ReloadError::NotServing);
        }
        let current = self.settings();
        let (config, written) = match &self.sources {
            Some(sources) => {
                let (config, written) = sources.load_again()?;
                (config.with_start_of(&current.config), Some(written))
            }
            None => (current.config.clone(), None),
        };
        if file.is_some() {
            if written.as_ref().and_then(Written::file) != file {
                return Err(ReloadError::FileChanges);
            }
            if !config.reload_on_change {
                return Err(ReloadError::EndsWatch);
            }
        }
        let differs = before.zip(written.as_ref()).map(|(before, after)| before.changes_to(after));
        let (changes, at_start): (Vec<_>, Vec<_>) =
            differs.unwrap_or_default().into_iter().partition(Change::is_at_run_time);
        if !at_start.is_empty() {
            return Err(ReloadError::NeedsRestart(at_start));
        }
        self.check_backends(&config)?;
        if config.redis.is_some() {
            check_classes(&current.config.rooms, &config.rooms)?;
        }
        let mut changes: Vec<_> = changes.iter().map(Change::to_string).collect();
        let mut file_changed = |key: &str| changes.push(format!("{key}: the file has changed"));
        let ticket_key = load_secret(&config.rooms.ticket_key_file);
        let ticket_key = ticket_key.map_err(ReloadError::TicketKey)?;
        let tickets = Tickets::new(ticket_key.as_bytes(), config.rooms.ticket_ttl);
        if tickets.fingerprint() != current.tickets.fingerprint() {
            file_changed("rooms.ticket_key_file");
        }
        let prepare = |certificates: &Arc<Certificates>| certificates.prepare_counted(&config.tls);
        let certificates = self.certificates.as_ref().map(prepare).transpose()?.flatten();
        if certificates.as_ref().is_some_and(Prepared::has_new_contents) {
            file_changed("tls.certificates");
        }
        let filter = NewFilter::parse(&config.log.filter)?;
        // Last, since a new key set is logged and has metrics once it was read.
        let Renewed { verifier, changed_file } =
            current.verifier.renew(&current.config.auth, &config.auth)?;
        changed_file.into_iter().for_each(&mut file_changed);
        let settings = Settings { config, verifier, tickets };
        let is_new = settings.verifier.pool().is_some() && current.verifier.pool().is_none();
        let new_threads = if is_new { signature_threads(&settings) } else { Ok(None) };
        let new_threads = new_threads.map_err(ReloadError::Threads)?;
        Ok(Plan { settings, written, certificates, filter, new_threads, changes })
    }

    fn check_backends(&self, config: &Config) -> Result<(), ReloadError> {
        let runs =
            |name: &str| self.parts.shared.backends.iter().any(|backend| &*backend.name == name);
        let missing = config.routes.iter().find(|route| !runs(&route.backend));
        missing.map_or(Ok(()), |route| Err(ReloadError::NoBackend(route.backend.clone())))
    }

    /// The second half: nothing in it can fail. Returns the threads that have not applied it in time.
    fn commit(&self, plan: Plan) -> Vec<u16> {
        let Plan { settings, certificates, filter, new_threads, .. } = plan;
        let Parts { shared, hub, .. } = &self.parts;
        let before = self.settings();
        if settings.config.log.filter != before.config.log.filter {
            filter.apply();
        }
        if let (Some(current), Some(prepared)) = (&self.certificates, certificates) {
            current.commit(prepared);
        }
        if new_threads.is_some() {
            *lock(&self.signature_threads) = new_threads;
        }
        let limits = &settings.config.limits;
        for limiter in [&shared.limiter, &self.cluster_limiter] {
            limiter.set_bounds(limits.commands_max, limits.commands_bytes_max);
        }
        if settings.config.addresses != before.config.addresses {
            shared.address_limits.reconfigure(&settings.config.addresses);
        }
        if let Some(cluster) = &shared.cluster {
            let rooms = Box::new(settings.config.rooms.clone());
            let ticket_key = settings.tickets.fingerprint().to_owned();
            cluster.post(ToCluster::Reload { rooms, ticket_key });
        }
        let settings = Arc::new(settings);
        shared.settings.store(Arc::clone(&settings));
        let (applied, confirmations) = channel::unbounded();
        let mut waited_for = hub.reload(&NewSettings { settings, applied });
        let until = Instant::now() + APPLY_TIMEOUT;
        while !waited_for.is_empty()
            && let Ok(number) = confirmations.recv_deadline(until)
        {
            waited_for.retain(|waited_for| *waited_for != number);
        }
        waited_for
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("info", &self.info()).finish_non_exhaustive()
    }
}

/// Where gateways share rooms, a room's log is in Redis or is not, for all of them.
fn check_classes(before: &RoomsConfig, after: &RoomsConfig) -> Result<(), ReloadError> {
    // A policy is for the rooms whose id begins with its prefix, and the longest prefix decides. So these ids stand for all.
    let ids = before.policies.iter().chain(&after.policies).map(|(prefix, _)| prefix.as_str());
    let mut ids = ids.chain(["", "*"]);
    let differs = |id: &&str| before.policy_of(id).class != after.policy_of(id).class;
    ids.find(differs).map_or(Ok(()), |id| Err(ReloadError::RoomClass(id.to_owned())))
}

fn signature_threads(settings: &Settings) -> io::Result<Option<SignatureThreads>> {
    let threads = settings.config.auth.verify_threads;
    settings.verifier.pool().map(|pool| pool.start(threads)).transpose()
}

/// Only a lack of memory can panic while one of these is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
