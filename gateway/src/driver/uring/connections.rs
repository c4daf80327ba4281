//! The connections of the io_uring driver: what is known of each, and what the kernel is asked to watch for.
//!
//! [`Connections`] owns the rings and a [`Socket`] for each connection. The poll loop,
//! [`accept`](super::accept) and the driver's commands call it. This module has what the others share: which
//! operation is armed for a connection, how many operations are in flight on it, and the report of its end
//! when the last has completed. The rest is in [`receive`](super::receive), [`send`](super::send)
//! and [`closing`](super::closing). What is to be reported of sends and ends waits in `outcomes` for the next
//! poll, since commands never report inline.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

use super::rings::Rings;
use super::socket::{Armed, Cold, Flags, Socket};
use super::token::Token;
use crate::driver::slots::Slots;
use crate::driver::{ConnId, Event, Sink};

/// The number of a poll wraps here.
const POLLS: u32 = 1 << 15;

/// How long the last bytes of a closed connection may take: as long as a peer needs that reads at all.
const LINGER_MAX: Duration = Duration::from_secs(5);

/// All connections of a driver.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) rings: Rings,
    pub(super) sockets: Slots<Socket>,
    /// By slot.
    pub(super) cold: HashMap<u32, Cold>,
    /// What sends and closes came to since the last poll.
    pub(super) outcomes: Vec<Outcome>,
    /// Connections that are closed once their last bytes are out, and until when that may take.
    pub(super) lingering: VecDeque<(Instant, ConnId)>,
    /// How long that may take.
    pub(super) linger_max: Duration,
    /// Connections with bytes or an end that may be reported to the core, and were not yet.
    pub(super) ready: Vec<ConnId>,
    /// Something waits until the driver knows whether a send has failed.
    pub(super) confirming: bool,
    /// The number of this poll: below [`POLLS`].
    pub(super) poll: u32,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Sent(ConnId, usize),
    Closed(ConnId),
}

impl Connections {
    pub(super) fn new(rings: Rings) -> Self {
        Self {
            rings,
            sockets: Slots::new(),
            cold: HashMap::new(),
            outcomes: Vec::new(),
            lingering: VecDeque::new(),
            linger_max: LINGER_MAX,
            ready: Vec::new(),
            confirming: false,
            poll: 0,
        }
    }

    /// A new poll: each connection has its full share of bytes again.
    pub(super) fn begin_poll(&mut self) {
        self.poll = (self.poll + 1) % POLLS;
    }

    /// Whether the next poll has something to do without a wait.
    pub(super) fn has_work(&self) -> bool {
        !self.outcomes.is_empty() || !self.ready.is_empty() || self.confirming
    }

    /// Reports what sends and closes came to. Says whether a connection has closed: its descriptor is free.
    pub(super) fn report_outcomes(&mut self, sink: &mut impl Sink) -> bool {
        let mut any_closed = false;
        let mut outcomes = mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Sent(conn, bytes) => sink.event(Event::Sent { conn, bytes }),
                Outcome::Closed(conn) => {
                    let cold = self.cold.remove(&conn.slot);
                    if let Some(Socket { cause, .. }) = self.sockets.remove(conn) {
                        let unsent_bytes = cold.map_or(0, |cold| cold.unsent_bytes);
                        sink.event(Event::Closed { conn, cause, unsent_bytes });
                        any_closed = true;
                    }
                }
            }
        }
        self.outcomes = outcomes;
        any_closed
    }

    /// The cold state of a connection, to add to it.
    pub(super) fn cold(&mut self, conn: ConnId) -> &mut Cold {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::COLD);
        }
        self.cold.entry(conn.slot).or_default()
    }

    /// Frees the cold state of a connection that no longer needs one.
    pub(super) fn drop_cold_if_empty(&mut self, conn: ConnId) {
        if self.cold.get(&conn.slot).is_some_and(|cold| !cold.is_needed()) {
            self.cold.remove(&conn.slot);
            if let Some(socket) = self.sockets.get_mut(conn) {
                socket.flags.remove(Flags::COLD);
            }
        }
    }

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

    /// Arms the operation that is wanted now. One that is armed and not wanted is cancelled first: this is
    /// called again when it has ended.
    pub(super) fn arm(&mut self, conn: ConnId) {
        let cold = self.cold.get(&conn.slot);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let has_unread =
            socket.has(Flags::COLD) && cold.is_some_and(|cold| !cold.unread.is_empty());
        let wanted = socket.to_arm(has_unread);
        let (ring, file) = (socket.ring, socket.file);
        match (socket.armed, wanted) {
            (Armed::Nothing, Armed::Nothing) => self.close_if_idle(conn),
            (now, wanted) if now == wanted => {}
            (Armed::Nothing, _) => {
                socket.armed = wanted;
                match wanted {
                    Armed::Receive => self.rings.ask(ring, |ring| ring.receive(file, conn)),
                    _ => self.rings.ask(ring, |ring| ring.watch(file, conn)),
                }
            }
            (now, _) => {
                if !socket.has(Flags::CANCELLING) {
                    socket.flags.insert(Flags::CANCELLING);
                    let receives = now == Armed::Receive;
                    let token = if receives { Token::Receive(conn) } else { Token::Watch(conn) };
                    self.rings.ask(ring, |ring| ring.cancel(token));
                }
            }
        }
    }

    /// The operation that was armed has ended.
    pub(super) fn disarmed(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.armed = Armed::Nothing;
            socket.flags.remove(Flags::CANCELLING);
        }
    }

    /// Frees a connection's direct descriptor. Operations in flight hold the socket itself, and it is closed
    /// when the last has ended. Not so a shutdown: a kernel thread does it, which looks the descriptor up
    /// only then (io_uring/net.c: `REQ_F_FORCE_ASYNC`), and would shut down the connection that has it by
    /// then.
    pub(super) fn release(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::SHUTTING_DOWN) {
            socket.flags.insert(Flags::RELEASE);
            return;
        }
        let (ring, file) = (socket.ring, socket.file);
        self.rings.ask(ring, |ring| ring.close(file));
    }

    /// Has the next poll report the end of a closed connection once nothing is in flight on it. This may come
    /// twice in a poll. The end is reported once, since the connection is gone then.
    pub(super) fn close_if_idle(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && socket.has(Flags::CLOSED)
            && socket.armed == Armed::Nothing
            && socket.operations == 0
        {
            self.outcomes.push(Outcome::Closed(conn));
        }
    }
}
