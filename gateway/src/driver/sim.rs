//! The simulated driver: a network without a kernel, repeatable from its seed.
//!
//! [`Sim`] takes the place of epoll, so that whole shards run in a test, in one thread and in simulated time.
//! A shard calls it as its [`Driver`]. A test calls the same [`Sim`] as the peers: it connects, writes,
//! reads, stalls and resets. [`Faults`] says how likely each thing is that a network may do to a connection.
//! The same seed and the same calls give the same events: no clock and no random number comes from outside.
//!
//! | module | what it owns |
//! |---|---|
//! | `faults` | what may go wrong |
//! | `harness` | what a test does: as the peers, and with the clock and the faults |
//! | `network` | the peers, and the bytes between them and the gateway |

mod faults;
mod harness;
mod network;

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use fastrand::Rng;

use super::accept_state::{AcceptState, Wait, Waiting, report};
use super::slots::Slots;
use super::{CloseCause, ConnId, Driver, Event, Mechanism, RECEIVE_BYTES_MAX, SendState, Sink};
pub use faults::Faults;
use network::Network;
pub use network::{Arrived, PeerId};

/// How many connections the accept queue holds unless a test says otherwise: as many as the kernel's with the
/// default of `socket.backlog`.
const ACCEPT_QUEUE_MAX: u32 = 4097;

/// A stall lasts for fewer polls than this.
const STALL_POLLS: u32 = 40;

/// A shard's simulated sockets, and the peers at their other ends.
#[derive(Debug)]
pub struct Sim {
    rng: Rng,
    faults: Faults,
    now: Instant,
    wait_max: Duration,
    idle_for: Option<Duration>,
    accept_state: AcceptState,
    accept_queue_max: u32,
    sockets: Slots<Socket>,
    network: Network,
    outcomes: Vec<Outcome>,
    /// The order in which a poll takes the connections. Kept for its memory.
    order: Vec<ConnId>,
}

#[derive(Debug)]
struct Socket {
    peer: PeerId,
    sending: Option<Sending>,
    paused: bool,
    /// The end was reported.
    ended: bool,
    /// Shut down once the send under way is done.
    shutdown: bool,
    /// `Closed` is in `outcomes`.
    closed: bool,
    /// The number of polls in which the connection carries no bytes.
    stalled_polls: u32,
}

#[derive(Debug)]
struct Sending {
    rest: Bytes,
    total: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Sent(ConnId, usize),
    Closed(ConnId, CloseCause),
}

impl Sim {
    /// A driver without connections. Its clock starts at `now` and moves only while the sink lets it wait,
    /// or when it is [set](Self::set_now).
    #[must_use]
    pub fn new(seed: u64, now: Instant, faults: Faults) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            faults,
            now,
            wait_max: Duration::MAX,
            idle_for: None,
            accept_state: AcceptState::new(true),
            accept_queue_max: ACCEPT_QUEUE_MAX,
            sockets: Slots::new(),
            network: Network::default(),
            outcomes: Vec::new(),
            order: Vec::new(),
        }
    }

    fn roll(&mut self, likelihood: f64) -> bool {
        likelihood > 0.0 && self.rng.f64() < likelihood
    }

    /// Lists the connections in `order`.
    fn list(&mut self) {
        self.order.clear();
        self.order.extend(self.sockets.ids());
        if self.faults.shuffle {
            self.rng.shuffle(&mut self.order);
        }
    }

    fn report_outcomes(&mut self, sink: &mut impl Sink) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Sent(conn, bytes) => sink.event(Event::Sent { conn, bytes }),
                Outcome::Closed(conn, cause) => {
                    let sending = self.sockets.remove(conn).and_then(|socket| socket.sending);
                    let unsent_bytes = sending.map_or(0, |sending| sending.rest.len());
                    sink.event(Event::Closed { conn, cause, unsent_bytes });
                    self.accept_state.on_connection_closed();
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// Moves the clock on, as far as the sink and the test allow, where there is nothing to do.
    fn wait(&mut self, sink: &mut impl Sink) {
        let idle_for = sink.idle_for();
        let accept = self.accept_state.wait(self.waiting(), sink.accept_budget());
        let has_work = self.has_work() || accept == Wait::No;
        self.idle_for = if has_work { Some(Duration::ZERO) } else { idle_for };
        // A wait without an end returns at once: only the test moves the clock then.
        let wait = accept.or_shorter(self.idle_for, || self.now).unwrap_or_default();
        self.now += wait.min(self.wait_max);
        if self.roll(self.faults.clock_jump) {
            self.now += self.faults.clock_jump_max.mul_f64(self.rng.f64());
        }
        sink.woken(self.now);
    }

    fn waiting(&self) -> Waiting {
        Waiting { in_queue: self.network.is_waiting(), parked: false }
    }

    /// Lists the connections. Says whether a poll has something to report or to carry on one.
    fn has_work(&mut self) -> bool {
        self.list();
        !self.outcomes.is_empty()
            || self.order.iter().any(|&conn| {
                let socket = self.sockets.get_mut(conn).expect("it was just listed");
                let side = self.network.side(socket.peer);
                let receive = !socket.paused
                    && (side.unreceived_bytes() > 0 || side.has_ended() && !socket.ended);
                let send =
                    socket.sending.is_some() && (side.writable_bytes() > 0 || side.is_gone());
                receive || send || side.is_reset()
            })
    }

    /// Carries what one connection can carry now, in both directions.
    fn progress(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if self.roll(self.faults.reset) {
            return self.end(conn, CloseCause::Reset);
        }
        if self.roll(self.faults.time_out) {
            return self.end(conn, CloseCause::TimedOut);
        }
        let stalls = self.roll(self.faults.stall);
        let polls = self.rng.u32(1..STALL_POLLS);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if stalls {
            socket.stalled_polls = polls;
        }
        if socket.stalled_polls > 0 {
            socket.stalled_polls -= 1;
            return;
        }
        if self.network.side(socket.peer).is_reset() {
            return self.end(conn, CloseCause::Reset);
        }
        self.continue_send(conn);
        self.receive(conn, sink);
    }

    /// Reports the bytes that came, within the budget, and the end after them.
    fn receive(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let mut budget = RECEIVE_BYTES_MAX;
        while budget > 0 {
            let cut = self.roll(self.faults.cut);
            let Some(socket) = self.sockets.get_mut(conn) else { return };
            if socket.paused || socket.closed || socket.ended {
                return;
            }
            let mut side = self.network.side(socket.peer);
            let available = side.unreceived_bytes().min(budget);
            if available == 0 {
                if side.has_ended() {
                    socket.ended = true;
                    sink.event(Event::Ended { conn });
                }
                return;
            }
            let count = if cut { self.rng.usize(1..=available) } else { available };
            let mut bytes = side.receive(count);
            sink.event(Event::Received { conn, bytes: &mut bytes });
            if !self.roll(self.faults.late_reply)
                && let Some(reply) = sink.reply(conn)
            {
                let bytes = reply.len();
                if self.send(conn, reply) == SendState::Done {
                    sink.event(Event::Sent { conn, bytes });
                }
            }
            budget -= count;
            if cut && self.rng.bool() {
                // The rest is still on its way.
                return;
            }
        }
    }

    /// Passes on what the peer's window takes of the send under way.
    fn continue_send(&mut self, conn: ConnId) {
        let short = self.roll(self.faults.short_send);
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let Some(sending) = socket.sending.as_mut().filter(|_| !socket.closed) else { return };
        let mut side = self.network.side(socket.peer);
        if side.is_gone() {
            return self.end(conn, CloseCause::Reset);
        }
        let mut count = sending.rest.len().min(side.writable_bytes());
        if short {
            count = self.rng.usize(0..=count);
        }
        side.arrive(&sending.rest[..count]);
        sending.rest.advance(count);
        if sending.rest.is_empty() {
            let total = sending.total;
            socket.sending = None;
            self.outcomes.push(Outcome::Sent(conn, total));
            if socket.shutdown {
                self.network.side(socket.peer).shut_down();
            }
        }
    }

    fn end(&mut self, conn: ConnId, cause: CloseCause) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if !std::mem::replace(&mut socket.closed, true) {
            self.network.close(socket.peer, cause);
            self.outcomes.push(Outcome::Closed(conn, cause));
        }
    }

    fn accept(&mut self, sink: &mut impl Sink) {
        self.accept_state.on_time(self.now);
        while self.accept_state.accepts_allowed(sink.accept_budget()) > 0 {
            if !self.network.is_waiting() {
                return report(self.accept_state.on_queue_empty(), sink);
            }
            if self.roll(self.faults.accept_delay) {
                return;
            }
            if self.roll(self.faults.accept_pause) {
                let error = io::Error::other("the simulation has run out of descriptors");
                return report(self.accept_state.on_refused(error, self.now), sink);
            }
            let Some((peer, listener)) = self.network.next_waiting() else { return };
            report(self.accept_state.on_accepted(), sink);
            let conn = self.sockets.insert(Socket {
                peer,
                sending: None,
                paused: false,
                ended: false,
                shutdown: false,
                closed: false,
                stalled_polls: 0,
            });
            sink.event(Event::Accepted { conn, peer: peer.address(), listener, is_open: true });
        }
    }

    /// Closes the listening socket, if it is to be closed and no connection waits that may still be accepted.
    fn close_listener_if_due(&mut self, sink: &mut impl Sink) {
        if self.accept_state.may_close(self.waiting(), sink.accept_budget(), self.now) {
            let reset = self.network.refuse_waiting();
            sink.event(self.accept_state.on_closed(reset));
        }
    }
}

impl Driver for Sim {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "simulation", rings: 0 }
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        self.report_outcomes(sink);
        self.wait(sink);
        let mut order = std::mem::take(&mut self.order);
        for &conn in &order {
            self.progress(conn, sink);
        }
        order.clear();
        self.order = order;
        self.accept(sink);
        self.close_listener_if_due(sink);
        Ok(())
    }

    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        let late = self.roll(self.faults.late_send);
        let Some(socket) = self.sockets.get_mut(conn) else { return SendState::UnderWay };
        assert!(socket.sending.is_none(), "one send at a time");
        assert!(!socket.shutdown, "nothing is sent after a shutdown");
        assert!(!bytes.is_empty(), "a send has at least one byte");
        let total = bytes.len();
        socket.sending = Some(Sending { rest: bytes, total });
        if socket.stalled_polls == 0 && !socket.closed {
            self.continue_send(conn);
        }
        if late || self.outcomes.last() != Some(&Outcome::Sent(conn, total)) {
            return SendState::UnderWay;
        }
        self.outcomes.pop();
        SendState::Done
    }

    fn pause_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.paused = true;
        }
    }

    fn resume_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.paused = false;
        }
    }

    fn shutdown(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.shutdown = true;
        if socket.sending.is_none() && !socket.closed {
            self.network.side(socket.peer).shut_down();
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.end(conn, CloseCause::Local);
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.accept_state.set_wanted(accepting);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.accept_state.stop(self.accept_queue_max, until);
    }
}

#[cfg(test)]
mod tests;
