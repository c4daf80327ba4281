//! A drain accepts the connections that wait in the kernel's queue, and sends each a goodbye.

use tidegate_tests::phone::{End, quiz};
use tidegate_tests::{Code, Gateway, Phone, Setup};

/// Descriptors of a gateway whose rings or whose descriptor table shall be full.
const DESCRIPTORS: u64 = 256;

/// A gateway whose drain lasts until all clients have left, also on a busy machine.
fn patient() -> Setup {
    Setup::demo().set("shutdown.drain_timeout_ms", 60_000)
}

/// Clients that connect, send a login, and wait in the kernel's queue.
fn wait_in_the_queue(gateway: &Gateway, count: u64) -> Vec<Phone> {
    let wait = |user_id: u64| {
        let mut phone = gateway.connect();
        phone.send_login(user_id, &format!("token-{user_id}"));
        phone
    };
    let waiting = (1001..1001 + count).map(wait).collect();
    gateway.process.stderr.wait_for("accepting is paused");
    waiting
}

/// Each client gets a goodbye and closes, which makes room for the next one.
fn each_gets_a_goodbye(mut gateway: Gateway, phones: impl IntoIterator<Item = Phone>) {
    for mut phone in phones {
        // One client may have been accepted before the drain.
        assert_eq!(phone.wait_for_goodbye().code, Some(Code::Draining));
        assert_eq!(phone.end(), End::Closed);
    }
    assert_eq!(gateway.process.wait().code(), Some(0));
    let log = gateway.process.stderr.all();
    assert!(!log.contains("reset in the accept queue"), "{log}");
}

#[test]
fn connections_that_wait_at_a_full_gateway_get_a_goodbye() {
    for shards in [1, 3] {
        let setup = patient().shards(shards).set("limits.connections_max", 6);
        let gateway = setup.start();
        let full: Vec<_> = (1..=6).map(|user_id| gateway.login(user_id)).collect();
        let waiting = wait_in_the_queue(&gateway, 40);
        gateway.terminate();
        each_gets_a_goodbye(gateway, full.into_iter().chain(waiting));
    }
}

#[test]
fn a_long_queue_of_waiting_connections_gets_goodbyes() {
    // More than one turn accepts, and more than the accepts that io_uring has in flight.
    let gateway = patient().set("limits.connections_max", 2).start();
    let full: Vec<_> = (1..=2).map(|user_id| gateway.login(user_id)).collect();
    let waiting = wait_in_the_queue(&gateway, 300);
    gateway.terminate();
    each_gets_a_goodbye(gateway, full.into_iter().chain(waiting));
}

#[test]
fn waiting_connections_get_a_goodbye_when_answered_ones_have_left() {
    let gateway = Setup::quiz()
        .set("shutdown.drain_timeout_ms", 60_000)
        .set("limits.connections_max", 4)
        .start();
    let mut full: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    let asked: Vec<_> = full.iter_mut().map(|phone| phone.send(quiz::THINK, b"1000")).collect();
    // On a busy machine some calls may be answered before the drain. In any case all are answered.
    gateway.operator().wait_for_metric("tidegate_calls_total", "", |n| n == 4.0);
    let waiting = wait_in_the_queue(&gateway, 10);
    gateway.terminate();
    for (phone, asked) in full.iter_mut().zip(asked) {
        assert_eq!(phone.outcome(asked).unwrap(), b"thought about it"[..]);
    }
    each_gets_a_goodbye(gateway, full.into_iter().chain(waiting));
}

#[test]
fn connections_that_still_wait_at_the_end_of_a_drain_are_reset_and_logged() {
    let setup = Setup::quiz().set("limits.connections_max", 2);
    let mut gateway = setup.set("shutdown.drain_timeout_ms", 300).start();
    let mut full: Vec<_> = (1..=2).map(|user_id| gateway.login(user_id)).collect();
    full.iter_mut().for_each(|phone| {
        phone.send(quiz::WAIT, b"");
    });
    gateway.operator().wait_for_metric("tidegate_calls_in_flight", "", |n| n == 2.0);
    let waiting = wait_in_the_queue(&gateway, 5);
    gateway.terminate();
    for mut phone in waiting {
        assert_eq!(phone.end(), End::Reset);
    }
    for mut phone in full {
        phone.goodbye(Code::Draining);
    }
    assert_eq!(gateway.process.wait().code(), Some(0));
    let log = gateway.process.stderr.all();
    assert!(log.contains("reset in the accept queue") && log.contains("connections=5"), "{log}");
}

#[test]
fn connections_that_wait_for_a_descriptor_get_a_goodbye() {
    let setup = patient().descriptors(DESCRIPTORS).flag("--driver").flag("epoll");
    let gateway = setup.start();
    let full: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    gateway.take_descriptors();
    let waiting = wait_in_the_queue(&gateway, 20);
    gateway.terminate();
    each_gets_a_goodbye(gateway, full.into_iter().chain(waiting));
}

#[test]
fn connections_that_wait_for_a_ring_get_a_goodbye() {
    let setup = patient().descriptors(DESCRIPTORS).flag("--driver").flag("uring");
    let gateway = setup.set("limits.connections_max", 1000).start();
    // A ring is added as soon as all rings are full.
    let mut full: Vec<_> = (1..=200).map(|user_id| gateway.login(user_id)).collect();
    gateway.take_descriptors();
    full.extend((201..=DESCRIPTORS).map(|user_id| gateway.login(user_id)));
    let waiting = wait_in_the_queue(&gateway, 20);
    gateway.terminate();
    each_gets_a_goodbye(gateway, full.into_iter().chain(waiting));
}
