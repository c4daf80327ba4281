use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_backend::publisher::{PushError, RoomId, Target, UserId};

use super::*;
use crate::control::{ConnectionInfo, Reply, RoomInfo, ShardInfo, UserInfo};

const BODY_BYTES_MAX: usize = 1000;

/// A gateway with one user (7), one room ("lobby/eu") and two shards.
#[derive(Default)]
struct Fake {
    draining: AtomicBool,
    refusal: Mutex<Option<PushError>>,
    /// Answers that never come.
    stalled: Mutex<Option<Vec<oneshot::Sender<u64>>>>,
    pushed: Mutex<Vec<(Target, i32, Bytes)>>,
    kicked: Mutex<Vec<UserId>>,
}

fn reply<T>(value: T) -> Reply<T> {
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(value).is_ok());
    receiver
}

impl Fake {
    fn command(&self) -> Result<Reply<u64>, PushError> {
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            return Err(refusal);
        }
        if let Some(stalled) = &mut *self.stalled.lock().unwrap() {
            let (sender, receiver) = oneshot::channel();
            stalled.push(sender);
            return Ok(receiver);
        }
        Ok(reply(2))
    }
}

impl Control for Fake {
    fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    fn push(&self, target: Target, kind: i32, biz_data: Bytes) -> Result<Reply<u64>, PushError> {
        self.pushed.lock().unwrap().push((target, kind, biz_data));
        self.command()
    }

    fn kick(&self, user_id: UserId) -> Result<Reply<u64>, PushError> {
        self.kicked.lock().unwrap().push(user_id);
        self.command()
    }

    fn user(&self, user_id: UserId) -> Reply<UserInfo> {
        let connection = ConnectionInfo { session_id: "2a".into(), shard: 1 };
        let connections = if user_id == 7 { vec![connection] } else { Vec::new() };
        reply(UserInfo { user_id, connections })
    }

    fn room(&self, room: RoomId) -> Reply<Option<RoomInfo>> {
        if room.as_str() == "gone" {
            return oneshot::channel().1;
        }
        let known = ["lobby/eu", "*"].contains(&room.as_str());
        let room = room.to_string();
        let info = RoomInfo { room, members: 3, last_offset: 9, first_offset: 4, log_bytes: 60 };
        reply(known.then_some(info))
    }

    fn stats(&self) -> Vec<Reply<ShardInfo>> {
        let shard = |shard| ShardInfo { shard, connections: 5, rooms: 1, ..ShardInfo::default() };
        vec![reply(shard(0)), reply(shard(1))]
    }
}

struct Bed {
    server: AdminServer,
    fake: Arc<Fake>,
    token: String,
    _folder: TempDir,
}

struct Answered {
    status: u16,
    head: String,
    body: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }

    /// The error's text, of an answer with this status.
    #[track_caller]
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = AdminConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            token_file: folder.path().join("admin.token"),
            body_bytes_max: BODY_BYTES_MAX,
        };
        let fake = Arc::<Fake>::default();
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("tidegate_tests").increment(4);
        });
        let control = Arc::clone(&fake) as Arc<dyn Control>;
        let timeout = Duration::from_millis(300);
        let server = serve_with(&config, control, recorder.handle(), timeout).unwrap();
        let token = std::fs::read_to_string(&config.token_file).unwrap().trim().to_owned();
        Self { server, fake, token, _folder: folder }
    }

    fn raw(&self, text: &[u8]) -> Answered {
        let mut stream = TcpStream::connect(self.server.local_addr()).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answered { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn ask_as(&self, token: Option<&str>, method: &str, path: &str, body: &[u8]) -> Answered {
        let access =
            token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{access}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn get(&self, path: &str) -> Answered {
        self.ask_as(Some(&self.token), "GET", path, b"")
    }

    fn post(&self, path: &str, body: &[u8]) -> Answered {
        self.ask_as(Some(&self.token), "POST", path, body)
    }
}

#[test]
fn health_and_the_page_need_no_token() {
    let bed = Bed::new();
    let open = |path| bed.ask_as(None, "GET", path, b"");
    assert_eq!(open("/healthz").status, 200);
    assert_eq!(open("/readyz").status, 200);
    let page = open("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/html") && page.head.contains("content-security-policy"));
    assert!(page.body.contains("<title>Tidegate</title>"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "self-contained");

    bed.fake.draining.store(true, Ordering::Relaxed);
    assert_eq!(open("/healthz").status, 200);
    let draining = open("/readyz");
    assert!(draining.error(503).contains("draining"));
    assert!(draining.head.contains("retry-after: 1"));
}

#[test]
fn everything_else_needs_the_token() {
    let bed = Bed::new();
    let wrong = "0".repeat(64);
    let guarded = [
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("GET", "/users/7"),
        ("GET", "/rooms/x"),
        ("POST", "/users/7/kick"),
        ("POST", "/push/users/7?type=1"),
        ("POST", "/push/rooms/x?type=1"),
        ("POST", "/push/all?type=1"),
    ];
    for (method, path) in guarded {
        for token in [None, Some(""), Some("x"), Some(&*wrong), Some(&bed.token[1..])] {
            let answer = bed.ask_as(token, method, path, b"");
            assert!(answer.error(401).contains("admin.token_file"), "{method} {path}");
            assert!(answer.head.contains("www-authenticate: bearer"));
        }
    }
    assert!(bed.fake.pushed.lock().unwrap().is_empty());
    assert!(bed.fake.kicked.lock().unwrap().is_empty());
    let lower = format!(
        "GET /stats HTTP/1.1\r\nConnection: close\r\nHost: x\r\nauthorization: bearer {}\r\n\r\n",
        bed.token
    );
    assert_eq!(bed.raw(lower.as_bytes()).status, 200);
}

#[test]
fn pushes_and_kicks_reach_the_gateway() {
    let bed = Bed::new();
    let reached = json!({ "connections": 2 });
    let binary = [0, 255, 10, 13];
    assert_eq!(bed.post("/push/users/18446744073709551615?type=9", &binary).json(), reached);
    assert_eq!(bed.post("/push/rooms/lobby%2Feu%20%C3%A9?type=2147483647", b"x").json(), reached);
    assert_eq!(bed.post("/push/all?type=1", b"").json(), reached);
    assert_eq!(bed.post("/users/7/kick", b"").json(), reached);
    let room = |id| Target::Room(RoomId::new(id).unwrap());
    let expected = [
        (Target::User(u64::MAX), 9, Bytes::copy_from_slice(&binary)),
        (room("lobby/eu \u{e9}"), i32::MAX, "x".into()),
        (Target::Room(RoomId::everybody()), 1, Bytes::new()),
    ];
    assert_eq!(*bed.fake.pushed.lock().unwrap(), expected);
    assert_eq!(*bed.fake.kicked.lock().unwrap(), [7]);
}

#[test]
fn lookups_and_figures_are_answered() {
    let bed = Bed::new();
    let user = bed.get("/users/7").json();
    assert_eq!(user["connections"][0], json!({ "session_id": "2a", "shard": 1 }));
    assert_eq!(bed.get("/users/8").json(), json!({ "user_id": 8, "connections": [] }));
    assert_eq!(bed.get("/rooms/lobby%2Feu").json()["members"], 3);
    assert_eq!(bed.get("/rooms/*").json()["room"], "*");
    let stats = bed.get("/stats").json();
    assert_eq!((&stats["ready"], &stats["totals"]["connections"]), (&json!(true), &json!(10)));
    assert_eq!(stats["shards"][1]["shard"], 1);
    let metrics = bed.get("/metrics");
    assert!(metrics.head.contains("text/plain; version=0.0.4"));
    assert!(metrics.body.contains("tidegate_tests 4"));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() {
    let bed = Bed::new();
    assert!(bed.get("/users/bob").error(400).contains("\"bob\" is no user id"));
    assert!(bed.get("/rooms/nowhere").error(404).contains("there is no room \"nowhere\""));
    assert!(bed.get("/nothing").error(404).contains("/nothing"));
    assert!(bed.post("/stats", b"").error(405).contains("POST"));
    assert!(bed.get(&format!("/rooms/{}", "r".repeat(129))).error(400).contains("at most 128"));
    assert!(bed.get("/rooms/%FF").error(400).contains("UTF-8"));
    assert!(bed.post("/push/rooms/*?type=1", b"").error(400).contains("/push/all"));
    assert!(bed.post("/push/all", b"").error(400).contains("?type=N"));
    for kind in ["0", "-1", "x", "2147483648", ""] {
        let error = bed.post(&format!("/push/all?type={kind}"), b"").error(400);
        assert!(error.contains(&format!("{kind:?}")), "{error}");
    }
    let error = bed.post("/push/all?type=1", &[0; BODY_BYTES_MAX + 1]).error(413);
    assert!(error.contains("max_frame_to_client_bytes (1000)"), "{error}");
    assert_eq!(bed.post("/push/all?type=1", &[0; BODY_BYTES_MAX]).status, 200);
}

#[test]
fn what_the_gateway_can_not_do_now_says_when_to_try_again() {
    let bed = Bed::new();
    let refuse = |refusal| *bed.fake.refusal.lock().unwrap() = Some(refusal);
    refuse(PushError::Overloaded);
    let overloaded = bed.post("/push/all?type=1", b"x");
    assert!(overloaded.error(503).contains("too many pushes"));
    assert!(overloaded.head.contains("retry-after: 1"));
    assert_eq!(bed.post("/users/7/kick", b"").status, 503);
    refuse(PushError::TooLong { bytes: 9, bytes_max: 8 });
    assert!(bed.post("/push/all?type=1", b"x").error(413).contains("9 bytes"));
    refuse(PushError::Stopping);
    assert!(bed.post("/push/all?type=1", b"x").error(503).contains("stopping"));
    assert!(bed.get("/rooms/gone").error(503).contains("stopping"));
    *bed.fake.refusal.lock().unwrap() = None;
    *bed.fake.stalled.lock().unwrap() = Some(Vec::new());
    assert!(bed.post("/push/all?type=1", b"x").error(504).contains("unknown"));
}

#[test]
fn shutdown_ends_idle_connections_and_requests_under_way() {
    let bed = Bed::new();
    let address = bed.server.local_addr();
    let mut idle = TcpStream::connect(address).unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut half = TcpStream::connect(address).unwrap();
    half.write_all(b"GET /hea").unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let began = Instant::now();
    bed.server.shutdown();
    assert!(began.elapsed() < Duration::from_secs(3));
    let mut rest = String::new();
    idle.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("ok\n"));
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn who_holds_connections_open_is_bounded() {
    let bed = Bed::new();
    let held: Vec<_> =
        (0..40).map(|_| TcpStream::connect(bed.server.local_addr()).unwrap()).collect();
    let mut late = TcpStream::connect(bed.server.local_addr()).unwrap();
    late.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    late.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(late.read(&mut [0; 1]).is_err(), "it waits");
    drop(held);
    late.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"));
}

#[test]
fn an_address_in_use_is_named() {
    let bed = Bed::new();
    let folder = tempfile::tempdir().unwrap();
    let config = AdminConfig {
        listen: bed.server.local_addr(),
        token_file: folder.path().join("token"),
        body_bytes_max: BODY_BYTES_MAX,
    };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let error = serve(&config, Arc::<Fake>::default(), metrics).unwrap_err().to_string();
    assert!(error.contains("on 127.0.0.1:") && error.contains("--admin"), "{error}");
}
