use std::time::Instant;

use super::*;
use crate::clock::WallClock;

#[test]
fn there_is_work_while_a_connection_waits_to_be_flushed() {
    let mut clients = Clients::new(&Config::embedded_default());
    let clock = Clock::new(Instant::now(), WallClock::system());
    let conn = ConnId { slot: 0, generation: 1 };
    clients.accepted(conn, SocketAddr::from(([127, 0, 0, 1], 1)), true, 0, &clock);
    assert!(!clients.is_busy());
    clients.write_pong(conn.slot, 1, &clock);
    assert!(clients.is_busy());
    assert!(clients.take_reply(conn.slot).is_some());
    assert_eq!(clients.take_flush_list(), [conn.slot]);
    assert!(!clients.is_busy());
}

#[test]
fn a_push_that_finds_its_connection_gone_is_counted() {
    let mut clients = Clients::new(&Config::embedded_default());
    let gone = ConnId { slot: 3, generation: 1 };
    assert_eq!(clients.write_push(gone, &Bytes::new()), PushOutcome::Gone);
    assert_eq!(clients.write_push(gone, &Bytes::new()), PushOutcome::Gone);
    assert_eq!(clients.counters().0.stale_pushes, 2);
}
