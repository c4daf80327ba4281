//! Formats notices: one line each, whose first word tells its kind.
//!
//! Text from the network may contain anything, so its control characters are escaped. Lines contain colours; the printer
//! removes them where they are not wanted.

use std::fmt;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use prost::Message as _;
use tidegate_protocol::client::Failure;
use tidegate_protocol::memberships::Change;
use tidegate_protocol::proto::demo::{RoomMessage, UserMessage};
use tidegate_protocol::proto::v1::{Recovery, Room};

use super::command::{Command, MESSAGE, SAY};
use super::notice::{Notice, Reason};
use super::text::printable;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const PUSHED: Style = AnsiColor::Cyan.on_default();
const WARN: Style = AnsiColor::Yellow.on_default();

/// A push, decoded where its type is known.
#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    /// A text in a room.
    InRoom(RoomMessage),
    /// A text for this user.
    ToUser(UserMessage),
    /// Anything else.
    Other,
}

/// Decodes a push by the demo backend's types. An operator can push any bytes with any type, so a message without a room
/// or a sender is not taken for what its type says.
fn read_push(kind: i32, biz_data: &[u8]) -> Pushed {
    match kind {
        SAY => match RoomMessage::decode(biz_data) {
            Ok(message) if !message.room.is_empty() => Pushed::InRoom(message),
            _ => Pushed::Other,
        },
        MESSAGE => match UserMessage::decode(biz_data) {
            Ok(message) if message.from_user_id > 0 => Pushed::ToUser(message),
            _ => Pushed::Other,
        },
        _ => Pushed::Other,
    }
}

/// The line for a notice, without a line end.
pub(super) fn render(notice: &Notice) -> String {
    match notice {
        Notice::LoggedIn { user_id, session } => {
            let every = Duration::from_millis(session.heartbeat_interval_ms.into());
            let id = session.session_id;
            // In the same form as in the operators' HTTP.
            let text = format!("user {user_id}, session {id:016x}, heartbeat every {every:?}");
            line(GOOD, "login", &text)
        }
        Notice::LoginFailed { user_id, reason } => {
            line(BAD, "failed", &format!("login of user {user_id}: {reason}"))
        }
        Notice::Done { command, biz_data } => {
            let text = if biz_data.is_empty() { String::new() } else { printable(biz_data) };
            line(GOOD, "ok", &joined_with_colon(command, &text))
        }
        Notice::Pong { took, server_time_ms } => {
            let took_ms = took.as_secs_f64() * 1000.0;
            let text = format!("ping: {took_ms:.2} ms, the gateway's clock is {server_time_ms} ms");
            line(GOOD, "ok", &text)
        }
        Notice::Failed { what, reason } => line(BAD, "failed", &format!("{what}: {reason}")),
        Notice::Push { kind, room, offset, biz_data } => {
            line(PUSHED, "push", &push_text(*kind, room.as_deref(), *offset, biz_data))
        }
        Notice::Joined(room) => line(GOOD, "joined", &joined_text(room)),
        Notice::Left { room } => line(WARN, "left", &printable(room.as_bytes())),
        Notice::Changed(change) => change_line(change),
        Notice::Missing { room, offsets } => {
            let (room, first, last) = (printable(room.as_bytes()), offsets.start(), offsets.end());
            line(WARN, "gap", &format!("in {room}: #{first} to #{last} are missing"))
        }
        Notice::Stray { kind, sequence, biz_data } => {
            let text = format!(
                "type {kind}, request {sequence}, which is not pending: {}",
                printable(biz_data)
            );
            line(WARN, "answer", &text)
        }
        Notice::Goodbye(failure) => line(BAD, "goodbye", &failure_text(failure)),
    }
}

/// A line about the connection.
pub(super) fn status_line(text: &str) -> String {
    line(Style::new().dimmed(), "--", text)
}

/// A line about an error of the client itself.
pub(super) fn error_line(text: &str) -> String {
    line(BAD, "failed", text)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(failure) => f.write_str(&failure_text(failure)),
            Self::NoAnswer(timeout) => write!(f, "no answer within {timeout:?}"),
            Self::NotLoggedIn => f.write_str("not logged in; \"reconnect\" tries again"),
            Self::Closed => f.write_str("the connection closed before the answer"),
        }
    }
}

/// The room's name and the offset, as far as they are known, and the contents. A gateway of version 1.0 does not name the
/// room: then it is shown only where the contents name it.
fn push_text(kind: i32, room: Option<&str>, offset: u64, biz_data: &[u8]) -> String {
    let (named, text) = match read_push(kind, biz_data) {
        Pushed::InRoom(RoomMessage { room, from_user_id, text }) => {
            (Some(room), format!("user {from_user_id}: {}", printable(&text)))
        }
        Pushed::ToUser(UserMessage { from_user_id, text }) => {
            (None, format!("from user {from_user_id}: {}", printable(&text)))
        }
        Pushed::Other => (None, format!("type {kind}: {}", printable(biz_data))),
    };
    let room = room.or(named.as_deref()).map(|room| printable(room.as_bytes()));
    let offset = (offset > 0).then(|| format!("#{offset}"));
    let words: Vec<String> = room.into_iter().chain(offset).chain([text]).collect();
    words.join(" ")
}

fn joined_text(room: &Room) -> String {
    let name = printable(room.name.as_bytes());
    match (room.recovery(), room.head) {
        (Recovery::Complete, _) => format!("{name}, no push is missing"),
        (_, 0) => name,
        (_, head) => format!("{name} at #{head}"),
    }
}

fn change_line(change: &Change) -> String {
    match change {
        Change::Gap { room } => {
            line(WARN, "gap", &format!("in {}: pushes are missing", printable(room.as_bytes())))
        }
        Change::Refused { room } => {
            let room = printable(room.as_bytes());
            line(BAD, "refused", &format!("{room}: not a member; \"join {room}\" asks the backend"))
        }
        Change::NotKept { room } => {
            let room = printable(room.as_bytes());
            line(
                WARN,
                "unkept",
                &format!("{room}: too many rooms; \"reconnect\" does not resume it"),
            )
        }
    }
}

fn failure_text(failure: &Failure) -> String {
    let code = match failure.code {
        Some(code) => code.to_string(),
        None => "a code that this version does not know".to_owned(),
    };
    if failure.retry_after.is_zero() {
        code
    } else {
        format!("{code}, try again in {:?}", failure.retry_after)
    }
}

fn joined_with_colon(command: &Command, text: &str) -> String {
    if text.is_empty() { command.to_string() } else { format!("{command}: {text}") }
}

fn line(style: Style, first: &str, rest: &str) -> String {
    format!("{style}{first}{style:#} {rest}")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidegate_protocol::Code;

    use super::*;

    fn plain(notice: &Notice) -> String {
        anstream::adapter::strip_str(&render(notice)).to_string()
    }

    fn push(kind: i32, offset: u64, biz_data: impl Into<Bytes>) -> String {
        plain(&Notice::Push { kind, room: None, offset, biz_data: biz_data.into() })
    }

    #[test]
    fn pushes_are_read_by_their_type() {
        let said = RoomMessage { room: "quiz".into(), from_user_id: 9, text: "hi".into() };
        assert_eq!(push(12, 33, said.encode_to_vec()), "push quiz #33 user 9: hi");
        let message = UserMessage { from_user_id: 9, text: "psst".into() };
        assert_eq!(push(20, 0, message.encode_to_vec()), "push from user 9: psst");
        assert_eq!(push(99, 0, vec![0xff, 0]), "push type 99: hex:ff00");
    }

    /// The demo pushes to everybody with type 2, but an operator may push to a room with it.
    #[test]
    fn a_type_does_not_show_where_a_push_was_published() {
        assert_eq!(push(2, 4, "news"), "push #4 type 2: news");
        assert_eq!(push(2, 0, "news"), "push type 2: news");
        let room = Some("*".into());
        let push = Notice::Push { kind: 2, room, offset: 4, biz_data: "news".into() };
        assert_eq!(plain(&push), "push * #4 type 2: news");
    }

    #[test]
    fn the_gateways_name_of_a_room_is_shown_and_not_that_of_the_contents() {
        let said = RoomMessage { room: "quiz".into(), from_user_id: 9, text: "hi".into() };
        let room = Some("lobby".into());
        let biz_data = said.encode_to_vec().into();
        let push = Notice::Push { kind: SAY, room, offset: 33, biz_data };
        assert_eq!(plain(&push), "push lobby #33 user 9: hi");
    }

    #[test]
    fn memberships_are_shown_with_their_rooms() {
        let joined = |recovery: Recovery, head| {
            let recovery = recovery.into();
            plain(&Notice::Joined(Room { name: "quiz".into(), recovery, head, ..Room::default() }))
        };
        assert_eq!(joined(Recovery::NotAsked, 0), "joined quiz");
        assert_eq!(joined(Recovery::NotAsked, 5), "joined quiz at #5");
        assert_eq!(joined(Recovery::Gap, 5), "joined quiz at #5");
        assert_eq!(joined(Recovery::Complete, 5), "joined quiz, no push is missing");
        let room = || "qu\u{1b}iz".to_owned();
        assert_eq!(plain(&Notice::Left { room: room() }), "left qu\\u{1b}iz");
        let gap = Notice::Changed(Change::Gap { room: room() });
        assert_eq!(plain(&gap), "gap in qu\\u{1b}iz: pushes are missing");
        let missing = Notice::Missing { room: room(), offsets: 3..=9 };
        assert_eq!(plain(&missing), "gap in qu\\u{1b}iz: #3 to #9 are missing");
        let refused = plain(&Notice::Changed(Change::Refused { room: "quiz".into() }));
        assert_eq!(refused, "refused quiz: not a member; \"join quiz\" asks the backend");
    }

    #[test]
    fn raw_bytes_of_an_operator_are_shown_as_bytes() {
        assert_eq!(push(12, 5, "hello"), "push #5 type 12: hello");
        assert_eq!(push(20, 0, ""), "push type 20: ");
    }

    #[test]
    fn failures_show_code_name_and_retry() {
        let failure = |code, ms| Failure { code, retry_after: Duration::from_millis(ms) };
        let reason = Reason::Refused(failure(Some(Code::RateLimited), 250));
        let failed = Notice::Failed { what: "echo".into(), reason };
        assert_eq!(plain(&failed), "failed echo: 103 RATE_LIMITED, try again in 250ms");
        let goodbye = Notice::Goodbye(failure(Some(Code::Idle), 0));
        assert_eq!(plain(&goodbye), "goodbye 109 IDLE");
        let unknown = Notice::Goodbye(failure(None, 0));
        assert!(plain(&unknown).contains("does not know"));
        let late = Reason::NoAnswer(Duration::from_secs(10));
        let late = Notice::Failed { what: "echo".into(), reason: late };
        assert_eq!(plain(&late), "failed echo: no answer within 10s");
    }

    #[test]
    fn answers_show_their_command_and_what_came() {
        let done = |command, biz_data: &'static str| {
            plain(&Notice::Done { command, biz_data: biz_data.into() })
        };
        assert_eq!(done(Command::Echo("hi".into()), "hi"), "ok echo: hi");
        let join = Command::Join { room: "quiz".into(), last_offset: 3 };
        assert_eq!(done(join, ""), "ok join quiz after #3");
    }
}
