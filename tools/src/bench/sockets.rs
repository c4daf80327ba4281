//! The connections of one engine, by slot: opens, reads, writes and closes them.
//!
//! Epoll is edge-triggered. A socket is read until a read fills less than the buffer: this saves the read
//! that would only return EAGAIN. All that a load writes in answer to one read goes out in one write. An idle
//! connection keeps little memory beside its descriptor. A load sees bytes of the protocol; what a wire (TLS, WebSocket)
//! makes of them stays in here.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Result;
use mio::net::TcpStream;
use mio::{Events, Interest, Registry, Token};
use rustix::net::sockopt::set_socket_linger;
use tidegate_protocol::Reassembler;

use super::clock::{Nanos, nanos_since};
use super::destinations::{Destination, Destinations};
use super::echo::ForeignBytes;
use super::source::{self, Source};
use crate::not_running::no_listener;
use crate::wire::{Spoken, Wire, WireError, WireKind, mismatch};

/// The size of the one receive buffer: more than an echo or a burst of pushes leaves on a socket.
const BUFFER_BYTES: usize = 128 * 1024;
/// Full reads of one connection in one turn. The rest waits for the next turn.
const READS_MAX: usize = 16;
/// The most send-buffer memory that an idle connection keeps, where connections are few.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Send-buffer memory that an idle connection may keep in any case: an authentication or a small request.
const KEPT_BYTES_MIN: usize = 128;
/// Send-buffer memory that all idle connections of the run keep together, above the minimum of each.
const KEPT_BYTES_TOTAL: usize = 128 * 1024 * 1024;

/// How sockets are set up.
#[derive(Clone, Debug)]
pub(super) struct SocketSetup {
    /// The slots of this engine.
    pub(super) slots: Range<usize>,
    /// The connections of the whole run: they share the memory for send buffers.
    pub(super) total: usize,
    /// Whether a connection is closed with a reset (RST) and not with a FIN.
    pub(super) reset_on_close: bool,
    /// Where connections go to.
    pub(super) destinations: Destinations,
}

/// Receives what happens to connections.
pub(super) trait ConnectionEvents {
    /// The connection is open.
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()>;
    /// A read returned these bytes.
    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()>;
    /// The connection is closed and its slot is free.
    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> Result<()>;
}

/// Why a connection is closed.
#[derive(Debug)]
pub(super) enum CloseCause {
    /// The load closed it.
    Local,
    /// The other end closed.
    Peer,
    /// The socket failed.
    Failed(std::io::Error),
    /// The wire failed.
    Wire(WireError),
}

impl std::fmt::Display for CloseCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("closed by tide"),
            Self::Peer => f.write_str("closed by the server"),
            Self::Failed(error) => write!(f, "broken: {error}"),
            Self::Wire(error) => write!(f, "broken: {error}"),
        }
    }
}

/// The part of a connection that a load works with.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Assembles frames that arrive in several reads.
    pub(super) reassembler: Reassembler,
    /// Bytes to send; written once a turn.
    pub(super) out: Vec<u8>,
    /// Set to close the connection when `out` is written.
    pub(super) close: bool,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    link: Link,
    /// `None`: plain.
    wired: Option<Box<Wired>>,
    /// Bytes at the front of what the socket is to take that it has taken: of `link.out`, or with a wire of `wired.out`.
    sent: usize,
    stage: Stage,
    /// Bytes have come.
    has_heard: bool,
    destination: Destination,
}

/// A wire, and the bytes that it makes of `Link::out`.
#[derive(Debug)]
struct Wired {
    wire: Wire,
    out: Vec<u8>,
    has_said_goodbye: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The socket connects.
    Connecting,
    /// The wire opens.
    Opening,
    /// The load knows the connection.
    Open,
}

/// The connections, by slot.
#[derive(Debug)]
pub(super) struct Sockets {
    registry: Registry,
    /// The first urgent slot, and where urgent slots are registered.
    urgent: Option<(usize, Registry)>,
    origin: Instant,
    /// The slot of `connections[0]`.
    first: usize,
    connections: Vec<Option<Connection>>,
    destinations: Destinations,
    /// Slots with bytes to send. They are written after the tick.
    dirty: Vec<usize>,
    /// Slots that had more to read than one turn allows.
    unfinished_reads: Vec<usize>,
    buffer: Box<[u8]>,
    /// What a wire carried in one read.
    payload: Vec<u8>,
    reset_on_close: bool,
    kept_bytes_max: usize,
}

impl Sockets {
    /// No connections yet. They will be registered with `registry`.
    pub(super) fn new(setup: &SocketSetup, origin: Instant, registry: Registry) -> Self {
        let slots = setup.slots.len();
        Self {
            registry,
            urgent: None,
            origin,
            first: setup.slots.start,
            connections: std::iter::repeat_with(|| None).take(slots).collect(),
            destinations: setup.destinations.clone(),
            dirty: Vec::with_capacity(slots),
            unfinished_reads: Vec::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            payload: Vec::new(),
            reset_on_close: setup.reset_on_close,
            kept_bytes_max: (KEPT_BYTES_TOTAL / setup.total.max(1))
                .clamp(KEPT_BYTES_MIN, KEPT_BYTES_MAX),
        }
    }

    /// Registers the slots from `first` on with another epoll.
    pub(super) fn set_urgent(&mut self, first: usize, registry: Registry) {
        self.urgent = Some((first, registry));
    }

    /// Whether a connection had more to read than one turn allows.
    pub(super) fn has_unfinished_reads(&self) -> bool {
        !self.unfinished_reads.is_empty()
    }

    /// Continues the reads that one turn did not finish.
    pub(super) fn resume_reads(&mut self, load: &mut impl ConnectionEvents) -> Result<()> {
        for slot in std::mem::take(&mut self.unfinished_reads) {
            self.read(slot, load, true)?;
        }
        Ok(())
    }

    /// Opens a connection in a free slot.
    pub(super) fn connect(
        &mut self,
        slot: usize,
        address: SocketAddr,
        source: Source,
    ) -> Result<()> {
        let mut stream = source::connect(address, source)?;
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = match &self.urgent {
            Some((first, urgent)) if slot >= *first => urgent,
            _ => &self.registry,
        };
        registry.register(&mut stream, Token(slot), interest)?;
        self.connections[slot - self.first] = Some(Connection {
            stream,
            link: Link::default(),
            wired: None,
            sent: 0,
            stage: Stage::Connecting,
            has_heard: false,
            destination: self.destinations.at(address)?,
        });
        Ok(())
    }

    /// Closes a connection without calling [`ConnectionEvents::closed`].
    pub(super) fn drop_connection(&mut self, slot: usize) {
        self.connections[slot - self.first] = None;
    }

    /// Has `write` append to a connection's output, which is sent after the tick. Does nothing where the
    /// slot has no open connection.
    #[inline]
    pub(super) fn send(&mut self, slot: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let connection = self.connections[slot - self.first].as_mut();
        let Some(connection) = connection.filter(|it| it.stage == Stage::Open) else { return };
        if connection.link.out.is_empty() {
            self.dirty.push(slot);
        }
        write(&mut connection.link.out);
    }

    /// Reads from and writes to the connections that are ready.
    pub(super) fn serve(
        &mut self,
        events: &Events,
        load: &mut impl ConnectionEvents,
    ) -> Result<()> {
        for event in events {
            let Token(slot) = event.token();
            // The timer and the wakeup eventfd are no slots: they only have to end the wait.
            let connection = self.connections.get(slot.wrapping_sub(self.first));
            if connection.is_none_or(Option::is_none) {
                continue;
            }
            if event.is_writable() {
                self.writable(slot, load)?;
            }
            if event.is_readable() || event.is_error() {
                let until_empty = event.is_read_closed() || event.is_error();
                self.read(slot, load, until_empty)?;
            }
        }
        Ok(())
    }

    /// Writes to the connections that the tick left with bytes to send.
    pub(super) fn write_dirty(
        &mut self,
        load: &mut impl ConnectionEvents,
        now: Nanos,
    ) -> Result<()> {
        while let Some(slot) = self.dirty.pop() {
            self.flush(slot, load, now)?;
        }
        Ok(())
    }

    fn writable(&mut self, slot: usize, load: &mut impl ConnectionEvents) -> Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        if connection.stage == Stage::Open && connection.has_nothing_to_send() {
            return Ok(());
        }
        let now = nanos_since(self.origin);
        if connection.stage == Stage::Connecting {
            if let Some(error) = connection.stream.take_error()? {
                return self.close(slot, CloseCause::Failed(error), load, now);
            }
            if connection.stream.peer_addr().is_err() {
                return Ok(());
            }
            let mut out = Vec::new();
            match self.destinations.start(connection.destination, &mut out)? {
                Some(wire) => {
                    connection.stage = Stage::Opening;
                    let wired = Wired { wire, out, has_said_goodbye: false };
                    connection.wired = Some(Box::new(wired));
                }
                None => {
                    connection.stage = Stage::Open;
                    load.opened(slot, &mut connection.link, now)?;
                }
            }
        }
        self.flush(slot, load, now)
    }

    #[inline]
    fn read(
        &mut self,
        slot: usize,
        load: &mut impl ConnectionEvents,
        until_empty: bool,
    ) -> Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        let now = nanos_since(self.origin);
        let mut reads = 0;
        let cause = loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => break Some(CloseCause::Peer),
                Ok(bytes) => {
                    let received = &mut self.buffer[..bytes];
                    let destinations = &self.destinations;
                    if connection.wired.is_none() {
                        connection.check_first_bytes(slot, received, destinations)?;
                        load.received(slot, &mut connection.link, received, now)?;
                    } else {
                        let payload = &mut self.payload;
                        payload.clear();
                        if let Some(cause) =
                            connection.unwrap(slot, received, payload, load, now)?
                        {
                            break Some(cause);
                        }
                    }
                    if bytes < BUFFER_BYTES && !until_empty {
                        break None;
                    }
                    reads += 1;
                    if reads == READS_MAX {
                        self.unfinished_reads.push(slot);
                        break None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::NotConnected => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(CloseCause::Failed(error)),
            }
        };
        match cause {
            Some(cause) => self.close(slot, cause, load, now),
            None => self.flush(slot, load, now),
        }
    }

    #[inline]
    fn flush(&mut self, slot: usize, load: &mut impl ConnectionEvents, now: Nanos) -> Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        if let Err(error) = connection.wrap() {
            return self.close(slot, CloseCause::Wire(error), load, now);
        }
        let out = match &mut connection.wired {
            Some(wired) => &mut wired.out,
            None => &mut connection.link.out,
        };
        while connection.sent < out.len() {
            match connection.stream.write(&out[connection.sent..]) {
                Ok(bytes) => connection.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.close(slot, CloseCause::Failed(error), load, now),
            }
        }
        out.clear();
        connection.sent = 0;
        if out.capacity() > self.kept_bytes_max {
            *out = Vec::new();
        }
        if connection.link.close {
            return self.close(slot, CloseCause::Local, load, now);
        }
        Ok(())
    }

    fn close(
        &mut self,
        slot: usize,
        cause: CloseCause,
        load: &mut impl ConnectionEvents,
        now: Nanos,
    ) -> Result<()> {
        let cause = match (self.connections[slot - self.first].take(), cause) {
            // A separate error, since loads know open connections only.
            (Some(connection), cause) if connection.stage != Stage::Open => {
                return Err(connection.failed_to_open(cause, &self.destinations));
            }
            (Some(mut connection), cause) => {
                connection.answer_the_end();
                if self.reset_on_close {
                    set_socket_linger(connection.stream.as_fd(), Some(Duration::ZERO))?;
                }
                cause
            }
            (None, cause) => cause,
        };
        load.closed(slot, cause, now)
    }
}

impl Connection {
    fn has_nothing_to_send(&self) -> bool {
        self.link.out.is_empty() && self.wired.as_ref().is_none_or(|wired| wired.out.is_empty())
    }

    /// Says so where a plain connection hears TLS or HTTP first.
    #[inline]
    fn check_first_bytes(
        &mut self,
        slot: usize,
        bytes: &[u8],
        destinations: &Destinations,
    ) -> Result<()> {
        if std::mem::replace(&mut self.has_heard, true) {
            return Ok(());
        }
        match Spoken::instead_of_the_protocol(bytes) {
            None => Ok(()),
            Some(spoken) => {
                let text = mismatch(destinations.place(self.destination), spoken);
                Err(ForeignBytes::new(slot, &text).into())
            }
        }
    }

    /// Takes bytes for a wire, and passes on what they carry. Returns why the connection ends.
    fn unwrap(
        &mut self,
        slot: usize,
        bytes: &mut [u8],
        payload: &mut Vec<u8>,
        load: &mut impl ConnectionEvents,
        now: Nanos,
    ) -> Result<Option<CloseCause>> {
        let Some(wired) = &mut self.wired else { return Ok(None) };
        let progress = match wired.wire.receive(bytes, payload, &mut wired.out) {
            Ok(progress) => progress,
            Err(error) => return Ok(Some(CloseCause::Wire(error))),
        };
        if progress.has_opened {
            self.stage = Stage::Open;
            load.opened(slot, &mut self.link, now)?;
        }
        if !payload.is_empty() {
            load.received(slot, &mut self.link, payload, now)?;
        }
        Ok(progress.has_ended.then_some(CloseCause::Peer))
    }

    /// Moves what the load has to send into the wire. Where the load closes, the wire's goodbye follows.
    #[inline]
    fn wrap(&mut self) -> Result<(), WireError> {
        let Some(wired) = &mut self.wired else { return Ok(()) };
        let link = &mut self.link;
        if !link.out.is_empty() {
            wired.wire.send(&link.out, &mut wired.out)?;
            link.out.clear();
            if link.out.capacity() > KEPT_BYTES_MIN {
                link.out = Vec::new();
            }
        }
        if link.close && !std::mem::replace(&mut wired.has_said_goodbye, true) {
            wired.wire.goodbye(&mut wired.out);
        }
        Ok(())
    }

    /// Sends a wire's answer to the other side's end, if the socket takes it now.
    fn answer_the_end(&mut self) {
        if let Some(wired) = self.wired.as_ref().filter(|wired| self.sent < wired.out.len()) {
            let _nobody_waits_for_it = self.stream.write(&wired.out[self.sent..]);
        }
    }

    /// The error for a connection that the load has not seen.
    fn failed_to_open(self, cause: CloseCause, destinations: &Destinations) -> anyhow::Error {
        let (to, place) = (self.destination, destinations.place(self.destination));
        match (self.wired, cause) {
            (_, CloseCause::Wire(error)) => destinations.explained(to, &error),
            (Some(wired), CloseCause::Peer) => {
                destinations.explained(to, &wired.wire.ended_early())
            }
            (Some(wired), CloseCause::Failed(error)) => {
                anyhow::Error::new(error).context(wired.wire.ended_early().explain(place))
            }
            (None, CloseCause::Failed(error))
                if error.kind() == ErrorKind::ConnectionRefused
                    && place.kind() != WireKind::Plain =>
            {
                anyhow::Error::new(error).context(no_listener(place))
            }
            (None, CloseCause::Failed(error)) => {
                source::failed(destinations.address(to), None, error)
            }
            (_, cause) => anyhow::anyhow!("{place}: the connection was {cause} before it was open"),
        }
    }
}
