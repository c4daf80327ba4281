//! The payload of a frame <-> a [`Request`] or a [`Response`], borrowed.
//!
//! They mean the same as prost's `proto::v1::Request` and `Response`, and reading them allocates nothing.

use bytes::BufMut;

use crate::code::Code;
pub use crate::wire::WireError;
use crate::wire::{self, Small};

/// The type of a heartbeat.
pub const HEARTBEAT: i32 = -1;
/// The type of an authentication, and of the gateway ending a session.
pub const AUTHENTICATE: i32 = 0;
/// The type of a notice: the gateway has changed a membership of the session.
pub const NOTICE: i32 = -2;
/// The name of everybody's room.
pub const EVERYBODY: &str = "*";
/// `status` of a success and of a push.
pub const SUCCESS: u32 = 1;
/// `status` of a failure.
pub const FAILURE: u32 = 0;

/// Why a payload is not a message. It is the peer's fault: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes are not protobuf, or a field has the wrong type.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The token is not UTF-8.
    #[error("the token is not UTF-8")]
    TokenNotUtf8,
    /// The type is below -1.
    #[error("type {0} is below -1")]
    TypeTooSmall(i32),
    /// `biz_data` of an authentication is no `Resume`.
    #[error("the data of an authentication is no Resume: {0}")]
    BadResume(WireError),
    /// A room's name in a `Resume` is not UTF-8.
    #[error("a room's name in a Resume is not UTF-8")]
    RoomNotUtf8,
}

/// A message from a client, borrowed from its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// -1 heartbeat, 0 authenticate, > 0 business.
    pub kind: i32,
    /// Who authenticates.
    pub user_id: u64,
    /// The proof that it is that user.
    pub token: &'a str,
    /// A `Resume` in an authentication, opaque to the gateway in a business request.
    pub biz_data: &'a [u8],
    /// Echoed in the answer.
    pub sequence: u64,
}

impl<'a> Request<'a> {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`MessageError`] when the payload is malformed.
    #[inline]
    pub fn decode(mut payload: &'a [u8]) -> Result<Self, MessageError> {
        let mut request = Self::default();
        while !payload.is_empty() {
            let (field, wire_type) = wire::take_key(&mut payload)?;
            match field {
                1 => {
                    wire::expect(field, wire_type, wire::VARINT)?;
                    request.kind = wire::unzigzag(wire::take_varint(&mut payload)?);
                }
                2 => {
                    wire::expect(field, wire_type, wire::VARINT)?;
                    request.user_id = wire::take_varint(&mut payload)?;
                }
                3 => {
                    wire::expect(field, wire_type, wire::LENGTH_DELIMITED)?;
                    let token = wire::take_delimited(&mut payload)?;
                    request.token =
                        str::from_utf8(token).map_err(|_| MessageError::TokenNotUtf8)?;
                }
                4 => {
                    wire::expect(field, wire_type, wire::LENGTH_DELIMITED)?;
                    request.biz_data = wire::take_delimited(&mut payload)?;
                }
                5 => {
                    wire::expect(field, wire_type, wire::VARINT)?;
                    request.sequence = wire::take_varint(&mut payload)?;
                }
                _ => wire::skip(&mut payload, field, wire_type)?,
            }
        }
        if request.kind < HEARTBEAT {
            return Err(MessageError::TypeTooSmall(request.kind));
        }
        Ok(request)
    }

    /// Bytes of the payload that [`Self::encode_frame`] writes behind the length prefix.
    #[inline]
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        wire::varint_field_len(wire::zigzag(self.kind))
            + wire::varint_field_len(self.user_id)
            + wire::bytes_field_len(self.token.as_bytes())
            + wire::bytes_field_len(self.biz_data)
            + wire::varint_field_len(self.sequence)
    }

    /// Writes the whole frame, length prefix included.
    #[inline]
    pub fn encode_frame(&self, out: &mut impl BufMut) {
        let mut head = Small::new();
        head.varint(self.payload_len() as u64);
        head.varint_field(1, wire::zigzag(self.kind));
        head.varint_field(2, self.user_id);
        head.bytes_key(3, self.token.len());
        out.put_slice(head.written());
        out.put_slice(self.token.as_bytes());
        let mut key = Small::new();
        key.bytes_key(4, self.biz_data.len());
        out.put_slice(key.written());
        out.put_slice(self.biz_data);
        let mut tail = Small::new();
        tail.varint_field(5, self.sequence);
        out.put_slice(tail.written());
    }
}

/// A message from a gateway, borrowed from its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response<'a> {
    /// The type that it answers; the type of a push; [`NOTICE`]; 0 for the end of a session.
    pub kind: i32,
    /// 1 success, 0 failure.
    pub status: u32,
    /// The answer, the push, the notice, or a failure's code.
    pub biz_data: &'a [u8],
    /// Of the request that it answers; 0 for a push.
    pub sequence: u64,
    /// How long to wait before trying again, in milliseconds.
    pub retry_after_ms: u32,
    /// Of a room push: its place in the room's log.
    pub offset: u64,
    /// Of a room push: the room's number on this connection.
    pub room: u32,
}

impl<'a> Response<'a> {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`WireError`] when the payload is malformed.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a uint32 keeps the low 32 bits, as in prost"
    )]
    pub fn decode(mut payload: &'a [u8]) -> Result<Self, WireError> {
        let mut response = Self::default();
        while !payload.is_empty() {
            let (field, wire_type) = wire::take_key(&mut payload)?;
            if field > 7 {
                wire::skip(&mut payload, field, wire_type)?;
                continue;
            }
            if field == 3 {
                wire::expect(field, wire_type, wire::LENGTH_DELIMITED)?;
                response.biz_data = wire::take_delimited(&mut payload)?;
                continue;
            }
            wire::expect(field, wire_type, wire::VARINT)?;
            let value = wire::take_varint(&mut payload)?;
            match field {
                1 => response.kind = wire::unzigzag(value),
                2 => response.status = value as u32,
                4 => response.sequence = value,
                5 => response.retry_after_ms = value as u32,
                6 => response.offset = value,
                _ => response.room = value as u32,
            }
        }
        Ok(response)
    }

    /// A failure's code; `None` for a success, or for a code that this version does not know.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if self.status == SUCCESS { None } else { Code::from_bytes(self.biz_data) }
    }

    /// Bytes of the payload that [`Self::encode_frame`] writes behind the length prefix.
    #[inline]
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.payload_len_with(self.biz_data.len())
    }

    /// Bytes of the payload with a `biz_data` of this many bytes.
    #[inline]
    const fn payload_len_with(&self, biz_data_len: usize) -> usize {
        wire::varint_field_len(wire::zigzag(self.kind))
            + wire::varint_field_len(self.status as u64)
            + wire::delimited_field_len(biz_data_len)
            + wire::varint_field_len(self.sequence)
            + wire::varint_field_len(self.retry_after_ms as u64)
            + wire::varint_field_len(self.offset)
            + wire::varint_field_len(self.room as u64)
    }

    /// Writes the whole frame, length prefix included.
    #[inline]
    pub fn encode_frame(&self, out: &mut impl BufMut) {
        out.put_slice(self.head(self.biz_data.len()).written());
        out.put_slice(self.biz_data);
        out.put_slice(self.tail().written());
    }

    /// Writes the whole frame with a message of any size for `biz_data`, which is encoded in place.
    pub(crate) fn encode_frame_around(&self, message: &impl prost::Message, out: &mut impl BufMut) {
        out.put_slice(self.head(message.encoded_len()).written());
        message.encode(out).expect("the buffer has room for the frame");
        out.put_slice(self.tail().written());
    }

    /// Writes what comes before and behind `biz_data` in the frame, for a caller that sends `biz_data` without copying it.
    pub fn encode_around(&self, before: &mut impl BufMut, behind: &mut impl BufMut) {
        before.put_slice(self.head(self.biz_data.len()).written());
        behind.put_slice(self.tail().written());
    }

    #[inline]
    fn head(&self, biz_data_len: usize) -> Small {
        let mut head = Small::new();
        head.varint(self.payload_len_with(biz_data_len) as u64);
        head.varint_field(1, wire::zigzag(self.kind));
        head.varint_field(2, u64::from(self.status));
        head.bytes_key(3, biz_data_len);
        head
    }

    #[inline]
    fn tail(&self) -> Small {
        let mut tail = Small::new();
        tail.varint_field(4, self.sequence);
        tail.varint_field(5, u64::from(self.retry_after_ms));
        tail.varint_field(6, self.offset);
        tail.varint_field(7, u64::from(self.room));
        tail
    }
}
