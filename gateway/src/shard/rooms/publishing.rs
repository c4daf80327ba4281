//! Publishing: the room's home numbers a push, and each shard with members appends it to its replica of the log.

use std::sync::Arc;

use tidegate_backend::RoomId;
use tidegate_backend::publisher::Nobody;

use super::Rooms;
use super::message::{self, RoomMessage, Urgency};
use super::pushes::NumberedPush;
use super::room::Room;
use super::subscribers::Role;
use super::table::RoomIndex;
use crate::shard::command::CommandPermit;

impl Rooms {
    /// At a room's home: numbers a push and passes it on.
    pub(super) fn publish(
        &mut self,
        room: &RoomId,
        kind: i32,
        biz_data: &[u8],
        ends_ms: u64,
        permit: &Arc<CommandPermit>,
        now_ms: u64,
    ) {
        self.counters.pushes_to_rooms += 1;
        permit.set_nobody(Nobody::NoMembers);
        let index = match self.find_or_open(room, now_ms) {
            Ok(index) => index,
            Err(error) => return permit.refuse(error),
        };
        self.number_and_append(index, (kind, biz_data), ends_ms, permit, now_ms);
    }

    /// At a room's home: gives a push the next offset, and passes it on.
    pub(super) fn number_and_append(
        &mut self,
        index: RoomIndex,
        (kind, biz_data): (i32, &[u8]),
        ends_ms: u64,
        permit: &Arc<CommandPermit>,
        now_ms: u64,
    ) {
        let Room { id: room, log, policy, role, .. } = self.table.get(index);
        let offset = log.end();
        let urgency = Urgency::of(kind, policy);
        let frame = message::encode_push(kind, biz_data, offset, log.name().number);
        if let Role::Home { subscribers } = role {
            self.effects.extend(subscribers.post_to_each(|| {
                let (room, frame, permit) = (room.clone(), frame.clone(), Arc::clone(permit));
                RoomMessage::Append { room, offset, frame, urgency, ends_ms, permit }
            }));
        }
        self.append(index, NumberedPush { frame, urgency, ends_ms, permit }, now_ms);
    }

    /// At a shard with members: the home has numbered a push.
    pub(super) fn append_numbered(
        &mut self,
        room: &RoomId,
        offset: u64,
        push: NumberedPush<'_>,
        now_ms: u64,
    ) {
        // The room is gone here if the home does not know yet that the last member has left.
        if let Some(index) = self.table.find(room) {
            debug_assert_eq!(self.table.get(index).log.end(), offset, "no push is lost");
            self.append(index, push, now_ms);
        }
    }

    fn append(&mut self, index: RoomIndex, push: NumberedPush<'_>, now_ms: u64) {
        let Self { pushes, table, counters, .. } = self;
        pushes.append(table, index, push, counters, now_ms);
        table.recount(index);
        if table.get(index).unused.is_some() {
            table.note_use(index);
        }
    }
}
