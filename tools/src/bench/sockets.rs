//! The connections of one engine: opening, reading, writing, closing, by slot.
//!
//! Edge-triggered: a socket is read until a read comes back short, which saves the read that would
//! only say "nothing more". What a load writes in answer to one stretch of bytes goes out in one
//! write. An idle connection keeps little beside its descriptor.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mio::net::TcpStream;
use mio::{Events, Interest, Registry, Token};
use rustix::net::sockopt::set_socket_linger;
use tidegate_protocol::Reassembler;

use super::engine::{EngineSetup, Load, Nanos, nanos_since};
use super::source::{self, Source};

/// The one receive buffer: larger than what an echo or a burst of pushes leaves on a socket.
const BUFFER_BYTES: usize = 128 * 1024;
/// Full reads of one connection in one turn; more wait for the next.
const READS_MAX: usize = 16;
/// Room to write that an idle connection keeps, where connections are few.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Room to write that an idle connection keeps in any case: an authentication or a small request.
const KEPT_BYTES_MIN: usize = 128;
/// Room to write that all of the run's connections keep, as long as each has its least.
const KEPT_BYTES_TOTAL: usize = 128 * 1024 * 1024;

/// Why a connection is gone.
#[derive(Debug)]
pub(super) enum CloseCause {
    /// The load asked for it.
    Asked,
    /// The other end closed.
    Peer,
    /// The socket failed.
    Failed(std::io::Error),
}

impl std::fmt::Display for CloseCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Asked => f.write_str("closed by this end"),
            Self::Peer => f.write_str("closed by the server"),
            Self::Failed(error) => write!(f, "cut off: {error}"),
        }
    }
}

/// What a load sees of a connection.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Puts cut frames together.
    pub(super) reassembler: Reassembler,
    /// What is to be sent; written once a turn.
    pub(super) out: Vec<u8>,
    /// Close once `out` is written.
    pub(super) close: bool,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    link: Link,
    /// Bytes at the front of `link.out` that are sent. sent <= link.out.len()
    sent: usize,
    open: bool,
    /// Where it goes: a place in `Sockets::places`, in bytes that would be padding.
    place: u16,
}

/// The connections, by slot.
#[derive(Debug)]
pub(super) struct Sockets {
    registry: Registry,
    /// For the slots from this one on.
    urgent: Option<(usize, Registry)>,
    /// The slot of the first of `connections`.
    first: usize,
    connections: Vec<Option<Connection>>,
    /// Where connections go: as many as --connect names.
    places: Vec<SocketAddr>,
    /// Connections with something to send, to be written when the tick is over.
    dirty: Vec<usize>,
    /// Connections that had more to read than one turn allows.
    again: Vec<usize>,
    buffer: Box<[u8]>,
    reset_on_close: bool,
    kept_bytes_max: usize,
}

impl Sockets {
    /// None yet. They will be registered here.
    pub(super) fn new(setup: &EngineSetup, registry: Registry) -> Self {
        let slots = setup.slots.len();
        Self {
            registry,
            urgent: None,
            first: setup.slots.start,
            connections: std::iter::repeat_with(|| None).take(slots).collect(),
            places: Vec::new(),
            dirty: Vec::with_capacity(slots),
            again: Vec::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            reset_on_close: setup.reset_on_close,
            kept_bytes_max: (KEPT_BYTES_TOTAL / setup.total.max(1))
                .clamp(KEPT_BYTES_MIN, KEPT_BYTES_MAX),
        }
    }

    /// Those from this slot on are registered elsewhere.
    pub(super) fn set_urgent(&mut self, first: usize, registry: Registry) {
        self.urgent = Some((first, registry));
    }

    /// Whether a connection had more to read than one turn allows.
    pub(super) fn have_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Goes on where one turn did not allow more.
    pub(super) fn read_again(
        &mut self,
        load: &mut impl Load,
        origin: Instant,
    ) -> anyhow::Result<()> {
        for slot in std::mem::take(&mut self.again) {
            self.read(slot, load, origin, true)?;
        }
        Ok(())
    }

    /// Opens a connection in a free slot.
    pub(super) fn connect(
        &mut self,
        slot: usize,
        address: SocketAddr,
        source: Source,
    ) -> anyhow::Result<()> {
        let mut stream = source::connect(address, source)?;
        stream.set_nodelay(true)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = match &self.urgent {
            Some((first, urgent)) if slot >= *first => urgent,
            _ => &self.registry,
        };
        registry.register(&mut stream, Token(slot), interest)?;
        let place = self.place_of(address)?;
        let connection = Connection { stream, link: Link::default(), sent: 0, open: false, place };
        self.connections[slot - self.first] = Some(connection);
        Ok(())
    }

    fn place_of(&mut self, address: SocketAddr) -> anyhow::Result<u16> {
        let known = self.places.iter().position(|place| *place == address);
        let place = known.unwrap_or_else(|| {
            self.places.push(address);
            self.places.len() - 1
        });
        u16::try_from(place).context("--connect names more than 65536 places")
    }

    /// Closes a connection, which reports nothing.
    pub(super) fn hang_up(&mut self, slot: usize) {
        self.connections[slot - self.first] = None;
    }

    /// Lets a load write to a connection; it goes out when the tick is over.
    #[inline]
    pub(super) fn send(&mut self, slot: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.connections[slot - self.first].as_mut().filter(|it| it.open)
        else {
            return;
        };
        if connection.link.out.is_empty() {
            self.dirty.push(slot);
        }
        write(&mut connection.link.out);
    }

    /// Reads and writes what is ready.
    pub(super) fn serve(
        &mut self,
        events: &Events,
        load: &mut impl Load,
        origin: Instant,
    ) -> anyhow::Result<()> {
        for event in events {
            let Token(slot) = event.token();
            // The timer and the bell are no slots: their turn was all they are for.
            let connection = self.connections.get(slot.wrapping_sub(self.first));
            if connection.is_none_or(Option::is_none) {
                continue;
            }
            if event.is_writable() {
                self.writable(slot, load, origin)?;
            }
            if event.is_readable() || event.is_error() {
                let to_the_end = event.is_read_closed() || event.is_error();
                self.read(slot, load, origin, to_the_end)?;
            }
        }
        Ok(())
    }

    /// Writes what the tick left.
    pub(super) fn write_dirty(&mut self, load: &mut impl Load, now: Nanos) -> anyhow::Result<()> {
        while let Some(slot) = self.dirty.pop() {
            self.flush(slot, load, now)?;
        }
        Ok(())
    }

    fn writable(
        &mut self,
        slot: usize,
        load: &mut impl Load,
        origin: Instant,
    ) -> anyhow::Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        if connection.open && connection.link.out.is_empty() {
            return Ok(());
        }
        let now = nanos_since(origin);
        if !connection.open {
            if let Some(error) = connection.stream.take_error()? {
                return self.close(slot, CloseCause::Failed(error), load, now);
            }
            if connection.stream.peer_addr().is_err() {
                return Ok(());
            }
            connection.open = true;
            load.opened(slot, &mut connection.link, now)?;
        }
        self.flush(slot, load, now)
    }

    #[inline]
    fn read(
        &mut self,
        slot: usize,
        load: &mut impl Load,
        origin: Instant,
        to_the_end: bool,
    ) -> anyhow::Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        let now = nanos_since(origin);
        let mut reads = 0;
        let cause = loop {
            match connection.stream.read(&mut self.buffer) {
                Ok(0) => break Some(CloseCause::Peer),
                Ok(bytes) => {
                    load.received(slot, &mut connection.link, &self.buffer[..bytes], now)?;
                    if bytes < BUFFER_BYTES && !to_the_end {
                        break None;
                    }
                    reads += 1;
                    if reads == READS_MAX {
                        self.again.push(slot);
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
    fn flush(&mut self, slot: usize, load: &mut impl Load, now: Nanos) -> anyhow::Result<()> {
        let Some(connection) = self.connections[slot - self.first].as_mut() else { return Ok(()) };
        let out = &mut connection.link.out;
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
            return self.close(slot, CloseCause::Asked, load, now);
        }
        Ok(())
    }

    fn close(
        &mut self,
        slot: usize,
        cause: CloseCause,
        load: &mut impl Load,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let cause = match (self.connections[slot - self.first].take(), cause) {
            // Nobody ever answered: no load knows more of that than where it was.
            (Some(Connection { open: false, place, .. }), CloseCause::Failed(error)) => {
                return Err(source::failed(self.places[usize::from(place)], None, error));
            }
            (Some(connection), cause) => {
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
