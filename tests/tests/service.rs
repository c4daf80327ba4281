//! Notifications to a service manager: ready, alive, stopping.
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
use tidegate_tests::{Operator, Phone, Setup, TIMEOUT, until};

/// The socket of the service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let count = self.0.recv(&mut message).expect("a notification arrives");
        String::from_utf8(message[..count].to_vec()).unwrap()
    }

    /// The next notification that is not `WATCHDOG=1`.
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
fn the_manager_is_notified_of_ready_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::at(&path);
    let mut gateway = Setup::demo().variable("NOTIFY_SOCKET", &path).start();
    assert_eq!(manager.next(), "READY=1\n");
    drop(gateway.connect());
    gateway.terminate();
    // No watchdog notification in between: none was requested.
    assert_eq!(manager.next(), "STOPPING=1\n");
    assert!(gateway.process.wait().success());
}

#[test]
fn watchdog_notifications_are_sent_if_requested_also_while_draining() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::at(&path);
    let setup = Setup::demo().shards(3).variable("NOTIFY_SOCKET", &path);
    let mut gateway = setup.variable("WATCHDOG_USEC", "40000").start();
    assert_eq!(manager.next(), "READY=1\n");
    (0..3).for_each(|_| assert_eq!(manager.next(), "WATCHDOG=1\n"));
    // A client that does not close after its goodbye keeps the gateway lingering.
    let mut phone = gateway.login(7);
    gateway.terminate();
    assert_eq!(manager.next_news(), "STOPPING=1\n");
    phone.wait_for_goodbye();
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    drop(phone);
    assert!(gateway.process.wait().success());
}

#[test]
fn a_gateway_runs_on_without_its_manager() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody");
    let gateway = Setup::demo().variable("NOTIFY_SOCKET", &path).start();
    gateway.process.stderr.wait_for("NOTIFY_SOCKET");
    drop(gateway.login(7));
}

/// Blocks the shard's thread, which no handler should do, until it is released.
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

    /// Makes one shard hang until `release`.
    fn hang(&self) -> Phone {
        let mut phone = Phone::connect(self.server.client_address());
        phone.login(7);
        phone.send(1, b"");
        self.has_entered.recv_timeout(TIMEOUT).unwrap();
        phone
    }

    fn end(self) {
        self.server.shutdown();
        self.server.wait().unwrap();
    }
}

#[test]
fn one_hanging_shard_stops_the_watchdog_notifications() {
    let hanging = Hanging::start();
    let mut liveness = Liveness::new(hanging.server.control());
    let all_answer = |liveness: &mut Liveness| {
        until("all shards have answered", || liveness.all_answered().then_some(()));
    };
    all_answer(&mut liveness);
    let phone = hanging.hang();
    // The shard may have answered a question from before it hung, and the last answer of the other shard may count once
    // more.
    // It does not answer later questions.
    let count = (0..10_000).filter(|_| liveness.all_answered()).count();
    assert!(count <= 2, "all shards answered {count} times while one hangs");

    hanging.release.send(()).unwrap();
    all_answer(&mut liveness);
    drop(phone);
    hanging.end();
}

#[test]
fn health_reports_a_hanging_shard_until_it_answers_again() {
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
    // The figures of the other shards are available at once.
    let stats = operator.json("/stats");
    assert_eq!(
        (&stats["unresponsive_shards"][0]["shard"], &stats["ready"]),
        (shard, &false.into())
    );
    let shards = stats["shards"].as_array().unwrap();
    assert!(shards.len() == 1 && shards[0]["shard"] != *shard, "{stats}");
    // A push that needs the hanging shard may not be done, and the answer reports it. Everybody's room
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

/// A successor waits for this, and may have been started because a shard hangs.
#[test]
fn readiness_says_draining_even_if_a_shard_hangs() {
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
