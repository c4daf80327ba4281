//! The thread that reads the set again and again, and publishes it.
//!
//! A read that fails changes nothing: the last good set stays, however old it is. Clients that have tokens would be
//! refused otherwise, because of a fault that is not theirs.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge};
use tidegate_backend::log_limit::LogLimit;

use super::live::Shared;
use super::schedule::Schedule;
use super::source::{ReadError, Source};
use super::{KeySet, Skipped};

/// The time between two looks at whether a file has changed. A look is a stat: a watch would not see the links change
/// through which orchestrators show a new version.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// See [`crate::shard::stats::OTHERS`].
pub(crate) const REFRESHES: &str = "tidegate_jwks_refreshes_total";
pub(crate) const KEYS: &str = "tidegate_jwks_keys";
pub(crate) const SKIPPED_KEYS: &str = "tidegate_jwks_keys_skipped";
pub(crate) const REFRESH_TIME: &str = "tidegate_jwks_refresh_time_seconds";

/// Shows the metrics before the first read, and where there is no key set.
pub(crate) fn register_metrics() {
    for outcome in ["ok", "failed"] {
        counter!(REFRESHES, "outcome" => outcome).increment(0);
    }
    for level in [KEYS, SKIPPED_KEYS, REFRESH_TIME] {
        gauge!(level).set(0.0);
    }
}

/// The thread's state.
pub(super) struct Refresher {
    source: Source,
    schedule: Schedule,
    /// When to look next at whether a file has changed.
    next_look: Instant,
    shared: Arc<Shared>,
    /// The keys of the last good set, as the log names them.
    names: Vec<String>,
    skipped: Vec<Skipped>,
    failures_logged: LogLimit,
}

impl Refresher {
    pub(super) fn new(source: Source, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let schedule = Schedule::new(now);
        let (names, skipped, failures_logged) = Default::default();
        Self { source, schedule, next_look: now, shared, names, skipped, failures_logged }
    }

    /// Reads the set for the first time.
    pub(super) fn read_at_start(&mut self) -> Result<(), ReadError> {
        let set = self.source.read()?;
        self.publish(set);
        self.schedule.end(true, self.shared.interval(), fastrand::f64(), Instant::now());
        Ok(())
    }

    /// Keeps the set up to date until the verifier is gone.
    pub(super) fn run(mut self) {
        while !self.shared.is_stopped.load(Ordering::Acquire) {
            let (now, due) = (Instant::now(), self.due());
            if now >= due || self.has_changed(now) {
                self.refresh();
                continue;
            }
            let until = if self.source.path().is_some() { due.min(self.next_look) } else { due };
            // A token that names an unknown key ends the wait.
            thread::park_timeout(until.saturating_duration_since(now));
        }
    }

    /// Whether it is a file that has changed. It looks no more often than in each [`LOOK_INTERVAL`], so a file that is
    /// written all the time is not read all the time.
    fn has_changed(&mut self, now: Instant) -> bool {
        if now < self.next_look {
            return false;
        }
        self.next_look = now + LOOK_INTERVAL;
        self.source.has_changed()
    }

    fn due(&self) -> Instant {
        self.schedule.due(self.shared.is_wanted.load(Ordering::Acquire))
    }

    fn refresh(&mut self) {
        let is_wanted = self.shared.is_wanted.swap(false, Ordering::AcqRel);
        self.schedule.begin(is_wanted, Instant::now());
        // A panic must not end the thread, or the keys would never change again.
        let read = panic::catch_unwind(AssertUnwindSafe(|| self.source.read()));
        let outcome = match read {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_) => Err("the gateway failed on it: its log says why".to_owned()),
        };
        let succeeded = outcome.is_ok();
        match outcome {
            Ok(set) => self.publish(set),
            Err(failure) => self.keep(failure),
        }
        self.schedule.end(succeeded, self.shared.interval(), fastrand::f64(), Instant::now());
        self.shared.has_tried.store(true, Ordering::Release);
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float, and there are few keys")]
    fn publish(&mut self, set: KeySet) {
        counter!(REFRESHES, "outcome" => "ok").increment(1);
        gauge!(KEYS).set(set.len() as f64);
        gauge!(SKIPPED_KEYS).set(set.skipped().len() as f64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!(REFRESH_TIME).set(now.as_secs_f64());
        let names = set.names();
        if self.names != names {
            tracing::info!(keys = names.join(", "), "tokens are verified with a new key set");
            self.names = names;
        }
        if self.skipped != set.skipped() {
            self.skipped = set.skipped().to_vec();
            let skipped: Vec<_> = self.skipped.iter().map(ToString::to_string).collect();
            if !skipped.is_empty() {
                tracing::warn!("the key set has keys that are not used: {}", skipped.join("; "));
            }
        }
        self.shared.set.store(Some(Arc::new(set)));
        self.shared.set_failure(None);
    }

    fn keep(&self, failure: String) {
        counter!(REFRESHES, "outcome" => "failed").increment(1);
        if let Some(suppressed) = self.failures_logged.allow() {
            let outcome = if self.shared.set.load().is_some() {
                "the last good key set stays in use"
            } else {
                "clients get 104 until there is one"
            };
            tracing::warn!(suppressed, "can't refresh the key set, so {outcome}: {failure}");
        }
        self.shared.set_failure(Some(failure));
    }
}
