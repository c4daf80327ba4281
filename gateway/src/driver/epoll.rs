//! The epoll driver, through mio: edge-triggered, one system call per read and per write.
//!
//! [`Epoll`] owns the poll loop. A shard's thread calls it through [`Driver`], and nobody else does, but for
//! the waker. It saves system calls in three ways. A read that comes short has emptied the socket, so it is
//! not tried again (epoll(7) promises a new edge). Interest in writability is registered only once a write
//! has come short. Accepted sockets inherit their options from the listener. And a wait may let events gather: see
//! `driver/coalesce.rs`.
//!
//! | module | what it owns |
//! |---|---|
//! | `accept` | the listening sockets |
//! | `connections` | sockets, sends, ends |
//! | `receive` | reads, and how what was read is handed over |

mod accept;
mod connections;
mod receive;

use std::io;
use std::mem;
use std::net;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Events, Poll, Token, Waker};
use tidegate_backend::batch::Wake;

use self::accept::Acceptor;
use self::connections::{Connections, conn_id};
use super::coalesce::Coalescer;
use super::{CloseCause, ConnId, Driver, Mechanism, SendState, Sink};

/// Events that one wait takes at most: enough to share a system call, and a turn, among many connections; few
/// enough that what the kernel and the shard keep of them is still in the cache when their answers come back
/// from workers. Measured with 1,000 connections of 8 requests each through a worker: 128 and 64 cost a tenth
/// less CPU time than 1,024.
const EVENTS_MAX: usize = 128;

const WAKER: Token = Token(usize::MAX);

/// A shard's sockets behind epoll.
#[derive(Debug)]
pub struct Epoll {
    events: Events,
    waker: Arc<Wakeup>,
    acceptor: Acceptor,
    connections: Connections,
    coalescer: Coalescer,
}

#[derive(Debug)]
struct Wakeup(Waker);

impl Wake for Wakeup {
    fn wake(&self) {
        // The only failure is a full counter, which means that it is awake already.
        drop(self.0.wake());
    }
}

impl Epoll {
    /// A driver that accepts from these listening sockets: 256 at most, or none.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance.
    pub fn new(listeners: Vec<net::TcpListener>) -> io::Result<Self> {
        let poll = Poll::new()?;
        Ok(Self {
            events: Events::with_capacity(EVENTS_MAX),
            waker: Arc::new(Wakeup(Waker::new(poll.registry(), WAKER)?)),
            acceptor: Acceptor::new(listeners, &poll)?,
            connections: Connections::new(poll),
            coalescer: Coalescer::default(),
        })
    }

    /// The same driver, which lets events gather for `delay_max` at most before it takes them.
    #[must_use]
    pub fn coalescing(mut self, delay_max: Duration) -> Self {
        self.coalescer = Coalescer::new(delay_max);
        self
    }

    /// What ends a wait early, from any thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }

    /// Waits: as long as the sink says, unless there is something to do here.
    fn wait(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let idle_for = sink.idle_for();
        let timeout = if self.connections.has_work() {
            Some(Duration::ZERO)
        } else {
            self.acceptor.wait(sink).or_shorter(idle_for, Instant::now)
        };
        if timeout != Some(Duration::ZERO)
            && let Some(delay) = self.coalescer.delay()
        {
            sink.coalescing();
            thread::sleep(timeout.map_or(delay, |timeout| timeout.min(delay)));
        }
        match self.connections.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }
}

impl Driver for Epoll {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "epoll", rings: 0 }
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        if self.connections.report_outcomes(sink) {
            self.acceptor.state.on_connection_closed();
        }
        self.wait(sink)?;
        let now = Instant::now();
        sink.woken(now);
        let events = self.events.iter().filter(|event| event.token() != WAKER).count();
        self.coalescer.on_polled(now, events);
        let readable = mem::take(&mut self.connections.readable);
        for event in &self.events {
            match event.token() {
                WAKER => {}
                token if accept::is_listener(token) => self.acceptor.on_edge(token),
                token => self.connections.on_event(conn_id(token), event, sink),
            }
        }
        self.connections.hand_over(sink);
        self.connections.report_readable(readable, sink);
        self.acceptor.on_poll(&mut self.connections, now, sink);
        Ok(())
    }

    #[inline]
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        self.connections.send(conn, bytes)
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
        self.acceptor.state.set_wanted(accepting);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.acceptor.stop(until);
    }
}
