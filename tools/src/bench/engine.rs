//! Readiness and time. It knows no protocol: a [`Load`] says what to send and judges what comes, and
//! [`Sockets`] has the connections. They are named by their slot, which the load picks from those of
//! its share.

use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::latency::{Live, Pulse};
pub(super) use super::sockets::{CloseCause, Link, Sockets};

/// Nanoseconds since the run started.
pub(super) type Nanos = u64;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
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
        let sockets = Sockets::new(setup, poll.registry().try_clone()?);
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
        self.sockets.set_urgent(slot, poll.registry().try_clone()?);
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
                _ if self.sockets.have_more() => Duration::ZERO,
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
        self.sockets.read_again(load, self.origin)?;
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

pub(super) fn nanos_since(origin: Instant) -> Nanos {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
}
