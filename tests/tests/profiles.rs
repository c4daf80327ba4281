//! The profiles in `sysctl/`: each line has its reason, and the scripts do what they say.
//!
//! Each test changes settings in its own network namespace, with the rest of `/proc/sys` read-only, so that nothing of
//! the machine is changed.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tidegate_tests::Setup;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;

const PROFILES: [&str; 3] = ["100k", "1m", "dev"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("sysctl")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// A line with a setting, and the comment right before it.
struct Setting<'a> {
    comment: Vec<&'a str>,
    line: &'a str,
}

fn settings(text: &str) -> Vec<Setting<'_>> {
    let (mut comment, mut settings) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if line.starts_with('#') {
            comment.push(line);
        } else if line.is_empty() {
            comment.clear();
        } else {
            settings.push(Setting { comment: std::mem::take(&mut comment), line });
        }
    }
    settings
}

/// Requires reason, cost and effect, in this order and not empty, and the source of the effect.
fn assert_reasoned(setting: &Setting<'_>) {
    let Setting { comment, line } = setting;
    let mut parts = comment.iter().filter(|text| !text.starts_with("#   "));
    for name in ["# Reason: ", "# Cost: ", "# Effect ("] {
        let part = parts.next().unwrap_or_else(|| panic!("{line} has no {name}"));
        assert!(part.starts_with(name) && part.len() > name.len() + 10, "{line}: {part}");
    }
    let effect = comment.iter().find(|text| text.starts_with("# Effect (")).unwrap();
    let source = effect.trim_start_matches("# Effect (");
    let known = source.starts_with("measured here): ") || source.starts_with("documented, ");
    assert!(known, "{line}: {effect}");
    let rest: Vec<_> = parts.collect();
    assert!(rest.iter().all(|text| **text == "# Keep larger"), "{line}: {rest:?}");
}

#[test]
fn every_setting_has_a_reason_a_cost_and_an_effect() {
    for profile in PROFILES {
        let text = read(&format!("{profile}.conf"));
        let settings = settings(&text);
        assert!(!settings.is_empty());
        settings.iter().for_each(assert_reasoned);
    }
    settings(&read("limits.d/tidegate.conf")).iter().for_each(assert_reasoned);
}

#[test]
fn a_setting_without_a_reason_is_rejected() {
    let judge = |text: &'static str| {
        std::panic::catch_unwind(|| settings(text).iter().for_each(assert_reasoned)).is_ok()
    };
    let good = "# Reason: it is needed here\n# Cost: none that we know\n# Effect (measured here): yes, 5 %\nkey = 1\n";
    assert!(judge(good));
    assert!(!judge("key = 1\n"));
    assert!(!judge("# Reason: it is needed here\nkey = 1\n"));
    assert!(!judge("# Reason: it is needed here\n\nkey = 1\n"));
    assert!(!judge(
        "# Reason: it is needed here\n# Cost: none that we know\n# Effect (rumour): 5 %\nkey = 1\n"
    ));
}

#[test]
fn every_key_exists_in_this_kernel_or_is_optional() {
    // This key is not per network namespace.
    let whole = Path::new("/proc/sys/net/core/netdev_max_backlog").exists();
    for profile in PROFILES {
        for Setting { line, .. } in settings(&read(&format!("{profile}.conf"))) {
            let (key, value) = line.split_once(" = ").unwrap();
            let is_number = |word: &str| word.parse::<u64>().is_ok();
            assert!(value.split(' ').all(is_number), "{line}");
            if key.starts_with('-') {
                continue;
            }
            let path = format!("/proc/sys/{}", key.replace('.', "/"));
            if key.starts_with("net.") && !whole && !Path::new(&path).exists() {
                println!("skipped {key}: this is a network namespace, which has not all keys");
                continue;
            }
            let now = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(now.split_whitespace().count(), value.split(' ').count(), "{line}: {now}");
        }
    }
}

/// Runs a script that may write the settings of its own network namespace, and nothing else; `None` where that is
/// not permitted.
fn in_namespace(script: &str) -> Option<(bool, String, String)> {
    // A bind mount makes a part of /proc/sys read-only.
    let guard = "for part in fs kernel vm; do mount --bind /proc/sys/$part /proc/sys/$part && \
                 mount -o remount,bind,ro /proc/sys/$part || exit 77; done";
    let script = format!("{guard}\nset -e\ncd \"$0\"\n{script}");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "bash", "-c", &script]).arg(folder());
    let state = tempfile::tempdir().unwrap();
    command.env("STATE", state.path().join("before"));
    let (status, said, log) = Process::run(&mut command, "");
    let permitted = status.code() != Some(77) && !log.contains("unshare: unshare failed");
    if !permitted {
        println!("skipped: namespaces are not permitted here: {log}");
        return None;
    }
    Some((status.success(), said, log))
}

#[test]
fn apply_sets_and_skips_keys_as_it_says_and_revert_restores_them() {
    let keys =
        ["core/somaxconn", "ipv4/tcp_syncookies", "ipv4/ip_local_port_range", "ipv4/tcp_mem"];
    let machine = || keys.map(|key| fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap());
    let before = machine();
    let script = r#"
        see() { tr '\t' ' ' </proc/sys/net/$1; }
        echo 100 >/proc/sys/net/core/somaxconn
        echo 0 >/proc/sys/net/ipv4/tcp_syncookies
        ./apply --skip-missing --state "$STATE" 1m
        ./apply --skip-missing --state "$STATE" dev
        echo "applied $(see core/somaxconn) $(see ipv4/tcp_syncookies) $(see ipv4/ip_local_port_range)"
        ./apply --skip-missing --state "$STATE" 1m
        ./revert --dry-run --state "$STATE"
        ./revert --state "$STATE"
        echo "reverted $(see core/somaxconn) $(see ipv4/tcp_syncookies) $(see ipv4/ip_local_port_range)"
        ./revert --state "$STATE"
    "#;
    let Some((success, said, log)) = in_namespace(script) else { return };
    assert!(success, "{said}\n{log}");
    assert!(said.contains("applied 4096 1 32768 65535"), "{said}");
    assert!(said.contains("reverted 100 0 32768 60999"), "{said}");
    assert!(said.contains("apply: net.ipv4.tcp_mem: skipped: this kernel or network"), "{said}");
    assert!(said.contains("apply: net.core.somaxconn: 4096, was 100"), "{said}");
    assert!(said.contains("apply: net.core.somaxconn: is 4096, nothing to do"), "{said}");
    assert!(said.contains("revert: net.core.somaxconn: would become 100, is 4096"), "{said}");
    assert!(said.contains("revert: nothing to revert"), "{said}");
    assert_eq!(machine(), before, "the machine's settings are unchanged");
}

#[test]
fn apply_changes_nothing_when_one_key_cannot_be_set() {
    let script = r#"
        echo 100 >/proc/sys/net/core/somaxconn
        if ./apply --state "$STATE" 1m; then exit 1; fi
        cat /proc/sys/net/core/somaxconn
        test ! -e "$STATE"
        ./apply --dry-run --skip-missing --state "$STATE" 1m
        cat /proc/sys/net/core/somaxconn
        test ! -e "$STATE"
    "#;
    let Some((success, said, log)) = in_namespace(script) else { return };
    assert!(success, "{said}\n{log}");
    assert!(log.contains("net.ipv4.tcp_mem") && log.contains("--skip-missing"), "{log}");
    assert!(said.contains("apply: net.core.somaxconn: would become 4096, is 100"), "{said}");
    assert_eq!(said.lines().filter(|line| *line == "100").count(), 2, "{said}");
}

#[test]
fn apply_keeps_larger_values() {
    let script = r#"
        echo 65535 >/proc/sys/net/core/somaxconn
        ./apply --skip-missing --state "$STATE" 100k
        cat /proc/sys/net/core/somaxconn
    "#;
    let Some((success, said, log)) = in_namespace(script) else { return };
    assert!(success, "{said}\n{log}");
    assert!(said.ends_with("65535\n"), "{said}");
}

#[test]
fn scripts_refuse_to_run_without_root_or_with_unknown_profiles() {
    let run = |command: &mut Command| Process::run(command.current_dir(folder()), "");
    for (script, argument) in [("./apply", "no-such"), ("./apply", "--no"), ("./revert", "--no")] {
        let (status, _, log) = run(Command::new(script).arg(argument));
        assert!(status.code() == Some(1) && log.contains("there is no"), "{script}: {log}");
    }
    let (status, said, log) = run(Command::new("./apply").args(["--dry-run", "100k"]));
    assert!(status.success() && said.contains("net.core.somaxconn"), "{said}{log}");
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    // Another user may have no access to the project's folder.
    let open = tempfile::tempdir().unwrap();
    let public = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(open.path(), public).unwrap();
    for name in ["apply", "revert", "settings.bash", "100k.conf"] {
        fs::copy(folder().join(name), open.path().join(name)).unwrap();
    }
    for script in ["./apply 100k", "./revert"] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", script]);
        let (status, _, log) = Process::run(command.current_dir(open.path()), "");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("only root may change the kernel's settings"), "{log}");
    }
}

#[test]
fn shellcheck_accepts_the_scripts() {
    let mut command = Command::new("shellcheck");
    command.args(["--external-sources", "apply", "revert", "settings.bash"]).current_dir(folder());
    if Command::new("shellcheck").arg("--version").output().is_err() {
        println!("skipped: there is no shellcheck");
        return;
    }
    let (status, said, _) = Process::run(&mut command, "");
    assert!(status.success(), "{said}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_gateway_serves_under_the_containers_seccomp_profile() {
    let profile = folder().join("seccomp.json");
    let mut gateway = Setup::demo().shards(2).seccomp(&profile).start();
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.process.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let mut phones: Vec<_> = (1..=8).map(|user_id| gateway.login(user_id)).collect();
    phones.iter_mut().for_each(|phone| phone.join("quiz", 0));
    phones[0].say("quiz", "confined");
    phones.iter_mut().for_each(|phone| assert_eq!(phone.push().text(), "confined"));
    let operator = gateway.operator();
    assert_eq!(operator.get("/readyz"), (200, "ready\n".into()));
    assert_eq!(operator.get("/metrics").0, 200);
    gateway.terminate();
    for phone in &mut phones {
        phone.wait_for_goodbye();
    }
    drop(phones);
    assert!(gateway.process.wait().success());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_containers_seccomp_profile_allows_io_uring_and_little_else() {
    let profile = folder().join("seccomp.json");
    let confined = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(&programs().confine);
        let profile = format!("--seccomp={}", profile.display());
        Process::run(command.arg(profile).arg(program).args(arguments), "")
    };
    let tide = &programs().tide;
    let ring = ["doctor", "--connections", "1", "--probe-io-uring"];
    let (free, ..) = Process::run(Command::new(tide).args(ring), "");
    let (status, ..) = confined(tide, &ring);
    assert_eq!(status.code(), free.code(), "the same as without the profile");
    // unshare is allowed for descriptor tables, not for namespaces.
    let (status, _, log) = confined(Path::new("/usr/bin/unshare"), &["--net", "true"]);
    assert!(!status.success() && log.contains("Function not implemented"), "{log}");
    let names: Value = serde_json::from_str(&read("seccomp.json")).unwrap();
    let text = names.to_string();
    for forbidden in ["ptrace", "mount", "bpf", "keyctl", "setns", "kexec_load", "init_module"] {
        assert!(!text.contains(&format!("\"{forbidden}\"")), "{forbidden}");
    }
}
