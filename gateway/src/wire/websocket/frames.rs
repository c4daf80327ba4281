//! The frames of one WebSocket (RFC 6455, section 5).
//!
//! [`Frames`] is what is kept of a WebSocket between two reads: 16 bytes. It takes received bytes, unmasks them where they are,
//! and gives the payload as it comes: a message is never gathered. What it can't use yet (the beginning of a frame's
//! header, or of a control frame) the caller keeps, and passes again with what comes next.

use std::io::Cursor;

use bitflags::bitflags;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// The most bytes of a control frame: a header with a mask, and 125 bytes.
pub const CONTROL_BYTES_MAX: usize = 6 + 125;

bitflags! {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct State: u8 {
        /// A data frame's payload has begun: `left` bytes of it are to come.
        const IN_FRAME = 1;
        /// A message has begun whose last frame has not come.
        const IN_MESSAGE = 1 << 1;
        /// The frame that is being read is its message's last.
        const LAST_FRAME = 1 << 2;
        /// The message is text.
        const TEXT = 1 << 3;
        /// The peer has sent a close frame: nothing may follow.
        const CLOSED = 1 << 4;
    }
}

/// What is kept of a WebSocket between two reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frames {
    /// The current frame's mask, turned so that the next byte's comes first.
    mask: [u8; 4],
    /// Bytes of the current frame's payload that are still to come.
    left: u32,
    /// Bytes of the current message so far, those of the current frame included.
    message_bytes: u32,
    state: State,
}

/// What was found. Bytes are unmasked.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A part of a binary message, in order. It may be empty.
    Binary {
        /// The bytes.
        bytes: &'a mut [u8],
        /// They end their message.
        ends_message: bool,
    },
    /// A part of a text message, in order. It may be empty, and it may be cut within a character.
    Text {
        /// The bytes.
        bytes: &'a mut [u8],
        /// They end their message.
        ends_message: bool,
    },
    /// A ping. It is to be answered with a pong that has the same bytes.
    Ping(&'a mut [u8]),
    /// A pong.
    Pong,
    /// The peer closes. The answer is a close frame with the same code; `None`: it gave none.
    Close(Option<u16>),
}

/// How a peer has broken the protocol, or a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Reserved bits, an opcode that is not defined, a control frame that is too long or in parts, a frame without a mask, a
    /// length that takes more bytes than it needs, or a continuation without a beginning.
    Protocol,
    /// A text that is not UTF-8.
    NotUtf8,
    /// A message is longer than the limit.
    TooLong,
    /// A text message, where only binary ones are taken.
    Text,
}

impl Violation {
    /// The same in words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Protocol => "a WebSocket frame is malformed",
            Self::NotUtf8 => "a WebSocket text is not UTF-8",
            Self::TooLong => "a WebSocket message is too long",
            Self::Text => "a WebSocket message is text, not binary",
        }
    }

    /// The code of the close frame (RFC 6455, section 7.4.1).
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Text => 1003,
            Self::NotUtf8 => 1007,
            Self::TooLong => 1009,
        }
    }
}

impl Frames {
    /// Takes the next thing from the front of `input`, which is what is left to read. `None`: the rest of `input` is to be
    /// kept, and passed again with what comes next. It is shorter than [`CONTROL_BYTES_MAX`].
    ///
    /// # Errors
    /// [`Violation`]: the connection is to be closed with its code.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: u32,
    ) -> Result<Option<Found<'a>>, Violation> {
        if self.state.contains(State::CLOSED) {
            *input = &mut [];
            return Ok(None);
        }
        if !self.state.contains(State::IN_FRAME) {
            let mut cursor = Cursor::new(&**input);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Violation::Protocol)?;
            let Some((header, length)) = parsed else { return Ok(None) };
            let header_bytes = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let is_short = header_bytes == header.len(length);
            if header.rsv1 || header.rsv2 || header.rsv3 || !is_short {
                return Err(Violation::Protocol);
            }
            let mask = header.mask.ok_or(Violation::Protocol)?;
            match header.opcode {
                OpCode::Control(control) => {
                    return self.control(control, &header, length, header_bytes, mask, input);
                }
                OpCode::Data(data) => {
                    self.begin_frame(data, header.is_final, length, message_bytes_max)?;
                }
            }
            self.mask = mask;
            take_front(input, header_bytes);
        }
        let count = input.len().min(self.left as usize);
        if count == 0 && self.left > 0 {
            return Ok(None);
        }
        let bytes = take_front(input, count);
        unmask(bytes, self.mask);
        self.mask.rotate_left(count % 4);
        self.left -= u32::try_from(count).expect("it is at most what was left");
        let ends_frame = self.left == 0;
        let ends_message = ends_frame && self.state.contains(State::LAST_FRAME);
        let is_text = self.state.contains(State::TEXT);
        if ends_frame {
            self.state.remove(State::IN_FRAME);
        }
        if ends_message {
            self.state.remove(State::IN_MESSAGE | State::TEXT);
            self.message_bytes = 0;
        }
        Ok(Some(if is_text {
            Found::Text { bytes, ends_message }
        } else {
            Found::Binary { bytes, ends_message }
        }))
    }

    fn begin_frame(
        &mut self,
        data: Data,
        is_final: bool,
        length: u64,
        message_bytes_max: u32,
    ) -> Result<(), Violation> {
        let continues = self.state.contains(State::IN_MESSAGE);
        match data {
            Data::Continue if continues => {}
            Data::Text | Data::Binary if !continues => {
                self.state.set(State::TEXT, data == Data::Text);
            }
            _ => return Err(Violation::Protocol),
        }
        let length = u32::try_from(length).map_err(|_| Violation::TooLong)?;
        self.message_bytes = self
            .message_bytes
            .checked_add(length)
            .filter(|&bytes| bytes <= message_bytes_max)
            .ok_or(Violation::TooLong)?;
        self.left = length;
        self.state.insert(State::IN_FRAME | State::IN_MESSAGE);
        self.state.set(State::LAST_FRAME, is_final);
        Ok(())
    }

    /// A control frame, which is read whole or not at all. It may come between the frames of a message.
    fn control<'a>(
        &mut self,
        control: Control,
        header: &FrameHeader,
        length: u64,
        header_bytes: usize,
        mask: [u8; 4],
        input: &mut &'a mut [u8],
    ) -> Result<Option<Found<'a>>, Violation> {
        let length = usize::try_from(length).ok().filter(|&length| length <= 125);
        let length = length.filter(|_| header.is_final).ok_or(Violation::Protocol)?;
        if input.len() < header_bytes + length {
            return Ok(None);
        }
        take_front(input, header_bytes);
        let bytes = take_front(input, length);
        unmask(bytes, mask);
        match control {
            Control::Ping => Ok(Some(Found::Ping(bytes))),
            Control::Pong => Ok(Some(Found::Pong)),
            Control::Close => {
                let code = close_code(bytes)?;
                self.state.insert(State::CLOSED);
                Ok(Some(Found::Close(code)))
            }
            Control::Reserved(_) => Err(Violation::Protocol),
        }
    }

    /// Whether the peer has sent a close frame.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.state.contains(State::CLOSED)
    }
}

/// The code in a close frame's payload (RFC 6455, section 5.5.1).
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_at_checked(2) else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::Protocol) };
    };
    let code = u16::from_be_bytes([code[0], code[1]]);
    if !CloseCode::from(code).is_allowed() {
        return Err(Violation::Protocol);
    }
    std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
    Ok(Some(code))
}

fn take_front<'a>(input: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(count);
    *input = rest;
    front
}

/// Eight bytes at a time: a mask of 4 bytes fits twice.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes(<[u8; 8]>::try_from(&*chunk).expect("a chunk has 8 bytes"));
        chunk.copy_from_slice(&(word ^ twice).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// How many bytes a message of the gateway has as a frame. It has no mask.
#[must_use]
pub fn message_bytes(payload_bytes: usize) -> usize {
    FrameHeader::default().len(payload_bytes as u64) + payload_bytes
}

/// Appends a frame that is a whole message.
pub fn put_message(out: &mut Vec<u8>, is_text: bool, payload: &[u8]) {
    let data = if is_text { Data::Text } else { Data::Binary };
    put(out, OpCode::Data(data), payload);
}

/// Appends the answer to a ping.
pub fn put_pong(out: &mut Vec<u8>, payload: &[u8]) {
    put(out, OpCode::Control(Control::Pong), payload);
}

/// Appends a close frame.
pub fn put_close(out: &mut Vec<u8>, code: Option<u16>) {
    let payload = code.map(u16::to_be_bytes);
    put(out, OpCode::Control(Control::Close), payload.as_ref().map_or(&[], |code| &code[..]));
}

fn put(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    header.format(payload.len() as u64, out).expect("a vector takes all bytes");
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
