//! Runs a program with less than it could have, in its own place: `confine [--no-io-uring] [--nofile=N]
//! PROGRAM [ARGUMENT]...`

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// io_uring_setup(2): the same number on every architecture.
const IO_URING_SETUP: i64 = 425;

/// EPERM, as container runtimes answer.
const EPERM: u32 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    loop {
        let argument = arguments.next().ok_or("which program?")?;
        match argument.to_str() {
            Some("--no-io-uring") => forbid_io_uring()?,
            Some(limit) if limit.starts_with("--nofile=") => {
                let limit = Some(limit["--nofile=".len()..].parse()?);
                setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
            }
            // It returns only when it fails.
            _ => return Err(Command::new(argument).args(arguments).exec().into()),
        }
    }
}

fn forbid_io_uring() -> Result<(), Box<dyn Error>> {
    let rules = BTreeMap::from([(IO_URING_SETUP, Vec::new())]);
    let (others, this) = (SeccompAction::Allow, SeccompAction::Errno(EPERM));
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram = SeccompFilter::new(rules, others, this, architecture)?.try_into()?;
    seccompiler::apply_filter(&filter)?;
    Ok(())
}
