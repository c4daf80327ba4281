//! The page that Prometheus reads: the recorder's metrics, and the histogram that shards count themselves.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use crate::shard::calls::durations::CallDurations;

/// What `GET /metrics` shows.
#[derive(Clone, Debug)]
pub struct MetricsPage {
    recorder: PrometheusHandle,
    durations: Option<Arc<CallDurations>>,
}

impl MetricsPage {
    /// A page with all metrics.
    #[must_use]
    pub const fn new(recorder: PrometheusHandle, durations: Arc<CallDurations>) -> Self {
        Self { recorder, durations: Some(durations) }
    }

    /// The page as it is now.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = self.recorder.render();
        if let Some(durations) = &self.durations {
            durations.render(&mut page);
        }
        page
    }
}

/// A page with the recorder's metrics alone.
impl From<PrometheusHandle> for MetricsPage {
    fn from(recorder: PrometheusHandle) -> Self {
        Self { recorder, durations: None }
    }
}
