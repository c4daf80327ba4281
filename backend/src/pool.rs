//! Worker threads for a handler.
//!
//! Shards submit calls through a [`Submitter`], all calls of a turn at once. Calls wait in one queue with a
//! line per connection. A free worker takes the next line that has calls, so a call that blocks delays its
//! own connection and no other, as long as another worker is free. (After many short calls, one that blocks
//! is noticed when a shard next calls [`Submitter::flush`].)
//!
//! # Time
//!
//! A call that has expired is never handed to a handler. One that would expire while it is handled, as far as the
//! calls before it tell (`handling_time`), comes after all others: under overload the oldest call is always about
//! to expire. The shard that submits calls removes those that have expired ([`Submitter::remove_expired`]), so they
//! hold neither bytes nor a place in the queue, even while all workers block. (The calls that a worker has taken stay
//! with it while its handler blocks: up to 16 KiB of one connection's.) A worker that finds one first answers it
//! with [`Code::Timeout`](tidegate_protocol::Code::Timeout), before it handles the next call of that connection: so
//! no answer overtakes it.
//!
//! A call may have a [`WaitBound`], which is much shorter than its timeout: see `standing`. Calls that have waited longer in a queue
//! that stands leave it in the same two ways, and their ports get that they were [shed](crate::handler::AnswerPort::call_shed).
//!
//! The clock comes from outside: [`Submitter::submit`], [`Submitter::remove_expired`] and [`Worker::run_pending`]
//! are given the time. Only the pool's own threads read the system's clock.
//!
//! # Which workers are woken
//!
//! A wake-up costs a system call and often a context switch, more than a short call. A worker that is awake
//! looks at the queue again before it sleeps, so while calls are short, one awake worker is enough. A second
//! worker is woken if more lines wait than one batch takes, or if the last [`FAST_CALLS`] calls were
//! not all short (then each may block, and each line that waits gets a worker while there are any), or
//! if each worker that is awake has spent more than [`SLOW_CALL`] on its call. The last case is found when
//! a worker takes a call, and by [`Submitter::flush`], which shards call in each turn.

mod group;
mod handling_time;
mod list;
pub(crate) mod queue;
mod standing;
pub(crate) mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use crate::batch::SLOW_CALL;
use crate::handler::{Call, Handler};
use crate::histogram::Durations;
use crate::publisher::Gateway;
use group::{Buffer, Group};
use queue::Queue;
pub use queue::TimeoutId;
pub use standing::WaitBound;
pub use worker::Worker;

/// How many calls in a row must be short before the pool expects the next one to be short.
pub const FAST_CALLS: u32 = 64;

/// Calls that are gathered before they are put into the queue under one lock, which takes a few microseconds.
/// A turn may have thousands; this many fit in the cache.
const GATHERED_MAX: usize = 64;

/// Calls that one [`Submitter::remove_expired`] removes at most, so that a mass timeout is spread over several turns.
const EXPIRE_CALLS_MAX: usize = 1024;

/// How large a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Threads: at least 1.
    pub workers: usize,
    /// Calls that may wait for a worker; more are refused. Shards check before they submit, so the calls
    /// that other shards submit in the same turn may exceed it.
    pub queue_calls_max: usize,
    /// Bytes of requests that may wait for a worker; more are refused, but a longer one may wait alone. As for
    /// `queue_calls_max`, the bytes of one turn of the other shards may exceed it.
    pub queue_bytes_max: usize,
    /// Calls that one [`Handler::handle_batch`] gets at most: at least 1.
    pub batch_calls_max: usize,
}

/// What waits in a pool, and what has waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Calls that wait for a worker.
    pub calls: usize,
    /// Bytes of their requests.
    pub bytes: usize,
    /// Calls that were removed because they had expired.
    pub expired: u64,
    /// How long calls waited, from their receipt until a worker took them.
    pub waits: Durations,
    /// The queue stands, and calls that have waited too long are shed.
    pub is_shedding: bool,
}

/// A handler and its worker threads. The threads end when the pool and its submitters are dropped, after they
/// have handled what waits.
#[derive(Clone, Debug)]
pub struct Pool {
    handle: Arc<Handle>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        handler: &Arc<dyn Handler>,
        gateway: &Gateway,
        options: PoolOptions,
    ) -> io::Result<Self> {
        let (pool, workers) = Self::idle(handler, gateway, options);
        for (index, mut worker) in workers.into_iter().enumerate() {
            thread::Builder::new().name(format!("{name}-{index}")).spawn(move || worker.run())?;
        }
        Ok(pool)
    }

    /// A pool whose workers the caller runs itself, step by step: for tests and simulations.
    #[must_use]
    pub fn idle(
        handler: &Arc<dyn Handler>,
        gateway: &Gateway,
        options: PoolOptions,
    ) -> (Self, Vec<Worker>) {
        let shared = Arc::new(Shared::new(options));
        let workers = (0..shared.options.workers)
            .map(|index| Worker::new(index, &shared, handler, gateway))
            .collect();
        (Self { handle: Arc::new(Handle { shared }) }, workers)
    }

    /// What waits now, and what has waited.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.shared().stats()
    }

    /// A view of the queue, for the page of metrics.
    #[must_use]
    pub fn observer(&self) -> QueueObserver {
        QueueObserver { shared: Arc::clone(&self.handle.shared) }
    }

    /// A way in, for one shard.
    #[must_use]
    pub fn submitter(&self) -> Submitter {
        Submitter {
            pool: self.clone(),
            gathered: Vec::with_capacity(GATHERED_MAX),
            gathered_calls: 0,
            gathered_bytes: 0,
            buffers: Vec::new(),
            is_unflushed: false,
            timeouts: Vec::new(),
            sheds: false,
            removed: Vec::new(),
        }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

/// Sees what waits in a pool. An observer does not keep the pool's threads alive.
#[derive(Clone, Debug)]
pub struct QueueObserver {
    shared: Arc<Shared>,
}

impl QueueObserver {
    /// What waits now, and what has waited.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.shared.stats()
    }
}

/// What pools and submitters hold: the workers end when it is dropped.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// One shard's way into a pool. Calls gather here for a moment, and workers are woken by [`Submitter::flush`].
#[derive(Debug)]
pub struct Submitter {
    pool: Pool,
    gathered: Vec<Group>,
    gathered_calls: usize,
    gathered_bytes: usize,
    /// For groups to come, so that making one takes no lock and no allocation.
    buffers: Vec<Buffer>,
    /// Calls were put into the queue since the last flush.
    is_unflushed: bool,
    /// The names of this submitter's timeouts.
    timeouts: Vec<Timeout>,
    /// One of them has a bound on the wait.
    sheds: bool,
    /// Empty between calls; kept for its memory.
    removed: Vec<Call>,
}

/// A timeout of a submitter.
#[derive(Clone, Copy, Debug)]
struct Timeout {
    duration: Duration,
    bound: Option<WaitBound>,
    id: TimeoutId,
}

impl Submitter {
    /// The name of a timeout and a bound on the wait for a worker, for [`Submitter::submit`] of this submitter.
    #[must_use]
    pub fn timeout_id(&mut self, duration: Duration, bound: Option<WaitBound>) -> TimeoutId {
        let is_same = |known: &&Timeout| (known.duration, known.bound) == (duration, bound);
        if let Some(known) = self.timeouts.iter().find(is_same) {
            return known.id;
        }
        let id = self.pool.shared().lock().queue.add_timeout(duration, bound);
        self.timeouts.push(Timeout { duration, bound, id });
        self.sheds |= bound.is_some();
        id
    }

    /// Whether the queue has room for a call with a request of this many bytes: ask before making one.
    #[inline]
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let shared = self.pool.shared();
        let calls = shared.queued_calls.load(Ordering::Relaxed) + self.gathered_calls;
        let queued_bytes = shared.queued_bytes.load(Ordering::Relaxed) + self.gathered_bytes;
        // A request that is longer than the bound may wait alone, or it would never be handled.
        calls < shared.options.queue_calls_max
            && (queued_bytes == 0 || queued_bytes + bytes <= shared.options.queue_bytes_max)
    }

    /// Whether the queue stood when it was last used, and calls that have waited too long are shed. It takes no lock.
    #[inline]
    #[must_use]
    pub fn is_shedding(&self) -> bool {
        self.pool.shared().is_shedding.load(Ordering::Relaxed)
    }

    /// Submits a call that was received at `received` and is handled until its timeout has passed. Call
    /// [`Self::flush`] after the last one of a turn.
    #[inline]
    pub fn submit(&mut self, call: Call, received: Instant, timeout: TimeoutId) {
        self.gathered_calls += 1;
        self.gathered_bytes += call.biz_data().len();
        let appended = match self.gathered.last_mut() {
            Some(group) => group.append(call, received, timeout),
            None => Err(call),
        };
        if let Err(call) = appended {
            let buffer = self.buffers.pop().unwrap_or_default();
            self.gathered.push(Group::new(call, received, timeout, buffer));
        }
        if self.gathered_calls >= GATHERED_MAX {
            self.enqueue();
        }
    }

    /// Hands over what was submitted, and sees to it that enough workers are awake. Calls of this submitter that have waited
    /// too long in a queue that stands leave it: their ports get that they were shed. Returns whether anything was submitted since
    /// the last flush.
    pub fn flush(&mut self, now: Instant) -> bool {
        self.enqueue();
        let any = std::mem::take(&mut self.is_unflushed);
        let shared = self.pool.shared();
        if any || shared.queued_calls.load(Ordering::Relaxed) > 0 {
            let mut state = shared.lock();
            let wake = state.worker_to_wake(now, shared);
            if self.sheds {
                state.queue.note_level(now);
                let bounded = self.timeouts.iter().filter(|timeout| timeout.bound.is_some());
                state.queue.shed(now, bounded.map(|timeout| timeout.id), &mut self.removed);
            }
            shared.publish(&state);
            drop(state);
            self.removed.drain(..).for_each(Call::report_shed);
            // After all calls of the turn: a worker that is woken may take this core at once, and would sleep again
            // after a few calls.
            unpark(wake);
        }
        any
    }

    /// Moves the gathered calls into the queue. No worker is woken.
    fn enqueue(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let shared = self.pool.shared();
        let mut state = shared.lock();
        self.gathered.drain(..).for_each(|group| state.queue.push(group));
        let buffers_max = GATHERED_MAX - self.buffers.len();
        state.queue.take_buffers(buffers_max, &mut self.buffers);
        shared.publish(&state);
        drop(state);
        self.gathered_calls = 0;
        self.gathered_bytes = 0;
        self.is_unflushed = true;
    }

    /// Whether calls were submitted since the last flush.
    #[inline]
    #[must_use]
    pub const fn has_unflushed(&self) -> bool {
        self.is_unflushed || !self.gathered.is_empty()
    }

    /// Whether calls wait for a worker.
    #[inline]
    #[must_use]
    pub fn has_queued(&self) -> bool {
        self.pool.shared().queued_calls.load(Ordering::Relaxed) > 0
    }

    /// Removes queued calls of this submitter that have expired at `now`. They are not answered: the shard that
    /// submitted them has answered them before. Returns whether there may be more.
    pub fn remove_expired(&mut self, now: Instant) -> bool {
        let shared = self.pool.shared();
        let mut state = shared.lock();
        let timeouts = self.timeouts.iter().map(|timeout| timeout.id);
        let more = state.queue.remove_expired(now, timeouts, EXPIRE_CALLS_MAX, &mut self.removed);
        shared.publish(&state);
        drop(state);
        // Without the lock: requests may be large.
        self.removed.drain(..).for_each(Call::discard_expired);
        more
    }
}

fn unpark(worker: Option<Thread>) {
    if let Some(worker) = worker {
        worker.unpark();
    }
}

/// What workers and submitters share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Held for tens of nanoseconds, for [`GATHERED_MAX`] calls at most a few microseconds; never while a
    /// handler runs or a call is dropped.
    state: Mutex<State>,
    /// Copies of the queue's levels, so that shards need no lock to look at them.
    queued_calls: AtomicUsize,
    queued_bytes: AtomicUsize,
    is_shedding: AtomicBool,
    /// Short calls in a row, up to [`FAST_CALLS`]. Workers may overwrite each other's: it is an estimate.
    fast_calls: AtomicU32,
    /// When each worker took the call that it handles now, in microseconds since `epoch`, plus 1; 0: it handles none.
    began: Box<[CachePadded<AtomicU64>]>,
    epoch: Instant,
    options: PoolOptions,
}

/// What the lock guards.
#[derive(Debug)]
struct State {
    queue: Queue,
    /// The workers' threads, once they run.
    threads: Vec<Option<Thread>>,
    /// Workers that sleep. The one that fell asleep last is woken first: its memory is in the cache.
    asleep: Vec<usize>,
    /// Workers that were woken and have not looked at the queue since.
    waking: usize,
    /// The pool and its submitters are gone.
    closed: bool,
}

impl Shared {
    fn new(mut options: PoolOptions) -> Self {
        options.workers = options.workers.max(1);
        options.batch_calls_max = options.batch_calls_max.max(1);
        let state = State {
            queue: Queue::new(options.workers),
            threads: vec![None; options.workers],
            asleep: Vec::with_capacity(options.workers),
            waking: 0,
            closed: false,
        };
        let (queued_calls, queued_bytes, fast_calls) = Default::default();
        let began = (0..options.workers).map(|_| CachePadded::default()).collect();
        let (state, epoch) = (Mutex::new(state), Instant::now());
        Self {
            state,
            queued_calls,
            queued_bytes,
            is_shedding: AtomicBool::new(false),
            fast_calls,
            began,
            epoch,
            options,
        }
    }

    /// Only a lack of memory can panic while the lock is held.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the queue's levels seen without the lock. Only called while it is held, so stores are enough.
    #[inline]
    fn publish(&self, state: &State) {
        self.queued_calls.store(state.queue.calls(), Ordering::Relaxed);
        self.queued_bytes.store(state.queue.bytes(), Ordering::Relaxed);
        self.is_shedding.store(state.queue.is_shedding(), Ordering::Relaxed);
    }

    /// Whether the next call is expected to be short.
    #[inline]
    fn is_fast(&self) -> bool {
        self.fast_calls.load(Ordering::Relaxed) >= FAST_CALLS
    }

    /// Counts a call that was handled.
    #[inline]
    fn note_call(&self, is_slow: bool) {
        let fast_calls = self.fast_calls.load(Ordering::Relaxed);
        if is_slow {
            self.fast_calls.store(0, Ordering::Relaxed);
        } else if fast_calls < FAST_CALLS {
            self.fast_calls.store(fast_calls + 1, Ordering::Relaxed);
        }
    }

    /// Says since when a worker handles a call.
    #[inline]
    fn set_began(&self, worker: usize, began: Option<Instant>) {
        let began = began.map_or(0, |began| self.micros(began) + 1);
        self.began[worker].store(began, Ordering::Relaxed);
    }

    #[inline]
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        since.as_secs() * 1_000_000 + u64::from(since.subsec_micros())
    }

    /// Workers that have handled their call for more than [`SLOW_CALL`].
    fn blocked_workers(&self, now: Instant) -> usize {
        let slow_us = u64::try_from(SLOW_CALL.as_micros()).unwrap_or(u64::MAX);
        let slow_since = (self.micros(now) + 1).saturating_sub(slow_us);
        let began = self.began.iter().map(|began| began.load(Ordering::Relaxed));
        began.filter(|&began| began > 0 && began < slow_since).count()
    }

    fn stats(&self) -> QueueStats {
        let state = self.lock();
        let queue = &state.queue;
        QueueStats {
            calls: queue.calls(),
            bytes: queue.bytes(),
            expired: queue.expired(),
            waits: *queue.waits(),
            is_shedding: queue.is_shedding(),
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waking += state.asleep.len();
        let asleep = std::mem::take(&mut state.asleep);
        let threads: Vec<_> = asleep.iter().map(|&worker| state.threads[worker].clone()).collect();
        drop(state);
        threads.into_iter().for_each(unpark);
    }
}

impl State {
    /// Picks a sleeping worker if one is needed, by the rules at the [top](self). It counts as woken.
    #[inline]
    fn worker_to_wake(&mut self, now: Instant, shared: &Shared) -> Option<Thread> {
        let lines = self.queue.runnable_lines();
        if lines == 0 || self.waking > 0 || self.asleep.is_empty() {
            return None;
        }
        let awake = self.threads.len() - self.asleep.len();
        let are_enough_awake = awake > 0
            && shared.is_fast()
            && lines <= shared.options.batch_calls_max
            && shared.blocked_workers(now) < awake;
        if are_enough_awake {
            return None;
        }
        let worker = self.asleep.pop()?;
        self.waking += 1;
        self.threads[worker].clone()
    }
}

#[cfg(test)]
mod tests;
