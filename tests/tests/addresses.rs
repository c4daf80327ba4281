//! Limits by address: connections, accepts, failed logins and bans, and what operators see of them.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::Ipv4Addr;
use std::process::ExitStatus;

use serde_json::Value;
use tidegate_tests::gateway::address_of;
use tidegate_tests::{Code, Gateway, Phone, Setup, Wire, until};

/// Addresses of this machine: all of 127.0.0.0/8 is.
const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);

/// A gateway on which loopback has limits, too.
fn limited() -> Setup {
    Setup::demo().set("addresses.exempt", "[]")
}

fn connect(gateway: &Gateway, from: Ipv4Addr) -> Phone {
    let address = gateway.address(Wire::Tcp);
    Phone::connect_from(from, address, Wire::Tcp, |_| unreachable!("it has no TLS")).unwrap()
}

fn closed_for(gateway: &Gateway, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    gateway.operator().metric("tidegate_connections_closed_total", &label).unwrap()
}

/// Runs `tide bans` with these arguments.
fn tide_bans(gateway: &Gateway, arguments: &[&str]) -> (ExitStatus, String, String) {
    let operators = gateway.operators().to_string();
    gateway.tide(&[&["bans", "--admin", &operators], arguments].concat(), "")
}

/// The phone is told to come back, in 10 to 20 seconds.
fn is_told_to_come_back(mut phone: Phone) {
    let goodbye = phone.goodbye(Code::Draining);
    assert!((10_000..=20_000).contains(&goodbye.retry_after.as_millis()), "{goodbye:?}");
}

#[test]
fn an_address_has_its_connections_and_others_have_theirs() {
    let gateway = limited().shards(2).set("addresses.connections_max", 3).start();
    let mut phones: Vec<_> = (0..3).map(|_| connect(&gateway, GREEDY)).collect();
    phones.iter_mut().for_each(Phone::heartbeat);
    is_told_to_come_back(connect(&gateway, GREEDY));
    connect(&gateway, HONEST).login(1);
    until("refused", || (closed_for(&gateway, "address_connections") == 1.0).then_some(()));
    drop(phones.pop());
    // The gateway has to notice that it is gone.
    until("a place is free", || {
        let mut phone = connect(&gateway, GREEDY);
        phone.ask_or_end(1, b"").map(|_| phones.push(phone))
    });
}

#[test]
fn a_network_has_its_connections_whatever_its_addresses_have() {
    let gateway = limited().set("addresses.network_connections_max", 3).start();
    let from = |last| connect(&gateway, Ipv4Addr::new(127, 0, 2, last));
    let mut phones: Vec<_> = (1..=3).map(from).collect();
    phones.iter_mut().for_each(Phone::heartbeat);
    is_told_to_come_back(from(4));
    connect(&gateway, HONEST).login(1);
}

#[test]
fn an_address_has_a_rate_of_accepts() {
    let setup = limited().set("addresses.accepts_per_second_max", 1);
    let gateway = setup.set("addresses.accepts_burst_max", 2).start();
    let refused = || closed_for(&gateway, "address_accepts");
    until("one is refused", || {
        drop(connect(&gateway, GREEDY));
        (refused() > 0.0).then_some(())
    });
    connect(&gateway, HONEST).login(1);
}

/// Fails to log in until its address is banned.
fn get_banned(gateway: &Gateway, from: Ipv4Addr) {
    until("banned", || {
        let mut phone = connect(gateway, from);
        phone.send_login(7, "wrong");
        phone.ask_or_end(1, b"");
        let (_, bans) = gateway.operator().get("/bans");
        bans.contains(&from.to_string()).then_some(())
    });
}

#[test]
fn too_many_failed_logins_ban_an_address_until_an_operator_lifts_it() {
    let setup = limited().set("addresses.failed_logins_per_minute_max", 4);
    let gateway = setup.set("addresses.ban_ms", 3_600_000).start();
    get_banned(&gateway, GREEDY);
    let said = connect(&gateway, GREEDY).read_bytes();
    assert!(said.is_ok_and(|said| said.is_empty()), "it is told nothing");
    connect(&gateway, HONEST).login(1);
    let (status, said, _) = tide_bans(&gateway, &[]);
    assert!(status.success() && said.contains(&GREEDY.to_string()), "{said}");
    let (status, said, _) = tide_bans(&gateway, &["lift", &GREEDY.to_string()]);
    assert!(status.success() && said.contains("no longer banned"), "{said}");
    connect(&gateway, GREEDY).login(2);
    let (status, _, said) = tide_bans(&gateway, &["lift", &GREEDY.to_string()]);
    assert!(!status.success() && said.contains("is not banned"), "{said}");
}

#[test]
fn a_ban_ends_by_itself() {
    let setup = limited().set("addresses.failed_logins_per_minute_max", 4);
    let gateway = setup.set("addresses.ban_ms", 1_000).start();
    get_banned(&gateway, GREEDY);
    until("the ban has ended", || {
        let (_, bans) = gateway.operator().get("/bans");
        let bans: Value = serde_json::from_str(&bans).unwrap();
        (bans["count"] == 0).then_some(())
    });
    connect(&gateway, GREEDY).login(2);
}

#[test]
fn an_operator_bans_a_network_and_open_connections_stay() {
    let gateway = limited().start();
    let mut open = connect(&gateway, GREEDY);
    open.login(1);
    let (status, said, error) = tide_bans(&gateway, &["add", "127.0.2.0/24", "--for", "1h"]);
    assert!(status.success() && said.contains("banned for 3600 s"), "{said} {error}");
    connect(&gateway, GREEDY).end();
    until("it is counted", || (closed_for(&gateway, "banned") == 1.0).then_some(()));
    open.assert_is_served();
    connect(&gateway, HONEST).login(2);
    for (wrong, part) in [("127.0.0.0/16", "/24"), ("localhost", "IPv4 address")] {
        let (status, _, said) = tide_bans(&gateway, &["add", wrong]);
        assert!(!status.success() && said.contains(part), "{said}");
    }
}

#[test]
fn behind_a_balancer_the_client_is_banned_and_not_the_balancer() {
    let setup = limited().set("addresses.failed_logins_per_minute_max", 2);
    let setup = setup.listener("balanced", Wire::Tcp);
    let gateway = setup.set("listeners.balanced.proxy_from", r#"["127.0.0.0/8"]"#).start();
    let place = gateway.places().pop().unwrap();
    let connect = |client: &str| {
        let mut phone = Phone::connect(address_of(&place));
        phone.send_bytes(format!("PROXY TCP4 {client} 192.0.2.1 1 2\r\n").as_bytes());
        phone
    };
    until("banned", || {
        let mut phone = connect("203.0.113.7");
        phone.send_login(7, "wrong");
        phone.ask_or_end(1, b"");
        gateway.operator().get("/bans").1.contains("203.0.113.7").then_some(())
    });
    connect("203.0.113.7").end();
    connect("203.0.113.8").login(1);
}

#[test]
fn without_limits_nobody_is_refused() {
    let gateway = Setup::demo().start();
    let phones: Vec<_> = (0..50).map(|_| connect(&gateway, GREEDY)).collect();
    drop(phones);
    for _ in 0..10 {
        let mut phone = connect(&gateway, GREEDY);
        phone.send_login(7, "wrong");
        phone.heartbeat();
    }
    connect(&gateway, GREEDY).login(1);
    assert_eq!(gateway.operator().get("/bans").1, r#"{"count":0,"bans":[]}"#);
}
