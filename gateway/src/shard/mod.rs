//! A shard: one thread's connections, users, rooms, calls and timers.
//!
//! A shard is sans-IO. A driver hands it facts, other threads leave messages in its mailbox, and it
//! answers with intents. Nothing of it is shared. One turn is one round of its loop:
//!
//! ```text
//! facts in      driver.poll          bytes, ends, completions
//! messages in   drain_mailbox        answers, pushes, registrations
//! time in       expire               silence, timeouts, merge windows, housekeeping
//! calls out     calls.flush          into the backends' queues; what workers answer at once comes in
//! bytes out     fan_out, flush       one send for each connection
//! ```
//!
//! The state is in parts with private fields. A part takes what it needs as arguments and returns effects as values. No
//! part knows another. This file alone knows all of them: it holds the turn, dispatches facts and messages, and
//! applies the effects. [`delivery`] is the one step that is given two parts: it reads logs into connections.
//!
//! | part | what it owns | its effects |
//! |---|---|---|
//! | [`clients`] | connections, what waits to be sent, deadlines | sessions that ended, connections to resume |
//! | [`users`] | who is logged in where | messages to sessions |
//! | [`rooms`] | logs, members, merge windows, the fan-out | messages to shards, slots with pushes |
//! | [`repeats`] | the keys of pushes, and how those ended | |
//! | [`resumes`] | sessions whose answer waits for their rooms | |
//! | [`calls`] | routes, calls in flight, their answers | answers |
//! | [`admission`], [`draining`] | whether connections come in; how the shard ends | for the driver; slots to close |
//! | [`rebalance`] | which clients go to another gateway, and how fast | slots to close |
//! | [`clock`] | both clocks | |
//! | [`tokens`] | what is said about tokens that are in Redis | |
//! | [`mailbox`], [`message_queue`], [`command`] | the way in from other threads, and its bound | messages |
//! | [`housekeeping`] | when memory is freed, idle rooms are closed and figures exported | whether the heap is trimmed |
//! | `sink` | what the driver reports, and asks | |
//! | [`stats`] | names of the counters, and the way to the registry | |

pub mod admission;
pub mod calls;
pub mod clients;
pub mod clock;
pub mod command;
pub mod delivery;
pub mod draining;
pub mod housekeeping;
pub mod mailbox;
pub mod message_queue;
pub mod rebalance;
pub mod repeats;
pub mod resumes;
pub mod rooms;
mod shared;
mod sink;
pub mod stats;
pub mod tokens;
pub mod users;

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidegate_backend::handler::{CallId, Outcome};
use tidegate_backend::publisher::Nobody;
use tidegate_backend::{Failure, Gateway, UserId};
use tidegate_protocol::proto::v1::{self, notice::What};
use tidegate_protocol::resume::Positions;
use tidegate_protocol::server::Incoming;
use tidegate_protocol::{Code, Reassembler};

use crate::allocator::Trim;
use crate::auth::{AuthError, TokenDigest, TokenEnd};
use crate::cluster::message::ToCluster;
use crate::driver::{ConnId, Driver, Mechanism, SendState};
use crate::router::PendingCall;
use crate::session_id::SessionAddr;
use admission::Admission;
use calls::{Calls, Request};
use clients::Clients;
use clients::cause::Cause;
use clients::connection::{Flags, Phase};
use clients::lifecycle::{AfterAuthFailure, EndedSession, Login};
use clients::lookups::Lookup;
use clock::Clock;
use command::CommandPermit;
use delivery::TooSlow;
use draining::Draining;
use housekeeping::Housekeeping;
use mailbox::{Answer, Message};
use message_queue::{MESSAGES_MAX, MessageQueue};
use rebalance::Rebalance;
use repeats::{Keyed, Repeats};
use resumes::{Finished, Resumes, RoomTickets, WaitingFrame, Wanted};
use rooms::Rooms;
use rooms::log::After;
use rooms::message::{AskedBy, Asker, Joined, RoomEffect, RoomMessage};
pub use shared::Shared;
use stats::{Exporter, Levels, ShardCounters, Stats};
use tokens::{TokenMessage, TokenPage, Verdict};
use users::Users;
use users::message::{Eviction, SessionMessage, UserEffect, UserMessage};

/// Expired calls that one turn answers, at most. It spreads a mass timeout over several turns.
const EXPIRED_CALLS_MAX: usize = 1024;

/// What a client claims in its authentication, besides its token.
#[derive(Clone, Copy)]
struct Claim<'a> {
    user_id: UserId,
    resume: Positions<'a>,
    sequence: u64,
}

/// One shard. See the [module](self).
pub struct Shard {
    id: u16,
    shared: Arc<Shared>,
    clock: Clock,
    clients: Clients,
    users: Users,
    rooms: Rooms,
    resumes: Resumes,
    repeats: Repeats,
    calls: Calls,
    admission: Admission,
    draining: Draining,
    rebalance: Rebalance,
    messages: MessageQueue,
    housekeeping: Housekeeping,
    /// Answers that were given on this thread wait until long outboxes are flushed. Nothing is read meanwhile.
    has_answers_left: bool,
    /// More calls have expired than one turn handles.
    has_expired_calls_left: bool,
    /// Expired calls that this turn may still fail. With none left it handles no more messages.
    expired_calls_left: usize,
    is_finished: bool,
    counters: ShardCounters,
    exporter: Exporter,
}

impl Shard {
    /// Shard number `id` of a gateway.
    #[must_use]
    pub fn new(id: u16, shared: Arc<Shared>, gateway: Gateway) -> Self {
        let config = &shared.config;
        let address = &shared.addresses[usize::from(id)];
        let room_settings = rooms::Settings {
            shard: id,
            shards: config.shards,
            first_offset: shared.first_offset,
            log_key: shared.log_key,
            is_shared: shared.cluster.is_some(),
            rooms: config.rooms.clone(),
        };
        Self {
            id,
            clock: Clock::new(shared.started, shared.wall_clock.clone()),
            clients: Clients::new(config),
            users: Users::new(
                shared.session_ids,
                config.session.connections_per_user_max,
                shared.cluster.is_some(),
            ),
            rooms: Rooms::new(room_settings, Arc::clone(&shared.limiter)),
            resumes: Resumes::default(),
            repeats: Repeats::new(config.limits.push_keys_bytes_max),
            calls: Calls::new(config, &shared.backends, address.clone(), gateway),
            admission: Admission::new(config.limits.connections_max, config.shards),
            draining: Draining::new(&config.shutdown),
            rebalance: Rebalance::default(),
            messages: MessageQueue::new(Arc::clone(address.mailbox())),
            housekeeping: Housekeeping::default(),
            has_answers_left: false,
            has_expired_calls_left: false,
            expired_calls_left: EXPIRED_CALLS_MAX,
            is_finished: false,
            counters: ShardCounters::default(),
            exporter: Exporter::new(id),
            shared,
        }
    }

    /// Handles the messages that came before the shard's thread: everybody's shared log comes before the first client.
    pub fn begin(&mut self, driver: &mut impl Driver) {
        let on_thread = self.calls.enter_thread();
        self.drain_mailbox(driver);
        drop(on_thread);
    }

    /// Runs turns until the shard has ended.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn run(&mut self, driver: &mut impl Driver) -> io::Result<()> {
        while !self.is_finished {
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
        let on_thread = self.calls.enter_thread();
        self.expired_calls_left = EXPIRED_CALLS_MAX;
        driver.poll(self)?;
        self.answer_and_resume(driver);
        self.drain_mailbox(driver);
        self.expire();
        self.drain_step(driver);
        self.rebalance_step();
        // Connections whose reading was paused for calls which have timed out may have sent further requests.
        self.answer_and_resume(driver);
        if self.calls.flush(&self.clock) {
            // The workers may share this core. If they run now, their answers come without a wake-up. A worker
            // that was woken on this core may have done its work already.
            if self.calls.has_queued() {
                std::thread::yield_now();
            }
            self.drain_mailbox(driver);
            // Connections whose reading was paused for an answer may have sent further requests.
            self.calls.flush(&self.clock);
        }
        self.fan_out(driver);
        self.flush(driver);
        self.rooms.trim_logs();
        // Permits that were dropped there may have answered calls on this thread.
        self.answer_and_resume(driver);
        // Sends that ended in this turn may have resumed reading. No call may wait for the next turn, since the
        // shard may sleep before it.
        if self.calls.has_unflushed() {
            self.calls.flush(&self.clock);
        }
        if let Some(accepting) = self.admission.update(self.connections(), self.clock.now_ms()) {
            driver.set_accepting(accepting);
        }
        self.counters.turns += 1;
        drop(on_thread);
        Ok(())
    }

    /// Whether the shard has ended.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// What has happened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (clients, labelled) = self.clients.counters();
        let mut shard = self.counters.clone();
        shard.accept_pauses = self.admission.pauses();
        let (calls, users, rooms) =
            (self.calls.counters(), self.users.counters(), self.rooms.counters());
        let repeats = self.repeats.counters();
        stats::Parts { shard: &shard, clients, calls, users, rooms, repeats, labelled }.stats()
    }

    /// The current levels.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Levels {
            connections: self.clients.len(),
            sessions: self.clients.session_count(),
            users: self.users.len(),
            rooms: self.rooms.len(),
            memberships: self.rooms.membership_count(),
            calls_in_flight: self.calls.in_flight(),
            outbox_bytes: self.clients.unsent_bytes_in_all(),
            rebalance_remaining: self.rebalance.remaining(),
            push_keys: self.repeats.len(),
        }
    }

    /// Open connections of the gateway.
    fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    fn drain_mailbox(&mut self, driver: &mut impl Driver) {
        let mut is_clock_read = false;
        for _ in 0..MESSAGES_MAX {
            // A message that needs more than the bound is the first one again. Those behind it wait too: no
            // answer may overtake the 102 of an earlier call.
            if self.expired_calls_left == 0 {
                break;
            }
            let Some(message) = self.messages.next_message() else { break };
            // The clock is read once for all answers of a turn: for each it would cost as much as the answer.
            if message.ends_a_call() && !mem::replace(&mut is_clock_read, true) {
                self.clock.on_answers(driver.now());
            }
            self.handle(message, driver.mechanism());
            if self.clients.is_flush_due() {
                self.flush(driver);
            }
        }
        self.answer_and_resume(driver);
    }

    fn handle(&mut self, message: Message, mechanism: Mechanism) {
        match message {
            Message::Answer(answer) => self.on_answer(answer),
            Message::Expired(call) => self.on_expired(call),
            Message::User(mut message) => {
                let keyed = message.take_key();
                if self.is_to_be_pushed(keyed) {
                    self.users.handle(message, self.clock.now_ms());
                }
            }
            Message::Session(message) => self.on_session_message(message),
            Message::Token(message) => self.on_token_message(message),
            Message::Room(message) => {
                let keyed = message.keyed();
                if !self.is_to_be_pushed(keyed) {
                    return;
                }
                let Self { rooms, clients, clock, .. } = self;
                let state = |conn| delivery::conn_state(clients, conn);
                rooms.handle(message, clock.now_ms(), &|| clock.unix_ms(), &state);
            }
            // The operator may have stopped waiting.
            Message::InspectShard { reply } => {
                drop(reply.send(self.levels().shard_info(self.id, mechanism)));
            }
            Message::CountMovable { spared_s, reply } => {
                let _ = reply.send(self.count_movable(spared_s));
            }
            Message::SendAway(share) => self.rebalance.start(share, self.clock.now_ms()),
            Message::Drain => {
                if self.draining.start(self.clock.now_ms()) {
                    self.rooms.start_draining();
                }
            }
            Message::Stop => self.is_finished = true,
        }
        self.apply();
    }

    /// Whether a push goes on its way: it has no key, or is the first one with its key.
    #[inline]
    fn is_to_be_pushed(&mut self, keyed: Option<Keyed>) -> bool {
        keyed.is_none_or(|keyed| self.repeats.is_first(keyed, self.clock.now_ms()))
    }

    /// Posts to a shard, which may be this one.
    fn post(&mut self, shard: u16, message: Message) {
        if shard == self.id {
            self.messages.push_local(message);
        } else if let Some(address) = self.shared.addresses.get(usize::from(shard)) {
            address.post(message);
        }
    }

    /// Gives a message to a user's home. If that is this shard, it is handled at once: a login that is handled
    /// at once must not overtake the end of an earlier session of the same user.
    fn send_home(&mut self, user_id: UserId, message: UserMessage) {
        let home = users::home(user_id, self.shared.config.shards);
        if home == self.id {
            self.users.handle(message, self.clock.now_ms());
        } else {
            self.post(home, message.into());
        }
    }

    /// Applies the effects of the parts, until there are none.
    #[inline]
    fn apply(&mut self) {
        loop {
            if let Some(EndedSession { conn, user_id }) = self.clients.next_ended_session() {
                let addr = SessionAddr::new(self.id, conn);
                self.send_home(user_id, UserMessage::Deregister { user_id, addr });
                self.resumes.remove(conn.slot);
                self.rooms.leave_all(conn.slot, self.clock.now_ms());
            } else if let Some(change) = self.users.next_presence_change() {
                // It gets its time here: before the client can have its answer, and log in elsewhere.
                if let Some(cluster) = &self.shared.cluster {
                    cluster.post_presence(change);
                }
            } else if let Some(UserEffect(shard, message)) = self.users.next_effect() {
                if shard == self.id {
                    self.on_session_message(message);
                } else {
                    self.post(shard, Message::Session(message));
                }
            } else if let Some(effect) = self.rooms.next_effect() {
                match effect {
                    RoomEffect::Post(shard, message) => self.post(shard, message.into()),
                    RoomEffect::PushesPending(slot) => self.clients.schedule_pushes(slot),
                    RoomEffect::LastPushes(slot, chunk) => {
                        if let Err(WaitingFrame::Pushes(chunk)) =
                            self.resumes.keep(slot, WaitingFrame::Pushes(chunk))
                        {
                            self.clients.append_shared(slot, chunk);
                        }
                    }
                    RoomEffect::Joined(slot, joined, AskedBy::Client) => {
                        self.resumes.joined(slot, joined);
                        self.answer_resumed(slot);
                    }
                    RoomEffect::Joined(slot, joined, AskedBy::Backend) => {
                        let user_id = self.clients.at(slot).user_id;
                        let room = self.tickets().describe(user_id, joined);
                        self.notify(slot, What::Joined(room));
                    }
                    RoomEffect::Expel(user_id, room, permit) => {
                        self.send_home(user_id, UserMessage::Expel { user_id, room, permit });
                    }
                    RoomEffect::Left(slot, room) => {
                        self.notify(slot, What::Left(room.to_string()));
                    }
                    RoomEffect::ToCluster(message) => {
                        if let Some(cluster) = &self.shared.cluster {
                            cluster.post(message);
                        }
                    }
                }
            } else {
                return;
            }
        }
    }

    /// Passes on the answers that were given on this thread, and resumes reading where it was paused. Each may
    /// cause the other, so this goes on until there are none. It is a loop and not a recursion: clients could
    /// make a recursion arbitrarily deep.
    fn answer_and_resume(&mut self, driver: &mut impl Driver) {
        loop {
            if self.clients.has_long_outbox() && self.calls.has_answers() {
                // What the driver does not take is under way then, and the bound on what waits behind it holds.
                self.flush_listed(driver);
            }
            if let Some(answer) = self.calls.next_answer() {
                self.on_answer(answer);
                self.apply();
                continue;
            }
            self.has_answers_left = false;
            if let Some(slot) = self.clients.next_resumed(&self.clock) {
                let conn = self.clients.conn_id(slot);
                if let Some(inbox) = self.clients.take_inbox(conn, 0) {
                    self.read_frames(slot, inbox, &[]);
                }
            } else {
                return;
            }
        }
    }

    /// Reads frames until there are none, or reading is paused, or the connection is closed.
    #[inline]
    fn read_frames(&mut self, slot: u32, mut inbox: Reassembler, bytes: &[u8]) {
        let mut frames = inbox.frames(bytes, 0);
        while self.may_read_frame(slot) {
            // The frame before may have opened the session.
            frames.set_payload_bytes_max(self.clients.frame_bytes_max(slot));
            match frames.next() {
                Ok(Some(payload)) => self.on_frame(slot, payload),
                Ok(None) => break,
                Err(error) => self.on_malformed(slot, &error),
            }
            if self.clients.at(slot).is_closing() {
                self.clients.count_discarded(frames.discard_rest());
                return self.apply();
            }
        }
        frames.keep_rest();
        self.clients.put_inbox(slot, inbox);
        self.apply();
    }

    #[inline]
    fn may_read_frame(&mut self, slot: u32) -> bool {
        if self.has_answers_left {
            self.clients.pause_reading_for_answers(slot);
            return false;
        }
        self.clients.may_read_frame(slot)
    }

    #[inline]
    fn on_frame(&mut self, slot: u32, payload: &[u8]) {
        let admitted = self.clients.count_frame(slot, payload.len(), &self.clock);
        let incoming = match Incoming::decode(payload) {
            Ok(incoming) => incoming,
            Err(error) => return self.on_malformed(slot, &error),
        };
        if let Err(retry_after_ms) = admitted {
            let (kind, sequence) = (incoming.kind(), incoming.sequence());
            let code = Code::RateLimited;
            return self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
        }
        match incoming {
            Incoming::Business { kind, biz_data, sequence } => {
                self.on_business(slot, kind, biz_data, sequence);
            }
            Incoming::Heartbeat { sequence } => {
                self.clients.write_pong(slot, sequence, &self.clock);
            }
            Incoming::Authenticate { user_id, token, resume, sequence } => {
                self.on_authenticate(slot, user_id, token, resume, sequence);
            }
        }
    }

    fn on_malformed(&mut self, slot: u32, error: &dyn std::error::Error) {
        self.clients.log(slot, || tracing::debug!(%error, "malformed"));
        self.close_gracefully(slot, Cause::Malformed);
    }

    #[inline]
    fn on_business(&mut self, slot: u32, kind: i32, biz_data: &[u8], sequence: u64) {
        let connection = self.clients.at(slot);
        if connection.phase != Phase::Open {
            let after = self.clients.refuse_unauthenticated(slot, kind, sequence);
            return self.after_auth_failure(slot, after);
        }
        if self.draining.is_draining() || connection.has(Flags::LEAVING) {
            let retry_after_ms = self.draining.retry_after_ms(slot);
            let code = Code::Draining;
            return self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
        }
        let user_id = connection.user_id;
        match self.calls.admit(kind, biz_data.len()) {
            Ok(route) => {
                let conn = self.clients.conn_id(slot);
                let session = self.shared.session_ids.id(SessionAddr::new(self.id, conn));
                let request = Request { conn, session, user_id, kind, sequence, biz_data };
                self.clients.start_call(slot);
                self.calls.start(&request, route, &self.clock);
                self.deliver_answers();
            }
            Err(refusal) => {
                let Failure { code, retry_after_ms } = refusal.failure();
                self.clients.write_failure(slot, kind, sequence, code, retry_after_ms);
            }
        }
    }

    /// Passes on the answers that a handler gave on this thread. A handler may answer thousands of calls that
    /// it kept. There is no driver here that could send, so with a long outbox the rest waits for
    /// [`Self::answer_and_resume`]. Otherwise all of the answers would be in outboxes at once, with no send
    /// under way that bounds them.
    #[inline]
    fn deliver_answers(&mut self) {
        while let Some(answer) = self.calls.next_answer() {
            self.on_answer(answer);
            if self.clients.has_long_outbox() && self.calls.has_answers() {
                self.has_answers_left = true;
                return;
            }
        }
    }

    fn on_authenticate(
        &mut self,
        slot: u32,
        user_id: UserId,
        token: &str,
        resume: Positions<'_>,
        sequence: u64,
    ) {
        let claim = Claim { user_id, resume, sequence };
        let (token, refused) = match self.shared.verifier.digest(token) {
            None => {
                let verified = self.shared.verifier.verify(user_id, token, self.clock.unix_ms());
                return self.log_in(slot, claim, None, verified);
            }
            Some(Ok(token)) => (Some(token), self.look_up(slot, claim, token)),
            Some(Err(error)) => (None, Err(error)),
        };
        if let Err(error) = refused {
            self.log_in(slot, claim, token, Err(error));
        }
    }

    /// Has a token looked up in Redis. The verdict comes in a message.
    fn look_up(
        &mut self,
        slot: u32,
        claim: Claim<'_>,
        token: TokenDigest,
    ) -> Result<(), AuthError> {
        let cluster = self.shared.cluster.as_ref().ok_or(AuthError::RedisUnavailable)?;
        let Claim { user_id, resume, sequence } = claim;
        let resume = resume.as_bytes().into();
        self.clients.begin_lookup(slot, Lookup { user_id, token, sequence, resume })?;
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        cluster.post(ToCluster::LookUp { addr, user_id, token });
        Ok(())
    }

    fn on_token_message(&mut self, message: TokenMessage) {
        match message {
            TokenMessage::Verdict { conn, verdict } => self.on_verdict(conn, verdict),
            TokenMessage::Revoke { user_id, token } => {
                for slot in self.clients.sessions_with_token(user_id, token) {
                    self.close_gracefully(slot, Cause::TokenRevoked);
                }
            }
            TokenMessage::NewEnd { conn, token, ends_in_ms } => {
                let end = TokenEnd::after(ends_in_ms, self.clock.unix_ms());
                self.clients.set_new_token_end(conn, token, end, &self.clock);
            }
            TokenMessage::List { from } => {
                let (tokens, next) = self.clients.list_tokens(from, &self.clock);
                if let Some(cluster) = &self.shared.cluster {
                    let page = TokenPage { shard: self.id, from, tokens, next };
                    cluster.post(ToCluster::Tokens(page));
                }
            }
        }
    }

    fn on_verdict(&mut self, conn: ConnId, verdict: Verdict) {
        let Some(lookup) = self.clients.end_lookup(conn) else { return };
        let verified = match verdict {
            Verdict::Known { ends_in_ms } => Ok(TokenEnd::after(ends_in_ms, self.clock.unix_ms())),
            Verdict::Unknown => Err(AuthError::UnknownToken),
            Verdict::Unavailable => Err(AuthError::RedisUnavailable),
        };
        let Lookup { user_id, token, sequence, resume } = lookup;
        // They were read before.
        let resume = Positions::decode(&resume).unwrap_or_default();
        self.log_in(conn.slot, Claim { user_id, resume, sequence }, Some(token), verified);
    }

    /// Goes on with an authentication whose token was verified with this result. `token`: it can be revoked.
    fn log_in(
        &mut self,
        slot: u32,
        claim: Claim<'_>,
        token: Option<TokenDigest>,
        verified: Result<TokenEnd, AuthError>,
    ) {
        let Claim { user_id, resume, sequence } = claim;
        let login = self.clients.login(slot, user_id, verified, sequence, &self.clock);
        if login.is_ok()
            && let (Some(token), Ok(end)) = (token, verified)
        {
            self.clients.set_session_token(slot, token, end, &self.clock);
        }
        if login.is_ok() && !resume.is_empty() {
            self.counters.resumes += 1;
            let now_ms = self.clock.unix_ms();
            let (resume, refused) = self.tickets().read_resume(user_id, resume, now_ms);
            self.counters.refused_tickets += refused;
            self.resumes.insert(slot, sequence, resume);
        }
        match login {
            Ok(Login::Register) => {
                let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
                self.send_home(user_id, UserMessage::Register { user_id, addr, sequence });
                self.apply();
            }
            Ok(Login::Renewed) if resume.is_empty() => {
                let everybody = self.rooms.everybody();
                self.write_session(slot, sequence, everybody, Vec::new());
            }
            Ok(Login::Renewed) => self.resume(slot, Login::Renewed),
            Err(after) => self.after_auth_failure(slot, after),
        }
    }

    fn after_auth_failure(&mut self, slot: u32, after: AfterAuthFailure) {
        if after == AfterAuthFailure::Close {
            self.close_gracefully(slot, Cause::AuthFailed);
        }
    }

    /// Brings a client with a session back into the rooms that it has named. The session is answered when all of them
    /// have.
    fn resume(&mut self, slot: u32, login: Login) {
        self.clients.start_resuming(slot);
        let Self { resumes, rooms, .. } = self;
        let (everybody, wanted) = resumes.start(slot, |room| rooms.describe_membership(slot, room));
        let everybody = match (everybody, login) {
            (None, Login::Renewed) => self.rooms.everybody(),
            (after, _) => self.rooms.join_everybody(slot, after.unwrap_or(After::Now)),
        };
        self.resumes.joined_everybody(slot, everybody);
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        let (user_id, shards) = (self.clients.at(slot).user_id, self.shared.config.shards);
        for Wanted { room, after, ticket_made_s } in wanted {
            let (home, asker) =
                (rooms::home(&room, shards), Asker::Client { user_id, ticket_made_s });
            self.post(home, RoomMessage::Join { room, addr, after, asker }.into());
        }
        self.answer_resumed(slot);
    }

    /// Answers the session of a client that has come back, once all its rooms have answered.
    fn answer_resumed(&mut self, slot: u32) {
        let Some(finished) = self.resumes.take_finished(slot) else { return };
        let Finished { sequence, everybody, rooms, frames } = finished;
        self.clients.end_resuming(slot);
        self.write_session(slot, sequence, everybody, rooms);
        let conn = self.clients.conn_id(slot);
        for frame in frames {
            match frame {
                WaitingFrame::Push { frame, ends_ms, permit } => {
                    self.deliver(conn, &frame, ends_ms, &permit);
                }
                WaitingFrame::Pushes(chunk) => self.clients.append_shared(slot, chunk),
                WaitingFrame::Notice(what) => self.notify(slot, what),
            }
        }
    }

    fn write_session(&mut self, slot: u32, sequence: u64, everybody: Joined, rooms: Vec<Joined>) {
        let addr = SessionAddr::new(self.id, self.clients.conn_id(slot));
        let session_id = self.shared.session_ids.id(addr).0;
        let rooms = [everybody].into_iter().chain(rooms);
        let (tickets, user_id) = (self.tickets(), self.clients.at(slot).user_id);
        let rooms = rooms.map(|joined| tickets.describe(user_id, joined)).collect();
        self.clients.write_session(slot, session_id, sequence, rooms, &self.clock);
    }

    fn tickets(&self) -> RoomTickets<'_> {
        RoomTickets { tickets: &self.shared.tickets, rooms: &self.shared.config.rooms }
    }

    /// Tells a client that a membership has begun, was refused, or has ended.
    fn notify(&mut self, slot: u32, what: What) {
        if self.resumes.is_full(slot) {
            return self.clients.abort(slot, Cause::OutboxFull);
        }
        if let Err(frame) = self.resumes.keep(slot, WaitingFrame::Notice(what))
            && let WaitingFrame::Notice(what) = frame
        {
            self.clients.write_notice(slot, &v1::Notice { what: Some(what) });
        }
    }

    fn deliver(&mut self, conn: ConnId, frame: &Bytes, ends_ms: u64, permit: &CommandPermit) {
        if ends_ms <= self.clock.now_ms() {
            self.counters.expired_user_pushes += 1;
            return permit.set_nobody(Nobody::Expired);
        }
        permit.count_connections(usize::from(self.clients.write_push(conn, frame)));
    }

    fn on_session_message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Registered { conn, sequence } => {
                if self.clients.open_session(conn, &self.clock) {
                    let slot = conn.slot;
                    if self.resumes.contains(slot) {
                        return self.resume(slot, Login::Register);
                    }
                    let everybody = self.rooms.join_everybody(slot, After::Now);
                    self.write_session(slot, sequence, everybody, Vec::new());
                }
            }
            SessionMessage::Evict { conn, reason, permit: _ } => {
                if self.clients.get(conn).is_some() {
                    let cause = match reason {
                        Eviction::Replaced => Cause::Replaced,
                        Eviction::Kicked => Cause::Kicked,
                    };
                    self.close_gracefully(conn.slot, cause);
                }
            }
            SessionMessage::Leave { conn, room, permit } => {
                // By way of the home, behind a join that is on its way.
                let addr = SessionAddr::new(self.id, conn);
                let home = rooms::home(&room, self.shared.config.shards);
                self.post(home, RoomMessage::Leave { room, addr, permit }.into());
            }
            SessionMessage::Deliver { conn, frame, ends_ms, permit } => {
                // A connection that is gone has no entry: its slot's next one may have.
                if self.clients.get(conn).is_some() && self.resumes.is_full(conn.slot) {
                    self.clients.abort(conn.slot, Cause::OutboxFull);
                } else if self.clients.get(conn).is_some() && self.resumes.contains(conn.slot) {
                    let push = WaitingFrame::Push { frame, ends_ms, permit };
                    drop(self.resumes.keep(conn.slot, push));
                } else {
                    self.deliver(conn, &frame, ends_ms, &permit);
                }
            }
        }
    }

    #[inline]
    fn on_answer(&mut self, answer: Answer) {
        let Answer { call, outcome } = answer;
        if let Some((call, outcome)) = self.calls.finish(call, outcome, &self.clock) {
            self.finish_call(call, outcome);
        }
    }

    /// Fails a call that a worker has found expired, and first the older ones of its route. Beyond the bound of
    /// a turn, the message goes back: it and all behind it wait for the next turn.
    fn on_expired(&mut self, call: CallId) {
        while self.expired_calls_left > 0 {
            let Some(expired) = self.calls.take_expired_until(call, &self.clock) else { return };
            self.finish_call(expired, Err(Code::Timeout.into()));
            self.expired_calls_left -= 1;
        }
        self.messages.put_back(Message::Expired(call));
    }

    /// Passes the outcome of a call on to the client.
    #[inline]
    fn finish_call(&mut self, call: PendingCall, outcome: Outcome) {
        let PendingCall { conn, sequence, kind, .. } = call;
        let slot = conn.slot;
        if !self.clients.finish_call(conn) {
            return;
        }
        self.clients.write_outcome(slot, kind, sequence, outcome, &self.clock);
        let connection = self.clients.at(slot);
        if connection.calls == 0 && self.draining.is_draining() {
            self.close_gracefully(slot, Cause::Draining);
        } else if connection.calls == 0 && connection.has(Flags::LEAVING) {
            self.close_gracefully(slot, Cause::Rebalanced);
        }
    }

    fn expire(&mut self) {
        self.clients.collect_deadlines(&self.clock);
        while let Some((slot, cause)) = self.clients.next_expired(&self.clock) {
            self.close_gracefully(slot, cause);
        }
        while self.expired_calls_left > 0
            && let Some(call) = self.calls.take_expired(&self.clock)
        {
            self.finish_call(call, Err(Code::Timeout.into()));
            self.expired_calls_left -= 1;
        }
        self.has_expired_calls_left =
            self.expired_calls_left == 0 || self.calls.remove_expired(&self.clock);
        self.rooms.end_windows(self.clock.now_ms());
        self.rooms.tell_renamed();
        self.apply();
        if self.housekeeping.start(self.clock.now_ms()) {
            self.rooms.close_idle_rooms(self.clock.now_ms());
            self.repeats.forget_old(self.clock.now_ms());
            self.trim_memory();
            self.export();
        }
    }

    /// Once a burst is over, frees the memory that it left.
    fn trim_memory(&mut self) {
        let freed_bytes = self.clients.take_freed_bytes()
            + self.rooms.take_freed_bytes()
            + self.messages.take_freed_bytes();
        let Self { housekeeping, shared, clock, .. } = self;
        let Some(trim) = housekeeping.trim(freed_bytes, &shared.heap, clock.now_ms()) else {
            return;
        };
        self.clients.free_spare_memory();
        self.users.free_spare_memory();
        self.rooms.free_spare_memory();
        self.resumes.free_spare_memory();
        self.repeats.free_spare_memory();
        self.calls.free_spare_memory();
        self.messages.free_spare_memory();
        if trim == Trim::Now {
            self.shared.heap.trim();
            self.counters.memory_trims += 1;
        }
    }

    fn export(&mut self) {
        self.counters.refused_commands += self.shared.limiter.take_refused();
        let (stats, levels) = (self.stats(), self.levels());
        self.exporter.export(&stats, levels, self.shared.limiter.commands());
        self.calls.export(&self.shared.call_durations);
    }

    /// One turn's part of a drain, and the end when no connection is left.
    fn drain_step(&mut self, driver: &mut impl Driver) {
        let now_ms = self.clock.now_ms();
        let Some(step) = self.draining.step(self.clients.slots(), now_ms) else { return };
        if let Some(until_ms) = step.stop_listening_until_ms {
            driver.stop_listening(self.clock.instant(until_ms));
        }
        for slot in step.slots {
            let slot = u32::try_from(slot).expect("slots are 32 bits");
            if step.has_expired || self.clients.at(slot).calls == 0 {
                self.close_gracefully(slot, Cause::Draining);
            }
        }
        // All shards end together: each is home to some of the others' users and rooms.
        self.is_finished |= self.draining.is_done() && self.connections() == 0;
        if !self.is_finished {
            self.housekeeping.bring_forward(now_ms + draining::POLL_MS);
        }
    }

    /// Sends the clients away that are due: at once those that wait for no answer, the others after their last.
    fn rebalance_step(&mut self) {
        if self.draining.is_draining() {
            self.rebalance.end();
        }
        self.rebalance.start_step(self.clock.now_ms());
        while let Some((slot, spared_s)) = self.rebalance.next_slot(self.clients.slots()) {
            if self.clients.may_leave(slot, spared_s, &self.clock) {
                self.rebalance.count_sent();
                self.clients.start_leaving(slot);
                if self.clients.at(slot).calls == 0 {
                    self.close_gracefully(slot, Cause::Rebalanced);
                }
            }
        }
    }

    /// Clients that a rebalance which starts now could send to other gateways.
    fn count_movable(&self, spared_s: u16) -> u64 {
        let spared_s = self.rebalance.spared_s(spared_s, self.clock.now_ms());
        let slots = 0..u32::try_from(self.clients.slots()).expect("slots are 32 bits");
        slots.filter(|&slot| self.clients.may_leave(slot, spared_s, &self.clock)).count() as u64
    }

    /// Closes a connection after what waits for it, the last pushes of its rooms, and the goodbye of the cause.
    fn close_gracefully(&mut self, slot: u32, cause: Cause) {
        if self.clients.at(slot).is_closing() {
            return;
        }
        let Self { clients, rooms, draining, clock, .. } = self;
        if !clients.is_resuming(slot) {
            delivery::write_last_pushes(rooms, clients, slot);
        }
        let (retry_after_ms, until_ms) = match cause {
            Cause::Draining => (draining.retry_after_ms(slot), draining.close_until_ms()),
            Cause::Rebalanced => {
                let until_ms = draining.leave_until_ms(clock.now_ms());
                (draining.retry_after_ms(slot), Some(until_ms))
            }
            _ => (0, None),
        };
        clients.close_gracefully(slot, cause, retry_after_ms, until_ms, clock);
        self.apply();
    }

    /// Serves one turn's slice of members.
    fn fan_out(&mut self, driver: &mut impl Driver) {
        let mut budget = self.shared.config.limits.fan_out_slice_members;
        loop {
            let Self { rooms, clients, clock, .. } = self;
            let too_slow = delivery::fan_out(rooms, clients, &mut budget, driver, clock);
            let Some(slot) = too_slow else { return };
            self.close_slow_member(slot);
        }
    }

    fn close_slow_member(&mut self, slot: u32) {
        self.clients.abort(slot, Cause::SlowMember);
        self.apply();
    }

    /// Flushes every connection in the list of those to flush.
    fn flush(&mut self, driver: &mut impl Driver) {
        // A connection that may be read from again need not be paused first.
        self.answer_and_resume(driver);
        self.flush_listed(driver);
    }

    fn flush_listed(&mut self, driver: &mut impl Driver) {
        let mut flush_list = self.clients.take_flush_list();
        for slot in flush_list.drain(..) {
            if self.clients.start_flush(slot, driver) {
                self.send_waiting(slot, driver);
            }
        }
        self.clients.put_flush_list(flush_list);
    }

    /// Sends what waits for a connection, as long as the driver takes it.
    #[inline]
    fn send_waiting(&mut self, slot: u32, driver: &mut impl Driver) {
        while self.clients.at(slot).in_flight_bytes == 0 {
            let piece = delivery::next_piece(&mut self.rooms, &mut self.clients, slot);
            let piece = piece.unwrap_or_else(|TooSlow| {
                self.close_slow_member(slot);
                None
            });
            if self.clients.at(slot).has_finished() {
                // It has the answers to all that it asked. It gets no later pushes.
                self.rooms.leave_all(slot, self.clock.now_ms());
                self.apply();
            }
            let Some(piece) = piece else {
                self.clients.finish_flush(slot, driver, &self.clock);
                return self.apply();
            };
            let state = self.clients.send(slot, piece, driver, &self.clock);
            if state == SendState::UnderWay || !self.clients.has_more(slot) {
                return;
            }
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.messages.close();
        self.rooms.refuse_unfinished();
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("levels", &self.levels()).finish()
    }
}
