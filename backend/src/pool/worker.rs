//! A worker: takes calls from the queue and runs the handler.

use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::group::Group;
use super::handling_time::{HandlingTime, Start};
use super::queue::{Expired, LineId, Queue, Removal};
use super::{Shared, unpark};
use rustix::time::{ClockId, clock_gettime};

use crate::batch::{self, Batch, SLOW_CALL};
use crate::handler::{Call, Handler};
use crate::log_limit::LogLimit;
use crate::publisher::Gateway;

/// Calls that a worker takes between two exact looks at the clock, while calls are short: a look costs about a
/// third of taking a call.
const CALLS_PER_READ: u32 = 8;

/// Where a worker reads the time.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// From the system. A coarse clock, which costs a fifth of an exact one and moves every few milliseconds,
    /// tells when an exact look is due before its turn: a call that blocks is noticed at once.
    System,
    /// From the caller that runs it step by step.
    At(Instant),
}

impl Clock {
    #[inline]
    fn now(self) -> Instant {
        match self {
            Self::System => Instant::now(),
            Self::At(now) => now,
        }
    }

    #[inline]
    fn coarse(self) -> Coarse {
        match self {
            Self::System => {
                let time = clock_gettime(ClockId::MonotonicCoarse);
                Coarse(time.tv_sec, time.tv_nsec)
            }
            Self::At(_) => Coarse::default(),
        }
    }
}

/// A time of the kernel's coarse clock: seconds and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Coarse(i64, i64);

/// One thread's end of a pool.
pub struct Worker {
    handler: Arc<dyn Handler>,
    gateway: Gateway,
    batch: Batch,
    patience: Patience,
    /// The limit on log lines of panics.
    panics: LogLimit,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        shared: &Arc<Shared>,
        handler: &Arc<dyn Handler>,
        gateway: &Gateway,
    ) -> Self {
        let hold = Hold {
            shared: Arc::clone(shared),
            index,
            clock: Clock::System,
            now: Instant::now(),
            coarse: Coarse::default(),
            calls_since_read: 0,
            calls_measured: 1,
            is_fast: false,
            taken: Taken::default(),
            handling: HandlingTime::default(),
            began: None,
            last: Taking::Alone,
            expired: Expired::default(),
        };
        Self {
            handler: Arc::clone(handler),
            gateway: gateway.clone(),
            batch: Batch::new(hold),
            patience: Patience::default(),
            panics: LogLimit::new(),
        }
    }

    /// Works until the pool and its submitters are gone and the queue is empty.
    pub(super) fn run(&mut self) {
        self.batch.hold.set_thread();
        loop {
            let yields = self.patience.yields();
            match self.batch.hold.begin(!yields) {
                Begin::Call(call, is_fast) => self.work(call, is_fast),
                Begin::Nothing if yields => self.yield_once(),
                Begin::Nothing => self.sleep(),
                Begin::Closed => return,
            }
        }
    }

    /// Lets a shard that shares this core run, then looks once more and sleeps if there is still nothing.
    fn yield_once(&mut self) {
        thread::yield_now();
        match self.batch.hold.begin(true) {
            Begin::Call(call, is_fast) => {
                self.patience.note_yield(true);
                self.work(call, is_fast);
            }
            Begin::Nothing => {
                self.patience.note_yield(false);
                self.sleep();
            }
            // The next look reports it too.
            Begin::Closed => {}
        }
    }

    fn sleep(&mut self) {
        let since = Instant::now();
        self.batch.hold.sleep();
        self.patience.note_sleep(since.elapsed());
    }

    /// Works on what waits at `now`, without blocking. Returns whether there was anything.
    pub fn run_pending(&mut self, now: Instant) -> bool {
        self.batch.hold.clock = Clock::At(now);
        let mut any = false;
        while let Begin::Call(call, is_fast) = self.batch.hold.begin(false) {
            self.work(call, is_fast);
            any = true;
        }
        any
    }

    /// Works on one batch of what waits at `began`, without blocking, as if it took until `ended`. Returns whether there
    /// was anything.
    pub fn run_one(&mut self, began: Instant, ended: Instant) -> bool {
        self.batch.hold.clock = Clock::At(began);
        let Begin::Call(call, is_fast) = self.batch.hold.begin(false) else { return false };
        self.handle(call, is_fast);
        self.batch.hold.clock = Clock::At(ended);
        self.batch.end();
        batch::wake_deferred();
        true
    }

    /// Handles a batch that starts with `first`.
    fn work(&mut self, first: Call, is_fast: bool) {
        self.handle(first, is_fast);
        self.batch.end();
        batch::wake_deferred();
    }

    /// Has the handler take a batch that starts with `first`.
    fn handle(&mut self, first: Call, is_fast: bool) {
        let calls_max = self.batch.hold.shared.options.batch_calls_max;
        self.batch.start(first, calls_max);
        if is_fast {
            batch::defer_wakes();
        }
        let (handler, gateway, batch) = (&*self.handler, &self.gateway, &mut self.batch);
        let work = AssertUnwindSafe(|| handler.handle_batch(batch, gateway));
        // A panic drops the current call, which answers it with 101. The rest is in the queue, or goes back there.
        if panic::catch_unwind(work).is_err()
            && let Some(suppressed) = self.panics.allow()
        {
            tracing::error!(suppressed, "a handler panicked; its call is answered with 101");
        }
    }
}

/// Whether a worker that finds no call yields once before it sleeps.
///
/// To sleep and to be woken are two system calls. Where a shard on the same core has more calls for this worker as
/// soon as it runs, a yield is enough. Where it has none, the yield is lost. So a worker yields while that
/// succeeds; after a failure it tries again when its last sleeps were short.
#[derive(Debug, Default)]
struct Patience {
    /// How often a yield has been worth it lately. The worker yields while this is positive.
    score: i32,
}

impl Patience {
    /// A sleep that is shorter might have been a yield.
    const SHORT_SLEEP: Duration = Duration::from_micros(20);
    /// The score after a failure: this many short sleeps are between two tries.
    const FAILED: i32 = -16;

    const fn yields(&self) -> bool {
        self.score > 0
    }

    fn note_yield(&mut self, success: bool) {
        self.score = if success { 4.min(self.score + 1) } else { self.score - 3 };
        if self.score <= 0 {
            self.score = Self::FAILED;
        }
    }

    fn note_sleep(&mut self, slept: Duration) {
        let step = if slept < Self::SHORT_SLEEP { 1 } else { -1 };
        self.score = (self.score + step).max(Self::FAILED);
    }
}

/// What a worker finds when it begins.
pub(crate) enum Begin {
    /// A call, and whether the calls before it were short.
    Call(Call, bool),
    /// No call that it may take now.
    Nothing,
    /// The pool has ended.
    Closed,
}

/// A worker's access to the queue, and what it has taken from it.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    index: usize,
    clock: Clock,
    /// What the clock said when it was last read.
    now: Instant,
    /// What the coarse clock said then.
    coarse: Coarse,
    /// Calls that were taken since then.
    calls_since_read: u32,
    /// Calls between the last two exact looks.
    calls_measured: u32,
    /// Whether calls were short when one was last taken.
    is_fast: bool,
    taken: Taken,
    handling: HandlingTime,
    /// When the current call was taken.
    began: Option<Instant>,
    /// How that call was taken.
    last: Taking,
    /// Empty between calls; kept for its memory.
    expired: Expired,
}

/// How a call is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// The handler is done with it when it takes the next one: its line is released then.
    Alone,
    /// The handler may keep it: its line is held until the end of the batch.
    Kept,
}

/// What a worker has taken from the queue.
#[derive(Debug, Default)]
struct Taken {
    /// The lines that it holds. The last one is that of the call that was taken last.
    lines: Vec<LineId>,
    /// The group of that call: its other calls are handled next.
    group: Option<Group>,
    /// How long the calls of the group have waited.
    waited: Duration,
    /// The wait of the group's next call is counted already: a call that hangs has to be seen.
    is_counted: bool,
    /// The waits of calls that were handled since the lock was last held, each with the number of calls that
    /// had it. They are counted when the lock is held again.
    waits: Vec<(Duration, u64)>,
}

impl Taken {
    /// Takes over a group of the last line. The wait of its first call, which is handled now, is counted.
    #[inline]
    fn put(&mut self, group: Group, queue: &mut Queue, now: Instant) {
        queue.note_waits(group.waited(now), 1);
        self.group = Some(group);
        self.is_counted = true;
    }

    /// The next call of the group, if there is one and it has not expired.
    #[inline]
    fn next(&mut self, now: Instant, clock_was_read: bool) -> Option<Call> {
        let group = self.group.as_mut()?;
        if clock_was_read {
            self.waited = group.waited(now);
        }
        // The first one of a group is in time: the queue has checked.
        if self.waited >= group.timeout.duration() {
            return None;
        }
        let call = group.pop()?;
        if mem::take(&mut self.is_counted) {
            return Some(call);
        }
        match self.waits.last_mut() {
            Some((waited, calls)) if *waited == self.waited => *calls += 1,
            _ => self.waits.push((self.waited, 1)),
        }
        Some(call)
    }

    /// Puts the calls of the group that were not handled back into the queue, which also counts how long the
    /// others waited.
    #[inline]
    fn give_back(&mut self, queue: &mut Queue) {
        self.waits.drain(..).for_each(|(waited, calls)| queue.note_waits(waited, calls));
        if let Some(&line) = self.lines.last()
            && let Some(group) = self.group.take()
        {
            queue.put_back(line, group);
        }
    }
}

impl Hold {
    fn set_thread(&self) {
        self.shared.lock().threads[self.index] = Some(thread::current());
    }

    /// Takes the first call of a batch. No line may be held. Where there is none, the worker is asleep from
    /// now on, if it `may_sleep`.
    fn begin(&mut self, may_sleep: bool) -> Begin {
        let now = self.read_clock();
        self.is_fast = self.shared.is_fast();
        let calls_max = self.group_calls_max(self.shared.options.batch_calls_max);
        let start = Start { at: now, handling: self.handling.upper_bound() };
        let mut state = self.shared.lock();
        let mut group = state.queue.take(start, calls_max, &mut self.expired);
        // A line that had only expired calls may have others by now.
        while group.is_none() && !self.expired.calls.is_empty() {
            drop(state);
            self.answer_expired(now);
            state = self.shared.lock();
            group = state.queue.take(start, calls_max, &mut self.expired);
        }
        let wake = state.worker_to_wake(now, &self.shared);
        let is_closed = state.closed;
        let found = group.is_some();
        if let Some((line, group)) = group {
            self.taken.lines.push(line);
            self.taken.put(group, &mut state.queue, now);
        } else if may_sleep && !is_closed {
            state.asleep.push(self.index);
        }
        self.shared.publish(&state);
        drop(state);
        let begin = match self.next_of_group(now, true) {
            Some(call) => Begin::Call(call, self.is_fast),
            None if is_closed && !found => Begin::Closed,
            None => Begin::Nothing,
        };
        unpark(wake);
        self.answer_expired(now);
        begin
    }

    /// Calls that may be taken together, if the handler may take `calls_left`: several while calls are short.
    /// They would be handled one after the other anyway, so no other connection waits for them.
    #[inline]
    fn group_calls_max(&self, calls_left: usize) -> usize {
        if self.is_fast { calls_left } else { 1 }
    }

    #[inline]
    fn read_clock(&mut self) -> Instant {
        self.now = self.clock.now();
        self.coarse = self.clock.coarse();
        self.calls_measured = self.calls_since_read + 1;
        self.calls_since_read = 0;
        self.now
    }

    /// The time, as exactly as it has to be known between two short calls.
    #[inline]
    fn cheap_time(&mut self) -> Instant {
        let is_recent = self.is_fast && self.calls_since_read < CALLS_PER_READ;
        if !is_recent || self.clock.coarse() != self.coarse {
            return self.read_clock();
        }
        self.calls_since_read += 1;
        self.now
    }

    /// Waits until another thread has woken this worker.
    fn sleep(&self) {
        loop {
            thread::park();
            let mut state = self.shared.lock();
            // A thread may be unparked for other reasons.
            if !state.asleep.contains(&self.index) {
                state.waking -= 1;
                return;
            }
        }
    }

    /// Notes how the handler takes the first call of a batch.
    pub(crate) const fn take_first(&mut self, taking: Taking) {
        self.last = taking;
    }

    /// Takes the next call of a batch, which may take `calls_left`: at least 1.
    #[inline]
    pub(crate) fn next(&mut self, taking: Taking, calls_left: usize) -> Option<Call> {
        let now = self.cheap_time();
        let is_slow = self.note_end(now);
        // The other calls of the group are of a line that the call before was taken from in the same way.
        if !is_slow
            && taking == self.last
            && let Some(call) = self.next_of_group(now, self.calls_since_read == 0)
        {
            return Some(call);
        }
        // While calls are short, a connection's calls are handled one after the other, so that their answers
        // leave in one send. Otherwise connections take turns.
        self.is_fast = self.shared.is_fast();
        let stays = match self.last {
            Taking::Alone => self.is_fast,
            Taking::Kept => taking == Taking::Kept,
        };
        let calls_max = self.group_calls_max(calls_left);
        let start = Start { at: now, handling: self.handling.upper_bound() };
        let mut state = self.shared.lock();
        let queue = &mut state.queue;
        self.taken.give_back(queue);
        queue.note_level(now);
        let mut group = None;
        if let Some(&line) = self.taken.lines.last() {
            if stays {
                group = queue.take_from(line, now, calls_max, &mut self.expired);
            }
            if group.is_none() && self.last == Taking::Alone {
                self.taken.lines.pop();
                if self.expired.calls.is_empty() {
                    queue.release(line);
                } else {
                    self.expired.lines.push(line);
                }
            }
        }
        if group.is_none()
            && let Some((line, next)) = queue.take(start, calls_max, &mut self.expired)
        {
            self.taken.lines.push(line);
            group = Some(next);
        }
        if let Some(group) = group {
            self.taken.put(group, queue, now);
        }
        let wake = state.worker_to_wake(now, &self.shared);
        self.shared.publish(&state);
        drop(state);
        self.last = taking;
        let call = self.next_of_group(now, true);
        if call.is_none() {
            self.note_idle();
        }
        unpark(wake);
        self.answer_expired(now);
        if is_slow {
            batch::wake_deferred();
        }
        call
    }

    /// The next call of the current group, if there is one and it has not expired.
    #[inline]
    fn next_of_group(&mut self, now: Instant, clock_was_read: bool) -> Option<Call> {
        let call = self.taken.next(now, clock_was_read)?;
        self.note_begin(now);
        Some(call)
    }

    /// Answers calls that have expired or are shed, then releases their lines. The lock must not be held: an answer takes other locks, and
    /// requests may be large.
    #[inline]
    fn answer_expired(&mut self, now: Instant) {
        if self.expired.calls.is_empty() {
            return;
        }
        for (call, removal) in self.expired.calls.drain(..) {
            match removal {
                Removal::Expired => call.report_expired(),
                Removal::Shed => call.report_shed(),
            }
        }
        let mut state = self.shared.lock();
        state.queue.note_level(now);
        for line in self.expired.lines.drain(..) {
            state.queue.release(line);
        }
        let wake = state.worker_to_wake(now, &self.shared);
        drop(state);
        unpark(wake);
    }

    /// A call was taken: it is the current one from now on.
    #[inline]
    fn note_begin(&mut self, now: Instant) {
        if self.began != Some(now) {
            self.began = Some(now);
            self.shared.set_began(self.index, self.began);
        }
    }

    /// There is no current call.
    fn note_idle(&mut self) {
        self.began = None;
        self.shared.set_began(self.index, None);
    }

    /// The handler is done with the current call, if there is one. Returns whether calls took long since the
    /// last exact look at the clock, on average.
    #[inline]
    fn note_end(&mut self, now: Instant) -> bool {
        let Some(began) = self.began else { return false };
        let mut is_slow = false;
        if now != began {
            let took = now.saturating_duration_since(began) / self.calls_measured;
            self.handling.note(took);
            is_slow = took > SLOW_CALL;
        }
        self.shared.note_call(is_slow);
        is_slow
    }

    /// Releases all lines: the handler is done with all calls of the batch.
    pub(crate) fn release_all(&mut self) {
        if !self.taken.lines.is_empty() || !self.taken.waits.is_empty() {
            let now = self.read_clock();
            self.note_end(now);
            let mut state = self.shared.lock();
            self.taken.give_back(&mut state.queue);
            state.queue.note_level(now);
            for line in self.taken.lines.drain(..) {
                state.queue.release(line);
            }
        }
        self.note_idle();
    }
}
