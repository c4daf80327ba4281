//! Sending with io_uring.
//!
//! The core and the replies call [`Connections::start_sending`]. A send of up to [`SEND_NOW_BYTES_MAX`] is
//! *sent now*: the kernel sends what the socket takes without a wait, in the system call that submits it, and
//! the send is reported as done. Only a failure completes, a short send among them. So the driver doesn't
//! know that such a send has succeeded before it has seen all completions up to then: until that, the send is
//! *unconfirmed*.
//!
//! Everything else is sent *in steps*, each when the socket is writable: longer sends, what a failed send has
//! left, and a send that follows an unconfirmed one. So at most one send of a connection can fail unseen, and
//! none overtakes it.
//!
//! No send waits in the kernel. It would wait for the peer's end, too. If that has arrived already,
//! the kernel tries again at once, gives up soon, and blocks a kernel thread, which no cancellation finds for
//! certain. So a watch for writability waits instead, which completes once for each change.

use bytes::{Buf as _, Bytes};

use super::connections::{Connections, Outcome};
use super::socket::{Flags, Sending};
use super::token::Token;
use crate::driver::{ConnId, SendState};

/// Longer sends go out in steps from the start: a socket often does not take them at once.
const SEND_NOW_BYTES_MAX: usize = 16 * 1024;

impl Connections {
    #[inline]
    pub(super) fn start_sending(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        let Some(socket) = self.sockets.get_mut(conn) else { return SendState::UnderWay };
        if socket.has(Flags::CLOSED) {
            self.cold(conn).unsent_bytes += bytes.len();
            return SendState::UnderWay;
        }
        if socket.has(Flags::SENDING) {
            let next = self.cold(conn).next.replace(bytes);
            debug_assert!(next.is_none(), "one send at a time");
            self.confirming = true;
            return SendState::UnderWay;
        }
        socket.flags.insert(Flags::SENDING);
        if bytes.len() > SEND_NOW_BYTES_MAX {
            let report = Some(bytes.len());
            self.send_in_steps(conn, bytes, report);
            return SendState::UnderWay;
        }
        let (ring, file) = (socket.ring, socket.file);
        self.rings.ask(ring, |ring| ring.send_now(file, conn, bytes));
        SendState::Done
    }

    /// A send that was reported as done has failed, or came short.
    pub(super) fn on_send_failed(&mut self, ring: usize, number: u64, result: i32) {
        let Some((conn, mut rest)) = self.rings[ring].take_failed_send(number) else { return };
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let goes_on = socket.may_send();
        rest.advance(bytes_taken(result));
        if !goes_on {
            self.cold(conn).unsent_bytes += rest.len();
            self.send_result_known(conn);
        } else if result < 0 && !may_try_again(result) {
            self.fail_to_send(conn, rest.len(), -result);
        } else {
            self.send_in_steps(conn, rest, None);
        }
    }

    fn fail_to_send(&mut self, conn: ConnId, unsent_bytes: usize, errno: i32) {
        self.cold(conn).unsent_bytes += unsent_bytes;
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.remove(Flags::SENDING);
        }
        self.end_linger(conn);
        self.fail(conn, errno);
    }

    /// Forgets the sends up to number `submitted`: the completions of their failures have been seen.
    pub(super) fn confirm_sends(&mut self, ring: usize, submitted: u64) {
        while let Some(sent) = self.rings[ring].confirm_send(submitted) {
            if let Some(conn) = sent.conn {
                self.on_send_confirmed(conn);
            }
        }
    }

    /// A send that was reported as done has not failed.
    #[inline]
    fn on_send_confirmed(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !socket.flags.intersects(Flags::COLD | Flags::SHUTDOWN | Flags::CLOSED) {
            socket.flags.remove(Flags::SENDING);
        } else if socket.may_send() && self.cold(conn).sending.is_none() {
            self.send_next(conn);
        } else {
            self.send_result_known(conn);
        }
    }

    /// Sends what the socket takes, and the rest whenever it is writable.
    fn send_in_steps(&mut self, conn: ConnId, bytes: Bytes, report: Option<usize>) {
        self.operation_began(conn);
        self.cold(conn).sending = Some(Sending { rest: bytes.clone(), report });
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, file) = (socket.ring, socket.file);
        self.rings.ask(ring, |ring| ring.send(file, conn, bytes));
    }

    /// A step has sent what the socket took.
    pub(super) fn on_sent(&mut self, ring: usize, conn: ConnId, result: i32) {
        drop(self.rings[ring].take_send(conn));
        let sending = self.cold(conn).sending.take();
        let goes_on = self.sockets.get_mut(conn).is_some_and(|socket| socket.may_send());
        if let Some(mut sending) = sending {
            sending.rest.advance(bytes_taken(result));
            if !goes_on {
                self.cold(conn).unsent_bytes += sending.rest.len();
            } else if result < 0 && !may_try_again(result) {
                self.fail_to_send(conn, sending.rest.len(), -result);
            } else {
                self.on_step_sent(conn, sending);
            }
        }
        self.operation_ended(conn);
    }

    fn on_step_sent(&mut self, conn: ConnId, sending: Sending) {
        if !sending.rest.is_empty() {
            self.cold(conn).sending = Some(sending);
            self.operation_began(conn);
            let Some(socket) = self.sockets.get_mut(conn) else { return };
            let (ring, file) = (socket.ring, socket.file);
            return self.rings.ask(ring, |ring| ring.watch_writable(file, conn));
        }
        if let Some(bytes) = sending.report {
            self.outcomes.push(Outcome::Sent(conn, bytes));
        }
        self.send_next(conn);
    }

    /// The socket is writable, or the connection is dead, or the watch for either has ended.
    pub(super) fn on_writable(&mut self, conn: ConnId, result: i32, more: bool) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, goes_on) = (socket.ring, socket.may_send());
        if more {
            let awaited = libc::POLLOUT | libc::POLLERR | libc::POLLHUP;
            if result & i32::from(awaited) != 0 {
                self.rings.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
            }
            return;
        }
        let sending = self.cold(conn).sending.take();
        if let Some(Sending { rest, report }) = sending {
            if goes_on {
                // If the watch has failed, the next send says why.
                self.send_in_steps(conn, rest, report);
            } else {
                self.cold(conn).unsent_bytes += rest.len();
            }
        }
        self.operation_ended(conn);
    }

    /// Goes on with what waits for the end of a send.
    fn send_next(&mut self, conn: ConnId) {
        if let Some(next) = self.cold(conn).next.take() {
            let report = Some(next.len());
            return self.send_in_steps(conn, next, report);
        }
        self.end_linger(conn);
        self.drop_cold_if_empty(conn);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let shutdown = socket.has(Flags::SHUTDOWN);
        socket.flags.remove(Flags::SENDING | Flags::SHUTDOWN);
        if shutdown {
            self.shut_down(conn);
        }
    }

    pub(super) fn shutdown(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::SENDING) {
            socket.flags.insert(Flags::SHUTDOWN);
            self.confirming = true;
        } else {
            self.shut_down(conn);
        }
    }

    /// Shuts down the sending side now. No send may be under way.
    fn shut_down(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !socket.has(Flags::CLOSED) {
            socket.flags.insert(Flags::SHUTTING_DOWN);
            let (ring, file) = (socket.ring, socket.file);
            self.operation_began(conn);
            self.rings.ask(ring, |ring| ring.shutdown(file, conn));
        }
    }
}

/// How many bytes the kernel took, by the result of a send.
const fn bytes_taken(result: i32) -> usize {
    if result < 0 { 0 } else { result.cast_unsigned() as usize }
}

fn may_try_again(result: i32) -> bool {
    matches!(-result, libc::EAGAIN | libc::EINTR)
}
