//! Holds [`Memberships`] to `vectors/memberships.json`, step by step.

pub mod page;

use bytes::Bytes;
use serde_json::Value;
use tidegate_protocol::limits::RESUME_BYTES_MAX;
use tidegate_protocol::memberships::{Change, Delivery, Memberships};
use tidegate_protocol::proto::v1;

fn text<'a>(fields: &'a Value, key: &str) -> &'a str {
    fields[key].as_str().unwrap_or_else(|| panic!("{fields} has no text {key}"))
}

fn number(fields: &Value, key: &str) -> u64 {
    text(fields, key).parse().expect("a decimal number")
}

fn number_32(fields: &Value, key: &str) -> u32 {
    fields[key].as_u64().and_then(|value| value.try_into().ok()).expect("32 bits")
}

fn hex(fields: &Value, key: &str) -> Bytes {
    let hex = text(fields, key);
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn room(fields: &Value) -> v1::Room {
    v1::Room {
        name: text(fields, "name").into(),
        number: number_32(fields, "number"),
        log: number(fields, "log"),
        head: number(fields, "head"),
        recovery: number_32(fields, "recovery").try_into().expect("an enumeration"),
        ticket: hex(fields, "ticket"),
    }
}

fn position(fields: &Value) -> v1::Position {
    v1::Position {
        room: text(fields, "room").into(),
        log: number(fields, "log"),
        offset: number(fields, "offset"),
        ticket: hex(fields, "ticket"),
    }
}

/// What a vector says of a step.
fn changes(step: &Value) -> Vec<Change> {
    let change = |change: &Value| match change["gap"].as_str() {
        Some(room) => Change::Gap { room: room.into() },
        None => Change::Refused { room: text(change, "refused").into() },
    };
    list(&step["changes"]).iter().map(change).collect()
}

fn delivery<'a>(delivery: &Delivery<'a>) -> (Option<&'a str>, &'static str) {
    match *delivery {
        Delivery::ToUser | Delivery::UnknownRoom => (None, "deliver"),
        Delivery::New { room } => (Some(room), "deliver"),
        Delivery::AfterGap { room, .. } => (Some(room), "gap and deliver"),
        Delivery::Repeat { room } => (Some(room), "drop"),
    }
}

fn check(name: &str, step: &Value, memberships: &mut Memberships) {
    let fields = step.as_object().expect("a step");
    if let Some(opened) = fields.get("opened") {
        let session = v1::Session {
            session_id: number(opened, "session_id"),
            rooms: list(&opened["rooms"]).iter().map(room).collect(),
            ..v1::Session::default()
        };
        assert_eq!(memberships.opened(&session), changes(step), "{name}: {step}");
    } else if let Some(joined) = fields.get("joined") {
        let change = Vec::from_iter(memberships.joined(&room(joined)));
        assert_eq!(change, changes(step), "{name}: {step}");
    } else if let Some(push) = fields.get("pushed") {
        let delivered = memberships.pushed(number_32(push, "room"), number(push, "offset"));
        let wanted = (step["of"].as_str(), text(step, "delivery"));
        assert_eq!(delivery(&delivered), wanted, "{name}: {step}");
    } else if let Some(positions) = fields.get("resume") {
        let wanted: Vec<_> = list(positions).iter().map(position).collect();
        assert_eq!(memberships.resume(RESUME_BYTES_MAX).positions, wanted, "{name}: {step}");
    } else if fields.contains_key("left") {
        memberships.left(text(step, "left"));
    } else {
        assert_eq!(step["disconnected"], true, "{name}: {step} is no step");
        memberships.disconnected();
    }
}

#[test]
fn each_step_says_what_the_vectors_say() {
    let file: Value = serde_json::from_str(&page::read("vectors/memberships.json")).expect("JSON");
    assert_eq!(file["format"], 1);
    for vector in list(&file["vectors"]) {
        let mut memberships = Memberships::default();
        for step in list(&vector["steps"]) {
            check(text(vector, "name"), step, &mut memberships);
        }
    }
}
