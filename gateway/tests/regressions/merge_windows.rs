//! Merge windows: pushes that are published within a window are sent together, and none is lost.

use std::time::Duration;

use fastrand::Rng;
use tidegate::control::Control;
use tidegate_backend::publisher::Command;
use tidegate_backend::{Code, Done, Push, RoomId};
use tidegate_testing::scripted::{JOIN, KEEP, LEAVE, RESUME, room};
use tidegate_testing::{Phone, World};

/// The type of pushes that wait for the end of a window.
const BARRAGE: i32 = 6;
/// The type of pushes that end a window.
const QUESTION: i32 = 8;

const WINDOW_MS: u64 = 100;

/// The pushes of a client that received none.
const NOTHING: [usize; 0] = [];

/// A world in which each room has a window of 100 ms, except everybody's.
fn world(shards: u16) -> World {
    World::new(|config| {
        config.shards = shards;
        config.rooms.policies = vec![("*".into(), config.rooms.default_policy)];
        config.rooms.default_policy.merge_window = Duration::from_millis(WINDOW_MS);
        config.rooms.default_policy.urgent_types = Some((QUESTION, QUESTION));
    })
}

/// A client in the room that has received nothing else.
fn member(world: &mut World, shard: usize) -> Phone {
    let mut phone = world.log_in(shard);
    world.ask(&phone, JOIN, 1, b"");
    phone.read(world);
    phone.received.clear();
    phone
}

/// Pushes to the room. The length identifies the push.
fn push(world: &mut World, kind: i32, bytes: usize) {
    world.push_room(&room(), kind, bytes);
    world.turns(3);
}

/// The pushes that a client received since the last look, by length.
fn bytes(world: &mut World, phone: &mut Phone) -> Vec<usize> {
    phone.read(world);
    let pushes = phone.received.drain(..).filter(|got| got.kind == BARRAGE || got.kind == QUESTION);
    pushes.map(|got| got.biz_data.len()).collect()
}

fn pass_ms(world: &mut World, ms: u64) {
    world.pass(Duration::from_millis(ms));
}

fn sends(world: &World) -> u64 {
    world.count(|stats| stats.sends)
}

#[test]
fn each_member_gets_one_send_per_window() {
    let mut world = world(2);
    let mut phones: Vec<_> = (0..6).map(|n| member(&mut world, n % 2)).collect();
    let before = sends(&world);
    for window in 1..=5 {
        for n in 0..5 {
            push(&mut world, BARRAGE, 10 * window + n);
            for phone in &mut phones {
                assert_eq!(bytes(&mut world, phone), NOTHING, "the push waits");
            }
            // The last pushes are published just before the window ends.
            pass_ms(&mut world, if n < 4 { WINDOW_MS / 4 - 1 } else { 0 });
        }
        pass_ms(&mut world, 4);
        let expected: Vec<_> = (0..5).map(|n| 10 * window + n).collect();
        for phone in &mut phones {
            assert_eq!(bytes(&mut world, phone), expected);
        }
        assert_eq!(sends(&world) - before, 6 * window as u64, "one send per member and window");
    }
    let merged = world.count(|stats| stats.merged_pushes);
    assert_eq!(merged, 2 * 5 * 4, "on both shards, all pushes but the first of a window");
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_steady_stream_merges_and_no_push_waits_longer_than_a_window() {
    // As tidegate.toml says: 10 sends a second with 50 ms and 4 with 200 ms, of about 20 pushes a second.
    for (window_ms, sends_expected) in [(50, 90..=110), (200, 35..=45)] {
        let mut world = World::new(|config| {
            config.rooms.default_policy.merge_window = Duration::from_millis(window_ms);
        });
        let mut phone = member(&mut world, 0);
        let (before, mut published_ms) = (sends(&world), Vec::new());
        let mut rng = Rng::with_seed(1);
        // For ten seconds a push may come at any millisecond: 20 a second.
        for at_ms in 0..10_000 {
            if rng.u32(0..50) == 0 {
                published_ms.push(at_ms);
                push(&mut world, BARRAGE, published_ms.len());
            }
            for bytes in bytes(&mut world, &mut phone) {
                let waited_ms = at_ms - published_ms[bytes - 1];
                assert!(waited_ms <= window_ms, "push {bytes} waited {waited_ms} ms");
            }
            pass_ms(&mut world, 1);
        }
        let sends = sends(&world) - before;
        let pushes = published_ms.len();
        assert!((180..=220).contains(&pushes), "{pushes}");
        assert!(sends_expected.contains(&sends), "{sends} sends of {pushes} at {window_ms} ms");
    }
}

#[test]
fn an_idle_shard_wakes_when_a_window_ends() {
    let mut world = world(1);
    let mut phone = member(&mut world, 0);
    push(&mut world, BARRAGE, 1);
    let pushed = world.now();
    // From here on, time passes only as far as the shard allows its driver to wait.
    world.drivers[0].set_wait_max(Duration::MAX);
    while bytes(&mut world, &mut phone).is_empty() {
        world.turns(1);
        let waited = world.now() - pushed;
        assert!(waited <= Duration::from_millis(WINDOW_MS + 2), "{waited:?}");
    }
}

#[test]
fn without_a_window_each_push_is_sent_at_once() {
    let mut world = World::new(|_| {});
    let mut phone = member(&mut world, 0);
    let before = sends(&world);
    for n in 1..=20 {
        push(&mut world, BARRAGE, n);
        assert_eq!(bytes(&mut world, &mut phone), [n]);
    }
    assert_eq!(sends(&world) - before, 20);
    assert_eq!(world.count(|stats| stats.merged_pushes), 0);
}

#[test]
fn an_urgent_push_releases_the_pushes_that_wait_before_it() {
    let mut world = world(1);
    let mut phone = member(&mut world, 0);
    let before = sends(&world);
    push(&mut world, BARRAGE, 1);
    push(&mut world, BARRAGE, 2);
    push(&mut world, QUESTION, 3);
    assert_eq!(bytes(&mut world, &mut phone), [1, 2, 3]);
    push(&mut world, QUESTION, 4);
    assert_eq!(bytes(&mut world, &mut phone), [4], "an urgent push does not wait");
    assert_eq!(sends(&world) - before, 2);
    // The window has ended: the next push opens a window of full length.
    push(&mut world, BARRAGE, 5);
    pass_ms(&mut world, WINDOW_MS - 1);
    assert_eq!(bytes(&mut world, &mut phone), NOTHING);
    pass_ms(&mut world, 1);
    assert_eq!(bytes(&mut world, &mut phone), [5]);
}

#[test]
fn a_full_log_ends_the_window_and_no_member_skips() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_millis(WINDOW_MS);
        config.rooms.default_policy.log_bytes_max = 10_000;
    });
    let mut phone = member(&mut world, 0);
    for n in 0..20 {
        push(&mut world, BARRAGE, 1000 + n);
    }
    // The log holds nine, with the overhead of each. The tenth ends the window.
    assert_eq!(bytes(&mut world, &mut phone), (1000..1020).collect::<Vec<_>>());
    assert_eq!(world.count(|stats| stats.short_windows), 2);
    push(&mut world, BARRAGE, 20_000);
    assert_eq!(bytes(&mut world, &mut phone), [20_000], "a push longer than the log does not wait");
    assert_eq!(world.count(|stats| stats.skipped_pushes), 0);
}

#[test]
fn a_window_never_causes_a_command_to_be_refused() {
    let mut world = World::new(|config| {
        config.rooms.default_policy.merge_window = Duration::from_millis(WINDOW_MS);
        config.limits.commands_max = 10;
    });
    let mut phone = member(&mut world, 0);
    for n in 1..=100 {
        push(&mut world, BARRAGE, n);
        assert!(world.commands_in_flight() <= 6);
    }
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(bytes(&mut world, &mut phone), (1..=100).collect::<Vec<_>>());
    assert!(world.count(|stats| stats.short_windows) > 0);
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn a_push_reports_its_count_when_its_window_ends() {
    let mut world = world(2);
    let mut phones: Vec<_> = (0..4).map(|n| member(&mut world, n % 2)).collect();
    let push = Command::Push(Push::to_room(&room(), BARRAGE, "x"));
    let mut outcome = Control::command(world.hub(), push);
    world.turns(5);
    assert!(outcome.try_recv().is_err(), "the outcome waits with the push");
    // A later member is not counted and does not get the push.
    let mut late = member(&mut world, 1);
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(outcome.try_recv(), Ok(Ok(Done::with_connections(4))));
    phones.iter_mut().for_each(|phone| assert_eq!(bytes(&mut world, phone), [1]));
    assert_eq!(bytes(&mut world, &mut late), NOTHING);
}

#[test]
fn a_member_that_joins_or_resumes_in_a_window_gets_each_push_once() {
    let mut world = world(2);
    let _elsewhere = member(&mut world, 0);
    let mut phone = member(&mut world, 1);
    push(&mut world, BARRAGE, 1);
    pass_ms(&mut world, WINDOW_MS);
    phone.read(&mut world);
    let seen = phone.received[0].offset;
    push(&mut world, BARRAGE, 2);
    pass_ms(&mut world, WINDOW_MS);
    push(&mut world, BARRAGE, 3);

    let mut joined = member(&mut world, 1);
    let mut resumed = world.log_in(1);
    world.ask(&resumed, RESUME, 1, &seen.to_be_bytes());
    // It gets the released pushes at once, and the others when the window ends.
    assert_eq!(bytes(&mut world, &mut resumed), [2]);
    push(&mut world, BARRAGE, 4);
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(bytes(&mut world, &mut joined), [4]);
    assert_eq!(bytes(&mut world, &mut resumed), [3, 4]);
    assert_eq!(bytes(&mut world, &mut phone), [1, 2, 3, 4]);
}

#[test]
fn a_shard_that_gets_its_first_member_in_a_window_has_the_log_of_the_room() {
    let mut world = world(2);
    // Whichever of the two shards is the room's home.
    for (first, second) in [(0, 1), (1, 0)] {
        let mut there = member(&mut world, first);
        push(&mut world, BARRAGE, 1);
        pass_ms(&mut world, WINDOW_MS);
        there.read(&mut world);
        let seen = there.received.drain(..).next_back().unwrap().offset;
        push(&mut world, BARRAGE, 2);
        let mut here = world.log_in(second);
        world.ask(&here, RESUME, 1, &seen.to_be_bytes());
        assert_eq!(
            bytes(&mut world, &mut here),
            [2],
            "this shard has no window that holds it back"
        );
        push(&mut world, BARRAGE, 3);
        pass_ms(&mut world, WINDOW_MS);
        assert_eq!(bytes(&mut world, &mut there), [2, 3]);
        assert_eq!(bytes(&mut world, &mut here), [3]);
        for phone in [there, here] {
            world.ask(&phone, LEAVE, 2, b"");
        }
    }
}

#[test]
fn a_member_that_leaves_or_is_kicked_in_a_window_gets_the_pushes_before() {
    let mut world = world(2);
    let mut leaver = member(&mut world, 0);
    let kicked_id = world.next_user_id;
    let mut kicked = member(&mut world, 1);
    let mut stayer = member(&mut world, 0);
    push(&mut world, BARRAGE, 1);
    push(&mut world, BARRAGE, 2);
    world.ask(&leaver, LEAVE, 2, b"");
    world.kick(kicked_id);
    world.turns(6);
    push(&mut world, BARRAGE, 3);
    kicked.read(&mut world);
    assert_eq!(kicked.last_code(), Some(Code::Kicked));
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(bytes(&mut world, &mut leaver), [1, 2]);
    assert_eq!(bytes(&mut world, &mut kicked), [1, 2]);
    assert_eq!(bytes(&mut world, &mut stayer), [1, 2, 3]);
}

#[test]
fn a_window_ends_when_its_last_member_is_gone() {
    let mut world = World::new(|config| {
        config.shards = 2;
        config.rooms.default_policy.merge_window = Duration::from_secs(10);
        config.rooms.idle_ttl = Duration::ZERO;
    });
    for shard in [0, 1, 0, 1] {
        let mut phone = member(&mut world, shard);
        push(&mut world, BARRAGE, 1);
        assert_eq!(world.commands_in_flight(), 1);
        world.reset(phone.peer);
        world.turns(10);
        assert_eq!(world.commands_in_flight(), 0, "a room without members has no window");
        phone.read(&mut world);
        // The room closes, and the next one takes its slot.
        pass_ms(&mut world, 2_000);
        assert!(world.shards.iter().all(|shard| shard.levels().rooms == 1));
    }
}

#[test]
fn a_drain_ends_all_windows_and_loses_no_push() {
    let mut world = world(2);
    let mut phones: Vec<_> = (0..6).map(|n| member(&mut world, n % 2)).collect();
    let mut asking = member(&mut world, 1);
    world.ask(&asking, KEEP, 2, b"");
    push(&mut world, BARRAGE, 1);
    push(&mut world, BARRAGE, 2);
    world.drain();
    // The clock does not move.
    world.turns(10);
    for phone in &mut phones {
        phone.read(&mut world);
        assert_eq!(phone.last_code(), Some(Code::Draining));
        assert_eq!(bytes(&mut world, phone), [1, 2]);
    }
    assert_eq!(bytes(&mut world, &mut asking), [1, 2], "a client that waits for an answer stays");
    push(&mut world, BARRAGE, 3);
    assert_eq!(bytes(&mut world, &mut asking), [3], "a draining gateway opens no window");
    assert_eq!(world.commands_in_flight(), 0);
}

#[test]
fn each_room_has_its_own_window_and_so_has_everybodys_room() {
    let mut world = World::new(|config| {
        let mut policy = config.rooms.default_policy;
        policy.merge_window = Duration::from_millis(300);
        config.rooms.policies = vec![("*".into(), policy)];
        config.rooms.default_policy.merge_window = Duration::from_millis(WINDOW_MS);
    });
    // A separate room, though its name begins like that of everybody's room.
    let starry = RoomId::new("*starry").unwrap();
    let mut phone = member(&mut world, 0);
    world.push_all(BARRAGE, 1);
    push(&mut world, BARRAGE, 2);
    world.ask(&phone, JOIN, 2, starry.as_str().as_bytes());
    world.gateway().push_room(&starry, BARRAGE, "starry").unwrap();
    world.turns(3);
    pass_ms(&mut world, WINDOW_MS);
    let mut got = bytes(&mut world, &mut phone);
    got.sort_unstable();
    assert_eq!(got, [2, 6]);
    push(&mut world, BARRAGE, 3);
    world.push_all(BARRAGE, 4);
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(bytes(&mut world, &mut phone), [3]);
    pass_ms(&mut world, WINDOW_MS);
    assert_eq!(bytes(&mut world, &mut phone), [1, 4]);
    assert_eq!(world.commands_in_flight(), 0);
}
