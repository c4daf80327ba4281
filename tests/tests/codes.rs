//! Each error code, produced by the real gateway.

use std::time::Duration;

use tidegate_protocol::client::{Event, Failure};
use tidegate_tests::phone::{End, demo, quiz};
use tidegate_tests::{Code, Setup};

#[test]
fn a_token_that_does_not_verify_gets_100() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    for token in ["token-8", "7"] {
        let failure = phone.try_login(7, token).unwrap_err();
        assert_eq!(failure.code, Some(Code::Unauthenticated));
    }
    // Two failures leave the connection open.
    phone.login(7);
    phone.assert_is_served();
}

#[test]
fn a_request_before_authentication_gets_100() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    let asked = phone.send(demo::ECHO, b"hello");
    phone.fails(asked, Code::Unauthenticated);
    phone.heartbeat();
    phone.login(7);
    phone.assert_is_served();
}

#[test]
fn the_third_failed_authentication_closes_the_connection() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    let asked = phone.send(demo::ECHO, b"hello");
    phone.fails(asked, Code::Unauthenticated);
    for _ in 0..2 {
        let failure = phone.try_login(7, "wrong").unwrap_err();
        assert_eq!(failure.code, Some(Code::Unauthenticated));
    }
    assert_eq!(phone.end(), End::Closed);
    assert_eq!(phone.next(), None, "no answer follows the third failure");
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_connections_closed_total", "auth_failed", |n| n == 1.0);
}

#[test]
fn a_request_that_the_backend_cannot_serve_gets_101() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    for (kind, biz_data) in [(99, &b""[..]), (demo::JOIN, &[0xff]), (demo::JOIN, b""), (20, b"x")] {
        let asked = phone.send(kind, biz_data);
        phone.fails(asked, Code::BackendFailed);
    }
    phone.assert_is_served();
}

#[test]
fn a_handler_that_panics_on_a_shard_or_a_worker_answers_101() {
    for placement in ["worker", "shard"] {
        let gateway = Setup::quiz()
            .set("backends.quiz.placement", placement)
            .set("routes", r#"[{types=[1,99],backend="demo"},{types=[100,199],backend="quiz"}]"#)
            .start();
        let mut phone = gateway.login(7);
        let requests = [(quiz::ANSWER, "9.9"), (quiz::PANIC, ""), (quiz::ANSWER, "9.9"), (199, "")];
        let asked = phone.send_together(&requests);
        assert_eq!(phone.outcome(asked[0]), Ok("noted".into()), "{placement}");
        phone.fails(asked[1], Code::BackendFailed);
        assert_eq!(phone.outcome(asked[2]), Ok("noted".into()));
        // The handler drops this call without an answer.
        phone.fails(asked[3], Code::BackendFailed);
        gateway.process.stderr.wait_for("a handler panicked");
        phone.assert_is_served();
    }
}

#[test]
fn an_answer_too_long_for_a_frame_becomes_101() {
    let gateway = Setup::demo().set("limits.frame_to_client_bytes_max", 1000).start();
    let mut phone = gateway.login(7);
    let asked = phone.send(demo::ECHO, &[b'x'; 1000]);
    phone.fails(asked, Code::BackendFailed);
    gateway.operator().wait_for_metric("tidegate_oversize_answers_total", "", |n| n == 1.0);
    phone.assert_is_served();
}

#[test]
fn a_backend_that_does_not_answer_in_time_causes_102() {
    let routes =
        r#"[{types=[1,99],backend="demo"},{types=[100,199],backend="quiz",timeout_ms=200}]"#;
    let gateway = Setup::quiz().set("backends.quiz.workers", 1).set("routes", routes).start();
    let mut phone = gateway.login(7);
    let asked = phone.send(quiz::WAIT, b"");
    let failure = phone.fails(asked, Code::Timeout);
    assert_eq!(failure.retry_after, Duration::ZERO);
    // The late answer is dropped and counted.
    phone.ask(quiz::ASK, b"Which?").unwrap();
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_late_answers_total", "", |n| n == 1.0);
    assert_eq!(phone.push().kind, quiz::ASK);
    assert_eq!(phone.leftovers(), []);
}

#[test]
fn a_connection_above_its_request_rate_gets_103() {
    let gateway = Setup::demo()
        .set("limits.frames_per_second_max", 1)
        .set("limits.frames_burst_max", 5)
        .start();
    let mut phone = gateway.login(7);
    let asked = phone.send_together(&[(demo::ECHO, "x"); 20]);
    let outcomes: Vec<_> = asked.into_iter().map(|sequence| phone.outcome(sequence)).collect();
    let (served, limited): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(served.len() >= 4, "the burst is served, except for what the login used");
    let limited: Vec<_> = limited.into_iter().map(Result::unwrap_err).collect();
    assert!(limited.len() >= 10, "{}", limited.len());
    assert!(limited.iter().all(|failure| failure.code == Some(Code::RateLimited)));
    // They came together, and each is to be retried in a different second.
    assert!(limited[0].retry_after > Duration::ZERO);
    for pair in limited.windows(2) {
        assert_eq!(pair[1].retry_after - pair[0].retry_after, Duration::from_secs(1));
    }
    // Authentications count too. Each connection has its own rate.
    let asked = phone.send_together(&[(0, ""); 4]);
    let refused = asked.into_iter().filter(|&sequence| {
        phone.outcome(sequence).is_err_and(|failure| failure.code == Some(Code::RateLimited))
    });
    assert!(refused.count() >= 3);
    gateway.login(8).assert_is_served();
}

#[test]
fn calls_beyond_the_rates_of_routes_and_users_get_103() {
    let echo = r#"{types=[1,1],backend="demo",user_calls_per_second_max=1,user_calls_burst_max=2}"#;
    let push = r#"{types=[2,2],backend="demo",calls_per_second_max=1,calls_burst_max=2}"#;
    let gateway = Setup::demo().shards(1).set("routes", format!("[{echo},{push}]")).start();
    let mut phones = [7, 8].map(|user_id| gateway.login(user_id));
    for phone in &mut phones {
        let asked = phone.send_together(&[(demo::ECHO, "x"); 5]);
        let outcomes: Vec<_> = asked.into_iter().map(|sequence| phone.outcome(sequence)).collect();
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok(), "each user has a burst");
        let waits: Vec<_> =
            outcomes[2..].iter().map(|outcome| outcome.clone().unwrap_err()).collect();
        assert!(waits.iter().all(|failure| failure.code == Some(Code::RateLimited)));
        for pair in waits.windows(2) {
            assert_eq!(pair[1].retry_after - pair[0].retry_after, Duration::from_secs(1));
        }
    }
    let asked = phones[0].send_together(&[(demo::PUSH_ALL, "x"); 4]);
    let outcomes: Vec<_> = asked.into_iter().map(|sequence| phones[0].outcome(sequence)).collect();
    assert!(outcomes[0].is_ok() && outcomes[1].is_ok(), "the route has a burst");
    for outcome in &outcomes[2..] {
        assert_eq!(outcome.clone().unwrap_err().code, Some(Code::RateLimited));
    }
    let operator = gateway.operator();
    let refused = |reason| operator.metric("tidegate_refused_calls_total", reason);
    assert_eq!((refused("user_rate"), refused("route_rate")), (Some(6.0), Some(2.0)));
}

#[test]
fn a_route_with_too_many_calls_answers_104() {
    let routes =
        r#"[{types=[1,99],backend="demo"},{types=[100,199],backend="quiz",in_flight_max=2}]"#;
    let gateway = Setup::quiz().set("backends.quiz.workers", 1).set("routes", routes).start();
    let mut phone = gateway.login(7);
    let asked = phone.send_together(&[(quiz::WAIT, ""); 3]);
    assert!(phone.fails(asked[2], Code::Overloaded).retry_after > Duration::ZERO);
    // Another route accepts calls, and this one does again when a call has ended.
    phone.assert_is_served();
    let mut host = gateway.login(8);
    let refused = host.send(quiz::ASK, b"Which?");
    host.fails(refused, Code::Overloaded);
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_calls_in_flight", "", |n| n == 2.0);
}

#[test]
fn a_backend_with_a_full_queue_answers_104() {
    let gateway = Setup::demo()
        .set("backends.demo.workers", 1)
        .set("backends.demo.queue_calls_max", 1)
        .start();
    let mut phone = gateway.login(7);
    let asked = phone.send_together(&[(demo::ECHO, "x"); 20]);
    let outcomes: Vec<_> = asked.into_iter().map(|sequence| phone.outcome(sequence)).collect();
    assert!(outcomes[0].is_ok(), "the queue takes the first call");
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty(), "the queue refuses other calls of the same turn");
    assert!(refused.iter().all(|failure| failure.code == Some(Code::Overloaded)));
    phone.assert_is_served();
}

#[test]
fn a_type_without_a_route_gets_105() {
    let gateway = Setup::demo().set("routes", r#"[{types=[1,9],backend="demo"}]"#).start();
    let mut phone = gateway.login(7);
    for kind in [10, 100, i32::MAX] {
        let asked = phone.send(kind, b"");
        phone.fails(asked, Code::NoRoute);
    }
    phone.assert_is_served();
}

#[test]
fn a_malformed_frame_gets_106() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    phone.send_bytes(&[0x80, 0x00]);
    phone.goodbye(Code::Malformed);
}

#[test]
fn a_session_that_another_login_of_its_user_replaces_gets_107() {
    let gateway = Setup::demo().shards(2).start();
    let mut older = gateway.login(7);
    let mut newer = gateway.login(7);
    older.goodbye(Code::Replaced);
    newer.assert_is_served();
}

#[test]
fn a_kicked_session_gets_110() {
    let gateway = Setup::demo().shards(2).start();
    let mut phone = gateway.login(7);
    let mut neighbour = gateway.login(8);
    let operator = gateway.operator();
    assert_eq!(operator.kick(7), 1);
    phone.goodbye(Code::Kicked);
    assert_eq!(operator.kick(7), 0);
    for (reason, count) in [("kicked", 1.0), ("replaced", 0.0)] {
        operator.wait_for_metric("tidegate_connections_closed_total", reason, |n| n == count);
    }
    neighbour.assert_is_served();
    gateway.login(7).assert_is_served();
}

#[test]
fn a_drain_sends_108_after_the_answers_and_the_process_ends_with_success() {
    // Every client's turn comes at once: until then its requests are served.
    let gateway =
        Setup::quiz().set("shutdown.retry_after_ms", 3000).set("shutdown.goodbye_window_ms", 0);
    let mut gateway = gateway.quiz_times_out_after_ms(3000).start();
    let mut idle = gateway.login(1);
    let mut anonymous = gateway.connect();
    anonymous.heartbeat();
    let mut waiting = gateway.login(2);
    let mut host = gateway.login(3);
    let asked = waiting.send(quiz::WAIT, b"");
    let held = host.send(quiz::WAIT, b"");
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 2.0);
    gateway.terminate();
    let assert_spread = |failure: Failure| {
        let spread = Duration::from_millis(3000)..Duration::from_millis(6000);
        assert!(spread.contains(&failure.retry_after), "{failure:?}");
    };
    for phone in [&mut idle, &mut anonymous] {
        assert_spread(phone.goodbye(Code::Draining));
    }
    // Requests are no longer handed to a backend, so only the timeout ends the calls that wait.
    let late = host.send(quiz::ASK, b"Which?");
    assert_spread(host.fails(late, Code::Draining));
    waiting.fails(asked, Code::Timeout);
    assert_spread(waiting.goodbye(Code::Draining));
    // What it asked before the drain is still answered, and then comes the goodbye.
    host.fails(held, Code::Timeout);
    assert_spread(host.goodbye(Code::Draining));
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn a_drain_waits_for_an_answer_before_108() {
    let mut gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let asked = phone.send(quiz::THINK, b"700");
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    gateway.terminate();
    assert_eq!(phone.outcome(asked), Ok("thought about it".into()));
    phone.goodbye(Code::Draining);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn a_drain_sends_108_at_its_timeout_without_the_missing_answers() {
    let mut gateway = Setup::quiz().set("shutdown.drain_timeout_ms", 100).start();
    let mut phone = gateway.login(7);
    phone.send(quiz::WAIT, b"");
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 1.0);
    gateway.terminate();
    let goodbye = phone.next();
    let Some(Event::Goodbye(failure)) = goodbye else { panic!("{goodbye:?}") };
    assert_eq!(failure.code, Some(Code::Draining));
    assert_eq!(phone.end(), End::Closed);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn a_silent_session_gets_109() {
    let gateway = Setup::demo()
        .set("session.heartbeat_interval_ms", 100)
        .set("session.idle_timeout_ms", 300)
        .start();
    let mut phone = gateway.login(7);
    phone.goodbye(Code::Idle);
    gateway.operator().wait_for_total("users", 0);
}
