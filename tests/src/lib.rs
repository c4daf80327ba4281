//! Black box tests: the real binary in its own process, real sockets, real signals.
//!
//! | module | what it is |
//! |---|---|
//! | `bin/confine` | runs a program without io_uring, or with few descriptors |
//! | [`programs`] | the binaries under test, built once for each test process |
//! | [`process`] | a process that ends with its test, and its output |
//! | [`gateway`] | a running gateway: start with flags, stop, kill, restart |
//! | [`phone`] | a blocking client that keeps events until a test asks for them |
//! | [`operator`] | the operators' HTTP |
//! | [`hostile`] | many hostile connections to the operators' HTTP |
//! | [`holder`] | another program that holds a port which a gateway wants |
//! | [`redis`] | real Redis servers: one, a Sentinel set, a cluster |
//! | [`deploy`] | the files of `deploy/`, and the programs that check them |
//! | [`front`] | real balancers in front of gateways, with the examples of `deploy/` |
//! | [`web`] | clients of the HTTP gateway |
//! | [`wire`] | the wires of listeners, and certificates |
//! | [`port`] | a port that is still free after a restart |
//!
//! No test waits for time to pass. Each wait is for an event, and fails after [`TIMEOUT`].
#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod deploy;
pub mod front;
pub mod gateway;
pub mod holder;
pub mod hostile;
pub mod http;
pub mod operator;
pub mod phone;
pub mod port;
pub mod process;
pub mod programs;
pub mod redis;
pub mod web;
pub mod wire;

use std::thread;
use std::time::{Duration, Instant};

pub use gateway::{Gateway, Setup};
pub use operator::Operator;
pub use phone::{Phone, Push};
pub use redis::{Cluster, Deployment, Redis, RedisSetup, SentinelSet};
pub use tidegate_protocol::Code;
pub use wire::Wire;

/// The time after which a wait fails its test. It is longer than any interval of the gateway's chores: the
/// longest is the 30 s between two times that free memory goes back to the kernel.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two looks at a state without an event.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Calls `look` until it returns something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::park_timeout(POLL_INTERVAL);
    }
}
