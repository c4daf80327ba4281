//! What survives a restart and a promotion.

use redis::Connection;
use tidegate_backend::redis::LIBRARY;
use tidegate_tests::{RedisSetup, SentinelSet, until};

use super::{Published, Subscriber, call, connect, held, open, start};

const ROOM: &str = "tg1:room:{r7}";

fn publish(connection: &mut Connection, payload: &str) -> (u64, String) {
    let answer: Published = call(connection, "publish", ROOM, &["1", payload]).unwrap();
    (answer.1, answer.2)
}

#[test]
fn a_restart_with_the_data_begins_a_new_log_and_offsets_continue() {
    let (mut redis, mut connection) = start(RedisSetup::default().append_only());
    let (_, old_log) = publish(&mut connection, "a");
    publish(&mut connection, "b");
    redis.kill();
    redis.restart();
    let mut connection = connect(&redis);
    let mut gateway = Subscriber::new(&redis, ROOM);
    let opened = open(&mut connection, ROOM, "-", "10", "durable");
    assert_ne!(opened.log, old_log);
    assert_eq!((opened.base, opened.head, opened.first), (2, 2, 1));
    assert_eq!(opened.entries.len(), 2);
    assert_eq!(gateway.next(), format!("n {} 2\n", opened.log));
    assert_eq!(publish(&mut connection, "c"), (3, opened.log));
    assert_eq!(open(&mut connection, ROOM, "2", "10", "durable").entries.len(), 1);
}

#[test]
fn a_restart_without_the_data_begins_a_new_log() {
    let (mut redis, mut connection) = start(RedisSetup::default());
    let (_, old_log) = publish(&mut connection, "a");
    redis.kill();
    redis.restart();
    redis.load_library(LIBRARY);
    let mut connection = connect(&redis);
    let (offset, log) = publish(&mut connection, "b");
    assert_eq!(offset, 1);
    assert_ne!(log, old_log);
}

#[test]
fn a_replica_that_missed_writes_begins_a_new_log_when_it_is_promoted() {
    let (master, mut connection) = start(RedisSetup::default());
    let replica = RedisSetup::default().replica_of(&master).start();
    let batch = |seq: &'static str, payload: &'static str| ["w", seq, "1", "1", payload, "", "0"];
    let first: (String, u64, u64, u64) =
        call(&mut connection, "publish_many", ROOM, &batch("1", "a")).unwrap();
    replica.wait_for_sync(&master);
    replica.ok(&["REPLICAOF", "NO", "ONE"]);
    // The replica no longer follows, so it misses what the master acknowledges now.
    let lost: (String, u64, u64, u64) =
        call(&mut connection, "publish_many", ROOM, &batch("2", "lost")).unwrap();
    assert_eq!((first.3, lost.3), (1, 2));

    let mut promoted = connect(&replica);
    let mut gateway = Subscriber::new(&replica, ROOM);
    // What survived is not done again; what was lost is.
    let again: (String, u64, u64, u64) =
        call(&mut promoted, "publish_many", ROOM, &batch("1", "a")).unwrap();
    assert_eq!(again.3, 1);
    assert_ne!(again.0, first.0);
    assert_eq!(gateway.next(), format!("n {} 1\n", again.0));
    let again: (String, u64, u64, u64) =
        call(&mut promoted, "publish_many", ROOM, &batch("2", "lost")).unwrap();
    assert_eq!(again.3, 2);
    assert_eq!(held(&mut promoted, ROOM), [(1, "a".to_owned()), (2, "lost".to_owned())]);
}

#[test]
fn a_sentinel_failover_that_loses_writes_begins_a_new_log() {
    let mut set = SentinelSet::start();
    let old = until("the set has a master", || set.master());
    set.servers[old].load_library(LIBRARY);
    let mut connection = connect(&set.servers[old]);
    let (_, old_log) = publish(&mut connection, "kept");
    let replicas: Vec<usize> = (0..3).filter(|&server| server != old).collect();
    replicas.iter().for_each(|&server| set.servers[server].wait_for_sync(&set.servers[old]));
    // The replicas stand still and their links are cut, so what follows reaches neither.
    replicas.iter().for_each(|&server| set.servers[server].pause());
    let _ = set.servers[old].cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    assert_eq!(publish(&mut connection, "lost"), (2, old_log.clone()));
    set.servers[old].kill();
    replicas.iter().for_each(|&server| set.servers[server].resume());

    let new = set.wait_for_another_master(old);
    let mut connection = connect(&set.servers[new]);
    let opened = open(&mut connection, ROOM, "-", "10", "durable");
    assert_ne!(opened.log, old_log);
    assert_eq!((opened.base, opened.head), (1, 1));
    assert_eq!(publish(&mut connection, "next"), (2, opened.log));
    assert_eq!(held(&mut connection, ROOM), [(1, "kept".to_owned()), (2, "next".to_owned())]);

    // The old master returns as a replica, without what only it had.
    set.servers[old].restart();
    until("the old master follows", || {
        (set.servers[old].info("master_link_status")? == "up").then_some(())
    });
    set.servers[old].wait_for_sync(&set.servers[new]);
    assert_eq!(set.servers[old].cli(&["XLEN", "tg1:room:{r7}:log"]), "2");
}
