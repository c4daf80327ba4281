//! Rooms and who is in them: logs, members, cursors.
//!
//! A room lives on its home shard, which numbers its pushes, and on every shard that has members,
//! which holds a replica of the log: the same encoded frames, shared. A membership is a cursor into
//! that log, 20 bytes, linked into its connection's list and listed in its room.
//!
//! This module keeps the books; `fan_out` acts on them.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use tidegate_backend::RoomId;

use super::log::Log;
use super::receipt::Receipt;
use crate::config::RoomPolicy;
use crate::connection::MembershipId;

/// A place in the table of rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomIndex(u32);

/// The room that every shard has first.
pub const EVERYBODY: RoomIndex = RoomIndex(0);

/// One room, as one shard sees it.
#[derive(Debug)]
pub struct Room {
    /// Its name.
    pub id: RoomId,
    /// How it treats its members.
    pub policy: RoomPolicy,
    /// What it remembers.
    pub log: Log,
    /// Who of this shard is in it.
    pub members: Vec<MembershipId>,
    /// The fan-out that goes round.
    pub sweep: Sweep,
    /// When the merge window ends that holds the log's end back, on the shard's clock. A room without
    /// members has none.
    pub window_ends_ms: Option<u64>,
    /// Pushes that not every member was offered yet, by offset: the bound on commands under way
    /// bounds what the log holds beyond its own.
    pub receipts: VecDeque<(u64, Arc<Receipt>)>,
    /// Where this shard stands.
    pub role: Role,
    /// When something last happened in it, on the shard's clock.
    pub active_at_ms: u64,
}

/// Where a shard stands to a room.
#[derive(Debug)]
pub enum Role {
    /// It numbers the pushes and passes them on to shards with members, each with the number of
    /// joins that it was sent.
    Home {
        /// Shards with members, and how many joins each was sent.
        subscribers: Vec<(u16, u64)>,
    },
    /// It follows the home; it was sent this many joins.
    Replica {
        /// How many joins came.
        joins: u64,
    },
}

/// A fan-out goes round the members; pushes that come meanwhile make it go one round more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    /// The room stands among those to be served.
    pub queued: bool,
    /// The end of what the log had released when this round began: what comes before it, the round offers to all.
    pub mark: u64,
    /// What comes before this offset, every member was offered.
    pub offered: u64,
    /// The next member to look at.
    pub next: usize,
    /// Members that still have to be looked at. left <= members.len()
    pub left: usize,
}

/// One connection in one room.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// The low half of the offset that the member gets next.
    cursor: u32,
    /// The room; meaningless while free.
    pub room: RoomIndex,
    /// The connection's slot.
    pub slot: u32,
    /// The connection's next membership; while free, the next free one.
    pub next: Option<MembershipId>,
    /// Where it stands in its room's `members`.
    pub position: u32,
}

impl Membership {
    /// The offset that the member gets next, in a log that ends at `end`. Who is 2^32 pushes behind is taken
    /// for one who is less behind, and skips more than is counted: at a million pushes a second that takes 71
    /// minutes of one send.
    #[inline]
    #[must_use]
    pub const fn cursor(&self, end: u64) -> u64 {
        end - low_half(end).wrapping_sub(self.cursor) as u64
    }

    /// Sets it, in a log that ends at `end`: at most there.
    #[inline]
    pub const fn set_cursor(&mut self, cursor: u64, end: u64) {
        debug_assert!(cursor <= end, "nobody is ahead of the log");
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
pub struct Rooms {
    by_id: HashMap<RoomId, RoomIndex>,
    rooms: Vec<Option<Room>>,
    free_rooms: Vec<RoomIndex>,
    /// Rooms whose home is here, everybody's not counted.
    homes: usize,
    memberships: Vec<Membership>,
    free_membership: Option<MembershipId>,
    membership_count: usize,
}

impl Rooms {
    /// Rooms that exist here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Rooms whose home is here, everybody's not counted.
    #[must_use]
    pub const fn homes(&self) -> usize {
        self.homes
    }

    /// Memberships of this shard's connections.
    #[must_use]
    pub const fn membership_count(&self) -> usize {
        self.membership_count
    }

    /// Places in the table, for walking it a piece at a time.
    #[must_use]
    pub fn places(&self) -> usize {
        self.rooms.len()
    }

    /// What stands at a place.
    #[must_use]
    pub fn at(&mut self, place: usize) -> Option<(RoomIndex, &mut Room)> {
        let room = self.rooms.get_mut(place)?.as_mut()?;
        Some((RoomIndex(u32::try_from(place).ok()?), room))
    }

    /// Finds a room by name.
    #[must_use]
    pub fn find(&self, id: &RoomId) -> Option<RoomIndex> {
        self.by_id.get(id).copied()
    }

    /// A room that exists.
    #[inline]
    pub fn get(&mut self, index: RoomIndex) -> &mut Room {
        self.rooms[index.0 as usize].as_mut().expect("an index lives as long as its room")
    }

    /// Whether an index that was kept still means a room.
    #[must_use]
    pub fn exists(&self, index: RoomIndex) -> bool {
        self.rooms.get(index.0 as usize).is_some_and(Option::is_some)
    }

    /// A membership that exists.
    #[inline]
    pub fn membership(&mut self, id: MembershipId) -> &mut Membership {
        &mut self.memberships[id.get() as usize - 1]
    }

    /// A room and one of its memberships.
    #[inline]
    pub fn room_and_membership(&mut self, id: MembershipId) -> (&mut Room, &mut Membership) {
        let membership = &mut self.memberships[id.get() as usize - 1];
        let room = self.rooms[membership.room.0 as usize].as_mut();
        (room.expect("a membership keeps its room"), membership)
    }

    /// Opens a room. There must be none of that name.
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
            receipts: VecDeque::new(),
            role,
            active_at_ms: now_ms,
        };
        self.homes += usize::from(room.counts());
        let index = self.free_rooms.pop().unwrap_or_else(|| {
            self.rooms.push(None);
            RoomIndex(u32::try_from(self.rooms.len() - 1).expect("fewer rooms than 2^32"))
        });
        self.rooms[index.0 as usize] = Some(room);
        self.by_id.insert(id, index);
        index
    }

    /// Closes a room without members.
    pub fn close(&mut self, index: RoomIndex) -> Option<Room> {
        let room = self.rooms[index.0 as usize].take()?;
        debug_assert!(room.members.is_empty(), "a member keeps its room");
        debug_assert!(room.window_ends_ms.is_none(), "nobody is there to wait");
        self.homes -= usize::from(room.counts());
        self.by_id.remove(&room.id);
        self.free_rooms.push(index);
        Some(room)
    }

    /// Adds a membership at the front of a connection's list.
    pub fn join(
        &mut self,
        first: &mut Option<MembershipId>,
        slot: u32,
        room: RoomIndex,
        cursor: u64,
    ) -> MembershipId {
        debug_assert!(cursor <= self.get(room).log.end(), "nobody is ahead of the log");
        let position = self.get(room).members.len();
        let position = u32::try_from(position).expect("fewer members than 2^32");
        let cursor = low_half(cursor);
        let membership = Membership { cursor, room, slot, next: *first, position };
        let id = if let Some(id) = self.free_membership {
            self.free_membership = self.membership(id).next;
            *self.membership(id) = membership;
            id
        } else {
            self.memberships.push(membership);
            let count = u32::try_from(self.memberships.len()).expect("fewer than 2^32");
            MembershipId::new(count).expect("at least the one just pushed")
        };
        *first = Some(id);
        self.membership_count += 1;
        let room = self.get(room);
        room.members.push(id);
        if room.sweep.left > 0 {
            room.sweep.left = (room.sweep.left + 1).min(room.members.len());
        }
        id
    }

    /// Finds a connection's membership of a room.
    #[must_use]
    pub fn find_membership(
        &self,
        first: Option<MembershipId>,
        room: RoomIndex,
    ) -> Option<MembershipId> {
        self.list(first).find(|(_, membership)| membership.room == room).map(|(id, _)| id)
    }

    /// A connection's memberships.
    pub fn list(
        &self,
        first: Option<MembershipId>,
    ) -> impl Iterator<Item = (MembershipId, &Membership)> {
        let mut next = first;
        std::iter::from_fn(move || {
            let id = next?;
            let membership = &self.memberships[id.get() as usize - 1];
            next = membership.next;
            Some((id, membership))
        })
    }

    /// Makes a connection's list begin behind `last`, which goes to its end: who is served last this
    /// time comes last the next time.
    pub fn turn(&mut self, first: &mut Option<MembershipId>, last: MembershipId) {
        let Some(behind) = self.membership(last).next.take() else { return };
        let end = self.list(Some(behind)).last().map_or(behind, |(id, _)| id);
        self.membership(end).next = first.replace(behind);
    }

    /// Takes a membership out of its connection's list and its room. Returns the slot of the member
    /// that took its place in the room while a fan-out goes round: it may be passed over.
    pub fn leave(&mut self, first: &mut Option<MembershipId>, id: MembershipId) -> Option<u32> {
        let Membership { room, next, position, .. } = *self.membership(id);
        if *first == Some(id) {
            *first = next;
        } else {
            let before = self.list(*first).find(|(_, m)| m.next == Some(id)).map(|(id, _)| id);
            self.membership(before.expect("it stands in the list")).next = next;
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
    /// Begins to go round the members with what the log has released.
    pub fn start_round(&mut self) {
        self.sweep.left = self.members.len();
        self.sweep.mark = self.log.released();
    }

    /// Whether it counts as one of `rooms_max`.
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
    // FNV-1a: short, the same on every thread, and nobody gains by steering a room to a shard.
    let hash = room.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % u64::from(shards)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_offset_tells_the_whole() {
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
