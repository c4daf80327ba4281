//! Output: what waits to be sent, what is under way, and which connections are to be flushed.
//!
//! Bytes that are written wait in an outbox until the end of the turn, so that one send takes what came
//! together. A long outbox is flushed earlier. At most one send is under way on a connection.

use std::mem;

use bytes::{Bytes, BytesMut};

use super::connection::{Connection, Flags};
use super::outbox::Outboxes;
use crate::allocator::SHORT_BYTES;

/// Connections that are written to before they are flushed within a turn. So few buffers stay in the
/// cache, and answers that came together mostly leave together.
const FLUSH_LIST_MAX: usize = 128;

/// Bytes in one outbox, with no send under way, at which it is flushed within the turn. What comes later waits
/// behind the send, where the bound on the outbox holds.
const FLUSH_BYTES_MIN: usize = 256 * 1024;

/// What a shard's connections have to send.
#[derive(Debug, Default)]
pub struct Output {
    outboxes: Outboxes,
    /// Bytes of all sends under way.
    in_flight_bytes: usize,
    /// Slots of connections to flush at the end of the turn.
    flush_list: Vec<u32>,
    /// An outbox is so long that it must not wait for the end of the turn.
    has_long_outbox: bool,
    /// Bytes of long sends that ended, and of long outboxes that were discarded, since they were last taken.
    freed_bytes: usize,
}

impl Output {
    /// Bytes that wait to be sent, those of sends under way included.
    #[must_use]
    pub const fn unsent_bytes_in_all(&self) -> usize {
        self.outboxes.bytes() + self.in_flight_bytes
    }

    /// Bytes of a connection that the kernel does not have yet.
    #[inline]
    #[must_use]
    pub fn unsent_bytes(&self, connection: &Connection) -> usize {
        connection.in_flight_bytes as usize + self.outboxes.len(connection.outbox)
    }

    /// Bytes in a connection's outbox.
    #[inline]
    #[must_use]
    pub fn outbox_bytes(&self, connection: &Connection) -> usize {
        self.outboxes.len(connection.outbox)
    }

    /// Bytes that wait behind a connection's send. None waits behind anything if no send is under way.
    #[inline]
    #[must_use]
    pub fn bytes_behind_send(&self, connection: &Connection) -> usize {
        if connection.in_flight_bytes > 0 { self.outboxes.len(connection.outbox) } else { 0 }
    }

    /// Whether no connection has to be flushed.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.flush_list.is_empty()
    }

    /// Whether connections should be flushed before the end of the turn.
    #[inline]
    #[must_use]
    pub const fn is_flush_due(&self) -> bool {
        self.has_long_outbox || self.flush_list.len() >= FLUSH_LIST_MAX
    }

    /// Whether an outbox is so long that it must not wait for the end of the turn.
    #[inline]
    #[must_use]
    pub const fn has_long_outbox(&self) -> bool {
        self.has_long_outbox
    }

    /// Bytes of long sends that ended, and of long outboxes that were discarded, since the last call of this function.
    pub const fn take_freed_bytes(&mut self) -> usize {
        mem::replace(&mut self.freed_bytes, 0)
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.outboxes.free_spare();
    }

    /// Puts a connection on the list of those to flush.
    #[inline]
    pub fn list_for_flush(&mut self, slot: u32, connection: &mut Connection) {
        if !connection.has(Flags::LISTED_FOR_FLUSH) {
            connection.flags |= Flags::LISTED_FOR_FLUSH;
            self.flush_list.push(slot);
        }
    }

    /// Appends what `write` writes.
    #[inline]
    pub fn append(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        write: impl FnOnce(&mut BytesMut),
    ) {
        self.outboxes.append(&mut connection.outbox, write);
        self.appended(slot, connection);
    }

    /// Appends bytes that others share.
    #[inline]
    pub fn append_shared(&mut self, slot: u32, connection: &mut Connection, bytes: Bytes) {
        self.outboxes.append_shared(&mut connection.outbox, bytes);
        self.appended(slot, connection);
    }

    /// Appends bytes for a connection that is being flushed.
    #[inline]
    pub fn append_chunk(&mut self, connection: &mut Connection, chunk: Bytes) {
        self.outboxes.append_shared(&mut connection.outbox, chunk);
    }

    #[inline]
    fn appended(&mut self, slot: u32, connection: &mut Connection) {
        self.has_long_outbox |= connection.in_flight_bytes == 0
            && self.outboxes.len(connection.outbox) >= FLUSH_BYTES_MIN;
        self.list_for_flush(slot, connection);
    }

    /// The next piece of what waits.
    #[inline]
    pub fn next_piece(&mut self, connection: &mut Connection) -> Option<Bytes> {
        self.outboxes.next(&mut connection.outbox)
    }

    /// What to send at once on a connection that was just received from, if that is all there is to do
    /// for it. It is under way then.
    #[inline]
    pub fn take_reply(&mut self, connection: &mut Connection) -> Option<Bytes> {
        let others =
            Flags::READ_PAUSED | Flags::RECEIVE_PAUSED | Flags::PENDING_PUSHES | Flags::PEER_ENDED;
        if !connection.has(Flags::LISTED_FOR_FLUSH)
            || connection.has(others)
            || connection.is_closing()
            || connection.in_flight_bytes > 0
        {
            return None;
        }
        connection.flags -= Flags::LISTED_FOR_FLUSH;
        let bytes = self.next_piece(connection)?;
        self.start_send(connection, bytes.len());
        Some(bytes)
    }

    /// A send is under way.
    #[inline]
    pub fn start_send(&mut self, connection: &mut Connection, bytes: usize) {
        // A piece may be longer than 4 GiB if frames are configured to be.
        connection.in_flight_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.in_flight_bytes += connection.in_flight_bytes as usize;
    }

    /// The send under way is done.
    #[inline]
    pub fn finish_send(&mut self, connection: &mut Connection) {
        let bytes = mem::take(&mut connection.in_flight_bytes) as usize;
        self.in_flight_bytes -= bytes;
        self.count_freed(bytes);
    }

    /// Counts bytes whose memory is free now, if they are many. Only free memory can be given back.
    #[inline]
    const fn count_freed(&mut self, bytes: usize) {
        if bytes > SHORT_BYTES {
            self.freed_bytes += bytes;
        }
    }

    /// Drops all that waits. Returns how many bytes that was, without those of the send under way.
    pub fn discard(&mut self, connection: &mut Connection) -> usize {
        self.finish_send(connection);
        let bytes = self.outboxes.discard(&mut connection.outbox);
        self.count_freed(bytes);
        bytes
    }

    /// The slots to flush. [`Self::put_flush_list`] takes the list back.
    #[inline]
    pub fn take_flush_list(&mut self) -> Vec<u32> {
        self.has_long_outbox = false;
        mem::take(&mut self.flush_list)
    }

    /// Takes the emptied list back. Others may have been listed meanwhile.
    #[inline]
    pub fn put_flush_list(&mut self, mut emptied: Vec<u32>) {
        emptied.append(&mut self.flush_list);
        self.flush_list = emptied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::accepted(1, 0)
    }

    #[test]
    fn a_connection_is_listed_once_however_often_it_is_written_to() {
        let (mut output, mut connection) = (Output::default(), connection());
        for _ in 0..3 {
            output.append(7, &mut connection, |out| out.extend_from_slice(b"ab"));
        }
        assert_eq!(
            (output.unsent_bytes(&connection), output.bytes_behind_send(&connection)),
            (6, 0)
        );
        assert_eq!(output.take_flush_list(), [7]);
        assert!(output.is_idle());
    }

    #[test]
    fn a_long_outbox_is_flushed_early_unless_a_send_is_under_way() {
        let (mut output, mut connection) = (Output::default(), connection());
        let long = Bytes::from(vec![7; FLUSH_BYTES_MIN]);
        output.append_shared(7, &mut connection, long.clone());
        assert!(output.is_flush_due());
        let flush_list = output.take_flush_list();
        assert!(!output.is_flush_due());
        output.put_flush_list(flush_list);
        let piece = output.next_piece(&mut connection).unwrap();
        output.start_send(&mut connection, piece.len());
        output.append_shared(7, &mut connection, long);
        assert!(!output.is_flush_due(), "it has to wait for the send anyway");
        assert_eq!(output.bytes_behind_send(&connection), FLUSH_BYTES_MIN);
        assert_eq!(output.unsent_bytes_in_all(), 2 * FLUSH_BYTES_MIN);
        output.finish_send(&mut connection);
        assert_eq!(output.discard(&mut connection), FLUSH_BYTES_MIN);
        assert_eq!(output.unsent_bytes_in_all(), 0);
    }

    #[test]
    fn a_reply_leaves_at_once_only_if_it_is_all_there_is_to_do() {
        let (mut output, mut connection) = (Output::default(), connection());
        assert_eq!(output.take_reply(&mut connection), None);
        output.append(7, &mut connection, |out| out.extend_from_slice(b"pong"));
        connection.flags |= Flags::READ_PAUSED;
        assert_eq!(output.take_reply(&mut connection), None, "the driver has to pause receiving");
        connection.flags -= Flags::READ_PAUSED;
        assert_eq!(output.take_reply(&mut connection).unwrap(), "pong");
        assert_eq!(connection.in_flight_bytes, 4);
        output.append(7, &mut connection, |out| out.extend_from_slice(b"pong"));
        assert_eq!(output.take_reply(&mut connection), None, "one send at a time");
    }

    #[test]
    fn many_connections_are_flushed_within_the_turn() {
        let mut output = Output::default();
        let mut connections: Vec<_> = (0..FLUSH_LIST_MAX).map(|_| connection()).collect();
        for (slot, connection) in (0..).zip(&mut connections) {
            assert!(!output.is_flush_due());
            output.list_for_flush(slot, connection);
        }
        assert!(output.is_flush_due());
    }
}
