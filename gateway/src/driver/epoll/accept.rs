//! Connections in: accepting in portions, pausing when descriptors run out, and the last who are let in.

use std::io;
use std::mem;
use std::net;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::net::{TcpListener, TcpStream};

use super::{Epoll, Flags, Socket, token};
use crate::driver::{Event, Sink};

/// Connections that one poll accepts at most, so that a storm of them doesn't starve the others.
const ACCEPTS_MAX: usize = 64;

/// Polls that let in who waits, once the listening socket is to be closed: with [`ACCEPTS_MAX`] that is
/// the default backlog.
pub(super) const LAST_POLLS: u32 = 64;

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
    /// The listening socket is to be closed, after so many polls at most.
    pub(super) last_polls: Option<u32>,
}

impl Epoll {
    pub(super) fn accept(&mut self, sink: &mut impl Sink) {
        for _ in 0..ACCEPTS_MAX {
            if !self.acceptor.wanted || self.acceptor.retry_at.is_some() || sink.room() == 0 {
                return;
            }
            let Some(listener) = &self.acceptor.listener else { return };
            match listener.accept() {
                Ok((stream, peer)) => {
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

    /// Closes the listening socket, if it is to be closed and nobody waits or can be let in.
    pub(super) fn stop_if_last(&mut self, sink: &mut impl Sink) {
        let Some(polls) = self.acceptor.last_polls else { return };
        let more = self.acceptor.ready && self.acceptor.retry_at.is_none() && sink.room() > 0;
        if more && polls > 0 {
            self.acceptor.last_polls = Some(polls - 1);
            return;
        }
        self.acceptor.last_polls = None;
        self.acceptor.retry_at = None;
        self.acceptor.listener = None;
        sink.event(Event::ListeningStopped);
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
