//! Which TLS handshake is worked on next.
//!
//! A step of a handshake waits for its turn: a poll does a few, and no more begin in a second than the operator allows.
//! Those that have begun go first, so that a crowd of beginners does not keep any from ending; but for one step of each poll, so that
//! they don't keep beginners from beginning.
//!
//! **Beginners are served in their order, and the newest first while the oldest has waited longer than [`ORDER_MAX`].** In
//! order alone, more clients than the rate allows would make each wait until shortly before its deadline: the signature is
//! paid for, and the client gets no second step in time, so nobody is served at all. With the newest first, those that are
//! served have their time before them, and the others wait for the load to fall, until their deadline.
//! The alternative, to refuse those beyond a bound on the queue, needs to know how many handshakes this machine does in a
//! second, which depends on the certificate and on other load: this order needs no such number. It would also have
//! refused clients connect again at once, which costs more than to let them wait.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::driver::ConnId;

use super::HANDSHAKES_EACH_POLL;

/// Beginners are served in their order as long as none waits longer than this. A client takes no notice of such a wait.
const ORDER_MAX: Duration = Duration::from_secs(1);

/// Entries that one poll looks at, at most: many may be of connections that have gone.
const LOOKS_EACH_POLL: u32 = 1024;

/// The handshakes of a shard that wait for their next step.
#[derive(Debug)]
pub(super) struct Handshakes {
    /// Connections whose next step is the first, and since when they wait, in that order. Those that wait no longer stay
    /// here until they are looked at.
    beginning: VecDeque<(Instant, ConnId)>,
    /// Connections whose next step is a further one.
    continuing: VecDeque<ConnId>,
    /// How many begin in a second, at most.
    per_second: f64,
    /// How many may begin now.
    allowance: f64,
    /// Connections that wait: `waiting <= beginning.len() + continuing.len()`.
    waiting: usize,
    /// Looks that are left in this poll.
    looks: u32,
    /// Further steps in this poll.
    continued: u32,
}

impl Handshakes {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            beginning: VecDeque::new(),
            continuing: VecDeque::new(),
            per_second: f64::from(per_second.max(1)),
            allowance: f64::from(HANDSHAKES_EACH_POLL),
            waiting: 0,
            looks: 0,
            continued: 0,
        }
    }

    /// Connections that wait.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Handshakes that wait for a further step than the first, at most.
    pub(super) fn continuing(&self) -> usize {
        self.continuing.len()
    }

    /// Whether there is anything to look at.
    pub(super) fn is_empty(&self) -> bool {
        self.beginning.is_empty() && self.continuing.is_empty()
    }

    /// A connection waits from now on. `begins`: for the first step.
    pub(super) fn push(&mut self, conn: ConnId, begins: bool, now: Instant) {
        self.waiting += 1;
        if begins {
            self.beginning.push_back((now, conn));
        } else {
            self.continuing.push_back(conn);
        }
    }

    /// A connection waits no longer, though its turn has not come.
    pub(super) const fn forget(&mut self) {
        self.waiting -= 1;
    }

    /// Time has passed, and a poll begins.
    pub(super) fn pass(&mut self, passed: Duration) {
        let more = passed.as_secs_f64() * self.per_second;
        self.allowance = (self.allowance + more).min(f64::from(HANDSHAKES_EACH_POLL));
        (self.looks, self.continued) = (LOOKS_EACH_POLL, 0);
    }

    /// The connection whose turn it is. `waits`: whether a connection still does.
    pub(super) fn next(&mut self, now: Instant, waits: impl Fn(ConnId) -> bool) -> Option<ConnId> {
        while self.looks > 0 {
            self.looks -= 1;
            // The last step of a poll is a beginner's: further steps cost their clients next to nothing.
            let is_beginners = self.continued + 1 >= HANDSHAKES_EACH_POLL;
            let beginner = if is_beginners || self.continuing.is_empty() {
                self.next_beginner(now, &waits)
            } else {
                None
            };
            let (conn, price) = match beginner {
                Some(conn) => (conn, 1.0),
                None => (self.continuing.pop_front()?, 0.0),
            };
            if waits(conn) {
                self.continued += u32::from(price == 0.0);
                self.allowance -= price;
                self.waiting -= 1;
                return Some(conn);
            }
        }
        None
    }

    fn next_beginner(&mut self, now: Instant, waits: impl Fn(ConnId) -> bool) -> Option<ConnId> {
        let (since, oldest) = *self.beginning.front()?;
        if !waits(oldest) {
            self.beginning.pop_front();
            return Some(oldest);
        }
        if self.allowance < 1.0 {
            return None;
        }
        let is_overloaded = now.saturating_duration_since(since) > ORDER_MAX;
        let next =
            if is_overloaded { self.beginning.pop_back() } else { self.beginning.pop_front() };
        next.map(|(_, conn)| conn)
    }

    /// How long the driver may wait before the next step; `None`: there is none to do.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        if !self.continuing.is_empty() {
            return Some(Duration::ZERO);
        }
        let lacking = (1.0 - self.allowance).max(0.0);
        (!self.beginning.is_empty()).then(|| Duration::from_secs_f64(lacking / self.per_second))
    }

    /// Frees memory that a storm has left.
    pub(super) fn free_spare_memory(&mut self) {
        crate::spare::shrink_queue(&mut self.beginning);
        crate::spare::shrink_queue(&mut self.continuing);
    }
}
