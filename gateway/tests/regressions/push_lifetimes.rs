//! Pushes with a time to live: after it, they are offered to no one, and no offset changes.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tidegate::config::SlowMember;
use tidegate::shard::rooms::home;
use tidegate::shard::users;
use tidegate_backend::{CommandOutcome, Done, Nobody, Push, RoomId, UserId};
use tidegate_protocol::proto::v1::{Position, Recovery, Resume, Room, notice::What};
use tidegate_testing::scripted::{JOIN, LEAVE};
use tidegate_testing::{Phone, World, login_again};

const QUESTION: i32 = 50;

const TTL: Duration = Duration::from_millis(100);

fn room() -> RoomId {
    RoomId::new("room").unwrap()
}

/// A client in the room, and what it was sent about it.
fn member(world: &mut World, shard: usize) -> (Phone, Room) {
    let mut phone = world.log_in(shard);
    world.ask(&phone, JOIN, 1, b"room");
    world.turns(6);
    phone.read(world);
    let joined = match phone.notices.last() {
        Some((_, What::Joined(joined))) => joined.clone(),
        other => panic!("{other:?}"),
    };
    (phone, joined)
}

fn give(world: &mut World, push: Push) -> Receiver<CommandOutcome> {
    let (sender, outcome) = channel();
    world.gateway().report_to(move |outcome| sender.send(outcome).unwrap()).push(push);
    world.turns(6);
    outcome
}

fn lasting(data: &'static str) -> Push {
    Push::to_room(&room(), QUESTION, data)
}

fn brief(data: &'static str) -> Push {
    lasting(data).ttl(TTL)
}

/// The texts of the questions that a client has received since the last look.
fn questions(world: &mut World, phone: &mut Phone) -> Vec<String> {
    phone.read(world);
    let questions = phone.received.drain(..).filter(|got| got.kind == QUESTION);
    questions.map(|got| String::from_utf8_lossy(&got.biz_data).into_owned()).collect()
}

/// A client that resumes the room on a shard, after an offset.
fn resume(world: &mut World, shard: usize, room: &Room, offset: u64) -> Phone {
    let Room { name, log, ticket, .. } = room.clone();
    let positions = vec![Position { room: name, log, offset, ticket }];
    let mut phone = world.phone(shard);
    let user_id = world.next_user_id - 1;
    world.write_all(phone.peer, &login_again(user_id, 1, &Resume { positions }));
    world.turns(10);
    phone.read(world);
    phone
}

#[test]
fn a_push_that_expires_in_a_merge_window_is_offered_to_no_member() {
    for shards in [1, 2] {
        let mut world = World::new(|config| {
            config.shards = shards;
            config.rooms.default_policy.merge_window = 2 * TTL;
        });
        let mut phones: Vec<_> =
            (0..4).map(|n| member(&mut world, n % usize::from(shards)).0).collect();
        let outcomes = [brief("a"), lasting("b"), brief("c"), lasting("d").ttl(10 * TTL)]
            .map(|push| give(&mut world, push));
        world.pass(2 * TTL);
        let expired = Ok(Done::nobody(Nobody::Expired));
        let sent = Ok(Done::with_connections(4));
        let ended = outcomes.map(|outcome| outcome.try_recv().expect("the window has ended"));
        assert_eq!(ended, [expired, sent, expired, sent]);
        let first = world.room_info(room()).unwrap().first_offset;
        for phone in &mut phones {
            phone.read(&mut world);
            let offsets = phone.received.iter().filter(|got| got.kind == QUESTION);
            let offsets: Vec<_> = offsets.map(|got| got.offset).collect();
            assert_eq!(offsets, [first + 1, first + 3], "no offset changes");
            assert_eq!(questions(&mut world, phone), ["b", "d"]);
        }
        assert_eq!(world.count(|stats| stats.expired_pushes), 2 * u64::from(shards));
        assert_eq!(world.commands_in_flight(), 0);
    }
}

#[test]
fn a_window_in_which_all_expires_sends_nothing() {
    let mut world = World::new(|config| config.rooms.default_policy.merge_window = 2 * TTL);
    let (mut phone, _) = member(&mut world, 0);
    let sends = world.count(|stats| stats.sends);
    let outcomes = ["a", "b"].map(|data| give(&mut world, brief(data)));
    world.pass(2 * TTL);
    for outcome in outcomes {
        assert_eq!(outcome.try_recv(), Ok(Ok(Done::nobody(Nobody::Expired))));
    }
    assert_eq!(world.count(|stats| stats.sends), sends);
    give(&mut world, lasting("c"));
    world.pass(2 * TTL);
    assert_eq!(questions(&mut world, &mut phone), ["c"]);
    assert_eq!(world.count(|stats| stats.room_deliveries), 1);
}

#[test]
fn a_member_that_leaves_in_the_window_gets_the_push_and_counts() {
    let mut world = World::new(|config| config.rooms.default_policy.merge_window = 2 * TTL);
    let (mut leaver, _) = member(&mut world, 0);
    let (mut stayer, _) = member(&mut world, 0);
    let outcome = give(&mut world, brief("a"));
    world.ask(&leaver, LEAVE, 2, b"room");
    world.turns(6);
    assert_eq!(questions(&mut world, &mut leaver), ["a"]);
    world.pass(2 * TTL);
    assert_eq!(questions(&mut world, &mut stayer), [""; 0]);
    assert_eq!(outcome.try_recv(), Ok(Ok(Done::with_connections(1))));
}

#[test]
fn a_member_that_leaves_gets_no_expired_push() {
    let mut world = World::new(|config| config.rooms.default_policy.merge_window = 10 * TTL);
    let (mut leaver, _) = member(&mut world, 0);
    give(&mut world, brief("a"));
    give(&mut world, lasting("b"));
    world.pass(TTL);
    world.ask(&leaver, LEAVE, 2, b"room");
    world.turns(6);
    assert_eq!(questions(&mut world, &mut leaver), ["b"]);
}

#[test]
fn a_slow_member_is_not_sent_what_has_expired_meanwhile() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.slow_member = SlowMember::Close;
    });
    let (mut slow, _) = member(&mut world, 0);
    world.set_window(slow.peer, 0);
    let outcomes = [
        lasting("under way"),
        brief("a"),
        lasting("b"),
        brief("c"),
        brief("d"),
        lasting("e"),
        brief("f"),
    ]
    .map(|push| give(&mut world, push));
    for outcome in outcomes {
        assert_eq!(outcome.try_recv(), Ok(Ok(Done::with_connections(1))), "it was offered in time");
    }
    world.pass(TTL);
    world.set_window(slow.peer, 1 << 20);
    world.turns(6);
    assert_eq!(questions(&mut world, &mut slow), ["under way", "b", "e"]);
    assert_eq!(world.count(|stats| stats.room_deliveries), 3);
    assert_eq!(world.count(|stats| stats.skipped_pushes), 0);
    give(&mut world, lasting("g"));
    assert_eq!(questions(&mut world, &mut slow), ["g"]);
}

#[test]
fn a_client_that_resumes_gets_a_gap_where_a_push_has_expired() {
    // On the shard of the first member, and on another one, which gets a copy of the log.
    for shard in [0, 1] {
        let mut world = World::new(|config| config.shards = 2);
        let (_stayer, _) = member(&mut world, 0);
        let (mut phone, room) = member(&mut world, 0);
        give(&mut world, lasting("a"));
        phone.read(&mut world);
        let seen = phone.received.last().unwrap().offset;
        world.reset(phone.peer);
        world.turns(6);
        for push in [lasting("b"), brief("c"), lasting("d")] {
            give(&mut world, push);
        }
        let recovery = |phone: &Phone| phone.session().rooms[1].recovery();
        let mut early = resume(&mut world, shard, &room, seen);
        assert_eq!(recovery(&early), Recovery::Complete);
        assert_eq!(questions(&mut world, &mut early), ["b", "c", "d"]);

        world.pass(TTL);
        for (offset, expected, texts) in [
            (seen, Recovery::Gap, &["b", "d"][..]),
            (seen + 1, Recovery::Gap, &["d"]),
            (seen + 2, Recovery::Complete, &["d"]),
            (seen + 3, Recovery::Complete, &[]),
        ] {
            let mut late = resume(&mut world, shard, &room, offset);
            assert_eq!(recovery(&late), expected, "after {}", offset - seen);
            assert_eq!(late.session().rooms[1].head, seen + 3);
            assert_eq!(questions(&mut world, &mut late), texts);
            world.reset(late.peer);
            world.turns(6);
        }
    }
}

#[test]
fn a_replay_leaves_out_what_has_expired() {
    for shard in [0, 1] {
        let mut world = World::new(|config| {
            config.shards = 2;
            config.rooms.default_policy.replay_on_join = 3;
        });
        let (_first, _) = member(&mut world, 0);
        for push in [lasting("a"), lasting("b"), brief("c"), lasting("d")] {
            give(&mut world, push);
        }
        let (mut early, _) = member(&mut world, shard);
        assert_eq!(questions(&mut world, &mut early), ["b", "c", "d"]);
        world.pass(TTL);
        let (mut late, _) = member(&mut world, shard);
        assert_eq!(questions(&mut world, &mut late), ["b", "d"]);
    }
}

#[test]
fn a_push_to_a_user_expires_while_it_waits_for_the_session() {
    let mut world = World::new(|config| config.shards = 2);
    let here = usize::from(1 - home(&room(), 2));
    let on_here = |user_id: &UserId| usize::from(users::home(*user_id, 2)) == here;
    world.next_user_id = (7..).find(on_here).unwrap();
    let user_id = world.next_user_id;
    let (phone, joined) = member(&mut world, here);
    world.reset(phone.peer);
    world.turns(6);
    let Room { name, log, ticket, .. } = joined;
    let positions = vec![Position { room: name, log, offset: 0, ticket }];
    for (wait, expected) in
        [(TTL / 2, Ok(Done::with_connections(1))), (TTL, Ok(Done::nobody(Nobody::Expired)))]
    {
        let mut phone = world.phone(here);
        let resume = Resume { positions: positions.clone() };
        world.write_all(phone.peer, &login_again(user_id, 1, &resume));
        // The room's home takes no turns, so the session waits for it.
        (0..6).for_each(|_| world.turn(here));
        let (sender, outcome) = channel();
        let reporting = world.gateway().report_to(move |outcome| sender.send(outcome).unwrap());
        reporting.push(Push::to_user(user_id, QUESTION, "x").ttl(TTL));
        (0..6).for_each(|_| world.turn(here));
        assert!(outcome.try_recv().is_err(), "it waits for the session");
        world.advance(wait);
        world.turns(10);
        assert_eq!(outcome.try_recv(), Ok(expected));
        phone.read(&mut world);
        assert_eq!(phone.count(QUESTION) as u64, expected.unwrap().connections);
        assert_eq!(phone.session().rooms[1].recovery(), Recovery::Complete);
        world.reset(phone.peer);
        world.turns(6);
    }
    assert_eq!(world.count(|stats| stats.expired_user_pushes), 1);
}

#[test]
fn what_has_expired_takes_no_memory_for_its_bytes() {
    let mut world = World::new(|_| {});
    let (_phone, _) = member(&mut world, 0);
    for _ in 0..50 {
        give(&mut world, Push::to_room(&room(), QUESTION, vec![7; 4_000]).ttl(TTL));
    }
    let before = world.room_info(room()).unwrap();
    assert!(before.log_bytes > 50 * 4_000, "{before:?}");
    world.pass(TTL);
    let after = world.room_info(room()).unwrap();
    assert!(after.log_bytes <= 50 * 200, "{after:?}");
    assert_eq!((after.first_offset, after.last_offset), (before.first_offset, before.last_offset));
}

#[test]
fn a_log_with_lifetimes_stays_within_its_bound() {
    let mut world = World::new(|config| config.rooms.default_policy.log_bytes_max = 10_000);
    let (mut phone, _) = member(&mut world, 0);
    for n in 0..2_000 {
        let ttl = Duration::from_millis(1 + (n * 7_919) % 5_000);
        give(&mut world, Push::to_room(&room(), QUESTION, "x").ttl(ttl));
        world.pass(Duration::from_millis(1));
        assert!(world.room_info(room()).unwrap().log_bytes <= 10_300);
        if n % 100 == 0 {
            world.heartbeat(&phone);
        }
    }
    assert_eq!(questions(&mut world, &mut phone).len(), 2_000);
    // Rooms that close leave nothing behind.
    world.reset(phone.peer);
    world.pass(Duration::from_secs(70));
    assert_eq!(world.room_info(room()), None);
}
