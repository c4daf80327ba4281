//! Bounds: each is reached, has the outcome that it should have, and is left again.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, prlimit};
use tidegate_tests::phone::{demo, request_frame};
use tidegate_tests::{Gateway, Phone, Setup, until};

const MIB: usize = 1024 * 1024;

/// The gateway's memory, in bytes.
fn resident_bytes(gateway: &Gateway) -> usize {
    let pid = gateway.process.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Sets how many descriptors the gateway may have open, from now on.
fn set_descriptors(gateway: &Gateway, current: Option<u64>) {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: current.or(maximum), maximum };
    prlimit(Some(gateway.process.pid()), Resource::Nofile, limit).unwrap();
}

/// Descriptors that the gateway has open.
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
        neighbour.is_served();
    }
    operator.wait_for_metric("tidegate_connections_closed_total", "outbox_full", |n| n == 1.0);
    operator.wait_for_total("sessions", 1);
    operator.wait_for_total("outbox_bytes", 0);
    // What had gone to the kernel may be read; then there is the end.
    deaf.end();
    neighbour.is_served();
}

#[test]
fn a_push_goes_out_however_long_it_is() {
    let gateway = Setup::demo().set("limits.outbox_bytes_max", 1024).start();
    let operator = gateway.operator();
    let mut phone = gateway.login(7);
    let body = vec![b'x'; MIB - 100];
    for sends in 1..=5 {
        assert_eq!(operator.push_user(7, 5, &body), 1);
        assert_eq!(phone.push().biz_data, body);
        // The phone has it all: the gateway knows when its send is done. The first was the login's.
        operator.wait_for_metric("tidegate_sends_total", "", |n| n == f64::from(sends + 1));
    }
}

#[test]
fn a_burst_of_long_messages_leaves_no_memory_behind() {
    let gateway = Setup::demo().shards(1).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=50).map(|user_id| gateway.login(user_id)).collect();
    let before = resident_bytes(&gateway);
    let body = vec![b'x'; 60 * 1024];
    for _ in 0..5 {
        let asked: Vec<_> = phones.iter_mut().map(|phone| phone.send(demo::ECHO, &body)).collect();
        for (phone, sequence) in phones.iter_mut().zip(asked) {
            assert_eq!(phone.outcome(sequence).unwrap(), body[..]);
        }
    }
    operator.wait_for_metric("tidegate_memory_trims_total", "", |n| n >= 1.0);
    until("its memory is what it was, and a MiB at most", || {
        (resident_bytes(&gateway) < before + MIB).then_some(())
    });
    phones.iter_mut().for_each(Phone::is_served);
}

#[test]
fn two_long_pushes_in_a_row_are_no_reason_to_part() {
    let gateway = Setup::demo().set("socket.send_buffer_bytes", 4096).start();
    let operator = gateway.operator();
    let mut phone = Phone::connect_narrow(gateway.clients());
    phone.login(7);
    let body = vec![b'x'; 700 * 1024];
    assert_eq!(operator.push_user(7, 5, &body), 1);
    assert_eq!(operator.push_user(7, 6, &body), 1);
    assert_eq!((phone.push().kind, phone.push().kind), (5, 6));
    phone.is_served();
}

#[test]
fn as_many_connections_as_may_be_are_accepted_and_the_next_when_one_goes() {
    for shards in [1, 4] {
        let gateway = Setup::demo().shards(shards).set("limits.connections_max", 8).start();
        let operator = gateway.operator();
        let mut phones: Vec<_> = (1..=8).map(|user_id| gateway.login(user_id)).collect();
        // These connect, but they wait in the kernel's queue.
        let mut waiting: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
        for (phone, user_id) in waiting.iter_mut().zip(9..) {
            phone.send_login(user_id, &format!("token-{user_id}"));
        }
        gateway.process.stderr.wait_for("accepting is paused");
        operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
        phones.iter_mut().for_each(Phone::is_served);
        operator.wait_for_total("connections", 8);
        drop(phones);
        operator.wait_for_metric("tidegate_sessions_opened_total", "", |n| n == 16.0);
        waiting.iter_mut().for_each(Phone::is_served);
        drop(waiting);
        operator.wait_for_total("connections", 0);
        gateway.login(7).is_served();
    }
}

#[test]
fn a_rush_does_not_get_past_the_limit_on_connections() {
    let gateway = Setup::demo().set("limits.connections_max", 3).start();
    let operator = gateway.operator();
    let rush: Vec<_> = (0..50).map(|_| TcpStream::connect(gateway.clients()).unwrap()).collect();
    operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
    operator.wait_for_total("connections", 3);
    assert_eq!(operator.metric("tidegate_connections_accepted_total", ""), Some(3.0));
    drop(rush);
    gateway.login(7).is_served();
}

#[test]
fn without_descriptors_accepting_pauses_and_everything_else_goes_on() {
    let gateway = Setup::demo().set("driver", "epoll").start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=5).map(|user_id| gateway.login(user_id)).collect();
    operator.wait_for_metric("tidegate_connections", "", |n| n == 5.0);
    // The operator keeps its connection; nobody else gets a descriptor.
    set_descriptors(&gateway, Some(open_descriptors(&gateway)));
    let mut waiting = gateway.connect();
    gateway.process.stderr.wait_for("accepting is paused");
    let login = waiting.send_login(9, "token-9");
    phones.iter_mut().for_each(Phone::is_served);
    operator.wait_for_metric("tidegate_accept_pauses_total", "", |n| n >= 1.0);
    assert_eq!(operator.push_user(1, 5, b"x"), 1);
    assert_eq!(phones[0].push().kind, 5);
    // One that goes makes room for the one that waits.
    drop(phones.pop());
    waiting.wait_for(|event| match event {
        tidegate_protocol::client::Event::Authenticated { sequence, .. } if *sequence == login => {
            Some(())
        }
        _ => None,
    });
    waiting.is_served();
    gateway.process.stderr.wait_for("accepting again");
    set_descriptors(&gateway, None);
    gateway.login(10).is_served();
    phones.iter_mut().for_each(Phone::is_served);
}

#[test]
fn waiting_for_descriptors_does_not_fill_the_log() {
    let gateway = Setup::demo().set("driver", "epoll").start();
    let operator = gateway.operator();
    gateway.login(1).is_served();
    operator.wait_for_total("connections", 0);
    set_descriptors(&gateway, Some(open_descriptors(&gateway)));
    let _waiting = gateway.connect();
    gateway.process.stderr.wait_for("accepting is paused");
    // Many tries later it has still said it once.
    let turns = operator.metric("tidegate_shard_turns_total", "").unwrap();
    operator.wait_for_metric("tidegate_shard_turns_total", "", |n| n > turns + 20.0);
    let said = gateway.process.stderr.so_far().matches("accepting is paused").count();
    assert_eq!(said, 1);
    set_descriptors(&gateway, None);
    gateway.process.stderr.wait_for("accepting again");
}

#[test]
fn a_flood_of_requests_whose_answers_nobody_reads_is_slowed_down() {
    let gateway = Setup::demo()
        .set("socket.send_buffer_bytes", 4096)
        .set("limits.outbox_bytes_max", MIB)
        .start();
    let operator = gateway.operator();
    let mut neighbour = gateway.login(8);
    let mut flood = Phone::connect_narrow(gateway.clients());
    flood.login(7);
    let before = resident_bytes(&gateway);
    let request = request_frame(demo::ECHO, &[b'x'; 1000], 1);
    let mut sent = 0;
    let mut pauses = 0.0;
    // It sends all that it can, for as long as the gateway takes any of it.
    while pauses == 0.0 || sent < 4 * MIB {
        let taken = flood.send_until_full(&request, &mut sent, 64 * MIB);
        neighbour.is_served();
        let now = operator.metric("tidegate_receive_pauses_total", "").unwrap();
        if taken == 0 && now > 0.0 {
            break;
        }
        pauses = now;
    }
    assert!(sent < 64 * MIB, "the flood is not slowed down");
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes");
    neighbour.is_served();
    // Once it reads, it gets every answer: nothing was dropped.
    flood.stop_sending();
    assert_eq!(flood.count(), sent / request.len());
    operator.wait_for_total("outbox_bytes", 0);
}

#[test]
fn heartbeats_without_end_whose_pongs_nobody_reads_are_slowed_down_too() {
    let gateway = Setup::demo()
        .set("socket.send_buffer_bytes", 4096)
        .set("limits.outbox_bytes_max", 10_000)
        .start();
    let operator = gateway.operator();
    let mut flood = Phone::connect_narrow(gateway.clients());
    flood.login(7);
    let beat = tidegate_tests::phone::heartbeat_frame(1);
    let mut sent = 0;
    until("the flood is slowed down", || {
        let taken = flood.send_until_full(&beat, &mut sent, 64 * MIB);
        assert!(sent < 64 * MIB, "the flood is not slowed down");
        let pauses = operator.metric("tidegate_receive_pauses_total", "").unwrap();
        (taken == 0 && pauses > 0.0).then_some(())
    });
    gateway.login(8).is_served();
    flood.stop_sending();
    assert_eq!(flood.count(), sent / beat.len());
}

#[test]
fn more_pushes_than_may_be_under_way_are_refused() {
    let gateway = Setup::demo().shards(2).set("limits.commands_max", 1).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    // Each says something to everybody, again and again: most find another under way.
    let mut refused = 0;
    let mut told = 0;
    until("a push is refused", || {
        let asked: Vec<_> = phones
            .iter_mut()
            .map(|phone| phone.send_together(&[(demo::PUSH_ALL, "x"); 20]))
            .collect();
        for (phone, asked) in phones.iter_mut().zip(asked) {
            for sequence in asked {
                match phone.outcome(sequence) {
                    Ok(_) => told += 1,
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
    // Who was told that it was taken finds it delivered, to everybody and once.
    for phone in &mut phones {
        assert_eq!(phone.pushes(told).len(), told);
        assert_eq!(phone.leftovers(), []);
    }
}

#[test]
fn operators_are_refused_with_503_while_too_many_pushes_are_under_way() {
    let gateway = Setup::demo().shards(1).set("limits.commands_max", 1).start();
    let mut phone = gateway.login(7);
    let mut talkers: Vec<_> = (0..4)
        .map(|n| {
            gateway.login(100 + n).in_background(|talker| {
                // For as long as the test wants: it kicks them.
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
        until("a kick is let in", || {
            let (status, _) = operator.post(&format!("/users/{user_id}/kick"), b"");
            (status == 200).then_some(())
        });
        talker.join().unwrap();
    }
    // What they asked last may be under way still.
    until("a push is let in", || {
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
    phones.iter_mut().for_each(Phone::is_served);
    // The allocator may keep what one round took: requests, their copies, and answers, 1 MiB each.
    // All eight rounds' answers alone are 256 MiB.
    until("memory is given back", || (resident_bytes(&gateway) < 128 * MIB).then_some(()));
}
