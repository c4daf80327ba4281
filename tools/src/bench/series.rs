//! A run second by second, as the report shows it.

use serde::{Deserialize, Serialize};

/// What one second was like. What isn't known is `None`: latencies where none was measured, the
/// server's figures without its process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// When the second ended, in milliseconds since the run began.
    pub(super) at_ms: u64,
    /// Connections that are up.
    pub(super) connections: u64,
    /// Messages sent in it, heartbeats and authentications too, as a rate.
    pub(super) sent_per_s: f64,
    /// Messages received in it, answers and pushes alike, as a rate.
    pub(super) received_per_s: f64,
    /// The median of the latencies that ended in it, in nanoseconds.
    pub(super) p50_ns: Option<f64>,
    /// Nine in ten of them were shorter.
    pub(super) p90_ns: Option<f64>,
    /// 99 in 100 of them were shorter.
    pub(super) p99_ns: Option<f64>,
    /// The longest.
    pub(super) max_ns: Option<f64>,
    /// CPU time that the server used, as a part of one core: 1.5 is a core and a half.
    pub(super) server_cpu_share: Option<f64>,
    /// Resident memory of the server.
    pub(super) server_rss_bytes: Option<f64>,
    /// How far the kernel's slabs, which hold the sockets of both ends, have grown since the run began.
    pub(super) kernel_slab_bytes: Option<f64>,
}
