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
//! part knows another. Only `impl Shard` knows all of them. It is in five files:
//!
//! | file | what it does |
//! |---|---|
//! | this one | the turn, in order; time, housekeeping and the shard's end |
//! | `traffic` | the driver's side: accepting, received bytes, bytes to send, closing |
//! | `requests` | what clients' frames ask for, and the answers to calls |
//! | `logins` | from an authentication to a session, resumed or not |
//! | `dispatch` | gives messages to the parts, and applies the parts' effects |
//!
//! [`delivery`] is the one step that is given two parts: it reads logs into connections.
//!
//! | part | what it owns | its effects |
//! |---|---|---|
//! | [`clients`] | connections, what waits to be sent, deadlines | sessions that ended, connections to resume |
//! | [`users`] | the sessions of each user | messages to sessions |
//! | [`rooms`] | logs, members, merge windows, the fan-out | messages to shards, slots with pushes |
//! | [`repeats`] | the keys of pushes, and how those ended | |
//! | [`resumes`] | sessions whose answer waits for their rooms | |
//! | [`calls`] | routes, calls in flight, their answers | answers |
//! | [`admission`], [`draining`] | whether connections come in; how the shard ends | for the driver; slots to close |
//! | [`arrivals`] | the addresses of connections that are counted | which connection is refused |
//! | [`rebalance`] | which clients go to another gateway, and how fast | slots to close |
//! | [`clock`] | both clocks | |
//! | [`tokens`] | messages about tokens | |
//! | [`mailbox`], [`message_queue`], [`command`] | messages from other threads, and their bound | messages |
//! | [`housekeeping`] | when memory is freed, idle rooms are closed and figures exported | whether the heap is trimmed |
//! | [`stats`] | names of the counters, and their export to the registry | |

pub mod admission;
pub mod arrivals;
pub mod calls;
pub mod clients;
pub mod clock;
pub mod command;
pub mod delivery;
mod dispatch;
pub mod draining;
pub mod housekeeping;
mod logins;
pub mod mailbox;
pub mod message_queue;
pub mod pace;
pub mod rebalance;
pub mod repeats;
mod requests;
pub mod resumes;
pub mod rooms;
mod shared;
pub mod stats;
pub mod tokens;
mod traffic;
pub mod users;

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidegate_backend::Gateway;
use tidegate_protocol::Code;

use crate::allocator::Trim;
use crate::driver::{Driver, Figures};
use crate::limits::memory::{MemoryBudget, MemoryLevel, Usage};
use crate::settings::Settings;
use admission::Admission;
use arrivals::Arrivals;
use calls::Calls;
use clients::Clients;
use clients::cause::Cause;
use clock::Clock;
use draining::Draining;
use housekeeping::Housekeeping;
use message_queue::{MESSAGES_MAX, MessageQueue};
use rebalance::Rebalance;
use repeats::Repeats;
use resumes::Resumes;
use rooms::Rooms;
pub use shared::Shared;
use stats::{Exporter, Levels, ShardCounters, Stats};
use users::Users;

/// Expired calls that one turn answers, at most. It spreads a mass timeout over several turns.
const EXPIRED_CALLS_MAX: usize = 1024;

/// One shard. See the [module](self).
pub struct Shard {
    id: u16,
    shared: Arc<Shared>,
    /// The settings that this shard has applied.
    settings: Arc<Settings>,
    clock: Clock,
    clients: Clients,
    users: Users,
    rooms: Rooms,
    resumes: Resumes,
    repeats: Repeats,
    calls: Calls,
    admission: Admission,
    arrivals: Arrivals,
    draining: Draining,
    rebalance: Rebalance,
    messages: MessageQueue,
    housekeeping: Housekeeping,
    /// Answers that were given on this thread wait until long outboxes are flushed. Nothing is read until then.
    has_answers_left: bool,
    /// More calls have expired than one turn handles.
    has_expired_calls_left: bool,
    /// Expired calls that this turn may still fail. With none left it handles no more messages.
    expired_calls_left: usize,
    is_finished: bool,
    /// What the shard has reported to the memory budget, and what the budget demands.
    memory_used: Usage,
    memory_level: MemoryLevel,
    /// Bytes of the requests that wait for workers, as of the last housekeeping: of all shards, kept by the first.
    queued_bytes: usize,
    /// Of the driver's wires, as of the last housekeeping.
    wires: Figures,
    counters: ShardCounters,
    exporter: Exporter,
}

impl Shard {
    /// Shard number `id` of a gateway.
    #[must_use]
    pub fn new(id: u16, shared: Arc<Shared>, gateway: Gateway) -> Self {
        let settings = shared.settings();
        let config = &settings.config;
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
            calls: Calls::new(
                config,
                &shared.backends,
                Arc::clone(&shared.user_rates),
                address.clone(),
                gateway,
            ),
            admission: Admission::new(
                config.limits.connections_max,
                config.limits.accepts_per_second_max,
                config.shards,
            ),
            arrivals: Arrivals::new(config),
            draining: Draining::new(&config.shutdown),
            rebalance: Rebalance::default(),
            messages: MessageQueue::new(Arc::clone(address.mailbox())),
            housekeeping: Housekeeping::default(),
            has_answers_left: false,
            has_expired_calls_left: false,
            expired_calls_left: EXPIRED_CALLS_MAX,
            is_finished: false,
            memory_used: Usage::default(),
            memory_level: MemoryLevel::Normal,
            queued_bytes: 0,
            wires: Figures::default(),
            counters: ShardCounters::default(),
            exporter: Exporter::new(id),
            shared,
            settings,
        }
    }

    /// Handles the messages that came before the shard's thread: everybody's shared log comes before the first client.
    pub fn begin(&mut self, driver: &mut impl Driver) {
        // No wait has set the clock yet. Times to live and deadlines count from now.
        self.clock.on_woken(driver.now(), 0);
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
        self.export(driver);
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
        self.expire(driver);
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
        self.update_memory();
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
            opening: self.wires.opening,
            waiting_handshakes: self.wires.waiting_handshakes,
            drain_phase: self.draining.progress(0).map_or(0, |drain| drain.phase as usize + 1),
        }
    }

    /// Reports what the shard holds to the memory budget, and does what its level demands.
    #[inline]
    fn update_memory(&mut self) {
        let Some(budget) = &self.shared.memory else { return };
        let usage = Usage {
            inbound: self.clients.inbound_bytes(),
            outbound: self.clients.unsent_bytes_in_all(),
            logs: self.rooms.log_bytes(),
            calls: self.queued_bytes,
        };
        let level = budget.report(&mut self.memory_used, usage);
        if mem::replace(&mut self.memory_level, level) != level {
            self.rooms.set_pressed(level >= MemoryLevel::Trim);
            self.admission.set_lacks_memory(level >= MemoryLevel::Full);
        }
    }

    /// The bytes that wait in the backends' queues are read a few times a second: the queues have a bound of their own.
    fn count_queued_bytes(&mut self) {
        if self.id == 0 && self.shared.memory.is_some() {
            let queues = self.shared.backends.iter().filter_map(|backend| backend.pool.as_ref());
            self.queued_bytes = queues.map(|pool| pool.observer().stats().bytes).sum();
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

    fn expire(&mut self, driver: &mut impl Driver) {
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
        self.rooms.notify_renamed();
        self.apply();
        if self.housekeeping.start(self.clock.now_ms()) {
            self.rooms.close_idle_rooms(self.clock.now_ms());
            self.repeats.forget_old(self.clock.now_ms());
            self.count_queued_bytes();
            self.shared.address_limits.bans().remove_ended(self.clock.now_ms());
            driver.free_spare_memory();
            self.trim_memory();
            self.export(driver);
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
        self.arrivals.free_spare_memory();
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

    fn export(&mut self, driver: &impl Driver) {
        self.wires = driver.figures();
        self.counters.tls_handshakes = self.wires.completed_handshakes;
        self.counters.refused_commands += self.shared.limiter.take_refused();
        let (stats, levels) = (self.stats(), self.levels());
        self.exporter.export(&stats, levels, self.shared.limiter.commands());
        self.calls.export(&self.shared.call_durations);
        self.shared.memory.iter().for_each(MemoryBudget::export);
    }

    /// One turn's part of a drain, and the end when no connection is left.
    fn drain_step(&mut self, driver: &mut impl Driver) {
        let now_ms = self.clock.now_ms();
        let Some(step) = self.draining.start_step(self.clients.len(), now_ms) else { return };
        if step.is_first {
            self.rooms.start_draining();
            self.admission.drop_pace();
            self.apply();
        }
        if let Some(until_ms) = step.stop_listening_until_ms {
            driver.stop_listening(self.clock.instant(until_ms));
        }
        while let Some(slot) = self.draining.next_slot(self.clients.slots()) {
            self.say_goodbye(slot, step);
        }
        // All shards end together: each is home to some of the others' users and rooms.
        self.is_finished |= self.draining.may_end() && self.connections() == 0;
        if !self.is_finished {
            self.housekeeping.bring_forward(now_ms + draining::POLL_MS);
        }
    }

    /// The turn of a slot's connection has come in a drain.
    fn say_goodbye(&mut self, slot: u32, step: draining::Step) {
        let client = self.clients.at(slot);
        if client.is_closing() {
            if step.aborts_closing {
                self.clients.hurry_close(slot, &self.clock);
            }
            return;
        }
        self.draining.count_notified();
        if step.has_expired || client.calls == 0 && !client.is_opening() {
            self.close_gracefully(slot, Cause::Draining);
        } else if client.calls > 0 {
            self.clients.start_leaving(slot);
        }
    }

    /// Clients that a rebalance which starts now could send to other gateways.
    fn count_movable(&self, spared_s: u16) -> u64 {
        let spared_s = self.rebalance.spared_s(spared_s, self.clock.now_ms());
        let slots = 0..u32::try_from(self.clients.slots()).expect("slots are 32 bits");
        slots.filter(|&slot| self.clients.may_leave(slot, spared_s, &self.clock)).count() as u64
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
