//! What a client remembers of its rooms: which it has joined, and the last offset of each.
//!
//! Only rooms that a command named are remembered, so memory is bounded by what was typed.

use std::collections::{BTreeMap, VecDeque};

/// The most offsets that are remembered of pushes that name no room. They tell such pushes from missing ones.
const UNCLAIMED_OFFSETS_MAX: usize = 1024;

/// Some pushes of a room are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// The room.
    pub(super) room: String,
    /// The last offset before the gap.
    pub(super) last_offset: u64,
    /// The next offset that came. Greater than `last_offset` + 1.
    pub(super) offset: u64,
    /// The most pushes that can be missing. A room's log that was started again skips offsets.
    pub(super) missing_max: u64,
}

/// The rooms, by name.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    rooms: BTreeMap<String, Room>,
    /// Offsets of pushes that do not name their room; oldest first.
    unclaimed: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Room {
    joined: bool,
    /// 0 until a push came.
    last_offset: u64,
}

impl Rooms {
    /// The offset after which to join a room. `wanted` replaces the remembered one.
    pub(super) fn resume_offset(&mut self, room: &str, wanted: Option<u64>) -> u64 {
        let room = self.rooms.entry(room.to_owned()).or_default();
        if let Some(offset) = wanted {
            room.last_offset = offset;
        }
        room.last_offset
    }

    /// The gateway has confirmed a join.
    pub(super) fn joined(&mut self, room: &str) {
        self.rooms.entry(room.to_owned()).or_default().joined = true;
    }

    /// The gateway has confirmed a leave. The offset is kept for another join.
    pub(super) fn left(&mut self, room: &str) {
        if let Some(room) = self.rooms.get_mut(room) {
            room.joined = false;
        }
    }

    /// The rooms to join again on a new connection.
    pub(super) fn joined_rooms(&self) -> Vec<String> {
        self.rooms.iter().filter(|(_, room)| room.joined).map(|(name, _)| name.clone()).collect()
    }

    /// A push of this room came. Remembers its offset, and returns the gap in front of it, if there is one.
    pub(super) fn pushed(&mut self, name: &str, offset: u64) -> Option<Gap> {
        let room = self.rooms.get_mut(name)?;
        let last_offset = room.last_offset;
        if offset <= last_offset {
            return None;
        }
        room.last_offset = offset;
        let between = last_offset + 1..offset;
        let unclaimed = self.unclaimed.iter().filter(|offset| between.contains(offset)).count();
        let missing_max = (offset - last_offset - 1).saturating_sub(unclaimed as u64);
        (last_offset > 0 && missing_max > 0).then(|| Gap {
            room: name.to_owned(),
            last_offset,
            offset,
            missing_max,
        })
    }

    /// A push with an offset came that does not name its room.
    pub(super) fn push_without_room(&mut self, offset: u64) {
        if self.unclaimed.len() == UNCLAIMED_OFFSETS_MAX {
            self.unclaimed.pop_front();
        }
        self.unclaimed.push_back(offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_resumes_after_the_last_push() {
        let mut rooms = Rooms::default();
        assert_eq!(rooms.resume_offset("quiz", None), 0);
        rooms.joined("quiz");
        assert_eq!(rooms.pushed("quiz", 7), None);
        assert_eq!(rooms.pushed("quiz", 8), None);
        assert_eq!(rooms.joined_rooms(), ["quiz"]);
        rooms.left("quiz");
        assert_eq!(rooms.joined_rooms(), [""; 0]);
        assert_eq!(rooms.resume_offset("quiz", None), 8);
        assert_eq!(rooms.resume_offset("quiz", Some(0)), 0);
    }

    #[test]
    fn a_larger_offset_than_the_next_is_a_gap() {
        let mut rooms = Rooms::default();
        rooms.resume_offset("quiz", Some(5));
        let gap = Gap { room: "quiz".into(), last_offset: 5, offset: 9, missing_max: 3 };
        assert_eq!(rooms.pushed("quiz", 9), Some(gap));
        assert_eq!(rooms.pushed("quiz", 9), None, "a push that came twice is no gap");
        assert_eq!(rooms.pushed("elsewhere", 50), None, "a room that nobody joined");
    }

    #[test]
    fn a_push_that_names_no_room_may_fill_the_gap() {
        let mut rooms = Rooms::default();
        rooms.resume_offset("quiz", Some(5));
        rooms.push_without_room(6);
        assert_eq!(rooms.pushed("quiz", 7), None);
        rooms.push_without_room(8);
        let gap = Gap { room: "quiz".into(), last_offset: 7, offset: 10, missing_max: 1 };
        assert_eq!(rooms.pushed("quiz", 10), Some(gap));
    }
}
