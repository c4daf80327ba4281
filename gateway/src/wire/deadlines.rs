//! Until when connections may take to open their wire.
//!
//! All have the same time, so their deadlines are in order. Time in which this machine did not run does not count: what the
//! peers have sent meanwhile is not read yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::driver::ConnId;

/// If a poll returns so much later than it should, the machine was stopped. Less is the work of a turn.
const LATE_MAX: Duration = Duration::from_secs(1);

/// The deadlines of the connections that open. Those of others are dropped as they come to the front.
#[derive(Debug)]
pub(super) struct Deadlines {
    timeout: Duration,
    /// In order.
    deadlines: VecDeque<(Instant, ConnId)>,
    /// How long the driver may wait; `None`: until something happens.
    waits_for: Option<Duration>,
}

impl Deadlines {
    pub(super) const fn new(timeout: Duration) -> Self {
        Self { timeout, deadlines: VecDeque::new(), waits_for: None }
    }

    /// A connection begins to open.
    pub(super) fn push(&mut self, conn: ConnId, now: Instant) {
        self.deadlines.push_back((now + self.timeout, conn));
    }

    /// The driver may wait so long.
    pub(super) const fn waits_for(&mut self, idle_for: Option<Duration>) {
        self.waits_for = idle_for;
    }

    /// So much time has passed between two waits. What is more than the driver was to wait does not count.
    pub(super) fn pass(&mut self, passed: Duration) {
        let Some(waits_for) = self.waits_for else { return };
        let away = passed.saturating_sub(waits_for);
        if away > LATE_MAX {
            self.deadlines.iter_mut().for_each(|(deadline, _)| *deadline += away);
        }
    }

    /// Whether one is over.
    pub(super) fn is_one_over(&self, now: Option<Instant>) -> bool {
        let first = self.deadlines.front();
        first.zip(now).is_some_and(|((deadline, _), now)| *deadline <= now)
    }

    /// The next connection whose deadline is over.
    pub(super) fn next_over(&mut self, now: Option<Instant>) -> Option<ConnId> {
        let is_over = self.is_one_over(now);
        is_over.then(|| self.deadlines.pop_front())?.map(|(_, conn)| conn)
    }

    /// How long it is to the next deadline. `has_opened`: whether a connection needs none any more. Most have opened long
    /// before it: it is no reason to wake.
    pub(super) fn idle_for(
        &mut self,
        now: Option<Instant>,
        has_opened: impl Fn(ConnId) -> bool,
    ) -> Option<Duration> {
        while let Some(&(deadline, conn)) = self.deadlines.front() {
            if !has_opened(conn) {
                return now.map(|now| deadline.saturating_duration_since(now));
            }
            self.deadlines.pop_front();
        }
        None
    }

    /// Frees memory that a storm has left.
    pub(super) fn free_spare_memory(&mut self) {
        crate::spare::shrink_queue(&mut self.deadlines);
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.deadlines.capacity()
    }
}
