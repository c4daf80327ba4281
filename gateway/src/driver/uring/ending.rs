//! What is armed to hear of a connection, and how it ends.

use std::io;

use super::socket::{Flags, Reading};
use super::token::Token;
use super::{Outcome, Uring};
use crate::driver::{CloseCause, ConnId};

impl Uring {
    pub(super) fn operation_began(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.operations += 1;
        }
    }

    pub(super) fn operation_ended(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.operations -= 1;
            self.close_if_idle(conn);
        }
    }

    /// Arms what should be armed, once what is armed and should not be has ended.
    pub(super) fn settle(&mut self, conn: ConnId) {
        let rare = self.rare.get(&conn.slot);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let unread = socket.has(Flags::RARE) && rare.is_some_and(|rare| !rare.unread.is_empty());
        let wanted = socket.wanted(unread);
        let (ring, file) = (socket.ring, socket.file);
        match (socket.reading, wanted) {
            (Reading::Off, Reading::Off) => self.close_if_idle(conn),
            (now, wanted) if now == wanted => {}
            (Reading::Off, _) => {
                socket.reading = wanted;
                match wanted {
                    Reading::Receive => self.ask(ring, |ring| ring.receive(file, conn)),
                    _ => self.ask(ring, |ring| ring.watch(file, conn)),
                }
            }
            (now, _) => {
                if !socket.has(Flags::CANCELLING) {
                    socket.flags.insert(Flags::CANCELLING);
                    let receives = now == Reading::Receive;
                    let token = if receives { Token::Receive(conn) } else { Token::Watch(conn) };
                    self.ask(ring, |ring| ring.cancel(token));
                }
            }
        }
    }

    /// What was armed has ended.
    pub(super) fn disarmed(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.reading = Reading::Off;
            socket.flags.remove(Flags::CANCELLING);
        }
    }

    pub(super) fn on_watched(&mut self, conn: ConnId, result: i32, more: bool) {
        if !more {
            self.disarmed(conn);
        }
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let (ring, file) = (socket.ring, socket.file);
        let told = if result > 0 { result } else { 0 };
        let dead = told & i32::from(libc::POLLERR | libc::POLLHUP) != 0;
        // A peer that only sends no more may still be reset: that is watched for.
        if dead && !socket.flags.intersects(Flags::CLOSED | Flags::HUNG_UP) {
            socket.flags.insert(Flags::HUNG_UP);
            if told & i32::from(libc::POLLERR) != 0 {
                self.operation_began(conn);
                self.ask(ring, |ring| ring.ask_error(file, conn));
            }
        }
        self.settle(conn);
    }

    pub(super) fn on_error_told(&mut self, conn: ConnId, result: i32) {
        let cause = if result < 0 {
            CloseCause::of(&io::Error::from_raw_os_error(-result))
        } else {
            // Somebody else was told of the error already.
            CloseCause::Reset
        };
        self.end(conn, cause);
        self.operation_ended(conn);
    }

    pub(super) fn fail(&mut self, conn: ConnId, errno: i32) {
        self.end(conn, CloseCause::of(&io::Error::from_raw_os_error(errno)));
    }

    /// Closes a connection. It is told once everything under way has ended.
    pub(super) fn end(&mut self, conn: ConnId, cause: CloseCause) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::CLOSED) {
            return;
        }
        socket.flags.insert(Flags::CLOSED);
        socket.cause = cause;
        let (ring, sending) = (socket.ring, socket.has(Flags::SENDING));
        let in_steps = self.rare.get_mut(&conn.slot).is_some_and(|rare| {
            // This was not said to be sent.
            rare.cut += rare.next.take().map_or(0, |next| next.len());
            rare.sending.is_some()
        });
        if cause == CloseCause::Local && sending && self.finish_later(conn) {
            return self.settle(conn);
        }
        if in_steps {
            // A send itself ends at once: only the watch for room goes on.
            self.ask(ring, |ring| ring.cancel(Token::Writable(conn)));
        } else if sending {
            self.wait_until_certain(conn);
        }
        self.settle(conn);
        self.release(conn);
    }

    /// Gives a connection's place in the ring's table back. Operations under way hold the socket itself, and it
    /// is closed when the last has ended. All but a shutdown: the kernel has a thread do that, which looks the
    /// place up only then (io_uring/net.c: `REQ_F_FORCE_ASYNC`), and would shut down whoever has it meanwhile.
    pub(super) fn release(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::SHUTTING_DOWN) {
            socket.flags.insert(Flags::RELEASE);
            return;
        }
        let (ring, file) = (socket.ring, socket.file);
        self.ask(ring, |ring| ring.close(file));
    }

    /// The sending side is shut down.
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

    /// It may be said of a connection twice in a poll; it is reported once, since then it is gone.
    pub(super) fn close_if_idle(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::CLOSED)
            && socket.reading == Reading::Off
            && socket.operations == 0
        {
            self.outcomes.push(Outcome::Closed(conn));
        }
    }
}
