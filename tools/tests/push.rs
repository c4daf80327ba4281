//! `tide push`, `kick`, `expel`, `stats`, `user` and `room` against a server that records the request.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use operators_http::{Asked, NO_TOKEN, OperatorsHttp, tide};
use refusing_port::RefusingPort;

mod operators_http;
mod refusing_port;

fn token_file(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tide-{}-{name}.token", std::process::id()));
    fs::write(&path, "  secret\n").unwrap();
    path
}

/// Runs `tide` against a server with this answer. Returns the last recorded request, and what `tide` printed.
fn ask(name: &str, arguments: &[&str], input: &[u8], status: &str, body: &str) -> (Asked, Output) {
    let server = OperatorsHttp::start(NO_TOKEN, status, body);
    let token_file = token_file(name);
    let output = tide(arguments, &server.address.to_string(), &token_file, input);
    fs::remove_file(token_file).unwrap();
    assert!(!output.stdout.is_empty() || !output.stderr.is_empty());
    (server.end().pop().expect("it was asked"), output)
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn a_push_posts_raw_bytes_with_the_operators_token() {
    let arguments = ["push", "user", "7", "--type", "12", "hello"];
    let (asked, output) = ask("user", &arguments, b"", "200 OK", r#"{"connections": 2}"#);
    assert_eq!(asked.line, "POST /push/users/7?type=12 HTTP/1.1");
    assert_eq!(asked.authorization, "Bearer secret");
    assert_eq!(asked.body, b"hello");
    assert_eq!(stdout(&output), "went to 2 connections\n", "{}", stderr(&output));
    assert!(output.status.success());
}

#[test]
fn a_room_is_encoded_and_bytes_come_from_standard_input() {
    let arguments = ["push", "room", "a/b c", "--type", "99", "--stdin"];
    let (asked, output) = ask("room", &arguments, &[0, 255], "200 OK", r#"{"connections":0}"#);
    assert_eq!(asked.line, "POST /push/rooms/a%2Fb%20c?type=99 HTTP/1.1");
    assert_eq!(asked.body, [0, 255]);
    assert_eq!(stdout(&output), "went to 0 connections\n", "{}", stderr(&output));
}

#[test]
fn a_push_to_all_takes_a_file_and_can_print_json() {
    let file = token_file("body");
    let file_name = file.to_str().unwrap();
    let arguments = ["push", "all", "--type", "2", "--file", file_name, "--json"];
    let (asked, output) = ask("all", &arguments, b"", "200 OK", r#"{"connections":5}"#);
    assert_eq!(asked.line, "POST /push/all?type=2 HTTP/1.1");
    assert_eq!(asked.body, b"  secret\n");
    assert_eq!(stdout(&output), "{\"connections\":5}\n", "{}", stderr(&output));
    fs::remove_file(file).unwrap();
}

#[test]
fn a_key_and_a_time_to_live_are_parameters() {
    let arguments = ["push", "all", "--type", "2", "--key", "a/b c", "--ttl", "1.5s", "x"];
    let body = r#"{"connections":0,"nobody":"expired"}"#;
    let (asked, output) = ask("key", &arguments, b"", "200 OK", body);
    assert_eq!(asked.line, "POST /push/all?type=2&key=a%2Fb%20c&ttl_ms=1500 HTTP/1.1");
    let said = stdout(&output);
    assert!(said.starts_with("went to 0 connections: its time to live was over"), "{said}");
}

#[test]
fn options_may_stand_before_the_target() {
    let arguments = ["push", "--type", "12", "--json", "user", "7", "hello"];
    let (asked, output) = ask("before", &arguments, b"", "200 OK", r#"{"connections": 2}"#);
    assert_eq!(asked.line, "POST /push/users/7?type=12 HTTP/1.1");
    assert_eq!(stdout(&output), "{\"connections\": 2}\n", "{}", stderr(&output));
}

#[test]
fn a_kick_and_the_views_ask_their_own_paths() {
    let (asked, output) = ask("kick", &["kick", "7"], b"", "200 OK", r#"{"connections":1}"#);
    assert_eq!(asked.line, "POST /users/7/kick HTTP/1.1");
    assert_eq!(stdout(&output), "closed 1 connection\n", "{}", stderr(&output));

    let expel = ["expel", "a/b", "7"];
    let (asked, output) = ask("expel", &expel, b"", "200 OK", r#"{"connections":2}"#);
    assert_eq!(asked.line, "POST /rooms/a%2Fb/expel/7 HTTP/1.1");
    assert_eq!(stdout(&output), "ended 2 memberships\n", "{}", stderr(&output));

    let views = [
        (vec!["stats"], "GET /stats HTTP/1.1"),
        (vec!["user", "7"], "GET /users/7 HTTP/1.1"),
        (vec!["room", "a b"], "GET /rooms/a%20b HTTP/1.1"),
    ];
    for (arguments, line) in views {
        let (asked, output) = ask("view", &arguments, b"", "200 OK", r#"{"a":1}"#);
        assert_eq!(asked.line, line);
        assert_eq!(asked.authorization, "Bearer secret");
        assert_eq!(stdout(&output), "{\n  \"a\": 1\n}\n", "{}", stderr(&output));
    }
}

#[test]
fn a_refusal_shows_what_the_gateway_said() {
    let arguments = ["push", "all", "--type", "2", "x"];
    let refusal = r#"{"error":"no such token"}"#;
    let (_, output) = ask("refused", &arguments, b"", "401 Unauthorized", refusal);
    let said = stderr(&output);
    assert!(said.contains("401 Unauthorized: no such token"), "{said}");
    assert!(said.contains("--token-file"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_error_names_what_is_missing_and_what_to_do() {
    let port = RefusingPort::reserve();
    let address = port.address.to_string();
    let arguments = ["push", "all", "--type", "2", "x"];
    let missing = PathBuf::from("no-such.token");
    let output = tide(&arguments, &address, &missing, b"");
    assert!(stderr(&output).contains("no-such.token"), "{}", stderr(&output));
    assert!(stderr(&output).contains("first start"), "{}", stderr(&output));

    let token_file = token_file("unreachable");
    let output = tide(&arguments, &address, &token_file, b"");
    fs::remove_file(token_file).unwrap();
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
    assert!(stderr(&output).contains("--admin"), "{}", stderr(&output));

    let output = tide(&["push", "all", "x"], &address, &missing, b"");
    assert!(stderr(&output).contains("--type"), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(2));
}
