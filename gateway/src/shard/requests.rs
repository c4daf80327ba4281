//! Requests: what the frames of clients ask for, and the answers to calls.

use std::time::Duration;

use tidegate_backend::Failure;
use tidegate_backend::handler::{CallId, Outcome};
use tidegate_protocol::Code;
use tidegate_protocol::server::Incoming;

use super::Shard;
use super::calls::Request;
use super::clients::cause::Cause;
use super::clients::connection::{Flags, Phase};
use super::draining::spread;
use super::mailbox::{Answer, Message};
use crate::limits::memory::MemoryLevel;
use crate::router::PendingCall;
use crate::session_id::SessionAddr;

/// How long a client waits at least whose request found too little memory, and at most twice that.
const SHED_RETRY_MIN: Duration = Duration::from_secs(1);

impl Shard {
    #[inline]
    pub(super) fn on_frame(&mut self, slot: u32, payload: &[u8]) {
        let admitted = self.clients.count_frame(slot, payload.len(), &self.clock);
        let incoming = match Incoming::decode(payload) {
            Ok(incoming) => incoming,
            Err(error) => return self.on_malformed(slot, &error),
        };
        if let Err(retry_after_ms) = admitted {
            let (kind, sequence) = (incoming.kind(), incoming.sequence());
            let code = Code::RateLimited;
            return self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
        }
        match incoming {
            Incoming::Business { kind, biz_data, sequence } => {
                self.on_business(slot, kind, biz_data, sequence);
            }
            Incoming::Heartbeat { sequence } => {
                self.clients.write_pong(slot, sequence, &self.clock);
            }
            Incoming::Authenticate { user_id, token, resume, sequence } => {
                self.on_authenticate(slot, user_id, token, resume, sequence);
            }
        }
    }

    #[inline]
    fn on_business(&mut self, slot: u32, kind: i32, biz_data: &[u8], sequence: u64) {
        let connection = self.clients.at(slot);
        if connection.phase != Phase::Open {
            let after = self.clients.refuse_unauthenticated(slot, kind, sequence);
            return self.after_auth_failure(slot, after);
        }
        if connection.has(Flags::LEAVING) {
            let retry_after_ms = self.draining.retry_after_ms(slot);
            let code = Code::Draining;
            return self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
        }
        if self.memory_level >= MemoryLevel::Shed {
            self.counters.refused_for_memory += 1;
            let retry_after_ms = spread(SHED_RETRY_MIN, slot);
            let code = Code::Overloaded;
            return self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
        }
        let user_id = connection.user_id;
        match self.calls.admit(kind, user_id, biz_data.len(), &self.clock) {
            Ok(route) => {
                let conn = self.clients.conn_id(slot);
                let session = self.shared.session_ids.id(SessionAddr::new(self.id, conn));
                let request = Request { conn, session, user_id, kind, sequence, biz_data };
                self.clients.start_call(slot);
                self.calls.start(&request, route, &self.clock);
                self.deliver_answers();
            }
            Err(Failure { code, retry_after_ms }) => {
                self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
            }
        }
    }

    /// Passes on the answers that a handler gave on this thread. A handler may answer thousands of calls that
    /// it kept. There is no driver here that could send, so with a long outbox the rest waits for
    /// [`Self::answer_and_resume`]. Otherwise all of the answers would be in outboxes at once, with no send
    /// under way that bounds them.
    #[inline]
    fn deliver_answers(&mut self) {
        while let Some(answer) = self.calls.next_answer() {
            self.on_answer(answer);
            if self.clients.has_long_outbox() && self.calls.has_answers() {
                self.has_answers_left = true;
                return;
            }
        }
    }

    #[inline]
    pub(super) fn on_answer(&mut self, answer: Answer) {
        let Answer { call, outcome } = answer;
        if let Some((call, outcome)) = self.calls.finish(call, outcome, &self.clock) {
            self.finish_call(call, outcome);
        }
    }

    /// Fails a call that a worker has found expired, and first the older ones of its route. Beyond the bound of
    /// a turn, the message goes back: it and all behind it wait for the next turn.
    pub(super) fn on_expired(&mut self, call: CallId) {
        while self.expired_calls_left > 0 {
            let Some(expired) = self.calls.take_expired_until(call, &self.clock) else { return };
            self.finish_call(expired, Err(Code::Timeout.into()));
            self.expired_calls_left -= 1;
        }
        self.messages.put_back(Message::Expired(call));
    }

    /// Fails a call that has waited too long for a worker.
    pub(super) fn on_shed(&mut self, call: CallId) {
        if let Some((call, failure)) = self.calls.shed(call, &self.clock) {
            self.finish_call(call, Err(failure));
        }
    }

    /// Passes the outcome of a call on to the client.
    #[inline]
    pub(super) fn finish_call(&mut self, call: PendingCall, outcome: Outcome) {
        let PendingCall { conn, sequence, kind, .. } = call;
        let slot = conn.slot;
        if !self.clients.finish_call(conn) {
            return;
        }
        self.clients.write_outcome(slot, kind, sequence, outcome, &self.clock);
        let connection = self.clients.at(slot);
        if connection.calls == 0 && connection.has(Flags::LEAVING) {
            let cause = if self.draining.is_draining() {
                Cause::Draining
            } else if self.clients.is_aged(slot, &self.clock) {
                Cause::Aged
            } else {
                Cause::Rebalanced
            };
            self.close_gracefully(slot, cause);
        }
    }
}
