//! Says in the log when calls of a backend begin to be shed, and when that ends.
//!
//! The workers' queue decides: see [`WaitBound`](tidegate_backend::pool::WaitBound). All shards share this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tidegate_backend::log_limit::LogLimit;

/// Whether the log says that a backend's calls are shed.
#[derive(Debug)]
pub struct SheddingLog {
    backend: Arc<str>,
    is_shedding: AtomicBool,
    /// The limits on log lines of begins and of ends.
    began_log: LogLimit,
    ended_log: LogLimit,
}

impl SheddingLog {
    /// None is shed.
    #[must_use]
    pub fn new(backend: Arc<str>) -> Self {
        let is_shedding = AtomicBool::new(false);
        Self { backend, is_shedding, began_log: LogLimit::new(), ended_log: LogLimit::new() }
    }

    /// Calls are shed, or not.
    #[inline]
    pub fn note(&self, is_shedding: bool, now_ms: u64) {
        if self.is_shedding.load(Relaxed) != is_shedding {
            self.change(is_shedding, now_ms);
        }
    }

    #[cold]
    fn change(&self, is_shedding: bool, now_ms: u64) {
        // Of several shards, one says it.
        if self.is_shedding.swap(is_shedding, Relaxed) == is_shedding {
            return;
        }
        let log = if is_shedding { &self.began_log } else { &self.ended_log };
        let Some(suppressed) = log.allow_at(now_ms) else { return };
        let backend = &*self.backend;
        if is_shedding {
            tracing::warn!(
                backend,
                suppressed,
                "calls wait for a worker all the time: those that wait too long get 104"
            );
        } else {
            tracing::info!(backend, suppressed, "no call waits for a worker: none is shed");
        }
    }
}
