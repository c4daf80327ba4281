//! Fan-out: pushes into rooms, and serving the members a slice at a time.
//!
//! A push is appended to the room's log. Once it is released, at once or when its merge window ends
//! (`windows`), the room goes into the round of those to be swept. Each turn serves some members: who has nothing under way gets everything from its cursor to the log's
//! end in one send; who is busy is marked as owed and served when its send is done. Pushes that come
//! while a sweep goes round are merged by themselves into the next.
//!
//! A log lets go only of what every member was offered, so a burst longer than the log costs nobody a
//! push whose socket takes it: one with room in its send buffer is given all that there is. Who takes
//! less stands further back, and skips what the log can't hold. What a log holds beyond its bound, the
//! gate bounds: a push is under way until it was offered to all.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_backend::RoomId;
use tidegate_protocol::server;

use super::Shard;
use super::closing::Cause;
use super::mailbox::Message;
use super::receipt::Receipt;
use super::rooms::{Role, RoomIndex};
use super::windows::Urgency;
use crate::config::SlowMember;
use crate::connection::MembershipId;
use crate::driver::{Driver, SendState};

/// Bytes of rooms' pushes that one send takes when a connection is owed several rooms'.
const OWED_BYTES_MAX: usize = 64 * 1024;

/// The rooms whose members have to be served.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    round: VecDeque<RoomIndex>,
    /// Rooms that in this turn have gone round.
    offered: Vec<RoomIndex>,
    /// The same of the turn before: who could take what it was offered, has.
    taken: Vec<RoomIndex>,
}

impl FanOut {
    pub(super) fn is_busy(&self) -> bool {
        !self.round.is_empty() || !self.taken.is_empty()
    }
}

impl Shard {
    /// At a room's home: numbers a push and passes it on.
    pub(super) fn on_publish(
        &mut self,
        room: &RoomId,
        kind: i32,
        biz_data: &[u8],
        receipt: &Arc<Receipt>,
    ) {
        self.stats.pushes_to_rooms += 1;
        let Some(index) = self.find_or_open(room, receipt) else { return };
        let room_here = self.rooms.get(index);
        let offset = room_here.log.end();
        let urgency = Urgency::of(kind, &room_here.policy);
        let mut frame = BytesMut::with_capacity(biz_data.len() + 32);
        server::put_push(&mut frame, kind, biz_data, offset);
        let frame = frame.freeze();
        if let Role::Home { subscribers } = &room_here.role {
            for (shard, _) in subscribers.clone() {
                let (room, frame, receipt) = (room.clone(), frame.clone(), Arc::clone(receipt));
                self.post(shard, Message::Append { room, offset, frame, urgency, receipt });
            }
        }
        self.append(index, frame, urgency, receipt);
    }

    /// At a shard with members: the home has numbered a push.
    pub(super) fn on_append(
        &mut self,
        room: &RoomId,
        offset: u64,
        frame: Bytes,
        urgency: Urgency,
        receipt: &Arc<Receipt>,
    ) {
        // None is there only when the home hears later that this shard has no members left.
        if let Some(index) = self.rooms.find(room) {
            debug_assert_eq!(self.rooms.get(index).log.end(), offset, "no push is lost on the way");
            self.append(index, frame, urgency, receipt);
        }
    }

    fn append(&mut self, index: RoomIndex, frame: Bytes, urgency: Urgency, receipt: &Arc<Receipt>) {
        let now_ms = self.now_ms;
        let room = self.rooms.get(index);
        room.active_at_ms = now_ms;
        let offset = room.log.end();
        room.log.append(frame);
        receipt.add(room.members.len());
        if room.members.is_empty() && !room.sweep.queued {
            room.log.release();
            room.sweep.offered = offset + 1;
            return room.log.trim(offset + 1);
        }
        room.receipts.push_back((offset, Arc::clone(receipt)));
        if !self.holds_back(index, urgency) {
            self.release(index);
        }
    }

    /// Offers the members everything that the log holds: ends the window, if one is open.
    pub(super) fn release(&mut self, index: RoomIndex) {
        let room = self.rooms.get(index);
        room.log.release();
        if let Some(ends_ms) = room.window_ends_ms.take() {
            self.windows.close(ends_ms, index);
        }
        if !room.sweep.queued {
            room.sweep.queued = true;
            room.start_round();
            self.fan_out.round.push_back(index);
        }
    }

    /// Serves one turn's slice of members, the rooms taking turns.
    pub(super) fn fan_out_slice(&mut self, driver: &mut impl Driver) {
        let mut budget = self.shared.config.limits.fan_out_slice;
        while budget > 0 {
            let Some(index) = self.fan_out.round.pop_front() else { return };
            if !self.rooms.exists(index) || !self.rooms.get(index).sweep.queued {
                // The room was closed; its place may hold another.
                continue;
            }
            let count = self.rooms.get(index).sweep.left.min(budget);
            for _ in 0..count {
                let room = self.rooms.get(index);
                let Some(&member) = room.members.get(room.sweep.next) else { break };
                room.sweep.next = (room.sweep.next + 1) % room.members.len();
                room.sweep.left = room.sweep.left.saturating_sub(1);
                self.serve(member, driver);
            }
            // An empty slice still costs one, so that the loop is bounded by the rooms.
            budget -= count.max(1).min(budget);
            let room = self.rooms.get(index);
            if room.sweep.left == 0 {
                self.fan_out.offered.push(index);
                room.sweep.offered = room.sweep.mark;
                room.sweep.queued = room.log.released() > room.sweep.mark;
            }
            if room.sweep.queued {
                if room.sweep.left == 0 {
                    room.start_round();
                }
                self.fan_out.round.push_back(index);
            } else {
                room.log.forget_merged();
            }
        }
    }

    /// Lets logs go of what their members were offered in the turn before this one: by now who had
    /// just been sent something else has got it too. Comes last in a turn.
    pub(super) fn trim_logs(&mut self) {
        for index in self.fan_out.taken.drain(..) {
            if self.rooms.exists(index) {
                let room = self.rooms.get(index);
                let offered = room.sweep.offered;
                room.log.trim(offered);
                let done = room.receipts.partition_point(|&(offset, _)| offset < offered);
                room.receipts.drain(..done);
            }
        }
        std::mem::swap(&mut self.fan_out.taken, &mut self.fan_out.offered);
    }

    /// Sends a member what it has not got, or marks it as owed.
    #[inline]
    fn serve(&mut self, member: MembershipId, driver: &mut impl Driver) {
        let (room, membership) = self.rooms.room_and_membership(member);
        let slot = membership.slot;
        if membership.cursor(room.log.end()) >= room.log.released() {
            return;
        }
        let connection = &mut self.connections[slot as usize];
        if connection.in_flight_bytes > 0 || connection.flags.touched {
            connection.flags.owed = true;
            return;
        }
        // One read takes so much and no more: what is left goes behind it, as far as the kernel takes it.
        while let Some(bytes) = self.read_log(member) {
            let (room, membership) = self.rooms.room_and_membership(member);
            let behind = membership.cursor(room.log.end()) < room.log.released();
            if self.send(slot, bytes, driver) == SendState::UnderWay {
                self.connections[slot as usize].flags.owed |= behind;
                return;
            }
        }
    }

    /// Takes what a member has not got out of its room's log, and moves its cursor on.
    #[inline]
    fn read_log(&mut self, member: MembershipId) -> Option<Bytes> {
        let (room, membership) = self.rooms.room_and_membership(member);
        let end = room.log.end();
        let mut cursor = membership.cursor(end);
        let skipped = room.log.first().saturating_sub(cursor);
        if skipped > 0 {
            if room.policy.slow_member == SlowMember::Close {
                let slot = membership.slot;
                self.abort(slot, Cause::SlowMember);
                return None;
            }
            self.stats.skipped_pushes += skipped;
            cursor = room.log.first();
            membership.set_cursor(cursor, end);
        }
        let (bytes, next) = room.log.read(cursor)?;
        self.stats.deliveries += next - cursor;
        membership.set_cursor(next, end);
        Some(bytes)
    }

    /// Takes everything that a connection is owed: its outbox, then what its rooms have for it.
    pub(super) fn take_owed(&mut self, slot: u32) -> Option<Bytes> {
        self.at(slot).flags.owed = false;
        let mut alone = None;
        let mut next = self.at(slot).first_membership;
        while let Some(member) = next {
            next = self.rooms.membership(member).next;
            while let Some(bytes) = self.read_log(member) {
                let connection = &mut self.connections[slot as usize];
                if connection.outbox.is_none() && alone.is_none() {
                    alone = Some(bytes);
                } else {
                    let first = alone.take();
                    self.outboxes.write(&mut connection.outbox, |out| {
                        first.iter().for_each(|bytes: &Bytes| out.extend_from_slice(bytes));
                        out.extend_from_slice(&bytes);
                    });
                }
                let taken = alone.as_ref().map_or(0, Bytes::len);
                if taken + self.outboxes.len(self.connections[slot as usize].outbox)
                    >= OWED_BYTES_MAX
                {
                    let connection = &mut self.connections[slot as usize];
                    connection.flags.owed = true;
                    // The next send begins with another room: none waits for one that never rests.
                    self.rooms.turn(&mut connection.first_membership, member);
                    next = None;
                    break;
                }
            }
            if self.at(slot).is_going() {
                // One of its rooms closes who is slow: its memberships are gone.
                return None;
            }
        }
        let outbox = &mut self.connections[slot as usize].outbox;
        alone.or_else(|| self.outboxes.drain(outbox))
    }
}
