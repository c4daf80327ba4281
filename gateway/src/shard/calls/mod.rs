//! Calls: the part of the shard that hands requests to backends and takes their answers.
//!
//! It owns the router, the calls in flight and how long they took. It knows no connection: the client is an id in the
//! call, and the shard writes the answer.

pub mod durations;
pub mod port;

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidegate_backend::handler::{AnswerPort, CallId, Outcome};
use tidegate_backend::histogram::Durations;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{Call, Failure, Gateway, SessionId, UserId};

use super::clock::Clock;
use super::mailbox::{Address, Answer};
use super::stats::CallCounters;
use crate::config::Config;
use crate::driver::ConnId;
use crate::limits::user_rates::UserRates;
use crate::router::{Backend, PendingCall, RouteIndex, Router};
use durations::CallDurations;
use port::{OnThread, Port};

/// Bytes of a fresh arena: one allocation for this much of requests' `biz_data`.
const ARENA_BYTES: usize = 16 * 1024;

/// A longer request gets a separate allocation. A backend that keeps it for a while then keeps nothing else
/// with it.
const ARENA_REQUEST_BYTES_MAX: usize = 1024;

/// For so long after calls were handed over, in milliseconds, the shard polls for their answers without being woken: a
/// wake-up is deferred to the end of a batch, and a batch may have a slow call.
const POLL_ANSWERS_MS: u64 = 16;

/// A request for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The connection that sent the request.
    pub conn: ConnId,
    /// The session of the connection.
    pub session: SessionId,
    /// The user of the session.
    pub user_id: UserId,
    /// The request's type.
    pub kind: i32,
    /// The request's sequence, which the answer repeats.
    pub sequence: u64,
    /// The request's data for the backend.
    pub biz_data: &'a [u8],
}

/// The calls of a shard. See the [module](self).
pub struct Calls {
    router: Router,
    /// What handlers on this thread get.
    gateway: Gateway,
    port: Arc<Port>,
    answer_port: Arc<dyn AnswerPort>,
    /// Requests' `biz_data` is copied here: one allocation serves many requests.
    arena: BytesMut,
    /// When workers were last given calls, on the shard's clock.
    handed_over_at_ms: u64,
    /// The backends' queues may hold expired calls.
    may_queue_expired: bool,
    durations: Vec<Durations>,
    /// The limit on log lines of handlers that panic.
    panics: LogLimit,
    counters: CallCounters,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("router", &self.router).finish_non_exhaustive()
    }
}

impl Calls {
    /// No call yet. Answers come to `address`.
    #[must_use]
    pub fn new(
        config: &Config,
        backends: &[Backend],
        users: Arc<OnceLock<UserRates>>,
        address: Address,
        gateway: Gateway,
    ) -> Self {
        let port = Arc::new(Port::new(address));
        Self {
            router: Router::new(&config.routes, backends, users, config.shards),
            gateway,
            answer_port: Arc::clone(&port) as Arc<dyn AnswerPort>,
            port,
            arena: BytesMut::new(),
            handed_over_at_ms: 0,
            may_queue_expired: false,
            durations: vec![Durations::default(); backends.len()],
            panics: LogLimit::new(),
            counters: CallCounters::default(),
        }
    }

    /// Uses the routes of another configuration: see [`Router::reconfigure`].
    pub fn reconfigure(&mut self, config: &Config) {
        self.router.reconfigure(&config.routes, config.shards);
    }

    /// Calls that wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.router.pending.len()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> &CallCounters {
        &self.counters
    }

    /// Says that this thread runs the shard until the result is dropped: answers that are given on it
    /// need no mailbox.
    pub fn enter_thread(&self) -> OnThread {
        self.port.enter()
    }

    /// Finds the route of a type, if it takes one more call with a request of so many bytes.
    ///
    /// # Errors
    /// What the client gets.
    #[inline]
    pub fn admit(
        &mut self,
        kind: i32,
        user_id: UserId,
        bytes: usize,
        clock: &Clock,
    ) -> Result<RouteIndex, Failure> {
        self.router.admit(kind, user_id, bytes, clock.now_ms())
    }

    /// Starts a call: submits it to the workers with the next [`Self::flush`], or runs the handler here. Its
    /// answer comes through [`Self::next_answer`] or the mailbox, never from here.
    #[inline]
    pub fn start(&mut self, request: &Request<'_>, route: RouteIndex, clock: &Clock) {
        let &Request { conn, session, user_id, kind, sequence, biz_data } = request;
        let started_us = clock.received_us();
        let id = self.router.pending.open(PendingCall { conn, sequence, kind, route, started_us });
        let biz_data = self.copy(biz_data);
        self.counters.calls += 1;
        let port = Arc::clone(&self.answer_port);
        let call = Call::new(kind, user_id, session, biz_data, id, port);
        let submitted = self.router.submit(route, call, clock.received());
        let Err((call, handler)) = submitted else { return };
        let work = AssertUnwindSafe(|| handler.handle(call, &self.gateway));
        if panic::catch_unwind(work).is_err()
            && let Some(suppressed) = self.panics.allow_at(clock.now_ms())
        {
            tracing::error!(kind, suppressed, "a handler panicked; its call is answered with 101");
        }
    }

    /// Copies a request's `biz_data` out of the driver's buffer.
    #[inline]
    fn copy(&mut self, biz_data: &[u8]) -> Bytes {
        if biz_data.is_empty() {
            return Bytes::new();
        }
        if biz_data.len() > ARENA_REQUEST_BYTES_MAX {
            return Bytes::copy_from_slice(biz_data);
        }
        if self.arena.capacity() < biz_data.len() {
            self.arena.reserve(ARENA_BYTES);
        }
        self.arena.extend_from_slice(biz_data);
        self.arena.split().freeze()
    }

    /// Whether answers that were given on this thread wait.
    #[inline]
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.port.has_answers()
    }

    /// The next answer that was given on this thread.
    #[inline]
    pub fn next_answer(&self) -> Option<Answer> {
        self.port.next_answer()
    }

    /// Ends the call of an answer. `None`: the call has expired, so the answer is late.
    #[inline]
    pub fn finish(
        &mut self,
        call: CallId,
        outcome: Outcome,
        clock: &Clock,
    ) -> Option<(PendingCall, Outcome)> {
        let Some(pending) = self.router.pending.close(call) else {
            self.counters.late_answers += 1;
            return None;
        };
        self.note_duration(&pending, clock);
        self.router.note_answer(pending.route, clock.now_ms());
        Some((pending, outcome))
    }

    /// Ends a call that has waited too long for a worker. `None`: it has expired meanwhile.
    pub fn shed(&mut self, call: CallId, clock: &Clock) -> Option<(PendingCall, Failure)> {
        self.router.shed(call, clock.now_ms())
    }

    /// The next call to fail because a worker has found `call` expired: the older calls of its route, which
    /// have expired too, and then itself. So no 102 overtakes an earlier one. `None`: all of them are closed.
    pub fn take_expired_until(&mut self, call: CallId, clock: &Clock) -> Option<PendingCall> {
        let pending = self.router.pending.take_oldest_until(call)?;
        Some(self.note_timeout(pending, clock))
    }

    /// An expired call: it has to be answered with 102.
    pub fn take_expired(&mut self, clock: &Clock) -> Option<PendingCall> {
        let pending = self.router.pending.take_expired(clock.now_ms())?;
        Some(self.note_timeout(pending, clock))
    }

    fn note_timeout(&mut self, pending: PendingCall, clock: &Clock) -> PendingCall {
        self.note_duration(&pending, clock);
        self.router.note_timeout(pending.route, clock.now_ms());
        self.may_queue_expired = true;
        pending
    }

    /// Removes expired calls from the backends' queues. [`Self::take_expired`] must have taken all calls that
    /// have expired: one that leaves its queue without an answer could be overtaken by the next call of its
    /// connection. Returns whether there may be more.
    pub fn remove_expired(&mut self, clock: &Clock) -> bool {
        if self.may_queue_expired {
            // Calls time out by the millisecond here, so all that were received within one expire together.
            let end = clock.instant(clock.now_ms() + 1) - Duration::from_nanos(1);
            self.may_queue_expired = self.router.remove_expired(end);
        }
        self.may_queue_expired
    }

    /// Whether calls wait for a worker.
    #[inline]
    #[must_use]
    pub fn has_queued(&self) -> bool {
        self.router.has_queued()
    }

    #[inline]
    fn note_duration(&mut self, pending: &PendingCall, clock: &Clock) {
        let backend = self.router.backend_of(pending.route);
        self.durations[backend].note(clock.answered_us().saturating_sub(pending.started_us));
    }

    /// Whether calls were started for workers since the last [`Self::flush`].
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.router.has_unflushed()
    }

    /// Hands over the calls that were started to the workers. Returns whether there were any.
    #[inline]
    pub fn flush(&mut self, clock: &Clock) -> bool {
        let any = self.router.flush(clock.received());
        self.router.note_shedding(clock.now_ms());
        if any {
            self.handed_over_at_ms = clock.now_ms();
        }
        any
    }

    /// When this part needs a turn, on the shard's clock: at the next timeout, to shed calls, and to poll for answers that
    /// came without a wake-up. The pauses between polls double, so that a slow backend costs few of them.
    #[must_use]
    pub fn next_poll_ms(&self, now_ms: u64) -> Option<u64> {
        let deadline_ms = self.router.pending.next_deadline_ms()?;
        let since_ms = now_ms.saturating_sub(self.handed_over_at_ms).max(POLL_ANSWERS_MS);
        let pause_ms = self.router.shed_after_ms().map_or(since_ms, |after| after.min(since_ms));
        Some(deadline_ms.min(now_ms + pause_ms))
    }

    /// Adds the durations that were counted to the gateway's.
    pub fn export(&mut self, durations: &CallDurations) {
        durations.add(&mut self.durations);
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.arena = BytesMut::new();
        self.port.free_spare_memory();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tidegate_backend::demo::{Demo, ECHO};
    use tidegate_backend::harness::Harness;
    use tidegate_backend::pool::{Pool, PoolOptions, Worker};

    use super::*;
    use crate::clock::WallClock;
    use crate::config::{CallRate, RouteConfig};

    const CONN: ConnId = ConnId { slot: 3, generation: 1 };

    fn ask<'a>(biz_data: &'a [u8]) -> Request<'a> {
        Request { conn: CONN, session: SessionId(5), user_id: 7, kind: ECHO, sequence: 9, biz_data }
    }

    fn finish(calls: &mut Calls, answer: Answer, clock: &Clock) -> Option<(PendingCall, Outcome)> {
        calls.finish(answer.call, answer.outcome, clock)
    }

    fn clock() -> Clock {
        Clock::new(Instant::now(), WallClock::system())
    }

    fn pass_to(clock: &mut Clock, ms: u64) {
        clock.on_woken(clock.instant(ms), 0);
    }

    /// A shard's calls to a demo backend: on its own thread, or on the workers that are returned.
    fn calls(on_workers: bool) -> (Calls, Vec<Worker>) {
        let mut config = Config::embedded_default();
        config.shards = 1;
        config.routes = vec![RouteConfig {
            first_type: ECHO,
            last_type: ECHO,
            backend: "demo".into(),
            timeout: Duration::from_secs(1),
            in_flight_max: 10,
            waiting_max: None,
            rate: CallRate::UNLIMITED,
            user_rate: CallRate::UNLIMITED,
        }];
        let gateway = Harness::new(Demo::default()).gateway().clone();
        let handler: Arc<dyn tidegate_backend::Handler> = Arc::new(Demo::default());
        let options = PoolOptions {
            workers: 1,
            queue_calls_max: 10,
            queue_bytes_max: 1_000,
            batch_calls_max: 8,
        };
        let (pool, workers) = Pool::idle(&handler, &gateway, options);
        let backend = Backend::new("demo", handler, on_workers.then_some(pool));
        (Calls::new(&config, &[backend], Arc::default(), Address::new(), gateway), workers)
    }

    #[test]
    fn a_handler_on_the_shards_thread_answers_at_once() {
        let (mut calls, _) = calls(false);
        let clock = clock();
        let _on_thread = calls.enter_thread();
        let route = calls.admit(ECHO, 7, 5, &clock).unwrap();
        calls.start(&ask(b"hello"), route, &clock);
        assert_eq!((calls.in_flight(), calls.counters().calls), (1, 1));
        assert!(!calls.has_queued());
        let answer = calls.next_answer().expect("the handler has answered");
        let (pending, outcome) = finish(&mut calls, answer, &clock).expect("the call waits for it");
        assert_eq!((pending.conn, pending.sequence, pending.kind), (CONN, 9, ECHO));
        assert_eq!(outcome.unwrap(), "hello");
        assert!(calls.next_answer().is_none());
        assert_eq!((calls.in_flight(), calls.counters().late_answers), (0, 0));
    }

    #[test]
    fn a_call_of_a_backend_with_workers_waits_for_one() {
        let (mut calls, mut workers) = calls(true);
        let mut clock = clock();
        let on_thread = calls.enter_thread();
        assert!(!calls.flush(&clock), "nothing was submitted");
        let route = calls.admit(ECHO, 7, 5, &clock).unwrap();
        calls.start(&ask(b"hello"), route, &clock);
        assert!(calls.next_answer().is_none(), "no handler runs on the shard's thread");
        pass_to(&mut clock, 100);
        assert!(calls.flush(&clock));
        assert!(calls.has_queued());
        assert!(!calls.flush(&clock), "it was handed over before");
        assert!(workers[0].run_pending(clock.received()));
        assert!(!calls.has_queued());
        let answer = calls.next_answer().expect("the worker ran on this thread");
        assert_eq!(finish(&mut calls, answer, &clock).unwrap().1.unwrap(), "hello");
        drop(on_thread);
    }

    #[test]
    fn the_shard_polls_for_answers_in_growing_steps_and_at_the_timeout() {
        let (mut calls, _workers) = calls(true);
        let mut clock = clock();
        assert_eq!(calls.next_poll_ms(0), None, "no call waits");
        pass_to(&mut clock, 100);
        let route = calls.admit(ECHO, 7, 0, &clock).unwrap();
        calls.start(&ask(b""), route, &clock);
        calls.flush(&clock);
        let polls = [100, 116, 132, 164, 228, 800].map(|now_ms| calls.next_poll_ms(now_ms));
        assert_eq!(polls, [116, 132, 164, 228, 356, 1_100].map(Some));
    }

    #[test]
    fn a_call_that_timed_out_leaves_the_queue_and_its_answer_is_late() {
        let (mut calls, _workers) = calls(true);
        let mut clock = clock();
        let route = calls.admit(ECHO, 7, 1, &clock).unwrap();
        for _ in 0..2 {
            calls.start(&ask(b"x"), route, &clock);
        }
        calls.flush(&clock);
        pass_to(&mut clock, 999);
        assert!(calls.take_expired(&clock).is_none());
        pass_to(&mut clock, 1_000);
        assert!(calls.take_expired(&clock).is_some());
        assert!(calls.take_expired(&clock).is_some());
        assert!(calls.take_expired(&clock).is_none());
        assert!(calls.has_queued());
        assert!(!calls.remove_expired(&clock));
        assert!(!calls.has_queued(), "no worker gets a call that nobody waits for");
        assert!(calls.finish(CallId(0), Ok("".into()), &clock).is_none());
        assert!(calls.finish(CallId(0), Ok("".into()), &clock).is_none());
        assert_eq!(calls.counters().late_answers, 2);
    }

    #[test]
    fn each_call_is_in_the_histogram_of_its_backend() {
        let (mut calls, _) = calls(false);
        let mut clock = clock();
        let total = CallDurations::new(["demo".into()]);
        let on_thread = calls.enter_thread();
        let route = calls.admit(ECHO, 7, 0, &clock).unwrap();
        calls.start(&ask(b""), route, &clock);
        pass_to(&mut clock, 3);
        let answer = calls.next_answer().unwrap();
        assert!(finish(&mut calls, answer, &clock).is_some());
        drop(on_thread);
        calls.export(&total);
        calls.export(&total);
        let mut page = String::new();
        total.render(&mut page);
        assert!(page.contains("_sum{backend=\"demo\"} 0.003000"), "{page}");
        assert!(page.contains("_count{backend=\"demo\"} 1\n"), "{page}");
    }

    #[test]
    fn short_requests_share_an_allocation_and_a_long_one_has_its_own() {
        let (mut calls, _) = calls(false);
        let short = [1; ARENA_REQUEST_BYTES_MAX];
        let copies: Vec<_> = (0..ARENA_BYTES / short.len()).map(|_| calls.copy(&short)).collect();
        for (first, second) in copies.iter().zip(&copies[1..]) {
            assert_eq!(first.as_ptr().wrapping_add(short.len()), second.as_ptr());
        }
        assert_eq!(copies[0], short[..]);
        assert_eq!(calls.arena.capacity(), 0, "the arena is used up");
        assert_eq!(calls.copy(&[2; ARENA_REQUEST_BYTES_MAX + 1]).len(), short.len() + 1);
        assert_eq!(calls.arena.capacity(), 0);
        assert!(calls.copy(b"").is_empty());
        calls.copy(b"x");
        assert!(calls.arena.capacity() > 0);
        calls.free_spare_memory();
        assert_eq!(calls.arena.capacity(), 0);
    }
}
