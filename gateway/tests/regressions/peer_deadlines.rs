//! How long, and with how many bytes, a peer may stay that never sends a whole frame.

use std::time::Duration;

use tidegate_backend::{Code, Placement};
use tidegate_protocol::Request;
use tidegate_protocol::limits::FRAME_BEFORE_SESSION_BYTES_MAX;
use tidegate_testing::scripted::ECHO;
use tidegate_testing::{Cause, World, frame};

/// A request that is longer than what a peer sends of it here.
fn long_request() -> Vec<u8> {
    frame(&Request { kind: ECHO, sequence: 1, biz_data: &[7; 1000], ..Request::default() })
}

#[test]
fn bytes_of_an_unfinished_frame_are_no_sign_of_life() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    let idle_timeout = world.config().session.idle_timeout;
    let request = long_request();
    let (step, mut sent) = (Duration::from_secs(5), Duration::ZERO);
    for byte in &request {
        if sent > idle_timeout {
            break;
        }
        assert_eq!(world.closed(Cause::Idle), 0, "after {sent:?} of {idle_timeout:?}");
        world.write_all(phone.peer, &[*byte]);
        world.pass(step);
        sent += step;
    }
    phone.read(&mut world);
    assert_eq!((world.closed(Cause::Idle), phone.last_code()), (1, Some(Code::Idle)));
    assert!(phone.end.is_some());
}

#[test]
fn a_frame_that_comes_whole_in_time_is_a_sign_of_life() {
    let mut world = World::new(|_| {});
    let mut phone = world.log_in(0);
    let request = long_request();
    let part = request.len() / 6 + 1;
    for _ in 0..4 {
        // Six parts, 10 s apart, are a frame a minute.
        for part in request.chunks(part) {
            world.write_all(phone.peer, part);
            world.pass(Duration::from_secs(10));
        }
    }
    phone.read(&mut world);
    assert_eq!((phone.count(ECHO), &phone.end), (4, &None));
}

#[test]
fn bytes_of_an_unfinished_frame_do_not_extend_the_time_to_authenticate() {
    let mut world = World::new(|_| {});
    let mut phone = world.phone(0);
    let timeout = world.config().auth.timeout;
    let mut sent = Duration::ZERO;
    for byte in long_request() {
        if sent > timeout {
            break;
        }
        assert_eq!(world.closed(Cause::AuthTimeout), 0, "after {sent:?} of {timeout:?}");
        world.write_all(phone.peer, &[byte]);
        world.pass(Duration::from_secs(1));
        sent += Duration::from_secs(1);
    }
    phone.read(&mut world);
    assert_eq!((world.closed(Cause::AuthTimeout), phone.last_code()), (1, Some(Code::Idle)));
}

#[test]
fn before_a_session_a_long_frame_is_refused_by_its_length_alone() {
    let mut world = World::new(|_| {});
    let prefix = |bytes: usize| {
        let mut prefix = Vec::new();
        tidegate_protocol::frame::put_prefix(&mut prefix, bytes);
        prefix
    };
    let mut short = world.phone(0);
    let mut long = world.phone(0);
    let mut session = world.log_in(0);
    world.write_all(short.peer, &prefix(FRAME_BEFORE_SESSION_BYTES_MAX));
    world.write_all(long.peer, &prefix(FRAME_BEFORE_SESSION_BYTES_MAX + 1));
    world.write_all(session.peer, &prefix(world.config().limits.frame_bytes_max));
    world.turns(3);
    for phone in [&mut short, &mut long, &mut session] {
        phone.read(&mut world);
    }
    assert_eq!((long.last_code(), long.end.is_some()), (Some(Code::Malformed), true));
    assert_eq!((short.received.len(), short.end), (0, None));
    assert_eq!((session.received.len(), session.end), (0, None), "a session may send longer ones");
}

#[test]
fn a_request_that_waited_for_a_call_which_timed_out_is_handed_over_in_the_same_turn() {
    let mut world = World::new(|config| {
        config.limits.calls_per_connection_max = 1;
        config.backends[0].placement = Some(Placement::Worker);
    });
    let phone = world.log_in(0);
    // Both at once, so that the second one waits in the shard.
    let request = |sequence| frame(&Request { kind: ECHO, sequence, ..Request::default() });
    world.write_all(phone.peer, &[request(1), request(2)].concat());
    world.turns(6);
    let timeouts = Code::Timeout.number() as usize - 100;
    let step = Duration::from_millis(200);
    while world.count(|stats| stats.failures[timeouts]) == 0 {
        world.advance(step);
        world.turn(0);
    }
    // Nothing else happens to the shard, which would sleep now.
    world.run_workers();
    world.turn(0);
    assert_eq!(world.count(|stats| stats.answers), 1, "the second request was handed over");
}

#[test]
fn no_answer_overtakes_that_of_a_call_which_expires_in_the_queue() {
    let mut world = World::new(|config| config.backends[0].placement = Some(Placement::Worker));
    let mut phone = world.log_in(0);
    let timeout = world.config().routes[0].timeout;
    world.ask(&phone, ECHO, 1, b"");
    world.turns(4);
    world.advance(timeout / 2);
    world.ask(&phone, ECHO, 2, b"");
    world.turns(4);
    world.advance(timeout / 2 + Duration::from_millis(1));
    // The worker sees that the first call has expired before the shard does.
    world.run_workers();
    phone.read_for(&mut world, 4);
    let answers = phone.received.iter().filter(|answer| answer.kind == ECHO);
    let answers: Vec<_> = answers.map(|answer| (answer.sequence, answer.code)).collect();
    assert_eq!(answers, [(1, Some(Code::Timeout)), (2, None)]);
    assert_eq!(world.count(|stats| stats.late_answers), 0, "a handler has answered in time");
}
