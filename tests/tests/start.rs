//! Gateways that want the same ports: two that start at once, and one that starts while another drains.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidegate_tests::holder::{drain, drip, hold, keep_silent};
use tidegate_tests::phone::{End, quiz};
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::{Code, Gateway, Operator, Phone, Setup, until};

/// Rounds of two gateways that start at once; the variable `START_ROUNDS` sets another number.
const ROUNDS: usize = 60;

/// Addresses that overlap.
const PAIRS: [(&str, &str); 3] =
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "0.0.0.0")];

fn rounds() -> usize {
    std::env::var("START_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

/// Whether a gateway serves clients (`true`) or has found the port in use (`false`). `None`: neither yet.
fn has_the_port(process: &Process) -> Option<bool> {
    if process.stdout.so_far().contains("listening for clients on") {
        return Some(true);
    }
    process.stderr.so_far().contains("another process holds this address").then_some(false)
}

/// Both are killed after each round, and the next round starts on the same port at once.
#[test]
fn of_two_gateways_that_start_at_once_one_runs() {
    let port = Port::reserve();
    let address = |ip: &str| format!("{ip}:{}", port.number());
    let setup = |ip: &str| Setup::jwt().shards(4).set("listen", address(ip));
    let pairs = PAIRS.map(|(one, other)| [setup(one), setup(other)]);
    for round in 0..rounds() {
        let pair = &pairs[round % pairs.len()];
        let mut gateways = pair.each_ref().map(Setup::begin);
        // Both may fail to listen at first. Then they try again.
        let has_port = until("one gateway has the port", || {
            let has_port = [has_the_port(&gateways[0])?, has_the_port(&gateways[1])?];
            has_port.contains(&true).then_some(has_port)
        });
        assert_ne!(has_port, [true, true], "round {round}: both run");
        drop(TcpStream::connect(("127.0.0.1", port.number())).unwrap());
        let loser = has_port.iter().position(|has_port| !has_port).unwrap();
        if round == 0 {
            assert_eq!(gateways[loser].wait().code(), Some(1));
            let log = gateways[loser].stderr.all();
            assert!(
                log.contains("can't listen for clients on") && log.contains("--listen"),
                "{log}"
            );
            let holder = format!("process {} (tidegate) holds it", gateways[1 - loser].pid());
            assert!(log.contains(&holder), "{holder} is not in:\n{log}");
        }
        // The loser ends first. Otherwise it could take the port of the winner that has ended.
        gateways[loser].kill();
        gateways[1 - loser].kill();
        let listening = |gateway: &Process| gateway.stdout.all().contains("listening for clients");
        assert_eq!(
            gateways.iter().filter(|gateway| listening(gateway)).count(),
            1,
            "round {round}"
        );
    }
}

/// The addresses of two gateways, and how both are started.
struct Pair {
    clients: Port,
    operators: Port,
}

impl Pair {
    fn new() -> Self {
        Self { clients: Port::reserve(), operators: Port::reserve() }
    }

    fn setup(&self) -> Setup {
        let setup = Setup::quiz().set("listen", format!("127.0.0.1:{}", self.clients.number()));
        let setup = setup.set("admin.listen", format!("127.0.0.1:{}", self.operators.number()));
        setup.set("shutdown.drain_timeout_ms", 60_000)
    }
}

/// An old gateway that drains until the test kicks the users whose calls wait.
struct Draining {
    gateway: Gateway,
    /// Its connection stays with this gateway, which keeps it since it has shown the token.
    operator: Operator,
}

impl Draining {
    fn begin(gateway: Gateway) -> Self {
        let operator = gateway.operator();
        gateway.terminate();
        until("the old gateway drains", || drains(&operator).then_some(()));
        Self { gateway, operator }
    }

    /// Waits for an event, and uses the operator's connection meanwhile, so that it stays open.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        until(what, || {
            assert!(drains(&self.operator));
            look()
        })
    }

    /// Kicks a user whose call has no answer.
    fn let_go(&self, user_id: u64, mut phone: Phone) {
        assert_eq!(self.operator.kick(user_id), 1);
        phone.goodbye(Code::Kicked);
    }
}

/// Whether the gateway of this operator's connection drains.
fn drains(operator: &Operator) -> bool {
    operator.json("/stats")["ready"] == false
}

/// Logs in and starts a call that gets no answer.
fn login_and_wait(gateway: &Gateway, user_id: u64) -> Phone {
    let mut phone = gateway.login(user_id);
    phone.send(quiz::WAIT, b"");
    phone
}

/// The status of `GET /readyz` on a new connection.
fn health(operators: SocketAddr) -> u16 {
    Operator::new(operators, "").get("/readyz").0
}

#[test]
fn a_new_gateway_takes_over_from_one_that_drains() {
    let pair = Pair::new();
    let old = pair.setup().start();
    let mut idle: Vec<_> = (1..=10).map(|user_id| old.login(user_id)).collect();
    let holder = login_and_wait(&old, 11);
    old.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    let mut old = Draining::begin(old);
    for phone in &mut idle {
        phone.goodbye(Code::Draining);
    }
    // No successor wants the port yet, so each new connection gets an answer from the draining gateway.
    (0..10).for_each(|_| assert_eq!(health(old.gateway.operators()), 503));

    let new = thread::scope(|scope| {
        let starting = scope.spawn(|| pair.setup().start());
        old.until("the new gateway runs", || starting.is_finished().then_some(()));
        starting.join().unwrap()
    });
    assert_eq!(new.clients(), old.gateway.clients());
    assert_eq!(new.operators(), old.gateway.operators());
    new.login(7).assert_is_served();
    (0..20).for_each(|_| {
        assert_eq!(health(new.operators()), 200);
        // An open connection to the old gateway stays with it.
        assert!(drains(&old.operator));
    });
    new.operator().wait_for_metric("tidegate_connections_accepted_total", "", |n| n == 1.0);
    assert!(old.gateway.process.is_running());
    old.let_go(11, holder);
    assert_eq!(old.gateway.process.wait().code(), Some(0));
    new.login(8).assert_is_served();
    (0..20).for_each(|_| assert_eq!(health(new.operators()), 200));
}

#[test]
fn a_new_gateway_waits_for_a_full_one_that_drains() {
    let pair = Pair::new();
    let old = pair.setup().set("limits.connections_max", 2).start();
    let full = [login_and_wait(&old, 1), login_and_wait(&old, 2)];
    old.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 2.0);
    let wait = |user_id: u64| {
        let mut phone = old.connect();
        phone.send_login(user_id, &format!("token-{user_id}"));
        phone
    };
    let mut waiting: Vec<_> = (3..=8).map(wait).collect();
    old.process.stderr.wait_for("accepting is paused");
    let mut old = Draining::begin(old);

    // Another successor waits, and a signal ends it.
    let setup = pair.setup();
    let mut given_up = setup.begin();
    old.until("the new gateway waits", || waits_for_a_drain(&given_up));
    given_up.signal(Signal::TERM);
    assert_eq!(given_up.wait().code(), Some(0));
    assert!(given_up.stdout.all().contains("stopped: a signal came before the start was complete"));

    let setup = pair.setup();
    let mut new = setup.begin();
    old.until("the new gateway waits", || waits_for_a_drain(&new));
    let since = Instant::now();
    // It waits longer than for another address in use.
    old.until("the new gateway keeps waiting", || {
        assert!(new.is_running(), "{}", new.stderr.all());
        (since.elapsed() > Duration::from_secs(5)).then_some(())
    });
    for (user_id, phone) in (1..).zip(full) {
        old.let_go(user_id, phone);
    }
    for phone in &mut waiting {
        assert_eq!(phone.wait_for_goodbye().code, Some(Code::Draining));
        assert_eq!(phone.end(), End::Closed);
    }
    new.stdout.wait_for("listening for operators on");
    let mut phone = Phone::connect(old.gateway.clients());
    phone.login(9);
    phone.assert_is_served();
    assert_eq!(health(old.gateway.operators()), 200);
    new.signal(Signal::TERM);
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(new.wait().code(), Some(0));
    assert_eq!(old.gateway.process.wait().code(), Some(0));
    let log = old.gateway.process.stderr.all();
    assert!(!log.contains("reset in the accept queue"), "{log}");
}

fn waits_for_a_drain(process: &Process) -> Option<()> {
    process.stderr.so_far().contains("a gateway that drains holds this address").then_some(())
}

#[test]
fn a_start_fails_when_the_holder_of_the_operators_port_answers_slowly_or_never() {
    let ends = |setup: Setup, says: String| {
        let (status, _, log) = setup.run();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains(&says), "{log}");
    };
    thread::scope(|scope| {
        for operators in [hold(drip), hold(keep_silent)] {
            let setup = move || Setup::demo().set("admin.listen", operators);
            scope
                .spawn(move || ends(setup(), format!("can't listen for operators on {operators}")));
            // It does not delay a gateway that finds the clients' port in use.
            let clients = hold(keep_silent);
            let says = format!("can't listen for clients on {clients}");
            scope.spawn(move || ends(setup().set("listen", clients), says));
        }
    });
}

#[test]
fn signals_that_drain_end_a_start_that_waits() {
    let setup = Setup::demo().set("listen", hold(keep_silent)).set("admin.listen", hold(drain));
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut process = setup.begin();
        process.stderr.wait_for("a gateway that drains holds this address");
        // These signals do not end a start.
        for (signal, text) in
            [(Signal::HUP, "SIGHUP: the gateway starts"), (Signal::USR1, "SIGUSR1 has")]
        {
            process.signal(signal);
            process.stderr.wait_for(text);
        }
        assert!(process.is_running());
        process.signal(signal);
        assert_eq!(process.wait().code(), Some(0));
        assert!(
            process.stdout.all().contains("stopped: a signal came before the start was complete")
        );
    }
}

#[test]
fn the_operators_port_of_another_program_is_not_taken_over() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    // The port allows sharing, so the gateway could join it.
    socket2::SockRef::from(&holder).set_reuse_port(true).unwrap();
    let address = holder.local_addr().unwrap();
    let (status, _, log) = Setup::demo().set("admin.listen", address).run();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("can't listen for operators on {address}")), "{log}");
}

#[test]
fn a_new_gateway_waits_for_the_grace_of_an_old_one_whose_clients_may_still_come() {
    let pair = Pair::new();
    let old = pair.setup().set("shutdown.ready_grace_ms", 600_000).start();
    let mut old = Draining::begin(old);
    let setup = pair.setup();
    let mut new = setup.begin();
    old.until("the new gateway waits", || waits_for_a_drain(&new));
    let mut late = old.gateway.login(7);
    late.assert_is_served();
    assert!(new.is_running());
    // The grace is over.
    old.gateway.terminate();
    late.goodbye(Code::Draining);
    drop(late);
    new.stdout.wait_for("listening for operators on");
    let mut phone = Phone::connect(old.gateway.clients());
    phone.login(9);
    phone.assert_is_served();
    assert_eq!(old.gateway.process.wait().code(), Some(0));
    new.signal(Signal::TERM);
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(new.wait().code(), Some(0));
}
