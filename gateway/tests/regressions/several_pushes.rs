//! Several pushes in one command: they are taken in order, and each ends for itself.

use std::sync::mpsc::channel;

use tidegate_backend::{CommandOutcome, Done, Nobody, Push, PushError, RoomId};
use tidegate_testing::World;
use tidegate_testing::scripted::{JOIN, room};

const QUESTION: i32 = 50;

/// Gives pushes, and returns their outcomes after the turns that they need.
fn outcomes(world: &mut World, pushes: Vec<Push>) -> Vec<CommandOutcome> {
    let (sender, outcomes) = channel();
    world.gateway().push_many_reporting(pushes, move |outcomes| sender.send(outcomes).unwrap());
    world.turns(6);
    let ended = outcomes.try_recv().expect("all pushes have ended");
    assert!(outcomes.try_recv().is_err(), "one report for all");
    ended
}

#[test]
fn pushes_to_one_room_stay_in_order_among_those_to_others() {
    let mut world = World::new(|config| config.shards = 4);
    let mut phones: Vec<_> = (0..4).map(|shard| world.log_in(shard)).collect();
    for phone in &phones {
        world.ask(phone, JOIN, 1, b"");
    }
    world.turns(6);
    let other = |n: usize| RoomId::new(format!("other-{n}")).unwrap();
    let pushes = (0..100).flat_map(|n: usize| {
        let data = n.to_string();
        [Push::to_room(&room(), QUESTION, data), Push::to_room(&other(n), QUESTION, "x")]
    });
    let ended = outcomes(&mut world, pushes.collect());
    let (to_room, to_others): (Vec<_>, Vec<_>) =
        ended.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
    assert_eq!(to_room, vec![Ok(Done::with_connections(4)); 100]);
    assert_eq!(to_others, vec![Ok(Done::nobody(Nobody::NoMembers)); 100]);
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    for phone in &mut phones {
        phone.read(&mut world);
        let questions = phone.received.iter().filter(|got| got.kind == QUESTION);
        let texts: Vec<_> =
            questions.map(|got| String::from_utf8_lossy(&got.biz_data).into_owned()).collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn each_push_has_its_own_outcome() {
    let mut world = World::new(|config| {
        config.limits.commands_max = 5;
        config.limits.frame_to_client_bytes_max = 1_000;
    });
    let mut phone = world.log_in(0);
    let user_id = world.next_user_id - 1;
    let pushes = || {
        vec![
            Push::to_user(user_id, QUESTION, "1").key("k"),
            Push::to_user(user_id, 0, "?"),
            Push::to_user(user_id, QUESTION, vec![0; 1_000]),
            Push::to_user(user_id, QUESTION, "2").key(""),
            Push::to_user(user_id, QUESTION, "3").key("k"),
            Push::to_user(1, QUESTION, "4"),
            Push::to_room(&room(), QUESTION, "5"),
            Push::to_all(QUESTION, "6"),
            Push::to_all(QUESTION, "7"),
        ]
    };
    let ended = outcomes(&mut world, pushes());
    assert_eq!(ended[..2], [Ok(Done::with_connections(1)), Err(PushError::BadType(0))]);
    assert!(matches!(ended[2], Err(PushError::TooLong { bytes_max: 1_000, .. })), "{:?}", ended[2]);
    assert_eq!(
        ended[3..],
        [
            Err(PushError::BadKey(0)),
            Ok(Done::with_connections(1)),
            Ok(Done::nobody(Nobody::NoConnection)),
            Ok(Done::nobody(Nobody::NoMembers)),
            Ok(Done::with_connections(1)),
            Err(PushError::Overloaded),
        ]
    );
    phone.read(&mut world);
    let received = phone.received.iter().filter(|got| got.kind == QUESTION);
    assert_eq!(received.map(|got| &got.biz_data[..]).collect::<Vec<_>>(), [b"1", b"6"]);

    // Without reports, the call says which were not taken.
    let taken: Vec<_> = world.gateway().push_many(pushes()).iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, false, false, false, true, true, true, true, false]);
    world.turns(6);
    assert_eq!(world.commands_in_flight(), 0);
    assert!(outcomes(&mut world, Vec::new()).is_empty());
}

#[test]
fn pushes_to_a_shard_that_has_ended_are_refused_and_the_others_are_not() {
    let mut world = World::new(|config| config.shards = 2);
    world.shards.truncate(1);
    let pushes = (0..32).map(|user_id| Push::to_user(user_id, QUESTION, "x")).collect();
    let ended = outcomes(&mut world, pushes);
    let refused = ended.iter().filter(|outcome| **outcome == Err(PushError::Stopping)).count();
    let nobody = Ok(Done::nobody(Nobody::NoConnection));
    assert_eq!(ended.iter().filter(|outcome| **outcome == nobody).count(), 32 - refused);
    assert!((1..32).contains(&refused), "{refused}");
}
