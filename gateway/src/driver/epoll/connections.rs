//! The connections of the epoll driver: their sockets, what is sent on them, and how they end.
//!
//! [`Connections`] owns the epoll instance and each socket that is registered with it. The poll loop and the
//! driver's commands call it. It never accepts and never reads: see [`accept`](super::accept) and
//! [`receive`](super::receive). What it has to report of sends and ends waits in `outcomes` for the next
//! poll, since commands never report inline.

use std::io;
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;

use bytes::{Buf as _, Bytes};
use mio::net::TcpStream;
use mio::{Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::driver::slots::Slots;
use crate::driver::{CloseCause, ConnId, Event, RECEIVE_BYTES_MAX, SendState, Sink};

/// Connections that are read from before what came is handed over: the kernel's code and the shard's
/// evict each other from the cache, so they alternate less often.
pub(super) const GATHERED_MAX: usize = 16;

/// All connections of a driver.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) poll: Poll,
    pub(super) sockets: Slots<Socket>,
    /// What sends and closes came to since the last poll.
    outcomes: Vec<Outcome>,
    /// Connections that have more to read than the last poll took.
    pub(super) readable: Vec<ConnId>,
    /// Received bytes are lent from here. Behind what was gathered there is space for one more read.
    pub(super) buffer: Box<[u8]>,
    /// What was received and not handed over: its place in `buffer`.
    pub(super) gathered: Vec<(ConnId, Range<usize>)>,
}

/// 24 bytes: an idle connection costs no more here.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    /// What is left of the send under way, or of one that the kernel will never take.
    sending: Option<Box<Sending>>,
    pub(super) flags: Flags,
}

#[derive(Debug)]
struct Sending {
    rest: Bytes,
    total: usize,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one socket")]
pub(super) struct Flags {
    /// The core does not want bytes now.
    pub(super) paused: bool,
    /// There may be bytes that were not read, as it was paused.
    pub(super) unread: bool,
    /// It is in `readable`.
    pub(super) queued: bool,
    /// epoll has announced the peer's end. The end itself is read after the last byte.
    pub(super) ending: bool,
    /// The end was reported.
    pub(super) ended: bool,
    /// Interest in writability is registered.
    watches_writable: bool,
    /// Shut down once the send under way is done.
    shutdown: bool,
    /// `Closed` is in `outcomes`.
    pub(super) closed: bool,
}

#[derive(Debug)]
enum Outcome {
    Sent(ConnId, usize),
    Closed(ConnId, CloseCause),
}

impl Connections {
    pub(super) fn new(poll: Poll) -> Self {
        Self {
            poll,
            sockets: Slots::new(),
            outcomes: Vec::new(),
            readable: Vec::new(),
            buffer: vec![0; 2 * RECEIVE_BYTES_MAX].into_boxed_slice(),
            gathered: Vec::with_capacity(GATHERED_MAX),
        }
    }

    /// Reports a connection that was accepted, and watches it from now on.
    pub(super) fn add(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        listener: u8,
        sink: &mut impl Sink,
    ) {
        let socket = Socket { stream, sending: None, flags: Flags::default() };
        let conn = self.sockets.insert(socket);
        let socket = self.sockets.get_mut(conn).expect("it was just inserted");
        let registered =
            self.poll.registry().register(&mut socket.stream, token(conn), Interest::READABLE);
        sink.event(Event::Accepted { conn, peer, listener, is_open: true });
        if let Err(error) = registered {
            self.fail(conn, &error);
        }
    }

    /// Whether the next poll has something to report without a wait.
    pub(super) fn has_work(&self) -> bool {
        !self.readable.is_empty() || !self.outcomes.is_empty()
    }

    /// Reports what sends and closes came to. Says whether a connection has closed: its descriptor is free.
    pub(super) fn report_outcomes(&mut self, sink: &mut impl Sink) -> bool {
        let mut any_closed = false;
        let mut outcomes = mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Sent(conn, bytes) => sink.event(Event::Sent { conn, bytes }),
                Outcome::Closed(conn, cause) => {
                    let sending = self.sockets.remove(conn).and_then(|socket| socket.sending);
                    let unsent_bytes = sending.map_or(0, |sending| sending.rest.len());
                    sink.event(Event::Closed { conn, cause, unsent_bytes });
                    any_closed = true;
                }
            }
        }
        self.outcomes = outcomes;
        any_closed
    }

    #[inline]
    pub(super) fn send(&mut self, conn: ConnId, mut bytes: Bytes) -> SendState {
        let Some(socket) = self.sockets.get_mut(conn) else { return SendState::UnderWay };
        debug_assert!(socket.sending.is_none(), "one send at a time");
        let total = bytes.len();
        if socket.flags.closed {
            socket.sending = Some(Box::new(Sending { rest: bytes, total }));
            return SendState::UnderWay;
        }
        match send(&socket.stream, &bytes, SendFlags::NOSIGNAL) {
            Ok(written) if written == total => return SendState::Done,
            Ok(written) => {
                bytes.advance(written);
                self.keep_sending(conn, bytes, total);
            }
            Err(Errno::AGAIN | Errno::INTR) => self.keep_sending(conn, bytes, total),
            Err(error) => {
                socket.sending = Some(Box::new(Sending { rest: bytes, total }));
                self.fail(conn, &error.into());
            }
        }
        SendState::UnderWay
    }

    /// Keeps what a send has left, and has epoll say when the socket is writable.
    fn keep_sending(&mut self, conn: ConnId, rest: Bytes, total: usize) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.sending = Some(Box::new(Sending { rest, total }));
        if !mem::replace(&mut socket.flags.watches_writable, true) {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            if let Err(error) = registry.reregister(&mut socket.stream, token(conn), interest) {
                self.fail(conn, &error);
            }
        }
    }

    /// Sends what is left of the send under way, if there is one.
    pub(super) fn continue_send(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let Some(sending) = socket.sending.as_mut() else { return };
        while !sending.rest.is_empty() {
            match send(&socket.stream, &sending.rest, SendFlags::NOSIGNAL) {
                Ok(written) => sending.rest.advance(written),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(conn, &error.into()),
            }
        }
        let total = sending.total;
        socket.sending = None;
        self.outcomes.push(Outcome::Sent(conn, total));
        if socket.flags.shutdown {
            shut_down(&socket.stream);
        }
    }

    pub(super) fn shutdown(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.flags.shutdown = true;
        if socket.sending.is_none() {
            shut_down(&socket.stream);
        }
    }

    /// The next poll closes a connection and reports it, once.
    pub(super) fn end(&mut self, conn: ConnId, cause: CloseCause) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && !mem::replace(&mut socket.flags.closed, true)
        {
            self.outcomes.push(Outcome::Closed(conn, cause));
        }
    }

    pub(super) fn fail(&mut self, conn: ConnId, error: &io::Error) {
        self.end(conn, CloseCause::of(error));
    }

    /// epoll has announced an error.
    pub(super) fn take_error(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        match socket.stream.take_error() {
            Ok(Some(error)) | Err(error) => self.fail(conn, &error),
            // A read has taken the error already, or the peer has reset after its end.
            Ok(None) => self.end(conn, CloseCause::Reset),
        }
    }
}

fn shut_down(stream: &TcpStream) {
    // It fails only on a connection that is gone, which an event will say.
    drop(stream.shutdown(Shutdown::Write));
}

/// A connection as epoll carries it: the generation above the slot.
fn token(conn: ConnId) -> Token {
    Token((conn.generation as usize) << 32 | conn.slot as usize)
}

/// Of which connection an event is.
#[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
pub(super) fn conn_id(token: Token) -> ConnId {
    ConnId { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
}
