//! Rooms: the part of the shard that owns logs, members, merge windows and the fan-out.
//!
//! A room has a home shard, which numbers its pushes and puts joins, leaves and pushes in order. Every shard
//! with members has a replica of the log. A shard gets the log with its first member, and notifies the home when
//! its last member has left; the home ends the subscription unless another join is on its way.
//!
//! This part knows connections by their slot only. It answers with messages for other shards, and with slots whose
//! connections have pushes to be sent. The shard asks it for the bytes, and writes them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`log`], [`lifetimes`] | the pushes of one room; those that have a time to live |
//! | [`room`], [`cursor`] | one room: its log, its list of members, its round; where a member is in the log |
//! | [`reader`] | the one reader of a log: what a member gets next |
//! | [`table`], [`slots`] | rooms, memberships, and their links |
//! | [`homes`], [`expulsions`] | how rooms open and close at their home; which users' tickets are worthless there |
//! | [`subscribers`] | which shards follow a room |
//! | [`shared`] | what waits for a log that gateways share; members who have to be notified that it has another id |
//! | [`pushes`] | the stages of a push: held back, released, offered |
//! | [`fan_out`] | which member is served next |
//! | [`windows`] | which pushes are held back |
//! | [`message`] | messages between shards about rooms |
//!
//! `impl Rooms` is in four files: this one dispatches messages, `publishing` numbers pushes, `membership` has joins and
//! leaves, and `shared_logs` has what is needed only where gateways share logs.

pub mod cursor;
pub mod expulsions;
pub mod fan_out;
pub mod homes;
pub mod lifetimes;
pub mod log;
mod membership;
pub mod message;
mod publishing;
pub mod pushes;
pub mod reader;
pub mod room;
pub mod shared;
mod shared_logs;
pub mod slots;
pub mod subscribers;
pub mod table;
#[cfg(test)]
mod tests;
pub mod windows;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::{PushError, RoomId, UserId};
use tokio::sync::oneshot;

use super::clock;
use super::command::{Aggregate, CommandLimiter, CommandPermit, RoomPush};
use super::stats::RoomCounters;
use crate::cluster::message::ToCluster;
use crate::config::RoomsConfig;
use crate::control::RoomInfo;
use crate::driver::ConnId;
use crate::tickets::seconds;
use homes::Homes;
pub use homes::Settings;
use log::{Log, LogIds, LogName};
pub use message::ConnState;
use message::{Joined, RoomEffect, RoomMessage};
use pushes::{NumberedPush, Pushes};
use reader::NextChunk;
pub use reader::ReadOutcome;
use shared::SharedRooms;
use subscribers::Role;
pub use subscribers::home;
use table::{EVERYBODY, Member, RoomIndex, Table};

/// All rooms of a shard. See the [module](self).
#[derive(Debug)]
pub struct Rooms {
    settings: Settings,
    table: Table,
    homes: Homes,
    pushes: Pushes,
    shared: SharedRooms,
    effects: VecDeque<RoomEffect>,
    /// Memory of the rooms that were closed, in bytes, since it was last taken.
    freed_bytes: usize,
    counters: RoomCounters,
}

impl Rooms {
    /// Everybody's room alone, which every shard has from the start.
    #[must_use]
    pub fn new(settings: Settings, limiter: Arc<CommandLimiter>) -> Self {
        let Settings { shard, shards, first_offset, log_key, .. } = settings;
        let mut rooms = Self {
            homes: Homes::new(&settings),
            shared: SharedRooms::new(settings.is_shared),
            table: Table::default(),
            pushes: Pushes::new(limiter),
            effects: VecDeque::new(),
            freed_bytes: 0,
            counters: RoomCounters::default(),
            settings,
        };
        let role = Role::in_everybodys_room(shard, shards);
        let policy = rooms.settings.rooms.policy_of(RoomId::everybody().as_str());
        let name = LogName { id: LogIds::of_everybodys_room(log_key), number: 1 };
        let log = Log::new(name, first_offset, policy.log_bytes_max);
        let index = rooms.table.open(RoomId::everybody(), policy, log, role, 0);
        debug_assert_eq!(index, EVERYBODY);
        rooms
    }

    /// Uses another configuration. Each open room has its new policy from now on. Where that is another one, a merge window that
    /// is under way ends, and the log is trimmed with the next push.
    pub fn reconfigure(&mut self, rooms: &RoomsConfig) {
        if self.settings.rooms == *rooms {
            return;
        }
        let before = std::mem::replace(&mut self.settings.rooms, rooms.clone());
        self.homes.reconfigure(rooms);
        if (&before.default_policy, &before.policies) == (&rooms.default_policy, &rooms.policies) {
            return;
        }
        for entry in 0..self.table.entries() {
            let Some((index, room)) = self.table.at(entry) else { continue };
            let policy = rooms.policy_of(room.id.as_str());
            if policy == room.policy {
                continue;
            }
            room.policy = policy;
            room.log.set_bytes_max(policy.log_bytes_max);
            if room.window_ends_ms.is_some() {
                self.pushes.release(&mut self.table, index);
            }
        }
    }

    /// Open rooms, replicas included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no room is open. It never is: there is everybody's.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Memberships of this shard's connections.
    #[must_use]
    pub const fn membership_count(&self) -> usize {
        self.table.membership_count()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> &RoomCounters {
        &self.counters
    }

    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.pushes.is_busy() || self.shared.is_busy()
    }

    /// When the next merge window ends, on the shard's clock.
    #[must_use]
    pub fn next_window_end_ms(&self) -> Option<u64> {
        self.pushes.next_window_end_ms()
    }

    /// The next thing to do for this part.
    #[inline]
    pub fn next_effect(&mut self) -> Option<RoomEffect> {
        self.effects.pop_front()
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.effects.shrink_to_fit();
    }

    /// Handles a message. `now_ms` is on the shard's clock, `unix_ms` reads the wall clock, and `state` returns
    /// the state of a connection of this shard.
    pub fn handle(
        &mut self,
        message: RoomMessage,
        now_ms: u64,
        unix_ms: &impl Fn() -> u64,
        state: &impl Fn(ConnId) -> ConnState,
    ) {
        let Some(message) = self.divert(message, now_ms) else { return };
        match message {
            RoomMessage::Fetched { room, log } => {
                for message in self.fetched(&room, log, now_ms, unix_ms) {
                    self.handle(message, now_ms, unix_ms, state);
                }
            }
            RoomMessage::Shared { room, push, permit } => {
                let ends_ms = push.ends_ms(now_ms, unix_ms);
                self.append_shared(&room, &push, ends_ms, &permit, now_ms);
            }
            RoomMessage::Renamed { room, id, cut, next } => {
                self.renamed(&room, (id, cut, next), seconds(unix_ms()));
            }
            RoomMessage::Barred { room, bar, ends, permit } => {
                self.barred(&room, bar);
                let expelled = bar.user_id.filter(|_| ends);
                self.effects.extend(expelled.map(|user| RoomEffect::Expel(user, room, permit)));
            }
            RoomMessage::Replaced { room, log, keeps, ticket_s } => {
                if let Some(index) = self.table.find(&room) {
                    self.replace_log(index, *log, keeps, ticket_s);
                    self.expire_pushes(now_ms);
                }
            }
            RoomMessage::Publish(RoomPush { room, kind, biz_data, options, permit }) => {
                let ends_ms = clock::ends_ms(options.as_deref(), now_ms);
                self.publish(&room, kind, &biz_data, ends_ms, &permit, now_ms);
            }
            RoomMessage::Append { room, offset, frame, urgency, ends_ms, permit } => {
                let push = NumberedPush { frame, urgency, ends_ms, permit: &permit };
                self.append_numbered(&room, offset, push, now_ms);
            }
            RoomMessage::Join { room, addr, after, asker } => {
                let ticket_s = self.homes.expulsions.stamp(seconds(unix_ms()));
                self.join(room, addr, (after, ticket_s), asker, now_ms, state);
            }
            RoomMessage::Joined { room, conn, after, ticket_s, log, asker } => {
                self.joined(room, conn, (after, ticket_s), log, &asker, now_ms, state);
            }
            RoomMessage::JoinRefused { room, conn, asker } => {
                if state(conn) != ConnState::Gone {
                    self.report_join(conn.slot, Joined::refused(room.as_str()), &asker);
                }
            }
            RoomMessage::Leave { room, addr, permit } if addr.shard() == self.settings.shard => {
                self.left(&room, addr.conn(), &permit, now_ms, state);
            }
            RoomMessage::Leave { room, addr, permit } => {
                self.post(addr.shard(), RoomMessage::Left { room, conn: addr.conn(), permit });
            }
            RoomMessage::Left { room, conn, permit } => {
                self.left(&room, conn, &permit, now_ms, state);
            }
            RoomMessage::Expel { room, user_id, permit } => {
                self.expel(room, user_id, permit, seconds(unix_ms()));
            }
            RoomMessage::Unsubscribe { room, shard, joins } => {
                self.unsubscribe(room, shard, joins, now_ms);
            }
            RoomMessage::Unsubscribed { room } => {
                if let Some(closed) =
                    self.table.find(&room).and_then(|index| self.table.close(index))
                {
                    self.freed_bytes += closed.memory_bytes();
                }
            }
            RoomMessage::Inspect { room, reply } => self.inspect(&room, reply),
            RoomMessage::CountMembers { room, aggregate } => {
                if let Some(index) = self.table.find(&room) {
                    let members = self.table.get(index).member_count as u64;
                    aggregate.add(|info| info.iter_mut().for_each(|info| info.members += members));
                }
            }
        }
    }

    /// At a room's home: a backend expels a user.
    fn expel(&mut self, room: RoomId, user_id: UserId, permit: Arc<CommandPermit>, now_s: u32) {
        if self.homes.expulsions.expel(&room, user_id, now_s) {
            self.counters.revoked_tickets += 1;
        }
        if self.shared.is_on() {
            let until_s = self.homes.expulsions.until_s(&room, user_id).max(now_s);
            let (room, permit) = (room.clone(), Arc::clone(&permit));
            let bar = ToCluster::Bar { room, user_id, until_s, permit };
            self.effects.push_back(RoomEffect::ToCluster(bar));
        }
        self.effects.push_back(RoomEffect::Expel(user_id, room, permit));
    }

    fn post(&mut self, shard: u16, message: RoomMessage) {
        self.effects.push_back(RoomEffect::Post(shard, message));
    }

    /// Removes the pushes whose time to live is over. Call it when the shard's clock has moved.
    #[inline]
    pub fn expire_pushes(&mut self, now_ms: u64) {
        self.counters.expired_pushes += self.table.expire_pushes(now_ms);
    }

    /// Ends the merge windows that are over at this time.
    pub fn end_windows(&mut self, now_ms: u64) {
        self.pushes.end_windows(&mut self.table, now_ms);
    }

    /// Bytes of the logs of the rooms whose home is this shard.
    #[must_use]
    pub const fn log_bytes(&self) -> usize {
        self.table.log_bytes()
    }

    /// Whether memory is short from now on: no push waits for a merge window then, and rooms without members close at
    /// once.
    pub fn set_pressed(&mut self, is_pressed: bool) {
        self.pushes.set_pressed(&mut self.table, is_pressed);
    }

    /// The shard drains: no push waits for a merge window from now on.
    pub fn start_draining(&mut self) {
        self.pushes.start_draining(&mut self.table);
    }

    fn inspect(&mut self, room: &RoomId, reply: oneshot::Sender<Option<RoomInfo>>) {
        let Some(index) = self.table.find(room) else {
            // The operator may have stopped waiting.
            drop(reply.send(None));
            return;
        };
        let found = self.table.get(index);
        let aggregate = Aggregate::new(Some(found.info()), reply);
        if let Role::Home { subscribers } = &found.role {
            self.effects.extend(subscribers.post_to_each(|| {
                let (room, aggregate) = (room.clone(), Arc::clone(&aggregate));
                RoomMessage::CountMembers { room, aggregate }
            }));
        }
    }

    /// The next member to serve in this turn, and its connection's slot; `None` when the slice of `budget` members is
    /// used up, or no member has to be served.
    #[inline]
    pub fn next_to_serve(&mut self, budget: &mut usize) -> Option<(Member, u32)> {
        let member = self.pushes.next_to_serve(&mut self.table, budget)?;
        Some((member, self.table.slot_of(member)))
    }

    /// What a member gets next of the released pushes.
    #[inline]
    pub fn next_chunk(&mut self, member: Member) -> NextChunk {
        reader::next_released(&mut self.table, member, &mut self.counters)
    }

    /// Passes to `write` the pushes that were published and not yet offered to a connection. Call it before the
    /// connection is closed gracefully.
    pub fn read_last_pushes(&mut self, slot: u32, write: impl FnMut(Bytes)) {
        reader::read_last(&mut self.table, slot, &mut self.counters, write);
    }

    /// Passes to `write` the released pushes of a connection's rooms: see [`reader::read_pending`].
    pub fn read_pending_pushes(
        &mut self,
        slot: u32,
        bytes_max: usize,
        write: impl FnMut(Bytes),
    ) -> ReadOutcome {
        reader::read_pending(&mut self.table, slot, bytes_max, &mut self.counters, write)
    }

    /// Trims logs and ends the pushes that every member was offered. Call it last in a turn.
    pub fn trim_logs(&mut self) {
        self.pushes.trim_logs(&mut self.table);
    }

    /// Closes rooms whose home is here, that have no members and no recent push.
    pub fn close_idle_rooms(&mut self, now_ms: u64) {
        let mut closed = Vec::new();
        let is_pressed = self.pushes.is_pressed();
        let idle_ttl_ms = if is_pressed { 0 } else { self.homes.idle_ttl_ms() };
        let idle_since_ms = now_ms.checked_sub(idle_ttl_ms);
        self.freed_bytes += self.homes.close_idle(&mut self.table, idle_since_ms, &mut closed);
        self.unfollow(closed);
    }

    /// At a room's home: if there is no place for one more room, closes an unused one.
    fn make_place(&mut self) {
        let (mut closed, fetched) = (Vec::new(), self.shared.fetched());
        let Some(bytes) = self.homes.close_unused(&mut self.table, fetched, &mut closed) else {
            return;
        };
        self.freed_bytes += bytes;
        self.counters.displaced_rooms += 1;
        self.unfollow(closed);
    }

    fn unfollow(&mut self, closed: Vec<RoomId>) {
        if self.shared.is_on() {
            let unfollow = |room| RoomEffect::ToCluster(ToCluster::Unfollow { room });
            self.effects.extend(closed.into_iter().map(unfollow));
        }
    }

    /// Memory of the rooms that were closed, in bytes, since the last call of this function.
    pub const fn take_freed_bytes(&mut self) -> usize {
        std::mem::replace(&mut self.freed_bytes, 0)
    }

    /// The shard ends and did not drain: refuses the pushes that were not offered to every member.
    pub fn refuse_unfinished(&mut self) {
        self.shared.refuse_waiting();
        self.pushes.refuse_unfinished(&mut self.table);
    }

    /// At a room's home: finds a room, or opens it.
    fn find_or_open(&mut self, room: &RoomId, now_ms: u64) -> Result<RoomIndex, PushError> {
        if let Some(index) = self.table.find(room) {
            return Ok(index);
        }
        self.make_place();
        let Self { homes, table, settings, counters, .. } = self;
        homes
            .open(table, &settings.rooms, room, now_ms)
            .inspect_err(|_| counters.refused_rooms += 1)
    }
}
