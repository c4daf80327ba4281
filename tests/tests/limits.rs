//! Bounds: each is reached, has its documented outcome, and the gateway recovers.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, prlimit};
use tidegate_tests::phone::{demo, request_frame};
use tidegate_tests::{Gateway, Operator, Phone, Setup, until};

const MIB: usize = 1024 * 1024;

/// Sets the limit on the open descriptors of the running gateway.
fn set_descriptors(gateway: &Gateway, current: Option<u64>) {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: current.or(maximum), maximum };
    prlimit(Some(gateway.process.pid()), Resource::Nofile, limit).unwrap();
}

/// The number of open descriptors of the gateway.
fn open_descriptors(gateway: &Gateway) -> u64 {
    let pid = gateway.process.pid().as_raw_nonzero();
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

#[test]
fn a_connection_with_too_many_unsent_bytes_is_closed_and_counted() {
    let gateway = Setup::demo()
        .set("limits.outbox_bytes_max", 100_000)
        .set("socket.send_buffer_bytes", 4096)
        .start();
    let mut deaf = Phone::connect_narrow(gateway.clients());
    deaf.login(7);
    let mut neighbour = gateway.login(8);
    let operator = gateway.operator();
    let body = [b'x'; 20_000];
    let mut delivered = 0;
    while operator.push_user(7, 5, &body) == 1 {
        delivered += 1;
        assert!(delivered < 1000, "the outbox has no bound");
        neighbour.assert_is_served();
    }
    operator.wait_for_metric("tidegate_connections_closed_total", "outbox_full", |n| n == 1.0);
    operator.wait_for_total("sessions", 1);
    operator.wait_for_total("outbox_bytes", 0);
    // The client may still read what the kernel had taken. Then the connection ends.
    deaf.end();
    neighbour.assert_is_served();
}

/// A gateway with a small outbox and small socket buffers, and this policy for pushes to slow users.
fn with_slow_pushes(policy: &str) -> Setup {
    Setup::demo()
        .set("limits.outbox_bytes_max", 100_000)
        .set("socket.send_buffer_bytes", 4096)
        .set("session.slow_pushes", policy)
}

/// Pushes 50 times to a user who does not read. Returns how many pushes were accepted.
fn push_to_a_deaf_user(gateway: &Gateway, user_id: u64) -> u64 {
    let (mut neighbour, operator) = (gateway.login(8), gateway.operator());
    let mut accepted = 0;
    for n in 0..50 {
        accepted += operator.push_user(user_id, 5, &[n; 20_000]);
        neighbour.assert_is_served();
        let unsent = operator.json("/stats")["totals"]["outbox_bytes"].as_u64().unwrap();
        assert!(unsent < 250_000, "{unsent} bytes wait");
    }
    operator.wait_for_metric("tidegate_user_pushes_skipped_total", "", |n| n > 0.0);
    operator.wait_for_metric("tidegate_connections_closed_total", "outbox_full", |n| n == 0.0);
    accepted
}

#[test]
fn pushes_to_a_slow_user_are_dropped_and_answers_are_not_where_that_is_the_policy() {
    let gateway = with_slow_pushes("skip").start();
    let mut deaf = Phone::connect_narrow(gateway.clients());
    deaf.login(7);
    let accepted = push_to_a_deaf_user(&gateway, 7);
    let operator = gateway.operator();
    let (status, answer) = operator.post("/push/users/7?type=5", &[50; 20_000]);
    assert_eq!((status, &*answer), (200, r#"{"connections":0,"nobody":"slow"}"#));
    let got: Vec<_> = (0..accepted).map(|_| deaf.push().biz_data[0]).collect();
    assert!(accepted < 50 && got[0] == 0 && got.is_sorted(), "{got:?}");
    deaf.assert_is_served();
    assert_eq!(operator.push_user(7, 5, b"later"), 1);
    assert_eq!(deaf.push().biz_data, "later");
}

#[test]
fn a_slow_user_gets_the_newest_push_where_that_is_the_policy() {
    let gateway = with_slow_pushes("latest").start();
    let mut deaf = Phone::connect_narrow(gateway.clients());
    deaf.login(7);
    assert_eq!(push_to_a_deaf_user(&gateway, 7), 50, "each has waited for its turn");
    let operator = gateway.operator();
    assert_eq!(operator.push_user(7, 6, b"another type"), 1);
    let mut got = Vec::new();
    while got.len() < 50 && got.last() != Some(&49) {
        got.push(deaf.push().biz_data[0]);
    }
    assert!(got.len() < 50 && got.is_sorted(), "{got:?}");
    assert_eq!(deaf.push().biz_data, "another type");
    deaf.assert_is_served();
}

#[test]
fn a_long_push_is_sent_whole() {
    let gateway = Setup::demo().set("limits.outbox_bytes_max", 1024).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    let body = vec![b'x'; MIB - 100];
    for sends in 1..=5 {
        assert_eq!(operator.push_user(7, 5, &body), 1);
        assert_eq!(phone.push().biz_data, body);
        // The client has the whole push, so the gateway's send completes. The first send was the login's answer.
        operator.wait_for_metric("tidegate_sends_total", "", |n| n == f64::from(sends + 1));
    }
}

#[test]
fn memory_is_given_back_after_a_burst_of_long_messages() {
    let gateway = Setup::demo().shards(1).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=50).map(|user_id| gateway.login(user_id)).collect();
    let before = gateway.process.memory_bytes();
    let body = vec![b'x'; 60 * 1024];
    for _ in 0..5 {
        let asked: Vec<_> = phones.iter_mut().map(|phone| phone.send(demo::ECHO, &body)).collect();
        for (phone, sequence) in phones.iter_mut().zip(asked) {
            assert_eq!(phone.outcome(sequence).unwrap(), body[..]);
        }
    }
    operator.wait_for_metric("tidegate_memory_trims_total", "", |n| n >= 1.0);
    until("its memory is back, within one MiB", || {
        (gateway.process.memory_bytes() < before + MIB).then_some(())
    });
    phones.iter_mut().for_each(Phone::assert_is_served);
}

#[test]
fn memory_is_given_back_after_unfinished_frames() {
    let gateway = Setup::demo().start();
    let operator = gateway.operator();
    let mut neighbour = gateway.login(1);
    let before = gateway.process.memory_bytes();
    let request = request_frame(demo::ECHO, &[b'x'; 60 * 1024], 1);
    let unfinished = &request[..request.len() - 1];
    let received = |operator: &Operator| {
        operator.metric("tidegate_received_bytes_total", "").unwrap_or_default()
    };
    let received_before = received(&operator);
    let mut phones: Vec<_> = (2..=201).map(|user_id| gateway.login(user_id)).collect();
    phones.iter_mut().for_each(|phone| phone.send_bytes(unfinished));
    let sent = phones.len() * unfinished.len();
    until("the gateway has received all of it", || {
        (received(&operator) - received_before > sent as f64).then_some(())
    });
    assert!(
        gateway.process.memory_bytes() > before + 8 * MIB,
        "the gateway holds the unfinished frames"
    );
    drop(phones);
    operator.wait_for_total("connections", 1);
    operator.wait_for_metric("tidegate_memory_trims_total", "", |n| n >= 1.0);
    until("its memory is back, within 2 MiB", || {
        (gateway.process.memory_bytes() < before + 2 * MIB).then_some(())
    });
    neighbour.assert_is_served();
}

#[test]
fn two_long_pushes_in_a_row_do_not_close_a_connection() {
    let gateway = Setup::demo().set("socket.send_buffer_bytes", 4096).start();
    let operator = gateway.operator();
    let mut phone = Phone::connect_narrow(gateway.clients());
    phone.login(7);
    let body = vec![b'x'; 700 * 1024];
    assert_eq!(operator.push_user(7, 5, &body), 1);
    assert_eq!(operator.push_user(7, 6, &body), 1);
    assert_eq!((phone.push().kind, phone.push().kind), (5, 6));
    phone.assert_is_served();
}

#[test]
fn connections_beyond_connections_max_wait_until_one_ends() {
    for shards in [1, 4] {
        let gateway = Setup::demo().shards(shards).set("limits.connections_max", 8).start();
        let operator = gateway.operator();
        let mut phones: Vec<_> = (1..=8).map(|user_id| gateway.login(user_id)).collect();
        // The connects succeed, but these connections wait in the kernel's queue.
        let mut waiting: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
        for (phone, user_id) in waiting.iter_mut().zip(9..) {
            phone.send_login(user_id, &format!("token-{user_id}"));
        }
        gateway.process.stderr.wait_for("accepting is paused");
        operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
        phones.iter_mut().for_each(Phone::assert_is_served);
        operator.wait_for_total("connections", 8);
        drop(phones);
        operator.wait_for_metric("tidegate_sessions_opened_total", "", |n| n == 16.0);
        waiting.iter_mut().for_each(Phone::assert_is_served);
        drop(waiting);
        operator.wait_for_total("connections", 0);
        gateway.login(7).assert_is_served();
    }
}

#[test]
fn many_connections_at_once_do_not_exceed_connections_max() {
    let gateway = Setup::demo().set("limits.connections_max", 3).start();
    let operator = gateway.operator();
    let rush: Vec<_> = (0..50).map(|_| TcpStream::connect(gateway.clients()).unwrap()).collect();
    operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
    operator.wait_for_total("connections", 3);
    assert_eq!(operator.metric("tidegate_connections_accepted_total", ""), Some(3.0));
    drop(rush);
    gateway.login(7).assert_is_served();
}

#[test]
fn without_descriptors_only_accepting_pauses() {
    let gateway = Setup::demo().set("driver", "epoll").start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=5).map(|user_id| gateway.login(user_id)).collect();
    operator.wait_for_metric("tidegate_connections", "", |n| n == 5.0);
    // The operator keeps its connection. There is no descriptor for another one.
    set_descriptors(&gateway, Some(open_descriptors(&gateway)));
    let mut waiting = gateway.connect();
    gateway.process.stderr.wait_for("accepting is paused");
    let login = waiting.send_login(9, "token-9");
    phones.iter_mut().for_each(Phone::assert_is_served);
    operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
    assert_eq!(operator.push_user(1, 5, b"x"), 1);
    assert_eq!(phones[0].push().kind, 5);
    // When a connection ends, the waiting one is accepted.
    drop(phones.pop());
    waiting.wait_for(|event| match event {
        tidegate_protocol::client::Event::Authenticated { sequence, .. } if *sequence == login => {
            Some(())
        }
        _ => None,
    });
    waiting.assert_is_served();
    gateway.process.stderr.wait_for("accepting again");
    set_descriptors(&gateway, None);
    gateway.login(10).assert_is_served();
    phones.iter_mut().for_each(Phone::assert_is_served);
}

#[test]
fn a_wait_for_descriptors_is_logged_once() {
    let gateway = Setup::demo().set("driver", "epoll").start();
    let operator = gateway.operator();
    gateway.login(1).assert_is_served();
    operator.wait_for_total("connections", 0);
    set_descriptors(&gateway, Some(open_descriptors(&gateway)));
    let _waiting = gateway.connect();
    gateway.process.stderr.wait_for("accepting is paused");
    // After many attempts the line is still there once.
    let turns = operator.metric("tidegate_shard_turns_total", "").unwrap();
    operator.wait_for_metric("tidegate_shard_turns_total", "", |n| n > turns + 20.0);
    let said = gateway.process.stderr.so_far().matches("accepting is paused").count();
    assert_eq!(said, 1);
    set_descriptors(&gateway, None);
    gateway.process.stderr.wait_for("accepting again");
}

#[test]
fn reading_is_paused_for_requests_of_a_client_that_does_not_read() {
    let gateway = Setup::demo()
        .set("socket.send_buffer_bytes", 4096)
        .set("limits.outbox_bytes_max", MIB)
        .start();
    let operator = gateway.operator();
    let mut neighbour = gateway.login(8);
    let mut flood = Phone::connect_narrow(gateway.clients());
    flood.login(7);
    let before = gateway.process.memory_bytes();
    let request = request_frame(demo::ECHO, &[b'x'; 1000], 1);
    let mut sent = 0;
    let mut pauses = 0.0;
    // The client sends as long as the gateway takes bytes.
    while pauses == 0.0 || sent < 4 * MIB {
        let taken = flood.send_until_full(&request, &mut sent, 64 * MIB);
        neighbour.assert_is_served();
        let now = operator.metric("tidegate_receive_pauses_total", "").unwrap();
        if taken == 0 && now > 0.0 {
            break;
        }
        pauses = now;
    }
    assert!(sent < 64 * MIB, "the gateway still reads");
    let grown = gateway.process.memory_bytes().saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes");
    neighbour.assert_is_served();
    // When the client reads, it gets every answer: none was dropped.
    flood.stop_sending();
    assert_eq!(flood.count(), sent / request.len());
    operator.wait_for_total("outbox_bytes", 0);
}

#[test]
fn reading_is_paused_for_heartbeats_of_a_client_that_does_not_read() {
    let gateway = Setup::demo()
        .set("socket.send_buffer_bytes", 4096)
        .set("limits.outbox_bytes_max", 10_000)
        .start();
    let operator = gateway.operator();
    let mut flood = Phone::connect_narrow(gateway.clients());
    flood.login(7);
    let beat = tidegate_tests::phone::heartbeat_frame(1);
    let mut sent = 0;
    until("the gateway stops reading", || {
        let taken = flood.send_until_full(&beat, &mut sent, 64 * MIB);
        assert!(sent < 64 * MIB, "the gateway still reads");
        let pauses = operator.metric("tidegate_receive_pauses_total", "").unwrap();
        (taken == 0 && pauses > 0.0).then_some(())
    });
    gateway.login(8).assert_is_served();
    flood.stop_sending();
    assert_eq!(flood.count(), sent / beat.len());
}

#[test]
fn pushes_beyond_commands_max_are_refused() {
    let gateway = Setup::demo().shards(2).set("limits.commands_max", 1).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    // Each client pushes to everybody again and again. Most pushes come while another one is in flight.
    let mut refused = 0;
    let mut accepted = 0;
    until("a push is refused", || {
        let asked: Vec<_> = phones
            .iter_mut()
            .map(|phone| phone.send_together(&[(demo::PUSH_ALL, "x"); 20]))
            .collect();
        for (phone, asked) in phones.iter_mut().zip(asked) {
            for sequence in asked {
                match phone.outcome(sequence) {
                    Ok(_) => accepted += 1,
                    Err(failure) => {
                        assert_eq!(failure.code, Some(tidegate_tests::Code::Overloaded));
                        assert!(!failure.retry_after.is_zero());
                        refused += 1;
                    }
                }
            }
        }
        (refused > 0).then_some(())
    });
    operator.wait_for_metric("tidegate_commands_refused_total", "", |n| n == f64::from(refused));
    // Each push that was accepted is delivered once to everybody.
    for phone in &mut phones {
        assert_eq!(phone.pushes(accepted).len(), accepted);
        assert_eq!(phone.leftovers(), []);
    }
}

#[test]
fn operators_get_503_while_commands_max_is_reached() {
    let gateway = Setup::demo().shards(1).set("limits.commands_max", 1).start();
    let mut phone = gateway.login(7);
    let mut talkers: Vec<_> = (0..4)
        .map(|n| {
            gateway.login(100 + n).in_background(|talker| {
                // Until the test kicks the client.
                while talker.ask_or_end(demo::PUSH_ALL, b"x").is_some() {}
            })
        })
        .collect();
    let operator = gateway.operator();
    let refusal = until("an operator is refused", || {
        let (status, body) = operator.post("/push/users/7?type=5", b"x");
        assert!(matches!(status, 200 | 503), "{status} {body}");
        (status == 503).then_some(body)
    });
    assert!(refusal.contains("try again"), "{refusal}");
    for (talker, user_id) in talkers.drain(..).zip(100..) {
        until("a kick is accepted", || {
            let (status, _) = operator.post(&format!("/users/{user_id}/kick"), b"");
            (status == 200).then_some(())
        });
        talker.join().unwrap();
    }
    // Their last commands may still be in flight.
    until("a push is accepted", || {
        let (status, body) = operator.post("/push/users/7?type=5", b"x");
        (status == 200).then(|| assert_eq!(body, r#"{"connections":1}"#))
    });
    phone.wait_for(|event| {
        matches!(event, tidegate_protocol::client::Event::Push { kind: 5, .. }).then_some(())
    });
}

#[test]
fn memory_is_given_back_after_large_answers() {
    let gateway = Setup::demo().set("limits.frame_bytes_max", MIB).start();
    let operator = gateway.operator();
    let body = vec![b'x'; MIB - 100];
    let mut phones: Vec<_> = (1..=32).map(|user_id| gateway.login(user_id)).collect();
    for _ in 0..8 {
        let asked: Vec<_> = phones.iter_mut().map(|phone| phone.send(demo::ECHO, &body)).collect();
        for (phone, asked) in phones.iter_mut().zip(asked) {
            assert_eq!(phone.outcome(asked).unwrap(), body);
        }
        operator.wait_for_total("outbox_bytes", 0);
        operator.wait_for_total("calls_in_flight", 0);
    }
    operator.wait_for_metric("tidegate_outbox_bytes", "", |n| n == 0.0);
    phones.iter_mut().for_each(Phone::assert_is_served);
    // The allocator may keep the memory of one round: requests, their copies, and answers of 1 MiB each.
    // The answers of all eight rounds are 256 MiB.
    until("memory is given back", || (gateway.process.memory_bytes() < 128 * MIB).then_some(()));
}
