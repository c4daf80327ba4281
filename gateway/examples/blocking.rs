//! A gateway whose backend blocks its workers: for tests and measurements of overload.
//!
//! | type | `biz_data` | what it does |
//! |---|---|---|
//! | 200 | anything | blocks the worker for 1 ms, then answers with the same bytes |
//! | 201 | anything | blocks the worker until type 210 arrives, then answers with the same bytes |
//! | 202 | anything | answers with the same bytes |
//! | 203 | the path of a FIFO | blocks the worker until somebody has written to the FIFO, then answers with what was written |
//! | 210 | anything | releases the calls of type 201 that block now; the answer is their number |
//!
//! Types 200 to 209 go to the backend `blocking`, which runs on workers. Type 210 goes to the backend
//! `control`, which runs on the shard's thread, so it works while all workers block.

use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tidegate_backend::demo::Demo;
use tidegate_backend::{Call, Code, Gateway, Handler, Placement};

/// What this program adds to the gateway's defaults.
const DEFAULTS: &str = r#"
[backends.blocking]
workers = 2

[backends.control]

[[routes]]
types = [1, 99]
backend = "demo"

[[routes]]
types = [200, 209]
backend = "blocking"

[[routes]]
types = [210, 219]
backend = "control"
"#;

/// Blocks for [`WORK`].
const WORK_TYPE: i32 = 200;
/// Blocks until it is released.
const HANG: i32 = 201;
/// Blocks until its FIFO is written.
const READ: i32 = 203;

/// How long a call of [`WORK_TYPE`] blocks.
const WORK: Duration = Duration::from_millis(1);

/// The calls that block until they are released.
#[derive(Default)]
struct Hanging {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls that block now.
    blocked: u64,
    /// How often all of them were released.
    releases: u64,
}

impl Hanging {
    fn block(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.blocked += 1;
        let releases = state.releases;
        while state.releases == releases {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.releases += 1;
        self.released.notify_all();
        std::mem::take(&mut state.blocked)
    }
}

struct Blocking(Arc<Hanging>);

impl Handler for Blocking {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        match call.kind() {
            WORK_TYPE => thread::sleep(WORK),
            HANG => self.0.block(),
            READ => return read(call),
            _ => {}
        }
        let same = call.biz_data().clone();
        call.answer(same);
    }
}

fn read(call: Call) {
    let path = String::from_utf8_lossy(call.biz_data()).into_owned();
    match std::fs::read(path) {
        Ok(bytes) => call.answer(bytes),
        Err(_) => call.fail(Code::BackendFailed),
    }
}

struct Control(Arc<Hanging>);

impl Handler for Control {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        call.answer(self.0.release().to_string());
    }

    fn placement(&self) -> Placement {
        Placement::Shard
    }
}

fn main() -> ExitCode {
    let hanging = Arc::<Hanging>::default();
    tidegate::run(DEFAULTS, |builder| {
        builder
            .handler("demo", Demo::default())
            .handler("blocking", Blocking(Arc::clone(&hanging)))
            .handler("control", Control(hanging))
    })
}
