//! `confined PROFILE PROGRAM ARGUMENT...`: becomes a program under a container's seccomp profile.
//!
//! It reads what of the profile's format `sysctl/seccomp.json` uses: names that are allowed, one of
//! them with a demand on its first argument, and an errno for everything else.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use seccompiler::{BpfProgram, apply_filter, compile_from_json};
use serde_json::{Value, json};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let profile = std::fs::read_to_string(arguments.next().unwrap()).unwrap();
    let program = arguments.next().unwrap();
    let filter = filter(&serde_json::from_str(&profile).unwrap());
    apply_filter(&filter).unwrap();
    panic!("{program}: {}", Command::new(&program).args(arguments).exec());
}

/// The profile in the crate's own format.
fn filter(profile: &Value) -> BpfProgram {
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
