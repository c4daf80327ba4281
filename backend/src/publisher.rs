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

/// Why a command was not taken. Nothing of it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Too many commands are under way: try again when some are done.
    #[error("too many pushes are under way; try again later")]
    Overloaded,
    /// The push would be a longer frame than the gateway sends.
    #[error("a push of {bytes} bytes is longer than max_frame_to_client ({bytes_max})")]
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
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Takes commands: a gateway, or a test.
pub trait GatewayPort: Send + Sync {
    /// Takes a command, without waiting until it is done. Must not block.
    ///
    /// # Errors
    /// [`PushError`] when the command is not taken.
    fn command(&self, command: Command) -> Result<(), PushError>;
}

/// The gateway, as a backend sees it: cheap to clone, usable from any thread, never blocking.
///
/// Commands from one thread to one room, or to one user, take effect in the order given.
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
        let target = Target::User(user_id);
        self.port.command(Command::Push { target, kind, biz_data: biz_data.into() })
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
        let target = Target::Room(room.clone());
        self.port.command(Command::Push { target, kind, biz_data: biz_data.into() })
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

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway")
    }
}
