//! Whether a driver accepts connections: one state machine for all drivers.
//!
//! [`AcceptState`] owns three facts. Does the core want connections? Has the kernel refused one, and when is
//! it tried again? Is the listening socket to be closed, after how many accepts, and by when? From them
//! follow how many connections may be accepted, how long a driver may wait, and the events about accepting.
//!
//! Each driver has one. It reports what its accepts come to and asks what it may do. The state machine makes
//! no system call, reads no clock and holds no socket. It knows no connection by name. What only one
//! mechanism has stays in its driver: epoll's edges, and io_uring's accepts in flight and parked connections.
//!
//! | state | what ends it | event |
//! |---|---|---|
//! | the kernel accepts | an accept is refused: descriptors or memory have run out | [`Event::AcceptPaused`] |
//! | the kernel refuses | a later accept succeeds, or finds the queue empty | [`Event::AcceptResumed`] |
//! | listening, last accepts | no connection waits that may be accepted, or the deadline passes | [`Event::ListeningStopped`] |
//!
//! Each event is reported once for each such change, and none after [`Event::ListeningStopped`].

use std::io;
use std::time::{Duration, Instant};

use super::{Event, Sink};

/// How long a driver waits before it tries again when the kernel has refused to accept. A connection that
/// closes ends this wait, since it frees what the kernel lacks.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Which connections the kernel has established and the driver has not reported as [`Event::Accepted`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// At least one may be in the kernel's accept queue.
    pub(super) in_queue: bool,
    /// At least one was taken from the queue and is parked, as the core had no budget for it.
    pub(super) parked: bool,
}

/// How long a driver may wait, as far as accepting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all: a connection can be accepted, or the listening socket can be closed.
    No,
    /// Until the next try, or until the end of the last accepts.
    Until(Instant),
    /// Until something happens.
    Forever,
}

impl Wait {
    /// The shorter of this and another wait. The clock is read only where this one has an end.
    pub(super) fn or_shorter(
        self,
        other: Option<Duration>,
        now: impl FnOnce() -> Instant,
    ) -> Option<Duration> {
        let this = match self {
            Self::No => Duration::ZERO,
            Self::Until(at) => at.saturating_duration_since(now()),
            Self::Forever => return other,
        };
        Some(other.map_or(this, |other| other.min(this)))
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct AcceptState {
    /// The core wants connections.
    wanted: bool,
    kernel: Kernel,
    listening: Listening,
}

/// Whether the kernel accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Accepts,
    /// It has refused, and [`Event::AcceptPaused`] was reported. `None`: the next try may be made now.
    Refuses {
        retry_at: Option<Instant>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    Open,
    /// The socket is to be closed. The queue is first in, first out: after as many accepts as it holds, each
    /// connection is accepted that waited when this began, however many have arrived since.
    Stopping {
        accepts_left: u32,
        until: Instant,
    },
    Closed,
}

impl AcceptState {
    /// `listens`: there is a listening socket.
    pub(super) const fn new(listens: bool) -> Self {
        let listening = if listens { Listening::Open } else { Listening::Closed };
        Self { wanted: true, kernel: Kernel::Accepts, listening }
    }

    /// The core wants connections, or no longer does. It may change its mind while the driver makes the last
    /// accepts, too. Says whether that is a change.
    pub(super) const fn set_wanted(&mut self, wanted: bool) -> bool {
        let changes = self.wanted != wanted;
        self.wanted = wanted;
        changes
    }

    /// The listening socket is to be closed: see [`Driver::stop_listening`](super::Driver::stop_listening).
    /// `queue_max` is how many connections its accept queue may hold. A later call can only make the deadline earlier.
    pub(super) fn stop(&mut self, queue_max: u32, until: Instant) {
        match &mut self.listening {
            Listening::Open => {
                self.listening = Listening::Stopping { accepts_left: queue_max, until };
                self.wanted = true;
            }
            Listening::Stopping { until: latest, .. } => *latest = until.min(*latest),
            Listening::Closed => {}
        }
    }

    /// The listening socket is open.
    pub(super) fn listens(&self) -> bool {
        self.listening != Listening::Closed
    }

    /// The listening socket is to be closed, and is not yet.
    pub(super) const fn is_stopping(&self) -> bool {
        matches!(self.listening, Listening::Stopping { .. })
    }

    /// The kernel has refused, and the next try may be made now, or is in flight.
    pub(super) fn is_trying_again(&self) -> bool {
        self.kernel == Kernel::Refuses { retry_at: None }
    }

    /// How many connections may be taken from the kernel's queue now, or be asked for, within the core's
    /// budget.
    pub(super) fn accepts_allowed(&self, budget: usize) -> usize {
        let may_try = self.kernel == Kernel::Accepts || self.is_trying_again();
        let accepts_left = match self.listening {
            Listening::Open => usize::MAX,
            Listening::Stopping { accepts_left, .. } => accepts_left as usize,
            Listening::Closed => 0,
        };
        if self.wanted && may_try { budget.min(accepts_left) } else { 0 }
    }

    /// Whether a connection that was taken from the queue may be reported as accepted. The kernel has given
    /// all that it needs, so only the core decides.
    pub(super) fn may_report(&self, budget: usize) -> bool {
        self.wanted && budget > 0 && self.listens()
    }

    /// A connection was taken from the kernel's queue.
    pub(super) fn on_accepted(&mut self) -> Option<Event<'static>> {
        if let Listening::Stopping { accepts_left, .. } = &mut self.listening {
            *accepts_left = accepts_left.saturating_sub(1);
        }
        self.end_pause()
    }

    /// An accept found the kernel's queue empty. So the kernel has the descriptor and the memory for one.
    pub(super) fn on_queue_empty(&mut self) -> Option<Event<'static>> {
        if self.is_trying_again() { self.end_pause() } else { None }
    }

    /// An accept failed, and not because of the connection: see [`is_of_one_connection`]. Descriptors or
    /// memory have run out.
    pub(super) fn on_refused(&mut self, error: io::Error, now: Instant) -> Option<Event<'static>> {
        let was_paused = self.kernel != Kernel::Accepts;
        self.kernel = Kernel::Refuses { retry_at: Some(now + RETRY_AFTER) };
        (!was_paused).then_some(Event::AcceptPaused { error })
    }

    /// A connection has closed: what the kernel lacked may be free, so the next try is made at once.
    pub(super) const fn on_connection_closed(&mut self) {
        if let Kernel::Refuses { retry_at } = &mut self.kernel {
            *retry_at = None;
        }
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) {
        if let Kernel::Refuses { retry_at } = &mut self.kernel
            && retry_at.is_some_and(|at| at <= now)
        {
            *retry_at = None;
        }
    }

    /// How long the driver may wait, as far as accepting is concerned.
    pub(super) fn wait(&self, waiting: Waiting, budget: usize) -> Wait {
        if self.makes_progress(waiting, budget) || self.is_stopping() && !self.has_last(waiting) {
            return Wait::No;
        }
        let retry_at = match self.kernel {
            Kernel::Refuses { retry_at } => retry_at,
            Kernel::Accepts => None,
        };
        let until = match self.listening {
            Listening::Stopping { until, .. } => Some(until),
            _ => None,
        };
        retry_at.into_iter().chain(until).min().map_or(Wait::Forever, Wait::Until)
    }

    /// Whether the listening socket is to be closed now: it is stopping, and no connection waits that may
    /// still be accepted. The driver then closes it and calls [`Self::on_closed`].
    pub(super) fn may_close(&self, waiting: Waiting, budget: usize, now: Instant) -> bool {
        let Listening::Stopping { until, .. } = self.listening else { return false };
        !self.has_last(waiting) || now >= until && !self.makes_progress(waiting, budget)
    }

    /// The listening socket is closed. `reset` connections still waited. This is the last event about
    /// accepting: a pause that lasts is over without another.
    pub(super) fn on_closed(&mut self, reset: u32) -> Event<'static> {
        debug_assert!(self.is_stopping(), "it closes only after a stop, and once");
        *self = Self { wanted: false, kernel: Kernel::Accepts, listening: Listening::Closed };
        Event::ListeningStopped { reset }
    }

    /// Whether a connection waits that is to be accepted before the listening socket closes.
    const fn has_last(&self, waiting: Waiting) -> bool {
        let has_accepts = !matches!(self.listening, Listening::Stopping { accepts_left: 0, .. });
        waiting.parked || waiting.in_queue && has_accepts
    }

    fn makes_progress(&self, waiting: Waiting, budget: usize) -> bool {
        waiting.in_queue && self.accepts_allowed(budget) > 0
            || waiting.parked && self.may_report(budget)
    }

    fn end_pause(&mut self) -> Option<Event<'static>> {
        let was_paused = self.kernel != Kernel::Accepts;
        self.kernel = Kernel::Accepts;
        was_paused.then_some(Event::AcceptResumed)
    }
}

/// Reports what a change came to, if it is an event.
pub(super) fn report(event: Option<Event<'_>>, sink: &mut impl Sink) {
    if let Some(event) = event {
        sink.event(event);
    }
}

/// Whether an accept failed for a reason of that connection alone, or was interrupted: the next one may
/// succeed at once. Linux passes on what the network did to a connection before it was accepted: accept(2).
pub(super) fn is_of_one_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::EINTR
            | libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
    )
}

#[cfg(test)]
mod tests;
