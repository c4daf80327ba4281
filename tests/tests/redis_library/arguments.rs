//! Bad arguments are refused with a stable word, and nothing is written.

use redis::Value;

use super::{call, command, server, word};

const ROOM: &str = "tg1:room:{r7}";
const USERS: &str = "tg1:users:{u7}";
const TOKENS: &str = "tg1:tokens:{u7}";

/// The word of the error, the function, its key, its arguments.
type BadCall<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

const BAD_CALLS: &[BadCall<'static>] = &[
    // What does not parse.
    ("TIDEGATE_BAD_CALL", "publish", ROOM, &[]),
    ("TIDEGATE_BAD_CALL", "publish", ROOM, &["1"]),
    ("TIDEGATE_BAD_CALL", "publish", ROOM, &["1", "p", "k", "0", "more"]),
    ("TIDEGATE_BAD_CALL", "publish", "tg1:room:r7", &["1", "p"]),
    ("TIDEGATE_BAD_CALL", "publish", "tg1:room:{r7", &["1", "p"]),
    ("TIDEGATE_BAD_CALL", "publish_many", ROOM, &["w", "1", "0"]),
    ("TIDEGATE_BAD_CALL", "publish_many", ROOM, &["w", "1", "2", "1", "p", "", "0"]),
    ("TIDEGATE_BAD_CALL", "publish_many", ROOM, &["w", "-1", "1", "1", "p", "", "0"]),
    ("TIDEGATE_BAD_CALL", "publish_many", ROOM, &["w", "1", "1001"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["-", "10"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["x", "10", "durable"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["-", "x", "durable"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["-", "10", "lasting"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["-", "10", "durable", "0"]),
    ("TIDEGATE_BAD_CALL", "open", ROOM, &["-", "10", "durable", "1000", "59"]),
    ("TIDEGATE_BAD_CALL", "count", ROOM, &["G1", "1", "1000"]),
    ("TIDEGATE_BAD_CALL", "count", ROOM, &["g1", "-1", "1000"]),
    ("TIDEGATE_BAD_CALL", "count", ROOM, &["g1", "1", "0"]),
    ("TIDEGATE_BAD_CALL", "gateway_id", "tg1:other", &[]),
    ("TIDEGATE_BAD_CALL", "gateway_id", "tg1:gateways", &["1"]),
    ("TIDEGATE_BAD_CALL", "arrive", "tg1:users:{u128}", &["a", "1", "1", "128", "0", "0"]),
    ("TIDEGATE_BAD_CALL", "arrive", "tg1:users:{u07}", &["a", "1", "1", "7", "0", "0"]),
    ("TIDEGATE_BAD_CALL", "arrive", USERS, &["a b", "1", "1", "7", "0", "0"]),
    ("TIDEGATE_BAD_CALL", "arrive", USERS, &["a", "x", "1", "7", "0", "0"]),
    ("TIDEGATE_BAD_CALL", "arrive", USERS, &["a", "1", "2", "7", "0", "0"]),
    ("TIDEGATE_BAD_CALL", "arrive", USERS, &["a", "1", "1", "7", "-5", "0"]),
    ("TIDEGATE_BAD_CALL", "depart", USERS, &["a", "x", "1", "7", "1"]),
    ("TIDEGATE_BAD_CALL", "depart", USERS, &["a", "0", "1", "7", "1.5"]),
    ("TIDEGATE_BAD_CALL", "alive", USERS, &["a"]),
    ("TIDEGATE_BAD_CALL", "alive", USERS, &["ninechars", "1000"]),
    ("TIDEGATE_BAD_CALL", "push_user", USERS, &["7", "1"]),
    ("TIDEGATE_BAD_CALL", "push_user", USERS, &["7", "1", "p", "", "0", "a", "more"]),
    ("TIDEGATE_BAD_CALL", "push_users", USERS, &["1", "7", "1", "p", "", "0"]),
    ("TIDEGATE_BAD_CALL", "kick", USERS, &[]),
    ("TIDEGATE_BAD_CALL", "expel", USERS, &["7"]),
    ("TIDEGATE_BAD_CALL", "expel", USERS, &["7", ""]),
    ("TIDEGATE_BAD_CALL", "online", USERS, &[]),
    ("TIDEGATE_BAD_CALL", "count_users", USERS, &["1"]),
    ("TIDEGATE_BAD_CALL", "sweep", USERS, &["32", "0"]),
    ("TIDEGATE_BAD_CALL", "due", USERS, &["0"]),
    ("TIDEGATE_BAD_CALL", "told", USERS, &["7"]),
    ("TIDEGATE_BAD_CALL", "tokens", TOKENS, &["2", "7", "t"]),
    ("TIDEGATE_BAD_CALL", "issue", TOKENS, &["7", "t", "-1"]),
    ("TIDEGATE_BAD_CALL", "revoke", TOKENS, &["7"]),
    // What a push must not be.
    ("TIDEGATE_BAD_TYPE", "publish", ROOM, &["0", "p"]),
    ("TIDEGATE_BAD_TYPE", "publish", ROOM, &["-1", "p"]),
    ("TIDEGATE_BAD_TYPE", "publish", ROOM, &["2147483648", "p"]),
    ("TIDEGATE_BAD_TYPE", "publish", ROOM, &["0x10", "p"]),
    ("TIDEGATE_BAD_TYPE", "publish", ROOM, &["nan", "p"]),
    ("TIDEGATE_BAD_TYPE", "push_user", USERS, &["7", "", "p"]),
    ("TIDEGATE_BAD_TTL", "publish", ROOM, &["1", "p", "", "4294967296"]),
    ("TIDEGATE_BAD_TTL", "publish", ROOM, &["1", "p", "", ""]),
    ("TIDEGATE_BAD_TTL", "push_user", USERS, &["7", "1", "p", "", "1e3"]),
    // Users that are none, or of another partition.
    ("TIDEGATE_BAD_USER", "arrive", USERS, &["a", "1", "2", "7", "0", "0", "8", "0", "0"]),
    ("TIDEGATE_BAD_USER", "arrive", USERS, &["a", "1", "1", "007", "0", "0"]),
    ("TIDEGATE_BAD_USER", "depart", USERS, &["a", "0", "1", "18446744073709551623", "1"]),
    ("TIDEGATE_BAD_USER", "push_user", USERS, &["seven", "1", "p"]),
    ("TIDEGATE_BAD_USER", "kick", USERS, &["8"]),
    ("TIDEGATE_BAD_USER", "expel", USERS, &["8", "room"]),
    ("TIDEGATE_BAD_USER", "online", USERS, &["7", ""]),
    ("TIDEGATE_BAD_USER", "told", USERS, &["8", "1"]),
    ("TIDEGATE_BAD_USER", "tokens", TOKENS, &["1", "8", "t"]),
    ("TIDEGATE_BAD_USER", "issue", TOKENS, &["8", "t", "0"]),
    ("TIDEGATE_BAD_USER", "revoke", TOKENS, &["8", "t"]),
    ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", "", "0"]),
    ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", "*", "0"]),
    ("TIDEGATE_BAD_TOKEN", "revoke", TOKENS, &["7", ""]),
    ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", "the token itself", "0"]),
    ("TIDEGATE_BAD_TOKEN", "revoke", TOKENS, &["7", "the token itself"]),
];

#[test]
fn bad_arguments_are_refused_and_write_nothing() {
    let (_redis, mut connection) = server();
    let long = "x".repeat(1_048_513);
    let (key, token, upper) = ("k".repeat(65), "0".repeat(65), "A".repeat(64));
    let too_long: &[BadCall<'_>] = &[
        ("TIDEGATE_BAD_CALL", "publish_many", ROOM, &[&key, "1", "1", "1", "p", "", "0"]),
        ("TIDEGATE_TOO_LONG", "publish", ROOM, &["1", &long]),
        ("TIDEGATE_TOO_LONG", "push_user", USERS, &["7", "1", &long]),
        ("TIDEGATE_BAD_KEY", "publish", ROOM, &["1", "p", &key]),
        ("TIDEGATE_BAD_KEY", "push_user", USERS, &["7", "1", "p", &key]),
        ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", &token, "0"]),
        ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", &token[2..], "0"]),
        ("TIDEGATE_BAD_TOKEN", "issue", TOKENS, &["7", &upper, "0"]),
    ];
    for (expected, function, key, arguments) in BAD_CALLS.iter().chain(too_long) {
        let answer = call::<Value>(&mut connection, function, key, arguments);
        let shown: Vec<String> =
            arguments.iter().map(|text| text.chars().take(20).collect()).collect();
        assert!(answer.is_err(), "{function} {key} {shown:?} is accepted");
        assert_eq!(word(answer), *expected, "{function} {key} {shown:?}");
    }
    let keys: Vec<String> = command(&mut connection, &["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn a_call_with_several_keys_or_none_is_refused() {
    let (_redis, mut connection) = server();
    for words in [
        &["FCALL", "tidegate_publish", "0", "1", "p"][..],
        &["FCALL", "tidegate_publish", "2", ROOM, ROOM, "1", "p"],
        &["FCALL", "tidegate_arrive", "0", "a", "1", "1", "7", "0", "0"],
        &["FCALL_RO", "tidegate_tokens", "0", "1", "7", "t"],
    ] {
        let answer = redis::cmd(words[0]).arg(&words[1..]).query::<Value>(&mut connection);
        assert_eq!(word(answer), "TIDEGATE_BAD_CALL", "{words:?}");
    }
}

#[test]
fn the_longest_arguments_are_accepted() {
    let (_redis, mut connection) = server();
    let (payload, key, token) = ("x".repeat(1_048_512), "k".repeat(64), "f".repeat(64));
    let push = ["2147483647", &payload, &key, "4294967295"];
    call::<Value>(&mut connection, "publish", ROOM, &push).unwrap();
    call::<Value>(&mut connection, "issue", TOKENS, &["7", &token, "31536000000"]).unwrap();
    // The greatest user, who is in the last partition.
    let user = ["a", "1", "1", "18446744073709551615", "0", "0"];
    call::<Value>(&mut connection, "arrive", "tg1:users:{u127}", &user).unwrap();
    let bucket: String =
        command(&mut connection, &["HGET", "tg1:users:{u127}:31", "18446744073709551615"]);
    assert!(bucket.starts_with("a:"));
}
