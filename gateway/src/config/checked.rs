//! The configuration as the gateway uses it: every value in range, every name resolved.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use tidegate_machine::capacity::Basis;

use super::rooms::RoomsConfig;
use crate::wire::proxy::ProxyRules;
use crate::wire::websocket::upgrade::UpgradeRules;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether the configuration is loaded again when its file has changed.
    pub reload_on_change: bool,
    /// Where clients connect with plain TCP. Port 0 picks a free one. `None`: at [`Self::listeners`] alone.
    pub listen: Option<SocketAddr>,
    /// Where else clients connect to the shards, by name.
    pub listeners: Vec<ListenerConfig>,
    /// TLS, where a listener has it.
    pub tls: TlsConfig,
    /// The HTTP gateway.
    pub http: HttpConfig,
    /// Shards, each a thread: at least 1.
    pub shards: u16,
    /// How shards talk to the kernel.
    pub driver: DriverKind,
    /// Why it is not io_uring, where `driver = "auto"` would have used that.
    pub driver_refusal: Option<String>,
    /// How long shards let events gather, at most.
    pub coalesce: Duration,
    /// The operators' HTTP server.
    pub admin: AdminConfig,
    /// Authentication.
    pub auth: AuthConfig,
    /// Sessions and heartbeats.
    pub session: SessionConfig,
    /// Limits.
    pub limits: LimitsConfig,
    /// Limits by address.
    pub addresses: crate::limits::addresses::Settings,
    /// Options of clients' sockets.
    pub socket: SocketConfig,
    /// Rooms.
    pub rooms: RoomsConfig,
    /// What is shared with other gateways; `None`: this gateway is alone.
    pub redis: Option<super::RedisConfig>,
    /// Backends, by name.
    pub backends: Vec<BackendConfig>,
    /// Routes, by ascending type, not overlapping.
    pub routes: Vec<RouteConfig>,
    /// Logging.
    pub log: LogConfig,
    /// How the gateway drains.
    pub shutdown: ShutdownConfig,
}

/// A listener beside the plain one.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Its name.
    pub name: String,
    /// Where it listens. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// What it speaks.
    pub wire: WireKind,
    /// Each connection begins with a PROXY header, which only these networks may send. Empty: none does.
    pub proxy_from: Vec<IpNet>,
    /// What an upgrade has to be, for WebSockets.
    pub upgrade: Option<UpgradeRules>,
    /// HTTP: pages that may send requests, as browsers name them. Empty: all.
    pub origins: Vec<String>,
}

impl ListenerConfig {
    /// The rules for PROXY headers; `None`: no connection begins with one.
    pub(crate) fn proxy_rules(&self) -> Option<Arc<ProxyRules>> {
        let rules = || Arc::new(ProxyRules::new(&*self.name, &*self.proxy_from));
        (!self.proxy_from.is_empty()).then(rules)
    }
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireKind {
    /// TCP alone.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket in TLS.
    Wss,
    /// HTTP.
    Http,
    /// HTTP in TLS.
    Https,
}

impl WireKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss, Self::Http, Self::Https];

    /// Its name in the configuration and in `/stats`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether TLS is part of it.
    #[must_use]
    pub const fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss | Self::Https)
    }

    /// Whether WebSocket is part of it.
    #[must_use]
    pub const fn has_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// Whether the HTTP gateway serves it, and not the shards.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificates. The first one is for clients that ask for a name that none has.
    pub certificates: Vec<CertificateConfig>,
    /// Whether TLS 1.2 is taken too.
    pub takes_tls12: bool,
    /// Whether clients show certificates.
    pub client_certificates: ClientCertificates,
    /// TLS handshakes that each shard begins in a second, at most.
    pub handshakes_per_second_max: u32,
}

/// A certificate's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateConfig {
    /// Its name in the configuration.
    pub name: String,
    /// The certificate and those that it is signed by, PEM.
    pub chain_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// An OCSP response, DER.
    pub ocsp_file: Option<PathBuf>,
}

/// Whether clients show certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They are not asked.
    None,
    /// They may.
    Optional(PathBuf),
    /// They have to, with one that this file's certificates have signed.
    Required(PathBuf),
}

/// Which kernel mechanism a shard uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// epoll, through mio.
    Epoll,
    /// io_uring.
    Uring,
}

impl DriverKind {
    /// Its name in the configuration and in `/stats`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}

/// The HTTP gateway.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Where it listens. Empty: there is no HTTP gateway.
    pub listeners: Vec<ListenerConfig>,
    /// What it serves. No two have the same path and method.
    pub routes: Vec<HttpRouteConfig>,
    /// Open connections: at least 1. More wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests that wait for an answer: at least 1. More: 503, with 104.
    pub requests_max: usize,
    /// Longest head of a request, in bytes. Longer: 431.
    pub head_bytes_max: usize,
    /// Longest body of a request, in bytes. Longer: 413.
    pub body_bytes_max: usize,
    /// How long a request's head may take, and how long a connection may be silent between two requests. Longer: closed.
    pub head_timeout: Duration,
    /// How long a request's body may take. Longer: 408.
    pub body_timeout: Duration,
    /// The descriptor set with the messages of routes.
    pub descriptor_set_file: Option<PathBuf>,
    /// Whether `/openapi.json` is served.
    pub openapi: bool,
}

/// One route of the HTTP gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRouteConfig {
    /// The path, exactly.
    pub path: String,
    /// The method.
    pub method: HttpMethod,
    /// The type that its requests have for backends.
    pub kind: i32,
    /// What bodies are.
    pub body: HttpBody,
    /// Whether it needs no token. The user is 0 then.
    pub is_public: bool,
}

/// The method of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpMethod {
    /// GET, and so HEAD.
    Get,
    /// POST.
    Post,
}

impl HttpMethod {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// What the bodies of a route's requests and answers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpBody {
    /// JSON, which the backend gets and gives.
    Json,
    /// Bytes.
    Bytes,
    /// JSON, where the backend gets and gives these protobuf messages.
    Messages {
        /// The full name of the request's.
        request: String,
        /// The full name of the answer's.
        response: String,
    },
}

/// The operators' HTTP server.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file that holds the bearer token; made on first start where it is missing.
    pub token_file: PathBuf,
    /// Longest body of a request, in bytes: as long as a push to a client may be. Longer: 413.
    pub body_bytes_max: usize,
}

/// Authentication.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// How a token proves a user.
    pub mode: AuthMode,
    /// The time between two reads of a key set.
    pub jwks_refresh: Duration,
    /// How far the issuer's clock may differ from the gateway's. It lengthens each token's life.
    pub leeway: Duration,
    /// How long a connection may stay unauthenticated.
    pub timeout: Duration,
    /// A connection is closed after this many failed tries: at least 1.
    pub failures_max: u8,
    /// Threads that check signatures: at least 1.
    pub verify_threads: usize,
    /// Tokens that wait for the check of their signature, in KiB: at least 1.
    pub verifications_max: u32,
    /// Tokens whose signatures are not checked again; 0: none.
    pub verified_tokens_max: usize,
    /// Tokens that are being looked up in Redis, all shards together.
    pub lookups_max: usize,
    /// The time between two checks that the tokens of sessions are still in Redis.
    pub recheck: Duration,
}

/// How a token proves a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// A JSON Web Token whose `sub` is the user id.
    Jwt {
        /// What verifies its signature.
        keys: JwtKeys,
        /// The audience that `aud` must contain. `None`: a token that names an audience is refused.
        audience: Option<String>,
        /// The issuer that `iss` must be. `None`: any.
        issuer: Option<String>,
    },
    /// `token-<user_id>`: for benchmarks, only on loopback.
    Demo,
    /// A session token that the app's login has put into Redis.
    Redis,
}

/// What verifies the signatures of JSON Web Tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtKeys {
    /// One key, read at the start.
    One {
        /// The one algorithm that is accepted.
        algorithm: JwtAlgorithm,
        /// HS256: the secret, made on first start where it is missing. Others: the public key, PEM.
        key_file: PathBuf,
    },
    /// A JSON Web Key Set, which is read again while the gateway runs.
    Set(KeySetSource),
}

/// Where a JSON Web Key Set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySetSource {
    /// In a file.
    File(PathBuf),
    /// At a URL: https, or http on loopback. It holds no user and no password.
    Url(String),
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

impl JwtAlgorithm {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Sessions and heartbeats.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The heartbeat interval that clients get.
    pub heartbeat_interval: Duration,
    /// How long a connection may be silent before it is closed with 109.
    pub idle_timeout: Duration,
    /// Connections of one user, at least 1. One more closes the oldest with 107. The login policy
    /// `newest-wins` is a maximum of 1.
    pub connections_per_user_max: usize,
    /// What the end of a session's token means.
    pub on_token_expiry: OnTokenExpiry,
    /// How long a session outlives its token where that ends it: the time for the client to show a fresh one.
    pub token_expiry_grace: Duration,
    /// How old a connection may become before it is closed with 108. `None`: there is no limit.
    pub age_max: Option<Duration>,
    /// What happens to pushes to a user that a connection is too slow for.
    pub slow_pushes: SlowPushes,
}

/// What the end of a session's token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTokenExpiry {
    /// Nothing: a token is checked only when a client authenticates.
    Ignore,
    /// The session is closed with 100, unless the client has authenticated again with a fresh token.
    Close,
}

impl OnTokenExpiry {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Close => "close",
        }
    }
}

/// What happens to pushes to a user that a connection is too slow for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPushes {
    /// They wait in the outbox, and more than `limits.outbox_bytes_max` close the connection.
    Close,
    /// One that finds half of `limits.outbox_bytes_max` waiting is dropped.
    Skip,
    /// The same, but the newest of each type waits until there is room.
    Latest,
}

impl SlowPushes {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Skip => "skip",
            Self::Latest => "latest",
        }
    }
}

/// Limits. Each has a named outcome.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Longest frame from a client, in bytes of payload. Longer: 106 and close.
    pub frame_bytes_max: usize,
    /// Longest frame to a client, in bytes of payload. Longer: the answer fails with 101, a push is
    /// refused.
    pub frame_to_client_bytes_max: usize,
    /// Bytes that clients may make the process hold; `None`: there is no budget.
    pub memory_bytes_max: Option<usize>,
    /// Unsent bytes of one connection, before its last frame. More: the connection is closed.
    pub outbox_bytes_max: usize,
    /// Open connections, all shards together: at least 1. More wait in the kernel's accept queue.
    pub connections_max: usize,
    /// What decides `connections_max`.
    pub connections_max_basis: Basis,
    /// Connections that are let in in a second, all shards together; `None`: as they come.
    pub accepts_per_second_max: Option<u32>,
    /// How long a connection may take to send its PROXY header, TLS handshake and upgrade. Longer: it is closed.
    pub open_timeout: Duration,
    /// Longest request for a WebSocket, in bytes. Longer: 431.
    pub upgrade_bytes_max: usize,
    /// Longest WebSocket message from a client, in bytes. It may hold several frames. Longer: it is closed, with 1009.
    pub message_bytes_max: u32,
    /// Frames a second of one connection; `None`: unlimited. More: 103.
    pub frames_per_second_max: Option<u32>,
    /// Frames that may come at once before `frames_per_second_max` applies: at least 1.
    pub frames_burst_max: u32,
    /// Calls of one connection that wait for their answer: at least 1. More are not read yet.
    pub calls_per_connection_max: u16,
    /// Pushes and other commands in flight, all shards together: at least 1. More are refused.
    pub commands_max: usize,
    /// Bytes of the pushes in flight. More are refused.
    pub commands_bytes_max: usize,
    /// Memory of the keys of pushes, on each shard. Pushes with further keys are refused.
    pub push_keys_bytes_max: usize,
    /// Members of a room that a shard serves in one turn, at least 1, before it polls its sockets.
    pub fan_out_slice_members: usize,
}

/// Options of clients' sockets.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// Connections that the kernel holds until they are accepted. `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// `SO_SNDBUF`, in bytes. The kernel doubles it. It bounds the kernel memory of a client that does not read.
    pub send_buffer_bytes: usize,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    pub user_timeout: Duration,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Its name, by which routes and handlers refer to it.
    pub name: String,
    /// Where it runs; `None`: the handler decides.
    pub placement: Option<tidegate_backend::Placement>,
    /// Worker threads: at least 1.
    pub workers: usize,
    /// Calls that may wait for a worker. More: 104.
    pub queue_calls_max: usize,
    /// Bytes of requests that may wait for a worker; a longer one may wait alone. More: 104.
    pub queue_bytes_max: usize,
    /// Calls that a worker takes from its queue at once: at least 1.
    pub batch_calls_max: usize,
    /// Timeouts in a row after which it gets only probes, if no call was answered meanwhile; `None`: it gets all calls.
    pub circuit_timeouts: Option<u32>,
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
    /// How long a call may wait for a worker, as it is estimated; `None`: until its timeout. Longer: 104.
    pub waiting_max: Option<Duration>,
    /// How often the route may be called, all shards together. More: 103.
    pub rate: CallRate,
    /// How often each user may call it. More: 103.
    pub user_rate: CallRate,
}

/// How often something may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRate {
    /// Calls in a second: at least 1; `None`: as many as come.
    pub per_second_max: Option<u32>,
    /// Calls that may come at once before `per_second_max` applies: at least 1.
    pub burst_max: u32,
}

impl CallRate {
    /// As many as come.
    pub const UNLIMITED: Self = Self { per_second_max: None, burst_max: 1 };
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A `tracing` filter: `info`, or `warn,tidegate=debug`.
    pub filter: String,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line, for programs.
    Json,
}

impl LogFormat {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// How the gateway drains.
#[derive(Clone, Debug)]
pub struct ShutdownConfig {
    /// How long the gateway accepts and serves while `/readyz` says already that it drains.
    pub ready_grace: Duration,
    /// The longest time over which the goodbyes are spread.
    pub goodbye_window: Duration,
    /// How long a drain waits for calls in flight after the goodbyes, before it closes their connections without the answers.
    pub drain_timeout: Duration,
    /// How long clients are asked to wait before they reconnect.
    pub retry_after: Duration,
}
