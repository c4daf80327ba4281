//! The operators' HTTP while others do what they can to keep operators from it.
//!
//! `TIDEGATE_HOSTILE=1000 cargo test --release -p tidegate-tests --test hostile -- --nocapture` holds so many
//! connections of each kind, and tells how long the slowest answer took.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tidegate_tests::hostile::{Herd, Kind};
use tidegate_tests::{Gateway, PATIENCE, Setup};

/// Hostile connections of each kind: as many as fit into a test's descriptors.
const HOSTILE: usize = 100;

/// How often each is asked while they are held.
const ASKS: usize = 10;

fn hostile() -> usize {
    let count = std::env::var("TIDEGATE_HOSTILE").ok();
    count.map_or(HOSTILE, |count| count.parse().expect("TIDEGATE_HOSTILE is a number"))
}

fn token(gateway: &Gateway) -> String {
    fs::read_to_string(gateway.folder().join(".tidegate/admin.token")).unwrap().trim().to_owned()
}

/// What the operators' HTTP says to these bytes, on a connection of their own.
fn say(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.operators()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(gateway: &Gateway, path: &str, token: &str) -> String {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    say(gateway, head.as_bytes())
}

/// Asks for health and for metrics as often as it takes to trust the answer. Returns the slowest.
fn slowest(gateway: &Gateway, token: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..ASKS {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let began = Instant::now();
            let answer = get(gateway, path, token);
            slowest = slowest.max(began.elapsed());
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer:?}");
            assert!(path != "/metrics" || answer.contains("\ntidegate_connections{"), "all of it");
        }
    }
    slowest
}

#[test]
fn health_and_metrics_are_answered_whatever_others_do() {
    let gateway = Setup::demo().start();
    let token = token(&gateway);
    let mut phone = gateway.login(7);
    for kind in Kind::ALL {
        let herd = Herd::new(kind, hostile(), gateway.operators(), &token);
        let slowest = slowest(&gateway, &token);
        phone.is_served();
        println!("{kind:?}: {slowest:?}, {} connections made", herd.made());
    }
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_operator_connections_cut_total", "evicted", |n| n > 0.0);
    let malformed = |n| n > 0.0;
    operator.wait_for_metric("tidegate_operator_connections_cut_total", "malformed", malformed);
}

#[test]
fn a_request_that_is_none_is_told_so() {
    let gateway = Setup::demo().start();
    for (bytes, said) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], "HTTP/1.1 400 "),
        (b"GET\r\n\r\n", "HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "HTTP/1.1 400 "),
        (&[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 20_000][..], b"\r\n\r\n"].concat(), "HTTP/1.1 431 "),
        (&[b"GET / HTTP/1.1\r\n", &b"X: y\r\n".repeat(100)[..], b"\r\n"].concat(), "HTTP/1.1 431 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (b"GET /healthz HTTP/1.0\r\n\r\n", "HTTP/1.0 200 "),
    ] {
        let answer = say(&gateway, bytes);
        assert!(answer.starts_with(said) && answer.is_empty() == said.is_empty(), "{answer:?}");
    }
}

#[test]
fn who_sends_no_whole_head_or_reads_no_answer_is_ended() {
    let gateway = Setup::demo().start();
    let token = token(&gateway);
    let connect = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.operators()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut silent = connect(b"");
    let mut half = connect(b"GET /healthz HTTP/1.1\r\nHo");
    let mut idle = connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    let asks = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    // Far more than the kernel keeps for who reads nothing.
    let _deaf = connect(asks.repeat(1000).as_bytes());
    let operator = gateway.operator();
    let cut = "tidegate_operator_connections_cut_total";
    operator.wait_for_metric(cut, "write_timeout", |n| n == 1.0);
    operator.wait_for_metric(cut, "head_timeout", |n| n == 2.0);
    operator.wait_for_metric(cut, "idle", |n| n >= 1.0);
    let mut said = Vec::new();
    silent.read_to_end(&mut said).unwrap();
    half.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"", "a head that stalls is not answered");
    idle.read_to_end(&mut said).unwrap();
    assert!(said.ends_with(b"ok\n"));
}
