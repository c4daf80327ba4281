//! Bodies and queries on their way to a backend and back: JSON as it is, or JSON for protobuf messages.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use percent_encoding::percent_decode;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorError, DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind,
    MessageDescriptor,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::error::HttpError;
use crate::config::{HttpBody, HttpConfig};

/// How deep arrays and objects in JSON may be nested: what serde_json, and so perhaps a backend, reads at most.
const NESTING_MAX: usize = 127;

/// The first number that a signed integer of 64 bits does not hold.
const TWO_TO_THE_63: f64 = 9_223_372_036_854_775_808.0;

/// Why the messages of routes can't be used. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The file can't be read.
    #[error("http.descriptor_set_file: can't read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        cause: std::io::Error,
    },
    /// The file is no descriptor set.
    #[error(
        "http.descriptor_set_file: {} is no complete descriptor set: {cause}; \
         `protoc --include_imports --descriptor_set_out=FILE` makes one", path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: DescriptorError,
    },
    /// It has no such message.
    #[error(
        "http_routes[{index}].{key} = \"{name}\": http.descriptor_set_file has no such message"
    )]
    NoMessage {
        /// The index of the route.
        index: usize,
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
    },
}

/// What the bodies of a route are.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Json,
    Bytes,
    Messages { request: MessageDescriptor, response: MessageDescriptor },
}

/// Reads the messages that routes name. The result has an element for each route.
pub(super) fn bodies(config: &HttpConfig) -> Result<Vec<Body>, MessageError> {
    let pool = config.descriptor_set_file.as_deref().map(read).transpose()?.unwrap_or_default();
    let find = |index, key, name: &str| {
        let found = pool.get_message_by_name(name);
        found.ok_or_else(|| MessageError::NoMessage { index, key, name: name.to_owned() })
    };
    let body = |(index, body): (usize, &HttpBody)| {
        Ok(match body {
            HttpBody::Json => Body::Json,
            HttpBody::Bytes => Body::Bytes,
            HttpBody::Messages { request, response } => Body::Messages {
                request: find(index, "request", request)?,
                response: find(index, "response", response)?,
            },
        })
    };
    config.routes.iter().map(|route| &route.body).enumerate().map(body).collect()
}

fn read(path: &Path) -> Result<DescriptorPool, MessageError> {
    let bytes = std::fs::read(path)
        .map_err(|cause| MessageError::Unreadable { path: path.to_owned(), cause })?;
    DescriptorPool::decode(bytes.as_slice())
        .map_err(|cause| MessageError::Unusable { path: path.to_owned(), cause })
}

impl Body {
    /// What the backend gets of a body.
    pub(super) fn request(&self, body: Bytes) -> Result<Bytes, HttpError> {
        let bad = |error: serde_json::Error| HttpError::BadJson(error.to_string());
        match self {
            Self::Bytes => Ok(body),
            Self::Json => {
                let text = str::from_utf8(&body);
                let text = text.map_err(|error| HttpError::BadJson(error.to_string()))?;
                serde_json::from_str::<IgnoredAny>(text).map_err(bad)?;
                if nesting(text) > NESTING_MAX {
                    let reason = format!("it is nested deeper than {NESTING_MAX} levels");
                    return Err(HttpError::BadJson(reason));
                }
                Ok(body)
            }
            Self::Messages { request, .. } => {
                let mut reader = serde_json::Deserializer::from_slice(&body);
                let message = message(request, &mut reader).map_err(bad)?;
                reader.end().map_err(bad)?;
                let value = serde_json::from_slice(&body).map_err(bad)?;
                if has_too_large_integer(request, &value) {
                    let reason = "an integer is too large for its field";
                    return Err(HttpError::BadJson(reason.to_owned()));
                }
                Ok(message.encode_to_vec().into())
            }
        }
    }

    /// What the backend gets of a query.
    pub(super) fn query(&self, query: &str) -> Result<Bytes, HttpError> {
        let pairs = pairs(query)?;
        match self {
            Self::Json | Self::Bytes => {
                let mut object = Map::new();
                for (name, value) in pairs {
                    if object.insert(name.clone(), value.into()).is_some() {
                        return Err(HttpError::BadQuery(format!("{name} comes twice")));
                    }
                }
                Ok(Value::Object(object).to_string().into())
            }
            Self::Messages { request, .. } => {
                let object = Value::Object(fields(request, pairs)?);
                let message = message(request, object);
                let message = message.map_err(|error| HttpError::BadQuery(error.to_string()))?;
                Ok(message.encode_to_vec().into())
            }
        }
    }

    /// What the client gets of a backend's answer.
    pub(super) fn answer(&self, answer: Bytes) -> Result<Bytes, String> {
        let Self::Messages { response, .. } = self else { return Ok(answer) };
        let message = DynamicMessage::decode(response.clone(), answer);
        let message = message.map_err(|error| error.to_string())?;
        let json = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
        Ok(json.into())
    }
}

fn message<'de, D: serde::Deserializer<'de>>(
    descriptor: &MessageDescriptor,
    json: D,
) -> Result<DynamicMessage, D::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), json, &options)
}

/// How deep arrays and objects are nested in a text that is JSON.
fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest, mut is_in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_in_string = !is_in_string,
            _ if is_in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether a field of 64 bits has a number that only a floating point number holds. The library takes 2^64 for the largest
/// number that the field has. `value` is the JSON of a message.
fn has_too_large_integer(message: &MessageDescriptor, value: &Value) -> bool {
    match (message.full_name(), value) {
        ("google.protobuf.Int64Value" | "google.protobuf.UInt64Value", value) => {
            is_too_large(&Kind::Int64, value)
        }
        ("google.protobuf.Any", Value::Object(object)) => {
            // The message is in the same object, or in its "value" where it has a JSON of its own.
            let name = object.get("@type").and_then(Value::as_str);
            let name = name.and_then(|url| url.rsplit('/').next()).unwrap_or_default();
            let held = message.parent_pool().get_message_by_name(name);
            held.is_some_and(|held| {
                let is_special = held.full_name().starts_with("google.protobuf.");
                let value = if is_special { object.get("value") } else { Some(value) };
                value.is_some_and(|value| has_too_large_integer(&held, value))
            })
        }
        (_, Value::Object(object)) => object.iter().any(|(name, value)| {
            let field = message.get_field_by_json_name(name);
            let field = field.or_else(|| message.get_field_by_name(name));
            field.is_some_and(|field| is_too_large(&field.kind(), value))
        }),
        _ => false,
    }
}

fn is_too_large(kind: &Kind, value: &Value) -> bool {
    match (kind, value) {
        (_, Value::Array(values)) => values.iter().any(|value| is_too_large(kind, value)),
        (Kind::Message(entry), Value::Object(entries)) if entry.is_map_entry() => {
            let kind = entry.map_entry_value_field().kind();
            entries.values().any(|value| is_too_large(&kind, value))
        }
        (Kind::Message(message), value) => has_too_large_integer(message, value),
        (
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint64 | Kind::Fixed64,
            Value::Number(number),
        ) => number.is_f64() && number.as_f64().is_none_or(|number| number.abs() >= TWO_TO_THE_63),
        _ => false,
    }
}

/// The names and values of a query, decoded.
fn pairs(query: &str) -> Result<Vec<(String, String)>, HttpError> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let decoded = percent_decode(text.as_bytes()).decode_utf8();
        let decoded = decoded.map(std::borrow::Cow::into_owned);
        decoded.map_err(|_| HttpError::BadQuery("it is not UTF-8".to_owned()))
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

/// A message's fields as JSON, from the parameters of a query.
fn fields(
    message: &MessageDescriptor,
    pairs: Vec<(String, String)>,
) -> Result<Map<String, Value>, HttpError> {
    let mut object = Map::new();
    for (name, text) in pairs {
        let by_name = || message.get_field_by_name(&name);
        let field = message.get_field_by_json_name(&name).or_else(by_name);
        let field = field.ok_or_else(|| HttpError::BadQuery(format!("there is no {name}")))?;
        let value = typed(&field, text);
        let place = object.get_mut(field.json_name());
        match (field.is_list(), place) {
            (true, Some(Value::Array(values))) => values.push(value),
            (true, _) => drop(object.insert(field.json_name().to_owned(), vec![value].into())),
            (false, None) => drop(object.insert(field.json_name().to_owned(), value)),
            (false, Some(_)) => return Err(HttpError::BadQuery(format!("{name} comes twice"))),
        }
    }
    Ok(object)
}

/// A parameter's value as the JSON of its field. Numbers may be strings there.
fn typed(field: &FieldDescriptor, text: String) -> Value {
    match (field.kind(), text.as_str()) {
        (Kind::Bool, "true") => true.into(),
        (Kind::Bool, "false") => false.into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &[u8]) -> Result<Bytes, HttpError> {
        Body::Json.request(Bytes::copy_from_slice(body))
    }

    #[test]
    fn json_is_in_utf8_and_not_nested_without_end() {
        for good in [
            &br#"{"a": [1, "]}[{\" \u00e9"]}"#[..],
            "\"é\"".as_bytes(),
            b"1e999",
            &[b"[".repeat(NESTING_MAX), b"]".repeat(NESTING_MAX)].concat(),
            &[&b"["[..], &b"{},".repeat(1_000), b"{}]"].concat(),
            &[&b"\""[..], &b"[".repeat(1_000), b"\""].concat(),
        ] {
            assert_eq!(json(good).as_deref(), Ok(good), "{}", String::from_utf8_lossy(good));
        }
        for bad in [
            &b"\"\xff\""[..],
            b"\"\xed\xa0\x80\"",
            b"{",
            b"",
            &[b"[".repeat(NESTING_MAX + 1), b"]".repeat(NESTING_MAX + 1)].concat(),
            &[b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat(),
        ] {
            let refused = json(bad);
            assert!(matches!(refused, Err(HttpError::BadJson(_))), "{refused:?}");
        }
    }

    /// A message with wrapped numbers, in a file that imports the wrappers.
    const PROTO: &str = r#"
        syntax = "proto3";
        package t;
        import "google/protobuf/any.proto";
        import "google/protobuf/wrappers.proto";
        message Wrapped {
            google.protobuf.UInt64Value unsigned = 1;
            repeated google.protobuf.Int64Value signed = 2;
            map<string, google.protobuf.UInt64Value> by_name = 3;
            google.protobuf.Any any = 4;
            uint64 plain = 5;
        }
    "#;

    fn wrapped() -> Body {
        let folder = tempfile::tempdir().unwrap();
        let [proto, set] = ["t.proto", "t.bin"].map(|name| folder.path().join(name));
        std::fs::write(&proto, PROTO).unwrap();
        let made = std::process::Command::new("protoc")
            .arg("-I")
            .arg(folder.path())
            .args(["--include_imports", "t.proto"])
            .arg(format!("--descriptor_set_out={}", set.display()))
            .status();
        assert!(made.unwrap().success());
        let message = read(&set).unwrap().get_message_by_name("t.Wrapped").unwrap();
        Body::Messages { request: message.clone(), response: message }
    }

    #[test]
    fn an_integer_that_its_field_can_not_hold_is_refused_wherever_it_stands() {
        let body = wrapped();
        let places = [
            r##"{"plain": #}"##,
            r##"{"unsigned": #}"##,
            r##"{"signed": [1, #]}"##,
            r##"{"byName": {"a": #}}"##,
            r##"{"any": {"@type": "type.googleapis.com/t.Wrapped", "plain": #}}"##,
            r##"{"any": {"@type": "x/google.protobuf.UInt64Value", "value": #}}"##,
        ];
        for place in places {
            let request = |number| body.request(place.replace('#', number).into());
            assert!(request("9223372036854775807").is_ok(), "{place}");
            let refused = request("18446744073709551616");
            assert!(matches!(refused, Err(HttpError::BadJson(_))), "{place}: {refused:?}");
        }
    }
}
