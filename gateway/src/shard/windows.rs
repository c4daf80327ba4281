//! Merge windows: a room holds its pushes back for a while, to send them with what comes soon after.
//!
//! The first push after a window opens the next; when it is over, each member gets everything in one
//! send, and nothing stands open until the next push. So a room sends each member at most once per
//! window, however its pushes are spread: a push that went out at once and only then opened a window
//! would save nothing where pushes come about as far apart as the window is long. No push waits for
//! longer than one window.
//!
//! A window ends early where holding back would cost more than sends: with an urgent push, when what
//! waits is longer than the room's log may be, when the gate is half taken by what waits, when the last
//! member leaves, and when the shard drains. Each shard has windows for its own members.
//!
//! Who leaves, or is told goodbye, first gets what was published before and was not offered to it yet, unless
//! it is behind what was: who was too slow gets no more.

use std::collections::BTreeSet;

use super::Shard;
use super::rooms::RoomIndex;
use crate::config::RoomPolicy;
use crate::connection::MembershipId;

/// Whether a push may wait for a window's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It waits, where its room has a window.
    MayWait,
    /// It goes out at once, with what waits before it.
    AtOnce,
}

impl Urgency {
    /// What a room's policy says of a push's type.
    #[must_use]
    pub fn of(kind: i32, policy: &RoomPolicy) -> Self {
        if policy.is_urgent(kind) { Self::AtOnce } else { Self::MayWait }
    }
}

/// The open windows of a shard, by their end: one for each room that holds something back.
#[derive(Debug, Default)]
pub(super) struct Windows {
    ends: BTreeSet<(u64, RoomIndex)>,
}

impl Windows {
    /// When the next one ends, on the shard's clock.
    pub(super) fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|&(ends_ms, _)| ends_ms)
    }

    /// Forgets a room's window.
    pub(super) fn close(&mut self, ends_ms: u64, index: RoomIndex) {
        let known = self.ends.remove(&(ends_ms, index));
        debug_assert!(known, "each open window stands here");
    }
}

impl Shard {
    /// Whether a push that was just appended waits for the end of a window; it may open one.
    pub(super) fn holds_back(&mut self, index: RoomIndex, urgency: Urgency) -> bool {
        let draining = self.draining.is_some();
        let room = self.rooms.get(index);
        if room.policy.merge_window.is_zero() {
            return false;
        }
        self.stats.merged_pushes += u64::from(room.window_ends_ms.is_some());
        if urgency == Urgency::AtOnce || draining || room.members.is_empty() {
            return false;
        }
        if room.log.holds_too_much() || self.shared.gate.is_crowded() {
            self.stats.short_windows += 1;
            return false;
        }
        if room.window_ends_ms.is_none() {
            let ends_ms = self.now_ms + super::closing::millis(room.policy.merge_window);
            room.window_ends_ms = Some(ends_ms);
            self.windows.ends.insert((ends_ms, index));
        }
        true
    }

    /// Ends the windows that are over at this time.
    pub(super) fn end_windows(&mut self, at_ms: u64) {
        while let Some(&(ends_ms, index)) = self.windows.ends.first()
            && ends_ms <= at_ms
        {
            self.release(index);
        }
    }

    /// Gives a connection what its rooms have published and not offered to it yet: it is about to be
    /// told goodbye.
    pub(super) fn hand_out_all(&mut self, slot: u32) {
        let mut next = self.at(slot).first_membership;
        while let Some(member) = next {
            next = self.rooms.membership(member).next;
            self.hand_out(slot, member);
        }
    }

    /// Gives a member what its room has published and not offered to it yet: it is about to leave.
    /// Who had its chance and was too slow gets no more; nor does who has too many unsent bytes.
    pub(super) fn hand_out(&mut self, slot: u32, member: MembershipId) {
        let (room, membership) = self.rooms.room_and_membership(member);
        let end = room.log.end();
        let cursor = membership.cursor(end);
        if cursor < room.sweep.offered || cursor >= end {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        let unsent_bytes = self.outboxes.len(connection.outbox);
        if unsent_bytes > self.shared.config.limits.outbox_bytes_max {
            return;
        }
        membership.set_cursor(end, end);
        self.stats.deliveries += end - cursor;
        self.outboxes.write(&mut connection.outbox, |out| {
            room.log.frames_from(cursor).for_each(|frame| out.extend_from_slice(frame));
        });
        self.touch(slot);
    }
}
