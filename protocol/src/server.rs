//! The gateway's end of a connection: what its requests mean, and the frames that it answers with.
//!
//! It holds no state: the gateway keeps what belongs to a connection. A gateway reads with a
//! [`Reassembler`](crate::Reassembler) and [`Incoming::decode`], and writes with the `put_*`.

use bytes::BufMut;

use crate::code::Code;
use crate::message::{
    AUTHENTICATE, FAILURE, HEARTBEAT, MessageError, NOTICE, Request, Response, SUCCESS,
};
use crate::proto::v1;
use crate::resume::Positions;

/// A request, by what it asks of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A sign of life.
    Heartbeat {
        /// Echoed in the answer.
        sequence: u64,
    },
    /// A user authenticates.
    Authenticate {
        /// The user that it claims to be.
        user_id: u64,
        /// The proof.
        token: &'a str,
        /// The rooms that it was in.
        resume: Positions<'a>,
        /// Echoed in the answer.
        sequence: u64,
    },
    /// A request for a backend.
    Business {
        /// Greater than 0; picks the route.
        kind: i32,
        /// Opaque to the gateway.
        biz_data: &'a [u8],
        /// Echoed in the answer.
        sequence: u64,
    },
}

impl<'a> Incoming<'a> {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`MessageError`]: answer with [`put_failure`] and [`Code::Malformed`], then close.
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<Self, MessageError> {
        let Request { kind, user_id, token, biz_data, sequence } = Request::decode(payload)?;
        Ok(match kind {
            HEARTBEAT => Self::Heartbeat { sequence },
            AUTHENTICATE => {
                let resume = Positions::decode(biz_data)?;
                Self::Authenticate { user_id, token, resume, sequence }
            }
            _ => Self::Business { kind, biz_data, sequence },
        })
    }

    /// The type, which the answer repeats.
    #[must_use]
    pub const fn kind(&self) -> i32 {
        match *self {
            Self::Heartbeat { .. } => HEARTBEAT,
            Self::Authenticate { .. } => AUTHENTICATE,
            Self::Business { kind, .. } => kind,
        }
    }

    /// The sequence, which the answer repeats.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        match *self {
            Self::Heartbeat { sequence }
            | Self::Authenticate { sequence, .. }
            | Self::Business { sequence, .. } => sequence,
        }
    }
}

/// Writes a successful answer.
#[inline]
pub fn put_answer(out: &mut impl BufMut, kind: i32, sequence: u64, biz_data: &[u8]) {
    Response { kind, status: SUCCESS, biz_data, sequence, ..Response::default() }.encode_frame(out);
}

/// Writes a failed answer. `retry_after_ms` is 0 where the code has none.
#[inline]
pub fn put_failure(
    out: &mut impl BufMut,
    kind: i32,
    sequence: u64,
    code: Code,
    retry_after_ms: u32,
) {
    let biz_data = &code.to_bytes();
    Response { kind, status: FAILURE, biz_data, sequence, retry_after_ms, ..Response::default() }
        .encode_frame(out);
}

/// Writes the frame by which a gateway announces that it ends a session.
pub fn put_goodbye(out: &mut impl BufMut, code: Code, retry_after_ms: u32) {
    put_failure(out, AUTHENTICATE, 0, code, retry_after_ms);
}

/// Writes a push. `offset` is its place in a room's log, and `room` the room's number in the [`v1::Room`] that the
/// session got. Both are 0 for a push to a user.
#[inline]
pub fn put_push(out: &mut impl BufMut, kind: i32, biz_data: &[u8], offset: u64, room: u32) {
    Response { kind, status: SUCCESS, biz_data, offset, room, ..Response::default() }
        .encode_frame(out);
}

/// Writes a notice: the session has become a member of a room, or no longer is one.
pub fn put_notice(out: &mut impl BufMut, notice: &v1::Notice) {
    Response { kind: NOTICE, status: SUCCESS, ..Response::default() }
        .encode_frame_around(notice, out);
}

/// Writes a heartbeat's answer.
pub fn put_pong(out: &mut impl BufMut, sequence: u64, server_time_ms: u64) {
    let mut biz_data = [0_u8; 11];
    let length = encode_small(&v1::Pong { server_time_ms }, &mut biz_data);
    put_answer(out, HEARTBEAT, sequence, &biz_data[..length]);
}

/// Writes the answer to an authentication that succeeded.
pub fn put_session(out: &mut impl BufMut, sequence: u64, session: &v1::Session) {
    Response { kind: AUTHENTICATE, status: SUCCESS, sequence, ..Response::default() }
        .encode_frame_around(session, out);
}

/// Encodes a message that fits the array. Returns its length in bytes.
fn encode_small(message: &impl prost::Message, into: &mut [u8]) -> usize {
    let capacity = into.len();
    let mut rest: &mut [u8] = into;
    message.encode(&mut rest).expect("the array holds the largest of its kind");
    capacity - rest.len()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_session_of_any_size_and_the_largest_pong_fit() {
        let session = v1::Session {
            session_id: u64::MAX,
            heartbeat_interval_ms: u32::MAX,
            server_time_ms: u64::MAX,
            rooms: vec![v1::Room { name: "x".repeat(128), ..v1::Room::default() }; 65],
            ..v1::Session::default()
        };
        let mut out = Vec::new();
        put_session(&mut out, u64::MAX, &session);
        let response = Response::decode(&out[2..]).unwrap();
        assert_eq!(v1::Session::decode(response.biz_data).unwrap(), session);
        out.clear();
        put_pong(&mut out, 1, u64::MAX);
        let response = Response::decode(&out[1..]).unwrap();
        assert_eq!(v1::Pong::decode(response.biz_data).unwrap().server_time_ms, u64::MAX);
    }
}
