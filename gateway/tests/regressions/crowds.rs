//! What happens to very many in the same moment: it is done by and by, so that no turn is long, and none takes
//! a buffer for each of them.

use std::time::Duration;

use tidegate::shard::clients::cause::Cause;
use tidegate::shard::mailbox::Message;
use tidegate_backend::Code;
use tidegate_protocol::Request;

use crate::world::{KEEP, Phone, World};

/// More than one turn looks at.
const CROWD: u64 = 2_500;

/// The most that one turn may do something to: 1,024, and some to spare.
const IN_A_TURN: u64 = 1_100;

fn gathered(world: &mut World) -> Vec<Phone> {
    let peers: Vec<_> = (0..CROWD).map(|_| world.sims[0].connect().unwrap()).collect();
    world.turns(2);
    peers.into_iter().map(|peer| Phone::on(0, peer)).collect()
}

/// A crowd that waits for an answer which never comes.
fn waiting(world: &mut World) -> Vec<Phone> {
    let phones = gathered(world);
    for (user_id, phone) in (1..).zip(&phones) {
        let token = format!("token-{user_id}");
        let mut bytes = Vec::new();
        Request { user_id, token: &token, sequence: 1, ..Request::default() }
            .encode_frame(&mut bytes);
        Request { kind: KEEP, sequence: 2, ..Request::default() }.encode_frame(&mut bytes);
        assert_eq!(world.sims[0].write(phone.peer, &bytes), bytes.len());
    }
    world.turns(10);
    assert_eq!(world.shards[0].stats().calls, CROWD);
    phones
}

/// Has time pass until `count` says that it has happened to the crowd, and sees that it happens by and by.
fn by_and_by(world: &mut World, count: impl Fn(&World) -> u64) {
    let mut happened = count(world);
    assert_eq!(happened, 0, "before its time");
    for _ in 0..1_000 {
        let now = world.sims[0].now() + Duration::from_millis(50);
        world.sims[0].set_now(now);
        for _ in 0..3 {
            world.turns(1);
            let more = count(world) - happened;
            assert!(more <= IN_A_TURN, "{more} in one turn");
            happened += more;
        }
        if happened == CROWD {
            return;
        }
    }
    panic!("{happened} of {CROWD}");
}

#[test]
fn who_is_silent_in_a_crowd_is_parted_with_by_and_by() {
    let mut world = World::new(|_| {});
    let _phones = gathered(&mut world);
    by_and_by(&mut world, |world| world.closed(Cause::AuthTimeout));
}

#[test]
fn a_drain_that_is_over_parts_with_a_crowd_by_and_by() {
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(600));
    let mut phones = waiting(&mut world);
    world.parts.hub.tell_all(|| Message::Drain);
    world.turns(10);
    by_and_by(&mut world, |world| world.closed(Cause::Draining));
    world.pass(Duration::from_secs(5));
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.got.last().map(|got| got.code), Some(Some(Code::Draining)));
        assert!(phone.end.is_some());
    }
    assert!(world.shards[0].is_finished());
}

#[test]
fn calls_of_a_crowd_time_out_by_and_by() {
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(5));
    let mut phones = waiting(&mut world);
    let timeouts = Code::Timeout.number() as usize - 100;
    by_and_by(&mut world, |world| world.shards[0].stats().failures[timeouts]);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.got.last().map(|got| got.code), Some(Some(Code::Timeout)));
    }
}
