//! Each command reports one outcome, whichever shard carries it out and however it ends.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tidegate::control::Control;
use tidegate_backend::publisher::{Command, Push, Reporting};
use tidegate_backend::{Code, CommandOutcome, Done, Nobody, PushError, RoomId, SessionId};
use tidegate_testing::scripted::{JOIN_REPORTED, PUSH_REPORTED};
use tidegate_testing::{World, login};
use tokio::sync::oneshot::error::TryRecvError;

/// Gives a command whose outcome is reported to the receiver.
fn outcome_of(world: &World, give: impl FnOnce(Reporting<'_>)) -> Receiver<CommandOutcome> {
    let (sender, outcome) = channel();
    give(world.gateway().report_to(move |outcome| sender.send(outcome).unwrap()));
    outcome
}

/// Gives a command, and returns its outcome after the turns that it needs. It reports once.
fn final_outcome(world: &mut World, give: impl FnOnce(Reporting<'_>)) -> CommandOutcome {
    let outcome = outcome_of(world, give);
    world.turns(6);
    let ended = outcome.try_recv().expect("the command reports");
    assert!(outcome.try_recv().is_err());
    ended
}

fn delivered_to(connections: u64) -> CommandOutcome {
    Ok(Done::with_connections(connections))
}

fn nobody(reason: Nobody) -> CommandOutcome {
    Ok(Done::nobody(reason))
}

fn room(n: usize) -> RoomId {
    RoomId::new(format!("room-{n}")).unwrap()
}

#[test]
fn a_push_or_a_join_beyond_rooms_max_is_refused() {
    let mut world = World::new(|config| {
        config.shards = 2;
        config.rooms.rooms_per_shard_max = 3;
    });
    let mut phones = [world.log_in(0), world.log_in(1)];
    let outcomes: Vec<_> = (0..40)
        .map(|n| final_outcome(&mut world, |gateway| gateway.push_room(&room(n), 5, "x")))
        .collect();
    let refused = Err(PushError::RoomsFull { rooms_max: 3 });
    assert_eq!(outcomes.iter().filter(|&&outcome| outcome == nobody(Nobody::NoMembers)).count(), 6);
    assert_eq!(outcomes.iter().filter(|&&outcome| outcome == refused).count(), 34);
    // A join from either shard gets the same result, whichever shard is the room's home.
    for (phone, sequence) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
        let known = sequence == 1;
        let n = outcomes.iter().position(|outcome| outcome.is_ok() == known).unwrap();
        let name = room(n).to_string();
        world.ask(&phones[phone], JOIN_REPORTED, sequence, name.as_bytes());
        phones[phone].read(&mut world);
        let got = phones[phone].received.last().unwrap();
        assert_eq!((got.sequence, got.code.is_none()), (sequence, known), "{name}");
    }
    // Everybody's room always exists.
    assert_eq!(final_outcome(&mut world, |gateway| gateway.push_all(5, "x")), delivered_to(2));
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn operators_have_a_reserve_of_the_bound_on_commands() {
    let mut world = World::new(|config| config.limits.commands_max = 80);
    let mut phone = world.phone(0);
    world.write_all(phone.peer, &login(7, 1));
    phone.read_for(&mut world, 6);
    let session = SessionId(phone.session().session_id);
    let taken = |results: &mut dyn Iterator<Item = Result<(), PushError>>| {
        results.take_while(|&result| result != Err(PushError::Overloaded)).count()
    };
    // No turn of a shard passes, so all of them stay under way.
    let gateway = world.gateway();
    let joins = taken(&mut (0..100).map(|n| gateway.join(session, &room(n), None)));
    let pushes = taken(&mut (0..100).map(|n| gateway.push_room(&room(n), 5, "x")));
    let leaves = taken(&mut (0..5).map(|n| gateway.leave(session, &room(n))));
    let kicks = taken(&mut (0..100).map(|_| gateway.kick(99)));
    assert_eq!((joins, pushes, leaves, kicks), (80, 10, 5, 5));
    let order = || Control::command(world.hub(), Command::Push(Push::to_all(5, "x")));
    let mut orders: Vec<_> = (0..5).map(|_| order()).collect();
    assert_eq!(gateway.kick(99), Err(PushError::Overloaded));
    world.turns(6);
    assert!(orders.iter_mut().all(|order| order.try_recv().is_ok_and(|done| done.is_ok())));
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_join_beyond_rooms_per_connection_max_is_refused() {
    let mut world = World::new(|config| {
        config.shards = 2;
        config.rooms.rooms_per_connection_max = 3;
    });
    let mut phones = [world.log_in(0), world.log_in(1)];
    for phone in &mut phones {
        for n in 0..10 {
            world.ask(
                phone,
                JOIN_REPORTED,
                n,
                room(usize::try_from(n).unwrap()).as_str().as_bytes(),
            );
        }
        phone.read(&mut world);
        let joined: Vec<_> = phone.received.iter().filter(|got| got.code.is_none()).collect();
        assert_eq!(joined.iter().map(|got| got.sequence).collect::<Vec<_>>(), [0, 1, 2]);
        let failed = phone.received.iter().filter(|got| got.code == Some(Code::BackendFailed));
        assert_eq!(failed.count(), 7);
    }
    // A join of a room that the connection is in already is no new room.
    world.ask(&phones[0], JOIN_REPORTED, 20, b"room-0");
    world.ask(&phones[0], PUSH_REPORTED, 21, b"room-0");
    phones[0].read(&mut world);
    let last: Vec<_> = phones[0].received.iter().rev().take(3).rev().collect();
    assert_eq!(last.iter().map(|got| got.sequence).collect::<Vec<_>>(), [20, 0, 21]);
    assert!(last.iter().all(|got| got.code.is_none()), "{last:?}");
}

#[test]
fn a_command_for_a_session_that_is_gone_or_unknown_is_refused() {
    let mut world = World::new(|config| config.shards = 2);
    for shard in 0..2 {
        let session = world.gone_session(shard);
        for n in 0..8 {
            let joined = final_outcome(&mut world, |gateway| gateway.join(session, &room(n), None));
            assert_eq!(joined, Err(PushError::SessionGone));
            let left = final_outcome(&mut world, |gateway| gateway.leave(session, &room(n)));
            assert_eq!(left, Err(PushError::SessionGone));
        }
    }
    let foreign = world.gone_session(7);
    let report_at_once = |give: fn(Reporting<'_>, SessionId)| {
        let (sender, outcome) = channel();
        give(world.gateway().report_to(move |o| sender.send(o).unwrap()), foreign);
        outcome.try_recv().unwrap()
    };
    assert_eq!(
        report_at_once(|gateway, s| gateway.join(s, &room(1), None)),
        Err(PushError::UnknownSession)
    );
    assert_eq!(
        report_at_once(|gateway, s| gateway.leave(s, &room(1))),
        Err(PushError::UnknownSession)
    );
}

#[test]
fn a_command_that_is_refused_at_once_reports_at_once() {
    let mut world = World::new(|config| {
        config.limits.commands_max = 1;
        config.limits.frame_to_client_bytes_max = 1_000;
    });
    let at_once = |world: &World, give: &dyn Fn(Reporting<'_>)| {
        outcome_of(world, give).try_recv().expect("the command reports at once")
    };
    let bad = at_once(&world, &|gateway| gateway.push_user(7, 0, "x"));
    assert_eq!(bad, Err(PushError::BadType(0)));
    let long = at_once(&world, &|gateway| gateway.push_user(7, 5, vec![0; 1_000]));
    assert!(matches!(long, Err(PushError::TooLong { bytes_max: 1_000, .. })), "{long:?}");
    let first = outcome_of(&world, |gateway| gateway.push_user(7, 5, "x"));
    for give in [
        (|gateway| gateway.push_all(5, "x")) as fn(Reporting<'_>),
        |gateway| gateway.kick(7),
        |gateway| gateway.join(SessionId(1), &room(1), None),
    ] {
        let outcome = at_once(&world, &give);
        assert!(matches!(outcome, Err(PushError::Overloaded | PushError::UnknownSession)));
    }
    world.turns(6);
    assert_eq!(first.try_recv(), Ok(nobody(Nobody::NoConnection)));
    world.hub().set_stopped();
    assert_eq!(at_once(&world, &|gateway| gateway.kick(7)), Err(PushError::Stopping));
}

#[test]
fn every_command_reports_an_outcome_when_a_shard_ends() {
    let mut world = World::new(|config| config.shards = 2);
    let session = world.gone_session(1);
    let give = |world: &World| {
        let mut outcomes = Vec::new();
        for n in 0..16 {
            outcomes.push(outcome_of(world, |gateway| gateway.push_room(&room(n), 5, "x")));
            outcomes.push(outcome_of(world, |gateway| gateway.push_user(n as u64, 5, "x")));
            outcomes.push(outcome_of(world, |gateway| gateway.join(session, &room(n), None)));
            outcomes.push(outcome_of(world, |gateway| gateway.leave(session, &room(n))));
            outcomes.push(outcome_of(world, |gateway| gateway.kick(n as u64)));
        }
        outcomes
    };
    let in_the_mailbox = give(&world);
    let asked = world.hub().shard(1);
    world.shards.truncate(1);
    let afterwards = give(&world);
    let asked_afterwards = world.hub().shard(1);
    world.turns(6);
    let (mut done, mut stopping, mut gone) = (0, 0, 0);
    for outcome in in_the_mailbox.iter().chain(&afterwards) {
        match outcome.try_recv().expect("the command reports") {
            // The home of these users and rooms is the shard that still runs.
            Ok(_) => done += 1,
            Err(PushError::Stopping) => stopping += 1,
            Err(PushError::SessionGone) => gone += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done > 0 && stopping > 0 && gone > 0, "{done} {stopping} {gone}");
    for mut asked in [asked, asked_afterwards] {
        assert!(asked.try_recv().is_err_and(|error| error == TryRecvError::Closed));
    }
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_push_in_flight_when_a_shard_stops_reports_that_it_was_not_done() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_secs(3600);
    });
    let phone = world.log_in(0);
    world.ask(&phone, JOIN_REPORTED, 2, b"room-0");
    let outcome = outcome_of(&world, |gateway| gateway.push_room(&room(0), 5, "x"));
    world.turns(3);
    assert!(outcome.try_recv().is_err(), "the push waits for the end of the window");
    world.stop();
    world.turns(1);
    world.shards.clear();
    assert_eq!(outcome.try_recv(), Ok(Err(PushError::Stopping)));
}
