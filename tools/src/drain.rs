//! `tide drain`: has a gateway drain, as SIGTERM does, and shows the progress until the gateway has ended.

use std::io::{IsTerminal as _, stderr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::count::{counted, grouped};
use crate::operator::{self, Operator};
use crate::stdout;

/// Time between two looks at the gateway.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the gateway may give no answer before that is an error. A busy one may be slow.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The arguments of `tide drain`.
///
/// The gateway says at /readyz that it drains (shutdown.ready_grace_ms), then sends its goodbyes (shutdown.goodbye_window_ms), then
/// waits for answers (shutdown.drain_timeout_ms), and ends. This shows the progress until it has ended. Ctrl-C ends only the
/// watching.
#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    /// Send all goodbyes now, and give answers one second, also where the gateway drains already
    #[arg(long)]
    hurry: bool,
    /// Only start the drain, and do not watch it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    operator: Operator,
}

/// Has the gateway drain, and watches it.
///
/// # Errors
/// It can't be asked, or it refuses, or it answers no longer and still runs.
pub(crate) fn run(args: &DrainArgs) -> Result<()> {
    let before = args.operator.get("/stats")?;
    args.operator.post(if args.hurry { "/drain?hurry=true" } else { "/drain" }, b"")?;
    if args.no_wait {
        let connections = counted(connections(&before), "connection");
        return print(&format!("the gateway drains, with {connections}"));
    }
    let mut display = Display::new(&before);
    let ending = watch(&args.operator, &before, &mut display)?;
    drop(display);
    print(match ending {
        Ending::Ended => "the gateway has ended",
        Ending::HandedOver => {
            "another gateway answers at this address now: the drain of the old one goes on and can't be watched further"
        }
    })
}

/// How the watching ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Nothing listens any more.
    Ended,
    /// Another gateway has taken the port over.
    HandedOver,
}

fn watch(operator: &Operator, before: &Value, display: &mut Display) -> Result<Ending> {
    let mut answered_at = Instant::now();
    loop {
        match operator.get("/stats") {
            Ok(stats) if !is_same_gateway(before, &stats) => return Ok(Ending::HandedOver),
            Ok(stats) => {
                answered_at = Instant::now();
                display.show(&stats)?;
            }
            Err(error) if operator::is_refused_connection(&error) => return Ok(Ending::Ended),
            // It may be about to end.
            Err(error) if answered_at.elapsed() > SILENCE_MAX => return Err(error),
            Err(_) => {}
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn is_same_gateway(one: &Value, other: &Value) -> bool {
    let identity = |stats: &Value| {
        let gateway = &stats["gateway"];
        (gateway["pid"].clone(), gateway["start_time_unix_ms"].clone())
    };
    identity(one) == identity(other)
}

fn connections(stats: &Value) -> u64 {
    stats["totals"]["connections"].as_u64().unwrap_or(0)
}

/// What the drain is shown with: a bar on a terminal, and else a line for each phase.
struct Display {
    bar: Option<ProgressBar>,
    /// The phase that was shown last.
    phase: String,
}

impl Display {
    fn new(before: &Value) -> Self {
        let bar = stderr().is_terminal().then(|| ProgressBar::new(connections(before).max(1)));
        let style = ProgressStyle::with_template("[{bar:12}] {wide_msg}").ok();
        if let (Some(bar), Some(style)) = (&bar, style) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar, phase: String::new() }
    }

    fn show(&mut self, stats: &Value) -> Result<()> {
        let phase = phase(stats);
        if let Some(bar) = &self.bar {
            bar.set_position(bar.length().unwrap_or(0).saturating_sub(connections(stats)));
            bar.set_message(format!("{phase}: {}", what_is_left(stats)));
            return Ok(());
        }
        if self.phase == phase {
            return Ok(());
        }
        phase.clone_into(&mut self.phase);
        print(&format!("{}: {}", meaning(phase), what_is_left(stats)))
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn phase(stats: &Value) -> &str {
    stats["gateway"]["drain"]["phase"].as_str().unwrap_or("begins")
}

/// A phase, and what it means.
fn meaning(phase: &str) -> &str {
    match phase {
        "grace" => "grace (/readyz says no, the gateway still accepts)",
        "goodbyes" => "goodbyes (clients are asked to reconnect)",
        "answers" => "answers (all goodbyes are sent)",
        other => other,
    }
}

fn what_is_left(stats: &Value) -> String {
    let calls = stats["totals"]["calls_in_flight"].as_u64().unwrap_or(0);
    let left_ms = stats["gateway"]["drain"]["left_ms"].as_u64().unwrap_or(0);
    format!(
        "{} left, {} under way, at most {} s",
        counted(connections(stats), "connection"),
        counted(calls, "answer"),
        grouped(left_ms.div_ceil(1_000))
    )
}

fn print(line: &str) -> Result<()> {
    stdout::print(|out| writeln!(out, "{line}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_phase_and_what_is_left_are_told() {
        let stats = json!({
            "gateway": { "pid": 7, "drain": { "phase": "goodbyes", "left_ms": 12_001 } },
            "totals": { "connections": 12_345, "calls_in_flight": 1 },
        });
        assert_eq!(phase(&stats), "goodbyes");
        let left = "12,345 connections left, 1 answer under way, at most 13 s";
        assert_eq!(what_is_left(&stats), left);
        let none = json!({ "gateway": { "pid": 7, "drain": null }, "totals": {} });
        let left = "0 connections left, 0 answers under way, at most 0 s";
        assert_eq!((phase(&none), what_is_left(&none).as_str()), ("begins", left));
    }

    #[test]
    fn another_process_or_another_start_is_another_gateway() {
        let stats = |pid: u64, start: u64| json!({ "gateway": { "pid": pid, "start_time_unix_ms": start } });
        assert!(is_same_gateway(&stats(1, 5), &stats(1, 5)));
        assert!(!is_same_gateway(&stats(1, 5), &stats(2, 5)));
        // In a container each one has the same number.
        assert!(!is_same_gateway(&stats(1, 5), &stats(1, 6)));
    }
}
