//! Tests of the operators' HTTP, over real connections to a gateway that is faked. The server and its client are here.

mod cluster;
mod documents;
mod lifecycle;
mod pages;
mod requests;

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

/// No timeout expires, however slow the machine is, and refusals are not delayed.
const UNLIMITED: Timeouts = {
    let hour = Duration::from_secs(3600);
    Timeouts { head: hour, body: hour, answer: hour, refusal: Duration::ZERO }
};

/// For tests that wait for a timeout.
const SHORT: Duration = Duration::from_millis(300);

/// A gateway with one user (7), one room ("lobby/eu") and two shards.
#[derive(Default)]
struct Fake {
    draining: AtomicBool,
    hurried: AtomicBool,
    refusal: Mutex<Option<PushError>>,
    /// Answers that never come.
    stalled: Mutex<Option<Vec<oneshot::Sender<CommandOutcome>>>>,
    commands: Mutex<Vec<Command>>,
    /// Shares of a rebalance, which no shard works on.
    shares: Mutex<Vec<Share>>,
    /// A look-up of the room "blocks": whether it has begun, and whether it may continue.
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

    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn hurry_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.hurried.store(true, Ordering::Relaxed);
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
