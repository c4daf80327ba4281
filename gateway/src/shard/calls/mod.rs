//! Calls: the part of the shard that hands requests to backends and takes their answers.
//!
//! It owns the router, the calls in flight and how long they took. It knows no connection: whoever asked is a name in the
//! call, and the shard writes the answer.

pub mod durations;
pub mod port;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_backend::handler::{AnswerPort, Outcome};
use tidegate_backend::histogram::Durations;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{Call, Gateway, SessionId, UserId};

use super::clock::Clock;
use super::mailbox::{Address, Answer};
use super::stats::CallCounters;
use crate::config::Config;
use crate::driver::ConnId;
use crate::router::{Backend, Pending, Refusal, RouteIndex, Router};
use durations::CallDurations;
use port::{OnThread, Port};

/// Bytes of a fresh arena: one allocation for this much of requests' `biz_data`.
const ARENA_BYTES: usize = 16 * 1024;

/// A longer request gets an allocation of its own. A backend that keeps it for a while then keeps nothing else
/// with it.
const ARENA_REQUEST_BYTES_MAX: usize = 1024;

/// For so long after calls were handed over, in milliseconds, the shard looks for their answers without being woken: a
/// wake-up is deferred to the end of a batch, and a batch may have a slow call.
const LOOK_FOR_ANSWERS_MS: u64 = 16;

/// A request for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub conn: ConnId,
    /// The session that asks.
    pub session: SessionId,
    /// The user that asks.
    pub user_id: UserId,
    /// The request's type.
    pub kind: i32,
    /// What the answer echoes.
    pub sequence: u64,
    /// What the backend gets.
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
    /// Calls whose time is up may be in the backends' queues.
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
    pub fn new(config: &Config, backends: &[Backend], address: Address, gateway: Gateway) -> Self {
        let port = Arc::new(Port::new(address));
        Self {
            router: Router::new(&config.routes, backends, config.shards),
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
    /// [`Refusal`].
    #[inline]
    pub fn admit(&self, kind: i32, bytes: usize) -> Result<RouteIndex, Refusal> {
        self.router.admit(kind, bytes)
    }

    /// Starts a call: gathers it for a worker, or runs the handler here. Its answer comes through
    /// [`Self::next_answer`] or the mailbox, never from here.
    #[inline]
    pub fn start(&mut self, request: &Request<'_>, route: RouteIndex, clock: &Clock) {
        let &Request { conn, session, user_id, kind, sequence, biz_data } = request;
        let started_us = clock.received_us();
        let id = self.router.pending.open(Pending { conn, sequence, kind, route, started_us });
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

    /// Takes an answer. `None`: it is too late.
    #[inline]
    pub fn finish(&mut self, answer: Answer, clock: &Clock) -> Option<(Pending, Outcome)> {
        let Some(pending) = self.router.pending.close(answer.call) else {
            self.counters.late_answers += 1;
            return None;
        };
        self.note_duration(&pending, clock);
        Some((pending, answer.outcome))
    }

    /// A call whose time is up.
    pub fn take_expired(&mut self, clock: &Clock) -> Option<Pending> {
        let pending = self.router.pending.take_expired(clock.now_ms())?;
        self.note_duration(&pending, clock);
        self.may_queue_expired = true;
        Some(pending)
    }

    /// Removes calls whose time is up from the backends' queues, after [`Self::take_expired`] has found some. Returns
    /// whether there may be more.
    pub fn expire_queues(&mut self, clock: &Clock) -> bool {
        if self.may_queue_expired {
            // The end of this millisecond, since calls time out by the millisecond here.
            self.may_queue_expired = self.router.expire(clock.instant(clock.now_ms() + 1));
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
    fn note_duration(&mut self, pending: &Pending, clock: &Clock) {
        let backend = self.router.backend_of(pending.route);
        self.durations[backend].note(clock.answered_us().saturating_sub(pending.started_us));
    }

    /// Hands over to the workers what was gathered. Returns whether there was anything.
    #[inline]
    pub fn flush(&mut self, clock: &Clock) -> bool {
        let any = self.router.flush(clock.received());
        if any {
            self.handed_over_at_ms = clock.now_ms();
        }
        any
    }

    /// When this part has to look again, on the shard's clock: at the next timeout, and for answers that no wake-up told of.
    /// The pauses between looks double, so that a slow backend costs few of them.
    #[must_use]
    pub fn next_look_ms(&self, now_ms: u64) -> Option<u64> {
        let deadline_ms = self.router.pending.next_deadline_ms()?;
        let since_ms = now_ms.saturating_sub(self.handed_over_at_ms).max(LOOK_FOR_ANSWERS_MS);
        Some(deadline_ms.min(now_ms + since_ms))
    }

    /// Adds the durations that were counted to the gateway's.
    pub fn export(&mut self, durations: &CallDurations) {
        durations.add(&mut self.durations);
    }

    /// Frees the memory that is kept for reuse.
    pub fn give_back_memory(&mut self) {
        self.arena = BytesMut::new();
        self.port.give_back_memory();
    }
}
