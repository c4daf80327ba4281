//! The library in a cluster: names of rooms, and slots that move.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{ConnectionLike, RedisResult, Value};
use tidegate_backend::redis::LIBRARY;
use tidegate_tests::{Cluster, until};

use super::{Published, call, connect, held, open, word};

const ROOM: &str = "tg1:room:{r7}";
const USERS: &str = "tg1:users:{u7}";

fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.load_library(LIBRARY);
    cluster
}

fn client(cluster: &Cluster) -> ClusterConnection {
    ClusterClient::new(cluster.urls()).unwrap().get_connection().unwrap()
}

#[test]
fn rooms_with_braces_in_their_names_have_one_slot_each() {
    let cluster = cluster();
    let mut connection = client(&cluster);
    for name in ["7", "*", "{", "}", "{}", "}{", "a}b", "{a}b", "}a", "a{b}c", "é 漢\n"] {
        let key = format!("tg1:room:{{r{name}}}");
        for offset in 1..3 {
            let push: Published =
                call(&mut connection, "publish", &key, &["1", "p", &format!("k{offset}")]).unwrap();
            assert_eq!(push.1, offset, "{name}");
        }
        let members: u64 = call(&mut connection, "count", &key, &["a", "3", "60000"]).unwrap();
        assert_eq!((members, held(&mut connection, &key).len()), (3, 2), "{name}");
    }
}

/// The word of an error that a node answers to a client which was sent there by ASK.
fn asking<T: redis::FromRedisValue>(
    connection: &mut impl ConnectionLike,
    function: &str,
    key: &str,
    arguments: &[&str],
) -> RedisResult<T> {
    redis::cmd("ASKING").query::<()>(connection).unwrap();
    call(connection, function, key, arguments)
}

#[test]
fn while_a_slot_moves_calls_are_refused_and_nothing_is_lost() {
    let cluster = cluster();
    let slot = cluster.slot_of(ROOM);
    let from = cluster.owner_of(slot);
    let to = (from + 1) % 3;
    let (mut source, mut target) = (connect(&cluster.nodes[from]), connect(&cluster.nodes[to]));
    let push = ["1", "a", "k1"];
    let first: Published = call(&mut source, "publish", ROOM, &push).unwrap();
    call::<u64>(&mut source, "count", ROOM, &["a", "3", "60000"]).unwrap();

    cluster.begin_move(slot, to);
    let refused = call::<Value>(&mut source, "publish", ROOM, &["1", "b"]);
    assert_eq!(word(refused), "TRYAGAIN");
    // Only the hash has moved: a push at the new node would begin a second stream.
    cluster.move_one_key(ROOM, to);
    for arguments in [&["1", "b"][..], &push] {
        assert_eq!(word(asking::<Value>(&mut target, "publish", ROOM, arguments)), "TRYAGAIN");
    }
    let batch = ["w", "1", "1", "1", "b", "", "0"];
    assert_eq!(word(asking::<Value>(&mut target, "publish_many", ROOM, &batch)), "TRYAGAIN");
    let opened = asking::<Value>(&mut target, "open", ROOM, &["-", "0", "durable"]);
    assert_eq!(word(opened), "TRYAGAIN");
    let counted = asking::<Value>(&mut target, "count", ROOM, &["a", "3", "60000"]);
    assert_eq!(word(counted), "TRYAGAIN");
    while !cluster.move_keys(slot, to, 10).is_empty() {}
    cluster.finish_move(slot, to);

    // The repeat is known. The log is a new one, since this server can't know that nothing was lost.
    let repeat: Published = call(&mut target, "publish", ROOM, &push).unwrap();
    assert_eq!(repeat, first);
    let opened = open(&mut target, ROOM, "-", "10", "durable");
    assert_ne!(opened.log, first.2);
    assert_eq!((opened.base, opened.head, opened.entries.len()), (1, 1, 1));
    let next: Published = call(&mut target, "publish", ROOM, &["1", "b"]).unwrap();
    assert_eq!((next.1, next.4), (2, 3));
}

#[test]
fn a_partition_of_users_moves_as_a_whole() {
    let cluster = cluster();
    let slot = cluster.slot_of(USERS);
    let from = cluster.owner_of(slot);
    let to = (from + 1) % 3;
    let (mut source, mut target) = (connect(&cluster.nodes[from]), connect(&cluster.nodes[to]));
    call::<u64>(&mut source, "alive", USERS, &["a", "60000"]).unwrap();
    call::<Value>(&mut source, "arrive", USERS, &["a", "1", "1", "7", "0", "5"]).unwrap();

    cluster.begin_move(slot, to);
    cluster.move_one_key("tg1:users:{u7}:gateways", to);
    let calls: &[(&str, &[&str])] = &[
        ("alive", &["a", "60000"]),
        ("arrive", &["a", "1", "1", "7", "0", "0"]),
        ("depart", &["a", "0", "1", "7", "5"]),
        ("push_user", &["7", "1", "p"]),
        ("push_users", &["1", "7", "1", "p", "", "0", ""]),
        ("kick", &["7"]),
        ("expel", &["7", "room"]),
        ("online", &["7"]),
        ("count_users", &[]),
        ("sweep", &["0", "0"]),
        ("due", &["10"]),
        ("told", &["7", "1"]),
    ];
    for (function, arguments) in calls {
        let refused = asking::<Value>(&mut target, function, USERS, arguments);
        assert_eq!(word(refused), "TRYAGAIN", "{function}");
    }
    while !cluster.move_keys(slot, to, 10).is_empty() {}
    cluster.finish_move(slot, to);
    let online: Vec<String> = call(&mut target, "online", USERS, &["7"]).unwrap();
    assert_eq!(online, ["a:5"]);
    // The new server tells gateways to assert their users again, and then no more.
    for expected in [0, 1] {
        assert_eq!(call::<u64>(&mut target, "alive", USERS, &["a", "60000"]).unwrap(), expected);
    }
}

/// Sets the flag when it is dropped.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn each_push_is_stored_once_and_in_order_while_its_slot_moves() {
    let cluster = cluster();
    let slot = cluster.slot_of(ROOM);
    let mut opener = client(&cluster);
    call::<Value>(&mut opener, "open", ROOM, &["-", "0", "durable", "100000"]).unwrap();
    let moved = AtomicBool::new(false);
    let pushes = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut connection = client(&cluster);
            let mut pushes = 0_u64;
            while !moved.load(Ordering::Relaxed) {
                pushes += 1;
                let payload = pushes.to_string();
                // As a gateway does: the same batch until it is answered.
                until("the push is answered", || {
                    let batch = ["w", &payload, "1", "1", &payload, "", "0"];
                    let answer = call::<(String, u64, u64, u64)>(
                        &mut connection,
                        "publish_many",
                        ROOM,
                        &batch,
                    );
                    answer.ok().map(|answer| assert_eq!(answer.3, pushes))
                });
            }
            pushes
        });
        // Ends the publisher also when a move fails.
        let end = EndOnDrop(&moved);
        for round in 0..6 {
            cluster.move_slot(slot, (cluster.owner_of(slot) + 1 + round % 2) % 3);
        }
        drop(end);
        publisher.join().unwrap()
    });
    let answer: Vec<Value> =
        call(&mut opener, "open", ROOM, &["-", "100000", "durable", "100000"]).unwrap();
    let entries: Vec<(u64, u64)> = answer[5..]
        .chunks(4)
        .map(|entry| {
            let number = |value: &Value| redis::from_redis_value(value.clone()).unwrap();
            (number(&entry[0]), number(&entry[3]))
        })
        .collect();
    assert_eq!(entries, (1..=pushes).map(|push| (push, push)).collect::<Vec<_>>());
}

#[test]
fn a_replica_that_is_promoted_begins_a_new_log() {
    let mut cluster = Cluster::with_replicas();
    cluster.load_library(LIBRARY);
    let owner = cluster.owner_of(cluster.slot_of(ROOM));
    let mut connection = connect(&cluster.nodes[owner]);
    let old: Published = call(&mut connection, "publish", ROOM, &["1", "a"]).unwrap();
    for replica in cluster.nodes.iter().filter(|node| !node.is_master()) {
        let port = replica.info("master_port").unwrap();
        let master = cluster.nodes.iter().find(|node| node.port().to_string() == port).unwrap();
        replica.wait_for_sync(master);
    }
    cluster.nodes[owner].kill();
    let mut connection = until("the replica is promoted", || {
        let mut connection = ClusterClient::new(cluster.urls()).ok()?.get_connection().ok()?;
        call::<Value>(&mut connection, "count", ROOM, &["a", "0", "1000"]).ok()?;
        Some(connection)
    });
    let new: Published = call(&mut connection, "publish", ROOM, &["1", "b"]).unwrap();
    assert_eq!(new.1, 2);
    assert_ne!(new.2, old.2);
}
