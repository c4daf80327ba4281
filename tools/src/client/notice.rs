//! What a session has to tell. [`view`](super::view) turns it into lines.

use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::client::Failure;
use tidegate_protocol::proto::v1;

use super::command::Command;
use super::rooms::Gap;

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The session is open.
    LoggedIn {
        /// Whose.
        user_id: u64,
        /// What the gateway says of it.
        session: v1::Session,
    },
    /// The session is not open.
    LoginFailed {
        /// Whose.
        user_id: u64,
        /// Why not.
        why: Why,
    },
    /// A command was answered.
    Done {
        /// Which.
        command: Command,
        /// With what.
        biz_data: Bytes,
    },
    /// A `ping` was answered.
    Pong {
        /// How long that took.
        took: Duration,
        /// The gateway's clock, in milliseconds since the Unix epoch.
        server_time_ms: u64,
    },
    /// A command failed.
    Failed {
        /// Which.
        what: String,
        /// Why.
        why: Why,
    },
    /// A push.
    Push {
        /// Its type.
        kind: i32,
        /// Its place in a room's log, or 0.
        offset: u64,
        /// What it carries.
        biz_data: Bytes,
    },
    /// Some of a room's pushes did not come.
    Gap(Gap),
    /// An answer that nobody waits for any more.
    Stray {
        /// The type that it answers.
        kind: i32,
        /// The request that it answers.
        sequence: u64,
        /// What it carries.
        biz_data: Bytes,
    },
    /// The gateway ends the session.
    Goodbye(Failure),
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The gateway said so.
    Refused(Failure),
    /// The gateway said nothing for this long.
    NoAnswer(Duration),
    /// There is no session to ask it in.
    NotIn,
    /// The connection ended first.
    Closed,
}
