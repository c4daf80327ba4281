//! One user's session: the requests without an answer, and what each event means.
//!
//! Like the protocol's client it has no socket and no clock: the loop passes commands, bytes and the time in, and takes
//! bytes and notices out. It outlives a connection, since it remembers the rooms.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tidegate_protocol::client::{Client, ClientError, Event};
use tidegate_protocol::proto::v1;

use super::command::{Command, Sends};
use super::notice::{Notice, Reason};
use super::rooms::Rooms;
use super::view::{self, Pushed};

/// One user's session.
#[derive(Debug)]
pub(super) struct Session {
    user_id: u64,
    token: String,
    /// How long an answer may take.
    timeout: Duration,
    state: State,
    /// By sequence. Sequences grow, so the first entry is the oldest request.
    pending: BTreeMap<u64, Pending>,
    rooms: Rooms,
    notices: Vec<Notice>,
    failures: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    LoggingIn(Client),
    LoggedIn(Client),
    /// The gateway said goodbye: it may still answer what was sent before, and accepts nothing more.
    Leaving(Client),
}

#[derive(Debug)]
struct Pending {
    kind: PendingKind,
    at: Instant,
}

#[derive(Debug)]
enum PendingKind {
    Login,
    Command(Command),
}

impl Session {
    /// A session without a connection.
    pub(super) fn new(user_id: u64, token: String, timeout: Duration) -> Self {
        Self {
            user_id,
            token,
            timeout,
            state: State::Closed,
            pending: BTreeMap::new(),
            rooms: Rooms::default(),
            notices: Vec::new(),
            failures: 0,
        }
    }

    /// A connection is open: logs in.
    pub(super) fn opened(&mut self, now: Instant) {
        let mut client = Client::new(now);
        let sequence = client.authenticate(now, self.user_id, &self.token);
        self.pending.insert(sequence, Pending { kind: PendingKind::Login, at: now });
        self.state = State::LoggingIn(client);
    }

    /// The connection has ended: all pending requests fail.
    pub(super) fn closed(&mut self) {
        self.state = State::Closed;
        for pending in std::mem::take(&mut self.pending).into_values() {
            self.fail(pending, Reason::Closed);
        }
    }

    /// Whether there is a session that accepts requests.
    pub(super) fn is_logged_in(&self) -> bool {
        matches!(self.state, State::LoggedIn(_))
    }

    /// Whether the login has no answer yet.
    pub(super) fn is_logging_in(&self) -> bool {
        matches!(self.state, State::LoggingIn(_))
    }

    /// Whether no request is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many commands and logins failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Counts a failure from outside of the session.
    pub(super) fn count_failure(&mut self) {
        self.failures += 1;
    }

    /// Takes the notices, oldest first.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Takes the bytes to write to the socket.
    pub(super) fn take_outgoing(&mut self) -> BytesMut {
        self.client().map_or_else(BytesMut::new, |client| client.outgoing().split())
    }

    /// Sends a command. One that sends nothing is ignored.
    pub(super) fn send(&mut self, now: Instant, mut command: Command) {
        let State::LoggedIn(client) = &mut self.state else {
            self.failures += 1;
            self.notices
                .push(Notice::Failed { what: command.to_string(), reason: Reason::NotLoggedIn });
            return;
        };
        if let Command::Join { room, last_offset } = &mut command {
            *last_offset = Some(self.rooms.resume_offset(room, *last_offset));
        }
        let sequence = match command.message() {
            None => return,
            Some(Sends::Heartbeat) => client.heartbeat(now),
            Some(Sends::Request(kind, biz_data)) => client.request(now, kind, &biz_data),
        };
        self.pending.insert(sequence, Pending { kind: PendingKind::Command(command), at: now });
    }

    /// Handles bytes from the socket.
    ///
    /// # Errors
    /// [`ClientError`]: the rest of the stream can't be read; close the connection.
    pub(super) fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), ClientError> {
        let Some(client) = self.client() else { return Ok(()) };
        let mut events = Vec::new();
        let received = client.receive(bytes, |event| events.push(event));
        for event in events {
            self.take_event(now, event);
        }
        received
    }

    /// When to call [`Self::handle_timeout`]; `None` while there is no connection.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let client = match &self.state {
            State::Closed => return None,
            State::LoggingIn(client) | State::LoggedIn(client) | State::Leaving(client) => client,
        };
        let oldest = self.pending.values().map(|pending| pending.at + self.timeout).next();
        Some(oldest.map_or(client.poll_timeout(), |at| at.min(client.poll_timeout())))
    }

    /// Sends a heartbeat if one is due, and fails requests that have timed out.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(client) = self.client() {
            client.handle_timeout(now);
        }
        while let Some(oldest) = self.pending.first_entry()
            && now >= oldest.get().at + self.timeout
        {
            let pending = oldest.remove();
            self.fail(pending, Reason::NoAnswer(self.timeout));
        }
    }

    fn client(&mut self) -> Option<&mut Client> {
        match &mut self.state {
            State::Closed => None,
            State::LoggingIn(client) | State::LoggedIn(client) | State::Leaving(client) => {
                Some(client)
            }
        }
    }

    fn take_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Authenticated { sequence, session } => {
                self.pending.remove(&sequence);
                self.logged_in(now, session);
            }
            Event::Pong { sequence, server_time_ms } => {
                // Heartbeats that the client sends by itself are not pending, and their answers are not shown.
                if let Some(pending) = self.pending.remove(&sequence) {
                    let took = now.saturating_duration_since(pending.at);
                    self.notices.push(Notice::Pong { took, server_time_ms });
                }
            }
            Event::Answer { kind, sequence, biz_data } => match self.pending.remove(&sequence) {
                Some(Pending { kind: PendingKind::Command(command), .. }) => {
                    self.done(command, biz_data);
                }
                _ => self.notices.push(Notice::Stray { kind, sequence, biz_data }),
            },
            Event::Failed { kind, sequence, failure } => match self.pending.remove(&sequence) {
                Some(pending) => self.fail(pending, Reason::Refused(failure)),
                None => {
                    self.failures += 1;
                    let what = format!("type {kind}, request {sequence}");
                    self.notices.push(Notice::Failed { what, reason: Reason::Refused(failure) });
                }
            },
            Event::Push { kind, offset, biz_data, .. } => self.pushed(kind, offset, biz_data),
            Event::Joined(_) | Event::Left { .. } => {}
            Event::Goodbye(failure) => {
                self.begin_leaving();
                self.notices.push(Notice::Goodbye(failure));
            }
        }
    }

    fn logged_in(&mut self, now: Instant, session: v1::Session) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::LoggingIn(client) => State::LoggedIn(client),
            other => other,
        };
        self.notices.push(Notice::LoggedIn { user_id: self.user_id, session });
        for room in self.rooms.joined_rooms() {
            self.send(now, Command::Join { room, last_offset: None });
        }
    }

    /// A session that is still logging in keeps its state: the login fails when the connection closes.
    fn begin_leaving(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::LoggedIn(client) => State::Leaving(client),
            other => other,
        };
    }

    fn done(&mut self, command: Command, biz_data: Bytes) {
        match &command {
            Command::Join { room, .. } => self.rooms.joined(room),
            Command::Leave { room } => self.rooms.left(room),
            _ => {}
        }
        self.notices.push(Notice::Done { command, biz_data });
    }

    fn fail(&mut self, pending: Pending, reason: Reason) {
        self.failures += 1;
        self.notices.push(match pending.kind {
            PendingKind::Login => {
                self.state = State::Closed;
                Notice::LoginFailed { user_id: self.user_id, reason }
            }
            PendingKind::Command(command) => Notice::Failed { what: command.to_string(), reason },
        });
    }

    fn pushed(&mut self, kind: i32, offset: u64, biz_data: Bytes) {
        match view::read_push(kind, &biz_data) {
            Pushed::InRoom(message) => {
                let gap = self.rooms.pushed(&message.room, offset);
                self.notices.extend(gap.map(Notice::Gap));
            }
            _ if offset > 0 => self.rooms.push_without_room(offset),
            _ => {}
        }
        self.notices.push(Notice::Push { kind, offset, biz_data });
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tidegate_protocol::proto::demo::{JoinRoom, RoomMessage};
    use tidegate_protocol::server::{self, Incoming};
    use tidegate_protocol::{Code, Reassembler};

    use super::*;
    use crate::client::command::{ECHO, JOIN, SAY};
    use crate::client::rooms::Gap;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// The business requests that the session wrote: sequence, type and `biz_data`.
    fn written(session: &mut Session) -> Vec<(u64, i32, Vec<u8>)> {
        let bytes = session.take_outgoing();
        let mut reassembler = Reassembler::new();
        let mut frames = reassembler.frames(&bytes, 1000);
        let mut written = Vec::new();
        while let Some(payload) = frames.next().unwrap() {
            if let Incoming::Business { kind, biz_data, sequence } =
                Incoming::decode(payload).unwrap()
            {
                written.push((sequence, kind, biz_data.to_vec()));
            }
        }
        written
    }

    fn log_in(session: &mut Session, now: Instant) {
        session.opened(now);
        let sequence = *session.pending.first_key_value().unwrap().0;
        let mut bytes = Vec::new();
        let opened = v1::Session { session_id: 1, ..v1::Session::default() };
        server::put_session(&mut bytes, sequence, &opened);
        session.take_outgoing();
        session.receive(now, &bytes).unwrap();
        assert!(session.is_logged_in());
    }

    fn logged_in(now: Instant) -> Session {
        let mut session = Session::new(7, "token-7".into(), TIMEOUT);
        log_in(&mut session, now);
        session.take_notices();
        session
    }

    fn said(room: &str, offset: u64) -> Vec<u8> {
        let message = RoomMessage { room: room.into(), from_user_id: 9, text: "hi".into() };
        let mut bytes = Vec::new();
        server::put_push(&mut bytes, SAY, &message.encode_to_vec(), offset, 0);
        bytes
    }

    #[test]
    fn a_room_is_joined_again_after_the_last_offset() {
        let now = Instant::now();
        let mut session = logged_in(now);
        session.send(now, Command::Join { room: "quiz".into(), last_offset: None });
        let (sequence, kind, _) = written(&mut session).remove(0);
        assert_eq!(kind, JOIN);
        let mut bytes = Vec::new();
        server::put_answer(&mut bytes, JOIN, sequence, b"");
        bytes.extend(said("quiz", 33));
        session.receive(now, &bytes).unwrap();

        session.closed();
        log_in(&mut session, now);
        let (_, _, biz_data) = written(&mut session).remove(0);
        let wanted = JoinRoom { room: "quiz".into(), last_offset: 33 };
        assert_eq!(JoinRoom::decode(&biz_data[..]).unwrap(), wanted);

        session.take_notices();
        session.receive(now, &said("quiz", 36)).unwrap();
        let gap = Gap { room: "quiz".into(), last_offset: 33, offset: 36, missing_max: 2 };
        assert_eq!(session.take_notices()[0], Notice::Gap(gap));
    }

    #[test]
    fn a_request_without_an_answer_times_out() {
        let now = Instant::now();
        let mut session = logged_in(now);
        session.send(now, Command::Echo("a".into()));
        assert_eq!(session.poll_timeout(), Some(now + TIMEOUT));
        session.handle_timeout(now + TIMEOUT);
        assert!(session.is_idle());
        assert_eq!(session.failures(), 1);
        let reason = Reason::NoAnswer(TIMEOUT);
        assert_eq!(session.take_notices(), [Notice::Failed { what: "echo".into(), reason }]);

        let mut late = Vec::new();
        server::put_answer(&mut late, ECHO, 2, b"a");
        session.receive(now, &late).unwrap();
        let biz_data = Bytes::from_static(b"a");
        let stray = Notice::Stray { kind: ECHO, sequence: 2, biz_data };
        assert_eq!(session.take_notices(), [stray]);
    }

    #[test]
    fn only_a_ping_that_was_typed_is_shown() {
        let now = Instant::now();
        let mut session = logged_in(now);
        let mut bytes = Vec::new();
        server::put_pong(&mut bytes, 99, 5);
        session.receive(now, &bytes).unwrap();
        assert_eq!(session.take_notices(), []);

        session.send(now, Command::Ping);
        let sequence = *session.pending.first_key_value().unwrap().0;
        bytes.clear();
        server::put_pong(&mut bytes, sequence, 5);
        let took = Duration::from_millis(3);
        session.receive(now + took, &bytes).unwrap();
        assert_eq!(session.take_notices(), [Notice::Pong { took, server_time_ms: 5 }]);
    }

    #[test]
    fn after_a_goodbye_pending_requests_are_answered_and_new_ones_fail() {
        let now = Instant::now();
        let mut session = logged_in(now);
        session.send(now, Command::Echo("a".into()));
        let (sequence, ..) = written(&mut session).remove(0);
        let mut bytes = Vec::new();
        server::put_goodbye(&mut bytes, Code::Draining, 0);
        session.receive(now, &bytes).unwrap();
        session.send(now, Command::Ping);
        bytes.clear();
        server::put_answer(&mut bytes, ECHO, sequence, b"a");
        session.receive(now, &bytes).unwrap();
        let notices = session.take_notices();
        assert!(matches!(notices[0], Notice::Goodbye(_)));
        assert_eq!(notices[1], Notice::Failed { what: "ping".into(), reason: Reason::NotLoggedIn });
        assert!(matches!(notices[2], Notice::Done { .. }));
        assert!(session.is_idle());
    }

    #[test]
    fn a_failed_login_and_a_closed_connection_fail_pending_requests() {
        let now = Instant::now();
        let mut session = Session::new(7, "wrong".into(), TIMEOUT);
        session.opened(now);
        let mut bytes = Vec::new();
        server::put_failure(&mut bytes, 0, 1, Code::Unauthenticated, 0);
        session.receive(now, &bytes).unwrap();
        assert!(!session.is_logged_in() && !session.is_logging_in());
        session.send(now, Command::Ping);
        let notices = session.take_notices();
        assert!(matches!(
            notices[0],
            Notice::LoginFailed { user_id: 7, reason: Reason::Refused(_) }
        ));
        assert_eq!(notices[1], Notice::Failed { what: "ping".into(), reason: Reason::NotLoggedIn });

        log_in(&mut session, now);
        session.take_notices();
        session.send(now, Command::Ping);
        session.closed();
        let failed = Notice::Failed { what: "ping".into(), reason: Reason::Closed };
        assert_eq!(session.take_notices(), [failed]);
        assert_eq!(session.failures(), 3);
    }
}
