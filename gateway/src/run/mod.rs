//! A whole `main`: the configuration, the log, metrics, signals, the service manager, and a drain.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use tidegate_backend::demo::Demo;
//!
//! fn main() -> ExitCode {
//!     tidegate::run("", |builder| builder.handler("demo", Demo::default()))
//! }
//! ```
//!
//! | signal | what it does |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | drains, or interrupts a start that waits for an address; a second one hurries the drain; a third one ends the process at once, with exit status 130 |
//! | SIGHUP | drains where the terminal has closed, unless SIGHUP was ignored at the start (nohup); otherwise it reloads |
//! | SIGUSR1, SIGUSR2 | nothing, except a line in the log |
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | it drained, or a signal interrupted its start, or the configuration is valid (`--check-config`) |
//! | 1 | it did not start, or could not (`--check-config`), or a shard failed; the standard error says why |
//! | 2 | a flag, a key or a value is wrong, or a backend has no handler |
//! | 130 | a third signal ended it at once |
//!
//! All lines for the standard streams go through [`output`].

mod announcement;
mod signals;

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam::channel::{Receiver, select_biased};

use crate::config;
use crate::control::Control;
use crate::server::{Builder, Server, StartError};
use crate::service::Service;
use crate::telemetry::{self, output};
use announcement::Announcement;
use signals::Request;

/// The exit status where the configuration is wrong, as after a wrong flag.
const WRONG_CONFIGURATION: u8 = 2;

/// The exit status after a third signal: the one that a shell reports for a process that SIGINT ended.
const ENDED_AT_ONCE: i32 = 130;

/// How long the last lines may take after a third signal.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Runs a gateway until a signal has it drain, and it has drained. Call it once, from `main`.
///
/// `defaults` is TOML that replaces the gateway's own defaults: the program's backends, and the types that go to them.
/// A file, the environment and flags replace it in turn. `build` adds the handlers.
///
/// It installs the log, a recorder of metrics, and a panic hook that logs, for the whole process. It ends the process
/// after `--help`, a wrong flag or a wrong key, and at a third signal.
pub fn run(defaults: &str, build: impl FnOnce(Builder) -> Builder) -> ExitCode {
    let _flushed = FlushAtEnd;
    let (arguments, variables) = (std::env::args_os(), std::env::vars_os());
    let loaded = match config::load_over(defaults, arguments, variables) {
        Ok(loaded) => loaded,
        Err(error) => error.exit(),
    };
    let check_only = loaded.check_only;
    let log = loaded.config.log.clone();
    let announcement = Announcement::of(&loaded.config);
    let builder = build(Server::builder(loaded.config).sources(loaded.sources));
    let done = if check_only {
        check(&builder)
    } else {
        telemetry::install(&log)
            .map_err(anyhow::Error::from)
            .and_then(|metrics| serve(builder.metrics(metrics), &announcement))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::stderr().line(format!("tidegate: {error:#}"));
            match error.downcast_ref() {
                Some(StartError::UnknownBackend { .. }) => ExitCode::from(WRONG_CONFIGURATION),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Waits for the last lines when it is dropped, also during a panic.
struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        output::flush();
    }
}

fn check(builder: &Builder) -> anyhow::Result<()> {
    for warning in builder.check()? {
        output::stderr().line(format!("tidegate: warning: {warning}"));
    }
    output::stdout().line("the configuration is valid");
    Ok(())
}

fn serve(builder: Builder, announcement: &Announcement) -> anyhow::Result<()> {
    // This comes before anything starts: from now on a signal drains.
    let requests = signals::listen().context("can't listen for signals")?;
    let told_to_drain = Cell::new(false);
    let started = builder.start_unless(|| {
        let asks = |request| asks_to_drain(request, None);
        told_to_drain.set(told_to_drain.get() || requests.try_iter().any(asks));
        told_to_drain.get()
    });
    let server = match started {
        Ok(server) => server,
        Err(StartError::Interrupted) => {
            output::stdout().line("stopped: a signal came before the start was complete");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    announcement.print(&server);
    let service = Service::ready(server.control()).context("can't watch the shards")?;
    // A signal may have arrived at the end of the start.
    while !told_to_drain.get() {
        // In this order: a drain that an operator began may have ended by now, or be followed by a signal.
        select_biased! {
            recv(server.drain_began()) -> _ => break,
            recv(requests) -> request => {
                let request = request.context("the thread for signals has ended")?;
                told_to_drain.set(asks_to_drain(request, Some(&server)));
            }
            recv(server.ended()) -> ended => {
                let (shard, outcome) = ended?;
                server.stop();
                service.stopping();
                outcome.map_err(|reason| StartError::of_thread(shard, reason))?;
                return Ok(());
            }
        }
    }
    // The shards come first: nothing that follows may delay them.
    server.shutdown();
    service.stopping();
    let signals = u32::from(told_to_drain.get());
    output::stdout().line(format!(
        "draining: every client gets its answers and 108; the next signal {}",
        if signals == 0 { "changes nothing, and one more hurries" } else { NEXT_HURRIES }
    ));
    watch_further_signals(requests, server.control(), signals);
    server.wait()?;
    output::stdout().line("stopped");
    Ok(())
}

/// Whether a request asks the gateway to drain. The log answers any other. `server`: the gateway, while it serves.
fn asks_to_drain(request: Request, server: Option<&Server>) -> bool {
    match request {
        Request::Drain | Request::Hangup => return true,
        Request::Reload => signals::reload(server),
        Request::Nothing(signal) => signals::tell_that_nothing_happens(signal),
    }
    false
}

/// What the next signal does once one has had the gateway drain.
const NEXT_HURRIES: &str = "hurries, and one more ends the gateway at once";

/// Hurries the drain at the second request to drain, and ends the process at the third. `signals`: how many there were. Where an
/// operator began the drain there was none, and the first changes nothing: a service manager sends it after its own
/// hook has begun the drain. A terminal that closes is no such request: a person who closes it after Ctrl-C does not ask to lose answers.
fn watch_further_signals(requests: Receiver<Request>, control: Arc<dyn Control>, mut signals: u32) {
    let watch = move || {
        for request in requests {
            if request != Request::Drain {
                asks_to_drain(request, None);
                continue;
            }
            signals += 1;
            match signals {
                1 => output::stdout()
                    .line(format!("draining already; the next signal {NEXT_HURRIES}")),
                2 => {
                    control.hurry_drain();
                    output::stdout().line(
                        "hurrying: every client gets 108 now, and answers have a second; send the signal again to end at once",
                    );
                }
                _ => {
                    output::flush_within(AT_ONCE);
                    std::process::exit(ENDED_AT_ONCE);
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("more-signals".into()).spawn(watch) {
        // The drain continues without it.
        tracing::warn!(%error, "further signals will not hurry or end the drain: no thread for it");
    }
}
