//! `tide bench`: loads a gateway and measures it.
//!
//! As many workers as the limit of open files asks for, each a thread with an epoll and a table of
//! descriptors of its own: under a limit of 20,000, one up to some 19,900 connections and 51 for a
//! million. It is built to cost less than what it measures: requests are written and answers read
//! through the protocol's borrowed views, nothing is allocated per message, and its own CPU time per
//! message stands in every report.
//!
//! | module | what it owns |
//! |---|---|
//! | `args` | what can be asked for |
//! | `crew` | the workers: how many, from the start to the first error or the end |
//! | `course` | what the workers agree on; a worker's share |
//! | `entrance` | whether the gateway lets anybody in |
//! | `watch` | the progress bar, a sample each second |
//! | `series` | what a sample is |
//! | `latency` | latencies and counts, by the second and over the window |
//! | `engine` | readiness and the timer; knows no protocol |
//! | `sockets` | an engine's connections |
//! | `source` | addresses to connect from |
//! | `session` | one session's frames and answers |
//! | `sessions` | connecting, authenticating, heartbeats, of many |
//! | `crowd` | what most scenarios start with |
//! | `echo` | requests and the check of their answers |
//! | `connect`, `cycle`, `request`, `broadcast`, `storm`, `show` | one scenario each |
//! | `timeline` | a show's: what is published when, and who answers when |
//! | `publication` | pushes under way, and who has got which |
//! | `stopwatch` | ramp, warm-up, measured window, drain |
//! | `turnover` | connections that come and go all the time |
//! | `proc` | CPU time and memory of a process |
//! | `series` | what is seen of a run as it goes |
//! | `report` | a table, JSON, a page; two reports side by side |

mod args;
mod broadcast;
mod connect;
mod course;
mod crew;
mod crowd;
mod cycle;
mod echo;
mod engine;
mod entrance;
mod latency;
mod pattern;
mod proc;
mod publication;
mod report;
mod request;
mod series;
mod session;
mod sessions;
mod show;
mod sockets;
mod source;
mod stopwatch;
mod storm;
#[cfg(test)]
mod tests;
mod timeline;
mod turnover;
mod watch;

pub(crate) use args::BenchArgs;
pub(crate) use crew::{SPARE_DESCRIPTORS, WORKERS_MAX};
pub(crate) use source::{LOOPBACK_SOURCES, PER_SOURCE};

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
        Scenario::Storm(args) => storm::run(&args)?,
        Scenario::Show(args) => show::run(&args)?,
        Scenario::Compare(args) => return Ok(report::compare(&args)),
    }
    Ok(ExitCode::SUCCESS)
}
