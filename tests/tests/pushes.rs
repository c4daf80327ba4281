//! Pushes through the operators' HTTP that have a key or a time to live, and several in one request.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use serde_json::{Value, json};
use tidegate_protocol::proto::v1::{Position, Recovery, notice::What};
use tidegate_tests::{Push, Setup, until};

/// A type that no backend serves.
const QUESTION: i32 = 50;

fn text(push: &Push) -> String {
    String::from_utf8(push.biz_data.to_vec()).unwrap()
}

#[test]
fn an_answer_has_the_count_of_receivers_or_why_there_are_none() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let _phone = gateway.login(7);
    for (path, expected) in [
        ("/push/users/7?type=50", json!({ "connections": 1 })),
        ("/push/users/8?type=50", json!({ "connections": 0, "nobody": "no_connection" })),
        ("/push/rooms/empty?type=50", json!({ "connections": 0, "nobody": "no_members" })),
        ("/push/all?type=50", json!({ "connections": 1 })),
    ] {
        assert_eq!(operator.post_json(path, b"x", 200), expected, "{path}");
    }
}

#[test]
fn a_repeated_push_is_sent_once_and_answered_as_the_first() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phones = [gateway.login(7), gateway.login(8)];
    let path = "/push/all?type=50&key=show%2F1";
    let done = json!({ "connections": 2 });
    assert_eq!(operator.post_json(path, b"one", 200), done);
    drop(gateway.login(9));
    assert_eq!(operator.post_json(path, b"again", 200), done);
    assert_eq!(
        operator.post_json("/push/users/7?type=51&key=show%2F1", b"two", 200)["connections"],
        1
    );
    assert_eq!(operator.push_user(8, 51, b"two"), 1);
    for phone in &mut phones {
        let texts: Vec<_> = phone.pushes(2).iter().map(|push| push.biz_data.clone()).collect();
        assert_eq!(texts, ["one", "two"]);
    }
    operator.wait_for_metric("tidegate_push_repeats_total", "", |n| n == 1.0);
    operator.wait_for_metric("tidegate_push_keys", "", |n| n == 2.0);
}

#[test]
fn an_expired_push_is_not_replayed_and_is_a_gap_for_a_client_that_resumes() {
    let gateway = Setup::demo().shards(2).set("rooms.replay_on_join", 10).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    let room = phone.joined();
    operator.push_room("quiz", QUESTION, b"a");
    let seen = phone.push().offset;
    phone.reset();
    operator.push_room("quiz", QUESTION, b"b");
    assert_eq!(operator.post("/push/rooms/quiz?type=50&ttl_ms=1", &[7; 5000]).0, 200);
    operator.push_room("quiz", QUESTION, b"c");
    until("the log no longer has the long push", || {
        (operator.json("/rooms/quiz")["log_bytes"].as_u64() < Some(5000)).then_some(())
    });
    let name = room.name.clone();
    let position = Position { room: name, log: room.log, offset: seen, ticket: room.ticket };
    let mut back = gateway.connect();
    let session = back.login_again(7, &[position]);
    assert_eq!(session.rooms[1].recovery(), Recovery::Gap);
    let texts = |pushes: Vec<Push>| -> Vec<(u64, String)> {
        pushes.iter().map(|push| (push.offset - seen, text(push))).collect()
    };
    assert_eq!(texts(back.pushes(2)), [(1, "b".into()), (3, "c".into())]);
    let mut late = gateway.login(9);
    late.join("quiz", 0);
    assert_eq!(texts(late.pushes(3)), [(0, "a".into()), (1, "b".into()), (3, "c".into())]);
}

#[test]
fn several_pushes_of_one_request_come_in_order_and_end_each_for_itself() {
    let gateway = Setup::demo().shards(2).set("rooms.rooms_per_shard_max", 1).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    let mut pushes: Vec<_> = (0..100)
        .map(|n| json!({ "room": "quiz", "type": QUESTION, "text": n.to_string() }))
        .collect();
    pushes.push(json!({ "user": 7, "type": QUESTION, "base64": "AP8=" }));
    pushes.push(json!({ "user": 8, "type": QUESTION, "text": "x", "key": "k", "ttl_ms": 1000 }));
    pushes.push(json!({ "all": true, "type": QUESTION, "text": "" }));
    pushes.extend((0..3).map(|n| json!({ "room": n.to_string(), "type": 1, "text": "x" })));
    let body = Value::from(pushes).to_string();
    let answers = operator.post_json("/push", body.as_bytes(), 200);
    let answers = answers.as_array().unwrap();
    assert_eq!(answers.len(), 106);
    assert!(answers[..101].iter().all(|answer| *answer == json!({ "connections": 1 })));
    assert_eq!(answers[101], json!({ "connections": 0, "nobody": "no_connection" }));
    assert_eq!(answers[102], json!({ "connections": 1 }));
    let full: Vec<_> = answers[103..].iter().filter(|it| it["code"] == "rooms_full").collect();
    assert!(full.len() >= 2, "each shard has one room at most: {answers:?}");
    assert!(full[0]["error"].as_str().unwrap().contains("rooms_per_shard_max"));

    let pushes = phone.pushes(102);
    let in_room = pushes.iter().filter(|push| push.room != 0 && !push.biz_data.is_empty());
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(in_room.map(text).collect::<Vec<_>>(), expected);
    let to_user = pushes.iter().find(|push| push.room == 0).unwrap();
    assert_eq!(to_user.biz_data, &[0, 255][..]);
}

#[test]
fn a_request_with_a_mistake_pushes_nothing_and_says_what_is_wrong() {
    let toml = "[limits]\npush_keys_bytes_max = 1024";
    let gateway = Setup::demo().shards(1).toml(toml).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    let many = Value::from(vec![json!({ "all": true, "type": 5, "text": "x" }); 1001]).to_string();
    for (path, body, code, reason) in [
        ("/push/all?type=5&ttl_ms=0", "x", "bad_ttl", "1 to 4294967295"),
        ("/push/all?type=5&ttl_ms=1s", "x", "bad_ttl", "plain digits"),
        ("/push/all?type=5&ttl_ms=1&ttl_ms=1", "x", "repeated_parameter", "ttl_ms"),
        ("/push/all?type=5&key=", "x", "bad_key", "1 to 64 bytes"),
        ("/push/all?type=5&key=%zz", "x", "bad_key", "hexadecimal"),
        ("/push/all?type=5&ttl=1", "x", "bad_parameter", "ttl_ms"),
        ("/push", "", "bad_pushes", "JSON array"),
        ("/push", r#"{"all": true, "type": 5, "text": "x"}"#, "bad_pushes", "JSON array"),
        ("/push", r#"[{"all": true, "type": 5, "text": "x"}, {}]"#, "bad_push", "push 1"),
        ("/push", &many, "too_many_pushes", "at most 1000"),
        ("/push?type=5", "[]", "bad_parameter", "type"),
        ("/rooms/quiz/expel/x", "", "bad_user_id", "user id"),
        ("/rooms/*/expel/7", "", "bad_room_id", "everybody"),
        ("/rooms/quiz/expel/7", "x", "unexpected_body", "no body"),
    ] {
        let answer = operator.post_json(path, body.as_bytes(), 400);
        assert_eq!(answer["code"], code, "{path} {answer}");
        assert!(answer["error"].as_str().unwrap().contains(reason), "{path}: {answer}");
    }
    assert_eq!(operator.get("/push").0, 405);

    for key in 0..3 {
        assert_eq!(operator.post(&format!("/push/users/1?type=5&key={key}"), b"x").0, 200);
    }
    let answer = operator.post_json("/push/users/1?type=5&key=3", b"x", 503);
    assert_eq!(answer["code"], "keys_full");
    assert!(answer["error"].as_str().unwrap().contains("push_keys_bytes_max"), "{answer}");
    let body = br#"[{"user": 1, "type": 5, "text": "x", "key": "4"}]"#;
    assert_eq!(operator.post_json("/push", body, 200)[0]["code"], "keys_full");
    operator.wait_for_metric("tidegate_push_keys_refused_total", "", |n| n == 2.0);
    assert_eq!(operator.push_user(7, QUESTION, b"at last"), 1);
    assert_eq!(text(&phone.push()), "at last", "nothing else was pushed");
}

#[test]
fn an_operator_expels_a_user_from_a_room() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    let mut other = gateway.login(8);
    phone.join("a/b", 0);
    other.join("a/b", 0);
    let room = phone.joined();
    assert_eq!(operator.expel("a%2Fb", 7), 1);
    assert_eq!(phone.notice().what, What::Left("a/b".into()));
    assert_eq!(operator.push_room("a%2Fb", QUESTION, b"x"), 1);
    assert_eq!(text(&other.push()), "x");
    let position =
        Position { room: room.name.clone(), log: room.log, offset: 0, ticket: room.ticket };
    let mut back = gateway.connect();
    let session = back.login_again(7, &[position]);
    assert_eq!(session.rooms[1].recovery(), Recovery::Refused, "its ticket is worthless");
    assert_eq!(operator.expel("a%2Fb", 7), 0);
    assert_eq!(operator.expel("nowhere", 9), 0);
}
