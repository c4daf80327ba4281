//! The tables of rooms and memberships.
//!
//! A room lives on its home shard, which numbers its pushes, and on every shard that has members,
//! which holds a replica of the log: the same encoded frames, shared. A membership is a cursor into
//! that log, 20 bytes, linked into its connection's list and listed in its room.
//!
//! Every session is a member of everybody's room, so that membership is kept by slot and takes a cursor and a bit.
//!
//! This module keeps the tables consistent. [`Rooms`](super::Rooms) decides what happens.

use std::collections::BTreeSet;

use hashbrown::HashMap;
use tidegate_backend::{PushError, RoomId};

use super::cursor::Cursor;
use super::log::Log;
use super::room::{MembershipId, Room};
use super::slots::Slots;
use super::subscribers::Role;
use crate::allocator::should_shrink;
use crate::config::RoomPolicy;

/// One connection in one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// The connection in this slot, in everybody's room.
    OfEverybody(u32),
    /// A connection in another room.
    Listed(MembershipId),
}

/// Identifies a room of a shard while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomIndex(u32);

impl RoomIndex {
    /// Its number: at most as many as rooms were ever open at once.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Everybody's room, which every shard opens first.
pub const EVERYBODY: RoomIndex = RoomIndex(0);

/// One connection in one room that is not everybody's.
#[derive(Clone, Copy, Debug)]
struct Membership {
    cursor: Cursor,
    /// The room. Unused in a free entry.
    room: RoomIndex,
    /// The connection's slot.
    slot: u32,
    /// The connection's next membership. In a free entry: the next free one.
    next: Option<MembershipId>,
    /// Its index in its room's `members`.
    position: u32,
}

/// What is kept of each slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The cursor in everybody's room, if the slot's connection is a member.
    everybody: Cursor,
    /// The first membership of another room.
    first: Option<MembershipId>,
}

/// All rooms and memberships of a shard.
#[derive(Debug, Default)]
pub struct Table {
    by_id: HashMap<RoomId, RoomIndex>,
    /// Boxed, so that a closed room leaves 8 bytes behind and not its whole size.
    rooms: Vec<Option<Box<Room>>>,
    free_rooms: Vec<RoomIndex>,
    /// When the next push's time to live is over, of each room that has one.
    expiries: BTreeSet<(u64, RoomIndex)>,
    /// The unused rooms. First are those that were used for the shortest time, and of these those that are unused for the
    /// longest time.
    unused: BTreeSet<((u64, u64), RoomIndex)>,
    /// Bytes of the logs of the rooms whose home is this shard.
    log_bytes: usize,
    /// Rooms whose home is this shard, without everybody's.
    homes: usize,
    slots: Vec<Slot>,
    /// The slots whose connections are members of everybody's room.
    everybody: Slots,
    /// The slots that are served everybody's room before their other rooms the next time.
    everybody_first: Slots,
    memberships: Vec<Membership>,
    free_membership: Option<MembershipId>,
    membership_count: usize,
}

impl Table {
    /// Open rooms.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Rooms whose home is this shard, without everybody's.
    #[must_use]
    pub const fn homes(&self) -> usize {
        self.homes
    }

    /// Memberships of this shard's connections.
    #[must_use]
    pub const fn membership_count(&self) -> usize {
        self.membership_count
    }

    /// Entries of the table, open or not: what [`Self::at`] may be asked for.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.rooms.len()
    }

    /// The room in an entry of the table, if it is open.
    #[must_use]
    pub fn at(&mut self, entry: usize) -> Option<(RoomIndex, &mut Room)> {
        let room = self.rooms.get_mut(entry)?.as_deref_mut()?;
        Some((RoomIndex(u32::try_from(entry).ok()?), room))
    }

    /// Finds a room by its id.
    #[must_use]
    pub fn find(&self, id: &RoomId) -> Option<RoomIndex> {
        self.by_id.get(id).copied()
    }

    /// An open room.
    #[inline]
    pub fn get(&mut self, index: RoomIndex) -> &mut Room {
        self.rooms[index.0 as usize].as_deref_mut().expect("an index lives as long as its room")
    }

    /// A room that may be closed by now. Another room may have its index.
    #[inline]
    pub fn get_open(&mut self, index: RoomIndex) -> Option<&mut Room> {
        self.rooms.get_mut(index.0 as usize)?.as_deref_mut()
    }

    fn membership(&mut self, id: MembershipId) -> &mut Membership {
        &mut self.memberships[id.get() as usize - 1]
    }

    /// A member's room, and its cursor in the room's log.
    #[inline]
    pub fn room_and_cursor(&mut self, member: Member) -> (&mut Room, &mut Cursor) {
        let (index, cursor) = match member {
            Member::OfEverybody(slot) => (EVERYBODY, &mut self.slots[slot as usize].everybody),
            Member::Listed(id) => {
                let Membership { room, cursor, .. } = &mut self.memberships[id.get() as usize - 1];
                (*room, cursor)
            }
        };
        let room = self.rooms[index.0 as usize].as_deref_mut();
        (room.expect("a member keeps its room"), cursor)
    }

    /// A member's room.
    #[must_use]
    pub fn room_of(&self, member: Member) -> RoomIndex {
        match member {
            Member::OfEverybody(_) => EVERYBODY,
            Member::Listed(id) => self.memberships[id.get() as usize - 1].room,
        }
    }

    /// The slot of a member's connection.
    #[inline]
    #[must_use]
    pub fn slot_of(&self, member: Member) -> u32 {
        match member {
            Member::OfEverybody(slot) => slot,
            Member::Listed(id) => self.memberships[id.get() as usize - 1].slot,
        }
    }

    /// The next member that a room's round serves, if there is one.
    #[inline]
    pub fn next_in_round(&mut self, index: RoomIndex) -> Option<Member> {
        let everybody = &self.everybody;
        let room = self.rooms[index.0 as usize].as_deref_mut()?;
        let round = &mut room.round;
        if round.members_left == 0 {
            return None;
        }
        if index == EVERYBODY {
            let Some(slot) = everybody.next(round.next_member) else {
                round.members_left = 0;
                return None;
            };
            round.next_member = slot as usize + 1;
            return Some(Member::OfEverybody(slot));
        }
        Some(Member::Listed(room.next_in_round()))
    }

    /// The members of a room, from one of its ends on: each call returns the next one and the position to continue from.
    /// Members that come or go meanwhile are passed over, or returned twice, only if they came meanwhile
    /// or moved behind the position. `None` as the position begins.
    pub fn next_of(&self, index: RoomIndex, position: Option<usize>) -> Option<(Member, usize)> {
        if index == EVERYBODY {
            let slot = self.everybody.next(position.unwrap_or(0))?;
            return Some((Member::OfEverybody(slot), slot as usize + 1));
        }
        // From the last to the first: one that leaves is replaced by the last one, which was returned before.
        let room = self.rooms.get(index.0 as usize)?.as_deref()?;
        let before = position.unwrap_or(room.member_count).min(room.member_count).checked_sub(1)?;
        Some((Member::Listed(room.member_at(before)?), before))
    }

    /// The index of the room that is opened next.
    #[must_use]
    pub fn next_index(&self) -> RoomIndex {
        self.free_rooms.last().copied().unwrap_or_else(|| {
            RoomIndex(u32::try_from(self.rooms.len()).expect("fewer rooms than 2^32"))
        })
    }

    /// Opens a room. No room with that id may be open.
    pub fn open(
        &mut self,
        id: RoomId,
        policy: RoomPolicy,
        log: Log,
        role: Role,
        now_ms: u64,
    ) -> RoomIndex {
        let room = Room::new(id.clone(), policy, log, role, now_ms);
        self.homes += usize::from(room.is_limited());
        let index = self.next_index();
        if self.free_rooms.pop().is_none() {
            self.rooms.push(None);
        }
        self.rooms[index.0 as usize] = Some(Box::new(room));
        self.by_id.insert(id, index);
        self.schedule_expiry(index);
        self.recount(index);
        index
    }

    /// Closes a room without members.
    pub fn close(&mut self, index: RoomIndex) -> Option<Box<Room>> {
        let room = self.rooms[index.0 as usize].take()?;
        debug_assert!(room.member_count == 0, "a member keeps its room");
        debug_assert!(room.window_ends_ms.is_none(), "a room without members has no window");
        self.homes -= usize::from(room.is_limited());
        self.log_bytes -= room.counted_bytes;
        if let Some(expiry_ms) = room.expiry_ms {
            self.expiries.remove(&(expiry_ms, index));
        }
        if let Some(unused) = room.unused {
            self.unused.remove(&(unused, index));
        }
        self.by_id.remove(&room.id);
        self.free_rooms.push(index);
        if should_shrink(self.by_id.len(), self.by_id.capacity()) {
            self.by_id.shrink_to(2 * self.by_id.len());
        }
        Some(room)
    }

    /// Bytes of the logs of the rooms whose home is this shard. The other shards share their frames.
    #[must_use]
    pub const fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// Counts the bytes of a room's log anew. Call it when the log has changed.
    #[inline]
    pub fn recount(&mut self, index: RoomIndex) {
        let Some(room) = self.rooms[index.0 as usize].as_deref_mut() else { return };
        let bytes = if matches!(room.role, Role::Home { .. }) { room.log.bytes() } else { 0 };
        self.log_bytes = self.log_bytes - room.counted_bytes + bytes;
        room.counted_bytes = bytes;
    }

    /// Notes whether a room is unused: its home is here, nobody is in it, and it never had a push. Call it when a member has
    /// come or gone, or a push has come.
    pub fn note_use(&mut self, index: RoomIndex) {
        let Some(room) = self.rooms[index.0 as usize].as_deref_mut() else { return };
        let is_unused = room.is_limited() && room.is_empty_home() && room.log.head() == 0;
        let used_ms = room.active_at_ms.saturating_sub(room.opened_at_ms);
        let unused = is_unused.then_some((used_ms, room.active_at_ms));
        let before = std::mem::replace(&mut room.unused, unused);
        if before != unused {
            if let Some(before) = before {
                self.unused.remove(&(before, index));
            }
            self.unused.extend(unused.map(|unused| (unused, index)));
        }
    }

    /// The unused room that was used for the shortest time, if there is one.
    #[must_use]
    pub fn briefest_unused(&self) -> Option<RoomIndex> {
        self.unused.first().map(|&(_, index)| index)
    }

    /// Notes when the next push of a room has to be expired. Call it after a push with a time to live was appended.
    pub fn schedule_expiry(&mut self, index: RoomIndex) {
        let Some(room) = self.rooms[index.0 as usize].as_deref_mut() else { return };
        let next = room.log.next_expiry_ms();
        let before = std::mem::replace(&mut room.expiry_ms, next);
        if before != next {
            if let Some(ends_ms) = before {
                self.expiries.remove(&(ends_ms, index));
            }
            self.expiries.extend(next.map(|ends_ms| (ends_ms, index)));
        }
    }

    /// Empties the frames of the pushes whose time is over. Returns how many of them were not offered to each member.
    #[inline]
    pub fn expire_pushes(&mut self, now_ms: u64) -> u64 {
        match self.expiries.first() {
            Some(&(ends_ms, _)) if ends_ms <= now_ms => self.expire_due(now_ms),
            _ => 0,
        }
    }

    fn expire_due(&mut self, now_ms: u64) -> u64 {
        let mut unoffered = 0;
        while let Some(&(ends_ms, index)) = self.expiries.first()
            && ends_ms <= now_ms
        {
            let Room { log, round, member_count, .. } = self.get(index);
            let offered = if *member_count == 0 { u64::MAX } else { round.offered };
            log.expire(now_ms, |offset| unoffered += u64::from(offset >= offered));
            self.recount(index);
            self.schedule_expiry(index);
        }
        unoffered
    }

    /// Makes the connection in a slot a member of a room that it is not in.
    pub fn join(&mut self, slot: u32, room: RoomIndex, cursor: u64) -> Member {
        debug_assert!(cursor <= self.get(room).log.end(), "no member is ahead of the log");
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, Slot::default());
        }
        self.membership_count += 1;
        self.get(room).member_count += 1;
        let cursor = Cursor::new(cursor);
        if room == EVERYBODY {
            debug_assert!(!self.everybody.contains(slot), "it is no member yet");
            self.everybody.set(slot, true);
            self.slots[slot as usize].everybody = cursor;
            return Member::OfEverybody(slot);
        }
        Member::Listed(self.join_listed(slot, room, cursor))
    }

    /// Makes the connection in a slot a member that gets the pushes from the offset `next` on, which the log
    /// holds. The cursor of a member only moves back. Returns whether it was no member before.
    ///
    /// # Errors
    /// [`PushError::TooManyRooms`].
    pub fn join_from(
        &mut self,
        slot: u32,
        room: RoomIndex,
        next: u64,
        rooms_max: usize,
    ) -> Result<bool, PushError> {
        let end = self.get(room).log.end();
        if let Some(member) = self.find_member(slot, room) {
            let (_, cursor) = self.room_and_cursor(member);
            cursor.set(cursor.get(end).min(next), end);
            Ok(false)
        } else if self.rooms_of(slot) >= rooms_max {
            Err(PushError::TooManyRooms { rooms_max })
        } else {
            self.join(slot, room, next);
            Ok(true)
        }
    }

    /// Adds a membership at the front of the connection's list.
    fn join_listed(&mut self, slot: u32, room: RoomIndex, cursor: Cursor) -> MembershipId {
        let first = self.slots[slot as usize].first;
        let membership = Membership { cursor, room, slot, next: first, position: 0 };
        let id = if let Some(id) = self.free_membership {
            self.free_membership = self.membership(id).next;
            *self.membership(id) = membership;
            id
        } else {
            self.memberships.push(membership);
            let count = u32::try_from(self.memberships.len()).expect("fewer than 2^32");
            MembershipId::new(count).expect("at least the one just pushed")
        };
        self.slots[slot as usize].first = Some(id);
        self.membership(id).position = self.get(room).add_member(id);
        id
    }

    /// A connection's first member, in the order in which its rooms are served.
    #[inline]
    #[must_use]
    pub fn first_member(&self, slot: u32) -> Option<Member> {
        let first = self.slots.get(slot as usize)?.first.map(Member::Listed);
        let everybody = self.everybody.contains(slot).then_some(Member::OfEverybody(slot));
        if self.everybody_first.contains(slot) { everybody.or(first) } else { first.or(everybody) }
    }

    /// The member behind another in that order.
    #[inline]
    #[must_use]
    pub fn next_member(&self, member: Member) -> Option<Member> {
        match member {
            Member::OfEverybody(slot) if self.everybody_first.contains(slot) => {
                self.slots[slot as usize].first.map(Member::Listed)
            }
            Member::OfEverybody(_) => None,
            Member::Listed(id) => {
                let Membership { next, slot, .. } = self.memberships[id.get() as usize - 1];
                let is_last = !self.everybody_first.contains(slot) && self.everybody.contains(slot);
                next.map(Member::Listed).or_else(|| is_last.then_some(Member::OfEverybody(slot)))
            }
        }
    }

    /// A connection's membership of a room.
    #[must_use]
    pub fn find_member(&self, slot: u32, room: RoomIndex) -> Option<Member> {
        if room == EVERYBODY {
            return self.everybody.contains(slot).then_some(Member::OfEverybody(slot));
        }
        let mut listed = self.listed(slot);
        listed.find(|(_, membership)| membership.room == room).map(|(id, _)| Member::Listed(id))
    }

    /// How many rooms a connection is in, without everybody's.
    #[must_use]
    pub fn rooms_of(&self, slot: u32) -> usize {
        self.listed(slot).count()
    }

    fn listed(&self, slot: u32) -> impl Iterator<Item = (MembershipId, &Membership)> {
        let mut next = self.slots.get(slot as usize).and_then(|slot| slot.first);
        std::iter::from_fn(move || {
            let id = next?;
            let membership = &self.memberships[id.get() as usize - 1];
            next = membership.next;
            Some((id, membership))
        })
    }

    /// Changes the order in which a connection's rooms are served, so that the room that was served last this time
    /// does not come before the others the next time.
    pub fn rotate(&mut self, last: Member) {
        let id = match last {
            Member::OfEverybody(slot) => return self.everybody_first.set(slot, false),
            Member::Listed(id) => id,
        };
        let Membership { next, slot, .. } = *self.membership(id);
        // Everybody's room is next, or was served before.
        let is_everybody_served = self.everybody_first.contains(slot);
        self.everybody_first.set(slot, !is_everybody_served);
        let Some(behind) = next else { return };
        let end = self.listed(slot).last().map_or(behind, |(id, _)| id);
        self.membership(id).next = None;
        let first = self.slots[slot as usize].first.replace(behind);
        self.membership(end).next = first;
    }

    /// Ends a membership. If a round is under way, returns the slot of the member that moved to the free
    /// position: the round may pass over it.
    pub fn leave(&mut self, member: Member) -> Option<u32> {
        let index = self.room_of(member);
        self.membership_count -= 1;
        self.get(index).member_count -= 1;
        match member {
            Member::OfEverybody(slot) => {
                self.everybody.set(slot, false);
                self.everybody_first.set(slot, false);
                None
            }
            Member::Listed(id) => self.leave_listed(id),
        }
    }

    fn leave_listed(&mut self, id: MembershipId) -> Option<u32> {
        let Membership { room, next, position, slot, .. } = *self.membership(id);
        if self.slots[slot as usize].first == Some(id) {
            self.slots[slot as usize].first = next;
        } else {
            let before = self.listed(slot).find(|(_, m)| m.next == Some(id)).map(|(id, _)| id);
            self.membership(before.expect("a membership is in its connection's list")).next = next;
        }
        let free = self.free_membership.replace(id);
        self.membership(id).next = free;

        let room = self.get(room);
        let moved = room.remove_member(position);
        let is_under_way = room.round.members_left > 0;
        let moved = self.membership(moved?);
        moved.position = position;
        is_under_way.then_some(moved.slot)
    }
}

#[cfg(test)]
mod tests;
