//! The contract with backends and other gateways, `backend/REDIS.md`, in code: names, and how messages are read.

use redis::{Cmd, Value};
use tidegate_backend::RoomId;

use crate::config::RoomPolicy;
use crate::shard::rooms::log::LogId;
use crate::shard::rooms::message::{Bar, SharedPush};

/// What every key and channel begins with: the contract's version.
const PREFIX: &str = "tg1";

/// The hash in which each gateway says that it is alive. Its fields are the gateways' ids.
pub const GATEWAYS: &str = "tg1:gateways:alive";

/// Pushes that Redis keeps of a room. It may keep up to a hundred more: it drops whole blocks of a stream.
const KEEP: u32 = 1_000;

/// How long Redis keeps a room after its last push, or after the last gateway that followed it, in seconds.
const TTL_S: u32 = 86_400;

/// Bytes of pushes that one answer holds at most, where a room's policy keeps less.
const OPEN_BYTES_MIN: usize = 64 * 1024;

/// The key of a room, which is also its channel.
#[must_use]
pub fn room_key(room: &RoomId) -> String {
    format!("{PREFIX}:room:{{r{room}}}")
}

/// The room that a channel belongs to.
#[must_use]
pub fn room_of_channel(channel: &[u8]) -> Option<RoomId> {
    let channel = std::str::from_utf8(channel).ok()?;
    match channel.strip_prefix("tg1:room:{r")?.strip_suffix('}')? {
        "*" => Some(RoomId::everybody()),
        name => RoomId::new(name).ok(),
    }
}

/// A message of a room's channel.
#[derive(Debug)]
pub enum RoomEvent {
    /// A push of a log that is kept.
    Durable {
        /// The log.
        log: LogId,
        /// The push.
        push: SharedPush,
    },
    /// A push that is kept nowhere.
    Fleeting(SharedPush),
    /// The log has another id.
    NewLog,
    /// Tickets are worthless, and memberships end.
    Barred {
        /// Whose, and until when.
        bar: Bar,
        /// The gateway that has done it already.
        by: String,
    },
}

/// Reads a message of a room's channel: a line of words, then the payload.
#[must_use]
pub fn room_event(message: &[u8]) -> Option<RoomEvent> {
    let end = message.iter().position(|&byte| byte == b'\n')?;
    let (line, payload) = (std::str::from_utf8(&message[..end]).ok()?, &message[end + 1..]);
    let mut words = line.split(' ');
    let push = |offset, kind: Option<&str>, ends: Option<&str>| {
        let kind = kind?.parse().ok().filter(|&kind| kind > 0)?;
        let (biz_data, ends_unix_ms) = (payload.to_vec().into(), ends?.parse().ok()?);
        Some(SharedPush { offset, kind, biz_data, ends_unix_ms })
    };
    match words.next()? {
        "d" => {
            let log = log_id(words.next()?)?;
            let offset = words.next()?.parse().ok().filter(|&offset| offset > 0)?;
            Some(RoomEvent::Durable { log, push: push(offset, words.next(), words.next())? })
        }
        "f" => Some(RoomEvent::Fleeting(push(0, words.next(), words.next())?)),
        "n" => Some(RoomEvent::NewLog),
        "x" => {
            let user_id = user_or_all(words.next()?)?;
            let until_s = words.next()?.parse().ok()?;
            let by = words.next().unwrap_or_default().to_owned();
            Some(RoomEvent::Barred { bar: Bar { user_id, until_s }, by })
        }
        _ => None,
    }
}

/// A user, or `*`: all of them.
fn user_or_all(text: &str) -> Option<Option<u64>> {
    if text == "*" { Some(None) } else { text.parse().ok().map(Some) }
}

fn log_id(hex: &str) -> Option<LogId> {
    LogId::shared(u64::from_str_radix(hex, 16).ok()?)
}

/// What `tidegate_open` answers.
#[derive(Debug)]
pub struct Opened {
    /// The log's id.
    pub log: LogId,
    /// The offset of the newest push when the log got this id.
    pub base: u64,
    /// The offset of the newest push.
    pub head: u64,
    /// Whose tickets are worthless.
    pub barred: Vec<Bar>,
    /// The newest pushes after the offset that was asked for, without a hole between them.
    pub pushes: Vec<SharedPush>,
}

/// `tidegate_open`: the pushes after an offset, the oldest first; `None`: the newest that a shard's log holds.
#[must_use]
pub fn open(room: &RoomId, after: Option<u64>, policy: &RoomPolicy) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_open").arg(1).arg(room_key(room));
    match after {
        Some(after) => cmd.arg(after),
        None => cmd.arg("-"),
    };
    cmd.arg(KEEP).arg(policy.class.name()).arg(KEEP).arg(TTL_S);
    cmd.arg(policy.log_bytes_max.max(OPEN_BYTES_MIN));
    cmd
}

/// Reads the answer of `tidegate_open`: log, base, head, first offset held, barred users, then offset, type, expiry and
/// payload of each push.
#[must_use]
pub fn opened(answer: &Value) -> Option<Opened> {
    let Value::Array(fields) = answer else { return None };
    let [log, base, head, _first, barred, pushes @ ..] = fields.as_slice() else { return None };
    let log = log_id(text(log)?)?;
    let Value::Array(barred) = barred else { return None };
    // One that can't be read must not keep the room from being opened.
    let barred = barred.chunks_exact(2).filter_map(|fields| {
        let user_id = user_or_all(text(&fields[0])?)?;
        Some(Bar { user_id, until_s: u32::try_from(number(&fields[1])?).ok()? })
    });
    let barred = barred.collect();
    let pushes = pushes.chunks_exact(4).map(|fields| {
        let [offset, kind, ends, payload] = fields else { return None };
        let kind = i32::try_from(number(kind)?).ok()?;
        let biz_data = bytes(payload)?.to_vec().into();
        Some(SharedPush { offset: number(offset)?, kind, biz_data, ends_unix_ms: number(ends)? })
    });
    let pushes: Option<Vec<_>> = pushes.collect();
    let (base, head) = (number(base)?, number(head)?);
    Some(Opened { log, base, head, barred, pushes: pushes? })
}

/// A push among the arguments of a function.
#[derive(Clone, Copy, Debug)]
pub struct PushArgs<'a> {
    /// Its type.
    pub kind: i32,
    /// Its payload.
    pub biz_data: &'a [u8],
    /// Its idempotency key; empty: none.
    pub key: &'a [u8],
    /// How long it is worth sending, in milliseconds; 0: without a limit.
    pub ttl_ms: u64,
}

/// `tidegate_publish_many`: pushes to a room, in this order and once, even if the command is repeated.
#[must_use]
pub fn publish_many<'a>(
    room: &RoomId,
    writer: &str,
    number: u64,
    pushes: impl ExactSizeIterator<Item = PushArgs<'a>>,
) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_publish_many").arg(1).arg(room_key(room));
    cmd.arg(writer).arg(number).arg(pushes.len());
    for PushArgs { kind, biz_data, key, ttl_ms } in pushes {
        cmd.arg(kind).arg(biz_data).arg(key).arg(ttl_ms);
    }
    cmd
}

/// `tidegate_bar`: a user's tickets for a room are worthless, and its memberships end.
#[must_use]
pub fn bar(room: &RoomId, user_id: u64, until_s: u32, ttl_s: u64, gateway: &str) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_bar").arg(1).arg(room_key(room)).arg(user_id).arg(until_s);
    cmd.arg(ttl_s.max(1)).arg(gateway);
    cmd
}

/// `tidegate_count`: how many members a room has at this gateway, for a time.
#[must_use]
pub fn count(room: &RoomId, gateway: &str, members: u64, valid_ms: u64) -> Cmd {
    let mut cmd = redis::cmd("FCALL");
    cmd.arg("tidegate_count").arg(1).arg(room_key(room)).arg(gateway).arg(members).arg(valid_ms);
    cmd
}

/// What `tidegate_publish_many` answers.
#[derive(Debug)]
pub struct Published {
    /// Members on all gateways, as they were last counted.
    pub members: u64,
    /// For each push whether it was taken; if not, why.
    pub pushes: Vec<Result<(), String>>,
}

/// Reads the answer of `tidegate_publish_many`: log, gateways, members, then an offset or an error's text for each
/// push.
#[must_use]
pub fn published(answer: &Value) -> Option<Published> {
    let Value::Array(fields) = answer else { return None };
    let [_log, _gateways, members, pushes @ ..] = fields.as_slice() else { return None };
    let outcome = |value: &Value| match number(value) {
        Some(_) => Ok(()),
        None => Err(text(value).unwrap_or("an answer that can't be read").to_owned()),
    };
    Some(Published { members: number(members)?, pushes: pushes.iter().map(outcome).collect() })
}

/// A number, whether Redis sends it as one or as text.
#[must_use]
pub fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

/// A text.
#[must_use]
pub fn text(value: &Value) -> Option<&str> {
    match value {
        Value::SimpleString(text) => Some(text),
        other => std::str::from_utf8(bytes(other)?).ok(),
    }
}

/// A string of bytes.
#[must_use]
pub fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}
