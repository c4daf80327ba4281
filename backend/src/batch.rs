//! Calls that are handled together, and the single wake-up for their answers.
//!
//! To wake a sleeping shard costs a system call and, where cores are few, a context switch: many times the
//! cost of an answer. So while a worker handles a [`Batch`], it remembers which shards it has to wake and
//! wakes them once, at the end of the batch.
//!
//! The answers themselves are in the shards' mailboxes at once: a shard that is awake takes them, and a shard
//! that has handed over calls looks again after a few milliseconds. So an answer never waits long for a slow
//! call of the same batch. A call that takes more than [`SLOW_CALL`] ends the deferral, and until
//! [`FAST_CALLS`](crate::pool::FAST_CALLS) short calls have followed, each wake-up is immediate.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use crate::handler::Call;
use crate::pool::worker::{Hold, Taking};

/// A call that takes longer than this is slow: a hundred times what a hop between threads costs.
pub const SLOW_CALL: Duration = Duration::from_micros(200);

/// Something that sleeps, and has to be woken when there is work for it.
pub trait Wake: Send + Sync {
    /// Wakes it, if it sleeps. Must not block.
    fn wake(&self);
}

/// The wake-ups that this thread has deferred.
struct Deferred {
    /// Whether wake-ups are deferred now.
    active: bool,
    sleepers: Vec<Arc<dyn Wake>>,
}

thread_local! {
    static DEFERRED: RefCell<Deferred> =
        const { RefCell::new(Deferred { active: false, sleepers: Vec::new() }) };
}

/// Wakes `sleeper`: at once or, on a worker's thread, at the end of its batch.
#[inline]
pub fn wake(sleeper: &Arc<dyn Wake>) {
    let is_deferred = DEFERRED.with_borrow_mut(|deferred| {
        if deferred.active && !deferred.sleepers.iter().any(|known| Arc::ptr_eq(known, sleeper)) {
            deferred.sleepers.push(Arc::clone(sleeper));
        }
        deferred.active
    });
    if !is_deferred {
        sleeper.wake();
    }
}

/// Defers this thread's wake-ups until [`wake_deferred`].
pub(crate) fn defer_wakes() {
    DEFERRED.with_borrow_mut(|deferred| deferred.active = true);
}

/// Ends the deferral of this thread's wake-ups, and wakes those that were deferred.
pub(crate) fn wake_deferred() {
    let mut sleepers = DEFERRED.with_borrow_mut(|deferred| {
        deferred.active = false;
        std::mem::take(&mut deferred.sleepers)
    });
    // No borrow is held: what wakes may do anything.
    for sleeper in sleepers.drain(..) {
        sleeper.wake();
    }
    DEFERRED.with_borrow_mut(|deferred| {
        if deferred.sleepers.is_empty() {
            deferred.sleepers = sleepers;
        }
    });
}

/// Calls that one [`Handler::handle_batch`](crate::Handler::handle_batch) may take together.
///
/// A batch takes each call from the pool's queue when the handler asks for it, so a call that it has not
/// taken yet can go to another worker. There is always a first call; how many follow is not known before.
///
/// There are two ways to take calls:
///
/// - [`Batch::each`] handles them one by one. When one is handled, its connection's next call may run on any
///   worker.
/// - As an iterator, a batch gives calls that the handler keeps, to handle them together. The later calls of
///   their connections wait until `handle_batch` returns.
#[derive(Debug)]
pub struct Batch {
    pub(crate) hold: Hold,
    /// The first call, until it is taken.
    first: Option<Call>,
    /// How many more may be taken.
    calls_left: usize,
}

impl Batch {
    pub(crate) const fn new(hold: Hold) -> Self {
        Self { hold, first: None, calls_left: 0 }
    }

    /// Hands each call to `handle`, one after the other.
    pub fn each(&mut self, mut handle: impl FnMut(Call)) {
        while let Some(call) = self.take(Taking::Alone) {
            handle(call);
        }
    }

    /// Starts a batch of `calls_max` calls at most, whose first one was taken.
    pub(crate) fn start(&mut self, first: Call, calls_max: usize) {
        self.first = Some(first);
        self.calls_left = calls_max;
    }

    /// Ends a batch. A first call that was not taken is dropped, and so answered with 101: otherwise a
    /// handler that takes none would get it again forever.
    pub(crate) fn end(&mut self) {
        drop(self.first.take());
        self.hold.release_all();
    }

    #[inline]
    fn take(&mut self, taking: Taking) -> Option<Call> {
        if self.calls_left == 0 {
            return None;
        }
        let call = match self.first.take() {
            Some(first) => {
                self.hold.take_first(taking);
                Some(first)
            }
            None => self.hold.next(taking, self.calls_left),
        };
        self.calls_left -= 1;
        call
    }
}

impl Iterator for Batch {
    type Item = Call;

    fn next(&mut self) -> Option<Call> {
        self.take(Taking::Kept)
    }
}
