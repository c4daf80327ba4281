//! Events that concern very many connections at once. A shard spreads them over several turns, so that no turn is
//! long and none needs a buffer for each connection.

use std::time::Duration;

use tidegate_backend::Code;
use tidegate_protocol::Request;
use tidegate_testing::Cause;
use tidegate_testing::scripted::KEEP;
use tidegate_testing::{Phone, World, frame, login};

/// More connections than one turn handles.
const CONNECTIONS: u64 = 2_500;

/// The most connections that one turn may handle: 1,024, and a margin.
const PER_TURN_MAX: u64 = 1_100;

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
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(5));
    let mut phones = waiting(&mut world);
    let timeouts = Code::Timeout.number() as usize - 100;
    spread_over_turns(&mut world, |world| world.count(|stats| stats.failures[timeouts]));
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Timeout));
    }
}
