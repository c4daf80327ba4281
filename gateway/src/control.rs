//! What the operators' HTTP asks a running gateway.
//!
//! A question goes to the shard that knows the answer, which returns it through a one-shot channel. If the channel
//! closes without an answer, that shard has ended.

use std::fmt::Debug;

use serde::Serialize;
use tidegate_backend::publisher::{Command, CommandOutcome, Push, RoomId, UserId};
use tokio::sync::oneshot;

use crate::shard::rebalance::Share;

/// The error code of `GET /readyz` while the gateway drains. A successor looks for it.
pub(crate) const DRAINING: &str = "draining";

/// An answer that is still to come.
pub type Reply<T> = oneshot::Receiver<T>;

/// What operators can ask.
pub trait Control: Send + Sync + 'static {
    /// Whether new connections are accepted, and if not, why.
    fn readiness(&self) -> Readiness;

    /// Whether new connections are accepted.
    fn is_ready(&self) -> bool {
        self.readiness() == Readiness::Ready
    }

    /// Gives a command, as backends do. The answer is its outcome.
    fn command(&self, command: Command) -> Reply<CommandOutcome>;

    /// Gives several pushes. The answer is the outcome of each, in order.
    fn push_many(&self, pushes: Vec<Push>) -> Reply<Vec<CommandOutcome>>;

    /// Asks for a user's connections.
    fn user(&self, user_id: UserId) -> Reply<UserInfo>;

    /// Asks for a room; `None`: there is no room of that name.
    fn room(&self, room: RoomId) -> Reply<Option<RoomInfo>>;

    /// How many shards there are.
    fn shards(&self) -> u16;

    /// Asks a shard for its figures.
    fn shard(&self, shard: u16) -> Reply<ShardInfo>;

    /// Asks the HTTP gateway, as [`Self::shard`] asks a shard. It has none of these figures: an answer says that its thread
    /// runs. `None`: there is none.
    fn http(&self) -> Option<Reply<ShardInfo>> {
        None
    }

    /// Asks a shard how many clients it could send to other gateways, without those that came in the last `spared_s`
    /// seconds.
    fn count_movable(&self, shard: u16, spared_s: u16) -> Reply<u64>;

    /// Has a shard send its share of clients to other gateways.
    fn send_away(&self, shard: u16, share: Share);

    /// Has the gateway drain, unless it drains already.
    fn drain(&self);

    /// Has the gateway drain, or hurries the drain that is under way.
    fn hurry_drain(&self);
}

/// What a gateway does beside its shards when it drains.
pub trait Drains: Debug + Send + Sync {
    /// The gateway drains.
    fn drain(&self);

    /// The drain is hurried.
    fn hurry(&self);
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DrainPhase {
    /// `/readyz` says that the gateway drains, and it accepts and serves as before.
    Grace,
    /// Nothing is accepted, and goodbyes are sent.
    Goodbyes,
    /// Each client has its goodbye or gets it with its last answer.
    Answers,
}

/// How far the drain of a shard has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShardDrain {
    /// The phase.
    pub phase: DrainPhase,
    /// When it stops waiting for answers, in milliseconds from now.
    pub left_ms: u64,
}

/// Whether new connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet: the gateway starts.
    Starting,
    /// Yes: every shard listens, and none drains.
    Ready,
    /// No longer: the gateway drains. In the time of grace they are accepted all the same.
    Draining,
}

impl Readiness {
    /// Its name in `/stats`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => DRAINING,
        }
    }
}

/// A user and its connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserInfo {
    /// The user.
    pub user_id: UserId,
    /// Its connections, oldest first; empty when it has none.
    pub connections: Vec<ConnectionInfo>,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionInfo {
    /// Its session, in hexadecimal: JSON numbers can't hold 64 bits everywhere.
    pub session_id: String,
    /// The shard that owns it.
    pub shard: u16,
}

/// One room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomInfo {
    /// Its name.
    pub room: String,
    /// Members, all shards together.
    pub members: u64,
    /// The offset of the newest push.
    pub last_offset: u64,
    /// The offset of the oldest push that the log still holds; above `last_offset` when it holds none.
    pub first_offset: u64,
    /// Bytes that the log holds.
    pub log_bytes: u64,
}

/// One shard's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShardInfo {
    /// Which shard.
    pub shard: u16,
    /// How it talks to the kernel: `epoll` or `uring`.
    pub driver: &'static str,
    /// io_uring instances that it uses; 0 with epoll.
    pub rings: u64,
    /// Open connections.
    pub connections: u64,
    /// Of these, the authenticated ones.
    pub sessions: u64,
    /// Users whose directory entry this shard keeps.
    pub users: u64,
    /// Rooms that have members on this shard, or whose home this shard is.
    pub rooms: u64,
    /// Memberships of this shard's connections.
    pub memberships: u64,
    /// Calls that wait for their answer.
    pub calls_in_flight: u64,
    /// Bytes that wait to be sent.
    pub outbox_bytes: u64,
    /// How far its drain has come; `None`: it does not drain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<ShardDrain>,
}
