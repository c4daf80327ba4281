//! A gateway with a backend of one's own: link the library, bring a handler, write a `main`.
//!
//! ```sh
//! cargo run -p tidegate --example quiz -- --auth demo
//! cargo run -p tidegate-tools -- client --user 7 --demo-token        # in another terminal
//! send 101 Which is larger, 9.11 or 9.9?
//! send 100 9.9
//! ```
//!
//! | type | `biz_data` | what it does |
//! |---|---|---|
//! | 100 | an answer to the question | notes it; an empty one fails with 101 |
//! | 101 | a question | the host asks: pushes it, as type 101, to everybody, and answers all who wait |
//! | 102 | milliseconds, in decimal | answers after so long, from another thread |
//! | 103 | anything | waits for the next question, and is answered with it; never, if none comes |
//! | 104 | anything | panics: this call fails with 101, and nothing else does |
//!
//! All keys of `tidegate.toml` hold. Where no `[[routes]]` are configured, `DEFAULTS` below has some.

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tidegate_backend::demo::Demo;
use tidegate_backend::{Bytes, Call, Code, Failure, Gateway, Handler};

/// What this program adds to the gateway's defaults.
const DEFAULTS: &str = r#"
[backends.quiz]
workers = 2

[[routes]]
types = [1, 99]
backend = "demo"

[[routes]]
types = [100, 199]
backend = "quiz"
"#;

/// An answer to the question.
const ANSWER: i32 = 100;
/// The host asks.
const ASK: i32 = 101;
/// Somebody thinks for a while.
const THINK: i32 = 102;
/// Somebody waits for the next question.
const WAIT: i32 = 103;
/// A bug.
const PANIC: i32 = 104;

/// Who may wait for the next question at most. More: 104.
const WAITING_MAX: usize = 10_000;

/// The longest that one may think, in milliseconds: each who thinks has a thread.
const THINK_MAX_MS: u64 = 60_000;

/// The game. One value serves all connections, from all workers at once, so a lock guards what changes.
#[derive(Default)]
struct Quiz {
    /// A call is an object: it may be kept, and answered when its time has come.
    waiting: Mutex<Vec<Call>>,
}

impl Handler for Quiz {
    fn handle(&self, call: Call, gateway: &Gateway) {
        match call.kind() {
            ANSWER if call.biz_data().is_empty() => call.fail(Code::BackendFailed),
            ANSWER => call.answer("noted"),
            ASK => self.ask(call, gateway),
            THINK => think(call),
            WAIT => self.wait(call),
            PANIC => panic!("a handler with a bug"),
            // A call that is dropped without an answer fails with 101.
            _ => {}
        }
    }
}

impl Quiz {
    fn ask(&self, call: Call, gateway: &Gateway) {
        let question: Bytes = call.biz_data().clone();
        // A push never blocks. When too many are under way it is refused, and so is the call.
        if gateway.push_all(ASK, question.clone()).is_err() {
            return call.fail(Failure { code: Code::Overloaded, retry_after_ms: 100 });
        }
        // The lock is not held while they are answered.
        let waiting = std::mem::take(&mut *self.lock());
        for waiting in waiting {
            // A client whose call timed out already got 102: this answer is discarded.
            waiting.answer(question.clone());
        }
        call.answer("");
    }

    fn wait(&self, call: Call) {
        let mut waiting = self.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push(call);
        } else {
            call.fail(Failure { code: Code::Overloaded, retry_after_ms: 1000 });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Call>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers later, from another thread: the worker is free at once.
fn think(call: Call) {
    let ms = std::str::from_utf8(call.biz_data()).ok().and_then(|text| text.parse().ok());
    let Some(ms @ 0..=THINK_MAX_MS) = ms else { return call.fail(Code::BackendFailed) };
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(ms));
        call.answer("thought about it");
    });
}

fn main() -> ExitCode {
    tidegate::run(DEFAULTS, |builder| {
        builder.handler("demo", Demo::default()).handler("quiz", Quiz::default())
    })
}
