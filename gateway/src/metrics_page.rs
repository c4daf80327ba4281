//! The page that Prometheus reads: what the recorder has, and what the gateway's parts count themselves.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::router::queue_metrics::QueueMetrics;
use crate::shard::Shared;
use crate::shard::calls::durations::CallDurations;

/// What `GET /metrics` shows.
#[derive(Clone, Debug)]
pub struct MetricsPage {
    recorder: PrometheusHandle,
    own: Option<(Arc<CallDurations>, QueueMetrics)>,
}

impl MetricsPage {
    /// A page with all metrics.
    #[must_use]
    pub fn new(recorder: PrometheusHandle, shared: &Shared) -> Self {
        let durations = Arc::clone(&shared.call_durations);
        Self { recorder, own: Some((durations, QueueMetrics::new(&shared.backends))) }
    }

    /// The current page.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = self.recorder.render();
        if let Some((durations, queues)) = &self.own {
            durations.render(&mut page);
            queues.render(&mut page);
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
