//! The phases of a drain as operators see them: `/readyz`, `/stats`, signals and `tide drain`.

use std::process::Command;

use tidegate_tests::phone::quiz;
use tidegate_tests::process::Process;
use tidegate_tests::programs::programs;
use tidegate_tests::{Code, Gateway, Operator, Setup, until};

/// A time that no test waits for, in milliseconds.
const LONG_MS: u32 = 600_000;

/// Waits until operators see this phase.
fn wait_for_phase(operator: &Operator, phase: &str) {
    until(phase, || (operator.json("/stats")["gateway"]["drain"]["phase"] == phase).then_some(()));
}

/// Arguments of `tide drain`.
fn drain_arguments(gateway: &Gateway, more: &[&str]) -> Vec<String> {
    let arguments = ["drain", "--admin"].map(str::to_owned).into_iter();
    let arguments = arguments.chain([gateway.operators().to_string()]);
    arguments.chain(more.iter().map(|&argument| argument.to_owned())).collect()
}

/// Starts `tide drain`, and does not wait for its end.
fn begin_tide(gateway: &Gateway, more: &[&str]) -> Process {
    let mut command = Command::new(&programs().tide);
    command.args(drain_arguments(gateway, more)).current_dir(gateway.folder());
    Process::start(&mut command, "")
}

#[test]
fn a_gateway_in_its_time_of_grace_is_not_ready_and_serves_new_clients() {
    for driver in ["epoll", "auto"] {
        let mut gateway = Setup::demo()
            .shards(2)
            .set("driver", format!("\"{driver}\""))
            .set("shutdown.ready_grace_ms", LONG_MS)
            .start();
        let operator = gateway.operator();
        let mut early = gateway.login(7);
        assert_eq!(operator.json("/stats")["gateway"]["drain"], serde_json::Value::Null);
        gateway.terminate();
        let refused = until("it is not ready", || {
            let (status, body) = operator.get("/readyz");
            (status == 503).then_some(body)
        });
        assert!(refused.contains("\"draining\""), "{refused}");
        wait_for_phase(&operator, "grace");
        operator.wait_for_metric("tidegate_drain_phase", "", |sum| sum == 2.0);
        // A balancer that has not noticed yet sends more.
        let mut late = gateway.login(8);
        early.assert_is_served();
        late.assert_is_served();
        assert_eq!(operator.metric("tidegate_connections_closed_total", "draining"), Some(0.0));
        // The second signal hurries.
        gateway.terminate();
        for phone in [&mut early, &mut late] {
            phone.goodbye(Code::Draining);
        }
        drop((early, late));
        assert_eq!(gateway.process.wait().code(), Some(0));
        let said = gateway.process.stdout.all();
        assert!(said.contains("hurrying") && said.contains("stopped"), "{said}");
    }
}

#[test]
fn a_hurry_does_not_wait_for_an_answer_for_the_whole_drain() {
    let setup = Setup::quiz().set("shutdown.drain_timeout_ms", LONG_MS);
    let mut gateway = setup.quiz_times_out_after_ms(LONG_MS).start();
    let mut phone = gateway.login(7);
    phone.send(quiz::WAIT, b"");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    gateway.terminate();
    wait_for_phase(&operator, "answers");
    gateway.terminate();
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn tide_drain_prints_a_line_for_each_phase_and_waits_for_the_end() {
    let mut gateway = Setup::demo().set("shutdown.ready_grace_ms", LONG_MS).start();
    let mut phone = gateway.login(7);
    let mut watching = begin_tide(&gateway, &[]);
    watching
        .stdout
        .wait_for("grace (/readyz says no, the gateway still accepts): 1 connection left");
    phone.assert_is_served();
    // The first signal after an operator's drain hurries nothing: a service manager sends it after its hook.
    gateway.terminate();
    gateway.process.stdout.wait_for("draining already; the next signal hurries");
    phone.assert_is_served();
    assert!(watching.is_running());
    let arguments = drain_arguments(&gateway, &["--hurry"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (status, said, log) = std::thread::scope(|scope| {
        let hurry = scope.spawn(|| gateway.tide(&arguments, ""));
        phone.goodbye(Code::Draining);
        drop(phone);
        hurry.join().unwrap()
    });
    assert!(status.success() && said.contains("the gateway has ended"), "{said}\n{log}");
    assert!(watching.wait().success());
    let said = watching.stdout.all();
    assert!(said.lines().last().unwrap() == "the gateway has ended", "{said}");
    // One line for each phase that it has seen.
    assert_eq!(said.matches("grace (").count(), 1, "{said}");
    assert!(!said.contains('\u{1b}') && said.matches("answers (").count() <= 1, "{said}");
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn tide_drain_can_leave_at_once() {
    let mut gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    let arguments = drain_arguments(&gateway, &["--no-wait"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (status, said, log) = gateway.tide(&arguments, "");
    assert!(status.success(), "{log}");
    assert_eq!(said, "the gateway drains, with 1 connection\n");
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
    let said = gateway.process.stdout.all();
    assert!(said.contains("the next signal changes nothing, and one more hurries"), "{said}");
}

#[test]
fn tide_drain_shows_a_bar_on_a_terminal() {
    let mut gateway = Setup::demo().set("shutdown.ready_grace_ms", LONG_MS).start();
    let mut phone = gateway.login(7);
    let tide = programs().tide.display().to_string();
    let line: Vec<_> = std::iter::once(tide)
        .chain(drain_arguments(&gateway, &[]))
        .map(|word| format!("'{word}'"))
        .collect();
    // script(1) provides a terminal.
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    script.current_dir(gateway.folder()).env("SHELL", "/bin/sh").env("TERM", "xterm");
    let mut watching = Process::start(&mut script, "");
    watching.stdout.wait_for("[            ] grace: 1 connection left");
    assert_eq!(gateway.operator().post("/drain?hurry=true", b"").0, 200);
    phone.goodbye(Code::Draining);
    drop(phone);
    assert!(watching.wait().success());
    let said = watching.stdout.all();
    assert!(said.contains("the gateway has ended"), "{said}");
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn only_an_operator_drains_over_http() {
    let gateway = Setup::demo().start();
    let stranger = Operator::new(gateway.operators(), "wrong");
    assert_eq!(stranger.post("/drain", b"").0, 401);
    let operator = gateway.operator();
    for (path, code) in [("/drain?hurry=soon", 400), ("/drain?slowly=true", 400)] {
        assert_eq!(operator.post(path, b"").0, code, "{path}");
    }
    assert_eq!(operator.post("/drain", b"now").0, 400, "it takes no body");
    assert_eq!(operator.get("/drain").0, 405);
    gateway.login(7).assert_is_served();
    assert_eq!(operator.get("/readyz").0, 200);
}
