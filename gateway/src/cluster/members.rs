//! How many members each followed room has at this gateway, as reported to Redis.
//!
//! Redis adds the counts of all gateways, and answers each push with the sum. A count holds for a time, so that those of a
//! gateway that has died are forgotten. A room is counted when its log has arrived, when a shard asks for it, and then
//! in turn with all others. The count is reported to Redis when it has changed, or when half of its time is over.
//!
//! This part does no I/O and reads no clock.

use std::collections::{HashMap, HashSet, VecDeque};

use tidegate_backend::RoomId;

/// How long a count holds, in milliseconds.
pub const VALID_MS: u64 = 120_000;

/// Rooms that one tick counts in turn, at most: 200,000 rooms take as long as a quarter of the time that a count holds.
const IN_TURN_MAX: usize = 350;

/// The shortest time between two counts in turn of the same room, in milliseconds.
const IN_TURN_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug)]
struct Count {
    /// The count that was reported to Redis; `None`: none yet.
    reported: Option<u64>,
    reported_at_ms: u64,
    asked_at_ms: u64,
    is_asked: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Members {
    rooms: HashMap<RoomId, Count>,
    /// Rooms to be counted now.
    now: VecDeque<RoomId>,
    /// All rooms, the one that was counted longest ago first.
    in_turn: VecDeque<RoomId>,
    /// Rooms that are no longer followed, which Redis has to forget.
    ended: HashSet<RoomId>,
}

impl Members {
    /// A room's log has arrived, or its members have changed: count it soon.
    pub fn count(&mut self, room: &RoomId) {
        if let Some(count) = self.rooms.get_mut(room) {
            if count.reported == Some(0) {
                count.reported = None;
            }
            if !count.is_asked && count.asked_at_ms != 0 {
                self.now.push_back(room.clone());
            }
            return;
        }
        let count = Count { reported: None, reported_at_ms: 0, asked_at_ms: 0, is_asked: false };
        self.rooms.insert(room.clone(), count);
        self.in_turn.push_back(room.clone());
        self.now.push_back(room.clone());
        self.ended.remove(room);
    }

    /// A room is no longer followed.
    pub fn end(&mut self, room: &RoomId) {
        if self.rooms.remove(room).is_some_and(|count| count.reported.unwrap_or(0) > 0) {
            self.ended.insert(room.clone());
        }
    }

    /// Whether no count of this room was reported to Redis yet, though its log has arrived.
    #[must_use]
    pub fn is_unknown(&self, room: &RoomId) -> bool {
        self.rooms.get(room).is_some_and(|count| count.reported.is_none())
    }

    /// There is a new connection: Redis may have lost the counts.
    pub fn on_up(&mut self) {
        self.rooms.values_mut().for_each(|count| count.reported_at_ms = 0);
    }

    /// The next room whose members are to be counted now.
    pub fn next_now(&mut self, now_ms: u64) -> Option<RoomId> {
        loop {
            let room = self.now.pop_front()?;
            if self.ask(&room, now_ms) {
                return Some(room);
            }
        }
    }

    /// The rooms whose turn it is, at a tick.
    pub fn next_in_turn(&mut self, now_ms: u64) -> Vec<RoomId> {
        let mut due = Vec::new();
        while due.len() < IN_TURN_MAX
            && let Some(room) = self.in_turn.front()
        {
            let asked_at_ms = self.rooms.get(room).map(|count| count.asked_at_ms);
            if asked_at_ms.is_some_and(|at_ms| at_ms + IN_TURN_MS > now_ms) {
                break;
            }
            let Some(room) = self.in_turn.pop_front() else { break };
            // A room that has ended is in the queue once more at most.
            if asked_at_ms.is_some() {
                if self.ask(&room, now_ms) {
                    due.push(room.clone());
                }
                self.in_turn.push_back(room);
            }
        }
        due
    }

    fn ask(&mut self, room: &RoomId, now_ms: u64) -> bool {
        let Some(count) = self.rooms.get_mut(room) else { return false };
        count.asked_at_ms = now_ms.max(1);
        !std::mem::replace(&mut count.is_asked, true)
    }

    /// A shard has counted the members that a room has here. Returns whether to report it to Redis.
    pub fn on_counted(&mut self, room: &RoomId, members: u64, now_ms: u64) -> bool {
        let Some(count) = self.rooms.get_mut(room) else { return false };
        count.is_asked = false;
        let is_new = count.reported != Some(members);
        let is_old = members > 0 && count.reported_at_ms + VALID_MS / 2 <= now_ms;
        if !is_new && !is_old {
            return false;
        }
        // Nothing is known of a room that has never had a member.
        let is_needed = members > 0 || count.reported.is_some_and(|reported| reported > 0);
        (count.reported, count.reported_at_ms) = (Some(members), now_ms.max(1));
        is_needed
    }

    /// A report to Redis has failed: the next count is reported.
    pub fn on_failed(&mut self, room: &RoomId) {
        if let Some(count) = self.rooms.get_mut(room) {
            count.reported_at_ms = 0;
        }
    }

    /// A room that Redis has to forget.
    pub fn next_ended(&mut self) -> Option<RoomId> {
        let room = self.ended.iter().next().cloned()?;
        self.ended.remove(&room);
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_reported_to_redis_when_it_has_changed_or_is_old() {
        let mut members = Members::default();
        let room = RoomId::new("room").unwrap();
        assert!(!members.is_unknown(&room));
        members.count(&room);
        assert!(members.is_unknown(&room));
        assert_eq!(members.next_now(5), Some(room.clone()));
        assert_eq!(members.next_now(5), None);
        assert!(!members.on_counted(&room, 0, 6), "there is nothing to forget");
        assert!(!members.is_unknown(&room));
        assert!(members.next_in_turn(900).is_empty());
        assert_eq!(members.next_in_turn(1_005), std::slice::from_ref(&room));
        assert!(members.next_in_turn(2_005).is_empty(), "it is being counted");
        assert!(members.on_counted(&room, 3, 2_006));
        assert_eq!(members.next_in_turn(3_006), std::slice::from_ref(&room));
        assert!(!members.on_counted(&room, 3, 3_007));
        members.on_up();
        members.count(&room);
        assert_eq!(members.next_now(4_000), Some(room.clone()));
        assert!(members.on_counted(&room, 3, VALID_MS), "Redis may have lost it");
        members.end(&room);
        assert_eq!(members.next_ended(), Some(room.clone()));
        assert_eq!(members.next_ended(), None);
        assert!(members.next_in_turn(500_000).is_empty());
        assert!(!members.on_counted(&room, 4, 500_000));
    }
}
