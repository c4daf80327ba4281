//! Messages of shards to the thread that speaks with Redis.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tidegate_backend::push::PushOptions;
use tidegate_backend::{PushError, RoomId, UserId};

use crate::auth::TokenDigest;
use crate::config::RoomsConfig;
use crate::session_id::SessionAddr;
use crate::shard::command::{CommandPermit, RoomPush};
use crate::shard::tokens::TokenPage;

/// A message of a shard.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum ToCluster {
    /// This gateway needs a room's log: fetch it, and pass on what is published from then on. `home`: the shard.
    Follow { room: RoomId, home: u16 },
    /// No shard needs the room now.
    Unfollow { room: RoomId },
    /// The room has got a member, and had none.
    FirstMember { room: RoomId },
    /// Push to the room, on all gateways.
    Publish(RoomPush),
    /// A user is expelled from the room, and its tickets until then are worthless, on all gateways.
    Bar { room: RoomId, user_id: UserId, until_s: u32, permit: Arc<CommandPermit> },
    /// A user's first session here, or its newest one where a user has one session.
    UserArrived { user_id: UserId, addr: SessionAddr, at: Instant },
    /// A user's last session here has ended.
    UserLeft { user_id: UserId, at: Instant },
    /// A command to a user, for the sessions at other gateways.
    ToUser { user_id: UserId, order: UserOrder, permit: Arc<CommandPermit> },
    /// Look a token up. The shard gets one verdict.
    LookUp { addr: SessionAddr, user_id: UserId, token: TokenDigest },
    /// A page of tokens that was asked for.
    Tokens(TokenPage),
    /// A reload has brought these.
    Reload { rooms: Box<RoomsConfig>, ticket_key: String },
    /// The gateway ends.
    Stop,
}

/// A command to a user.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum UserOrder {
    /// Push to each session.
    Push { kind: i32, biz_data: Bytes, options: Option<Box<PushOptions>> },
    /// Close all sessions with 110.
    Kick,
    /// End the memberships of a room.
    Expel(RoomId),
}

impl ToCluster {
    /// Drops the message because the thread has ended. The caller of the command learns the reason.
    pub fn refuse(self) {
        match self {
            Self::Publish(RoomPush { permit, .. })
            | Self::Bar { permit, .. }
            | Self::ToUser { permit, .. } => {
                permit.refuse(PushError::Stopping);
            }
            Self::Follow { .. }
            | Self::Unfollow { .. }
            | Self::FirstMember { .. }
            | Self::UserArrived { .. }
            | Self::UserLeft { .. }
            | Self::LookUp { .. }
            | Self::Tokens(_)
            | Self::Reload { .. }
            | Self::Stop => {}
        }
    }
}
