//! The event loop of a worker: readiness and time. It knows no protocol. A [`Load`] decides what to send
//! and checks what is received; [`Sockets`] has the connections. A connection is named by its slot, which the
//! load takes from its share.

use std::io::ErrorKind;

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::clock::{Nanos, nanos_since};
use super::latency::{Counters, LiveStats};
use super::sockets::{ConnectionEvents, SocketSetup, Sockets};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;
/// The longest sleep: bounds how late a load notices that a phase has ended.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Events taken at once where some connections are urgent: bounds how long an urgent one waits for others.
const EVENTS_BESIDE_URGENT_MAX: usize = 32;
const TIMER: Token = Token(usize::MAX);
const URGENT: Token = Token(usize::MAX - 1);
const WAKEUP: Token = Token(usize::MAX - 2);

/// What a scenario does. The engine calls it.
pub(super) trait Load: ConnectionEvents {
    /// What it has done so far.
    fn counters(&self) -> Counters;
    /// Called once a second: hands over the latencies of that second.
    fn flush(&mut self, live: &LiveStats);
    /// Called once a turn: opens connections, sends what is due, and returns when to be called again.
    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next>;
}

/// When a load wants its next tick. Each turn of the engine has one in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At this time at the latest.
    At(Nanos),
    /// With the next event.
    NoDeadline,
    /// Never: the load is finished.
    Done,
}

impl Next {
    /// The earlier of the two.
    pub(super) fn min(self, other: Option<Nanos>) -> Self {
        match (self, other) {
            (Self::At(mine), Some(other)) => Self::At(mine.min(other)),
            (Self::NoDeadline, Some(other)) => Self::At(other),
            (next, _) => next,
        }
    }
}

/// How an engine is set up.
#[derive(Clone, Debug)]
pub(super) struct EngineSetup {
    /// How its sockets are set up.
    pub(super) sockets: SocketSetup,
    /// The start of the run, the origin of all its times.
    pub(super) origin: Instant,
    /// Whether it polls again at once and never sleeps.
    pub(super) spin: bool,
}

/// Connections whose latency is measured while the others are flooded. They have their own epoll, nested in
/// the main one, and are served first. Otherwise an answer would wait in this process behind thousands of
/// pushes, and the report would blame the server for that wait.
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
    spin: bool,
}

impl Engine {
    /// Its descriptors belong to the calling thread's table.
    pub(super) fn new(setup: &EngineSetup) -> Result<Self> {
        let poll = Poll::new().context("cannot make an epoll")?;
        // mio rounds a timeout up to a millisecond, so that a send would be up to a millisecond late.
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).context("no timer")?;
        let fd = timer.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        let sockets = Sockets::new(&setup.sockets, setup.origin, poll.registry().try_clone()?);
        let events = Events::with_capacity(EVENTS_MAX);
        let (origin, spin) = (setup.origin, setup.spin);
        Ok(Self { poll, events, urgent: None, timer, armed_at: 0, origin, sockets, spin })
    }

    /// Takes a turn each time another worker writes to this eventfd.
    pub(super) fn with_wakeup(self, wakeup: BorrowedFd<'_>) -> Result<Self> {
        let fd = wakeup.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), WAKEUP, Interest::READABLE)?;
        Ok(self)
    }

    /// Serves the slots from this one on before the others.
    pub(super) fn with_urgent_from(mut self, slot: usize) -> Result<Self> {
        let poll = Poll::new().context("cannot make an epoll")?;
        let fd = poll.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), URGENT, Interest::READABLE)?;
        self.sockets.set_urgent(slot, poll.registry().try_clone()?);
        self.events = Events::with_capacity(EVENTS_BESIDE_URGENT_MAX);
        self.urgent = Some(Urgent { poll, events: Events::with_capacity(EVENTS_MAX) });
        Ok(self)
    }

    /// Runs until the load is done.
    pub(super) fn run(&mut self, load: &mut impl Load) -> Result<()> {
        loop {
            let now = self.now();
            let next = load.tick(&mut self.sockets, now)?;
            self.sockets.write_dirty(load, now)?;
            let timeout = match next {
                Next::Done => return Ok(()),
                _ if self.spin => Duration::ZERO,
                _ if self.sockets.has_unfinished_reads() => Duration::ZERO,
                Next::At(at) if at <= now => Duration::ZERO,
                Next::At(at) => {
                    self.arm(at, now)?;
                    SLEEP_MAX
                }
                Next::NoDeadline => SLEEP_MAX,
            };
            self.turn(load, timeout)?;
        }
    }

    fn turn(&mut self, load: &mut impl Load, timeout: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result.context("epoll failed")?,
        }
        self.sockets.resume_reads(load)?;
        if let Some(urgent) = &mut self.urgent {
            match urgent.poll.poll(&mut urgent.events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    result.context("epoll failed")?;
                    self.sockets.serve(&urgent.events, load)?;
                }
            }
        }
        self.sockets.serve(&self.events, load)
    }

    fn now(&self) -> Nanos {
        nanos_since(self.origin)
    }

    fn arm(&mut self, at: Nanos, now: Nanos) -> Result<()> {
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
