//! Clients that resume: notices, tickets, positions, and what is reported about each room.

use std::ops::RangeInclusive;

use tidegate_protocol::client::Event;
use tidegate_protocol::proto::v1::{Position, Recovery, Room, Session, notice::What};
use tidegate_tests::phone::{demo, said};
use tidegate_tests::{Gateway, Phone, Push, Setup};

/// Joins a room. Returns how the gateway describes it.
fn join(phone: &mut Phone, room: &str) -> Room {
    phone.join(room, 0);
    let joined = phone.joined();
    assert_eq!(joined.name, room);
    joined
}

/// The position of a client that has seen a room's pushes up to an offset.
fn position(room: &Room, offset: u64) -> Position {
    let Room { name, log, ticket, .. } = room.clone();
    Position { room: name, log, offset, ticket }
}

/// A client that resumes with these positions, on a new connection.
fn resume(gateway: &Gateway, user_id: u64, positions: &[Position]) -> (Phone, Session) {
    let mut phone = gateway.connect();
    let session = phone.login_again(user_id, positions);
    (phone, session)
}

fn outcomes(session: &Session) -> Vec<(&str, Recovery)> {
    session.rooms.iter().map(|room| (&*room.name, room.recovery())).collect()
}

/// Checks that these are the pushes of a room with these offsets, in order.
fn check(pushes: &[Push], room: &Room, offsets: RangeInclusive<u64>) {
    let of_room = pushes.iter().filter(|push| push.room == room.number);
    assert!(of_room.map(|push| push.offset).eq(offsets), "{room:?}: {pushes:?}");
}

#[test]
fn a_member_is_notified_of_a_room_before_its_first_push_and_when_it_has_left() {
    let gateway = Setup::demo().shards(4).start();
    for user_id in 1..=8 {
        let (mut phone, room) = (gateway.login(user_id), format!("room-{user_id}"));
        let everybody = phone.session().rooms[0].clone();
        assert_eq!((&*everybody.name, everybody.recovery()), ("*", Recovery::NotAsked));
        phone.join(&room, 0);
        phone.say(&room, "hello");
        let notice = phone.notice();
        let What::Joined(joined) = &notice.what else { panic!("{notice:?}") };
        assert_eq!((notice.after_pushes, &*joined.name, joined.head), (0, &*room, 0));
        assert_eq!(joined.recovery(), Recovery::NotAsked);
        assert!(joined.log > 0 && !joined.ticket.is_empty());
        assert!(joined.number > 0 && joined.number != everybody.number);
        assert_eq!(phone.push().room, joined.number);
        phone.ask(demo::PUSH_ALL, b"to all").unwrap();
        assert_eq!(phone.push().room, everybody.number);
        phone.leave(&room);
        assert_eq!(phone.notice().what, What::Left(room));
        assert_eq!(phone.other_notices(), []);
    }
}

#[test]
fn a_member_that_resumes_gets_what_it_missed_before_newer_pushes() {
    let gateway = Setup::demo().shards(4).start();
    let mut talker = gateway.login(8);
    for round in 0..8 {
        let mut phone = gateway.login(7);
        let mut rooms = vec![phone.session().rooms[0].clone()];
        rooms.extend((0..3).map(|n| join(&mut phone, &format!("room-{round}-{n}"))));
        talker.ask(demo::PUSH_ALL, b"seen").unwrap();
        rooms[1..].iter().for_each(|room| talker.say(&room.name, "seen"));
        let seen = phone.pushes(4);
        let seen_in = |room: &Room| {
            seen.iter().find(|push| push.room == room.number).expect("a push of the room").offset
        };
        let positions: Vec<_> = rooms.iter().map(|room| position(room, seen_in(room))).collect();
        phone.reset();
        let missed = 5;
        for room in rooms[1..].iter().cycle().take(3 * missed) {
            talker.say(&room.name, "missed");
        }
        (0..missed).for_each(|_| drop(talker.ask(demo::PUSH_ALL, b"missed").unwrap()));
        // It resumes while pushes continue. The rooms are named in another order.
        let positions: Vec<_> = positions.into_iter().rev().collect();
        let mut phone = gateway.connect();
        phone.send_login_again(7, &positions);
        let newer = 20;
        let says: Vec<_> = rooms[1..].iter().map(|room| said(&room.name, "newer")).collect();
        let says: Vec<_> =
            says.iter().cycle().take(3 * newer).map(|say| (demo::SAY, say)).collect();
        talker.send_together(&says);
        let first = phone.next().unwrap();
        let Event::Authenticated { session, .. } = first else {
            panic!("{first:?} before the session");
        };
        let names: Vec<_> = session.rooms.iter().map(|room| &*room.name).collect();
        let wanted: Vec<_> = ["*"]
            .into_iter()
            .chain(positions[..3].iter().map(|position| &*position.room))
            .collect();
        assert_eq!(names, wanted);
        let pushes = phone.pushes(4 * missed + 3 * newer);
        for room in &session.rooms {
            let position = positions.iter().find(|position| position.room == room.name).unwrap();
            assert_eq!((room.recovery(), room.log), (Recovery::Complete, position.log));
            assert_eq!(room.ticket.is_empty(), room.name == "*");
            let count = missed + if room.name == "*" { 0 } else { newer };
            check(&pushes, room, position.offset + 1..=position.offset + count as u64);
        }
        assert_eq!(phone.other_notices(), [], "the session has said it");
    }
}

#[test]
fn after_a_crash_the_ticket_holds_and_the_gap_is_said_at_once() {
    let mut gateway = Setup::demo().on_a_reserved_port().shards(2).start();
    let mut phone = gateway.login(7);
    let everybody = phone.session().rooms[0].clone();
    let room = join(&mut phone, "quiz");
    phone.say("quiz", "before");
    let offset = phone.push().offset;
    gateway.crash_and_restart();
    let positions = [position(&everybody, 0), position(&room, offset)];
    let (mut phone, session) = resume(&gateway, 7, &positions);
    assert_eq!(outcomes(&session), [("*", Recovery::Gap), ("quiz", Recovery::Gap)]);
    let [_, again] = &session.rooms[..] else { panic!("{session:?}") };
    assert_ne!(again.log, room.log);
    assert_eq!(phone.leftovers(), [], "the old log is lost");
    phone.say("quiz", "after");
    let push = phone.push();
    assert_eq!((push.room, &*push.text()), (again.number, "after"));
    // From here on nothing is missing.
    drop(phone);
    let (mut phone, session) = resume(&gateway, 7, &[position(again, again.head)]);
    assert_eq!(session.rooms[1].recovery(), Recovery::Complete);
    assert_eq!(phone.push().text(), "after");
}

#[test]
fn pushes_that_the_log_no_longer_holds_are_a_gap_in_the_session() {
    let gateway = Setup::demo().set("rooms.log_bytes_max", 10_000).start();
    let mut phone = gateway.login(7);
    let room = join(&mut phone, "quiz");
    phone.say("quiz", "seen");
    let seen = phone.push().offset;
    drop(phone);
    let operator = gateway.operator();
    for _ in 0..50 {
        operator.push_room("quiz", 50, &[b'.'; 1000]);
    }
    let (mut phone, session) = resume(&gateway, 7, &[position(&room, seen)]);
    let again = &session.rooms[1];
    assert_eq!((again.recovery(), again.log), (Recovery::Gap, room.log));
    assert_eq!(again.head, seen + 50);
    operator.push_room("quiz", 50, b"newer");
    let mut pushes = vec![phone.push()];
    while pushes.last().unwrap().biz_data != "newer" {
        pushes.push(phone.push());
    }
    assert!(pushes[0].offset > seen + 1, "pushes are missing");
    check(&pushes, again, pushes[0].offset..=again.head + 1);
}

#[test]
fn a_ticket_of_another_user_or_room_does_not_let_in() {
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    let room = join(&mut phone, "quiz");
    let other = join(&mut phone, "other");
    let with_another_ticket = Position { ticket: other.ticket, ..position(&room, 0) };
    let without = Position { ticket: bytes::Bytes::new(), ..position(&room, 0) };
    let cut = Position { ticket: room.ticket.slice(1..), ..position(&room, 0) };
    let tries = [(8, position(&room, 0)), (7, with_another_ticket), (7, without), (7, cut)];
    drop(phone);
    operator.wait_for_total("memberships", 0);
    for (user_id, position) in tries {
        let (mut phone, session) = resume(&gateway, user_id, &[position]);
        assert_eq!(outcomes(&session), [("*", Recovery::NotAsked), ("quiz", Recovery::Refused)]);
        let refused = &session.rooms[1];
        assert_eq!((refused.number, refused.log, refused.head), (0, 0, 0));
        assert!(refused.ticket.is_empty());
        assert_eq!(operator.push_room("quiz", 50, b"secret"), 0);
        assert_eq!(phone.leftovers(), []);
    }
    operator.wait_for_metric("tidegate_tickets_refused_total", "", |n| n == 4.0);
    // The ticket that was shown by others still lets its user in.
    let (_, session) = resume(&gateway, 7, &[position(&room, 0)]);
    assert_eq!(session.rooms[1].recovery(), Recovery::Complete);
}

#[test]
fn where_only_the_backend_lets_in_a_member_has_no_ticket() {
    let policy = "[[room_policies]]\nprefix = \"vip-\"\nrejoin = \"backend\"\n";
    let gateway = Setup::demo().toml(policy).start();
    let mut phone = gateway.login(7);
    let vip = join(&mut phone, "vip-1");
    assert!(vip.ticket.is_empty());
    let open = join(&mut phone, "open");
    drop(phone);
    // The ticket of another room, so that there is one at all.
    let wrong = Position { ticket: open.ticket.clone(), ..position(&vip, 0) };
    let (mut phone, session) = resume(&gateway, 7, &[wrong, position(&open, 0)]);
    let outcomes = outcomes(&session);
    assert_eq!(outcomes[1..], [("vip-1", Recovery::Refused), ("open", Recovery::Complete)]);
    assert_eq!(join(&mut phone, "vip-1").recovery(), Recovery::NotAsked);
}

#[test]
fn a_new_member_gets_the_last_push_where_the_policy_replays_it() {
    let policy = "[[room_policies]]\nprefix = \"now-\"\nreplay_on_join = 1\n";
    let gateway = Setup::demo().shards(2).toml(policy).start();
    let mut talker = gateway.login(8);
    for room in ["now-1", "now-2", "other"] {
        ["first", "second"].iter().for_each(|text| talker.say(room, text));
        let mut phone = gateway.login(7);
        let joined = join(&mut phone, room);
        assert_eq!(joined.recovery(), Recovery::NotAsked);
        talker.say(room, "third");
        if room != "other" {
            let push = phone.push();
            assert_eq!((&*push.text(), push.offset), ("second", joined.head));
        }
        let push = phone.push();
        assert_eq!((&*push.text(), push.offset), ("third", joined.head + 1));
        // A client that resumes gets what it missed, and no more.
        drop(phone);
        talker.say(room, "fourth");
        talker.say(room, "fifth");
        let (mut phone, session) = resume(&gateway, 7, &[position(&joined, push.offset)]);
        assert_eq!(session.rooms[1].recovery(), Recovery::Complete);
        assert_eq!(phone.pushes(2).iter().map(Push::text).collect::<Vec<_>>(), ["fourth", "fifth"]);
        assert_eq!(phone.leftovers(), []);
    }
}

#[test]
fn a_client_of_version_1_0_gets_its_rooms_from_the_backend_as_before() {
    let gateway = Setup::demo().shards(2).start();
    let mut talker = gateway.login(8);
    let mut phone = gateway.login(7);
    phone.join("quiz", 0);
    talker.say("quiz", "seen");
    let seen = phone.push().offset;
    drop(phone);
    talker.say("quiz", "missed");
    // It names no rooms, so it is in none but everybody's.
    let mut phone = gateway.login(7);
    assert_eq!(phone.session().rooms.len(), 1);
    talker.say("quiz", "not for it");
    assert_eq!(phone.leftovers(), []);
    phone.join("quiz", seen);
    talker.say("quiz", "newer");
    let pushes = phone.pushes(3);
    let texts = pushes.iter().map(Push::text);
    assert!(texts.eq(["missed", "not for it", "newer"]), "{pushes:?}");
    assert!(pushes.iter().map(|push| push.offset).eq(seen + 1..=seen + 3));
    phone.assert_is_served();
}

#[test]
fn clients_that_resume_together_cause_no_calls_to_backends() {
    const CROWD: u64 = 350;
    let gateway = Setup::demo().shards(2).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=CROWD).map(|user_id| gateway.login(user_id)).collect();
    let positions: Vec<Vec<_>> = phones
        .iter_mut()
        .map(|phone| ["a", "b", "c"].map(|room| position(&join(phone, room), 0)).into())
        .collect();
    phones.into_iter().for_each(Phone::reset);
    operator.wait_for_total("memberships", 0);
    let joins = 3.0 * CROWD as f64;
    operator.wait_for_metric("tidegate_calls_total", "", |n| n == joins);
    for room in ["a", "b", "c"] {
        operator.push_room(room, 50, b"missed");
    }
    let mut phones: Vec<_> = positions.iter().map(|_| gateway.connect()).collect();
    for (index, (phone, positions)) in phones.iter_mut().zip(&positions).enumerate() {
        phone.send_login_again(index as u64 + 1, positions);
    }
    for phone in &mut phones {
        let session = phone.wait_for(|event| match event {
            Event::Authenticated { session, .. } => Some(session.clone()),
            _ => None,
        });
        assert!(session.rooms[1..].iter().all(|room| room.recovery() == Recovery::Complete));
        let pushes = phone.pushes(3);
        session.rooms[1..].iter().for_each(|room| check(&pushes, room, room.head..=room.head));
    }
    assert_eq!(operator.members("a"), CROWD);
    operator.wait_for_metric("tidegate_resumes_total", "", |n| n == CROWD as f64);
    assert_eq!(operator.metric("tidegate_calls_total", ""), Some(joins));
}
