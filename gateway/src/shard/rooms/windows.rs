//! Merge windows: a room holds its pushes back for a while, to send them together.
//!
//! The first push opens a window. When the window ends, the log releases all pushes that came meanwhile, and
//! each member gets them in one send. No window is open until the next push. So a room sends each member at
//! most once per window, and no push waits longer than one window. (A first push that is sent at once and then
//! opens a window would save nothing where pushes come about as far apart as the window is long.)
//!
//! A window ends early where holding back would cost more than it saves: with an urgent push, when the waiting
//! pushes are longer than the log's bound, when half of the bound on commands is used, when the last member
//! leaves, and when the shard drains. Each shard has windows for its own members.

use std::collections::BTreeSet;

use super::message::Urgency;
use super::room::Room;
use super::table::RoomIndex;
use crate::shard::clock::millis;

/// The open windows of a shard, by their end: one for each room that holds pushes back.
#[derive(Debug, Default)]
pub struct Windows {
    ends: BTreeSet<(u64, RoomIndex)>,
}

/// What happens to a push that was just appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowDecision {
    /// The room has no window, or the push may not wait: release it.
    Release,
    /// It waits for the window's end.
    WaitUntil(u64),
    /// It would wait, but a bound is reached: release it, and count a short window.
    EndEarly,
}

impl Windows {
    /// When the next window ends, on the shard's clock.
    #[must_use]
    pub fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|&(ends_ms, _)| ends_ms)
    }

    /// A room whose window is over at this time.
    #[must_use]
    pub fn next_ended(&self, at_ms: u64) -> Option<RoomIndex> {
        self.ends.first().filter(|&&(ends_ms, _)| ends_ms <= at_ms).map(|&(_, index)| index)
    }

    /// Decides about a push that was just appended to a room with members, and opens a window if it waits.
    /// `is_limiter_half_used`: half of a bound on commands is used.
    pub fn decide(
        &mut self,
        index: RoomIndex,
        room: &mut Room,
        urgency: Urgency,
        is_limiter_half_used: bool,
        now_ms: u64,
    ) -> WindowDecision {
        if room.policy.merge_window.is_zero() || urgency == Urgency::AtOnce {
            return WindowDecision::Release;
        }
        if room.log.must_release() || is_limiter_half_used {
            return WindowDecision::EndEarly;
        }
        let ends_ms = *room.window_ends_ms.get_or_insert_with(|| {
            let ends_ms = now_ms + millis(room.policy.merge_window);
            self.ends.insert((ends_ms, index));
            ends_ms
        });
        WindowDecision::WaitUntil(ends_ms)
    }

    /// Closes a room's window, if one is open.
    pub fn close(&mut self, index: RoomIndex, room: &mut Room) {
        if let Some(ends_ms) = room.window_ends_ms.take() {
            let was_open = self.ends.remove(&(ends_ms, index));
            debug_assert!(was_open, "each open window is in the set");
        }
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
    use crate::shard::rooms::table::Table;

    fn open(table: &mut Table, window_ms: u64, log_bytes_max: usize) -> RoomIndex {
        let policy = RoomPolicy {
            log_bytes_max,
            slow_member: SlowMember::Skip,
            merge_window: Duration::from_millis(window_ms),
            urgent_types: None,
            replay_on_join: 0,
            rejoin: Rejoin::Ticket,
            class: RoomClass::Durable,
        };
        let id = RoomId::new("room").unwrap();
        let role = Role::Replica { joins: 0 };
        table.open(id, policy, Log::of_tests(10, log_bytes_max), role, 0)
    }

    #[test]
    fn the_first_push_opens_a_window_and_later_pushes_share_it() {
        let (mut table, mut windows) = (Table::default(), Windows::default());
        let index = open(&mut table, 50, 1000);
        let room = table.get(index);
        assert_eq!(
            windows.decide(index, room, Urgency::MayWait, false, 100),
            WindowDecision::WaitUntil(150)
        );
        assert_eq!(
            windows.decide(index, room, Urgency::MayWait, false, 149),
            WindowDecision::WaitUntil(150)
        );
        assert_eq!((windows.next_end_ms(), windows.next_ended(149)), (Some(150), None));
        assert_eq!(windows.next_ended(150), Some(index));
        windows.close(index, room);
        assert_eq!((windows.next_end_ms(), room.window_ends_ms), (None, None));
        assert_eq!(
            windows.decide(index, room, Urgency::MayWait, false, 200),
            WindowDecision::WaitUntil(250)
        );
    }

    #[test]
    fn an_urgent_push_and_a_room_without_a_window_do_not_wait() {
        let (mut table, mut windows) = (Table::default(), Windows::default());
        let index = open(&mut table, 50, 1000);
        assert_eq!(
            windows.decide(index, table.get(index), Urgency::AtOnce, false, 0),
            WindowDecision::Release
        );
        table.close(index);
        let index = open(&mut table, 0, 1000);
        assert_eq!(
            windows.decide(index, table.get(index), Urgency::MayWait, false, 0),
            WindowDecision::Release
        );
        assert_eq!(windows.next_end_ms(), None);
    }

    #[test]
    fn a_window_ends_early_at_a_bound() {
        let (mut table, mut windows) = (Table::default(), Windows::default());
        let index = open(&mut table, 50, 1000);
        let room = table.get(index);
        assert_eq!(
            windows.decide(index, room, Urgency::MayWait, true, 0),
            WindowDecision::EndEarly
        );
        room.log.append(vec![0; 1001].into());
        assert_eq!(
            windows.decide(index, room, Urgency::MayWait, false, 0),
            WindowDecision::EndEarly
        );
    }
}
