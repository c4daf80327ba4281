//! Sockets, readiness and time. It knows no protocol: a [`Load`] says what to send and judges what comes.
//!
//! Edge-triggered: a socket is read until a read comes back short, which saves the read that would
//! only say "nothing more". What a load writes in answer to one stretch of bytes goes out in one
//! write. Connections are named by their slot, which the load picks from those of its share.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use rustix::net::sockopt::set_socket_linger;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tidegate_protocol::Reassembler;

use super::latency::{Live, Pulse};
use super::source::{self, Source};

/// Nanoseconds since the run started.
pub(super) type Nanos = u64;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// The one receive buffer: larger than what an echo or a burst of pushes leaves on a socket.
const BUFFER_BYTES: usize = 128 * 1024;
/// Full reads of one connection in one turn; more wait for the next.
const READS_MAX: usize = 16;
/// Room to write that an idle connection keeps, where connections are few.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Room to write that an idle connection keeps in any case: an authentication or a small request.
const KEPT_BYTES_MIN: usize = 128;
/// Room to write that all of the run's connections keep, as long as each has its least.
const KEPT_BYTES_TOTAL: usize = 256 * 1024 * 1024;
/// The longest sleep: bounds how late a load notices that its time is up.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Events taken at once when some connections are urgent: how long an urgent one waits for others.
const EVENTS_BESIDE_URGENT_MAX: usize = 32;
const TIMER: Token = Token(usize::MAX);
const URGENT: Token = Token(usize::MAX - 1);
const BELL: Token = Token(usize::MAX - 2);

/// What a scenario does with its connections.
pub(super) trait Load {
    /// The connection is open.
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()>;
    /// One read brought bytes.
    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()>;
    /// The connection is gone, and its slot free.
    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> anyhow::Result<()>;
    /// How far it is.
    fn pulse(&self) -> Pulse;
    /// Once a second: shows the latencies of the last one.
    fn flush(&mut self, live: &Live);
    /// Once a turn: opens connections, sends what is due, says when it has to be called again.
    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next>;
}

/// When a load wants its next tick. There is one after each turn anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At this moment at the latest.
    At(Nanos),
    /// When something has come.
    Whenever,
    /// Never: it is finished.
    Done,
}

impl Next {
    /// The earlier of two.
    pub(super) fn min(self, other: Option<Nanos>) -> Self {
        match (self, other) {
            (Self::At(mine), Some(other)) => Self::At(mine.min(other)),
            (Self::Whenever, Some(other)) => Self::At(other),
            (next, _) => next,
        }
    }
}

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
            Self::Failed(error) => write!(f, "failed: {error}"),
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
    /// Connections with something to send, to be written when the tick is over.
    dirty: Vec<usize>,
    /// Connections that had more to read than one turn allows.
    again: Vec<usize>,
    buffer: Box<[u8]>,
    reset_on_close: bool,
    kept_bytes_max: usize,
}

/// What an engine is made for.
#[derive(Clone, Debug)]
pub(super) struct EngineSetup {
    /// The slots that it has.
    pub(super) slots: Range<usize>,
    /// The connections of the whole run, which share the memory.
    pub(super) total: usize,
    /// The run's beginning: time counts from here.
    pub(super) origin: Instant,
    /// Closes with a reset rather than in order.
    pub(super) reset_on_close: bool,
    /// Never sleeps.
    pub(super) spin: bool,
}

/// Connections whose latency is measured while others are flooded. They have an epoll of their own,
/// within the other, and are served first: what waits in this process's own queue behind thousands
/// of pushes would be blamed on the server.
#[derive(Debug)]
struct Urgent {
    poll: Poll,
    events: Events,
}

/// Runs a load.
#[derive(Debug)]
pub(super) struct Engine {
    poll: Poll,
    events: Events,
    urgent: Option<Urgent>,
    timer: OwnedFd,
    armed_at: Nanos,
    origin: Instant,
    sockets: Sockets,
    /// Looks again at once, instead of waiting.
    spin: bool,
}

impl Engine {
    /// One with room for the setup's slots. Its descriptors belong to the calling thread's table.
    pub(super) fn new(setup: &EngineSetup) -> anyhow::Result<Self> {
        let poll = Poll::new().context("cannot make an epoll")?;
        // mio rounds a timeout up to a millisecond; a send that is due then would be late by one.
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).context("no timer")?;
        let fd = timer.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        let slots = setup.slots.len();
        let sockets = Sockets {
            registry: poll.registry().try_clone()?,
            urgent: None,
            first: setup.slots.start,
            connections: std::iter::repeat_with(|| None).take(slots).collect(),
            dirty: Vec::with_capacity(slots),
            again: Vec::new(),
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            reset_on_close: setup.reset_on_close,
            kept_bytes_max: (KEPT_BYTES_TOTAL / setup.total.max(1))
                .clamp(KEPT_BYTES_MIN, KEPT_BYTES_MAX),
        };
        let events = Events::with_capacity(EVENTS_MAX);
        let (origin, spin) = (setup.origin, setup.spin);
        Ok(Self { poll, events, urgent: None, timer, armed_at: 0, origin, sockets, spin })
    }

    /// Takes a turn whenever another worker writes to this eventfd.
    pub(super) fn with_bell(self, bell: BorrowedFd<'_>) -> anyhow::Result<Self> {
        let fd = bell.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), BELL, Interest::READABLE)?;
        Ok(self)
    }

    /// Serves the slots from this one on before the others.
    pub(super) fn with_urgent_from(mut self, slot: usize) -> anyhow::Result<Self> {
        let poll = Poll::new().context("cannot make an epoll")?;
        let fd = poll.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), URGENT, Interest::READABLE)?;
        self.sockets.urgent = Some((slot, poll.registry().try_clone()?));
        self.events = Events::with_capacity(EVENTS_BESIDE_URGENT_MAX);
        self.urgent = Some(Urgent { poll, events: Events::with_capacity(EVENTS_MAX) });
        Ok(self)
    }

    /// Runs until the load is done.
    pub(super) fn run(&mut self, load: &mut impl Load) -> anyhow::Result<()> {
        loop {
            let now = self.now();
            let next = load.tick(&mut self.sockets, now)?;
            self.sockets.write_dirty(load, now)?;
            let timeout = match next {
                Next::Done => return Ok(()),
                _ if self.spin => Duration::ZERO,
                _ if !self.sockets.again.is_empty() => Duration::ZERO,
                Next::At(at) if at <= now => Duration::ZERO,
                Next::At(at) => {
                    self.arm(at, now)?;
                    SLEEP_MAX
                }
                Next::Whenever => SLEEP_MAX,
            };
            self.turn(load, timeout)?;
        }
    }

    fn turn(&mut self, load: &mut impl Load, timeout: Duration) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result.context("epoll failed")?,
        }
        for slot in std::mem::take(&mut self.sockets.again) {
            self.sockets.read(slot, load, self.origin, true)?;
        }
        if let Some(urgent) = &mut self.urgent {
            match urgent.poll.poll(&mut urgent.events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    result.context("epoll failed")?;
                    self.sockets.serve(&urgent.events, load, self.origin)?;
                }
            }
        }
        self.sockets.serve(&self.events, load, self.origin)
    }

    fn now(&self) -> Nanos {
        nanos_since(self.origin)
    }

    fn arm(&mut self, at: Nanos, now: Nanos) -> anyhow::Result<()> {
        if at == self.armed_at || at > now + u64::try_from(SLEEP_MAX.as_nanos())? {
            return Ok(());
        }
        self.armed_at = at;
        let wait = at - now;
        let value = Timespec {
            tv_sec: i64::try_from(wait / 1_000_000_000)?,
            tv_nsec: (wait % 1_000_000_000).cast_signed(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).context("no timer")?;
        Ok(())
    }
}

/// How long after the first of an even sequence number `number` is due.
#[inline]
pub(super) fn due_after(number: u64, interval_ns: f64) -> Nanos {
    due_at(number as f64, interval_ns)
}

/// How long after the first of an even sequence that is due which comes so many intervals later.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "as a cast saturates, which is never in time")]
pub(super) fn due_at(intervals: f64, interval_ns: f64) -> Nanos {
    (intervals * interval_ns) as Nanos
}

fn nanos_since(origin: Instant) -> Nanos {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
}

impl Sockets {
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
        let connection = Connection { stream, link: Link::default(), sent: 0, open: false };
        self.connections[slot - self.first] = Some(connection);
        Ok(())
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

    fn serve(
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

    fn write_dirty(&mut self, load: &mut impl Load, now: Nanos) -> anyhow::Result<()> {
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
        if let Some(connection) = self.connections[slot - self.first].take()
            && self.reset_on_close
        {
            set_socket_linger(connection.stream.as_fd(), Some(Duration::ZERO))?;
        }
        load.closed(slot, cause, now)
    }
}
