//! What is seen of a run as it goes: one sample after another.

use serde::{Deserialize, Serialize};

/// What was seen at one moment, or since the sample before it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sample {
    /// Milliseconds since the run began.
    pub at_ms: u64,
    /// Connections that are up.
    pub connections: u64,
    /// Messages sent a second, since the sample before.
    pub sent_per_s: f64,
    /// Messages received a second, since the sample before.
    pub received_per_s: f64,
    /// Latency since the sample before, in nanoseconds; `None` when nothing was answered.
    pub p50_ns: Option<f64>,
    pub p90_ns: Option<f64>,
    pub p99_ns: Option<f64>,
    pub max_ns: Option<f64>,
    /// CPU time of the server since the sample before; 1 is one core all the time.
    pub server_cpu_share: Option<f64>,
    /// Resident memory of the server.
    pub server_rss_bytes: Option<f64>,
    /// Memory in the kernel's slabs, of the whole machine.
    pub kernel_slab_bytes: Option<f64>,
}
