//! Bytes out.
//!
//! A short send is asked for as one that must not wait, and taken for done: only its failure completes, in
//! the same system call that submits it. What it could not send, and what is sent before that is
//! certain, goes out in steps, each when there is room. So there is never more than one send that may
//! reorder the stream.
//!
//! No send is left to wait in the kernel. It would wait for the peer's end too: where that has come already,
//! the kernel tries again at once, gives up soon, and has a thread of its own block, which nothing cancels
//! for certain. So what waits is a watch, which is told once of each change.

use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};

use super::socket::{Flags, Sending};
use super::token::Token;
use super::{Outcome, Uring};
use crate::driver::{ConnId, SendState};

/// Longer sends say how far they came: chances are that the socket does not take them at once.
const SEND_NOW_BYTES_MAX: usize = 16 * 1024;

/// How long the last bytes of a closed connection may take: as long as a peer needs that reads at all.
pub(super) const FINISH_WITHIN: Duration = Duration::from_secs(5);

impl Uring {
    #[inline]
    pub(super) fn start_sending(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        let Some(socket) = self.sockets.get_mut(conn) else { return SendState::UnderWay };
        if socket.has(Flags::CLOSED) {
            self.rare(conn).cut += bytes.len();
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
        let Some((conn, mut rest)) = self.rings[ring].take_failed_send(number) else { return };
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let goes_on = socket.may_send();
        rest.advance(bytes_taken(result));
        if !goes_on {
            self.rare(conn).cut += rest.len();
            self.became_certain(conn);
        } else if result < 0 && !may_try_again(result) {
            self.fail_to_send(conn, rest.len(), -result);
        } else {
            self.send_waiting(conn, rest, None);
        }
    }

    /// The end is not told before it is certain what came of a send that must not wait.
    pub(super) fn wait_until_certain(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::UNCERTAIN);
            self.operation_began(conn);
            self.confirming = true;
        }
    }

    fn became_certain(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::UNCERTAIN)
        {
            socket.flags.remove(Flags::UNCERTAIN);
            self.operation_ended(conn);
        }
    }

    fn fail_to_send(&mut self, conn: ConnId, unsent_bytes: usize, errno: i32) {
        self.rare(conn).cut += unsent_bytes;
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.remove(Flags::SENDING);
        }
        self.finish(conn);
        self.fail(conn, errno);
    }

    /// A send that must not wait is certain not to have failed unnoticed.
    #[inline]
    pub(super) fn confirmed(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !socket.flags.intersects(Flags::RARE | Flags::SHUTDOWN | Flags::CLOSED) {
            socket.flags.remove(Flags::SENDING);
        } else if socket.may_send() && self.rare(conn).sending.is_none() {
            self.send_next(conn);
        } else {
            self.became_certain(conn);
        }
    }

    /// What was said to be sent goes out though the connection is closed, as the kernel does it for who
    /// closes a socket. `false`: there is none.
    pub(super) fn finish_later(&mut self, conn: ConnId) -> bool {
        if self.rare(conn).sending.as_ref().is_some_and(|sending| sending.report.is_some()) {
            return false;
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return false };
        socket.flags.insert(Flags::FINISHING);
        self.operation_began(conn);
        self.confirming = true;
        self.finishing.push_back((Instant::now() + self.finish_within, conn));
        true
    }

    /// The last bytes are out, or won't be.
    fn finish(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::FINISHING) {
            socket.flags.remove(Flags::FINISHING);
            let ring = socket.ring;
            self.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
            self.release(conn);
            self.operation_ended(conn);
        }
    }

    /// Who doesn't read is not waited for.
    pub(super) fn give_up_finishing(&mut self) {
        while let Some(&(until, conn)) = self.finishing.front() {
            let socket = self.sockets.get_mut(conn);
            let finishing = socket.is_some_and(|socket| socket.has(Flags::FINISHING));
            if finishing && until > Instant::now() {
                return;
            }
            self.finishing.pop_front();
            self.finish(conn);
        }
    }

    /// Sends what there is room for, and the rest once there is more.
    fn send_waiting(&mut self, conn: ConnId, bytes: Bytes, report: Option<usize>) {
        self.operation_began(conn);
        self.rare(conn).sending = Some(Sending { rest: bytes.clone(), report });
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, file) = (socket.ring, socket.file);
        self.ask(ring, |ring| ring.send(file, conn, bytes));
    }

    /// A send has gone as far as there was room.
    pub(super) fn on_sent(&mut self, ring: usize, conn: ConnId, result: i32) {
        drop(self.rings[ring].take_send(conn));
        let sending = self.rare(conn).sending.take();
        let goes_on = self.sockets.get_mut(conn).is_some_and(|socket| socket.may_send());
        if let Some(mut sending) = sending {
            sending.rest.advance(bytes_taken(result));
            if !goes_on {
                self.rare(conn).cut += sending.rest.len();
            } else if result < 0 && !may_try_again(result) {
                self.fail_to_send(conn, sending.rest.len(), -result);
            } else {
                self.sent(conn, sending);
            }
        }
        self.operation_ended(conn);
    }

    fn sent(&mut self, conn: ConnId, sending: Sending) {
        if !sending.rest.is_empty() {
            self.rare(conn).sending = Some(sending);
            self.operation_began(conn);
            let Some(socket) = self.sockets.get_mut(conn) else { return };
            let (ring, file) = (socket.ring, socket.file);
            return self.ask(ring, |ring| ring.watch_writable(file, conn));
        }
        if let Some(bytes) = sending.report {
            self.outcomes.push(Outcome::Sent(conn, bytes));
        }
        self.send_next(conn);
    }

    /// There is room, or the connection is dead, or the watch for either has ended.
    pub(super) fn on_writable(&mut self, conn: ConnId, result: i32, more: bool) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, goes_on) = (socket.ring, socket.may_send());
        if more {
            let telling = libc::POLLOUT | libc::POLLERR | libc::POLLHUP;
            if result & i32::from(telling) != 0 {
                self.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
            }
            return;
        }
        let sending = self.rare(conn).sending.take();
        if let Some(Sending { rest, report }) = sending {
            if goes_on {
                // A failure of the watch says less than that of a send would.
                self.send_waiting(conn, rest, report);
            } else {
                self.rare(conn).cut += rest.len();
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
        self.finish(conn);
        self.tidy(conn);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let shutdown = socket.has(Flags::SHUTDOWN);
        socket.flags.remove(Flags::SENDING | Flags::SHUTDOWN);
        if shutdown {
            self.shut_down(conn);
        }
    }

    /// Shuts down the sending side now. No send may be under way.
    pub(super) fn shut_down(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !socket.has(Flags::CLOSED) {
            socket.flags.insert(Flags::SHUTTING_DOWN);
            let (ring, file) = (socket.ring, socket.file);
            self.operation_began(conn);
            self.ask(ring, |ring| ring.shutdown(file, conn));
        }
    }
}

/// The bytes that a send's result says the kernel took.
const fn bytes_taken(result: i32) -> usize {
    if result < 0 { 0 } else { result.cast_unsigned() as usize }
}

fn may_try_again(result: i32) -> bool {
    matches!(-result, libc::EAGAIN | libc::EINTR)
}
