//! The lifecycle of a connection: its phases from accept to close, its session, and its one deadline.
//!
//! ```text
//! Opening -> Anonymous -> Registering -> Open -> Closing -> Lingering -> Vacant
//!    |           |             |          |         |           |
//!    +-----------+-------------+----------+---------+-----------+------> Aborted -> Vacant
//! ```
//!
//! This module changes phases and deadlines, and counts sessions. It writes nothing, and calls no driver.

use std::collections::VecDeque;

use tidegate_backend::UserId;

use super::ages::Ages;
use super::connection::{Connection, Flags, Phase};
use super::deadlines::{DeadlineAction, Deadlines};
use super::token_ends::TokenEnds;
use crate::auth::{AuthError, TokenEnd};
use crate::config::Config;
use crate::driver::ConnId;
use crate::shard::clock::{Clock, millis};

/// How long a connection lingers after its last frame, in milliseconds: a few round trips of a bad
/// mobile network.
const LINGER_MS: u64 = 2_000;

/// A connection's session has ended: its user and its rooms must be informed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedSession {
    /// The connection.
    pub conn: ConnId,
    /// The user of the session.
    pub user_id: UserId,
}

/// What a failed authentication means for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterAuthFailure {
    /// The connection stays open.
    KeepOpen,
    /// It was the last attempt that it had: close it.
    Close,
}

/// What a successful authentication means for the connection that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// The user's home has to register it. Nothing is read until it did.
    Register,
    /// It has a session already, of the same user: answer with the session.
    Renewed,
}

/// What a connection needs when nothing is left to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing: it stays open.
    Keep,
    /// Its sending side is to be shut down. It lingers until the peer closes.
    Shutdown,
    /// It is to be closed.
    Close,
    /// It has the answers to all that it sent, and its peer sends no more: its close is to be recorded, then it
    /// is closed.
    Finish,
}

/// The phases and deadlines of a shard's connections.
#[derive(Debug)]
pub struct Lifecycle {
    auth_failures_max: u8,
    auth_timeout_ms: u64,
    deadlines: Deadlines,
    /// Connections in the phase `Open`.
    session_count: usize,
    ended: VecDeque<EndedSession>,
}

impl Lifecycle {
    /// No connection yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            auth_failures_max: config.auth.failures_max,
            auth_timeout_ms: millis(config.auth.timeout),
            deadlines: Deadlines::new(
                millis(config.session.idle_timeout),
                TokenEnds::new(config),
                Ages::new(config),
            ),
            session_count: 0,
            ended: VecDeque::new(),
        }
    }

    /// Uses another configuration from now on: deadlines that are set stay, and so do the ages of connections.
    pub fn reconfigure(&mut self, config: &Config) {
        self.auth_failures_max = config.auth.failures_max;
        self.auth_timeout_ms = millis(config.auth.timeout);
        self.deadlines.reconfigure(config);
    }

    /// Connections with a session.
    #[must_use]
    pub const fn session_count(&self) -> usize {
        self.session_count
    }

    /// Whether more deadlines have expired than one turn handles.
    #[must_use]
    pub const fn has_expired_left(&self) -> bool {
        self.deadlines.has_more()
    }

    /// Milliseconds until a deadline may expire.
    #[must_use]
    pub fn next_deadline_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.deadlines.next_in_ms(now_ms)
    }

    /// The next session that has ended.
    #[inline]
    pub fn next_ended_session(&mut self) -> Option<EndedSession> {
        self.ended.pop_front()
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.ended.shrink_to_fit();
    }

    /// A connection came in. Its wire has a deadline of its own, if it is not open yet.
    pub fn accepted(&mut self, slot: u32, connection: &mut Connection, is_open: bool, now_ms: u64) {
        connection.phase = Phase::Opening;
        let conn = ConnId { slot, generation: connection.generation };
        self.deadlines.set_age(conn, now_ms);
        if is_open {
            self.opened(slot, connection, now_ms);
        }
    }

    /// The wire of a connection is open: the connection has to authenticate in time.
    pub fn opened(&mut self, slot: u32, connection: &mut Connection, now_ms: u64) {
        connection.phase = Phase::Anonymous;
        self.deadlines.set(slot, now_ms + self.auth_timeout_ms);
    }

    /// A connection has shown a token that verifies.
    ///
    /// # Errors
    /// [`AuthError::WrongUser`]: it has a session of another user, which it may not change.
    pub fn login(connection: &mut Connection, user_id: UserId) -> Result<Login, AuthError> {
        if connection.phase != Phase::Open {
            connection.user_id = user_id;
            connection.phase = Phase::Registering;
            Ok(Login::Register)
        } else if connection.user_id == user_id {
            Ok(Login::Renewed)
        } else {
            Err(AuthError::WrongUser)
        }
    }

    /// The token of a connection that has just logged in, or has shown a fresh one, ends then.
    pub fn set_token_end(
        &mut self,
        slot: u32,
        connection: &Connection,
        end: TokenEnd,
        clock: &Clock,
    ) {
        self.deadlines.set_token_end(slot, end, connection.phase, clock);
    }

    /// Milliseconds until the token of a session ends; 0: its end does not end the session.
    #[must_use]
    pub fn token_expires_in_ms(&self, slot: u32, now_ms: u64) -> u64 {
        self.deadlines.token_expires_in_ms(slot, now_ms)
    }

    /// The user's home has registered a connection.
    pub fn open_session(&mut self, slot: u32, connection: &mut Connection, now_ms: u64) {
        connection.phase = Phase::Open;
        self.session_count += 1;
        self.deadlines.set_idle(slot, now_ms);
    }

    /// An authentication failed, or a request came without one.
    pub const fn count_auth_failure(&self, connection: &mut Connection) -> AfterAuthFailure {
        connection.auth_failures = connection.auth_failures.saturating_add(1);
        if connection.auth_failures >= self.auth_failures_max {
            AfterAuthFailure::Close
        } else {
            AfterAuthFailure::KeepOpen
        }
    }

    /// The peer has shut down its sending side. A lingering connection waited for that.
    pub fn peer_ended(connection: &mut Connection) {
        connection.flags |= Flags::PEER_ENDED;
        if connection.phase == Phase::Lingering {
            connection.phase = Phase::Aborted;
        }
    }

    /// Ends the session of a connection that is about to close, if it has one or waits for one.
    pub fn end_session(&mut self, conn: ConnId, connection: &Connection) {
        if matches!(connection.phase, Phase::Open | Phase::Registering) {
            self.session_count -= usize::from(connection.phase == Phase::Open);
            self.ended.push_back(EndedSession { conn, user_id: connection.user_id });
        }
    }

    /// Its last frames may be sent until `until_ms`, or for as long as it may linger.
    pub fn start_closing(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        until_ms: Option<u64>,
        now_ms: u64,
    ) {
        connection.phase = Phase::Closing;
        self.deadlines.set(slot, until_ms.unwrap_or(now_ms + LINGER_MS));
    }

    /// A connection that is closing has had enough time for its last frames: it is closed at once.
    pub fn hurry_close(&mut self, slot: u32, connection: &Connection, now_ms: u64) {
        if connection.phase == Phase::Closing {
            self.deadlines.set(slot, now_ms);
        }
    }

    /// Whether a connection is too old.
    #[must_use]
    pub fn is_aged(&self, slot: u32, now_ms: u64) -> bool {
        self.deadlines.is_aged(slot, now_ms)
    }

    /// A connection is to be closed at once.
    pub fn abort(&mut self, slot: u32, connection: &mut Connection) {
        connection.phase = Phase::Aborted;
        self.deadlines.clear(slot);
    }

    /// The driver has closed a connection.
    pub fn closed(&mut self, slot: u32) {
        self.deadlines.clear(slot);
    }

    /// Nothing is left to send on a connection. A connection that only waited for that enters its next phase.
    pub fn after_flush(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        now_ms: u64,
    ) -> AfterFlush {
        match connection.phase {
            Phase::Aborted => AfterFlush::Close,
            Phase::Closing if connection.has(Flags::PEER_ENDED) => {
                connection.phase = Phase::Aborted;
                AfterFlush::Close
            }
            Phase::Closing => {
                connection.phase = Phase::Lingering;
                self.deadlines.set(slot, now_ms + LINGER_MS);
                AfterFlush::Shutdown
            }
            _ if connection.has_finished() => AfterFlush::Finish,
            _ => AfterFlush::Keep,
        }
    }

    /// Collects the deadlines that have expired: as many as one turn handles.
    pub fn collect_expired(&mut self, now_ms: u64) {
        self.deadlines.collect(now_ms);
    }

    /// The next slot of those collected.
    pub fn next_expired(&mut self) -> Option<u32> {
        self.deadlines.next_expired()
    }

    /// What the expired deadline of a connection means. One that came too early is set again.
    pub fn on_expired(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        clock: &Clock,
    ) -> DeadlineAction {
        let action = self.deadlines.check(slot, connection, clock);
        match action {
            DeadlineAction::Reschedule(at_ms) => self.deadlines.set(slot, at_ms),
            DeadlineAction::Leave(at_ms) => {
                connection.flags |= Flags::LEAVING;
                self.deadlines.set(slot, at_ms);
            }
            DeadlineAction::Abort => connection.phase = Phase::Aborted,
            DeadlineAction::Close(_) | DeadlineAction::Nothing => {}
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnId = ConnId { slot: 3, generation: 1 };

    fn lifecycle() -> Lifecycle {
        let mut config = Config::embedded_default();
        config.auth.failures_max = 2;
        Lifecycle::new(&config)
    }

    #[test]
    fn a_session_counts_until_it_ends_and_its_end_is_reported_once() {
        let (mut lifecycle, mut connection) = (lifecycle(), Connection::accepted(1, 0));
        lifecycle.accepted(CONN.slot, &mut connection, true, 0);
        assert_eq!(Lifecycle::login(&mut connection, 7), Ok(Login::Register));
        assert_eq!(lifecycle.session_count(), 0, "the user's home has not registered it yet");
        lifecycle.open_session(CONN.slot, &mut connection, 0);
        assert_eq!(lifecycle.session_count(), 1);
        assert_eq!(Lifecycle::login(&mut connection, 7), Ok(Login::Renewed));
        assert_eq!(Lifecycle::login(&mut connection, 8), Err(AuthError::WrongUser));
        lifecycle.end_session(CONN, &connection);
        lifecycle.abort(CONN.slot, &mut connection);
        lifecycle.end_session(CONN, &connection);
        assert_eq!(lifecycle.session_count(), 0);
        let ended = EndedSession { conn: CONN, user_id: 7 };
        assert_eq!(lifecycle.next_ended_session(), Some(ended));
        assert_eq!(lifecycle.next_ended_session(), None);
        assert_eq!(lifecycle.next_deadline_in_ms(0), None);
    }

    #[test]
    fn the_time_to_authenticate_begins_when_the_wire_is_open() {
        let mut lifecycle = Lifecycle::new(&Config::embedded_default());
        let mut connection = Connection::accepted(1, 0);
        lifecycle.accepted(CONN.slot, &mut connection, false, 0);
        assert_eq!((connection.phase, lifecycle.next_deadline_in_ms(0)), (Phase::Opening, None));
        lifecycle.opened(CONN.slot, &mut connection, 9_500);
        assert_eq!(connection.phase, Phase::Anonymous);
        lifecycle.collect_expired(15_000);
        assert_eq!(lifecycle.next_expired(), None, "10 s from when it was opened");
        lifecycle.collect_expired(20_000);
        assert_eq!(lifecycle.next_expired(), Some(CONN.slot));
    }

    #[test]
    fn the_last_allowed_failure_closes_the_connection() {
        let (lifecycle, mut connection) = (lifecycle(), Connection::accepted(1, 0));
        assert_eq!(lifecycle.count_auth_failure(&mut connection), AfterAuthFailure::KeepOpen);
        assert_eq!(lifecycle.count_auth_failure(&mut connection), AfterAuthFailure::Close);
    }

    #[test]
    fn a_closing_connection_lingers_after_its_last_frame_unless_its_peer_has_ended() {
        let (mut lifecycle, mut connection) = (lifecycle(), Connection::accepted(1, 0));
        let slot = CONN.slot;
        assert_eq!(lifecycle.after_flush(slot, &mut connection, 0), AfterFlush::Keep);
        lifecycle.start_closing(slot, &mut connection, None, 0);
        assert_eq!(lifecycle.after_flush(slot, &mut connection, 0), AfterFlush::Shutdown);
        assert_eq!(connection.phase, Phase::Lingering);
        Lifecycle::peer_ended(&mut connection);
        assert_eq!(lifecycle.after_flush(slot, &mut connection, 0), AfterFlush::Close);

        let mut connection = Connection::accepted(1, 0);
        Lifecycle::peer_ended(&mut connection);
        assert_eq!(lifecycle.after_flush(slot, &mut connection, 0), AfterFlush::Finish);
        lifecycle.start_closing(slot, &mut connection, None, 0);
        assert_eq!(lifecycle.after_flush(slot, &mut connection, 0), AfterFlush::Close);
        assert_eq!(connection.phase, Phase::Aborted);
    }
}
