//! The epoll driver, through mio: edge-triggered, one system call per read and per write.
//!
//! Most of what it does is avoid work. A read that comes short has emptied the socket, so it isn't
//! tried again (epoll(7) promises a new edge); interest in writability is registered only once a
//! write has come short; accepted sockets inherit their options from the listener.

mod accept;

use std::io;
use std::mem;
use std::net::{self, Shutdown};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tidegate_backend::batch::Wake;

use self::accept::{ACCEPT_RETRY, Acceptor};
use super::slots::Slots;
use super::{CloseCause, ConnId, Driver, Event, Mechanism, RECEIVE_BYTES_MAX, SendState, Sink};

/// Events that one wait takes at most: enough to share a system call, and a turn, among many
/// connections; few enough that the last of them waits for a few milliseconds.
const EVENTS_MAX: usize = 1024;

/// Connections that are read from before what came is handed over: the kernel's code and the shard's
/// push each other out of the cache, so they take turns less often.
const GATHERED_MAX: usize = 16;

const WAKER: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);

/// A shard's sockets behind epoll.
#[derive(Debug)]
pub struct Epoll {
    poll: Poll,
    events: Events,
    waker: Arc<Wakeup>,
    acceptor: Acceptor,
    sockets: Slots<Socket>,
    /// What commands came to since the last poll.
    outcomes: Vec<Outcome>,
    /// Connections that have more to read than the last poll took.
    readable: Vec<ConnId>,
    /// Received bytes are lent from here. It has room for one read behind what was gathered.
    buffer: Box<[u8]>,
    /// What was received and not handed over: where it stands in `buffer`.
    gathered: Vec<(ConnId, Range<usize>)>,
}

#[derive(Debug)]
struct Wakeup(Waker);

impl Wake for Wakeup {
    fn wake(&self) {
        // The only failure is a full counter, which means that it is awake already.
        drop(self.0.wake());
    }
}

/// 24 bytes: a connection that is idle costs no more here.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    /// What is left of the send under way, or of one that never will be.
    sending: Option<Box<Sending>>,
    flags: Flags,
}

#[derive(Debug)]
struct Sending {
    rest: Bytes,
    total: usize,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one socket")]
struct Flags {
    /// The shard does not want bytes now.
    paused: bool,
    /// There may be bytes to read, which nobody has looked at.
    unread: bool,
    /// It stands in `readable`.
    queued: bool,
    /// The kernel said that the peer has ended; the end itself is read after the last byte.
    ending: bool,
    /// The end was reported.
    ended: bool,
    /// Interest in writability is registered.
    writable: bool,
    /// Shut down once the send under way is done.
    shutdown: bool,
    /// `Closed` is on its way.
    closed: bool,
}

#[derive(Debug)]
enum Outcome {
    Sent(ConnId, usize),
    Closed(ConnId, CloseCause),
}

impl Epoll {
    /// A driver that accepts from `listener`, or from nobody.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance.
    pub fn new(listener: Option<net::TcpListener>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Wakeup(Waker::new(poll.registry(), WAKER)?));
        let listener = match listener {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                let mut listener = TcpListener::from_std(listener);
                poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
                Some(listener)
            }
            None => None,
        };
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            acceptor: Acceptor {
                listener,
                wanted: true,
                ready: false,
                paused: false,
                retry_at: None,
                last: None,
            },
            sockets: Slots::new(),
            outcomes: Vec::new(),
            readable: Vec::new(),
            buffer: vec![0; 2 * RECEIVE_BYTES_MAX].into_boxed_slice(),
            gathered: Vec::with_capacity(GATHERED_MAX),
        })
    }

    /// What ends a wait early, from any thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.waker) as Arc<dyn Wake>
    }

    fn report_outcomes(&mut self, sink: &mut impl Sink) {
        let mut outcomes = mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Sent(conn, bytes) => sink.event(Event::Sent { conn, bytes }),
                Outcome::Closed(conn, cause) => {
                    let sending = self.sockets.remove(conn).and_then(|socket| socket.sending);
                    let unsent_bytes = sending.map_or(0, |sending| sending.rest.len());
                    sink.event(Event::Closed { conn, cause, unsent_bytes });
                    // A descriptor is free again.
                    self.acceptor.ready |= self.acceptor.retry_at.take().is_some();
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// Goes on reading from those that had more than the last poll took.
    fn report_readable(&mut self, mut readable: Vec<ConnId>, sink: &mut impl Sink) {
        for conn in readable.drain(..) {
            if let Some(socket) = self.sockets.get_mut(conn) {
                socket.flags.queued = false;
                self.receive(conn, sink);
            }
        }
        // What was queued meanwhile comes in the next poll.
        readable.append(&mut self.readable);
        self.readable = readable;
    }

    /// Reads once. What came is handed over together with what came on the next few connections.
    fn gather(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        let Flags { closed, ended, paused, ending, .. } = socket.flags;
        if closed || ended || paused || ending {
            return self.receive_alone(conn, sink);
        }
        let start = self.gathered.last().map_or(0, |(_, range)| range.end);
        let free = &mut self.buffer[start..start + RECEIVE_BYTES_MAX];
        match recv(&socket.stream, free, RecvFlags::empty()) {
            Ok((_, bytes)) if bytes > 0 => {
                self.gathered.push((conn, start..start + bytes));
                if bytes == RECEIVE_BYTES_MAX {
                    self.queue_readable(conn);
                }
                let left = self.buffer.len() - start - bytes;
                if self.gathered.len() == GATHERED_MAX || left < RECEIVE_BYTES_MAX {
                    self.hand_over(sink);
                }
            }
            // The next read says the same.
            Ok(_) | Err(Errno::INTR) => self.receive_alone(conn, sink),
            Err(Errno::AGAIN) => {}
            Err(error) => self.fail(conn, &error.into()),
        }
    }

    /// Reads on one connection, once what was gathered is out of the buffer.
    fn receive_alone(&mut self, conn: ConnId, sink: &mut impl Sink) {
        self.hand_over(sink);
        self.receive(conn, sink);
    }

    /// Hands over what was gathered, then sends the replies.
    fn hand_over(&mut self, sink: &mut impl Sink) {
        let mut gathered = mem::take(&mut self.gathered);
        for (conn, range) in &gathered {
            sink.event(Event::Received { conn: *conn, bytes: &self.buffer[range.clone()] });
        }
        for (conn, _) in gathered.drain(..) {
            self.reply(conn, sink);
        }
        self.gathered = gathered;
    }

    fn reply(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if let Some(reply) = sink.reply(conn) {
            let bytes = reply.len();
            if self.send(conn, reply) == SendState::Done {
                sink.event(Event::Sent { conn, bytes });
            }
        }
    }

    /// Reads once, or until the end where the kernel has announced it. Nothing may be gathered: it
    /// stands where this reads to.
    fn receive(&mut self, conn: ConnId, sink: &mut impl Sink) {
        debug_assert!(self.gathered.is_empty(), "bytes that are yet to be handed over");
        let mut budget = RECEIVE_BYTES_MAX;
        while budget > 0 {
            let Some(socket) = self.sockets.get_mut(conn) else { return };
            if socket.flags.closed || socket.flags.ended {
                return;
            }
            if socket.flags.paused {
                socket.flags.unread = true;
                return;
            }
            match recv(&socket.stream, &mut self.buffer[..budget], RecvFlags::empty()) {
                Ok((_, 0)) => {
                    socket.flags.ended = true;
                    sink.event(Event::Ended { conn });
                    return;
                }
                Ok((_, bytes)) => {
                    let drained = bytes < budget && !socket.flags.ending;
                    sink.event(Event::Received { conn, bytes: &self.buffer[..bytes] });
                    self.reply(conn, sink);
                    if drained {
                        return;
                    }
                    budget -= bytes;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => return self.fail(conn, &error.into()),
            }
        }
        self.queue_readable(conn);
    }

    fn queue_readable(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && !mem::replace(&mut socket.flags.queued, true)
        {
            self.readable.push(conn);
        }
    }

    /// Whether a connection is read from anyway, in this poll or the next: more would be more than its
    /// share.
    fn is_queued(&mut self, conn: ConnId) -> bool {
        self.sockets.get_mut(conn).is_some_and(|socket| socket.flags.queued)
    }

    /// Writes what is left of the send under way.
    fn continue_send(&mut self, conn: ConnId) {
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

    /// Keeps what a send has left and asks epoll to say when there is room.
    fn keep_sending(&mut self, conn: ConnId, rest: Bytes, total: usize) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.sending = Some(Box::new(Sending { rest, total }));
        if !mem::replace(&mut socket.flags.writable, true) {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let registry = self.poll.registry();
            if let Err(error) = registry.reregister(&mut socket.stream, token(conn), interest) {
                self.fail(conn, &error);
            }
        }
    }

    fn fail(&mut self, conn: ConnId, error: &io::Error) {
        self.end(conn, CloseCause::of(error));
    }

    fn end(&mut self, conn: ConnId, cause: CloseCause) {
        if let Some(socket) = self.sockets.get_mut(conn)
            && !mem::replace(&mut socket.flags.closed, true)
        {
            self.outcomes.push(Outcome::Closed(conn, cause));
        }
    }

    /// How long to wait: as the sink says, unless there is something to do here.
    fn wait_for(&self, sink: &mut impl Sink) -> Option<Duration> {
        let mut idle_for = sink.idle_for();
        let mut accept = self.acceptor.ready
            && self.acceptor.wanted
            && self.acceptor.retry_at.is_none()
            && self.acceptor.listener.is_some();
        if let Some(last) = &self.acceptor.last {
            accept = accept && sink.accept_budget() > 0;
            let left = last.until.saturating_duration_since(Instant::now());
            idle_for = Some(idle_for.map_or(left, |idle_for| idle_for.min(left)));
        }
        if accept || !self.readable.is_empty() || !self.outcomes.is_empty() {
            return Some(Duration::ZERO);
        }
        match (idle_for, self.acceptor.retry_at) {
            (Some(idle_for), Some(_)) => Some(idle_for.min(ACCEPT_RETRY)),
            (None, Some(_)) => Some(ACCEPT_RETRY),
            (idle_for, None) => idle_for,
        }
    }
}

impl Driver for Epoll {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "epoll", rings: 0 }
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        self.report_outcomes(sink);
        let wait_for = self.wait_for(sink);
        match self.poll.poll(&mut self.events, wait_for) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        let now = Instant::now();
        sink.woken(now);
        let readable = mem::take(&mut self.readable);
        let events = mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                WAKER => {}
                LISTENER => self.acceptor.ready = true,
                token => {
                    let conn = conn_id(token);
                    let Some(socket) = self.sockets.get_mut(conn) else { continue };
                    socket.flags.ending |= event.is_read_closed();
                    if event.is_writable() && socket.sending.is_some() {
                        self.continue_send(conn);
                    }
                    if event.is_error() {
                        self.take_error(conn);
                    } else if (event.is_readable() || event.is_read_closed())
                        && !self.is_queued(conn)
                    {
                        self.gather(conn, sink);
                    }
                }
            }
        }
        self.hand_over(sink);
        self.events = events;
        self.report_readable(readable, sink);
        self.retry_accept(now);
        if self.acceptor.ready {
            self.accept(sink);
        }
        self.stop_if_last(now, sink);
        Ok(())
    }

    #[inline]
    fn send(&mut self, conn: ConnId, mut bytes: Bytes) -> SendState {
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

    fn pause_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.paused = true;
        }
    }

    fn resume_receive(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.flags.paused = false;
        if mem::take(&mut socket.flags.unread) {
            self.queue_readable(conn);
        }
    }

    fn shutdown(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        socket.flags.shutdown = true;
        if socket.sending.is_none() {
            shut_down(&socket.stream);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.end(conn, CloseCause::Local);
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.acceptor.wanted = accepting;
    }

    fn stop_listening(&mut self, until: Instant) {
        self.acceptor.stop(until);
    }
}

impl Epoll {
    fn take_error(&mut self, conn: ConnId) {
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

#[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
fn conn_id(token: Token) -> ConnId {
    ConnId { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
}
