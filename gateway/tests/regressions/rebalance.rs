//! A gateway sends a share of its clients to others.

use std::sync::Arc;
use std::time::Duration;

use tidegate::control::Control as _;
use tidegate::shard::rebalance::{Order, Progress, divide};
use tidegate_backend::{Code, Placement};
use tidegate_protocol::Request;
use tidegate_testing::scripted::ECHO;
use tidegate_testing::{Cause, Phone, Setup, World, frame};

const ORDER: Order = Order { count: 20, per_second: 10, spared_s: 0 };

/// Starts a run, as an operator does.
fn start(world: &World, order: Order) -> Arc<Progress> {
    let sessions: Vec<_> = world.levels().iter().map(|levels| levels.sessions as u64).collect();
    let (progress, shares) = divide(order, &sessions);
    for (shard, share) in (0..).zip(shares) {
        share.into_iter().for_each(|share| world.hub().send_away(shard, share));
    }
    progress
}

fn echo(sequence: u64) -> Vec<u8> {
    frame(&Request { kind: ECHO, sequence, ..Request::default() })
}

/// What the phones that were sent away were told to wait. Each got a goodbye and nothing else.
fn goodbyes(world: &mut World, phones: &mut [Phone]) -> Vec<u32> {
    let mut waits = Vec::new();
    for phone in phones {
        phone.read(world);
        if phone.end.is_some() {
            assert_eq!(phone.received.len(), 1, "{:?}", phone.received);
            let last = &phone.received[0];
            assert_eq!((last.code, last.sequence), (Some(Code::Draining), 0));
            waits.push(last.retry_after_ms);
        }
    }
    waits
}

#[test]
fn clients_are_sent_away_evenly_from_all_shards_at_the_pace_and_with_spread_waits() {
    let mut world = Setup::scripted(|config| {
        config.shards = 2;
        config.shutdown.retry_after = Duration::from_secs(3);
    })
    .world();
    let mut phones: Vec<_> = (0..40).map(|number| world.log_in(number % 2)).collect();
    let progress = start(&world, ORDER);
    world.turns(3);
    assert_eq!(world.closed(Cause::Rebalanced), 0, "the pace allows none yet");
    for second in 1..=2 {
        for _ in 0..20 {
            world.advance(Duration::from_millis(50));
            world.turns(2);
        }
        assert_eq!(world.closed(Cause::Rebalanced), 10 * second);
        assert_eq!(progress.sent(), 10 * second);
    }
    assert!(progress.has_ended());
    world.pass(Duration::from_secs(5));
    assert_eq!(world.closed(Cause::Rebalanced), 20, "it ends when enough were sent");
    assert_eq!(world.levels().iter().map(|it| it.sessions).collect::<Vec<_>>(), [10, 10]);
    let mut waits = goodbyes(&mut world, &mut phones);
    assert_eq!(waits.len(), 20);
    assert!(waits.iter().all(|wait_ms| (3_000..6_000).contains(wait_ms)), "{waits:?}");
    waits.sort_unstable();
    waits.dedup();
    // Two shards have the same slots.
    assert!(waits.len() >= 9, "{waits:?}");
}

#[test]
fn calls_under_way_are_answered_before_the_goodbye_and_new_requests_are_refused() {
    let mut world = World::new(|config| {
        config.backends[0].placement = Some(Placement::Worker);
    });
    let mut phone = world.log_in(0);
    world.write_all(phone.peer, &[echo(1), echo(2)].concat());
    world.turns(3);
    let progress = start(&world, Order { count: 1, ..ORDER });
    world.pass(Duration::from_secs(1));
    assert!(progress.has_ended() && progress.sent() == 1);
    world.write_all(phone.peer, &echo(3));
    world.turns(3);
    phone.read(&mut world);
    let outcome = |got: &tidegate_testing::Received| (got.sequence, got.code);
    assert_eq!(phone.received.iter().map(outcome).collect::<Vec<_>>(), [(3, Some(Code::Draining))]);
    assert!(phone.received[0].retry_after_ms > 0 && phone.end.is_none());
    phone.received.clear();
    world.run_workers();
    world.turns(6);
    phone.read(&mut world);
    let outcomes: Vec<_> = phone.received.iter().map(outcome).collect();
    assert_eq!(outcomes, [(1, None), (2, None), (0, Some(Code::Draining))]);
    assert!(phone.end.is_some());
    assert_eq!((world.closed(Cause::Rebalanced), world.closed(Cause::Draining)), (1, 0));
}

#[test]
fn clients_that_came_recently_stay() {
    let mut world = World::new(|_| ());
    let mut old: Vec<_> = (0..3).map(|_| world.log_in(0)).collect();
    let anonymous = world.phone(0);
    for _ in 0..3 {
        old.iter().for_each(|phone| world.heartbeat(phone));
        world.pass(Duration::from_secs(8));
    }
    old.iter_mut().for_each(|phone| {
        phone.read(&mut world);
        phone.received.clear();
    });
    let mut new: Vec<_> = (0..3).map(|_| world.log_in(0)).collect();
    let progress = start(&world, Order { spared_s: 20, ..ORDER });
    world.pass(Duration::from_secs(5));
    assert!(progress.has_ended(), "it does not wait until the others are old enough");
    assert_eq!(progress.sent(), 3);
    assert_eq!(goodbyes(&mut world, &mut old).len(), 3);
    assert_eq!(goodbyes(&mut world, &mut new).len(), 0);
    assert_eq!(world.level(|levels| levels.sessions), 3);
    // A connection without a session has its own deadline.
    drop(anonymous);
}

#[test]
fn a_run_can_be_cancelled_and_ends_with_a_drain() {
    for is_drain in [false, true] {
        let mut world = World::new(|_| ());
        let _phones: Vec<_> = (0..20).map(|_| world.log_in(0)).collect();
        let progress = start(&world, ORDER);
        world.turns(2);
        world.advance(Duration::from_millis(100));
        world.turns(2);
        assert_eq!((progress.sent(), world.level(|it| it.rebalance_remaining)), (1, 19));
        if is_drain {
            world.drain();
        } else {
            progress.cancel();
        }
        world.pass(Duration::from_secs(3));
        assert!(progress.has_ended());
        assert_eq!(world.closed(Cause::Rebalanced), 1);
        assert_eq!(world.closed(Cause::Draining), if is_drain { 19 } else { 0 });
        if !is_drain {
            assert_eq!(world.level(|it| it.sessions), 19);
            // A second run continues with the others.
            start(&world, ORDER);
            world.pass(Duration::from_secs(30));
            assert_eq!(world.closed(Cause::Rebalanced), 20);
        }
    }
}
