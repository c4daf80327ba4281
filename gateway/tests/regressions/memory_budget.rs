//! What goes first when the memory budget of the process is nearly used, and that it comes back.

use std::time::Duration;

use tidegate_backend::{Code, RoomId};
use tidegate_protocol::Request;
use tidegate_testing::scripted::{ECHO, JOIN, KEEP, RELEASE, room};
use tidegate_testing::{Phone, World, frame};

/// The budget, in bytes.
const BUDGET: usize = 1 << 20;

/// Longer than a housekeeping takes to come.
const HOUSEKEEPING: Duration = Duration::from_millis(600);

fn world() -> World {
    World::new(|config| {
        config.limits.memory_bytes_max = Some(BUDGET);
        config.rooms.default_policy.log_bytes_max = BUDGET;
        config.rooms.default_policy.merge_window = Duration::from_secs(3_600);
    })
}

/// Sends a part of a frame whose rest does not come.
fn hold(world: &mut World, phone: &Phone, bytes: usize) {
    let payload = vec![7; bytes];
    let request = frame(&Request { kind: ECHO, biz_data: &payload, ..Request::default() });
    world.write_all(phone.peer, &request[..bytes]);
    world.turns(3);
}

fn last(phone: &mut Phone, world: &mut World) -> (u64, Option<Code>, u32) {
    phone.read(world);
    let last = phone.received.last().expect("an answer");
    (last.sequence, last.code, last.retry_after_ms)
}

#[test]
fn merge_windows_and_idle_logs_go_first() {
    let mut world = world();
    let mut member = world.log_in(0);
    world.ask(&member, JOIN, 2, b"");
    world.push_room(&room(), 6, 1_000);
    member.read_for(&mut world, 5);
    assert_eq!(member.count(6), 0, "it waits for the window");
    let idle: Vec<_> = (0..4).map(|n| RoomId::new(format!("idle-{n}")).unwrap()).collect();
    for room in &idle[..3] {
        world.push_room(room, 5, 190_000);
    }
    world.pass(HOUSEKEEPING);
    assert_eq!(world.level(|levels| levels.rooms), 5, "three quarters are not used yet");
    world.push_room(&idle[3], 5, 220_000);
    member.read_for(&mut world, 5);
    assert_eq!(member.count(6), 1, "no push waits for a window");
    world.pass(HOUSEKEEPING);
    assert_eq!(world.level(|levels| levels.rooms), 2, "everybody's, and that with a member");
    // With room in the budget, logs are kept and windows open again.
    world.push_room(&idle[0], 5, 190_000);
    world.push_room(&room(), 6, 1_000);
    world.pass(HOUSEKEEPING);
    member.read(&mut world);
    assert_eq!((world.level(|levels| levels.rooms), member.count(6)), (3, 1));
    assert_eq!(world.count(|stats| stats.refused_for_memory), 0);
}

#[test]
fn new_work_and_then_new_connections_are_refused_and_what_was_promised_is_not() {
    let mut world = world();
    let holders: Vec<_> = (0..20).map(|_| world.log_in(0)).collect();
    let mut phone = world.log_in(0);
    world.ask(&phone, KEEP, 2, b"");
    // 85 %: no new request.
    holders[..18].iter().for_each(|holder| hold(&mut world, holder, 50_000));
    world.ask(&phone, ECHO, 3, b"");
    let (sequence, code, retry_after_ms) = last(&mut phone, &mut world);
    assert_eq!((sequence, code), (3, Some(Code::Overloaded)));
    assert!((1_000..2_000).contains(&retry_after_ms), "{retry_after_ms}");
    let mut newcomer = world.log_in(0);
    // 95 %: no new connection.
    holders[18..].iter().for_each(|holder| hold(&mut world, holder, 60_000));
    let before = world.level(|levels| levels.connections);
    let waiting = world.phone(0);
    assert_eq!(world.level(|levels| levels.connections), before);
    // Sessions, heartbeats and calls under way are served.
    world.heartbeat(&phone);
    assert_eq!(last(&mut phone, &mut world).1, None);
    assert_eq!(world.level(|levels| levels.calls_in_flight), 1);
    // Everything is served again, once there is memory.
    holders.iter().for_each(|holder| world.reset(holder.peer));
    world.pass(HOUSEKEEPING);
    assert_eq!(world.level(|levels| levels.connections), before + 1 - holders.len());
    world.ask(&newcomer, RELEASE, 4, b"");
    phone.read(&mut world);
    assert!(phone.received.iter().any(|got| got.sequence == 2 && got.code.is_none()));
    world.ask(&newcomer, ECHO, 5, b"");
    assert_eq!(last(&mut newcomer, &mut world).1, None);
    drop(waiting);
    assert_eq!(world.count(|stats| stats.refused_for_memory), 1);
}
