//! Receiving with epoll: one read for each edge, and what is read is handed over in groups.
//!
//! The poll loop calls this with what epoll has announced. It decides how often a socket is read in a poll,
//! and never more than [`RECEIVE_BYTES_MAX`]. The core decides whether a connection is read from at all: see
//! [`Driver::pause_receive`](crate::driver::Driver::pause_receive). A paused socket is left alone, so its
//! bytes fill the kernel's buffer and then the peer's window.

use std::mem;

use mio::event;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::connections::{Connections, Flags, GATHERED_MAX};
use crate::driver::{ConnId, Event, RECEIVE_BYTES_MAX, SendState, Sink};

impl Connections {
    /// Does what epoll has announced of one connection.
    pub(super) fn on_event(&mut self, conn: ConnId, event: &event::Event, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.flags.ending |= event.is_read_closed();
        let is_queued = socket.flags.queued;
        if event.is_writable() {
            self.continue_send(conn);
        }
        if event.is_error() {
            self.take_error(conn);
        } else if (event.is_readable() || event.is_read_closed()) && !is_queued {
            // One that is queued is read in this poll anyway: more would be more than its share.
            self.gather(conn, sink);
        }
    }

    /// Reads once. What came is handed over together with what came on the next few connections.
    fn gather(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let Flags { closed, ended, paused, ending, .. } = socket.flags;
        if closed || ended || paused || ending {
            return self.receive_alone(conn, sink);
        }
        let start = self.gathered.last().map_or(0, |(_, range)| range.end);
        let free = &mut self.buffer[start..start + RECEIVE_BYTES_MAX];
        match recv(&socket.stream, free, RecvFlags::empty()) {
            Ok((_, bytes)) if bytes > 0 => {
                self.gathered.push((conn, start..start + bytes));
                if bytes == RECEIVE_BYTES_MAX {
                    self.queue_readable(conn);
                }
                let left = self.buffer.len() - start - bytes;
                if self.gathered.len() == GATHERED_MAX || left < RECEIVE_BYTES_MAX {
                    self.hand_over(sink);
                }
            }
            // The next read says the same.
            Ok(_) | Err(Errno::INTR) => self.receive_alone(conn, sink),
            Err(Errno::AGAIN) => {}
            Err(error) => self.fail(conn, &error.into()),
        }
    }

    /// Reads on one connection, once what was gathered is out of the buffer.
    fn receive_alone(&mut self, conn: ConnId, sink: &mut impl Sink) {
        self.hand_over(sink);
        self.receive(conn, sink);
    }

    /// Hands over what was gathered, then sends the replies.
    pub(super) fn hand_over(&mut self, sink: &mut impl Sink) {
        let mut gathered = mem::take(&mut self.gathered);
        for (conn, range) in &gathered {
            sink.event(Event::Received { conn: *conn, bytes: &mut self.buffer[range.clone()] });
        }
        for (conn, _) in gathered.drain(..) {
            self.reply(conn, sink);
        }
        self.gathered = gathered;
    }

    fn reply(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if let Some(reply) = sink.reply(conn) {
            let bytes = reply.len();
            if self.send(conn, reply) == SendState::Done {
                sink.event(Event::Sent { conn, bytes });
            }
        }
    }

    /// Reads once, or until the end where the kernel has announced it. Nothing may be gathered: this reads
    /// to the same place.
    fn receive(&mut self, conn: ConnId, sink: &mut impl Sink) {
        debug_assert!(self.gathered.is_empty(), "bytes would be overwritten");
        let mut budget = RECEIVE_BYTES_MAX;
        while budget > 0 {
            let Some(socket) = self.sockets.get_mut(conn) else { return };
            if socket.flags.closed || socket.flags.ended {
                return;
            }
            if socket.flags.paused {
                socket.flags.unread = true;
                return;
            }
            match recv(&socket.stream, &mut self.buffer[..budget], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    socket.flags.ended = true;
                    sink.event(Event::Ended { conn });
                    return;
                }
                Ok((_, bytes)) => {
                    let drained = bytes < budget && !socket.flags.ending;
                    sink.event(Event::Received { conn, bytes: &mut self.buffer[..bytes] });
                    self.reply(conn, sink);
                    if drained {
                        return;
                    }
                    budget -= bytes;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(conn, &error.into()),
            }
        }
        self.queue_readable(conn);
    }

    /// Goes on reading from the connections that had more than the last poll took: `readable`, as it was
    /// before this poll's events.
    pub(super) fn report_readable(&mut self, mut readable: Vec<ConnId>, sink: &mut impl Sink) {
        for conn in readable.drain(..) {
            if let Some(socket) = self.sockets.get_mut(conn) {
                socket.flags.queued = false;
                self.receive(conn, sink);
            }
        }
        // Those that were queued meanwhile are read in the next poll.
        readable.append(&mut self.readable);
        self.readable = readable;
    }

    fn queue_readable(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && !mem::replace(&mut socket.flags.queued, true)
        {
            self.readable.push(conn);
        }
    }

    pub(super) fn pause_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.paused = true;
        }
    }

    pub(super) fn resume_receive(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.flags.paused = false;
        if mem::take(&mut socket.flags.unread) {
            self.queue_readable(conn);
        }
    }
}
