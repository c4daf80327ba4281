//! The text of `/metrics`, rendered once for all requests that arrive at the same time.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use crate::metrics_page::MetricsPage;

/// When a request's head had arrived. `connections` adds it to each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// The metrics' text, kept for requests that arrived before its rendering began.
pub(super) struct MetricsCache {
    page: MetricsPage,
    /// When the last rendering began, and its text.
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl MetricsCache {
    pub(super) fn new(page: MetricsPage) -> Self {
        Self { page, last: Mutex::new(None) }
    }

    /// The metrics at this time or later.
    pub(super) fn text(&self, at: Instant) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((begun, text)) = &*last
            && *begun >= at
        {
            return text.clone();
        }
        let (begun, text) = (Instant::now(), Bytes::from(self.page.render()));
        *last = Some((begun, text.clone()));
        text
    }
}
