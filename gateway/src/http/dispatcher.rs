//! Hands requests to backends and takes their answers: to backends, the HTTP gateway is one more shard.
//!
//! It has its own [`Calls`], with the same routes, timeouts and bounds, and a mailbox, into which workers post answers, and the
//! cluster's thread and those that check signatures post verdicts on tokens. All of it stays on one thread, so there is no lock.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{Counter, Gauge, counter, gauge};
use tidegate_backend::batch::Wake;
use tidegate_backend::handler::{Failure, Outcome};
use tidegate_backend::{Code, SessionId, UserId};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::metrics::{REQUESTS_IN_FLIGHT, REQUESTS_REFUSED, count_failure};
use crate::auth::signatures::{SignatureCheck, Waiter};
use crate::auth::{AuthError, TokenDigest};
use crate::cluster::message::ToCluster;
use crate::control::ShardInfo;
use crate::driver::{ConnId, GENERATIONS};
use crate::limits::memory::MemoryBudget;
use crate::parts::Parts;
use crate::router::PendingCall;
use crate::session_id::{SLOT_BITS, SessionAddr};
use crate::settings::{NewSettings, Settings};
use crate::shard::Shared;
use crate::shard::calls::port::OnThread;
use crate::shard::calls::{Calls, Request};
use crate::shard::clock::Clock;
use crate::shard::mailbox::{Address, Answer, Mailbox, Message};
use crate::shard::tokens::{TokenMessage, TokenPage, Verdict};

/// How long a verdict on a token may take. The cluster's thread gives one within two seconds, unless it has ended.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(5);

/// A turn comes at least as often as this while nothing happens.
const TURN_AT_LEAST: Duration = Duration::from_secs(3600);

/// A request for a backend.
pub(super) struct Ask {
    pub(super) conn: ConnId,
    pub(super) user_id: UserId,
    pub(super) kind: i32,
    pub(super) biz_data: Bytes,
}

/// See the [module](self).
pub(super) struct Dispatcher {
    shared: Arc<Shared>,
    /// The number that stands for the HTTP gateway where shards have theirs.
    number: u16,
    mailbox: Arc<Mailbox>,
    /// Where others post to it.
    address: Address,
    /// A message has come, or a call was started.
    changed: Arc<Notify>,
    state: RefCell<State>,
    requests: Cell<usize>,
    /// The settings that this thread has applied.
    settings: RefCell<Arc<Settings>>,
    /// A share of `auth.lookups_max` as large as that of a shard.
    lookups_max: usize,
    in_flight: Gauge,
    refused: Counter,
    calls: Counter,
    late: Counter,
    orphans: Counter,
    next_conn: Cell<u64>,
    _on_thread: OnThread,
}

struct State {
    calls: Calls,
    clock: Clock,
    /// Requests that wait for a call's answer, by the number that the call has as its sequence.
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    next_sequence: u64,
    /// Requests that wait for the check of their token.
    lookups: HashMap<ConnId, oneshot::Sender<Verdict>>,
    /// Who waits for the check of a token's signature.
    signatures: HashMap<ConnId, oneshot::Sender<Result<(), AuthError>>>,
    /// Empty between turns; kept for its memory.
    messages: VecDeque<Message>,
    /// What was exported of the counters: calls, and late answers.
    exported: (u64, u64),
}

/// A request that counts among those in flight, until this is dropped.
pub(super) struct Permit<'a>(&'a Dispatcher);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
        self.0.in_flight.decrement(1.0);
    }
}

/// Ends the wait of the HTTP gateway's thread.
struct Waker(Arc<Notify>);

impl Wake for Waker {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl Dispatcher {
    /// A dispatcher for the thread that makes it. Answers come to `address`.
    pub(super) fn new(parts: &Parts, address: &Address) -> Self {
        let shared = Arc::clone(&parts.shared);
        let settings = shared.settings();
        let config = &settings.config;
        let calls = Calls::new(
            config,
            &shared.backends,
            Arc::clone(&shared.user_rates),
            address.clone(),
            parts.gateway.clone(),
        );
        let on_thread = calls.enter_thread();
        let changed = Arc::new(Notify::new());
        address.mailbox().set_waker(Arc::new(Waker(Arc::clone(&changed))));
        let state = State {
            calls,
            clock: Clock::new(shared.started, shared.wall_clock.clone()),
            waiting: HashMap::new(),
            next_sequence: 0,
            lookups: HashMap::new(),
            signatures: HashMap::new(),
            messages: VecDeque::new(),
            exported: (0, 0),
        };
        Self {
            number: config.shards,
            mailbox: Arc::clone(address.mailbox()),
            address: address.clone(),
            changed,
            state: RefCell::new(state),
            requests: Cell::new(0),
            lookups_max: config.auth.lookups_max.div_ceil(usize::from(config.shards)),
            in_flight: gauge!(REQUESTS_IN_FLIGHT),
            refused: counter!(REQUESTS_REFUSED),
            calls: counter!("tidegate_calls_total"),
            late: counter!("tidegate_late_answers_total"),
            orphans: counter!("tidegate_orphan_answers_total"),
            next_conn: Cell::new(0),
            _on_thread: on_thread,
            settings: RefCell::new(Arc::clone(&settings)),
            shared,
        }
    }

    /// What a new request is known by. It means no connection of a shard.
    pub(super) fn new_conn(&self) -> ConnId {
        let number = self.next_conn.get();
        self.next_conn.set(number.wrapping_add(1));
        let slot = u32::try_from(number % (1 << SLOT_BITS)).unwrap_or_default();
        let generation = (number >> SLOT_BITS) % u64::from(GENERATIONS);
        ConnId { slot, generation: u32::try_from(generation).unwrap_or_default() }
    }

    /// The session id that backends see. No shard has such a session, so a join is refused.
    fn session(&self, conn: ConnId) -> SessionId {
        self.shared.session_ids.id(SessionAddr::new(self.number, conn))
    }

    /// Admits a request, if not too many are in flight.
    ///
    /// # Errors
    /// 104.
    pub(super) fn admit(&self) -> Result<Permit<'_>, Failure> {
        let lacks_memory = self.shared.memory.as_ref().is_some_and(MemoryBudget::sheds);
        let requests_max = self.settings.borrow().config.http.requests_max;
        if lacks_memory || self.requests.get() >= requests_max {
            self.refused.increment(1);
            return Err(Code::Overloaded.into());
        }
        self.requests.set(self.requests.get() + 1);
        self.in_flight.increment(1.0);
        Ok(Permit(self))
    }

    /// Hands a request to its backend, and waits for the answer.
    pub(super) async fn ask(&self, ask: Ask) -> Outcome {
        let (reply, answer) = oneshot::channel();
        {
            let state = &mut *self.state.borrow_mut();
            state.clock.on_woken(Instant::now(), 0);
            let route =
                state.calls.admit(ask.kind, ask.user_id, ask.biz_data.len(), &state.clock)?;
            let Ask { conn, user_id, kind, biz_data } = ask;
            let sequence = state.next_sequence;
            state.next_sequence += 1;
            state.waiting.insert(sequence, reply);
            let session = self.session(conn);
            let biz_data = &biz_data;
            let request = Request { conn, session, user_id, kind, sequence, biz_data };
            state.calls.start(&request, route, &state.clock);
            self.take_answers_of_this_thread(state);
        }
        // The next turn submits the call, together with others that have arrived.
        self.changed.notify_one();
        answer.await.unwrap_or_else(|_| Err(Code::BackendFailed.into()))
    }

    /// Has a token looked up in Redis.
    ///
    /// # Errors
    /// [`AuthError`] when the token is invalid, or could not be checked.
    pub(super) async fn look_up(
        &self,
        conn: ConnId,
        user_id: UserId,
        token: TokenDigest,
    ) -> Result<(), AuthError> {
        let cluster = self.shared.cluster.as_ref().ok_or(AuthError::RedisUnavailable)?;
        if self.state.borrow().lookups.len() >= self.lookups_max {
            return Err(AuthError::TooManyVerifications);
        }
        let (reply, verdict) = oneshot::channel();
        self.state.borrow_mut().lookups.insert(conn, reply);
        let addr = SessionAddr::new(self.number, conn);
        cluster.post(ToCluster::LookUp { addr, user_id, token });
        match timeout(VERDICT_TIMEOUT, verdict).await {
            Ok(Ok(Verdict::Known { .. })) => Ok(()),
            Ok(Ok(Verdict::Unknown)) => Err(AuthError::UnknownToken),
            Ok(Ok(Verdict::Unavailable) | Err(_)) => Err(AuthError::RedisUnavailable),
            Err(_) => {
                self.state.borrow_mut().lookups.remove(&conn);
                Err(AuthError::RedisUnavailable)
            }
        }
    }

    /// Has a token's signature checked. It waits in the queue with those of the shards. If the client goes meanwhile, this
    /// and `check` are dropped, so its signature is not checked.
    ///
    /// # Errors
    /// [`AuthError`] when it is not good, or too many wait.
    pub(super) async fn check_signature(
        &self,
        conn: ConnId,
        address: IpAddr,
        check: &Arc<SignatureCheck>,
    ) -> Result<(), AuthError> {
        let settings = self.settings();
        let signatures = settings.verifier.signatures().ok_or(AuthError::TooManyVerifications)?;
        let flow = signatures.flow(address);
        let waiter = Waiter { conn, flow, reply: self.address.clone() };
        let (reply, verdict) = oneshot::channel();
        self.state.borrow_mut().signatures.insert(conn, reply);
        signatures.submit(check, waiter, 0, Instant::now()).inspect_err(|_| {
            self.state.borrow_mut().signatures.remove(&conn);
        })?;
        // As long as a session has to authenticate.
        let signed = match timeout(settings.config.auth.timeout, verdict).await {
            Ok(Ok(signed)) => signed,
            Ok(Err(_)) => Err(AuthError::TooManyVerifications),
            Err(_) => {
                self.state.borrow_mut().signatures.remove(&conn);
                Err(AuthError::TooManyVerifications)
            }
        };
        self.settings().verifier.finish(check, signed, self.shared.wall_clock.unix_ms()).map(drop)
    }

    /// Takes turns, for ever: hands over calls, takes messages, and fails calls that have expired.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            let next = self.turn();
            if !self.mailbox.fall_asleep() {
                continue;
            }
            drop(tokio::time::timeout_at(next.into(), self.changed.notified()).await);
            self.mailbox.stay_awake();
        }
    }

    /// One turn. Returns when the next one is due.
    fn turn(&self) -> Instant {
        let state = &mut *self.state.borrow_mut();
        let now = Instant::now();
        state.clock.on_woken(now, 0);
        state.calls.flush(&state.clock);
        let mut messages = mem::take(&mut state.messages);
        self.mailbox.take_all(&mut messages);
        for message in messages.drain(..) {
            self.on_message(state, message);
        }
        state.messages = messages;
        self.take_answers_of_this_thread(state);
        while let Some(expired) = state.calls.take_expired(&state.clock) {
            self.end(state, expired, Err(Code::Timeout.into()));
        }
        let more = state.calls.remove_expired(&state.clock);
        self.export(state);
        if more {
            return now;
        }
        let next_ms = state.calls.next_poll_ms(state.clock.now_ms());
        next_ms.map_or(now + TURN_AT_LEAST, |ms| state.clock.instant(ms))
    }

    fn on_message(&self, state: &mut State, message: Message) {
        match message {
            Message::Answer(answer) => self.on_answer(state, answer),
            Message::Expired(call) => {
                while let Some(expired) = state.calls.take_expired_until(call, &state.clock) {
                    self.end(state, expired, Err(Code::Timeout.into()));
                }
            }
            Message::Shed(call) => {
                if let Some((shed, failure)) = state.calls.shed(call, &state.clock) {
                    self.end(state, shed, Err(failure));
                }
            }
            Message::Token(TokenMessage::Verdict { conn, verdict }) => {
                if let Some(waiting) = state.lookups.remove(&conn) {
                    // It fails where the client has gone.
                    let _ = waiting.send(verdict);
                }
            }
            Message::Token(TokenMessage::Signature { conn, signed }) => {
                if let Some(waiting) = state.signatures.remove(&conn) {
                    let _ = waiting.send(signed);
                }
            }
            // There are no sessions here, so no tokens to list.
            Message::Token(TokenMessage::List { from }) => {
                if let Some(cluster) = &self.shared.cluster {
                    let (shard, tokens) = (self.number, Vec::new());
                    cluster.post(ToCluster::Tokens(TokenPage { shard, from, tokens, next: None }));
                }
            }
            // The question is only whether this thread runs: it has none of a shard's figures.
            Message::InspectShard { reply } => drop(reply.send(ShardInfo::default())),
            Message::Reload(new) => self.reload(state, &new),
            // No other kind is posted here.
            other => other.refuse(),
        }
    }

    fn reload(&self, state: &mut State, new: &NewSettings) {
        state.calls.reconfigure(&new.settings.config);
        *self.settings.borrow_mut() = Arc::clone(&new.settings);
        new.confirm(self.number);
    }

    /// The settings that this thread has applied.
    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    fn take_answers_of_this_thread(&self, state: &mut State) {
        while let Some(answer) = state.calls.next_answer() {
            self.on_answer(state, answer);
        }
    }

    fn on_answer(&self, state: &mut State, Answer { call, outcome }: Answer) {
        state.clock.on_answers(Instant::now());
        if let Some((pending, outcome)) = state.calls.finish(call, outcome, &state.clock) {
            self.end(state, pending, outcome);
        }
    }

    fn end(&self, state: &mut State, pending: PendingCall, outcome: Outcome) {
        if let Some(waiting) = state.waiting.remove(&pending.sequence)
            && waiting.send(outcome).is_err()
        {
            self.orphans.increment(1);
        }
    }

    fn export(&self, state: &mut State) {
        let now = (state.calls.counters().calls, state.calls.counters().late_answers);
        let before = mem::replace(&mut state.exported, now);
        if now.0 > before.0 {
            self.calls.increment(now.0 - before.0);
        }
        if now.1 > before.1 {
            self.late.increment(now.1 - before.1);
        }
        state.calls.export(&self.shared.call_durations);
        if state.calls.in_flight() == 0 {
            state.calls.free_spare_memory();
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        // What is posted from now on is refused.
        self.mailbox.close();
    }
}

/// Counts a refused token, as shards do.
pub(super) fn count_refused_token(error: AuthError) {
    counter!("tidegate_auth_failures_total", "reason" => error.label()).increment(1);
    count_failure(if error.is_unknowable() { Code::Overloaded } else { Code::Unauthenticated });
}
