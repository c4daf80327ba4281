//! What this shard's rooms need where gateways share their logs: joins that wait for a log, and members that
//! have to be notified that their room's log has another id.
//!
//! A room that is being fetched is not open: what concerns its members waits here, in order. The wait ends when the
//! thread that speaks with Redis answers, which it does within seconds in any case.

use std::collections::VecDeque;

use hashbrown::HashMap;
use tidegate_backend::RoomId;

use super::message::RoomMessage;
use super::table::RoomIndex;

/// Members that one turn notifies of a log's new id, at most. It spreads a mass event over several turns.
pub const RENAMED_MAX: usize = 1024;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SharedRooms {
    is_on: bool,
    /// Joins and leaves of rooms that are being fetched, in the order in which they came. Commands hold their permits and
    /// clients have one session, so both are bounded where they come from.
    waiting: HashMap<RoomId, Vec<RoomMessage>>,
    renamings: VecDeque<Renaming>,
}

/// A room whose members are being notified.
#[derive(Clone, Copy, Debug)]
pub struct Renaming {
    /// The room.
    pub index: RoomIndex,
    /// Where to continue; `None`: at the beginning.
    pub position: Option<usize>,
    /// When the members' tickets begin, in seconds since the Unix epoch.
    pub ticket_s: u32,
}

impl SharedRooms {
    /// No room is being fetched. `is_on`: gateways share their rooms' logs.
    #[must_use]
    pub fn new(is_on: bool) -> Self {
        Self { is_on, ..Self::default() }
    }

    /// Whether gateways share their rooms' logs.
    #[inline]
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.is_on
    }

    /// Rooms that are being fetched.
    #[must_use]
    pub fn fetched(&self) -> usize {
        self.waiting.len()
    }

    /// Starts to fetch a room: its join waits.
    pub fn start(&mut self, room: RoomId, join: RoomMessage) {
        self.waiting.entry(room).or_default().push(join);
    }

    /// Lets a message wait if its room is being fetched. Returns it otherwise.
    pub fn hold(&mut self, message: RoomMessage) -> Option<RoomMessage> {
        if !self.waiting.is_empty()
            && let RoomMessage::Join { room, .. } | RoomMessage::Leave { room, .. } = &message
            && let Some(waiting) = self.waiting.get_mut(room)
        {
            waiting.push(message);
            return None;
        }
        Some(message)
    }

    /// The room was fetched. Returns what waited for it.
    pub fn end(&mut self, room: &RoomId) -> Vec<RoomMessage> {
        self.waiting.remove(room).unwrap_or_default()
    }

    /// A room's members are to be notified. If that is under way already, it starts again.
    pub fn rename(&mut self, index: RoomIndex, ticket_s: u32) {
        self.renamings.retain(|renaming| renaming.index != index);
        self.renamings.push_back(Renaming { index, position: None, ticket_s });
    }

    /// The room whose members are notified next.
    #[must_use]
    pub fn renaming(&mut self) -> Option<&mut Renaming> {
        self.renamings.front_mut()
    }

    /// All members of that room were notified.
    pub fn end_renaming(&mut self) -> Option<RoomIndex> {
        self.renamings.pop_front().map(|renaming| renaming.index)
    }

    /// Whether members are to be notified in the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.renamings.is_empty()
    }

    /// The shard ends: refuses what waits.
    pub fn refuse_waiting(&mut self) {
        self.waiting.drain().flat_map(|(_, waiting)| waiting).for_each(RoomMessage::refuse);
    }
}

#[cfg(test)]
mod tests;
