//! What is written to connections: answers, failures, pushes, sessions.
//!
//! Each function writes one message with its rules: whether the connection may still be written to, what is
//! counted, and which code a failure has. The bytes go to the outbox; nothing is sent here.

use bytes::{Bytes, BytesMut};
use tidegate_backend::UserId;
use tidegate_backend::handler::Outcome;
use tidegate_protocol::frame::read_prefix;
use tidegate_protocol::message::Response;
use tidegate_protocol::proto::v1;
use tidegate_protocol::{Code, server};

use super::cause::Cause;
use super::connection::Phase;
use super::latest::Kept;
use super::lifecycle::{AfterAuthFailure, Lifecycle, Login};
use super::{Clients, Settings, outbox};
use crate::auth::{AuthError, TokenEnd};
use crate::config::SlowPushes;
use crate::driver::ConnId;
use crate::shard::clock::Clock;

impl Clients {
    /// Answers an authentication with the session. `rooms`: everybody's, and those that the client has named.
    pub fn write_session(
        &mut self,
        slot: u32,
        session_id: u64,
        sequence: u64,
        rooms: Vec<v1::Room>,
        clock: &Clock,
    ) {
        let Settings { heartbeat_interval_ms, idle_timeout_ms, .. } = self.settings;
        let Settings { frame_bytes_max, answer_bytes_max, .. } = self.settings;
        let session = v1::Session {
            session_id,
            heartbeat_interval_ms: saturated(heartbeat_interval_ms),
            server_time_ms: clock.unix_ms(),
            idle_timeout_ms: saturated(idle_timeout_ms),
            max_frame_bytes: saturated(frame_bytes_max as u64),
            max_frame_to_client_bytes: saturated(answer_bytes_max as u64),
            expires_in_ms: self.lifecycle.token_expires_in_ms(slot, clock.now_ms()),
            rooms,
        };
        self.append(slot, |out| server::put_session(out, sequence, &session));
    }

    /// Writes a notice, unless the connection is about to close.
    pub fn write_notice(&mut self, slot: u32, notice: &v1::Notice) {
        if self.may_write(slot) {
            self.counters.notices += 1;
            self.append(slot, |out| server::put_notice(out, notice));
        }
    }

    /// Answers a heartbeat.
    #[inline]
    pub fn write_pong(&mut self, slot: u32, sequence: u64, clock: &Clock) {
        self.counters.heartbeats += 1;
        self.append(slot, |out| server::put_pong(out, sequence, clock.unix_ms()));
    }

    /// Logs in a connection whose token was verified with this result. A success is not answered yet.
    ///
    /// # Errors
    /// The login failed, and was answered with 100, or with 104 where the gateway can't know whether the token is good:
    /// what that means for the connection.
    pub fn login(
        &mut self,
        slot: u32,
        user_id: UserId,
        verified: Result<TokenEnd, AuthError>,
        sequence: u64,
        clock: &Clock,
    ) -> Result<Login, AfterAuthFailure> {
        let connection = self.table.at_mut(slot);
        let login = verified.and_then(|end| Ok((end, Lifecycle::login(connection, user_id)?)));
        match login {
            Ok((end, login)) => {
                self.lifecycle.set_token_end(slot, connection, end, clock);
                Ok(login)
            }
            Err(error) => {
                self.labelled.refused_tokens[error as usize] += 1;
                self.log(slot, || tracing::debug!(user_id, %error, "authentication failed"));
                if error.is_unknowable() {
                    let retry_after_ms = unknowable_retry_ms(slot);
                    self.write_failure(slot, 0, sequence, Code::Overloaded, retry_after_ms);
                    // It is no failed try of the client's.
                    return Err(AfterAuthFailure::KeepOpen);
                }
                Err(self.refuse_unauthenticated(slot, 0, sequence))
            }
        }
    }

    /// Answers 100 to a request of the type `kind`.
    pub fn refuse_unauthenticated(
        &mut self,
        slot: u32,
        kind: i32,
        sequence: u64,
    ) -> AfterAuthFailure {
        self.write_failure(slot, kind, sequence, Code::Unauthenticated, 0);
        self.lifecycle.count_auth_failure(self.table.at_mut(slot))
    }

    /// Writes the outcome of a call.
    #[inline]
    pub fn write_outcome(
        &mut self,
        slot: u32,
        kind: i32,
        sequence: u64,
        outcome: Outcome,
        clock: &Clock,
    ) {
        match outcome {
            Ok(biz_data) => {
                if let Err(bytes) = self.write_answer(slot, kind, sequence, biz_data) {
                    if let Some(suppressed) = self.oversize_answers.allow_at(clock.now_ms()) {
                        tracing::warn!(
                            kind,
                            bytes,
                            suppressed,
                            "an answer is too long for a frame; the client gets 101"
                        );
                    }
                    self.write_failure(slot, kind, sequence, Code::BackendFailed, 0);
                }
            }
            Err(failure) => {
                let (code, retry_after_ms) = (failure.code, failure.retry_after_ms);
                self.write_failure(slot, kind, sequence, code, retry_after_ms);
            }
        }
    }

    /// Writes a call's answer.
    ///
    /// # Errors
    /// The bytes of a payload that is longer than a frame may be. The call has to fail.
    #[inline]
    fn write_answer(
        &mut self,
        slot: u32,
        kind: i32,
        sequence: u64,
        biz_data: Bytes,
    ) -> Result<(), usize> {
        let answer =
            Response { kind, status: 1, sequence, biz_data: &biz_data, ..Response::default() };
        let bytes = answer.payload_len();
        if bytes > self.settings.answer_bytes_max {
            self.counters.oversize_answers += 1;
            return Err(bytes);
        }
        if !self.may_write(slot) {
            self.counters.orphan_answers += 1;
            return Ok(());
        }
        self.counters.answers += 1;
        if biz_data.len() < outbox::SHARED_BYTES_MIN {
            self.append(slot, |out| answer.encode_frame(out));
            return Ok(());
        }
        let (mut head, mut tail) = (BytesMut::new(), BytesMut::new());
        answer.encode_around(&mut head, &mut tail);
        self.append(slot, |out| out.extend_from_slice(&head));
        self.append_shared(slot, biz_data);
        self.append(slot, |out| out.extend_from_slice(&tail));
        Ok(())
    }

    /// Whether a frame may be written for a connection: not if it is about to close. If too much waits behind
    /// its send, it is closed now.
    #[inline]
    fn may_write(&mut self, slot: u32) -> bool {
        let connection = self.at(slot);
        if connection.is_closing() {
            return false;
        }
        // Bytes behind a send under way count, this frame not included. So a client that reads may get a long frame, or
        // several at once.
        if self.output.bytes_behind_send(connection) > self.settings.outbox_bytes_max {
            self.abort(slot, Cause::OutboxFull);
            return false;
        }
        true
    }

    /// Writes a push to a user, or does with it what the policy for slow connections says.
    pub fn write_push(&mut self, conn: ConnId, frame: &Bytes) -> PushOutcome {
        if self.get(conn).is_none_or(|connection| connection.phase != Phase::Open) {
            self.counters.stale_pushes += 1;
            return PushOutcome::Gone;
        }
        let slot = conn.slot;
        // The other half is for answers, which are never dropped.
        let bytes_max = self.settings.outbox_bytes_max / 2;
        let is_slow = self.output.bytes_behind_send(self.at(slot)) > bytes_max;
        match self.settings.slow_pushes {
            SlowPushes::Skip if is_slow => {
                self.counters.skipped_pushes_to_users += 1;
                return PushOutcome::Skipped;
            }
            SlowPushes::Latest if is_slow || self.latest.has(slot) => {
                return self.keep_latest(slot, frame, bytes_max);
            }
            SlowPushes::Skip | SlowPushes::Close | SlowPushes::Latest => {}
        }
        // The policy may have changed since they began to wait.
        self.append_latest(slot, usize::MAX);
        if !self.may_write(slot) {
            return PushOutcome::Gone;
        }
        self.counters.user_deliveries += 1;
        self.append_shared(slot, frame.clone());
        PushOutcome::Written
    }

    /// Too much waits behind a connection's send for a push to it, or earlier pushes wait for that.
    #[cold]
    fn keep_latest(&mut self, slot: u32, frame: &Bytes, bytes_max: usize) -> PushOutcome {
        let kept = type_of(frame)
            .map_or(Kept::Dropped, |kind| self.latest.keep(slot, kind, frame, bytes_max));
        self.counters.skipped_pushes_to_users += u64::from(kept != Kept::Added);
        match kept {
            Kept::Added | Kept::Replaced => PushOutcome::Written,
            Kept::Dropped => PushOutcome::Skipped,
        }
    }

    /// Puts what waits beside a connection's outbox into it, while at most `bytes_max` are in it.
    #[inline]
    pub(super) fn append_latest(&mut self, slot: u32, bytes_max: usize) {
        if self.latest.has(slot) {
            self.append_oldest_latest(slot, bytes_max);
        }
    }

    #[cold]
    fn append_oldest_latest(&mut self, slot: u32, bytes_max: usize) {
        while self.output.outbox_bytes(self.at(slot)) <= bytes_max
            && let Some(frame) = self.latest.take_oldest(slot)
        {
            self.counters.user_deliveries += 1;
            self.append_shared(slot, frame);
        }
    }

    /// Writes a failure, and counts it by its code.
    pub fn write_failure(
        &mut self,
        slot: u32,
        kind: i32,
        sequence: u64,
        code: Code,
        retry_after_ms: u32,
    ) {
        if self.may_write(slot) {
            self.count_failure(code);
            self.append(slot, |out| {
                server::put_failure(out, kind, sequence, code, retry_after_ms);
            });
        }
    }
}

/// What became of a push to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is written, or waits for its turn.
    Written,
    /// The connection is gone, or about to close.
    Gone,
    /// It was dropped: the connection is too slow.
    Skipped,
}

/// The type of a push, from its frame.
fn type_of(frame: &[u8]) -> Option<i32> {
    let prefix = read_prefix(frame, frame.len()).ok()??;
    Response::decode(frame.get(prefix.prefix_bytes..)?).ok().map(|push| push.kind)
}

/// How long a client should wait before it shows its token again to a gateway that can't know whether it is good: one to
/// two seconds, spread by slot, so that clients do not all reconnect at once.
const fn unknowable_retry_ms(slot: u32) -> u32 {
    1_000 + (slot.wrapping_mul(0x9e37_79b9) >> 22)
}

/// A number for a field of 32 bits.
fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
