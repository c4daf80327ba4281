//! `tide doctor` beside a gateway that runs: what it asks it, and what it makes of other processes.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::process::Process;
use tidegate_tests::{Gateway, Setup};

/// Runs `tide doctor` in the gateway's folder: its exit status, its report and its complaint.
fn doctor(gateway: &Gateway, arguments: &str) -> (i32, Value, String) {
    let arguments = format!("doctor --json {arguments}");
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    let (status, said, log) = gateway.tide(&arguments, "");
    let report = serde_json::from_str(&said).unwrap_or(Value::Null);
    (status.code().expect("it ends without a signal"), report, log)
}

fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap_or_else(|| panic!("{report}"));
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{report}"))
}

#[test]
fn a_gateway_says_what_it_runs_with_wherever_that_is_configured() {
    let toml = "shards = 3\ndriver = \"epoll\"\n[session]\nheartbeat_interval_ms = 77000\n[limits]\n\
                connections_max = 600\n[socket]\nbacklog = 9";
    let gateway = Setup::demo().shards(3).toml(toml).start();
    let (pid, admin) = (gateway.process.pid().to_string(), gateway.operators());
    for named in [format!("--pid {pid} --admin {admin}"), format!("--admin {admin}")] {
        let (status, report, log) = doctor(&gateway, &format!("--connections 601 {named}"));
        assert_eq!(status, 1, "{log}");
        assert_eq!((&report["shards"], &report["driver"]), (&3.into(), &"epoll".into()));
        assert_eq!(report["pid"].to_string(), pid);
        let basis = report["basis"].to_string();
        let port = format!("port {}", gateway.clients().port());
        for part in ["3 shards", "a heartbeat every 77s", "600 connections (configured)", &port] {
            assert!(basis.contains(part), "{part} is not in {basis}");
        }
        assert!(!basis.contains("assumed"), "{basis}");
        let max = finding(&report, "connections-max");
        assert_eq!((&max["verdict"], &max["allows"]["value"]), (&"too-small".into(), &600.into()));
        assert_eq!(finding(&report, "somaxconn")["needs"]["value"], 9);
    }
    // Without a number of connections it is judged for those that it accepts.
    let (_, report, log) = doctor(&gateway, &format!("--admin {admin}"));
    assert_eq!(report["connections"], 600, "{log}");
    // It listens on loopback.
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["check"] != "receive-queues"), "{report}");
    // What the question names counts more.
    let asked = format!("--connections 50 --admin {admin} --shards 5 --heartbeat-interval 9s");
    let (_, report, log) = doctor(&gateway, &asked);
    assert_eq!(report["shards"], 5, "{log}");
    assert!(!report["basis"].to_string().contains("heartbeat"), "{report}");
}

#[test]
fn a_gateway_says_why_it_does_not_use_io_uring() {
    let gateway = Setup::demo().set("driver", "auto").without_uring().start();
    let asked = format!("--connections 50 --driver uring --admin {}", gateway.operators());
    let (status, report, log) = doctor(&gateway, &asked);
    assert_eq!(status, 1, "{log}");
    let found = finding(&report, "io-uring");
    assert_eq!(found["verdict"], "too-small");
    let why = found["allows"]["text"].as_str().unwrap();
    assert!(why.starts_with("the gateway could not use it: "), "{why}");
}

#[test]
fn a_process_that_is_no_gateway_is_an_error() {
    let gateway = Setup::demo().start();
    let other = Process::start(Command::new("sleep").arg("3600"), "");
    let pid = other.pid();
    let asked = format!("--connections 50 --pid {pid}");
    let (status, report, log) = doctor(&gateway, &asked);
    assert_eq!((status, report), (2, Value::Null));
    assert!(log.contains(&format!("process {pid} is not a gateway: it listens on no")), "{log}");
    // A client's limits can be judged of any process.
    let (_, report, log) = doctor(&gateway, &format!("{asked} --role client"));
    assert_eq!(report["pid"].to_string(), pid.to_string(), "{log}");
}

#[test]
fn one_gateways_process_is_not_judged_with_anothers_answer() {
    let (one, other) = (Setup::demo().start(), Setup::demo().start());
    let pid = one.process.pid();
    let own = format!("{}, {}", one.clients(), one.operators());
    let swapped = format!("{}, {}", one.operators(), one.clients());
    for admin in [format!("--admin {}", other.operators()), String::new()] {
        let (status, _, log) = doctor(&one, &format!("--connections 50 --pid {pid} {admin}"));
        assert_eq!(status, 2, "{log}");
        assert!(log.contains(&format!("process {pid} does not listen on 127.0.0.1:")), "{log}");
        assert!(log.contains(&own) || log.contains(&swapped), "where it listens: {log}");
        assert!(log.contains("name its operators' address with --admin"), "{log}");
    }
}

#[test]
fn a_gateway_that_does_not_answer_is_an_error_that_says_what_to_do() {
    let gateway = Setup::demo().start();
    let (pid, admin) = (gateway.process.pid(), gateway.operators());
    fs::write(gateway.folder().join("wrong"), "x".repeat(40)).unwrap();
    let asked = format!("--connections 50 --pid {pid} --admin {admin} --token-file");
    let (status, _, log) = doctor(&gateway, &format!("{asked} wrong"));
    assert_eq!(status, 2, "{log}");
    assert!(log.contains("401") && log.contains("token is wrong"), "{log}");
    let (status, _, log) = doctor(&gateway, &format!("{asked} absent"));
    assert_eq!(status, 2, "{log}");
    assert!(log.contains("can't read the operators' token absent"), "{log}");
    // Clients' port is not the operators'.
    let clients = gateway.clients();
    let (status, report, _) =
        doctor(&gateway, &format!("--connections 50 --pid {pid} --admin {clients}"));
    assert_eq!((status, report), (2, Value::Null));
    // Nobody listens where a gateway was.
    drop(gateway);
    let elsewhere = Setup::demo().start();
    let (status, _, log) = doctor(&elsewhere, &format!("--connections 50 --admin {admin}"));
    assert_eq!(status, 2, "{log}");
    assert!(log.contains(&format!("no gateway listens on {admin} for operators")), "{log}");
}
