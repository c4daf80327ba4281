//! Figures: what happens is counted exactly, each event once and under its own name.

use std::time::Duration;

use tidegate::driver::sim::Arrived;
use tidegate::shard::stats::Stats;
use tidegate_backend::Code;
use tidegate_protocol::Request;
use tidegate_protocol::message::HEARTBEAT;
use tidegate_testing::scripted::{
    ECHO, JOIN, JOIN_REPORTED, KEEP, LEAVE, RELEASE, RELEASED_BYTES, room,
};
use tidegate_testing::{Cause, Peer, Phone, Setup, World, frame, login};

/// Bytes that have arrived at a client.
fn arrived_bytes(world: &mut World, peer: Peer) -> u64 {
    let mut bytes = 0;
    while let Arrived::Bytes(part) = world.read_at_most(peer, usize::MAX) {
        bytes += part.len() as u64;
    }
    bytes
}

/// What all shards have counted, in this order.
fn counted<const N: usize>(world: &World, figures: [fn(&Stats) -> u64; N]) -> [u64; N] {
    figures.map(|figure| world.count(figure))
}

fn failures(world: &World, code: Code) -> u64 {
    world.count(|stats| stats.failures[usize::try_from(code.number()).unwrap() - 100])
}

#[test]
fn frames_bytes_and_answers_of_a_session_are_counted() {
    let mut world = World::new(|_| {});
    let peer = world.connect(0);
    world.turns(2);
    let heartbeat = frame(&Request { kind: HEARTBEAT, ..Request::default() });
    let echo = frame(&Request { kind: ECHO, biz_data: &[7; 3_000], ..Request::default() });
    let (mut written, mut read) = (0, 0);
    for bytes in [&login(7, 1), &heartbeat, &echo, &echo, &heartbeat, &heartbeat] {
        world.write_all(peer, bytes);
        written += bytes.len() as u64;
        world.turns(3);
        read += arrived_bytes(&mut world, peer);
    }
    let figures = counted(
        &world,
        [
            |stats| stats.accepted,
            |stats| stats.sessions,
            |stats| stats.received_frames,
            |stats| stats.heartbeats,
            |stats| stats.calls,
            |stats| stats.answers,
            |stats| stats.sends,
            |stats| stats.late_answers + stats.orphan_answers + stats.oversize_answers,
            |stats| stats.received_bytes,
            |stats| stats.sent_bytes,
        ],
    );
    assert_eq!(figures, [1, 1, 6, 3, 2, 2, 6, 0, written, read]);
}

#[test]
fn turns_are_counted() {
    let mut world = World::new(|_| {});
    let before = world.count(|stats| stats.turns);
    world.turns(9);
    assert_eq!(world.count(|stats| stats.turns), before + 9);
}

#[test]
fn answers_without_a_taker_are_counted_by_what_became_of_the_call() {
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(5));
    let (timed_out, gone, other) = (world.log_in(0), world.log_in(0), world.log_in(0));
    for sequence in 1..=3 {
        world.ask(&timed_out, KEEP, sequence, b"");
    }
    world.pass(Duration::from_secs(6));
    for sequence in 1..=2 {
        world.ask(&gone, KEEP, sequence, b"");
    }
    world.reset(gone.peer);
    world.turns(2);
    world.ask(&other, RELEASE, 1, b"");
    let figures: [fn(&Stats) -> u64; 4] = [
        |stats| stats.late_answers,
        |stats| stats.orphan_answers,
        |stats| stats.answers,
        |stats| stats.calls,
    ];
    assert_eq!(counted(&world, figures), [3, 2, 1, 6]);
    assert_eq!(failures(&world, Code::Timeout), 3);
    assert_eq!(world.closed(Cause::Reset), 1);
}

#[test]
fn answers_that_are_given_together_leave_in_one_send_before_the_messages_of_other_threads() {
    let mut world = World::new(|_| {});
    // The first client of a world is user 7.
    let mut phone = world.log_in(0);
    for sequence in 1..=3 {
        world.ask(&phone, KEEP, sequence, b"");
    }
    let figures: [fn(&Stats) -> u64; 2] = [|stats| stats.sends, |stats| stats.answers];
    let [sends, answers] = counted(&world, figures);
    // The push waits in the mailbox while the shard reads.
    world.gateway().push_user(7, 6, "x").expect("the push is accepted");
    world.ask(&phone, RELEASE, 4, b"");
    assert_eq!(counted(&world, figures), [sends + 2, answers + 4]);
    phone.read(&mut world);
    let received: Vec<_> = phone.received.iter().map(|got| (got.kind, got.sequence)).collect();
    assert_eq!(received, [(KEEP, 1), (KEEP, 2), (KEEP, 3), (RELEASE, 4), (6, 0)]);
}

#[test]
fn refused_requests_and_tokens_are_counted_by_reason() {
    let mut world = World::new(|config| config.auth.failures_max = 3);
    let mut phone = world.phone(0);
    world.ask(&phone, ECHO, 1, b"");
    let bad = Request { user_id: 7, token: "no token", ..Request::default() };
    for _ in 0..2 {
        assert_eq!(phone.end, None, "the tries are not used up");
        world.write_all(phone.peer, &frame(&bad));
        phone.read_for(&mut world, 4);
    }
    assert_eq!(phone.end, Some(Arrived::End));
    assert_eq!(failures(&world, Code::Unauthenticated), 3);
    assert_eq!(world.count(|stats| stats.refused_tokens.iter().sum()), 2);
    assert_eq!(world.closed(Cause::AuthFailed), 1);
    assert_eq!(world.count(|stats| stats.sessions), 0);

    let phone = world.log_in(0);
    let other_user = login(4_000, 2);
    world.write_all(phone.peer, &other_user);
    world.turns(4);
    let wrong_user = tidegate::auth::AuthError::WrongUser as usize;
    assert_eq!(world.count(|stats| stats.refused_tokens[wrong_user]), 1);
}

#[test]
fn pushes_are_counted_once_and_for_each_connection() {
    let mut world = World::new(|config| config.session.connections_per_user_max = 2);
    let mut phones: Vec<_> = (0..3).map(|_| world.log_in(0)).collect();
    world.next_user_id -= 1;
    phones.push(world.log_in(0));
    for (phone, sequence) in phones.iter().zip(1..).take(2) {
        world.ask(phone, JOIN, sequence, b"");
    }
    for _ in 0..2 {
        world.push_room(&room(), 5, 10);
        world.push_all(6, 10);
        world.gateway().push_user(9, 8, "to a user").unwrap();
        world.turns(4);
    }
    phones.iter_mut().for_each(|phone| phone.read(&mut world));
    let got = |kind| phones.iter().map(|phone| phone.count(kind)).collect::<Vec<_>>();
    assert_eq!(got(5), [2, 2, 0, 0]);
    assert_eq!(got(6), [2, 2, 2, 2]);
    assert_eq!(got(8), [0, 0, 2, 2]);
    let figures = counted(
        &world,
        [
            |stats| stats.pushes_to_rooms,
            |stats| stats.room_deliveries,
            |stats| stats.pushes_to_users,
            |stats| stats.user_deliveries,
            |stats| stats.stale_pushes + stats.skipped_pushes + stats.merged_pushes,
        ],
    );
    assert_eq!(figures, [4, 12, 2, 4, 0]);
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn last_pushes_of_a_room_are_counted_as_delivered() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_secs(5);
    });
    let mut phone = world.log_in(0);
    world.ask(&phone, JOIN, 1, b"");
    for _ in 0..3 {
        world.push_room(&room(), 6, 10);
    }
    world.ask(&phone, LEAVE, 2, b"");
    phone.read(&mut world);
    assert_eq!((phone.count(6), world.count(|stats| stats.room_deliveries)), (3, 3));
}

#[test]
fn commands_for_a_connection_that_is_gone_and_joins_beyond_the_limit_are_counted() {
    let mut world = World::new(|config| config.rooms.rooms_per_connection_max = 2);
    let session = world.gone_session(0);
    for _ in 0..2 {
        world.gateway().join(session, &room(), None).unwrap();
        world.gateway().leave(session, &room()).unwrap();
    }
    world.turns(3);
    assert_eq!(world.count(|stats| stats.stale_commands), 4);
    let mut phone = world.log_in(0);
    for (room, sequence) in ["a", "b", "c", "d"].iter().zip(1..) {
        world.ask(&phone, JOIN_REPORTED, sequence, room.as_bytes());
    }
    phone.read(&mut world);
    let joined = phone.received.iter().filter(|answer| answer.code.is_none()).count();
    assert_eq!((joined, world.count(|stats| stats.refused_rooms)), (2, 2));
}

#[test]
fn current_levels_are_exact() {
    let mut world = World::new(|config| config.routes[0].timeout = Duration::from_secs(60));
    let (first, second) = (world.log_in(0), world.log_in(0));
    let _anonymous = world.phone(0);
    world.ask(&first, JOIN, 1, b"a");
    world.ask(&first, JOIN, 2, b"b");
    world.ask(&second, JOIN, 1, b"a");
    world.ask(&second, KEEP, 2, b"");
    world.ask(&second, KEEP, 3, b"");
    let levels = world.shards[0].levels();
    assert_eq!((levels.connections, levels.sessions, levels.users), (3, 2, 2));
    assert_eq!((levels.rooms, levels.memberships), (3, 5), "each is in everybody's room too");
    assert_eq!((levels.calls_in_flight, levels.outbox_bytes), (2, 0));
    // The answers wait: one under way, the other behind it.
    world.set_window(second.peer, 0);
    world.ask(&first, RELEASE, 3, b"");
    let levels = world.shards[0].levels();
    assert_eq!(levels.calls_in_flight, 0);
    let two_answers = 2 * RELEASED_BYTES..2 * RELEASED_BYTES + 50;
    assert!(two_answers.contains(&levels.outbox_bytes), "{}", levels.outbox_bytes);
    world.reset(second.peer);
    world.turns(3);
    let levels = world.shards[0].levels();
    assert_eq!((levels.connections, levels.sessions, levels.users), (2, 1, 1));
    assert_eq!((levels.memberships, levels.outbox_bytes), (3, 0));
}

#[test]
fn pauses_are_counted() {
    let mut world = World::new(|config| {
        config.limits.calls_per_connection_max = 1;
        config.limits.connections_max = 3;
    });
    let mut phone = world.log_in(0);
    let other = world.log_in(0);
    for round in 1..=2 {
        world.ask(&phone, KEEP, round, b"");
        assert_eq!(world.count(|stats| stats.receive_pauses), round);
        world.ask(&other, RELEASE, round, b"");
        phone.read(&mut world);
        assert_eq!(phone.count(KEEP) as u64, round);
    }
    assert_eq!(world.count(|stats| stats.accept_pauses), 0);
    let last: Phone = world.phone(0);
    assert_eq!(world.count(|stats| stats.accept_pauses), 1, "the gateway is full");
    world.reset(last.peer);
    world.turns(3);
    let _again = world.phone(0);
    assert_eq!(world.count(|stats| stats.accept_pauses), 2);
}

#[test]
fn each_connection_has_one_cause_of_its_end() {
    let mut world = Setup::scripted(|config| config.auth.failures_max = 1).world();
    let mut phones: Vec<_> = (0..5).map(|_| world.log_in(0)).collect();
    let first_user = world.next_user_id - 5;
    world.half_close(phones[0].peer);
    world.reset(phones[1].peer);
    world.write_all(phones[2].peer, &[0x80, 0x00]);
    world.kick(first_user + 3);
    world.turns(4);
    world.pass(Duration::from_secs(100));
    let silent = world.phone(0);
    world.pass(Duration::from_secs(40));
    phones.push(silent);
    phones.iter_mut().for_each(|phone| phone.read(&mut world));
    assert!(phones.iter().all(|phone| phone.end.is_some()), "{phones:?}");
    let causes = [
        Cause::Peer,
        Cause::Reset,
        Cause::Malformed,
        Cause::Kicked,
        Cause::Idle,
        Cause::AuthTimeout,
    ];
    assert_eq!(causes.map(|cause| world.closed(cause)), [1; 6]);
    assert_eq!(world.count(|stats| stats.closed.iter().sum()), 6);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.level(|levels| levels.connections + levels.sessions + levels.users), 0);
    assert_eq!(world.counted_connections(), 0);
}
