//! Regressions: what was wrong once and must not go wrong again. Each test runs whole shards on the simulated driver.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod ages;
mod command_outcomes;
mod drain_phases;
mod figures;
mod mass_events;
mod memory_bounds;
mod memory_budget;
mod merge_windows;
mod peer_deadlines;
mod push_lifetimes;
mod rebalance;
mod redis_tokens;
mod repeated_pushes;
mod resume;
mod retry_hints;
mod session_ends;
mod several_pushes;
mod signatures;
mod wires;

use std::time::Duration;

use tidegate::config::SlowMember;
use tidegate::driver::sim::Arrived;
use tidegate_backend::{Code, RoomId};
use tidegate_protocol::Request;
use tidegate_testing::Cause;
use tidegate_testing::scripted::{ECHO, JOIN, KEEP, RELEASE, room};
use tidegate_testing::{Phone, Setup, World, frame, login};

#[test]
fn silence_is_measured_beyond_the_49_days_after_which_the_clock_wraps() {
    for days in [1, 49, 50, 120] {
        let age = Duration::from_secs(days * 86_400);
        let mut world = Setup { age, ..Setup::scripted(|_| {}) }.world();
        let mut alive = world.log_in(0);
        let mut silent = world.log_in(0);
        for _ in 0..12 {
            world.heartbeat(&alive);
            world.pass(Duration::from_secs(10));
        }
        alive.read(&mut world);
        silent.read(&mut world);
        assert_eq!((alive.count(-1), &alive.end), (12, &None), "after {days} days");
        assert_eq!(silent.received[0].code, Some(Code::Idle), "after {days} days");
    }
}

#[test]
fn a_member_that_reads_gets_every_push_of_a_burst_longer_than_the_log() {
    for slow_member in [SlowMember::Skip, SlowMember::Close] {
        let mut world = World::new(|config| config.rooms.default_policy.slow_member = slow_member);
        let mut phone = world.log_in(0);
        // The network takes all pushes of a burst; the log holds one of the long ones.
        world.set_window(phone.peer, 4 << 20);
        for burst in 1..=3 {
            (0..5).for_each(|_| world.push_all(5, 200 * 1024));
            (0..1000).for_each(|_| world.push_all(6, 1000));
            phone.read_for(&mut world, 30);
            assert_eq!((phone.count(5), phone.count(6)), (5 * burst, 1000 * burst));
        }
        assert_eq!(phone.end, None);
        assert_eq!(world.count(|stats| stats.skipped_pushes), 0);
        let log_bytes = everybodys_log_bytes(&mut world);
        assert!(log_bytes <= 256 * 1024, "the log is within its bound again: {log_bytes}");
        assert_eq!(world.commands_in_flight(), 0);
    }
}

/// Bytes in the log of everybody's room.
fn everybodys_log_bytes(world: &mut World) -> u64 {
    world.room_info(RoomId::everybody()).expect("it always exists").log_bytes
}

#[test]
fn many_answers_at_once_do_not_close_a_client_that_reads() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    let other = world.log_in(0);
    for sequence in 0..250 {
        world.ask(&phone, KEEP, sequence, b"");
    }
    world.ask(&other, RELEASE, 1, b"");
    phone.read_for(&mut world, 100);
    assert_eq!((phone.received.len(), &phone.end), (250, &None));
}

#[test]
fn a_push_in_flight_does_not_count_against_the_outbox_bound() {
    let mut world = World::new(|config| config.limits.outbox_bytes_max = 16 * 1024);
    let mut phone = world.log_in(0);
    let other = world.log_in(0);
    world.ask(&phone, KEEP, 9, b"");
    // The client reads, but its connection takes little at a time.
    world.set_window(phone.peer, 10_000);
    world.push_all(5, 60_000);
    world.turns(2);
    world.ask(&other, RELEASE, 1, b"");
    phone.read_for(&mut world, 60);
    assert_eq!((phone.count(5), phone.count(KEEP), &phone.end), (1, 1, &None));
}

#[test]
fn a_client_that_does_not_read_its_answers_is_closed() {
    let mut world = World::new(|config| config.limits.outbox_bytes_max = 16 * 1024);
    let phone = world.log_in(0);
    let other = world.log_in(0);
    world.set_window(phone.peer, 0);
    for sequence in 0..20 {
        world.ask(&phone, KEEP, sequence, b"");
    }
    // The push is in flight, and the answers wait behind it.
    world.push_all(5, 10);
    world.turns(2);
    world.ask(&other, RELEASE, 1, b"");
    assert_eq!(world.closed(Cause::OutboxFull), 1);
    assert_eq!(world.count(|stats| stats.orphan_answers), 16);
}

#[test]
fn a_busy_room_does_not_starve_other_rooms() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    world.ask(&phone, JOIN, 1, b"");
    phone.read(&mut world);
    world.set_window(phone.peer, 20_000);
    for round in 0..200 {
        for _ in 0..4 {
            world.push_room(&room(), 6, 40 * 1024);
        }
        if round % 10 == 0 {
            world.push_all(7, 10);
        }
        phone.read_for(&mut world, 8);
    }
    phone.read_for(&mut world, 200);
    assert_eq!((phone.count(7), &phone.end), (20, &None));
    assert!(phone.count(6) > 20, "{}", phone.count(6));
    let skipped = world.count(|stats| stats.skipped_pushes);
    assert_eq!(phone.count(6) as u64 + skipped, 800, "each push is received or counted as skipped");
}

#[test]
fn silence_does_not_count_while_a_connection_is_not_read_from() {
    let mut world = World::new(|config| {
        config.limits.calls_per_connection_max = 1;
        config.routes[0].timeout = Duration::from_secs(600);
    });
    let mut phone = world.log_in(0);
    let other = world.log_in(0);
    world.ask(&phone, KEEP, 9, b"");
    for _ in 0..12 {
        world.heartbeat(&phone);
        world.heartbeat(&other);
        world.pass(Duration::from_secs(10));
    }
    world.ask(&other, RELEASE, 1, b"");
    phone.read(&mut world);
    assert_eq!((phone.count(KEEP), phone.count(-1), &phone.end), (1, 12, &None));
    world.pass(Duration::from_secs(80));
    phone.read(&mut world);
    assert_eq!(phone.last_code(), Some(Code::Idle), "the connection is idle now");
}

#[test]
fn a_shard_that_was_stopped_reads_before_it_closes_idle_connections() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    world.advance(Duration::from_secs(600));
    // What the client sent meanwhile is read one turn later.
    world.turns(1);
    world.heartbeat(&phone);
    world.pass(Duration::from_secs(35));
    phone.read(&mut world);
    assert_eq!((phone.count(-1), &phone.end), (1, &None));
    world.pass(Duration::from_secs(80));
    phone.read(&mut world);
    assert_eq!(phone.last_code(), Some(Code::Idle), "the grace time ends");
}

#[test]
fn a_drain_delivers_answers_until_its_timeout() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    world.set_window(phone.peer, 10_000);
    for sequence in 0..10 {
        world.ask(&phone, ECHO, sequence, &[3; 30_000]);
    }
    world.drain();
    // That takes longer than a connection lingers, but less than a drain may last.
    for _ in 0..35 {
        world.pass(Duration::from_millis(250));
        phone.read(&mut world);
    }
    assert_eq!(phone.count(ECHO), 10);
    assert_eq!(phone.last_code(), Some(Code::Draining));
    assert!(matches!(phone.end, Some(Arrived::End)), "{:?}", phone.end);
}

#[test]
fn a_full_gateway_that_drains_keeps_its_queue_and_counts_the_connections_it_resets() {
    let mut world = World::new(|config| {
        config.limits.connections_max = 1;
        config.routes[0].timeout = Duration::from_secs(60);
    });
    let mut phone = world.log_in(0);
    // This call keeps the only connection open until the end of the drain.
    world.ask(&phone, KEEP, 9, b"");
    let mut waiting: Vec<_> = (0..2).map(|_| world.phone(0)).collect();
    world.turns(5);
    world.drain();
    world.pass(Duration::from_secs(5));
    waiting.iter_mut().for_each(|phone| phone.read(&mut world));
    assert!(waiting.iter().all(|phone| phone.end.is_none()), "they may still be accepted");
    assert_eq!(world.count(|stats| stats.queue_resets), 0);
    world.pass(Duration::from_secs(6));
    phone.read(&mut world);
    assert_eq!(phone.last_code(), Some(Code::Draining));
    waiting.iter_mut().for_each(|phone| phone.read(&mut world));
    assert!(waiting.iter().all(|phone| phone.end == Some(Arrived::Reset)));
    assert_eq!(world.count(|stats| stats.queue_resets), 2);
}

#[test]
fn a_drained_shard_runs_until_all_shards_are_drained() {
    let mut world = World::new(|config| config.shards = 2);
    let mut phone = world.log_in(1);
    world.ask(&phone, KEEP, 9, b"");
    world.drain();
    world.turns(20);
    assert!(world.shards.iter().all(|shard| !shard.is_finished()), "a client waits for an answer");
    // The home of everybody's room is the shard that has nothing left to do.
    world.push_all(7, 10);
    world.turns(10);
    phone.read(&mut world);
    assert_eq!(phone.count(7), 1);
    assert_eq!(world.commands_in_flight(), 0);
    world.pass(Duration::from_secs(20));
    assert!(world.is_finished());
}

#[test]
fn a_client_without_a_session_takes_little_memory() {
    let mut world = World::new(|_| {});
    let phones: Vec<_> = (0..50).map(|_| world.phone(0)).collect();
    let beats = frame(&Request { kind: -1, ..Request::default() }).repeat(60_000);
    for phone in &phones {
        world.set_window(phone.peer, 0);
        world.write(phone.peer, &beats);
    }
    world.turns(10);
    let each = world.level(|levels| levels.outbox_bytes) / phones.len();
    assert!((4 * 1024..6 * 1024).contains(&each), "{each} bytes of unsent answers each");
}

#[test]
fn a_half_closed_member_of_a_busy_room_is_closed_after_its_last_answer() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    world.ask(&phone, JOIN, 1, b"");
    world.ask(&phone, KEEP, 2, b"");
    world.half_close(phone.peer);
    let other = world.log_in(0);
    let push = |world: &mut World, phone: &mut Phone| {
        world.push_room(&room(), 6, 5);
        world.turns(1);
        phone.read(world);
    };
    (0..20).for_each(|_| push(&mut world, &mut phone));
    assert_eq!(phone.end, None, "the client waits for an answer");
    world.ask(&other, RELEASE, 1, b"");
    (0..20).for_each(|_| push(&mut world, &mut phone));
    assert_eq!(phone.count(KEEP), 1);
    assert!(matches!(phone.end, Some(Arrived::End)), "{:?}", phone.end);
}

#[test]
fn rooms_max_bounds_the_rooms_of_each_home_shard() {
    let mut world = World::new(|config| {
        config.shards = 2;
        config.rooms.rooms_per_shard_max = 3;
    });
    let rooms: Vec<_> = (0..40).map(|n| RoomId::new(format!("room-{n}")).unwrap()).collect();
    for room in &rooms {
        world.push_room(room, 5, 1);
    }
    world.turns(3);
    for shard in &world.shards {
        assert_eq!(shard.levels().rooms, 1 + 3, "everybody's room and three others");
    }
    let refused = world.count(|stats| stats.refused_rooms);
    assert_eq!(refused, 40 - 6);
    // A command that is refused is no longer in flight.
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn an_answer_too_long_for_a_frame_fails_and_the_next_one_succeeds() {
    let mut world = World::new(|config| config.limits.frame_to_client_bytes_max = 1_000);
    let mut phone = world.log_in(0);
    world.ask(&phone, ECHO, 1, &[1; 2_000]);
    world.ask(&phone, ECHO, 2, &[1; 500]);
    phone.read(&mut world);
    assert_eq!(phone.received[0].code, Some(Code::BackendFailed));
    assert_eq!((phone.received[1].code, phone.received[1].biz_data.len()), (None, 500));
    assert_eq!(world.count(|stats| stats.oversize_answers), 1);
}

#[test]
fn discarded_bytes_are_counted() {
    let mut world = World::new(|config| config.limits.calls_per_connection_max = 1);
    let phone = world.log_in(0);
    world.ask(&phone, KEEP, 1, b"");
    world.ask(&phone, ECHO, 2, &[1; 100]);
    let before = world.count(|stats| stats.discarded_bytes);
    world.kick(7);
    world.turns(5);
    let unread = world.count(|stats| stats.discarded_bytes) - before;
    assert!(unread > 100, "{unread}");
    let phone = world.log_in(0);
    let overlong = [0x80, 0x80, 0x80, 0x80, 0x80];
    world.write_all(phone.peer, &[&overlong[..], &[7; 1000]].concat());
    world.turns(5);
    assert_eq!(world.count(|stats| stats.discarded_bytes) - before, unread + 1005);
}

#[test]
fn unsent_bytes_are_counted() {
    let mut world = World::new(|_| ());
    let mut phone = world.log_in(0);
    // More than the network takes: a send is in flight, and other answers wait behind it.
    let answers = 40;
    for sequence in 1..=answers {
        world.ask(&phone, ECHO, sequence, &[1; 10_000]);
    }
    assert_eq!(world.count(|stats| stats.answers), answers);
    world.kick(7);
    world.turns(5);
    assert_eq!(world.count(|stats| stats.unsent_bytes), 0, "the client may still read");
    world.pass(Duration::from_secs(10));
    phone.read(&mut world);
    assert!(phone.end.is_some());
    let got: usize = phone.received.iter().map(|got| got.biz_data.len()).sum();
    let unsent = usize::try_from(world.count(|stats| stats.unsent_bytes)).unwrap();
    // The last frame is cut, and a frame is a little longer than its data.
    let sum = got + phone.unread_bytes() + unsent;
    assert!((400_001..401_000).contains(&sum), "{sum}");
    assert!(got > 0 && unsent > 0, "{got} and {unsent}");
}

#[test]
fn answers_that_resume_reading_do_not_grow_the_stack() {
    let mut world = World::new(|config| {
        config.limits.calls_per_connection_max = 1;
        // All connections are of one user.
        config.session.connections_per_user_max = 10_000;
    });
    let mut asks = login(1, 0);
    for kind in [KEEP, ECHO, ECHO] {
        asks.extend(frame(&Request { kind, ..Request::default() }));
    }
    let peers: Vec<_> = (0..3_000).map(|_| world.connect(0)).collect();
    for &peer in &peers {
        world.write_all(peer, &asks);
    }
    world.turns(5);
    let other = world.log_in(0);
    world.ask(&other, RELEASE, 1, b"");
    world.turns(3);
    for peer in peers {
        let mut phone = Phone::on(peer);
        phone.read(&mut world);
        assert_eq!((phone.count(KEEP), phone.count(ECHO)), (1, 2));
    }
}

#[test]
fn a_slow_client_that_sends_heartbeats_stays_connected() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    let other = world.log_in(0);
    for sequence in 0..150 {
        world.ask(&phone, KEEP, sequence, b"");
    }
    world.set_window(phone.peer, 4_000);
    world.ask(&other, RELEASE, 1, b"");
    for _ in 0..30 {
        world.heartbeat(&phone);
        world.heartbeat(&other);
        world.pass(Duration::from_secs(10));
        phone.read(&mut world);
    }
    assert_eq!(phone.end, None);
    // The client reads 4,000 bytes every 10 s.
    assert!(phone.count(KEEP) > 20, "{}", phone.count(KEEP));
}

#[test]
fn a_room_that_opens_again_after_the_wall_clock_was_set_back_continues_above_its_offsets() {
    let mut world = World::new(|config| config.rooms.idle_ttl = Duration::ZERO);
    let mut last_offset = 0;
    for _ in 0..3 {
        let mut phone = world.log_in(0);
        world.ask(&phone, JOIN, 1, b"");
        world.push_room(&room(), 6, 1);
        phone.read_for(&mut world, 3);
        let offset = phone.received.last().unwrap().offset;
        assert!(offset > last_offset, "{offset} after {last_offset}");
        last_offset = offset;
        world.reset(phone.peer);
        world.set_wall_ms(world.wall_ms() - 3_600_000);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.level(|levels| levels.rooms), 1, "only everybody's room is open");
    }
}
