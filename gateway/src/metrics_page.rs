//! The page that Prometheus reads: what the recorder has, and the histogram that it can't hold.

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
    /// A page of all that is measured.
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

/// A page of what the recorder has.
impl From<PrometheusHandle> for MetricsPage {
    fn from(recorder: PrometheusHandle) -> Self {
        Self { recorder, durations: None }
    }
}
