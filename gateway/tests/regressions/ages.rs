//! Connections that are closed because they are too old.

use std::time::Duration;

use tidegate::config::Config;
use tidegate_backend::Code;
use tidegate_testing::scripted::{ECHO, KEEP, RELEASE};
use tidegate_testing::{Cause, Phone, Setup, World};

const AGE_MAX: Duration = Duration::from_secs(160);

/// The earliest that a connection is too old: an eighth less.
const AGE_MIN: Duration = Duration::from_secs(140);

/// How late a deadline may be: 1/31 of the default time of silence, and steps of the test.
const LATE: Duration = Duration::from_secs(4);

fn world(configure: impl FnOnce(&mut Config)) -> World {
    Setup::scripted(|config| {
        config.session.age_max = Some(AGE_MAX);
        config.shutdown.retry_after = Duration::from_secs(3);
        config.shutdown.drain_timeout = Duration::from_secs(20);
        config.routes[0].timeout = Duration::from_secs(3_600);
        configure(config);
    })
    .world()
}

/// Time passes, in which each client that is left sends a heartbeat now and then, and reads what comes.
fn pass(world: &mut World, phones: &mut [Phone], time: Duration) {
    let mut left = time;
    while left > Duration::ZERO {
        let step = left.min(Duration::from_secs(20));
        phones.iter().filter(|phone| phone.end.is_none()).for_each(|phone| world.heartbeat(phone));
        world.pass(step);
        phones.iter_mut().for_each(|phone| phone.read(world));
        left -= step;
    }
}

#[test]
fn connections_that_came_together_are_closed_one_by_one_however_much_they_send() {
    let mut world = world(|config| config.shards = 2);
    let mut phones: Vec<_> = (0..200).map(|number| world.log_in(number % 2)).collect();
    pass(&mut world, &mut phones, AGE_MIN - Duration::from_secs(1));
    assert_eq!(world.closed(Cause::Aged), 0);
    let mut counts = Vec::new();
    for _ in 0..5 {
        let before = world.closed(Cause::Aged);
        pass(&mut world, &mut phones, Duration::from_secs(5));
        counts.push(world.closed(Cause::Aged) - before);
    }
    // 200 over 20 s: about 50 in 5 s, the last ones later by what deadlines may be late.
    assert!(counts[..4].iter().all(|count| (20..=80).contains(count)), "{counts:?}");
    pass(&mut world, &mut phones, LATE);
    assert_eq!(world.closed(Cause::Aged), 200);
    let mut waits = Vec::new();
    for phone in &mut phones {
        phone.read(&mut world);
        let goodbye = phone.received.last().unwrap();
        assert_eq!((goodbye.code, goodbye.sequence), (Some(Code::Draining), 0));
        waits.push(goodbye.retry_after_ms);
    }
    assert!(waits.iter().all(|wait_ms| (3_000..6_000).contains(wait_ms)), "{waits:?}");
    assert_eq!(world.level(|levels| levels.sessions + levels.users), 0);
}

#[test]
fn a_connection_that_is_too_old_gets_its_answers_first() {
    let mut world = world(|config| config.shutdown.drain_timeout = Duration::from_secs(600));
    let mut phones = [world.log_in(0), world.log_in(0)];
    world.ask(&phones[0], KEEP, 2, b"");
    world.ask(&phones[0], KEEP, 3, b"");
    pass(&mut world, &mut phones, AGE_MAX + LATE);
    assert_eq!(world.closed(Cause::Aged), 1, "the other one");
    phones[0].received.clear();
    world.ask(&phones[0], ECHO, 4, b"");
    phones[0].read(&mut world);
    let refused = &phones[0].received[0];
    assert_eq!((refused.sequence, refused.code), (4, Some(Code::Draining)));
    assert!(refused.retry_after_ms >= 3_000);
    let other = world.log_in(0);
    world.ask(&other, RELEASE, 5, b"");
    world.turns(6);
    phones[0].read(&mut world);
    let outcomes: Vec<_> =
        phones[0].received[1..].iter().map(|got| (got.sequence, got.code)).collect();
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
    assert_eq!(outcomes[2], (0, Some(Code::Draining)));
    assert_eq!((world.closed(Cause::Aged), world.closed(Cause::Rebalanced)), (2, 0));
}

#[test]
fn a_connection_that_is_too_old_waits_no_longer_for_answers_than_a_drain_does() {
    let mut world = world(|_| ());
    let mut phones = [world.log_in(0)];
    world.ask(&phones[0], KEEP, 2, b"");
    pass(&mut world, &mut phones, AGE_MIN + Duration::from_secs(19));
    assert_eq!(world.closed(Cause::Aged), 0);
    pass(&mut world, &mut phones, (AGE_MAX - AGE_MIN) + LATE);
    assert_eq!(world.closed(Cause::Aged), 1);
    assert_eq!(phones[0].last_code(), Some(Code::Draining));
    assert!(phones[0].end.is_some());
}

#[test]
fn a_new_connection_does_not_inherit_the_age_of_its_slots_last_one() {
    let mut world = world(|_| ());
    let first = world.log_in(0);
    let mut first = [first];
    pass(&mut world, &mut first, Duration::from_secs(100));
    world.reset(first[0].peer);
    world.turns(4);
    let mut phones = [world.log_in(0)];
    let gone = Duration::from_secs(100);
    pass(&mut world, &mut phones, gone);
    assert!(phones[0].end.is_none());
    pass(&mut world, &mut phones, AGE_MAX - gone + LATE);
    assert!(phones[0].end.is_some());
}

#[test]
fn connections_become_as_old_as_they_like_by_default() {
    let mut world = world(|config| config.session.age_max = None);
    let mut phones = [world.log_in(0)];
    pass(&mut world, &mut phones, Duration::from_secs(1_000));
    assert!(phones[0].end.is_none());
}
