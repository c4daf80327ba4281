//! The document that describes the routes (OpenAPI 3.1), made of the configuration and the descriptor set.

use std::collections::BTreeMap;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::error::STATUSES;
use super::media;
use super::routes::{Route, Routes};
use super::transcode::Body;

/// Statuses of requests that hyper refuses: they have no body.
const WITHOUT_BODY: [u16; 2] = [414, 431];

/// The schemas of messages, by name.
type Schemas = BTreeMap<String, Value>;

/// Makes the document.
pub(super) fn document(routes: &Routes) -> Value {
    let mut schemas = Schemas::new();
    schemas.insert("Error".to_owned(), error_schema());
    let mut paths = Map::new();
    let mut sorted: Vec<_> = routes.paths.iter().collect();
    sorted.sort_by_key(|(path, _)| path.as_str());
    for (path, methods) in sorted {
        let of_methods = [("get", &methods.get), ("post", &methods.post)];
        let operations = of_methods.into_iter().filter_map(|(method, route)| {
            Some((method.to_owned(), operation(method, route.as_ref()?, &mut schemas)))
        });
        paths.insert(path.clone(), Value::Object(operations.collect()));
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Tidegate", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["code", "error"],
        "properties": {
            "code": { "type": "integer", "description": "For programs: the code that a session would get." },
            "error": { "type": "string", "description": "For people." },
            "retry_after_ms": { "type": "integer", "description": "How long to wait before another try." },
        },
    })
}

fn operation(method: &str, route: &Route, schemas: &mut Schemas) -> Value {
    let takes_any_query = method == "get" && !matches!(route.body, Body::Messages { .. });
    let query = match takes_any_query {
        true => {
            " It takes any query, with each name once. The backend gets it as a JSON object of strings."
        }
        false => "",
    };
    let mut operation = json!({
        "description": format!("Type {} for backends.{query}", route.kind),
        "parameters": parameters(method, route, schemas),
        "responses": responses(route, schemas),
    });
    if !route.is_public {
        operation["security"] = json!([{ "token": [] }]);
    }
    if method == "post" {
        let (media, schema) = match &route.body {
            Body::Bytes => (media::BYTES, json!({})),
            Body::Json => (media::JSON, json!({})),
            Body::Messages { request, .. } => {
                (media::JSON, reference(request, Place::Request, schemas))
            }
        };
        let content = Map::from_iter([(media.to_owned(), json!({ "schema": schema }))]);
        operation["requestBody"] = json!({ "required": true, "content": content });
        if matches!(route.body, Body::Bytes) {
            operation["requestBody"]["required"] = false.into();
        }
    }
    operation
}

fn parameters(method: &str, route: &Route, schemas: &mut Schemas) -> Value {
    if method == "post" {
        return json!([]);
    }
    // The description says it: no schema describes names that are free, each of which comes once.
    let Body::Messages { request, .. } = &route.body else { return json!([]) };
    let is_parameter =
        |field: &FieldDescriptor| !field.is_map() && !matches!(field.kind(), Kind::Message(_));
    let fields = request.fields().filter(is_parameter);
    let parameter = |field: FieldDescriptor| {
        let mut schema = schema_of(&field.kind(), Place::Query, schemas);
        if field.is_list() {
            schema = json!({ "type": "array", "items": schema });
        }
        json!({ "name": field.json_name(), "in": "query", "schema": schema })
    };
    Value::Array(fields.map(parameter).collect())
}

fn responses(route: &Route, schemas: &mut Schemas) -> Value {
    let (media, schema) = match &route.body {
        Body::Bytes => (media::BYTES, json!({})),
        Body::Json => (media::JSON, json!({})),
        Body::Messages { response, .. } => {
            (media::JSON, reference(response, Place::Answer, schemas))
        }
    };
    let content = Map::from_iter([(media.to_owned(), json!({ "schema": schema }))]);
    let answer = json!({ "description": "The backend's answer.", "content": content });
    let mut responses = Map::from_iter([("200".to_owned(), answer)]);
    if matches!(route.body, Body::Json) {
        responses
            .insert("204".to_owned(), json!({ "description": "The backend's answer is empty." }));
    }
    for (status, meaning) in STATUSES {
        if status == 401 && route.is_public {
            continue;
        }
        let mut response = json!({ "description": meaning });
        if !WITHOUT_BODY.contains(&status) {
            let error = json!({ "$ref": "#/components/schemas/Error" });
            response["content"] = json!({ "application/json": { "schema": error } });
        }
        responses.insert(status.to_string(), response);
    }
    Value::Object(responses)
}

/// A reference to a message's schema, which is made where it is missing.
fn reference(message: &MessageDescriptor, place: Place, schemas: &mut Schemas) -> Value {
    let message_name = message.full_name();
    if let Some(schema) = well_known(message_name) {
        return schema;
    }
    let name = format!("{message_name}{}", place.suffix());
    if !schemas.contains_key(&name) {
        // A message may contain itself.
        schemas.insert(name.clone(), Value::Null);
        let schema = object(message, place, schemas);
        schemas.insert(name.clone(), schema);
    }
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn object(message: &MessageDescriptor, place: Place, schemas: &mut Schemas) -> Value {
    let mut properties = Map::new();
    for field in message.fields() {
        let schema = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { continue };
            let value = entry.map_entry_value_field().kind();
            let keys = key_pattern(&entry.map_entry_key_field().kind());
            let values = schema_of(&value, place, schemas);
            json!({ "type": "object", "propertyNames": keys, "additionalProperties": values })
        } else {
            let schema = schema_of(&field.kind(), place, schemas);
            if field.is_list() { json!({ "type": "array", "items": schema }) } else { schema }
        };
        let schema = match place {
            // null stands for the default.
            Place::Request => json!({ "anyOf": [schema, { "type": "null" }] }),
            Place::Answer | Place::Query => schema,
        };
        properties.insert(field.json_name().to_owned(), schema);
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// What the names of a map's entries look like.
fn key_pattern(kind: &Kind) -> Value {
    match kind {
        Kind::String => json!({ "type": "string" }),
        Kind::Bool => json!({ "enum": ["true", "false"] }),
        Kind::Uint32 | Kind::Fixed32 | Kind::Uint64 | Kind::Fixed64 => {
            json!({ "pattern": "^(0|[1-9][0-9]{0,8})$" })
        }
        _ => json!({ "pattern": "^(0|-?[1-9][0-9]{0,8})$" }),
    }
}

/// Where a value stands. In a request a number may be a string, and there are several ways to write bytes. An answer has one
/// way to write each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Request,
    Answer,
    Query,
}

impl Place {
    /// Distinguishes the schemas of a message.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Answer => ".Answer",
            Self::Request | Self::Query => "",
        }
    }
}

const SIGNED_32: &str = "^(0|-?[1-9][0-9]{0,8})$";
const UNSIGNED_32: &str = "^(0|[1-9][0-9]{0,8})$";
const SIGNED_64: &str = "^(0|-?[1-9][0-9]{0,17})$";
const UNSIGNED_64: &str = "^(0|[1-9][0-9]{0,18})$";
const FLOAT: &str = "^(-?(0|[1-9][0-9]{0,8})(\\.[0-9]{1,9})?|NaN|-?Infinity)$";
const BASE64: &str = "^(([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}={0,2}|[A-Za-z0-9+/]{3}=?)?|([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}={0,2}|[A-Za-z0-9_-]{3}=?)?)$";

fn schema_of(kind: &Kind, place: Place, schemas: &mut Schemas) -> Value {
    let integer = |low: i64, high: u64, is_wide: bool, pattern: &str| {
        let number = json!({ "type": "integer", "minimum": low, "maximum": high });
        match place {
            Place::Query => number,
            Place::Request => {
                json!({ "anyOf": [number, { "type": "string", "pattern": pattern }] })
            }
            Place::Answer if is_wide => json!({ "type": "string", "pattern": "^-?[0-9]{1,20}$" }),
            Place::Answer => number,
        }
    };
    match kind {
        Kind::Double | Kind::Float => match place {
            Place::Query => json!({ "type": "number", "minimum": -1e9, "maximum": 1e9 }),
            Place::Request | Place::Answer => {
                json!({ "anyOf": [{ "type": "number" }, { "type": "string", "pattern": FLOAT }] })
            }
        },
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            integer(i32::MIN.into(), i32::MAX.unsigned_abs().into(), false, SIGNED_32)
        }
        Kind::Uint32 | Kind::Fixed32 => integer(0, u32::MAX.into(), false, UNSIGNED_32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            integer(i64::MIN, i64::MAX.unsigned_abs(), true, SIGNED_64)
        }
        Kind::Uint64 | Kind::Fixed64 => integer(0, u64::MAX, true, UNSIGNED_64),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64", "pattern": BASE64 }),
        Kind::Enum(kind) => {
            let names: Vec<_> = kind.values().map(|value| value.name().to_owned()).collect();
            let names = json!({ "type": "string", "enum": names });
            match place {
                Place::Query => names,
                Place::Request | Place::Answer => {
                    let number =
                        json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX });
                    json!({ "anyOf": [names, number] })
                }
            }
        }
        Kind::Message(message) => reference(message, place, schemas),
    }
}

/// The schemas of messages that have a JSON of their own.
fn well_known(name: &str) -> Option<Value> {
    Some(match name.strip_prefix("google.protobuf.")? {
        "Timestamp" => json!({ "type": "string", "format": "date-time" }),
        "Duration" => json!({ "type": "string", "pattern": "^-?[0-9]{1,9}(\\.[0-9]{1,9})?s$" }),
        "StringValue" | "BytesValue" | "FieldMask" => json!({ "type": "string" }),
        "BoolValue" => json!({ "type": "boolean" }),
        "Struct" => json!({ "type": "object" }),
        "ListValue" => json!({ "type": "array" }),
        "Empty" => json!({ "type": "object", "additionalProperties": false }),
        "Value" | "Any" | "NullValue" => json!({}),
        _ => json!({ "type": ["number", "string"] }),
    })
}
