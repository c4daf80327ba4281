//! Users: their presence, pushes to them, and offline events.

use redis::{Connection, Value};
use tidegate_tests::{RedisSetup, until};

use super::{Arrival, Subscriber, call, command, connect, life_ms, server, start};

const USERS: &str = "tg1:users:{u7}";

fn alive(connection: &mut Connection, gateway: &str, valid_ms: &str) -> u64 {
    call(connection, "alive", USERS, &[gateway, valid_ms]).unwrap()
}

fn arrive(connection: &mut Connection, gateway: &str, max: &str, user: &str) -> Arrival {
    let answer: Vec<Arrival> =
        call(connection, "arrive", USERS, &[gateway, max, "1", user, "0", "0"]).unwrap();
    answer[0]
}

fn online(connection: &mut Connection, user: &str) -> String {
    let answer: Vec<String> = call(connection, "online", USERS, &[user]).unwrap();
    answer[0].clone()
}

fn due(connection: &mut Connection) -> Vec<(String, u64)> {
    call(connection, "due", USERS, &["100"]).unwrap()
}

/// Waits until a gateway's time is over.
fn wait_until_dead(connection: &mut Connection, user: &str) {
    until("the gateway's time is over", || online(connection, user).is_empty().then_some(()));
}

#[test]
fn a_gateway_gets_an_unused_id_even_after_a_loss_of_data() {
    let (_redis, mut connection) = server();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id: String = call(&mut connection, "gateway_id", "tg1:gateways", &[]).unwrap();
        assert!((1..=8).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!ids.contains(&id));
        ids.push(id);
    }
    command::<Value>(&mut connection, &["FLUSHALL"]);
    // The counter is ahead of the clock by at most as many ids as were drawn within a second.
    until("the clock has passed the last id", || {
        let id: String = call(&mut connection, "gateway_id", "tg1:gateways", &[]).unwrap();
        command::<Value>(&mut connection, &["FLUSHALL"]);
        (!ids.contains(&id) && id > *ids.last().unwrap()).then_some(())
    });
}

#[test]
fn a_push_goes_to_the_gateways_that_have_the_user_and_to_no_other() {
    let (redis, mut connection) = server();
    for gateway in ["a", "b", "c"] {
        alive(&mut connection, gateway, "60000");
    }
    let mut channels =
        ["a", "b", "c"].map(|gateway| Subscriber::new(&redis, &format!("{USERS}:{gateway}")));
    for gateway in ["a", "b"] {
        arrive(&mut connection, gateway, "0", "7");
    }
    arrive(&mut connection, "c", "0", "135");
    let mut push = |arguments: &[&str]| -> (u64, u64) {
        call(&mut connection, "push_user", USERS, arguments).unwrap()
    };
    assert_eq!(push(&["7", "5", "one\ntwo"]), (2, 2));
    assert_eq!(push(&["7", "5", "but a", "", "0", "a"]), (1, 1));
    assert_eq!(push(&["263", "5", "offline"]), (0, 0));
    assert_eq!(push(&["135", "5", "once", "k"]), (1, 1));
    assert_eq!(push(&["135", "5", "once", "k"]), (1, 1));
    // The key is the user's own.
    assert_eq!(push(&["7", "5", "last", "k"]), (2, 2));
    let many = [
        "3", "135", "6", "x", "", "0", "", "8", "6", "x", "", "0", "", "7", "6", "y", "", "0", "b",
    ];
    let answers: Vec<Value> = call(&mut connection, "push_users", USERS, &many).unwrap();
    assert_eq!(answers[0], Value::Array(vec![Value::Int(1), Value::Int(1)]));
    let Value::BulkString(refused) = &answers[1] else { panic!("{:?}", answers[1]) };
    assert!(refused.starts_with(b"TIDEGATE_BAD_USER "));
    let kicked: (u64, u64) = call(&mut connection, "kick", USERS, &["7", "a"]).unwrap();
    let expelled: (u64, u64) = call(&mut connection, "expel", USERS, &["7", "a room"]).unwrap();
    assert_eq!((kicked, expelled), ((1, 1), (2, 2)));

    let mut seen = |gateway: usize, count: usize| -> Vec<String> {
        (0..count).map(|_| channels[gateway].next()).collect()
    };
    let one = "p 7 5 0\none\ntwo";
    assert_eq!(seen(0, 4), [one, "p 7 5 0\nlast", "p 7 6 0\ny", "e 7\na room"]);
    assert_eq!(seen(1, 5), [one, "p 7 5 0\nbut a", "p 7 5 0\nlast", "k 7\n", "e 7\na room"]);
    assert_eq!(seen(2, 2), ["p 135 5 0\nonce", "p 135 6 0\nx"]);
    let once = "tg1:users:{u7}:once:135:k";
    assert!((240_000..=300_000).contains(&life_ms(&mut connection, once)));
}

#[test]
fn a_push_to_a_user_carries_its_expiry() {
    let (redis, mut connection) = server();
    arrive(&mut connection, "a", "0", "7");
    let mut channel = Subscriber::new(&redis, &format!("{USERS}:a"));
    // The gateway is not alive yet or late, but it receives.
    let push: (u64, u64) =
        call(&mut connection, "push_user", USERS, &["7", "5", "x", "", "5000"]).unwrap();
    assert_eq!(push, (1, 1));
    let message = channel.next();
    let expires_ms: u64 =
        message.strip_prefix("p 7 5 ").unwrap().strip_suffix("\nx").unwrap().parse().unwrap();
    let (seconds, _): (u64, u64) = command(&mut connection, &["TIME"]);
    assert!((seconds * 1000 - 60_000..=seconds * 1000 + 6000).contains(&expires_ms));
}

#[test]
fn a_user_who_left_is_due_after_the_grace_time_until_the_event_is_written() {
    let (_redis, mut connection) = server();
    alive(&mut connection, "a", "60000");
    let depart = |connection: &mut Connection, grace_ms: &str, stamp: u64| -> u64 {
        call(connection, "depart", USERS, &["a", grace_ms, "1", "7", &stamp.to_string()]).unwrap()
    };
    let (old, _) = arrive(&mut connection, "a", "1", "7");
    let (stamp, _) = arrive(&mut connection, "a", "1", "7");
    // The end of an older session does not end the newer one.
    assert_eq!(depart(&mut connection, "0", old), 0);
    assert_eq!(due(&mut connection), []);
    // A user who reconnects within the grace time never left.
    assert_eq!(depart(&mut connection, "60000", stamp), 1);
    assert_eq!((due(&mut connection), online(&mut connection, "7").as_str()), (vec![], ""));
    let (stamp, _) = arrive(&mut connection, "a", "1", "7");
    assert_eq!(command::<u64>(&mut connection, &["EXISTS", "tg1:users:{u7}:left"]), 0);

    depart(&mut connection, "0", stamp);
    let first = due(&mut connection);
    assert_eq!(first[0].0, "7");
    // A gateway that dies before it has written the event loses nothing. A repeated departure changes nothing.
    depart(&mut connection, "60000", stamp);
    assert_eq!(due(&mut connection), first);
    // The user reconnects and leaves again: that needs a separate event.
    until("the clock advances", || {
        let (stamp, _) = arrive(&mut connection, "a", "1", "7");
        depart(&mut connection, "0", stamp);
        (due(&mut connection) != first).then_some(())
    });
    let told = |connection: &mut Connection, event: &(String, u64)| -> u64 {
        call(connection, "told", USERS, &[&event.0, &event.1.to_string()]).unwrap()
    };
    assert_eq!(told(&mut connection, &first[0]), 0);
    let second = due(&mut connection);
    assert_eq!(told(&mut connection, &second[0]), 1);
    assert_eq!(due(&mut connection), []);
}

#[test]
fn users_of_a_dead_gateway_are_swept_and_become_due() {
    let (_redis, mut connection) = server();
    alive(&mut connection, "a", "60000");
    alive(&mut connection, "dead", "60000");
    for user in ["7", "135"] {
        arrive(&mut connection, "dead", "0", user);
    }
    arrive(&mut connection, "a", "0", "135");
    alive(&mut connection, "dead", "1");
    wait_until_dead(&mut connection, "7");
    assert_eq!(call::<u64>(&mut connection, "count_users", USERS, &[]).unwrap(), 2);
    let push: (u64, u64) = call(&mut connection, "push_user", USERS, &["7", "5", "x"]).unwrap();
    assert_eq!(push, (0, 0));
    let swept: Vec<u64> = (0..32)
        .map(|bucket: u64| {
            call(&mut connection, "sweep", USERS, &[&bucket.to_string(), "0"]).unwrap()
        })
        .collect();
    assert_eq!(swept.iter().sum::<u64>(), 2);
    assert_eq!(call::<u64>(&mut connection, "count_users", USERS, &[]).unwrap(), 1);
    let due = due(&mut connection);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].0, "7");
    // A gateway that was late only asserts its users again.
    let again = arrive(&mut connection, "dead", "0", "7");
    assert_eq!(again.1, 0);
    assert_eq!(call::<Vec<Value>>(&mut connection, "due", USERS, &["100"]).unwrap(), []);
}

#[test]
fn a_gateway_learns_that_its_entries_may_be_lost() {
    let (mut redis, mut connection) = start(RedisSetup::default().append_only());
    assert_eq!(alive(&mut connection, "a", "60000"), 0);
    assert_eq!(alive(&mut connection, "a", "1"), 1);
    arrive(&mut connection, "a", "0", "7");
    wait_until_dead(&mut connection, "7");
    assert_eq!(alive(&mut connection, "a", "60000"), 0);
    assert_eq!(alive(&mut connection, "a", "60000"), 1);
    redis.kill();
    redis.restart();
    let mut connection = connect(&redis);
    assert_eq!(alive(&mut connection, "a", "60000"), 0);
    assert_eq!(alive(&mut connection, "a", "60000"), 1);
}

#[test]
fn a_gateway_that_expired_long_ago_is_forgotten() {
    let (_redis, mut connection) = server();
    alive(&mut connection, "recent", "1");
    let long_ago = "1000 abcdef";
    let gateways = "tg1:users:{u7}:gateways";
    command::<u64>(&mut connection, &["HSET", gateways, "old", long_ago]);
    alive(&mut connection, "a", "60000");
    let known: Vec<String> = command(&mut connection, &["HKEYS", gateways]);
    assert_eq!(known, ["recent", "a"]);
}
