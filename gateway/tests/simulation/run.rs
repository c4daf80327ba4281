//! One run: shards, workers, clients and a network, in a random order that the seed decides.

mod acts;
mod healing;

use std::time::Duration;

use fastrand::Rng;
use tidegate::config::{
    BackendConfig, CallRate, Config, Rejoin, RoomClass, RoomPolicy, RouteConfig, SlowMember,
};
use tidegate::driver::sim::{Arrived, Faults, Sim};
use tidegate::wire::Wired;
use tidegate_backend::Placement;
use tidegate_testing::Cause;
use tidegate_testing::wire::{WireClient, WireKind};
use tidegate_testing::{Setup, World, sim, wired};

use crate::backend::{
    Backend, COMMAND, COMMAND_QUEUED, INLINE, LARGE, PUSH, PUSH_BYTES_MAX, QUEUED, RANDOM,
    RANDOM_INLINE, ROUTE_TYPES, Target, echo,
};
use crate::client::{Client, Ended, Rules};

const ROOMS: u64 = 6;
const CLIENTS: usize = 8;

/// The time that a backend has for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// A frame is at most this much longer than its data, in bytes.
const FRAME_EXTRA_BYTES: usize = 40;

/// Bytes of rooms' pushes in one send: the gateway's bound, and the push that crosses it.
const ROOMS_SEND_BYTES: usize = 64 * 1024 + PUSH_BYTES_MAX + FRAME_EXTRA_BYTES;

/// What waits without a send in flight is flushed within the turn when it is so long.
const FLUSH_BYTES: usize = 256 * 1024;

/// One run from one seed.
pub(crate) struct Run {
    pub(crate) rng: Rng,
    pub(crate) world: World<Wired<Sim>>,
    /// The wire of all clients.
    kind: WireKind,
    /// Connections so far.
    connects: u64,
    pub(crate) backend: Backend,
    pub(crate) clients: Vec<Client>,
    rules: Rules,
    /// By worker: it hangs, and takes no calls.
    hung_workers: Vec<bool>,
    /// Backends give answers as large as an outbox may be.
    large_answers: bool,
    /// The clock may jump, or the network may reset connections.
    has_faults: bool,
    /// Pushes that clients missed on earlier connections.
    skipped: u64,
    /// How many users the clients choose from before the healing phase. With few, several clients are one user.
    users: u64,
    next_user: u64,
}

fn configure(config: &mut Config, rng: &mut Rng) -> Rules {
    config.shards = rng.u16(1..=3);
    config.auth.timeout = Duration::from_secs(4);
    config.session.heartbeat_interval = Duration::from_secs(3);
    config.session.idle_timeout = Duration::from_secs(8);
    config.session.connections_per_user_max = rng.usize(1..=2);
    let limits = &mut config.limits;
    limits.calls_per_connection_max = rng.u16(1..=8);
    limits.outbox_bytes_max = *rng.choice(&[6_000, 20_000, 1 << 20]).unwrap();
    limits.fan_out_slice_members = rng.usize(1..=4);
    limits.frames_per_second_max = rng.bool().then_some(50);
    limits.frames_burst_max = 10;
    if rng.u8(..) < 60 {
        limits.connections_max = CLIENTS;
    }
    if rng.u8(..) < 60 {
        limits.commands_max = 3;
    }
    limits.commands_bytes_max = 256 * 1024;
    // A separate generator, so that the windows do not change what else a seed decides.
    let mut windows = Rng::with_seed(rng.clone().u64(..));
    let mut policy = |log_bytes_max, slow_member| RoomPolicy {
        log_bytes_max,
        slow_member,
        merge_window: Duration::from_millis(*windows.choice(&[0, 0, 1, 30, 200, 2_000]).unwrap()),
        urgent_types: (windows.u8(..) < 30).then_some((PUSH, PUSH)),
        replay_on_join: 0,
        rejoin: Rejoin::Ticket,
        class: RoomClass::Durable,
    };
    config.rooms.default_policy = policy(16 << 20, SlowMember::Skip);
    config.rooms.policies = vec![
        ("strict".into(), policy(4_000, SlowMember::Close)),
        ("small".into(), policy(700, SlowMember::Skip)),
        ("*".into(), policy(16 << 20, SlowMember::Skip)),
    ];
    config.rooms.rooms_per_connection_max = 100;
    let rules = Rules { rooms_end: rng.u8(..) < 60 };
    config.rooms.idle_ttl = Duration::from_millis(if rules.rooms_end { 300 } else { 3_600_000 });
    let backend = |name: &str, placement| BackendConfig {
        name: name.into(),
        placement: Some(placement),
        workers: 2,
        queue_calls_max: 64,
        queue_bytes_max: 1 << 20,
        batch_calls_max: 4,
        circuit_timeouts: Some(20),
    };
    config.backends =
        vec![backend("inline", Placement::Shard), backend("workers", Placement::Worker)];
    config.routes = [
        (INLINE, "inline"),
        (QUEUED, "workers"),
        (RANDOM, "workers"),
        (RANDOM_INLINE, "inline"),
        (COMMAND, "inline"),
        (COMMAND_QUEUED, "workers"),
        (LARGE, "workers"),
    ]
    .map(|(first_type, backend)| RouteConfig {
        first_type,
        last_type: first_type + ROUTE_TYPES - 1,
        backend: backend.into(),
        timeout: CALL_TIMEOUT,
        in_flight_max: 30,
        waiting_max: Some(Duration::from_millis(rng.u64(1..2_000))),
        rate: CallRate::UNLIMITED,
        user_rate: CallRate::UNLIMITED,
    })
    .to_vec();
    rules
}

fn faults(rng: &mut Rng) -> Faults {
    let calm = rng.u8(..) < 80;
    let mut rare = |most: f64| if !calm && rng.bool() { rng.f64() * most } else { 0.0 };
    let (reset, time_out, clock_jump) = (rare(0.002), rare(0.001), rare(0.01));
    let mut often = |most: f64| if rng.bool() { rng.f64() * most } else { 0.0 };
    Faults {
        cut: often(0.9),
        short_send: often(0.9),
        late_send: often(1.0),
        late_reply: often(1.0),
        stall: often(0.05),
        reset,
        time_out,
        accept_delay: often(0.9),
        accept_pause: often(0.3),
        clock_jump,
        clock_jump_max: Duration::from_secs(8),
        shuffle: true,
    }
}

impl Run {
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(WireKind::PLAIN, seed)
    }

    /// A run whose clients connect through a wire.
    pub(crate) fn on(kind: WireKind, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let backend = Backend::new(rng.u64(..));
        let mut rules = Rules::default();
        let setup = Setup::new(backend.clone(), |config| rules = configure(config, &mut rng));
        let session_key = rng.u64(..);
        let faults = faults(&mut rng);
        let world = Setup { session_key, ..setup }
            .world_on(|_, now| wired(kind, sim(rng.u64(..), now, faults.clone())));
        let users = *rng.choice(&[4, 30]).unwrap();
        let mut run = Self {
            large_answers: rng.bool(),
            hung_workers: vec![false; world.workers.len()],
            rng,
            world,
            kind,
            connects: 0,
            backend,
            clients: Vec::new(),
            rules,
            has_faults: faults.clock_jump + faults.reset + faults.time_out > 0.0,
            skipped: 0,
            users,
            next_user: 1000,
        };
        for _ in 0..CLIENTS {
            let user_id = run.rng.u64(1..=run.users);
            let client = run.connect(user_id);
            run.clients.push(client);
        }
        run
    }

    fn connect(&mut self, user_id: u64) -> Client {
        let shard = self.rng.usize(0..self.world.shards.len());
        let peer = self.world.connect(shard);
        self.connects += 1;
        let transport = WireClient::new(self.kind, self.connects);
        let mut client = Client::new(peer, transport, user_id, self.world.now(), self.rules);
        client.may_be_cut_off = self.has_faults;
        client.never_reads = self.rng.u8(..) < 25;
        client
    }

    /// One random step.
    pub(crate) fn step(&mut self) {
        match self.rng.u32(0..1000) {
            0..400 => {
                let shard = self.rng.usize(0..self.world.shards.len());
                self.world.turn(shard);
            }
            400..500 => {
                let worker = self.rng.usize(0..self.world.workers.len());
                self.run_worker(worker);
            }
            500..550 => self.answer_deferred(),
            550..553 => {
                let worker = self.rng.usize(0..self.world.workers.len());
                self.hung_workers[worker] = !self.hung_workers[worker];
            }
            553 => {
                // Up to a day, back as likely as forward.
                let day_ms = 86_400_000;
                let wall_ms = self.world.wall_ms() + self.rng.u64(0..2 * day_ms) - day_ms;
                self.world.set_wall_ms(wall_ms);
            }
            554 => self.wait(CALL_TIMEOUT + Duration::from_secs(1)),
            555..600 => {
                let most = if self.has_faults && self.rng.u32(0..20) == 0 { 2_000 } else { 40 };
                self.world.advance(Duration::from_millis(self.rng.u64(0..most)));
            }
            600..630 => {
                let target = self.target();
                for _ in 0..self.rng.u32(1..8) {
                    self.backend.push(target, self.world.gateway());
                }
            }
            _ => {
                let client = self.rng.usize(0..self.clients.len());
                self.act(client);
                self.pump(client, false);
            }
        }
        self.check();
    }

    fn run_worker(&mut self, worker: usize) {
        if !self.hung_workers[worker] {
            let now = self.world.now();
            self.world.workers[worker].run_pending(now);
        }
    }

    /// Time passes in which clients only read and send heartbeats. Calls of workers that hang time out.
    fn wait(&mut self, time: Duration) {
        let until = self.world.now() + time;
        while self.world.now() < until {
            for index in 0..self.clients.len() {
                self.send_heartbeat_if_due(index);
                self.pump(index, true);
            }
            // The network may stall for 40 turns. That must be shorter than the time for which a connection lingers.
            self.world.turns(20);
            (0..self.world.workers.len()).for_each(|worker| self.run_worker(worker));
            self.world.advance(Duration::from_millis(250));
            self.check();
        }
    }

    fn send_heartbeat_if_due(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.session.is_some() && client.is_live() {
            client.handle_timeout(self.world.now());
        }
    }

    pub(crate) fn answer_deferred(&mut self) {
        let call = {
            let mut record = self.backend.record();
            if record.deferred.is_empty() {
                return;
            }
            let index = self.rng.usize(0..record.deferred.len());
            record.deferred.swap_remove(index)
        };
        match self.rng.u32(0..4) {
            0 => drop(call),
            _ => echo(call),
        }
    }

    fn target(&mut self) -> Target {
        match self.rng.u32(0..6) {
            0 => Target::Everybody,
            1 => Target::User(self.rng.u64(1..=self.users)),
            _ => Target::Room(self.rng.u64(0..ROOMS)),
        }
    }

    /// Moves bytes between a client and its connection: some at random, or everything.
    fn pump(&mut self, index: usize, everything: bool) {
        let cut_off = self.cut_off();
        let client = &mut self.clients[index];
        if client.ended.is_some() {
            return;
        }
        let outgoing = client.wire.outgoing();
        let count = if everything { outgoing.len() } else { self.rng.usize(0..=outgoing.len()) };
        let taken = client.transport.send(&outgoing[..count]);
        let _ = outgoing.split_to(taken);
        let is_last = client.half_closed && outgoing.is_empty();
        if is_last {
            client.transport.end();
        }
        let transport = &mut client.transport;
        let written = self.world.write(client.peer, &transport.out);
        transport.out.drain(..written);
        if is_last && transport.out.is_empty() && transport.is_open() {
            self.world.half_close(client.peer);
        }
        if client.stalled {
            return;
        }
        loop {
            let bytes_max = if everything { usize::MAX } else { self.rng.usize(1..2000) };
            match self.world.read_at_most(client.peer, bytes_max) {
                Arrived::Bytes(bytes) => {
                    client.transport.receive(&bytes);
                    let bytes = std::mem::take(&mut client.transport.received);
                    client.receive(&bytes, &self.backend.record());
                }
                Arrived::Nothing => return,
                Arrived::End => return client.on_end(Ended::End, cut_off),
                Arrived::Reset => return client.on_end(Ended::Reset, cut_off),
            }
            if !everything {
                return;
            }
        }
    }

    /// Whether any connection was closed in the middle of a frame because the client was slow.
    fn cut_off(&self) -> bool {
        self.world.closed(Cause::OutboxFull) + self.world.closed(Cause::SlowMember) > 0
    }

    /// Checks what holds after every step: the figures agree, and the bounds of ARCHITECTURE.md hold.
    fn check(&self) {
        let config = self.world.config();
        let limits = &config.limits;
        for levels in self.world.levels() {
            assert!(levels.sessions <= levels.connections);
            assert!((1..=1 + ROOMS as usize).contains(&levels.rooms));
            let unsent_bytes_max = levels.connections * self.unsent_bytes_max();
            assert!(levels.outbox_bytes <= unsent_bytes_max, "{levels:?}, {unsent_bytes_max}");
        }
        let connections = self.world.level(|levels| levels.connections);
        assert_eq!(connections as u64, self.world.counted_connections());
        assert!(connections <= limits.connections_max);
        let calls_max: usize = config.routes.iter().map(|route| route.in_flight_max).sum();
        assert!(self.world.level(|levels| levels.calls_in_flight) <= calls_max);
        assert!(self.world.commands_in_flight() <= limits.commands_max);
    }

    /// The bound on the unsent bytes of one connection: one send in flight, what waits behind it, and what its
    /// rooms have not offered to it when it leaves them or is closed.
    fn unsent_bytes_max(&self) -> usize {
        let limits = &self.world.config().limits;
        let frame_bytes_max = FRAME_EXTRA_BYTES
            + PUSH_BYTES_MAX.max(if self.large_answers { limits.outbox_bytes_max } else { 0 });
        let waiting = limits.outbox_bytes_max + frame_bytes_max;
        // Before a send is in flight, a connection is read from until half of its bound is unsent. What becomes
        // ready then is flushed at the latest when it is long.
        let answers = usize::from(limits.calls_per_connection_max) * frame_bytes_max;
        let pushes = limits.commands_bytes_max.min(limits.commands_max * frame_bytes_max);
        let at_once = limits.outbox_bytes_max / 2 + frame_bytes_max + answers + pushes;
        let first_send = at_once.min(FLUSH_BYTES + frame_bytes_max).max(ROOMS_SEND_BYTES);
        first_send.max(waiting) + waiting + pushes
    }

    /// All clients, shards and workers do what they can; then time passes.
    pub(crate) fn round(&mut self, passes: Duration) {
        for index in 0..self.clients.len() {
            self.send_heartbeat_if_due(index);
            self.pump(index, true);
        }
        for _ in 0..2 {
            self.world.turns(1);
            self.world.run_workers();
        }
        self.world.advance(passes);
        self.check();
    }

    /// Runs rounds until something holds, within a bound of simulated time.
    #[track_caller]
    pub(crate) fn run_until(
        &mut self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) {
        let until = self.world.now() + within;
        while !holds(self) {
            let in_time = self.world.now() < until;
            let levels = || self.world.levels();
            assert!(in_time, "not within {within:?}: {what}; {:?} {:?}", levels(), self.clients);
            self.round(Duration::from_millis(20));
        }
    }
}
