//! Heap allocations of a shard in steady state. They are counted, since times do not repeat.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use allocation_counter::measure;
use bytes::Bytes;
use tidegate::driver::{ConnId, Driver, Event, Mechanism, SendState, Sink};
use tidegate_backend::demo::{Demo, ECHO};
use tidegate_backend::{Placement, RoomId};
use tidegate_protocol::client::Client;
use tidegate_testing::{Setup, SteppedDriver, World, login};

/// Rounds before the count, in which buffers grow to the size that they need.
const WARM_UP: usize = 2_000;

/// Rounds that are counted.
const ROUNDS: u64 = 2_000;

/// A driver that allocates nothing. The test says what connections receive; what is sent to them is dropped.
struct Feed {
    now: Instant,
    /// Connections to report as accepted.
    accept: u32,
    accepted: u32,
    /// What the first connections receive in the next poll: how many, and the bytes for each.
    input: Option<(u32, Vec<u8>)>,
    sends: u64,
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 0 }
}

impl Driver for Feed {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "feed", rings: 0 }
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        sink.idle_for();
        sink.woken(self.now);
        for slot in self.accepted..self.accept {
            let peer = SocketAddr::from(([10, 0, 0, 1], 40_000));
            sink.event(Event::Accepted { conn: conn(slot), peer, listener: 0, is_open: true });
        }
        self.accepted = self.accept;
        if let Some((connections, mut bytes)) = self.input.take() {
            for slot in 0..connections {
                sink.event(Event::Received { conn: conn(slot), bytes: &mut bytes });
            }
        }
        Ok(())
    }

    fn send(&mut self, _: ConnId, _: Bytes) -> SendState {
        self.sends += 1;
        SendState::Done
    }

    fn pause_receive(&mut self, _: ConnId) {}
    fn resume_receive(&mut self, _: ConnId) {}
    fn shutdown(&mut self, _: ConnId) {}
    fn close(&mut self, _: ConnId) {}
    fn set_accepting(&mut self, _: bool) {}
    fn stop_listening(&mut self, _: Instant) {}
}

impl SteppedDriver for Feed {
    fn set_now(&mut self, now: Instant) {
        self.now = now;
    }
}

/// A shard with open sessions which all send the same bytes.
struct Sessions {
    world: World<Feed>,
    client: Client,
}

impl Sessions {
    fn new(placement: Placement, connections: u32) -> Self {
        let setup = Setup::new(Demo::new(placement), |config| {
            config.session.connections_per_user_max = 10_000;
            let backend = &mut config.backends[0];
            (backend.workers, backend.queue_calls_max, backend.batch_calls_max) = (1, 1000, 64);
        });
        let world = setup.world_on(|_, now| Feed {
            now,
            accept: connections,
            accepted: 0,
            input: None,
            sends: 0,
        });
        let client = Client::new(world.now());
        let mut sessions = Self { world, client };
        sessions.turn();
        sessions.world.drivers[0].input = Some((connections, login(7, 1)));
        sessions.turn();
        assert_eq!(sessions.world.level(|levels| levels.sessions), connections as usize);
        sessions
    }

    fn turn(&mut self) {
        self.world.turn(0);
    }

    /// Allocations of the shard in a round with this input. Those of workers are not counted.
    fn round(&mut self, connections: u32, input: &Bytes) -> u64 {
        self.world.drivers[0].input = Some((connections, input.to_vec()));
        let mut count = measure(|| self.turn()).count_total;
        self.world.run_workers();
        count += measure(|| self.turn()).count_total;
        count
    }

    /// Allocations per request, in percent: below 100 where one buffer serves many requests.
    fn percent_per_request(&mut self, connections: u32, requests: u32) -> u64 {
        for _ in 0..requests {
            self.client.request(self.world.now(), ECHO, b"sixteen bytes...");
        }
        let input = self.client.outgoing().split().freeze();
        for _ in 0..WARM_UP {
            self.round(connections, &input);
        }
        let answers = self.world.count(|stats| stats.answers);
        let count: u64 = (0..ROUNDS).map(|_| self.round(connections, &input)).sum();
        let answered = self.world.count(|stats| stats.answers) - answers;
        assert_eq!(
            answered,
            ROUNDS * u64::from(connections * requests),
            "each request is answered"
        );
        self.turn();
        assert_eq!(self.world.level(|levels| levels.outbox_bytes), 0);
        count * 100 / answered
    }
}

#[test]
fn a_request_handled_on_the_shard_costs_no_allocation() {
    let percent = Sessions::new(Placement::Shard, 1).percent_per_request(1, 1);
    assert!(percent <= 10, "{percent} % of an allocation for a request alone");
    let percent = Sessions::new(Placement::Shard, 10).percent_per_request(10, 1);
    assert!(percent <= 10, "{percent} % of an allocation for ten connections' requests");
    let percent = Sessions::new(Placement::Shard, 1).percent_per_request(1, 20);
    assert!(percent <= 10, "{percent} % of an allocation for one of twenty pipelined requests");
}

#[test]
fn a_request_to_a_worker_costs_the_shard_no_allocation() {
    // The queues allocate a block per 31 batches or answers. The batches are reused.
    let percent = Sessions::new(Placement::Worker, 1).percent_per_request(1, 1);
    assert!(percent <= 10, "{percent} % of an allocation for a request alone");
    let percent = Sessions::new(Placement::Worker, 20).percent_per_request(20, 1);
    assert!(percent <= 10, "{percent} % of an allocation for twenty connections' requests");
    let percent = Sessions::new(Placement::Worker, 1).percent_per_request(1, 20);
    assert!(percent <= 10, "{percent} % of an allocation for one of twenty pipelined requests");
}

#[test]
fn a_push_is_encoded_once_for_all_members() {
    const MEMBERS: u32 = 500;
    let mut sessions = Sessions::new(Placement::Shard, MEMBERS);
    let everybody = RoomId::everybody();
    let push = |sessions: &mut Sessions| {
        sessions.world.gateway().push_room(&everybody, 7, Bytes::from_static(b"news")).unwrap();
        // A turn for each slice of the fan-out, and one for the mailbox.
        let slices = MEMBERS.div_ceil(64);
        measure(|| (0..=slices).for_each(|_| sessions.turn())).count_total
    };
    for _ in 0..WARM_UP {
        push(&mut sessions);
    }
    let before = sessions.world.count(|stats| stats.room_deliveries);
    let sends = sessions.world.drivers[0].sends;
    let count: u64 = (0..ROUNDS).map(|_| push(&mut sessions)).sum();
    assert_eq!(
        sessions.world.count(|stats| stats.room_deliveries) - before,
        ROUNDS * u64::from(MEMBERS)
    );
    assert_eq!(
        sessions.world.drivers[0].sends - sends,
        ROUNDS * u64::from(MEMBERS),
        "one send each"
    );
    assert!(count <= 3 * ROUNDS, "{count} allocations for {ROUNDS} pushes");
}

#[test]
fn a_push_to_a_user_costs_the_shard_no_allocation() {
    let mut sessions = Sessions::new(Placement::Shard, 1);
    let push = |sessions: &mut Sessions| {
        sessions.world.gateway().push_user(7, 7, Bytes::from_static(b"news")).unwrap();
        measure(|| (0..2).for_each(|_| sessions.turn())).count_total
    };
    for _ in 0..WARM_UP {
        push(&mut sessions);
    }
    let before = sessions.world.count(|stats| stats.user_deliveries);
    let count: u64 = (0..ROUNDS).map(|_| push(&mut sessions)).sum();
    assert_eq!(sessions.world.count(|stats| stats.user_deliveries) - before, ROUNDS);
    assert!(count <= ROUNDS / 10, "{count} allocations for {ROUNDS} pushes");
}
