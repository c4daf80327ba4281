//! Bytes out.
//!
//! A short send is asked for as one that must not wait, and taken for done: only its failure completes, in
//! the same system call that submits it. What it could not send, and what is sent before that is
//! certain, goes out as a send that waits for room. So there is never more than one send that may
//! reorder the stream.

use bytes::{Buf as _, Bytes};

use super::socket::{Flags, Sending};
use super::{Outcome, Uring};
use crate::driver::{ConnId, SendState};

/// Longer sends wait for room: chances are that the socket does not take them at once.
const SEND_NOW_BYTES_MAX: usize = 16 * 1024;

impl Uring {
    #[inline]
    pub(super) fn start_sending(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        let Some(socket) = self.sockets.get_mut(conn) else { return SendState::UnderWay };
        if socket.has(Flags::CLOSED) {
            return SendState::UnderWay;
        }
        if socket.has(Flags::SENDING) {
            let next = self.rare(conn).next.replace(bytes);
            debug_assert!(next.is_none(), "one send at a time");
            self.confirming = true;
            return SendState::UnderWay;
        }
        socket.flags.insert(Flags::SENDING);
        if bytes.len() > SEND_NOW_BYTES_MAX {
            let report = Some(bytes.len());
            self.send_waiting(conn, bytes, report);
            return SendState::UnderWay;
        }
        let (ring, file) = (socket.ring, socket.file);
        self.ask(ring, |ring| ring.send_now(file, conn, bytes));
        SendState::Done
    }

    /// A send that must not wait did not send all.
    pub(super) fn on_send_failed(&mut self, ring: usize, number: u64, result: i32) {
        let Some(sent) = self.rings[ring].failed_send(number) else { return };
        let (conn, mut rest) = (sent.conn, sent.bytes.clone());
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        match result {
            sent @ 0.. => rest.advance(sent.cast_unsigned() as usize),
            error if may_try_again(error) => {}
            error => return self.fail(conn, -error),
        }
        self.send_waiting(conn, rest, None);
    }

    /// A send that must not wait is certain not to have failed unnoticed.
    #[inline]
    pub(super) fn confirmed(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !socket.flags.intersects(Flags::RARE | Flags::SHUTDOWN | Flags::CLOSED) {
            socket.flags.remove(Flags::SENDING);
        } else if !socket.has(Flags::CLOSED) && self.rare(conn).sending.is_none() {
            self.send_next(conn);
        }
    }

    fn send_waiting(&mut self, conn: ConnId, bytes: Bytes, report: Option<usize>) {
        self.operation_began(conn);
        self.rare(conn).sending = Some(Sending { rest: bytes.clone(), report });
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, file) = (socket.ring, socket.file);
        self.ask(ring, |ring| ring.send(file, conn, bytes));
    }

    /// A send that waited for room has ended.
    pub(super) fn on_sent(&mut self, ring: usize, conn: ConnId, result: i32) {
        drop(self.rings[ring].take_send(conn));
        let sending = self.rare(conn).sending.take();
        let closed = self.sockets.get_mut(conn).is_none_or(|socket| socket.has(Flags::CLOSED));
        if let Some(Sending { mut rest, report }) = sending
            && !closed
        {
            match result {
                sent @ 0.. => rest.advance(sent.cast_unsigned() as usize),
                error if may_try_again(error) => {}
                error => self.fail(conn, -error),
            }
            if !rest.is_empty() {
                if result >= 0 || may_try_again(result) {
                    self.send_waiting(conn, rest, report);
                }
            } else {
                if let Some(bytes) = report {
                    self.outcomes.push(Outcome::Sent(conn, bytes));
                }
                self.send_next(conn);
            }
        }
        self.operation_ended(conn);
    }

    /// Goes on with what waits behind a send that is done.
    fn send_next(&mut self, conn: ConnId) {
        if let Some(next) = self.rare(conn).next.take() {
            let report = Some(next.len());
            return self.send_waiting(conn, next, report);
        }
        self.tidy(conn);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let shutdown = socket.has(Flags::SHUTDOWN);
        socket.flags.remove(Flags::SENDING | Flags::SHUTDOWN);
        if shutdown {
            let (ring, file) = (socket.ring, socket.file);
            self.operation_began(conn);
            self.ask(ring, |ring| ring.shutdown(file, conn));
        }
    }
}

fn may_try_again(result: i32) -> bool {
    matches!(-result, libc::EAGAIN | libc::EINTR)
}
