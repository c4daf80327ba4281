//! One user's session: the requests without an answer, and what each event means.
//!
//! Like the protocol's client it has no socket and no clock: the loop passes commands, bytes and the time in, and takes
//! bytes and notices out. It outlives a connection, since it remembers the rooms.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tidegate_protocol::client::{Client, ClientError, Event, Failure};
use tidegate_protocol::limits::RESUME_BYTES_MAX;
use tidegate_protocol::memberships::{Delivery, Memberships};
use tidegate_protocol::message::EVERYBODY;
use tidegate_protocol::proto::v1;

use super::command::{Command, Sends};
use super::notice::{Notice, Reason};

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
    /// The rooms, across connections.
    memberships: Memberships,
    /// Why the gateway ended the present session or the last one, or refused the login. `None`: it did not say.
    ending: Option<Ending>,
    notices: Vec<Notice>,
    failures: u64,
}

/// Why the gateway ended a session, or refused a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// When it said so.
    pub(super) at: Instant,
    /// What it said.
    pub(super) failure: Failure,
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
            memberships: Memberships::default(),
            ending: None,
            notices: Vec::new(),
            failures: 0,
        }
    }

    /// A connection is open: logs in, and resumes the rooms.
    pub(super) fn opened(&mut self, now: Instant) {
        self.ending = None;
        let mut client = Client::new(now);
        let resume = self.memberships.resume(RESUME_BYTES_MAX);
        let sequence = client.resume(now, self.user_id, &self.token, &resume);
        self.pending.insert(sequence, Pending { kind: PendingKind::Login, at: now });
        self.state = State::LoggingIn(client);
    }

    /// The connection has ended: all pending requests fail.
    pub(super) fn closed(&mut self) {
        self.state = State::Closed;
        self.memberships.disconnected();
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

    /// Whether the gateway has ended the session and not yet closed the connection.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving(_))
    }

    /// Why the gateway ended the present session or the last one, or refused the login.
    pub(super) const fn ending(&self) -> Option<Ending> {
        self.ending
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
    pub(super) fn send(&mut self, now: Instant, command: Command) {
        let State::LoggedIn(client) = &mut self.state else {
            self.failures += 1;
            self.notices
                .push(Notice::Failed { what: command.to_string(), reason: Reason::NotLoggedIn });
            return;
        };
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
                self.logged_in(session);
            }
            Event::Pong { sequence, server_time_ms } => {
                // The client's automatic heartbeats are not pending, and their answers are not shown.
                if let Some(pending) = self.pending.remove(&sequence) {
                    let took = now.saturating_duration_since(pending.at);
                    self.notices.push(Notice::Pong { took, server_time_ms });
                }
            }
            Event::Answer { kind, sequence, biz_data } => match self.pending.remove(&sequence) {
                Some(Pending { kind: PendingKind::Command(command), .. }) => {
                    self.notices.push(Notice::Done { command, biz_data });
                }
                _ => self.notices.push(Notice::Stray { kind, sequence, biz_data }),
            },
            Event::Failed { kind, sequence, failure } => match self.pending.remove(&sequence) {
                Some(pending) => {
                    if matches!(pending.kind, PendingKind::Login) {
                        self.ending = Some(Ending { at: now, failure });
                    }
                    self.fail(pending, Reason::Refused(failure));
                }
                None => {
                    self.failures += 1;
                    let what = format!("type {kind}, request {sequence}");
                    self.notices.push(Notice::Failed { what, reason: Reason::Refused(failure) });
                }
            },
            Event::Push { kind, room, offset, biz_data } => {
                self.pushed(kind, room, offset, biz_data);
            }
            Event::Joined(room) => {
                let change = self.memberships.joined(&room);
                self.joined(room);
                self.notices.extend(change.map(Notice::Changed));
            }
            Event::Left { room } => {
                self.memberships.left(&room);
                self.notices.push(Notice::Left { room });
            }
            Event::Goodbye(failure) => {
                self.ending = Some(Ending { at: now, failure });
                self.begin_leaving();
                self.notices.push(Notice::Goodbye(failure));
            }
        }
    }

    fn logged_in(&mut self, session: v1::Session) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::LoggingIn(client) => State::LoggedIn(client),
            other => other,
        };
        let changes = self.memberships.opened(&session);
        let rooms = session.rooms.clone();
        self.notices.push(Notice::LoggedIn { user_id: self.user_id, session });
        rooms.into_iter().for_each(|room| self.joined(room));
        self.notices.extend(changes.into_iter().map(Notice::Changed));
    }

    /// Reports a membership. Everybody is in everybody's room, and a refusal is reported as a change.
    fn joined(&mut self, room: v1::Room) {
        if room.name != EVERYBODY && room.recovery() != v1::Recovery::Refused {
            self.notices.push(Notice::Joined(room));
        }
    }

    /// A session that is still logging in keeps its state: the login fails when the connection closes.
    fn begin_leaving(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::LoggedIn(client) => State::Leaving(client),
            other => other,
        };
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

    fn pushed(&mut self, kind: i32, number: u32, offset: u64, biz_data: Bytes) {
        let room = match self.memberships.pushed(number, offset) {
            Delivery::ToUser | Delivery::UnknownRoom => None,
            Delivery::New { room } => Some(room.to_owned()),
            Delivery::AfterGap { room, missing: offsets } => {
                let room = room.to_owned();
                self.notices.push(Notice::Missing { room: room.clone(), offsets });
                Some(room)
            }
            Delivery::Repeat { .. } => return,
        };
        self.notices.push(Notice::Push { kind, room, offset, biz_data });
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tidegate_protocol::memberships::Change;
    use tidegate_protocol::proto::demo::RoomMessage;
    use tidegate_protocol::server::{self, Incoming};
    use tidegate_protocol::{Code, Reassembler};

    use super::*;
    use crate::client::command::{ECHO, SAY};

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

    /// The positions that the session's login names: rooms and offsets.
    fn positions(session: &mut Session) -> Vec<(String, u64)> {
        let bytes = session.take_outgoing();
        let mut reassembler = Reassembler::new();
        let mut frames = reassembler.frames(&bytes, 1000);
        let payload = frames.next().unwrap().unwrap();
        let Incoming::Authenticate { resume, .. } = Incoming::decode(payload).unwrap() else {
            panic!("a login comes first");
        };
        resume.iter().map(|position| (position.room.to_owned(), position.offset)).collect()
    }

    /// The gateway opens the session `session_id` with these rooms.
    fn log_in(session: &mut Session, now: Instant, session_id: u64, rooms: Vec<v1::Room>) {
        let sequence = *session.pending.first_key_value().unwrap().0;
        let mut bytes = Vec::new();
        let opened = v1::Session { session_id, rooms, ..v1::Session::default() };
        server::put_session(&mut bytes, sequence, &opened);
        session.take_outgoing();
        session.receive(now, &bytes).unwrap();
        assert!(session.is_logged_in());
    }

    fn quiz(number: u32, head: u64, recovery: v1::Recovery) -> v1::Room {
        let (name, recovery) = ("quiz".into(), recovery.into());
        let ticket = Bytes::from_static(b"proof");
        v1::Room { name, number, log: 5, head, recovery, ticket }
    }

    fn logged_in(now: Instant) -> Session {
        let mut session = Session::new(7, "token-7".into(), TIMEOUT);
        session.opened(now);
        log_in(&mut session, now, 1, Vec::new());
        session.take_notices();
        session
    }

    /// A push of the demo's, in the room with this number.
    fn said(number: u32, offset: u64) -> Vec<u8> {
        let message = RoomMessage { room: "quiz".into(), from_user_id: 9, text: "hi".into() };
        let mut bytes = Vec::new();
        server::put_push(&mut bytes, SAY, &message.encode_to_vec(), offset, number);
        bytes
    }

    /// The session has joined the room, and has had the push 33.
    fn in_quiz(now: Instant) -> Session {
        let mut session = logged_in(now);
        let room = quiz(1, 32, v1::Recovery::NotAsked);
        let mut bytes = Vec::new();
        let what = Some(v1::notice::What::Joined(room.clone()));
        server::put_notice(&mut bytes, &v1::Notice { what });
        bytes.extend(said(1, 33));
        session.receive(now, &bytes).unwrap();
        let notices = session.take_notices();
        assert_eq!(notices[0], Notice::Joined(room));
        let is_of_quiz = |notice: &Notice| matches!(notice, Notice::Push { room: Some(room), .. } if room == "quiz");
        assert!(is_of_quiz(&notices[1]), "{notices:?}");
        session
    }

    #[test]
    fn the_next_connection_resumes_the_rooms_after_the_last_push() {
        let now = Instant::now();
        let mut session = in_quiz(now);
        session.closed();
        session.opened(now);
        assert_eq!(positions(&mut session), [("quiz".to_owned(), 33)]);
        let room = quiz(2, 35, v1::Recovery::Complete);
        log_in(&mut session, now, 2, vec![room.clone()]);
        assert_eq!(session.take_notices()[1..], [Notice::Joined(room)]);
        assert!(written(&mut session).is_empty(), "no backend is asked");
        session.receive(now, &said(2, 33)).unwrap();
        assert_eq!(session.take_notices(), [], "a repetition is not shown");
        session.receive(now, &said(2, 36)).unwrap();
        let missing = Notice::Missing { room: "quiz".into(), offsets: 34..=35 };
        assert_eq!(session.take_notices()[0], missing);
    }

    #[test]
    fn a_gap_and_a_room_that_is_not_resumed_are_reported_with_the_login() {
        let now = Instant::now();
        let mut session = in_quiz(now);
        session.closed();
        session.opened(now);
        let everybody = v1::Room { name: EVERYBODY.into(), number: 1, ..v1::Room::default() };
        let room = quiz(2, 40, v1::Recovery::Gap);
        log_in(&mut session, now, 2, vec![everybody, room.clone()]);
        let gap = Change::Gap { room: "quiz".into() };
        assert_eq!(session.take_notices()[1..], [Notice::Joined(room), Notice::Changed(gap)]);
        session.closed();
        session.opened(now);
        let wanted = [("quiz".to_owned(), 40), (EVERYBODY.to_owned(), 0)];
        assert_eq!(positions(&mut session), wanted);
        // As a gateway of version 1.0 does: it names no room.
        log_in(&mut session, now, 3, Vec::new());
        let refused = |room: &str| Notice::Changed(Change::Refused { room: room.into() });
        assert_eq!(session.take_notices()[1..], [refused("quiz"), refused(EVERYBODY)]);
        session.receive(now, &said(0, 50)).unwrap();
        assert!(matches!(session.take_notices()[..], [Notice::Push { room: None, .. }]));
    }

    #[test]
    fn a_room_that_the_session_has_left_is_not_resumed() {
        let now = Instant::now();
        let mut session = in_quiz(now);
        let mut bytes = Vec::new();
        let what = Some(v1::notice::What::Left("quiz".into()));
        server::put_notice(&mut bytes, &v1::Notice { what });
        session.receive(now, &bytes).unwrap();
        assert_eq!(session.take_notices(), [Notice::Left { room: "quiz".into() }]);
        session.closed();
        session.opened(now);
        assert_eq!(positions(&mut session), []);
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

        session.opened(now);
        log_in(&mut session, now, 1, Vec::new());
        session.take_notices();
        session.send(now, Command::Ping);
        session.closed();
        let failed = Notice::Failed { what: "ping".into(), reason: Reason::Closed };
        assert_eq!(session.take_notices(), [failed]);
        assert_eq!(session.failures(), 3);
    }
}
