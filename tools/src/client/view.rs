//! Formats notices: one line each, whose first word tells its kind.
//!
//! Text from the network may contain anything, so its control characters are escaped. Lines contain colours; the printer
//! removes them where they are not wanted.

use std::fmt;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use prost::Message as _;
use tidegate_protocol::client::Failure;
use tidegate_protocol::proto::demo::{RoomMessage, UserMessage};

use super::command::{Command, MESSAGE, SAY};
use super::notice::{Notice, Reason};
use super::rooms::Gap;
use super::text::printable;
use crate::count::grouped;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const PUSHED: Style = AnsiColor::Cyan.on_default();
const WARN: Style = AnsiColor::Yellow.on_default();

/// A push, decoded where its type is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// A text in a room.
    InRoom(RoomMessage),
    /// A text for this user.
    ToUser(UserMessage),
    /// Anything else.
    Other,
}

/// Decodes a push by the demo backend's types. An operator can push any bytes with any type, so a message without a room
/// or a sender is not taken for what its type says.
pub(super) fn read_push(kind: i32, biz_data: &[u8]) -> Pushed {
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
        Notice::Push { kind, offset, biz_data } => {
            line(PUSHED, "push", &push_text(*kind, *offset, biz_data))
        }
        Notice::Gap(Gap { room, last_offset, offset, missing_max }) => {
            let room = printable(room.as_bytes());
            let text = format!(
                "{room}: #{last_offset} is followed by #{offset}, up to {} missed",
                grouped(missing_max)
            );
            line(WARN, "gap", &text)
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

/// The frame of a push has a type and an offset, and does not say whether it was published to a room, to everybody or to
/// a user. So a room and a sender are shown only where the contents name them.
fn push_text(kind: i32, offset: u64, biz_data: &[u8]) -> String {
    let place = if offset > 0 { format!(" #{offset}") } else { String::new() };
    match read_push(kind, biz_data) {
        Pushed::InRoom(RoomMessage { room, from_user_id, text }) => {
            format!(
                "{}{place} user {from_user_id}: {}",
                printable(room.as_bytes()),
                printable(&text)
            )
        }
        Pushed::ToUser(UserMessage { from_user_id, text }) => {
            format!("from user {from_user_id}: {}", printable(&text))
        }
        Pushed::Other => format!("type {kind}{place}: {}", printable(biz_data)),
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
        plain(&Notice::Push { kind, offset, biz_data: biz_data.into() })
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
    fn a_type_does_not_tell_where_a_push_was_published() {
        assert_eq!(push(2, 4, "news"), "push type 2 #4: news");
        assert_eq!(push(2, 0, "news"), "push type 2: news");
    }

    #[test]
    fn raw_bytes_of_an_operator_are_shown_as_bytes() {
        assert_eq!(push(12, 5, "hello"), "push type 12 #5: hello");
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
        let join = Command::Join { room: "quiz".into(), last_offset: Some(3) };
        assert_eq!(done(join, ""), "ok join quiz after #3");
        let gap = Gap { room: "quiz".into(), last_offset: 3, offset: 9, missing_max: 5 };
        assert_eq!(plain(&Notice::Gap(gap)), "gap quiz: #3 is followed by #9, up to 5 missed");
    }
}
