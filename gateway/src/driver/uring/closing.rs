//! How a connection ends.
//!
//! The core closes it, its peer resets it, or the kernel fails. [`Connections::end`] is the one way to the
//! end, and the first cause counts. The end is reported when the last operation in flight has completed, so
//! it is a connection's last event.
//!
//! A connection that the core closes may have a send that was reported as done, and that the kernel has not
//! taken. It *lingers* until these bytes are out, for [`linger_max`](Connections) at most, as the kernel does
//! for a socket that is closed.

use std::io;
use std::time::Instant;

use super::connections::Connections;
use super::socket::Flags;
use super::token::Token;
use crate::driver::{CloseCause, ConnId};

impl Connections {
    /// The kernel has something to say of a connection's end, or the watch for it has ended.
    pub(super) fn on_watched(&mut self, conn: ConnId, result: i32, more: bool) {
        if !more {
            self.disarmed(conn);
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, file) = (socket.ring, socket.file);
        let events = result.max(0);
        let is_dead = events & i32::from(libc::POLLERR | libc::POLLHUP) != 0;
        // A peer that has only shut down its sending side may still reset the connection: the watch continues.
        if is_dead && !socket.flags.intersects(Flags::CLOSED | Flags::HUNG_UP) {
            socket.flags.insert(Flags::HUNG_UP);
            if events & i32::from(libc::POLLERR) != 0 {
                self.operation_began(conn);
                self.rings.ask(ring, |ring| ring.ask_error(file, conn));
            }
        }
        self.arm(conn);
    }

    /// The kernel has reported the error of a dead connection.
    pub(super) fn on_error(&mut self, conn: ConnId, result: i32) {
        let cause = if result < 0 {
            CloseCause::of(&io::Error::from_raw_os_error(-result))
        } else {
            // Another operation has taken the error already.
            CloseCause::Reset
        };
        self.end(conn, cause);
        self.operation_ended(conn);
    }

    pub(super) fn fail(&mut self, conn: ConnId, errno: i32) {
        self.end(conn, CloseCause::of(&io::Error::from_raw_os_error(errno)));
    }

    /// Closes a connection. That is reported once no operation is in flight on it.
    pub(super) fn end(&mut self, conn: ConnId, cause: CloseCause) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        socket.flags.insert(Flags::CLOSED);
        socket.cause = cause;
        let (ring, sending) = (socket.ring, socket.has(Flags::SENDING));
        let in_steps = self.cold.get_mut(&conn.slot).is_some_and(|cold| {
            // This was never reported as sent.
            cold.unsent_bytes += cold.next.take().map_or(0, |next| next.len());
            cold.sending.is_some()
        });
        if cause == CloseCause::Local && sending && self.linger(conn) {
            return self.arm(conn);
        }
        if in_steps {
            // A send completes at once: only the watch for writability remains.
            self.rings.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
        } else if sending {
            self.await_send_result(conn);
        }
        self.arm(conn);
        self.release(conn);
    }

    /// Keeps a closed connection until what was reported as sent is out. `false`: nothing was.
    fn linger(&mut self, conn: ConnId) -> bool {
        if self.cold(conn).sending.as_ref().is_some_and(|sending| sending.report.is_some()) {
            return false;
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return false };
        socket.flags.insert(Flags::LINGERING);
        self.operation_began(conn);
        self.confirming = true;
        self.lingering.push_back((Instant::now() + self.linger_max, conn));
        true
    }

    /// The last bytes are out, or won't be.
    pub(super) fn end_linger(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::LINGERING) {
            socket.flags.remove(Flags::LINGERING);
            let ring = socket.ring;
            self.rings.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
            self.release(conn);
            self.operation_ended(conn);
        }
    }

    /// Gives up on peers that have not read the last bytes in time.
    pub(super) fn expire_lingering(&mut self) {
        while let Some(&(until, conn)) = self.lingering.front() {
            let socket = self.sockets.get_mut(conn);
            let lingers = socket.is_some_and(|socket| socket.has(Flags::LINGERING));
            if lingers && until > Instant::now() {
                return;
            }
            self.lingering.pop_front();
            self.end_linger(conn);
        }
    }

    /// Keeps a closed connection until the driver knows whether a send that was reported as done has failed.
    fn await_send_result(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::AWAITS_RESULT);
            self.operation_began(conn);
            self.confirming = true;
        }
    }

    pub(super) fn send_result_known(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::AWAITS_RESULT)
        {
            socket.flags.remove(Flags::AWAITS_RESULT);
            self.operation_ended(conn);
        }
    }

    /// The kernel has shut down the sending side.
    pub(super) fn on_shut_down(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            let release = socket.has(Flags::RELEASE);
            socket.flags.remove(Flags::SHUTTING_DOWN | Flags::RELEASE);
            if release {
                self.release(conn);
            }
        }
        self.operation_ended(conn);
    }
}
