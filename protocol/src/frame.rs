//! Frames: the bytes of a stream <-> the payload of one frame.
//!
//! A frame is a payload preceded by its length as a varint of the fewest bytes. TCP may split the
//! stream anywhere. [`Reassembler`] keeps incomplete frames and lends complete ones.

use bytes::BufMut;

use crate::limits::PREFIX_BYTES_MAX;
use crate::wire;

/// Why a stream can't be read any further. It is the peer's fault: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is padded: it takes more bytes than it needs, or more than five.
    #[error("the frame's length is not written in the fewest bytes")]
    Overlong,
    /// The frame is longer than this end accepts.
    #[error("the frame has {bytes} bytes, {bytes_max} are allowed")]
    TooLong {
        /// What the prefix announces.
        bytes: u64,
        /// What this end accepts.
        bytes_max: usize,
    },
}

/// The length prefix at the front of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Bytes that the prefix itself takes: 1 to 5.
    pub prefix_bytes: usize,
    /// Bytes of the payload behind it.
    pub payload_bytes: usize,
}

/// Reads the prefix at the front of `stream`; `None` when more bytes are needed to tell.
///
/// # Errors
/// [`FrameError`] as soon as it is certain, which is before the payload has arrived.
#[inline]
pub fn read_prefix(stream: &[u8], payload_bytes_max: usize) -> Result<Option<Prefix>, FrameError> {
    let mut length = 0_u64;
    for (index, &byte) in stream.iter().take(PREFIX_BYTES_MAX).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            if byte == 0 && index > 0 {
                return Err(FrameError::Overlong);
            }
            return match usize::try_from(length) {
                Ok(payload_bytes) if payload_bytes <= payload_bytes_max => {
                    Ok(Some(Prefix { prefix_bytes: index + 1, payload_bytes }))
                }
                _ => Err(FrameError::TooLong { bytes: length, bytes_max: payload_bytes_max }),
            };
        }
    }
    if stream.len() >= PREFIX_BYTES_MAX { Err(FrameError::Overlong) } else { Ok(None) }
}

/// A frame's length on the wire, prefix included, for a payload of this many bytes.
#[inline]
#[must_use]
pub const fn frame_len(payload_bytes: usize) -> usize {
    wire::varint_len(payload_bytes as u64) + payload_bytes
}

/// Writes the length prefix of a payload of this many bytes.
#[inline]
pub fn put_prefix(out: &mut impl BufMut, payload_bytes: usize) {
    wire::put_varint(out, payload_bytes as u64);
}

/// Reassembles a stream's frames.
///
/// It owns memory only while a frame is incomplete. A frame that comes whole is lent from the
/// caller's buffer, and so is each of a hundred frames in one segment.
///
/// Its memory grows with the bytes that were received, never with the length that a prefix announces. So a peer
/// can't reserve memory with a prefix alone. It holds at most one frame and what the caller
/// [kept back](Frames::keep_rest).
#[derive(Debug, Default)]
pub struct Reassembler {
    /// Invariant: `Some` only while it holds at least one byte.
    carry: Option<Box<Carry>>,
}

#[derive(Debug, Default)]
struct Carry {
    bytes: Vec<u8>,
    /// Bytes at the front that have been read. start <= bytes.len(), and whenever bytes are
    /// added start < bytes.len() / 2, or both are 0.
    start: usize,
}

impl Reassembler {
    /// An empty reassembler. It owns no heap memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { carry: None }
    }

    /// Bytes kept for later.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.carry.as_ref().map_or(0, |carry| carry.bytes.len() - carry.start)
    }

    /// Reads frames out of what was kept and `bytes`, which follow it in the stream.
    ///
    /// Bytes that are not read when the [`Frames`] is dropped are kept.
    #[inline]
    pub fn frames<'a>(&'a mut self, bytes: &'a [u8], payload_bytes_max: usize) -> Frames<'a> {
        Frames { reassembler: self, bytes, payload_bytes_max }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let carry = self.carry.get_or_insert_default();
        // A caller that always keeps something back never empties the carry. Compacting it once half of its bytes have
        // been read bounds it, and moves no more bytes than were read.
        if carry.start >= carry.bytes.len() - carry.start {
            carry.bytes.drain(..carry.start);
            carry.start = 0;
        }
        carry.bytes.extend_from_slice(bytes);
    }
}

/// The frames of one stretch of a stream. See [`Reassembler::frames`].
#[derive(Debug)]
pub struct Frames<'a> {
    reassembler: &'a mut Reassembler,
    bytes: &'a [u8],
    payload_bytes_max: usize,
}

impl Frames<'_> {
    /// The next frame's payload; `None` when what is left is less than a frame.
    ///
    /// # Errors
    /// [`FrameError`]: the stream can't be read any further, now or later.
    #[expect(clippy::should_implement_trait, reason = "it lends, which Iterator can't")]
    #[inline]
    pub fn next(&mut self) -> Result<Option<&[u8]>, FrameError> {
        if self.reassembler.carry.is_some() {
            return self.next_from_carry();
        }
        let Some(prefix) = read_prefix(self.bytes, self.payload_bytes_max)? else {
            return Ok(None);
        };
        let end = prefix.prefix_bytes + prefix.payload_bytes;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let (frame, rest) = self.bytes.split_at(end);
        self.bytes = rest;
        Ok(Some(&frame[prefix.prefix_bytes..]))
    }

    /// Changes the longest frame that is accepted, from the next one on.
    #[inline]
    pub const fn set_payload_bytes_max(&mut self, payload_bytes_max: usize) {
        self.payload_bytes_max = payload_bytes_max;
    }

    /// Stops reading and keeps the rest for a later [`Reassembler::frames`]. Dropping does the same.
    pub fn keep_rest(self) {}

    /// Stops reading and discards the rest and all that was kept. Returns how many bytes that was.
    pub fn discard_rest(mut self) -> usize {
        let discarded = self.bytes.len() + self.reassembler.kept_bytes();
        self.bytes = &[];
        self.reassembler.carry = None;
        discarded
    }

    fn next_from_carry(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let frame_end = loop {
            let Some(carry) = self.reassembler.carry.as_deref_mut() else { return self.next() };
            let have = carry.bytes.len() - carry.start;
            if have == 0 {
                self.reassembler.carry = None;
                continue;
            }
            let missing = match read_prefix(&carry.bytes[carry.start..], self.payload_bytes_max)? {
                None => 1,
                Some(prefix) => {
                    let frame_bytes = prefix.prefix_bytes + prefix.payload_bytes;
                    if have >= frame_bytes {
                        break (carry.start + prefix.prefix_bytes, carry.start + frame_bytes);
                    }
                    frame_bytes - have
                }
            };
            if self.bytes.is_empty() {
                return Ok(None);
            }
            let (taken, rest) = self.bytes.split_at(missing.min(self.bytes.len()));
            self.reassembler.keep(taken);
            self.bytes = rest;
        };
        let carry = self.reassembler.carry.as_deref_mut().expect("the loop found a frame in it");
        carry.start = frame_end.1;
        Ok(Some(&carry.bytes[frame_end.0..frame_end.1]))
    }
}

impl Drop for Frames<'_> {
    fn drop(&mut self) {
        let rest = self.bytes;
        self.reassembler.keep(rest);
        if self.reassembler.kept_bytes() == 0 {
            self.reassembler.carry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_prefix(&mut out, payload.len());
        out.extend_from_slice(payload);
        out
    }

    fn all(reassembler: &mut Reassembler, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut frames = reassembler.frames(bytes, 1000);
        let mut out = Vec::new();
        while let Some(payload) = frames.next()? {
            out.push(payload.to_vec());
        }
        Ok(out)
    }

    #[test]
    fn a_stream_split_at_every_byte_is_the_same_stream() {
        let payloads = [b"".to_vec(), b"a".to_vec(), vec![7; 127], vec![8; 128], vec![9; 1000]];
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| frame(payload)).collect();
        for cut in 0..=stream.len() {
            let mut reassembler = Reassembler::new();
            let mut got = all(&mut reassembler, &stream[..cut]).unwrap();
            got.extend(all(&mut reassembler, &stream[cut..]).unwrap());
            assert_eq!(got, payloads, "cut at {cut}");
            assert!(reassembler.carry.is_none(), "memory is given back");
        }
        let mut reassembler = Reassembler::new();
        let single: Vec<_> =
            stream.iter().flat_map(|byte| all(&mut reassembler, &[*byte]).unwrap()).collect();
        assert_eq!(single, payloads);
    }

    #[test]
    fn what_is_kept_back_comes_first_later() {
        let stream: Vec<u8> = (0..5_u8).flat_map(|n| frame(&[n])).collect();
        let mut reassembler = Reassembler::new();
        let mut frames = reassembler.frames(&stream, 1000);
        assert_eq!(frames.next(), Ok(Some(&[0_u8][..])));
        frames.keep_rest();
        assert_eq!(reassembler.kept_bytes(), 8);
        assert_eq!(all(&mut reassembler, &frame(&[5])).unwrap(), [[1], [2], [3], [4], [5]]);
        assert!(reassembler.carry.is_none());
    }

    #[test]
    fn a_bad_length_is_known_before_the_payload() {
        let too_long = FrameError::TooLong { bytes: 1001, bytes_max: 1000 };
        assert_eq!(read_prefix(&[0xe9, 0x07], 1000), Err(too_long));
        assert_eq!(read_prefix(&[0x80, 0x00], 1000), Err(FrameError::Overlong));
        assert_eq!(read_prefix(&[0x81, 0x80, 0x00], 1000), Err(FrameError::Overlong));
        assert_eq!(read_prefix(&[0xff; 5], 1000), Err(FrameError::Overlong));
        assert_eq!(read_prefix(&[0xff; 4], 1000), Ok(None));
    }

    #[test]
    fn the_longest_frame_may_change_between_two_frames() {
        let stream = frame(&[7; 10]).repeat(3);
        // The frames come whole, or a part of the first was kept.
        for kept in [0, 4] {
            let mut reassembler = Reassembler::new();
            reassembler.frames(&stream[..kept], 0).keep_rest();
            let mut frames = reassembler.frames(&stream[kept..], 0);
            frames.set_payload_bytes_max(10);
            assert_eq!(frames.next(), Ok(Some(&[7_u8; 10][..])));
            frames.set_payload_bytes_max(9);
            assert_eq!(frames.next(), Err(FrameError::TooLong { bytes: 10, bytes_max: 9 }));
        }
    }

    #[test]
    fn what_is_always_kept_back_does_not_grow() {
        let one = frame(&[7; 100]);
        let mut reassembler = Reassembler::new();
        reassembler.frames(&one.repeat(2), 1000).keep_rest();
        for _ in 0..10_000 {
            let mut frames = reassembler.frames(&one, 1000);
            assert_eq!(frames.next(), Ok(Some(&[7_u8; 100][..])));
            frames.keep_rest();
            assert_eq!(reassembler.kept_bytes(), 2 * one.len());
        }
        let carry = reassembler.carry.as_ref().unwrap();
        assert!(carry.bytes.capacity() <= 8 * one.len(), "{}", carry.bytes.capacity());
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut reassembler = Reassembler::new();
        assert_eq!(all(&mut reassembler, &[0xe8, 0x07, 1]).unwrap(), Vec::<Vec<u8>>::new());
        let carry = reassembler.carry.as_ref().unwrap();
        assert!(carry.bytes.capacity() < 64);
    }
}
