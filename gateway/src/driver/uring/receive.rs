//! Bytes in.
//!
//! A receive is armed once and goes on by itself. It can't be held back, only cancelled; what still comes
//! is kept until the shard wants it. A poll sees [`EVENTS_MAX`](super::EVENTS_MAX) completions, and what its
//! last look brings, of a buffer each; the cancellation is done with the next. So of all connections together
//! no more than some 3 MiB come after it was asked for.

use super::Uring;
use super::ring::Completion;
use super::socket::Flags;
use crate::driver::{ConnId, Event, RECEIVE_BYTES_MAX, SendState, Sink};

impl Uring {
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
                // Armed again below: what was cancelled may be wanted again, and buffers come back.
                libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN => {}
                errno => self.fail(conn, errno),
            },
        }
        if let Some(buffer) = buffer {
            self.rings[ring].buffers.give_back(buffer);
        }
        if !more {
            self.settle(conn);
        }
    }

    /// Hands bytes over, or keeps them.
    #[inline]
    fn take(&mut self, ring: usize, conn: ConnId, buffer: u16, bytes: usize, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        let keeps = socket.has(Flags::PAUSED)
            || socket.has(Flags::RARE)
                && self.rare.get(&conn.slot).is_some_and(|rare| !rare.unread.is_empty());
        if !keeps && socket.takes(self.poll, bytes) {
            let bytes = self.rings[ring].buffers.bytes(buffer, bytes);
            sink.event(Event::Received { conn, bytes });
            return self.reply(conn, sink);
        }
        socket.flags.insert(Flags::RARE);
        let rare = self.rare.entry(conn.slot).or_default();
        rare.unread.extend_from_slice(self.rings[ring].buffers.bytes(buffer, bytes));
        self.queue_ready(conn);
        self.settle(conn);
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
        let unread = self.rare.get(&conn.slot).is_some_and(|rare| !rare.unread.is_empty());
        if unread || socket.has(Flags::PAUSED) {
            self.rare(conn).end = true;
            self.queue_ready(conn);
        } else {
            sink.event(Event::Ended { conn });
        }
    }

    /// Has the next poll report what the connection has, if the shard wants it.
    pub(super) fn queue_ready(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::RARE)
            && !socket.flags.intersects(Flags::PAUSED | Flags::QUEUED | Flags::CLOSED)
        {
            socket.flags.insert(Flags::QUEUED);
            self.ready.push(conn);
        }
    }

    /// Reports what was kept.
    pub(super) fn report_ready(&mut self, mut ready: Vec<ConnId>, sink: &mut impl Sink) {
        for conn in ready.drain(..) {
            let Some(socket) = self.sockets.get_mut(conn) else { continue };
            socket.flags.remove(Flags::QUEUED);
            self.report_kept(conn, sink);
        }
        // Who was queued meanwhile has its turn in the next poll.
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    fn report_kept(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(rare) = self.rare.get_mut(&conn.slot) else { return };
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.flags.intersects(Flags::PAUSED | Flags::CLOSED) {
            return;
        }
        if !rare.unread.is_empty() {
            let count = rare.unread.len().min(RECEIVE_BYTES_MAX);
            if !socket.takes(self.poll, count) {
                return self.queue_ready(conn);
            }
            let rest = rare.unread.split_off(count);
            let bytes = std::mem::replace(&mut rare.unread, rest);
            sink.event(Event::Received { conn, bytes: &bytes });
            self.reply(conn, sink);
        }
        let Some(rare) = self.rare.get_mut(&conn.slot) else { return };
        if !rare.unread.is_empty() {
            return self.queue_ready(conn);
        }
        if std::mem::take(&mut rare.end) {
            sink.event(Event::Ended { conn });
        }
        self.tidy(conn);
        self.settle(conn);
    }
}
