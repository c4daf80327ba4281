//! The positions that an authentication carries in its `biz_data`, a `Resume`, borrowed.
//!
//! [`Positions::decode`] checks the whole message once, so that a gateway can walk it later without errors. It means
//! the same as prost's `proto::v1::Resume`, and allocates nothing.

use std::iter::FusedIterator;

use crate::limits::{ROOM_ID_BYTES_MAX, TICKET_BYTES_MAX};
use crate::message::MessageError;
use crate::wire;

/// How far a client has read a room's log, borrowed from its frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position<'a> {
    /// The room's name; [`EVERYBODY`](crate::message::EVERYBODY) for everybody's.
    pub room: &'a str,
    /// The identity of the log; 0 if the client gives no position.
    pub log: u64,
    /// Of the last push that was seen.
    pub offset: u64,
    /// The proof of the membership.
    pub ticket: &'a [u8],
}

impl<'a> Position<'a> {
    /// Whether the name and the ticket have possible lengths. A gateway refuses this membership if not, and
    /// serves the others.
    #[must_use]
    pub const fn is_acceptable(&self) -> bool {
        !self.room.is_empty()
            && self.room.len() <= ROOM_ID_BYTES_MAX
            && self.ticket.len() <= TICKET_BYTES_MAX
    }

    fn decode(mut position: &'a [u8]) -> Result<Self, MessageError> {
        let mut decoded = Self::default();
        while !position.is_empty() {
            let (field, wire_type) = take_key(&mut position)?;
            let bytes = &mut position;
            let read = match field {
                1 => {
                    let name = wire::expect(field, wire_type, wire::LENGTH_DELIMITED)
                        .and_then(|()| wire::take_delimited(bytes));
                    let name = str::from_utf8(name.map_err(MessageError::BadResume)?);
                    decoded.room = name.map_err(|_| MessageError::RoomNotUtf8)?;
                    Ok(())
                }
                2 => wire::expect(field, wire_type, wire::FIXED64)
                    .and_then(|()| wire::take_fixed64(bytes))
                    .map(|log| decoded.log = log),
                3 => wire::expect(field, wire_type, wire::VARINT)
                    .and_then(|()| wire::take_varint(bytes))
                    .map(|offset| decoded.offset = offset),
                4 => wire::expect(field, wire_type, wire::LENGTH_DELIMITED)
                    .and_then(|()| wire::take_delimited(bytes))
                    .map(|ticket| decoded.ticket = ticket),
                _ => wire::skip_inside(bytes, field, wire_type),
            };
            read.map_err(MessageError::BadResume)?;
        }
        Ok(decoded)
    }
}

fn take_key(bytes: &mut &[u8]) -> Result<(u32, u8), MessageError> {
    wire::take_key(bytes).map_err(MessageError::BadResume)
}

/// The positions of a `Resume`, in the client's order. Empty for a client that has none, or of version 1.0.
///
/// There is no limit on how many there are, other than the frame's length: a gateway refuses the memberships
/// above its own limit of rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions<'a> {
    /// A well-formed `Resume`.
    resume: &'a [u8],
}

impl<'a> Positions<'a> {
    /// Reads the `biz_data` of an authentication.
    ///
    /// # Errors
    /// [`MessageError`] when it is no `Resume`.
    #[inline]
    pub fn decode(biz_data: &'a [u8]) -> Result<Self, MessageError> {
        let mut rest = biz_data;
        while take_position(&mut rest)?.is_some() {}
        Ok(Self { resume: biz_data })
    }

    /// The message that they were read from.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.resume
    }

    /// Whether there is no position.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }

    /// The positions.
    #[must_use]
    pub const fn iter(self) -> PositionsIter<'a> {
        PositionsIter { rest: self.resume }
    }
}

impl<'a> IntoIterator for Positions<'a> {
    type Item = Position<'a>;
    type IntoIter = PositionsIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Walks [`Positions`].
#[derive(Clone, Debug)]
pub struct PositionsIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for PositionsIter<'a> {
    type Item = Position<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        // `Positions::decode` has found no error.
        take_position(&mut self.rest).ok().flatten()
    }
}

impl FusedIterator for PositionsIter<'_> {}

/// Takes the next position from the front of a `Resume`, and skips what it does not know; `None` at the end.
fn take_position<'a>(resume: &mut &'a [u8]) -> Result<Option<Position<'a>>, MessageError> {
    while !resume.is_empty() {
        let (field, wire_type) = take_key(resume)?;
        if field == 1 {
            let position = wire::expect(field, wire_type, wire::LENGTH_DELIMITED)
                .and_then(|()| wire::take_delimited(resume))
                .map_err(MessageError::BadResume)?;
            return Position::decode(position).map(Some);
        }
        wire::skip(resume, field, wire_type).map_err(MessageError::BadResume)?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::WireError;

    #[test]
    fn only_possible_lengths_are_acceptable() {
        let longest = "x".repeat(ROOM_ID_BYTES_MAX);
        let ticket = [7; TICKET_BYTES_MAX];
        let good = Position { room: &longest, log: 1, offset: 2, ticket: &ticket };
        assert!(good.is_acceptable());
        let too_long = "x".repeat(ROOM_ID_BYTES_MAX + 1);
        let ticket_too_long = [7; TICKET_BYTES_MAX + 1];
        assert!(!Position { room: &too_long, ..good }.is_acceptable());
        assert!(!Position { room: "", ..good }.is_acceptable());
        assert!(!Position { ticket: &ticket_too_long, ..good }.is_acceptable());
        assert!(Position { ticket: b"", ..good }.is_acceptable());
    }

    #[test]
    fn a_position_that_is_cut_is_no_resume() {
        assert!(Positions::decode(b"").unwrap().is_empty());
        // Field 2, a varint: of a later version.
        assert!(Positions::decode(&[0x10, 0x01]).unwrap().is_empty());
        let cut = Positions::decode(&[0x0a, 0x02, 0x0a]);
        assert_eq!(cut, Err(MessageError::BadResume(WireError::Truncated)));
        let not_utf8 = Positions::decode(&[0x0a, 0x03, 0x0a, 0x01, 0xff]);
        assert_eq!(not_utf8, Err(MessageError::RoomNotUtf8));
    }
}
