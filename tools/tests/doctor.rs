//! `tide doctor`, the real binary on this machine: what it says against what the machine says.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::process::{Resource, getrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;

const TIDE: &str = env!("CARGO_BIN_EXE_tide");

/// `io_uring_setup`, on every architecture that numbers it like the generic table.
const IO_URING_SETUP: i64 = 425;

/// A run: how it ended, and what it found.
struct Doctor {
    status: i32,
    report: Value,
}

impl Doctor {
    fn of(output: &Output) -> Self {
        let status = output.status.code().expect("it ends without a signal");
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
        });
        Self { status, report }
    }

    fn ask(arguments: &str) -> Self {
        let arguments = arguments.split_whitespace();
        Self::of(&Command::new(TIDE).args(["doctor", "--json"]).args(arguments).output().unwrap())
    }

    fn finding(&self, check: &str) -> &Value {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| {
            panic!("no {check} in {}", self.report);
        })
    }

    fn verdict(&self, check: &str) -> &str {
        self.finding(check)["verdict"].as_str().unwrap()
    }

    fn allows(&self, check: &str) -> Option<u64> {
        self.finding(check)["allows"]["value"].as_u64()
    }

    fn has(&self, verdict: &str) -> bool {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().any(|finding| finding["verdict"] == verdict)
    }
}

fn kernel(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    text.trim().trim_start_matches('-').parse().unwrap()
}

#[test]
fn this_machine_is_read_as_it_is() {
    for connections in [100_000, 1_000_000] {
        let doctor = Doctor::ask(&format!("--connections {connections}"));
        assert_eq!(doctor.report["connections"], connections);
        assert_eq!(doctor.report["exit_status"], doctor.status);
        assert_eq!(doctor.has("too-small"), doctor.status == 1, "{}", doctor.report);

        assert_eq!(doctor.allows("open-files"), getrlimit(Resource::Nofile).maximum);
        assert_eq!(doctor.allows("nr-open"), Some(kernel("/proc/sys/fs/nr_open")));
        let file_max = kernel("/proc/sys/fs/file-max");
        assert_eq!(doctor.allows("file-max"), Some(file_max));
        let fits = doctor.finding("file-max")["needs"]["value"].as_u64().unwrap() <= file_max;
        assert_eq!(doctor.verdict("file-max") == "ok", fits);
        let somaxconn = kernel("/proc/sys/net/core/somaxconn");
        assert_eq!(doctor.allows("somaxconn"), Some(somaxconn));
        assert_eq!(doctor.verdict("somaxconn") == "ok", somaxconn >= 4_096);
        let buckets = kernel("/proc/sys/net/ipv4/tcp_ehash_entries");
        assert_eq!(doctor.allows("established-hash"), Some(buckets));
        let wide = buckets >= connections;
        assert_eq!(doctor.verdict("established-hash"), if wide { "ok" } else { "note" });
        let cpus = thread::available_parallelism().unwrap().get() as u64;
        assert_eq!(doctor.allows("shards"), Some(cpus));
    }
}

#[test]
fn people_get_every_finding_in_words() {
    let arguments = ["doctor", "--connections", "100000", "--driver", "epoll"];
    let output = Command::new(TIDE).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("100,000 connections, gateway"), "{said}");
    assert!(!said.contains('\x1b'), "no colours into a pipe: {said}");
    let doctor = Doctor::ask("--connections 100000 --driver epoll");
    for finding in doctor.report["findings"].as_array().unwrap() {
        for part in [&finding["check"], &finding["why"]] {
            assert!(said.contains(part.as_str().unwrap()), "{part} is not in:\n{said}");
        }
    }
    assert_eq!(output.status.code(), Some(doctor.status));
}

#[test]
fn what_is_asked_wrongly_ends_with_2() {
    let nonsense: [&[&str]; 6] = [
        &[],
        &["--connections", "0"],
        &["--connections", "many"],
        &["--connections", "5", "--heartbeat-interval", "0s"],
        &["--connections", "5", "--pushes-per-second", "-1"],
        // Above what the kernel gives out.
        &["--connections", "5", "--pid", "4194305"],
    ];
    for arguments in nonsense {
        let output = Command::new(TIDE).arg("doctor").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_number_of_connections_and_a_gateway_the_error_shows_how_to_ask() {
    for arguments in [&[][..], &["--role", "client"]] {
        let output = Command::new(TIDE).arg("doctor").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        for part in ["`tide doctor --connections 100k`", "`tide doctor --admin 127.0.0.1:7401`"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}

/// Runs a shell command that ends in `tide doctor`.
fn shell(before: &str, arguments: &str) -> Doctor {
    let script = format!("{before} && exec \"$0\" doctor --json {arguments}");
    Doctor::of(&Command::new("sh").args(["-c", &script, TIDE]).output().unwrap())
}

#[test]
fn a_small_limit_of_descriptors_is_found() {
    let epoll = shell("ulimit -n 1024", "--connections 50k --driver epoll --shards 2");
    assert_eq!((epoll.status, epoll.verdict("open-files")), (1, "too-small"));
    assert_eq!(epoll.allows("open-files"), Some(1_024));
    // 50000 connections, 960 a table less 4 for each shard.
    let needs = epoll.finding("open-files")["needs"]["text"].as_str().unwrap();
    assert!(needs.contains("or 77 shards"), "{needs}");
    let shards = shell("ulimit -n 1024", "--connections 50k --driver epoll --shards 77");
    assert_eq!((shards.verdict("open-files"), shards.verdict("connections-max")), ("ok", "note"));
    assert_eq!(shards.allows("connections-max"), Some(652));
    let line = &shards.finding("connections-max")["fix"][0]["line"];
    assert_eq!(line, "limits.connections_max = 50000");
    // However many there are, they take their own descriptors from each table.
    let many = shell("ulimit -n 1024", "--connections 100k --driver epoll --shards 2");
    let needs = many.finding("open-files")["needs"]["text"].as_str().unwrap();
    assert!(!needs.contains("or "), "{needs}");

    let uring = shell("ulimit -n 1024", "--connections 100000 --driver uring --shards 2");
    // 870 a ring: 58 rings for each of the two.
    assert_eq!(uring.verdict("open-files"), "note");
    let needs = uring.finding("open-files")["needs"]["text"].as_str().unwrap();
    assert!(needs.contains("116 rings"), "{needs}");
    let million = shell("ulimit -n 1024", "--connections 1000000 --driver uring --shards 2");
    assert_eq!((million.status, million.verdict("open-files")), (1, "too-small"));
}

/// Runs `tide doctor` from a thread that may not ask for a ring, which its children inherit.
fn without_io_uring(action: SeccompAction, arguments: &'static str) -> Doctor {
    let asking = thread::spawn(move || {
        let rules = BTreeMap::from([(IO_URING_SETUP, Vec::new())]);
        let architecture = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture);
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        apply_filter(&program).unwrap();
        Doctor::ask(arguments)
    });
    asking.join().unwrap()
}

#[test]
fn a_filter_that_forbids_io_uring_is_recognised() {
    const EPERM: u32 = 1;
    const ENOSYS: u32 = 38;
    // What Docker's profile says, what others say, and what systemd's do.
    let ways =
        [SeccompAction::Errno(EPERM), SeccompAction::Errno(ENOSYS), SeccompAction::KillProcess];
    for way in ways {
        let doctor = without_io_uring(way.clone(), "--connections 1000 --driver uring");
        let found = doctor.finding("io-uring");
        assert_eq!(found["allows"]["text"], "forbidden by a seccomp filter", "{way:?}");
        assert_eq!((doctor.status, doctor.verdict("io-uring")), (1, "too-small"), "{way:?}");
        assert_eq!(found["fix"][0]["place"], "container", "{way:?}");
    }
    let auto = without_io_uring(SeccompAction::Errno(EPERM), "--connections 1000");
    assert_eq!((auto.verdict("io-uring"), &auto.report["driver"]), ("note", &"epoll".into()));
    let epoll = without_io_uring(SeccompAction::Errno(EPERM), "--connections 1000 --driver epoll");
    let findings = epoll.report["findings"].as_array().unwrap();
    assert!(!findings.iter().any(|finding| finding["check"] == "io-uring"));
}

#[test]
fn io_uring_is_found_to_work_where_it_does() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if !status.contains("Seccomp:\t0") || disabled.is_ok_and(|value| value.trim() != "0") {
        println!("skipped: io_uring is forbidden here");
        return;
    }
    let doctor = Doctor::ask("--connections 1000 --driver uring");
    assert_eq!(doctor.verdict("io-uring"), "ok", "{}", doctor.finding("io-uring"));
}

/// A process with a separate network namespace and eleven ports. It ends with its test.
struct Apart(Child);

const ELEVEN_PORTS: &str = "echo '60000 60010' > /proc/sys/net/ipv4/ip_local_port_range";

impl Apart {
    /// `None` where namespaces are not permitted.
    fn start() -> Option<Self> {
        let script = format!("{ELEVEN_PORTS} && echo ready && read wait");
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let apart = Self(child);
        (line == "ready\n").then_some(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn assert_eleven_ports(doctor: &Doctor) {
    assert_eq!((doctor.status, doctor.verdict("source-ports")), (1, "too-small"));
    assert_eq!(doctor.allows("source-ports"), Some(22));
    let needs = doctor.finding("source-ports")["needs"]["text"].as_str().unwrap();
    assert!(needs.contains("91 source addresses"), "{needs}");
}

#[test]
fn a_clients_ports_are_those_of_its_namespace() {
    let Some(apart) = Apart::start() else {
        println!("skipped: unshare(CLONE_NEWNET) is not permitted here");
        return;
    };
    let arguments = "--role client --connections 1000 --address-pairs 2";
    let script = format!("{ELEVEN_PORTS} && exec \"$0\" doctor --json {arguments}");
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script, TIDE]).output();
    assert_eleven_ports(&Doctor::of(&output.unwrap()));

    // The same from outside, of a process that is in it.
    let doctor = Doctor::ask(&format!("{arguments} --pid {}", apart.0.id()));
    assert_eleven_ports(&doctor);
    let shared = doctor.finding("established-hash")["allows"]["text"].as_str().unwrap();
    assert!(shared.contains("shared"), "{shared}");
    // A separate namespace has no card.
    let script = "exec \"$0\" doctor --json --connections 1000";
    let output = Command::new("unshare").args(["--net", "sh", "-c", script, TIDE]).output();
    let gateway = Doctor::of(&output.unwrap());
    assert_eq!(gateway.finding("receive-queues")["allows"]["text"], "loopback alone");
}

#[test]
fn a_reader_that_stops_early_causes_no_error() {
    for arguments in ["doctor --connections 1m", "doctor --connections 1m --json"] {
        let mut tide = Command::new(TIDE)
            .args(arguments.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Closed before there can be anything in it.
        drop(tide.stdout.take());
        let output = tide.wait_with_output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn the_limits_of_a_running_process_are_judged() {
    let mut asleep = Command::new("sh")
        .args(["-c", "ulimit -n 777 && echo ready && read wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(asleep.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = asleep.id();
    let doctor = Doctor::ask(&format!("--connections 1000 --role client --pid {pid}"));
    asleep.kill().unwrap();
    asleep.wait().unwrap();
    assert_eq!((doctor.allows("open-files"), &doctor.report["pid"]), (Some(777), &pid.into()));
}
