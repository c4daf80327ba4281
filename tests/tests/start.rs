//! Gateways that want the same ports: two that start together, and one that starts while another drains.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::{SocketAddr, TcpStream};

use tidegate_tests::phone::quiz;
use tidegate_tests::port::Port;
use tidegate_tests::process::Process;
use tidegate_tests::{Code, Operator, Phone, Setup, until};

/// Rounds of two gateways that start together; the variable `START_ROUNDS` names another number.
const ROUNDS: usize = 60;

/// Addresses that overlap.
const PAIRS: [(&str, &str); 3] =
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "0.0.0.0")];

fn rounds() -> usize {
    std::env::var("START_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap())
}

/// Whether a gateway serves clients, or has found the port taken. `None`: neither yet.
fn has_the_port(process: &Process) -> Option<bool> {
    if process.stdout.so_far().contains("listening for clients on") {
        return Some(true);
    }
    process.stderr.so_far().contains("another process has this address").then_some(false)
}

/// Both are killed after each round, and the next starts on the same port at once.
#[test]
fn of_two_gateways_that_start_together_one_runs() {
    let port = Port::reserve();
    let address = |ip: &str| format!("{ip}:{}", port.number());
    let setup = |ip: &str| Setup::jwt().shards(4).set("listen", address(ip));
    let pairs = PAIRS.map(|(one, other)| [setup(one), setup(other)]);
    for round in 0..rounds() {
        let pair = &pairs[round % pairs.len()];
        let mut gateways = pair.each_ref().map(Setup::begin);
        // Both may be in each other's way at first: then they try again.
        let has_port = until("one of them has the port", || {
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
        }
        // The other way round it would have the port from a gateway that is gone.
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

/// Starts a gateway while another drains, whose answers take so long. Says whether they ran side by side.
fn takes_over(answers_take_ms: u32) -> bool {
    let (clients, operators) = (Port::reserve(), Port::reserve());
    let setup = || {
        let setup = Setup::quiz().set("listen", format!("127.0.0.1:{}", clients.number()));
        let setup = setup.set("admin.listen", format!("127.0.0.1:{}", operators.number()));
        setup.set("shutdown.drain_timeout_ms", 60_000)
    };
    let mut old = setup().start();
    let mut phones: Vec<_> = (1..=10).map(|user_id| old.login(user_id)).collect();
    let think = |phone: &mut Phone| phone.send(quiz::THINK, answers_take_ms.to_string().as_bytes());
    let asked: Vec<_> = phones.iter_mut().map(think).collect();
    let old_operator = old.operator();
    old_operator.wait_for_metric("tidegate_calls_total", "", |n| n == 10.0);
    old.terminate();
    until("it drains", || (old_operator.get("/readyz").0 == 503).then_some(()));
    // Nobody else wants the port yet: whoever asks hears of the drain.
    (0..10).for_each(|_| assert_eq!(health(old.operators()), 503));

    let new = setup().start();
    if !old.process.is_running() {
        return false;
    }
    assert_eq!((new.clients(), new.operators()), (old.clients(), old.operators()));
    new.login(7).is_served();
    (0..20).for_each(|_| assert_eq!(health(new.operators()), 200));
    new.operator().wait_for_metric("tidegate_connections_accepted_total", "", |n| n == 1.0);
    // Who was connected to the old one stays with it.
    assert_eq!(old_operator.get("/readyz").0, 503);
    let side_by_side = old.process.is_running();
    for (phone, asked) in phones.iter_mut().zip(asked) {
        assert_eq!(phone.outcome(asked).unwrap(), b"thought about it"[..]);
        phone.goodbye(Code::Draining);
    }
    drop(phones);
    assert_eq!(old.process.wait().code(), Some(0));
    new.login(8).is_served();
    (0..20).for_each(|_| assert_eq!(health(new.operators()), 200));
    side_by_side
}

/// What a connection of its own hears of `GET /readyz`.
fn health(operators: SocketAddr) -> u16 {
    Operator::new(operators, "").get("/readyz").0
}

#[test]
fn a_gateway_takes_over_from_one_that_drains() {
    // On a busy machine it takes longer to start.
    assert!([4_000, 50_000].into_iter().any(takes_over));
}

#[test]
fn an_operators_port_that_another_program_has_is_left_alone() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Anybody could join it.
    socket2::SockRef::from(&holder).set_reuse_port(true).unwrap();
    let address = holder.local_addr().unwrap();
    let (status, _, log) = Setup::demo().set("admin.listen", address).run();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("can't listen for operators on {address}")), "{log}");
}
