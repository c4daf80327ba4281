//! Pushes with a key: a repeat is answered as the first one was, and is not sent again.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tidegate_backend::{CommandOutcome, Done, Nobody, Push, PushError, RoomId};
use tidegate_testing::scripted::{JOIN, room};
use tidegate_testing::{Phone, World};

const QUESTION: i32 = 50;

/// How long a key is remembered.
const REMEMBERED: Duration = Duration::from_secs(300);

fn give(world: &World, push: Push) -> Receiver<CommandOutcome> {
    let (sender, outcome) = channel();
    world.gateway().report_to(move |outcome| sender.send(outcome).unwrap()).push(push);
    outcome
}

/// Gives a push, and returns its outcome after the turns that it needs.
fn outcome(world: &mut World, push: Push) -> CommandOutcome {
    let outcome = give(world, push);
    world.turns(6);
    outcome.try_recv().expect("the push has ended")
}

fn member(world: &mut World, shard: usize) -> Phone {
    let mut phone = world.log_in(shard);
    world.ask(&phone, JOIN, 1, b"");
    world.turns(4);
    phone.read(world);
    phone
}

/// How many questions a client has received in all.
fn questions(world: &mut World, phone: &mut Phone) -> usize {
    phone.read(world);
    phone.count(QUESTION)
}

fn done(connections: u64) -> CommandOutcome {
    Ok(Done::with_connections(connections))
}

#[test]
fn a_repeat_is_answered_as_the_first_and_sent_once() {
    let mut world = World::new(|config| config.shards = 2);
    let mut phones = [member(&mut world, 0), member(&mut world, 1)];
    let user_id = world.next_user_id - 1;
    let pushes = [
        (Push::to_room(&room(), QUESTION, "?").key("k"), done(2)),
        (Push::to_all(QUESTION, "?").key("k"), done(2)),
        (Push::to_user(user_id, QUESTION, "?").key("k"), done(1)),
        (Push::to_user(1, QUESTION, "?").key("k"), Ok(Done::nobody(Nobody::NoConnection))),
        (
            Push::to_room(&RoomId::new("empty").unwrap(), QUESTION, "?").key("k"),
            Ok(Done::nobody(Nobody::NoMembers)),
        ),
    ];
    for _ in 0..3 {
        for (push, expected) in &pushes {
            assert_eq!(outcome(&mut world, push.clone()), *expected, "{push:?}");
        }
        // Later members change nothing of the answer.
        drop(member(&mut world, 0));
    }
    let got = phones.each_mut().map(|phone| questions(&mut world, phone));
    assert_eq!(got, [2, 3], "once each: to the room, to all, and to the second user");
    assert_eq!(world.count(|stats| stats.repeated_pushes), 10);
    assert_eq!(world.level(|levels| levels.push_keys), 5);
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_repeat_waits_while_the_first_waits_for_a_merge_window() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_millis(100);
    });
    let mut phone = member(&mut world, 0);
    let push = Push::to_room(&room(), QUESTION, "?").key("k");
    let outcomes = [(); 3].map(|()| give(&world, push.clone()));
    world.turns(4);
    assert!(outcomes.iter().all(|outcome| outcome.try_recv().is_err()), "all of them wait");
    assert_eq!(world.commands_in_flight(), 3);
    world.pass(Duration::from_millis(100));
    for outcome in outcomes {
        assert_eq!(outcome.try_recv(), Ok(done(1)));
        assert!(outcome.try_recv().is_err(), "it reports once");
    }
    assert_eq!(questions(&mut world, &mut phone), 1);
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_refused_push_is_tried_again() {
    let mut world = World::new(|config| {
        config.rooms.rooms_per_shard_max = 1;
        config.rooms.idle_ttl = Duration::from_secs(1);
    });
    let [first, second] = ["first", "second"].map(|name| RoomId::new(name).unwrap());
    let empty = Ok(Done::nobody(Nobody::NoMembers));
    assert_eq!(outcome(&mut world, Push::to_room(&first, QUESTION, "?").key("k")), empty);
    let push = Push::to_room(&second, QUESTION, "?").key("k");
    let refused = Err(PushError::RoomsFull { rooms_max: 1 });
    assert_eq!(outcome(&mut world, push.clone()), refused);
    assert_eq!(outcome(&mut world, push.clone()), refused);
    // The first room closes.
    world.pass(Duration::from_secs(3));
    assert_eq!(outcome(&mut world, push.clone()), empty);
    assert_eq!(outcome(&mut world, push), empty);
    assert_eq!(world.count(|stats| stats.repeated_pushes), 1, "the last one");
    assert_eq!(world.level(|levels| levels.push_keys), 2);
}

#[test]
fn a_key_is_forgotten_after_5_minutes() {
    let mut world = World::new(|_| {});
    let mut phone = member(&mut world, 0);
    let push = Push::to_room(&room(), QUESTION, "?").key("k");
    assert_eq!(outcome(&mut world, push.clone()), done(1));
    let hold = |world: &mut World, phone: &Phone, time: Duration| {
        for _ in 0..time.as_secs() / 10 {
            world.heartbeat(phone);
            world.pass(Duration::from_secs(10));
        }
    };
    hold(&mut world, &phone, REMEMBERED - Duration::from_secs(10));
    assert_eq!(outcome(&mut world, push.clone()), done(1));
    assert_eq!(questions(&mut world, &mut phone), 1);
    hold(&mut world, &phone, Duration::from_secs(20));
    assert_eq!(world.level(|levels| levels.push_keys), 0, "nobody has to ask for it");
    assert_eq!(outcome(&mut world, push), done(1));
    assert_eq!(questions(&mut world, &mut phone), 2);
}

#[test]
fn a_key_beyond_the_memory_is_refused_and_pushes_without_one_are_accepted() {
    let mut world = World::new(|config| config.limits.push_keys_bytes_max = 1024);
    let mut phone = member(&mut world, 0);
    let push = |n: usize| Push::to_room(&room(), QUESTION, "?").key(format!("key-{n}"));
    for n in 0..3 {
        assert_eq!(outcome(&mut world, push(n)), done(1));
    }
    let full = Err(PushError::KeysFull { bytes_max: 1024 });
    assert_eq!(outcome(&mut world, push(3)), full);
    assert_eq!(outcome(&mut world, push(3)), full);
    assert_eq!(outcome(&mut world, push(0)), done(1), "no key that was promised is forgotten");
    assert_eq!(outcome(&mut world, Push::to_room(&room(), QUESTION, "?")), done(1));
    assert_eq!(questions(&mut world, &mut phone), 4);
    assert_eq!(world.count(|stats| stats.refused_keys), 2);
    assert_eq!(world.level(|levels| levels.push_keys), 3);
}

#[test]
fn a_repeat_of_a_push_that_ends_with_its_shard_is_refused_too() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_secs(3600);
    });
    let _phone = member(&mut world, 0);
    let push = Push::to_room(&room(), QUESTION, "?").key("k");
    let outcomes = [(); 2].map(|()| give(&world, push.clone()));
    world.turns(3);
    world.stop();
    world.turns(1);
    world.shards.clear();
    for outcome in outcomes {
        assert_eq!(outcome.try_recv(), Ok(Err(PushError::Stopping)));
    }
}
