//! The readers of the gateway's standard streams may be slow, gone, or out of space. Clients are served as before,
//! lost lines are counted, and a drain ends as usual.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::net::UnixDatagram;

use rustix::process::Signal;
use tidegate_tests::phone::{demo, quiz};
use tidegate_tests::process::Sink;
use tidegate_tests::{Code, Gateway, Setup, until};

const DROPPED: &str = "tidegate_log_lines_dropped_total";

/// The number of clients; `OUTPUT_CLIENTS` sets another one.
fn clients() -> u64 {
    std::env::var("OUTPUT_CLIENTS").map_or(20, |count| count.parse().unwrap())
}

/// Clients log in and send requests; an operator pushes, reads metrics and kicks (which is logged); a handler panics;
/// the gateway drains. All must work whatever happens to the streams.
fn run_with_clients(mut gateway: Gateway, look: impl FnOnce(&Gateway)) {
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
        buggy.wait_for_goodbye();
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

/// A gateway with this log filter and log format.
fn setup(filter: &str, format: &str) -> Setup {
    Setup::quiz().shards(2).set("log.filter", filter).set("log.format", format)
}

/// Waits until lines of a stream are dropped for this reason.
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
fn clients_are_served_when_the_reader_of_the_log_is_gone() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "text").stderr(Sink::ReaderGone).start();
        run_with_clients(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn clients_are_served_when_the_log_is_on_a_full_disk() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "json").stderr(Sink::DiskFull).start();
        run_with_clients(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn clients_are_served_when_the_log_has_the_maximal_file_size() {
    for filter in ["info", "debug"] {
        let gateway = setup(filter, "text").stderr(Sink::FileLimit).start();
        run_with_clients(gateway, |gateway| expect_drops(gateway, "stderr", "write_failed"));
    }
}

#[test]
fn clients_are_served_when_the_reader_of_the_log_does_not_read() {
    // At the level info the log of this test fits into the queue.
    run_with_clients(setup("info", "text").stderr(Sink::PipeFull).start(), |_| {});
    run_with_clients(setup("trace", "text").stderr(Sink::PipeFull).start(), |gateway| {
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
fn clients_are_served_when_standard_error_is_closed() {
    for filter in ["info", "debug"] {
        run_with_clients(setup(filter, "text").stderr(Sink::Closed).start(), |_| {});
    }
}

#[test]
fn clients_are_served_when_standard_output_cannot_be_written() {
    for filter in ["info", "debug"] {
        run_with_clients(setup(filter, "text").stdout(Sink::PipeFull).start(), |_| {});
        run_with_clients(setup(filter, "text").stdout(Sink::Closed).start(), |_| {});
        for sink in [Sink::ReaderGone, Sink::DiskFull, Sink::FileLimit] {
            let gateway = setup(filter, "text").stdout(sink).start();
            run_with_clients(gateway, |gateway| expect_drops(gateway, "stdout", "write_failed"));
        }
    }
    // Both streams at once, as with one log shipper for both.
    let both = setup("debug", "text").stdout(Sink::PipeFull).stderr(Sink::PipeFull);
    run_with_clients(both.start(), |_| {});
}

#[test]
fn a_reader_that_resumes_gets_the_number_of_lost_lines() {
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
    let reported: f64 = log
        .lines()
        .filter(|line| line.contains("lines were dropped"))
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["level"], &line["stream"]), (&"ERROR".into(), &"stderr".into()));
            line["lines"].as_f64().unwrap()
        })
        .sum();
    assert!(reported > 0.0);
    // No line is cut: each line is JSON, except those that filled the pipe.
    for line in log.lines().filter(|line| *line != "x") {
        serde_json::from_str::<serde_json::Value>(line).expect(line);
    }
}

#[test]
fn the_exit_status_of_a_failed_start_does_not_depend_on_the_readers() {
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
fn a_third_signal_ends_the_process_whatever_its_readers_do() {
    for sink in [Sink::ReaderGone, Sink::PipeFull] {
        let mut gateway = setup("trace", "text").stdout(sink).stderr(sink).start();
        // This client does not close, so the gateway lingers.
        let mut phone = gateway.login(7);
        gateway.terminate();
        phone.wait_for_goodbye();
        // The kernel may merge signals that are pending together.
        until("the gateway has ended", || {
            gateway.terminate();
            (!gateway.process.is_running()).then_some(())
        });
        assert_eq!(gateway.process.wait().code(), Some(130), "{sink:?}");
    }
}

#[test]
fn log_lines_that_clients_cause_are_rate_limited() {
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
    // One line in ten seconds per cause, and for panics one per worker; on a slow machine a few more.
    assert!((1..30).contains(&lines("an answer is too long for a frame")), "{log}");
    assert!((1..30).contains(&lines("panicked: a handler with a bug")), "{log}");
    assert!((1..60).contains(&lines("a handler panicked; its call is answered")), "{log}");
}

#[test]
fn a_service_manager_that_does_not_read_does_not_delay_a_drain() {
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
fn a_program_that_links_the_gateway_gets_log_metrics_and_drain_from_one_call() {
    let mut gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let thinking = phone.send(quiz::THINK, b"200");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_sessions", "", |sessions| sessions == 1.0);
    assert_eq!(operator.kick(8), 0);
    gateway.process.stderr.wait_for("an operator kicked a user");
    gateway.process.signal(Signal::TERM);
    // The call in flight is answered before the goodbye.
    assert_eq!(phone.outcome(thinking).unwrap(), "thought about it");
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}
