//! Autobahn's test suite: its client speaks to a server that echoes messages through a wire, on each driver of real sockets.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::*;
use crate::driver::epoll::Epoll;
use crate::driver::uring::{self, Capacity, Uring};

/// How long a connection is read from after its shutdown.
const LINGER: Duration = Duration::from_millis(200);

/// The longest message of the suite has 16 MiB.
const MESSAGE_BYTES_MAX: u32 = 20 << 20;

#[derive(Default)]
struct Connection {
    input: Vec<u8>,
    message: Vec<u8>,
    /// Bytes of the message that are whole characters.
    valid_bytes: usize,
    queue: VecDeque<Bytes>,
    is_busy: bool,
    ends: bool,
    until: Option<Instant>,
}

impl Connection {
    /// Takes parts of messages, each behind its mark.
    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        while let Some((&[mark, a, b, c, d], rest)) = self.input.split_first_chunk() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            let Some(part) = rest.get(..length) else { return };
            self.message.extend_from_slice(part);
            self.input.drain(..5 + length);
            if mark & marks::TEXT != 0 && !self.is_text(mark & marks::LAST != 0) {
                self.queue.push_back(Bytes::from_static(&[marks::CLOSE, 0x03, 0xef]));
                self.ends = true;
                return;
            }
            if mark & marks::LAST != 0 {
                let message = std::mem::take(&mut self.message);
                self.valid_bytes = 0;
                self.queue.push_back([&[mark & marks::TEXT][..], &message].concat().into());
            }
        }
    }

    /// Whether the message is UTF-8 so far.
    fn is_text(&mut self, is_whole: bool) -> bool {
        match std::str::from_utf8(&self.message[self.valid_bytes..]) {
            Ok(text) => self.valid_bytes += text.len(),
            Err(error) if error.error_len().is_none() && !is_whole => {
                self.valid_bytes += error.valid_up_to();
            }
            Err(_) => return false,
        }
        true
    }
}

#[derive(Default)]
struct Echo {
    connections: HashMap<ConnId, Connection>,
    now: Option<Instant>,
}

impl Sink for Echo {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Accepted { conn, .. } => {
                self.connections.insert(conn, Connection::default());
            }
            Event::Received { conn, bytes } => {
                let connection = self.connections.get_mut(&conn).unwrap();
                if !connection.ends {
                    connection.receive(bytes);
                }
            }
            Event::Sent { conn, .. } => self.connections.get_mut(&conn).unwrap().is_busy = false,
            Event::Failed { conn, .. } | Event::Ended { conn } => {
                self.connections.get_mut(&conn).unwrap().ends = true;
            }
            Event::Closed { conn, .. } => drop(self.connections.remove(&conn)),
            _ => {}
        }
    }

    fn idle_for(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    fn woken(&mut self, now: Instant) {
        self.now = Some(now);
    }
}

fn serve(driver: impl Driver, stop: &AtomicBool) {
    let settings = Settings {
        message_bytes_max: MESSAGE_BYTES_MAX,
        marks_messages: true,
        ..settings(WireKind::WEBSOCKET)
    };
    let mut driver = Wired::new(driver, settings);
    let mut echo = Echo::default();
    while !stop.load(Ordering::Relaxed) {
        driver.poll(&mut echo).unwrap();
        let now = echo.now.unwrap();
        for (&conn, connection) in &mut echo.connections {
            while !connection.is_busy
                && let Some(message) = connection.queue.pop_front()
            {
                connection.is_busy = driver.send(conn, message) == SendState::UnderWay;
            }
            let is_done = connection.ends && connection.queue.is_empty() && !connection.is_busy;
            match connection.until {
                None if is_done => {
                    driver.shutdown(conn);
                    connection.until = Some(now + LINGER);
                }
                Some(until) if until <= now => driver.close(conn),
                _ => {}
            }
        }
    }
}

/// Prints how each case went. Says which did not go as they have to.
fn report(agent: &str, results: &Value) -> Vec<String> {
    let cases: BTreeMap<Vec<u32>, &Value> = results[agent]
        .as_object()
        .unwrap()
        .iter()
        .map(|(case, result)| (case.split('.').map(|part| part.parse().unwrap()).collect(), result))
        .collect();
    let mut failed = Vec::new();
    let mut sums = BTreeMap::<String, usize>::new();
    for (case, result) in cases {
        let case = case.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        let verdict = format!("{}, close {}", result["behavior"], result["behaviorClose"]);
        println!("{agent:16} {case:8} {verdict}");
        let is_good =
            |key: &str| matches!(result[key].as_str(), Some("OK" | "NON-STRICT" | "INFORMATIONAL"));
        if !is_good("behavior") || !is_good("behaviorClose") {
            failed.push(format!("{agent}: {case}: {verdict}"));
        }
        *sums.entry(verdict).or_default() += 1;
    }
    println!("{agent}: {sums:?}");
    failed
}

#[test]
#[ignore = "takes minutes, and Autobahn's client in Python 2: scripts/autobahn runs it"]
fn autobahns_cases_pass_on_both_drivers() {
    let client = std::env::var("AUTOBAHN").expect("AUTOBAHN names the suite's program wstest");
    let cases = std::env::var("CASES").unwrap_or_else(|_| "*".to_owned());
    let directory = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut servers = Vec::new();
    let mut threads = Vec::new();
    for agent in ["epoll", "uring"] {
        if agent == "uring" && uring::probe().is_err() {
            println!("io_uring is not allowed here, and not tested");
            continue;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        servers.push(json!({ "agent": agent, "url": url, "protocols": ["tidegate.v1"] }));
        let stop = Arc::clone(&stop);
        threads.push(thread::spawn(move || match agent {
            "epoll" => serve(Epoll::new(vec![listener]).unwrap(), &stop),
            _ => {
                let capacity = Capacity { connections: 100, files_each: 100 };
                serve(Uring::new(vec![listener], capacity).unwrap(), &stop);
            }
        }));
    }
    let agents: Vec<_> =
        servers.iter().map(|server| server["agent"].as_str().unwrap().to_owned()).collect();
    let specification = json!({
        "outdir": directory.path().join("reports"),
        "servers": servers,
        "cases": cases.split(',').collect::<Vec<_>>(),
        // Compression, which the gateway does not offer.
        "exclude-cases": ["12.*", "13.*"],
        "exclude-agent-cases": {},
    });
    let file = directory.path().join("fuzzingclient.json");
    std::fs::write(&file, specification.to_string()).unwrap();
    let ended =
        Command::new(client).args(["-m", "fuzzingclient", "-s"]).arg(&file).output().unwrap();
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let index =
        std::fs::read(directory.path().join("reports/index.json")).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr));
        });
    let results: Value = serde_json::from_slice(&index).unwrap();
    let failed: Vec<_> = agents.iter().flat_map(|agent| report(agent, &results)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}
