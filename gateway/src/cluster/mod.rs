//! What crosses machines: the thread that speaks with Redis, for all shards.
//!
//! A shard never waits for Redis. It posts a [`ToCluster`] message and continues; the result arrives in a mailbox,
//! like any other message. The thread has one runtime, and all state that is kept for Redis:
//!
//! | module | what it owns |
//! |---|---|
//! | [`message`] | messages of shards to this thread |
//! | [`run`] | the thread's loop: it knows all parts, passes facts to them and carries out what they ask |
//! | [`links`] | a connection for each concern, and when it is made again |
//! | [`link_log`] | what is logged of a link that comes and goes |
//! | [`link_error`] | why there is no connection, and what to do about it |
//! | [`link`] | how a connection to one Redis is made, and what it carries |
//! | [`rooms`] | which rooms this gateway follows, and what it knows of their logs |
//! | [`members`] | how many members its rooms have here, as reported to Redis |
//! | [`publishing`] | pushes to rooms on their way into Redis |
//! | [`users`] | who is online, at this gateway and over all of them, and commands to users at other gateways |
//! | [`tokens`] | session tokens that are looked up, revoked and checked |
//! | [`bans`] | bans that hold at all gateways |
//! | [`registry`] | which gateways there are, and what they report about themselves |
//! | [`status`] | what operators are shown |
//! | [`metrics`] | its figures |
//! | [`contract`], [`user_contract`], [`token_contract`] | names of keys, channels and functions; what messages look like |
//!
//! [`rooms`], [`members`], [`publishing`], [`users`], [`tokens`] and [`bans`] do no I/O and read no clock: they take facts and the time, and return requests and
//! messages for shards. The contract with backends is `backend/REDIS.md`.

pub mod bans;
pub mod contract;
pub mod link;
pub mod link_error;
pub mod link_log;
pub mod links;
pub mod members;
pub mod message;
pub mod metrics;
pub mod publishing;
pub mod registry;
pub mod rooms;
pub mod run;
pub mod status;
pub mod token_contract;
pub mod tokens;
pub mod user_contract;
pub mod users;

use std::fmt;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::shard::users::message::PresenceChange;
use message::ToCluster;

/// The way to the thread that speaks with Redis.
///
/// The queue needs no separate bound: pushes hold permits of the bound on commands, lookups of tokens have a bound in each
/// shard, and what else is posted is bounded by rooms and users.
#[derive(Clone)]
pub struct ClusterAddress {
    sender: mpsc::UnboundedSender<ToCluster>,
}

/// The other end of a [`ClusterAddress`].
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::UnboundedReceiver<ToCluster>,
}

/// An address, and the inbox behind it.
#[must_use]
pub fn channel() -> (ClusterAddress, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (ClusterAddress { sender }, Inbox { receiver })
}

impl ClusterAddress {
    /// Posts a message. If the thread has ended, the message is refused.
    pub fn post(&self, message: ToCluster) {
        if let Err(mpsc::error::SendError(message)) = self.sender.send(message) {
            message.refuse();
        }
    }
}

impl ClusterAddress {
    /// Posts what other gateways have to learn of a user, with the time. Logins at two gateways are put in order by
    /// that time. It is read here, and not taken from the shard's clock: a turn's time is from before the
    /// login, and the answer to an earlier login at another gateway may lie between.
    pub fn post_presence(&self, change: PresenceChange) {
        let at = Instant::now();
        self.post(match change {
            PresenceChange::Arrived(user_id, addr) => ToCluster::UserArrived { user_id, addr, at },
            PresenceChange::Left(user_id) => ToCluster::UserLeft { user_id, at },
        });
    }
}

impl Inbox {
    /// The next message, if one waits. A simulation takes them in place of the thread.
    pub fn try_next(&mut self) -> Option<ToCluster> {
        self.receiver.try_recv().ok()
    }
}

impl fmt::Debug for ClusterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterAddress")
    }
}
