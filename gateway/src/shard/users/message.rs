//! Messages between shards about users and their sessions.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::publisher::{PushOptions, Target};
use tidegate_backend::{PushError, RoomId, UserId};
use tokio::sync::oneshot;

use crate::control::UserInfo;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::shard::command::CommandPermit;
use crate::shard::repeats::Keyed;

/// A message to a user's home.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum UserMessage {
    /// The connection has proved that it is the user's.
    Register { user_id: UserId, addr: SessionAddr, sequence: u64 },
    /// The user's connection has ended.
    Deregister { user_id: UserId, addr: SessionAddr },
    /// A session of the user at another gateway is newer than this one: close it with 107, if it is still there.
    Replace { user_id: UserId, addr: SessionAddr },
    /// Close all of the user's connections with 110.
    Kick { user_id: UserId, permit: Arc<CommandPermit> },
    /// Push to each of the user's connections.
    Push {
        user_id: UserId,
        frame: Bytes,
        options: Option<Box<PushOptions>>,
        permit: Arc<CommandPermit>,
    },
    /// End the memberships of a room of all the user's connections.
    Expel { user_id: UserId, room: RoomId, permit: Arc<CommandPermit> },
    /// An operator wants to see it.
    Inspect { user_id: UserId, reply: oneshot::Sender<UserInfo> },
}

impl UserMessage {
    /// Takes the key of a push that has one.
    pub fn take_key(&mut self) -> Option<Keyed> {
        let Self::Push { user_id, options: Some(options), permit, .. } = self else { return None };
        let key = options.key.take()?;
        Some(Keyed { target: Target::User(*user_id), key, permit: Arc::clone(permit) })
    }

    /// Drops the message because its shard has ended. The caller of the command learns the reason.
    pub fn refuse(self) {
        match self {
            Self::Kick { permit, .. } | Self::Push { permit, .. } | Self::Expel { permit, .. } => {
                permit.refuse(PushError::Stopping);
            }
            Self::Register { .. }
            | Self::Deregister { .. }
            | Self::Replace { .. }
            | Self::Inspect { .. } => {}
        }
    }
}

/// A message from a user's home to the shard of one of the user's connections.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum SessionMessage {
    /// The session may open.
    Registered { conn: ConnId, sequence: u64 },
    /// Close the connection.
    Evict { conn: ConnId, reason: Eviction, permit: Option<Arc<CommandPermit>> },
    /// End the membership of a room.
    Leave { conn: ConnId, room: RoomId, permit: Arc<CommandPermit> },
    /// Send a push, unless its time to live is over.
    Deliver { conn: ConnId, frame: Bytes, ends_ms: u64, permit: Arc<CommandPermit> },
}

/// Why a user's home closes a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The user logged in elsewhere, and has too many sessions: 107.
    Replaced,
    /// An operator or a backend has kicked the user: 110.
    Kicked,
}

/// What [`Users`](super::Users) asks the shard to do: post a message to a shard, which may be the same.
#[derive(Debug)]
pub struct UserEffect(pub u16, pub SessionMessage);

/// What other gateways have to learn of a user. Only a gateway that is one of several records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// The user's first session here, or its newest one where a user has one session.
    Arrived(UserId, SessionAddr),
    /// The user's last session here has ended.
    Left(UserId),
}
