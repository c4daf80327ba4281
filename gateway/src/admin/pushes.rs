//! Several pushes in one request: the JSON that `POST /push` takes, and its answer.
//!
//! The array is read as a whole before anything is pushed. So a mistake in one push changes nothing, and a program that
//! corrects it can send all of them again.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_backend::publisher::{CommandOutcome, Push, RoomId, Target, UserId};

use super::api::Pushed;
use super::error::{ApiError, refused};

/// Pushes of one request, at most. It bounds the answer, and how many of `limits.commands_max` a request takes.
pub(super) const PUSHES_MAX: usize = 1000;

/// One push, as it is typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    user: Option<UserId>,
    room: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(rename = "type")]
    kind: i32,
    text: Option<String>,
    base64: Option<String>,
    key: Option<String>,
    ttl_ms: Option<u64>,
}

/// How one push ended.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Pushed(Pushed),
    Refused {
        /// For people.
        error: String,
        /// For programs: that of the same refusal of a single push.
        code: &'static str,
    },
}

impl From<CommandOutcome> for Outcome {
    fn from(outcome: CommandOutcome) -> Self {
        match outcome {
            Ok(done) => Self::Pushed(done.into()),
            Err(refusal) => Self::Refused { error: refusal.to_string(), code: refused(refusal).1 },
        }
    }
}

/// Reads the pushes of a request.
pub(super) fn parse(body: &[u8]) -> Result<Vec<Push>, ApiError> {
    let typed: Vec<Value> =
        serde_json::from_slice(body).map_err(|error| ApiError::BadPushes(error.to_string()))?;
    let (count, count_max) = (typed.len(), PUSHES_MAX);
    if count > count_max {
        return Err(ApiError::TooManyPushes { count, count_max });
    }
    let check = |(index, typed)| {
        let read = serde_json::from_value(typed).map_err(|error| error.to_string());
        read.and_then(Typed::check).map_err(|reason| ApiError::BadPush { index, reason })
    };
    typed.into_iter().enumerate().map(check).collect()
}

impl Typed {
    fn check(self) -> Result<Push, String> {
        let target = match (self.user, self.room, self.all) {
            (Some(user_id), None, false) => Target::User(user_id),
            (None, Some(room), false) => {
                Target::Room(RoomId::new(room).map_err(|error| error.to_string())?)
            }
            (None, None, true) => Target::Room(RoomId::everybody()),
            _ => return Err("it needs one of `user`, `room`, and `all`: true".into()),
        };
        let biz_data = match (self.text, self.base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(text)) => {
                BASE64_STANDARD.decode(text).map_err(|error| format!("base64: {error}"))?
            }
            _ => return Err("it needs one of `text` and `base64`".into()),
        };
        let mut push = Push::new(target, self.kind, biz_data);
        if let Some(key) = self.key {
            push = push.key(key);
        }
        if let Some(ttl_ms) = self.ttl_ms {
            push = push.ttl(Duration::from_millis(ttl_ms));
        }
        push.check().map_err(|error| error.to_string())?;
        Ok(push)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_are_read_in_order() {
        let pushes = parse(
            br#"[{"user": 18446744073709551615, "type": 5, "text": "a"},
                 {"room": "q/\u00e9", "type": 2147483647, "base64": "AP8=", "key": "k", "ttl_ms": 9},
                 {"all": true, "type": 7, "text": ""}]"#,
        );
        let room = RoomId::new("q/\u{e9}").unwrap();
        let second = Push::to_room(&room, i32::MAX, vec![0, 255]).key("k");
        assert_eq!(
            pushes.unwrap(),
            [
                Push::to_user(u64::MAX, 5, "a"),
                second.ttl(Duration::from_millis(9)),
                Push::to_all(7, "")
            ]
        );
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn a_mistake_is_named_with_the_place_of_its_push() {
        for (push, error) in [
            (r#"{"type": 5, "text": "x"}"#, "one of `user`"),
            (r#"{"user": 7, "all": true, "type": 5, "text": "x"}"#, "one of `user`"),
            (r#"{"all": false, "type": 5, "text": "x"}"#, "one of `user`"),
            (r#"{"user": 7, "text": "x"}"#, "missing field `type`"),
            (r#"{"user": 7, "type": 0, "text": "x"}"#, "greater than 0"),
            (r#"{"user": 7, "type": "5", "text": "x"}"#, "invalid type"),
            (r#"{"user": -7, "type": 5, "text": "x"}"#, "invalid value"),
            (r#"{"user": 7, "type": 5}"#, "one of `text`"),
            (r#"{"user": 7, "type": 5, "text": "x", "base64": ""}"#, "one of `text`"),
            (r#"{"user": 7, "type": 5, "base64": "A"}"#, "base64"),
            (r#"{"user": 7, "type": 5, "text": "x", "ttl": 5}"#, "unknown field `ttl`"),
            (r#"{"user": 7, "type": 5, "text": "x", "ttl_ms": 0}"#, "1 to 4294967295 ms"),
            (r#"{"user": 7, "type": 5, "text": "x", "key": ""}"#, "1 to 64 bytes"),
            (r#"{"room": "", "type": 5, "text": "x"}"#, "at least one byte"),
            (r#"{"room": "*", "type": 5, "text": "x"}"#, "everybody"),
            ("7", "invalid type"),
        ] {
            let good = r#"{"user": 7, "type": 5, "text": "x"}"#;
            let body = format!("[{good}, {push}]");
            let said = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(said.contains("push 1") && said.contains(error), "{push}: {said}");
        }
        for body in ["", "{}", "[", "[{]", "[] []"] {
            let said = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(said.contains("no JSON array"), "{body}: {said}");
        }
        let many = vec![r#"{"all": true, "type": 5, "text": "x"}"#; PUSHES_MAX + 1];
        assert_eq!(parse(format!("[{}]", many[1..].join(",")).as_bytes()).unwrap().len(), 1000);
        let said = parse(format!("[{}]", many.join(",")).as_bytes()).unwrap_err().to_string();
        assert!(said.contains("at most 1000"), "{said}");
    }
}
