//! What operators see of several gateways that share a real Redis, and how they even them out.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde_json::Value;
use tidegate::cluster::metrics::{COUNTERS, GAUGES, REGISTRY};
use tidegate_tests::{
    Code, Deployment, Gateway, Operator, Phone, Redis, Setup, on_each_deployment, until,
};

/// Gateways of one system: the same Redis, and the same operators' token.
struct System<'a> {
    redis: &'a mut dyn Deployment,
    /// Keeps the token's file.
    folder: tempfile::TempDir,
}

impl<'a> System<'a> {
    fn new(redis: &'a mut dyn Deployment) -> Self {
        Self { redis, folder: tempfile::tempdir().unwrap() }
    }

    fn token_file(&self) -> PathBuf {
        self.folder.path().join("admin.token")
    }

    fn start(&self) -> Gateway {
        self.start_with(|setup| setup)
    }

    fn start_with(&self, change: impl FnOnce(Setup) -> Setup) -> Gateway {
        let setup = Setup::demo()
            .shards(2)
            .set("redis.url", format!("\"{}\"", self.redis.url()))
            .set("admin.token_file", format!("\"{}\"", self.token_file().display()))
            .set("session.heartbeat_interval_ms", 60_000);
        let gateway = change(setup).start();
        let operator = self.operator(&gateway);
        operator.wait_for_metric("tidegate_redis_up", "", |up| up == 1.0);
        gateway
    }

    fn operator(&self, gateway: &Gateway) -> Operator {
        let token = std::fs::read_to_string(self.token_file()).unwrap();
        Operator::new(gateway.operators(), token.trim())
    }

    /// Runs `tide cluster`, which has to succeed. Returns its standard output.
    fn tide(&self, gateway: &Gateway, arguments: &[&str]) -> String {
        let token_file = self.token_file().display().to_string();
        let line = [&["cluster"], arguments, &["--token-file", &token_file]].concat();
        let (status, said, log) = gateway.tide(&line, "");
        assert!(status.success(), "{line:?}\n{said}\n{log}");
        said
    }

    /// Waits until a gateway's view of all fits.
    fn wait_for(&self, gateway: &Gateway, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let operator = self.operator(gateway);
        until(what, || Some(operator.json("/cluster")).filter(&fits))
    }
}

fn address(gateway: &Gateway) -> String {
    gateway.operators().to_string()
}

/// The line of `tide cluster` with a gateway's address for clients.
fn row<'a>(page: &'a str, clients: &str) -> &'a str {
    let row = page.lines().find(|line| line.contains(&format!(" {clients} ")));
    row.unwrap_or_else(|| panic!("{clients} is not in:\n{page}"))
}

fn totals(cluster: &Value) -> (u64, u64, u64) {
    let total = |name: &str| cluster["totals"][name].as_u64().unwrap();
    (total("alive"), total("gone"), total("connections"))
}

on_each_deployment!(
    a_ban_holds_at_all_gateways_until_an_operator_of_any_lifts_it,
    each_gateway_shows_all_and_marks_those_that_are_gone,
    redis_that_is_away_is_reported_while_clients_are_served,
);

fn a_ban_holds_at_all_gateways_until_an_operator_of_any_lifts_it(redis: &mut dyn Deployment) {
    let system = System::new(redis);
    let shared = |setup: Setup| {
        setup
            .set("addresses.shares_bans", true)
            .set("addresses.exempt", "[]")
            .set("addresses.failed_logins_per_minute_max", 2)
            .set("addresses.ban_ms", 3_600_000)
    };
    let from = |last| Ipv4Addr::new(127, 0, 3, last);
    let connect =
        |gateway: &Gateway, from: Ipv4Addr| Phone::connect_tcp_from(gateway.clients(), from.into());
    let wait_for = |gateway: &Gateway, banned: Ipv4Addr, is_banned: bool| {
        let operator = system.operator(gateway);
        let text = format!("\"{banned}\"");
        until("the gateway learns it", || {
            (operator.get("/bans").1.contains(&text) == is_banned).then_some(())
        });
    };
    let (one, other) = (system.start_with(shared), system.start_with(shared));
    // An operator's ban, and one for failed logins.
    assert_eq!(system.operator(&one).post(&format!("/bans?prefix={}", from(1)), b"").0, 200);
    until("failed logins ban the address", || {
        let mut phone = connect(&one, from(2));
        phone.send_login(7, "wrong");
        phone.ask_or_end(1, b"");
        system.operator(&one).get("/bans").1.contains(&from(2).to_string()).then_some(())
    });
    for banned in [from(1), from(2)] {
        wait_for(&other, banned, true);
        connect(&other, banned).end();
    }
    connect(&other, from(3)).login(1);
    let operator = system.operator(&other);
    operator.wait_for_metric("tidegate_bans_heard_total", "", |heard| heard >= 2.0);
    // A gateway that starts later learns what still holds, and one lifts what another has banned.
    let late = system.start_with(shared);
    wait_for(&late, from(1), true);
    wait_for(&late, from(2), true);
    assert_eq!(operator.post(&format!("/bans/lift?prefix={}", from(1)), b"").0, 200);
    for gateway in [&one, &late] {
        wait_for(gateway, from(1), false);
        connect(gateway, from(1)).login(2);
        wait_for(gateway, from(2), true);
    }
}

fn each_gateway_shows_all_and_marks_those_that_are_gone(redis: &mut dyn Deployment) {
    let system = System::new(redis);
    let mut gateways = [system.start(), system.start(), system.start()];
    let users = [1, 2, 3, 4];
    let phones: Vec<_> = users.map(|user| gateways[usize::from(user > 1)].login(user)).into();
    for gateway in &gateways {
        system.wait_for(gateway, "all are known", |it| totals(it) == (3, 0, 4));
    }
    let page = system.tide(&gateways[2], &["--admin", &address(&gateways[2])]);
    let [one, three, none] = [0, 1, 2].map(|index: usize| gateways[index].clients().to_string());
    assert!(page.starts_with("Redis for pushes at redis"), "{page}");
    for (clients, connections) in [(&one, "1"), (&three, "3"), (&none, "0")] {
        let row = row(&page, clients);
        let cells: Vec<_> = row.split_whitespace().collect();
        assert!(cells.contains(&"ready") && cells.contains(&connections), "{row}");
        assert_eq!(row.contains("(this)"), *clients == none, "{row}");
    }
    assert!(page.contains("3 alive, 0 gone"), "{page}");
    let json = system.tide(&gateways[2], &["--json", "--admin", &address(&gateways[2])]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(totals(&json), (3, 0, 4));
    assert!(json["redis"][0]["round_trip_us"].as_u64().is_some(), "{json}");

    // One is killed, and stays in sight.
    gateways[1].process.kill();
    system.wait_for(&gateways[2], "the killed one is gone", |it| totals(it) == (2, 1, 1));
    let page = system.tide(&gateways[2], &["--admin", &address(&gateways[2])]);
    assert!(row(&page, &three).contains("GONE for "), "{page}");
    let operator = system.operator(&gateways[2]);
    operator.wait_for_metric("tidegate_gateways_gone", "", |gone| gone == 1.0);
    // One ends in order, and is not missed.
    gateways[0].terminate();
    gateways[0].process.wait();
    let cluster = system.wait_for(&gateways[2], "the other has left", |it| totals(it) == (1, 1, 0));
    let left = cluster["gateways"].as_array().unwrap();
    assert!(left.iter().all(|gateway| gateway["listen"] != one), "{cluster}");
    drop(phones);
}

fn redis_that_is_away_is_reported_while_clients_are_served(redis: &mut dyn Deployment) {
    let system = System::new(redis);
    let gateway = system.start();
    let operator = system.operator(&gateway);
    let mut phone = gateway.login(7);
    system.wait_for(&gateway, "it is in the registry", |it| totals(it) == (1, 0, 1));
    assert_eq!(operator.get("/readyz"), (200, "ready\n".into()));
    let (status, said) = operator.post("/cluster/rebalance", b"");
    assert!(status == 409 && said.contains("\"alone\""), "{status} {said}");

    system.redis.kill();
    let said = until("readiness says that Redis is away", || {
        let (status, said) = operator.get("/readyz");
        assert_eq!(status, 200, "{said}");
        (said != "ready\n").then_some(said)
    });
    assert!(said.starts_with("ready; Redis has been away for "), "{said}");
    assert!(said.ends_with(" s: this gateway serves its own clients\n"), "{said}");
    phone.assert_is_served();
    let mut newcomer = gateway.login(8);
    newcomer.assert_is_served();
    // The gateway's own figures stay fresh.
    let cluster =
        system.wait_for(&gateway, "the newcomer is counted", |it| totals(it) == (1, 0, 2));
    assert_eq!(cluster["redis"][0]["up"], false);
    assert!(cluster["redis"][0]["last_error"].is_string(), "{cluster}");
    let page = system.tide(&gateway, &["--admin", &address(&gateway)]);
    assert!(page.contains(": AWAY for ") && page.contains("Redis is away: "), "{page}");

    system.redis.restart();
    until("it is back", || (operator.get("/readyz").1 == "ready\n").then_some(()));
    system.wait_for(&gateway, "it is in the registry", |it| {
        it["redis"][0]["up"] == true && totals(it).0 == 1
    });
}

/// Clients that come back at the gateway with the fewest of them, as behind a load balancer that prefers it.
struct Crowd<'a> {
    gateways: [&'a Gateway; 3],
    /// Each client, and where it is.
    phones: Vec<(Phone, usize)>,
    moved: usize,
}

impl Crowd<'_> {
    fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|index| self.phones.iter().filter(|(_, at)| *at == index).count())
    }

    /// Lets the clients return that were sent away.
    fn follow(&mut self) {
        for index in 0..self.phones.len() {
            if !self.phones[index].0.has_arrived() {
                continue;
            }
            let goodbye = self.phones[index].0.goodbye(Code::Draining);
            assert!(goodbye.retry_after.as_millis() >= 1_000, "{goodbye:?}");
            let counts = self.counts();
            let at = (0..3).min_by_key(|&index| counts[index]).unwrap();
            let user = u64::try_from(index).unwrap() + 1;
            self.phones[index] = (self.gateways[at].login(user), at);
            self.moved += 1;
        }
    }
}

#[test]
fn a_gateway_that_joins_gets_its_share_of_the_clients() {
    let mut redis = Redis::single();
    let system = System::new(&mut redis);
    let old = [system.start(), system.start()];
    let login = |user: usize| (old[user % 2].login(u64::try_from(user).unwrap() + 1), user % 2);
    let phones: Vec<_> = (0..300).map(login).collect();
    let new = system.start();
    let mut crowd = Crowd { gateways: [&old[0], &old[1], &new], phones, moved: 0 };
    for gateway in &old {
        system.wait_for(gateway, "all are known", |it| totals(it) == (3, 0, 300));
    }
    // Everybody has just come.
    let addresses = [address(&old[0]), address(&old[1])];
    let both = ["rebalance", "--gateway", &addresses[0], &addresses[1]];
    let dry = system.tide(&new, &[&both[..], &["--dry-run", "--spare-s", "3600"]].concat());
    assert_eq!(dry.matches("sends nobody away").count(), 2, "{dry}");
    assert_eq!(dry.matches("all of its clients came in the last 3600 s").count(), 2, "{dry}");
    let dry = system.tide(&new, &[&both[..], &["--dry-run", "--spare-s", "0"]].concat());
    assert_eq!(dry.matches("would send 50 clients away").count(), 2, "{dry}");
    assert_eq!(dry.matches("150 connections, and its share is 100").count(), 2, "{dry}");
    let said = system.tide(&new, &[&both[..], &["--spare-s", "0", "--per-second", "100"]].concat());
    assert_eq!(said.matches("sends 50 clients away").count(), 2, "{said}");
    let operators = [&old[0], &old[1]].map(|gateway| system.operator(gateway));
    until("both have ended", || {
        crowd.follow();
        let has_ended = |it: &Operator| it.json("/cluster/rebalance")["state"] == "done";
        operators.iter().all(has_ended).then_some(())
    });
    for operator in &operators {
        assert_eq!(operator.json("/cluster/rebalance")["sent"], 50);
    }
    let sessions = |gateway: &Gateway| {
        system.operator(gateway).json("/stats")["totals"]["sessions"].as_u64().unwrap()
    };
    until("everybody is back", || {
        crowd.follow();
        let counts = crowd.gateways.map(sessions);
        (counts.iter().sum::<u64>() == 300 && crowd.moved == 100).then_some(())
    });
    let counts = crowd.gateways.map(sessions);
    assert!(counts.iter().all(|count| (95..=105).contains(count)), "{counts:?}");
    crowd.phones.iter_mut().for_each(|(phone, _)| phone.assert_is_served());
    // All are even now.
    let cluster = system.wait_for(&old[0], "the figures are new", |it| {
        let even = |it: &Value| (95..=105).contains(&it["connections"].as_u64().unwrap());
        it["gateways"].as_array().unwrap().iter().all(even)
    });
    assert_eq!(totals(&cluster).0, 3);
}

#[test]
fn gateways_with_different_ticket_keys_are_named_and_warned_about() {
    // Each gateway makes a key in its own folder.
    let mut redis = Redis::single();
    let system = System::new(&mut redis);
    let gateways = [system.start(), system.start()];
    for gateway in &gateways {
        let cluster = system.wait_for(gateway, "both are known", |it| totals(it).0 == 2);
        let keys = cluster["gateways"].as_array().unwrap();
        assert_ne!(keys[0]["ticket_key"], keys[1]["ticket_key"]);
        gateway.process.stderr.find("the warning", |log| {
            log.contains("give both the same rooms.ticket_key_file").then_some(())
        });
    }
    let page = system.tide(&gateways[0], &["--admin", &address(&gateways[0])]);
    let other = format!("Other ticket key than this gateway's: {}.", gateways[1].clients());
    assert!(page.contains(&other), "{page}");
}

#[test]
fn without_redis_an_operator_says_how_many_clients_go() {
    let gateway = Setup::demo().shards(2).start();
    let mut phones: Vec<_> = (1..=10).map(|user| gateway.login(user)).collect();
    let admin = address(&gateway);
    let order =
        ["cluster", "rebalance", "--admin", &admin, "--spare-s", "0", "--per-second", "1000"];
    let (status, _, said) = gateway.tide(&order, "");
    assert!(!status.success() && said.contains("?count=N"), "{said}");
    let (status, _, said) = gateway.tide(&["cluster", "--admin", &admin], "");
    assert!(!status.success() && said.contains("redis.url is not set"), "{said}");
    let (status, said, log) = gateway.tide(&[&order[..], &["--count", "4"]].concat(), "");
    assert!(status.success() && said.contains("sends 4 clients away"), "{said} {log}");
    gateway.operator().wait_for_total("sessions", 6);
    until("four were told", || {
        (phones.iter().filter(|phone| phone.has_arrived()).count() == 4).then_some(())
    });
    for phone in &mut phones {
        if phone.has_arrived() {
            phone.goodbye(Code::Draining);
        } else {
            phone.assert_is_served();
        }
    }
    let closed = |n| n == 4.0;
    gateway.operator().wait_for_metric(
        "tidegate_connections_closed_total",
        "\"rebalanced\"",
        closed,
    );
    let (status, said, _) =
        gateway.tide(&["cluster", "rebalance", "--cancel", "--admin", &admin], "");
    assert!(status.success() && said.contains("done: 4 of 4 clients"), "{said}");
}

#[test]
fn every_metric_of_a_gateway_with_redis_is_exported_and_listed_in_the_readme() {
    let mut redis = Redis::single();
    let system = System::new(&mut redis);
    let gateway = system.start();
    let operator = system.operator(&gateway);
    operator.wait_for_metric("tidegate_gateways_alive", "", |alive| alive == 1.0);
    let (_, text) = operator.get("/metrics");
    let readme = include_str!("../../README.md");
    for (name, help) in [COUNTERS, GAUGES, REGISTRY].concat() {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help text");
        assert!(text.contains(&format!("\n{name} ")), "{name} has no value");
        let row = format!("| `{name}` |  | {help} |");
        assert!(readme.contains(&row), "README.md lacks {row}");
    }
}
