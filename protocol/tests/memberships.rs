//! Whatever is cut and whoever comes back: with an honest gateway no push is handed to the app twice or out of order,
//! and each push that is lost lies in a gap that was reported.
//!
//! The gateway is a model that writes real frames. The client is the real one. Each push carries its place among all
//! pushes of its room, which no log's end or restart changes: by that the test knows what the app should have had.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_protocol::Reassembler;
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::limits::RESUME_BYTES_MAX;
use tidegate_protocol::memberships::{Change, Delivery, Memberships};
use tidegate_protocol::message::EVERYBODY;
use tidegate_protocol::proto::v1::{self, Recovery, notice};
use tidegate_protocol::resume::Position;
use tidegate_protocol::server::{self, Incoming};

/// Everybody's room, and two others; the last one replays its newest pushes to newcomers.
const ROOMS: [(&str, usize); 3] = [(EVERYBODY, 0), ("quiz", 0), ("chat", 2)];

#[derive(Clone, Debug)]
enum Step {
    /// Pushes to a room.
    Publish(usize, u8),
    /// The gateway writes what a member has not been sent.
    Sweep(usize),
    /// A log keeps only its newest pushes.
    Trim(usize, usize),
    /// A log begins anew, with this first offset.
    Restart(usize, u64),
    /// The backend makes the session a member.
    Join(usize),
    /// The backend makes the session a member, with the position that the app remembers.
    JoinAfter(usize),
    /// The backend ends the membership.
    Leave(usize),
    /// Tickets that were given prove nothing any more.
    Expel(usize),
    /// So many bytes reach the client.
    Receive(usize),
    /// The connection is lost with what has not reached the client, and the client comes back.
    Reconnect,
    /// As `Reconnect`, to a gateway of version 1.0.
    Visit10,
}

fn step() -> impl Strategy<Value = Step> {
    let room = || 0..ROOMS.len();
    let other = || 1..ROOMS.len();
    prop_oneof![
        6 => (room(), 1..4_u8).prop_map(|(room, count)| Step::Publish(room, count)),
        6 => room().prop_map(Step::Sweep),
        2 => (room(), 0..4_usize).prop_map(|(room, keep)| Step::Trim(room, keep)),
        1 => (room(), 1..20_u64).prop_map(|(room, first)| Step::Restart(room, first)),
        3 => other().prop_map(Step::Join),
        1 => other().prop_map(Step::JoinAfter),
        1 => other().prop_map(Step::Leave),
        1 => other().prop_map(Step::Expel),
        6 => (1..400_usize).prop_map(Step::Receive),
        3 => Just(Step::Reconnect),
        1 => Just(Step::Visit10),
    ]
}

/// A room at the gateway.
#[derive(Debug)]
struct Room {
    log: u64,
    /// Offset and place of each push that is kept.
    pushes: VecDeque<(u64, u64)>,
    /// Offset of the log's first push.
    first: u64,
    /// Offset of the next push.
    next: u64,
    /// Pushes that were ever made.
    published: u64,
    tickets: u64,
}

/// The gateway, with one connection.
#[derive(Debug)]
struct Server {
    rooms: Vec<Room>,
    /// For each room that the session is in, the offset from which it has not been sent.
    members: BTreeMap<usize, u64>,
    /// Written, and not with the client yet.
    written: Vec<u8>,
    connections: u32,
    logs: u64,
    /// The place of a log's head, for each `Room` that was sent.
    heads: BTreeMap<(u64, u64), u64>,
}

impl Server {
    fn new() -> Self {
        let room = |log| {
            let (pushes, next) = (VecDeque::new(), 1 + 1000 * log);
            Room { log, pushes, first: next, next, published: 0, tickets: 0 }
        };
        let logs = ROOMS.len() as u64;
        let (members, heads) = (BTreeMap::new(), BTreeMap::new());
        let rooms = (1..=logs).map(room).collect();
        Self { rooms, members, written: Vec::new(), connections: 0, logs, heads }
    }

    fn number(&self, room: usize) -> u32 {
        10 * self.connections + u32::try_from(room).expect("few rooms") + 1
    }

    fn ticket(&self, room: usize) -> Bytes {
        if room == 0 { Bytes::new() } else { self.rooms[room].tickets.to_string().into() }
    }

    /// Makes the session a member. `position`: the log and the offset that the client has seen.
    fn join(&mut self, index: usize, position: Option<(u64, u64)>) -> v1::Room {
        let room = &self.rooms[index];
        let oldest = room.pushes.front().map_or(room.next, |(offset, _)| *offset);
        let replayed = room.pushes.len().saturating_sub(ROOMS[index].1);
        let replay = room.pushes.get(replayed).map_or(room.next, |(offset, _)| *offset);
        let (recovery, from) = match position {
            None => (Recovery::NotAsked, replay),
            Some((log, offset)) if log == room.log => {
                let next = if offset == 0 { room.first } else { offset + 1 };
                if (oldest..=room.next).contains(&next) {
                    (Recovery::Complete, next)
                } else {
                    (Recovery::Gap, replay)
                }
            }
            Some(_) => (Recovery::Gap, replay),
        };
        let number = self.number(index);
        // A log's first push may have any offset, so nothing is said of a log without one.
        let head = if room.next == room.first { 0 } else { room.next - 1 };
        self.heads.insert((room.log, head), room.published);
        self.members.insert(index, from);
        let (name, ticket) = (ROOMS[index].0.into(), self.ticket(index));
        v1::Room { name, number, log: room.log, head, recovery: recovery.into(), ticket }
    }

    fn resume(&mut self, position: Position<'_>) -> v1::Room {
        let index = ROOMS.iter().position(|(name, _)| *name == position.room).expect("a room");
        if position.ticket != self.ticket(index) {
            let (name, recovery) = (position.room.into(), Recovery::Refused.into());
            return v1::Room { name, recovery, ..v1::Room::default() };
        }
        self.join(index, (position.log != 0).then_some((position.log, position.offset)))
    }

    /// Takes a client's first frame, and writes the answer.
    fn accept(&mut self, bytes: &[u8], speaks_1_1: bool) {
        self.connections += 1;
        self.members.clear();
        self.written.clear();
        let mut reassembler = Reassembler::new();
        let mut frames = reassembler.frames(bytes, bytes.len());
        let payload = frames.next().expect("a frame").expect("a whole frame");
        let Incoming::Authenticate { resume, sequence, .. } =
            Incoming::decode(payload).expect("a request")
        else {
            panic!("an authentication is first");
        };
        let mut session =
            v1::Session { session_id: self.connections.into(), ..v1::Session::default() };
        if speaks_1_1 {
            if resume.iter().all(|position| position.room != EVERYBODY) {
                session.rooms.push(self.join(0, None));
            }
            session.rooms.extend(resume.iter().map(|position| self.resume(position)));
        }
        server::put_session(&mut self.written, sequence, &session);
    }

    fn notice(&mut self, what: notice::What) {
        server::put_notice(&mut self.written, &v1::Notice { what: Some(what) });
    }

    fn publish(&mut self, index: usize) {
        let room = &mut self.rooms[index];
        room.published += 1;
        room.pushes.push_back((room.next, room.published));
        room.next += 1;
    }

    /// A member that is too slow for its log gets what is left of it.
    fn sweep(&mut self, index: usize) {
        let number = self.number(index);
        let Some(from) = self.members.get_mut(&index) else { return };
        let room = &self.rooms[index];
        for (offset, place) in room.pushes.iter().filter(|(offset, _)| offset >= from) {
            server::put_push(&mut self.written, 5, &place.to_be_bytes(), *offset, number);
        }
        *from = room.next;
    }

    fn restart(&mut self, index: usize, first: u64) {
        self.logs += 1;
        let room = &mut self.rooms[index];
        (room.log, room.first, room.next) = (self.logs, first, first);
        room.pushes.clear();
        if self.members.contains_key(&index) {
            let room = self.join(index, Some((0, 0)));
            self.notice(notice::What::Joined(room));
        }
    }
}

/// What the app has had of a room since it became a member.
#[derive(Debug, Default)]
struct Had {
    /// Up to this place each push was had, or is reported as missing.
    accounted: u64,
    places: BTreeSet<u64>,
    /// The log had no push when the client joined, and none has come: the first one may have any offset, so what is
    /// missing before it can't be told.
    is_first: bool,
}

/// The client, and an app that checks what it is notified of.
struct App {
    client: Client,
    memberships: Memberships,
    is_open: bool,
    had: BTreeMap<String, Had>,
    /// Log, offset and place of the last push of each room.
    last: BTreeMap<String, (u64, u64, u64)>,
    logs: BTreeMap<String, u64>,
}

impl App {
    fn new() -> Self {
        let (client, memberships) = (Client::new(Instant::now()), Memberships::default());
        let (had, last, logs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { client, memberships, is_open: false, had, last, logs }
    }

    fn connect(&mut self, server: &mut Server, speaks_1_1: bool) {
        self.memberships.disconnected();
        self.is_open = false;
        self.client = Client::new(Instant::now());
        let resume = self.memberships.resume(RESUME_BYTES_MAX);
        self.client.resume(Instant::now(), 7, "token-7", &resume);
        server.accept(&self.client.outgoing().split(), speaks_1_1);
    }

    fn receive(&mut self, server: &mut Server, bytes: usize) {
        let rest = server.written.split_off(bytes.min(server.written.len()));
        let arrived = std::mem::replace(&mut server.written, rest);
        let mut events = Vec::new();
        self.client.receive(&arrived, |event| events.push(event)).expect("an honest gateway");
        events.into_iter().for_each(|event| self.handle(event, server));
    }

    fn handle(&mut self, event: Event, server: &Server) {
        match event {
            Event::Authenticated { session, .. } => {
                self.is_open = true;
                let changes = self.memberships.opened(&session);
                for room in &session.rooms {
                    self.told(room, &changes, server);
                }
                for change in changes {
                    if let Change::Refused { room } = change {
                        self.had.remove(&room);
                    }
                }
            }
            Event::Joined(room) => {
                let changes = Vec::from_iter(self.memberships.joined(&room));
                self.told(&room, &changes, server);
            }
            Event::Left { room } => {
                self.memberships.left(&room);
                self.had.remove(&room);
            }
            Event::Push { room, offset, biz_data, .. } => {
                let place = u64::from_be_bytes((&*biz_data).try_into().expect("a place"));
                self.pushed(room, offset, place);
            }
            other => panic!("{other:?}"),
        }
    }

    fn told(&mut self, room: &v1::Room, changes: &[Change], server: &Server) {
        if room.recovery() == Recovery::Refused {
            return;
        }
        let head = server.heads[&(room.log, room.head)];
        let is_gap = changes.contains(&Change::Gap { room: room.name.clone() });
        self.logs.insert(room.name.clone(), room.log);
        let is_new = !self.had.contains_key(&room.name);
        let had = self.had.entry(room.name.clone()).or_default();
        if is_new || is_gap {
            had.is_first = room.head == 0;
        }
        if is_new {
            let asked = self.last.get(&room.name).map(|(_, _, place)| *place);
            let complete = room.recovery() == Recovery::Complete;
            had.accounted = asked.filter(|_| complete).unwrap_or(head);
        } else if is_gap {
            had.accounted = head;
        }
    }

    fn pushed(&mut self, number: u32, offset: u64, place: u64) {
        let delivery = self.memberships.pushed(number, offset);
        let (room, is_gap) = match delivery {
            Delivery::New { room } => (room, false),
            Delivery::AfterGap { room, ref missing } => {
                assert_eq!(*missing.end(), offset - 1);
                (room, true)
            }
            Delivery::Repeat { room } => {
                assert!(self.had[room].places.contains(&place), "{room}: {place} was never had");
                return;
            }
            other => panic!("{other:?}"),
        };
        let had = self.had.get_mut(room).expect("a member");
        assert!(
            had.places.last().is_none_or(|last| *last < place),
            "{room}: {place} after {had:?}"
        );
        let is_told = is_gap == (place > had.accounted + 1) || had.is_first && !is_gap;
        assert!(is_told, "{room}: {place} after {had:?}, a gap: {is_gap}");
        had.is_first = false;
        had.places.insert(place);
        had.accounted = had.accounted.max(place);
        self.last.insert(room.to_owned(), (self.logs[room], offset, place));
    }
}

fn run(steps: Vec<Step>) {
    let (mut server, mut app) = (Server::new(), App::new());
    app.connect(&mut server, true);
    for step in steps {
        match step {
            Step::Publish(room, count) => (0..count).for_each(|_| server.publish(room)),
            Step::Sweep(room) => server.sweep(room),
            Step::Trim(room, keep) => {
                let pushes = &mut server.rooms[room].pushes;
                drop(pushes.drain(..pushes.len().saturating_sub(keep)));
            }
            Step::Restart(room, first) => server.restart(room, first),
            Step::Join(room) | Step::JoinAfter(room) if server.members.contains_key(&room) => {}
            // A gateway of version 1.0 has no members that a notice names.
            Step::Join(_) | Step::JoinAfter(_) if server.members.is_empty() => {}
            Step::Join(room) => {
                let room = server.join(room, None);
                server.notice(notice::What::Joined(room));
            }
            // The app asks when its session is open and it knows that it is no member.
            Step::JoinAfter(room) if app.is_open && !app.had.contains_key(ROOMS[room].0) => {
                let last = app.last.get(ROOMS[room].0).copied();
                if let Some((log, offset, _)) = last {
                    let (room, ticket) = (ROOMS[room].0.into(), Bytes::new());
                    app.memberships.restore(&v1::Position { room, log, offset, ticket });
                }
                let room = server.join(room, last.map(|(log, offset, _)| (log, offset)));
                server.notice(notice::What::Joined(room));
            }
            Step::JoinAfter(_) => {}
            Step::Leave(room) => {
                if server.members.remove(&room).is_some() {
                    server.notice(notice::What::Left(ROOMS[room].0.into()));
                }
            }
            Step::Expel(room) => server.rooms[room].tickets += 1,
            Step::Receive(bytes) => app.receive(&mut server, bytes),
            Step::Reconnect => app.connect(&mut server, true),
            Step::Visit10 => app.connect(&mut server, false),
        }
    }
    // Healing: all that is kept arrives.
    app.connect(&mut server, true);
    (0..ROOMS.len()).for_each(|room| server.sweep(room));
    app.receive(&mut server, usize::MAX);
    for (index, (name, _)) in ROOMS.iter().enumerate() {
        let had = app.had.get(*name);
        assert_eq!(had.is_some(), server.members.contains_key(&index), "{name}");
        let published = server.rooms[index].published;
        assert!(had.is_none_or(|had| had.accounted == published), "{name}: {had:?} of {published}");
    }
    assert!(app.had.contains_key(EVERYBODY));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn nothing_comes_twice_or_out_of_order_and_each_loss_is_a_gap(steps in vec(step(), 0..120)) {
        run(steps);
    }
}
