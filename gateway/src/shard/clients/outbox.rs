//! Outboxes: what waits to be sent to a connection, in memory that is borrowed while it waits.
//!
//! An outbox is a short chain of pieces. Short frames are copied one behind the other into a buffer from the
//! shard's pool, so that they leave in one send. A long body (a push to a room, a handler's answer) stays where
//! it is: the chain shares it, so that a hundred slow members of a room hold its bytes once. A connection takes
//! an outbox when it is written to, and releases it when its last piece goes to the driver.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use bytes::{Bytes, BytesMut};

use crate::allocator::SHORT_BYTES;

/// Bytes of a fresh buffer: a few short answers.
const BUFFER_BYTES: usize = SHORT_BYTES;

/// Buffers kept for reuse, at most. With [`BUFFER_BYTES`] that is 256 KiB a shard.
const SPARE_MAX: usize = 256;

/// A body of this many bytes is shared, a shorter one is copied. A separate piece costs a system call, and that
/// is about what copying 16 KiB costs.
pub const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Identifies an outbox that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxId(NonZeroU32);

/// One outbox.
#[derive(Debug, Default)]
struct Outbox {
    /// The pieces before the tail. None of them is empty.
    chain: VecDeque<Bytes>,
    /// The last piece, to which short frames are appended.
    tail: BytesMut,
    /// Bytes of the chain and the tail.
    bytes: usize,
}

/// A shard's outboxes.
#[derive(Debug, Default)]
pub struct Outboxes {
    outboxes: Vec<Outbox>,
    /// Outboxes not in use that hold a buffer. The one that was used last is reused first: it is in the cache.
    spare: Vec<OutboxId>,
    /// Outboxes not in use that hold no buffer.
    empty: Vec<OutboxId>,
    /// Bytes in all outboxes in use.
    bytes: usize,
}

impl Outboxes {
    /// Bytes that wait, of all connections.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that wait in one outbox.
    #[inline]
    #[must_use]
    pub fn len(&self, outbox: Option<OutboxId>) -> usize {
        outbox.map_or(0, |id| self.outboxes[index(id)].bytes)
    }

    /// Appends what `write` writes. Takes an outbox first, if the connection has none.
    #[inline]
    pub fn append(&mut self, outbox: &mut Option<OutboxId>, write: impl FnOnce(&mut BytesMut)) {
        let id = *outbox.get_or_insert_with(|| self.acquire());
        let Outbox { tail, bytes, .. } = &mut self.outboxes[index(id)];
        let before = tail.len();
        write(tail);
        let written = tail.len() - before;
        *bytes += written;
        self.bytes += written;
    }

    /// Appends bytes that others share. Short ones are copied.
    #[inline]
    pub fn append_shared(&mut self, outbox: &mut Option<OutboxId>, shared: Bytes) {
        if shared.len() < SHARED_BYTES_MIN {
            return self.append(outbox, |out| out.extend_from_slice(&shared));
        }
        let id = *outbox.get_or_insert_with(|| self.acquire());
        let Outbox { chain, tail, bytes } = &mut self.outboxes[index(id)];
        if !tail.is_empty() {
            chain.push_back(tail.split().freeze());
        }
        *bytes += shared.len();
        self.bytes += shared.len();
        chain.push_back(shared);
    }

    /// Takes the first piece. With the last one the connection releases its outbox.
    #[inline]
    pub fn next(&mut self, outbox: &mut Option<OutboxId>) -> Option<Bytes> {
        let id = (*outbox)?;
        let Outbox { chain, tail, bytes } = &mut self.outboxes[index(id)];
        if let Some(piece) = chain.pop_front() {
            *bytes -= piece.len();
            self.bytes -= piece.len();
            if *bytes == 0 {
                *outbox = None;
                self.release(id);
            }
            return Some(piece);
        }
        *outbox = None;
        let piece = tail.split().freeze();
        *bytes = 0;
        self.bytes -= piece.len();
        if piece.len() > BUFFER_BYTES {
            *tail = BytesMut::new();
        }
        self.release(id);
        (!piece.is_empty()).then_some(piece)
    }

    /// Drops all that waits. Returns how many bytes that was.
    pub fn discard(&mut self, outbox: &mut Option<OutboxId>) -> usize {
        let mut bytes = 0;
        while let Some(piece) = self.next(outbox) {
            bytes += piece.len();
        }
        bytes
    }

    /// Frees the buffers that are kept for reuse.
    pub fn free_spare(&mut self) {
        for id in self.spare.drain(..) {
            self.outboxes[index(id)] = Outbox::default();
            self.empty.push(id);
        }
    }

    /// Takes an empty outbox from its connection. One whose tail has grown no longer holds a buffer.
    #[inline]
    fn release(&mut self, id: OutboxId) {
        let Outbox { chain, tail, .. } = &mut self.outboxes[index(id)];
        if chain.capacity() > 0 {
            *chain = VecDeque::new();
        }
        let has_buffer = (1..=BUFFER_BYTES).contains(&tail.capacity());
        if has_buffer && self.spare.len() < SPARE_MAX {
            self.spare.push(id);
        } else {
            *tail = BytesMut::new();
            self.empty.push(id);
        }
    }

    fn acquire(&mut self) -> OutboxId {
        if let Some(id) = self.spare.pop() {
            return id;
        }
        let id = self.empty.pop().unwrap_or_else(|| {
            self.outboxes.push(Outbox::default());
            let count = u32::try_from(self.outboxes.len()).expect("fewer than connections");
            OutboxId(NonZeroU32::new(count).expect("at least the one just pushed"))
        });
        self.outboxes[index(id)].tail.reserve(BUFFER_BYTES);
        id
    }
}

#[inline]
const fn index(id: OutboxId) -> usize {
    id.0.get() as usize - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(outboxes: &Outboxes) -> usize {
        outboxes.outboxes.iter().map(|outbox| outbox.tail.capacity()).sum()
    }

    #[test]
    fn what_is_written_comes_out_and_the_buffer_is_kept() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"ab"));
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"c"));
        assert_eq!((outboxes.len(outbox), outboxes.bytes()), (3, 3));
        assert_eq!(outboxes.next(&mut outbox).unwrap(), "abc");
        assert_eq!((outbox, outboxes.bytes()), (None, 0));
        assert_eq!(outboxes.spare.len(), 1);
        assert_eq!(outboxes.next(&mut outbox), None);
    }

    #[test]
    fn a_buffer_that_grew_is_freed() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.append(&mut outbox, |buffer| buffer.resize(60_000, 7));
        drop(outboxes.next(&mut outbox));
        assert_eq!(capacities(&outboxes), 0);
        assert_eq!((outboxes.spare.len(), outboxes.empty.len()), (0, 1));
        // A buffer that grew in steps has room left, which is a part of a long allocation.
        (0..3).for_each(|_| outboxes.append(&mut outbox, |buffer| buffer.extend([7; 700])));
        assert_eq!(outboxes.next(&mut outbox).unwrap().len(), 2_100);
        assert_eq!(capacities(&outboxes), 0);
    }

    #[test]
    fn no_more_buffers_are_kept_than_a_shard_may_keep() {
        let mut outboxes = Outboxes::default();
        let mut taken = vec![None; SPARE_MAX + 3];
        for outbox in &mut taken {
            outboxes.append(outbox, |buffer| buffer.extend_from_slice(b"answer"));
        }
        taken.iter_mut().for_each(|outbox| drop(outboxes.next(outbox)));
        assert_eq!((outboxes.spare.len(), outboxes.empty.len()), (SPARE_MAX, 3));
        let kept = outboxes.outboxes.iter().filter(|outbox| outbox.tail.capacity() > 0);
        assert_eq!(kept.count(), SPARE_MAX);
    }

    #[test]
    fn a_buffer_kept_for_reuse_can_be_given_back() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"abc"));
        drop(outboxes.next(&mut outbox));
        outboxes.free_spare();
        assert_eq!(capacities(&outboxes), 0);
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"d"));
        assert_eq!(outboxes.next(&mut outbox).unwrap(), "d");
    }

    #[test]
    fn a_long_body_is_shared_and_keeps_its_place() {
        let mut outboxes = Outboxes::default();
        let long = Bytes::from(vec![7; SHARED_BYTES_MIN]);
        let short = Bytes::from_static(b"short");
        let mut outbox = None;
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"head"));
        outboxes.append_shared(&mut outbox, long.clone());
        outboxes.append_shared(&mut outbox, long.clone());
        outboxes.append_shared(&mut outbox, short);
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"tail"));
        let bytes = 2 * SHARED_BYTES_MIN + 13;
        assert_eq!((outboxes.len(outbox), outboxes.bytes()), (bytes, bytes));
        assert_eq!(outboxes.next(&mut outbox).unwrap(), "head");
        for _ in 0..2 {
            assert_eq!(outboxes.next(&mut outbox).unwrap().as_ptr(), long.as_ptr());
        }
        assert_eq!(outboxes.next(&mut outbox).unwrap(), "shorttail");
        assert_eq!((outbox, outboxes.bytes()), (None, 0));
        assert!(outboxes.outboxes[0].chain.capacity() == 0, "an idle outbox holds no chain");
    }

    #[test]
    fn an_outbox_that_ends_with_a_shared_piece_goes_back_with_it() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.append_shared(&mut outbox, Bytes::from(vec![7; SHARED_BYTES_MIN]));
        assert!(outboxes.next(&mut outbox).is_some());
        assert_eq!(outbox, None);
        outboxes.append_shared(&mut outbox, Bytes::from(vec![7; SHARED_BYTES_MIN]));
        outboxes.append(&mut outbox, |buffer| buffer.extend_from_slice(b"tail"));
        assert_eq!(outboxes.discard(&mut outbox), SHARED_BYTES_MIN + 4);
        assert_eq!((outbox, outboxes.bytes()), (None, 0));
    }
}
