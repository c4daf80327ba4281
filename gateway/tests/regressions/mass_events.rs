//! Events that concern very many connections at once. A shard spreads them over several turns, so that no turn is
//! long and none needs a buffer for each connection.

use std::time::Duration;

use tidegate_backend::{Code, Placement};
use tidegate_protocol::Request;
use tidegate_testing::Cause;
use tidegate_testing::scripted::{ECHO, KEEP};
use tidegate_testing::{Phone, World, frame, login};

use crate::session_ends::{authentication_of, world_with_tokens};

/// More connections than one turn handles.
const CONNECTIONS: u64 = 2_500;

/// The most connections that one turn may handle: 1,024, and a margin.
const PER_TURN_MAX: u64 = 1_100;

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(5);

fn connected_phones(world: &mut World) -> Vec<Phone> {
    let peers: Vec<_> = (0..CONNECTIONS).map(|_| world.connect(0)).collect();
    world.turns(2);
    peers.into_iter().map(Phone::on).collect()
}

/// Clients that wait for an answer which never comes.
fn waiting(world: &mut World) -> Vec<Phone> {
    let phones = connected_phones(world);
    for (user_id, phone) in (1..).zip(&phones) {
        let kept = Request { kind: KEEP, sequence: 2, ..Request::default() };
        world.write_all(phone.peer, &[login(user_id, 1), frame(&kept)].concat());
    }
    world.turns(10);
    assert_eq!(world.count(|stats| stats.calls), CONNECTIONS);
    phones
}

/// Calls that were answered with 102.
fn timed_out(world: &World) -> u64 {
    let index = Code::Timeout.number() as usize - 100;
    world.count(|stats| stats.failures[index])
}

/// A world whose workers find the calls that have expired in their queue before the shard does.
fn world_with_workers() -> World {
    World::new(|config| {
        config.routes[0].timeout = TIMEOUT;
        config.backends[0].placement = Some(Placement::Worker);
    })
}

/// Runs turns until so many calls have timed out, and checks how many each turn fails. No turn may fail none: the shard
/// must not wait for its own clock.
fn time_out_turn_by_turn(world: &mut World, calls: u64) {
    let mut failed = timed_out(world);
    assert_eq!(failed, 0, "the shard has not looked");
    while failed < calls {
        world.turns(1);
        let more = timed_out(world) - failed;
        assert!((1..=PER_TURN_MAX).contains(&more), "{more} in one turn, after {failed}");
        failed += more;
    }
    assert_eq!(failed, calls);
}

/// Lets time pass until `count` says that all connections are handled, and checks how many each turn handles.
fn spread_over_turns(world: &mut World, count: impl Fn(&World) -> u64) {
    let mut happened = count(world);
    assert_eq!(happened, 0, "not yet due");
    for _ in 0..1_000 {
        world.advance(Duration::from_millis(50));
        for _ in 0..3 {
            world.turns(1);
            let more = count(world) - happened;
            assert!(more <= PER_TURN_MAX, "{more} in one turn");
            happened += more;
        }
        if happened == CONNECTIONS {
            return;
        }
    }
    panic!("{happened} of {CONNECTIONS}");
}

#[test]
fn silent_connections_are_closed_over_several_turns() {
    let mut world = World::new(|_| {});
    let _phones = connected_phones(&mut world);
    spread_over_turns(&mut world, |world| world.closed(Cause::AuthTimeout));
}

#[test]
fn sessions_whose_tokens_end_together_are_closed_over_several_turns() {
    let mut world = world_with_tokens(|_| {});
    let mut phones = connected_phones(&mut world);
    let exp = i64::try_from(world.wall_ms() / 1_000).unwrap() + 10;
    for (user_id, phone) in (1..).zip(&phones) {
        world.write_all(phone.peer, &authentication_of(user_id, exp));
    }
    world.turns(10);
    assert_eq!(world.level(|levels| levels.sessions) as u64, CONNECTIONS);
    spread_over_turns(&mut world, |world| world.closed(Cause::TokenExpired));
    world.turns(4);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Unauthenticated));
    }
}

#[test]
fn the_end_of_a_drain_closes_connections_over_several_turns() {
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(600));
    let mut phones = waiting(&mut world);
    world.drain();
    world.turns(10);
    spread_over_turns(&mut world, |world| world.closed(Cause::Draining));
    world.pass(Duration::from_secs(5));
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Draining));
        assert!(phone.end.is_some());
    }
    assert!(world.is_finished());
}

#[test]
fn calls_time_out_over_several_turns() {
    let mut world = World::new(|config| config.routes[0].timeout = TIMEOUT);
    let mut phones = waiting(&mut world);
    spread_over_turns(&mut world, timed_out);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Timeout));
    }
}

/// After a hang of the backend, the one call that a worker finds expired has very many older ones.
#[test]
fn the_older_calls_of_one_that_a_worker_finds_expired_time_out_over_several_turns() {
    let mut world = world_with_workers();
    let mut phones = waiting(&mut world);
    world.run_workers();
    world.ask(&phones[0], ECHO, 3, b"");
    // Only the worker's clock says that calls have expired.
    let expiry = world.now() + TIMEOUT;
    for worker in &mut world.workers {
        worker.run_pending(expiry);
    }
    time_out_turn_by_turn(&mut world, CONNECTIONS + 1);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Timeout));
    }
    let sequences: Vec<_> = phones[0].received.iter().map(|received| received.sequence).collect();
    assert_eq!(sequences, [1, 2, 3], "the login, and both calls in their order");
}

#[test]
fn an_answer_does_not_overtake_a_timeout_that_waits_for_a_later_turn() {
    let mut world = world_with_workers();
    let mut phones = connected_phones(&mut world);
    let echo = |sequence| frame(&Request { kind: ECHO, sequence, ..Request::default() });
    for (user_id, phone) in (1..).zip(&phones) {
        world.write_all(phone.peer, &[login(user_id, 1), echo(2)].concat());
    }
    world.turns(10);
    let before_expiry = Duration::from_secs(1);
    world.pass(TIMEOUT - before_expiry);
    phones.iter().for_each(|phone| world.write_all(phone.peer, &echo(3)));
    world.turns(10);
    assert_eq!(world.count(|stats| stats.calls), 2 * CONNECTIONS);
    // The worker finds the first call of each connection expired, and answers the second.
    world.advance(before_expiry);
    world.run_workers();
    time_out_turn_by_turn(&mut world, CONNECTIONS);
    world.turns(1);
    for phone in &mut phones {
        phone.read(&mut world);
        let ends: Vec<_> =
            phone.received.iter().map(|received| (received.sequence, received.code)).collect();
        assert_eq!(ends, [(1, None), (2, Some(Code::Timeout)), (3, None)]);
    }
}
