//! A shard: one thread's connections, users, rooms, calls and timers.
//!
//! A shard is sans-IO. A driver hands it facts, other threads leave messages in its mailbox, and it
//! answers with intents. Nothing of it is shared. One turn is one round of its loop:
//!
//! ```text
//! facts in      driver.poll          bytes, ends, completions        inbound, outbound
//! messages in   drain_mailbox        answers, pushes, registrations  calls, sessions, fan_out
//! time in       expire               silence, timeouts, windows      closing, calls, windows
//! calls out     router.flush         one batch for each worker; what they answer at once comes in
//! bytes out     fan_out, flush       one send for each connection    fan_out, outbound
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | [`mailbox`], [`receipt`] | the way in from other threads, and its bound |
//! | `inbound` | bytes -> frames -> what they ask |
//! | `sessions`, [`users`] | authentication, the user directory, kicks |
//! | `calls` | requests to backends, and their answers |
//! | `fan_out`, `membership`, [`rooms`], [`log`] | rooms: publish and serve; join, leave, open, close; the books |
//! | [`windows`] | what a room holds back, to send it with what comes soon after |
//! | `outbound` | what is written, and the one send of a turn |
//! | `closing` | how connections, and the shard, end |
//! | [`timers`], [`stats`] | deadlines, figures |

mod calls;
pub mod closing;
mod fan_out;
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use tidegate_backend::Gateway;
use tidegate_backend::handler::AnswerPort;

use crate::allocator::{Burst, Heap, Turn};
use crate::auth::Verifier;
use crate::config::Config;
use crate::connection::outbox::Outboxes;
use crate::connection::rate::{Rate, RateLimiters};
use crate::connection::{Connection, Phase};
use crate::control::ShardInfo;
use crate::driver::{ConnId, Driver, Event, Mechanism, Sink};
use crate::router::{Backend, Router};
use crate::session_id::{Place, SessionIds};
use calls::Port;
use closing::{Draining, millis};
use fan_out::FanOut;
use mailbox::{Address, Message};
use membership::Keeping;
use receipt::Gate;
use rooms::Rooms;
use stats::{Durations, Exporter, Levels, Stats};
use timers::Timers;
use users::Users;
use windows::Windows;

/// Messages that one turn takes from the mailbox at most, so that a flood of them doesn't keep the
/// shard from its sockets.
const MESSAGES_MAX: usize = 4096;

/// Connections that are written to before they are flushed, within a turn: as many buffers stay in the
/// cache, and answers that came together mostly leave together.
const TOUCHED_MAX: usize = 128;

/// Deadlines of connections, and of calls, that one turn looks at: a crowd that falls silent at once is parted
/// with by and by.
const DEADLINES_MAX: usize = 1024;

/// How often figures are exported, idle rooms looked for and memory given back, in milliseconds.
const HOUSEKEEPING_MS: u64 = 250;

/// Time that the shard did not look at its sockets, in milliseconds, after which it trusts no
/// connection's silence: it never waits for longer than [`HOUSEKEEPING_MS`] by itself.
const AWAY_MS: u64 = 1_000;

/// How soon after workers were given calls the shard looks for their answers unasked, in milliseconds:
/// a wake-up that waits for a batch's end may wait for a slow call of it.
const LOOK_FOR_ANSWERS_MS: u64 = 16;

/// How often it is said that accepting is paused, in milliseconds.
const WARN_AGAIN_MS: u64 = 60_000;

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
    /// Whose free memory is given back.
    pub heap: Heap,
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

    /// Milliseconds since `shared.started`.
    now_ms: u64,
    housekeeping_at_ms: u64,
    /// Of long requests, and of long sends.
    burst: Burst,
    /// Until then nobody is closed for silence: the shard was away, and what came meanwhile may not be
    /// read yet.
    grace_until_ms: u64,
    /// When workers were last given calls.
    handed_over_at_ms: u64,
    /// When it may be said again that accepting is paused.
    warn_of_pause_at_ms: u64,
    /// It was said, and the end of it was not.
    warned_of_pause: bool,
    stats: Stats,
    durations: Vec<Durations>,
    exporter: Exporter,
}

/// Whether the driver accepts, and whether it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// There are as many connections as there may be.
    Full,
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
        let names: Vec<_> = shared.backends.iter().map(|b| Arc::clone(&b.name)).collect();
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
            housekeeping_at_ms: 0,
            burst: Burst::default(),
            grace_until_ms: 0,
            handed_over_at_ms: 0,
            warn_of_pause_at_ms: 0,
            warned_of_pause: false,
            stats: Stats::default(),
            durations: vec![Durations::default(); names.len()],
            exporter: Exporter::new(id, &names),
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

    fn drain_mailbox(&mut self, driver: &mut impl Driver) {
        let mailbox = Arc::clone(self.shared.addresses[usize::from(self.id)].mailbox());
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.local.pop_front().or_else(|| mailbox.pop()) else { break };
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
            Message::Joined { room, conn, after_offset, log, receipt: _ } => {
                self.on_joined(room, conn, after_offset, log);
            }
            Message::Leave { room, place, receipt } => self.on_leave(room, place, receipt),
            Message::Left { room, conn, receipt: _ } => self.on_left(&room, conn),
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

    fn expire(&mut self) {
        let mut expired = mem::take(&mut self.expired);
        self.deadlines_left =
            self.timers.expire(self.now_ms, DEADLINES_MAX, |slot| expired.push(slot));
        for slot in expired.drain(..) {
            self.on_deadline(slot);
        }
        self.expired = expired;
        let mut left = DEADLINES_MAX;
        while left > 0
            && let Some(pending) = self.router.pending.take_expired(self.now_ms)
        {
            self.on_timeout(pending);
            left -= 1;
        }
        self.deadlines_left |= left == 0;
        self.end_windows(self.now_ms);
        if self.now_ms >= self.housekeeping_at_ms {
            self.housekeeping_at_ms = self.now_ms + HOUSEKEEPING_MS;
            self.close_idle_rooms();
            self.give_back_memory();
            self.export();
        }
    }

    /// Once a burst is over, leaves nothing of it behind.
    fn give_back_memory(&mut self) {
        let Some(over_since_ms) = self.burst.over_since_ms(self.now_ms) else { return };
        let turn = self.shared.heap.turn(over_since_ms, self.now_ms);
        if turn == Turn::Later {
            return;
        }
        self.burst.dealt_with();
        self.outboxes.give_back();
        self.arena = BytesMut::new();
        if turn == Turn::Mine {
            self.shared.heap.give_back();
            self.stats.memory_give_backs += 1;
        }
    }

    fn export(&mut self) {
        let levels = self.levels();
        self.stats.refused_commands += self.shared.gate.take_refused();
        let commands = self.shared.gate.commands();
        self.exporter.export(&self.stats, levels, commands, &mut self.durations);
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

    /// Pauses accepting when there are as many connections as there may be, and resumes.
    fn accept_more(&mut self, driver: &mut impl Driver) {
        match (self.accepting, self.room() == 0) {
            (Accepting::Yes, true) => {
                let limit = self.shared.config.limits.connections_max;
                if self.may_warn_of_pause() {
                    tracing::warn!(
                        limits.connections_max = limit,
                        "full: accepting is paused until a connection closes"
                    );
                }
                self.stats.accept_pauses += 1;
                self.accepting = Accepting::Full;
                driver.set_accepting(false);
            }
            (Accepting::Full, false) => {
                self.tell_of_resumption();
                self.accepting = Accepting::Yes;
                driver.set_accepting(true);
            }
            _ => {}
        }
    }

    /// Whether to say that accepting is paused: a gateway that is full pauses whenever somebody goes and
    /// somebody comes.
    fn may_warn_of_pause(&mut self) -> bool {
        let may = self.now_ms >= self.warn_of_pause_at_ms;
        if may {
            self.warn_of_pause_at_ms = self.now_ms + WARN_AGAIN_MS;
            self.warned_of_pause = true;
        }
        may
    }

    fn tell_of_resumption(&mut self) {
        if mem::take(&mut self.warned_of_pause) {
            tracing::info!("accepting again");
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

impl Sink for Shard {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Received { conn, bytes } => self.on_received(conn, bytes),
            Event::Sent { conn, bytes } => self.on_sent(conn, bytes),
            Event::Accepted { conn, peer } => self.on_accepted(conn, peer),
            Event::Ended { conn } => self.on_ended(conn),
            Event::Closed { conn, cause, unsent_bytes } => {
                self.stats.unsent_bytes += unsent_bytes as u64;
                self.on_closed(conn, cause);
            }
            Event::AcceptPaused { error } => {
                self.stats.accept_pauses += 1;
                if self.may_warn_of_pause() {
                    tracing::warn!(
                        %error,
                        "accepting is paused until a connection closes; raise the limit on open files"
                    );
                }
            }
            Event::AcceptResumed => self.tell_of_resumption(),
            Event::ListeningStopped => self.on_listening_stopped(),
        }
    }

    /// A shard's share of the places that are left. All together may let in one each too many.
    #[inline]
    fn room(&mut self) -> usize {
        let config = &self.shared.config;
        let connections = self.shared.connections.load(Ordering::Relaxed);
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let left = config.limits.connections_max.saturating_sub(connections);
        left.div_ceil(usize::from(config.shards))
    }

    #[inline]
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        self.take_reply(conn.slot)
    }

    fn idle_for(&mut self) -> Option<Duration> {
        let busy = !self.touched.is_empty()
            || !self.unsent_less.is_empty()
            || !self.local.is_empty()
            || self.fan_out.is_busy()
            || self.draining.as_ref().is_some_and(Draining::is_busy)
            || self.deadlines_left
            || self.finished;
        let mailbox = self.shared.addresses[usize::from(self.id)].mailbox();
        if busy || !mailbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        let timers = self.timers.next_in_ms(self.now_ms);
        let calls = self.router.pending.next_deadline_ms();
        let calls = calls.map(|at_ms| at_ms.saturating_sub(self.now_ms));
        let housekeeping = self.housekeeping_at_ms.saturating_sub(self.now_ms);
        let windows = self.windows.next_end_ms().map(|at_ms| at_ms.saturating_sub(self.now_ms));
        // Twice as long each time, so that a slow backend costs few looks.
        let look = self.now_ms.saturating_sub(self.handed_over_at_ms).max(LOOK_FOR_ANSWERS_MS);
        let look = calls.map(|_| look);
        let deadlines = timers.into_iter().chain(calls).chain(look).chain(windows);
        let ms = deadlines.fold(housekeeping, u64::min);
        // One more, since a wait that is cut to whole milliseconds ends too early.
        Some(Duration::from_millis(ms + 1))
    }

    #[inline]
    fn woken(&mut self, now: Instant) {
        self.shared.addresses[usize::from(self.id)].mailbox().stay_awake();
        let since = now.saturating_duration_since(self.shared.started);
        let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        if now_ms > self.now_ms + AWAY_MS {
            self.grace_until_ms = now_ms + millis(self.shared.config.session.heartbeat_interval);
        }
        self.now_ms = now_ms;
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("levels", &self.levels()).finish()
    }
}
