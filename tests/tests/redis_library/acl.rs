//! The access rules on the page are enough, and not more than that.

use redis::{Client, Connection, RedisResult, Value};
use tidegate_tests::{Redis, RedisSetup, TIMEOUT};

use super::{call, command, digest, start, word};

const PAGE: &str = include_str!("../../../backend/REDIS.md");
const ROOM: &str = "tg1:room:{r7}";
const USERS: &str = "tg1:users:{u7}";
const TOKENS: &str = "tg1:tokens:{u7}";

/// A server with the users of the page.
fn server_with_users() -> Redis {
    let is_rule = |line: &&str| line.starts_with("user ") && line.contains(" on >");
    let lines: Vec<&str> = PAGE.lines().filter(is_rule).collect();
    assert_eq!(lines.len(), 3, "publisher, login, gateway");
    let setup = lines.iter().fold(RedisSetup::default(), |setup, line| setup.line(line));
    start(setup).0
}

fn connect_as(redis: &Redis, user: &str) -> Connection {
    let url = format!("redis://{user}:secret@127.0.0.1:{}/", redis.port());
    let connection = Client::open(url).unwrap().get_connection().unwrap();
    connection.set_read_timeout(Some(TIMEOUT)).unwrap();
    connection
}

fn assert_denied(connection: &mut Connection, words: &[&str]) {
    let answer: RedisResult<Value> = redis::cmd(words[0]).arg(&words[1..]).query(connection);
    let error = answer.expect_err("allowed");
    assert!(
        error.code() == Some("NOPERM") || error.to_string().contains("NoPerm"),
        "{words:?}: {error:?}"
    );
}

#[test]
fn a_publisher_publishes_and_does_nothing_else() {
    let redis = server_with_users();
    let mut publisher = connect_as(&redis, "publisher");
    call::<Value>(&mut publisher, "publish", ROOM, &["1", "p", "k", "1000"]).unwrap();
    call::<Value>(&mut publisher, "publish", ROOM, &["1", "p", "k", "1000"]).unwrap();
    for _ in 0..2 {
        let batch = ["w", "1", "1", "1", "p", "", "0"];
        call::<Value>(&mut publisher, "publish_many", ROOM, &batch).unwrap();
    }
    call::<Value>(&mut publisher, "push_user", USERS, &["7", "1", "p", "k", "1000"]).unwrap();
    call::<Value>(&mut publisher, "push_users", USERS, &["1", "7", "1", "p", "", "0", ""]).unwrap();
    call::<Value>(&mut publisher, "kick", USERS, &["7"]).unwrap();
    call::<Value>(&mut publisher, "expel", USERS, &["7", "room"]).unwrap();
    call::<Value>(&mut publisher, "online", USERS, &["7"]).unwrap();
    call::<Value>(&mut publisher, "count_users", USERS, &[]).unwrap();
    for words in [
        &["DEL", ROOM][..],
        &["FLUSHALL"],
        &["FUNCTION", "FLUSH"],
        &["KEYS", "*"],
        &["CONFIG", "GET", "*"],
        &["SSUBSCRIBE", ROOM],
        &["EVAL", "return 1", "0"],
        &["SET", "other", "1"],
        &["GET", "tg1:tokens:{u7}:7:t"],
    ] {
        assert_denied(&mut publisher, words);
    }
    // Tokens are not the publisher's.
    let answer = call::<Value>(&mut publisher, "revoke", TOKENS, &["7", &digest("t")]);
    assert!(answer.is_err());
}

#[test]
fn the_apps_login_issues_and_revokes_tokens() {
    let redis = server_with_users();
    let mut login = connect_as(&redis, "login");
    call::<Value>(&mut login, "issue", TOKENS, &["7", &digest("t"), "60000"]).unwrap();
    call::<Value>(&mut login, "issue", TOKENS, &["7", &digest("u"), "0"]).unwrap();
    command::<Value>(&mut login, &["SET", &format!("{TOKENS}:7:{}", digest("v")), "1", "EX", "60"]);
    call::<Value>(&mut login, "revoke", TOKENS, &["7", &digest("v")]).unwrap();
    call::<Value>(&mut login, "revoke", TOKENS, &["7", "*"]).unwrap();
    assert_denied(&mut login, &["SET", ROOM, "1"]);
    assert_denied(&mut login, &["FLUSHALL"]);
    assert!(call::<Value>(&mut login, "publish", ROOM, &["1", "p"]).is_err());
}

#[test]
fn a_gateway_may_call_everything_and_load_the_library() {
    let redis = server_with_users();
    let mut gateway = connect_as(&redis, "gateway");
    let library = tidegate_backend::redis::LIBRARY;
    command::<Value>(&mut gateway, &["FUNCTION", "LOAD", "REPLACE", library]);
    command::<Value>(&mut gateway, &["FUNCTION", "LIST", "LIBRARYNAME", "tidegate"]);
    let token = digest("t");
    let calls: &[(&str, &str, &[&str])] = &[
        ("gateway_id", "tg1:gateways", &[]),
        ("publish", ROOM, &["1", "p", "k", "1000"]),
        ("open", ROOM, &["-", "10", "fleeting"]),
        ("open", ROOM, &["-", "10", "durable"]),
        ("count", ROOM, &["a", "1", "1000"]),
        ("count", ROOM, &["a", "0", "1000"]),
        ("alive", USERS, &["a", "1000"]),
        ("arrive", USERS, &["a", "1", "1", "7", "0", "0"]),
        ("arrive", USERS, &["b", "1", "1", "7", "0", "0"]),
        ("push_user", USERS, &["7", "1", "p"]),
        ("kick", USERS, &["7"]),
        ("expel", USERS, &["7", "room"]),
        ("depart", USERS, &["b", "0", "1", "7", "9007199254740991"]),
        ("sweep", USERS, &["0", "0"]),
        ("due", USERS, &["10"]),
        ("told", USERS, &["7", "1"]),
        ("online", USERS, &["7"]),
        ("count_users", USERS, &[]),
        ("tokens", TOKENS, &["1", "7", &token]),
        ("issue", TOKENS, &["7", &token, "1000"]),
        ("revoke", TOKENS, &["7", "*"]),
    ];
    for (function, key, arguments) in calls {
        call::<Value>(&mut gateway, function, key, arguments).unwrap();
    }
    let event = ["XADD", "tg1:offline", "MAXLEN", "~", "100000", "*", "user", "7", "at", "1"];
    command::<Value>(&mut gateway, &event);
    for channel in [ROOM, "tg1:users:{u7}:a", TOKENS] {
        let mut connection = connect_as(&redis, "gateway");
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(channel);
        connection.send_packed_command(&subscribe.get_packed_command()).unwrap();
        connection.recv_response().unwrap();
    }
    for words in [
        &["FLUSHALL"][..],
        &["CONFIG", "GET", "*"],
        &["SET", "other", "1"],
        &["FUNCTION", "FLUSH"],
        &["KEYS", "*"],
    ] {
        assert_denied(&mut gateway, words);
    }
    let answer = call::<Value>(&mut gateway, "publish", "other:{r7}", &["1", "p"]);
    assert_eq!(word(answer), "NOPERM");
}
