//! Session tokens.

use redis::Value;

use super::{Subscriber, call, command, digest, life_ms, server};

const TOKENS: &str = "tg1:tokens:{u7}";

#[test]
fn tokens_of_the_library_and_of_the_app_are_found_with_their_end() {
    let (_redis, mut connection) = server();
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("timed"), "60000"]).unwrap();
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("endless"), "0"]).unwrap();
    let (own, timed, endless) = (&digest("own"), &digest("timed"), &digest("endless"));
    command::<Value>(&mut connection, &["SET", &format!("{TOKENS}:135:{own}"), "1", "EX", "60"]);
    let asked =
        ["7", "7", timed, "7", endless, "135", own, "7", own, "7", "*", "7", "", "135", timed];
    let ends: Vec<i64> = call(&mut connection, "tokens", TOKENS, &asked).unwrap();
    assert!((1..=60_000).contains(&ends[0]), "{ends:?}");
    assert_eq!(ends[1], -1);
    assert!((1..=60_000).contains(&ends[2]), "{ends:?}");
    assert_eq!(ends[3..], [-2, -2, -2, -2]);
}

#[test]
fn a_revoked_token_is_deleted_and_gateways_are_notified() {
    let (redis, mut connection) = server();
    let mut gateway = Subscriber::new(&redis, TOKENS);
    let [a, b, x] = ["a", "b", "x"].map(digest);
    for token in [&a, &b, &digest("c")] {
        call::<String>(&mut connection, "issue", TOKENS, &["7", token, "60000"]).unwrap();
    }
    let one: (u64, u64) = call(&mut connection, "revoke", TOKENS, &["7", &a]).unwrap();
    assert_eq!((one, gateway.next()), ((1, 1), format!("7\n{a}")));
    // A token that is unknown here may still be that of a session.
    let unknown: (u64, u64) = call(&mut connection, "revoke", TOKENS, &["7", &x]).unwrap();
    assert_eq!((unknown, gateway.next()), ((0, 1), format!("7\n{x}")));
    let all: (u64, u64) = call(&mut connection, "revoke", TOKENS, &["7", "*"]).unwrap();
    assert_eq!((all, gateway.next().as_str()), ((2, 1), "7\n*"));
    let keys: Vec<String> = command(&mut connection, &["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn the_index_of_a_user_lives_as_long_as_the_longest_token() {
    let (_redis, mut connection) = server();
    let index = "tg1:tokens:{u7}:7";
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("long"), "60000"]).unwrap();
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("short"), "1000"]).unwrap();
    assert!((1001..=60_000).contains(&life_ms(&mut connection, index)));
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("endless"), "0"]).unwrap();
    assert_eq!(life_ms(&mut connection, index), -1);
    call::<String>(&mut connection, "issue", TOKENS, &["7", &digest("timed"), "1000"]).unwrap();
    assert_eq!(life_ms(&mut connection, index), -1);
}
