//! The rules of the protocol, each checked with the real gateway.

use bytes::Bytes;
use tidegate_protocol::client::Event;
use tidegate_protocol::message::Request;
use tidegate_tests::phone::{
    End, by_sequence, demo, heartbeat_frame, login_frame, quiz, request_frame, said,
};
use tidegate_tests::{Code, Phone, Setup};

#[test]
fn every_request_gets_exactly_one_answer() {
    let gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let kinds = [demo::ECHO, quiz::ANSWER, quiz::THINK, quiz::PANIC, 99, 5000];
    let requests: Vec<_> = (0..300).map(|index| (kinds[index % kinds.len()], "1")).collect();
    let asked = phone.send_together(&requests);
    let beaten: Vec<_> = (0..50).map(|_| phone.send_heartbeat()).collect();
    let logged_in: Vec<_> = (0..50).map(|_| phone.send_login(7, "token-7")).collect();
    phone.stop_sending();
    assert_eq!(phone.end(), End::Closed);
    let answers = by_sequence(phone.by_ref());
    for sequence in asked.iter().chain(&beaten).chain(&logged_in) {
        assert_eq!(answers[sequence].len(), 1, "{sequence}: {:?}", answers[sequence]);
    }
    assert_eq!(answers.len(), asked.len() + beaten.len() + logged_in.len());
}

#[test]
fn requests_of_one_route_are_answered_in_order() {
    let gateway = Setup::demo().shards(2).start();
    let mut phones: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    let requests: Vec<_> = (0..2000).map(|n| (demo::ECHO, format!("{n}"))).collect();
    let asked: Vec<_> = phones.iter_mut().map(|phone| phone.send_together(&requests)).collect();
    for (phone, asked) in phones.iter_mut().zip(asked) {
        for (sequence, (_, text)) in asked.into_iter().zip(&requests) {
            let wanted =
                Event::Answer { kind: demo::ECHO, sequence, biz_data: text.clone().into() };
            assert_eq!(phone.next(), Some(wanted));
        }
    }
}

#[test]
fn a_slow_answer_delays_neither_heartbeats_nor_other_routes() {
    let gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let waiting = phone.send(quiz::WAIT, b"");
    let beaten = phone.send_heartbeat();
    assert!(matches!(phone.next(), Some(Event::Pong { sequence, .. }) if sequence == beaten));
    let again = phone.send_login(7, "token-7");
    let session = phone.next();
    assert!(matches!(session, Some(Event::Authenticated { sequence, .. }) if sequence == again));
    phone.assert_is_served();
    // Now the host asks a question, and the waiting call is answered.
    let mut host = gateway.login(8);
    host.ask(quiz::ASK, b"Which?").unwrap();
    assert_eq!(phone.outcome(waiting), Ok("Which?".into()));
}

#[test]
fn a_member_that_publishes_gets_both_the_push_and_the_answer() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    phone.join("lobby", 0);
    let asked = phone.send(demo::SAY, &said("lobby", "hello"));
    assert_eq!(phone.outcome(asked), Ok(Bytes::new()));
    assert_eq!(phone.push().text(), "hello");
    assert_eq!(phone.leftovers(), []);
}

#[test]
fn pushes_of_a_room_arrive_whole_and_in_order_of_publication() {
    let gateway = Setup::demo().shards(2).start();
    let mut members: Vec<_> = (1..=6).map(|user_id| gateway.login(user_id)).collect();
    members.iter_mut().for_each(|member| member.join("lobby", 0));
    let talkers = 2;
    let texts = |talker| (0..200).map(move |n| format!("{talker}:{n}:{}", "x".repeat(n * 3)));
    for (talker, member) in members.iter_mut().enumerate().take(talkers) {
        let says: Vec<_> = texts(talker).map(|text| (demo::SAY, said("lobby", &text))).collect();
        member.send_together(&says);
    }
    let mut orders = members.iter_mut().map(|member| {
        let pushes = member.pushes(200 * talkers);
        assert!(pushes.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
        pushes.iter().map(tidegate_tests::Push::text).collect::<Vec<_>>()
    });
    let first = orders.next().unwrap();
    assert!(orders.all(|order| order == first), "all members see the same order");
    for talker in 0..talkers {
        let own = format!("{talker}:");
        let heard = first.iter().filter(|text| text.starts_with(&own)).cloned();
        assert!(heard.eq(texts(talker)), "the pushes of one publisher keep their order");
    }
}

#[test]
fn a_silent_session_is_closed_and_any_frame_keeps_it_open() {
    let gateway = Setup::demo().set("session.heartbeat_interval_ms", 800).start();
    let silent = gateway.login(1);
    let mut asking = gateway.login(2);
    let mut beating = gateway.login(3);
    let mut logging_in = gateway.login(4);
    assert_eq!(silent.session().heartbeat_interval_ms, 800);
    // The others send frames until the silent one gets its goodbye.
    let closed = silent.in_background(|silent| silent.goodbye(Code::Idle));
    while !closed.is_finished() {
        asking.assert_is_served();
        beating.heartbeat();
        logging_in.login(4);
    }
    closed.join().unwrap();
    asking.assert_is_served();
    beating.assert_is_served();
    logging_in.assert_is_served();
}

#[test]
fn a_connection_that_does_not_authenticate_in_time_is_closed() {
    let gateway = Setup::demo().set("auth.timeout_ms", 300).start();
    let mut phone = gateway.connect();
    // A heartbeat does not replace an authentication.
    phone.heartbeat();
    let mut neighbour = gateway.login(8);
    assert_eq!(phone.goodbye(Code::Idle).retry_after, std::time::Duration::ZERO);
    neighbour.assert_is_served();
}

#[test]
fn a_second_authentication_gets_the_same_answer_and_cannot_change_the_user() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    let first = phone.session();
    let second = phone.login(7);
    assert_eq!(second.session_id, first.session_id);
    assert_eq!(second.heartbeat_interval_ms, first.heartbeat_interval_ms);
    let failure = phone.try_login(8, "token-8").unwrap_err();
    assert_eq!(failure.code, Some(Code::Unauthenticated));
    phone.assert_is_served();
    let user = gateway.operator().json("/users/7");
    assert_eq!(user["connections"].as_array().unwrap().len(), 1);
    let other = gateway.operator().json("/users/8");
    assert_eq!(other["connections"].as_array().unwrap().len(), 0);
}

/// Malformed frames, each with a description of its fault.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let below = Request { kind: -2, sequence: 9, ..Request::default() };
    let mut type_below = Vec::new();
    below.encode_frame(&mut type_below);
    vec![
        ("a padded length", vec![0x81, 0x00, 0x08]),
        ("a length of six bytes", vec![0x80, 0x80, 0x80, 0x80, 0x80, 0x01]),
        ("a length above the limit", vec![0x81, 0x80, 0x04]),
        ("a length of more than 32 bits", vec![0xff, 0xff, 0xff, 0xff, 0x7f]),
        ("bytes that are no message", vec![3, 0xff, 0xff, 0xff]),
        ("a field of the wrong kind", vec![2, 0x0a, 0x00]),
        ("a field that is cut", vec![2, 0x22, 0x05]),
        ("a token that is not UTF-8", vec![4, 0x1a, 0x02, 0xc3, 0x28]),
        ("a type below -1", type_below),
    ]
}

#[test]
fn a_malformed_frame_closes_its_connection_and_no_other() {
    let gateway = Setup::demo().start();
    let mut neighbour = gateway.login(8);
    let neighbours_bytes = request_frame(demo::ECHO, b"fine", 77);
    let (head, tail) = neighbours_bytes.split_at(5);
    for (what, bytes) in malformed() {
        for logged_in in [false, true] {
            // The neighbour has sent half of a frame.
            neighbour.send_bytes(head);
            let mut phone = gateway.connect();
            if logged_in {
                phone.login(7);
            }
            phone.send_bytes(&bytes);
            // Bytes that follow are not read.
            phone.send_heartbeat();
            phone.goodbye(Code::Malformed);
            neighbour.send_bytes(tail);
            assert_eq!(neighbour.outcome(77), Ok("fine".into()), "after {what}");
        }
    }
    let operator = gateway.operator();
    let count = (2 * malformed().len()) as f64;
    operator.wait_for_metric("tidegate_connections_closed_total", "malformed", |n| n == count);
    operator.wait_for_metric("tidegate_failures_total", "106", |n| n == count);
}

#[test]
fn bytes_after_a_malformed_frame_do_not_lose_the_goodbye() {
    let gateway = Setup::demo().start();
    for _ in 0..10 {
        let mut phone = gateway.login(7);
        // A close of a socket with unread bytes resets the connection, and the kernel drops the goodbye.
        let mut bytes = vec![0x80, 0x00];
        (0..10_000).for_each(|_| bytes.extend_from_slice(&request_frame(demo::ECHO, b"x", 1)));
        phone.send_bytes(&bytes);
        phone.goodbye(Code::Malformed);
    }
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_discarded_bytes_total", "", |n| n > 0.0);
}

#[test]
fn requests_before_a_malformed_frame_are_answered() {
    let gateway = Setup::demo().set("backends.demo.placement", "shard").start();
    let mut phone = gateway.login(7);
    let mut bytes = heartbeat_frame(50);
    bytes.extend_from_slice(&request_frame(demo::ECHO, b"first", 51));
    bytes.extend_from_slice(&[0x80, 0x00]);
    phone.send_bytes(&bytes);
    assert!(matches!(phone.next(), Some(Event::Pong { sequence: 50, .. })));
    assert_eq!(phone.outcome(51), Ok("first".into()));
    phone.goodbye(Code::Malformed);
}

#[test]
fn an_empty_frame_is_a_failed_authentication() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    phone.send_bytes(&[0]);
    // The answer has the sequence 0 and the type 0, so this client takes it for a goodbye.
    let Some(Event::Goodbye(failure)) = phone.next() else { panic!("there is an answer") };
    assert_eq!(failure.code, Some(Code::Unauthenticated));
    phone.login(7);
    phone.assert_is_served();
}

#[test]
fn a_half_closed_client_gets_all_its_answers() {
    let gateway = Setup::quiz().start();
    let mut phone = gateway.login(7);
    let waiting = phone.send(quiz::WAIT, b"");
    let thinking = phone.send(quiz::THINK, b"50");
    let requests: Vec<_> = (0..500).map(|n| (demo::ECHO, format!("{n}"))).collect();
    let asked = phone.send_together(&requests);
    phone.stop_sending();
    for (sequence, (_, text)) in asked.into_iter().zip(requests) {
        assert_eq!(phone.outcome(sequence), Ok(text.into()));
    }
    assert_eq!(phone.outcome(thinking), Ok("thought about it".into()));
    let mut host = gateway.login(8);
    host.ask(quiz::ASK, b"Which?").unwrap();
    assert_eq!(phone.outcome(waiting), Ok("Which?".into()));
    assert_eq!(phone.end(), End::Closed);
}

#[test]
fn a_client_that_half_closes_before_its_login_ends_gets_its_answers() {
    // The home shards of the users differ, so some logins are handled by another shard.
    let gateway = Setup::demo().shards(4).start();
    for user_id in 1..=20 {
        let mut phone = gateway.connect();
        let mut bytes = login_frame(user_id, 1);
        (2..=300).for_each(|n| bytes.extend_from_slice(&request_frame(demo::ECHO, b"x", n)));
        phone.send_bytes(&bytes);
        phone.stop_sending();
        assert_eq!(phone.end(), End::Closed);
        let answers = by_sequence(phone.by_ref());
        assert_eq!(answers.len(), 300, "user {user_id}");
    }
}

#[test]
fn a_half_closed_client_without_open_requests_is_closed_at_once() {
    let gateway = Setup::demo().start();
    let mut anonymous = gateway.connect();
    anonymous.stop_sending();
    assert_eq!((anonymous.end(), anonymous.next()), (End::Closed, None));
    let mut idle = gateway.login(7);
    idle.stop_sending();
    assert_eq!((idle.end(), idle.next()), (End::Closed, None));
    let mut cut = gateway.login(8);
    cut.send_bytes(&request_frame(demo::ECHO, b"a frame that is never whole", 1)[..9]);
    cut.stop_sending();
    assert_eq!((cut.end(), cut.next()), (End::Closed, None));
    let operator = gateway.operator();
    operator.wait_for_metric("tidegate_connections_closed_total", "\"peer\"", |n| n == 3.0);
    operator.wait_for_total("connections", 0);
}

#[test]
fn the_answer_for_a_connection_that_is_gone_is_dropped() {
    let gateway = Setup::quiz().start();
    let operator = gateway.operator();
    let mut host = gateway.login(1);
    let mut kicked = gateway.login(2);
    let mut vanished = gateway.login(3);
    kicked.send(quiz::WAIT, b"");
    vanished.send(quiz::WAIT, b"");
    operator.wait_for_metric("tidegate_calls_in_flight", "", |n| n == 2.0);
    assert_eq!(operator.kick(2), 1);
    kicked.goodbye(Code::Kicked);
    vanished.reset();
    operator.wait_for_total("sessions", 1);
    // Connections that now take their slots must not get their answers.
    let mut newer: Vec<_> = (4..8).map(|user_id| gateway.login(user_id)).collect();
    host.ask(quiz::ASK, b"Which?").unwrap();
    operator.wait_for_metric("tidegate_orphan_answers_total", "", |n| n == 2.0);
    for phone in &mut newer {
        assert_eq!(phone.push().kind, quiz::ASK);
        assert_eq!(phone.leftovers(), []);
    }
}

#[test]
fn frames_may_arrive_byte_by_byte() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    let mut bytes = login_frame(7, 1);
    bytes.extend_from_slice(&request_frame(demo::ECHO, &[b'x'; 200], 2));
    bytes.extend_from_slice(&heartbeat_frame(3));
    bytes.iter().for_each(|&byte| phone.send_bytes(&[byte]));
    assert!(matches!(phone.next(), Some(Event::Authenticated { sequence: 1, .. })));
    assert_eq!(phone.outcome(2), Ok(vec![b'x'; 200].into()));
    phone.wait_for(|event| matches!(event, Event::Pong { sequence: 3, .. }).then_some(()));
}

#[test]
fn hundreds_of_frames_may_arrive_in_one_segment() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.connect();
    let mut bytes = login_frame(7, 1);
    (2..400).for_each(|n| bytes.extend_from_slice(&request_frame(demo::ECHO, b"x", n)));
    phone.send_bytes(&bytes);
    assert!(matches!(phone.next(), Some(Event::Authenticated { sequence: 1, .. })));
    for sequence in 2..400 {
        let answer = Event::Answer { kind: demo::ECHO, sequence, biz_data: "x".into() };
        assert_eq!(phone.next(), Some(answer));
    }
}

#[test]
fn unknown_fields_are_ignored() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    let known = request_frame(demo::ECHO, b"known", 70);
    let mut payload = known[1..].to_vec();
    // Field 15 a varint, 16 of 64 bits, 17 of bytes, 18 of 32 bits, 19 a group.
    payload.extend_from_slice(&[0x78, 0x05]);
    payload.extend_from_slice(&[0x81, 0x01, 1, 2, 3, 4, 5, 6, 7, 8]);
    payload.extend_from_slice(&[0x8a, 0x01, 0x02, 0xff, 0xff]);
    payload.extend_from_slice(&[0x95, 0x01, 1, 2, 3, 4]);
    payload.extend_from_slice(&[0x9b, 0x01, 0x08, 0x01, 0x9c, 0x01]);
    let mut bytes = vec![u8::try_from(payload.len()).unwrap()];
    bytes.extend_from_slice(&payload);
    phone.send_bytes(&bytes);
    assert_eq!(phone.outcome(70), Ok("known".into()));
}

#[test]
fn a_frame_of_maximal_length_is_accepted_and_a_longer_one_is_not() {
    let gateway = Setup::demo().set("limits.frame_bytes_max", 5000).start();
    let overhead = request_frame(demo::ECHO, &vec![0; 4000], 1).len() - 4000 - 2;
    let longest = 5000 - overhead;
    let mut phone = gateway.login(7);
    let sequence_one = |phone: &mut Phone, bytes: usize| {
        phone.send_bytes(&request_frame(demo::ECHO, &vec![b'x'; bytes], 1));
    };
    sequence_one(&mut phone, longest);
    assert_eq!(phone.outcome(1), Ok(vec![b'x'; longest].into()));
    // The length prefix alone shows that the frame is too long.
    phone.send_bytes(&request_frame(demo::ECHO, &vec![b'x'; longest + 1], 1)[..2]);
    phone.goodbye(Code::Malformed);
}

#[test]
fn the_default_maximal_frame_lengths_are_64_kib_in_and_1_mib_out() {
    let gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    let large = vec![b'x'; 64 * 1024 - 20];
    assert_eq!(phone.ask(demo::ECHO, &large), Ok(large.into()));
    let operator = gateway.operator();
    let push = vec![b'y'; 1024 * 1024 - 100];
    assert_eq!(operator.push_user(7, 5, &push), 1);
    assert_eq!(phone.push().biz_data, push);
    let (status, body) = operator.post("/push/users/7?type=5", &vec![b'y'; 1024 * 1024]);
    assert!(matches!(status, 400 | 413), "{status} {body}");
    phone.assert_is_served();
}
