//! `tide bench`: loads a gateway and measures it.
//!
//! One thread, one epoll, up to some 19,000 connections. It is built to cost less than what it
//! measures: requests are written and answers read through the protocol's borrowed views, nothing
//! is allocated per message, and its own CPU time per message stands in every report.
//!
//! | module | what it owns |
//! |---|---|
//! | `args` | what can be asked for |
//! | `engine` | sockets, readiness, the timer; knows no protocol |
//! | `session` | connecting, authenticating, heartbeats |
//! | `echo` | requests and the check of their answers |
//! | `connect`, `cycle`, `request`, `broadcast` | one scenario each |
//! | `publication` | pushes under way, and who has got which |
//! | `stopwatch` | ramp, warm-up, measured window, drain |
//! | `proc` | CPU time and memory of a process |
//! | `series` | what is seen of a run as it goes |
//! | `report` | a table, JSON, a page; two reports side by side |

mod args;
mod broadcast;
mod connect;
mod cycle;
mod echo;
mod engine;
mod pattern;
mod proc;
mod publication;
mod report;
mod request;
mod series;
mod session;
mod stopwatch;
#[cfg(test)]
mod tests;

pub(crate) use args::BenchArgs;

use std::process::ExitCode;

use args::Scenario;

/// Runs one scenario and prints its report, or compares two reports.
///
/// # Errors
/// The first wrong thing that the server did, or what kept the scenario from running. A comparison
/// says by its exit code how it ended.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.scenario {
        Scenario::Connect(args) if args.cycle => cycle::run(&args)?,
        Scenario::Connect(args) => connect::run(&args)?,
        Scenario::Request(args) => request::run(&args)?,
        Scenario::Broadcast(args) => broadcast::run(&args)?,
        Scenario::Compare(args) => return Ok(report::compare(&args)),
    }
    Ok(ExitCode::SUCCESS)
}
