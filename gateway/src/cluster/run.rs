//! The thread's loop: facts in, requests and messages out.
//!
//! Here is what all concerns share: the loop, the links, and faults. What each concern's facts mean, and how that which its
//! parts ask for is carried out, is in a file for each.

mod bans;
mod rooms;
mod tokens;
mod users;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use redis::{PushKind, RedisError, Value};
use tidegate_backend::RoomId;
use tidegate_backend::log_limit::LogLimit;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{self, MissedTickBehavior};

use super::bans::SharedBans;
use super::link::{self, Arrival, Connection};
use super::link_error::LinkError;
use super::links::{Concern, Due, Links};
use super::members::Members;
use super::message::ToCluster;
use super::metrics::{self, Exporter};
use super::publishing::{Publishing, Push};
use super::registry::{self, Census, Exchanged, Lag, Line, Peer, Registration};
use super::rooms::{PATIENCE_MS, Rooms};
use super::status::Status;
use super::token_contract;
use super::tokens::Tokens;
use super::users::{Fault, Tag, Times, Users};
use super::{ClusterAddress, Inbox};
use crate::clock::WallClock;
use crate::config::{AuthMode, Config, RedisConfig, RoomsConfig};
use crate::control::Control;
use crate::limits::addresses::AddressLimits;
use crate::shard::command::{CommandLimiter, RoomPush};
use crate::shard::mailbox::Address;
use crate::shard::rooms as shard_rooms;
use crate::telemetry::panics::text_of;
use rooms::RoomCompletion;

/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// Messages of shards that are taken at once, at most.
const MESSAGES_MAX: usize = 1024;

/// How long the end of the thread waits until Redis knows that this gateway has no users left.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// The epoch of no connection.
const NO_EPOCH: u64 = u64::MAX;

/// The thread that speaks with Redis.
#[derive(Debug)]
pub struct ClusterThread {
    thread: JoinHandle<()>,
    address: ClusterAddress,
    /// Disconnected once everybody's room is the shared one, or the thread has ended.
    everybody: Receiver<()>,
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
    /// The HTTP gateway's mailbox. Its connections have the number that follows those of the shards.
    pub http: Option<Address>,
    /// The limits by address, whose bans may be shared.
    pub address_limits: Arc<AddressLimits>,
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
        let (waits, everybody) = channel::bounded(0);
        let run = move || {
            let run = || runtime.block_on(Runner::new(surroundings, waits).run(inbox));
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(run)) {
                on_panic(format!("it panicked: {}", text_of(&*payload)));
            }
        };
        let thread = thread::Builder::new().name("cluster".into()).spawn(run)?;
        Ok(Self { thread, address, everybody })
    }

    /// Waits until everybody's room is the shared one, so that the first clients learn their position in it. As for any
    /// room, the wait is bounded: without Redis the gateway serves its clients with a log of its own.
    pub fn wait_for_everybody(&self, interrupted: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_millis(PATIENCE_MS);
        while !interrupted() && Instant::now() < until {
            let wait = TICK.min(until.saturating_duration_since(Instant::now()));
            if self.everybody.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
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
    Bans {
        number: u64,
        epoch: u64,
        answer: Result<Value, RedisError>,
    },
    /// How long the answer took.
    Pinged(u64, Result<Duration, RedisError>),
    LibraryLoaded(u64, Result<(), RedisError>),
    Registered(Box<(u64, Exchanged)>),
}

struct Runner {
    rooms_config: RoomsConfig,
    shards: Vec<Address>,
    http: Option<Address>,
    rooms: Rooms,
    members: Members,
    publishing: Publishing,
    /// Names this gateway's run among all.
    gateway: String,
    users: Users,
    tokens: Tokens,
    bans: SharedBans,
    links: Links,
    arrivals: mpsc::UnboundedSender<Arrival>,
    arrived: mpsc::UnboundedReceiver<Arrival>,
    requests: JoinSet<Completion>,
    registration: Registration,
    status: Status,
    started: Instant,
    exporter: Exporter,
    panics_logged: LogLimit,
    other_keys_logged: LogLimit,
    /// Dropped once everybody's room is the shared one.
    everybody: Option<Sender<()>>,
    /// The thread ends at this time at the latest.
    stop_at: Option<Instant>,
}

impl Runner {
    fn new(surroundings: Surroundings, everybody: Sender<()>) -> Self {
        let Surroundings {
            redis,
            config,
            started,
            wall_clock,
            shards,
            http,
            address_limits,
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
        let mut rooms = Rooms::new(Arc::clone(&limiter), writer.clone());
        // From the start, since each client is a member.
        let everybody_id = RoomId::everybody();
        let is_fleeting = config.rooms.policy_of(everybody_id.as_str()).is_fleeting();
        rooms.follow(&everybody_id, shard_rooms::home(&everybody_id, shard_count), is_fleeting, 0);
        Self {
            rooms,
            publishing: Publishing::new(writer.clone(), wait_max_ms),
            members: Members::default(),
            registration: Registration::new(writer.clone(), line, census),
            status,
            bans: SharedBans::new(address_limits, writer.clone()),
            gateway: writer,
            users: Users::new(&config, limiter, grace_ms, wait_max_us, wall_ahead_us, seed),
            tokens: Tokens::new(shard_count, recheck_ms),
            links: Links::new(&redis, has_tokens, Instant::now()),
            rooms_config: config.rooms,
            shards,
            http,
            arrivals,
            arrived,
            requests: JoinSet::new(),
            started,
            exporter: Exporter::default(),
            panics_logged: LogLimit::new(),
            other_keys_logged: LogLimit::new(),
            everybody: Some(everybody),
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

    /// Whether the thread ends now. The shards have ended when it is stopped, so no user is connected. Redis should know that:
    /// otherwise the users count as online until another gateway has swept. And other gateways should know of all bans.
    fn has_ended(&self) -> bool {
        let is_settled = || self.users.is_settled() && self.bans.is_settled();
        self.stop_at.is_some_and(|stop_at| is_settled() || stop_at <= Instant::now())
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
            ToCluster::Publish(RoomPush { room, kind, biz_data, options, permit }) => {
                let push = Push { kind, biz_data, options, permit };
                self.publishing.push(&room, push, now_ms);
            }
            ToCluster::Bar { room, user_id, until_s, permit } => {
                self.bar(&room, user_id, until_s, permit);
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
            ToCluster::Reload { rooms, ticket_key } => {
                self.rooms_config = *rooms;
                self.registration.set_ticket_key(ticket_key);
            }
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

    fn on_joined(&mut self, completion: Result<Completion, JoinError>) {
        match completion {
            Ok(completion) => self.on_completion(completion),
            Err(error) => {
                if let Some(suppressed) = self.panics_logged.allow() {
                    tracing::error!(suppressed, %error, "a request to Redis panicked");
                }
            }
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
            Completion::Bans { number, epoch, answer } => {
                self.on_bans_answer(number, epoch, answer);
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
        let peers = peers.and_then(|answer| self.checked(epoch, answer).ok());
        if let Some(peers) = peers {
            self.warn_of_other_keys(&line, &peers);
            let alive = peers.iter().filter(|peer| peer.is_alive()).count();
            metrics::export_registry(alive, peers.len() - alive, self.requests.len());
            self.status.set_peers(peers);
        }
        self.status.set_own(line);
        if let Some(round_trip) = round_trip {
            self.status.round_trip(Concern::Presence.name(), round_trip);
        }
    }

    /// A client that comes to a gateway with another key is in none of its rooms until it joins them again.
    fn warn_of_other_keys(&self, own: &Line, peers: &[Peer]) {
        let other = |peer: &&Peer| peer.is_alive() && peer.line.has_other_ticket_key(own);
        let Some(Peer { id, line, .. }) = peers.iter().find(other) else { return };
        if let Some(suppressed) = self.other_keys_logged.allow() {
            tracing::warn!(
                suppressed,
                gateway = id,
                host = line.host,
                listen = line.listen,
                "another gateway makes tickets with another key, so clients that change between the two lose their rooms: give \
                both the same rooms.ticket_key_file"
            );
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
            Concern::Presence => {
                self.users.on_up();
                self.bans.on_up();
            }
            Concern::Tokens => self.tokens.on_up(self.now_ms()),
        }
    }

    /// The connection is no longer usable.
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
        if self.everybody.is_some() && self.rooms.is_live(&RoomId::everybody()) {
            self.everybody = None;
        }
        self.carry_out_publishing();
        self.carry_out_users();
        self.carry_out_tokens();
        self.carry_out_bans();
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

/// What an error shows about its command.
fn fault(error: &RedisError) -> Fault {
    match error.code() {
        // The library refuses the call, and would refuse it again.
        Some(code) if code.starts_with("TIDEGATE_") => Fault::Refused,
        // The server has answered: it carries out a command as a whole or not at all.
        Some(_) => Fault::NotDone,
        None => Fault::Unknown,
    }
}
