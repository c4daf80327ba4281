//! Rooms: the part of the shard that owns logs, members, merge windows and the fan-out.
//!
//! A room has a home shard, which numbers its pushes and puts joins, leaves and pushes in order. Every shard
//! with members has a replica of the log. A shard gets the log with its first member, and tells the home when
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
//! | [`homes`], [`expulsions`] | how rooms open and close at their home; whose tickets are worthless there |
//! | [`subscribers`] | which shards follow a room |
//! | [`shared`] | what waits for a log that gateways share; who is told that it has another id |
//! | [`pushes`] | the way of a push: held back, released, offered |
//! | [`fan_out`] | which member is served next |
//! | [`windows`] | which pushes are held back |
//! | [`message`] | messages between shards about rooms |

pub mod cursor;
pub mod expulsions;
pub mod fan_out;
pub mod homes;
pub mod lifetimes;
pub mod log;
pub mod message;
pub mod pushes;
pub mod reader;
pub mod room;
pub mod shared;
pub mod slots;
pub mod subscribers;
pub mod table;
#[cfg(test)]
mod tests;
pub mod windows;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::publisher::Nobody;
use tidegate_backend::{PushError, RoomId, UserId};
use tokio::sync::oneshot;

use super::clock;
use super::command::{Aggregate, CommandLimiter, CommandPermit};
use super::stats::RoomCounters;
use crate::cluster::message::ToCluster;
use crate::control::RoomInfo;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::tickets::seconds;
use homes::Homes;
pub use homes::Settings;
use log::{After, Log, LogId, LogIds, LogName};
pub use message::ConnState;
use message::{
    AskedBy, Asker, Bar, FetchedLog, Joined, Keeps, RoomEffect, RoomMessage, SharedPush, Urgency,
};
use pushes::{NumberedPush, Pushes};
use reader::NextChunk;
pub use reader::ReadOutcome;
use room::Room;
use shared::{RENAMED_MAX, SharedRooms};
use subscribers::Role;
pub use subscribers::home;
use table::{EVERYBODY, Member, RoomIndex, Table};
use tidegate_protocol::proto::v1::Recovery;

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
        let Some(message) = self.divert(message) else { return };
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
            RoomMessage::Publish { room, kind, biz_data, options, permit } => {
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
                self.unsubscribe(room, shard, joins);
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

    /// Where gateways share rooms: passes on what is for Redis, and lets wait what concerns a room that is being fetched.
    /// Returns any other message.
    fn divert(&mut self, message: RoomMessage) -> Option<RoomMessage> {
        if !self.shared.is_on() {
            return Some(message);
        }
        match self.shared.hold(message)? {
            RoomMessage::Publish { room, kind, biz_data, options, permit } => {
                self.counters.pushes_to_rooms += 1;
                let publish = ToCluster::Publish { room, kind, biz_data, options, permit };
                self.effects.push_back(RoomEffect::ToCluster(publish));
                None
            }
            RoomMessage::Join { room, addr, after, asker } if self.table.find(&room).is_none() => {
                let fetched = room.clone();
                self.fetch(fetched, RoomMessage::Join { room, addr, after, asker });
                None
            }
            message => Some(message),
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

    /// At a room's home: numbers a push and passes it on.
    fn publish(
        &mut self,
        room: &RoomId,
        kind: i32,
        biz_data: &[u8],
        ends_ms: u64,
        permit: &Arc<CommandPermit>,
        now_ms: u64,
    ) {
        self.counters.pushes_to_rooms += 1;
        permit.set_nobody(Nobody::NoMembers);
        let index = match self.find_or_open(room, now_ms) {
            Ok(index) => index,
            Err(error) => return permit.refuse(error),
        };
        self.number_and_append(index, (kind, biz_data), ends_ms, permit, now_ms);
    }

    /// At a room's home: gives a push the next offset, and passes it on.
    fn number_and_append(
        &mut self,
        index: RoomIndex,
        (kind, biz_data): (i32, &[u8]),
        ends_ms: u64,
        permit: &Arc<CommandPermit>,
        now_ms: u64,
    ) {
        let Room { id: room, log, policy, role, .. } = self.table.get(index);
        let offset = log.end();
        let urgency = Urgency::of(kind, policy);
        let frame = message::encode_push(kind, biz_data, offset, log.name().number);
        if let Role::Home { subscribers } = role {
            self.effects.extend(subscribers.post_to_each(|| {
                let (room, frame, permit) = (room.clone(), frame.clone(), Arc::clone(permit));
                RoomMessage::Append { room, offset, frame, urgency, ends_ms, permit }
            }));
        }
        self.append(index, NumberedPush { frame, urgency, ends_ms, permit }, now_ms);
    }

    /// At a shard with members: the home has numbered a push.
    fn append_numbered(&mut self, room: &RoomId, offset: u64, push: NumberedPush<'_>, now_ms: u64) {
        // The room is gone here if the home does not know yet that the last member has left.
        if let Some(index) = self.table.find(room) {
            debug_assert_eq!(self.table.get(index).log.end(), offset, "no push is lost");
            self.append(index, push, now_ms);
        }
    }

    fn append(&mut self, index: RoomIndex, push: NumberedPush<'_>, now_ms: u64) {
        let Self { pushes, table, counters, .. } = self;
        pushes.append(table, index, push, counters, now_ms);
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

    /// The shard drains: no push waits for a merge window from now on.
    pub fn start_draining(&mut self) {
        self.pushes.start_draining(&mut self.table);
    }

    /// At a room's home: a connection becomes a member.
    fn join(
        &mut self,
        room: RoomId,
        addr: SessionAddr,
        (after, ticket_s): (After, u32),
        asker: Asker,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let (shard, conn) = (addr.shard(), addr.conn());
        let is_allowed = match asker {
            Asker::Backend(_) => true,
            Asker::Client { user_id, ticket_made_s } => {
                self.homes.expulsions.allow(&room, user_id, ticket_made_s)
            }
        };
        let opened = if is_allowed { self.find_or_open(&room, now_ms).map(Some) } else { Ok(None) };
        let index = match opened {
            Ok(Some(index)) => index,
            refused => {
                refused.err().into_iter().for_each(|error| asker.refuse(error));
                return self.post(shard, RoomMessage::JoinRefused { room, conn, asker });
            }
        };
        self.report_first_member(index);
        if shard == self.settings.shard {
            return self.join_here(index, conn, after, ticket_s, &asker, state);
        }
        let Room { role, log, .. } = self.table.get(index);
        let Role::Home { subscribers } = role else { return };
        let log = subscribers.count_join(shard).then(|| Box::new(log.released_copy()));
        self.post(shard, RoomMessage::Joined { room, conn, after, ticket_s, log, asker });
    }

    /// At a connection's shard: the home has made it a member.
    #[expect(clippy::too_many_arguments, reason = "the fields of the message")]
    fn joined(
        &mut self,
        room: RoomId,
        conn: ConnId,
        (after, ticket_s): (After, u32),
        log: Option<Box<Log>>,
        asker: &Asker,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let index = match (self.table.find(&room), log) {
            (Some(index), None) => index,
            (None, Some(log)) => {
                let policy = self.settings.rooms.policy_of(room.as_str());
                let role = Role::Replica { joins: 0 };
                let index = self.table.open(room, policy, *log, role, now_ms);
                // The home may have taken it for live a moment ago.
                self.expire_pushes(now_ms);
                index
            }
            (found, _) => {
                debug_assert!(false, "a log comes with the first join alone: {found:?}");
                return;
            }
        };
        if let Role::Replica { joins } = &mut self.table.get(index).role {
            *joins += 1;
        }
        self.join_here(index, conn, after, ticket_s, asker, state);
    }

    fn join_here(
        &mut self,
        index: RoomIndex,
        conn: ConnId,
        after: After,
        ticket_s: u32,
        asker: &Asker,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        if state(conn) == ConnState::Gone {
            self.counters.stale_commands += 1;
            asker.refuse(PushError::SessionGone);
            return self.unsubscribe_if_empty(index);
        }
        let rooms_max = self.settings.rooms.rooms_per_connection_max;
        let (joined, next) = self.plan_join(conn.slot, index, after, ticket_s);
        let released = self.table.get(index).log.released();
        match self.table.join_from(conn.slot, index, next, rooms_max) {
            Ok(is_new) => {
                let is_by_client = matches!(asker, Asker::Client { .. });
                if let Asker::Backend(permit) = asker {
                    permit.count_connections(1);
                }
                // A client's session waits for the report.
                if is_new || after != After::Now || is_by_client {
                    self.report_join(conn.slot, joined, asker);
                }
                if next < released {
                    self.effects.push_back(RoomEffect::PushesPending(conn.slot));
                }
            }
            Err(error) => {
                self.counters.refused_rooms += 1;
                asker.refuse(error);
                self.report_join(conn.slot, Joined::refused(joined.name), asker);
                self.unsubscribe_if_empty(index);
            }
        }
    }

    /// What a member is told when it joins, and the offset from which on it gets pushes. A member that joins again
    /// without a position stays where it is: nothing is replayed to it.
    fn plan_join(
        &mut self,
        slot: u32,
        index: RoomIndex,
        after: After,
        ticket_s: u32,
    ) -> (Joined, u64) {
        let is_member = self.table.find_member(slot, index).is_some();
        let Room { id, log, policy, .. } = self.table.get(index);
        let replayed = if is_member { 0 } else { policy.replay_on_join };
        let (next, recovery) = log.start_after(after, replayed);
        // A client that misses nothing may have seen more of a shared log than this gateway.
        let seen = match after {
            After::Position { offset, .. } if recovery == Recovery::Complete => offset,
            _ => 0,
        };
        let (name, head) = (id.to_string(), log.head().max(seen));
        (Joined { name, log: Some(log.name()), head, recovery, ticket_s }, next)
    }

    /// What a client is told of a room that its connection is a member of; `None`: it is no member.
    pub fn describe_membership(&mut self, slot: u32, room: &str) -> Option<Joined> {
        let index = self.table.find(&RoomId::new(room).ok()?)?;
        self.table.find_member(slot, index)?;
        // Without a ticket: this shard does not know since when the membership lasts.
        Some(self.plan_join(slot, index, After::Now, 0).0)
    }

    fn report_join(&mut self, slot: u32, joined: Joined, asker: &Asker) {
        let asked_by = match asker {
            Asker::Backend(_) => AskedBy::Backend,
            Asker::Client { .. } => AskedBy::Client,
        };
        self.effects.push_back(RoomEffect::Joined(slot, joined, asked_by));
    }

    /// What a client is told of everybody's room that has not asked for earlier pushes.
    pub fn everybody(&mut self) -> Joined {
        let Room { id, log, .. } = self.table.get(EVERYBODY);
        let (name, log, head) = (id.to_string(), Some(log.name()), log.head());
        Joined { name, log, head, recovery: Recovery::NotAsked, ticket_s: 0 }
    }

    /// Makes a new session a member of everybody's room, or moves its cursor back if it is one. Returns what
    /// its client is told.
    pub fn join_everybody(&mut self, slot: u32, after: After) -> Joined {
        let (joined, next) = self.plan_join(slot, EVERYBODY, after, 0);
        let released = self.table.get(EVERYBODY).log.released();
        self.table
            .join_from(slot, EVERYBODY, next, usize::MAX)
            .expect("no bound on rooms concerns everybody's");
        if next < released {
            self.effects.push_back(RoomEffect::PushesPending(slot));
        }
        joined
    }

    /// At a connection's shard: it leaves a room, and first gets what was published before.
    fn left(
        &mut self,
        room: &RoomId,
        conn: ConnId,
        permit: &CommandPermit,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let connection = state(conn);
        if connection == ConnState::Gone {
            self.counters.stale_commands += 1;
            return permit.refuse(PushError::SessionGone);
        }
        let Some(index) = self.table.find(room) else { return };
        if let Some(member) = self.table.find_member(conn.slot, index) {
            permit.count_connections(1);
            let Self { table, counters, effects, .. } = self;
            let write = |chunk| effects.push_back(RoomEffect::LastPushes(conn.slot, chunk));
            match connection {
                ConnState::Open => reader::read_unoffered(table, member, counters, write),
                ConnState::Resuming => reader::read_all(table, member, counters, write),
                ConnState::Backlogged | ConnState::Gone => {}
            }
            self.leave(member, now_ms);
            self.effects.push_back(RoomEffect::Left(conn.slot, room.clone()));
        }
    }

    /// Ends all of a connection's memberships.
    pub fn leave_all(&mut self, slot: u32, now_ms: u64) {
        while let Some(member) = self.table.first_member(slot) {
            self.leave(member, now_ms);
        }
    }

    fn leave(&mut self, member: Member, now_ms: u64) {
        let index = self.table.room_of(member);
        if let Some(moved) = self.table.leave(member) {
            // The round may pass over the member that moved to the free position.
            self.effects.push_back(RoomEffect::PushesPending(moved));
        }
        let room = self.table.get(index);
        room.active_at_ms = now_ms;
        if room.member_count == 0 && room.window_ends_ms.is_some() {
            self.pushes.release(&mut self.table, index);
        }
        self.unsubscribe_if_empty(index);
    }

    /// Tells a room's home that this shard has no members left.
    fn unsubscribe_if_empty(&mut self, index: RoomIndex) {
        let Settings { shard, shards, .. } = self.settings;
        let found = self.table.get(index);
        if let Role::Replica { joins } = found.role
            && found.member_count == 0
            && index != EVERYBODY
        {
            let room = found.id.clone();
            self.post(home(&room, shards), RoomMessage::Unsubscribe { room, shard, joins });
        }
    }

    /// At a room's home: a shard has no members left, unless a join is on its way there.
    fn unsubscribe(&mut self, room: RoomId, shard: u16, joins: u64) {
        let Some(index) = self.table.find(&room) else { return };
        let Role::Home { subscribers } = &mut self.table.get(index).role else { return };
        if subscribers.end(shard, joins) {
            self.post(shard, RoomMessage::Unsubscribed { room });
        }
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
        self.freed_bytes += self.homes.close_idle(&mut self.table, now_ms, &mut closed);
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

    /// At a room's home: asks for the log that gateways share. The join waits for it.
    fn fetch(&mut self, room: RoomId, join: RoomMessage) {
        if let Err(error) = self.homes.check_bound(&self.table, self.shared.fetched()) {
            self.counters.refused_rooms += 1;
            if let RoomMessage::Join { addr, asker, .. } = join {
                asker.refuse(error);
                let conn = addr.conn();
                self.post(addr.shard(), RoomMessage::JoinRefused { room, conn, asker });
            }
            return;
        }
        self.shared.start(room.clone(), join);
        self.follow(room);
    }

    /// At a room's home: a member comes. Other gateways hear of the first one at once.
    fn report_first_member(&mut self, index: RoomIndex) {
        let Room { id, role, member_count, .. } = self.table.get(index);
        let has_none = matches!(role, Role::Home { subscribers } if subscribers.is_empty())
            && *member_count == 0;
        if self.shared.is_on() && has_none {
            let first = ToCluster::FirstMember { room: id.clone() };
            self.effects.push_back(RoomEffect::ToCluster(first));
        }
    }

    fn follow(&mut self, room: RoomId) {
        let home = self.settings.shard;
        self.effects.push_back(RoomEffect::ToCluster(ToCluster::Follow { room, home }));
    }

    /// At a room's home: the shared log has come. Everybody's room is open from the start, and so are rooms whose log
    /// could not be had in time: their members go on with the shared log.
    /// Returns what has waited for it.
    fn fetched(
        &mut self,
        room: &RoomId,
        log: FetchedLog,
        now_ms: u64,
        unix_ms: impl Fn() -> u64,
    ) -> Vec<RoomMessage> {
        let waiting = self.shared.end(room);
        // A room that was closed meanwhile is followed no longer.
        if !waiting.is_empty() || self.table.find(room).is_some() {
            self.open_fetched(room, log, now_ms, unix_ms);
            self.expire_pushes(now_ms);
        }
        waiting
    }

    fn open_fetched(
        &mut self,
        room: &RoomId,
        log: FetchedLog,
        now_ms: u64,
        unix_ms: impl Fn() -> u64,
    ) {
        log.barred.iter().for_each(|&bar| self.barred(room, bar));
        let found = self.table.find(room);
        let index = found.unwrap_or_else(|| self.table.next_index());
        let name = self.homes.name_shared(index, log.id);
        let policy = self.settings.rooms.policy_of(room.as_str());
        let encode = |(push, offset): (SharedPush, u64)| {
            let ends_ms = push.ends_ms(now_ms, &unix_ms);
            let frame = message::encode_push(push.kind, &push.biz_data, offset, name.number);
            (frame, ends_ms)
        };
        let frames = log.pushes.into_iter().zip(log.first..).map(encode);
        let log = Log::shared(name, log.first, frames, policy.log_bytes_max);
        if let Some(index) = found {
            return self.replace_everywhere(index, log, Keeps::Nothing, seconds(unix_ms()));
        }
        let role = Role::Home { subscribers: subscribers::Subscribers::default() };
        let index = self.table.open(room.clone(), policy, log, role, now_ms);
        self.table.schedule_expiry(index);
    }

    /// At a room's home: tickets are worthless, as another gateway says.
    fn barred(&mut self, room: &RoomId, bar: Bar) {
        let expulsions = &mut self.homes.expulsions;
        let is_full = match bar.user_id {
            Some(user_id) => expulsions.expel_until(room, user_id, bar.until_s),
            None => expulsions.expel_all(bar.until_s),
        };
        self.counters.revoked_tickets += u64::from(is_full);
    }

    /// At a room's home: the next push of a shared log.
    fn append_shared(
        &mut self,
        room: &RoomId,
        push: &SharedPush,
        ends_ms: u64,
        permit: &Arc<CommandPermit>,
        now_ms: u64,
    ) {
        let Some(index) = self.table.find(room) else { return };
        let Room { log, role, active_at_ms, .. } = self.table.get(index);
        if push.offset != 0 && push.offset != log.end() {
            debug_assert!(push.offset < log.end(), "pushes of a shared log come without a hole");
            return;
        }
        let is_followed = matches!(role, Role::Home { subscribers } if !subscribers.is_empty());
        let active_at_ms = *active_at_ms;
        let (kind, biz_data) = (push.kind, &push.biz_data);
        self.number_and_append(index, (kind, biz_data), ends_ms, permit, now_ms);
        let room = self.table.get(index);
        // A room without members here has no use for pushes: they don't keep it open.
        if room.member_count == 0 && !is_followed {
            room.active_at_ms = active_at_ms;
        }
    }

    /// At a room's home: the shared log goes on under another id, without its pushes from `cut` on.
    fn renamed(&mut self, room: &RoomId, (id, cut, next): (LogId, u64, u64), unix_s: u32) {
        let Some(index) = self.table.find(room) else { return };
        let log = self.table.get(index).log.renamed(id, cut, next);
        self.replace_everywhere(index, log, Keeps::Places, unix_s);
    }

    /// At a room's home: puts another log into the place of the room's, on all shards with members.
    fn replace_everywhere(&mut self, index: RoomIndex, mut log: Log, keeps: Keeps, unix_s: u32) {
        let ticket_s = self.homes.expulsions.stamp(unix_s);
        let found = self.table.get(index);
        let room = found.id.clone();
        if let Role::Home { subscribers } = &found.role {
            let copy = log.released_copy();
            self.effects.extend(subscribers.post_to_each(|| {
                let (room, log) = (room.clone(), Box::new(copy.clone()));
                RoomMessage::Replaced { room, log, keeps, ticket_s }
            }));
        }
        self.replace_log(index, log, keeps, ticket_s);
    }

    /// Puts another log into the place of a room's. The members' cursors follow, and the members are told over the
    /// next turns.
    fn replace_log(&mut self, index: RoomIndex, log: Log, keeps: Keeps, ticket_s: u32) {
        let (old_end, end) = (self.table.get(index).log.end(), log.end());
        self.pushes.replace_log(&mut self.table, index, log);
        self.table.schedule_expiry(index);
        let mut position = None;
        while let Some((member, next)) = self.table.next_of(index, position) {
            position = Some(next);
            let (_, cursor) = self.table.room_and_cursor(member);
            let place = match keeps {
                Keeps::Places => cursor.get(old_end).min(end),
                Keeps::Nothing => end,
            };
            cursor.set(place, end);
        }
        let room = self.table.get(index);
        room.is_being_renamed = room.member_count > 0;
        if room.is_being_renamed {
            self.shared.rename(index, ticket_s);
        }
        // Members may still have to get what the log has kept.
        self.pushes.release(&mut self.table, index);
    }

    /// Tells members that their room's log has another id, as many as one turn may.
    pub fn tell_renamed(&mut self) {
        let mut left = RENAMED_MAX;
        while let Some(renaming) = self.shared.renaming() {
            let (index, ticket_s) = (renaming.index, renaming.ticket_s);
            let is_open = self.table.get_open(index).is_some_and(|room| room.is_being_renamed);
            if is_open && let Some((member, next)) = self.table.next_of(index, renaming.position) {
                if left == 0 {
                    return;
                }
                left -= 1;
                renaming.position = Some(next);
                let (room, _) = self.table.room_and_cursor(member);
                let (name, log) = (room.id.to_string(), Some(room.log.name()));
                let (head, recovery) = (room.log.released_head(), Recovery::Gap);
                let joined = Joined { name, log, head, recovery, ticket_s };
                let slot = self.table.slot_of(member);
                self.effects.push_back(RoomEffect::Joined(slot, joined, AskedBy::Backend));
                continue;
            }
            self.shared.end_renaming();
            if is_open {
                self.table.get(index).is_being_renamed = false;
                self.pushes.release(&mut self.table, index);
            }
        }
    }

    /// At a room's home: finds a room, or opens it.
    fn find_or_open(&mut self, room: &RoomId, now_ms: u64) -> Result<RoomIndex, PushError> {
        if let Some(index) = self.table.find(room) {
            return Ok(index);
        }
        let Self { homes, table, settings, counters, .. } = self;
        homes
            .open(table, &settings.rooms, room, now_ms)
            .inspect_err(|_| counters.refused_rooms += 1)
    }
}
