//! What a backend says unasked: pushes, memberships, kicks.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::limits::ROOM_ID_BYTES_MAX;

/// Who a connection belongs to: the `sub` of its token.
pub type UserId = u64;

/// Names a connection until it closes. Another connection never gets the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Names a room: 1 to 128 bytes of UTF-8. A room exists while it has members or pushes to remember.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(Arc<str>);

/// Why a text names no room.
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

/// Who gets a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every connection of a user.
    User(UserId),
    /// Every member of a room; [`RoomId::everybody`] for every authenticated connection.
    Room(RoomId),
}

/// What a backend asks of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send something unasked.
    Push {
        /// To whom.
        target: Target,
        /// The push's type: greater than 0.
        kind: i32,
        /// What it carries.
        biz_data: Bytes,
    },
    /// Make a connection a member of a room.
    Join {
        /// The connection.
        session: SessionId,
        /// The room.
        room: RoomId,
        /// The last offset that the client saw: it gets what came after. `None`: only what comes now.
        after_offset: Option<u64>,
    },
    /// End a membership.
    Leave {
        /// The connection.
        session: SessionId,
        /// The room.
        room: RoomId,
    },
    /// Close every connection of a user with code 107.
    Kick {
        /// The user.
        user_id: UserId,
    },
}

/// Why a command was refused. Nothing of it was done, or with [`PushError::Stopping`] perhaps a part.
///
/// The first five are known at once. The others are known only where the room, the user or the connection
/// lives, after the command was taken: [`Gateway::report_to`] tells of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Too many commands are under way: try again when some are done.
    #[error(
        "too many pushes are under way; try again later, or raise limits.commands_max and \
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
        /// What is allowed.
        bytes_max: usize,
    },
    /// A push's type must be greater than 0.
    #[error("a push's type must be greater than 0; this one is {0}")]
    BadType(i32),
    /// The session id was not given by this gateway.
    #[error("the session is not one of this gateway's")]
    UnknownSession,
    /// The gateway is stopping, or stopped before it was done with the command.
    #[error("the gateway is stopping")]
    Stopping,
    /// The push, or the join, would open one room too many.
    #[error(
        "there are as many rooms as rooms.rooms_per_shard_max allows ({rooms_max} on each shard): raise it, or wait until \
         rooms without members are closed, rooms.idle_ttl_ms after their last push"
    )]
    RoomsFull {
        /// What is allowed.
        rooms_max: usize,
    },
    /// The join would put the connection into one room too many.
    #[error(
        "the connection is in as many rooms as rooms.rooms_per_connection_max allows ({rooms_max}): have it \
         leave one, or raise it"
    )]
    TooManyRooms {
        /// What is allowed.
        rooms_max: usize,
    },
    /// The connection that the command names is gone.
    #[error("the connection of this session is gone")]
    SessionGone,
}

/// What came of a command that was carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done {
    /// Connections that it went to: for a push each that it was put before, for a kick each that was
    /// closed, for a join or a leave the one. 0 is no error: the user is not here, the room has no members,
    /// there was nothing to leave.
    pub connections: u64,
}

impl Done {
    /// A command that went to this many connections.
    #[must_use]
    pub const fn with_connections(connections: u64) -> Self {
        Self { connections }
    }
}

/// How a command ended: carried out, or refused.
pub type CommandOutcome = Result<Done, PushError>;

/// Is told how a command ended, once. It may be called from any of the gateway's threads, which then does
/// nothing else: it must not block, and should take microseconds.
pub type Report = Box<dyn FnOnce(CommandOutcome) + Send>;

/// Takes commands: a gateway, or a test.
pub trait GatewayPort: Send + Sync {
    /// Takes a command, without waiting until it is done. Must not block.
    ///
    /// # Errors
    /// [`PushError`] when the command is not taken.
    fn command(&self, command: Command) -> Result<(), PushError>;

    /// The same, and tells `report` how it ended: also where it is not taken. Must not block.
    fn command_reporting(&self, command: Command, report: Report);
}

/// The gateway, as a backend sees it: cheap to clone, usable from any thread, never blocking.
///
/// Commands from one thread to one room, or to one user, take effect in the order given.
///
/// `Ok` means that the gateway has taken the command. It may still be refused where the room or the
/// connection lives: [`Self::report_to`] tells how it ended.
#[derive(Clone)]
pub struct Gateway {
    port: Arc<dyn GatewayPort>,
}

impl Gateway {
    /// Wraps whatever takes the commands.
    #[must_use]
    pub fn new(port: Arc<dyn GatewayPort>) -> Self {
        Self { port }
    }

    /// Has `report` told how the next command ends, when every connection that it concerns was served, or
    /// when it is refused. It is told exactly once, and after that the command has taken effect: who answers a
    /// call from there answers when the connection is a member, or when the push is on its way.
    ///
    /// `report` runs on one of the gateway's threads, which then does nothing else: it must not block, and
    /// should take microseconds. Answering a call, sending into a channel and another command do.
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
    /// A worker that wants to wait sends itself the outcome:
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

    /// Pushes to every connection of a user; to nobody when the user is not here.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push_user(
        &self,
        user_id: UserId,
        kind: i32,
        biz_data: impl Into<Bytes>,
    ) -> Result<(), PushError> {
        self.port.command(push(Target::User(user_id), kind, biz_data))
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
        self.port.command(push(Target::Room(room.clone()), kind, biz_data))
    }

    /// Pushes to every authenticated connection.
    ///
    /// # Errors
    /// [`PushError`] when the push was not taken.
    pub fn push_all(&self, kind: i32, biz_data: impl Into<Bytes>) -> Result<(), PushError> {
        self.push_room(&RoomId::everybody(), kind, biz_data)
    }

    /// Makes a connection a member of a room. A member that joins again only moves back to
    /// `after_offset`, where one is given.
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

    /// Ends a membership.
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn leave(&self, session: SessionId, room: &RoomId) -> Result<(), PushError> {
        self.port.command(Command::Leave { session, room: room.clone() })
    }

    /// Closes every connection of a user with code 107.
    ///
    /// # Errors
    /// [`PushError`] when the command was not taken.
    pub fn kick(&self, user_id: UserId) -> Result<(), PushError> {
        self.port.command(Command::Kick { user_id })
    }
}

/// A command to be given whose end is reported: see [`Gateway::report_to`].
#[must_use = "name the command: gateway.report_to(report).push_user(...)"]
pub struct Reporting<'a> {
    gateway: &'a Gateway,
    report: Report,
}

impl Reporting<'_> {
    fn give(self, command: Command) {
        self.gateway.port.command_reporting(command, self.report);
    }

    /// As [`Gateway::push_user`].
    pub fn push_user(self, user_id: UserId, kind: i32, biz_data: impl Into<Bytes>) {
        self.give(push(Target::User(user_id), kind, biz_data));
    }

    /// As [`Gateway::push_room`]. The outcome comes when each member was offered it, which a merge window
    /// may delay.
    pub fn push_room(self, room: &RoomId, kind: i32, biz_data: impl Into<Bytes>) {
        self.give(push(Target::Room(room.clone()), kind, biz_data));
    }

    /// As [`Gateway::push_all`].
    pub fn push_all(self, kind: i32, biz_data: impl Into<Bytes>) {
        self.push_room(&RoomId::everybody(), kind, biz_data);
    }

    /// As [`Gateway::join`].
    pub fn join(self, session: SessionId, room: &RoomId, after_offset: Option<u64>) {
        self.give(Command::Join { session, room: room.clone(), after_offset });
    }

    /// As [`Gateway::leave`].
    pub fn leave(self, session: SessionId, room: &RoomId) {
        self.give(Command::Leave { session, room: room.clone() });
    }

    /// As [`Gateway::kick`].
    pub fn kick(self, user_id: UserId) {
        self.give(Command::Kick { user_id });
    }
}

impl fmt::Debug for Reporting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporting")
    }
}

fn push(target: Target, kind: i32, biz_data: impl Into<Bytes>) -> Command {
    Command::Push { target, kind, biz_data: biz_data.into() }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}
