//! Wires: what stands between a driver and a connection. TLS, WebSocket, one in the other, and the PROXY protocol.
//!
//! [`Wired`] is a driver over a driver. The shard's side of it is the [`Driver`] contract: bytes of the protocol in both
//! directions. On the other side are the bytes of the network. What a wire needs is kept beside the connections, and only of those
//! that have one: a plain connection costs one comparison for each event and each send, and no byte.
//!
//! ```text
//! shard     bytes of the protocol, Named, Failed
//!   |
//! Wired     PROXY header -> TLS -> WebSocket, each if the listening socket asks for it
//!   |
//! driver    bytes of the network
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `settings` | which wire each listening socket has, and the limits |
//! | `kinds` | which wire each connection has |
//! | `opening` | connections whose wire is not open yet |
//! | `handshakes` | which TLS handshake is worked on next |
//! | `deadlines` | until when connections may take to open |
//! | [`proxy`], [`websocket`] | one protocol each, without I/O; TLS is the crate [`tidegate_tls`] |
//! | `open` | connections whose wire is open: their state, what comes, and what is sent |
//! | `sending` | what the core and a wire send, and how a connection ends |
//! | `flow` | the order of what goes out |
//! | `lingering` | closed connections that wait for their last bytes to be out, or for the peer's end |
//! | [`certificates`] | the files of TLS, also while they change |
//! | [`marks`] | how a test sees the messages of a WebSocket |
//!
//! **The order of work.** TLS handshakes cost some 100 us each, so their steps wait in a queue: a poll does
//! [`HANDSHAKES_EACH_POLL`] of them at most, after what the driver had to report. Everything else is done where its bytes
//! are reported. What a client sends behind its part of a handshake is kept until its turn, and its reading is paused
//! meanwhile.
//!
//! **Closing.** [`Driver::shutdown`] sends the wire's own goodbye (a close frame, `close_notify`) behind what was sent before.
//! [`Driver::close`] sends it if nothing of the core is under way. The connection then *lingers* until the goodbye is out. Where
//! the peer has said its own goodbye, and has not shut down its sending side yet, it lingers until the peer does: a socket that is closed
//! over bytes that were not read is reset, and the reset may overtake the goodbye. When a peer breaks a wire's protocol, [`Event::Failed`] says so, and
//! the core closes: the goodbye then names the violation.

pub mod certificates;
mod deadlines;
mod flow;
mod handshakes;
mod kinds;
mod lingering;
pub mod marks;
mod open;
mod opening;
pub mod proxy;
mod sending;
mod settings;
pub mod websocket;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashbrown::HashMap;

pub use crate::driver::Failure;
use crate::driver::{CloseCause, ConnId, Driver, Event, Figures, Mechanism, SendState, Sink};
use crate::spare::{shrink_list, shrink_map};
use deadlines::Deadlines;
use flow::Flow;
use handshakes::Handshakes;
use kinds::{Kind, Kinds};
use lingering::Lingering;
use open::Open;
use opening::{Opened, Opening, Step};
pub use settings::{Settings, Wire};

/// Steps of TLS handshakes that one poll does, at most: half a millisecond of work.
pub const HANDSHAKES_EACH_POLL: u32 = 4;

/// Connections that one poll fails because they have not opened in time, at most. Spreads a mass timeout over several turns.
const LATE_EACH_POLL: usize = 1024;

/// A driver with wires. See the [module](self).
#[derive(Debug)]
pub struct Wired<D> {
    driver: D,
    wires: Wires,
}

/// All that the wires of a shard keep.
#[derive(Debug)]
struct Wires {
    settings: Settings,
    kinds: Kinds,
    open: Open,
    opening: HashMap<ConnId, Box<Opening>>,
    /// Connections that have something under way, or waiting to be sent.
    flows: HashMap<ConnId, Flow>,
    /// Of these, those whose next send may start.
    unblocked: Vec<ConnId>,
    /// Closed connections that linger.
    lingering: Lingering,
    /// TLS handshakes that wait for their next step.
    handshakes: Handshakes,
    /// TLS handshakes that were completed.
    handshakes_completed: u64,
    /// Connections that wait for a further step of their handshake since this poll.
    to_pause: Vec<ConnId>,
    /// Connections whose reading is paused, and that wait for nothing any more.
    to_resume: Vec<ConnId>,
    /// Until when connections may take to open.
    deadlines: Deadlines,
    now: Option<Instant>,
    /// Kept for its memory.
    out: Vec<u8>,
}

impl<D: Driver> Wired<D> {
    /// A driver whose connections have these wires.
    pub fn new(driver: D, settings: Settings) -> Self {
        let wires = Wires {
            open: Open::new(&settings),
            handshakes: Handshakes::new(settings.handshakes_per_second),
            deadlines: Deadlines::new(settings.open_timeout),
            settings,
            kinds: Kinds::default(),
            opening: HashMap::new(),
            flows: HashMap::new(),
            unblocked: Vec::new(),
            lingering: Lingering::default(),
            handshakes_completed: 0,
            to_pause: Vec::new(),
            to_resume: Vec::new(),
            now: None,
            out: Vec::new(),
        };
        Self { driver, wires }
    }

    /// Whether the wire of a connection is open.
    #[cfg(test)]
    pub(crate) fn is_open(&self, conn: ConnId) -> bool {
        !self.wires.opening.contains_key(&conn)
    }

    /// The driver below.
    pub const fn driver(&mut self) -> &mut D {
        &mut self.driver
    }
}

impl<D: Driver> Driver for Wired<D> {
    fn mechanism(&self) -> Mechanism {
        self.driver.mechanism()
    }

    fn now(&self) -> Instant {
        self.driver.now()
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let Self { driver, wires } = self;
        driver.poll(&mut Adapter { wires, sink })?;
        if wires.has_work() {
            wires.work(driver, sink);
        }
        Ok(())
    }

    #[inline]
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        if self.wires.kinds.get(conn.slot) == Kind::Plain {
            return self.driver.send(conn, bytes);
        }
        self.wires.send(conn, &bytes, &mut self.driver)
    }

    fn pause_receive(&mut self, conn: ConnId) {
        self.driver.pause_receive(conn);
    }

    fn resume_receive(&mut self, conn: ConnId) {
        self.driver.resume_receive(conn);
    }

    fn shutdown(&mut self, conn: ConnId) {
        if self.wires.kinds.get(conn.slot) == Kind::Plain {
            return self.driver.shutdown(conn);
        }
        self.wires.shutdown(conn, &mut self.driver);
    }

    fn close(&mut self, conn: ConnId) {
        if self.wires.kinds.get(conn.slot) == Kind::Plain
            || self.wires.closes(conn, &mut self.driver)
        {
            self.driver.close(conn);
        }
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.driver.set_accepting(accepting);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.driver.stop_listening(until);
    }

    fn figures(&self) -> Figures {
        Figures {
            opening: self.wires.opening.len(),
            waiting_handshakes: self.wires.handshakes.waiting(),
            completed_handshakes: self.wires.handshakes_completed,
        }
    }

    fn free_spare_memory(&mut self) {
        self.driver.free_spare_memory();
        self.wires.free_spare_memory();
    }
}

/// The sink that the driver below reports to.
struct Adapter<'a, S> {
    wires: &'a mut Wires,
    sink: &'a mut S,
}

impl<S: Sink> Sink for Adapter<'_, S> {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        let Self { wires, sink } = self;
        match event {
            Event::Received { conn, bytes } => match wires.kinds.get(conn.slot) {
                Kind::Plain => sink.event(Event::Received { conn, bytes }),
                kind => wires.received(kind, conn, bytes, *sink),
            },
            Event::Sent { conn, bytes } => match wires.kinds.get(conn.slot) {
                Kind::Plain => sink.event(Event::Sent { conn, bytes }),
                _ => wires.sent(conn, *sink),
            },
            Event::Accepted { conn, peer, listener, .. } => {
                wires.accepted(conn, peer, listener, *sink);
            }
            Event::Ended { conn } => match wires.kinds.get(conn.slot) {
                Kind::Plain => sink.event(Event::Ended { conn }),
                _ => wires.ended(conn, *sink),
            },
            Event::Closed { conn, cause, unsent_bytes } => {
                let (cause, unsent_bytes) = match wires.kinds.get(conn.slot) {
                    Kind::Plain => (cause, unsent_bytes),
                    _ => wires.closed(conn, cause, unsent_bytes),
                };
                sink.event(Event::Closed { conn, cause, unsent_bytes });
            }
            other => sink.event(other),
        }
    }

    #[inline]
    fn accept_budget(&mut self) -> usize {
        self.sink.accept_budget()
    }

    #[inline]
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        match self.wires.kinds.get(conn.slot) {
            Kind::Plain => self.sink.reply(conn),
            Kind::Opening => None,
            Kind::WebSocket | Kind::Secured => self.wires.reply(conn, self.sink),
        }
    }

    fn idle_for(&mut self) -> Option<Duration> {
        let times = [self.sink.idle_for(), self.wires.idle_for()];
        let idle_for = times.into_iter().flatten().min();
        self.wires.deadlines.waits_for(idle_for);
        idle_for
    }

    #[inline]
    fn coalescing(&mut self) {
        self.sink.coalescing();
    }

    #[inline]
    fn woken(&mut self, now: Instant) {
        self.wires.woken(now);
        self.sink.woken(now);
    }
}

impl Wires {
    fn accepted(&mut self, conn: ConnId, peer: SocketAddr, listener: u8, sink: &mut impl Sink) {
        let wire = self.settings.wires.get(usize::from(listener));
        let wire = wire.filter(|wire| !wire.is_plain());
        sink.event(Event::Accepted { conn, peer, listener, is_open: wire.is_none() });
        let Some(wire) = wire else { return };
        self.kinds.set(conn.slot, Kind::Opening);
        match Opening::new(wire, peer) {
            Ok(opening) => {
                self.opening.insert(conn, Box::new(opening));
                self.deadlines.push(conn, self.now());
            }
            Err(failure) => {
                self.opening.insert(conn, Box::new(Opening::failed(wire, peer)));
                sink.event(Event::Failed { conn, failure, reason: failure.reason() });
            }
        }
    }

    /// The time of the last wait. Before the first one there is none: then that wait's counts.
    fn now(&self) -> Instant {
        self.now.unwrap_or_else(Instant::now)
    }

    fn received(&mut self, kind: Kind, conn: ConnId, bytes: &mut [u8], sink: &mut impl Sink) {
        match kind {
            Kind::Plain => {}
            Kind::Opening => {
                let Some(opening) = self.opening.get_mut(&conn) else { return };
                if let Err(failure) = opening.receive(bytes, &mut self.out) {
                    return self.fail_opening(conn, failure, failure.reason(), sink);
                }
                self.advance(conn, false, sink);
            }
            Kind::WebSocket | Kind::Secured => {
                let may_answer = self.flows.get(&conn).is_none_or(Flow::has_room);
                self.open.receive(conn, bytes, may_answer, &mut self.out, sink);
                self.push_own(conn);
            }
        }
    }

    /// Does the steps of opening that what was received allows.
    fn advance(&mut self, conn: ConnId, mut may_handshake: bool, sink: &mut impl Sink) {
        loop {
            let (now, continuing) = (self.now(), self.handshakes.continuing());
            let Some(opening) = self.opening.get_mut(&conn) else { return };
            let was_handshaking = opening.is_handshaking();
            let step = opening.step(may_handshake, continuing, &mut self.out);
            let is_completed = was_handshaking && !opening.is_handshaking();
            self.handshakes_completed += u64::from(is_completed);
            match step {
                Step::Waits => break,
                Step::Handshake { begins } => {
                    if !std::mem::replace(&mut opening.is_queued, true) {
                        self.handshakes.push(conn, begins, now);
                        self.to_pause.push(conn);
                    }
                    break;
                }
                Step::Named(peer) => sink.event(Event::Named { conn, peer }),
                Step::Failed(failure, reason) => {
                    return self.fail_opening(conn, failure, reason, sink);
                }
                Step::Open(opened) => return self.opened(conn, opened, sink),
            }
            may_handshake = false;
        }
        self.push_own(conn);
        self.report_end(conn, sink);
    }

    /// Reports the end of a peer whose wire is being opened, when all that it has sent before was read.
    fn report_end(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if self.opening.get_mut(&conn).is_some_and(|opening| opening.reports_end()) {
            sink.event(Event::Ended { conn });
        }
    }

    /// The wire of a connection is open.
    fn opened(&mut self, conn: ConnId, opened: Opened, sink: &mut impl Sink) {
        self.push_own(conn);
        let opening = self.opening.remove(&conn);
        let has_ended = opening.as_ref().is_some_and(|opening| opening.has_ended());
        let is_peer_shut_down = opening.as_ref().is_some_and(|opening| opening.is_peer_shut_down());
        let lost_bytes = opening.map_or(0, |opening| opening.lost_bytes);
        let Opened { secured, is_websocket, mut rest, login } = opened;
        let kind = match (&secured, is_websocket) {
            (Some(_), _) => Kind::Secured,
            (None, true) => Kind::WebSocket,
            (None, false) => Kind::Plain,
        };
        self.kinds.set(conn.slot, kind);
        sink.event(Event::Opened { conn, is_websocket });
        if let Some(login) = login {
            let mut frame = login.frame();
            sink.event(Event::Received { conn, bytes: &mut frame });
        }
        if kind == Kind::Plain {
            for bytes in rest.chunks_mut(crate::driver::RECEIVE_BYTES_MAX) {
                sink.event(Event::Received { conn, bytes });
            }
        } else {
            self.open.add(conn, secured, is_websocket);
            if lost_bytes > 0 {
                self.open.lose(conn, lost_bytes);
            }
            self.open.receive_payload(conn, rest, &mut self.out, sink);
            self.push_own(conn);
        }
        if has_ended {
            match kind {
                Kind::Plain => sink.event(Event::Ended { conn }),
                _ if is_peer_shut_down => self.ended(conn, sink),
                _ if self.open.may_report_end(conn) => sink.event(Event::Ended { conn }),
                _ => {}
            }
        }
    }

    /// A connection waits for no step of opening any more. Says whether its reading was paused.
    fn stop_waiting(&mut self, conn: ConnId) -> bool {
        let Some(opening) = self.opening.get_mut(&conn) else { return false };
        if std::mem::take(&mut opening.is_queued) {
            self.handshakes.forget();
        }
        std::mem::take(&mut opening.is_paused)
    }

    fn fail_opening(
        &mut self,
        conn: ConnId,
        failure: Failure,
        reason: &'static str,
        sink: &mut impl Sink,
    ) {
        // An alert, or the response that says why.
        self.push_own(conn);
        if self.stop_waiting(conn) {
            // The core waits for the peer's end.
            self.to_resume.push(conn);
        }
        if let Some(opening) = self.opening.get_mut(&conn)
            && !opening.is_failed()
        {
            opening.warn(failure);
            opening.fail();
            sink.event(Event::Failed { conn, failure, reason });
        }
        self.report_end(conn, sink);
    }

    /// The peer has shut down its sending side.
    fn ended(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if let Some(opening) = self.opening.get_mut(&conn) {
            if opening.end() {
                self.handshakes.forget();
            }
            self.report_end(conn, sink);
        } else if self.lingering.peer_shut_down(conn) {
            if !self.flows.contains_key(&conn) {
                self.lingering.all_is_sent(conn);
            }
        } else if self.open.peer_shut_down(conn) {
            sink.event(Event::Ended { conn });
        }
    }

    /// The connection is closed, and the driver has `left` bytes that the kernel did not take. Says how many of the core's these
    /// are at most, and the cause as the core is to know it.
    fn closed(&mut self, conn: ConnId, cause: CloseCause, left: usize) -> (CloseCause, usize) {
        self.kinds.set(conn.slot, Kind::Plain);
        if let Some(lost) = self.lingering.remove(conn) {
            self.flows.remove(&conn);
            return (CloseCause::Local, lost);
        }
        let before_open = self.forget_opening(conn);
        let lost = before_open + self.open.remove(conn);
        let unsent = self.flows.remove(&conn).map_or(left, |flow| flow.unsent_core_bytes(left));
        (cause, lost + unsent)
    }

    fn has_work(&self) -> bool {
        !self.unblocked.is_empty()
            || !self.handshakes.is_empty()
            || !self.to_pause.is_empty()
            || !self.to_resume.is_empty()
            || self.lingering.is_busy()
            || self.deadlines.is_one_over(self.now)
    }

    /// What is left to do after the driver has reported.
    fn work(&mut self, driver: &mut impl Driver, sink: &mut impl Sink) {
        self.do_handshakes(driver, sink);
        self.fail_late(sink);
        for conn in self.to_resume.drain(..) {
            driver.resume_receive(conn);
        }
        for conn in self.to_pause.drain(..) {
            // Most had their turn in this poll.
            if let Some(opening) = self.opening.get_mut(&conn)
                && opening.may_pause()
                && !std::mem::replace(&mut opening.is_paused, true)
            {
                driver.pause_receive(conn);
            }
        }
        let mut unblocked = std::mem::take(&mut self.unblocked);
        for conn in unblocked.drain(..) {
            self.pump(conn, driver, |bytes| sink.event(Event::Sent { conn, bytes }));
        }
        unblocked.append(&mut self.unblocked);
        self.unblocked = unblocked;
        self.end_lingering(driver);
    }

    fn do_handshakes(&mut self, driver: &mut impl Driver, sink: &mut impl Sink) {
        for _ in 0..HANDSHAKES_EACH_POLL {
            let opening = &self.opening;
            let waits = |conn| opening.get(&conn).is_some_and(|opening| opening.is_queued);
            let Some(conn) = self.handshakes.next(self.now(), waits) else { return };
            let Some(opening) = self.opening.get_mut(&conn) else { return };
            opening.is_queued = false;
            let was_paused = std::mem::take(&mut opening.is_paused);
            self.advance(conn, true, sink);
            if was_paused {
                driver.resume_receive(conn);
            }
        }
    }

    /// Fails connections that have not opened in time: as many as a turn does of anything that happens to many at once.
    fn fail_late(&mut self, sink: &mut impl Sink) {
        for _ in 0..LATE_EACH_POLL {
            let Some(conn) = self.deadlines.next_over(self.now) else { return };
            if self.opening.get(&conn).is_some_and(|opening| !opening.is_failed()) {
                let failure = Failure::TimedOut;
                self.fail_opening(conn, failure, failure.reason(), sink);
            }
        }
    }

    fn woken(&mut self, now: Instant) {
        let passed =
            self.now.map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        self.handshakes.pass(passed);
        self.deadlines.pass(passed);
        self.now = Some(now);
    }

    /// How long the driver may wait, as far as wires are concerned.
    fn idle_for(&mut self) -> Option<Duration> {
        if !self.unblocked.is_empty() {
            return Some(Duration::ZERO);
        }
        let opening = &self.opening;
        let has_opened = |conn| opening.get(&conn).is_none_or(|opening| opening.is_failed());
        let deadline = self.deadlines.idle_for(self.now, has_opened);
        let lingering = self.lingering.idle_for(self.now);
        [self.handshakes.idle_for(), deadline, lingering].into_iter().flatten().min()
    }

    /// Frees memory that a storm has left, where the rest needs much less.
    fn free_spare_memory(&mut self) {
        self.open.free_spare_memory();
        self.handshakes.free_spare_memory();
        self.deadlines.free_spare_memory();
        self.lingering.free_spare_memory();
        shrink_map(&mut self.opening);
        shrink_map(&mut self.flows);
        for list in [&mut self.unblocked, &mut self.to_pause, &mut self.to_resume] {
            shrink_list(list);
        }
        shrink_list(&mut self.out);
    }
}
