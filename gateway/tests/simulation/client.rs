//! A model of a client: what it sends, and checks of everything that it may rely on.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use tidegate_backend::Code;
use tidegate_protocol::client::{Client as Wire, Event};
use tidegate_protocol::proto::v1;
use tidegate_testing::Peer;
use tidegate_testing::wire::WireClient;

use crate::backend::{
    INLINE, Membership, PUSH, QUEUED, ROUTE_TYPES, Record, Target, UNROUTED, answer_data, read_push,
};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    End,
    Reset,
}

/// What the configuration allows rooms to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Rooms close during the run, and open again with a new log.
    pub(crate) rooms_end: bool,
}

/// A position that a session may have in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    /// The number of the next push; `None`: not a member.
    next: Option<u64>,
    /// It resumed and has received nothing since. Pushes that the log no longer holds are missing.
    resumed: bool,
    /// How many of the session's membership events are applied.
    applied: usize,
}

impl Cursor {
    fn apply(&mut self, event: &Membership) {
        match *event {
            Membership::Joined(next) => self.next = self.next.or(Some(next)),
            Membership::Resumed(next) => {
                // The gateway never moves a member forward.
                let next = self.next.map_or(next, |known| known.min(next));
                (self.next, self.resumed) = (Some(next), true);
            }
            Membership::Left(_) => self.next = None,
        }
        self.applied += 1;
    }
}

pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) transport: WireClient,
    pub(crate) user_id: u64,
    pub(crate) wire: Wire,
    pub(crate) session: Option<u64>,
    /// Requests that have no answer: type and data, by sequence.
    pub(crate) outstanding: BTreeMap<u64, (i32, Bytes)>,
    /// The last request that was answered, by route.
    last_answered: BTreeMap<i32, u64>,
    /// The number of the next push to everybody, and to the user.
    next: BTreeMap<Target, u64>,
    rooms: BTreeMap<u64, Vec<Cursor>>,
    /// The names of the rooms that the session is in, by number.
    numbers: BTreeMap<u32, String>,
    /// Offset minus number: constant as long as a log exists.
    offset_bases: BTreeMap<Target, u64>,
    /// The last push received from a room: its offset and its number.
    pub(crate) seen: BTreeMap<u64, (u64, u64)>,
    /// It sent random bytes. Responses are not checked from then on, except that 106 ends them.
    pub(crate) sent_garbage: bool,
    pub(crate) half_closed: bool,
    /// It does not read.
    pub(crate) stalled: bool,
    /// It does not read from its first request as a session until the healing phase.
    pub(crate) never_reads: bool,
    /// The client was slow or reset the connection, or the network may do so: its last frames may be lost.
    pub(crate) may_be_cut_off: bool,
    pub(crate) auth_failures: u8,
    pub(crate) goodbye: Option<Code>,
    pub(crate) ended: Option<Ended>,
    pub(crate) pushes: BTreeMap<Target, u64>,
    /// Successful answers of backends. A test may set it to 0.
    pub(crate) answers: usize,
    /// Pushes missed in rooms that skip.
    pub(crate) skipped: u64,
    rules: Rules,
}

impl Client {
    pub(crate) fn new(
        peer: Peer,
        transport: WireClient,
        user_id: u64,
        now: Instant,
        rules: Rules,
    ) -> Self {
        Self {
            peer,
            transport,
            user_id,
            wire: Wire::new(now),
            session: None,
            outstanding: BTreeMap::new(),
            last_answered: BTreeMap::new(),
            next: BTreeMap::new(),
            rooms: BTreeMap::new(),
            numbers: BTreeMap::new(),
            offset_bases: BTreeMap::new(),
            seen: BTreeMap::new(),
            sent_garbage: false,
            half_closed: false,
            stalled: false,
            never_reads: false,
            may_be_cut_off: false,
            auth_failures: 0,
            goodbye: None,
            ended: None,
            pushes: BTreeMap::new(),
            answers: 0,
            skipped: 0,
            rules,
        }
    }

    /// Whether it can still send requests.
    pub(crate) fn is_live(&self) -> bool {
        let has_ended = self.goodbye.is_some() || self.ended.is_some() || self.auth_failures >= 3;
        !self.sent_garbage && !self.half_closed && !has_ended
    }

    pub(crate) fn request(&mut self, now: Instant, kind: i32, biz_data: &Bytes) {
        let sequence = self.wire.request(now, kind, biz_data);
        self.outstanding.insert(sequence, (kind, biz_data.clone()));
    }

    pub(crate) fn heartbeat(&mut self, now: Instant) {
        let sequence = self.wire.heartbeat(now);
        self.outstanding.insert(sequence, (-1, Bytes::new()));
    }

    /// A heartbeat, if one is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.wire.poll_timeout() {
            self.heartbeat(now);
        }
    }

    pub(crate) fn authenticate(&mut self, now: Instant, good: bool) {
        let token = if good { format!("token-{}", self.user_id) } else { "wrong".to_owned() };
        let sequence = self.wire.authenticate(now, self.user_id, &token);
        self.outstanding.insert(sequence, (0, Bytes::new()));
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], record: &Record) {
        let mut events = Vec::new();
        self.wire
            .receive(bytes, |event| events.push(event))
            .expect("the gateway's frames are good");
        events.into_iter().for_each(|event| self.on_event(event, record));
    }

    pub(crate) fn on_end(&mut self, ended: Ended, cut_off: bool) {
        self.ended = Some(ended);
        let may_be_cut_off = cut_off || self.may_be_cut_off || self.sent_garbage;
        // The gateway lingers after its last frame, so only the network or the client resets a connection.
        assert!(ended == Ended::End || may_be_cut_off, "reset without a reason: {self:?}");
        // A client that only half-closed gets all its answers; then the gateway closes without a code.
        if self.half_closed && self.goodbye.is_none() && self.auth_failures < 3 && !may_be_cut_off {
            assert!(self.outstanding.is_empty(), "half-closed and not answered: {self:?}");
        }
        self.outstanding.clear();
    }

    fn on_event(&mut self, event: Event, record: &Record) {
        assert_eq!(self.goodbye, None, "a response follows the last frame: {event:?}");
        match event {
            Event::Authenticated { sequence, session } => {
                self.answered(0, sequence, true, None);
                let known = self.session.replace(session.session_id);
                assert!(known.is_none_or(|known| known == session.session_id));
                session.rooms.iter().for_each(|room| self.joined(room));
            }
            Event::Pong { sequence, .. } => self.answered(-1, sequence, true, None),
            Event::Answer { kind, sequence, biz_data } => {
                self.answered(kind, sequence, true, Some(&biz_data));
                assert!(self.session.is_some() || self.sent_garbage);
                self.answers += 1;
            }
            Event::Failed { kind, sequence, failure } => {
                let code = failure.code.expect("a known code");
                // A refusal may overtake answers: the request was never handed to a backend.
                let in_turn = matches!(code, Code::BackendFailed | Code::Timeout);
                self.answered(kind, sequence, in_turn, None);
                if code == Code::Unauthenticated {
                    self.auth_failures += 1;
                }
                assert!(code != Code::NoRoute || kind == UNROUTED || self.sent_garbage);
            }
            Event::Push { kind, room, offset, biz_data } => {
                assert_eq!(kind, PUSH);
                assert!(self.session.is_some(), "a push without a session");
                let name = self.numbers.get(&room);
                assert_eq!(name.is_some(), room > 0, "a push before its room: {self:?}");
                let target = read_push(&biz_data).0;
                assert_eq!(name.map(String::as_str), target.room().as_deref());
                self.on_push(offset, &biz_data, record);
            }
            Event::Joined(room) => self.joined(&room),
            Event::Left { room } => self.numbers.retain(|_, name| *name != room),
            Event::Goodbye(failure) => {
                let code = failure.code.expect("a known code");
                if self.sent_garbage && matches!(code, Code::Unauthenticated | Code::RateLimited) {
                    // The random bytes held an empty frame: a failed authentication with sequence 0.
                    return;
                }
                assert!(
                    code != Code::Malformed || self.sent_garbage,
                    "106 without a reason: {self:?}"
                );
                assert!(matches!(
                    code,
                    Code::Malformed | Code::Replaced | Code::Draining | Code::Idle | Code::Kicked
                ));
                self.goodbye = Some(code);
            }
        }
    }

    fn joined(&mut self, room: &v1::Room) {
        if room.recovery() != v1::Recovery::Refused {
            self.numbers.retain(|_, name| *name != room.name);
            let known = self.numbers.insert(room.number, room.name.clone());
            assert_eq!(known, None, "two rooms have one number");
        }
    }

    fn answered(&mut self, kind: i32, sequence: u64, in_turn: bool, biz_data: Option<&Bytes>) {
        if self.sent_garbage {
            return;
        }
        let asked = self.outstanding.remove(&sequence);
        let (asked_kind, asked_data) = asked.unwrap_or_else(|| {
            panic!("{sequence} of type {kind} was answered twice, or never asked: {self:?}")
        });
        assert_eq!(asked_kind, kind);
        if let Some(biz_data) = biz_data {
            assert_eq!(answer_data(kind, &asked_data), biz_data, "another request's answer");
        }
        let route = kind / ROUTE_TYPES * ROUTE_TYPES;
        if in_turn && (route == INLINE || route == QUEUED) {
            let last = self.last_answered.insert(route, sequence);
            assert!(last.is_none_or(|last| last < sequence), "{sequence} overtook {last:?}");
        }
    }

    fn on_push(&mut self, offset: u64, biz_data: &[u8], record: &Record) {
        let (target, number) = read_push(biz_data);
        *self.pushes.entry(target).or_default() += 1;
        match target {
            Target::User(user_id) => {
                assert_eq!(user_id, self.user_id, "another user's push");
                assert_eq!(offset, 0);
                self.apply(target, number);
            }
            Target::Everybody => self.apply(target, number),
            Target::Room(room) => {
                let session = self.session.expect("a session");
                let events =
                    record.memberships.get(&(session, room)).map_or(&[][..], Vec::as_slice);
                self.apply_room_push(room, number, events);
                self.seen.insert(room, (offset, number));
            }
        }
        if offset > 0 && !self.rules.rooms_end {
            let base = *self.offset_bases.entry(target).or_insert(offset - number);
            assert_eq!(offset - number, base, "{target:?}: the offsets have a gap");
        }
    }

    /// Whether it has received all pushes of its rooms.
    pub(crate) fn is_up_to_date(&self, record: &Record) -> bool {
        let session = self.session.unwrap_or_default();
        let of_session = (session, 0)..=(session, u64::MAX);
        record.memberships.range(of_session).all(|(&(_, room), events)| {
            let published = record.published.get(&Target::Room(room)).copied().unwrap_or_default();
            let cursors = self.rooms.get(&room).cloned().unwrap_or_default();
            let mut cursors = cursors.into_iter().chain([Cursor::default()]);
            self.rules.rooms_end
                || cursors.any(|mut at| {
                    events[at.applied..].iter().for_each(|event| at.apply(event));
                    at.next.is_none_or(|next| next == published)
                })
        })
    }

    /// Checks a push to everybody or to a user: none is missed. The first may have been published before the session
    /// opened.
    fn apply(&mut self, target: Target, number: u64) {
        let next = self.next.insert(target, number + 1).unwrap_or(number);
        assert_eq!(number, next, "{target:?}: a push is missing, or came twice");
    }

    /// Checks a push to a room. The client does not know which of its joins and leaves have taken effect, and
    /// can't tell skipped pushes from those before a resume: so the push must fit one possible position.
    fn apply_room_push(&mut self, room: u64, number: u64, events: &[Membership]) {
        let may_skip = room % 3 == 1 || self.rules.rooms_end;
        let before = self.rooms.remove(&room).unwrap_or_else(|| vec![Cursor::default()]);
        let mut after: Vec<Cursor> = Vec::new();
        let mut gap = u64::MAX;
        for mut at in before.iter().copied() {
            loop {
                let event = events.get(at.applied);
                let left =
                    event.is_some_and(|e| matches!(e, Membership::Left(at) if *at <= number));
                let skips = may_skip || at.resumed;
                let due = |next| number == next || skips && number > next;
                if let Some(next) = at.next.filter(|&next| !left && due(next)) {
                    gap = gap.min(number - next);
                    let at = Cursor { next: Some(number + 1), resumed: false, ..at };
                    if !after.contains(&at) {
                        after.push(at);
                    }
                }
                let Some(event) = event else { break };
                at.apply(event);
            }
        }
        assert!(!after.is_empty(), "room {room}: push {number} was not due; {before:?} {events:?}");
        // Pushes that the log no longer held at a resume are not counted as skipped.
        if !events.iter().any(|event| matches!(event, Membership::Resumed(_))) {
            self.skipped += gap;
        }
        self.rooms.insert(room, after);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let asked: Vec<_> =
            self.outstanding.iter().map(|(asked, (kind, _))| (asked, kind)).collect();
        f.debug_struct("Client")
            .field("peer", &self.peer)
            .field("transport", &self.transport)
            .field("user_id", &self.user_id)
            .field("session", &self.session)
            .field("asked", &asked)
            .field("sent_garbage", &self.sent_garbage)
            .field("half_closed", &self.half_closed)
            .field("auth_failures", &self.auth_failures)
            .field("goodbye", &self.goodbye)
            .field("ended", &self.ended)
            .field("rooms", &self.rooms)
            .finish_non_exhaustive()
    }
}
