//! Calls: requests to backends, and their answers on the way back.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use tidegate_backend::Call;
use tidegate_backend::handler::{AnswerPort, CallId, Outcome};
use tidegate_protocol::message::Response;
use tidegate_protocol::{Code, server};

use super::Shard;
use super::mailbox::{Address, Answer, Message};
use crate::connection::Phase;
use crate::router::{Pending, Refusal, RouteIndex};

/// Bytes of a fresh arena: one allocation for this much of requests' `biz_data`.
const ARENA_BYTES: usize = 16 * 1024;

/// Longer requests get an allocation of their own, so that a backend which keeps one for a while
/// doesn't keep much else with it.
const ARENA_REQUEST_BYTES_MAX: usize = 1024;

/// What a client is told to wait when load is shed, in milliseconds.
const OVERLOADED_RETRY_MS: u32 = 500;

thread_local! {
    /// Whose shard this thread runs now, by the address of its mailbox; 0: none.
    static HERE: Cell<usize> = const { Cell::new(0) };
    /// The answers that handlers gave on this thread, for the shard that it runs.
    static ANSWERS: RefCell<VecDeque<Answer>> = const { RefCell::new(VecDeque::new()) };
}

/// Where a shard's answers come to: straight back on its own thread, through its mailbox from others.
#[derive(Debug)]
pub(super) struct Port {
    address: Address,
}

/// The thread runs the shard until this is dropped.
pub(super) struct OnThread;

impl Drop for OnThread {
    fn drop(&mut self) {
        HERE.set(0);
    }
}

impl Port {
    pub(super) const fn new(address: Address) -> Self {
        Self { address }
    }

    fn key(&self) -> usize {
        Arc::as_ptr(self.address.mailbox()).addr()
    }

    /// Says that this thread runs the shard for now.
    pub(super) fn enter(&self) -> OnThread {
        HERE.set(self.key());
        OnThread
    }
}

impl AnswerPort for Port {
    #[inline]
    fn answer(&self, call: CallId, outcome: Outcome) {
        let answer = Answer { call, outcome };
        if HERE.get() == self.key() {
            ANSWERS.with_borrow_mut(|answers| answers.push_back(answer));
        } else {
            self.address.post(Message::Answer(answer));
        }
    }
}

impl Shard {
    #[inline]
    pub(super) fn on_business(&mut self, slot: u32, kind: i32, biz_data: &[u8], sequence: u64) {
        if self.at(slot).phase != Phase::Open {
            return self.refuse_authentication(slot, kind, sequence);
        }
        if self.draining.is_some() {
            let retry_after_ms = self.retry_after_ms(slot);
            return self.write_failure(slot, kind, sequence, Code::Draining, retry_after_ms);
        }
        match self.router.admit(kind) {
            Ok(route) => self.hand_over(slot, kind, biz_data, sequence, route),
            Err(Refusal::NoRoute) => self.write_failure(slot, kind, sequence, Code::NoRoute, 0),
            Err(Refusal::RouteFull | Refusal::QueueFull) => {
                self.write_failure(slot, kind, sequence, Code::Overloaded, OVERLOADED_RETRY_MS);
            }
        }
    }

    fn hand_over(
        &mut self,
        slot: u32,
        kind: i32,
        biz_data: &[u8],
        sequence: u64,
        route: RouteIndex,
    ) {
        let conn = self.conn_id(slot);
        let session = self.shared.session_ids.id(self.place(slot));
        let started_us = self.received_us;
        let id = self.router.pending.open(Pending { conn, sequence, kind, route, started_us });
        let biz_data = self.keep(biz_data);
        let connection = self.at(slot);
        connection.calls += 1;
        let user_id = connection.user_id;
        self.stats.calls += 1;
        let port = Arc::clone(&self.answer_port);
        let call = Call::new(kind, user_id, session, biz_data, id, port);
        let lane = self.router.lane(route);
        match &mut lane.submitter {
            Some(submitter) => submitter.submit(call),
            None => {
                let work = AssertUnwindSafe(|| lane.handler.handle(call, &self.gateway));
                if panic::catch_unwind(work).is_err()
                    && let Some(suppressed) = self.log_limits.handler_panic.allow_at(self.now_ms)
                {
                    tracing::error!(
                        kind,
                        suppressed,
                        "a handler panicked; its call is answered with 101"
                    );
                }
                self.take_answers();
            }
        }
    }

    /// Copies a request's `biz_data` out of the driver's buffer.
    #[inline]
    fn keep(&mut self, biz_data: &[u8]) -> bytes::Bytes {
        self.burst.add(biz_data.len());
        if biz_data.is_empty() {
            return bytes::Bytes::new();
        }
        if biz_data.len() > ARENA_REQUEST_BYTES_MAX {
            return bytes::Bytes::copy_from_slice(biz_data);
        }
        if self.arena.capacity() < biz_data.len() {
            self.arena.reserve(ARENA_BYTES);
        }
        self.arena.extend_from_slice(biz_data);
        self.arena.split().freeze()
    }

    /// Takes the answers that handlers gave on this thread.
    #[inline]
    pub(super) fn take_answers(&mut self) {
        // An answer lets a held connection go on, whose requests may be answered here too: the one who
        // takes answers already takes those as well, or the stack would be as deep as clients ask.
        if mem::replace(&mut self.taking_answers, true) {
            return;
        }
        while let Some(answer) = ANSWERS.with_borrow_mut(VecDeque::pop_front) {
            self.on_answer(answer);
        }
        self.taking_answers = false;
    }

    #[inline]
    pub(super) fn on_answer(&mut self, answer: Answer) {
        match self.router.pending.close(answer.call) {
            Some(pending) => self.finish_call(pending, answer.outcome),
            None => self.stats.late_answers += 1,
        }
    }

    /// Passes the outcome of a call on to who asked.
    pub(super) fn finish_call(&mut self, pending: Pending, outcome: Outcome) {
        let Pending { conn, sequence, kind, route, started_us } = pending;
        let backend = self.router.backend_of(route);
        self.durations[backend].note(self.answered_us.saturating_sub(started_us));
        let answer_bytes_max = self.shared.config.limits.frame_to_client_bytes_max;
        let slot = conn.slot;
        let Some(connection) = self.connection(conn) else {
            self.stats.orphan_answers += 1;
            return;
        };
        connection.calls -= 1;
        if connection.is_going() {
            self.stats.orphan_answers += 1;
            return;
        }
        match outcome {
            Ok(biz_data) => {
                let answer = Response {
                    kind,
                    status: 1,
                    sequence,
                    biz_data: &biz_data,
                    ..Response::default()
                };
                if answer.payload_len() > answer_bytes_max {
                    self.stats.oversize_answers += 1;
                    let limit = &self.log_limits.oversize_answer;
                    if let Some(suppressed) = limit.allow_at(self.now_ms) {
                        tracing::warn!(
                            kind,
                            bytes = biz_data.len(),
                            suppressed,
                            "an answer is too long for a frame; the client gets 101"
                        );
                    }
                    self.write_failure(slot, kind, sequence, Code::BackendFailed, 0);
                } else if self.write(slot, |out| answer.encode_frame(out)) {
                    self.stats.answers += 1;
                } else {
                    self.stats.orphan_answers += 1;
                }
            }
            Err(failure) => {
                self.write_failure(slot, kind, sequence, failure.code, failure.retry_after_ms);
            }
        }
        self.read_on(slot);
        if self.draining.is_some() && self.at(slot).calls == 0 {
            self.say_goodbye(slot, super::closing::Cause::Draining, Some(Code::Draining));
        }
    }

    pub(super) fn write_failure(
        &mut self,
        slot: u32,
        kind: i32,
        sequence: u64,
        code: Code,
        retry_after_ms: u32,
    ) {
        if self.write(slot, |out| server::put_failure(out, kind, sequence, code, retry_after_ms)) {
            self.stats.failures[code.number() as usize - 100] += 1;
        }
    }
}
