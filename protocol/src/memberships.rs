//! The rooms of a client, across its connections: how far it has read each one, and what it sends to resume them.
//!
//! [`Memberships`] belongs to an SDK, which keeps it for as long as the user is the same. It has no socket and no clock.
//! Hand it what [`Client`](crate::client::Client) reads:
//!
//! | event | call | then |
//! |---|---|---|
//! | `Authenticated` | [`Memberships::opened`] | tell the app of each [`Change`] |
//! | `Joined` | [`Memberships::joined`] | tell the app of the [`Change`] |
//! | `Left` | [`Memberships::left`] | |
//! | `Push` | [`Memberships::pushed`] | do as [`Delivery`] says |
//! | the connection is lost | [`Memberships::disconnected`] | |
//! | a new connection | [`Memberships::resume`] | authenticate with it |
//!
//! Offsets are compared within one log only. A room's number is valid on one connection only.

use std::ops::RangeInclusive;

use bytes::Bytes;
use prost::Message as _;

use crate::message::EVERYBODY;
use crate::proto::v1;
use crate::wire;

/// Most rooms that are kept by default: twice as many as a gateway allows by default.
pub const ROOMS_MAX: usize = 128;

/// What an app has to know of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Pushes are missing and will not come: fetch the room's current state from the backend.
    Gap {
        /// The room's name.
        room: String,
    },
    /// The session is no member, and the room is forgotten. Pushes may be missing. To be a member again, ask the backend.
    Refused {
        /// The room's name.
        room: String,
    },
    /// The session is a member, but there are too many rooms to keep this one's position:
    /// its pushes are [`Delivery::UnknownRoom`], and the next connection does not resume it.
    NotKept {
        /// The room's name.
        room: String,
    },
}

/// What to do with a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<'a> {
    /// It came to this user alone: hand it to the app.
    ToUser,
    /// The next push of the room, or one that is in no log: hand it to the app.
    New {
        /// The room's name.
        room: &'a str,
    },
    /// Pushes before it are missing. Tell the app of the gap first, then hand it the push.
    AfterGap {
        /// The room's name.
        room: &'a str,
        /// The offsets of the missing pushes.
        missing: RangeInclusive<u64>,
    },
    /// The app has had it: drop it.
    Repeat {
        /// The room's name.
        room: &'a str,
    },
    /// Nothing is known of its room. Hand it to the app, which can't be notified of gaps. A gateway of version 1.0 sends each
    /// room push so.
    UnknownRoom,
}

/// How far a room's log was read.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// A push up to this offset is a repeat.
    seen: u64,
    /// The position to resume after; `None` when what comes next is not known.
    resume: Option<u64>,
    /// With a larger offset than this the next push comes after a gap. At least `seen + 1`.
    next_max: u64,
}

impl Cursor {
    /// Each push up to `offset` was handed out, or is reported as missing. 0: the log has no push yet, and its first one
    /// may have any offset.
    const fn after(offset: u64) -> Self {
        Self { seen: offset, resume: Some(offset), next_max: Self::next_max(offset) }
    }

    const fn next_max(offset: u64) -> u64 {
        if offset == 0 { u64::MAX } else { offset.saturating_add(1) }
    }

    /// A join at `head`. Older pushes may come first, as a replay; but none up to `seen`.
    const fn at_head(seen: u64, head: u64) -> Self {
        Self { seen, ..Self::after(head) }
    }
}

/// What became of the pushes after the client's position. One of a later version is a gap.
fn recovery(room: &v1::Room) -> v1::Recovery {
    v1::Recovery::try_from(room.recovery).unwrap_or(v1::Recovery::Gap)
}

/// A room that the client is in.
#[derive(Debug)]
struct Membership {
    name: String,
    /// On the present connection; 0 until the gateway says it.
    number: u32,
    log: u64,
    cursor: Cursor,
    ticket: Bytes,
}

impl Membership {
    fn new(room: &v1::Room) -> Self {
        let mut cursor = Cursor::at_head(0, room.head);
        if recovery(room) == v1::Recovery::Complete {
            // The app has joined after a position that was not restored. What follows begins there.
            cursor.resume = None;
        }
        Self {
            name: room.name.clone(),
            number: room.number,
            log: room.log,
            cursor,
            ticket: room.ticket.clone(),
        }
    }

    /// The gateway describes the membership again. Returns whether pushes are missing.
    fn update(&mut self, room: &v1::Room) -> bool {
        let was_attached = self.number != 0;
        let same_log = self.log == room.log && self.cursor.seen <= room.head;
        let position = self.cursor.resume.filter(|offset| same_log && *offset <= room.head);
        self.number = room.number;
        self.log = room.log;
        self.ticket.clone_from(&room.ticket);
        match (recovery(room), position) {
            // It is a member already, and continues to read where it is.
            (v1::Recovery::Complete | v1::Recovery::NotAsked, _) if was_attached && same_log => {}
            (v1::Recovery::Complete, Some(offset)) => self.cursor = Cursor::after(offset),
            // A new membership that missed nothing.
            (v1::Recovery::NotAsked, Some(offset)) if offset == room.head => {
                self.cursor.next_max = Cursor::next_max(room.head);
            }
            _ => {
                let seen = if same_log { self.cursor.seen } else { 0 };
                self.cursor = Cursor::at_head(seen, room.head);
                return true;
            }
        }
        false
    }

    /// What a later connection says of the room; `None` if nothing can prove the membership.
    fn position(&self) -> Option<v1::Position> {
        let is_provable = self.name == EVERYBODY || !self.ticket.is_empty();
        is_provable.then(|| v1::Position {
            room: self.name.clone(),
            log: self.cursor.resume.map_or(0, |_| self.log),
            offset: self.cursor.resume.unwrap_or(0),
            ticket: self.ticket.clone(),
        })
    }
}

/// The rooms that a client is in, across its connections.
#[derive(Debug)]
pub struct Memberships {
    /// In the order in which they were joined.
    rooms: Vec<Membership>,
    rooms_max: usize,
    /// The session of the present connection, or of the last one.
    session_id: u64,
}

impl Default for Memberships {
    fn default() -> Self {
        Self::new(ROOMS_MAX)
    }
}

impl Memberships {
    /// No rooms yet. At most `rooms_max` are kept.
    #[must_use]
    pub const fn new(rooms_max: usize) -> Self {
        Self { rooms: Vec::new(), rooms_max, session_id: 0 }
    }

    /// What the next authentication says: the rooms in the order in which they were joined, as many as fit into
    /// `bytes_max`. [`RESUME_BYTES_MAX`](crate::limits::RESUME_BYTES_MAX) always fits.
    #[must_use]
    pub fn resume(&self, bytes_max: usize) -> v1::Resume {
        let mut bytes_left = bytes_max;
        let fits = |position: &v1::Position| {
            let bytes = wire::delimited_field_len(position.encoded_len());
            bytes_left.checked_sub(bytes).map(|left| bytes_left = left).is_some()
        };
        let positions = self.rooms.iter().filter_map(Membership::position);
        v1::Resume { positions: positions.take_while(fits).collect() }
    }

    /// Takes a position that the app has kept itself: from an earlier run, or because it is about to ask its backend to join
    /// the room after this position. Does nothing for a room that is kept already. Without a `Joined` or a
    /// place in the next session the room is reported as refused when the next session opens.
    pub fn restore(&mut self, position: &v1::Position) {
        let is_kept = self.rooms.iter().any(|membership| membership.name == position.room);
        if is_kept || position.log == 0 || self.rooms.len() >= self.rooms_max {
            return;
        }
        self.rooms.push(Membership {
            name: position.room.clone(),
            number: 0,
            log: position.log,
            cursor: Cursor::after(position.offset),
            ticket: position.ticket.clone(),
        });
    }

    /// The connection is lost: room numbers are no longer valid.
    pub fn disconnected(&mut self) {
        for membership in &mut self.rooms {
            membership.number = 0;
        }
    }

    /// The session is open. Rooms that the gateway does not name are forgotten, and reported as refused. An answer to a
    /// second authentication on the same connection forgets nothing.
    pub fn opened(&mut self, session: &v1::Session) -> Vec<Change> {
        if session.session_id != self.session_id {
            self.session_id = session.session_id;
            self.disconnected();
        }
        let mut changes: Vec<Change> =
            session.rooms.iter().filter_map(|room| self.joined(room)).collect();
        self.rooms.retain(|membership| {
            if membership.number == 0 {
                changes.push(Change::Refused { room: membership.name.clone() });
            }
            membership.number != 0
        });
        changes
    }

    /// The gateway has made the session a member of a room, or has refused it.
    pub fn joined(&mut self, room: &v1::Room) -> Option<Change> {
        let known = self.rooms.iter().position(|membership| membership.name == room.name);
        let name = || room.name.clone();
        if recovery(room) == v1::Recovery::Refused || room.number == 0 {
            known.map(|index| self.rooms.remove(index));
            return Some(Change::Refused { room: name() });
        }
        // Numbers are reused when rooms are left.
        for membership in &mut self.rooms {
            if membership.number == room.number && membership.name != room.name {
                membership.number = 0;
            }
        }
        let is_gap = match known {
            Some(index) => self.rooms[index].update(room),
            None if self.rooms.len() >= self.rooms_max => {
                return Some(Change::NotKept { room: name() });
            }
            None => {
                self.rooms.push(Membership::new(room));
                recovery(room) == v1::Recovery::Gap
            }
        };
        is_gap.then(|| Change::Gap { room: name() })
    }

    /// The session is no longer a member of a room.
    pub fn left(&mut self, room: &str) {
        self.rooms.retain(|membership| membership.name != room);
    }

    /// A push has arrived. Call it once for each, in order, when the push goes to the app: its position counts as seen.
    pub fn pushed(&mut self, number: u32, offset: u64) -> Delivery<'_> {
        if number == 0 {
            return if offset == 0 { Delivery::ToUser } else { Delivery::UnknownRoom };
        }
        let known = self.rooms.iter_mut().find(|membership| membership.number == number);
        let Some(Membership { name: room, cursor, .. }) = known else {
            return Delivery::UnknownRoom;
        };
        let Cursor { seen, next_max, .. } = *cursor;
        if offset == 0 {
            // It is in no log, and never comes again.
            return Delivery::New { room };
        }
        if offset <= seen {
            return Delivery::Repeat { room };
        }
        *cursor = Cursor::after(offset);
        if offset > next_max {
            return Delivery::AfterGap { room, missing: next_max..=offset - 1 };
        }
        Delivery::New { room }
    }

    /// How many rooms are kept.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether no room is kept.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RESUME_BYTES_MAX;

    fn room(name: &str, number: u32, log: u64, head: u64, recovery: v1::Recovery) -> v1::Room {
        let ticket = Bytes::from_static(b"proof");
        v1::Room { name: name.into(), number, log, head, recovery: recovery.into(), ticket }
    }

    fn session(session_id: u64, rooms: Vec<v1::Room>) -> v1::Session {
        v1::Session { session_id, rooms, ..v1::Session::default() }
    }

    /// In a room, with the number 1, after the push 33 of log 5.
    fn at_33() -> Memberships {
        let mut memberships = Memberships::default();
        let quiz = room("quiz", 1, 5, 32, v1::Recovery::NotAsked);
        assert_eq!(memberships.opened(&session(1, vec![quiz])), []);
        assert_eq!(memberships.pushed(1, 33), Delivery::New { room: "quiz" });
        memberships.disconnected();
        memberships
    }

    /// The position that the next connection gives for the only room.
    fn position(memberships: &Memberships) -> (u64, u64) {
        let resume = memberships.resume(RESUME_BYTES_MAX);
        let [position] = &resume.positions[..] else { panic!("{resume:?}") };
        assert_eq!((&*position.room, &*position.ticket), ("quiz", b"proof".as_slice()));
        (position.log, position.offset)
    }

    fn reopened(recovery: v1::Recovery, log: u64, head: u64) -> (Memberships, Vec<Change>) {
        let mut memberships = at_33();
        assert_eq!(position(&memberships), (5, 33));
        let changes = memberships.opened(&session(2, vec![room("quiz", 7, log, head, recovery)]));
        (memberships, changes)
    }

    fn gap() -> Vec<Change> {
        vec![Change::Gap { room: "quiz".into() }]
    }

    #[test]
    fn a_complete_recovery_continues_with_the_next_push() {
        let (mut memberships, changes) = reopened(v1::Recovery::Complete, 5, 40);
        assert_eq!(changes, []);
        assert_eq!(memberships.pushed(1, 34), Delivery::UnknownRoom, "a number of before");
        assert_eq!(memberships.pushed(7, 33), Delivery::Repeat { room: "quiz" });
        assert_eq!(memberships.pushed(7, 34), Delivery::New { room: "quiz" });
        let missing = 35..=36;
        assert_eq!(memberships.pushed(7, 37), Delivery::AfterGap { room: "quiz", missing });
        assert_eq!(position(&memberships), (5, 37));
    }

    #[test]
    fn a_gap_moves_the_position_to_the_head() {
        let (mut memberships, changes) = reopened(v1::Recovery::Gap, 5, 40);
        assert_eq!(changes, gap());
        assert_eq!(position(&memberships), (5, 40));
        assert_eq!(memberships.pushed(7, 33), Delivery::Repeat { room: "quiz" });
        assert_eq!(memberships.pushed(7, 39), Delivery::New { room: "quiz" }, "a replay");
        assert_eq!(memberships.pushed(7, 40), Delivery::New { room: "quiz" });
        assert_eq!(memberships.pushed(7, 41), Delivery::New { room: "quiz" });
    }

    #[test]
    fn offsets_of_another_log_are_not_compared() {
        let (mut memberships, changes) = reopened(v1::Recovery::Gap, 6, 3);
        assert_eq!(changes, gap());
        assert_eq!(position(&memberships), (6, 3));
        assert_eq!(memberships.pushed(7, 4), Delivery::New { room: "quiz" });
    }

    #[test]
    fn a_claim_that_can_not_be_true_is_a_gap() {
        for (log, head) in [(6, 40), (5, 32)] {
            let (mut memberships, changes) = reopened(v1::Recovery::Complete, log, head);
            assert_eq!(changes, gap());
            assert_eq!(position(&memberships), (log, head));
            let delivery = memberships.pushed(7, head + 1);
            assert_eq!(delivery, Delivery::New { room: "quiz" });
        }
    }

    #[test]
    fn without_a_position_a_moved_head_is_a_gap() {
        assert_eq!(reopened(v1::Recovery::NotAsked, 5, 33).1, []);
        assert_eq!(reopened(v1::Recovery::NotAsked, 5, 34).1, gap());
        assert_eq!(reopened(v1::Recovery::NotAsked, 6, 33).1, gap());
    }

    #[test]
    fn refused_rooms_and_rooms_that_are_not_named_are_forgotten() {
        let refused = vec![Change::Refused { room: "quiz".into() }];
        let (memberships, changes) = reopened(v1::Recovery::Refused, 0, 0);
        assert_eq!(changes, refused);
        assert!(memberships.is_empty());
        // As a gateway of version 1.0 answers.
        let mut memberships = at_33();
        assert_eq!(memberships.opened(&session(2, Vec::new())), refused);
        assert!(memberships.is_empty());
        assert_eq!(memberships.pushed(0, 34), Delivery::UnknownRoom);
        assert_eq!(memberships.pushed(0, 0), Delivery::ToUser);
    }

    #[test]
    fn a_second_authentication_and_a_second_join_change_no_position() {
        let (mut memberships, _) = reopened(v1::Recovery::Complete, 5, 40);
        assert_eq!(memberships.opened(&session(2, Vec::new())), []);
        assert_eq!(memberships.joined(&room("quiz", 7, 5, 40, v1::Recovery::NotAsked)), None);
        assert_eq!(memberships.pushed(7, 34), Delivery::New { room: "quiz" });
    }

    #[test]
    fn a_log_that_is_replaced_on_an_open_connection_is_a_gap() {
        let (mut memberships, _) = reopened(v1::Recovery::Complete, 5, 40);
        let change = memberships.joined(&room("quiz", 7, 6, 2, v1::Recovery::Gap));
        assert_eq!(change, gap().pop());
        assert_eq!(memberships.pushed(7, 3), Delivery::New { room: "quiz" });
    }

    #[test]
    fn a_restored_position_is_joined_or_resumed() {
        let at_33 = at_33().resume(RESUME_BYTES_MAX).positions.pop().unwrap();
        let joined = room("quiz", 1, 5, 40, v1::Recovery::Complete);
        let mut memberships = Memberships::default();
        memberships.restore(&at_33);
        assert_eq!(position(&memberships), (5, 33));
        assert_eq!(memberships.joined(&joined), None);
        let missing = 34..=35;
        assert_eq!(memberships.pushed(1, 36), Delivery::AfterGap { room: "quiz", missing });

        let mut memberships = Memberships::default();
        memberships.restore(&v1::Position { ticket: Bytes::new(), ..at_33 });
        assert_eq!(memberships.resume(RESUME_BYTES_MAX).positions, []);
        let refused = vec![Change::Refused { room: "quiz".into() }];
        assert_eq!(memberships.opened(&session(1, Vec::new())), refused);
    }

    #[test]
    fn a_join_after_an_unknown_position_is_not_resumed_before_its_first_push() {
        let mut memberships = Memberships::default();
        assert_eq!(memberships.joined(&room("quiz", 1, 5, 40, v1::Recovery::Complete)), None);
        assert_eq!(position(&memberships), (0, 0));
        assert_eq!(memberships.pushed(1, 34), Delivery::New { room: "quiz" });
        assert_eq!(position(&memberships), (5, 34));
    }

    #[test]
    fn a_room_too_many_is_reported_and_not_kept() {
        let mut memberships = Memberships::new(1);
        let join = |name, number| room(name, number, 5, 0, v1::Recovery::NotAsked);
        assert_eq!(memberships.joined(&join("a", 1)), None);
        let not_kept = Change::NotKept { room: "b".into() };
        assert_eq!(memberships.joined(&join("b", 2)), Some(not_kept));
        assert_eq!(memberships.pushed(2, 1), Delivery::UnknownRoom);
        memberships.left("a");
        // The number of the room that was left may come again.
        assert_eq!(memberships.joined(&join("b", 1)), None);
        assert_eq!(memberships.pushed(1, 1), Delivery::New { room: "b" });
        assert_eq!(memberships.len(), 1);
    }

    #[test]
    fn a_resume_has_the_rooms_that_fit_and_can_be_proven() {
        let mut memberships = Memberships::default();
        for number in 1..=u32::try_from(ROOMS_MAX).unwrap() {
            let name = format!("{number:0>128}");
            memberships.joined(&v1::Room {
                ticket: vec![7; 64].into(),
                ..room(&name, number, u64::MAX, u64::MAX, v1::Recovery::NotAsked)
            });
        }
        let resume = memberships.resume(RESUME_BYTES_MAX);
        assert!(resume.encoded_len() <= RESUME_BYTES_MAX);
        assert!(resume.positions.len() > 30, "{}", resume.positions.len());
        assert_eq!(memberships.resume(0).positions, []);

        let mut memberships = Memberships::default();
        for (name, number) in [(EVERYBODY, 1), ("quiz", 2)] {
            let room = room(name, number, 5, 0, v1::Recovery::NotAsked);
            memberships.joined(&v1::Room { ticket: Bytes::new(), ..room });
        }
        let [everybody] = &memberships.resume(RESUME_BYTES_MAX).positions[..] else {
            panic!("only everybody's room needs no ticket");
        };
        assert_eq!(everybody.room, EVERYBODY);
    }
}
