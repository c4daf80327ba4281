//! What reads the gateway's standard streams may be slow, gone, or out of room: no client notices, lines
//! that are lost are counted, and a drain ends in order.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use tidegate_tests::phone::{demo, quiz};
use tidegate_tests::process::Sink;
use tidegate_tests::{Code, Gateway, Setup, until};

const DROPPED: &str = "tidegate_log_lines_dropped_total";

/// Clients with traffic. `OUTPUT_CLIENTS` names another number.
fn clients() -> u64 {
    std::env::var("OUTPUT_CLIENTS").map_or(20, |count| count.parse().unwrap())
}

/// Has clients log in and ask, an operator push, look and kick (which is logged), a handler panic, and the
/// gateway drain. Nobody may notice anything.
fn live(mut gateway: Gateway, look: impl FnOnce(&Gateway)) {
    let mut phones: Vec<_> = (1..=clients()).map(|user_id| gateway.login(user_id)).collect();
    let operator = gateway.operator();
    for round in 0..5 {
        for phone in &mut phones {
            let asked = phone.send(demo::ECHO, b"hello");
            assert_eq!(phone.outcome(asked).unwrap(), "hello");
            phone.heartbeat();
        }
        let mut buggy = gateway.login(1_000_000 + round);
        let asked = buggy.send(quiz::PANIC, b"");
        buggy.fails(asked, Code::BackendFailed);
        assert_eq!(operator.kick(1_000_000 + round), 1);
        buggy.is_told_to_go();
    }
    assert_eq!(operator.push_all(5, b"all"), clients());
    assert_eq!(operator.get("/healthz").0, 200);
    operator.wait_for_total("sessions", clients());
    look(&gateway);
    gateway.terminate();
    for phone in &mut phones {
        assert_eq!(phone.push().biz_data, "all");
        phone.goodbye(Code::Draining);
    }
    drop(phones);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

/// With this much of the log, and with this format.
fn setup(filter: &str, format: &str) -> Setup {
    Setup::quiz().shards(2).set("log.filter", filter).set("log.format", format)
}

/// Waits until lines of a stream were dropped for a reason.
fn expect_drops(gateway: &Gateway, stream: &str, reason: &str) {
    let operator = gateway.operator();
    until(&format!("lines of {stream} dropped: {reason}"), || {
        let (_, text) = operator.get("/metrics");
        let series = text.lines().find(|line| {
            line.starts_with(DROPPED) && line.contains(stream) && line.contains(reason)
        })?;
        (series.rsplit_once(' ')?.1 != "0").then_some(())
    });
}

#[test]
fn nobody_notices_a_log_whose_reader_is_gone() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "text").stderr(Sink::ReaderGone).start();
        live(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn nobody_notices_a_log_on_a_full_disk() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "json").stderr(Sink::DiskFull).start();
        live(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn nobody_notices_a_log_that_is_as_long_as_a_file_may_be() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "text").stderr(Sink::FileLimit).start();
        live(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn nobody_notices_a_log_that_nobody_reads() {
    // At info what is logged here fits the queue.
    live(setup("info", "text").stderr(Sink::PipeFull).start(), |_| {});
    live(setup("trace", "text").stderr(Sink::PipeFull).start(), |gateway| {
        let mut phone = gateway.login(2_000_000);
        let operator = gateway.operator();
        until("the queue of the log is full", || {
            for _ in 0..100 {
                drop(gateway.login(3_000_000));
                phone.heartbeat();
            }
            operator.metric(DROPPED, "queue_full").filter(|&lines| lines > 0.0)
        });
    });
}

#[test]
fn nobody_notices_a_log_that_is_closed() {
    for filter in ["info", "debug"] {
        live(setup(filter, "text").stderr(Sink::Closed).start(), |_| {});
    }
}

#[test]
fn nobody_notices_a_standard_output_that_takes_nothing() {
    for filter in ["info", "debug"] {
        live(setup(filter, "text").stdout(Sink::PipeFull).start(), |_| {});
        live(setup(filter, "text").stdout(Sink::Closed).start(), |_| {});
        for sink in [Sink::ReaderGone, Sink::DiskFull, Sink::FileLimit] {
            let gateway = setup(filter, "text").stdout(sink).start();
            live(gateway, |gateway| expect_drops(gateway, "stdout", "write_failed"));
        }
    }
    // Both at once, as when one shipper takes both.
    let both = setup("debug", "text").stdout(Sink::PipeFull).stderr(Sink::PipeFull);
    live(both.start(), |_| {});
}

#[test]
fn a_reader_that_comes_back_is_told_how_many_lines_are_missing() {
    let mut gateway = setup("debug", "json").stderr(Sink::PipeFull).start();
    let operator = gateway.operator();
    until("the queue of the log is full", || {
        (0..100).for_each(|_| drop(gateway.login(7)));
        operator.metric(DROPPED, "queue_full").filter(|&lines| lines > 0.0)
    });
    operator.wait_for_total("sessions", 0);
    gateway.process.read_stderr();
    gateway.process.stderr.wait_for("lines were dropped");
    gateway.terminate();
    assert!(gateway.process.wait().success());
    let log = gateway.process.stderr.all();
    let told: f64 = log
        .lines()
        .filter(|line| line.contains("lines were dropped"))
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["level"], &line["stream"]), (&"ERROR".into(), &"stderr".into()));
            line["lines"].as_f64().unwrap()
        })
        .sum();
    assert!(told > 0.0);
    // What is there is whole: each line but those that filled the pipe is JSON.
    for line in log.lines().filter(|line| *line != "x") {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
}

#[test]
fn what_ends_before_it_runs_keeps_its_exit_status_whoever_reads() {
    let broken = [Sink::ReaderGone, Sink::PipeFull, Sink::DiskFull, Sink::FileLimit, Sink::Closed];
    for sink in broken.into_iter().chain([Sink::Kept]) {
        let ends_with = |setup: Setup, status: i32| {
            let command = &mut setup.command();
            let mut process = tidegate_tests::process::Process::start_with(command, "", sink, sink);
            assert_eq!(process.wait().code(), Some(status), "{sink:?}");
        };
        ends_with(Setup::demo().stderr(sink).flag("--check-config"), 0);
        ends_with(Setup::demo().stderr(sink).set("shards", -1), 2);
        ends_with(Setup::demo().stderr(sink).flag("--bogus"), 2);
        ends_with(Setup::demo().stderr(sink).flag("--help"), 0);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        ends_with(Setup::demo().stderr(sink).set("listen", taken.local_addr().unwrap()), 1);
    }
}

#[test]
fn a_second_signal_ends_it_whoever_reads() {
    for sink in [Sink::ReaderGone, Sink::PipeFull] {
        let mut gateway = setup("trace", "text").stdout(sink).stderr(sink).start();
        // This one does not close: the gateway lingers for it.
        let mut phone = gateway.login(7);
        gateway.terminate();
        phone.is_told_to_go();
        gateway.terminate();
        assert_eq!(gateway.process.wait().code(), Some(130), "{sink:?}");
    }
}

#[test]
fn a_line_that_a_client_causes_is_limited_whatever_the_cause() {
    let requests = 3_000;
    let mut gateway = Setup::quiz().set("limits.frame_to_client_bytes_max", 1024).start();
    let mut phone = gateway.login(7);
    let operator = gateway.operator();
    let too_long = [b'x'; 2_000];
    for (kind, body) in [(demo::ECHO, &too_long[..]), (quiz::PANIC, b"")] {
        let asked: Vec<_> = (0..requests).map(|_| phone.send(kind, body)).collect();
        for asked in asked {
            phone.fails(asked, Code::BackendFailed);
        }
    }
    operator.wait_for_metric("tidegate_oversize_answers_total", "", |n| n == f64::from(requests));
    drop(phone);
    gateway.terminate();
    assert!(gateway.process.wait().success());
    let log = gateway.process.stderr.all();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    // One each ten seconds, and for panics one of each worker: a slow machine sees some more.
    assert!((1..30).contains(&lines("an answer is too long for a frame")), "{log}");
    assert!((1..30).contains(&lines("panicked: a handler with a bug")), "{log}");
    assert!((1..60).contains(&lines("a handler panicked; its call is answered")), "{log}");
}

#[test]
fn a_service_manager_that_reads_nothing_keeps_nobody_from_going() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let stuffing = UnixDatagram::unbound().unwrap();
    stuffing.set_nonblocking(true).unwrap();
    while stuffing.send_to(b"STATUS=more\n", &path).is_ok() {}
    let mut gateway =
        Setup::demo().variable("NOTIFY_SOCKET", &path).variable("WATCHDOG_USEC", "40000").start();
    let mut phone = gateway.login(7);
    gateway.terminate();
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
    drop(manager);
}

#[test]
fn a_program_of_ones_own_gets_log_metrics_and_drain_from_one_call() {
    let mut gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let thinking = phone.send(quiz::THINK, b"200");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_sessions", "", |sessions| sessions == 1.0);
    assert_eq!(operator.kick(8), 0);
    gateway.process.stderr.wait_for("an operator kicked a user");
    gateway.process.signal(Signal::TERM);
    // What was under way is answered before the goodbye.
    assert_eq!(phone.outcome(thinking).unwrap(), "thought about it");
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}
