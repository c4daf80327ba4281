//! Accepting with io_uring: a number of accepts is always in flight, each for a direct descriptor of a ring.
//!
//! [`Acceptor`] owns the listening sockets, the accepts in flight and the parked connections. The poll loop
//! calls it: [`Acceptor::accept_more`] before it submits, [`Acceptor::on_completed`] for each accept that
//! completes, and [`Acceptor::on_poll`] at the end. [`AcceptState`] decides whether connections are accepted.
//! Where the core has a budget, each listening socket has at least one accept in flight, and all together have
//! no more than the budget where it is that large.
//!
//! **An accept may complete beyond the budget.** It was in flight when another shard, or another listening socket,
//! took the last of `limits.connections_max`, or when the core stopped accepting. The kernel has established that connection
//! and taken it from its queue, so it can't be put back. The driver *parks* it: it is not reported to the core,
//! nothing is received on it, and to its peer it looks like one that waits in the kernel's queue. As soon
//! as the core has a budget and wants connections, the next [`Acceptor::accept_more`] reports the parked ones
//! first, in the order in which they came. Each parked connection counts as an accept in flight, so there are
//! never more than [`ACCEPTS_MAX`]. Those that are still parked when the listening socket closes are reset
//! and counted.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::connections::Connections;
use super::ring::ACCEPTS_MAX;
use super::rings::Rings;
use super::socket::Socket;
use super::token::{SLOTS_MAX, Token};
use crate::driver::accept_queue;
use crate::driver::accept_state::{
    AcceptState, RETRY_AFTER, Wait, Waiting, is_of_one_connection, report,
};
use crate::driver::{CloseCause, Event, Sink};

/// The listening sockets, and the connections on their way in.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// None once they are closed.
    listeners: Vec<TcpListener>,
    state: AcceptState,
    /// Addresses that no accept uses.
    free: Vec<u16>,
    in_flight: Vec<InFlight>,
    /// `in_flight.len() + parked.len() <= ACCEPTS_MAX`.
    parked: VecDeque<Parked>,
    /// When one more ring is tried for. Without it, each poll would try while the accepts in flight wait.
    next_ring_at: Option<Instant>,
}

/// An accept that the kernel has not completed.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// Which of the ring's addresses it uses.
    address: u16,
    ring: u16,
    listener: u8,
}

/// A connection that was accepted when the core had no budget for it. See the [module](self).
#[derive(Clone, Copy, Debug)]
struct Parked {
    ring: usize,
    file: u32,
    peer: SocketAddr,
    listener: u8,
}

impl Acceptor {
    pub(super) fn new(listeners: Vec<TcpListener>) -> Self {
        Self {
            state: AcceptState::new(!listeners.is_empty()),
            listeners,
            free: (0..ACCEPTS_MAX).collect(),
            in_flight: Vec::with_capacity(usize::from(ACCEPTS_MAX)),
            parked: VecDeque::new(),
            next_ring_at: None,
        }
    }

    /// Reports the parked connections that the core has a budget for, then asks for as many accepts as it
    /// still allows.
    pub(super) fn accept_more(&mut self, connections: &mut Connections, sink: &mut impl Sink) {
        while !self.parked.is_empty()
            && self.state.may_report(sink.accept_budget())
            && let Some(parked) = self.parked.pop_front()
        {
            take_in(connections, parked, sink);
        }
        if self.free.is_empty() || self.listeners.is_empty() {
            return;
        }
        let budget = sink.accept_budget().min(usize::from(ACCEPTS_MAX));
        let allowed = self.state.accepts_allowed(budget.saturating_sub(self.parked.len()));
        let each = allowed.div_ceil(self.listeners.len());
        let listeners = mem::take(&mut self.listeners);
        for (listener, socket) in (0..).zip(&listeners) {
            let of_this = |accept: &&InFlight| accept.listener == listener;
            let mut in_flight = self.in_flight.iter().filter(of_this).count();
            while in_flight < each
                && let Some(ring) = self.ring_for_one(&mut connections.rings, sink)
                && let Some(address) = self.free.pop()
            {
                in_flight += 1;
                self.in_flight.push(InFlight { address, ring, listener });
                connections.rings.ask(ring, |ring| ring.accept(socket.as_fd(), address));
            }
        }
        self.listeners = listeners;
    }

    /// A ring with a free descriptor. Where no ring has one and none can be added, the accepts in flight may
    /// still be enough, so accepting pauses only when none is in flight.
    fn ring_for_one(&mut self, rings: &mut Rings, sink: &mut impl Sink) -> Option<u16> {
        if let Some(ring) = rings.with_free_file() {
            return Some(ring);
        }
        let none_in_flight = self.in_flight.is_empty();
        let now = Instant::now();
        if !none_in_flight && self.next_ring_at.is_some_and(|at| now < at) {
            return None;
        }
        match rings.add() {
            Ok(ring) => Some(ring),
            Err(error) => {
                self.next_ring_at = Some(now + RETRY_AFTER);
                if none_in_flight {
                    report(self.state.on_refused(error, now), sink);
                }
                None
            }
        }
    }

    /// An accept has completed.
    pub(super) fn on_completed(
        &mut self,
        connections: &mut Connections,
        ring: usize,
        address: u16,
        result: i32,
        sink: &mut impl Sink,
    ) {
        let peer = connections.rings[ring].take_peer(address);
        let place = self.in_flight.iter().position(|accept| accept.address == address);
        let Some(InFlight { listener, .. }) = place.map(|place| self.in_flight.swap_remove(place))
        else {
            return;
        };
        self.free.push(address);
        if let Ok(file) = u32::try_from(result) {
            if !self.state.listens() {
                // It could not be cancelled in time. No connection is reported after the end of listening.
                let number = u16::try_from(ring).expect("rings are numbered with 16 bits");
                return connections.rings.ask(number, |ring| ring.close(file));
            }
            report(self.state.on_accepted(), sink);
            let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
            let accepted = Parked { ring, file, peer, listener };
            if self.parked.is_empty() && self.state.may_report(sink.accept_budget()) {
                return take_in(connections, accepted, sink);
            }
            return self.parked.push_back(accepted);
        }
        connections.rings[ring].accept_failed();
        match -result {
            // It was cancelled, or found no connection after all.
            libc::ECANCELED | libc::EAGAIN => {}
            errno if is_of_one_connection(errno) => {}
            errno => {
                let error = io::Error::from_raw_os_error(errno);
                report(self.state.on_refused(error, Instant::now()), sink);
            }
        }
    }

    /// The end of a poll: all that has completed was seen.
    pub(super) fn on_poll(&mut self, now: Instant, sink: &mut impl Sink) {
        if !self.in_flight.is_empty() {
            // The kernel tries each accept as it is submitted. One that did not fail waits for a connection.
            report(self.state.on_queue_empty(), sink);
        }
        self.state.on_time(now);
    }

    pub(super) fn on_connection_closed(&mut self) {
        self.state.on_connection_closed();
    }

    /// How long the driver may wait, as far as accepting is concerned.
    pub(super) fn wait(&self, sink: &mut impl Sink) -> Wait {
        if self.state.is_trying_again() && self.has_in_flight() {
            // What the try comes to is known once it is submitted: see `on_poll`.
            return Wait::No;
        }
        let waiting = self.waiting();
        let needs_budget = waiting.in_queue || waiting.parked;
        let budget = if needs_budget { sink.accept_budget() } else { 0 };
        self.state.wait(waiting, budget)
    }

    pub(super) fn set_wanted(&mut self, wanted: bool, rings: &mut Rings) {
        if self.state.set_wanted(wanted) && !wanted {
            // At once: connections that come from now on are to wait in the kernel's queue.
            self.cancel(rings);
        }
    }

    pub(super) fn stop(&mut self, until: Instant) {
        self.state.stop(self.listeners.iter().map(accept_queue::capacity).sum(), until);
    }

    /// Whether the listening socket is to be closed now. The poll loop then [cancels](Self::cancel) until
    /// [nothing is in flight](Self::has_in_flight), and [closes](Self::close) it.
    pub(super) fn may_close(&self, now: Instant, sink: &mut impl Sink) -> bool {
        self.state.is_stopping() && self.state.may_close(self.waiting(), sink.accept_budget(), now)
    }

    pub(super) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Cancels the accepts in flight. Each completes, as cancelled or otherwise.
    pub(super) fn cancel(&self, rings: &mut Rings) {
        for &InFlight { address, ring, .. } in &self.in_flight {
            rings.ask(ring, |ring| ring.cancel(Token::Accept(address)));
        }
        rings.submit_all();
    }

    /// Closes the listening socket, and resets the connections that the core never had a budget for.
    pub(super) fn close(&mut self, rings: &mut Rings, sink: &mut impl Sink) -> io::Result<()> {
        let mut reset = self.listeners.drain(..).map(accept_queue::close).sum();
        for Parked { ring, file, .. } in mem::take(&mut self.parked) {
            rings[ring].close(file)?;
            reset += 1;
        }
        sink.event(self.state.on_closed(reset));
        Ok(())
    }

    fn waiting(&self) -> Waiting {
        // Before a stop, the accepts in flight complete when a connection comes.
        let in_queue = self.state.is_stopping()
            && self.listeners.iter().any(|one| accept_queue::is_waited_for(one, Duration::ZERO));
        Waiting { in_queue, parked: !self.parked.is_empty() }
    }
}

/// Reports an accepted connection, and receives on it from now on.
fn take_in(connections: &mut Connections, accepted: Parked, sink: &mut impl Sink) {
    let Parked { ring, file, peer, listener } = accepted;
    let number = u16::try_from(ring).expect("rings are numbered with 16 bits");
    let conn = connections.sockets.insert(Socket::new(number, file));
    sink.event(Event::Accepted { conn, peer, listener, is_open: true });
    if conn.slot < SLOTS_MAX {
        connections.arm(conn);
    } else {
        connections.end(conn, CloseCause::Failed);
    }
}
