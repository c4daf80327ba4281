//! Logs that gateways share: fetched from Redis, appended to in Redis' order, and replaced when they get another id.
//! What waits for that is in [`shared`](super::shared).

use std::sync::Arc;

use tidegate_backend::RoomId;
use tidegate_protocol::proto::v1::Recovery;

use super::Rooms;
use super::log::{Log, LogId};
use super::message::{
    self, AskedBy, Bar, FetchedLog, Joined, Keeps, RoomEffect, RoomMessage, SharedPush,
};
use super::room::Room;
use super::shared::RENAMED_MAX;
use super::subscribers::{Role, Subscribers};
use super::table::RoomIndex;
use crate::cluster::message::ToCluster;
use crate::shard::command::CommandPermit;
use crate::tickets::seconds;

impl Rooms {
    /// Where gateways share rooms: passes on what is for Redis, and defers what concerns a room that is being fetched.
    /// Returns any other message.
    pub(super) fn divert(&mut self, message: RoomMessage, now_ms: u64) -> Option<RoomMessage> {
        if !self.shared.is_on() {
            return Some(message);
        }
        match self.shared.hold(message)? {
            RoomMessage::Publish(push) => {
                self.counters.pushes_to_rooms += 1;
                self.effects.push_back(RoomEffect::ToCluster(ToCluster::Publish(push)));
                None
            }
            RoomMessage::Join { room, addr, after, asker } if self.table.find(&room).is_none() => {
                let fetched = room.clone();
                self.fetch(fetched, RoomMessage::Join { room, addr, after, asker }, now_ms);
                None
            }
            message => Some(message),
        }
    }

    /// At a room's home: asks for the log that gateways share. The join waits for it.
    fn fetch(&mut self, room: RoomId, join: RoomMessage, now_ms: u64) {
        self.make_place();
        if let Err(error) = self.homes.check_bound(&self.table, self.shared.fetched(), now_ms) {
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

    /// At a room's home: a member joins. Other gateways are notified of the first one at once.
    pub(super) fn report_first_member(&mut self, index: RoomIndex) {
        let Room { id, role, member_count, .. } = self.table.get(index);
        let has_none = matches!(role, Role::Home { subscribers } if subscribers.is_empty())
            && *member_count == 0;
        if self.shared.is_on() && has_none {
            let first = ToCluster::FirstMember { room: id.clone() };
            self.effects.push_back(RoomEffect::ToCluster(first));
        }
    }

    pub(super) fn follow(&mut self, room: RoomId) {
        let home = self.settings.shard;
        self.effects.push_back(RoomEffect::ToCluster(ToCluster::Follow { room, home }));
    }

    /// At a room's home: the shared log was fetched. Everybody's room is open from the start, and so are rooms whose log
    /// could not be fetched in time: their members continue with the shared log.
    /// Returns what has waited for it.
    pub(super) fn fetched(
        &mut self,
        room: &RoomId,
        log: FetchedLog,
        now_ms: u64,
        unix_ms: impl Fn() -> u64,
    ) -> Vec<RoomMessage> {
        let waiting = self.shared.end(room);
        // A room that was closed in between is followed no longer.
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
        let role = Role::Home { subscribers: Subscribers::default() };
        let index = self.table.open(room.clone(), policy, log, role, now_ms);
        self.table.schedule_expiry(index);
        // What has waited for it may be refused.
        self.table.note_use(index);
    }

    /// At a room's home: tickets are worthless, as another gateway reports.
    pub(super) fn barred(&mut self, room: &RoomId, bar: Bar) {
        let expulsions = &mut self.homes.expulsions;
        let is_full = match bar.user_id {
            Some(user_id) => expulsions.expel_until(room, user_id, bar.until_s),
            None => expulsions.expel_all(bar.until_s),
        };
        self.counters.revoked_tickets += u64::from(is_full);
    }

    /// At a room's home: the next push of a shared log.
    pub(super) fn append_shared(
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

    /// At a room's home: the shared log continues under another id, without its pushes from `cut` on.
    pub(super) fn renamed(
        &mut self,
        room: &RoomId,
        (id, cut, next): (LogId, u64, u64),
        unix_s: u32,
    ) {
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
        self.table.note_use(index);
    }

    /// Puts another log into the place of a room's. The members' cursors are moved, and the members are notified over
    /// the next turns.
    pub(super) fn replace_log(&mut self, index: RoomIndex, log: Log, keeps: Keeps, ticket_s: u32) {
        let (old_end, end) = (self.table.get(index).log.end(), log.end());
        self.pushes.replace_log(&mut self.table, index, log);
        self.table.recount(index);
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

    /// Notifies members that their room's log has another id, as many as one turn may.
    pub fn notify_renamed(&mut self) {
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
}
