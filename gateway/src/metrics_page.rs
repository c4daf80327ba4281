//! The page that Prometheus reads: what the recorder has, and what the gateway's parts count themselves.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::router::queue_metrics::QueueMetrics;
use crate::router::refusals::RefusalMetrics;
use crate::shard::Shared;
use crate::shard::calls::durations::CallDurations;

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
    shared: Arc<Shared>,
}

impl MetricsPage {
    /// A page with all metrics.
    #[must_use]
    pub fn new(recorder: PrometheusHandle, shared: &Arc<Shared>) -> Self {
        let own = Own {
            durations: Arc::clone(&shared.call_durations),
            queues: QueueMetrics::new(&shared.backends),
            refusals: RefusalMetrics::new(&shared.backends),
            shared: Arc::clone(shared),
        };
        Self { recorder, own: Some(own) }
    }

    /// The current page.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = self.recorder.render();
        if let Some(Own { durations, queues, refusals, shared }) = &self.own {
            durations.render(&mut page);
            queues.render(&mut page);
            refusals.render(&mut page);
            let settings = shared.settings();
            let signatures = settings.verifier.signatures().map(|pool| pool.stats());
            signatures.unwrap_or_default().render(&mut page);
        }
        page
    }
}

/// A page with the recorder's metrics alone.
impl From<PrometheusHandle> for MetricsPage {
    fn from(recorder: PrometheusHandle) -> Self {
        Self { recorder, own: None }
    }
}
