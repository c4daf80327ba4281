//! Clients: the part of the shard that owns its connections, what waits to be sent to them, and their deadlines.
//!
//! It decides whether a connection is read from, when it is closed and for what cause, and it is the only part that gives
//! bytes to the driver. It knows neither rooms nor users nor backends: when a session ends, it tells so with
//! [`Clients::next_ended_session`].
//!
//! This part alone gives bytes to the driver: with [`Clients::send`], and with [`Clients::take_reply`], which the driver asks for while
//! a connection is in the cache. What waits is in an outbox, except for pushes to a room: these wait in the room's log, where all
//! members share them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`table`], [`connection`] | the connections, and what is kept of one |
//! | [`output`], [`outbox`] | what waits to be sent, and to whom |
//! | [`deadlines`], [`timers`] | one deadline for each connection, and what it means |
//! | [`intake`], [`rate`] | whether a connection is read from, and how many requests it may send |
//! | [`cause`] | why connections end |

pub mod cause;
pub mod connection;
pub mod deadlines;
pub mod intake;
pub mod outbox;
pub mod output;
pub mod rate;
pub mod table;
pub mod timers;

use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tidegate_backend::UserId;
use tidegate_protocol::message::Response;
use tidegate_protocol::proto::v1;
use tidegate_protocol::{Code, Reassembler, server};

use super::clock::{Clock, millis};
use super::stats::{ClientCounters, LabelledCounters};
use crate::auth::AuthError;
use crate::config::Config;
use crate::driver::{CloseCause, ConnId, Driver, SendState};
use cause::Cause;
use connection::{Connection, Flags, Phase};
use deadlines::{DeadlineAction, Deadlines};
use intake::Intake;
use output::Output;
use table::Table;

/// How long a connection lingers after its last frame, in milliseconds: a few round trips of a bad
/// mobile network.
const LINGER_MS: u64 = 2_000;

/// What connections are configured to.
#[derive(Clone, Copy, Debug)]
struct Settings {
    answer_bytes_max: usize,
    outbox_bytes_max: usize,
    auth_failures_max: u8,
    auth_timeout_ms: u64,
    heartbeat_interval_ms: u64,
}

/// A connection's session has ended: its user and its rooms must be informed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedSession {
    /// The connection.
    pub conn: ConnId,
    /// Whose it was.
    pub user_id: UserId,
}

/// What a refused authentication means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection stays open.
    KeepOpen,
    /// It was the last of its tries: close it.
    Close,
}

/// What an authentication means for the connection that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// The user's home has to register it. Nothing is read until it did.
    Register,
    /// It has a session already, of the same user: answer with the session.
    Renewed,
    /// It has a session of another user, which it may not change.
    WrongUser,
}

/// A shard's connections. See the [module](self).
#[derive(Debug)]
pub struct Clients {
    settings: Settings,
    table: Table,
    intake: Intake,
    session_count: usize,
    output: Output,
    deadlines: Deadlines,
    ended: VecDeque<EndedSession>,
    counters: ClientCounters,
    labelled: LabelledCounters,
}

impl Clients {
    /// No connection yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            settings: Settings {
                answer_bytes_max: limits.frame_to_client_bytes_max,
                outbox_bytes_max: limits.outbox_bytes_max,
                auth_failures_max: config.auth.failures_max,
                auth_timeout_ms: millis(config.auth.timeout),
                heartbeat_interval_ms: millis(config.session.heartbeat_interval),
            },
            table: Table::default(),
            intake: Intake::new(limits),
            session_count: 0,
            output: Output::default(),
            deadlines: Deadlines::new(millis(config.session.idle_timeout)),
            ended: VecDeque::new(),
            counters: ClientCounters::default(),
            labelled: LabelledCounters::default(),
        }
    }

    /// Open connections.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.open()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots, vacant or not.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.table.slots()
    }

    /// Connections with a session.
    #[must_use]
    pub const fn session_count(&self) -> usize {
        self.session_count
    }

    /// Bytes that wait to be sent, those of sends under way included.
    #[must_use]
    pub const fn unsent_bytes_in_all(&self) -> usize {
        self.output.unsent_bytes_in_all()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> (&ClientCounters, &LabelledCounters) {
        (&self.counters, &self.labelled)
    }

    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.output.is_idle() || !self.intake.is_idle() || self.deadlines.has_more()
    }

    /// Milliseconds until a deadline may expire.
    #[must_use]
    pub fn next_deadline_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.deadlines.next_in_ms(now_ms)
    }

    /// Bytes of long messages since the last call of this function.
    pub const fn take_long_bytes(&mut self) -> usize {
        self.intake.take_long_bytes() + self.output.take_long_bytes()
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.output.free_spare_memory();
        self.ended.shrink_to_fit();
    }

    /// The next session that has ended.
    #[inline]
    pub fn next_ended_session(&mut self) -> Option<EndedSession> {
        self.ended.pop_front()
    }

    /// The connection of this name, if it is still here.
    #[inline]
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.table.get(conn)
    }

    /// The connection in a slot, vacant or not.
    #[inline]
    #[must_use]
    pub fn at(&self, slot: u32) -> &Connection {
        self.table.at(slot)
    }

    /// The name of the connection in a slot.
    #[inline]
    #[must_use]
    pub fn conn_id(&self, slot: u32) -> ConnId {
        self.table.conn_id(slot)
    }

    /// Runs `log` within the connection's span, if the log shows it.
    pub fn log(&self, slot: u32, log: impl FnOnce()) {
        self.table.log(slot, log);
    }

    /// A connection came in. `shard` and `peer` are for the log.
    pub fn accepted(&mut self, conn: ConnId, peer: SocketAddr, shard: u16, clock: &Clock) {
        self.table.insert(conn, clock.wrapping_ms(), shard, peer);
        self.intake.reset(conn.slot);
        self.counters.accepted += 1;
        self.deadlines.set(conn.slot, clock.now_ms() + self.settings.auth_timeout_ms);
    }

    #[inline]
    fn list_for_flush(&mut self, slot: u32) {
        self.output.list_for_flush(slot, self.table.at_mut(slot));
    }

    /// Bytes came. Returns the connection's inbox, which [`Self::put_inbox`] takes back; `None` if it is not read
    /// from any more.
    #[inline]
    pub fn take_inbox(&mut self, conn: ConnId, bytes: usize) -> Option<Reassembler> {
        self.counters.received_bytes += bytes as u64;
        let connection = self.table.get_mut(conn)?;
        if connection.is_closing() {
            self.counters.discarded_bytes += bytes as u64;
            return None;
        }
        Some(mem::take(&mut connection.inbox))
    }

    /// Puts the inbox back, with what was not read.
    #[inline]
    pub fn put_inbox(&mut self, slot: u32, inbox: Reassembler) {
        self.table.at_mut(slot).inbox = inbox;
    }

    /// Whether the next frame may be read. If not, the connection is held.
    #[inline]
    pub fn may_read_frame(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        let must_wait = self.intake.must_wait(connection, self.output.unsent_bytes(connection));
        if must_wait {
            connection.flags |= Flags::HELD;
            self.output.list_for_flush(slot, connection);
        }
        !must_wait
    }

    /// Holds a connection for a reason that is not its own. [`Self::next_resumed`] returns it once it may be read from.
    pub fn hold_for_now(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        connection.flags |= Flags::HELD;
        self.output.list_for_flush(slot, connection);
        self.intake.resume_later(slot, connection);
    }

    /// The longest frame that is read from a connection, in bytes of payload.
    #[inline]
    #[must_use]
    pub fn frame_bytes_max(&self, slot: u32) -> usize {
        self.intake.frame_bytes_max(self.at(slot))
    }

    /// Bytes that were received are not read.
    pub const fn discard(&mut self, bytes: usize) {
        self.counters.discarded_bytes += bytes as u64;
    }

    /// A frame was read: a sign of life, and a request as far as the rate is concerned.
    ///
    /// # Errors
    /// The milliseconds that it came too early, at least 1.
    #[inline]
    pub fn count_frame(&mut self, slot: u32, bytes: usize, clock: &Clock) -> Result<(), u32> {
        self.counters.received_frames += 1;
        self.intake.count_frame(slot, self.table.at_mut(slot), bytes, clock)
    }

    /// The next held connection that may be read from again.
    pub fn next_resumed(&mut self, clock: &Clock) -> Option<u32> {
        while let Some(slot) = self.intake.next_resumable() {
            let connection = self.table.at_mut(slot);
            let unsent_bytes = self.output.unsent_bytes(connection);
            if connection.has(Flags::HELD) && !self.intake.must_wait(connection, unsent_bytes) {
                connection.flags -= Flags::HELD;
                // The time that the connection was held is not silence.
                connection.last_seen_ms = clock.wrapping_ms();
                self.output.list_for_flush(slot, connection);
                return Some(slot);
            }
        }
        None
    }

    /// The peer has shut down its sending side. It still gets its answers.
    pub fn peer_ended(&mut self, conn: ConnId) {
        if let Some(connection) = self.table.get_mut(conn) {
            connection.flags |= Flags::PEER_ENDED;
            if connection.phase == Phase::Lingering {
                connection.phase = Phase::Aborted;
            }
            self.output.list_for_flush(conn.slot, connection);
        }
    }

    /// A connection has shown a token that verifies.
    pub fn login(&mut self, slot: u32, user_id: UserId) -> Login {
        let connection = self.table.at_mut(slot);
        if connection.phase == Phase::Open {
            return if connection.user_id == user_id { Login::Renewed } else { Login::WrongUser };
        }
        connection.user_id = user_id;
        connection.phase = Phase::Registering;
        Login::Register
    }

    /// The user's home has registered a connection. `false`: it is gone, or about to close.
    pub fn open_session(&mut self, conn: ConnId, clock: &Clock) -> bool {
        if self.get(conn).is_none_or(|connection| connection.phase != Phase::Registering) {
            // It is closing meanwhile, and the home knows.
            return false;
        }
        let connection = self.table.at_mut(conn.slot);
        connection.phase = Phase::Open;
        let user_id = connection.user_id;
        self.log(conn.slot, || tracing::debug!(user_id, "authenticated"));
        self.counters.sessions += 1;
        self.session_count += 1;
        self.deadlines.set_idle(conn.slot, clock.now_ms());
        self.intake.resume_later(conn.slot, self.table.at(conn.slot));
        true
    }

    /// Answers an authentication with the session.
    pub fn write_session(&mut self, slot: u32, session_id: u64, sequence: u64, clock: &Clock) {
        let interval = self.settings.heartbeat_interval_ms;
        let session = v1::Session {
            session_id,
            heartbeat_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            server_time_ms: clock.unix_ms(),
        };
        self.append(slot, |out| server::put_session(out, sequence, &session));
    }

    /// Answers a heartbeat.
    #[inline]
    pub fn write_pong(&mut self, slot: u32, sequence: u64, clock: &Clock) {
        self.counters.heartbeats += 1;
        self.append(slot, |out| server::put_pong(out, sequence, clock.unix_ms()));
    }

    /// Answers 100 to a request of the type `kind`.
    pub fn refuse_unauthenticated(&mut self, slot: u32, kind: i32, sequence: u64) -> Verdict {
        self.write_failure(slot, kind, sequence, Code::Unauthenticated, 0);
        let failures_max = self.settings.auth_failures_max;
        let connection = self.table.at_mut(slot);
        connection.auth_failures = connection.auth_failures.saturating_add(1);
        if connection.auth_failures >= failures_max { Verdict::Close } else { Verdict::KeepOpen }
    }

    /// Answers 100 to a token that does not verify.
    pub fn refuse_token(
        &mut self,
        slot: u32,
        user_id: UserId,
        error: AuthError,
        sequence: u64,
    ) -> Verdict {
        self.labelled.refused_tokens[error as usize] += 1;
        self.log(slot, || tracing::debug!(user_id, %error, "authentication failed"));
        self.refuse_unauthenticated(slot, 0, sequence)
    }

    /// A call of the connection waits for its answer from now on.
    #[inline]
    pub fn start_call(&mut self, slot: u32) {
        self.table.at_mut(slot).calls += 1;
    }

    /// A call has ended. `false`: the connection is closed or closing.
    #[inline]
    pub fn finish_call(&mut self, conn: ConnId) -> bool {
        if let Some(connection) = self.table.get_mut(conn) {
            connection.calls -= 1;
            if !connection.is_closing() {
                self.intake.resume_later(conn.slot, connection);
                return true;
            }
        }
        self.counters.orphan_answers += 1;
        false
    }

    /// Writes a call's answer.
    ///
    /// # Errors
    /// The bytes of a payload that is longer than a frame may be. The call has to fail.
    #[inline]
    pub fn write_answer(
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

    /// Bytes of a connection that the kernel does not have yet.
    #[inline]
    #[must_use]
    pub fn unsent_bytes(&self, slot: u32) -> usize {
        self.output.unsent_bytes(self.at(slot))
    }

    /// Whether a connection has too many unsent bytes to get the last pushes of a room that it leaves.
    #[must_use]
    pub fn is_backlogged(&self, slot: u32) -> bool {
        self.unsent_bytes(slot) > self.settings.outbox_bytes_max
    }

    /// Bytes in a connection's outbox.
    #[inline]
    #[must_use]
    pub fn outbox_bytes(&self, slot: u32) -> usize {
        self.output.outbox_bytes(self.at(slot))
    }

    /// Whether a frame may be written for a connection: not if it is about to close. If too much waits behind its send, it
    /// is closed now.
    #[inline]
    fn may_write(&mut self, slot: u32) -> bool {
        let connection = self.at(slot);
        if connection.is_closing() {
            return false;
        }
        // Bytes behind a send under way count, this frame not included. So a client that reads may get a long frame, or
        // several at once.
        if self.output.backlog_bytes(connection) > self.settings.outbox_bytes_max {
            self.abort(slot, Cause::OutboxFull);
            return false;
        }
        true
    }

    /// Writes a push to a user. `false`: the connection is about to close.
    pub fn write_push(&mut self, slot: u32, frame: &Bytes) -> bool {
        let may_write = self.may_write(slot);
        if may_write {
            self.counters.user_deliveries += 1;
            self.append_shared(slot, frame.clone());
        }
        may_write
    }

    /// A push to a user came too late for a connection.
    pub const fn count_stale_push(&mut self) {
        self.counters.stale_pushes += 1;
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

    const fn count_failure(&mut self, code: Code) {
        self.labelled.failures[code.number() as usize - 100] += 1;
    }

    /// Appends bytes that others share to a connection's outbox, without a bound: the caller has one.
    #[inline]
    pub fn append_shared(&mut self, slot: u32, bytes: Bytes) {
        self.output.append_shared(slot, self.table.at_mut(slot), bytes);
    }

    /// Appends a chunk of pushes to the outbox of a connection that is being flushed.
    #[inline]
    pub fn append_chunk(&mut self, slot: u32, chunk: Bytes) {
        self.output.append_chunk(self.table.at_mut(slot), chunk);
    }

    /// Appends what `write` writes to a connection's outbox, whatever waits there. The caller has checked the bound with
    /// [`Self::may_write`], or needs none: a client that does not read is not read from, so the answers to its heartbeats and
    /// authentications are few.
    #[inline]
    fn append(&mut self, slot: u32, write: impl FnOnce(&mut BytesMut)) {
        self.output.append(slot, self.table.at_mut(slot), write);
    }

    /// A room has pushes for a connection. It gets them when it is flushed.
    pub fn set_pushes_pending(&mut self, slot: u32) {
        self.note_pending_pushes(slot);
        self.list_for_flush(slot);
    }

    /// A room has pushes for a connection that can't be sent now. It gets them when its send is done, or when it is flushed.
    #[inline]
    pub fn note_pending_pushes(&mut self, slot: u32) {
        self.table.at_mut(slot).flags |= Flags::PENDING_PUSHES;
    }

    /// Whether a push may be sent to a connection at once: no send is under way, and nothing waits to be flushed.
    #[inline]
    #[must_use]
    pub fn is_writable(&self, slot: u32) -> bool {
        let connection = self.at(slot);
        connection.in_flight_bytes == 0 && !connection.has(Flags::LISTED_FOR_FLUSH)
    }

    /// Whether connections should be flushed before the end of the turn.
    #[inline]
    #[must_use]
    pub const fn is_flush_due(&self) -> bool {
        self.output.is_flush_due()
    }

    /// Whether an outbox without a send under way is so long that it should be flushed before more is written.
    #[inline]
    #[must_use]
    pub const fn has_long_outbox(&self) -> bool {
        self.output.has_long_outbox()
    }

    /// Gives bytes to the driver: no other send may be under way.
    #[inline]
    pub fn send(
        &mut self,
        slot: u32,
        bytes: Bytes,
        driver: &mut impl Driver,
        clock: &Clock,
    ) -> SendState {
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        let count = bytes.len();
        let state = driver.send(conn, bytes);
        match state {
            SendState::Done => self.sent(slot, count, clock),
            SendState::UnderWay => self.output.start_send(connection, count),
        }
        state
    }

    /// A send that was under way is done.
    #[inline]
    pub fn send_finished(&mut self, conn: ConnId, bytes: usize, clock: &Clock) {
        if let Some(connection) = self.table.get_mut(conn) {
            self.output.finish_send(connection);
            self.sent(conn.slot, bytes, clock);
        }
    }

    /// The kernel has all of a send.
    #[inline]
    fn sent(&mut self, slot: u32, bytes: usize, clock: &Clock) {
        self.counters.sends += 1;
        self.counters.sent_bytes += bytes as u64;
        let connection = self.table.at_mut(slot);
        if connection.has(Flags::HELD) {
            // The client takes what it is sent: a sign of life while it is not read from.
            connection.last_seen_ms = clock.wrapping_ms();
            self.intake.resume_later(slot, connection);
        }
        if connection.outbox.is_some()
            || connection.has(Flags::PENDING_PUSHES | Flags::PEER_ENDED)
            || connection.phase == Phase::Closing
        {
            self.output.list_for_flush(slot, connection);
        }
    }

    /// What to send at once on a connection that was just received from, if that is all there is to do
    /// for it. The rest waits for the end of the turn.
    #[inline]
    pub fn take_reply(&mut self, slot: u32) -> Option<Bytes> {
        self.output.take_reply(self.table.at_mut(slot))
    }

    /// The slots of the connections to flush. [`Self::put_flush_list`] takes the list back.
    #[inline]
    pub fn take_flush_list(&mut self) -> Vec<u32> {
        self.output.take_flush_list()
    }

    /// Takes the emptied list back. Closing one connection may have listed others meanwhile.
    #[inline]
    pub fn put_flush_list(&mut self, emptied: Vec<u32>) {
        self.output.put_flush_list(emptied);
    }

    /// Starts to flush a connection: closes it if it is to be closed at once, and pauses or resumes reading. Returns whether
    /// what waits is to be sent.
    #[inline]
    pub fn start_flush(&mut self, slot: u32, driver: &mut impl Driver) -> bool {
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        if !connection.has(Flags::LISTED_FOR_FLUSH) {
            // It has replied already.
            return false;
        }
        connection.flags -= Flags::LISTED_FOR_FLUSH;
        match connection.phase {
            Phase::Vacant | Phase::Lingering => return false,
            Phase::Aborted => {
                driver.close(conn);
                return false;
            }
            Phase::Anonymous | Phase::Registering | Phase::Open | Phase::Closing => {}
        }
        let is_held = connection.has(Flags::HELD);
        if is_held != connection.has(Flags::PAUSED) {
            connection.flags.set(Flags::PAUSED, is_held);
            if is_held {
                // A login that waits for its user's home says nothing about the client.
                let counts = connection.phase != Phase::Registering;
                self.counters.receive_pauses += u64::from(counts);
                driver.pause_receive(conn);
            } else {
                driver.resume_receive(conn);
            }
        }
        true
    }

    /// Whether a connection has pushes in a room's log. They count as taken from now on.
    #[inline]
    pub fn take_pending_pushes(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        let is_pending = connection.has(Flags::PENDING_PUSHES);
        connection.flags -= Flags::PENDING_PUSHES;
        is_pending
    }

    /// The next piece of what waits to be sent.
    #[inline]
    pub fn next_piece(&mut self, slot: u32) -> Option<Bytes> {
        self.output.next_piece(self.table.at_mut(slot))
    }

    /// Whether a connection has more to send.
    #[inline]
    #[must_use]
    pub fn has_more(&self, slot: u32) -> bool {
        let connection = self.at(slot);
        connection.outbox.is_some() || connection.has(Flags::PENDING_PUSHES)
    }

    /// Nothing is left to send. A connection that only waited for that is shut down or closed.
    pub fn finish_flush(&mut self, slot: u32, driver: &mut impl Driver, clock: &Clock) {
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        if connection.phase == Phase::Aborted {
            driver.close(conn);
        } else if connection.phase == Phase::Closing {
            if connection.has(Flags::PEER_ENDED) {
                connection.phase = Phase::Aborted;
                driver.close(conn);
            } else {
                connection.phase = Phase::Lingering;
                driver.shutdown(conn);
                self.deadlines.set(slot, clock.now_ms() + LINGER_MS);
            }
        } else if connection.has_finished() {
            self.record_close(slot, Cause::Peer);
            self.deadlines.clear(slot);
            self.table.at_mut(slot).phase = Phase::Aborted;
            driver.close(conn);
        }
    }

    /// Closes a connection gracefully: sends what waits and a goodbye, then shuts down the sending side and lingers until
    /// the peer has closed. A socket that is closed with unread bytes is reset by the kernel, and the reset
    /// discards the last frames. `goodbye`: the code, and how long the client should wait. `until_ms`: how long sending
    /// may take.
    pub fn close_gracefully(
        &mut self,
        slot: u32,
        cause: Cause,
        goodbye: Option<(Code, u32)>,
        until_ms: Option<u64>,
        clock: &Clock,
    ) {
        self.record_close(slot, cause);
        if let Some((code, retry_after_ms)) = goodbye {
            self.count_failure(code);
            self.append(slot, |out| server::put_goodbye(out, code, retry_after_ms));
        }
        self.table.at_mut(slot).phase = Phase::Closing;
        self.deadlines.set(slot, until_ms.unwrap_or(clock.now_ms() + LINGER_MS));
        self.list_for_flush(slot);
    }

    /// Closes a connection at once.
    pub fn abort(&mut self, slot: u32, cause: Cause) {
        if !self.at(slot).is_closing() {
            self.record_close(slot, cause);
            self.table.at_mut(slot).phase = Phase::Aborted;
            self.deadlines.clear(slot);
            self.list_for_flush(slot);
        }
    }

    /// Counts the cause, ends the session, and drops what was received and not read.
    fn record_close(&mut self, slot: u32, cause: Cause) {
        self.labelled.closed[cause as usize] += 1;
        self.log(slot, || tracing::debug!(cause = cause.label(), "closed"));
        let conn = self.conn_id(slot);
        let connection = self.table.at_mut(slot);
        let kept_bytes = connection.inbox.kept_bytes();
        connection.inbox = Reassembler::new();
        self.counters.discarded_bytes += kept_bytes as u64;
        self.intake.count_bytes(kept_bytes);
        let connection = self.table.at_mut(slot);
        connection.flags -= Flags::HELD | Flags::PENDING_PUSHES;
        if matches!(connection.phase, Phase::Open | Phase::Registering) {
            self.session_count -= usize::from(connection.phase == Phase::Open);
            self.ended.push_back(EndedSession { conn, user_id: connection.user_id });
        }
    }

    /// The driver has closed a connection: the slot is free. `false`: it was free before.
    pub fn closed(&mut self, conn: ConnId, cause: CloseCause, unsent_bytes: usize) -> bool {
        self.counters.unsent_bytes += unsent_bytes as u64;
        let slot = conn.slot;
        if self.get(conn).is_none() {
            return false;
        }
        if !self.at(slot).is_closing() {
            self.record_close(slot, cause.into());
        }
        self.deadlines.clear(slot);
        self.counters.unsent_bytes += self.output.discard(self.table.at_mut(slot)) as u64;
        self.table.remove(slot);
        true
    }

    /// Collects the deadlines that have expired: as many as one turn handles.
    pub fn collect_deadlines(&mut self, clock: &Clock) {
        self.deadlines.collect(clock.now_ms());
    }

    /// The next connection of those collected that is to be closed gracefully with 109, and the cause.
    pub fn next_expired(&mut self, clock: &Clock) -> Option<(u32, Cause)> {
        while let Some(slot) = self.deadlines.next_expired() {
            match self.deadlines.check(self.at(slot), clock) {
                DeadlineAction::Reschedule(at_ms) => self.deadlines.set(slot, at_ms),
                DeadlineAction::Close(cause) => return Some((slot, cause)),
                DeadlineAction::Abort => {
                    self.table.at_mut(slot).phase = Phase::Aborted;
                    self.list_for_flush(slot);
                }
                DeadlineAction::Nothing => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
