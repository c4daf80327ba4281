//! Commands of a backend to the gateway: pushes, memberships and kicks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::limits::ROOM_ID_BYTES_MAX;

use crate::push::many;
pub use crate::push::{
    KEY_BYTES_MAX, KEY_LIFETIME, ManyReport, Nobody, Push, PushOptions, TTL_MAX, Target,
};

/// The user that a connection belongs to: the `sub` of its token.
pub type UserId = u64;

/// Identifies a connection. No other connection ever gets the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Identifies a room: 1 to 128 bytes of UTF-8. A room exists while it has members or pushes in its log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(Arc<str>);

/// Why a string is not the name of a room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoomIdError {
    /// It is empty.
    #[error("a room id has at least one byte")]
    Empty,
    /// It is too long.
    #[error("a room id has at most {ROOM_ID_BYTES_MAX} bytes; this one has {0}")]
    TooLong(usize),
    /// It is `*`, which is everybody's room.
    #[error("\"*\" is everybody's room: every authenticated connection is in it, and stays")]
    Reserved,
}

impl RoomId {
    /// The room that every authenticated connection is in.
    #[must_use]
    pub fn everybody() -> Self {
        Self("*".into())
    }

    /// Checks a name.
    ///
    /// # Errors
    /// [`RoomIdError`] when it is empty, too long, or `*`.
    pub fn new(id: impl AsRef<str>) -> Result<Self, RoomIdError> {
        match id.as_ref() {
            "" => Err(RoomIdError::Empty),
            "*" => Err(RoomIdError::Reserved),
            id if id.len() > ROOM_ID_BYTES_MAX => Err(RoomIdError::TooLong(id.len())),
            id => Ok(Self(id.into())),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is everybody's room.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        self.as_str() == "*"
    }
}

impl fmt::Debug for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A command of a backend to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a push.
    Push(Push),
    /// Make a connection a member of a room.
    Join {
        /// The connection.
        session: SessionId,
        /// The room.
        room: RoomId,
        /// The last offset that the client saw: it also gets the pushes after it. `None`: only new pushes.
        after_offset: Option<u64>,
    },
    /// End a membership.
    Leave {
        /// The connection.
        session: SessionId,
        /// The room.
        room: RoomId,
    },
    /// End a user's memberships of a room, and make its tickets for it worthless.
    Expel {
        /// The user.
        user_id: UserId,
        /// The room.
        room: RoomId,
    },
    /// Close every connection of a user with code 110.
    Kick {
        /// The user.
        user_id: UserId,
    },
}

/// Why a command was refused. It had no effect; with [`PushError::Stopping`] it may have had a part of it.
///
/// The first eight are returned at once. The others are known only on the shard of the room, the user or the
/// connection, after the command was taken: [`Gateway::report_to`] reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Too many commands are in progress: try again when some have ended.
    #[error(
        "too many commands are in progress; try again later, or raise limits.commands_max and \
         limits.commands_bytes_max"
    )]
    Overloaded,
    /// The push would be a longer frame than the gateway sends.
    #[error(
        "a push of {bytes} bytes is longer than limits.frame_to_client_bytes_max ({bytes_max})"
    )]
    TooLong {
        /// The frame's payload.
        bytes: usize,
        /// The longest that is allowed.
        bytes_max: usize,
    },
    /// A push's type must be greater than 0.
    #[error("a push's type must be greater than 0; this one is {0}")]
    BadType(i32),
    /// A push's key is empty or too long.
    #[error("a push's key has 1 to {KEY_BYTES_MAX} bytes; this one has {0}")]
    BadKey(usize),
    /// A push's time to live is too short or too long.
    #[error(
        "a push's time to live is 1 to {} ms; this one is {} ms", TTL_MAX.as_millis(), .0.as_secs_f64() * 1e3
    )]
    BadTtl(Duration),
    /// The session id is not one of this gateway.
    #[error("the session is not one of this gateway's")]
    UnknownSession,
    /// The session joins rooms too often.
    #[error(
        "the session joins rooms more often than rooms.joins_per_second_max allows ({per_second_max} a \
         second): have its client wait, or raise it and rooms.joins_burst_max"
    )]
    TooManyJoins {
        /// The most in a second.
        per_second_max: u32,
    },
    /// The gateway is stopping, or stopped before the command had ended.
    #[error("the gateway is stopping")]
    Stopping,
    /// The push, or the join, would open one room too many.
    #[error(
        "there are as many rooms as rooms.rooms_per_shard_max allows ({rooms_max} on each shard): raise it, or wait until \
         rooms without members are closed, rooms.idle_ttl_ms after their last push"
    )]
    RoomsFull {
        /// The most that are allowed.
        rooms_max: usize,
    },
    /// The push has a key, and no further key can be remembered. It is refused, since to forget another key would let
    /// a repeat of that one go out twice.
    #[error(
        "the keys of the last 5 minutes take as much memory as limits.push_keys_bytes_max allows ({bytes_max} on each \
         shard): raise it, push without a key, or try again later"
    )]
    KeysFull {
        /// The most memory that is allowed.
        bytes_max: usize,
    },
    /// The join would put the connection into one room too many.
    #[error(
        "the connection is in as many rooms as rooms.rooms_per_connection_max allows ({rooms_max}): have it \
         leave one, or raise it"
    )]
    TooManyRooms {
        /// The most that are allowed.
        rooms_max: usize,
    },
    /// Redis could not be reached in time. With other gateways, the push may have taken effect or not.
    #[error(
        "Redis can't be reached, so whether the command took effect at other gateways is unknown; to a user of this \
         gateway it did. A push to a room has waited as long as redis.push_wait_ms allows"
    )]
    Unreachable,
    /// Redis refused the push: the gateway's log says why.
    #[error("Redis refused the push: the gateway's log says why")]
    Refused,
    /// The connection of the command is gone.
    #[error("the connection of this session is gone")]
    SessionGone,
}

/// The result of a command that was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// The connections that it concerned: for a push those it was offered to, for a kick those that were
    /// closed, for a join or a leave the one. 0 is not an error: for a push, `nobody` says why; for a leave, the
    /// connection was not a member.
    ///
    /// Of several gateways: a command to a user counts the connections at this gateway, and one for each other gateway that
    /// has the user and received it. How many connections that one has is not known here.
    pub connections: u64,
    /// Why a push was offered to no connection. `Some` only for a push, and only if `connections` is 0.
    pub nobody: Option<Nobody>,
}

impl Done {
    /// A command that concerned this many connections.
    #[must_use]
    pub const fn with_connections(connections: u64) -> Self {
        Self { connections, nobody: None }
    }

    /// A push that was offered to no connection.
    #[must_use]
    pub const fn nobody(reason: Nobody) -> Self {
        Self { connections: 0, nobody: Some(reason) }
    }
}

/// How a command ended: carried out, or refused.
pub type CommandOutcome = Result<Done, PushError>;

/// Is called once, with the outcome of a command. It runs on one of the gateway's threads, which does nothing else
/// meanwhile: it must not block, and should take microseconds.
pub type Report = Box<dyn FnOnce(CommandOutcome) + Send>;

/// Receives commands: a gateway, or a test.
pub trait GatewayPort: Send + Sync {
    /// Takes a command and does not wait until it has ended. Must not block.
    ///
    /// # Errors
    /// [`PushError`] when the command is not taken.
    fn command(&self, command: Command) -> Result<(), PushError>;

    /// The same, and calls `report` with the outcome, also if the command is not taken. Must not block.
    fn command_reporting(&self, command: Command, report: Report);

    /// Takes several pushes, in order, each with its report if it has one. Must not block. Returns for each why it
    /// was not taken; a report is called in that case too.
    fn push_many(&self, pushes: Vec<(Push, Option<Report>)>) -> Vec<Result<(), PushError>> {
        let take = |(push, report)| match report {
            None => self.command(Command::Push(push)),
            Some(report) => {
                self.command_reporting(Command::Push(push), report);
                Ok(())
            }
        };
        pushes.into_iter().map(take).collect()
    }

    /// The same, and calls `report` once with all outcomes, in order. Must not block.
    fn push_many_reporting(&self, pushes: Vec<Push>, report: ManyReport) {
        let reports = many::reports(pushes.len(), report);
        // Each outcome is reported, also of a push that is not taken.
        drop(self.push_many(pushes.into_iter().zip(reports.map(Some)).collect()));
    }
}

/// The gateway, as a backend sees it. It is cheap to clone, can be used from any thread, and never blocks.
///
/// Commands from one thread to one room, or to one user, take effect in the order in which they are given.
///
/// `Ok` means that the gateway has taken the command. The shard of the room or of the connection may still
/// refuse it: [`Self::report_to`] reports the outcome.
#[derive(Clone)]
pub struct Gateway {
    port: Arc<dyn GatewayPort>,
}

impl Gateway {
    /// A gateway whose commands go to `port`.
    #[must_use]
    pub fn new(port: Arc<dyn GatewayPort>) -> Self {
        Self { port }
    }

    /// Calls `report` with the outcome of the next command, when the command has ended: when it was offered to
    /// every connection that it concerns, or when it was refused. `report` is called exactly once. By then the
    /// command has taken effect, so a call that is answered in `report` is answered after the connection has become
    /// a member, or after the push was offered to it.
    ///
    /// `report` runs on one of the gateway's threads, which does nothing else meanwhile: it must not block, and
    /// should take microseconds. To answer a call, to send into a channel and to give another command is fine.
    ///
    /// ```
    /// # use tidegate_backend::{Call, Code, Gateway, RoomId};
    /// fn join(call: Call, gateway: &Gateway, room: &RoomId) {
    ///     let session = call.session();
    ///     let report = move |outcome| match outcome {
    ///         Ok(_) => call.answer("you are in"),
    ///         Err(_) => call.fail(Code::BackendFailed),
    ///     };
    ///     gateway.report_to(report).join(session, room, None);
    /// }
    /// ```
    ///
    /// A worker can wait for the outcome with a channel:
    ///
    /// ```
    /// # use tidegate_backend::harness::Harness;
    /// # use tidegate_backend::{Call, Gateway, Handler};
    /// # struct Nothing;
    /// # impl Handler for Nothing { fn handle(&self, _: Call, _: &Gateway) {} }
    /// # let harness = Harness::new(Nothing);
    /// # let gateway = harness.gateway();
    /// let (sender, outcome) = std::sync::mpsc::channel();
    /// gateway.report_to(move |outcome| sender.send(outcome).unwrap()).push_user(7, 5, "hello");
    /// let connections = outcome.recv()??.connections;
    /// # assert_eq!(connections, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "name the command: gateway.report_to(report).push_user(...)"]
    pub fn report_to(&self, report: impl FnOnce(CommandOutcome) + Send + 'static) -> Reporting<'_> {
        Reporting { gateway: self, report: Box::new(report) }
    }

    /// Pushes. [`Push`] has a key and a time to live, for pushes that need them.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push(&self, push: Push) -> Result<(), PushError> {
        self.port.command(Command::Push(push))
    }

    /// Gives several pushes at once, which costs less than one by one. They are taken in order. Each is a
    /// separate command: if one is refused, the others are not.
    ///
    /// Returns for each push, in order, why it was not taken.
    pub fn push_many(&self, pushes: impl IntoIterator<Item = Push>) -> Vec<Result<(), PushError>> {
        self.port.push_many(pushes.into_iter().map(|push| (push, None)).collect())
    }

    /// As [`Self::push_many`], and calls `report` once with the outcome of each push, in order, when all of
    /// them have ended. What [`Self::report_to`] says of a report holds here too.
    pub fn push_many_reporting(
        &self,
        pushes: impl IntoIterator<Item = Push>,
        report: impl FnOnce(Vec<CommandOutcome>) + Send + 'static,
    ) {
        self.port.push_many_reporting(pushes.into_iter().collect(), Box::new(report));
    }

    /// Pushes to every connection of a user. The user may have none.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push_user(
        &self,
        user_id: UserId,
        kind: i32,
        biz_data: impl Into<Bytes>,
    ) -> Result<(), PushError> {
        self.push(Push::to_user(user_id, kind, biz_data))
    }

    /// Pushes to every member of a room.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push_room(
        &self,
        room: &RoomId,
        kind: i32,
        biz_data: impl Into<Bytes>,
    ) -> Result<(), PushError> {
        self.push(Push::to_room(room, kind, biz_data))
    }

    /// Pushes to every authenticated connection.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push_all(&self, kind: i32, biz_data: impl Into<Bytes>) -> Result<(), PushError> {
        self.push_room(&RoomId::everybody(), kind, biz_data)
    }

    /// Makes a connection a member of a room. A member that joins again only moves back to
    /// `after_offset`, where one is given. The session of a request that came over HTTP can't join:
    /// [`PushError::UnknownSession`].
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn join(
        &self,
        session: SessionId,
        room: &RoomId,
        after_offset: Option<u64>,
    ) -> Result<(), PushError> {
        self.port.command(Command::Join { session, room: room.clone(), after_offset })
    }

    /// Ends a membership. The client is notified, and an honest one forgets its ticket: to keep a user out, use
    /// [`Gateway::expel`].
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn leave(&self, session: SessionId, room: &RoomId) -> Result<(), PushError> {
        self.port.command(Command::Leave { session, room: room.clone() })
    }

    /// Ends the memberships of a room of all connections of a user, and makes the tickets worthless with which
    /// the user's client could rejoin it without a backend. A later [`Gateway::join`] lets the user in again.
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn expel(&self, user_id: UserId, room: &RoomId) -> Result<(), PushError> {
        self.port.command(Command::Expel { user_id, room: room.clone() })
    }

    /// Closes every connection of a user with code 110: its client does not reconnect automatically.
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn kick(&self, user_id: UserId) -> Result<(), PushError> {
        self.port.command(Command::Kick { user_id })
    }
}

/// Gives one command, whose outcome is reported: see [`Gateway::report_to`].
#[must_use = "name the command: gateway.report_to(report).push_user(...)"]
pub struct Reporting<'a> {
    gateway: &'a Gateway,
    report: Report,
}

impl Reporting<'_> {
    fn send(self, command: Command) {
        self.gateway.port.command_reporting(command, self.report);
    }

    /// As [`Gateway::push`].
    pub fn push(self, push: Push) {
        self.send(Command::Push(push));
    }

    /// As [`Gateway::push_user`].
    pub fn push_user(self, user_id: UserId, kind: i32, biz_data: impl Into<Bytes>) {
        self.push(Push::to_user(user_id, kind, biz_data));
    }

    /// As [`Gateway::push_room`]. The outcome comes when the push was offered to each member; a merge window
    /// delays that.
    pub fn push_room(self, room: &RoomId, kind: i32, biz_data: impl Into<Bytes>) {
        self.push(Push::to_room(room, kind, biz_data));
    }

    /// As [`Gateway::push_all`].
    pub fn push_all(self, kind: i32, biz_data: impl Into<Bytes>) {
        self.push_room(&RoomId::everybody(), kind, biz_data);
    }

    /// As [`Gateway::join`].
    pub fn join(self, session: SessionId, room: &RoomId, after_offset: Option<u64>) {
        self.send(Command::Join { session, room: room.clone(), after_offset });
    }

    /// As [`Gateway::leave`].
    pub fn leave(self, session: SessionId, room: &RoomId) {
        self.send(Command::Leave { session, room: room.clone() });
    }

    /// As [`Gateway::expel`].
    pub fn expel(self, user_id: UserId, room: &RoomId) {
        self.send(Command::Expel { user_id, room: room.clone() });
    }

    /// As [`Gateway::kick`].
    pub fn kick(self, user_id: UserId) {
        self.send(Command::Kick { user_id });
    }
}

impl fmt::Debug for Reporting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporting")
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}
