//! The page that Prometheus reads: what the recorder has, and what the gateway's parts count themselves.

use std::fs;
use std::sync::Arc;

use arc_swap::ArcSwap;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::router::queue_metrics::QueueMetrics;
use crate::router::refusals::RefusalMetrics;
use crate::settings::Settings;
use crate::shard::Shared;
use crate::shard::calls::durations::CallDurations;

/// Name and help text.
pub const RESIDENT_MEMORY: (&str, &str) = (
    "process_resident_memory_bytes",
    "Memory of the gateway's process, in bytes. The kernel's memory for sockets is not in it.",
);

/// What `GET /metrics` shows.
#[derive(Clone, Debug)]
pub struct MetricsPage {
    recorder: PrometheusHandle,
    own: Option<Own>,
}

/// What the gateway's parts count themselves.
#[derive(Clone, Debug)]
struct Own {
    durations: Arc<CallDurations>,
    queues: QueueMetrics,
    refusals: RefusalMetrics,
    settings: Arc<ArcSwap<Settings>>,
}

impl MetricsPage {
    /// A page with all metrics.
    #[must_use]
    pub fn new(recorder: PrometheusHandle, shared: &Arc<Shared>) -> Self {
        let own = Own {
            durations: Arc::clone(&shared.call_durations),
            queues: QueueMetrics::new(&shared.backends),
            refusals: RefusalMetrics::new(&shared.backends),
            settings: Arc::clone(&shared.settings),
        };
        Self { recorder, own: Some(own) }
    }

    /// The current page.
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(bytes) = resident_bytes() {
            gauge!(RESIDENT_MEMORY.0).set(bytes);
        }
        let mut page = self.recorder.render();
        if let Some(Own { durations, queues, refusals, settings }) = &self.own {
            durations.render(&mut page);
            queues.render(&mut page);
            refusals.render(&mut page);
            let settings = settings.load();
            let signatures = settings.verifier.signatures().map(|pool| pool.stats());
            signatures.unwrap_or_default().render(&mut page);
        }
        page
    }
}

/// Memory that this process has in use now, in bytes (proc(5)).
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
    kibibytes?.trim().parse::<f64>().ok().map(|kibibytes| kibibytes * 1024.0)
}

/// A page with the recorder's metrics alone.
impl From<PrometheusHandle> for MetricsPage {
    fn from(recorder: PrometheusHandle) -> Self {
        Self { recorder, own: None }
    }
}
