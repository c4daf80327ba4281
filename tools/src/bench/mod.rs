//! `tide bench`: loads a gateway and measures it.
//!
//! It runs as few workers as the limit of open files allows. Each is a thread with its own epoll and descriptor
//! table: with a limit of 20,000, one worker for up to some 19,900 connections and 51 for a million. A load
//! generator must cost less than what it measures: requests are written and answers are read through the
//! protocol's borrowed views, nothing is allocated per message, and each report shows the CPU time that `tide`
//! itself used per message.
//!
//! | module | what it owns |
//! |---|---|
//! | `args` | the command line |
//! | `workers` | the worker threads, from the start to the first error or the end |
//! | `run_state` | the state that the workers share; a worker's share of the connections |
//! | `admission` | detects a gateway that admits nobody |
//! | `monitor` | the progress bar, and a sample each second |
//! | `series` | what a sample contains |
//! | `latency` | latencies and counters, per second and for the window |
//! | `clock` | the run's clock |
//! | `engine` | the event loop: readiness and the timer; knows no protocol |
//! | `sockets` | the connections of an engine |
//! | `source` | source addresses |
//! | `destinations` | the places that connections go to, and the wire of each |
//! | `session` | the frames and answers of one session |
//! | `sessions` | connects, authentications and heartbeats of many sessions |
//! | `steady_load` | the base of scenarios that hold their connections |
//! | `churn_load` | the base of scenarios that open and close connections all the time |
//! | `echo` | requests and the check of their answers |
//! | `connect`, `cycle`, `request`, `broadcast`, `storm`, `show` | one scenario each |
//! | `timeline` | a show's: what is published when, and which client answers when |
//! | `publication` | pushes in flight, and the check of their deliveries |
//! | `pattern` | message contents that can be checked |
//! | `phases` | ramp, warm-up, measured window, drain |
//! | `proc` | CPU time and memory of a process |
//! | `report` | the report as a table, JSON and a page; the comparison of two reports |

mod admission;
mod args;
mod broadcast;
mod churn_load;
mod clock;
mod connect;
mod cycle;
mod destinations;
mod echo;
mod engine;
mod latency;
mod monitor;
mod pattern;
mod phases;
mod proc;
mod publication;
mod report;
mod request;
mod run_state;
mod series;
mod session;
mod sessions;
mod show;
mod sockets;
mod source;
mod steady_load;
mod storm;
#[cfg(test)]
mod tests;
mod timeline;
mod workers;

pub(crate) use args::BenchArgs;
pub(crate) use source::{LOOPBACK_SOURCES, PER_SOURCE};
pub(crate) use workers::{SPARE_DESCRIPTORS, WORKERS_MAX};

use std::process::ExitCode;

use args::Scenario;

/// Runs one scenario and prints its report, or compares two reports.
///
/// # Errors
/// The first error of the server, or the reason why the scenario could not run. A comparison returns its result
/// as an exit code.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.scenario {
        Scenario::Connect(args) if args.cycle => cycle::run(&args)?,
        Scenario::Connect(args) => connect::run(&args)?,
        Scenario::Request(args) => request::run(&args)?,
        Scenario::Broadcast(args) => broadcast::run(&args)?,
        Scenario::Storm(args) => storm::run(&args)?,
        Scenario::Show(args) => show::run(&args)?,
        Scenario::Compare(args) => return Ok(report::compare(&args)),
    }
    Ok(ExitCode::SUCCESS)
}
