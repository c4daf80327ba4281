//! Calls that are handed over together, and the single wake-up of their answers.
//!
//! Waking a sleeping shard costs a system call and, where cores are few, a context switch for each
//! answer: many times the cost of the answer itself. So while a worker is busy with a [`Batch`],
//! whoever it wants to wake is remembered and woken once, when the batch is done.
//!
//! No answer waits for a slow neighbour for long: a call that takes over [`SLOW_CALL`] ends the
//! deferral at once, and for the next [`SLOW_MEMORY`] each wake-up is immediate.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::handler::Call;

/// A call that takes longer than this is slow: a hundred times what a hop between threads costs.
pub const SLOW_CALL: Duration = Duration::from_micros(200);

/// How long after a slow call wake-ups are not deferred.
pub const SLOW_MEMORY: Duration = Duration::from_millis(100);

/// Something that sleeps, and has to be woken when work for it was put down.
pub trait Wake: Send + Sync {
    /// Wakes it, if it sleeps. Must not block.
    fn wake(&self);
}

thread_local! {
    /// `Some` while this thread works on a batch: whom to wake when it is done.
    static DEFERRED: RefCell<Option<Vec<Arc<dyn Wake>>>> = const { RefCell::new(None) };
}

/// Wakes `sleeper`: at once, or, on a worker's thread, when the batch at hand is done.
pub fn wake(sleeper: &Arc<dyn Wake>) {
    let deferred = DEFERRED.with_borrow_mut(|deferred| match deferred {
        Some(sleepers) => {
            if !sleepers.iter().any(|known| Arc::ptr_eq(known, sleeper)) {
                sleepers.push(Arc::clone(sleeper));
            }
            true
        }
        None => false,
    });
    if !deferred {
        sleeper.wake();
    }
}

/// Calls that came together, in order. Iterating takes them out.
#[derive(Debug, Default)]
pub struct Batch {
    calls: VecDeque<Call>,
    /// When the call at hand was handed out; `None` when the clock is not watched.
    handed_out: Option<Instant>,
    slow_until: Option<Instant>,
}

impl Batch {
    /// How many calls are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether no call is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(crate) fn extend(&mut self, calls: impl IntoIterator<Item = Call>) {
        self.calls.extend(calls);
    }

    /// Runs `work` on this batch with wake-ups deferred to its end.
    pub(crate) fn run(&mut self, work: impl FnOnce(&mut Self)) {
        let now = Instant::now();
        self.slow_until = self.slow_until.filter(|&until| until > now);
        if self.slow_until.is_none() {
            DEFERRED.set(Some(Vec::new()));
        }
        self.handed_out = Some(now);
        work(self);
        self.note_time();
        wake_deferred();
        self.handed_out = None;
    }

    /// Ends the deferral when the call at hand was slow.
    fn note_time(&mut self) {
        let Some(handed_out) = self.handed_out else { return };
        let now = Instant::now();
        if now - handed_out > SLOW_CALL {
            self.slow_until = Some(now + SLOW_MEMORY);
            wake_deferred();
        }
        self.handed_out = Some(now);
    }
}

impl Iterator for Batch {
    type Item = Call;

    fn next(&mut self) -> Option<Call> {
        if self.slow_until.is_none() {
            self.note_time();
        }
        self.calls.pop_front()
    }
}

fn wake_deferred() {
    for sleeper in DEFERRED.take().into_iter().flatten() {
        sleeper.wake();
    }
}
