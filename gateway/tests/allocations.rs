//! Heap allocations on the shard's thread once it runs steadily: counted, since times don't repeat.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use allocation_counter::measure;
use bytes::Bytes;
use tidegate::auth::Verifier;
use tidegate::clock::WallClock;
use tidegate::config::{AuthMode, Config};
use tidegate::driver::{ConnId, Driver, Event, Mechanism, SendState, Sink};
use tidegate::parts::{Origin, Parts};
use tidegate::router::Backend;
use tidegate::shard::Shard;
use tidegate_backend::demo::{Demo, ECHO};
use tidegate_backend::pool::{Pool, PoolOptions, Worker};
use tidegate_backend::{Handler, Placement, RoomId};
use tidegate_protocol::client::Client;

/// Rounds before counting: buffers grow to what they need.
const WARM_UP: usize = 2_000;

/// Rounds that are counted.
const ROUNDS: u64 = 2_000;

/// A driver that allocates nothing: connections are there, what they receive is put in, and what is
/// sent is gone.
struct Feed {
    now: Instant,
    /// Connections to report as accepted.
    accept: u32,
    accepted: u32,
    /// What each of so many connections receives in the next poll.
    input: Option<(u32, Bytes)>,
    sends: u64,
    sent_bytes: u64,
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 0 }
}

impl Driver for Feed {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "feed", rings: 0 }
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        sink.idle_for();
        sink.woken(self.now);
        for slot in self.accepted..self.accept {
            let peer = SocketAddr::from(([10, 0, 0, 1], 40_000));
            sink.event(Event::Accepted { conn: conn(slot), peer });
        }
        self.accepted = self.accept;
        if let Some((connections, bytes)) = self.input.take() {
            for slot in 0..connections {
                sink.event(Event::Received { conn: conn(slot), bytes: &bytes });
            }
        }
        Ok(())
    }

    fn send(&mut self, _: ConnId, bytes: Bytes) -> SendState {
        self.sends += 1;
        self.sent_bytes += bytes.len() as u64;
        SendState::Done
    }

    fn pause_receive(&mut self, _: ConnId) {}
    fn resume_receive(&mut self, _: ConnId) {}
    fn shutdown(&mut self, _: ConnId) {}
    fn close(&mut self, _: ConnId) {}
    fn set_accepting(&mut self, _: bool) {}
    fn stop_listening(&mut self, _: Instant) {}
}

struct World {
    parts: Parts,
    shard: Shard,
    workers: Vec<Worker>,
    driver: Feed,
    client: Client,
}

impl World {
    /// A shard with so many open sessions.
    fn new(placement: Placement, connections: u32) -> Self {
        let mut config = Config::embedded_default();
        config.shards = 1;
        config.auth.mode = AuthMode::Demo;
        config.session.connections_per_user_max = 10_000;
        let handler: Arc<dyn Handler> = Arc::new(Demo::new(placement));
        let now = Instant::now();
        let origin = Origin {
            started: now,
            wall_clock: WallClock::system(),
            first_offset: 1,
            session_key: 7,
        };
        let verifier = Verifier::new(&config.auth).unwrap();
        let mut workers = Vec::new();
        let Ok(parts) = Parts::new(config, verifier, origin, |_, gateway| {
            let options = PoolOptions { workers: 1, queue_calls_max: 1000, batch_calls_max: 64 };
            let pool = (placement == Placement::Worker).then(|| {
                let (pool, idle) = Pool::idle(&handler, gateway, options);
                workers = idle;
                pool
            });
            let handler = Arc::clone(&handler);
            Ok::<_, Infallible>(vec![Backend { name: "demo".into(), handler, pool }])
        });
        let shard = parts.shard(0);
        let driver =
            Feed { now, accept: connections, accepted: 0, input: None, sends: 0, sent_bytes: 0 };
        let mut world = Self { parts, shard, workers, driver, client: Client::new(now) };
        world.turn();
        world.client.authenticate(now, 7, "token-7");
        let login = world.client.outgoing().split().freeze();
        world.driver.input = Some((connections, login));
        world.turn();
        assert_eq!(world.shard.levels().sessions, connections as usize);
        world
    }

    fn turn(&mut self) {
        self.shard.turn(&mut self.driver).unwrap();
    }

    /// Allocations of the shard's turns in a round with this input; the workers' aren't counted.
    fn round(&mut self, connections: u32, input: &Bytes) -> u64 {
        self.driver.input = Some((connections, input.clone()));
        let mut count = measure(|| self.turn()).count_total;
        for worker in &mut self.workers {
            worker.run_pending();
        }
        count += measure(|| self.turn()).count_total;
        count
    }

    /// Allocations for each request, in percent: buffers that serve many requests are a few.
    fn percent_per_request(&mut self, connections: u32, requests: u32) -> u64 {
        for _ in 0..requests {
            self.client.request(self.driver.now, ECHO, b"sixteen bytes...");
        }
        let input = self.client.outgoing().split().freeze();
        for _ in 0..WARM_UP {
            self.round(connections, &input);
        }
        let answers = self.shard.stats().answers;
        let count: u64 = (0..ROUNDS).map(|_| self.round(connections, &input)).sum();
        let answered = self.shard.stats().answers - answers;
        assert_eq!(answered, ROUNDS * u64::from(connections * requests), "all were answered");
        self.turn();
        assert_eq!(self.shard.levels().outbox_bytes, 0);
        count * 100 / answered
    }
}

#[test]
fn a_request_on_the_shard_costs_no_allocation() {
    let percent = World::new(Placement::Shard, 1).percent_per_request(1, 1);
    assert!(percent <= 10, "{percent} % of an allocation for a request alone");
    let percent = World::new(Placement::Shard, 10).percent_per_request(10, 1);
    assert!(percent <= 10, "{percent} % of an allocation for ten connections' requests");
    let percent = World::new(Placement::Shard, 1).percent_per_request(1, 20);
    assert!(percent <= 10, "{percent} % of an allocation for one of twenty pipelined requests");
}

#[test]
fn a_request_to_a_worker_costs_the_shard_no_allocation() {
    // The queues' blocks, of 31 batches or answers each; the batches themselves come back.
    let percent = World::new(Placement::Worker, 1).percent_per_request(1, 1);
    assert!(percent <= 10, "{percent} % of an allocation for a request alone");
    let percent = World::new(Placement::Worker, 20).percent_per_request(20, 1);
    assert!(percent <= 10, "{percent} % of an allocation for twenty connections' requests");
    let percent = World::new(Placement::Worker, 1).percent_per_request(1, 20);
    assert!(percent <= 10, "{percent} % of an allocation for one of twenty pipelined requests");
}

#[test]
fn a_push_is_encoded_once_however_many_get_it() {
    const MEMBERS: u32 = 500;
    let mut world = World::new(Placement::Shard, MEMBERS);
    let everybody = RoomId::everybody();
    let push = |world: &mut World| {
        world.parts.gateway.push_room(&everybody, 7, Bytes::from_static(b"news")).unwrap();
        // As many turns as the slices of a fan-out that all members take, and one for the mailbox.
        let slices = MEMBERS.div_ceil(64);
        measure(|| (0..=slices).for_each(|_| world.turn())).count_total
    };
    for _ in 0..WARM_UP {
        push(&mut world);
    }
    let before = world.shard.stats().room_deliveries;
    let sends = world.driver.sends;
    let count: u64 = (0..ROUNDS).map(|_| push(&mut world)).sum();
    assert_eq!(world.shard.stats().room_deliveries - before, ROUNDS * u64::from(MEMBERS));
    assert_eq!(world.driver.sends - sends, ROUNDS * u64::from(MEMBERS), "one send each");
    assert!(count <= 3 * ROUNDS, "{count} allocations for {ROUNDS} pushes");
}

#[test]
fn a_push_to_a_user_costs_the_shard_no_allocation() {
    let mut world = World::new(Placement::Shard, 1);
    let push = |world: &mut World| {
        world.parts.gateway.push_user(7, 7, Bytes::from_static(b"news")).unwrap();
        measure(|| (0..2).for_each(|_| world.turn())).count_total
    };
    for _ in 0..WARM_UP {
        push(&mut world);
    }
    let before = world.shard.stats().user_deliveries;
    let count: u64 = (0..ROUNDS).map(|_| push(&mut world)).sum();
    assert_eq!(world.shard.stats().user_deliveries - before, ROUNDS);
    assert!(count <= ROUNDS / 10, "{count} allocations for {ROUNDS} pushes");
}
