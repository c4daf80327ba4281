//! What a service manager is told: ready, alive, going away.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use tidegate::Server;
use tidegate::config::Config;
use tidegate::service::Pulse;
use tidegate_backend::{Call, Gateway, Handler, Placement};
use tidegate_tests::{PATIENCE, Phone, Setup, until};

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

#[test]
fn one_shard_that_hangs_stops_the_signs_of_life() {
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
    let mut pulse = Pulse::new(server.control());
    let beats = |pulse: &mut Pulse| until("it beats", || pulse.beats().then_some(()));
    beats(&mut pulse);

    let mut phone = Phone::connect(server.client_address());
    phone.login(7);
    phone.send(1, b"");
    has_entered.recv_timeout(PATIENCE).unwrap();
    // What was asked before it hung may have been answered; what is asked now can't be.
    pulse.beats();
    // One shard alone has it silent, whatever the other does.
    (0..1_000).for_each(|_| assert!(!pulse.beats()));

    release.send(()).unwrap();
    beats(&mut pulse);
    drop(phone);
    server.shutdown();
    server.wait().unwrap();
}
