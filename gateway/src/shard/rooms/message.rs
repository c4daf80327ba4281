//! Messages between shards about rooms, and what the part asks of its shard.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_backend::publisher::Target;
use tidegate_backend::{PushError, RoomId, UserId};
use tidegate_protocol::proto::v1::Recovery;
use tidegate_protocol::server;
use tokio::sync::oneshot;

use super::lifetimes::NEVER_MS;
use super::log::{After, Log, LogId, LogName};
use crate::cluster::message::ToCluster;
use crate::config::RoomPolicy;
use crate::control::RoomInfo;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::shard::command::{Aggregate, CommandPermit, RoomPush};
use crate::shard::repeats::Keyed;

/// A message about a room.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum RoomMessage {
    /// To a room's home: number the push, append it to the log, pass it on.
    Publish(RoomPush),
    /// From a room's home to each shard with members: the next frame of the room's log.
    Append {
        room: RoomId,
        offset: u64,
        frame: Bytes,
        urgency: Urgency,
        /// When its time to live is over, on the shards' clock.
        ends_ms: u64,
        permit: Arc<CommandPermit>,
    },
    /// To a room's home: a connection becomes a member.
    Join { room: RoomId, addr: SessionAddr, after: After, asker: Asker },
    /// From a room's home: the connection is a member. The log comes with the first member of a shard.
    Joined {
        room: RoomId,
        conn: ConnId,
        after: After,
        ticket_s: u32,
        log: Option<Box<Log>>,
        asker: Asker,
    },
    /// From a room's home: the connection can't be a member, since there are too many rooms.
    JoinRefused { room: RoomId, conn: ConnId, asker: Asker },
    /// To a room's home: a connection leaves.
    Leave { room: RoomId, addr: SessionAddr, permit: Arc<CommandPermit> },
    /// To a room's home: a user's tickets are worthless from now on, and its memberships end.
    Expel { room: RoomId, user_id: UserId, permit: Arc<CommandPermit> },
    /// From a room's home: the connection is no longer a member.
    Left { room: RoomId, conn: ConnId, permit: Arc<CommandPermit> },
    /// To a room's home: this shard has no members left, and has received this many [`Self::Joined`].
    Unsubscribe { room: RoomId, shard: u16, joins: u64 },
    /// From a room's home: nothing more of this room follows.
    Unsubscribed { room: RoomId },
    /// To a room's home: the room's log, as the gateways share it. The room opens with it.
    Fetched { room: RoomId, log: FetchedLog },
    /// To a room's home: the next push of a log that gateways share.
    Shared { room: RoomId, push: SharedPush, permit: Arc<CommandPermit> },
    /// To a room's home: the log continues under another id, or with a later push than the next one.
    Renamed { room: RoomId, id: LogId, cut: u64, next: u64 },
    /// To a room's home: another gateway has expelled a user, or tickets of all users are worthless. `ends`: memberships
    /// end too.
    Barred { room: RoomId, bar: Bar, ends: bool, permit: Arc<CommandPermit> },
    /// From a room's home to each shard with members: another log has the place of the room's.
    Replaced { room: RoomId, log: Box<Log>, keeps: Keeps, ticket_s: u32 },
    /// To a room's home: an operator wants to see it.
    Inspect { room: RoomId, reply: oneshot::Sender<Option<RoomInfo>> },
    /// From a room's home: add the number of your members.
    CountMembers { room: RoomId, aggregate: Arc<Aggregate<Option<RoomInfo>>> },
}

impl RoomMessage {
    /// The key of a push that has one. The push keeps it too: where gateways share rooms, the others have to know it.
    #[must_use]
    pub fn keyed(&self) -> Option<Keyed> {
        let Self::Publish(RoomPush { room, options, permit, .. }) = self else { return None };
        let key = options.as_ref()?.key.clone()?;
        Some(Keyed { target: Target::Room(room.clone()), key, permit: Arc::clone(permit) })
    }

    /// Drops the message because its shard has ended. The caller of the command learns the reason.
    pub fn refuse(self) {
        match self {
            // The home did nothing of it.
            Self::Publish(RoomPush { permit, .. })
            | Self::Leave { permit, .. }
            | Self::Expel { permit, .. } => {
                permit.refuse(PushError::Stopping);
            }
            Self::Join { asker, .. } => asker.refuse(PushError::Stopping),
            // The shard's connections ended before it did.
            Self::Joined { asker, .. } => asker.refuse(PushError::SessionGone),
            // No connection is left that it could reach.
            Self::Append { .. }
            | Self::Left { .. }
            | Self::JoinRefused { .. }
            | Self::Unsubscribe { .. }
            | Self::Unsubscribed { .. }
            | Self::Fetched { .. }
            | Self::Shared { .. }
            | Self::Renamed { .. }
            | Self::Barred { .. }
            | Self::Replaced { .. }
            | Self::Inspect { .. }
            | Self::CountMembers { .. } => {}
        }
    }
}

/// A log that gateways share, as it was when a room's home asked for it.
#[derive(Debug)]
pub struct FetchedLog {
    /// Its id. `None`: its pushes are not kept anywhere, so each gateway numbers them separately.
    pub id: Option<LogId>,
    /// The offset of the first of `pushes`; that of the next push if there are none.
    pub first: u64,
    /// The newest pushes, without a hole.
    pub pushes: Vec<SharedPush>,
    /// Whose tickets are worthless.
    pub barred: Vec<Bar>,
}

/// Whose tickets for a room are worthless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The user; `None`: all.
    pub user_id: Option<UserId>,
    /// Tickets that were made until then, in seconds since the Unix epoch.
    pub until_s: u32,
}

/// A push that came from where gateways share logs.
#[derive(Debug)]
pub struct SharedPush {
    /// Its place in the log; 0: the log is not kept, so this gateway numbers it.
    pub offset: u64,
    /// Its type.
    pub kind: i32,
    /// Its payload.
    pub biz_data: Bytes,
    /// When its time to live is over, in milliseconds since the Unix epoch; 0: it has none.
    pub ends_unix_ms: u64,
}

impl SharedPush {
    /// When its time to live is over on a shard's clock, which shows `now_ms` when the wall clock shows `unix_ms`.
    #[must_use]
    pub fn ends_ms(&self, now_ms: u64, unix_ms: impl Fn() -> u64) -> u64 {
        match self.ends_unix_ms {
            0 => NEVER_MS,
            ends_ms => now_ms.saturating_add(ends_ms.saturating_sub(unix_ms())),
        }
    }
}

/// What members keep when another log has the place of their room's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Their places: the log holds what they still have to get.
    Places,
    /// Nothing: they continue behind the log's end.
    Nothing,
}

/// Who asks for a membership.
#[derive(Debug)]
pub enum Asker {
    /// A backend, with a command.
    Backend(Arc<CommandPermit>),
    /// The client itself, which resumes with a ticket. Its connection's session waits for the outcome.
    Client {
        /// The user that the ticket is for.
        user_id: UserId,
        /// When the ticket was made, in seconds since the Unix epoch.
        ticket_made_s: u32,
    },
}

impl Asker {
    /// The connection did not become a member.
    pub fn refuse(&self, error: PushError) {
        if let Self::Backend(permit) = self {
            permit.refuse(error);
        }
    }
}

/// What a member is sent about a room when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The room's name.
    pub name: String,
    /// How its log is named; `None`: the connection is not a member.
    pub log: Option<LogName>,
    /// The offset of the newest push; 0 if there is none.
    pub head: u64,
    /// Whether it gets what it asked for.
    pub recovery: Recovery,
    /// The time that its ticket carries, in seconds since the Unix epoch: when the room's home made it a
    /// member. 0: it gets no ticket.
    pub ticket_s: u32,
}

impl Joined {
    /// A membership that was refused.
    #[must_use]
    pub fn refused(name: impl Into<String>) -> Self {
        Self { name: name.into(), log: None, head: 0, recovery: Recovery::Refused, ticket_s: 0 }
    }
}

/// What the rooms need to know of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// There is no connection with this id, or it is about to close.
    Gone,
    /// It is open.
    Open,
    /// It is open, and its session's answer waits for its rooms: it was offered nothing yet.
    Resuming,
    /// It is open, and has too many unsent bytes to get the last pushes of a room that it leaves.
    Backlogged,
}

/// Encodes a push as the frame that all members get. `room`: the room's number.
#[must_use]
pub fn encode_push(kind: i32, biz_data: &[u8], offset: u64, room: u32) -> Bytes {
    let mut frame = BytesMut::with_capacity(biz_data.len() + 40);
    server::put_push(&mut frame, kind, biz_data, offset, room);
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

/// Who has asked for a membership: [`Asker`], without the permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// A backend: the client is sent a notice.
    Backend,
    /// The client: the answer is part of its session.
    Client,
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
    /// The connection in this slot has become a member, or not: its client, or a backend, has asked.
    Joined(u32, Joined, AskedBy),
    /// The connection in this slot is no longer a member of a room.
    Left(u32, RoomId),
    /// End the user's memberships of a room: its home knows the connections.
    Expel(UserId, RoomId, Arc<CommandPermit>),
    /// Pass a message to the thread that speaks with the other gateways.
    ToCluster(ToCluster),
}
