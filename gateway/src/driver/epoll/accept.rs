//! Accepting with epoll.
//!
//! Owns the listening socket and the one fact that only epoll has: whether epoll has announced connections
//! since an accept last found none. [`AcceptState`] decides whether connections are accepted. The poll loop
//! calls this once in each poll, with the table that new connections go to. It accepts a bounded number each time and
//! never blocks.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Interest, Poll, Token};

use super::connections::Connections;
use crate::driver::Sink;
use crate::driver::accept_queue;
use crate::driver::accept_state::{AcceptState, Wait, Waiting, is_of_one_connection, report};

/// Connections that one poll accepts at most, so that very many at once do not delay the bytes of others.
const ACCEPTS_MAX: usize = 64;

/// The listening socket.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// `None` once it is closed, or where there never was one.
    listener: Option<TcpListener>,
    /// The queue may hold connections: set by an edge, cleared by would-block.
    ready: bool,
    pub(super) state: AcceptState,
}

impl Acceptor {
    pub(super) fn new(
        listener: Option<std::net::TcpListener>,
        poll: &Poll,
        token: Token,
    ) -> io::Result<Self> {
        let mut listener = match listener {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                Some(TcpListener::from_std(listener))
            }
            None => None,
        };
        if let Some(listener) = &mut listener {
            poll.registry().register(listener, token, Interest::READABLE)?;
        }
        let state = AcceptState::new(listener.is_some());
        Ok(Self { listener, ready: false, state })
    }

    /// An edge: the queue has got a connection.
    pub(super) const fn on_edge(&mut self) {
        self.ready = true;
    }

    pub(super) fn stop(&mut self, until: Instant) {
        if let Some(listener) = &self.listener {
            self.state.stop(accept_queue::capacity(listener), until);
        }
    }

    /// How long the driver may wait, as far as accepting is concerned.
    pub(super) fn wait(&mut self, sink: &mut impl Sink) -> Wait {
        let waiting = self.waiting();
        let budget = if waiting.in_queue { sink.accept_budget() } else { 0 };
        self.state.wait(waiting, budget)
    }

    /// Accepts the connections that wait, as many as this poll may. Then closes the listening socket, if it
    /// is to be closed and no connection waits that may still be accepted.
    pub(super) fn on_poll(
        &mut self,
        connections: &mut Connections,
        now: Instant,
        sink: &mut impl Sink,
    ) {
        self.state.on_time(now);
        if self.ready {
            self.accept(connections, sink);
        }
        if !self.state.is_stopping() {
            return;
        }
        let waiting = self.waiting();
        if self.state.may_close(waiting, sink.accept_budget(), now) {
            let reset = self.listener.take().map_or(0, accept_queue::close);
            sink.event(self.state.on_closed(reset));
        }
    }

    fn accept(&mut self, connections: &mut Connections, sink: &mut impl Sink) {
        for _ in 0..ACCEPTS_MAX {
            if self.state.accepts_allowed(sink.accept_budget()) == 0 {
                return;
            }
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, peer)) => {
                    report(self.state.on_accepted(), sink);
                    connections.add(stream, peer, sink);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.ready = false;
                    return report(self.state.on_queue_empty(), sink);
                }
                Err(error) if error.raw_os_error().is_some_and(is_of_one_connection) => {}
                Err(error) => return report(self.state.on_refused(error, Instant::now()), sink),
            }
        }
    }

    fn waiting(&mut self) -> Waiting {
        if self.state.is_stopping() {
            // accept(2) can't say it: without a descriptor it fails whether or not a connection waits. The
            // last edge can't either: accepts since then may have emptied the queue.
            let listener = self.listener.as_ref();
            self.ready =
                listener.is_some_and(|one| accept_queue::is_waited_for(one, Duration::ZERO));
        }
        Waiting { in_queue: self.ready, parked: false }
    }
}
