//! `tide push` and its siblings: the operators' HTTP from a shell.
//!
//! Each command sends one request with the operators' token, and gets one answer in JSON. A push is sent unchanged: its
//! bytes become the `biz_data` of a push of the given type.

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::argument::{self, whole};
use crate::count::counted;
use crate::duration;
use crate::operator::Operator;
use crate::stdout;

/// The arguments of `tide push`.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    #[command(subcommand)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    /// To all connections of a user
    #[command(
        override_usage = "tide push user [OPTIONS] --type <N> <ID> <TEXT|--file <FILE>|--stdin>"
    )]
    User {
        /// The user
        #[arg(value_parser = argument::user)]
        id: u64,
        #[command(flatten)]
        push: Push,
    },
    /// To all members of a room
    #[command(
        override_usage = "tide push room [OPTIONS] --type <N> <ROOM> <TEXT|--file <FILE>|--stdin>"
    )]
    Room {
        /// The room
        #[arg(value_name = "ROOM", value_parser = argument::room)]
        id: String,
        #[command(flatten)]
        push: Push,
    },
    /// To all authenticated connections
    All {
        #[command(flatten)]
        push: Push,
    },
}

#[derive(Args, Debug)]
struct Push {
    /// The push's type, 1 or more
    #[arg(long = "type", value_name = "N", value_parser = whole(1..=i32::MAX))]
    kind: i32,
    /// An idempotency key, 1 to 64 bytes: a second push to the same target with the same key within 5 minutes is not sent, and
    /// answered as the first one was
    #[arg(long, value_name = "KEY", value_parser = argument::push_key)]
    key: Option<String>,
    /// How long the push is worth sending, at least 1ms: after that, it is offered to no one
    #[arg(long, value_name = "TIME", value_parser = duration::parse_interval)]
    ttl: Option<Duration>,
    #[command(flatten)]
    body: Body,
    /// Print the gateway's answer unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Body {
    /// The text to push
    text: Option<String>,
    /// Push the contents of a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Push what comes from standard input
    #[arg(long)]
    stdin: bool,
}

/// The arguments of `tide kick`.
#[derive(Args, Debug)]
pub(crate) struct KickArgs {
    /// The user whose connections to close
    #[arg(value_parser = argument::user)]
    id: u64,
    /// Print the gateway's answer unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

/// The arguments of `tide expel`.
#[derive(Args, Debug)]
pub(crate) struct ExpelArgs {
    /// The room
    #[arg(value_name = "ROOM", value_parser = argument::room)]
    room: String,
    /// The user whose memberships to end
    #[arg(value_parser = argument::user)]
    id: u64,
    /// Print the gateway's answer unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

/// The arguments of `tide stats`.
#[derive(Args, Debug)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    operator: Operator,
}

/// The arguments of `tide user`.
#[derive(Args, Debug)]
pub(crate) struct UserArgs {
    /// The user
    #[arg(value_parser = argument::user)]
    id: u64,
    #[command(flatten)]
    operator: Operator,
}

/// The arguments of `tide room`.
#[derive(Args, Debug)]
pub(crate) struct RoomArgs {
    /// The room
    #[arg(value_name = "ROOM", value_parser = argument::room)]
    id: String,
    #[command(flatten)]
    operator: Operator,
}

/// Pushes, and prints the number of connections that got it.
///
/// # Errors
/// The body can't be read, the gateway can't be reached, or it refuses.
pub(crate) fn run(args: PushArgs) -> Result<()> {
    let (to, push) = match args.target {
        Target::User { id, push } => (format!("users/{id}"), push),
        Target::Room { id, push } => (format!("rooms/{}", encode(&id)), push),
        Target::All { push } => ("all".to_owned(), push),
    };
    let body = push.body.read()?;
    let mut path = format!("/push/{to}?type={}", push.kind);
    if let Some(key) = &push.key {
        path += &format!("&key={}", encode(key));
    }
    if let Some(ttl) = push.ttl {
        path += &format!("&ttl_ms={}", ttl.as_millis());
    }
    let answer = push.operator.post(&path, &body)?;
    if push.json {
        return print(&answer);
    }
    print(&format!("went to {}{}", counted(connections(&answer)?, "connection"), nobody(&answer)))
}

/// Closes all connections of a user, and prints their number.
///
/// # Errors
/// The gateway can't be reached, or it refuses.
pub(crate) fn kick(args: &KickArgs) -> Result<()> {
    let answer = args.operator.post(&format!("/users/{}/kick", args.id), &[])?;
    if args.json {
        return print(&answer);
    }
    print(&format!("closed {}", counted(connections(&answer)?, "connection")))
}

/// Ends the memberships of a room of all connections of a user, and prints their number.
///
/// # Errors
/// The gateway can't be reached, or it refuses.
pub(crate) fn expel(args: &ExpelArgs) -> Result<()> {
    let path = format!("/rooms/{}/expel/{}", encode(&args.room), args.id);
    let answer = args.operator.post(&path, &[])?;
    if args.json {
        return print(&answer);
    }
    print(&format!("ended {}", counted(connections(&answer)?, "membership")))
}

/// Prints the gateway's counters.
///
/// # Errors
/// The gateway can't be reached, or it refuses.
pub(crate) fn stats(args: &StatsArgs) -> Result<()> {
    show(&args.operator, "/stats")
}

/// Prints a user's connections.
///
/// # Errors
/// The gateway can't be reached, or it refuses.
pub(crate) fn user(args: &UserArgs) -> Result<()> {
    show(&args.operator, &format!("/users/{}", args.id))
}

/// Prints a room.
///
/// # Errors
/// The gateway can't be reached, or it refuses.
pub(crate) fn room(args: &RoomArgs) -> Result<()> {
    show(&args.operator, &format!("/rooms/{}", encode(&args.id)))
}

impl Body {
    fn read(self) -> Result<Vec<u8>> {
        if let Some(path) = self.file {
            return fs::read(&path).with_context(|| format!("can't read {}", path.display()));
        }
        if let Some(text) = self.text {
            return Ok(text.into_bytes());
        }
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("can't read standard input")?;
        Ok(bytes)
    }
}

/// Gets JSON, and prints it for people.
fn show(operator: &Operator, path: &str) -> Result<()> {
    print(&serde_json::to_string_pretty(&operator.get(path)?)?)
}

/// A name encoded as one segment of a path: `a/b` stays one segment, and `..` has no special meaning.
fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string()
}

fn connections(answer: &str) -> Result<u64> {
    serde_json::from_str::<Value>(answer)
        .ok()
        .and_then(|value| value["connections"].as_u64())
        .with_context(|| format!("the gateway's answer does not count connections: {answer}"))
}

/// Why a push had no receiver, in the gateway's words; empty if it had one.
fn nobody(answer: &str) -> String {
    let answer: Option<Value> = serde_json::from_str(answer).ok();
    let reason = answer.as_ref().and_then(|answer| answer["nobody"].as_str());
    reason.map_or_else(String::new, |reason| match reason {
        "no_connection" => ": the user has no connection".into(),
        "no_members" => ": the room has no members".into(),
        "expired" => ": its time to live was over before it was offered to anybody".into(),
        "slow" => ": the user's connections were too slow for it".into(),
        other => format!(": {other}"),
    })
}

fn print(line: &str) -> Result<()> {
    stdout::print(|out| writeln!(out, "{}", line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_stays_one_segment_of_the_path() {
        assert_eq!(encode("quiz7"), "quiz7");
        assert_eq!(encode("../a b?"), "%2E%2E%2Fa%20b%3F");
        assert_eq!(encode("\u{e9}"), "%C3%A9");
    }

    #[test]
    fn connections_are_read_from_the_answer() {
        assert_eq!(connections(r#"{"connections": 3}"#).unwrap(), 3);
        assert!(connections("{}").is_err());
        assert!(connections("yes").is_err());
    }
}
