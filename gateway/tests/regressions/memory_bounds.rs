//! What clients, backends and rooms can make a shard hold: the shard's own figures, and the bytes that the
//! allocator counts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use allocation_counter::measure;
use bytes::Bytes;
use tidegate::driver::RECEIVE_BYTES_MAX;
use tidegate_backend::{Call, Gateway, Handler, Placement, PushError, RoomId};
use tidegate_protocol::Request;
use tidegate_protocol::message::HEARTBEAT;
use tidegate_testing::scripted::{JOIN, room};
use tidegate_testing::{Cause, Phone, Setup, World, frame, login};

/// Clients that do not read.
const CLIENTS: usize = 40;

/// Requests that each client sends at once.
const REQUESTS: usize = 200;

/// Bytes of an answer.
const ANSWER_BYTES: usize = 400_000;

/// A frame is at most this much longer than its data, in bytes.
const FRAME_EXTRA_BYTES: usize = 40;

/// Answers at once.
const ANSWER: i32 = 1;
/// Keeps the call without an answer.
const KEEP: i32 = 2;
/// Answers all calls that were kept.
const RELEASE: i32 = 3;

/// Answers each call with the same bytes, which all answers share. So what the allocator counts are the shard's copies.
struct SameAnswers {
    answer: Bytes,
    placement: Placement,
    kept: Mutex<Vec<Call>>,
}

impl Handler for SameAnswers {
    fn handle(&self, call: Call, _: &Gateway) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match call.kind() {
            KEEP => return kept.push(call),
            RELEASE => kept.drain(..).for_each(|call| call.answer(self.answer.clone())),
            _ => {}
        }
        call.answer(self.answer.clone());
    }

    fn placement(&self) -> Placement {
        self.placement
    }
}

fn world_of_answers(placement: Placement, answer_bytes: usize, outbox_bytes_max: usize) -> World {
    let answer = Bytes::from(vec![7; answer_bytes]);
    let handler = SameAnswers { answer, placement, kept: Mutex::default() };
    let setup = Setup::new(handler, |config| {
        config.backends[0].workers = 1;
        config.limits.outbox_bytes_max = outbox_bytes_max;
    });
    setup.world()
}

fn long_answers(placement: Placement) -> World {
    world_of_answers(placement, ANSWER_BYTES, 1 << 20)
}

/// Sends `count` requests of a type at once.
fn pipeline(world: &mut World, phone: &Phone, kind: i32, requests: usize) {
    let requests = (1..=requests as u64)
        .flat_map(|sequence| frame(&Request { kind, sequence, ..Request::default() }));
    world.write_all(phone.peer, &requests.collect::<Vec<_>>());
}

/// Clients that read nothing from now on.
fn deaf_clients(world: &mut World) -> Vec<Phone> {
    let phones: Vec<_> = (0..CLIENTS).map(|_| world.log_in(0)).collect();
    phones.iter().for_each(|phone| world.set_window(phone.peer, 0));
    phones
}

/// Runs turns and workers, and checks after each that unsent bytes and the shard's memory are within the bounds of
/// ARCHITECTURE.md.
fn run_within_bounds(world: &mut World, clients: usize) {
    let outbox_bytes_max = world.config().limits.outbox_bytes_max;
    let bytes_max = clients * 2 * (outbox_bytes_max + ANSWER_BYTES + FRAME_EXTRA_BYTES);
    for _ in 0..10 {
        let memory = measure(|| world.turns(1));
        let unsent_bytes = world.level(|levels| levels.outbox_bytes);
        assert!(unsent_bytes <= bytes_max, "{unsent_bytes} of {bytes_max}");
        // A buffer that grows may be half empty.
        assert!(memory.bytes_max <= 2 * bytes_max as u64, "{memory:?} of {bytes_max}");
        world.run_workers();
    }
}

#[test]
fn answers_of_workers_that_nobody_reads_stay_within_the_outbox_bound() {
    // Long ones are shared, short ones are copied.
    for answer_bytes in [ANSWER_BYTES, 15_000] {
        let mut world = world_of_answers(Placement::Worker, answer_bytes, 1 << 20);
        let phones = deaf_clients(&mut world);
        for phone in &phones {
            pipeline(&mut world, phone, ANSWER, REQUESTS);
        }
        run_within_bounds(&mut world, CLIENTS);
        assert_eq!(world.closed(Cause::OutboxFull), CLIENTS as u64, "{answer_bytes}");
        assert_eq!(world.level(|levels| levels.outbox_bytes), 0, "they are closed");
    }
}

#[test]
fn answers_on_the_shards_thread_that_nobody_reads_stay_within_the_outbox_bound() {
    let mut world = long_answers(Placement::Shard);
    let phones = deaf_clients(&mut world);
    for phone in &phones {
        pipeline(&mut world, phone, ANSWER, REQUESTS);
    }
    run_within_bounds(&mut world, CLIENTS);
    // Such a client is not read from while it does not read.
    assert_eq!(world.closed(Cause::OutboxFull), 0);
    assert!(world.count(|stats| stats.answers) <= 4 * CLIENTS as u64);
}

#[test]
fn answers_that_are_released_at_once_on_the_shards_thread_stay_within_the_outbox_bound() {
    let mut world = long_answers(Placement::Shard);
    let phones = deaf_clients(&mut world);
    for phone in &phones {
        pipeline(&mut world, phone, KEEP, REQUESTS);
    }
    world.turns(5);
    assert_eq!(world.level(|levels| levels.calls_in_flight), CLIENTS * REQUESTS);
    let mut other = world.log_in(0);
    let deaf = deaf_clients(&mut world);
    let mut late = world.log_in(0);
    pipeline(&mut world, &other, RELEASE, 1);
    // Others send in the same turn. Their requests must not bring in the answers that wait.
    for phone in &deaf {
        pipeline(&mut world, phone, ANSWER, REQUESTS);
    }
    pipeline(&mut world, &late, ANSWER, 3);
    run_within_bounds(&mut world, 2 * CLIENTS + 2);
    assert_eq!(world.closed(Cause::OutboxFull), CLIENTS as u64);
    other.read_for(&mut world, 10);
    late.read_for(&mut world, 10);
    assert_eq!((other.count(RELEASE), late.count(ANSWER)), (1, 3));
    assert_eq!(world.level(|levels| levels.calls_in_flight), 0);
}

#[test]
fn a_client_that_reads_gets_all_of_its_answers() {
    const ANSWERS: usize = 60;
    let by_worker = (Placement::Worker, ANSWER);
    let by_shard = [(Placement::Shard, ANSWER), (Placement::Shard, KEEP)];
    // The second bound is shorter than the answers that come at once.
    for (answer_bytes, outbox_bytes_max) in [(ANSWER_BYTES, 1 << 20), (5_000, 16 * 1024)] {
        for (placement, kind) in by_shard.into_iter().chain([by_worker]) {
            let mut world = world_of_answers(placement, answer_bytes, outbox_bytes_max);
            let mut phone = world.log_in(0);
            let other = world.log_in(0);
            // The network takes all of the answers.
            world.set_window(phone.peer, 32 << 20);
            pipeline(&mut world, &phone, kind, ANSWERS);
            world.turns(3);
            world.run_workers();
            pipeline(&mut world, &other, RELEASE, 1);
            phone.read_for(&mut world, 30);
            let received: Vec<_> = phone.received.iter().map(|got| got.sequence).collect();
            assert_eq!(received, (1..=ANSWERS as u64).collect::<Vec<_>>(), "{placement:?} {kind}");
            assert!(phone.received.iter().all(|got| got.biz_data.len() == answer_bytes));
            assert_eq!(phone.end, None);
        }
    }
}

#[test]
fn slow_members_with_a_pong_waiting_share_a_long_push() {
    const MEMBERS: usize = 300;
    const PUSH_BYTES: usize = 1_000_000;
    let mut world = World::new(|_| {});
    let mut members: Vec<_> = (0..MEMBERS).map(|_| world.log_in(0)).collect();
    for member in &mut members {
        world.ask(member, JOIN, 1, b"");
        member.read(&mut world);
        member.received.clear();
        world.set_window(member.peer, 0);
    }
    // One pong is under way, and one waits behind it.
    for member in &members {
        let heartbeat = frame(&Request { kind: HEARTBEAT, ..Request::default() });
        world.write_all(member.peer, &heartbeat);
        world.turns(1);
        world.write_all(member.peer, &heartbeat);
    }
    world.turns(1);
    let memory = measure(|| {
        world.push_room(&room(), 6, PUSH_BYTES);
        world.turns(10);
        // The pongs leave, and the push is next.
        members.iter().for_each(|member| world.set_window(member.peer, 64));
        world.turns(10);
    });
    assert!(memory.bytes_max < 8 * PUSH_BYTES as u64, "{memory:?}");
    let unsent_bytes = world.level(|levels| levels.outbox_bytes);
    assert!(
        unsent_bytes > MEMBERS * PUSH_BYTES,
        "each member still needs the push: {unsent_bytes}"
    );
    for member in &mut members {
        world.set_window(member.peer, 2 * PUSH_BYTES);
        member.read_for(&mut world, 4);
        let received = member.received.drain(..);
        let received: Vec<_> = received.map(|got| (got.kind, got.biz_data.len())).collect();
        assert_eq!(received, [(HEARTBEAT, 7), (HEARTBEAT, 7), (6, PUSH_BYTES)]);
    }
}

#[test]
fn closed_rooms_give_their_memory_back() {
    const ROOMS: usize = 20_000;
    let mut world = World::new(|config| config.rooms.idle_ttl = Duration::from_secs(10));
    let memory = measure(|| {
        for n in 0..ROOMS {
            let room = RoomId::new(format!("room-{n}")).expect("the name is good");
            world.push_room(&room, 6, 1);
            if n % 100 == 0 {
                world.turns(3);
            }
        }
        world.turns(3);
        assert_eq!(world.level(|levels| levels.rooms), 1 + ROOMS);
        world.pass(Duration::from_secs(20));
        assert_eq!(world.level(|levels| levels.rooms), 1);
    });
    // A closed room leaves its entry in the table, and its place in the list of free entries.
    let left = memory.bytes_current;
    assert!(left <= 24 * i64::try_from(ROOMS).unwrap(), "{left} bytes of {ROOMS} rooms");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.count(|stats| stats.memory_trims), 1, "they count as a burst");
}

#[test]
fn a_connection_with_too_many_calls_is_not_read_from() {
    const CALLS: u16 = 3;
    const SENT_BYTES: usize = 400_000;
    let mut world = World::new(|config| config.limits.calls_per_connection_max = CALLS);
    let phones: Vec<_> = (0..CLIENTS).map(|_| world.log_in(0)).collect();
    let payload = [7; 1_000];
    let request = frame(&Request { kind: KEEP, biz_data: &payload, ..Request::default() });
    for phone in &phones {
        world.write_all(phone.peer, &request.repeat(SENT_BYTES / request.len()));
    }
    let memory = measure(|| world.turns(20));
    assert_eq!(world.level(|levels| levels.calls_in_flight), CLIENTS * usize::from(CALLS));
    // A buffer that grows may have twice the bytes that are in it.
    let bytes_max = 2 * CLIENTS * (RECEIVE_BYTES_MAX + request.len());
    assert!(memory.bytes_max <= bytes_max as u64, "{memory:?} of {bytes_max}");
    let received = world.count(|stats| stats.received_bytes);
    assert!(received < (CLIENTS * (RECEIVE_BYTES_MAX + 100)) as u64, "{received} bytes");
}

#[test]
fn pushes_beyond_commands_bytes_max_are_refused_until_others_are_done() {
    let mut world = World::new(|config| {
        config.limits.frame_to_client_bytes_max = 50_000;
        config.limits.commands_bytes_max = 100_000;
    });
    let mut phone = world.log_in(0);
    let push = |world: &World| world.gateway().push_all(6, vec![7; 40_000]);
    for round in 1..=3 {
        assert_eq!((push(&world), push(&world)), (Ok(()), Ok(())));
        assert_eq!(push(&world), Err(PushError::Overloaded));
        phone.read_for(&mut world, 5);
        assert_eq!((phone.count(6), world.commands_in_flight()), (2 * round, 0));
    }
}

#[test]
fn a_burst_of_messages_leaves_little_memory_in_the_mailbox() {
    const PUSHES: usize = 50_000;
    let mut world = World::new(|config| config.limits.commands_max = PUSHES);
    let memory = measure(|| {
        for _ in 0..2 {
            for _ in 0..PUSHES {
                // The user is not here.
                world.gateway().push_user(999, 6, Bytes::new()).expect("the push is accepted");
            }
            world.turns(40);
            assert_eq!(world.commands_in_flight(), 0);
        }
        // The two buffers of the mailbox take turns.
        for _ in 0..3 {
            world.push_all(6, 1);
            world.turns(3);
        }
    });
    assert!(memory.bytes_current < 2 << 20, "{memory:?}");
    world.pass(Duration::from_secs(5));
    assert_eq!(world.count(|stats| stats.memory_trims), 1, "it counts as a burst");
}

#[test]
fn unsent_bytes_of_connections_that_end_count_as_a_burst() {
    let mut world = world_of_answers(Placement::Shard, 5_000, 1 << 20);
    let phones = deaf_clients(&mut world);
    for phone in &phones {
        pipeline(&mut world, phone, ANSWER, 20);
    }
    world.pass(Duration::from_secs(6));
    assert!(world.level(|levels| levels.outbox_bytes) > CLIENTS * 20 * 5_000);
    assert_eq!(world.count(|stats| stats.memory_trims), 0, "nothing is free yet");
    phones.iter().for_each(|phone| world.reset(phone.peer));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.level(|levels| levels.outbox_bytes), 0);
    assert_eq!(world.count(|stats| stats.memory_trims), 1);
}

#[test]
fn unfinished_frames_count_as_a_burst() {
    for (has_session, bytes) in [(true, 60_000), (false, 16_000)] {
        let mut world = World::new(|_| {});
        let phones: Vec<_> = (0..50).map(|_| world.phone(0)).collect();
        let payload = vec![7; bytes];
        let request = frame(&Request { kind: ANSWER, biz_data: &payload, ..Request::default() });
        for (user_id, phone) in (1..).zip(&phones) {
            if has_session {
                world.write_all(phone.peer, &login(user_id, 1));
                world.turns(3);
            }
            world.write_all(phone.peer, &request[..bytes]);
        }
        world.turns(3);
        assert_eq!(world.level(|levels| levels.connections), phones.len());
        assert_eq!(world.count(|stats| stats.received_frames), 50 * u64::from(has_session));
        world.pass(Duration::from_secs(6));
        assert_eq!(world.count(|stats| stats.memory_trims), 0, "nothing is free yet");
        phones.iter().for_each(|phone| world.reset(phone.peer));
        world.pass(Duration::from_secs(5));
        assert_eq!(world.level(|levels| levels.connections), 0);
        assert_eq!(world.count(|stats| stats.memory_trims), 1, "session: {has_session}");
    }
}
