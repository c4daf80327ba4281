//! Members in and out, and rooms opened and closed.
//!
//! Joins and leaves go through a room's home, so that they are in order with its pushes. A shard gets a copy
//! of the log with its first member and tells the home when the last is gone; the home stops only if no
//! join is on its way there.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_backend::{PushError, RoomId};
use tokio::sync::oneshot;

use super::Shard;
use super::closing::millis;
use super::log::Log;
use super::mailbox::Message;
use super::receipt::{Gather, Receipt};
use super::rooms::{self, EVERYBODY, Role, Room, RoomIndex};
use crate::config::RoomPolicy;
use crate::connection::MembershipId;
use crate::control::RoomInfo;
use crate::driver::ConnId;
use crate::session_id::Place;

/// Rooms that one round of housekeeping looks at.
const IDLE_ROOMS_LOOKED_AT: usize = 4096;

/// What the rooms whose home is here need to be kept.
#[derive(Debug)]
pub(super) struct Keeping {
    /// Above every offset that a room closed here ever gave.
    first_offset: u64,
    /// Where housekeeping goes on looking for idle rooms.
    idle_next: usize,
}

impl Keeping {
    pub(super) const fn new(first_offset: u64) -> Self {
        Self { first_offset, idle_next: 0 }
    }
}

impl Shard {
    /// Opens everybody's room, which is always there, on every shard.
    pub(super) fn open_everybody(&mut self) {
        let others = (0..self.shared.config.shards).filter(|&shard| shard != 0);
        let role = if self.id == 0 {
            Role::Home { subscribers: others.map(|shard| (shard, 0)).collect() }
        } else {
            Role::Replica { joins: 0 }
        };
        let policy = self.policy(&RoomId::everybody());
        let log = Log::new(self.shared.first_offset, policy.log_bytes_max);
        let index = self.rooms.open(RoomId::everybody(), policy, log, role, 0);
        debug_assert_eq!(index, EVERYBODY);
    }

    /// At a room's home: a connection of some shard becomes a member.
    pub(super) fn on_join(
        &mut self,
        room: RoomId,
        place: Place,
        after_offset: Option<u64>,
        receipt: Arc<Receipt>,
    ) {
        let Some(index) = self.find_or_open(&room, &receipt) else { return };
        let shard = place.shard();
        let conn = place.conn();
        if shard == self.id {
            return self.join_here(index, conn, after_offset, &receipt);
        }
        let Room { role, log, .. } = self.rooms.get(index);
        let Role::Home { subscribers } = role else { return };
        let log =
            if let Some((_, joins)) = subscribers.iter_mut().find(|(known, _)| *known == shard) {
                *joins += 1;
                None
            } else {
                subscribers.push((shard, 1));
                log.forget_merged();
                let mut copy = log.clone();
                // Who stands further back is here, and not there; so is who waits for a window's end.
                copy.release();
                copy.trim(copy.end());
                Some(Box::new(copy))
            };
        self.post(shard, Message::Joined { room, conn, after_offset, log, receipt });
    }

    /// At a connection's shard: the home says that it is a member.
    pub(super) fn on_joined(
        &mut self,
        room: RoomId,
        conn: ConnId,
        after_offset: Option<u64>,
        log: Option<Box<Log>>,
        receipt: &Receipt,
    ) {
        let index = match (self.rooms.find(&room), log) {
            (Some(index), None) => index,
            (None, Some(log)) => {
                let policy = self.policy(&room);
                let role = Role::Replica { joins: 0 };
                self.rooms.open(room, policy, *log, role, self.now_ms)
            }
            (found, _) => {
                debug_assert!(false, "a log comes with the first join alone: {found:?}");
                return;
            }
        };
        if let Role::Replica { joins } = &mut self.rooms.get(index).role {
            *joins += 1;
        }
        self.join_here(index, conn, after_offset, receipt);
    }

    fn join_here(
        &mut self,
        index: RoomIndex,
        conn: ConnId,
        after_offset: Option<u64>,
        receipt: &Receipt,
    ) {
        let slot = conn.slot;
        let rooms_max = self.shared.config.rooms.rooms_per_connection_max;
        let Some(connection) = self.connection(conn).filter(|connection| !connection.is_going())
        else {
            self.stats.stale_commands += 1;
            receipt.refuse(PushError::SessionGone);
            return self.unsubscribe_if_empty(index);
        };
        let (first, memberships) = (connection.first_membership, connection.memberships);
        let log = &self.rooms.get(index).log;
        let (oldest, released, end) = (log.first(), log.released(), log.end());
        // Who asks for more than the log still holds is not slow: it gets what there is.
        let cursor = after_offset.map_or(end, |offset| offset.saturating_add(1).clamp(oldest, end));
        if let Some(known) = self.rooms.find_membership(first, index) {
            let membership = self.rooms.membership(known);
            membership.set_cursor(membership.cursor(end).min(cursor), end);
        } else if usize::from(memberships) > rooms_max {
            self.stats.refused_rooms += 1;
            receipt.refuse(PushError::TooManyRooms { rooms_max });
            return self.unsubscribe_if_empty(index);
        } else {
            let connection = &mut self.connections[slot as usize];
            connection.memberships += 1;
            self.rooms.join(&mut connection.first_membership, slot, index, cursor);
        }
        receipt.add(1);
        if cursor < released {
            self.at(slot).flags.owed = true;
            self.touch(slot);
        }
    }

    /// Makes a new session a member of everybody's room.
    pub(super) fn join_everybody(&mut self, slot: u32) {
        let cursor = self.rooms.get(EVERYBODY).log.end();
        let connection = &mut self.connections[slot as usize];
        connection.memberships += 1;
        self.rooms.join(&mut connection.first_membership, slot, EVERYBODY, cursor);
    }

    /// At a room's home.
    pub(super) fn on_leave(&mut self, room: RoomId, place: Place, receipt: Arc<Receipt>) {
        let conn = place.conn();
        if place.shard() == self.id {
            self.on_left(&room, conn, &receipt);
        } else {
            self.post(place.shard(), Message::Left { room, conn, receipt });
        }
    }

    /// At a connection's shard.
    pub(super) fn on_left(&mut self, room: &RoomId, conn: ConnId, receipt: &Receipt) {
        let Some(connection) = self.connection(conn) else {
            self.stats.stale_commands += 1;
            return receipt.refuse(PushError::SessionGone);
        };
        let first = connection.first_membership;
        let Some(index) = self.rooms.find(room) else { return };
        if let Some(member) = self.rooms.find_membership(first, index) {
            receipt.add(1);
            self.hand_out(conn.slot, member);
            self.leave(conn.slot, member);
        }
    }

    /// Ends all of a connection's memberships.
    pub(super) fn leave_all(&mut self, slot: u32) {
        while let Some(member) = self.at(slot).first_membership {
            self.leave(slot, member);
        }
        self.at(slot).flags.owed = false;
    }

    fn leave(&mut self, slot: u32, member: MembershipId) {
        let index = self.rooms.membership(member).room;
        let connection = &mut self.connections[slot as usize];
        connection.memberships -= 1;
        if let Some(moved) = self.rooms.leave(&mut connection.first_membership, member) {
            // The member that took the place may be one that the sweep has yet to come to.
            self.at(moved).flags.owed = true;
            self.touch(moved);
        }
        let now_ms = self.now_ms;
        let room = self.rooms.get(index);
        room.active_at_ms = now_ms;
        if room.members.is_empty() && room.window_ends_ms.is_some() {
            self.release(index);
        }
        self.unsubscribe_if_empty(index);
    }

    /// Tells a room's home that this shard has no members left.
    fn unsubscribe_if_empty(&mut self, index: RoomIndex) {
        let id = self.id;
        let room = self.rooms.get(index);
        if index == EVERYBODY || !room.members.is_empty() {
            return;
        }
        if let Role::Replica { joins } = room.role {
            let room = room.id.clone();
            let home = rooms::home(&room, self.shared.config.shards);
            self.post(home, Message::Unsubscribe { room, shard: id, joins });
        }
    }

    /// At a room's home: a shard has no members left, unless a join is on its way there.
    pub(super) fn on_unsubscribe(&mut self, room: RoomId, shard: u16, joins: u64) {
        let Some(index) = self.rooms.find(&room) else { return };
        let Role::Home { subscribers } = &mut self.rooms.get(index).role else { return };
        let before = subscribers.len();
        subscribers.retain(|&subscriber| subscriber != (shard, joins));
        if subscribers.len() < before {
            self.post(shard, Message::Unsubscribed { room });
        }
    }

    /// At a shard without members: the home will send nothing more.
    pub(super) fn on_unsubscribed(&mut self, room: &RoomId) {
        if let Some(index) = self.rooms.find(room) {
            self.rooms.close(index);
        }
    }

    pub(super) fn on_ask_room(&mut self, room: &RoomId, reply: oneshot::Sender<Option<RoomInfo>>) {
        let Some(index) = self.rooms.find(room) else {
            drop(reply.send(None));
            return;
        };
        let Room { log, members, role, .. } = self.rooms.get(index);
        let info = RoomInfo {
            room: room.to_string(),
            members: members.len() as u64,
            last_offset: log.end() - 1,
            first_offset: log.first(),
            log_bytes: log.bytes() as u64,
        };
        let gather = Gather::new(Some(info), reply);
        if let Role::Home { subscribers } = role {
            for (shard, _) in subscribers.clone() {
                let (room, gather) = (room.clone(), Arc::clone(&gather));
                self.post(shard, Message::CountMembers { room, gather });
            }
        }
    }

    pub(super) fn on_count_members(&mut self, room: &RoomId, gather: &Gather<Option<RoomInfo>>) {
        if let Some(index) = self.rooms.find(room) {
            let members = self.rooms.get(index).members.len() as u64;
            gather.add(|info| info.iter_mut().for_each(|info| info.members += members));
        }
    }

    /// Closes rooms whose home is here, that have no members and no recent push; frees what others
    /// keep for nothing.
    pub(super) fn close_idle_rooms(&mut self) {
        let idle_ttl_ms = millis(self.shared.config.rooms.idle_ttl);
        let places = self.rooms.places();
        for _ in 0..IDLE_ROOMS_LOOKED_AT.min(places) {
            self.keeping.idle_next = (self.keeping.idle_next + 1) % places;
            let Some((index, room)) = self.rooms.at(self.keeping.idle_next) else { continue };
            if !room.sweep.queued {
                // Who resumed was given its own run of frames.
                room.log.forget_merged();
            }
            let abandoned = match &room.role {
                Role::Home { subscribers } => room.members.is_empty() && subscribers.is_empty(),
                Role::Replica { .. } => false,
            };
            let idle = room.active_at_ms + idle_ttl_ms <= self.now_ms;
            if abandoned
                && idle
                && index != EVERYBODY
                && let Some(room) = self.rooms.close(index)
            {
                self.keeping.first_offset = self.keeping.first_offset.max(room.log.end());
            }
        }
    }

    /// At a room's home. `None`: there are too many rooms, and the command is refused.
    pub(super) fn find_or_open(&mut self, room: &RoomId, receipt: &Receipt) -> Option<RoomIndex> {
        if let Some(index) = self.rooms.find(room) {
            return Some(index);
        }
        let rooms_max = self.shared.config.rooms.rooms_max;
        if self.rooms.homes() >= rooms_max {
            self.stats.refused_rooms += 1;
            receipt.refuse(PushError::RoomsFull { rooms_max });
            return None;
        }
        let policy = self.policy(room);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let first = self.keeping.first_offset.max(now_us);
        let log = Log::new(first, policy.log_bytes_max);
        let role = Role::Home { subscribers: Vec::new() };
        Some(self.rooms.open(room.clone(), policy, log, role, self.now_ms))
    }

    /// The shard ends. Where nobody had it drain, pushes end that were not put before everybody.
    pub(super) fn refuse_unfinished(&mut self) {
        if self.draining.is_some() {
            return;
        }
        for place in 0..self.rooms.places() {
            let Some((_, room)) = self.rooms.at(place) else { continue };
            room.receipts.iter().for_each(|(_, receipt)| receipt.refuse(PushError::Stopping));
        }
    }

    fn policy(&self, room: &RoomId) -> RoomPolicy {
        let rooms = &self.shared.config.rooms;
        let fits = |prefix: &str| match prefix {
            "*" => room.is_everybody(),
            _ => room.as_str().starts_with(prefix),
        };
        rooms
            .policies
            .iter()
            .find(|(prefix, _)| fits(prefix))
            .map_or(rooms.default_policy, |(_, policy)| *policy)
    }
}
