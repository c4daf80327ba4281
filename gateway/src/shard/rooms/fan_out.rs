//! The fan-out: which member is served next.
//!
//! A room whose log has released pushes enters the queue. Its round serves each member once; pushes that are released
//! meanwhile are for the next round. Rooms take turns: a slice of one turn ends with the room at the back of the queue.
//!
//! A log drops only frames that a whole round has offered. So a burst that is longer than the log costs no member
//! a push whose socket takes it. What the log holds beyond its bound is bounded by the commands under way: a
//! push holds its permit until it was offered to all.

use std::collections::VecDeque;

use super::table::{Member, RoomIndex, Table};

/// The rooms whose members have to be served.
#[derive(Debug, Default)]
pub struct FanOut {
    queue: VecDeque<RoomIndex>,
    /// Rooms whose round ended in this turn, and the offset behind what it offered.
    offered: Vec<(RoomIndex, u64)>,
    /// The rooms of `offered` in the turn before: members that can take what they were offered have it by now,
    /// so their logs are trimmed in this turn.
    to_trim: Vec<(RoomIndex, u64)>,
}

impl FanOut {
    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty() || !self.to_trim.is_empty()
    }

    /// Puts a room into the queue, unless it is there.
    pub fn enqueue(&mut self, index: RoomIndex, table: &mut Table) {
        let room = table.get(index);
        if !room.round.is_queued {
            room.round.is_queued = true;
            room.start_round();
            self.queue.push_back(index);
        }
    }

    /// The next member to serve; `None` when this turn's slice of `budget` members is used up, or nothing is left.
    #[inline]
    pub fn next(&mut self, table: &mut Table, budget: &mut usize) -> Option<Member> {
        loop {
            let index = *self.queue.front()?;
            let Some(room) = table.get_open(index).filter(|room| room.round.is_queued) else {
                // The room was closed. Another room may have its index.
                self.queue.pop_front();
                continue;
            };
            if room.round.members_left > 0 && *budget == 0 {
                self.queue.rotate_left(1);
                return None;
            }
            match table.next_in_round(index) {
                Some(member) => {
                    *budget -= 1;
                    return Some(member);
                }
                None => self.end_round(index, table),
            }
        }
    }

    /// All members were served once.
    fn end_round(&mut self, index: RoomIndex, table: &mut Table) {
        self.queue.pop_front();
        let room = table.get(index);
        self.offered.push((index, room.round.end));
        room.round.offered = room.round.end;
        room.round.is_queued = room.log.released() > room.round.end;
        if room.round.is_queued {
            room.start_round();
            self.queue.push_back(index);
        } else {
            room.log.forget_merged();
        }
    }

    /// Trims the logs whose round ended in the turn before, and ends the pushes that were offered. It comes one turn
    /// later, so that a member with a send under way gets its pushes before the log drops them. Call it last in a turn.
    pub fn trim_logs(&mut self, table: &mut Table) {
        for (index, offered) in self.to_trim.drain(..) {
            if let Some(room) = table.get_open(index) {
                // Another room may have the index by now, which has offered less.
                let offered = offered.min(room.round.offered);
                room.log.trim(offered);
                let ended = room.permits.partition_point(|&(offset, _)| offset < offered);
                room.permits.drain(..ended);
                table.recount(index);
            }
        }
        std::mem::swap(&mut self.to_trim, &mut self.offered);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_backend::RoomId;

    use super::*;
    use crate::config::{Rejoin, RoomClass, RoomPolicy, SlowMember};
    use crate::shard::rooms::log::Log;
    use crate::shard::rooms::subscribers::Role;
    use crate::shard::rooms::table::EVERYBODY;

    const POLICY: RoomPolicy = RoomPolicy {
        log_bytes_max: 0,
        slow_member: SlowMember::Skip,
        merge_window: Duration::ZERO,
        urgent_types: None,
        replay_on_join: 0,
        rejoin: Rejoin::Ticket,
        class: RoomClass::Durable,
    };

    /// A table with everybody's room.
    fn table() -> Table {
        let mut table = Table::default();
        let role = Role::Replica { joins: 0 };
        table.open(RoomId::everybody(), POLICY, Log::of_tests(10, 0), role, 0);
        table
    }

    /// Opens a room with members in these slots.
    fn open(table: &mut Table, name: &str, slots: &[u32]) -> RoomIndex {
        let id = RoomId::new(name).unwrap();
        let index = table.open(id, POLICY, Log::of_tests(10, 0), Role::Replica { joins: 0 }, 0);
        for &slot in slots {
            table.join(slot, index, 10);
        }
        index
    }

    fn push(fan_out: &mut FanOut, table: &mut Table, index: RoomIndex) {
        let log = &mut table.get(index).log;
        log.append("frame".into());
        log.release();
        fan_out.enqueue(index, table);
    }

    /// The slots that one turn serves.
    fn serve(fan_out: &mut FanOut, table: &mut Table, budget: usize) -> Vec<u32> {
        let mut left = budget;
        let mut slots = Vec::new();
        while let Some(member) = fan_out.next(table, &mut left) {
            slots.push(table.slot_of(member));
        }
        fan_out.trim_logs(table);
        slots
    }

    #[test]
    fn a_round_serves_each_member_once_in_slices() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        let index = open(&mut table, "room", &[1, 2, 3, 4, 5]);
        push(&mut fan_out, &mut table, index);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [1, 2]);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [3, 4]);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [5]);
        assert!(fan_out.is_busy(), "the log is trimmed one turn later");
        assert!(serve(&mut fan_out, &mut table, 2).is_empty());
        assert!(!fan_out.is_busy());
    }

    #[test]
    fn a_push_within_a_round_is_for_the_next_round() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        let index = open(&mut table, "room", &[1, 2, 3]);
        push(&mut fan_out, &mut table, index);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [1, 2]);
        push(&mut fan_out, &mut table, index);
        assert_eq!(serve(&mut fan_out, &mut table, 10), [3, 1, 2, 3]);
    }

    #[test]
    fn rooms_take_turns() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        let busy = open(&mut table, "busy", &[1, 2, 3]);
        let calm = open(&mut table, "calm", &[7]);
        push(&mut fan_out, &mut table, busy);
        push(&mut fan_out, &mut table, calm);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [1, 2]);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [7, 3]);
    }

    #[test]
    fn a_log_drops_only_what_a_whole_round_has_offered_one_turn_later() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        let index = open(&mut table, "room", &[1, 2]);
        for _ in 0..3 {
            push(&mut fan_out, &mut table, index);
        }
        // The first push started the round, so it is for the next round that the others wait.
        assert_eq!(serve(&mut fan_out, &mut table, 1), [1]);
        assert_eq!(table.get(index).log.first(), 10);
        assert_eq!(serve(&mut fan_out, &mut table, 1), [2]);
        assert_eq!(table.get(index).log.first(), 10);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [1, 2]);
        assert_eq!(table.get(index).log.first(), 11);
        assert!(serve(&mut fan_out, &mut table, 2).is_empty());
        assert_eq!(table.get(index).log.first(), 12, "the newest stays");
    }

    #[test]
    fn everybodys_room_is_served_by_slot() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        for slot in [5, 700, 2] {
            table.join(slot, EVERYBODY, 10);
        }
        push(&mut fan_out, &mut table, EVERYBODY);
        assert_eq!(serve(&mut fan_out, &mut table, 2), [2, 5]);
        push(&mut fan_out, &mut table, EVERYBODY);
        assert_eq!(serve(&mut fan_out, &mut table, 10), [700, 2, 5, 700]);
        assert!(serve(&mut fan_out, &mut table, 10).is_empty());
        assert_eq!(table.get(EVERYBODY).log.first(), 11);
        for slot in [5, 700, 2] {
            let member = table.find_member(slot, EVERYBODY).unwrap();
            table.leave(member);
        }
        push(&mut fan_out, &mut table, EVERYBODY);
        assert!(serve(&mut fan_out, &mut table, 10).is_empty());
    }

    #[test]
    fn a_room_that_was_closed_is_passed_over() {
        let (mut table, mut fan_out) = (table(), FanOut::default());
        let index = open(&mut table, "room", &[1]);
        push(&mut fan_out, &mut table, index);
        let member = table.first_member(1).unwrap();
        table.leave(member);
        assert!(table.close(index).is_some());
        assert!(serve(&mut fan_out, &mut table, 5).is_empty());
        assert!(!fan_out.is_busy());
    }
}
