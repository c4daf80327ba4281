//! Clients that resume: rooms, positions, tickets, and what the session and notices report about them.

use std::time::Duration;

use tidegate::config::Rejoin;
use tidegate_backend::{Code, RoomId, UserId};
use tidegate_protocol::message::AUTHENTICATE;
use tidegate_protocol::proto::v1::{Position, Recovery, Resume, Room, notice::What};
use tidegate_testing::scripted::{JOIN, LEAVE, PUSH, push_order};
use tidegate_testing::{Phone, World, login, login_again};

const QUESTION: i32 = 50;

fn name(room: &str) -> RoomId {
    RoomId::new(room).unwrap()
}

/// A client of this user, with a session. It has read nothing.
fn log_in(world: &mut World, shard: usize, user_id: UserId) -> Phone {
    let phone = world.phone(shard);
    world.write_all(phone.peer, &login(user_id, 1));
    world.turns(6);
    phone
}

/// A client of this user that resumes with these positions.
fn resume(world: &mut World, shard: usize, user_id: UserId, positions: &[Position]) -> Phone {
    let mut phone = world.phone(shard);
    let resume = Resume { positions: positions.to_vec() };
    world.write_all(phone.peer, &login_again(user_id, 1, &resume));
    world.turns(10);
    phone.read(world);
    phone
}

/// Joins a room. Returns what the client was sent about it.
fn join(world: &mut World, phone: &mut Phone, room: &str) -> Room {
    phone.read(world);
    let before = phone.notices.len();
    world.ask(phone, JOIN, 2, room.as_bytes());
    world.turns(4);
    phone.read(world);
    match phone.notices.get(before) {
        Some((_, What::Joined(joined))) => joined.clone(),
        other => panic!("{other:?}"),
    }
}

/// The positions of a client of user 7 that has joined three rooms, seen no push, and lost its connection.
fn lost_in_three_rooms(world: &mut World) -> Vec<Position> {
    let mut phone = log_in(world, 0, 7);
    let rooms = ["a", "b", "c"].map(|room| join(world, &mut phone, room));
    world.reset(phone.peer);
    world.turns(6);
    rooms.iter().map(|room| position(room, 0)).collect()
}

/// The position of a client that has seen a room's pushes up to an offset.
fn position(room: &Room, offset: u64) -> Position {
    let Room { name, log, ticket, .. } = room.clone();
    Position { room: name, log, offset, ticket }
}

/// The offsets of the pushes with this room's number, in the order in which they came.
fn offsets(phone: &Phone, room: &Room) -> Vec<u64> {
    let of_room = phone.received.iter().filter(|push| push.room == room.number);
    of_room.map(|push| push.offset).collect()
}

/// Where something is in what a phone has received.
fn index(phone: &Phone, kind: i32) -> usize {
    phone.received.iter().position(|received| received.kind == kind).expect("it was received")
}

#[test]
fn a_member_is_notified_of_a_room_before_its_first_push_and_when_it_has_left() {
    let mut world = World::new(|config| config.shards = 2);
    for shard in 0..2 {
        let mut phone = log_in(&mut world, shard, 7);
        let room = format!("room-{shard}");
        let joined = join(&mut world, &mut phone, &room);
        assert_eq!((&joined.name, joined.head), (&room, 0));
        assert_eq!(joined.recovery(), Recovery::NotAsked);
        assert!(joined.number > 0 && joined.log > 0 && !joined.ticket.is_empty());
        let order = push_order(Some(&name(&room)), QUESTION, b"?");
        world.ask(&phone, PUSH, 3, &order);
        world.turns(4);
        phone.read(&mut world);
        assert_eq!(offsets(&phone, &joined).len(), 1);
        assert!(phone.notices[0].0 <= index(&phone, QUESTION));
        world.ask(&phone, LEAVE, 4, room.as_bytes());
        world.turns(4);
        phone.read(&mut world);
        assert_eq!(phone.notices.last().map(|notice| &notice.1), Some(&What::Left(room)));
        assert_eq!(world.count(|stats| stats.notices), 2 * (shard as u64 + 1));
    }
}

#[test]
fn a_client_resumes_its_rooms_and_gets_what_it_missed_in_one_round_trip() {
    let mut world = World::new(|config| config.shards = 2);
    let mut phone = log_in(&mut world, 0, 7);
    let rooms: Vec<Room> =
        ["a", "b", "c", "d"].map(|room| join(&mut world, &mut phone, room)).into();
    let everybody = phone.session().rooms[0].clone();
    assert_eq!((everybody.name.as_str(), everybody.recovery()), ("*", Recovery::NotAsked));
    assert!(everybody.ticket.is_empty(), "everybody's room needs none");
    for room in &rooms {
        world.push_room(&name(&room.name), QUESTION, 10);
    }
    world.push_all(QUESTION, 10);
    world.turns(6);
    phone.read(&mut world);
    let seen: Vec<u64> = rooms.iter().map(|room| offsets(&phone, room)[0]).collect();
    let seen_of_everybody = offsets(&phone, &everybody)[0];
    world.reset(phone.peer);
    world.turns(4);
    for _ in 0..3 {
        rooms.iter().for_each(|room| world.push_room(&name(&room.name), QUESTION, 10));
        world.push_all(QUESTION, 10);
    }
    world.turns(6);
    let calls = world.count(|stats| stats.calls);
    let mut positions: Vec<Position> =
        rooms.iter().zip(&seen).map(|(room, &seen)| position(room, seen)).collect();
    positions.push(position(&everybody, seen_of_everybody));
    let phone = resume(&mut world, 1, 7, &positions);
    assert_eq!(phone.received[0].kind, AUTHENTICATE, "nothing comes before the session");
    let resumed = phone.session().rooms;
    let names: Vec<&str> = resumed.iter().map(|room| room.name.as_str()).collect();
    assert_eq!(names, ["*", "a", "b", "c", "d"]);
    for (resumed, &seen) in resumed.iter().zip([seen_of_everybody].iter().chain(&seen)) {
        assert_eq!(
            (resumed.recovery(), resumed.head),
            (Recovery::Complete, seen + 3),
            "{}",
            resumed.name
        );
        assert_eq!(offsets(&phone, resumed), [seen + 1, seen + 2, seen + 3], "{}", resumed.name);
        assert_eq!(resumed.ticket.is_empty(), resumed.name == "*");
    }
    assert_eq!(world.count(|stats| stats.calls), calls, "no backend is asked");
    assert_eq!(world.count(|stats| stats.resumes), 1);
    assert!(phone.notices.is_empty(), "the session has said it");
}

#[test]
fn what_is_lost_is_said_at_once() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.log_bytes_max = 500;
        config.rooms.idle_ttl = Duration::from_secs(60);
    });
    let mut phone = log_in(&mut world, 0, 7);
    let [trimmed, closed] = ["trimmed", "closed"].map(|room| join(&mut world, &mut phone, room));
    world.push_room(&name("trimmed"), QUESTION, 10);
    world.push_room(&name("closed"), QUESTION, 10);
    world.turns(4);
    phone.read(&mut world);
    let positions = [&trimmed, &closed].map(|room| position(room, offsets(&phone, room)[0]));
    world.reset(phone.peer);
    world.turns(4);
    (0..40).for_each(|_| world.push_room(&name("trimmed"), QUESTION, 10));
    world.turns(4);
    for _ in 0..200 {
        world.push_room(&name("trimmed"), QUESTION, 10);
        world.pass(Duration::from_secs(1));
    }
    let phone = resume(&mut world, 0, 7, &positions);
    let resumed = phone.session().rooms;
    assert_eq!((resumed[1].recovery(), resumed[1].log), (Recovery::Gap, trimmed.log));
    let left = offsets(&phone, &resumed[1]);
    assert_eq!(left.last(), Some(&resumed[1].head), "what the log still holds follows");
    assert!(left[0] > positions[0].offset + 1);
    assert_eq!((resumed[2].recovery(), resumed[2].head), (Recovery::Gap, 0));
    assert_ne!(resumed[2].log, closed.log, "the room was closed: a new log has begun");
}

#[test]
fn a_ticket_holds_for_its_user_its_room_and_its_time_alone() {
    let mut world = World::new(|config| {
        config.rooms.ticket_ttl = Duration::from_secs(3_600);
        config.session.connections_per_user_max = 8;
        let strict =
            tidegate::config::RoomPolicy { rejoin: Rejoin::Backend, ..config.rooms.default_policy };
        config.rooms.policies = vec![("vip".into(), strict)];
    });
    let mut phone = log_in(&mut world, 0, 7);
    let open = join(&mut world, &mut phone, "open");
    let vip = join(&mut world, &mut phone, "vip-1");
    assert!(vip.ticket.is_empty(), "only a backend lets someone in");
    let refusals = |world: &mut World, user_id, positions: &[Position]| {
        let phone = resume(world, 0, user_id, positions);
        let resumed = phone.session().rooms.into_iter().skip(1);
        resumed.map(|room| room.recovery() == Recovery::Refused).collect::<Vec<_>>()
    };
    let good = position(&open, 0);
    let for_vip = Position { room: "vip-1".into(), ..good.clone() };
    let for_other = Position { room: "other".into(), ..good.clone() };
    let without = Position { ticket: Vec::new().into(), ..good.clone() };
    let nameless = Position { room: String::new(), ..good.clone() };
    let positions = [good.clone(), for_vip, for_other];
    assert_eq!(refusals(&mut world, 7, &positions), [false, true, true]);
    assert_eq!(refusals(&mut world, 8, std::slice::from_ref(&good)), [true]);
    assert_eq!(refusals(&mut world, 7, &[without, nameless]), [true, true]);
    assert_eq!(world.count(|stats| stats.refused_tickets), 5);
    world.pass(Duration::from_secs(3_600));
    assert_eq!(refusals(&mut world, 7, &[good]), [true]);
}

#[test]
fn a_client_names_no_more_rooms_than_it_may_have_and_each_once() {
    let mut world = World::new(|config| config.rooms.rooms_per_connection_max = 2);
    let mut phone = log_in(&mut world, 0, 7);
    let a = join(&mut world, &mut phone, "a");
    let b = join(&mut world, &mut phone, "b");
    world.ask(&phone, JOIN, 3, b"c");
    world.turns(4);
    phone.read(&mut world);
    let Some((_, What::Joined(c))) = phone.notices.pop() else { panic!("a notice") };
    assert_eq!((c.name.as_str(), c.recovery(), c.number), ("c", Recovery::Refused, 0));
    world.reset(phone.peer);
    world.turns(4);
    let positions = [position(&a, 0), position(&a, 0), position(&b, 0), position(&c, 0)];
    let phone = resume(&mut world, 0, 7, &positions);
    let resumed = phone.session().rooms;
    let outcomes: Vec<_> = resumed.iter().map(|room| (&room.name[..], room.recovery())).collect();
    let (complete, refused) = (Recovery::Complete, Recovery::Refused);
    assert_eq!(
        outcomes,
        [("*", Recovery::NotAsked), ("a", complete), ("b", complete), ("c", refused)]
    );
    assert_eq!(world.level(|levels| levels.memberships), 3);
}

#[test]
fn what_is_pushed_while_a_client_resumes_follows_its_session() {
    let mut world = World::new(|config| config.shards = 2);
    let positions = lost_in_three_rooms(&mut world);
    for shard in 0..2 {
        // One shard takes a turn, then the other: so each step of the resume meets pushes.
        let mut phone = world.phone(shard);
        let resume = Resume { positions: positions.clone() };
        world.write_all(phone.peer, &login_again(7, 1, &resume));
        let mut pushed = 0;
        for step in 0..12 {
            world.turn(step % 2);
            positions.iter().for_each(|at| world.push_room(&name(&at.room), QUESTION, 10));
            world.push_user(7, QUESTION + 1, b"to you");
            world.push_all(QUESTION + 2, 10);
            pushed += 1;
        }
        world.turns(10);
        phone.read(&mut world);
        assert_eq!(phone.received[0].kind, AUTHENTICATE, "nothing comes before the session");
        for resumed in &phone.session().rooms[1..] {
            let got = offsets(&phone, resumed);
            assert_eq!(resumed.recovery(), Recovery::Complete);
            assert!(got.is_sorted_by(|one, next| one + 1 == *next), "{got:?}");
            assert!(got.len() >= pushed, "{} of {pushed}", got.len());
        }
        assert_eq!(world.commands_in_flight(), 0);
        world.reset(phone.peer);
        world.turns(6);
    }
}

#[test]
fn a_client_with_a_session_can_name_rooms_too() {
    let mut world = World::new(|_| {});
    let mut phone = log_in(&mut world, 0, 7);
    let room = join(&mut world, &mut phone, "a");
    world.ask(&phone, LEAVE, 3, b"a");
    world.push_room(&name("a"), QUESTION, 10);
    world.turns(4);
    phone.read(&mut world);
    phone.received.clear();
    let resume = Resume { positions: vec![position(&room, 0)] };
    world.write_all(phone.peer, &login_again(7, 9, &resume));
    world.turns(6);
    phone.read(&mut world);
    assert_eq!((phone.received[0].kind, phone.received[0].sequence), (AUTHENTICATE, 9));
    let resumed = &phone.session().rooms[1];
    assert_eq!(resumed.recovery(), Recovery::Complete);
    assert_eq!(offsets(&phone, resumed).len(), 1);
}

#[test]
fn a_client_may_name_a_room_that_it_is_in_with_a_good_ticket_or_a_bad_one() {
    let mut world = World::new(|_| {});
    let mut phone = log_in(&mut world, 0, 7);
    let room = join(&mut world, &mut phone, "a");
    let without_position = Position { log: 0, ..position(&room, 0) };
    let without_ticket = Position { ticket: Vec::new().into(), ..position(&room, 0) };
    for (sequence, named) in [(9, without_position), (10, without_ticket)] {
        let resume = Resume { positions: vec![named] };
        world.write_all(phone.peer, &login_again(7, sequence, &resume));
        world.turns(6);
        phone.read(&mut world);
        assert_eq!(phone.received.last().map(|answer| answer.sequence), Some(sequence));
        let resumed = phone.session().rooms;
        assert_eq!((resumed.len(), resumed[1].recovery()), (2, Recovery::NotAsked));
        assert_eq!(resumed[1].number, room.number);
    }
    world.push_user(7, QUESTION, b"to you");
    world.turns(4);
    phone.read(&mut world);
    assert_eq!(phone.count(QUESTION), 1, "nothing waits now");
}

#[test]
fn names_beyond_twice_what_a_client_may_have_are_ignored() {
    let mut world = World::new(|config| config.rooms.rooms_per_connection_max = 2);
    let named = |n: u32| Position { room: format!("room-{n}"), ..Position::default() };
    let positions: Vec<Position> = (0..500).map(named).collect();
    let phone = resume(&mut world, 0, 7, &positions);
    assert_eq!(phone.session().rooms.len(), 1 + 4);
}

#[test]
fn a_client_that_disconnects_while_it_resumes_leaves_nothing() {
    let mut world = World::new(|config| config.shards = 2);
    let positions = lost_in_three_rooms(&mut world);
    for turns in 0..10 {
        let phone = world.phone(turns % 2);
        let resume = Resume { positions: positions.clone() };
        world.write_all(phone.peer, &login_again(7, 1, &resume));
        (0..turns).for_each(|turn| world.turn(turn % 2));
        world.push_user(7, QUESTION, b"to you");
        world.reset(phone.peer);
        world.turns(10);
        assert_eq!(world.level(|levels| levels.memberships), 0, "after {turns} turns");
        assert_eq!(world.level(|levels| levels.sessions), 0, "after {turns} turns");
        assert_eq!(world.commands_in_flight(), 0, "after {turns} turns");
    }
    // The next connection of the slot has nothing of it.
    let mut phone = log_in(&mut world, 0, 8);
    phone.read(&mut world);
    assert_eq!(phone.session().rooms.len(), 1);
}

#[test]
fn an_expelled_user_is_out_until_a_backend_lets_it_in() {
    let mut world = World::new(|config| {
        config.shards = 2;
        config.session.connections_per_user_max = 8;
    });
    let mut phones = [0, 1].map(|shard| log_in(&mut world, shard, 7));
    let mut other = log_in(&mut world, 1, 8);
    for room in ["a", "b"] {
        let joined = phones.each_mut().map(|phone| join(&mut world, phone, room));
        let of_other = join(&mut world, &mut other, room);
        world.advance(Duration::from_secs(1));
        world.gateway().expel(7, &name(room)).unwrap();
        world.turns(6);
        for phone in &mut phones {
            phone.read(&mut world);
            assert_eq!(
                phone.notices.last().map(|notice| &notice.1),
                Some(&What::Left(room.into()))
            );
        }
        let recovery = |world: &mut World, user_id, room| {
            let mut phone = resume(world, 0, user_id, &[position(room, 0)]);
            world.hang_up(phone.peer);
            world.turns(6);
            phone.read(world);
            phone.session().rooms[1].recovery()
        };
        assert_eq!(recovery(&mut world, 7, &joined[0]), Recovery::Refused);
        assert_eq!(recovery(&mut world, 8, &of_other), Recovery::Complete);
        // With the ticket of a later membership it may rejoin.
        world.advance(Duration::from_secs(2));
        let again = join(&mut world, &mut phones[1], room);
        assert_eq!(recovery(&mut world, 7, &again), Recovery::Complete);
        assert_eq!(world.commands_in_flight(), 0);
    }
}

#[test]
fn a_resume_that_is_none_is_malformed() {
    let mut world = World::new(|_| {});
    let mut phone = world.phone(0);
    let request = tidegate_protocol::Request {
        kind: AUTHENTICATE,
        user_id: 7,
        token: "token-7",
        biz_data: &[0x0a, 0x05, 1],
        sequence: 1,
    };
    world.write_all(phone.peer, &tidegate_testing::frame(&request));
    world.turns(4);
    phone.read(&mut world);
    assert_eq!(phone.last_code(), Some(Code::Malformed));
}
