//! The function library `backend/redis/tidegate.lua` on real servers: each function, each error, and what survives what.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod acl;
mod arguments;
mod cluster;
mod failover;
mod newest_wins;
mod rooms;
mod tokens;
mod users;

use redis::{Client, Connection, ConnectionLike, ErrorKind, FromRedisValue, RedisResult, Value};
use tidegate::auth::TokenDigest;
use tidegate_backend::redis::LIBRARY;
use tidegate_tests::{Redis, RedisSetup, TIMEOUT};

/// What `tidegate_publish` answers: status, offset, log, gateways, members.
type Published = (String, u64, String, u64, u64);

/// A gateway's answer to the arrival of a session: its stamp, and the smallest that stays.
type Arrival = (u64, u64);

/// Calls a function of the library.
fn call<T: FromRedisValue>(
    connection: &mut impl ConnectionLike,
    function: &str,
    key: &str,
    arguments: &[&str],
) -> RedisResult<T> {
    let mut command = redis::cmd("FCALL");
    command.arg(format!("tidegate_{function}")).arg(1).arg(key).arg(arguments);
    command.query(connection)
}

/// Runs any command.
fn command<T: FromRedisValue>(connection: &mut impl ConnectionLike, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query(connection).unwrap()
}

/// What Redis knows a session token by.
fn digest(token: &str) -> String {
    TokenDigest::of(token).to_string()
}

fn connect(redis: &Redis) -> Connection {
    Client::open(redis.url()).unwrap().get_connection().unwrap()
}

/// A server with the library and a connection to it.
fn server() -> (Redis, Connection) {
    start(RedisSetup::default())
}

fn start(setup: RedisSetup) -> (Redis, Connection) {
    let redis = setup.start();
    redis.load_library(LIBRARY);
    let connection = connect(&redis);
    (redis, connection)
}

/// The first word of an error of the library.
fn word<T: std::fmt::Debug>(answer: RedisResult<T>) -> String {
    let error = answer.unwrap_err();
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => error.code().unwrap().to_owned(),
        _ => panic!("not an answer of the server: {error}"),
    }
}

/// A subscription to a channel of the library.
struct Subscriber(Connection);

impl Subscriber {
    fn new(redis: &Redis, channel: &str) -> Self {
        let mut connection = connect(redis);
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(channel);
        connection.send_packed_command(&subscribe.get_packed_command()).unwrap();
        let confirmed: (String, String, u64) =
            redis::from_redis_value(connection.recv_response().unwrap()).unwrap();
        assert_eq!(confirmed, ("ssubscribe".to_owned(), channel.to_owned(), 1));
        Self(connection)
    }

    /// The next message.
    fn next(&mut self) -> String {
        let message: (String, String, String) =
            redis::from_redis_value(self.0.recv_response().unwrap()).unwrap();
        assert_eq!(message.0, "smessage");
        message.2
    }
}

/// A push that is held, as `tidegate_open` answers it: offset, type, end of life, payload.
type Entry = (u64, i32, u64, String);

#[derive(Debug, PartialEq)]
struct Opened {
    log: String,
    base: u64,
    head: u64,
    first: u64,
    entries: Vec<Entry>,
}

fn open(
    connection: &mut impl ConnectionLike,
    key: &str,
    after: &str,
    count: &str,
    class: &str,
) -> Opened {
    let answer: Vec<Value> = call(connection, "open", key, &[after, count, class]).unwrap();
    let (head, entries) = answer.split_at(5);
    let number = |value: &Value| redis::from_redis_value(value.clone()).unwrap();
    let entry = |fields: &[Value]| redis::from_redis_value(Value::Array(fields.to_vec())).unwrap();
    Opened {
        log: redis::from_redis_value(head[0].clone()).unwrap(),
        base: number(&head[1]),
        head: number(&head[2]),
        first: number(&head[3]),
        entries: entries.chunks(4).map(entry).collect(),
    }
}

/// The payloads and offsets of a room's newest pushes.
fn held(connection: &mut impl ConnectionLike, key: &str) -> Vec<(u64, String)> {
    let opened = open(connection, key, "-", "100000", "durable");
    opened.entries.into_iter().map(|(offset, _, _, payload)| (offset, payload)).collect()
}

/// The remaining life of a key in milliseconds.
fn life_ms(connection: &mut impl ConnectionLike, key: &str) -> i64 {
    command(connection, &["PTTL", key])
}

#[test]
fn the_library_has_a_version() {
    let (_redis, mut connection) = server();
    let version: u32 = command(&mut connection, &["FCALL_RO", "tidegate_version", "0"]);
    assert_eq!(version, tidegate_backend::redis::LIBRARY_VERSION);
}
