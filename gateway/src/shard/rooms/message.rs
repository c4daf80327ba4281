//! Messages between shards about rooms, and what the part asks of its shard.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_backend::{PushError, RoomId};
use tidegate_protocol::server;
use tokio::sync::oneshot;

use super::log::Log;
use crate::config::RoomPolicy;
use crate::control::RoomInfo;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::shard::command::{Aggregate, CommandPermit};

/// A message about a room.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum RoomMessage {
    /// To a room's home: number the push, append it to the log, pass it on.
    Publish { room: RoomId, kind: i32, biz_data: Bytes, permit: Arc<CommandPermit> },
    /// From a room's home to each shard with members: the next frame of the room's log.
    Append { room: RoomId, offset: u64, frame: Bytes, urgency: Urgency, permit: Arc<CommandPermit> },
    /// To a room's home: a connection becomes a member.
    Join { room: RoomId, addr: SessionAddr, after_offset: Option<u64>, permit: Arc<CommandPermit> },
    /// From a room's home: the connection is a member. The log comes with the first member of a shard.
    Joined {
        room: RoomId,
        conn: ConnId,
        after_offset: Option<u64>,
        log: Option<Box<Log>>,
        permit: Arc<CommandPermit>,
    },
    /// To a room's home: a connection leaves.
    Leave { room: RoomId, addr: SessionAddr, permit: Arc<CommandPermit> },
    /// From a room's home: the connection is no longer a member.
    Left { room: RoomId, conn: ConnId, permit: Arc<CommandPermit> },
    /// To a room's home: this shard has no members left, and has received this many [`Self::Joined`].
    Unsubscribe { room: RoomId, shard: u16, joins: u64 },
    /// From a room's home: nothing more of this room follows.
    Unsubscribed { room: RoomId },
    /// To a room's home: an operator wants to see it.
    Inspect { room: RoomId, reply: oneshot::Sender<Option<RoomInfo>> },
    /// From a room's home: add the number of your members.
    CountMembers { room: RoomId, aggregate: Arc<Aggregate<Option<RoomInfo>>> },
}

impl RoomMessage {
    /// Drops the message because its shard has ended. The caller of the command learns the reason.
    pub fn refuse(self) {
        match self {
            // The home did nothing of it.
            Self::Publish { permit, .. }
            | Self::Join { permit, .. }
            | Self::Leave { permit, .. } => {
                permit.refuse(PushError::Stopping);
            }
            // The shard's connections ended before it did.
            Self::Joined { permit, .. } => permit.refuse(PushError::SessionGone),
            // No connection is left that it could reach.
            Self::Append { .. }
            | Self::Left { .. }
            | Self::Unsubscribe { .. }
            | Self::Unsubscribed { .. }
            | Self::Inspect { .. }
            | Self::CountMembers { .. } => {}
        }
    }
}

/// What the rooms need to know of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// There is no connection with this id, or it is about to close.
    Gone,
    /// It is open.
    Open,
    /// It is open, and has too many unsent bytes to get the last pushes of a room that it leaves.
    Backlogged,
}

/// Encodes a push as the frame that all members get.
#[must_use]
pub fn encode_push(kind: i32, biz_data: &[u8], offset: u64) -> Bytes {
    let mut frame = BytesMut::with_capacity(biz_data.len() + 32);
    server::put_push(&mut frame, kind, biz_data, offset, 0);
    frame.freeze()
}

/// Whether a push may wait for the end of a merge window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It waits, if its room has a window.
    MayWait,
    /// It goes out at once, with the pushes that wait before it.
    AtOnce,
}

impl Urgency {
    /// What a room's policy says about a push's type.
    #[must_use]
    pub fn of(kind: i32, policy: &RoomPolicy) -> Self {
        if policy.is_urgent(kind) { Self::AtOnce } else { Self::MayWait }
    }
}

/// What [`Rooms`](super::Rooms) asks the shard to do.
#[derive(Debug)]
pub enum RoomEffect {
    /// Post a message to a shard, which may be the same.
    Post(u16, RoomMessage),
    /// A room has pushes for the connection in this slot: flush it at the end of the turn.
    PushesPending(u32),
    /// Write pushes for the connection in this slot: the last that it gets of a room.
    LastPushes(u32, Bytes),
}
