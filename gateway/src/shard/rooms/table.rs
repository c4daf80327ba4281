//! The tables of rooms and memberships.
//!
//! A room lives on its home shard, which numbers its pushes, and on every shard that has members,
//! which holds a replica of the log: the same encoded frames, shared. A membership is a cursor into
//! that log, 20 bytes, linked into its connection's list and listed in its room.
//!
//! This module keeps the tables consistent. [`Rooms`](super::Rooms) decides what happens.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashMap;
use tidegate_backend::RoomId;

use super::log::Log;
use crate::config::RoomPolicy;
use crate::shard::command::CommandPermit;

/// Names a membership. Never zero, so that an `Option` of it takes 4 bytes.
pub type MembershipId = NonZeroU32;

/// Names a room of a shard while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomIndex(u32);

/// Everybody's room, which every shard opens first.
pub const EVERYBODY: RoomIndex = RoomIndex(0);

/// One room, as one shard sees it.
#[derive(Debug)]
pub struct Room {
    /// Its name.
    pub id: RoomId,
    /// How it treats its members.
    pub policy: RoomPolicy,
    /// Its pushes.
    pub log: Log,
    /// Its members on this shard.
    pub members: Vec<MembershipId>,
    /// How far the fan-out has come.
    pub sweep: Sweep,
    /// When the open merge window ends, on the shard's clock. A room without members has no window.
    pub window_ends_ms: Option<u64>,
    /// Permits of the pushes that were not offered to every member yet, by offset. They hold the pushes under
    /// way, so the bound on commands bounds what the log holds beyond its own bound.
    pub permits: VecDeque<(u64, Arc<CommandPermit>)>,
    /// Whether this shard is the home.
    pub role: Role,
    /// When a push came or a member left last, on the shard's clock.
    pub active_at_ms: u64,
}

/// What a shard is to a room.
#[derive(Debug)]
pub enum Role {
    /// It numbers the pushes and passes them on to the shards with members.
    Home {
        /// The other shards with members, and how many joins each was sent.
        subscribers: Vec<(u16, u64)>,
    },
    /// It follows the home.
    Replica {
        /// How many joins the home has sent.
        joins: u64,
    },
}

/// A fan-out serves all members once. Pushes that are released meanwhile are for the next round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    /// The room is in the queue of the fan-out.
    pub queued: bool,
    /// What the log had released when this round began. The round offers all pushes before it.
    pub mark: u64,
    /// Every member was offered the pushes before this offset.
    pub offered: u64,
    /// The next member to serve.
    pub next: usize,
    /// Members that this round still has to serve. left <= members.len()
    pub left: usize,
}

/// One connection in one room.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// The low half of the offset that the member gets next.
    cursor: u32,
    /// The room. Unused in a free entry.
    pub room: RoomIndex,
    /// The connection's slot.
    pub slot: u32,
    /// The connection's next membership. In a free entry: the next free one.
    pub next: Option<MembershipId>,
    /// Its index in its room's `members`.
    pub position: u32,
}

impl Membership {
    /// The offset that the member gets next, in a log that ends at `end`. A member that is 2^32 pushes behind
    /// is taken for one that is less behind, and skips more than is counted. At a million pushes a second that
    /// takes one send of 71 minutes.
    #[inline]
    #[must_use]
    pub const fn cursor(&self, end: u64) -> u64 {
        end - low_half(end).wrapping_sub(self.cursor) as u64
    }

    /// Sets the cursor, in a log that ends at `end`. cursor <= end
    #[inline]
    pub const fn set_cursor(&mut self, cursor: u64, end: u64) {
        debug_assert!(cursor <= end, "no member is ahead of the log");
        self.cursor = low_half(cursor);
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low_half(offset: u64) -> u32 {
    offset as u32
}

/// All rooms and memberships of a shard.
#[derive(Debug, Default)]
pub struct Table {
    by_id: HashMap<RoomId, RoomIndex>,
    /// Boxed, so that a closed room leaves 8 bytes behind and not its whole size.
    rooms: Vec<Option<Box<Room>>>,
    free_rooms: Vec<RoomIndex>,
    /// Rooms whose home is this shard, without everybody's.
    homes: usize,
    /// The first membership of each connection, by slot.
    first_memberships: Vec<Option<MembershipId>>,
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

    /// Finds a room by name.
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

    /// A membership.
    #[inline]
    pub fn membership(&mut self, id: MembershipId) -> &mut Membership {
        &mut self.memberships[id.get() as usize - 1]
    }

    /// A room and one of its memberships.
    #[inline]
    pub fn room_and_membership(&mut self, id: MembershipId) -> (&mut Room, &mut Membership) {
        let membership = &mut self.memberships[id.get() as usize - 1];
        let room = self.rooms[membership.room.0 as usize].as_deref_mut();
        (room.expect("a membership keeps its room"), membership)
    }

    /// Opens a room. No room of that name may be open.
    pub fn open(
        &mut self,
        id: RoomId,
        policy: RoomPolicy,
        log: Log,
        role: Role,
        now_ms: u64,
    ) -> RoomIndex {
        let room = Room {
            id: id.clone(),
            policy,
            log,
            members: Vec::new(),
            sweep: Sweep::default(),
            window_ends_ms: None,
            permits: VecDeque::new(),
            role,
            active_at_ms: now_ms,
        };
        self.homes += usize::from(room.counts());
        let index = self.free_rooms.pop().unwrap_or_else(|| {
            self.rooms.push(None);
            RoomIndex(u32::try_from(self.rooms.len() - 1).expect("fewer rooms than 2^32"))
        });
        self.rooms[index.0 as usize] = Some(Box::new(room));
        self.by_id.insert(id, index);
        index
    }

    /// Closes a room without members.
    pub fn close(&mut self, index: RoomIndex) -> Option<Box<Room>> {
        let room = self.rooms[index.0 as usize].take()?;
        debug_assert!(room.members.is_empty(), "a member keeps its room");
        debug_assert!(room.window_ends_ms.is_none(), "a room without members has no window");
        self.homes -= usize::from(room.counts());
        self.by_id.remove(&room.id);
        self.free_rooms.push(index);
        if has_shrunk(self.by_id.len(), self.by_id.capacity()) {
            self.by_id.shrink_to(2 * self.by_id.len());
        }
        Some(room)
    }

    /// Adds a membership at the front of a connection's list.
    pub fn join(&mut self, slot: u32, room: RoomIndex, cursor: u64) -> MembershipId {
        if self.first_memberships.len() <= slot as usize {
            self.first_memberships.resize(slot as usize + 1, None);
        }
        let first = self.first_memberships[slot as usize];
        debug_assert!(cursor <= self.get(room).log.end(), "no member is ahead of the log");
        let position = self.get(room).members.len();
        let position = u32::try_from(position).expect("fewer members than 2^32");
        let cursor = low_half(cursor);
        let membership = Membership { cursor, room, slot, next: first, position };
        let id = if let Some(id) = self.free_membership {
            self.free_membership = self.membership(id).next;
            *self.membership(id) = membership;
            id
        } else {
            self.memberships.push(membership);
            let count = u32::try_from(self.memberships.len()).expect("fewer than 2^32");
            MembershipId::new(count).expect("at least the one just pushed")
        };
        self.first_memberships[slot as usize] = Some(id);
        self.membership_count += 1;
        let room = self.get(room);
        room.members.push(id);
        if room.sweep.left > 0 {
            room.sweep.left = (room.sweep.left + 1).min(room.members.len());
        }
        id
    }

    /// The first of a connection's memberships.
    #[inline]
    #[must_use]
    pub fn first_membership(&self, slot: u32) -> Option<MembershipId> {
        self.first_memberships.get(slot as usize).copied().flatten()
    }

    /// A connection's membership of a room.
    #[must_use]
    pub fn find_membership(&self, slot: u32, room: RoomIndex) -> Option<MembershipId> {
        self.list(slot).find(|(_, membership)| membership.room == room).map(|(id, _)| id)
    }

    /// A connection's memberships.
    pub fn list(&self, slot: u32) -> impl Iterator<Item = (MembershipId, &Membership)> {
        let mut next = self.first_membership(slot);
        std::iter::from_fn(move || {
            let id = next?;
            let membership = &self.memberships[id.get() as usize - 1];
            next = membership.next;
            Some((id, membership))
        })
    }

    /// Rotates a connection's list so that it ends with `last`. The room that was served last this time
    /// is served last the next time.
    pub fn rotate(&mut self, last: MembershipId) {
        let Membership { next: Some(behind), slot, .. } = *self.membership(last) else { return };
        let end = self.list(slot).last().map_or(behind, |(id, _)| id);
        self.membership(last).next = None;
        let first = self.first_memberships[slot as usize].replace(behind);
        self.membership(end).next = first;
    }

    /// Removes a membership from its connection's list and its room. If a fan-out is under way, returns the slot of
    /// the member that moved to the free position: the fan-out may pass over it.
    pub fn leave(&mut self, id: MembershipId) -> Option<u32> {
        let Membership { room, next, position, slot, .. } = *self.membership(id);
        if self.first_memberships[slot as usize] == Some(id) {
            self.first_memberships[slot as usize] = next;
        } else {
            let before = self.list(slot).find(|(_, m)| m.next == Some(id)).map(|(id, _)| id);
            self.membership(before.expect("a membership is in its connection's list")).next = next;
        }
        let free = self.free_membership.replace(id);
        self.membership(id).next = free;
        self.membership_count -= 1;

        let room = self.get(room);
        room.members.swap_remove(position as usize);
        let count = room.members.len();
        room.sweep.left = room.sweep.left.min(count);
        if room.sweep.next >= count {
            room.sweep.next = 0;
        }
        let sweeping = room.sweep.left > 0;
        let moved = room.members.get(position as usize).copied()?;
        let moved = self.membership(moved);
        moved.position = position;
        sweeping.then_some(moved.slot)
    }
}

impl Room {
    /// Starts a round: every member is to be offered what the log has released.
    pub fn start_round(&mut self) {
        self.sweep.left = self.members.len();
        self.sweep.mark = self.log.released();
    }

    /// Whether it counts against `rooms_max`.
    fn counts(&self) -> bool {
        matches!(self.role, Role::Home { .. }) && !self.id.is_everybody()
    }
}

/// The shard that is a room's home. Everybody's is the first.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a remainder below shards")]
pub fn home(room: &RoomId, shards: u16) -> u16 {
    if room.is_everybody() {
        return 0;
    }
    // FNV-1a: short, and the same on every thread. A client gains nothing by steering a room to a shard.
    let hash = room.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % u64::from(shards)) as u16
}

/// Whether a hash table is so empty that it should give memory back. See the same of the user directory.
const fn has_shrunk(len: usize, capacity: usize) -> bool {
    capacity > 1024 && len < capacity / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_half_of_a_cursor_is_enough() {
        for end in [1_u64, 7, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, (5 << 32) + 1, 1 << 53] {
            for behind in [0, 1, 7, 1 << 20, u64::from(u32::MAX)] {
                let Some(cursor) = end.checked_sub(behind) else { continue };
                let room = EVERYBODY;
                let mut member = Membership { cursor: 0, room, slot: 0, next: None, position: 0 };
                member.set_cursor(cursor, end);
                assert_eq!(member.cursor(end), cursor, "{behind} behind {end}");
            }
        }
    }

    #[test]
    fn a_membership_is_20_bytes() {
        assert_eq!(size_of::<Membership>(), 20);
    }
}
