//! The simulated driver: a network without a kernel, repeatable from its seed.
//!
//! It stands where epoll stands, so that whole shards run in a test, in one thread and in simulated
//! time. Its other face is the peers': who tests connects, writes, reads, stalls and resets through
//! the same [`Sim`]. What a network may do to a connection, [`Faults`] makes likely. With the same
//! seed and the same calls the same happens: no clock and no random number comes from outside.

mod network;
mod peers;

use std::io;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use fastrand::Rng;

use super::slots::Slots;
use super::{CloseCause, ConnId, Driver, Event, Mechanism, RECEIVE_BYTES_MAX, SendState, Sink};
use network::Network;
pub use network::{Arrived, PeerId};

/// How long accepting rests when descriptors are said to have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A fault that lasts, lasts for fewer polls than this.
const STALL_POLLS: u32 = 40;

/// How likely what a network may do is: from 0, never, to 1, whenever it can be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// What was received is cut at a random place, and handed over in pieces.
    pub cut: f64,
    /// A send comes short: the rest waits for later polls.
    pub short_send: f64,
    /// A send that is done at once is reported a poll later.
    pub late_send: f64,
    /// Nobody asks for a reply at once to what was received.
    pub late_reply: f64,
    /// For some polls nothing moves on a connection, in either direction.
    pub stall: f64,
    /// The network resets a connection.
    pub reset: f64,
    /// A connection fails for want of acknowledgements.
    pub time_out: f64,
    /// A connection is accepted a poll later.
    pub accept_delay: f64,
    /// Accepting pauses, as if descriptors had run out.
    pub accept_pause: f64,
    /// The clock jumps forward, by up to [`Self::clock_jump_max`].
    pub clock_jump: f64,
    /// How far the clock jumps at most.
    pub clock_jump_max: Duration,
    /// The connections of a poll come in random order, rather than in that of their places.
    pub shuffle: bool,
}

/// A shard's simulated sockets, and the peers at their other ends.
#[derive(Debug)]
pub struct Sim {
    rng: Rng,
    faults: Faults,
    now: Instant,
    wait_max: Duration,
    idle_for: Option<Duration>,
    acceptor: Acceptor,
    sockets: Slots<Socket>,
    network: Network,
    outcomes: Vec<Outcome>,
    /// The order in which a poll looks at connections; kept for its memory.
    order: Vec<ConnId>,
}

#[derive(Debug)]
struct Acceptor {
    listening: bool,
    /// The listening socket is to be closed: until then the driver waits for room.
    last_until: Option<Instant>,
    wanted: bool,
    /// `Some` while descriptors are said to have run out: when to try again.
    retry_at: Option<Instant>,
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
    /// `Closed` is on its way.
    closed: bool,
    /// Polls for which nothing moves.
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
    /// A driver that nobody has connected to. Its clock stands at `now` and goes on only while the
    /// sink lets it wait, or when it is [told to](Self::set_now).
    #[must_use]
    pub fn new(seed: u64, now: Instant, faults: Faults) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            faults,
            now,
            wait_max: Duration::MAX,
            idle_for: None,
            acceptor: Acceptor { listening: true, last_until: None, wanted: true, retry_at: None },
            sockets: Slots::new(),
            network: Network::default(),
            outcomes: Vec::new(),
            order: Vec::new(),
        }
    }

    /// What time it is.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Moves the clock on; never back.
    pub fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Bounds how long one poll may wait: with zero, only [`Self::set_now`] and clock jumps move time.
    pub const fn set_wait_max(&mut self, wait_max: Duration) {
        self.wait_max = wait_max;
    }

    /// How long the last poll could have waited: zero when there was something to do, `None` for ever.
    #[must_use]
    pub const fn idle_for(&self) -> Option<Duration> {
        self.idle_for
    }

    /// What the network does from now on. Stalls that have begun end.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.list();
        for index in 0..self.order.len() {
            if let Some(socket) = self.sockets.get_mut(self.order[index]) {
                socket.stalled_polls = 0;
            }
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
                    if self.acceptor.retry_at.take().is_some() {
                        sink.event(Event::AcceptResumed);
                    }
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// Lets time pass, as far as the sink and the harness allow and nothing is to be done.
    fn wait(&mut self, sink: &mut impl Sink) {
        let idle_for = sink.idle_for();
        let has_room = sink.accept_budget() > 0;
        self.idle_for = if self.is_ready(has_room) { Some(Duration::ZERO) } else { idle_for };
        let retry_in = self.acceptor.retry_at.map(|at| at.saturating_duration_since(self.now));
        let stop_in = self.acceptor.last_until.map(|at| at.saturating_duration_since(self.now));
        // With nothing set, and nobody to move the clock, waiting for ever returns at once.
        let wait =
            self.idle_for.into_iter().chain(retry_in).chain(stop_in).min().unwrap_or_default();
        self.now += wait.min(self.wait_max);
        if self.roll(self.faults.clock_jump) {
            self.now += self.faults.clock_jump_max.mul_f64(self.rng.f64());
        }
        sink.woken(self.now);
    }

    /// Whether a poll has something to report, or to move.
    fn is_ready(&mut self, has_room: bool) -> bool {
        self.list();
        let accept = self.acceptor.listening
            && self.acceptor.wanted
            && self.acceptor.retry_at.is_none()
            && has_room
            && self.network.is_waiting();
        accept
            || self.acceptor.last_until.is_some() && !self.network.is_waiting()
            || !self.outcomes.is_empty()
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

    /// Moves what can be moved on one connection.
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

    /// Hands over what came, within the budget, and the end behind it.
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
            let bytes = side.receive(count);
            sink.event(Event::Received { conn, bytes: &bytes });
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

    /// Gives the peer's side what it takes of the send under way.
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
        if self.acceptor.retry_at.is_some_and(|at| at <= self.now) {
            self.acceptor.retry_at = None;
            sink.event(Event::AcceptResumed);
        }
        while self.acceptor.listening
            && self.acceptor.wanted
            && self.acceptor.retry_at.is_none()
            && self.network.is_waiting()
            && sink.accept_budget() > 0
            && !self.roll(self.faults.accept_delay)
        {
            if self.roll(self.faults.accept_pause) {
                self.acceptor.retry_at = Some(self.now + ACCEPT_RETRY);
                let error = io::Error::other("the simulation has run out of descriptors");
                return sink.event(Event::AcceptPaused { error });
            }
            let Some(peer) = self.network.next_waiting() else { return };
            let conn = self.sockets.insert(Socket {
                peer,
                sending: None,
                paused: false,
                ended: false,
                shutdown: false,
                closed: false,
                stalled_polls: 0,
            });
            sink.event(Event::Accepted { conn, peer: peer.address() });
        }
    }
}

impl Sim {
    /// Closes the listening socket, if it is to be closed and nobody waits who may still be let in.
    fn stop_if_last(&mut self, sink: &mut impl Sink) {
        let Some(until) = self.acceptor.last_until else { return };
        let can_accept =
            self.acceptor.wanted && self.acceptor.retry_at.is_none() && sink.accept_budget() > 0;
        if self.network.is_waiting() && (can_accept || self.now < until) {
            return;
        }
        self.acceptor.last_until = None;
        self.acceptor.listening = false;
        self.acceptor.retry_at = None;
        let reset = self.network.refuse_waiting();
        sink.event(Event::ListeningStopped { reset });
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
        self.stop_if_last(sink);
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
        self.acceptor.wanted = accepting;
    }

    fn stop_listening(&mut self, until: Instant) {
        if self.acceptor.listening && self.acceptor.last_until.is_none() {
            self.acceptor.last_until = Some(until);
            self.acceptor.wanted = true;
        }
    }
}

#[cfg(test)]
mod tests;
