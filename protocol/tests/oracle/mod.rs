//! What the protocol's own code is held to, by the properties and by the fuzzers alike: prost for
//! messages, and a reading of a whole stream at once for frames.

use prost::Message as _;
use tidegate_protocol::message::HEARTBEAT;
use tidegate_protocol::proto::v1;
use tidegate_protocol::resume::Positions;
use tidegate_protocol::{FrameError, MessageError, Reassembler, Request, Response};

/// Holds [`Request::decode`] to prost's verdict and values, and the encoder to prost's bytes.
///
/// # Panics
/// When they differ in anything but the one rule that prost does not know: a type below -1.
pub fn check_request(payload: &[u8]) {
    let theirs = v1::Request::decode(payload);
    match (Request::decode(payload), theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert!(ours.kind >= HEARTBEAT, "a type below -1 is refused: {ours:?}");
            assert_eq!(owned_request(&ours), theirs);
            let mut frame = Vec::new();
            ours.encode_frame(&mut frame);
            assert_eq!(frame, theirs.encode_length_delimited_to_vec());
            assert_eq!(ours.payload_len(), theirs.encoded_len());
        }
        (Err(MessageError::TypeTooSmall(kind)), Ok(theirs)) => {
            assert!(kind < HEARTBEAT, "type {kind} is allowed");
            assert_eq!(kind, theirs.r#type);
        }
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("{payload:02x?}: {ours:?}, but prost says {theirs:?}"),
    }
}

/// Holds [`Response::decode`] to prost's verdict and values, and the encoder to prost's bytes.
///
/// # Panics
/// When they differ.
pub fn check_response(payload: &[u8]) {
    let theirs = v1::Response::decode(payload);
    match (Response::decode(payload), theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(owned_response(&ours), theirs);
            let mut frame = Vec::new();
            ours.encode_frame(&mut frame);
            assert_eq!(frame, theirs.encode_length_delimited_to_vec());
            assert_eq!(ours.payload_len(), theirs.encoded_len());
        }
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("{payload:02x?}: {ours:?}, but prost says {theirs:?}"),
    }
}

/// Holds [`Positions::decode`] to prost's verdict and values.
///
/// # Panics
/// When they differ.
pub fn check_resume(biz_data: &[u8]) {
    let theirs = v1::Resume::decode(biz_data);
    match (Positions::decode(biz_data), theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(owned_resume(ours), theirs);
            assert_eq!(ours.is_empty(), theirs.positions.is_empty());
        }
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!("{biz_data:02x?}: {ours:?}, but prost says {theirs:?}"),
    }
}

/// The same positions as prost owns them.
#[must_use]
pub fn owned_resume(positions: Positions<'_>) -> v1::Resume {
    let owned = positions.iter().map(|position| v1::Position {
        room: position.room.to_owned(),
        log: position.log,
        offset: position.offset,
        ticket: position.ticket.to_vec().into(),
    });
    v1::Resume { positions: owned.collect() }
}

/// The same request as prost owns it.
#[must_use]
pub fn owned_request(request: &Request<'_>) -> v1::Request {
    v1::Request {
        r#type: request.kind,
        user_id: request.user_id,
        token: request.token.to_owned(),
        biz_data: request.biz_data.to_vec().into(),
        sequence: request.sequence,
    }
}

/// The same response as prost owns it.
#[must_use]
pub fn owned_response(response: &Response<'_>) -> v1::Response {
    v1::Response {
        r#type: response.kind,
        status: response.status,
        biz_data: response.biz_data.to_vec().into(),
        sequence: response.sequence,
        retry_after_ms: response.retry_after_ms,
        offset: response.offset,
        room: response.room,
    }
}

/// What a stream says: its payloads, and how it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading {
    /// The payloads, in order.
    pub payloads: Vec<Vec<u8>>,
    /// Bytes at the end that are less than a frame; or why the stream can't be read any further.
    pub end: Result<usize, FrameError>,
}

/// Reads a stream that came at once, with prost's varints.
#[must_use]
pub fn read_at_once(mut stream: &[u8], payload_bytes_max: usize) -> Reading {
    let mut payloads = Vec::new();
    let end = loop {
        let prefix = &stream[..stream.len().min(5)];
        let Some(last) = prefix.iter().position(|&byte| byte < 0x80) else {
            break if prefix.len() < 5 { Ok(stream.len()) } else { Err(FrameError::Overlong) };
        };
        let length = prost::decode_length_delimiter(&stream[..=last]).expect("five bytes fit");
        if prost::length_delimiter_len(length) != last + 1 {
            break Err(FrameError::Overlong);
        }
        if length > payload_bytes_max {
            let bytes = length as u64;
            break Err(FrameError::TooLong { bytes, bytes_max: payload_bytes_max });
        }
        let Some(payload) = stream.get(last + 1..last + 1 + length) else {
            break Ok(stream.len());
        };
        payloads.push(payload.to_vec());
        stream = &stream[last + 1 + length..];
    };
    Reading { payloads, end }
}

/// One arrival of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// How many bytes come.
    pub bytes: usize,
    /// How many frames are read before the rest is kept back.
    pub frames_max: usize,
}

/// Reads a stream through a [`Reassembler`], cut and interrupted as `arrivals` say. What is left of
/// the stream when they are used up comes at once, and then everything is read.
///
/// # Panics
/// When the reassembler holds more than it should.
#[must_use]
pub fn read_cut(mut stream: &[u8], arrivals: &[Arrival], payload_bytes_max: usize) -> Reading {
    let rest = Arrival { bytes: usize::MAX, frames_max: usize::MAX };
    let mut reassembler = Reassembler::new();
    let mut payloads = Vec::new();
    for arrival in arrivals.iter().chain([&rest]) {
        let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
        stream = later;
        let kept_before = reassembler.kept_bytes();
        let mut read_bytes = 0;
        let mut frames = reassembler.frames(arrived, payload_bytes_max);
        for _ in 0..arrival.frames_max {
            match frames.next() {
                Ok(Some(payload)) => {
                    read_bytes += tidegate_protocol::frame::frame_len(payload.len());
                    payloads.push(payload.to_vec());
                }
                Ok(None) => break,
                Err(error) => return Reading { payloads, end: Err(error) },
            }
        }
        frames.keep_rest();
        let kept = reassembler.kept_bytes();
        assert_eq!(kept, kept_before + arrived.len() - read_bytes, "no byte is lost or made up");
    }
    Reading { payloads, end: Ok(reassembler.kept_bytes()) }
}

/// Reads what a fuzzer made up as arrivals and a stream: a count, as many bytes that each say what
/// arrives, and the stream.
#[must_use]
pub fn split_plan(data: &[u8]) -> (Vec<Arrival>, &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return (Vec::new(), data) };
    let (plan, stream) = rest.split_at(usize::from(count).min(rest.len()));
    let arrival = |&byte: &u8| Arrival {
        bytes: usize::from(byte & 0x3f),
        frames_max: if byte & 0x80 == 0 { usize::MAX } else { usize::from(byte >> 6 & 1) },
    };
    (plan.iter().map(arrival).collect(), stream)
}

/// What [`split_plan`] reads as this stream, arriving in these chunks as far as a plan can express it.
#[must_use]
pub fn with_plan(chunks: &[Vec<u8>]) -> Vec<u8> {
    let plan: Vec<u8> = chunks
        .iter()
        .take(255)
        .map(|chunk| u8::try_from(chunk.len().min(0x3f)).expect("six bits"))
        .collect();
    let mut out = vec![u8::try_from(plan.len()).expect("at most 255")];
    out.extend(plan);
    out.extend(chunks.concat());
    out
}
