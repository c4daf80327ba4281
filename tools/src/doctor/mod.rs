//! `tide doctor`: what stands between this machine and N connections, and what mends it.
//!
//! Three steps that know nothing of each other: [`machine`] reads a snapshot and judges nothing,
//! [`checks`] judge it and read nothing, [`report`] shows what they found. [`plan`] says what N
//! connections come to, with the figures that it takes for that and where they are from; [`settled`] what
//! the question left open. It changes nothing on the machine.

mod args;
mod checks;
mod finding;
#[cfg(test)]
mod fixture;
mod io_uring_access;
mod machine;
mod plan;
mod report;
mod settled;

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;

pub(crate) use args::DoctorArgs;
use machine::{Machine, Subject};
use plan::Plan;
use report::{Report, UNREADABLE};

use crate::stdout;

/// Looks, judges and reports; the exit status is part of the report.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    if args.probe_io_uring {
        return machine::answer_probe().into();
    }
    examine(args).unwrap_or_else(|error| {
        stdout::print_stderr(&format!("tide: {error:#}"));
        UNREADABLE.into()
    })
}

fn examine(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let root = Path::new("/");
    let subject = args.pid.map_or(Subject::Here, Subject::Running);
    if let Some(pid) = args.pid {
        ensure!(
            root.join(format!("proc/{pid}/status")).exists(),
            "there is no process {pid}: name a running gateway, e.g. --pid $(pidof -s tidegate)"
        );
    }
    let machine = Machine::read(root, subject, machine::probe());
    let plan = Plan::new(args.connections.into(), args.question.clone(), &machine);
    let judged = checks::judge(&machine, &plan);
    let limit = machine.process.files.as_ref().map_or(None, |limit| limit.hard);
    let estimates = plan.estimates(limit);
    let report = Report::new(&plan, args.pid, &judged, &estimates);
    if args.json { report.print_json() } else { report.print_text() }?;
    Ok(report.exit_status().into())
}
