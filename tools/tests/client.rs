//! `tide client` as a script uses it: commands in, lines and an exit status out.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Output, Stdio};

use gateway::{Gateway, KICK, LATE, LIMITED, SILENT};
use refusing_port::RefusingPort;

mod gateway;
mod refusing_port;

fn tide(address: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tide"))
        .args(["client", "--user", "7", "--connect", address])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a script to its end.
fn run(address: &str, more: &[&str], script: &str) -> Output {
    let mut child = tide(address, more);
    // A client that could not log in reads nothing and closes the pipe, which is no error here.
    let _closed = child.stdin.take().unwrap().write_all(script.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> Vec<&str> {
    std::str::from_utf8(&output.stdout).unwrap().lines().collect()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_script_gets_its_answers_in_order_and_pushes_as_they_come() {
    let gateway = Gateway::start();
    let script = "# a comment\necho hello\n\njoin quiz\nsay quiz hi there\nsend 1 hex:ff00\n";
    let output = run(&gateway.address.to_string(), &["--demo-token"], script);
    let wanted = [
        "ok echo: hello",
        "joined quiz at #30",
        "ok join quiz",
        "push quiz #31 user 9: hi there",
        "ok say quiz",
        "ok send 1: hex:ff00",
    ];
    assert_eq!(stdout(&output), wanted, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("login user 7, session 0000000000000005, heartbeat every 20ms")
    );
    assert!(output.status.success());
}

#[test]
fn a_failed_command_fails_the_script_but_does_not_stop_it() {
    let gateway = Gateway::start();
    let script = format!("send {LIMITED} x\njion quiz\nsend 99 x\necho still here\nping");
    let output = run(&gateway.address.to_string(), &["--demo-token"], &script);
    let lines = stdout(&output);
    assert_eq!(
        lines[..4],
        [
            "failed send 50: 103 RATE_LIMITED, try again in 250ms",
            "failed there is no command \"jion\"; \"help\" lists them",
            "failed send 99: 105 NO_ROUTE",
            "ok echo: still here",
        ]
    );
    assert!(lines[4].starts_with("ok ping: "), "{}", lines[4]);
    assert!(stderr(&output).contains("3 commands failed"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_request_without_an_answer_times_out() {
    let gateway = Gateway::start();
    let script = format!("send {SILENT} x\necho after\nquit\necho never\n");
    let more = ["--demo-token", "--timeout", "300ms"];
    let output = run(&gateway.address.to_string(), &more, &script);
    assert_eq!(stdout(&output), ["failed send 52: no answer within 300ms", "ok echo: after"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reconnect_resumes_each_room_and_reports_what_is_missing() {
    let gateway = Gateway::start();
    let script =
        format!("join quiz\nsay quiz one\nsend {KICK} x\necho lost\nreconnect\necho back\n");
    let output = run(&gateway.address.to_string(), &["--demo-token"], &script);
    let wanted = [
        "joined quiz at #30",
        "ok join quiz",
        "push quiz #31 user 9: one",
        "ok say quiz",
        "ok send 51",
        "failed echo: not logged in; \"reconnect\" tries again",
        "joined quiz at #33",
        "gap in quiz: pushes are missing",
        "push quiz #33 user 9: since 31",
        "ok echo: back",
    ];
    assert_eq!(stdout(&output), wanted, "{}", stderr(&output));
    assert!(stderr(&output).contains("goodbye 107 REPLACED"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn watching_continues_after_the_input_and_sends_heartbeats() {
    let gateway = Gateway::start();
    let mut child = tide(
        &gateway.address.to_string(),
        &["--demo-token", "--watch", "forever", "--retries", "0"],
    );
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "send {LATE} x").unwrap();
    drop(input);
    gateway.release();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), ["ok send 53", "push type 53: late"], "{}", stderr(&output));
    assert!(stderr(&output).contains("the gateway closed the connection"));
    assert_eq!(output.status.code(), Some(1));
}

/// Reads one line of the script's output, and closes it then.
fn read_one_line(address: &str, script: &str) -> Output {
    let mut child = tide(address, &["--demo-token", "--watch", "forever"]);
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    writeln!(input, "echo hello").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "ok echo: hello");
    drop(lines);
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    child.wait_with_output().unwrap()
}

#[test]
fn a_script_whose_output_is_closed_runs_to_its_end_and_does_not_watch() {
    let gateway = Gateway::start();
    let address = gateway.address.to_string();
    let output = read_one_line(&address, "echo again\njoin quiz\n");
    assert!(!stderr(&output).contains("standard output"), "{}", stderr(&output));
    assert!(output.status.success());
    let output = read_one_line(&address, &format!("echo again\nsend {LIMITED} x\necho more\n"));
    assert!(stderr(&output).contains("1 command failed"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_failed_login_shows_the_reason_and_a_hint() {
    let gateway = Gateway::start();
    let output = run(&gateway.address.to_string(), &["--token", "wrong"], "echo hello\n");
    assert_eq!(stdout(&output), [""; 0]);
    assert!(stderr(&output).contains("failed login of user 7: 100 UNAUTHENTICATED"));
    assert!(stderr(&output).contains("--key-file"));
    assert!(stderr(&output).contains("--demo-token"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_a_gateway_the_error_names_the_address() {
    let port = RefusingPort::reserve();
    let address = port.address.to_string();
    let output = run(&address, &["--demo-token"], "");
    let said = stderr(&output);
    assert!(said.contains(&format!("no gateway listens on {address}")), "{said}");
    assert!(said.contains("--connect"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
