//! Holds both ends, and prost, to the test vectors in `../vectors`, and keeps the fuzzers' stored
//! corpora in step with them.

pub mod oracle;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use bytes::Bytes;
use prost::Message as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_protocol::client::{Client, ClientError, Event, Failure};
use tidegate_protocol::message::{AUTHENTICATE, HEARTBEAT};
use tidegate_protocol::proto::v1;
use tidegate_protocol::resume::Positions;
use tidegate_protocol::server::{self, Incoming};
use tidegate_protocol::{
    Code, FrameError, MessageError, Reassembler, Request, Response, WireError, limits,
};

fn why_message(error: MessageError) -> &'static str {
    match error {
        MessageError::Wire(error) => why_wire(error),
        MessageError::TokenNotUtf8 => "token_not_utf8",
        MessageError::TypeTooSmall(_) => "type_too_small",
        MessageError::BadResume(error) => why_wire(error),
        MessageError::RoomNotUtf8 => "room_not_utf8",
    }
}

fn why_wire(error: WireError) -> &'static str {
    match error {
        WireError::Truncated => "truncated",
        WireError::VarintTooLong => "varint_too_long",
        WireError::BadKey => "bad_key",
        WireError::WrongWireType { .. } => "wrong_wire_type",
        WireError::BadGroup => "bad_group",
    }
}

fn why_frame(error: FrameError) -> &'static str {
    match error {
        FrameError::Overlong => "overlong",
        FrameError::TooLong { .. } => "too_long",
    }
}

#[derive(Deserialize)]
struct File<V> {
    format: u32,
    vectors: Vec<V>,
}

#[derive(Deserialize)]
struct Part {
    hex: String,
    times: usize,
}

#[derive(Deserialize)]
struct RequestVector {
    name: String,
    canonical: bool,
    frame: Option<String>,
    frame_parts: Option<Vec<Part>>,
    request: RequestFields,
    resume: Option<ResumeFields>,
}

#[derive(Deserialize)]
struct ResumeFields {
    canonical: bool,
    positions: Vec<PositionFields>,
}

#[derive(Deserialize)]
struct PositionFields {
    room: String,
    log: String,
    offset: String,
    ticket: String,
    acceptable: bool,
}

#[derive(Deserialize)]
struct RequestFields {
    r#type: i32,
    user_id: String,
    token: String,
    biz_data: Option<String>,
    biz_data_parts: Option<Vec<Part>>,
    sequence: String,
}

#[derive(Deserialize)]
struct ResponseVector {
    name: String,
    canonical: bool,
    frame: Option<String>,
    frame_parts: Option<Vec<Part>>,
    response: ResponseFields,
    event: Value,
}

#[derive(Deserialize)]
struct ResponseFields {
    r#type: i32,
    status: u32,
    biz_data: Option<String>,
    biz_data_parts: Option<Vec<Part>>,
    sequence: String,
    retry_after_ms: u32,
    offset: String,
    room: u32,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Direction {
    ToGateway,
    ToClient,
}

#[derive(Deserialize)]
struct MalformedVector {
    name: String,
    direction: Direction,
    refused_as: String,
    why: String,
    payload_bytes_max: usize,
    stream: String,
    gateway_answers: Option<String>,
    biz_data_why: Option<String>,
    sdk_may_accept: Option<bool>,
}

#[derive(Deserialize)]
struct StreamVector {
    name: String,
    direction: Direction,
    payload_bytes_max: usize,
    chunks: Vec<Chunk>,
    ends: String,
    why: Option<String>,
    incomplete_bytes: Option<usize>,
}

#[derive(Deserialize)]
struct Chunk {
    hex: String,
    payloads: Vec<String>,
}

fn load<V: DeserializeOwned>(file: &str) -> Vec<V> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    let text = fs::read_to_string(&path).expect("the vectors are there");
    let file: File<V> = serde_json::from_str(&text).expect("the vectors have their form");
    assert_eq!(file.format, 1);
    file.vectors
}

fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "{hex}");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hex digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The bytes of a field that is either hex or parts to repeat.
fn bytes_of(hex: Option<&String>, parts: Option<&Vec<Part>>) -> Vec<u8> {
    match (hex, parts) {
        (Some(hex), None) => unhex(hex),
        (None, Some(parts)) => {
            parts.iter().flat_map(|part| unhex(&part.hex).repeat(part.times)).collect()
        }
        _ => panic!("bytes are either hex or parts"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a decimal number")
}

/// The one payload of a stream that holds one frame.
fn only_payload(stream: &[u8], payload_bytes_max: usize, name: &str) -> Vec<u8> {
    let mut reassembler = Reassembler::new();
    let mut frames = reassembler.frames(stream, payload_bytes_max);
    let payload = frames.next().expect(name).expect(name).to_vec();
    assert_eq!(frames.next(), Ok(None), "{name}");
    drop(frames);
    assert_eq!(reassembler.kept_bytes(), 0, "{name}");
    payload
}

#[test]
fn requests_read_and_written() {
    for vector in load::<RequestVector>("requests.json") {
        let name = vector.name.as_str();
        let frame = bytes_of(vector.frame.as_ref(), vector.frame_parts.as_ref());
        let fields = &vector.request;
        let biz_data = bytes_of(fields.biz_data.as_ref(), fields.biz_data_parts.as_ref());
        let wanted = Request {
            kind: fields.r#type,
            user_id: number(&fields.user_id),
            token: &fields.token,
            biz_data: &biz_data,
            sequence: number(&fields.sequence),
        };
        let payload = only_payload(&frame, limits::FRAME_FROM_CLIENT_BYTES_MAX, name);
        assert_eq!(Request::decode(&payload), Ok(wanted), "{name}");
        let theirs = v1::Request::decode(payload.as_slice()).expect(name);
        assert_eq!(theirs, oracle::owned_request(&wanted), "{name}");

        let mut written = Vec::new();
        wanted.encode_frame(&mut written);
        assert_eq!(written == frame, vector.canonical, "{name}");
        assert_eq!(theirs.encode_length_delimited_to_vec(), written, "{name}");

        let incoming = Incoming::decode(&payload).expect(name);
        let meaning = match wanted.kind {
            HEARTBEAT => matches!(incoming, Incoming::Heartbeat { .. }),
            AUTHENTICATE => matches!(incoming, Incoming::Authenticate { .. }),
            _ => matches!(incoming, Incoming::Business { .. }),
        };
        assert!(meaning, "{name}: {incoming:?}");
        if let Incoming::Authenticate { resume, .. } = incoming {
            check_resume(name, resume, vector.resume.as_ref(), &biz_data);
        }
    }
}

/// Holds the positions that were read to those of a vector, and what is written to its bytes.
fn check_resume(name: &str, read: Positions<'_>, wanted: Option<&ResumeFields>, biz_data: &[u8]) {
    let Some(wanted) = wanted else { return assert!(read.is_empty(), "{name}") };
    let position = |fields: &PositionFields| v1::Position {
        room: fields.room.clone(),
        log: number(&fields.log),
        offset: number(&fields.offset),
        ticket: unhex(&fields.ticket).into(),
    };
    let resume = v1::Resume { positions: wanted.positions.iter().map(position).collect() };
    assert_eq!(oracle::owned_resume(read), resume, "{name}");
    assert_eq!(v1::Resume::decode(biz_data), Ok(resume.clone()), "{name}");
    assert_eq!(resume.encode_to_vec() == biz_data, wanted.canonical, "{name}");
    let acceptable: Vec<bool> = read.iter().map(|position| position.is_acceptable()).collect();
    let stated: Vec<bool> = wanted.positions.iter().map(|fields| fields.acceptable).collect();
    assert_eq!(acceptable, stated, "{name}");
}

#[test]
fn responses_read_and_written() {
    for vector in load::<ResponseVector>("responses.json") {
        let name = vector.name.as_str();
        let frame = bytes_of(vector.frame.as_ref(), vector.frame_parts.as_ref());
        let fields = &vector.response;
        let biz_data = bytes_of(fields.biz_data.as_ref(), fields.biz_data_parts.as_ref());
        let wanted = Response {
            kind: fields.r#type,
            status: fields.status,
            biz_data: &biz_data,
            sequence: number(&fields.sequence),
            retry_after_ms: fields.retry_after_ms,
            offset: number(&fields.offset),
            room: fields.room,
        };
        let payload = only_payload(&frame, limits::FRAME_TO_CLIENT_BYTES_MAX, name);
        assert_eq!(Response::decode(&payload), Ok(wanted), "{name}");
        let theirs = v1::Response::decode(payload.as_slice()).expect(name);
        assert_eq!(theirs, oracle::owned_response(&wanted), "{name}");

        let mut written = Vec::new();
        wanted.encode_frame(&mut written);
        assert_eq!(written == frame, vector.canonical, "{name}");
        assert_eq!(theirs.encode_length_delimited_to_vec(), written, "{name}");

        let mut events = Vec::new();
        let mut client = Client::new(Instant::now());
        client.receive(&frame, |event| events.push(event)).expect(name);
        assert_eq!(events, Vec::from_iter(event_of(&vector.event, &wanted)), "{name}");
    }
}

fn number_32(value: &Value) -> u32 {
    value.as_u64().expect("a number").try_into().expect("32 bits")
}

/// The room that an event of a vector names.
fn room(fields: &Value) -> v1::Room {
    let text = |field: &str| fields[field].as_str().expect("text");
    v1::Room {
        name: text("name").into(),
        number: number_32(&fields["number"]),
        log: number(text("log")),
        head: number(text("head")),
        recovery: number_32(&fields["recovery"]).try_into().expect("an enumeration"),
        ticket: unhex(text("ticket")).into(),
    }
}

/// The event that a vector names, with what it shares with the response; `None` for what is ignored.
fn event_of(event: &Value, response: &Response<'_>) -> Option<Event> {
    let &Response { kind, biz_data, sequence, retry_after_ms, offset, room, .. } = response;
    let biz_data = Bytes::copy_from_slice(biz_data);
    let text = |field: &str| number(event[field].as_str().expect("a number in a string"));
    let failure = || {
        let number = event["code"].as_u64().map(|code| u32::try_from(code).expect("32 bits"));
        let retry_after = Duration::from_millis(u64::from(retry_after_ms));
        Failure { code: number.and_then(Code::from_number), retry_after }
    };
    Some(match event["kind"].as_str().expect("an event has a kind") {
        "ignored" => return None,
        "pong" => Event::Pong { sequence, server_time_ms: text("server_time_ms") },
        "authenticated" => {
            let session = v1::Session {
                session_id: text("session_id"),
                heartbeat_interval_ms: number_32(&event["heartbeat_interval_ms"]),
                server_time_ms: text("server_time_ms"),
                idle_timeout_ms: number_32(&event["idle_timeout_ms"]),
                max_frame_bytes: number_32(&event["max_frame_bytes"]),
                max_frame_to_client_bytes: number_32(&event["max_frame_to_client_bytes"]),
                expires_in_ms: text("expires_in_ms"),
                rooms: event["rooms"].as_array().expect("a list").iter().map(self::room).collect(),
            };
            Event::Authenticated { sequence, session }
        }
        "answer" => Event::Answer { kind, sequence, biz_data },
        "push" => Event::Push { kind, room, offset, biz_data },
        "joined" => Event::Joined(self::room(&event["room"])),
        "left" => Event::Left { room: event["name"].as_str().expect("a name").into() },
        "failed" => Event::Failed { kind, sequence, failure: failure() },
        "goodbye" => Event::Goodbye(failure()),
        other => panic!("{other} is no kind of event"),
    })
}

#[test]
fn malformed_streams_are_refused_by_a_gateway() {
    let mut goodbye = Vec::new();
    server::put_goodbye(&mut goodbye, Code::Malformed, 0);
    for vector in of_direction(Direction::ToGateway) {
        let (name, stream) = (vector.name.as_str(), unhex(&vector.stream));
        assert_eq!(unhex(&vector.gateway_answers.expect(name)), goodbye, "{name}");
        assert_eq!(vector.payload_bytes_max, limits::FRAME_FROM_CLIENT_BYTES_MAX, "{name}");
        if vector.refused_as == "frame" {
            let mut reassembler = Reassembler::new();
            let mut frames = reassembler.frames(&stream, vector.payload_bytes_max);
            assert_eq!(why_frame(frames.next().expect_err(name)), vector.why, "{name}");
            continue;
        }
        let payload = only_payload(&stream, vector.payload_bytes_max, name);
        let error = Incoming::decode(&payload).expect_err(name);
        if vector.refused_as == "authentication" {
            assert_eq!(vector.why, "bad_resume", "{name}");
            assert_eq!(Some(why_message(error)), vector.biz_data_why.as_deref(), "{name}");
            let request = v1::Request::decode(payload.as_slice()).expect(name);
            v1::Resume::decode(request.biz_data).expect_err(name);
            continue;
        }
        assert_eq!(vector.refused_as, "message", "{name}");
        assert_eq!(why_message(error), vector.why, "{name}");
        let our_own_rule = matches!(error, MessageError::TypeTooSmall(_));
        assert_eq!(v1::Request::decode(payload.as_slice()).is_ok(), our_own_rule, "{name}");
    }
}

#[test]
fn malformed_streams_are_refused_by_a_client() {
    for vector in of_direction(Direction::ToClient) {
        let (name, stream) = (vector.name.as_str(), unhex(&vector.stream));
        assert!(vector.sdk_may_accept.is_some() && vector.gateway_answers.is_none(), "{name}");
        let mut client = Client::new(Instant::now()).with_frame_bytes_max(vector.payload_bytes_max);
        let error = client.receive(&stream, |event| panic!("{name}: {event:?}")).expect_err(name);
        let (refused_as, why) = match error {
            ClientError::Frame(error) => ("frame", why_frame(error)),
            ClientError::Message(error) => ("message", why_wire(error)),
            ClientError::BadAnswer(_) => ("answer", "bad_answer"),
        };
        assert_eq!((refused_as, why), (vector.refused_as.as_str(), vector.why.as_str()), "{name}");
        if refused_as == "message" {
            let payload = only_payload(&stream, vector.payload_bytes_max, name);
            v1::Response::decode(payload.as_slice()).expect_err(name);
        }
    }
}

fn of_direction(direction: Direction) -> Vec<MalformedVector> {
    let mut vectors: Vec<MalformedVector> = load("malformed.json");
    vectors.retain(|vector| vector.direction == direction);
    assert!(!vectors.is_empty());
    vectors
}

#[test]
fn streams_yield_each_frame_with_the_chunk_that_completes_it() {
    for vector in load::<StreamVector>("streams.json") {
        let name = vector.name.as_str();
        let mut reassembler = Reassembler::new();
        let mut refused = None;
        for chunk in &vector.chunks {
            assert_eq!(refused, None, "{name}: refused before its last chunk");
            let bytes = unhex(&chunk.hex);
            let mut payloads = Vec::new();
            let mut frames = reassembler.frames(&bytes, vector.payload_bytes_max);
            refused = loop {
                match frames.next() {
                    Ok(Some(payload)) => payloads.push(payload.to_vec()),
                    Ok(None) => break None,
                    Err(error) => break Some(why_frame(error)),
                }
            };
            let wanted: Vec<_> = chunk.payloads.iter().map(|payload| unhex(payload)).collect();
            assert_eq!(payloads, wanted, "{name}");
        }
        assert_eq!(refused, vector.why.as_deref(), "{name}");
        assert_eq!(refused.map_or("open", |_| "refused"), vector.ends, "{name}");
        if refused.is_none() {
            assert_eq!(Some(reassembler.kept_bytes()), vector.incomplete_bytes, "{name}");
        }
        let stream: Vec<u8> = vector.chunks.iter().flat_map(|chunk| unhex(&chunk.hex)).collect();
        let reading = oracle::read_at_once(&stream, vector.payload_bytes_max);
        assert_eq!(reading.end.err().map(why_frame), vector.why.as_deref(), "{name}");
    }
}

/// A fuzzer's seeds by file name.
type Seeds = BTreeMap<String, Vec<u8>>;

/// Longest seed, in bytes: a fuzzer's speed is in short inputs.
const SEED_BYTES_MAX: usize = 2048;

/// What the fuzzers start from, by target: every vector that is short enough.
fn seeds() -> BTreeMap<&'static str, Seeds> {
    let mut all = BTreeMap::new();
    let mut add = |target: &'static str, name: &str, bytes: Vec<u8>| {
        if bytes.len() <= SEED_BYTES_MAX {
            let seeds: &mut Seeds = all.entry(target).or_default();
            if !seeds.values().any(|seed| *seed == bytes) {
                seeds.insert(name.replace('_', "-"), bytes);
            }
        }
    };
    for vector in load::<RequestVector>("requests.json") {
        let frame = bytes_of(vector.frame.as_ref(), vector.frame_parts.as_ref());
        let payload = only_payload(&frame, frame.len(), &vector.name);
        add("message", &format!("request-{}", vector.name), payload);
        if let (Some(_), Some(resume)) = (&vector.resume, &vector.request.biz_data) {
            add("message", &format!("positions-{}", vector.name), unhex(resume));
        }
        add("connection", &format!("request-{}", vector.name), oracle::with_plan(&[frame]));
    }
    for vector in load::<ResponseVector>("responses.json") {
        let frame = bytes_of(vector.frame.as_ref(), vector.frame_parts.as_ref());
        let payload = only_payload(&frame, frame.len(), &vector.name);
        add("message", &format!("response-{}", vector.name), payload);
        add("client", &format!("response-{}", vector.name), oracle::with_plan(&[frame]));
    }
    for vector in load::<MalformedVector>("malformed.json") {
        let stream = unhex(&vector.stream);
        let name = format!("malformed-{}", vector.name);
        if vector.refused_as != "frame" {
            add("message", &name, only_payload(&stream, stream.len(), &name));
        }
        let to_client = vector.direction == Direction::ToClient;
        let target = if to_client { "client" } else { "frame" };
        if !to_client {
            add("connection", &name, oracle::with_plan(std::slice::from_ref(&stream)));
        }
        add(target, &name, oracle::with_plan(&[stream]));
    }
    for vector in load::<StreamVector>("streams.json") {
        let chunks: Vec<_> = vector.chunks.iter().map(|chunk| unhex(&chunk.hex)).collect();
        let name = format!("stream-{}", vector.name);
        if vector.direction == Direction::ToClient {
            add("client", &name, oracle::with_plan(&chunks));
        } else {
            add("connection", &name, oracle::with_plan(&chunks));
        }
        add("frame", &name, oracle::with_plan(&chunks));
    }
    all
}

/// With `UPDATE_CORPUS=1` in the environment it writes what is missing instead of failing.
#[test]
fn the_fuzzers_stored_corpora_hold_every_vector() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let update = env::var_os("UPDATE_CORPUS").is_some();
    for (target, seeds) in seeds() {
        let corpus: PathBuf = corpora.join(target);
        assert!(seeds.len() < 200, "{target} has {} seeds", seeds.len());
        for (name, bytes) in seeds {
            let path = corpus.join(&name);
            if update {
                fs::create_dir_all(&corpus).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let stored = fs::read(&path).ok();
            assert_eq!(
                stored.as_ref(),
                Some(&bytes),
                "{target}/{name} differs: run UPDATE_CORPUS=1 cargo test -p tidegate-protocol"
            );
        }
    }
}
