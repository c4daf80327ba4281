//! A WebSocket's frames are the same however they are cut, and what is kept between two reads has a bound.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::wire::websocket::frames::{CONTROL_BYTES_MAX, Found, Frames, Violation};
use tidegate_fuzz::oracle::split_plan;

/// Small, so that a fuzzer soon makes a message that is too long.
const MESSAGE_BYTES_MAX: u32 = 300;

/// What was found, with bytes of its own. The parts of a message are joined.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Bytes { is_text: bool, bytes: Vec<u8> },
    MessageEnd,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Violation(Violation),
}

#[derive(Default)]
struct Reader {
    frames: Frames,
    kept: Vec<u8>,
    seen: Vec<Seen>,
}

impl Reader {
    fn data(&mut self, is_text: bool, more: &[u8], ends_message: bool) {
        match self.seen.last_mut() {
            _ if more.is_empty() => {}
            Some(Seen::Bytes { is_text: of, bytes }) if *of == is_text => bytes.extend(more),
            _ => self.seen.push(Seen::Bytes { is_text, bytes: more.to_vec() }),
        }
        if ends_message {
            self.seen.push(Seen::MessageEnd);
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        if matches!(self.seen.last(), Some(Seen::Violation(_))) {
            return;
        }
        let mut input = std::mem::take(&mut self.kept);
        input.extend_from_slice(bytes);
        let mut left = &mut input[..];
        loop {
            match self.frames.next(&mut left, MESSAGE_BYTES_MAX) {
                Ok(None) => break,
                Ok(Some(Found::Binary { bytes, ends_message })) => {
                    let bytes = bytes.to_vec();
                    self.data(false, &bytes, ends_message);
                }
                Ok(Some(Found::Text { bytes, ends_message })) => {
                    let bytes = bytes.to_vec();
                    self.data(true, &bytes, ends_message);
                }
                Ok(Some(Found::Ping(bytes))) => self.seen.push(Seen::Ping(bytes.to_vec())),
                Ok(Some(Found::Pong)) => self.seen.push(Seen::Pong),
                Ok(Some(Found::Close(code))) => self.seen.push(Seen::Close(code)),
                Err(violation) => return self.seen.push(Seen::Violation(violation)),
            }
        }
        assert!(left.len() < CONTROL_BYTES_MAX, "{} bytes are kept", left.len());
        self.kept = left.to_vec();
    }
}

fuzz_target!(|data: &[u8]| {
    let (arrivals, mut stream) = split_plan(data);
    let mut whole = Reader::default();
    whole.read(stream);
    let mut cut = Reader::default();
    for arrival in arrivals {
        let (arrived, later) = stream.split_at(arrival.bytes.min(stream.len()));
        stream = later;
        cut.read(arrived);
    }
    cut.read(stream);
    assert_eq!(whole.seen, cut.seen);
});
