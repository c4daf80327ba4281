//! Clients: the part of the shard that owns its connections, what waits to be sent to them, and their deadlines.
//!
//! It decides whether a connection is read from, when it is closed and for what cause, and it is the only part
//! that gives bytes to the driver. It knows neither rooms nor users nor backends: it reports the end of a
//! session with [`Clients::next_ended_session`].
//!
//! This part alone gives bytes to the driver: with [`Clients::send`], and with [`Clients::take_reply`], which
//! the driver asks for while a connection is in the cache. What waits is in an outbox, except for pushes to a
//! room: these wait in the room's log, where all members share them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`table`], [`connection`] | the connections, and what is kept of one |
//! | [`output`], [`outbox`] | what waits to be sent, and to whom |
//! | [`lifecycle`], [`deadlines`], [`timers`] | a connection's phases, and its one deadline |
//! | [`token_ends`], [`ages`] | when sessions end with their tokens, and when connections are too old |
//! | [`verifications`] | authentications whose tokens are verified apart from the shard |
//! | `flows` | what the address of each connection is counted as |
//! | [`session_tokens`] | which token each session came with |
//! | [`intake`] | whether a connection is read from |
//! | [`cause`] | why connections end |
//! | `writing` | what each message to a connection needs: its bound, its counter, its code |
//! | `sending` | the flush of a connection |
//!
//! `writing` and `sending` own nothing. They call the parts and this module, and neither calls the other.

pub mod ages;
pub mod cause;
pub mod connection;
pub mod deadlines;
mod flows;
pub mod intake;
mod latest;
pub mod lifecycle;
pub mod outbox;
pub mod output;
mod sending;
pub mod session_tokens;
pub mod table;
pub mod timers;
pub mod token_ends;
pub mod verifications;
mod writing;

use std::mem;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tidegate_backend::UserId;
use tidegate_backend::log_limit::LogLimit;
use tidegate_protocol::{Code, Reassembler, server};

use super::clock::{Clock, millis};
use super::stats::{ClientCounters, LabelledCounters};
use super::tokens::ListedToken;
use crate::auth::{AuthError, Flow, TokenDigest, TokenEnd};
use crate::config::{Config, SlowPushes};
use crate::driver::{CloseCause, ConnId};
use cause::Cause;
use connection::{Connection, Flags, Phase};
use deadlines::DeadlineAction;
use flows::Flows;
use intake::Intake;
use latest::LatestPushes;
use lifecycle::{EndedSession, Lifecycle};
use output::Output;
use session_tokens::SessionTokens;
use table::Table;
use verifications::{PendingLogin, Verifications};
pub use writing::PushOutcome;

/// What connections are configured to.
#[derive(Clone, Copy, Debug)]
struct Settings {
    answer_bytes_max: usize,
    outbox_bytes_max: usize,
    slow_pushes: SlowPushes,
    heartbeat_interval_ms: u64,
    idle_timeout_ms: u64,
    frame_bytes_max: usize,
}

impl Settings {
    fn new(config: &Config) -> Self {
        let Config { limits, session, .. } = config;
        Self {
            answer_bytes_max: limits.frame_to_client_bytes_max,
            outbox_bytes_max: limits.outbox_bytes_max,
            slow_pushes: session.slow_pushes,
            heartbeat_interval_ms: millis(session.heartbeat_interval),
            idle_timeout_ms: millis(session.idle_timeout),
            frame_bytes_max: limits.frame_bytes_max,
        }
    }
}

/// A shard's connections. See the [module](self).
#[derive(Debug)]
pub struct Clients {
    settings: Settings,
    table: Table,
    lifecycle: Lifecycle,
    intake: Intake,
    output: Output,
    verifications: Verifications,
    flows: Flows,
    latest: LatestPushes,
    /// Bytes of all inboxes.
    inbound_bytes: usize,
    session_tokens: SessionTokens,
    /// The limit on log lines of answers that are too long.
    oversize_answers: LogLimit,
    counters: ClientCounters,
    labelled: LabelledCounters,
}

impl Clients {
    /// No connection yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            settings: Settings::new(config),
            table: Table::default(),
            lifecycle: Lifecycle::new(config),
            intake: Intake::new(&config.limits),
            output: Output::default(),
            verifications: Verifications::new(config),
            flows: Flows::default(),
            latest: LatestPushes::default(),
            inbound_bytes: 0,
            session_tokens: SessionTokens::default(),
            oversize_answers: LogLimit::new(),
            counters: ClientCounters::default(),
            labelled: LabelledCounters::default(),
        }
    }

    /// Uses another configuration from now on. Connections stay; what bounds them holds for their next frames.
    pub fn reconfigure(&mut self, config: &Config) {
        self.settings = Settings::new(config);
        self.lifecycle.reconfigure(config);
        self.intake.reconfigure(&config.limits, self.table.slots());
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
        self.lifecycle.session_count()
    }

    /// Bytes that wait to be sent, those of sends under way included.
    #[must_use]
    pub const fn unsent_bytes_in_all(&self) -> usize {
        self.output.unsent_bytes_in_all() + self.latest.bytes()
    }

    /// Bytes of frames whose rest has not come, or that wait to be read.
    #[must_use]
    pub const fn inbound_bytes(&self) -> usize {
        self.inbound_bytes
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> (&ClientCounters, &LabelledCounters) {
        (&self.counters, &self.labelled)
    }

    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.output.is_idle() || !self.intake.is_idle() || self.lifecycle.has_expired_left()
    }

    /// Milliseconds until a deadline may expire.
    #[must_use]
    pub fn next_deadline_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.lifecycle.next_deadline_in_ms(now_ms)
    }

    /// Bytes of long messages that were freed since the last call of this function.
    pub const fn take_freed_bytes(&mut self) -> usize {
        self.intake.take_freed_bytes() + self.output.take_freed_bytes()
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.output.free_spare_memory();
        self.lifecycle.free_spare_memory();
        self.verifications.free_spare_memory();
    }

    /// The next session that has ended.
    #[inline]
    pub fn next_ended_session(&mut self) -> Option<EndedSession> {
        self.lifecycle.next_ended_session()
    }

    /// The connection with this id, if it is still open.
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

    /// The id of the connection in a slot.
    #[inline]
    #[must_use]
    pub fn conn_id(&self, slot: u32) -> ConnId {
        self.table.conn_id(slot)
    }

    /// Runs `log` within the connection's span, if the log shows it.
    pub fn log(&self, slot: u32, log: impl FnOnce()) {
        self.table.log(slot, log);
    }

    /// A connection came in. `shard` and `peer` are for the log. `is_open`: its wire is.
    pub fn accepted(
        &mut self,
        conn: ConnId,
        peer: SocketAddr,
        is_open: bool,
        shard: u16,
        clock: &Clock,
    ) {
        self.table.insert(conn, clock.wrapping_ms(), shard, peer);
        let connection = self.table.at_mut(conn.slot);
        connection.accepted_s = clock.wrapping_s();
        self.intake.reset(conn.slot);
        self.counters.accepted += 1;
        self.lifecycle.accepted(conn.slot, connection, is_open, clock.now_ms());
    }

    /// The wire of a connection is open. `false`: the connection is closing or gone.
    pub fn opened(&mut self, conn: ConnId, clock: &Clock) -> bool {
        let connection = self.table.get_mut(conn).filter(|connection| connection.is_opening());
        let Some(connection) = connection else { return false };
        self.lifecycle.opened(conn.slot, connection, clock.now_ms());
        true
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
        let inbox = mem::take(&mut connection.inbox);
        self.inbound_bytes -= inbox.kept_bytes();
        Some(inbox)
    }

    /// Puts the inbox back, with what was not read.
    #[inline]
    pub fn put_inbox(&mut self, slot: u32, inbox: Reassembler) {
        self.inbound_bytes += inbox.kept_bytes();
        self.table.at_mut(slot).inbox = inbox;
    }

    /// Whether the next frame may be read. If not, reading is paused.
    #[inline]
    pub fn may_read_frame(&mut self, slot: u32) -> bool {
        let connection = self.table.at_mut(slot);
        let must_wait = self.intake.must_wait(connection, self.output.unsent_bytes(connection));
        if must_wait {
            connection.flags |= Flags::READ_PAUSED;
            self.output.list_for_flush(slot, connection);
        }
        !must_wait
    }

    /// Pauses reading because answers on this thread wait, whichever connection they are for. [`Self::next_resumed`]
    /// returns it once it may be read from.
    pub fn pause_reading_for_answers(&mut self, slot: u32) {
        let connection = self.table.at_mut(slot);
        connection.flags |= Flags::READ_PAUSED;
        self.output.list_for_flush(slot, connection);
        self.intake.resume_later(slot, connection);
    }

    /// The longest frame that is read from a connection, in bytes of payload.
    #[inline]
    #[must_use]
    pub fn frame_bytes_max(&self, slot: u32) -> usize {
        self.intake.frame_bytes_max(self.at(slot))
    }

    /// Counts bytes that were received and are not read.
    pub const fn count_discarded(&mut self, bytes: usize) {
        self.counters.discarded_bytes += bytes as u64;
    }

    /// A frame was read: a sign of life, and a request as far as the rate is concerned.
    ///
    /// # Errors
    /// It came too early: the milliseconds that it has to wait, at least 1.
    #[inline]
    pub fn count_frame(&mut self, slot: u32, bytes: usize, clock: &Clock) -> Result<(), u32> {
        self.counters.received_frames += 1;
        self.intake.count_frame(slot, self.table.at_mut(slot), bytes, clock)
    }

    /// Resumes reading from the next connection whose reading is paused and may be resumed.
    pub fn next_resumed(&mut self, clock: &Clock) -> Option<u32> {
        while let Some(slot) = self.intake.next_resumable() {
            let connection = self.table.at_mut(slot);
            let unsent_bytes = self.output.unsent_bytes(connection);
            if connection.has(Flags::READ_PAUSED)
                && !self.intake.must_wait(connection, unsent_bytes)
            {
                connection.flags -= Flags::READ_PAUSED;
                // The time for which reading was paused is not silence.
                connection.last_seen_ms = clock.wrapping_ms();
                self.output.list_for_flush(slot, connection);
                return Some(slot);
            }
        }
        None
    }

    /// A balancer has said which client it is.
    pub fn named(&self, conn: ConnId, peer: SocketAddr) {
        self.table.name(conn, peer);
    }

    /// The connection's wire has failed. Says whether it is to be closed: it is not closing already.
    pub fn wire_failed(&mut self, conn: ConnId, reason: &'static str) -> bool {
        let is_open = self.table.get_mut(conn).is_some_and(|connection| !connection.is_closing());
        if is_open {
            self.log(conn.slot, || tracing::debug!(reason, "the wire failed"));
        }
        is_open
    }

    /// The peer has shut down its sending side. It still gets its answers.
    pub fn peer_ended(&mut self, conn: ConnId) {
        if let Some(connection) = self.table.get_mut(conn) {
            Lifecycle::peer_ended(connection);
            self.output.list_for_flush(conn.slot, connection);
        }
    }

    /// The user's home has registered a connection. `false`: it is gone, or about to close.
    pub fn open_session(&mut self, conn: ConnId, clock: &Clock) -> bool {
        if self.get(conn).is_none_or(|connection| connection.phase != Phase::Registering) {
            // It is closing meanwhile, and the home knows.
            return false;
        }
        let connection = self.table.at_mut(conn.slot);
        self.lifecycle.open_session(conn.slot, connection, clock.now_ms());
        self.intake.resume_later(conn.slot, connection);
        let user_id = connection.user_id;
        self.log(conn.slot, || tracing::debug!(user_id, "authenticated"));
        self.counters.sessions += 1;
        true
    }

    /// Keeps an authentication until there is a verdict on its token. Until then nothing is read, if there is no session.
    ///
    /// # Errors
    /// [`AuthError::TooManyVerifications`].
    pub fn begin_verification(&mut self, slot: u32, login: PendingLogin) -> Result<(), AuthError> {
        self.verifications.begin(self.conn_id(slot), login)?;
        self.table.at_mut(slot).flags |= Flags::VERIFYING;
        Ok(())
    }

    /// There is a verdict on a connection's token. `None`: the connection is gone, or about to close.
    pub fn end_verification(&mut self, conn: ConnId) -> Option<PendingLogin> {
        let login = self.verifications.end(conn)?;
        let connection = self.table.at_mut(conn.slot);
        connection.flags -= Flags::VERIFYING;
        self.intake.resume_later(conn.slot, connection);
        // Its peer may have ended meanwhile.
        self.output.list_for_flush(conn.slot, connection);
        Some(login)
    }

    /// The address of a connection's client is known.
    pub fn set_flow(&mut self, conn: ConnId, flow: Flow) {
        if self.table.get(conn).is_some() {
            self.flows.set(conn.slot, flow);
        }
    }

    /// What a connection's address is counted as.
    #[must_use]
    pub fn flow(&self, slot: u32) -> Flow {
        self.flows.get(slot)
    }

    /// The session of a connection came with this token, or has shown it since.
    pub fn set_session_token(
        &mut self,
        slot: u32,
        token: TokenDigest,
        end: TokenEnd,
        clock: &Clock,
    ) {
        let Self { table, session_tokens, .. } = self;
        session_tokens.set(slot, token, on_clock(end, clock), |slot| table.at(slot).user_id);
    }

    /// The token of a session ends at another time than before.
    pub fn set_new_token_end(
        &mut self,
        conn: ConnId,
        token: TokenDigest,
        end: TokenEnd,
        clock: &Clock,
    ) {
        let Some(connection) = self.table.get(conn) else { return };
        if self.session_tokens.set_end(conn.slot, token, on_clock(end, clock)) {
            self.lifecycle.set_token_end(conn.slot, connection, end, clock);
        }
    }

    /// The slots of the user's sessions that came with this token; `None`: with any.
    #[must_use]
    pub fn sessions_with_token(&self, user_id: UserId, token: Option<TokenDigest>) -> Vec<u32> {
        self.session_tokens.slots_of(user_id, token, |slot| self.at(slot).user_id)
    }

    /// A page of sessions' tokens, and the slot at which the next one begins.
    #[must_use]
    pub fn list_tokens(&self, from: u32, clock: &Clock) -> (Vec<ListedToken>, Option<u32>) {
        let (page, next) = self.session_tokens.page(from, clock.now_ms());
        let listed = |(slot, token, ends_in_ms)| {
            let user_id = self.at(slot).user_id;
            ListedToken { conn: self.conn_id(slot), user_id, token, ends_in_ms }
        };
        (page.into_iter().map(listed).collect(), next)
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

    /// Whether a connection can be sent to another gateway: it has a session, is not leaving already, and was accepted
    /// at least `spared_s` seconds ago.
    #[must_use]
    pub fn may_leave(&self, slot: u32, spared_s: u16, clock: &Clock) -> bool {
        let connection = self.at(slot);
        connection.phase == Phase::Open
            && !connection.has(Flags::RESUMING | Flags::LEAVING)
            && clock.wrapping_s().wrapping_sub(connection.accepted_s) >= spared_s
    }

    /// Whether a connection is too old.
    #[must_use]
    pub fn is_aged(&self, slot: u32, clock: &Clock) -> bool {
        self.lifecycle.is_aged(slot, clock.now_ms())
    }

    /// A drain is hurried: a connection that is closing is closed at once.
    pub fn hurry_close(&mut self, slot: u32, clock: &Clock) {
        self.lifecycle.hurry_close(slot, self.table.at(slot), clock.now_ms());
    }

    /// A connection gets the answers that it waits for, and then the goodbye: its requests are refused from now on.
    pub fn start_leaving(&mut self, slot: u32) {
        self.table.at_mut(slot).flags |= Flags::LEAVING;
    }

    const fn count_failure(&mut self, code: Code) {
        self.labelled.failures[code.number() as usize - 100] += 1;
    }

    /// Appends bytes that others share to a connection's outbox, without a bound: the caller has one.
    #[inline]
    pub fn append_shared(&mut self, slot: u32, bytes: Bytes) {
        self.output.append_shared(slot, self.table.at_mut(slot), bytes);
    }

    /// Appends what `write` writes to a connection's outbox, whatever waits there. The caller has checked the
    /// bound with [`Self::may_write`], or needs none: a client that does not read is not read from, so the
    /// answers to its heartbeats and authentications are few.
    #[inline]
    fn append(&mut self, slot: u32, write: impl FnOnce(&mut BytesMut)) {
        self.output.append(slot, self.table.at_mut(slot), write);
    }

    /// Closes a connection gracefully: sends what waits and a goodbye, then shuts down the sending side and
    /// lingers until the peer has closed. A socket that is closed with unread bytes is reset by the kernel, and
    /// the reset discards the last frames. `retry_after_ms`: how long the client should wait, in the goodbye; 0 says
    /// nothing. `until_ms`: how long sending may take.
    pub fn close_gracefully(
        &mut self,
        slot: u32,
        cause: Cause,
        retry_after_ms: u32,
        until_ms: Option<u64>,
        clock: &Clock,
    ) {
        self.append_latest(slot, usize::MAX);
        self.record_close(slot, cause);
        if let Some(code) = cause.goodbye() {
            self.count_failure(code);
            self.append(slot, |out| server::put_goodbye(out, code, retry_after_ms));
        }
        let connection = self.table.at_mut(slot);
        self.lifecycle.start_closing(slot, connection, until_ms, clock.now_ms());
        self.list_for_flush(slot);
    }

    /// Closes a connection at once.
    pub fn abort(&mut self, slot: u32, cause: Cause) {
        if !self.at(slot).is_closing() {
            self.record_close(slot, cause);
            self.lifecycle.abort(slot, self.table.at_mut(slot));
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
        self.inbound_bytes -= kept_bytes;
        self.counters.discarded_bytes += kept_bytes as u64;
        self.intake.count_freed(kept_bytes);
        connection.flags -=
            Flags::READ_PAUSED | Flags::PENDING_PUSHES | Flags::RESUMING | Flags::VERIFYING;
        self.lifecycle.end_session(conn, connection);
        self.counters.skipped_pushes_to_users += self.latest.remove(slot) as u64;
        self.verifications.remove(slot);
        self.session_tokens.remove(slot, connection.user_id);
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
        self.lifecycle.closed(slot);
        self.counters.unsent_bytes += self.output.discard(self.table.at_mut(slot)) as u64;
        self.table.remove(slot);
        true
    }

    /// Collects the deadlines that have expired: as many as one turn handles.
    pub fn collect_deadlines(&mut self, clock: &Clock) {
        self.lifecycle.collect_expired(clock.now_ms());
    }

    /// The next connection of those collected that is to be closed gracefully, and the cause.
    pub fn next_expired(&mut self, clock: &Clock) -> Option<(u32, Cause)> {
        while let Some(slot) = self.lifecycle.next_expired() {
            match self.lifecycle.on_expired(slot, self.table.at_mut(slot), clock) {
                DeadlineAction::Close(cause) => return Some((slot, cause)),
                DeadlineAction::Abort => self.list_for_flush(slot),
                DeadlineAction::Reschedule(_)
                | DeadlineAction::Leave(_)
                | DeadlineAction::Nothing => {}
            }
        }
        None
    }
}

/// When a token ends, in milliseconds on the shard's clock.
fn on_clock(end: TokenEnd, clock: &Clock) -> Option<u64> {
    match end {
        TokenEnd::Never => None,
        TokenEnd::At { unix_ms } => {
            Some(unix_ms.saturating_sub(clock.unix_ms()).saturating_add(clock.now_ms()))
        }
    }
}

#[cfg(test)]
mod tests;
