//! How what happened is shown: one line each, whose first word says what it is.
//!
//! What came from the network is other people's text: its control characters are shown, not obeyed.
//! Lines carry colours; who prints them takes the colours out where they are not wanted.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use tidegate_protocol::client::Failure;
use tidegate_protocol::proto::demo::{RoomMessage, UserMessage};

use super::command::{Command, MESSAGE, PUSH_ALL, SAY};
use super::notice::{Notice, Why};
use super::rooms::Gap;
use crate::count::grouped;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const PUSHED: Style = AnsiColor::Cyan.on_default();
const ODD: Style = AnsiColor::Yellow.on_default();

/// A push, as far as it could be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Somebody said something in a room.
    InRoom(RoomMessage),
    /// Somebody said something to this user.
    ToUser(UserMessage),
    /// Anything else.
    Other,
}

/// Reads a push by the demo backend's types. An operator can push other bytes as any type, so what
/// lacks a sender's room or name is not taken for what its type promises.
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

/// The line for what happened, without a line end.
pub(super) fn render(notice: &Notice) -> String {
    match notice {
        Notice::LoggedIn { user_id, session } => {
            let every = Duration::from_millis(session.heartbeat_interval_ms.into());
            let id = session.session_id;
            // As the operators' HTTP writes it.
            let text = format!("user {user_id}, session {id:016x}, a heartbeat every {every:?}");
            line(GOOD, "in", &text)
        }
        Notice::LoginFailed { user_id, why } => {
            line(BAD, "failed", &format!("login of user {user_id}: {why}"))
        }
        Notice::Done { command, biz_data } => {
            let text = if biz_data.is_empty() { String::new() } else { shown(biz_data) };
            line(GOOD, "ok", &joined_with_colon(command, &text))
        }
        Notice::Pong { took, server_time_ms } => {
            let took_ms = took.as_secs_f64() * 1000.0;
            let text = format!("ping: {took_ms:.2} ms, the gateway's clock is {server_time_ms} ms");
            line(GOOD, "ok", &text)
        }
        Notice::Failed { what, why } => line(BAD, "failed", &format!("{what}: {why}")),
        Notice::Push { kind, offset, biz_data } => {
            line(PUSHED, "push", &push_text(*kind, *offset, biz_data))
        }
        Notice::Gap(Gap { room, last_offset, offset, missing_max }) => {
            let room = shown(room.as_bytes());
            let text = format!(
                "{room}: #{last_offset} is followed by #{offset}, up to {} missed",
                grouped(missing_max)
            );
            line(ODD, "gap", &text)
        }
        Notice::Stray { kind, sequence, biz_data } => {
            let text = format!(
                "type {kind}, request {sequence}, which nobody waits for: {}",
                shown(biz_data)
            );
            line(ODD, "answer", &text)
        }
        Notice::Goodbye(failure) => line(BAD, "goodbye", &failure_text(failure)),
    }
}

/// A line of this end's own: what is going on with the connection.
pub(super) fn note(text: &str) -> String {
    line(Style::new().dimmed(), "--", text)
}

/// A line of this end's own: what went wrong here.
pub(super) fn complaint(text: &str) -> String {
    line(BAD, "failed", text)
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(failure) => f.write_str(&failure_text(failure)),
            Self::NoAnswer(patience) => write!(f, "no answer within {patience:?}"),
            Self::NotIn => f.write_str("not logged in; \"reconnect\" tries again"),
            Self::Closed => f.write_str("the connection closed before the answer"),
        }
    }
}

/// Bytes for people: text with its control characters escaped, or `hex:` when they are no text.
pub(super) fn shown(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return bytes.iter().fold("hex:".to_owned(), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns_text_around(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Bytes of pairs of hexadecimal digits; spaces between them are skipped.
///
/// # Errors
/// When it is not pairs of hexadecimal digits.
pub(super) fn bytes_of_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let digits: Vec<u8> = digits
        .into_iter()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .context("what follows hex: is not hexadecimal; it goes: hex:0aff")?;
    ensure!(digits.len().is_multiple_of(2), "what follows hex: has half a byte at its end");
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The characters by which a text reorders what stands beside it.
const fn turns_text_around(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_text(kind: i32, offset: u64, biz_data: &[u8]) -> String {
    let place = if offset > 0 { format!(" #{offset}") } else { String::new() };
    match read_push(kind, biz_data) {
        Pushed::InRoom(RoomMessage { room, from_user_id, text }) => {
            format!("{}{place} user {from_user_id}: {}", shown(room.as_bytes()), shown(&text))
        }
        Pushed::ToUser(UserMessage { from_user_id, text }) => {
            format!("from user {from_user_id}: {}", shown(&text))
        }
        Pushed::Other if kind == PUSH_ALL && offset > 0 => {
            format!("everybody{place}: {}", shown(biz_data))
        }
        Pushed::Other => format!("type {kind}{place}: {}", shown(biz_data)),
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
        let told = UserMessage { from_user_id: 9, text: "psst".into() };
        assert_eq!(push(20, 0, told.encode_to_vec()), "push from user 9: psst");
        assert_eq!(push(2, 4, "news"), "push everybody #4: news");
        assert_eq!(push(99, 0, vec![0xff, 0]), "push type 99: hex:ff00");
    }

    #[test]
    fn what_an_operator_pushes_raw_is_shown_raw() {
        assert_eq!(push(12, 5, "hello"), "push type 12 #5: hello");
        assert_eq!(push(20, 0, ""), "push type 20: ");
    }

    #[test]
    fn failures_show_code_name_and_retry() {
        let failure = |code, ms| Failure { code, retry_after: Duration::from_millis(ms) };
        let why = Why::Refused(failure(Some(Code::RateLimited), 250));
        let failed = Notice::Failed { what: "echo".into(), why };
        assert_eq!(plain(&failed), "failed echo: 103 RATE_LIMITED, try again in 250ms");
        let goodbye = Notice::Goodbye(failure(Some(Code::Idle), 0));
        assert_eq!(plain(&goodbye), "goodbye 109 IDLE");
        let unknown = Notice::Goodbye(failure(None, 0));
        assert!(plain(&unknown).contains("does not know"));
        let late = Why::NoAnswer(Duration::from_secs(10));
        let late = Notice::Failed { what: "echo".into(), why: late };
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

    #[test]
    fn a_terminal_obeys_nobody_elses_text() {
        assert_eq!(shown(b"a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(shown("gr\u{fc}n \u{202e}x".as_bytes()), "gr\u{fc}n \\u{202e}x");
        assert_eq!(shown(&[0xc3]), "hex:c3");
    }

    #[test]
    fn hex_is_pairs_of_digits() {
        assert_eq!(bytes_of_hex("00 fF").unwrap(), [0, 0xff]);
        assert_eq!(bytes_of_hex("").unwrap(), [0_u8; 0]);
        assert!(bytes_of_hex("0").is_err());
        assert!(bytes_of_hex("0g").is_err());
    }
}
