//! A WebSocket's client, without I/O.

use std::collections::VecDeque;
use std::io::Cursor;

use fastrand::Rng;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: tidegate.v1\r\n\r\n";

/// The answer to the key in [`REQUEST`] (RFC 6455, section 1.3).
const ACCEPT: &str = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";

/// The longest message.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

pub(super) struct WebSocket {
    rng: Rng,
    /// What has come and can't be used yet.
    rest: Vec<u8>,
    /// Bytes of the current frame's payload that are to come.
    left: usize,
    is_requested: bool,
    is_open: bool,
    /// A close frame was sent.
    is_ended: bool,
    /// Payloads of pings that have no pong.
    pings: VecDeque<Vec<u8>>,
    /// Of the close frame that has come: its code; 1005: it has none.
    pub(super) close_code: Option<u16>,
    pub(super) refusal: Option<String>,
}

impl WebSocket {
    pub(super) const fn new(rng: Rng) -> Self {
        Self {
            rng,
            rest: Vec::new(),
            left: 0,
            is_requested: false,
            is_open: false,
            is_ended: false,
            pings: VecDeque::new(),
            close_code: None,
            refusal: None,
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        self.is_open
    }

    pub(super) fn receive(&mut self, mut bytes: &[u8], received: &mut Vec<u8>) {
        if !self.is_open {
            self.rest.extend_from_slice(bytes);
            bytes = &[];
            let Some(end) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") else {
                return;
            };
            let head = String::from_utf8_lossy(&self.rest[..end]).to_lowercase();
            if !head.starts_with("http/1.1 101") {
                self.refusal = Some(String::from_utf8_lossy(&self.rest).into_owned());
                return;
            }
            assert!(head.contains(ACCEPT), "{head}");
            assert!(head.contains("sec-websocket-protocol: tidegate.v1"), "{head}");
            self.rest.drain(..end + 4);
            self.is_open = true;
        }
        while !bytes.is_empty() || !self.rest.is_empty() {
            if self.left > 0 && self.rest.is_empty() {
                let count = self.left.min(bytes.len());
                received.extend_from_slice(&bytes[..count]);
                (bytes, self.left) = (&bytes[count..], self.left - count);
                continue;
            }
            let count = bytes.len().min(256);
            self.rest.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if !self.read_frames(received) && bytes.is_empty() {
                return;
            }
        }
    }

    /// Reads what is whole at the front of `rest`. Says whether nothing is left of it.
    fn read_frames(&mut self, received: &mut Vec<u8>) -> bool {
        loop {
            let count = self.left.min(self.rest.len());
            received.extend(self.rest.drain(..count));
            self.left -= count;
            if self.rest.is_empty() {
                return true;
            }
            assert_eq!(self.close_code, None, "a frame follows the close frame");
            let mut cursor = Cursor::new(&self.rest[..]);
            let parsed = FrameHeader::parse(&mut cursor).expect("the gateway's frames are good");
            let Some((header, length)) = parsed else { return false };
            let header_bytes = usize::try_from(cursor.position()).expect("it is short");
            let length = usize::try_from(length).expect("it is in memory");
            assert_eq!(header.mask, None, "a server does not mask");
            assert!(header.is_final, "the gateway does not cut messages");
            if let OpCode::Data(data) = header.opcode {
                assert_eq!(data, Data::Binary);
                self.rest.drain(..header_bytes);
                self.left = length;
                continue;
            }
            if self.rest.len() < header_bytes + length {
                return false;
            }
            let payload = self.rest[header_bytes..header_bytes + length].to_vec();
            self.rest.drain(..header_bytes + length);
            match header.opcode {
                OpCode::Control(Control::Pong) => {
                    assert_eq!(self.pings.pop_front(), Some(payload), "pongs come in order");
                }
                OpCode::Control(Control::Close) => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    self.close_code = Some(code);
                }
                opcode => panic!("the gateway sends {opcode:?}"),
            }
        }
    }

    /// Frames what waits, and the end behind it.
    pub(super) fn send(&mut self, waiting: &mut Vec<u8>, ends: bool, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.is_requested, true) {
            out.extend_from_slice(REQUEST);
        }
        if !self.is_open || self.is_ended {
            return;
        }
        for message in waiting.chunks(MESSAGE_BYTES_MAX) {
            self.message(message, out);
        }
        waiting.clear();
        if ends {
            self.is_ended = true;
            self.frame(OpCode::Control(Control::Close), true, &1000_u16.to_be_bytes(), out);
        }
    }

    /// One message, perhaps in several frames, and perhaps with a ping between.
    fn message(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let mut data = Data::Binary;
        let mut rest = message;
        while self.rng.u8(0..4) == 0 {
            let (part, later) = rest.split_at(self.rng.usize(0..=rest.len()));
            self.frame(OpCode::Data(data), false, part, out);
            (data, rest) = (Data::Continue, later);
            if self.rng.bool() && self.pings.len() < 8 {
                let ping = vec![self.rng.u8(..); self.rng.usize(0..=125)];
                self.ping(ping, out);
            }
        }
        self.frame(OpCode::Data(data), true, rest, out);
    }

    pub(super) fn ping(&mut self, ping: Vec<u8>, out: &mut Vec<u8>) {
        self.frame(OpCode::Control(Control::Ping), true, &ping, out);
        self.pings.push_back(ping);
    }

    fn frame(&mut self, opcode: OpCode, is_final: bool, payload: &[u8], out: &mut Vec<u8>) {
        let mask = self.rng.u32(..).to_ne_bytes();
        let header = FrameHeader { is_final, opcode, mask: Some(mask), ..FrameHeader::default() };
        header.format(payload.len() as u64, out).expect("a vector takes all");
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}
