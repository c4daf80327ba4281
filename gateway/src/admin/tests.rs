use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tidegate_backend::CommandOutcome;
use tidegate_backend::publisher::{Command, Done, Nobody, Push, PushError, RoomId, Target, UserId};

use super::*;
use crate::cluster::status::Status;
use crate::config::Config;
use crate::control::{ConnectionInfo, Readiness, Reply, RoomInfo, ShardInfo, UserInfo};
use crate::service::SILENCE_MAX;
use crate::shard::rebalance::Share;

const BODY_BYTES_MAX: usize = 1000;

/// No timeout expires, however slow the machine is.
const UNLIMITED: Timeouts = {
    let hour = Duration::from_secs(3600);
    Timeouts { head: hour, body: hour, answer: hour }
};

/// For tests that wait for a timeout.
const SHORT: Duration = Duration::from_millis(300);

/// A gateway with one user (7), one room ("lobby/eu") and two shards.
#[derive(Default)]
struct Fake {
    draining: AtomicBool,
    refusal: Mutex<Option<PushError>>,
    /// Answers that never come.
    stalled: Mutex<Option<Vec<oneshot::Sender<CommandOutcome>>>>,
    commands: Mutex<Vec<Command>>,
    /// Shares of a rebalance, which nobody works on.
    shares: Mutex<Vec<Share>>,
    /// A look-up of the room "blocks": whether it has begun, and whether it may go on.
    blocked: Mutex<(bool, bool)>,
    changed: Condvar,
}

/// What a gateway is that listens on another address.
fn about() -> About {
    About::new(&Config::embedded_default(), "127.0.0.1:7400".parse().unwrap())
}

fn reply<T>(value: T) -> Reply<T> {
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(value).is_ok());
    receiver
}

impl Fake {
    fn received(&self) -> Vec<Command> {
        self.commands.lock().unwrap().clone()
    }

    /// Blocks the thread that asks, as nothing of the gateway does.
    fn block(&self) {
        let mut blocked = self.blocked.lock().unwrap();
        blocked.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(blocked, |(_, released)| !*released).unwrap());
    }
}

impl Control for Fake {
    fn readiness(&self) -> Readiness {
        if self.draining.load(Ordering::Relaxed) { Readiness::Draining } else { Readiness::Ready }
    }

    fn command(&self, command: Command) -> Reply<CommandOutcome> {
        self.commands.lock().unwrap().push(command);
        if let Some(refusal) = *self.refusal.lock().unwrap() {
            return reply(Err(refusal));
        }
        if let Some(stalled) = &mut *self.stalled.lock().unwrap() {
            let (sender, receiver) = oneshot::channel();
            stalled.push(sender);
            return receiver;
        }
        reply(Ok(Done::with_connections(2)))
    }

    fn push_many(&self, pushes: Vec<Push>) -> Reply<Vec<CommandOutcome>> {
        let mut commands = self.commands.lock().unwrap();
        let outcomes = pushes.into_iter().map(|push| {
            let to_user = matches!(push.target, Target::User(_));
            commands.push(Command::Push(push));
            if to_user {
                Ok(Done::nobody(Nobody::NoConnection))
            } else {
                Err(PushError::Overloaded)
            }
        });
        reply(outcomes.collect())
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
        if room.as_str() == "blocks" {
            self.block();
        }
        let known = ["lobby/eu", "*"].contains(&room.as_str());
        let room = room.to_string();
        let info = RoomInfo { room, members: 3, last_offset: 9, first_offset: 4, log_bytes: 60 };
        reply(known.then_some(info))
    }

    fn shards(&self) -> u16 {
        2
    }

    fn shard(&self, shard: u16) -> Reply<ShardInfo> {
        reply(ShardInfo { shard, connections: 5, sessions: 5, rooms: 1, ..ShardInfo::default() })
    }

    /// All clients but one came in the last minute.
    fn count_movable(&self, _shard: u16, spared_s: u16) -> Reply<u64> {
        reply(if spared_s == 0 { 5 } else { 1 })
    }

    fn send_away(&self, _shard: u16, share: Share) {
        self.shares.lock().unwrap().push(share);
    }
}

struct TestServer {
    server: AdminServer,
    fake: Arc<Fake>,
    token: String,
    _folder: TempDir,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }

    /// The error's text, of an answer with this status. Each has a code, too.
    #[track_caller]
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert!(!self.code().is_empty() && self.head.contains("application/json"));
        self.json()["error"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

impl TestServer {
    fn new() -> Self {
        Self::with(UNLIMITED)
    }

    fn with(timeouts: Timeouts) -> Self {
        Self::start(timeouts, about())
    }

    /// Of a gateway that says this of itself.
    fn with_about(about: About) -> Self {
        Self::start(UNLIMITED, about)
    }

    fn start(timeouts: Timeouts, about: About) -> Self {
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
        let server = serve_with(
            &config,
            control,
            recorder.handle(),
            about,
            timeouts,
            &binding::tests::AT_ONCE,
        )
        .unwrap();
        let token = std::fs::read_to_string(&config.token_file).unwrap().trim().to_owned();
        Self { server, fake, token, _folder: folder }
    }

    fn raw(&self, text: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.server.local_addr()).unwrap();
        // A connection that is wrongly kept open fails the test instead of blocking it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    fn ask_as(&self, token: Option<&str>, method: &str, path: &str, body: &[u8]) -> Answer {
        let access =
            token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{access}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.raw(&[head.as_bytes(), body].concat())
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.ask_as(Some(&self.token), method, path, body)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask_as(Some(&self.token), "GET", path, b"")
    }

    fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.ask_as(Some(&self.token), "POST", path, body)
    }
}

#[test]
fn health_and_the_page_need_no_token() {
    let test = TestServer::new();
    let open = |path| test.ask_as(None, "GET", path, b"");
    assert_eq!(open("/healthz").status, 200);
    assert_eq!(open("/readyz").status, 200);
    let page = open("/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/html") && page.head.contains("content-security-policy"));
    assert!(page.body.contains("<title>Tidegate</title>"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "self-contained");

    test.fake.draining.store(true, Ordering::Relaxed);
    assert_eq!(open("/healthz").status, 200);
    let draining = open("/readyz");
    assert!(draining.error(503).contains("draining"));
    assert!(draining.head.contains("retry-after: 1"));
}

/// The hash of the only element with this name, as a content security policy has it.
fn hash_of(page: &str, element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    assert_eq!((page.matches(&format!("<{element}")).count(), page.matches(&open).count()), (1, 1));
    let (_, rest) = page.split_once(&open).unwrap();
    let (content, _) = rest.split_once(&close).unwrap();
    format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(content)))
}

#[test]
fn the_pages_policy_allows_its_own_script_and_style_alone() {
    let page = TestServer::new().ask_as(None, "GET", "/", b"");
    // Hashes are case-sensitive, unlike the rest of the head.
    let policy = super::api::PAGE_POLICY;
    assert!(page.head.contains(&policy.to_lowercase()), "{}", page.head);
    for (directive, element) in [("script-src", "script"), ("style-src", "style")] {
        let expected = format!("{directive} {}", hash_of(&page.body, element));
        assert!(policy.split("; ").any(|found| found == expected), "{expected} is not in {policy}");
    }
    // The hashes cover neither handlers nor styles in attributes.
    assert!(!page.body.contains(" style=") && !page.body.contains(" onclick="), "{}", page.body);
}

#[test]
fn the_page_has_the_names_of_the_metrics() {
    let page = TestServer::new().ask_as(None, "GET", "/", b"").body;
    let (_, columns) = page.split_once("const COLUMNS = [").unwrap();
    let (columns, _) = columns.split_once("];").unwrap();
    let names: Vec<_> = columns.split('"').skip(1).step_by(2).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let row = format!("| `tidegate_{name}` | shard |");
        assert!(include_str!("../../../README.md").contains(&row), "{name} is not a metric");
    }
}

#[test]
fn everything_else_needs_the_token() {
    let test = TestServer::new();
    let wrong = "0".repeat(64);
    let guarded = [
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("GET", "/cluster"),
        ("GET", "/cluster/rebalance"),
        ("POST", "/cluster/rebalance?count=1"),
        ("DELETE", "/cluster/rebalance"),
        ("GET", "/users/7"),
        ("GET", "/rooms/x"),
        ("POST", "/users/7/kick"),
        ("POST", "/push/users/7?type=1"),
        ("POST", "/push/rooms/x?type=1"),
        ("POST", "/push/all?type=1"),
    ];
    for (method, path) in guarded {
        let tokens = [
            (None, "no_token"),
            (Some(""), "no_token"),
            (Some("x"), "wrong_token"),
            (Some(&*wrong), "wrong_token"),
            (Some(&test.token[1..]), "wrong_token"),
        ];
        for (token, code) in tokens {
            let answer = test.ask_as(token, method, path, b"");
            assert_eq!(answer.code(), code, "{method} {path}");
            assert!(answer.error(401).contains("admin.token_file"), "{method} {path}");
            assert!(answer.head.contains("www-authenticate: bearer realm=\"tidegate\""));
        }
    }
    assert_eq!(test.fake.received(), []);
    // A path that is not there is nobody's secret.
    assert!(test.ask_as(None, "GET", "/nothing", b"").error(404).contains("/nothing"));
    let lower = format!(
        "GET /stats HTTP/1.1\r\nConnection: close\r\nHost: x\r\nauthorization: bearer {}\r\n\r\n",
        test.token
    );
    assert_eq!(test.raw(lower.as_bytes()).status, 200);
}

#[test]
fn pushes_and_kicks_reach_the_gateway() {
    let test = TestServer::new();
    let reached = json!({ "connections": 2 });
    let binary = [0, 255, 10, 13];
    assert_eq!(test.post("/push/users/18446744073709551615?type=9", &binary).json(), reached);
    assert_eq!(test.post("/push/rooms/lobby%2Feu%20%C3%A9?type=2147483647", b"x").json(), reached);
    assert_eq!(test.post("/push/all?type=1", b"").json(), reached);
    assert_eq!(test.post("/users/7/kick", b"").json(), reached);
    assert_eq!(test.post("/rooms/a%2Fb/expel/7", b"").json(), reached);
    let room = |id| Target::Room(RoomId::new(id).unwrap());
    let push = |target, kind, biz_data: Bytes| Command::Push(Push::new(target, kind, biz_data));
    let expected = [
        push(Target::User(u64::MAX), 9, Bytes::copy_from_slice(&binary)),
        push(room("lobby/eu \u{e9}"), i32::MAX, "x".into()),
        push(Target::Room(RoomId::everybody()), 1, Bytes::new()),
        Command::Kick { user_id: 7 },
        Command::Expel { user_id: 7, room: RoomId::new("a/b").unwrap() },
    ];
    assert_eq!(test.fake.received(), expected);
}

#[test]
fn a_key_and_a_time_to_live_reach_the_gateway() {
    let test = TestServer::new();
    let path = "/push/users/7?ttl_ms=1500&type=9&key=a%2Fb";
    assert_eq!(test.post(path, b"x").status, 200);
    let head = format!(
        "POST /push/all?type=9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Idempotency-Key: k 1\r\nContent-Length: 1\r\n\r\nx",
        test.token
    );
    assert_eq!(test.raw(head.as_bytes()).status, 200);
    let ttl = Duration::from_millis(1500);
    let expected = [Push::to_user(7, 9, "x").key("a/b").ttl(ttl), Push::to_all(9, "x").key("k 1")];
    assert_eq!(test.fake.received(), expected.map(Command::Push));
}

#[test]
fn several_pushes_of_one_request_end_each_for_itself() {
    let test = TestServer::new();
    let body = json!([
        { "room": "a", "type": 5, "text": "x" },
        { "user": 7, "type": 6, "base64": "AP8=", "key": "k", "ttl_ms": 9 },
    ]);
    let answer = test.post("/push", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answers = answer.json();
    assert_eq!(answers[0]["code"], "overloaded");
    assert!(answers[0]["error"].as_str().unwrap().contains("commands_max"));
    assert_eq!(answers[1], json!({ "connections": 0, "nobody": "no_connection" }));
    let second = Push::to_user(7, 6, vec![0, 255]).key("k").ttl(Duration::from_millis(9));
    let first = Push::to_room(&RoomId::new("a").unwrap(), 5, "x");
    assert_eq!(test.fake.received(), [first, second].map(Command::Push));
    assert_eq!(test.post("/push", b"[]").json(), json!([]));

    assert!(test.post("/push", b"[{}]").error(400).contains("push 0"));
    assert!(test.post("/push?type=5", b"[]").error(400).contains("\"type\""));
    assert!(test.get("/push").error(405).contains("GET"));
    let longest = [vec![b' '; 2 * BODY_BYTES_MAX - 2], b"[]".to_vec()].concat();
    assert_eq!(test.post("/push", &longest).json(), json!([]));
    let error = test.post("/push", &[&longest[..], b" "].concat()).error(413);
    assert!(error.contains("twice limits.frame_to_client_bytes_max (2000)"), "{error}");
    assert_eq!(test.fake.received().len(), 2);
}

#[test]
fn lookups_and_figures_are_answered() {
    let test = TestServer::new();
    let user = test.get("/users/7").json();
    assert_eq!(user["connections"][0], json!({ "session_id": "2a", "shard": 1 }));
    assert_eq!(test.get("/users/8").json(), json!({ "user_id": 8, "connections": [] }));
    assert_eq!(test.get("/rooms/lobby%2Feu").json()["members"], 3);
    assert_eq!(test.get("/rooms/*").json()["room"], "*");
    let stats = test.get("/stats").json();
    assert_eq!((&stats["ready"], &stats["totals"]["connections"]), (&json!(true), &json!(10)));
    assert_eq!(stats["shards"][1]["shard"], 1);
    let metrics = test.get("/metrics");
    assert!(metrics.head.contains("text/plain; version=0.0.4"));
    assert!(metrics.body.contains("tidegate_tests 4"));
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() {
    let test = TestServer::new();
    assert!(test.get("/users/bob").error(400).contains("\"bob\" is no user id"));
    assert!(test.get("/rooms/nowhere").error(404).contains("there is no room \"nowhere\""));
    assert!(test.get("/nothing").error(404).contains("/nothing"));
    assert!(test.post("/stats", b"").error(405).contains("POST"));
    assert!(test.get(&format!("/rooms/{}", "r".repeat(129))).error(400).contains("at most 128"));
    assert!(test.get("/rooms/%FF").error(400).contains("UTF-8"));
    assert!(test.post("/push/rooms/*?type=1", b"").error(400).contains("/push/all"));
    assert!(test.post("/push/all", b"").error(400).contains("?type=N"));
    for kind in ["0", "-1", "x", "2147483648", ""] {
        let error = test.post(&format!("/push/all?type={kind}"), b"").error(400);
        assert!(error.contains(&format!("{kind:?}")), "{error}");
    }
    let error = test.post("/push/all?type=1", &[0; BODY_BYTES_MAX + 1]).error(413);
    assert!(error.contains("frame_to_client_bytes_max (1000)"), "{error}");
    assert_eq!(test.post("/push/all?type=1", &[0; BODY_BYTES_MAX]).status, 200);
    for path in [
        "/push/all?type=1&type=1",
        "/push/all?type=1&x",
        "/push/all?type=01",
        "/push/users/+7?type=1",
    ] {
        test.post(path, b"x").error(400);
    }
    for path in ["/stats?x", "/users/7?type=5", "/rooms/*?a=b", "/metrics?x=1", "/users/%37"] {
        test.get(path).error(400);
    }
    assert!(test.post("/users/7/kick", b"x").error(400).contains("no body"));
    assert_eq!(test.fake.received().len(), 1, "nothing else was done");
}

#[test]
fn methods_and_slashes_are_taken_as_they_should() {
    let test = TestServer::new();
    let token = test.token.clone();
    let ask = |method, path| test.ask_as(Some(&token), method, path, b"");
    for path in ["/healthz", "/readyz", "/", "/metrics", "/stats", "/users/7", "/rooms/*"] {
        let head = ask("HEAD", path);
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
    }
    for (method, path, allowed) in [
        ("HEAD", "/push/all?type=1", "post"),
        ("OPTIONS", "/push/all?type=1", "post"),
        ("OPTIONS", "/healthz", "get,head"),
        ("DELETE", "/users/7", "get,head"),
        ("PUT", "/users/7/kick", "post"),
    ] {
        let answer = ask(method, path);
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.head.contains(&format!("allow: {allowed}")), "{}", answer.head);
    }
    for path in
        ["/stats/", "/healthz/", "/users/", "/rooms/", "//stats", "/users/7/kick/", "/Stats"]
    {
        let error = ask("GET", path).error(404);
        assert!(error.contains(path), "{error}");
    }
    // Health takes what load balancers add.
    assert_eq!(ask("GET", "/healthz?probe=1").status, 200);
}

#[test]
fn a_body_that_stalls_is_the_clients_fault() {
    let test = TestServer::with(Timeouts { body: SHORT, ..UNLIMITED });
    let access = format!("Authorization: Bearer {}\r\n", test.token);
    let ask = |fields: &str, begun: &str| {
        let line = "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\n";
        test.raw(format!("{line}{access}{fields}\r\n\r\n{begun}").as_bytes())
    };
    for (fields, begun) in [
        ("Content-Length: 10", ""),
        ("Content-Length: 10", "half"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nha"),
    ] {
        let answer = ask(fields, begun);
        assert!(answer.error(408).contains("nothing was done"), "{fields}");
        assert_eq!(answer.code(), "body_timeout");
        assert!(answer.head.contains("connection: close"));
    }
    let compressed = ask("Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: 1", "x");
    assert!(compressed.error(415).contains("gzip"));
    assert_eq!(test.fake.received(), []);
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let test = TestServer::new();
    let mut client = TcpStream::connect(test.server.local_addr()).unwrap();
    let head = format!(
        "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Expect: 100-continue\r\nConnection: close\r\nContent-Length: 1\r\n\r\n",
        test.token
    );
    client.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    client.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"x").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn health_is_answered_while_the_other_thread_is_busy() {
    let test = TestServer::new();
    std::thread::scope(|threads| {
        let asked = threads.spawn(|| test.get("/rooms/blocks"));
        let blocked = test.fake.blocked.lock().unwrap();
        drop(test.fake.changed.wait_while(blocked, |(begun, _)| !*begun).unwrap());
        for path in ["/healthz", "/readyz", "/"] {
            assert_eq!(test.ask_as(None, "GET", path, b"").status, 200);
        }
        test.ask_as(None, "GET", "/stats", b"").error(401);
        assert!(!asked.is_finished());
        test.fake.blocked.lock().unwrap().1 = true;
        test.fake.changed.notify_all();
        assert_eq!(asked.join().unwrap().status, 404);
    });
}

#[test]
fn a_client_that_sends_more_or_ends_its_side_still_gets_its_answer() {
    let test = TestServer::new();
    // The body of a refused request is unread: a close would be a reset, and lose the answer.
    let head = "POST /push/all?type=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n";
    let answer = test.raw(&[head.as_bytes(), &[b'x'; 300_000]].concat());
    answer.error(401);
    // A client that has nothing more to send may still read.
    let mut half = TcpStream::connect(test.server.local_addr()).unwrap();
    half.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ready\n"), "{answer}");
}

#[test]
fn what_the_gateway_can_not_do_now_says_when_to_try_again() {
    let test = TestServer::with(Timeouts { answer: SHORT, ..UNLIMITED });
    let refuse = |refusal| *test.fake.refusal.lock().unwrap() = Some(refusal);
    refuse(PushError::Overloaded);
    let overloaded = test.post("/push/all?type=1", b"x");
    assert!(overloaded.error(503).contains("limits.commands_max"));
    assert!(overloaded.head.contains("retry-after: 1"));
    assert_eq!(test.post("/users/7/kick", b"").status, 503);
    refuse(PushError::TooLong { bytes: 9, bytes_max: 8 });
    assert!(test.post("/push/all?type=1", b"x").error(413).contains("9 bytes"));
    refuse(PushError::RoomsFull { rooms_max: 3 });
    let full = test.post("/push/rooms/x?type=1", b"x");
    assert!(full.error(503).contains("rooms.rooms_per_shard_max") && full.code() == "rooms_full");
    refuse(PushError::Stopping);
    assert!(test.post("/push/all?type=1", b"x").error(503).contains("stopping"));
    assert!(test.get("/rooms/gone").error(503).contains("stopping"));
    *test.fake.refusal.lock().unwrap() = None;
    *test.fake.stalled.lock().unwrap() = Some(Vec::new());
    assert!(test.post("/push/all?type=1", b"x").error(504).contains("unknown"));
}

#[test]
fn shutdown_ends_idle_connections_and_requests_under_way() {
    let test = TestServer::new();
    let address = test.server.local_addr();
    let mut idle = TcpStream::connect(address).unwrap();
    let access = format!("Authorization: Bearer {}", test.token);
    let request = format!("GET /users/8 HTTP/1.1\r\nHost: x\r\n{access}\r\n\r\n");
    idle.write_all(request.as_bytes()).unwrap();
    let mut half = TcpStream::connect(address).unwrap();
    half.write_all(b"GET /hea").unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    // No timeout of a request runs out here: the shutdown itself ends the connections.
    test.server.shutdown();
    let mut rest = String::new();
    idle.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\"connections\":[]}"), "{rest}");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn idle_connections_lose_their_slots_to_newcomers() {
    let test = TestServer::new();
    let connect = || TcpStream::connect(test.server.local_addr()).unwrap();
    let mut operator = connect();
    let mut ask = |path: &str| {
        let (line, token) = (format!("GET {path} HTTP/1.1"), &test.token);
        let request = format!("{line}\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        operator.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 12];
        operator.read_exact(&mut start).unwrap();
        assert_eq!(&start, b"HTTP/1.1 404");
        // The rest of the answer, so that the next one can be read.
        let mut rest = Vec::new();
        while !rest.ends_with(b"\"no_room\"}") {
            let mut byte = [0];
            operator.read_exact(&mut byte).unwrap();
            rest.push(byte[0]);
        }
    };
    ask("/rooms/nowhere");
    let mut held: Vec<_> = (0..100).map(|_| connect()).collect();
    assert_eq!(test.get("/healthz").status, 200);
    // The oldest have lost their slots. The operator is older and has not, since it has shown the token.
    for early in &mut held[..55] {
        let ended = early.read(&mut [0; 1]);
        assert!(!ended.is_ok_and(|count| count > 0), "no request was sent");
    }
    ask("/rooms/nowhere");
    // The newest still has its slot.
    let last = held.last_mut().unwrap();
    last.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn idle_authenticated_connections_leave_slots_for_newcomers() {
    let test = TestServer::new();
    let request =
        format!("GET /stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", test.token);
    let held: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(test.server.local_addr()).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
            assert_eq!(test.ask_as(None, "GET", "/healthz", b"").status, 200);
            stream
        })
        .collect();
    drop(held);
}

#[test]
fn without_the_token_a_connection_gets_one_answer() {
    let test = TestServer::new();
    for (request, status) in [
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("HEAD /healthz", 200),
        ("GET /", 200),
        ("GET /stats", 401),
        ("GET /nothing", 404),
        ("POST /healthz", 405),
    ] {
        let request = format!("{request} HTTP/1.1\r\nConnection: keep-alive\r\nHost: x\r\n\r\n");
        // All of it fits into what is read at once.
        let answer = test.raw(request.repeat(20).as_bytes());
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.head.contains("\r\nconnection: close"), "{}", answer.head);
        assert!(!answer.body.contains("HTTP/1.1 "), "a second answer: {}", answer.body);
    }
    let old = test.raw(b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((old.status, &*old.body), (200, "ok\n"));
}

#[test]
fn with_the_token_a_connection_gets_all_its_answers() {
    let test = TestServer::new();
    let request = |path: &str, close: &str| {
        let access = format!("Authorization: Bearer {}", test.token);
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{access}\r\n{close}\r\n")
    };
    // Also for health, once the token was shown where it is needed.
    let requests = [
        request("/users/7", "").repeat(3),
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".into(),
        request("/users/8", "Connection: close\r\n"),
    ];
    let answers = test.raw(requests.concat().as_bytes());
    assert_eq!(1 + answers.body.matches("HTTP/1.1 200 OK").count(), 5, "{}", answers.body);
}

#[test]
fn a_client_that_goes_on_sending_after_its_answer_is_ended() {
    let test = TestServer::new();
    let mut client = TcpStream::connect(test.server.local_addr()).unwrap();
    client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let (chunk, mut sent) = (vec![b'x'; 64 * 1024], 0);
    while let Ok(count) = client.write(&chunk) {
        sent += count;
        // What the gateway reads, and what the kernel's buffers hold.
        assert!(sent < 64 << 20, "the gateway reads on");
    }
}

/// The documents in a single line each, as their paragraphs are wrapped.
fn documents() -> [String; 2] {
    [include_str!("../../../README.md"), include_str!("../../../ARCHITECTURE.md")]
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn documents_name_the_bounds_that_hold() {
    let [silence, body, answer, head, write] = [
        SILENCE_MAX,
        BODY_TIMEOUT,
        ANSWER_TIMEOUT,
        connections::HEAD_TIMEOUT,
        stream::WRITE_TIMEOUT,
    ]
    .map(|bound| {
        assert_eq!(bound.subsec_nanos(), 0);
        bound.as_secs()
    });
    assert_eq!(head, write, "README.md names them together");
    let (open, queued) = (connection_table::CONNECTIONS_MAX, binding::BACKLOG);
    let queued = format!("{},{:03}", queued / 1000, queued % 1000);
    let [readme, architecture] = documents();
    for text in [
        format!("503 names those that have not for {silence} s"),
        format!("408 the body did not come within {body} s"),
        format!("504 a shard did not answer within {answer} s"),
        // It is also the metric's help, which another test compares with this row.
        format!("| Shards that have not answered for {silence} s. |"),
        format!("At most {open} operators' connections are open"),
        format!("the reading of an answer have {head} s each"),
    ] {
        assert!(readme.contains(&text), "README.md lacks {text:?}");
    }
    for text in [
        format!("| operators' connections | {open}; {queued} more in the kernel's queue |"),
        format!("| {head}, {body}, {answer} and {write} s |"),
        format!("| a shard's silence | {silence} s |"),
    ] {
        assert!(architecture.contains(&text), "ARCHITECTURE.md lacks {text:?}");
    }
}

#[test]
fn an_address_in_use_is_named() {
    let test = TestServer::new();
    let folder = tempfile::tempdir().unwrap();
    let config = AdminConfig {
        listen: test.server.local_addr(),
        token_file: folder.path().join("token"),
        body_bytes_max: BODY_BYTES_MAX,
    };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let error = serve(&config, Arc::<Fake>::default(), metrics, about()).unwrap_err().to_string();
    assert!(error.contains("on 127.0.0.1:") && error.contains("--admin"), "{error}");
}

#[test]
fn a_gateway_without_redis_says_what_to_do() {
    let test = TestServer::new();
    let answer = test.ask("GET", "/cluster", b"");
    assert!(answer.error(404).contains("redis.url"), "{}", answer.body);
    let answer = test.ask("POST", "/cluster/rebalance", b"");
    assert!(answer.error(400).contains("?count=N"), "{}", answer.body);
}

#[test]
fn a_rebalance_runs_alone_until_it_ends_or_is_cancelled() {
    let test = TestServer::new();
    assert_eq!(test.ask("GET", "/cluster/rebalance", b"").json(), Value::Null);
    let dry = test.ask("POST", "/cluster/rebalance?count=4&dry_run=true", b"").json();
    assert_eq!((&dry["dry_run"], &dry["count"]), (&true.into(), &2.into()), "others are spared");
    let dry = test.ask("POST", "/cluster/rebalance?count=4&dry_run=true&spare_s=0", b"").json();
    assert_eq!((&dry["count"], &dry["movable"]), (&4.into(), &10.into()));
    assert!(test.fake.shares.lock().unwrap().is_empty(), "nobody is sent away");
    let path = "/cluster/rebalance?count=4&per_second=50&spare_s=0";
    let started = test.ask("POST", path, b"").json();
    let expected =
        json!({"dry_run": false, "count": 4, "per_second": 50, "spare_s": 0, "movable": 10});
    assert_eq!(started, expected);
    assert_eq!(test.fake.shares.lock().unwrap().len(), 2, "each shard has its share");
    let mut info = json!({
        "state": "running", "count": 4, "sent": 0, "per_second": 50, "spare_s": 0
    });
    assert_eq!(test.ask("GET", "/cluster/rebalance", b"").json(), info);
    assert!(test.ask("POST", path, b"").error(409).contains("running already"));
    info["state"] = "cancelled".into();
    assert_eq!(test.ask("DELETE", "/cluster/rebalance", b"").json(), info);
    test.fake.shares.lock().unwrap().clear();
    assert_eq!(test.ask("POST", path, b"").status, 200);
    test.fake.shares.lock().unwrap().clear();
    assert_eq!(test.ask("DELETE", "/cluster/rebalance", b"").json()["state"], "done");
    test.fake.draining.store(true, Ordering::Relaxed);
    assert!(test.ask("POST", path, b"").error(409).contains("draining"));
}

#[test]
fn a_rebalance_refuses_what_it_does_not_know() {
    let test = TestServer::new();
    for (query, said) in [
        ("count=0", "1 to 1000000000"),
        ("count=+5", "plain digits"),
        ("per_second=0&count=1", "1 to 20000"),
        ("spare_s=3601&count=1", "0 to 3600"),
        ("dry_run=yes&count=1", "true or false"),
        ("count=1&count=1", "repeated"),
        ("type=1", "per_second"),
    ] {
        let answer = test.ask("POST", &format!("/cluster/rebalance?{query}"), b"");
        assert!(answer.error(400).contains(said), "{query}: {}", answer.body);
    }
    assert!(test.ask("POST", "/cluster/rebalance?count=1", b"x").error(400).contains("no body"));
}

#[test]
fn readiness_says_that_redis_is_away_and_refuses_where_logins_need_it() {
    for needed in [false, true] {
        let status = Status::new("a");
        status.add_link("pushes", "redis://host:6379".into(), needed);
        let test = TestServer::with_about(about().with_cluster(Some(status.clone())));
        let away = test.ask_as(None, "GET", "/readyz", b"");
        if needed {
            assert!(away.error(503).contains("can't log in"), "{}", away.body);
        } else {
            assert_eq!(away.status, 200);
            assert!(away.body.starts_with("ready; Redis has been away for "), "{}", away.body);
        }
        status.up("pushes");
        assert_eq!(test.ask_as(None, "GET", "/readyz", b"").body, "ready\n");
    }
}
