//! `tide push` and its siblings: the operators' HTTP from a shell.
//!
//! Each call is one request with the operators' token, and one answer of JSON. A push goes out as it
//! is: the raw bytes become the `biz_data` of a push of the type that was named.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::argument::{self, whole};
use crate::count::counted;
use crate::{absent, stdout};

/// How long one request may take, from connecting to the last byte of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a gateway's operators' HTTP listens unless its configuration says otherwise.
pub(crate) const ADMIN: &str = "127.0.0.1:7401";

/// Where a gateway keeps the operators' token unless its configuration says otherwise.
pub(crate) const TOKEN_FILE: &str = ".tidegate/admin.token";

/// Where the gateway's operators' HTTP is, and how to get in.
#[derive(Args, Debug)]
pub(crate) struct Operator {
    /// Where the gateway's operators' HTTP listens
    #[arg(long, default_value = ADMIN, value_name = "HOST:PORT", value_parser = argument::place)]
    admin: String,
    /// The file with the operators' token
    #[arg(long, default_value = TOKEN_FILE, value_name = "FILE")]
    token_file: PathBuf,
}

/// The arguments of `tide push`.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    #[command(subcommand)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    /// To each connection of a user
    #[command(
        override_usage = "tide push user [OPTIONS] --type <N> <ID> <TEXT|--file <FILE>|--stdin>"
    )]
    User {
        /// Who gets it
        #[arg(value_parser = argument::user)]
        id: u64,
        #[command(flatten)]
        push: Push,
    },
    /// To each member of a room
    #[command(
        override_usage = "tide push room [OPTIONS] --type <N> <ROOM> <TEXT|--file <FILE>|--stdin>"
    )]
    Room {
        /// Which room
        #[arg(value_name = "ROOM", value_parser = argument::room)]
        id: String,
        #[command(flatten)]
        push: Push,
    },
    /// To every authenticated connection
    All {
        #[command(flatten)]
        push: Push,
    },
}

#[derive(Args, Debug)]
struct Push {
    /// The push's type, from 1 up
    #[arg(long = "type", value_name = "N", value_parser = whole(1..=i32::MAX))]
    kind: i32,
    #[command(flatten)]
    body: Body,
    /// Print the gateway's answer as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Body {
    /// What to push
    text: Option<String>,
    /// Push the bytes of a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Push the bytes of standard input
    #[arg(long)]
    stdin: bool,
}

/// The arguments of `tide kick`.
#[derive(Args, Debug)]
pub(crate) struct KickArgs {
    /// Whose connections to close
    #[arg(value_parser = argument::user)]
    id: u64,
    /// Print the gateway's answer as it is
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
    /// Which user
    #[arg(value_parser = argument::user)]
    id: u64,
    #[command(flatten)]
    operator: Operator,
}

/// The arguments of `tide room`.
#[derive(Args, Debug)]
pub(crate) struct RoomArgs {
    /// Which room
    #[arg(value_name = "ROOM", value_parser = argument::room)]
    id: String,
    #[command(flatten)]
    operator: Operator,
}

/// Pushes, and prints how many connections it went to.
///
/// # Errors
/// When there is nothing to push, the gateway can't be reached, or it refuses.
pub(crate) fn run(args: PushArgs) -> Result<()> {
    let (to, push) = match args.target {
        Target::User { id, push } => (format!("users/{id}"), push),
        Target::Room { id, push } => (format!("rooms/{}", encode(&id)), push),
        Target::All { push } => ("all".to_owned(), push),
    };
    let body = push.body.read()?;
    let answer = push.operator.post(&format!("/push/{to}?type={}", push.kind), &body)?;
    if push.json {
        return print(&answer);
    }
    print(&format!("went to {}", counted(connections(&answer)?, "connection")))
}

/// Closes every connection of a user, and prints how many there were.
///
/// # Errors
/// When the gateway can't be reached, or it refuses.
pub(crate) fn kick(args: &KickArgs) -> Result<()> {
    let answer = args.operator.post(&format!("/users/{}/kick", args.id), &[])?;
    if args.json {
        return print(&answer);
    }
    print(&format!("closed {}", counted(connections(&answer)?, "connection")))
}

/// Prints what the gateway counts.
///
/// # Errors
/// When the gateway can't be reached, or it refuses.
pub(crate) fn stats(args: &StatsArgs) -> Result<()> {
    args.operator.show("/stats")
}

/// Prints what the gateway knows of a user.
///
/// # Errors
/// When the gateway can't be reached, or it refuses.
pub(crate) fn user(args: &UserArgs) -> Result<()> {
    args.operator.show(&format!("/users/{}", args.id))
}

/// Prints what the gateway knows of a room.
///
/// # Errors
/// When the gateway can't be reached, or it refuses.
pub(crate) fn room(args: &RoomArgs) -> Result<()> {
    args.operator.show(&format!("/rooms/{}", encode(&args.id)))
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

impl Operator {
    fn post(&self, path: &str, body: &[u8]) -> Result<String> {
        let request = agent().post(self.url(path)).header("Authorization", self.authorization()?);
        self.answer(request.content_type("application/octet-stream").send(body))
    }

    /// The operators' HTTP of the gateway that listens at `admin`.
    pub(crate) const fn new(admin: String, token_file: PathBuf) -> Self {
        Self { admin, token_file }
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// When the gateway can't be reached, or it refuses.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let request = agent().get(self.url(path)).header("Authorization", self.authorization()?);
        let answer = self.answer(request.call())?;
        serde_json::from_str(&answer)
            .with_context(|| format!("the gateway's answer is no JSON: {answer}"))
    }

    /// Gets JSON, and prints it for people.
    fn show(&self, path: &str) -> Result<()> {
        print(&serde_json::to_string_pretty(&self.get(path)?)?)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    fn authorization(&self) -> Result<String> {
        let path = self.token_file.display();
        let token = fs::read_to_string(&self.token_file).with_context(|| {
            format!(
                "can't read the operators' token {path}: a gateway makes it on its first start, \
                 in its working directory; run this there, or name the file with --token-file"
            )
        })?;
        ensure!(!token.trim().is_empty(), "the operators' token {path} is empty");
        Ok(format!("Bearer {}", token.trim()))
    }

    /// The body of an answer that says yes.
    fn answer(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<String> {
        let mut answer = answer.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        let body = answer.body_mut().read_to_string().context("the gateway's answer broke off")?;
        if status.is_success() {
            return Ok(body);
        }
        let said: Option<Value> = serde_json::from_str(&body).ok();
        let said = said.as_ref().and_then(|value| value["error"].as_str()).unwrap_or(body.trim());
        let way_out = match status.as_u16() {
            401 | 403 => " (is this the gateway's own --token-file?)",
            _ => "",
        };
        bail!("the gateway answered {status}: {said}{way_out}")
    }

    fn unreachable(&self, error: ureq::Error) -> Error {
        let refused =
            matches!(&error, ureq::Error::Io(io) if io.kind() == ErrorKind::ConnectionRefused);
        let said = if refused {
            absent::no_operators(&self.admin)
        } else {
            let place = &self.admin;
            format!(
                "can't reach the operators' HTTP at {place}: is a gateway running there? name another \
                 place with --admin"
            )
        };
        Error::new(error).context(said)
    }
}

/// An agent that goes straight to the gateway: no proxy, no redirects, every status an answer.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(REQUEST_TIMEOUT))
        .build()
        .into()
}

/// A name as one segment of a path: `a/b` stays one segment, `..` goes nowhere.
fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, NON_ALPHANUMERIC).to_string()
}

fn connections(answer: &str) -> Result<u64> {
    serde_json::from_str::<Value>(answer)
        .ok()
        .and_then(|value| value["connections"].as_u64())
        .with_context(|| format!("the gateway's answer does not count connections: {answer}"))
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
