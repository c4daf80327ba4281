//! One session a user over all gateways: the newest.

use std::sync::Barrier;
use std::thread;

use fastrand::Rng;
use redis::Connection;

use super::{Arrival, Subscriber, call, connect, server};

const USERS: &str = "tg1:users:{u7}";

/// Calls `tidegate_arrive` for one session of user 7: KNOWN 0 draws a stamp.
fn arrive(
    connection: &mut Connection,
    gateway: &str,
    max: u32,
    age_ms: u64,
    known: u64,
) -> Arrival {
    let (max, age_ms, known) = (max.to_string(), age_ms.to_string(), known.to_string());
    let arguments = [gateway, &max, "1", "7", &age_ms, &known];
    let answer: Vec<Arrival> = call(connection, "arrive", USERS, &arguments).unwrap();
    answer[0]
}

fn entries(connection: &mut Connection) -> String {
    let answer: Vec<String> = call(connection, "online", USERS, &["7"]).unwrap();
    answer[0].clone()
}

fn all_alive(connection: &mut Connection, gateways: &[&str]) {
    for gateway in gateways {
        call::<u64>(connection, "alive", USERS, &[gateway, "3600000"]).unwrap();
    }
}

#[test]
fn a_login_replaces_the_session_at_another_gateway() {
    let (redis, mut connection) = server();
    all_alive(&mut connection, &["a", "b"]);
    let mut a = Subscriber::new(&redis, &format!("{USERS}:a"));
    let (old, winning) = arrive(&mut connection, "a", 1, 0, 0);
    assert_eq!(old, winning);
    let (new, winning) = arrive(&mut connection, "b", 1, 0, 0);
    assert!(new > old && winning == new);
    assert_eq!(a.next(), format!("r 7 {new}\n"));
    assert_eq!(entries(&mut connection), format!("b:{new}"));
    // The older session is asserted again: it learns that it is replaced, and the newer one stays.
    assert_eq!(arrive(&mut connection, "a", 1, 0, old), (old, new));
    assert_eq!(entries(&mut connection), format!("b:{new}"));
    // A login that is older than the session, since it waited while Redis was away.
    let (waited, winning) = arrive(&mut connection, "a", 1, 60_000, 0);
    assert!(waited < new && winning == new);
    // The winner asserts itself again: nothing changes.
    assert_eq!(arrive(&mut connection, "b", 1, 0, new), (new, new));
    assert_eq!(entries(&mut connection), format!("b:{new}"));
}

#[test]
fn equal_stamps_are_made_unique() {
    let (_redis, mut connection) = server();
    all_alive(&mut connection, &["a", "b"]);
    assert_eq!(arrive(&mut connection, "a", 1, 0, 1000), (1000, 1000));
    assert_eq!(arrive(&mut connection, "b", 1, 0, 1000), (1001, 1001));
    assert_eq!(entries(&mut connection), "b:1001");
}

#[test]
fn a_clock_that_goes_back_does_not_make_a_new_login_the_older_one() {
    let (_redis, mut connection) = server();
    all_alive(&mut connection, &["a", "b"]);
    let ahead = 9_000_000_000_000_u64;
    super::command::<String>(
        &mut connection,
        &["SET", &format!("{USERS}:stamp"), &ahead.to_string()],
    );
    assert_eq!(arrive(&mut connection, "a", 1, 0, 0).0, ahead + 1);
    assert_eq!(arrive(&mut connection, "b", 1, 0, 0), (ahead + 2, ahead + 2));
}

#[test]
fn a_session_at_a_gateway_that_is_not_alive_wins_against_nobody() {
    let (redis, mut connection) = server();
    all_alive(&mut connection, &["a"]);
    let mut late = Subscriber::new(&redis, &format!("{USERS}:late"));
    arrive(&mut connection, "late", 1, 0, 9_000_000_000_000);
    let (stamp, winning) = arrive(&mut connection, "a", 1, 0, 0);
    assert_eq!(stamp, winning);
    assert_eq!(entries(&mut connection), format!("a:{stamp}"));
    // It is notified nevertheless, and asserts its newer session when it is back.
    assert_eq!(late.next(), format!("r 7 {stamp}\n"));
    all_alive(&mut connection, &["late"]);
    arrive(&mut connection, "late", 1, 0, 9_000_000_000_000);
    assert_eq!(entries(&mut connection), "late:9000000000000");
}

#[test]
fn the_newest_gateways_stay_where_a_user_may_have_several_sessions() {
    let (redis, mut connection) = server();
    all_alive(&mut connection, &["a", "b", "c"]);
    let mut a = Subscriber::new(&redis, &format!("{USERS}:a"));
    arrive(&mut connection, "a", 2, 0, 10);
    arrive(&mut connection, "b", 2, 0, 20);
    assert_eq!(arrive(&mut connection, "c", 2, 0, 30), (30, 20));
    assert_eq!(a.next(), "r 7 20\n");
    assert_eq!(entries(&mut connection), "b:20 c:30");
    // No bound.
    assert_eq!(arrive(&mut connection, "a", 0, 0, 40), (40, 0));
    assert_eq!(entries(&mut connection), "b:20 c:30 a:40");
}

/// A gateway with at most one session of the user.
struct Gateway {
    id: &'static str,
    channel: Subscriber,
    session: Option<u64>,
}

impl Gateway {
    /// Applies the answer to an arrival.
    fn settle(&mut self, (stamp, winning): Arrival) {
        self.session = (stamp >= winning).then_some(stamp);
    }

    fn depart(&self, connection: &mut Connection, stamp: u64) {
        let arguments = [self.id, "0", "1", "7", &stamp.to_string()];
        call::<u64>(connection, "depart", USERS, &arguments).unwrap();
    }

    /// Reads all messages until the one that says that no more will come.
    fn hear(&mut self, connection: &mut Connection) {
        let channel = format!("{USERS}:{}", self.id);
        super::command::<u64>(connection, &["SPUBLISH", &channel, "end"]);
        loop {
            let message = self.channel.next();
            if message == "end" {
                return;
            }
            let winning = message.strip_prefix("r 7 ").unwrap().trim_end().parse().unwrap();
            if let Some(stamp) = self.session.take_if(|stamp| *stamp < winning) {
                // It may have asserted the session again while the message was on its way.
                self.depart(connection, stamp);
            }
        }
    }
}

/// One race: logins, ends, repeated assertions and late messages in any order. Returns the newest stamp.
fn race(rng: &mut Rng, connection: &mut Connection, gateways: &mut [Gateway]) -> u64 {
    for _ in 0..12 {
        let gateway = rng.choice(gateways.iter_mut()).unwrap();
        match (rng.u8(0..4), gateway.session) {
            (0, Some(stamp)) => {
                gateway.session = None;
                gateway.depart(connection, stamp);
            }
            (1, Some(stamp)) => gateway.settle(arrive(connection, gateway.id, 1, 0, stamp)),
            (2, _) => gateway.hear(connection),
            _ => {
                // A login, which may have waited, so that it is older than another one.
                let age_ms = if rng.bool() { 0 } else { rng.u64(0..5) };
                gateway.settle(arrive(connection, gateway.id, 1, age_ms, 0));
            }
        }
    }
    // At last every gateway logs its user in, and then receives what the others did.
    let mut newest = 0;
    rng.shuffle(gateways);
    for gateway in gateways.iter_mut() {
        let arrival = arrive(connection, gateway.id, 1, rng.u64(0..5), 0);
        newest = newest.max(arrival.1);
        gateway.settle(arrival);
    }
    gateways.iter_mut().for_each(|gateway| gateway.hear(connection));
    newest
}

#[test]
fn one_session_is_left_after_any_order_of_logins_and_ends() {
    let (redis, mut connection) = server();
    let ids = ["a", "b", "c", "d"];
    all_alive(&mut connection, &ids);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let mut gateways = ids.map(|id| Gateway {
        id,
        channel: Subscriber::new(&redis, &format!("{USERS}:{id}")),
        session: None,
    });
    for _ in 0..1000 {
        let newest = race(&mut rng, &mut connection, &mut gateways);
        let left: Vec<String> = gateways
            .iter()
            .filter_map(|gateway| Some(format!("{}:{}", gateway.id, gateway.session?)))
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].ends_with(&newest.to_string()), "{left:?} {newest}");
        assert_eq!(entries(&mut connection), left[0]);
    }
}

#[test]
fn the_newest_of_logins_at_the_same_moment_is_left() {
    let (redis, mut connection) = server();
    let ids = ["a", "b", "c", "d"];
    all_alive(&mut connection, &ids);
    let barrier = Barrier::new(ids.len());
    for _ in 0..100 {
        let arrivals: Vec<(&str, Arrival)> = thread::scope(|scope| {
            let login = |id| {
                let (mut connection, barrier) = (connect(&redis), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    (id, arrive(&mut connection, id, 1, 0, 0))
                })
            };
            let threads = ids.map(login);
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let newest = arrivals.iter().max_by_key(|(_, (stamp, _))| stamp).unwrap();
        assert_eq!(entries(&mut connection), format!("{}:{}", newest.0, newest.1.0));
    }
}
