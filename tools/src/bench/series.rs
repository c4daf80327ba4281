//! The samples of a run, one for each second, as the report shows them.

use serde::{Deserialize, Serialize};

/// One second of a run. An unknown value is `None`: a latency where none was measured, the server's figures
/// without `--pid`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// When the second ended, in milliseconds since the run began.
    pub(super) at_ms: u64,
    /// Connections that are up.
    pub(super) connections: u64,
    /// Messages sent in the second, as a rate; includes heartbeats and authentications.
    pub(super) sent_per_s: f64,
    /// Messages received in the second, as a rate; includes answers and pushes.
    pub(super) received_per_s: f64,
    /// The 50th percentile of the latencies that ended in the second, in nanoseconds.
    pub(super) p50_ns: Option<f64>,
    /// The 90th percentile.
    pub(super) p90_ns: Option<f64>,
    /// The 99th percentile.
    pub(super) p99_ns: Option<f64>,
    /// The longest.
    pub(super) max_ns: Option<f64>,
    /// The server's CPU time per second: 1.5 is one and a half cores.
    pub(super) server_cpu_share: Option<f64>,
    /// Resident memory of the server.
    pub(super) server_rss_bytes: Option<f64>,
    /// The growth of the kernel's slab memory since the run began. Slabs hold the sockets of both ends.
    pub(super) kernel_slab_bytes: Option<f64>,
}
