//! What waits for workers, and for how long: metrics that are read from the pools for each scrape.

use std::fmt::Write as _;
use std::sync::Arc;

use tidegate_backend::pool::{QueueObserver, QueueStats};

use super::Backend;
use crate::shard::calls::durations;

/// The metrics by name, with their help texts.
pub const QUEUED_CALLS: (&str, &str) =
    ("tidegate_queued_calls", "Calls that wait for a worker of the backend.");
/// See [`QUEUED_CALLS`].
pub const QUEUED_BYTES: (&str, &str) =
    ("tidegate_queued_bytes", "Bytes of the requests that wait for a worker of the backend.");
/// See [`QUEUED_CALLS`].
pub const EXPIRED_CALLS: (&str, &str) = (
    "tidegate_queue_timeouts_total",
    "Calls removed from the backend's queue because they had expired: no worker was free for them.",
);
/// See [`QUEUED_CALLS`].
pub const QUEUE_WAIT: (&str, &str) = (
    "tidegate_queue_wait_seconds",
    "Time from a request's receipt until a worker took it. Calls that expired before are not in it.",
);

/// See [`QUEUED_CALLS`].
pub const SHEDDING: (&str, &str) = (
    "tidegate_shedding",
    "1 while calls have waited for a worker of the backend for at least the shortest waiting_ms_max without a pause, so that those \
     that wait too long get 104; 0 otherwise.",
);

/// The queues of all backends that have workers.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    queues: Vec<(Arc<str>, QueueObserver)>,
}

impl QueueMetrics {
    /// The metrics of these backends.
    #[must_use]
    pub fn new(backends: &[Backend]) -> Self {
        let queue = |backend: &Backend| {
            Some((Arc::clone(&backend.name), backend.pool.as_ref()?.observer()))
        };
        Self { queues: backends.iter().filter_map(queue).collect() }
    }

    /// Writes them as Prometheus reads them. A backend on the shards' threads has no queue, and no line.
    pub fn render(&self, page: &mut String) {
        if self.queues.is_empty() {
            return;
        }
        let stats: Vec<_> =
            self.queues.iter().map(|(name, queue)| (Arc::clone(name), queue.stats())).collect();
        levels(page, QUEUED_CALLS, "gauge", &stats, |stats| stats.calls as u64);
        levels(page, QUEUED_BYTES, "gauge", &stats, |stats| stats.bytes as u64);
        levels(page, EXPIRED_CALLS, "counter", &stats, |stats| stats.expired);
        levels(page, SHEDDING, "gauge", &stats, |stats| stats.is_shedding.into());
        let waits = stats.into_iter().map(|(name, stats)| (name, stats.waits));
        durations::render(page, QUEUE_WAIT.0, QUEUE_WAIT.1, waits);
    }
}

fn levels(
    page: &mut String,
    (metric, help): (&str, &str),
    kind: &str,
    stats: &[(Arc<str>, QueueStats)],
    value: impl Fn(&QueueStats) -> u64,
) {
    // Writing to a string can't fail.
    let _ = writeln!(page, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
    for (backend, stats) in stats {
        let _ = writeln!(page, "{metric}{{backend=\"{backend}\"}} {}", value(stats));
    }
    page.push('\n');
}
