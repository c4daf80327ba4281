//! `tide doctor`: which limits of this machine are too small for N connections, and what fixes them.
//!
//! Three steps that know nothing of each other: [`tidegate_machine`] reads a snapshot and judges nothing,
//! [`checks`] judge it and read nothing, [`report`] shows what they found. [`running`] asks a gateway that runs
//! what it is. [`plan`] says what N connections come to, with its figures and where they are from;
//! [`resolved_plan`] fills in what the question left open. It changes nothing on the machine.

mod args;
mod checks;
mod driver;
mod finding;
mod plan;
mod report;
mod resolved_plan;
mod running;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use tidegate_machine::io_uring::Probe;
use tidegate_machine::{Machine, Subject};

pub(crate) use args::DoctorArgs;
use args::Role;
use plan::Plan;
use report::{Report, UNREADABLE};
use running::Running;

use crate::stdout;

/// The arguments with which `tide doctor` starts itself to ask for a ring.
const PROBE_ARGUMENTS: [&str; 2] = ["doctor", "--probe-io-uring"];

/// The error where the number of connections is neither given nor known.
const HOW_MANY: &str = "how many connections is the machine to hold? Say it, as in `tide doctor --connections 100k`, or \
     name a gateway that runs, as in `tide doctor --admin 127.0.0.1:7401`, which is judged for its connections_max";

/// Reads, judges and reports; the exit status is part of the report.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let done = if args.probe_io_uring { answer_probe() } else { examine(args) };
    done.unwrap_or_else(|error| {
        stdout::print_stderr(&format!("tide: {error:#}"));
        UNREADABLE.into()
    })
}

fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let names_a_gateway = args.admin.is_some() || args.pid.is_some();
    ensure!(
        args.connections.is_some() || (names_a_gateway && args.question.role == Role::Gateway),
        HOW_MANY
    );
    let root = Path::new("/");
    if let Some(pid) = args.pid {
        ensure!(root.join(format!("proc/{pid}/status")).exists(), "there is no process {pid}");
    }
    let running = match args.question.role {
        Role::Gateway => Running::find(args)?,
        Role::Client => {
            ensure!(
                args.admin.is_none(),
                "--admin is for a gateway: leave it out with --role client"
            );
            None
        }
    };
    let pid = running.as_ref().map(|running| running.pid).or(args.pid);
    let subject = pid.map_or(Subject::Caller, Subject::Pid);
    let machine = Machine::read(root, subject, probe());
    let connections_max = running.as_ref().map(|running| running.connections_max);
    let connections = args.connections.map(u64::from).or(connections_max).context(HOW_MANY)?;
    let plan = Plan::new(connections, args.question.clone(), &machine, running.as_ref());
    let judged = checks::judge(&machine, &plan);
    let limit = machine.process.files.as_ref().map_or(None, |limit| limit.hard);
    let estimates = plan.estimates(limit);
    let report = Report::new(&plan, pid, &judged, &estimates);
    if args.json { report.print_json() } else { report.print_text() }?;
    Ok(report.exit_status().into())
}

/// Asks for a ring in a separate process, under the same filters: systemd's kill the process that asks.
fn probe() -> Probe {
    match std::env::current_exe() {
        Ok(program) => Probe::by_child(Command::new(program).args(PROBE_ARGUMENTS)),
        Err(error) => Probe::Untried(error.to_string()),
    }
}

/// What the process that [`probe`] starts does.
fn answer_probe() -> anyhow::Result<ExitCode> {
    let probe = Probe::by_caller();
    let (text, status) = probe.report();
    stdout::print(|out| write!(out, "{text}")).context("can't report to tide doctor")?;
    Ok(status.into())
}
