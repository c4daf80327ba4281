//! Tidegate from outside: the real binary in a process of its own, real sockets, real signals.
//!
//! | module | what it is |
//! |---|---|
//! | `bin/confine` | runs a program without io_uring, or with few descriptors |
//! | [`programs`] | the binaries under test, built once for each test process |
//! | [`process`] | a process that ends with its test, whatever happens, and what it says |
//! | [`gateway`] | a running gateway: started with flags, stopped, killed, started again |
//! | [`phone`] | a client at the wire: blocking, and it keeps what comes out of turn |
//! | [`operator`] | the operators' HTTP |
//! | [`hostile`] | crowds that mean it no good |
//! | [`holder`] | whoever else has a port that a gateway wants |
//! | [`port`] | a port that can be had again after a restart |
//!
//! Nothing here waits for a time to pass. Everything waits for something to happen, for [`TIMEOUT`]
//! at most, which only a failing test ever sees the end of.
#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod gateway;
pub mod holder;
pub mod hostile;
pub mod operator;
pub mod phone;
pub mod port;
pub mod process;
pub mod programs;

use std::thread;
use std::time::{Duration, Instant};

pub use gateway::{Gateway, Setup};
pub use operator::Operator;
pub use phone::{Phone, Push};
pub use tidegate_protocol::Code;

/// How long anything may take before its test has failed.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at something that can't be waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until there is something to see.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::park_timeout(POLL_INTERVAL);
    }
}
