//! The io_uring driver: operations are asked for in batches, and complete in batches.
//!
//! [`Uring`] owns the poll loop: it submits what was asked for, waits, and passes each completion to the
//! module that asked for the operation. A shard's thread calls it through [`Driver`], and nobody else does,
//! but for the waker. A connection is a *direct descriptor*: an entry in a ring's own table, not in the
//! process's.
//!
//! | module | what it owns |
//! |---|---|
//! | `accept` | the listening sockets, accepts in flight, connections accepted beyond the core's budget |
//! | `connections` | what is known of each connection, and which operation is armed for it |
//! | `receive` | bytes in, and bytes that are kept while a connection is paused |
//! | `send` | bytes out |
//! | `closing` | how a connection ends |
//! | `socket` | one connection's state |
//! | `rings` | all rings, and the wait on them |
//! | `ring`, `buffers` | one ring as safe functions: all unsafe code |
//! | `token` | which operation a completion is of |
//!
//! Each module uses those below it. See io_uring(7), and the comments at each operation for what the manual
//! does not say.

mod accept;
mod buffers;
mod closing;
mod connections;
mod receive;
mod ring;
mod rings;
mod send;
mod socket;
mod token;

use std::io;
use std::mem;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_backend::batch::Wake;
pub use tidegate_machine::io_uring::{Unavailable, probe};

use self::accept::Acceptor;
use self::connections::Connections;
use self::ring::Completion;
pub use self::rings::Capacity;
use self::rings::{Gathering, Rings};
use self::token::Token;
use super::accept_state::Wait;
use super::coalesce::{Coalescer, EVENTS_ENOUGH};
use super::{CloseCause, ConnId, Driver, Mechanism, SendState, Sink};

/// Completions that one poll takes at most: enough to share a system call, and a turn, among many connections;
/// few enough that what the kernel and the shard keep of them is still in the cache when their answers come
/// back from workers.
const EVENTS_MAX: usize = 128;

/// How often the accepts in flight are cancelled before the listening socket is closed nevertheless.
const CANCEL_TRIES: u32 = 1_000;

/// How long a cancellation is waited for each time.
const CANCEL_WAIT: Duration = Duration::from_millis(1);

/// A shard's sockets behind io_uring.
#[derive(Debug)]
pub struct Uring {
    acceptor: Acceptor,
    connections: Connections,
    /// Kept for its memory.
    completions: Vec<Completion>,
    /// The ring that is looked at next: where there is too much for one poll, no ring comes last each time.
    next_ring: usize,
    coalescer: Coalescer,
    /// Wake-ups among the completions of this poll.
    wakeups: usize,
}

impl Uring {
    /// A driver that accepts from these listening sockets: 256 at most, or none. The thread that polls it first is the one that
    /// uses it.
    ///
    /// # Errors
    /// When the kernel gives no ring, or no thread to make it.
    pub fn new(listeners: Vec<TcpListener>, capacity: Capacity) -> io::Result<Self> {
        Ok(Self {
            acceptor: Acceptor::new(listeners),
            connections: Connections::new(Rings::new(capacity)?),
            completions: Vec::new(),
            next_ring: 0,
            coalescer: Coalescer::default(),
            wakeups: 0,
        })
    }

    /// The same driver, which lets completions gather for `delay_max` at most before it takes them.
    #[must_use]
    pub fn coalescing(mut self, delay_max: Duration) -> Self {
        self.coalescer = Coalescer::new(delay_max);
        self
    }

    /// What ends a wait early, from any thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        self.connections.rings.waker()
    }

    /// Submits what was asked for, and waits if there is nothing to do.
    fn submit_and_wait(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let idle_for = sink.idle_for();
        let lingering = self.connections.lingering.front();
        let lingering = lingering.map_or(Wait::Forever, |(until, _)| Wait::Until(*until));
        let timeout = self.acceptor.wait(sink).or_shorter(idle_for, Instant::now);
        let timeout = lingering.or_shorter(timeout, Instant::now);
        let busy = self.connections.has_work();
        let gathering = self
            .coalescer
            .delay()
            .map(|time_max| Gathering { completions: EVENTS_ENOUGH as usize, time_max });
        if self.connections.rings.submit_and_wait(busy, gathering, timeout)? {
            sink.coalescing();
        }
        Ok(())
    }

    /// Takes the completions, and those that come meanwhile, until there are none or [`EVENTS_MAX`] were
    /// taken. Says how many they were.
    fn harvest(&mut self, sink: &mut impl Sink) -> io::Result<usize> {
        let mut seen = 0;
        // Rings in a row that have nothing.
        let mut empty = 0;
        while empty < self.connections.rings.count() && seen < EVENTS_MAX {
            let count = self.harvest_ring(self.next_ring, EVENTS_MAX - seen, sink)?;
            seen += count;
            empty = if count > 0 { 0 } else { empty + 1 };
            self.next_ring = (self.next_ring + 1) % self.connections.rings.count();
        }
        Ok(seen)
    }

    /// Takes completions of one ring, `completions_max` at most. Says how many they were.
    fn harvest_ring(
        &mut self,
        index: usize,
        completions_max: usize,
        sink: &mut impl Sink,
    ) -> io::Result<usize> {
        let mut completions = mem::take(&mut self.completions);
        let ring = &mut self.connections.rings[index];
        if !ring.has_completions() && ring.may_complete() {
            // The kernel writes completions only when this thread enters it: io_uring_setup(2),
            // IORING_SETUP_DEFER_TASKRUN.
            ring.submit()?;
        }
        // Sends that are submitted from here on are not confirmed by these completions.
        let confirmed = ring.take_completions(&mut completions, completions_max);
        let count = completions.len();
        for completion in completions.drain(..) {
            self.complete(index, completion, sink);
        }
        self.completions = completions;
        if count > 0 {
            self.connections.rings[index].buffers.publish();
        }
        if let Some(confirmed) = confirmed {
            self.connections.confirm_sends(index, confirmed);
        }
        Ok(count)
    }

    #[inline]
    fn complete(&mut self, ring: usize, completion: Completion, sink: &mut impl Sink) {
        let Completion { token, result, more, .. } = completion;
        let connections = &mut self.connections;
        match token {
            Token::Receive(conn) => connections.on_received(ring, conn, completion, sink),
            Token::SendNow(number) => connections.on_send_failed(ring, number, result),
            Token::Send(conn) => connections.on_sent(ring, conn, result),
            Token::Writable(conn) => connections.on_writable(conn, result, more),
            Token::Accept(address) => {
                self.acceptor.on_completed(connections, ring, address, result, sink);
            }
            Token::Watch(conn) => connections.on_watched(conn, result, more),
            Token::Error(conn) => connections.on_error(conn, result),
            Token::Shutdown(conn) => connections.on_shut_down(conn),
            Token::Wake => {
                self.wakeups += 1;
                connections.rings.on_wakeup(more);
            }
            Token::Nothing => {}
        }
    }

    /// Closes the listening socket, if it is to be closed and no connection waits that may still be accepted.
    /// No accept may be in flight then: it would keep the socket open.
    fn close_listener_if_due(&mut self, now: Instant, sink: &mut impl Sink) -> io::Result<()> {
        if !self.acceptor.may_close(now, sink) {
            return Ok(());
        }
        for _ in 0..CANCEL_TRIES {
            // A cancellation does not find an accept that the kernel is trying again. A later one does.
            self.acceptor.cancel(&mut self.connections.rings);
            if !self.acceptor.has_in_flight() {
                break;
            }
            self.connections.rings.let_complete(CANCEL_WAIT)?;
            self.harvest(sink)?;
        }
        self.acceptor.close(&mut self.connections.rings, sink)
    }
}

impl Driver for Uring {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "uring", rings: self.connections.rings.count() }
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        self.connections.rings.enable()?;
        self.connections.begin_poll();
        if self.connections.report_outcomes(sink) {
            self.acceptor.on_connection_closed();
        }
        self.connections.expire_lingering();
        self.acceptor.accept_more(&mut self.connections, sink);
        self.submit_and_wait(sink)?;
        let now = Instant::now();
        sink.woken(now);
        let ready = mem::take(&mut self.connections.ready);
        let confirming = mem::take(&mut self.connections.confirming);
        self.wakeups = 0;
        let completions = self.harvest(sink)?;
        // What waited for the result of a send has gone on, or has asked again: unless completions were left, or rings.
        self.connections.confirming |= confirming && completions >= EVENTS_MAX;
        self.coalescer.on_polled(now, completions - self.wakeups);
        self.connections.report_ready(ready, sink);
        self.acceptor.on_poll(now, sink);
        self.close_listener_if_due(now, sink)?;
        self.connections.rings.take_failure()
    }

    #[inline]
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        self.connections.start_sending(conn, bytes)
    }

    fn pause_receive(&mut self, conn: ConnId) {
        self.connections.pause_receive(conn);
    }

    fn resume_receive(&mut self, conn: ConnId) {
        self.connections.resume_receive(conn);
    }

    fn shutdown(&mut self, conn: ConnId) {
        self.connections.shutdown(conn);
    }

    fn close(&mut self, conn: ConnId) {
        self.connections.end(conn, CloseCause::Local);
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.acceptor.set_wanted(accepting, &mut self.connections.rings);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.acceptor.stop(until);
    }
}

#[cfg(test)]
mod tests;
