//! The part of the contract that is about users: names, commands, and how messages and answers are read.

use std::collections::BTreeMap;

use bytes::Bytes;
use redis::{Cmd, Value};
use tidegate_backend::{RoomId, UserId};

use super::contract::{PushArgs, number, text};

/// The number of partitions into which users are split. All keys of a partition are in one slot.
pub const PARTITIONS: u8 = 128;

/// Hashes that hold the users of a partition.
pub const BUCKETS: u8 = 32;

/// The key from which gateways get their ids. In a Cluster, its node's clock is the one that logins are put in order by.
const GATEWAYS_KEY: &str = "tg1:gateways";

/// The stream of events for backends.
const OFFLINE_KEY: &str = "tg1:offline";

/// Events that the stream keeps, about.
const OFFLINE_EVENTS_MAX: usize = 100_000;

/// A user's partition.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below 128")]
pub const fn partition_of(user_id: UserId) -> u8 {
    (user_id % PARTITIONS as u64) as u8
}

fn users_key(partition: u8) -> String {
    format!("tg1:users:{{u{partition}}}")
}

/// The channel on which a gateway gets messages for its users of a partition.
#[must_use]
pub fn users_channel(partition: u8, gateway: &str) -> String {
    format!("tg1:users:{{u{partition}}}:{gateway}")
}

/// The partition of a channel of users.
#[must_use]
pub fn partition_of_channel(channel: &[u8]) -> Option<u8> {
    let channel = std::str::from_utf8(channel).ok()?;
    let (partition, _gateway) = channel.strip_prefix("tg1:users:{u")?.split_once("}:")?;
    partition.parse().ok().filter(|&partition| partition < PARTITIONS)
}

/// A message for a user's sessions at this gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum UserEvent {
    /// A push. `ends_unix_ms` 0: it has no end.
    Push { kind: i32, ends_unix_ms: u64, biz_data: Bytes },
    /// Sessions with a smaller stamp are replaced.
    Replaced { stamp: u64 },
    /// The user is kicked.
    Kick,
    /// The user is expelled from a room.
    Expel(RoomId),
}

/// Reads a message of a channel of users: a line of words, then the payload.
#[must_use]
pub fn user_event(message: &[u8]) -> Option<(UserId, UserEvent)> {
    let end = message.iter().position(|&byte| byte == b'\n')?;
    let (line, payload) = (std::str::from_utf8(&message[..end]).ok()?, &message[end + 1..]);
    let mut words = line.split(' ');
    let (word, user_id) = (words.next()?, words.next()?.parse().ok()?);
    let event = match word {
        "p" => {
            let kind = words.next()?.parse().ok().filter(|&kind| kind > 0)?;
            let ends_unix_ms = words.next()?.parse().ok()?;
            UserEvent::Push { kind, ends_unix_ms, biz_data: payload.to_vec().into() }
        }
        "r" => UserEvent::Replaced { stamp: words.next()?.parse().ok()? },
        "k" => UserEvent::Kick,
        "e" => UserEvent::Expel(RoomId::new(std::str::from_utf8(payload).ok()?).ok()?),
        _ => return None,
    };
    Some((user_id, event))
}

fn call(function: &str, key: &str) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg(function).arg(1).arg(key);
    cmd
}

fn users_call(function: &str, partition: u8) -> Cmd {
    call(function, &users_key(partition))
}

/// Draws an id for this gateway.
#[must_use]
pub fn gateway_id() -> Cmd {
    call("tidegate_gateway_id", GATEWAYS_KEY)
}

/// Reads a gateway's id.
#[must_use]
pub fn read_gateway_id(answer: &Value) -> Option<&str> {
    text(answer).filter(|id| !id.is_empty() && id.len() <= 8)
}

/// The time of the clock by which logins are put in order.
#[must_use]
pub fn time() -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_time").arg(1).arg(GATEWAYS_KEY);
    cmd
}

/// Reads a time: microseconds since the Unix epoch.
#[must_use]
pub fn read_time(answer: &Value) -> Option<u64> {
    number(answer)
}

/// Users have sessions at this gateway, with these stamps.
#[must_use]
pub fn arrive(
    partition: u8,
    gateway: &str,
    sessions_max: u8,
    users: impl ExactSizeIterator<Item = (UserId, u64)>,
) -> Cmd {
    let mut cmd = users_call("tidegate_arrive", partition);
    cmd.arg(gateway).arg(sessions_max).arg(users.len());
    for (user_id, stamp) in users {
        cmd.arg(user_id).arg(0).arg(stamp);
    }
    cmd
}

/// Reads the answer of `arrive`: for each user its stamp, and the smallest one that stays.
#[must_use]
pub fn read_arrived(answer: &Value) -> Option<Vec<(u64, u64)>> {
    let Value::Array(users) = answer else { return None };
    let pair = |value: &Value| {
        let Value::Array(pair) = value else { return None };
        let [stamp, winning] = pair.as_slice() else { return None };
        Some((number(stamp)?, number(winning)?))
    };
    users.iter().map(pair).collect()
}

/// Users who no longer have a session at this gateway.
#[must_use]
pub fn depart(
    partition: u8,
    gateway: &str,
    grace_ms: u64,
    users: impl ExactSizeIterator<Item = (UserId, u64)>,
) -> Cmd {
    let mut cmd = users_call("tidegate_depart", partition);
    cmd.arg(gateway).arg(grace_ms).arg(users.len());
    for (user_id, stamp) in users {
        cmd.arg(user_id).arg(stamp);
    }
    cmd
}

/// Pushes to users of a partition at other gateways than this one.
#[must_use]
pub fn push_users<'a>(
    partition: u8,
    gateway: &str,
    pushes: impl ExactSizeIterator<Item = (UserId, PushArgs<'a>)>,
) -> Cmd {
    let mut cmd = users_call("tidegate_push_users", partition);
    cmd.arg(pushes.len());
    for (user_id, push) in pushes {
        let PushArgs { kind, biz_data, key, ttl_ms } = push;
        cmd.arg(user_id).arg(kind).arg(biz_data).arg(key).arg(ttl_ms).arg(gateway);
    }
    cmd
}

/// Reads the answer of [`push_users`]: for each push the number of gateways that received it, or why it was refused.
#[must_use]
pub fn read_pushed(answer: &Value) -> Option<Vec<Result<u64, String>>> {
    let Value::Array(pushes) = answer else { return None };
    let outcome = |value: &Value| match read_heard(value) {
        Some(heard) => Ok(heard),
        None => Err(text(value).unwrap_or("an answer that can't be read").to_owned()),
    };
    Some(pushes.iter().map(outcome).collect())
}

/// Kicks a user at other gateways than this one.
#[must_use]
pub fn kick(gateway: &str, user_id: UserId) -> Cmd {
    let mut cmd = users_call("tidegate_kick", partition_of(user_id));
    cmd.arg(user_id).arg(gateway);
    cmd
}

/// Expels a user from a room.
#[must_use]
pub fn expel(_gateway: &str, user_id: UserId, room: &RoomId) -> Cmd {
    let mut cmd = users_call("tidegate_expel", partition_of(user_id));
    cmd.arg(user_id).arg(room.as_str());
    cmd
}

/// Reads the answer of [`kick`] and [`expel`]: the number of gateways that received it.
#[must_use]
pub fn read_heard(answer: &Value) -> Option<u64> {
    let Value::Array(fields) = answer else { return None };
    let [_has, heard] = fields.as_slice() else { return None };
    number(heard)
}

/// This gateway is alive, for so long.
#[must_use]
pub fn alive(partition: u8, gateway: &str, valid_ms: u64) -> Cmd {
    let mut cmd = users_call("tidegate_alive", partition);
    cmd.arg(gateway).arg(valid_ms);
    cmd
}

/// The gateways that a partition knows.
#[must_use]
pub fn gateways(partition: u8) -> Cmd {
    let mut cmd = redis::cmd("HGETALL");
    cmd.arg(format!("{}:gateways", users_key(partition)));
    cmd
}

/// Reads gateways: until when each counts as alive, in milliseconds since the Unix epoch.
#[must_use]
pub fn read_gateways(answer: &Value) -> Option<BTreeMap<String, u64>> {
    let field = |(id, until): (&Value, &Value)| {
        let until = text(until)?.split(' ').next()?.parse().ok()?;
        Some((text(id)?.to_owned(), until))
    };
    match answer {
        Value::Map(fields) => fields.iter().map(|(id, until)| field((id, until))).collect(),
        Value::Array(fields) => {
            let pairs = fields.chunks_exact(2);
            pairs.map(|pair| field((pair.first()?, pair.get(1)?))).collect()
        }
        _ => None,
    }
}

/// Drops what gateways that have died left in a bucket.
#[must_use]
pub fn sweep(partition: u8, bucket: u8, grace_ms: u64) -> Cmd {
    let mut cmd = users_call("tidegate_sweep", partition);
    cmd.arg(bucket).arg(grace_ms);
    cmd
}

/// Users who count as offline now.
#[must_use]
pub fn due(partition: u8, count: usize) -> Cmd {
    let mut cmd = users_call("tidegate_due", partition);
    cmd.arg(count);
    cmd
}

/// Reads the answer of [`due`]: each user, and since when it counts as offline, in milliseconds since the Unix epoch.
#[must_use]
pub fn read_due(answer: &Value) -> Option<Vec<(UserId, u64)>> {
    let Value::Array(fields) = answer else { return None };
    let pairs = fields.chunks_exact(2);
    pairs.map(|pair| Some((number(pair.first()?)?, number(pair.get(1)?)?))).collect()
}

/// Appends the event that a user went offline.
#[must_use]
pub fn append_offline(user_id: UserId, at_unix_ms: u64) -> Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(OFFLINE_KEY).arg("MAXLEN").arg("~").arg(OFFLINE_EVENTS_MAX).arg("*");
    cmd.arg("user").arg(user_id).arg("at").arg(at_unix_ms);
    cmd
}

/// The events of these users are appended.
#[must_use]
pub fn told(partition: u8, users: &[(UserId, u64)]) -> Cmd {
    let mut cmd = users_call("tidegate_told", partition);
    for (user_id, at_unix_ms) in users {
        cmd.arg(user_id).arg(at_unix_ms);
    }
    cmd
}

/// The number of users of a partition at all gateways.
#[must_use]
pub fn count_users(partition: u8) -> Cmd {
    users_call("tidegate_count_users", partition)
}
