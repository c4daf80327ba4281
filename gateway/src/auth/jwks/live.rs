//! The current set of keys with which the shards verify tokens.
//!
//! A shard reads it without a lock and without waiting: the refresher swaps a pointer. What a shard may cause is one
//! flag and one wake-up of the refresher, however many unknown keys its clients name.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwapOption, Guard};

use super::KeySet;
use super::refresher::Refresher;
use super::source::{FETCH_TIMEOUT, ReadError, Source};
use crate::config::KeySetSource;

/// The time between two looks at whether the first read has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What the shards, the refresher and the operators' HTTP share.
#[derive(Default)]
pub(super) struct Shared {
    /// The last good set; `None`: there was none yet.
    pub(super) set: ArcSwapOption<KeySet>,
    /// A token has named an unknown key since the last read began.
    pub(super) is_wanted: AtomicBool,
    /// The first read has ended, well or not.
    pub(super) has_tried: AtomicBool,
    /// The time between two regular reads, in milliseconds.
    pub(super) interval_ms: AtomicU64,
    /// The verifier is gone.
    pub(super) is_stopped: AtomicBool,
    /// The refresher's thread.
    pub(super) thread: OnceLock<Thread>,
    /// Why the last read failed. The refresher and the operators' HTTP take this lock, and no shard does.
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub(super) fn set_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn set_interval(&self, interval: Duration) {
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.interval_ms.store(interval_ms, Ordering::Release);
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms.load(Ordering::Acquire))
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// The set, and the refresher that keeps it up to date as long as this exists.
pub(crate) struct LiveKeySet(Arc<Shared>);

impl LiveKeySet {
    /// Starts to keep a set up to date. A file is read at once, since a start without a usable file is a mistake that
    /// the operator is there to see. A URL is fetched by the refresher: see [`Self::wait_for_first_read`].
    ///
    /// # Errors
    /// The file holds no usable set, or the system gives no thread.
    pub(crate) fn start(place: &KeySetSource, interval: Duration) -> Result<Self, LiveKeySetError> {
        let source = Source::new(place);
        let shared = Arc::new(Shared::default());
        shared.set_interval(interval);
        let mut refresher = Refresher::new(source, Arc::clone(&shared));
        if let KeySetSource::File(_) = place {
            refresher.read_at_start()?;
        }
        let thread = thread::Builder::new().name("jwks".to_owned()).spawn(move || refresher.run());
        // It is set once.
        drop(shared.thread.set(thread.map_err(LiveKeySetError::Thread)?.thread().clone()));
        Ok(Self(shared))
    }

    /// Reads a file's set once, and starts nothing. A URL is not fetched.
    ///
    /// # Errors
    /// The file holds no usable set.
    pub(crate) fn check(place: &KeySetSource) -> Result<(), ReadError> {
        match place {
            KeySetSource::File(_) => Source::new(place).read().map(drop),
            KeySetSource::Url(_) => Ok(()),
        }
    }

    /// Whether the place holds the current set. A URL is not fetched: it does.
    ///
    /// # Errors
    /// The file holds no usable set.
    pub(crate) fn is_current(&self, place: &KeySetSource) -> Result<bool, ReadError> {
        match place {
            KeySetSource::File(_) => {
                let set = Source::new(place).read()?;
                Ok(self.current().as_deref().is_some_and(|current| current.has_keys_of(&set)))
            }
            KeySetSource::Url(_) => Ok(true),
        }
    }

    /// Waits until the first read has ended, well or not, and no longer than a fetch may take.
    pub(crate) fn wait_for_first_read(&self, interrupted: &dyn Fn() -> bool) {
        let deadline = Instant::now() + FETCH_TIMEOUT;
        while !self.0.has_tried.load(Ordering::Acquire)
            && Instant::now() < deadline
            && !interrupted()
        {
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The current set; `None`: none was read yet.
    pub(crate) fn current(&self) -> Guard<Option<Arc<KeySet>>> {
        self.0.set.load()
    }

    /// A token has named an unknown key: the set is to be read soon. It costs a load if it was asked before.
    pub(crate) fn request_refresh(&self) {
        let wanted = &self.0.is_wanted;
        if !wanted.load(Ordering::Relaxed) && !wanted.swap(true, Ordering::AcqRel) {
            self.0.wake();
        }
    }

    /// Has the set be read at another interval, from the next read on.
    pub(crate) fn set_interval(&self, interval: Duration) {
        self.0.set_interval(interval);
    }

    pub(crate) fn status(&self) -> KeySetStatus {
        KeySetStatus(Arc::clone(&self.0))
    }
}

impl Drop for LiveKeySet {
    fn drop(&mut self) {
        // Nobody waits for the thread: it may be in a fetch.
        self.0.is_stopped.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// Whether there is a set, for operators.
#[derive(Clone)]
pub struct KeySetStatus(Arc<Shared>);

impl KeySetStatus {
    /// Why tokens can't be verified; `None`: there is a set.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if self.0.set.load().is_some() {
            return None;
        }
        let failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(failure.unwrap_or_else(|| "it was not fetched yet".to_owned()))
    }
}

impl std::fmt::Debug for KeySetStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeySetStatus").field(&self.missing()).finish()
    }
}

/// Why no set is kept.
#[derive(Debug)]
pub(crate) enum LiveKeySetError {
    /// It can't be read.
    Read(ReadError),
    /// The system gives no thread.
    Thread(std::io::Error),
}

impl From<ReadError> for LiveKeySetError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
