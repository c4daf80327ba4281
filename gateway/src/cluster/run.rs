//! The thread's loop: facts in, requests and messages out.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redis::{Cmd, PushKind, RedisError, Value};
use tidegate_backend::{PushError, RoomId};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{self, MissedTickBehavior};

use super::contract;
use super::link::{self, Arrival, Connection, LinkError};
use super::links::{Concern, Due, Links};
use super::members::{self, Members};
use super::message::ToCluster;
use super::metrics::{self, Exporter};
use super::publishing::{Publishing, Push};
use super::registry::{self, Census, Exchanged, Lag, Line, Registration};
use super::rooms::{Open, Output, Rooms};
use super::status::Status;
use super::token_contract;
use super::tokens::{self, Tokens};
use super::user_contract;
use super::users::{self, Fault, Tag, Times, Users};
use super::{ClusterAddress, Inbox};
use crate::clock::WallClock;
use crate::config::{AuthMode, Config, RedisConfig, RoomsConfig};
use crate::control::Control;
use crate::shard::command::{CommandLimiter, CommandPermit};
use crate::shard::mailbox::Address;
use crate::shard::rooms::message::RoomMessage;
use crate::shard::tokens::TokenMessage;
use crate::telemetry::panics::text_of;

/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// Messages of shards that are taken at once, at most.
const MESSAGES_MAX: usize = 1024;

/// How long the end of the thread waits until Redis knows that nobody is here any more.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// The epoch of no connection.
const NO_EPOCH: u64 = u64::MAX;

/// The thread that speaks with Redis.
#[derive(Debug)]
pub struct ClusterThread {
    thread: JoinHandle<()>,
    address: ClusterAddress,
}

/// What the thread needs of the gateway.
pub struct Surroundings {
    /// Where Redis is.
    pub redis: RedisConfig,
    /// The gateway's configuration.
    pub config: Config,
    /// When the gateway's clocks started.
    pub started: Instant,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// The shards' mailboxes.
    pub shards: Vec<Address>,
    /// The bound on pushes that come from Redis.
    pub limiter: Arc<CommandLimiter>,
    /// What operators are shown. It names this gateway's run among all.
    pub status: Status,
    /// What this gateway says of itself that does not change.
    pub line: Line,
    /// The way to the gateway's figures.
    pub control: Arc<dyn Control>,
}

impl ClusterThread {
    /// Starts the thread. If it panics, `on_panic` is called with the reason.
    ///
    /// # Errors
    /// When the system gives no thread or no epoll.
    pub fn start(
        surroundings: Surroundings,
        inbox: Inbox,
        address: ClusterAddress,
        on_panic: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            let run = || runtime.block_on(Runner::new(surroundings).run(inbox));
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(run)) {
                on_panic(format!("it panicked: {}", text_of(&*payload)));
            }
        };
        let thread = thread::Builder::new().name("cluster".into()).spawn(run)?;
        Ok(Self { thread, address })
    }

    /// Ends the thread. What waits for Redis is refused.
    pub fn stop(self) {
        self.address.post(ToCluster::Stop);
        // It has logged its panic, if there was one.
        drop(self.thread.join());
    }
}

/// A request that has ended.
enum Completion {
    Connected(u64, Result<Connection, LinkError>),
    Room(u64, RoomCompletion),
    Users {
        tag: Tag,
        epoch: u64,
        answer: Result<Value, RedisError>,
        times: Times,
    },
    UsersSubscribed {
        partition: u8,
        epoch: u64,
        outcome: Result<(), RedisError>,
    },
    LookedUp {
        partition: u8,
        number: u64,
        epoch: u64,
        answer: Result<Value, RedisError>,
    },
    TokensSubscribed {
        partition: u8,
        epoch: u64,
        outcome: Result<(), RedisError>,
    },
    /// How long the answer took.
    Pinged(u64, Result<Duration, RedisError>),
    LibraryLoaded(u64, Result<(), RedisError>),
    Registered(Box<(u64, Exchanged)>),
}

/// A request about a room that has ended.
enum RoomCompletion {
    Opened(Open, Result<Value, RedisError>),
    Published {
        room: RoomId,
        number: u64,
        answer: Result<Value, RedisError>,
    },
    /// A shard has counted a room's members. `None`: it has ended, or the room is closed.
    Counted {
        room: RoomId,
        members: Option<u64>,
    },
    Barred(Pending, Result<Value, RedisError>),
    CountTold {
        room: RoomId,
        answer: Result<Value, RedisError>,
    },
    Subscribed {
        room: RoomId,
        is_on: bool,
        outcome: Result<(), RedisError>,
    },
}

/// The permit of a command that waits for Redis. If it is dropped, the command is refused.
struct Pending(Option<Arc<CommandPermit>>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|permit| permit.refuse(PushError::Stopping));
    }
}

struct Runner {
    rooms_config: RoomsConfig,
    shards: Vec<Address>,
    rooms: Rooms,
    members: Members,
    publishing: Publishing,
    /// Names this gateway's run among all.
    gateway: String,
    users: Users,
    tokens: Tokens,
    links: Links,
    arrivals: mpsc::UnboundedSender<Arrival>,
    arrived: mpsc::UnboundedReceiver<Arrival>,
    requests: JoinSet<Completion>,
    registration: Registration,
    status: Status,
    started: Instant,
    exporter: Exporter,
    /// The thread ends at this time at the latest.
    stop_at: Option<Instant>,
}

impl Runner {
    fn new(surroundings: Surroundings) -> Self {
        let Surroundings {
            redis,
            config,
            started,
            wall_clock,
            shards,
            limiter,
            status,
            line,
            control,
        } = surroundings;
        let writer = status.gateway().to_owned();
        let census = Census::new(control, line.figures.connections_max);
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let wait_max_ms = u64::try_from(redis.push_wait.as_millis()).unwrap_or(u64::MAX);
        let grace_ms = u64::try_from(redis.offline_grace.as_millis()).unwrap_or(u64::MAX);
        let wait_max_us = wait_max_ms.saturating_mul(1000);
        let recheck_ms = u64::try_from(config.auth.recheck.as_millis()).unwrap_or(u64::MAX);
        let has_tokens = config.auth.mode == AuthMode::Redis;
        let shard_count = u16::try_from(shards.len()).unwrap_or(u16::MAX);
        let seed = fastrand::usize(..);
        let since_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let wall_ahead_us = wall_clock.unix_us().saturating_sub(since_us);
        Self {
            rooms: Rooms::new(Arc::clone(&limiter), writer.clone()),
            publishing: Publishing::new(writer.clone(), wait_max_ms),
            members: Members::default(),
            registration: Registration::new(writer.clone(), line, census),
            status,
            gateway: writer,
            users: Users::new(&config, limiter, grace_ms, wait_max_us, wall_ahead_us, seed),
            tokens: Tokens::new(shard_count, recheck_ms),
            links: Links::new(&redis, has_tokens, Instant::now()),
            rooms_config: config.rooms,
            shards,
            arrivals,
            arrived,
            requests: JoinSet::new(),
            started,
            exporter: Exporter::default(),
            stop_at: None,
        }
    }

    async fn run(mut self, mut inbox: Inbox) {
        let mut ticks = time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut messages = Vec::with_capacity(MESSAGES_MAX);
        while !self.has_ended() {
            tokio::select! {
                count = inbox.receiver.recv_many(&mut messages, MESSAGES_MAX) => {
                    if count == 0 {
                        break;
                    }
                    messages.drain(..).for_each(|message| self.on_message(message));
                }
                Some(arrival) = self.arrived.recv() => {
                    self.on_arrival(&arrival);
                    while let Ok(arrival) = self.arrived.try_recv() {
                        self.on_arrival(&arrival);
                    }
                }
                Some(completion) = self.requests.join_next() => {
                    self.on_joined(completion);
                    while let Some(completion) = self.requests.try_join_next() {
                        self.on_joined(completion);
                    }
                }
                _ = ticks.tick() => self.tick(),
            }
            self.carry_out();
        }
        inbox.receiver.close();
        while let Ok(message) = inbox.receiver.try_recv() {
            message.refuse();
        }
        self.publishing.refuse_all();
        self.users.refuse_all();
        if let Some((connection, _)) = self.links.get(Concern::Presence).connection() {
            registry::remove(connection, &self.gateway).await;
        }
    }

    /// Whether the thread ends now. The shards have ended when it is stopped, so nobody is here. Redis should know that:
    /// otherwise the users count as online until another gateway has swept.
    fn has_ended(&self) -> bool {
        self.stop_at.is_some_and(|stop_at| self.users.is_settled() || stop_at <= Instant::now())
    }

    /// Microseconds since the gateway's start.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn now_us(&self) -> u64 {
        self.micros(Instant::now())
    }

    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    fn on_message(&mut self, message: ToCluster) {
        let now_ms = self.now_ms();
        match message {
            ToCluster::Follow { room, home } => {
                let is_fleeting = self.rooms_config.policy_of(room.as_str()).is_fleeting();
                self.rooms.follow(&room, home, is_fleeting, now_ms);
            }
            ToCluster::Unfollow { room } => {
                self.rooms.unfollow(&room);
                self.members.end(&room);
            }
            ToCluster::FirstMember { room } => self.members.count(&room),
            ToCluster::Publish { room, kind, biz_data, options, permit } => {
                let push = Push { kind, biz_data, options, permit };
                self.publishing.push(&room, push, now_ms);
            }
            ToCluster::Bar { room, user_id, until_s, permit } => {
                let ttl_s = self.rooms_config.ticket_ttl.as_secs();
                let cmd = contract::bar(&room, user_id, until_s, ttl_s, &self.gateway);
                let permit = Pending(Some(permit));
                self.call(cmd, move |answer| RoomCompletion::Barred(permit, answer));
            }
            ToCluster::UserArrived { user_id, addr, at } => {
                self.users.arrived(user_id, addr, self.micros(at));
            }
            ToCluster::UserLeft { user_id, at } => self.users.left(user_id, self.micros(at)),
            ToCluster::ToUser { user_id, order, permit } => {
                self.users.send(user_id, order, permit, self.now_us());
            }
            ToCluster::LookUp { addr, user_id, token } => {
                self.tokens.look_up(addr, user_id, token, now_ms);
            }
            ToCluster::Tokens(page) => self.tokens.on_page(page, now_ms),
            ToCluster::Stop => self.stop_at = Some(Instant::now() + STOP_WAIT),
        }
    }

    fn on_arrival(&mut self, arrival: &Arrival) {
        let Arrival { epoch, info } = arrival;
        let concern = Concern::of(*epoch);
        let link = self.links.get(concern);
        if !link.is_current(*epoch) {
            return;
        }
        // A Cluster's connection to a node is made again by the client. But it subscribes to all of the node's channels with
        // one command, which the node refuses if they have different slots. So the link is made again as a whole.
        if info.kind == PushKind::Disconnection && link.is_up() {
            return self.lose(concern, &"the connection was closed");
        }
        let bytes = |index: usize| match info.data.get(index) {
            Some(Value::BulkString(bytes)) => bytes.as_slice(),
            _ => b"",
        };
        match concern {
            Concern::Pushes => self.on_room_arrival(&info.kind, bytes(0), bytes(1)),
            Concern::Presence => self.on_user_arrival(&info.kind, bytes(0), bytes(1)),
            Concern::Tokens => self.on_token_arrival(&info.kind, bytes(0), bytes(1)),
        }
    }

    fn on_room_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_ms = self.now_ms();
        let room = || contract::room_of_channel(channel);
        match kind {
            PushKind::SMessage => match (room(), contract::room_event(message)) {
                (Some(room), Some(event)) => self.rooms.on_event(&room, event, now_ms),
                _ => self.exporter.unreadable += 1,
            },
            PushKind::SSubscribe => {
                room().into_iter().for_each(|room| self.rooms.on_subscribed(&room));
            }
            PushKind::SUnsubscribe => {
                room().into_iter().for_each(|room| self.rooms.on_unsubscribed(&room, now_ms));
            }
            _ => {}
        }
    }

    fn on_user_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_us = self.now_us();
        let partition = || user_contract::partition_of_channel(channel).into_iter();
        match kind {
            PushKind::SMessage if !self.users.on_message(message, now_us) => {
                self.exporter.unreadable += 1;
            }
            PushKind::SSubscribe => partition().for_each(|it| self.users.on_subscribed(it)),
            PushKind::SUnsubscribe => {
                partition().for_each(|it| self.users.on_unsubscribed(it, now_us));
            }
            _ => {}
        }
    }

    fn on_token_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_ms = self.now_ms();
        let partition = || token_contract::partition_of_channel(channel).into_iter();
        match kind {
            PushKind::SMessage => match token_contract::revocation(message) {
                Some((user_id, token)) => self.tokens.on_revoked(user_id, token),
                None => self.exporter.unreadable += 1,
            },
            PushKind::SSubscribe => partition().for_each(|it| self.tokens.on_subscribed(it)),
            PushKind::SUnsubscribe => {
                partition().for_each(|it| self.tokens.on_unsubscribed(it, now_ms));
            }
            PushKind::Disconnection => self.tokens.on_node_lost(),
            _ => {}
        }
    }

    fn on_joined(&mut self, completion: Result<Completion, JoinError>) {
        match completion {
            Ok(completion) => self.on_completion(completion),
            Err(error) => tracing::error!(%error, "a request to Redis panicked"),
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let now_ms = self.now_ms();
        match completion {
            Completion::Connected(epoch, outcome) => self.on_connected(epoch, outcome),
            Completion::Room(epoch, completion) => self.on_room_completion(epoch, completion),
            Completion::Users { tag, epoch, answer, times } => {
                let answer = self.checked(epoch, answer);
                // Only commands to users need the outcome of an earlier connection: their callers wait.
                let is_current = self.links.get(Concern::Presence).is_current(epoch);
                if is_current || matches!(tag, Tag::Send(..)) {
                    self.users.on_answer(tag, answer, times);
                }
            }
            Completion::UsersSubscribed { partition, epoch, outcome } => {
                let outcome = self.checked(epoch, outcome);
                if outcome.is_err() && self.links.get(Concern::Presence).is_current(epoch) {
                    self.users.on_unsubscribed(partition, self.now_us());
                }
            }
            Completion::LookedUp { partition, number, epoch, answer } => {
                let is_current = self.links.get(Concern::Tokens).is_current(epoch);
                let answer = match answer {
                    Err(error) if is_current => self.checked(epoch, Err(error)).ok(),
                    answer => answer.ok(),
                };
                let verdicts = answer.and_then(|answer| token_contract::verdicts(&answer));
                self.tokens.on_answer(partition, number, verdicts, now_ms);
            }
            Completion::TokensSubscribed { partition, epoch, outcome } => {
                if self.links.get(Concern::Tokens).is_current(epoch)
                    && self.checked(epoch, outcome).is_err()
                {
                    self.tokens.on_unsubscribed(partition, now_ms);
                }
            }
            Completion::Pinged(epoch, outcome) => {
                let concern = Concern::of(epoch);
                if self.links.get(concern).is_current(epoch) {
                    match outcome {
                        Ok(took) => self.status.round_trip(concern.name(), took),
                        Err(error) => self.lose(concern, &error),
                    }
                }
            }
            Completion::LibraryLoaded(epoch, outcome) => {
                let link = self.links.get_mut(Concern::of(epoch));
                if link.is_current(epoch) {
                    link.on_library_loaded();
                }
                // After a fault, the next call that lacks the library loads it.
                let _ = self.checked(epoch, outcome);
            }
            Completion::Registered(exchanged) => self.on_registered(*exchanged),
        }
    }

    fn on_registered(&mut self, exchanged: (u64, Exchanged)) {
        let (epoch, exchanged) = exchanged;
        let Exchanged { census, line, peers, round_trip } = exchanged;
        self.registration.returned(census);
        self.status.set_own(line);
        let peers = peers.and_then(|answer| self.checked(epoch, answer).ok());
        if let Some(peers) = peers {
            let alive = peers.iter().filter(|peer| peer.is_alive()).count();
            metrics::export_registry(alive, peers.len() - alive, self.requests.len());
            self.status.set_peers(peers);
        }
        if let Some(round_trip) = round_trip {
            self.status.round_trip(Concern::Presence.name(), round_trip);
        }
    }

    /// Writes this gateway's line into the registry, when it is due.
    fn register(&mut self, now_ms: u64) {
        let lag = Lag {
            rooms: self.rooms.len(),
            rooms_behind: self.rooms.behind(),
            pushes_waiting: self.publishing.len(),
        };
        let Some(beat) = self.registration.next(now_ms, lag) else { return };
        let connection = self.links.get(Concern::Presence).connection();
        let epoch = connection.as_ref().map_or(NO_EPOCH, |(_, epoch)| *epoch);
        let connection = connection.map(|(connection, _)| connection);
        self.requests.spawn(async move {
            Completion::Registered(Box::new((epoch, beat.carry_out(connection).await)))
        });
    }

    fn on_room_completion(&mut self, epoch: u64, completion: RoomCompletion) {
        let now_ms = self.now_ms();
        match completion {
            RoomCompletion::Opened(open, answer) => {
                let answer = self.checked(epoch, answer).ok();
                let opened = answer.and_then(|answer| contract::opened(&answer));
                let Open { room, number, .. } = open;
                match opened {
                    Some(opened) => self.rooms.on_opened(&room, number, opened, now_ms),
                    None => self.rooms.on_open_failed(&room, number, now_ms),
                }
            }
            RoomCompletion::Published { room, number, answer } => {
                let answer = self.checked(epoch, answer);
                let is_final = matches!(answer, Err(Fault::Refused));
                match answer.ok().and_then(|answer| contract::published(&answer)) {
                    Some(published) => self.publishing.on_published(&room, number, &published),
                    None => self.publishing.on_failed(&room, number, is_final, now_ms),
                }
            }
            RoomCompletion::Counted { room, members } => {
                if self.members.on_counted(&room, members.unwrap_or(0), now_ms) {
                    self.tell_count(room, members.unwrap_or(0));
                }
            }
            RoomCompletion::Barred(mut permit, answer) => {
                let outcome = self.checked(epoch, answer);
                if let Some(permit) = permit.0.take()
                    && outcome.is_err()
                {
                    permit.refuse(PushError::Unreachable);
                }
            }
            RoomCompletion::CountTold { room, answer } => {
                if self.checked(epoch, answer).is_err() {
                    self.members.on_failed(&room);
                }
            }
            RoomCompletion::Subscribed { room, is_on, outcome } => {
                let outcome = self.checked(epoch, outcome);
                if is_on && outcome.is_err() && self.links.get(Concern::Pushes).is_current(epoch) {
                    self.rooms.on_unsubscribed(&room, now_ms);
                }
            }
        }
    }

    /// An answer, or what is known of the command: then the fault is counted, and it is mended where it can be.
    /// A fault of an earlier connection says nothing of the present one.
    fn checked<T>(&mut self, epoch: u64, answer: Result<T, RedisError>) -> Result<T, Fault> {
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        self.exporter.errors += 1;
        tracing::debug!(%error, "Redis did not carry out a command");
        let concern = Concern::of(epoch);
        let link = self.links.get_mut(concern);
        if !link.is_current(epoch) {
            return Err(fault(&error));
        }
        if lacks_library(&error) {
            if let Some(mut connection) = link.start_loading_library() {
                self.requests.spawn(async move {
                    Completion::LibraryLoaded(epoch, connection.load_library().await)
                });
            }
        } else if link.is_up_to_one()
            && (error.is_io_error() || error.is_timeout() || is_read_only(&error))
        {
            self.lose(concern, &error);
        }
        Err(fault(&error))
    }

    fn on_connected(&mut self, epoch: u64, outcome: Result<Connection, LinkError>) {
        let concern = Concern::of(epoch);
        let link = self.links.get_mut(concern);
        if !link.is_current(epoch) {
            return;
        }
        match &outcome {
            Ok(_) => self.status.up(concern.name()),
            Err(error) => self.status.down(concern.name(), error),
        }
        if !link.on_connected(outcome, Instant::now()) {
            return;
        }
        self.exporter.connects += 1;
        match concern {
            Concern::Pushes => {
                self.rooms.on_up();
                self.members.on_up();
            }
            Concern::Presence => self.users.on_up(),
            Concern::Tokens => self.tokens.on_up(),
        }
    }

    /// The connection can't be used any more.
    fn lose(&mut self, concern: Concern, reason: &dyn std::fmt::Display) {
        if !self.links.get_mut(concern).lose(reason, Instant::now()) {
            return;
        }
        self.status.down(concern.name(), reason);
        match concern {
            Concern::Pushes => self.rooms.on_down(),
            Concern::Presence => self.users.on_down(),
            Concern::Tokens => self.tokens.on_down(self.now_ms()),
        }
    }

    fn tick(&mut self) {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        for concern in Concern::ALL {
            let link = self.links.get_mut(concern);
            match link.due(now) {
                Some(Due::Connect(target, epoch)) => {
                    let arrivals = self.arrivals.clone();
                    self.requests.spawn(async move {
                        let outcome = link::connect(target, epoch, arrivals).await;
                        Completion::Connected(epoch, outcome)
                    });
                }
                Some(Due::Ping(mut connection, epoch)) => {
                    self.requests.spawn(async move {
                        let sent = Instant::now();
                        let outcome = connection.ping().await;
                        Completion::Pinged(epoch, outcome.map(|()| sent.elapsed()))
                    });
                }
                None => {}
            }
        }
        self.rooms.tick(now_ms);
        for room in self.members.next_in_turn(now_ms) {
            self.count(room);
        }
        self.publishing.tick(self.links.get(Concern::Pushes).is_up(), now_ms);
        self.users.tick(self.now_us());
        self.register(now_ms);
        self.tokens.tick(now_ms);
        let is_up = Concern::ALL.map(|concern| self.links.get(concern).is_up());
        self.exporter.export(is_up, &self.rooms, &self.publishing, &self.users, &self.tokens);
    }

    /// Does what the parts ask for.
    fn carry_out(&mut self) {
        self.carry_out_rooms();
        self.carry_out_publishing();
        self.carry_out_users();
        self.carry_out_tokens();
    }

    fn carry_out_rooms(&mut self) {
        while let Some(output) = self.rooms.next_output() {
            match output {
                Output::Post(shard, message) => {
                    if let RoomMessage::Fetched { room, .. } = &message {
                        self.members.count(room);
                    }
                    if let Some(address) = self.shards.get(usize::from(shard)) {
                        address.post(message);
                    }
                }
                Output::Subscribe(room) => self.subscribe(room, true),
                Output::Unsubscribe(room) => self.subscribe(room, false),
                Output::Open(open) => {
                    let policy = self.rooms_config.policy_of(open.room.as_str());
                    let cmd = contract::open(&open.room, open.after, &policy);
                    self.call(cmd, move |answer| RoomCompletion::Opened(open, answer));
                }
            }
        }
        let now_ms = self.now_ms();
        while let Some(room) = self.members.next_now(now_ms) {
            self.count(room);
        }
    }

    fn carry_out_publishing(&mut self) {
        let now_ms = self.now_ms();
        if !self.links.get(Concern::Pushes).is_up() {
            return;
        }
        while let Some(room) = self.members.next_ended() {
            self.tell_count(room, 0);
        }
        loop {
            let Self { publishing, rooms, members, .. } = self;
            // A push that a backend gave after a join has to count the member.
            let must_wait = |room: &RoomId| rooms.must_wait(room) || members.is_unknown(room);
            let Some(request) = publishing.next_request(must_wait, now_ms) else { return };
            let (room, number) = (request.room, request.number);
            self.call(request.cmd, move |answer| RoomCompletion::Published {
                room,
                number,
                answer,
            });
        }
    }

    fn carry_out_users(&mut self) {
        let now_us = self.now_us();
        while let Some(output) = self.users.next_output(now_us) {
            match output {
                users::Output::Post(shard, message) => {
                    if let Some(address) = self.shards.get(usize::from(shard)) {
                        address.post(message);
                    }
                }
                users::Output::Call(tag, cmd) => self.call_users(tag, cmd),
                users::Output::Subscribe(partition, channel) => {
                    let link = self.links.get(Concern::Presence);
                    let Some((mut connection, epoch)) = link.connection() else { continue };
                    self.exporter.commands += 1;
                    self.requests.spawn(async move {
                        let outcome = connection.subscribe(&channel, true).await;
                        Completion::UsersSubscribed { partition, epoch, outcome }
                    });
                }
            }
        }
    }

    fn carry_out_tokens(&mut self) {
        let now_ms = self.now_ms();
        while let Some(output) = self.tokens.next_output() {
            match output {
                tokens::Output::Post(shard, message) => {
                    if let Some(address) = self.shards.get(usize::from(shard)) {
                        address.post(message);
                    }
                }
                tokens::Output::Revoke(user_id, token) => {
                    let message = || TokenMessage::Revoke { user_id, token };
                    self.shards.iter().for_each(|address| address.post(message()));
                }
                tokens::Output::Subscribe(partition) => {
                    let link = self.links.get(Concern::Tokens);
                    let Some((mut connection, epoch)) = link.connection() else { continue };
                    self.exporter.commands += 1;
                    self.requests.spawn(async move {
                        let channel = token_contract::tokens_key(partition);
                        let outcome = connection.subscribe(&channel, true).await;
                        Completion::TokensSubscribed { partition, epoch, outcome }
                    });
                }
            }
        }
        let Some((connection, epoch)) = self.links.get(Concern::Tokens).connection() else {
            return;
        };
        while let Some(request) = self.tokens.next_request(now_ms) {
            let tokens::Request { partition, number, cmd } = request;
            self.exporter.commands += 1;
            let mut connection = connection.clone();
            self.requests.spawn(async move {
                let answer = connection.call(&cmd).await;
                Completion::LookedUp { partition, number, epoch, answer }
            });
        }
    }

    fn call_users(&mut self, tag: Tag, cmd: Cmd) {
        // It asks for commands only while there is a connection.
        let Some((mut connection, epoch)) = self.links.get(Concern::Presence).connection() else {
            return;
        };
        self.exporter.commands += 1;
        let started = self.started;
        let micros = move || {
            let since = Instant::now().saturating_duration_since(started);
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        };
        self.requests.spawn(async move {
            let sent_us = micros();
            let answer = connection.call(&cmd).await;
            let times = Times { sent_us, received_us: micros() };
            Completion::Users { tag, epoch, answer, times }
        });
    }

    /// Has a room's home count its members.
    fn count(&mut self, room: RoomId) {
        let home = self.rooms.home(&room).and_then(|home| self.shards.get(usize::from(home)));
        let Some(home) = home else { return };
        let (reply, answer) = oneshot::channel();
        home.post(RoomMessage::Inspect { room: room.clone(), reply });
        self.requests.spawn(async move {
            let members = answer.await.ok().flatten().map(|info| info.members);
            Completion::Room(NO_EPOCH, RoomCompletion::Counted { room, members })
        });
    }

    fn tell_count(&mut self, room: RoomId, members: u64) {
        let cmd = contract::count(&room, &self.gateway, members, members::VALID_MS);
        self.call(cmd, move |answer| RoomCompletion::CountTold { room, answer });
    }

    fn call(
        &mut self,
        cmd: Cmd,
        completion: impl FnOnce(Result<Value, RedisError>) -> RoomCompletion + Send + 'static,
    ) {
        self.exporter.commands += 1;
        if let Some((mut connection, epoch)) = self.links.get(Concern::Pushes).connection() {
            self.requests.spawn(async move {
                Completion::Room(epoch, completion(connection.call(&cmd).await))
            });
        } else {
            let away = io::Error::new(io::ErrorKind::NotConnected, "no connection to Redis");
            self.requests
                .spawn(async move { Completion::Room(NO_EPOCH, completion(Err(away.into()))) });
        }
    }

    fn subscribe(&mut self, room: RoomId, is_on: bool) {
        let Some((mut connection, epoch)) = self.links.get(Concern::Pushes).connection() else {
            return;
        };
        self.exporter.commands += 1;
        self.requests.spawn(async move {
            let outcome = connection.subscribe(&contract::room_key(&room), is_on).await;
            Completion::Room(epoch, RoomCompletion::Subscribed { room, is_on, outcome })
        });
    }
}

/// Whether the server has not got the function library: a new master, or one that was emptied.
fn lacks_library(error: &RedisError) -> bool {
    error.to_string().contains("Function not found")
}

/// Whether the server became a replica.
fn is_read_only(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "LOADING" | "UNBLOCKED"))
}

/// What an error tells of its command.
fn fault(error: &RedisError) -> Fault {
    match error.code() {
        // The library refuses the call, and would refuse it again.
        Some(code) if code.starts_with("TIDEGATE_") => Fault::Refused,
        // The server has answered: it carries out a command as a whole or not at all.
        Some(_) => Fault::NotDone,
        None => Fault::Unknown,
    }
}
