//! Receiving with io_uring.
//!
//! A receive is armed once and repeats (multishot), into the ring's buffers. The poll loop calls
//! [`Connections::on_received`] for each completion.
//!
//! The core decides whether a connection is read from: see
//! [`Driver::pause_receive`](crate::driver::Driver::pause_receive). This module carries that out. A receive
//! can't be held back, only cancelled, and it is cancelled only when bytes come: most paused connections get
//! none. What comes until the cancellation is done is kept as `unread`, and reported once the core wants it.
//! A poll sees [`EVENTS_MAX`](super::EVENTS_MAX) completions, and what its last look brings, of one buffer
//! each; the cancellation is done with the next poll. So all connections of a driver together have at most
//! some 3 MiB unread.

use super::connections::Connections;
use super::ring::Completion;
use super::socket::Flags;
use crate::driver::{ConnId, Event, RECEIVE_BYTES_MAX, SendState, Sink};

impl Connections {
    #[inline]
    pub(super) fn on_received(
        &mut self,
        ring: usize,
        conn: ConnId,
        completion: Completion,
        sink: &mut impl Sink,
    ) {
        let Completion { result, buffer, more, .. } = completion;
        if !more {
            self.disarmed(conn);
        }
        match (buffer, usize::try_from(result)) {
            (Some(buffer), Ok(bytes)) if bytes > 0 => self.take(ring, conn, buffer, bytes, sink),
            (_, Ok(_)) => self.on_end(conn, sink),
            (_, Err(_)) => match -result {
                // Armed again below: what was cancelled may be wanted again, and buffers are given back.
                libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN => {}
                errno => self.fail(conn, errno),
            },
        }
        if let Some(buffer) = buffer {
            self.rings[ring].buffers.recycle(buffer);
        }
        if !more {
            self.arm(conn);
        }
    }

    /// Hands bytes over, or keeps them where the connection is paused or has had its share of this poll.
    #[inline]
    fn take(&mut self, ring: usize, conn: ConnId, buffer: u16, bytes: usize, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        let keeps = socket.has(Flags::PAUSED)
            || socket.has(Flags::COLD)
                && self.cold.get(&conn.slot).is_some_and(|cold| !cold.unread.is_empty());
        if !keeps && socket.within_share(self.poll, bytes) {
            let bytes = self.rings[ring].buffers.bytes_mut(buffer, bytes);
            sink.event(Event::Received { conn, bytes });
            return self.reply(conn, sink);
        }
        socket.flags.insert(Flags::COLD);
        let cold = self.cold.entry(conn.slot).or_default();
        cold.unread.extend_from_slice(self.rings[ring].buffers.bytes(buffer, bytes));
        self.queue_ready(conn);
        self.arm(conn);
    }

    fn reply(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if let Some(reply) = sink.reply(conn) {
            let bytes = reply.len();
            if self.start_sending(conn, reply) == SendState::Done {
                sink.event(Event::Sent { conn, bytes });
            }
        }
    }

    /// The peer sends no more.
    fn on_end(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        socket.flags.insert(Flags::ENDED);
        let unread = self.cold.get(&conn.slot).is_some_and(|cold| !cold.unread.is_empty());
        if unread || socket.has(Flags::PAUSED) {
            self.cold(conn).end = true;
            self.queue_ready(conn);
        } else {
            sink.event(Event::Ended { conn });
        }
    }

    pub(super) fn pause_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::PAUSED);
        }
    }

    pub(super) fn resume_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.remove(Flags::PAUSED);
            self.queue_ready(conn);
        }
    }

    /// Has the next poll report what was kept of a connection, unless it is paused.
    fn queue_ready(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::COLD)
            && !socket.flags.intersects(Flags::PAUSED | Flags::QUEUED | Flags::CLOSED)
        {
            socket.flags.insert(Flags::QUEUED);
            self.ready.push(conn);
        }
    }

    /// Reports what was kept. `ready` is what was queued before this poll's completions.
    pub(super) fn report_ready(&mut self, mut ready: Vec<ConnId>, sink: &mut impl Sink) {
        for conn in ready.drain(..) {
            let Some(socket) = self.sockets.get_mut(conn) else { continue };
            socket.flags.remove(Flags::QUEUED);
            self.report_kept(conn, sink);
        }
        // Those that were queued meanwhile are reported in the next poll.
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    fn report_kept(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(cold) = self.cold.get_mut(&conn.slot) else { return };
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.flags.intersects(Flags::PAUSED | Flags::CLOSED) {
            return;
        }
        if !cold.unread.is_empty() {
            let count = cold.unread.len().min(RECEIVE_BYTES_MAX);
            if !socket.within_share(self.poll, count) {
                return self.queue_ready(conn);
            }
            let rest = cold.unread.split_off(count);
            let mut bytes = std::mem::replace(&mut cold.unread, rest);
            sink.event(Event::Received { conn, bytes: &mut bytes });
            self.reply(conn, sink);
        }
        let Some(cold) = self.cold.get_mut(&conn.slot) else { return };
        if !cold.unread.is_empty() {
            return self.queue_ready(conn);
        }
        if std::mem::take(&mut cold.end) {
            sink.event(Event::Ended { conn });
        }
        self.drop_cold_if_empty(conn);
        self.arm(conn);
    }
}
