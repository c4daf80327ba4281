//! Bytes out: what is written for a connection, and its one send of a turn.

use bytes::{Bytes, BytesMut};

use super::Shard;
use super::closing::Cause;
use crate::connection::Phase;
use crate::driver::{ConnId, Driver, SendState};
use crate::transport::Transport as _;

impl Shard {
    /// Puts a connection on the list of those to flush at the end of the turn.
    #[inline]
    pub(super) fn touch(&mut self, slot: u32) {
        let flags = &mut self.connections[slot as usize].flags;
        if !flags.touched {
            flags.touched = true;
            self.touched.push(slot);
        }
    }

    /// Bytes of a connection that the kernel doesn't have yet.
    #[inline]
    pub(super) fn unsent_bytes(&self, slot: u32) -> usize {
        let connection = &self.connections[slot as usize];
        connection.in_flight_bytes as usize + self.outboxes.len(connection.outbox)
    }

    /// Writes a frame for a connection. `false`: the connection is going, or goes now because it
    /// has too many unsent bytes.
    #[inline]
    pub(super) fn write(&mut self, slot: u32, write: impl FnOnce(&mut BytesMut)) -> bool {
        if self.connections[slot as usize].is_going() {
            return false;
        }
        // Only what waits behind a send counts, this frame apart: a burst within a turn, a push of a
        // room's and one long frame are no reason to part with a client that reads.
        let connection = &self.connections[slot as usize];
        if connection.in_flight_bytes > 0
            && self.outboxes.len(connection.outbox) > self.shared.config.limits.outbox_bytes_max
        {
            self.abort(slot, Cause::OutboxFull);
            return false;
        }
        self.write_control(slot, write);
        true
    }

    /// Writes a frame that no bound holds back: heartbeats' and authentications' answers, goodbyes.
    /// What a client can make of them is bounded: it is not read from while it doesn't read.
    #[inline]
    pub(super) fn write_control(&mut self, slot: u32, write: impl FnOnce(&mut BytesMut)) {
        let connection = &mut self.connections[slot as usize];
        self.outboxes.write(&mut connection.outbox, write);
        self.touch(slot);
    }

    /// A send that was under way is done.
    #[inline]
    pub(super) fn on_sent(&mut self, conn: ConnId, bytes: usize) {
        let Some(connection) = self.connection(conn) else { return };
        let in_flight_bytes = std::mem::take(&mut connection.in_flight_bytes);
        self.in_flight_bytes -= in_flight_bytes as usize;
        self.sent(conn.slot, bytes);
    }

    /// The kernel has all of a send.
    #[inline]
    fn sent(&mut self, slot: u32, bytes: usize) {
        self.stats.sends += 1;
        self.stats.sent_bytes += bytes as u64;
        let now_ms = self.clock_ms();
        let connection = &mut self.connections[slot as usize];
        let flags = connection.flags;
        if flags.held {
            // It takes what it is sent: a sign of life, while none is read.
            connection.last_seen_ms = now_ms;
            self.unsent_less.push(slot);
        }
        if connection.outbox.is_some()
            || flags.owed
            || flags.ended
            || connection.phase == Phase::Closing
        {
            self.touch(slot);
        }
    }

    /// Reads on from those that were held, and have been sent what they were held for.
    pub(super) fn read_on_from_sent(&mut self) {
        let mut slots = std::mem::take(&mut self.unsent_less);
        for slot in slots.drain(..) {
            self.read_on(slot);
        }
        slots.append(&mut self.unsent_less);
        self.unsent_less = slots;
    }

    /// Takes what a connection that was just received from has to say, if that is all there is to do
    /// for it: the rest waits for the end of the turn.
    #[inline]
    pub(super) fn take_reply(&mut self, slot: u32) -> Option<Bytes> {
        let connection = &mut self.connections[slot as usize];
        let flags = &mut connection.flags;
        let special = !flags.touched || flags.held || flags.paused || flags.owed || flags.ended;
        if special || connection.is_going() || connection.in_flight_bytes > 0 {
            return None;
        }
        connection.flags.touched = false;
        let bytes = self.outboxes.drain(&mut connection.outbox)?;
        let bytes = connection.transport.seal(bytes);
        self.note_under_way(slot, bytes.len());
        Some(bytes)
    }

    #[inline]
    fn note_under_way(&mut self, slot: u32, bytes: usize) {
        self.burst.add(bytes);
        // What answers that come at once add up to may be more than 4 GiB, if it is configured so.
        let in_flight_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.connections[slot as usize].in_flight_bytes = in_flight_bytes;
        self.in_flight_bytes += in_flight_bytes as usize;
    }

    /// Flushes every connection that something happened to.
    pub(super) fn flush(&mut self, driver: &mut impl Driver) {
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            self.flush_connection(slot, driver);
        }
        // Parting with one may have touched others.
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    #[inline]
    fn flush_connection(&mut self, slot: u32, driver: &mut impl Driver) {
        let conn = self.conn_id(slot);
        let connection = self.at(slot);
        if !std::mem::take(&mut connection.flags.touched) {
            // It has replied already.
            return;
        }
        match connection.phase {
            Phase::Vacant | Phase::Lingering => return,
            Phase::Aborted => return driver.close(conn),
            Phase::Anonymous | Phase::Registering | Phase::Open | Phase::Closing => {}
        }
        if connection.flags.held != connection.flags.paused {
            connection.flags.paused = connection.flags.held;
            if connection.flags.paused {
                // A login that waits for its user's home says nothing of the client.
                let counts = connection.phase != Phase::Registering;
                self.stats.receive_pauses += u64::from(counts);
                driver.pause_receive(conn);
            } else {
                driver.resume_receive(conn);
            }
        }
        while self.connections[slot as usize].in_flight_bytes == 0 {
            let connection = &mut self.connections[slot as usize];
            let bytes = if connection.flags.owed {
                self.take_owed(slot)
            } else {
                self.outboxes.drain(&mut connection.outbox)
            };
            if self.is_done(slot) {
                // It has the answers to all that it asked: what its rooms say from now on is not for it.
                self.leave_all(slot);
            }
            let Some(bytes) = bytes else { return self.flush_end(slot, driver) };
            let done = self.send(slot, bytes, driver) == SendState::Done;
            if !(done && self.connections[slot as usize].flags.owed) {
                return;
            }
        }
    }

    /// Nothing is left to send: whoever only waited for that goes on.
    fn flush_end(&mut self, slot: u32, driver: &mut impl Driver) {
        let conn = self.conn_id(slot);
        let connection = self.at(slot);
        if connection.phase == Phase::Aborted {
            driver.close(conn);
        } else if connection.phase == Phase::Closing {
            if connection.flags.ended {
                connection.phase = Phase::Aborted;
                driver.close(conn);
            } else {
                connection.phase = Phase::Lingering;
                driver.shutdown(conn);
                self.set_linger(slot);
            }
        } else if self.is_done(slot) {
            self.part(slot, Cause::Peer);
            self.timers.clear(slot);
            self.at(slot).phase = Phase::Aborted;
            driver.close(conn);
        }
    }

    /// Gives bytes to the driver. No other send may be under way.
    #[inline]
    pub(super) fn send(&mut self, slot: u32, bytes: Bytes, driver: &mut impl Driver) -> SendState {
        let conn = self.conn_id(slot);
        let bytes = self.connections[slot as usize].transport.seal(bytes);
        let count = bytes.len();
        let state = driver.send(conn, bytes);
        match state {
            SendState::Done => self.sent(slot, count),
            SendState::UnderWay => self.note_under_way(slot, count),
        }
        state
    }
}
