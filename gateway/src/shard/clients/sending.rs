//! How connections are flushed: what waits goes to the driver, and reading is paused or resumed.
//!
//! At most one send is under way on a connection. What cannot be sent waits for its end.

use bytes::Bytes;

use super::Clients;
use super::cause::Cause;
use super::connection::{Flags, Phase};
use super::lifecycle::AfterFlush;
use crate::driver::{ConnId, Driver, SendState};
use crate::shard::clock::Clock;

impl Clients {
    /// Bytes of a connection that the kernel does not have yet.
    #[inline]
    #[must_use]
    pub fn unsent_bytes(&self, slot: u32) -> usize {
        self.output.unsent_bytes(self.at(slot))
    }

    /// Whether a connection has too many unsent bytes to get the last pushes of a room that it leaves.
    #[must_use]
    pub fn is_backlogged(&self, slot: u32) -> bool {
        self.unsent_bytes(slot) > self.settings.outbox_bytes_max
    }

    /// Bytes in a connection's outbox.
    #[inline]
    #[must_use]
    pub fn outbox_bytes(&self, slot: u32) -> usize {
        self.output.outbox_bytes(self.at(slot))
    }

    /// Appends a chunk of pushes to the outbox of a connection that is being flushed.
    #[inline]
    pub fn append_chunk(&mut self, slot: u32, chunk: Bytes) {
        self.output.append_chunk(self.table.at_mut(slot), chunk);
    }

    /// A room has pushes for a connection. It gets them when it is flushed.
    pub fn schedule_pushes(&mut self, slot: u32) {
        self.mark_pushes_pending(slot);
        self.list_for_flush(slot);
    }

    /// The session's answer waits for its rooms from now on: no push is sent to it, and it is not read from.
    pub fn start_resuming(&mut self, slot: u32) {
        self.table.at_mut(slot).flags |= Flags::RESUMING;
    }

    /// The session's answer is written: pushes may follow.
    pub fn end_resuming(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        connection.flags -= Flags::RESUMING;
        self.intake.resume_later(slot, connection);
        self.list_for_flush(slot);
    }

    /// Whether the session's answer waits for its rooms.
    #[inline]
    #[must_use]
    pub fn is_resuming(&self, slot: u32) -> bool {
        self.at(slot).has(Flags::RESUMING)
    }

    /// A room has pushes for a connection that can't be sent now. It gets them when its send is done, or when
    /// it is flushed.
    #[inline]
    pub fn mark_pushes_pending(&mut self, slot: u32) {
        self.table.at_mut(slot).flags |= Flags::PENDING_PUSHES;
    }

    /// Whether a push may be sent to a connection at once: no send is under way, and nothing waits to be flushed.
    #[inline]
    #[must_use]
    pub fn is_writable(&self, slot: u32) -> bool {
        let connection = self.at(slot);
        connection.in_flight_bytes == 0
            && !connection.has(Flags::LISTED_FOR_FLUSH | Flags::RESUMING)
    }

    /// Whether connections should be flushed before the end of the turn.
    #[inline]
    #[must_use]
    pub const fn is_flush_due(&self) -> bool {
        self.output.is_flush_due()
    }

    /// Whether an outbox without a send under way is so long that it should be flushed before more is written.
    #[inline]
    #[must_use]
    pub const fn has_long_outbox(&self) -> bool {
        self.output.has_long_outbox()
    }

    /// Gives bytes to the driver: no other send may be under way.
    #[inline]
    pub fn send(
        &mut self,
        slot: u32,
        bytes: Bytes,
        driver: &mut impl Driver,
        clock: &Clock,
    ) -> SendState {
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        let count = bytes.len();
        let state = driver.send(conn, bytes);
        match state {
            SendState::Done => self.sent(slot, count, clock),
            SendState::UnderWay => self.output.start_send(connection, count),
        }
        state
    }

    /// A send that was under way is done.
    #[inline]
    pub fn send_finished(&mut self, conn: ConnId, bytes: usize, clock: &Clock) {
        if let Some(connection) = self.table.get_mut(conn) {
            self.output.finish_send(connection);
            self.sent(conn.slot, bytes, clock);
        }
    }

    /// The kernel has all of a send.
    #[inline]
    fn sent(&mut self, slot: u32, bytes: usize, clock: &Clock) {
        self.counters.sends += 1;
        self.counters.sent_bytes += bytes as u64;
        self.append_latest(slot, self.settings.outbox_bytes_max / 2);
        let connection = self.table.at_mut(slot);
        if connection.has(Flags::READ_PAUSED) {
            return self.sent_while_read_paused(slot, clock);
        }
        self.list_if_more(slot);
    }

    /// The client takes what it is sent: a sign of life while reading is paused. Apart, so that [`Self::sent`]
    /// is small enough to be inlined where pushes are sent.
    #[cold]
    fn sent_while_read_paused(&mut self, slot: u32, clock: &Clock) {
        let connection = self.table.at_mut(slot);
        connection.last_seen_ms = clock.wrapping_ms();
        self.intake.resume_later(slot, connection);
        self.list_if_more(slot);
    }

    /// Lists a connection to be flushed if it has more to send, or ends with its last send.
    #[inline]
    fn list_if_more(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        if connection.outbox.is_some()
            || connection.has(Flags::PENDING_PUSHES | Flags::PEER_ENDED)
            || connection.phase == Phase::Closing
        {
            self.output.list_for_flush(slot, connection);
        }
    }

    /// What to send at once on a connection that was just received from, if that is all there is to do
    /// for it. The rest waits for the end of the turn.
    #[inline]
    pub fn take_reply(&mut self, slot: u32) -> Option<Bytes> {
        self.output.take_reply(self.table.at_mut(slot))
    }

    /// The slots of the connections to flush. [`Self::put_flush_list`] takes the list back.
    #[inline]
    pub fn take_flush_list(&mut self) -> Vec<u32> {
        self.output.take_flush_list()
    }

    /// Takes the emptied list back. Closing one connection may have listed others meanwhile.
    #[inline]
    pub fn put_flush_list(&mut self, emptied: Vec<u32>) {
        self.output.put_flush_list(emptied);
    }

    /// Starts to flush a connection: closes it if it is to be closed at once, and pauses or resumes reading.
    /// Returns whether what waits is to be sent.
    #[inline]
    pub fn start_flush(&mut self, slot: u32, driver: &mut impl Driver) -> bool {
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        if !connection.has(Flags::LISTED_FOR_FLUSH) {
            // It has replied already.
            return false;
        }
        connection.flags -= Flags::LISTED_FOR_FLUSH;
        match connection.phase {
            Phase::Vacant | Phase::Lingering => return false,
            Phase::Aborted => {
                driver.close(conn);
                return false;
            }
            Phase::Opening
            | Phase::Anonymous
            | Phase::Registering
            | Phase::Open
            | Phase::Closing => {}
        }
        let is_read_paused = connection.has(Flags::READ_PAUSED);
        if is_read_paused != connection.has(Flags::RECEIVE_PAUSED) {
            connection.flags.set(Flags::RECEIVE_PAUSED, is_read_paused);
            if is_read_paused {
                // A login that waits for its user's home says nothing about the client.
                let counts = connection.phase != Phase::Registering;
                self.counters.receive_pauses += u64::from(counts);
                driver.pause_receive(conn);
            } else {
                driver.resume_receive(conn);
            }
        }
        true
    }

    /// Whether a connection has pushes in a room's log. They count as taken from now on.
    #[inline]
    pub fn take_pending_pushes(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        if !connection.has(Flags::PENDING_PUSHES) || connection.has(Flags::RESUMING) {
            return false;
        }
        connection.flags -= Flags::PENDING_PUSHES;
        true
    }

    /// The next piece of what waits to be sent.
    #[inline]
    pub fn next_piece(&mut self, slot: u32) -> Option<Bytes> {
        self.output.next_piece(self.table.at_mut(slot))
    }

    /// Whether a connection has more to send.
    #[inline]
    #[must_use]
    pub fn has_more(&self, slot: u32) -> bool {
        let connection = self.at(slot);
        connection.outbox.is_some() || connection.has(Flags::PENDING_PUSHES)
    }

    /// Nothing is left to send. A connection that only waited for that is shut down or closed.
    pub fn finish_flush(&mut self, slot: u32, driver: &mut impl Driver, clock: &Clock) {
        let conn = self.conn_id(slot);
        match self.lifecycle.after_flush(slot, self.table.at_mut(slot), clock.now_ms()) {
            AfterFlush::Keep => {}
            AfterFlush::Shutdown => driver.shutdown(conn),
            AfterFlush::Close => driver.close(conn),
            AfterFlush::Finish => {
                self.record_close(slot, Cause::Peer);
                self.lifecycle.abort(slot, self.table.at_mut(slot));
                driver.close(conn);
            }
        }
    }
}
