//! The configuration as the gateway uses it: every value in range, every name resolved.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Shards, each a thread: at least 1.
    pub shards: u16,
    /// How shards talk to the kernel.
    pub driver: DriverKind,
    /// Why it is not io_uring, where that would have been taken.
    pub driver_refusal: Option<String>,
    /// The operators' HTTP server.
    pub admin: AdminConfig,
    /// Who may come in.
    pub auth: AuthConfig,
    /// Sessions and signs of life.
    pub session: SessionConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// What is set on sockets.
    pub socket: SocketConfig,
    /// Rooms.
    pub rooms: RoomsConfig,
    /// Backends, by name.
    pub backends: Vec<BackendConfig>,
    /// Routes, by ascending type, not overlapping.
    pub routes: Vec<RouteConfig>,
    /// Logging.
    pub log: LogConfig,
    /// How the gateway goes away.
    pub shutdown: ShutdownConfig,
}

/// Which kernel mechanism a shard uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// epoll, through mio.
    Epoll,
    /// io_uring.
    Uring,
}

/// The operators' HTTP server.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file that holds the bearer token; made on first start where it is missing.
    pub token_file: PathBuf,
    /// Longest body of a request, in bytes: what a push to a client may have at most. Longer: 413.
    pub body_bytes_max: usize,
}

/// Who may come in.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// How a token proves a user.
    pub mode: AuthMode,
    /// How far the clock of who made a token may be off: it lengthens each token's life.
    pub leeway: Duration,
    /// How long a connection may stay unauthenticated.
    pub timeout: Duration,
    /// A connection is closed after this many failed tries: at least 1.
    pub failures_max: u8,
}

/// How a token proves a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// A JSON Web Token whose `sub` is the user id.
    Jwt {
        /// The one algorithm that is accepted.
        algorithm: JwtAlgorithm,
        /// HS256: the secret, made on first start where it is missing. Others: the public key, PEM.
        key_file: PathBuf,
        /// What `aud` must hold. `None`: a token that names an audience is refused.
        audience: Option<String>,
        /// What `iss` must be. `None`: anything.
        issuer: Option<String>,
    },
    /// `token-<user_id>`: for benches, on loopback alone.
    Demo,
}

/// A JSON Web Token's algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// RSA with SHA-256.
    Rs256,
    /// Ed25519.
    EdDsa,
}

/// Sessions and signs of life.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What clients are told.
    pub heartbeat_interval: Duration,
    /// Silence after which a connection is closed with 109.
    pub idle_timeout: Duration,
    /// Connections of one user, at least 1. One more closes the oldest with 107. The login policy
    /// `newest-wins` is a maximum of 1.
    pub connections_per_user_max: usize,
}

/// Bounds. Each has a named outcome.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Longest frame from a client, in bytes of payload. Longer: 106 and close.
    pub frame_bytes_max: usize,
    /// Longest frame to a client, in bytes of payload. Longer: the answer fails with 101, a push is
    /// refused.
    pub frame_to_client_bytes_max: usize,
    /// Unsent bytes of one connection, before its last frame. More: the connection is closed.
    pub outbox_bytes_max: usize,
    /// Open connections, all shards together: at least 1. More wait in the kernel's accept queue.
    pub connections_max: usize,
    /// Requests a second of one connection; `None`: unlimited. More: 103.
    pub requests_per_second: Option<u32>,
    /// Requests that may come at once before `requests_per_second` bites: at least 1.
    pub requests_burst: u32,
    /// Calls of one connection that wait for their answer: at least 1. More are not read yet.
    pub calls_per_connection_max: u16,
    /// Pushes and other commands under way, all together: at least 1. More are refused.
    pub commands_max: usize,
    /// Bytes of the pushes under way. More are refused.
    pub commands_bytes_max: usize,
    /// Members of a room that one turn of a shard serves, at least 1, before it looks at its sockets.
    pub fan_out_slice: usize,
}

/// What is set on sockets.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Connections that the kernel holds until they are accepted. `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// `SO_SNDBUF`, in bytes, which the kernel doubles: the most that a client which doesn't read
    /// can hold of kernel memory.
    pub send_buffer_bytes: usize,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    pub user_timeout: Duration,
}

/// Rooms.
#[derive(Clone, Debug)]
pub struct RoomsConfig {
    /// For rooms that no policy names.
    pub default_policy: RoomPolicy,
    /// By prefix of the room's id, longest first: the first that fits is taken. `*` names
    /// everybody's room.
    pub policies: Vec<(String, RoomPolicy)>,
    /// How long a room with no members keeps its log after its last push.
    pub idle_ttl: Duration,
    /// Rooms at most, on each shard. More: joins and pushes to a new room are refused and counted.
    pub rooms_max: usize,
    /// Rooms of one connection, beside everybody's. More: the join is refused and counted.
    pub rooms_per_connection_max: usize,
    /// The file that keeps a restart from giving offsets again; `None`: there is none.
    pub offset_file: Option<PathBuf>,
}

/// How one room treats its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomPolicy {
    /// Bytes of pushes that the log holds: the oldest go first. The newest is always held.
    pub log_bytes_max: usize,
    /// What happens to a member that stands further back than the log reaches.
    pub slow_member: SlowMember,
    /// How long a push waits for others that go out with it. Zero: it doesn't.
    pub merge_window: Duration,
    /// The first and the last type of pushes that end a window: they go out at once, with what waits.
    pub urgent_types: Option<(i32, i32)>,
}

impl RoomPolicy {
    /// Whether a push of this type waits for nobody.
    #[must_use]
    pub fn is_urgent(&self, kind: i32) -> bool {
        self.urgent_types.is_some_and(|(first, last)| (first..=last).contains(&kind))
    }
}

/// What happens to a member that stands further back than its room's log reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowMember {
    /// It skips to the oldest push that is left; the client sees the gap in `offset`.
    Skip,
    /// It is closed.
    Close,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Its name: what routes and handlers refer to.
    pub name: String,
    /// Where it runs; `None`: where the handler asks to.
    pub placement: Option<tidegate_backend::Placement>,
    /// Worker threads: at least 1.
    pub workers: usize,
    /// Calls that may wait for a worker. More: 104.
    pub queue_calls_max: usize,
    /// Bytes of requests that may wait for a worker; a longer one may wait alone. More: 104.
    pub queue_bytes_max: usize,
    /// Calls that a worker takes at once: at least 1.
    pub batch_calls_max: usize,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The first type: greater than 0.
    pub first_type: i32,
    /// The last type: `first_type` or greater.
    pub last_type: i32,
    /// The backend's name.
    pub backend: String,
    /// How long the backend has to answer. Later: 102.
    pub timeout: Duration,
    /// Calls that wait for their answer, all shards together: at least 1. More: 104.
    pub in_flight_max: usize,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A `tracing` filter: `info`, or `warn,tidegate=debug`.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// How the gateway goes away.
#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    /// How long answers under way may take before their connections are closed without them.
    pub drain_timeout: Duration,
    /// What clients are told to wait before they reconnect.
    pub retry_after: Duration,
}
