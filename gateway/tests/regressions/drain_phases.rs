//! The phases of a drain: the time of grace, goodbyes that are spread over a window, answers; and a drain that is hurried.

use std::time::Duration;

use tidegate::config::Config;
use tidegate::control::{Control as _, DrainPhase, Readiness};
use tidegate_backend::Code;
use tidegate_testing::scripted::{ECHO, KEEP, RELEASE};
use tidegate_testing::{Cause, Phone, Setup, World};

/// A world of some shards with some clients each, whose calls do not time out by themselves.
fn world(shards: u16, phones: usize, configure: impl FnOnce(&mut Config)) -> (World, Vec<Phone>) {
    let mut world = Setup::scripted(|config| {
        config.shards = shards;
        config.routes[0].timeout = Duration::from_secs(3_600);
        configure(config);
    })
    .world();
    let shards = usize::from(shards);
    let phones = (0..phones * shards).map(|number| world.log_in(number % shards)).collect();
    (world, phones)
}

/// Time passes in steps of 10 ms.
fn pass_finely(world: &mut World, time: Duration) {
    for _ in 0..time.as_millis() / 10 {
        world.advance(Duration::from_millis(10));
        world.turns(2);
    }
}

/// The phase of each shard, as operators see it.
fn phases(world: &mut World) -> Vec<Option<DrainPhase>> {
    let asked: Vec<_> = (0..world.config().shards).map(|shard| world.hub().shard(shard)).collect();
    world.turns(2);
    let phase = |mut answer: tidegate::control::Reply<tidegate::control::ShardInfo>| {
        answer.try_recv().unwrap().drain.map(|drain| drain.phase)
    };
    asked.into_iter().map(phase).collect()
}

#[test]
fn goodbyes_are_spread_evenly_over_the_window_on_all_shards() {
    let (mut world, mut phones) =
        world(2, 300, |config| config.shutdown.goodbye_window = Duration::from_secs(2));
    world.drain();
    world.turns(2);
    let mut counts = Vec::new();
    for _ in 0..10 {
        let before = world.closed(Cause::Draining);
        pass_finely(&mut world, Duration::from_millis(200));
        counts.push(world.closed(Cause::Draining) - before);
    }
    // 600 clients in 10 slices. A step of each shard may come to either side of an edge.
    assert!(counts.iter().all(|count| (50..=70).contains(count)), "{counts:?}");
    assert_eq!(world.closed(Cause::Draining), 600);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Draining));
    }
    world.pass(Duration::from_secs(4));
    assert!(world.is_finished());
}

#[test]
fn a_client_is_served_until_its_goodbye() {
    let (mut world, mut phones) =
        world(1, 100, |config| config.shutdown.goodbye_window = Duration::from_secs(1));
    world.drain();
    pass_finely(&mut world, Duration::from_millis(300));
    let mut last = phones.pop().unwrap();
    assert_eq!(phases(&mut world), [Some(DrainPhase::Goodbyes)]);
    world.ask(&last, ECHO, 5, b"still served");
    last.read(&mut world);
    assert_eq!((last.received.len(), last.received[0].code), (1, None), "{:?}", last.received);
    assert_eq!(&last.received[0].biz_data[..], b"still served");
    pass_finely(&mut world, Duration::from_millis(800));
    last.read(&mut world);
    assert_eq!(last.last_code(), Some(Code::Draining));
}

#[test]
fn few_clients_do_not_take_the_whole_window() {
    let (mut world, _phones) =
        world(2, 3, |config| config.shutdown.goodbye_window = Duration::from_secs(600));
    world.drain();
    pass_finely(&mut world, Duration::from_millis(100));
    assert_eq!(world.closed(Cause::Draining), 6);
    // They linger for two seconds, as they do not close.
    world.pass(Duration::from_secs(4));
    assert!(world.is_finished());
}

#[test]
fn a_gateway_without_a_client_ends_with_its_grace_and_not_before() {
    let (mut world, _) = world(2, 0, |config| {
        config.shutdown.ready_grace = Duration::from_secs(5);
        config.shutdown.goodbye_window = Duration::from_secs(600);
    });
    world.drain();
    world.pass(Duration::from_secs(4));
    assert!(!world.is_finished());
    world.pass(Duration::from_secs(2));
    assert!(world.is_finished());
}

#[test]
fn the_gateway_serves_and_accepts_in_the_time_of_grace() {
    let (mut world, mut phones) =
        world(2, 2, |config| config.shutdown.ready_grace = Duration::from_secs(5));
    world.hub().set_readiness(Readiness::Ready);
    world.hub().drain();
    assert_eq!(world.hub().readiness(), Readiness::Draining, "balancers see it at once");
    world.pass(Duration::from_secs(4));
    assert_eq!(phases(&mut world), [Some(DrainPhase::Grace); 2]);
    phones.push(world.log_in(1));
    for phone in &mut phones {
        world.ask(phone, ECHO, 5, b"x");
        phone.read(&mut world);
        assert_eq!((phone.received.len(), phone.received[0].code), (1, None));
    }
    assert_eq!(world.closed(Cause::Draining), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.closed(Cause::Draining), 5);
}

#[test]
fn answers_have_their_time_from_the_end_of_the_goodbyes() {
    let (mut world, mut phones) = world(1, 100, |config| {
        config.shutdown.ready_grace = Duration::from_secs(3);
        config.shutdown.goodbye_window = Duration::from_secs(1);
        config.shutdown.drain_timeout = Duration::from_secs(5);
    });
    world.ask(&phones[0], KEEP, 2, b"");
    world.ask(&phones[1], KEEP, 2, b"");
    world.drain();
    world.pass(Duration::from_secs(8));
    assert_eq!(phases(&mut world), [Some(DrainPhase::Answers)]);
    phones[0].read(&mut world);
    assert_eq!((phones[0].received.len(), &phones[0].end), (0, &None));
    // A request is refused once the turn of its connection has come.
    world.ask(&phones[0], ECHO, 3, b"");
    phones[0].read(&mut world);
    assert_eq!(phones[0].last_code(), Some(Code::Draining));
    world.pass(Duration::from_secs(4));
    for phone in &mut phones[..2] {
        phone.read(&mut world);
        assert_eq!((phone.last_code(), phone.end.is_some()), (Some(Code::Draining), true));
    }
    world.pass(Duration::from_secs(3));
    assert!(world.is_finished());
}

#[test]
fn a_drain_that_is_hurried_sends_all_goodbyes_at_once_and_waits_a_second_for_answers() {
    for begun in [false, true] {
        let (mut world, mut phones) = world(2, 200, |config| {
            config.shutdown.ready_grace = Duration::from_secs(if begun { 0 } else { 600 });
            config.shutdown.goodbye_window = Duration::from_secs(600);
            config.shutdown.drain_timeout = Duration::from_secs(600);
        });
        world.ask(&phones[0], KEEP, 2, b"");
        world.ask(&phones[1], KEEP, 2, b"");
        world.hub().drain();
        pass_finely(&mut world, Duration::from_millis(200));
        assert!(world.closed(Cause::Draining) < 50, "600 s for 400 clients");
        world.hub().hurry_drain();
        world.turns(4);
        assert_eq!(world.closed(Cause::Draining), 398);
        // What is answered within the second goes out.
        pass_finely(&mut world, Duration::from_millis(500));
        world.ask(&phones[2], RELEASE, 3, b"");
        assert_eq!(phases(&mut world), [Some(DrainPhase::Answers); 2]);
        world.pass(Duration::from_secs(1));
        for phone in &mut phones {
            phone.read(&mut world);
            assert_eq!((phone.last_code(), phone.end.is_some()), (Some(Code::Draining), true));
        }
        world.pass(Duration::from_secs(3));
        assert!(world.is_finished());
    }
}

#[test]
fn a_hurry_does_not_wait_for_a_client_that_does_not_read_its_last_frames() {
    let (mut world, phones) = world(1, 1, |config| {
        config.shutdown.drain_timeout = Duration::from_secs(600);
    });
    world.set_window(phones[0].peer, 0);
    world.drain();
    world.pass(Duration::from_secs(20));
    assert!(!world.is_finished(), "it has the time of the drain to read them");
    world.hub().hurry_drain();
    world.pass(Duration::from_secs(4));
    assert!(world.is_finished());
}
