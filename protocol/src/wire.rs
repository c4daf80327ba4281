//! Protobuf's wire format, as far as a few messages need it: varints, keys, fields to skip.
//!
//! It exists beside prost because it borrows: the gateway reads a request without
//! an allocation. The tests of `message` compare its result with prost's on valid and invalid input.
//!
//! Source of the format: <https://protobuf.dev/programming-guides/encoding/>.

use bytes::BufMut;

/// How deeply groups may nest in an unknown field. prost's own limit.
const GROUP_DEPTH_MAX: u32 = 100;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end inside a field.
    #[error("the message ends inside a field")]
    Truncated,
    /// A varint has more than ten bytes, or more than 64 bits.
    #[error("a varint is longer than 64 bits")]
    VarintTooLong,
    /// A key with field number zero, one above 2^29 - 1, or one of an unknown wire type.
    #[error("a field has an impossible key")]
    BadKey,
    /// A known field has another wire type than its own.
    #[error("field {field} has wire type {wire_type}, which is not its own")]
    WrongWireType {
        /// The field's number.
        field: u32,
        /// The wire type that came.
        wire_type: u8,
    },
    /// A group that does not end, ends elsewhere, or is nested too deeply.
    #[error("a group is not well-formed")]
    BadGroup,
}

pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LENGTH_DELIMITED: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
pub(crate) const FIXED32: u8 = 5;

/// Reads a varint from the front of `bytes` and moves past it.
#[inline]
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    if let [byte, rest @ ..] = *bytes
        && *byte < 0x80
    {
        *bytes = rest;
        return Ok(u64::from(*byte));
    }
    let mut value = 0_u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            if index == 9 && byte > 1 {
                return Err(WireError::VarintTooLong);
            }
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
    }
    Err(if bytes.len() >= 10 { WireError::VarintTooLong } else { WireError::Truncated })
}

/// Reads a field's key: its number and its wire type.
#[inline]
pub(crate) fn take_key(bytes: &mut &[u8]) -> Result<(u32, u8), WireError> {
    let key = u32::try_from(take_varint(bytes)?).map_err(|_| WireError::BadKey)?;
    let (field, wire_type) = (key >> 3, (key & 7) as u8);
    if field == 0 || wire_type > FIXED32 {
        return Err(WireError::BadKey);
    }
    Ok((field, wire_type))
}

/// Takes `count` bytes from the front.
#[inline]
pub(crate) fn take_bytes<'a>(bytes: &mut &'a [u8], count: u64) -> Result<&'a [u8], WireError> {
    let count = usize::try_from(count).map_err(|_| WireError::Truncated)?;
    let (taken, rest) = bytes.split_at_checked(count).ok_or(WireError::Truncated)?;
    *bytes = rest;
    Ok(taken)
}

/// Takes eight bytes, little-endian.
#[inline]
pub(crate) fn take_fixed64(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
    *bytes = rest;
    Ok(u64::from_le_bytes(*taken))
}

/// Takes a length-delimited value.
#[inline]
pub(crate) fn take_delimited<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let length = take_varint(bytes)?;
    take_bytes(bytes, length)
}

/// Checks that `field` has the wire type `expected`.
#[inline]
pub(crate) fn expect(field: u32, wire_type: u8, expected: u8) -> Result<(), WireError> {
    if wire_type == expected { Ok(()) } else { Err(WireError::WrongWireType { field, wire_type }) }
}

/// Skips the value of an unknown field.
pub(crate) fn skip(bytes: &mut &[u8], field: u32, wire_type: u8) -> Result<(), WireError> {
    skip_nested(bytes, field, wire_type, GROUP_DEPTH_MAX)
}

/// Skips the value of an unknown field of a message inside a message, which is a level of nesting too.
pub(crate) fn skip_inside(bytes: &mut &[u8], field: u32, wire_type: u8) -> Result<(), WireError> {
    skip_nested(bytes, field, wire_type, GROUP_DEPTH_MAX - 1)
}

fn skip_nested(
    bytes: &mut &[u8],
    field: u32,
    wire_type: u8,
    depth_left: u32,
) -> Result<(), WireError> {
    if depth_left == 0 {
        return Err(WireError::BadGroup);
    }
    match wire_type {
        VARINT => take_varint(bytes).map(drop),
        FIXED64 => take_bytes(bytes, 8).map(drop),
        LENGTH_DELIMITED => take_delimited(bytes).map(drop),
        FIXED32 => take_bytes(bytes, 4).map(drop),
        START_GROUP => loop {
            let (inner, inner_type) = take_key(bytes)?;
            if inner_type == END_GROUP {
                return if inner == field { Ok(()) } else { Err(WireError::BadGroup) };
            }
            skip_nested(bytes, inner, inner_type, depth_left - 1)?;
        },
        _ => Err(WireError::BadGroup),
    }
}

/// How many bytes the varint of `value` takes: 1 to 10.
#[inline]
#[must_use]
pub(crate) const fn varint_len(value: u64) -> usize {
    // A varint carries 7 bits a byte; `| 1` makes zero take one byte.
    ((63 - (value | 1).leading_zeros() as usize) / 7) + 1
}

/// Writes `value` as a varint of the fewest bytes.
#[inline]
pub(crate) fn put_varint(out: &mut impl BufMut, value: u64) {
    let mut small = Small::new();
    small.varint(value);
    out.put_slice(small.written());
}

/// A few fields, encoded before they are written. The output buffer then checks its capacity once for
/// all of them.
#[derive(Debug)]
pub(crate) struct Small {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Small {
    /// A length, two varint fields and the key of a third field take 10 + 2 * 11 + 11 bytes at most.
    const CAPACITY: usize = 43;

    #[inline]
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }

    #[inline]
    pub(crate) fn written(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// A varint.
    #[inline]
    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.push((value & 0x7f) as u8);
    }

    /// A varint field; nothing if the value is the default.
    #[inline]
    pub(crate) fn varint_field(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.push(field << 3 | VARINT);
            self.varint(value);
        }
    }

    /// The key and the length of a length-delimited field; nothing if the field is empty.
    #[inline]
    pub(crate) fn bytes_key(&mut self, field: u8, len: usize) {
        if len != 0 {
            self.push(field << 3 | LENGTH_DELIMITED);
            self.varint(len as u64);
        }
    }
}

/// Length of a varint field with a key of one byte, in bytes; 0 if the value is the default.
#[inline]
#[must_use]
pub(crate) const fn varint_field_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

/// Length of a length-delimited field with a key of one byte, in bytes; 0 if it is empty.
#[inline]
#[must_use]
pub(crate) const fn bytes_field_len(value: &[u8]) -> usize {
    delimited_field_len(value.len())
}

/// Length of a length-delimited field with a key of one byte and a value of `len` bytes; 0 if it is empty.
#[inline]
#[must_use]
pub(crate) const fn delimited_field_len(len: usize) -> usize {
    if len == 0 { 0 } else { 1 + varint_len(len as u64) + len }
}

/// Zigzag: small numbers of either sign get small varints.
#[inline]
#[must_use]
pub(crate) const fn zigzag(value: i32) -> u64 {
    ((value << 1) ^ (value >> 31)).cast_unsigned() as u64
}

/// The number that a zigzag varint means. As prost, it reads the low 32 bits.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a 32-bit field keeps the low 32 bits")]
pub(crate) const fn unzigzag(value: u64) -> i32 {
    let value = value as u32;
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_take_the_fewest_bytes_and_round_trip() {
        for shift in 0..64 {
            for value in [1_u64 << shift, (1_u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                let mut rest = out.as_slice();
                assert_eq!(take_varint(&mut rest), Ok(value));
                assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn zigzag_round_trips() {
        for value in [0, -1, 1, -2, 2, i32::MAX, i32::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!(zigzag(-1), 1);
        assert_eq!(zigzag(1), 2);
    }

    #[test]
    fn a_varint_past_64_bits_is_refused() {
        let mut eleven: &[u8] = &[0xff; 11];
        assert_eq!(take_varint(&mut eleven), Err(WireError::VarintTooLong));
        let mut too_wide: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(take_varint(&mut too_wide), Err(WireError::VarintTooLong));
        let mut cut: &[u8] = &[0x80];
        assert_eq!(take_varint(&mut cut), Err(WireError::Truncated));
    }
}
