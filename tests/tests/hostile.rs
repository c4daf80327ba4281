//! The operators' HTTP while hostile connections try to block it.
//!
//! `TIDEGATE_HOSTILE=1000 cargo test --release -p tidegate-tests --test hostile -- --nocapture` measures: it holds
//! 1,000 connections of each kind, prints how long the slowest answer took, and fails if it took longer than
//! a second. Without the variable no time is asserted.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tidegate_tests::hostile::{HostileConnections, Kind};
use tidegate_tests::{Gateway, Setup, TIMEOUT};

/// Hostile connections of each kind in a test: as many as its descriptors allow.
const HOSTILE: usize = 100;

/// How often each path is requested meanwhile.
const REQUESTS: usize = 10;

/// The slowest answer that a measurement accepts.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Hostile connections of each kind in a measurement. `None`: this run is a test.
fn measured() -> Option<usize> {
    let count = std::env::var("TIDEGATE_HOSTILE").ok()?;
    Some(count.parse().expect("TIDEGATE_HOSTILE is a number"))
}

fn token(gateway: &Gateway) -> String {
    fs::read_to_string(gateway.folder().join(".tidegate/admin.token")).unwrap().trim().to_owned()
}

/// Sends bytes to the operators' HTTP on a new connection. Returns the whole answer.
fn exchange(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.operators()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(gateway: &Gateway, path: &str, token: &str) -> String {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    exchange(gateway, head.as_bytes())
}

/// Requests health and metrics several times. Returns how long the slowest answer took.
fn slowest_answer(gateway: &Gateway, token: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..REQUESTS {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let began = Instant::now();
            let answer = get(gateway, path, token);
            slowest = slowest.max(began.elapsed());
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer:?}");
            assert!(
                path != "/metrics" || answer.contains("\ntidegate_connections{"),
                "the whole page arrives"
            );
        }
    }
    slowest
}

#[test]
fn health_and_metrics_are_answered_despite_hostile_connections() {
    let gateway = Setup::demo().start();
    let token = token(&gateway);
    let mut too_slow = Vec::new();
    let mut phone = gateway.login(7);
    for kind in Kind::ALL {
        let count = measured().unwrap_or(HOSTILE);
        let hostile = HostileConnections::new(kind, count, gateway.operators(), &token);
        let slowest = slowest_answer(&gateway, &token);
        phone.assert_is_served();
        println!("{kind:?}: {slowest:?}, {} connections made", hostile.made());
        if slowest > ANSWERED_WITHIN {
            too_slow.push((kind, slowest));
        }
    }
    assert!(measured().is_none() || too_slow.is_empty(), "too slow: {too_slow:?}");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_operator_connections_closed_total", "evicted", |n| n > 0.0);
    let malformed = |n| n > 0.0;
    operator.wait_for_metric("tidegate_operator_connections_closed_total", "malformed", malformed);
}

#[test]
fn malformed_requests_get_a_specific_error() {
    let gateway = Setup::demo().start();
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], "HTTP/1.1 400 "),
        (b"GET\r\n\r\n", "HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "HTTP/1.1 400 "),
        (&[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 20_000][..], b"\r\n\r\n"].concat(), "HTTP/1.1 431 "),
        (&[b"GET / HTTP/1.1\r\n", &b"X: y\r\n".repeat(100)[..], b"\r\n"].concat(), "HTTP/1.1 431 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (b"GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200 "),
    ] {
        let answer = exchange(&gateway, bytes);
        assert!(answer.starts_with(status) && answer.is_empty() == status.is_empty(), "{answer:?}");
    }
}

#[test]
fn a_connection_that_stalls_in_its_request_or_does_not_read_is_closed() {
    let gateway = Setup::demo().start();
    let token = token(&gateway);
    let connect = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.operators()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut silent = connect(b"");
    let mut half = connect(b"GET /healthz HTTP/1.1\r\nHo");
    let guarded =
        |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    let mut idle = connect(guarded("/users/7").as_bytes());
    // Far more answers than the kernel buffers.
    let _never_reads = connect(guarded("/metrics").repeat(1000).as_bytes());
    let operator = gateway.operator();
    let cut = "tidegate_operator_connections_closed_total";
    operator.wait_for_metric(cut, "write_timeout", |n| n == 1.0);
    operator.wait_for_metric(cut, "head_timeout", |n| n == 2.0);
    operator.wait_for_metric(cut, "idle", |n| n >= 1.0);
    let mut answers = Vec::new();
    silent.read_to_end(&mut answers).unwrap();
    half.read_to_end(&mut answers).unwrap();
    assert_eq!(answers, b"", "a head that stalls is not answered");
    idle.read_to_end(&mut answers).unwrap();
    assert!(answers.starts_with(b"HTTP/1.1 200 ") && answers.ends_with(b"}"));
}
