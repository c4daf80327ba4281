//! Connections in: accepting in portions, pausing when descriptors run out, and the last who are let in.

use std::io;
use std::mem;
use std::net;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::net::{TcpListener, TcpStream};

use super::{Epoll, Flags, Socket, token};
use crate::driver::accept_queue::{self, LastAccepts};
use crate::driver::{Event, Sink};

/// Connections that one poll accepts at most, so that a storm of them doesn't starve the others.
const ACCEPTS_MAX: usize = 64;

/// How long to wait before accepting is tried again when descriptors have run out.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The listening socket, and whether it is to be accepted from.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) listener: Option<TcpListener>,
    /// Whether the shard wants connections.
    pub(super) wanted: bool,
    /// Whether the queue may hold connections: set by an edge, cleared by would-block.
    pub(super) ready: bool,
    /// Descriptors have run out, and the sink was told. Nobody came in since.
    pub(super) paused: bool,
    /// When to try again; `Some` only while `paused`.
    pub(super) retry_at: Option<Instant>,
    /// The listening socket is to be closed, after these.
    pub(super) last: Option<LastAccepts>,
}

impl Acceptor {
    /// Begins to close the listening socket.
    pub(super) fn stop(&mut self, until: Instant) {
        if let Some(listener) = &self.listener
            && self.last.is_none()
        {
            self.last = Some(LastAccepts::new(listener, until));
            // Connections that came since the last edge are accepted too, where accepting was off.
            self.ready = true;
            self.wanted = true;
        }
    }

    /// Whether a connection that waits can be accepted now.
    pub(super) fn can_accept(&self, sink: &mut impl Sink) -> bool {
        self.wanted && self.retry_at.is_none() && sink.accept_budget() > 0
    }
}

impl Epoll {
    pub(super) fn accept(&mut self, sink: &mut impl Sink) {
        for _ in 0..ACCEPTS_MAX {
            let may_accept = self.acceptor.last.as_ref().is_none_or(LastAccepts::has_left);
            if !may_accept || !self.acceptor.can_accept(sink) {
                return;
            }
            let Some(listener) = &self.acceptor.listener else { return };
            match listener.accept() {
                Ok((stream, peer)) => {
                    if let Some(last) = &mut self.acceptor.last {
                        last.count();
                    }
                    self.end_pause(sink);
                    self.take_in(stream, peer, sink);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.acceptor.ready = false;
                        return self.end_pause(sink);
                    }
                    // The connection was gone before it was taken: accept(2).
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => {
                        self.acceptor.retry_at = Some(Instant::now() + ACCEPT_RETRY);
                        if !mem::replace(&mut self.acceptor.paused, true) {
                            sink.event(Event::AcceptPaused { error });
                        }
                        return;
                    }
                },
            }
        }
    }

    /// Closes the listening socket, if it is to be closed and nobody waits who may still be let in.
    pub(super) fn stop_if_last(&mut self, now: Instant, sink: &mut impl Sink) {
        let Some(last) = &self.acceptor.last else { return };
        // Where descriptors have run out, accept(2) says so whether or not somebody waits.
        let listener = self.acceptor.listener.as_ref();
        let waits = listener.is_some_and(|one| accept_queue::is_waited_for(one, Duration::ZERO));
        if waits && last.go_on(self.acceptor.can_accept(sink), now) {
            self.acceptor.ready = true;
            return;
        }
        self.acceptor.last = None;
        self.acceptor.retry_at = None;
        let mut reset = 0;
        if let Some(listener) = self.acceptor.listener.take() {
            reset = accept_queue::waiting(&listener);
            // Other threads' tables of descriptors may have copies of it, which would keep it open.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Read);
        }
        sink.event(Event::ListeningStopped { reset });
    }

    /// Somebody came in, or nobody waits any longer.
    fn end_pause(&mut self, sink: &mut impl Sink) {
        if mem::take(&mut self.acceptor.paused) {
            sink.event(Event::AcceptResumed);
        }
    }

    fn take_in(&mut self, stream: TcpStream, peer: net::SocketAddr, sink: &mut impl Sink) {
        let socket = Socket { stream, sending: None, flags: Flags::default() };
        let conn = self.sockets.insert(socket);
        let socket = self.sockets.get_mut(conn).expect("it was just inserted");
        let registered =
            self.poll.registry().register(&mut socket.stream, token(conn), Interest::READABLE);
        sink.event(Event::Accepted { conn, peer });
        if let Err(error) = registered {
            self.fail(conn, &error);
        }
    }

    pub(super) fn retry_accept(&mut self, now: Instant) {
        if self.acceptor.retry_at.is_some_and(|at| at <= now) {
            self.acceptor.retry_at = None;
            self.acceptor.ready = true;
        }
    }
}
