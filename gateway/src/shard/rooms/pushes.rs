//! The way of a numbered push: it is appended to the log, held back by a merge window, released, and offered to
//! the members.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::PushError;
use tidegate_backend::publisher::Nobody;

use super::fan_out::FanOut;
use super::lifetimes::NEVER_MS;
use super::log::Log;
use super::message::Urgency;
use super::room::Room;
use super::table::{Member, RoomIndex, Table};
use super::windows::{WindowDecision, Windows};
use crate::shard::command::{CommandLimiter, CommandPermit};
use crate::shard::stats::RoomCounters;

/// A push that the room's home has numbered.
#[derive(Debug)]
pub struct NumberedPush<'a> {
    /// The encoded frame.
    pub frame: Bytes,
    /// Whether it may wait for a window.
    pub urgency: Urgency,
    /// When its time to live is over, on the shard's clock; [`NEVER_MS`] if it has none.
    pub ends_ms: u64,
    /// Its permit, which it holds until every member was offered it.
    pub permit: &'a Arc<CommandPermit>,
}

/// The pushes of a shard's rooms that were not offered to every member yet.
#[derive(Debug)]
pub struct Pushes {
    limiter: Arc<CommandLimiter>,
    fan_out: FanOut,
    windows: Windows,
    /// Pushes no longer wait for windows.
    is_draining: bool,
    /// Memory is short: pushes do not wait for windows.
    is_pressed: bool,
}

impl Pushes {
    /// No push yet. When half of a bound of `limiter` is used, no push waits for a window.
    #[must_use]
    pub fn new(limiter: Arc<CommandLimiter>) -> Self {
        let (fan_out, windows) = (FanOut::default(), Windows::default());
        Self { limiter, fan_out, windows, is_draining: false, is_pressed: false }
    }

    /// Whether members are to be served, or logs to be trimmed, in the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.fan_out.is_busy()
    }

    /// When the next merge window ends, on the shard's clock.
    #[must_use]
    pub fn next_window_end_ms(&self) -> Option<u64> {
        self.windows.next_end_ms()
    }

    /// Appends a push to its room's log, and releases it unless it waits for a window.
    pub fn append(
        &mut self,
        table: &mut Table,
        index: RoomIndex,
        push: NumberedPush<'_>,
        counters: &mut RoomCounters,
        now_ms: u64,
    ) {
        let NumberedPush { frame, urgency, ends_ms, permit } = push;
        let room = table.get(index);
        room.active_at_ms = now_ms;
        let offset = room.log.end();
        if ends_ms == NEVER_MS {
            room.log.append(frame);
        } else {
            room.log.append_expiring(frame, ends_ms, room.member_count);
            table.schedule_expiry(index);
            // Its time may be over already, since it came from another shard.
            counters.expired_pushes += table.expire_pushes(now_ms);
        }
        let room = table.get(index);
        permit.count_connections(room.member_count);
        if room.member_count == 0 && !room.round.is_queued {
            room.log.release();
            room.round.offered = offset + 1;
            return room.log.trim(offset + 1);
        }
        room.permits.push_back((offset, Arc::clone(permit)));
        counters.merged_pushes += u64::from(room.window_ends_ms.is_some());
        if room.is_being_renamed {
            return;
        }
        if self.is_draining || room.member_count == 0 {
            return self.release(table, index);
        }
        // A push that came from Redis belongs to another bound than commands.
        let is_half_used = self.limiter.is_half_used() || permit.is_limiter_half_used();
        let may_not_wait = is_half_used || self.is_pressed;
        match self.windows.decide(index, room, urgency, may_not_wait, now_ms) {
            WindowDecision::WaitUntil(_) => {}
            WindowDecision::Release => self.release(table, index),
            WindowDecision::EndEarly => {
                counters.short_windows += 1;
                self.release(table, index);
            }
        }
    }

    /// Releases all that the log holds, closes the room's window, and has its members served.
    pub fn release(&mut self, table: &mut Table, index: RoomIndex) {
        let room = table.get(index);
        if room.log.has_lifetimes() {
            end_expired(room);
        }
        room.log.release();
        self.windows.close(index, room);
        self.fan_out.enqueue(index, table);
    }

    /// Puts another log into the place of a room's. Nothing of it waits for a window.
    pub fn replace_log(&mut self, table: &mut Table, index: RoomIndex, log: Log) {
        let room = table.get(index);
        self.windows.close(index, room);
        room.replace_log(log);
    }

    /// Ends the merge windows that are over at this time.
    pub fn end_windows(&mut self, table: &mut Table, now_ms: u64) {
        while let Some(index) = self.windows.next_ended(now_ms) {
            self.release(table, index);
        }
    }

    /// The shard drains: no push waits for a merge window from now on.
    pub fn start_draining(&mut self, table: &mut Table) {
        self.is_draining = true;
        self.end_windows(table, u64::MAX);
    }

    /// Whether memory is short from now on. If so, no push waits for a merge window.
    pub fn set_pressed(&mut self, table: &mut Table, is_pressed: bool) {
        self.is_pressed = is_pressed;
        if is_pressed {
            self.end_windows(table, u64::MAX);
        }
    }

    /// Whether memory is short.
    #[must_use]
    pub const fn is_pressed(&self) -> bool {
        self.is_pressed
    }

    /// The next member that has pushes to get; `None` when this turn's slice of `budget` members is used up, or
    /// no member has to be served.
    #[inline]
    pub fn next_to_serve(&mut self, table: &mut Table, budget: &mut usize) -> Option<Member> {
        loop {
            let member = self.fan_out.next(table, budget)?;
            let (room, cursor) = table.room_and_cursor(member);
            if cursor.get(room.log.end()) < room.log.released() {
                return Some(member);
            }
        }
    }

    /// The shard ends. Unless it has drained, refuses the pushes that were not offered to every member.
    pub fn refuse_unfinished(&self, table: &mut Table) {
        if self.is_draining {
            return;
        }
        for entry in 0..table.entries() {
            let Some((_, room)) = table.at(entry) else { continue };
            room.permits.iter().for_each(|(_, permit)| permit.refuse(PushError::Stopping));
        }
    }

    /// Trims logs and ends the pushes that every member was offered. Call it last in a turn.
    pub fn trim_logs(&mut self, table: &mut Table) {
        self.fan_out.trim_logs(table);
    }
}

/// The log is about to be released: takes back what was counted for pushes whose time is over, since no member is
/// offered them. A member that has left since got its pushes then, and stays counted.
fn end_expired(room: &mut Room) {
    let (released, end) = (room.log.released(), room.log.end());
    for (offset, counted) in room.log.ended_between(released, end) {
        let Ok(index) = room.permits.binary_search_by_key(&offset, |&(offset, _)| offset) else {
            continue;
        };
        let permit = &room.permits[index].1;
        permit.uncount_connections(counted.min(room.member_count));
        permit.set_nobody(Nobody::Expired);
    }
}
