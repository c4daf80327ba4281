//! What a service manager is told: ready, alive, going away.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;
use tidegate::Server;
use tidegate::config::Config;
use tidegate::service::Liveness;
use tidegate_backend::{Call, Gateway, Handler, Placement};
use tidegate_tests::{Operator, PATIENCE, Phone, Setup, until};

/// The manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let count = self.0.recv(&mut message).expect("it is told something");
        String::from_utf8(message[..count].to_vec()).unwrap()
    }

    /// The next that is no sign of life.
    fn next_news(&self) -> String {
        loop {
            let message = self.next();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }
}

#[test]
fn the_manager_hears_when_it_listens_and_when_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::at(&path);
    let mut gateway = Setup::demo().variable("NOTIFY_SOCKET", &path).start();
    assert_eq!(manager.next(), "READY=1\n");
    drop(gateway.connect());
    gateway.terminate();
    // Nothing in between: nobody asked for signs of life.
    assert_eq!(manager.next(), "STOPPING=1\n");
    assert!(gateway.process.wait().success());
}

#[test]
fn signs_of_life_come_where_they_are_wanted_and_while_it_drains() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::at(&path);
    let setup = Setup::demo().shards(3).variable("NOTIFY_SOCKET", &path);
    let mut gateway = setup.variable("WATCHDOG_USEC", "40000").start();
    assert_eq!(manager.next(), "READY=1\n");
    (0..3).for_each(|_| assert_eq!(manager.next(), "WATCHDOG=1\n"));
    // Who is told to go and does not close keeps it lingering.
    let mut phone = gateway.login(7);
    gateway.terminate();
    assert_eq!(manager.next_news(), "STOPPING=1\n");
    phone.is_told_to_go();
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    drop(phone);
    assert!(gateway.process.wait().success());
}

#[test]
fn a_manager_that_is_gone_is_no_reason_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let gateway = Setup::demo().variable("NOTIFY_SOCKET", &path).start();
    gateway.process.stderr.wait_for("NOTIFY_SOCKET");
    drop(gateway.login(7));
}

/// Blocks the shard's thread, as no handler should, until it is let go.
struct Stuck {
    entered: Sender<()>,
    let_go: Mutex<Receiver<()>>,
}

impl Handler for Stuck {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        self.entered.send(()).unwrap();
        let let_go = self.let_go.lock().unwrap_or_else(PoisonError::into_inner);
        let_go.recv().unwrap();
        call.answer("");
    }

    fn placement(&self) -> Placement {
        Placement::Shard
    }
}

/// A gateway in this process, with two shards and a handler that blocks them.
struct Hanging {
    server: Server,
    has_entered: Receiver<()>,
    release: Sender<()>,
    operator: Operator,
    _folder: TempDir,
}

impl Hanging {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("admin.token");
        let toml = format!(
            "listen = '127.0.0.1:0'\nshards = 2\n[admin]\nlisten = '127.0.0.1:0'\ntoken_file = '{}'\n\
             [auth]\nmode = 'demo'\n",
            token.display()
        );
        let (entered, has_entered) = channel();
        let (release, let_go) = channel();
        let stuck = Stuck { entered, let_go: Mutex::new(let_go) };
        let config = Config::from_toml(&toml).unwrap();
        let server = Server::builder(config).handler("demo", stuck).start().unwrap();
        let token = std::fs::read_to_string(token).unwrap();
        let operator = Operator::new(server.admin_address(), token.trim());
        Self { server, has_entered, release, operator, _folder: folder }
    }

    /// Has one shard hang, until `release` says so.
    fn hang(&self) -> Phone {
        let mut phone = Phone::connect(self.server.client_address());
        phone.login(7);
        phone.send(1, b"");
        self.has_entered.recv_timeout(PATIENCE).unwrap();
        phone
    }

    fn end(self) {
        self.server.shutdown();
        self.server.wait().unwrap();
    }
}

#[test]
fn one_shard_that_hangs_stops_the_signs_of_life() {
    let hanging = Hanging::start();
    let mut liveness = Liveness::new(hanging.server.control());
    let all_answer = |liveness: &mut Liveness| {
        until("all shards have answered", || liveness.all_answered().then_some(()));
    };
    all_answer(&mut liveness);
    let phone = hanging.hang();
    // The shard may have answered a question from before it hung, and the other's last answer may count once more.
    // It answers nothing that is asked now.
    let count = (0..10_000).filter(|_| liveness.all_answered()).count();
    assert!(count <= 2, "all shards answered {count} times while one hangs");

    hanging.release.send(()).unwrap();
    all_answer(&mut liveness);
    drop(phone);
    hanging.end();
}

#[test]
fn operators_hear_of_a_shard_that_hangs_until_it_is_back() {
    let hanging = Hanging::start();
    let operator = &hanging.operator;
    assert_eq!(operator.get("/healthz"), (200, "ok\n".into()));
    let mut phone = hanging.hang();
    let until_it_says = |path: &str, status: u16| {
        until(&format!("{path} is {status}"), || {
            let (said, body) = operator.get(path);
            (said == status).then_some(body)
        })
    };
    let said = until_it_says("/healthz", 503);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["code"], "shards_hang");
    let shard = &said["unresponsive_shards"][0]["shard"];
    assert!(said["unresponsive_shards"][0]["silent_ms"].as_u64().unwrap() >= 5_000, "{said}");
    let text = said["error"].as_str().unwrap();
    assert!(text.contains(&format!("shard {shard} has not answered for ")), "{text}");
    assert_eq!(operator.get("/readyz").0, 503);
    // The others' figures are there at once.
    let stats = operator.json("/stats");
    assert_eq!(
        (&stats["unresponsive_shards"][0]["shard"], &stats["ready"]),
        (shard, &false.into())
    );
    let shards = stats["shards"].as_array().unwrap();
    assert!(shards.len() == 1 && shards[0]["shard"] != *shard, "{stats}");
    // What only it could do was perhaps not done; that is the gateway's fault, and said so. Everybody's room
    // has its home on shard 0.
    let (status, body) = operator.post("/push/all?type=5", b"x");
    assert!(
        status == 504 && body.contains("shard_timeout") && body.contains("silent_ms"),
        "{body}"
    );

    hanging.release.send(()).unwrap();
    until_it_says("/healthz", 200);
    until_it_says("/readyz", 200);
    assert_eq!(operator.json("/stats")["unresponsive_shards"].as_array().unwrap().len(), 0);
    phone.heartbeat();
    drop(phone);
    hanging.end();
}

/// It is what a successor waits for, which may be there because a shard hangs.
#[test]
fn a_gateway_that_drains_says_so_though_a_shard_hangs() {
    let hanging = Hanging::start();
    let phone = hanging.hang();
    let operator = &hanging.operator;
    let code = |path: &str| {
        let (status, body) = operator.get(path);
        let error = || serde_json::from_str::<Value>(&body).unwrap();
        (status == 503).then(|| error()["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(until("/readyz names it", || code("/readyz")), "shards_hang");
    hanging.server.shutdown();
    assert_eq!(code("/readyz").as_deref(), Some("draining"));
    assert_eq!(code("/healthz").as_deref(), Some("shards_hang"));
    hanging.release.send(()).unwrap();
    drop(phone);
    hanging.end();
}
