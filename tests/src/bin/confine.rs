//! Confines a program and becomes it (exec): `confine [--no-io-uring] [--nofile=N]
//! [--seccomp=PROFILE] PROGRAM [ARGUMENT]...`
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter, compile_from_json,
};
use serde_json::{Value, json};

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
            Some(profile) if profile.starts_with("--seccomp=") => {
                let profile = std::fs::read_to_string(&profile["--seccomp=".len()..])?;
                apply_filter(&filter_of(&serde_json::from_str(&profile)?))?;
            }
            // `exec` returns only when it fails.
            _ => return Err(Command::new(argument).args(arguments).exec().into()),
        }
    }
}

fn forbid_io_uring() -> Result<(), Box<dyn Error>> {
    let rules = BTreeMap::from([(IO_URING_SETUP, Vec::new())]);
    let (others, this) = (SeccompAction::Allow, SeccompAction::Errno(EPERM));
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter: BpfProgram = SeccompFilter::new(rules, others, this, architecture)?.try_into()?;
    apply_filter(&filter)?;
    Ok(())
}

/// A container's profile as a filter. It reads the part of the format that `sysctl/seccomp.json` uses: allowed
/// names, one of them with a condition on its first argument, and an errno for everything else.
fn filter_of(profile: &Value) -> BpfProgram {
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let mut rules = Vec::new();
    for group in profile["syscalls"].as_array().unwrap() {
        assert_eq!(group["action"], "SCMP_ACT_ALLOW");
        for name in group["names"].as_array().unwrap() {
            let mut rule = json!({ "syscall": name });
            if let Some(demand) = group["args"].get(0) {
                assert_eq!(demand["op"], "SCMP_CMP_EQ");
                let (index, value) = (&demand["index"], &demand["value"]);
                rule["args"] =
                    json!([{ "index": index, "type": "qword", "op": "eq", "val": value }]);
            }
            rules.push(rule);
        }
    }
    let text = json!({ "main": {
        "mismatch_action": { "errno": profile["defaultErrnoRet"] },
        "match_action": "allow",
        "filter": rules,
    }});
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let mut filters = compile_from_json(text.to_string().as_bytes(), architecture).unwrap();
    filters.remove("main").unwrap()
}
