//! What a session reports. [`view`](super::view) turns it into lines.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::client::Failure;
use tidegate_protocol::memberships::Change;
use tidegate_protocol::proto::v1;

use super::command::Command;

/// Something to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The session is open.
    LoggedIn {
        /// The user.
        user_id: u64,
        /// The session, as the gateway describes it.
        session: v1::Session,
    },
    /// The login failed.
    LoginFailed {
        /// The user.
        user_id: u64,
        /// The reason.
        reason: Reason,
    },
    /// A command was answered.
    Done {
        /// The command.
        command: Command,
        /// The answer's contents.
        biz_data: Bytes,
    },
    /// A `ping` was answered.
    Pong {
        /// The time until the answer.
        took: Duration,
        /// The gateway's clock, in milliseconds since the Unix epoch.
        server_time_ms: u64,
    },
    /// A command failed.
    Failed {
        /// The command.
        what: String,
        /// The reason.
        reason: Reason,
    },
    /// A push.
    Push {
        /// Its type.
        kind: i32,
        /// Its room's name; `None` for a push to the user, and where the gateway did not name the room.
        room: Option<String>,
        /// Its offset in a room's log, or 0.
        offset: u64,
        /// Its contents.
        biz_data: Bytes,
    },
    /// The session is a member of a room.
    Joined(v1::Room),
    /// The session is no longer a member of a room.
    Left {
        /// The room's name.
        room: String,
    },
    /// What a user has to know of a room beside that.
    Changed(Change),
    /// Pushes of a room are missing in front of the next one.
    Missing {
        /// The room's name.
        room: String,
        /// Their offsets.
        offsets: RangeInclusive<u64>,
    },
    /// An answer to a request that has timed out, or that was never sent.
    Stray {
        /// The type of the request.
        kind: i32,
        /// The sequence of the request.
        sequence: u64,
        /// Its contents.
        biz_data: Bytes,
    },
    /// The gateway ends the session.
    Goodbye(Failure),
}

/// The reason of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The gateway refused.
    Refused(Failure),
    /// No answer came within this time.
    NoAnswer(Duration),
    /// There is no session.
    NotLoggedIn,
    /// The connection closed before the answer.
    Closed,
}
