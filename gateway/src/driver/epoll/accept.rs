//! Accepting with epoll.
//!
//! Owns the listening sockets, and of each the one fact that only epoll has: whether epoll has announced connections
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

/// A listening socket.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// The queue may hold connections: set by an edge, cleared by would-block.
    ready: bool,
}

/// The listening sockets.
#[derive(Debug)]
pub(super) struct Acceptor {
    /// None once they are closed.
    listeners: Vec<Listener>,
    /// The one that is accepted from next, so that no queue has to wait until another is empty.
    next: usize,
    pub(super) state: AcceptState,
}

/// The token of the first listening socket. Those of the others are below it, and those of connections are far below.
const FIRST: usize = usize::MAX - 1;

/// Whether a token is that of a listening socket.
pub(super) const fn is_listener(token: Token) -> bool {
    token.0 <= FIRST && token.0 > FIRST - LISTENERS_MAX
}

/// As many as [`Event::Accepted`](crate::driver::Event::Accepted) can name.
const LISTENERS_MAX: usize = 256;

impl Acceptor {
    pub(super) fn new(sockets: Vec<std::net::TcpListener>, poll: &Poll) -> io::Result<Self> {
        assert!(sockets.len() <= LISTENERS_MAX, "{} listening sockets", sockets.len());
        let mut listeners = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let mut socket = TcpListener::from_std(socket);
            poll.registry().register(&mut socket, Token(FIRST - index), Interest::READABLE)?;
            listeners.push(Listener { socket, ready: false });
        }
        let state = AcceptState::new(!listeners.is_empty());
        Ok(Self { listeners, next: 0, state })
    }

    /// An edge: the queue of a listening socket has got a connection.
    pub(super) fn on_edge(&mut self, token: Token) {
        if let Some(listener) = self.listeners.get_mut(FIRST - token.0) {
            listener.ready = true;
        }
    }

    pub(super) fn stop(&mut self, until: Instant) {
        let capacity = |listener: &Listener| accept_queue::capacity(&listener.socket);
        self.state.stop(self.listeners.iter().map(capacity).sum(), until);
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
        self.accept(connections, sink);
        if !self.state.is_stopping() {
            return;
        }
        let waiting = self.waiting();
        if self.state.may_close(waiting, sink.accept_budget(), now) {
            let close = |listener: Listener| accept_queue::close(listener.socket);
            let reset = self.listeners.drain(..).map(close).sum();
            sink.event(self.state.on_closed(reset));
        }
    }

    fn accept(&mut self, connections: &mut Connections, sink: &mut impl Sink) {
        for _ in 0..ACCEPTS_MAX {
            let Some(index) = self.next_ready() else { return };
            if self.state.accepts_allowed(sink.accept_budget()) == 0 {
                return;
            }
            let listener = &mut self.listeners[index];
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    report(self.state.on_accepted(), sink);
                    let index = u8::try_from(index).expect("there are 256 at most");
                    connections.add(stream, peer, index, sink);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    listener.ready = false;
                    report(self.state.on_queue_empty(), sink);
                }
                Err(error) if error.raw_os_error().is_some_and(is_of_one_connection) => {}
                Err(error) => return report(self.state.on_refused(error, Instant::now()), sink),
            }
        }
    }

    /// The next one, in turn, whose queue may hold connections.
    fn next_ready(&mut self) -> Option<usize> {
        let count = self.listeners.len();
        let from_next = (0..count).map(|step| (self.next + step) % count);
        let found = from_next.into_iter().find(|&index| self.listeners[index].ready)?;
        self.next = found + 1;
        Some(found)
    }

    fn waiting(&mut self) -> Waiting {
        if self.state.is_stopping() {
            // accept(2) can't say it: without a descriptor it fails whether or not a connection waits. The
            // last edge can't either: accepts since then may have emptied the queue.
            for listener in &mut self.listeners {
                listener.ready = accept_queue::is_waited_for(&listener.socket, Duration::ZERO);
            }
        }
        let in_queue = self.listeners.iter().any(|listener| listener.ready);
        Waiting { in_queue, parked: false }
    }
}
