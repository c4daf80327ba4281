//! Outboxes: what waits to be sent to one connection, in memory that is borrowed while it waits.
//!
//! The shard owns a pool of buffers. A connection that is written to takes one, and gives it back at
//! the end of the turn, when its bytes have gone to the driver. A buffer that grew is given back to
//! the allocator; the others are, too, when a burst is over ([`allocator`](crate::allocator)).

use std::num::NonZeroU32;

use bytes::{Bytes, BytesMut};

use crate::allocator::SHORT_BYTES;

/// A fresh buffer's bytes: a few small answers.
const BUFFER_BYTES: usize = SHORT_BYTES;

/// Buffers kept for reuse, at most. With [`BUFFER_BYTES`] that is 256 KiB a shard.
const SPARE_MAX: usize = 256;

/// Names a buffer that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxId(NonZeroU32);

/// A shard's buffers.
#[derive(Debug, Default)]
pub struct Outboxes {
    buffers: Vec<BytesMut>,
    /// Buffers not in use that hold memory: the one used last goes first, it is in the cache.
    spare: Vec<OutboxId>,
    /// Buffers not in use that hold none.
    empty: Vec<OutboxId>,
    /// Bytes in all buffers in use.
    bytes: usize,
}

impl Outboxes {
    /// Bytes that wait, of all connections.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that wait in one.
    #[inline]
    #[must_use]
    pub fn len(&self, outbox: Option<OutboxId>) -> usize {
        outbox.map_or(0, |id| self.buffers[index(id)].len())
    }

    /// Appends what `write` writes; takes a buffer first, if there is none yet.
    #[inline]
    pub fn write(&mut self, outbox: &mut Option<OutboxId>, write: impl FnOnce(&mut BytesMut)) {
        let id = *outbox.get_or_insert_with(|| self.take());
        let buffer = &mut self.buffers[index(id)];
        let before = buffer.len();
        write(buffer);
        self.bytes += buffer.len() - before;
    }

    /// Takes what waits, and the buffer back.
    #[inline]
    pub fn drain(&mut self, outbox: &mut Option<OutboxId>) -> Option<Bytes> {
        let id = outbox.take()?;
        let buffer = &mut self.buffers[index(id)];
        let bytes = buffer.split().freeze();
        self.bytes -= bytes.len();
        if bytes.len() <= BUFFER_BYTES && self.spare.len() < SPARE_MAX {
            self.spare.push(id);
        } else {
            *buffer = BytesMut::new();
            self.empty.push(id);
        }
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Gives back what is kept for reuse.
    pub fn give_back(&mut self) {
        for id in self.spare.drain(..) {
            self.buffers[index(id)] = BytesMut::new();
            self.empty.push(id);
        }
    }

    fn take(&mut self) -> OutboxId {
        if let Some(id) = self.spare.pop() {
            return id;
        }
        let id = self.empty.pop().unwrap_or_else(|| {
            self.buffers.push(BytesMut::new());
            let count = u32::try_from(self.buffers.len()).expect("fewer than connections");
            OutboxId(NonZeroU32::new(count).expect("at least the one just pushed"))
        });
        self.buffers[index(id)].reserve(BUFFER_BYTES);
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

    #[test]
    fn what_is_written_comes_out_and_the_buffer_goes_back() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.write(&mut outbox, |buffer| buffer.extend_from_slice(b"ab"));
        outboxes.write(&mut outbox, |buffer| buffer.extend_from_slice(b"c"));
        assert_eq!((outboxes.len(outbox), outboxes.bytes()), (3, 3));
        assert_eq!(outboxes.drain(&mut outbox).unwrap(), "abc");
        assert_eq!((outbox, outboxes.bytes()), (None, 0));
        assert_eq!(outboxes.spare.len(), 1);
    }

    #[test]
    fn a_buffer_that_grew_is_given_back() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.write(&mut outbox, |buffer| buffer.resize(60_000, 7));
        drop(outboxes.drain(&mut outbox));
        assert!(outboxes.buffers.iter().all(|buffer| buffer.capacity() == 0));
    }

    #[test]
    fn a_buffer_kept_for_reuse_can_be_given_back() {
        let mut outboxes = Outboxes::default();
        let mut outbox = None;
        outboxes.write(&mut outbox, |buffer| buffer.extend_from_slice(b"abc"));
        drop(outboxes.drain(&mut outbox));
        outboxes.give_back();
        assert!(outboxes.buffers.iter().all(|buffer| buffer.capacity() == 0));
        outboxes.write(&mut outbox, |buffer| buffer.extend_from_slice(b"d"));
        assert_eq!(outboxes.drain(&mut outbox).unwrap(), "d");
    }
}
