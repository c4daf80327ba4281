//! The commands of a user: parses them, and encodes what they send.

use std::fmt;
use std::fmt::Write as _;

use anyhow::{Error, Result, anyhow, bail, ensure};
use prost::Message as _;
use tidegate_protocol::proto::demo::{JoinRoom, LeaveRoom, MessageUser, SayInRoom};

use super::text::{bytes_of_hex, printable};
use crate::argument;

/// The demo backend's type that answers with the same bytes.
pub(super) const ECHO: i32 = 1;
/// The demo backend's type that pushes to all users.
pub(super) const PUSH_ALL: i32 = 2;
/// The demo backend's type that joins a room.
pub(super) const JOIN: i32 = 10;
/// The demo backend's type that leaves a room.
pub(super) const LEAVE: i32 = 11;
/// The demo backend's type that publishes a text in a room.
pub(super) const SAY: i32 = 12;
/// The demo backend's type that pushes a text to one user.
pub(super) const MESSAGE: i32 = 20;

/// Every command: its usage, and what it does.
const COMMANDS: [(&str, &str); 11] = [
    ("help", "this list"),
    ("echo TEXT", "send TEXT as type 1; the demo backend answers with it"),
    ("send TYPE TEXT", "send TEXT as it is; hex:0aff for bytes"),
    ("all TEXT", "push TEXT to all users"),
    ("join ROOM [LAST_OFFSET]", "join a room; LAST_OFFSET asks for the pushes after it"),
    ("leave ROOM", "leave a room"),
    ("say ROOM TEXT", "say something in a room"),
    ("msg USER TEXT", "say something to a user"),
    ("ping", "send a heartbeat and time its answer"),
    ("reconnect", "connect and log in again, and resume the rooms where they were left"),
    ("quit", "leave; so does the end of the input"),
];

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Show the commands.
    Help,
    /// Send a text that the gateway sends back.
    Echo(String),
    /// Send bytes with any type, unchanged.
    Send {
        /// Greater than 0.
        kind: i32,
        /// Not interpreted.
        biz_data: Vec<u8>,
    },
    /// Push to all users.
    All(String),
    /// Join a room.
    Join {
        /// Its name, not empty.
        room: String,
        /// The last offset seen; 0: none.
        last_offset: u64,
    },
    /// Leave a room.
    Leave {
        /// Its name, not empty.
        room: String,
    },
    /// Publish a text in a room.
    Say {
        /// Its name, not empty.
        room: String,
        /// The text.
        text: String,
    },
    /// Push a text to a user.
    Message {
        /// The user.
        user_id: u64,
        /// The text.
        text: String,
    },
    /// Send a heartbeat.
    Ping,
    /// Connect and log in again.
    Reconnect,
    /// End the client.
    Quit,
}

/// What a command sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sends {
    /// A heartbeat.
    Heartbeat,
    /// A business request of this type with this `biz_data`.
    Request(i32, Vec<u8>),
}

impl Command {
    /// Parses a line; `None` for an empty line and for a comment, which starts with `#`.
    ///
    /// # Errors
    /// The line is no command, or its arguments are wrong. The error tells the usage.
    pub(super) fn parse(line: &str) -> Result<Option<Self>> {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (verb, rest) = word(line);
        Ok(Some(match verb {
            "help" => without_arguments(verb, rest, Self::Help)?,
            "ping" => without_arguments(verb, rest, Self::Ping)?,
            "reconnect" => without_arguments(verb, rest, Self::Reconnect)?,
            "quit" => without_arguments(verb, rest, Self::Quit)?,
            "echo" => Self::Echo(rest.to_owned()),
            "all" => Self::All(rest.to_owned()),
            "send" => parse_send(rest)?,
            "join" => parse_join(rest)?,
            "leave" => {
                let (room, rest) = named(verb, rest)?;
                without_arguments(verb, rest, Self::Leave { room })?
            }
            "say" => {
                let (room, text) = named(verb, rest)?;
                Self::Say { room, text: text.to_owned() }
            }
            "msg" => {
                let (user, text) = named(verb, rest)?;
                let user_id =
                    argument::user(&user).map_err(|said| invalid_argument(verb, &user, &said))?;
                Self::Message { user_id, text: text.to_owned() }
            }
            _ => {
                bail!("there is no command \"{}\"; \"help\" lists them", printable(verb.as_bytes()))
            }
        }))
    }

    /// What the command sends to the gateway; `None` for a command that sends nothing.
    pub(super) fn message(&self) -> Option<Sends> {
        let (kind, biz_data) = match self {
            Self::Help | Self::Reconnect | Self::Quit => return None,
            Self::Ping => return Some(Sends::Heartbeat),
            Self::Echo(text) => (ECHO, text.clone().into_bytes()),
            Self::All(text) => (PUSH_ALL, text.clone().into_bytes()),
            Self::Send { kind, biz_data } => (*kind, biz_data.clone()),
            Self::Join { room, last_offset } => {
                let last_offset = *last_offset;
                (JOIN, JoinRoom { room: room.clone(), last_offset }.encode_to_vec())
            }
            Self::Leave { room } => (LEAVE, LeaveRoom { room: room.clone() }.encode_to_vec()),
            Self::Say { room, text } => {
                let text = text.clone().into();
                (SAY, SayInRoom { room: room.clone(), text }.encode_to_vec())
            }
            Self::Message { user_id, text } => {
                let text = text.clone().into();
                (MESSAGE, MessageUser { user_id: *user_id, text }.encode_to_vec())
            }
        };
        Some(Sends::Request(kind, biz_data))
    }
}

/// A command's short name, which its answer is shown with.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let room_name = |room: &str| printable(room.as_bytes());
        match self {
            Self::Help => f.write_str("help"),
            Self::Echo(_) => f.write_str("echo"),
            Self::Send { kind, .. } => write!(f, "send {kind}"),
            Self::All(_) => f.write_str("all"),
            Self::Join { room, last_offset: 0 } => write!(f, "join {}", room_name(room)),
            Self::Join { room, last_offset: offset } => {
                write!(f, "join {} after #{offset}", room_name(room))
            }
            Self::Leave { room } => write!(f, "leave {}", room_name(room)),
            Self::Say { room, .. } => write!(f, "say {}", room_name(room)),
            Self::Message { user_id, .. } => write!(f, "msg {user_id}"),
            Self::Ping => f.write_str("ping"),
            Self::Reconnect => f.write_str("reconnect"),
            Self::Quit => f.write_str("quit"),
        }
    }
}

/// The list of commands, one per line.
pub(super) fn help() -> String {
    let width = COMMANDS.iter().map(|(usage, _)| usage.len()).max().unwrap_or(0);
    COMMANDS.iter().fold(String::new(), |mut list, (usage, what)| {
        let separator = if list.is_empty() { "" } else { "\n" };
        let _infallible = write!(list, "{separator}  {usage:width$}  {what}");
        list
    })
}

fn parse_send(rest: &str) -> Result<Command> {
    let (kind, text) = named("send", rest)?;
    let kind: i32 = kind.parse().map_err(|_| {
        invalid_argument("send", &kind, &format!("a type is a whole number from 1 to {}", i32::MAX))
    })?;
    ensure!(
        kind > 0,
        "an app's types start at 1; a heartbeat (-1) is \"ping\", a login (0) is \"reconnect\""
    );
    let biz_data = match text.strip_prefix("hex:") {
        Some(hex) => bytes_of_hex(hex.trim())?,
        None => text.as_bytes().to_vec(),
    };
    Ok(Command::Send { kind, biz_data })
}

fn parse_join(rest: &str) -> Result<Command> {
    let (room, rest) = named("join", rest)?;
    let last_offset = match rest.trim().trim_start_matches('#') {
        "" => 0,
        offset => offset.parse().map_err(|_| {
            invalid_argument(
                "join",
                offset,
                &format!("an offset is a whole number from 0 to {}", u64::MAX),
            )
        })?,
    };
    Ok(Command::Join { room, last_offset })
}

/// The first word, and the rest after the space behind it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

/// The room or user that a command's arguments start with, and the rest of the line.
fn named<'a>(verb: &str, rest: &'a str) -> Result<(String, &'a str)> {
    let (name, rest) = word(rest);
    ensure!(!name.is_empty(), usage(verb));
    Ok((name.to_owned(), rest))
}

/// The command, if nothing follows it.
fn without_arguments(verb: &str, rest: &str, command: Command) -> Result<Command> {
    ensure!(rest.trim().is_empty(), usage(verb));
    Ok(command)
}

/// The error for an argument that can't be read.
fn invalid_argument(verb: &str, typed: &str, what_is_taken: &str) -> Error {
    anyhow!("\"{}\": {what_is_taken}; {}", printable(typed.as_bytes()), usage(verb))
}

fn usage(verb: &str) -> String {
    let usage = COMMANDS.iter().map(|(usage, _)| *usage).find(|usage| word(usage).0 == verb);
    format!("usage: {}", usage.unwrap_or(verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Command {
        Command::parse(line).unwrap().unwrap()
    }

    fn complaint(line: &str) -> String {
        Command::parse(line).unwrap_err().to_string()
    }

    #[test]
    fn every_command_reads_its_arguments() {
        let room = || "quiz".to_owned();
        assert_eq!(parse("echo hello  there "), Command::Echo("hello  there ".into()));
        assert_eq!(parse("echo"), Command::Echo(String::new()));
        assert_eq!(parse("  all hi"), Command::All("hi".into()));
        assert_eq!(parse("send 99 a b"), Command::Send { kind: 99, biz_data: b"a b".to_vec() });
        assert_eq!(parse("send 99 hex:00 Ff"), Command::Send { kind: 99, biz_data: vec![0, 0xff] });
        assert_eq!(parse("join quiz"), Command::Join { room: room(), last_offset: 0 });
        assert_eq!(parse("join quiz 0"), Command::Join { room: room(), last_offset: 0 });
        assert_eq!(parse("join  quiz  #33"), Command::Join { room: room(), last_offset: 33 });
        assert_eq!(parse("leave quiz "), Command::Leave { room: room() });
        assert_eq!(parse("say quiz hi you"), Command::Say { room: room(), text: "hi you".into() });
        assert_eq!(parse("msg 9 psst"), Command::Message { user_id: 9, text: "psst".into() });
        assert_eq!(parse("ping"), Command::Ping);
        assert_eq!(parse("reconnect"), Command::Reconnect);
        assert_eq!(parse("quit"), Command::Quit);
        assert_eq!(parse("help"), Command::Help);
    }

    #[test]
    fn empty_lines_and_comments_are_no_commands() {
        for line in ["", "   ", "# join quiz"] {
            assert_eq!(Command::parse(line).unwrap(), None, "{line:?}");
        }
    }

    #[test]
    fn the_error_for_a_wrong_line_has_the_usage() {
        assert!(complaint("jion quiz").contains("no command \"jion\""));
        assert!(complaint("join").contains("join ROOM [LAST_OFFSET]"));
        assert!(complaint("join quiz soon").contains("join ROOM [LAST_OFFSET]"));
        assert!(complaint("leave quiz now").contains("leave ROOM"));
        assert!(complaint("say").contains("say ROOM TEXT"));
        assert!(complaint("msg bob hi").contains("msg USER TEXT"));
        assert!(complaint("send x hi").contains("send TYPE TEXT"));
        assert!(complaint("send 0 hi").contains("start at 1"));
        assert!(complaint("send 9 hex:0").contains("hex"));
        assert!(complaint("quit now").contains("quit"));
        // The error names the typed text and the accepted values, and has no text of a library.
        for (line, typed) in [("msg bob hi", "bob"), ("send x hi", "x"), ("join quiz soon", "soon")]
        {
            let error = Command::parse(line).unwrap_err();
            let said = format!("{error:#}");
            assert!(said.starts_with(&format!("\"{typed}\": a")), "{said}");
            assert!(said.contains("whole number from") && !said.contains("invalid"), "{said}");
        }
    }

    #[test]
    fn a_command_sends_what_the_demo_backend_reads() {
        let Some(Sends::Request(kind, biz_data)) = parse("join quiz 5").message() else {
            panic!("a join sends a request");
        };
        assert_eq!(kind, JOIN);
        let wanted = JoinRoom { room: "quiz".into(), last_offset: 5 };
        assert_eq!(JoinRoom::decode(&biz_data[..]).unwrap(), wanted);
        assert_eq!(parse("echo hi").message(), Some(Sends::Request(ECHO, b"hi".to_vec())));
        assert_eq!(parse("ping").message(), Some(Sends::Heartbeat));
        assert_eq!(parse("help").message(), None);
    }

    #[test]
    fn the_help_lists_every_command() {
        assert_eq!(help().lines().count(), COMMANDS.len());
        for (usage, _) in COMMANDS {
            let verb = word(usage).0;
            let known = Command::parse(usage);
            assert!(
                known.as_ref().map_or_else(
                    |error| !error.to_string().contains("no command"),
                    Option::is_some
                ),
                "{verb}"
            );
        }
    }
}
