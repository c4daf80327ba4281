//! A shard: one thread's connections, users, rooms, calls and timers.
//!
//! A shard is sans-IO. A driver hands it facts, other threads leave messages in its mailbox, and it
//! answers with intents. Nothing of it is shared. One turn is one round of its loop:
//!
//! ```text
//! facts in      driver.poll          bytes, ends, completions        facts, inbound, outbound
//! messages in   drain_mailbox        answers, pushes, registrations  calls, sessions, fan_out
//! time in       expire               silence, timeouts, windows      housekeeping, closing, calls, windows
//! calls out     router.flush         one batch for each worker; what they answer at once comes in
//! bytes out     fan_out, flush       one send for each connection    fan_out, outbound
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`mailbox`], [`receipt`] | the way in from other threads, and its bound |
//! | `facts`, `accepting` | what a driver tells; whether it is to let more in |
//! | `inbound` | bytes -> frames -> what they ask |
//! | `sessions`, [`users`] | authentication, the user directory, kicks |
//! | `calls`, [`durations`] | requests to backends, and their answers; how long they took |
//! | `fan_out`, `membership`, [`rooms`], [`log`] | rooms: publish and serve; join, leave, open, close; the books |
//! | [`windows`] | what a room holds back, to send it with what comes soon after |
//! | `outbound` | what is written, and the one send of a turn |
//! | `closing` | how connections, and the shard, end |
//! | `housekeeping`, [`timers`], [`stats`] | what is due; deadlines, figures |

mod accepting;
mod calls;
pub mod closing;
pub mod durations;
mod facts;
mod fan_out;
mod housekeeping;
mod inbound;
pub mod log;
pub mod mailbox;
mod membership;
mod outbound;
pub mod receipt;
pub mod rooms;
mod sessions;
pub mod stats;
pub mod timers;
pub mod users;
pub mod windows;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use bytes::BytesMut;
use hashbrown::HashMap;
use tidegate_backend::Gateway;
use tidegate_backend::handler::AnswerPort;
use tidegate_backend::log_limit::LogLimit;

use crate::allocator::{Burst, Heap};
use crate::auth::Verifier;
use crate::config::Config;
use crate::connection::outbox::Outboxes;
use crate::connection::rate::{Rate, RateLimiters};
use crate::connection::{Connection, Phase};
use crate::control::ShardInfo;
use crate::driver::{ConnId, Driver, Mechanism};
use crate::router::{Backend, Router};
use crate::session_id::{Place, SessionIds};
use accepting::Accepting;
use calls::Port;
use closing::Draining;
use durations::{CallDurations, Durations};
use fan_out::FanOut;
use mailbox::{Address, Message};
use membership::Keeping;
use receipt::Gate;
use rooms::Rooms;
use stats::{Exporter, Levels, Stats};
use timers::Timers;
use users::Users;
use windows::Windows;

/// Messages that one turn takes from the mailbox at most, so that a flood of them doesn't keep the
/// shard from its sockets.
const MESSAGES_MAX: usize = 4096;

/// Connections that are written to before they are flushed, within a turn: as many buffers stay in the
/// cache, and answers that came together mostly leave together.
const TOUCHED_MAX: usize = 128;

/// What all shards of a gateway share: none of it changes while they run.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// Checks tokens.
    pub verifier: Verifier,
    /// Every shard's mailbox, by its number.
    pub addresses: Vec<Address>,
    /// The bound on commands under way.
    pub gate: Arc<Gate>,
    /// Names sessions.
    pub session_ids: SessionIds,
    /// The first offset of everybody's room, and the lowest of any other: microseconds since the
    /// Unix epoch when the gateway started, so that a restart begins above what the last run gave.
    pub first_offset: u64,
    /// When the shards' clocks started.
    pub started: Instant,
    /// The backends that routes lead to.
    pub backends: Vec<Backend>,
    /// Open connections, all shards together.
    pub connections: AtomicU64,
    /// How long calls took, all shards together.
    pub call_durations: Arc<CallDurations>,
    /// Whose free memory is given back.
    pub heap: Heap,
}

/// The limit on the log lines of each cause that clients have a hand in.
#[derive(Debug, Default)]
struct LogLimits {
    accept_pause: LogLimit,
    handler_panic: LogLimit,
    oversize_answer: LogLimit,
}

/// One shard. See the [module](self).
pub struct Shard {
    id: u16,
    shared: Arc<Shared>,
    /// What handlers on this thread see.
    gateway: Gateway,
    /// Where answers come to.
    port: Arc<Port>,
    answer_port: Arc<dyn AnswerPort>,
    /// Messages from this shard to itself.
    local: VecDeque<Message>,

    connections: Vec<Connection>,
    /// How fast each may ask, where that is limited.
    rates: Option<RateLimiters>,
    /// The spans of their log lines by slot, while the log shows them: empty otherwise.
    spans: HashMap<u32, tracing::Span>,
    connection_count: usize,
    session_count: usize,
    outboxes: Outboxes,
    /// Bytes of all sends under way.
    in_flight_bytes: usize,
    users: Users,
    rooms: Rooms,
    keeping: Keeping,
    fan_out: FanOut,
    windows: Windows,
    timers: Timers,
    router: Router,
    /// Requests' `biz_data` is copied here: one allocation serves many requests.
    arena: BytesMut,
    /// Answers that handlers gave on this thread are being taken.
    taking_answers: bool,

    /// Slots of connections to flush at the end of the turn.
    touched: Vec<u32>,
    /// Slots of held connections that have been sent something: they may be read on from.
    unsent_less: Vec<u32>,
    /// Slots whose deadline has passed; kept for its memory.
    expired: Vec<u32>,
    /// More deadlines have passed than one turn looks at.
    deadlines_left: bool,
    /// Whether the driver should accept.
    accepting: Accepting,
    draining: Option<Draining>,
    finished: bool,

    /// Milliseconds since `shared.started`, when the driver last waited.
    now_ms: u64,
    /// The same in microseconds: when what the driver hands over was received.
    received_us: u64,
    /// When answers were last looked for, in microseconds since `shared.started`.
    answered_us: u64,
    housekeeping_at_ms: u64,
    /// Of long requests, and of long sends.
    burst: Burst,
    /// Until then nobody is closed for silence: the shard was away, and what came meanwhile may not be
    /// read yet.
    grace_until_ms: u64,
    /// When workers were last given calls.
    handed_over_at_ms: u64,
    log_limits: LogLimits,
    /// It was said that accepting is paused, and the end of it was not.
    warned_of_pause: bool,
    stats: Stats,
    durations: Vec<Durations>,
    exporter: Exporter,
}

impl Shard {
    /// Shard number `id` of a gateway.
    #[must_use]
    pub fn new(id: u16, shared: Arc<Shared>, gateway: Gateway) -> Self {
        let config = &shared.config;
        let router = Router::new(&config.routes, &shared.backends, config.shards);
        let rate = config
            .limits
            .requests_per_second
            .map(|per_second| Rate::new(per_second, config.limits.requests_burst));
        let rates = rate.map(RateLimiters::new);
        let backends = shared.backends.len();
        let port = Arc::new(Port::new(shared.addresses[usize::from(id)].clone()));
        let mut shard = Self {
            id,
            gateway,
            answer_port: Arc::clone(&port) as Arc<dyn AnswerPort>,
            port,
            local: VecDeque::new(),
            connections: Vec::new(),
            rates,
            spans: HashMap::new(),
            connection_count: 0,
            session_count: 0,
            outboxes: Outboxes::default(),
            in_flight_bytes: 0,
            users: Users::default(),
            rooms: Rooms::default(),
            keeping: Keeping::new(shared.first_offset),
            fan_out: FanOut::default(),
            windows: Windows::default(),
            timers: Timers::new(),
            router,
            arena: BytesMut::new(),
            taking_answers: false,
            touched: Vec::new(),
            unsent_less: Vec::new(),
            expired: Vec::new(),
            deadlines_left: false,
            accepting: Accepting::Yes,
            draining: None,
            finished: false,
            now_ms: 0,
            received_us: 0,
            answered_us: 0,
            housekeeping_at_ms: 0,
            burst: Burst::default(),
            grace_until_ms: 0,
            handed_over_at_ms: 0,
            log_limits: LogLimits::default(),
            warned_of_pause: false,
            stats: Stats::default(),
            durations: vec![Durations::default(); backends],
            exporter: Exporter::new(id),
            shared,
        };
        shard.open_everybody();
        shard
    }

    /// Turns until the shard is told to end, and has.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn run(&mut self, driver: &mut impl Driver) -> io::Result<()> {
        while !self.finished {
            self.turn(driver)?;
        }
        self.export();
        Ok(())
    }

    /// One turn. See the [module](self).
    ///
    /// # Errors
    /// When the driver fails.
    pub fn turn(&mut self, driver: &mut impl Driver) -> io::Result<()> {
        let local = self.port.enter();
        driver.poll(self)?;
        self.read_on_from_sent();
        self.drain_mailbox(driver);
        self.expire();
        self.drain_step(driver);
        if self.router.flush() {
            self.handed_over_at_ms = self.now_ms;
            // The workers may share this core: who lets them go first gets their answers without being
            // woken for them.
            std::thread::yield_now();
            self.drain_mailbox(driver);
            // Whoever was held for an answer may have asked more.
            self.router.flush();
        }
        self.fan_out_slice(driver);
        self.flush(driver);
        self.trim_logs();
        // What has ended there may have been reported to who answers a call now.
        self.take_answers();
        self.accept_more(driver);
        self.stats.turns += 1;
        drop(local);
        Ok(())
    }

    /// Whether the shard has ended.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    /// What has happened.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What stands now.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Levels {
            connections: self.connection_count,
            sessions: self.session_count,
            users: self.users.len(),
            rooms: self.rooms.len(),
            memberships: self.rooms.membership_count(),
            calls_in_flight: self.router.pending.len(),
            outbox_bytes: self.outboxes.bytes() + self.in_flight_bytes,
        }
    }

    fn info(&self, mechanism: Mechanism) -> ShardInfo {
        let levels = self.levels();
        ShardInfo {
            shard: self.id,
            driver: mechanism.name,
            rings: mechanism.rings as u64,
            connections: levels.connections as u64,
            sessions: levels.sessions as u64,
            users: levels.users as u64,
            rooms: levels.rooms as u64,
            memberships: levels.memberships as u64,
            calls_in_flight: levels.calls_in_flight as u64,
            outbox_bytes: levels.outbox_bytes as u64,
        }
    }

    fn drain_mailbox(&mut self, driver: &mut impl Driver) {
        let mailbox = Arc::clone(self.shared.addresses[usize::from(self.id)].mailbox());
        let mut is_clock_read = false;
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.local.pop_front().or_else(|| mailbox.pop()) else { break };
            // Once for all answers of a turn: a look at the clock for each would cost as much as taking it.
            if matches!(message, Message::Answer(_)) && !mem::replace(&mut is_clock_read, true) {
                self.answered_us = self.micros(driver.now());
            }
            self.handle(message, driver.mechanism());
            if self.touched.len() >= TOUCHED_MAX {
                self.flush(driver);
            }
        }
        // Calls that were dropped on this thread have answered themselves.
        self.take_answers();
    }

    fn handle(&mut self, message: Message, mechanism: Mechanism) {
        match message {
            Message::Answer(answer) => self.on_answer(answer),
            Message::Register { user_id, place, sequence } => {
                self.on_register(user_id, place, sequence);
            }
            Message::Registered { conn, sequence } => self.on_registered(conn, sequence),
            Message::Deregister { user_id, place } => self.users.deregister(user_id, place),
            Message::Evict { conn, code, receipt: _ } => self.on_evict(conn, code),
            Message::Kick { user_id, receipt } => self.on_kick(user_id, &receipt),
            Message::PushUser { user_id, frame, receipt } => {
                self.on_push_user(user_id, &frame, &receipt);
            }
            Message::Deliver { conn, frame, receipt } => self.on_deliver(conn, &frame, &receipt),
            Message::Publish { room, kind, biz_data, receipt } => {
                self.on_publish(&room, kind, &biz_data, &receipt);
            }
            Message::Append { room, offset, frame, urgency, receipt } => {
                self.on_append(&room, offset, frame, urgency, &receipt);
            }
            Message::Join { room, place, after_offset, receipt } => {
                self.on_join(room, place, after_offset, receipt);
            }
            Message::Joined { room, conn, after_offset, log, receipt } => {
                self.on_joined(room, conn, after_offset, log, &receipt);
            }
            Message::Leave { room, place, receipt } => self.on_leave(room, place, receipt),
            Message::Left { room, conn, receipt } => self.on_left(&room, conn, &receipt),
            Message::Unsubscribe { room, shard, joins } => self.on_unsubscribe(room, shard, joins),
            Message::Unsubscribed { room } => self.on_unsubscribed(&room),
            Message::AskUser { user_id, reply } => drop(reply.send(self.user_info(user_id))),
            Message::AskRoom { room, reply } => self.on_ask_room(&room, reply),
            Message::CountMembers { room, gather } => self.on_count_members(&room, &gather),
            Message::AskShard { reply } => drop(reply.send(self.info(mechanism))),
            Message::Drain => self.start_draining(),
            Message::Stop => self.finished = true,
        }
    }

    /// Posts to a shard, which may be this one.
    fn post(&mut self, shard: u16, message: Message) {
        if shard == self.id {
            self.local.push_back(message);
        } else if let Some(address) = self.shared.addresses.get(usize::from(shard)) {
            address.post(message);
        }
    }

    /// The connection of this name, if it is still here.
    #[inline]
    fn connection(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(conn.slot as usize)?;
        let here = connection.generation == conn.generation && connection.phase != Phase::Vacant;
        here.then_some(connection)
    }

    #[inline]
    fn at(&mut self, slot: u32) -> &mut Connection {
        &mut self.connections[slot as usize]
    }

    /// Runs `log` within the connection's span, where the log shows it.
    fn log(&self, slot: u32, log: impl FnOnce()) {
        if let Some(span) = self.spans.get(&slot) {
            span.in_scope(log);
        }
    }

    #[inline]
    fn conn_id(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self.connections[slot as usize].generation }
    }

    #[inline]
    fn place(&self, slot: u32) -> Place {
        Place::new(self.id, self.conn_id(slot))
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.shared.addresses[usize::from(self.id)].mailbox().close();
        self.local.drain(..).for_each(Message::refuse);
        self.refuse_unfinished();
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("levels", &self.levels()).finish()
    }
}
