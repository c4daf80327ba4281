//! Rooms: pushes, batches, what is held and for how long.

use std::collections::HashMap;

use redis::{Connection, RedisResult, Value};
use tidegate_tests::until;

use super::{Published, Subscriber, call, command, connect, held, life_ms, open, server, word};

const ROOM: &str = "tg1:room:{r7}";
const LOG: &str = "tg1:room:{r7}:log";

#[test]
fn a_durable_push_is_numbered_stored_and_sent() {
    let (redis, mut connection) = server();
    let mut gateway = Subscriber::new(&redis, ROOM);
    let first: Published = call(&mut connection, "publish", ROOM, &["5", "one\ntwo"]).unwrap();
    let log = first.2.clone();
    assert_eq!(first, ("ok".to_owned(), 1, log.clone(), 1, 0));
    assert_eq!(log.len(), 16);
    assert!(log.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_eq!(gateway.next(), format!("n {log} 0\n"));
    assert_eq!(gateway.next(), format!("d {log} 1 5 0\none\ntwo"));

    let timed: Published = call(&mut connection, "publish", ROOM, &["6", "", "", "5000"]).unwrap();
    assert_eq!(timed.1, 2);
    let opened = open(&mut connection, ROOM, "-", "10", "durable");
    assert_eq!((&opened.log, opened.base, opened.head, opened.first), (&log, 0, 2, 1));
    assert_eq!(opened.entries[0], (1, 5, 0, "one\ntwo".to_owned()));
    let (offset, kind, expires_ms, payload) = opened.entries[1].clone();
    assert_eq!((offset, kind, payload.as_str()), (2, 6, ""));
    let (seconds, micros): (u64, u64) = command(&mut connection, &["TIME"]);
    let now_ms = seconds * 1000 + micros / 1000;
    assert!(expires_ms <= now_ms + 5000 && expires_ms > now_ms - 60_000, "{expires_ms} {now_ms}");
    assert_eq!(gateway.next(), format!("d {log} 2 6 {expires_ms}\n"));
    // The stream's id is the offset.
    let entries: Vec<(String, Vec<String>)> = command(&mut connection, &["XRANGE", LOG, "2", "2"]);
    assert_eq!(entries[0].0, "2-0");
}

#[test]
fn a_fleeting_push_is_sent_and_not_stored() {
    let (redis, mut connection) = server();
    let opened = open(&mut connection, ROOM, "-", "10", "fleeting");
    let mut gateway = Subscriber::new(&redis, ROOM);
    let push: Published = call(&mut connection, "publish", ROOM, &["5", "boo", "k"]).unwrap();
    assert_eq!(push, ("ok".to_owned(), 0, opened.log, 1, 0));
    assert_eq!(gateway.next(), "f 5 0\nboo");
    let again: Published = call(&mut connection, "publish", ROOM, &["5", "boo", "k"]).unwrap();
    assert_eq!(again, push);
    let batch = ["w", "1", "2", "6", "x", "", "0", "7", "y", "", "0"];
    for _ in 0..2 {
        let many: (String, u64, u64, u64, u64) =
            call(&mut connection, "publish_many", ROOM, &batch).unwrap();
        assert_eq!((many.1, many.3, many.4), (1, 0, 0));
    }
    // Neither the repeated push nor the repeated batch was sent twice.
    call::<Value>(&mut connection, "publish", ROOM, &["9", "end"]).unwrap();
    let seen: Vec<String> = (0..3).map(|_| gateway.next()).collect();
    assert_eq!(seen, ["f 6 0\nx", "f 7 0\ny", "f 9 0\nend"]);
    assert_eq!(command::<u64>(&mut connection, &["EXISTS", LOG]), 0);
    assert!(life_ms(&mut connection, ROOM) > 0);
}

#[test]
fn a_room_that_changes_its_class_drops_its_stream_and_keeps_its_offsets() {
    let (_redis, mut connection) = server();
    for payload in ["a", "b"] {
        call::<Value>(&mut connection, "publish", ROOM, &["1", payload]).unwrap();
    }
    assert_eq!(open(&mut connection, ROOM, "-", "10", "fleeting").entries, []);
    assert_eq!(command::<u64>(&mut connection, &["EXISTS", LOG]), 0);
    let opened = open(&mut connection, ROOM, "-", "10", "durable");
    assert_eq!((opened.head, opened.first), (2, 3));
    let push: Published = call(&mut connection, "publish", ROOM, &["1", "c"]).unwrap();
    assert_eq!(push.1, 3);
    // The new stream does not live for ever.
    assert!(life_ms(&mut connection, LOG) > 0);
}

#[test]
fn a_repeat_is_answered_as_the_first_and_not_done() {
    let (redis, mut connection) = server();
    // A push that is refused leaves its key free.
    let refused = call::<Value>(&mut connection, "publish", ROOM, &["0", "p", "k"]);
    assert_eq!(word(refused), "TIDEGATE_BAD_TYPE");
    let first: Published = call(&mut connection, "publish", ROOM, &["1", "p", "k"]).unwrap();
    assert_eq!(first.1, 1);
    call::<Value>(&mut connection, "publish", ROOM, &["1", "q"]).unwrap();
    let _gateway = Subscriber::new(&redis, ROOM);
    let repeat: Published = call(&mut connection, "publish", ROOM, &["1", "p", "k"]).unwrap();
    assert_eq!(repeat, first);
    assert_eq!(held(&mut connection, ROOM).len(), 2);
    // Another room's key is another one.
    let other: Published =
        call(&mut connection, "publish", "tg1:room:{r8}", &["1", "p", "k"]).unwrap();
    assert_eq!(other.1, 1);

    let once = "tg1:room:{r7}:once:k";
    assert!((240_000..=300_000).contains(&life_ms(&mut connection, once)));
    command::<u64>(&mut connection, &["PEXPIRE", once, "1"]);
    until("five minutes are over", || {
        (command::<u64>(&mut connection, &["EXISTS", once]) == 0).then_some(())
    });
    let later: Published = call(&mut connection, "publish", ROOM, &["1", "p", "k"]).unwrap();
    assert_eq!(later.1, 3);
}

/// What `tidegate_publish_many` answers for three pushes.
type Batch = (String, u64, u64, u64, Value, u64);

#[test]
fn a_batch_is_published_in_order_and_exactly_once() {
    let (redis, mut connection) = server();
    call::<Value>(&mut connection, "publish", ROOM, &["1", "before", "k1"]).unwrap();
    let mut gateway = Subscriber::new(&redis, ROOM);
    // A new push with a key, one that is refused alone, one that repeats the push before.
    let batch = ["w", "7", "3", "1", "a", "k2", "0", "0", "b", "", "0", "1", "c", "k1", "0"];
    let first: Batch = call(&mut connection, "publish_many", ROOM, &batch).unwrap();
    assert_eq!((first.1, first.3, first.5), (1, 2, 1));
    let Value::BulkString(text) = &first.4 else { panic!("{:?}", first.4) };
    assert!(text.starts_with(b"TIDEGATE_BAD_TYPE "));
    assert_eq!(gateway.next(), format!("d {} 2 1 0\na", first.0));
    call::<Value>(&mut connection, "publish", ROOM, &["1", "after"]).unwrap();
    let repeat: Batch = call(&mut connection, "publish_many", ROOM, &batch).unwrap();
    assert_eq!(repeat, first);
    let payloads = ["before", "a", "after"].map(str::to_owned);
    let expected: Vec<_> = (1..).zip(payloads).collect();
    assert_eq!(held(&mut connection, ROOM), expected);

    let old =
        call::<Value>(&mut connection, "publish_many", ROOM, &["w", "6", "1", "1", "x", "", "0"]);
    assert_eq!(word(old), "TIDEGATE_OLD_SEQ");
    // Without a writer nothing is remembered.
    for offset in [4, 5] {
        let batch = ["", "7", "1", "1", "x", "", "0"];
        let answer: (String, u64, u64, u64) =
            call(&mut connection, "publish_many", ROOM, &batch).unwrap();
        assert_eq!(answer.3, offset);
    }
}

#[test]
fn a_key_that_comes_twice_in_a_batch_is_published_once() {
    let (_redis, mut connection) = server();
    let batch = ["w", "1", "3", "1", "a", "k", "0", "1", "a", "k", "0", "1", "b", "", "0"];
    for _ in 0..2 {
        let answer: (String, u64, u64, u64, u64, u64) =
            call(&mut connection, "publish_many", ROOM, &batch).unwrap();
        assert_eq!((answer.3, answer.4, answer.5), (1, 1, 2));
    }
    assert_eq!(held(&mut connection, ROOM).len(), 2);
}

#[test]
fn the_writer_that_is_furthest_behind_is_forgotten() {
    let (_redis, mut connection) = server();
    let writers: Vec<String> = (0..34).map(|writer| format!("w{writer}")).collect();
    for writer in &writers {
        let batch = [writer, "1", "1", "1", "x", "", "0"];
        call::<Value>(&mut connection, "publish_many", ROOM, &batch).unwrap();
    }
    let fields: Vec<String> = command(&mut connection, &["HKEYS", ROOM]);
    let remembered = fields.iter().filter(|field| field.starts_with("w:")).count();
    assert_eq!(remembered, 32);
    assert!(!fields.contains(&"w:w0".to_owned()) && !fields.contains(&"w:w1".to_owned()));
    assert!(fields.contains(&"w:w33".to_owned()));
}

#[test]
fn a_stream_is_trimmed_and_read_from_an_offset() {
    let (_redis, mut connection) = server();
    call::<Value>(&mut connection, "open", ROOM, &["-", "0", "durable", "100", "60"]).unwrap();
    for first in (0..2000).step_by(500) {
        let pushes = (first..first + 500)
            .flat_map(|push| ["1".to_owned(), push.to_string(), String::new(), "0".to_owned()]);
        let batch: Vec<String> =
            ["", "0", "500"].map(str::to_owned).into_iter().chain(pushes).collect();
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        call::<Value>(&mut connection, "publish_many", ROOM, &batch).unwrap();
    }
    let length: u64 = command(&mut connection, &["XLEN", LOG]);
    // Redis drops whole nodes of up to 100 entries.
    assert!((100..=200).contains(&length), "{length}");
    let args = ["1990", "4", "durable", "100", "60"];
    let answer: Vec<Value> = call(&mut connection, "open", ROOM, &args).unwrap();
    assert_eq!(answer[2], Value::Int(2000));
    assert_eq!(answer[3], Value::Int(i64::try_from(2001 - length).unwrap()));
    // The oldest ones behind the offset.
    let offsets: Vec<&Value> = answer[5..].iter().step_by(4).collect();
    assert_eq!(
        offsets,
        [&Value::Int(1991), &Value::Int(1992), &Value::Int(1993), &Value::Int(1994)]
    );
    let args = ["1998", "10", "durable", "100", "60"];
    let answer: Vec<Value> = call(&mut connection, "open", ROOM, &args).unwrap();
    assert_eq!(answer.len(), 5 + 2 * 4);
    assert!((1..=60_000).contains(&life_ms(&mut connection, ROOM)));
}

#[test]
fn a_rooms_keys_live_a_day_from_their_last_use_on() {
    let (_redis, mut connection) = server();
    let day_ms = 86_400_000;
    let is_extended = |life: i64| (day_ms - 60_000..=day_ms + 60_000).contains(&life);
    // The stream comes after the hash, and lives longer.
    open(&mut connection, ROOM, "-", "0", "durable");
    assert!(is_extended(life_ms(&mut connection, ROOM)));
    call::<Value>(&mut connection, "publish", ROOM, &["1", "a"]).unwrap();
    let (hash, stream) = (life_ms(&mut connection, ROOM), life_ms(&mut connection, LOG));
    assert!(is_extended(stream) && stream > hash, "{stream} {hash}");
    // A push extends them only after half of the time.
    command::<u64>(&mut connection, &["EXPIRE", ROOM, "1000"]);
    call::<Value>(&mut connection, "publish", ROOM, &["1", "b"]).unwrap();
    assert!(!is_extended(life_ms(&mut connection, ROOM)));
    command::<u64>(&mut connection, &["HSET", ROOM, "fresh_until", "1"]);
    call::<Value>(&mut connection, "publish", ROOM, &["1", "c"]).unwrap();
    assert!(is_extended(life_ms(&mut connection, ROOM)));
    let (seconds, _): (i64, i64) = command(&mut connection, &["TIME"]);
    let fresh_until: i64 = command(&mut connection, &["HGET", ROOM, "fresh_until"]);
    let half = fresh_until - seconds * 1000;
    assert!((day_ms / 2 - 60_000..=day_ms / 2 + 1000).contains(&half), "{half}");
}

#[test]
fn a_room_whose_hash_is_lost_continues_behind_its_stream() {
    let (_redis, mut connection) = server();
    let old: Published = call(&mut connection, "publish", ROOM, &["1", "a"]).unwrap();
    command::<u64>(&mut connection, &["DEL", ROOM]);
    let new: Published = call(&mut connection, "publish", ROOM, &["1", "b"]).unwrap();
    assert_eq!(new.1, 2);
    assert_ne!(new.2, old.2);
    assert_eq!(open(&mut connection, ROOM, "-", "10", "durable").base, 1);
}

#[test]
fn members_are_counted_over_all_gateways_while_their_time_lasts() {
    let (_redis, mut connection) = server();
    let mut count = |gateway: &str, members: &str, valid_ms: &str| -> u64 {
        call(&mut connection, "count", ROOM, &[gateway, members, valid_ms]).unwrap()
    };
    assert_eq!(count("a", "3", "60000"), 3);
    assert_eq!(count("b", "4", "60000"), 7);
    assert_eq!(count("a", "5", "60000"), 9);
    assert_eq!(count("b", "0", "60000"), 5);
    count("c", "100", "1");
    // A push sees the end of a count too.
    until("the count is over", || {
        let push: Published = call(&mut connection, "publish", ROOM, &["1", "a"]).unwrap();
        (push.4 == 5).then_some(())
    });
    let counts: Vec<String> = command(&mut connection, &["HKEYS", "tg1:room:{r7}:members"]);
    assert_eq!(counts, ["a"]);
    assert!(life_ms(&mut connection, "tg1:room:{r7}:members") > 0);
}

#[test]
fn both_versions_of_the_protocol_get_the_same_answers() {
    let (redis, mut connection) = server();
    let mut newer = redis::Client::open(format!("{}?protocol=resp3", redis.url()))
        .unwrap()
        .get_connection()
        .unwrap();
    let mut older = connect(&redis);
    call::<Value>(&mut connection, "publish", ROOM, &["1", "a", "k", "5000"]).unwrap();
    call::<Value>(&mut connection, "arrive", "tg1:users:{u7}", &["a", "1", "1", "7", "0", "1"])
        .unwrap();
    let calls: &[(&str, &str, &[&str])] = &[
        ("publish", ROOM, &["1", "a", "k"]),
        ("publish_many", ROOM, &["w", "1", "2", "1", "b", "", "0", "0", "c", "", "0"]),
        ("open", ROOM, &["-", "10", "durable"]),
        ("count", ROOM, &["a", "2", "60000"]),
        ("alive", "tg1:users:{u7}", &["b", "60000"]),
        ("arrive", "tg1:users:{u7}", &["a", "1", "1", "7", "0", "1"]),
        ("online", "tg1:users:{u7}", &["7", "135"]),
        ("push_user", "tg1:users:{u7}", &["7", "1", "p", "k"]),
        ("tokens", "tg1:tokens:{u7}", &["1", "7", "x"]),
    ];
    call::<Value>(&mut older, "alive", "tg1:users:{u7}", &["b", "60000"]).unwrap();
    for (function, key, arguments) in calls {
        let old: Value = call(&mut older, function, key, arguments).unwrap();
        let new: Value = call(&mut newer, function, key, arguments).unwrap();
        assert_eq!(new, old, "{function}");
    }
}

#[test]
fn barred_users_are_remembered_and_too_many_of_them_void_all_earlier_tickets() {
    let (_redis, mut connection) = server();
    let barred = |connection: &mut Connection| -> HashMap<String, u64> {
        let answer: Vec<Value> = call(connection, "open", ROOM, &["-", "0", "durable"]).unwrap();
        redis::from_redis_value(answer[4].clone()).unwrap()
    };
    let bar = |connection: &mut Connection, user: &str, until: &str| -> RedisResult<u64> {
        call(connection, "bar", ROOM, &[user, until, "3600", "gw"])
    };
    assert!(barred(&mut connection).is_empty());
    assert_eq!(bar(&mut connection, "7", "4294967295"), Ok(0));
    // A time far ahead is cut to a minute from now.
    let until_s = barred(&mut connection)["7"];
    let now_s: (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
    assert!((now_s.0..=now_s.0 + 60).contains(&until_s), "{until_s} at {now_s:?}");
    for user in 0..1_000 {
        bar(&mut connection, &(100 + user).to_string(), "0").unwrap();
    }
    let after = barred(&mut connection);
    assert!(after.contains_key("*") && after.contains_key("1099"), "{after:?}");
    assert!(after.len() < 1_000 && !after.contains_key("7"));
    let ttl: i64 = redis::cmd("TTL").arg(format!("{ROOM}:barred")).query(&mut connection).unwrap();
    assert!((3_000..=3_600).contains(&ttl), "{ttl}");
    for wrong in
        [["07", "0"], ["x", "0"], ["7", "-1"], ["7", "4294967296"], ["18446744073709551616", "0"]]
    {
        assert!(bar(&mut connection, wrong[0], wrong[1]).is_err(), "{wrong:?}");
    }
}
