//! The configuration as operators type it, with every default.
//!
//! Numbers are `i64` and names are `String`, as TOML has them, so only [`super::check`] refuses values, with
//! one kind of message. `tidegate.toml` documents the keys. [`Typed::sample`] serialises to the list of known
//! keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_machine::capacity;
use tidegate_protocol::limits;

/// Stands for the name of a listener, or of a certificate, in the list of known keys.
pub(super) const ANY: &str = "name";

/// The backend that exists without being configured.
pub(super) const DEMO: &str = "demo";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Typed {
    pub(super) reload_on_change: bool,
    pub(super) listen: String,
    pub(super) listeners: BTreeMap<String, Listener>,
    pub(super) tls: Tls,
    pub(super) http: Http,
    pub(super) http_routes: Vec<HttpRoute>,
    pub(super) shards: i64,
    pub(super) driver: String,
    pub(super) coalesce_us: i64,
    pub(super) admin: Admin,
    pub(super) auth: Auth,
    pub(super) session: Session,
    pub(super) limits: Limits,
    pub(super) addresses: Addresses,
    pub(super) socket: Socket,
    pub(super) rooms: Rooms,
    pub(super) room_policies: Vec<RoomPolicy>,
    pub(super) redis: Redis,
    pub(super) backends: BTreeMap<String, Backend>,
    pub(super) routes: Vec<Route>,
    pub(super) log: Log,
    pub(super) shutdown: Shutdown,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Listener {
    pub(super) listen: String,
    pub(super) wire: String,
    pub(super) proxy_from: Vec<String>,
    pub(super) path: String,
    pub(super) origins: Vec<String>,
    pub(super) token_from: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) certificates: BTreeMap<String, Certificate>,
    pub(super) version_min: String,
    pub(super) client_certificates: String,
    pub(super) client_ca_file: String,
    pub(super) handshakes_per_second_max: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Certificate {
    pub(super) chain_file: String,
    pub(super) key_file: String,
    pub(super) ocsp_file: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Http {
    pub(super) connections_max: i64,
    pub(super) requests_max: i64,
    pub(super) head_bytes_max: i64,
    pub(super) body_bytes_max: i64,
    pub(super) head_timeout_ms: i64,
    pub(super) body_timeout_ms: i64,
    pub(super) descriptor_set_file: String,
    pub(super) openapi: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HttpRoute {
    pub(super) path: String,
    pub(super) method: String,
    #[serde(rename = "type")]
    pub(super) kind: i64,
    pub(super) body: String,
    pub(super) request: String,
    pub(super) response: String,
    pub(super) public: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Admin {
    pub(super) listen: String,
    pub(super) token_file: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Auth {
    pub(super) mode: String,
    pub(super) algorithm: String,
    pub(super) key_file: String,
    pub(super) jwks_file: String,
    pub(super) jwks_url: String,
    pub(super) jwks_refresh_ms: i64,
    pub(super) audience: String,
    pub(super) issuer: String,
    pub(super) leeway_ms: i64,
    pub(super) timeout_ms: i64,
    pub(super) failures_max: i64,
    pub(super) verify_threads: i64,
    pub(super) verifications_max: i64,
    pub(super) verified_tokens_max: i64,
    pub(super) lookups_max: i64,
    pub(super) recheck_ms: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Session {
    pub(super) heartbeat_interval_ms: i64,
    pub(super) idle_timeout_ms: i64,
    pub(super) login: String,
    pub(super) connections_per_user_max: i64,
    pub(super) on_token_expiry: String,
    pub(super) token_expiry_grace_ms: i64,
    pub(super) age_max_ms: i64,
    pub(super) slow_pushes: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) frame_bytes_max: i64,
    pub(super) frame_to_client_bytes_max: i64,
    pub(super) outbox_bytes_max: i64,
    pub(super) memory_bytes_max: i64,
    pub(super) connections_max: i64,
    pub(super) accepts_per_second_max: i64,
    pub(super) open_timeout_ms: i64,
    pub(super) upgrade_bytes_max: i64,
    pub(super) message_bytes_max: i64,
    pub(super) frames_per_second_max: i64,
    pub(super) frames_burst_max: i64,
    pub(super) calls_per_connection_max: i64,
    pub(super) commands_max: i64,
    pub(super) commands_bytes_max: i64,
    pub(super) push_keys_bytes_max: i64,
    pub(super) fan_out_slice_members: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Socket {
    pub(super) backlog: i64,
    pub(super) send_buffer_bytes: i64,
    pub(super) user_timeout_ms: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rooms {
    pub(super) log_bytes_max: i64,
    pub(super) slow_member: String,
    pub(super) merge_window_ms: i64,
    pub(super) urgent_types: Vec<i64>,
    pub(super) replay_on_join: i64,
    pub(super) rejoin: String,
    pub(super) class: String,
    pub(super) idle_ttl_ms: i64,
    pub(super) rooms_per_shard_max: i64,
    pub(super) rooms_per_connection_max: i64,
    pub(super) joins_per_second_max: i64,
    pub(super) joins_burst_max: i64,
    pub(super) offset_file: String,
    pub(super) ticket_ttl_ms: i64,
    pub(super) ticket_key_file: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RoomPolicy {
    pub(super) prefix: String,
    /// `None`: as in [`Rooms`].
    pub(super) log_bytes_max: Option<i64>,
    /// `None`: as in [`Rooms`].
    pub(super) slow_member: Option<String>,
    /// `None`: as in [`Rooms`].
    pub(super) merge_window_ms: Option<i64>,
    /// `None`: as in [`Rooms`].
    pub(super) urgent_types: Option<Vec<i64>>,
    /// `None`: as in [`Rooms`].
    pub(super) replay_on_join: Option<i64>,
    /// `None`: as in [`Rooms`].
    pub(super) rejoin: Option<String>,
    /// `None`: as in [`Rooms`].
    pub(super) class: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Redis {
    pub(super) url: String,
    pub(super) pushes_url: String,
    pub(super) presence_url: String,
    pub(super) tokens_url: String,
    pub(super) password_file: String,
    pub(super) ca_file: String,
    pub(super) push_wait_ms: i64,
    pub(super) offline_grace_ms: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backend {
    pub(super) placement: String,
    pub(super) workers: i64,
    pub(super) queue_calls_max: i64,
    pub(super) queue_bytes_max: i64,
    pub(super) batch_calls_max: i64,
    pub(super) circuit_timeouts: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Route {
    pub(super) types: Vec<i64>,
    pub(super) backend: String,
    pub(super) timeout_ms: i64,
    pub(super) in_flight_max: i64,
    pub(super) waiting_ms_max: i64,
    pub(super) calls_per_second_max: i64,
    pub(super) calls_burst_max: i64,
    pub(super) user_calls_per_second_max: i64,
    pub(super) user_calls_burst_max: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) filter: String,
    pub(super) format: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Shutdown {
    pub(super) ready_grace_ms: i64,
    pub(super) goodbye_window_ms: i64,
    pub(super) drain_timeout_ms: i64,
    pub(super) retry_after_ms: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Addresses {
    pub(super) exempt: Vec<String>,
    pub(super) connections_max: i64,
    pub(super) network_connections_max: i64,
    pub(super) accepts_per_second_max: i64,
    pub(super) accepts_burst_max: i64,
    pub(super) network_accepts_per_second_max: i64,
    pub(super) network_accepts_burst_max: i64,
    pub(super) failed_logins_per_minute_max: i64,
    pub(super) network_failed_logins_per_minute_max: i64,
    pub(super) ban_ms: i64,
    pub(super) shares_bans: bool,
    pub(super) retry_after_ms: i64,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            exempt: vec!["127.0.0.0/8".into(), "::1".into()],
            connections_max: 0,
            network_connections_max: 0,
            accepts_per_second_max: 0,
            accepts_burst_max: 100,
            network_accepts_per_second_max: 0,
            network_accepts_burst_max: 1_000,
            failed_logins_per_minute_max: 0,
            network_failed_logins_per_minute_max: 0,
            ban_ms: 60_000,
            shares_bans: false,
            retry_after_ms: 10_000,
        }
    }
}

impl Typed {
    /// The defaults, with one element in each list and a value for each optional key.
    pub(super) fn sample() -> Self {
        let rooms = Rooms::default();
        let policy = RoomPolicy {
            prefix: String::new(),
            log_bytes_max: Some(rooms.log_bytes_max),
            slow_member: Some(rooms.slow_member),
            merge_window_ms: Some(rooms.merge_window_ms),
            urgent_types: Some(rooms.urgent_types),
            replay_on_join: Some(rooms.replay_on_join),
            rejoin: Some(rooms.rejoin),
            class: Some(rooms.class),
        };
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let listener = Listener {
            listen: "0.0.0.0:7481".into(),
            wire: "wss".into(),
            proxy_from: texts(&["10.0.0.0/8", "2001:db8::7"]),
            path: "/".into(),
            origins: texts(&["https://app.example"]),
            token_from: texts(&["header", "subprotocol"]),
        };
        let certificate = Certificate {
            chain_file: "fullchain.pem".into(),
            key_file: "key.pem".into(),
            ocsp_file: String::new(),
        };
        let certificates = BTreeMap::from([(ANY.into(), certificate)]);
        Self {
            room_policies: vec![policy],
            listeners: BTreeMap::from([(ANY.into(), listener)]),
            tls: Tls { certificates, ..Tls::default() },
            http_routes: vec![HttpRoute {
                path: "/quiz/activity/list".into(),
                kind: 17,
                ..HttpRoute::default()
            }],
            ..Self::default()
        }
    }
}

impl Default for Typed {
    fn default() -> Self {
        let demo = Route { types: vec![1, 99], backend: DEMO.into(), ..Route::default() };
        Self {
            reload_on_change: false,
            listen: "127.0.0.1:7400".into(),
            listeners: BTreeMap::new(),
            tls: Tls::default(),
            http: Http::default(),
            http_routes: Vec::new(),
            shards: 0,
            driver: "auto".into(),
            coalesce_us: 300,
            admin: Admin::default(),
            auth: Auth::default(),
            session: Session::default(),
            limits: Limits::default(),
            addresses: Addresses::default(),
            socket: Socket::default(),
            rooms: Rooms::default(),
            room_policies: Vec::new(),
            redis: Redis::default(),
            backends: BTreeMap::from([(DEMO.into(), Backend::default())]),
            routes: vec![demo],
            log: Log::default(),
            shutdown: Shutdown::default(),
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificates: BTreeMap::new(),
            version_min: "1.3".into(),
            client_certificates: "none".into(),
            client_ca_file: String::new(),
            handshakes_per_second_max: 2_000,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            connections_max: 0,
            requests_max: 1_000,
            head_bytes_max: 16 * 1024,
            body_bytes_max: bytes(limits::FRAME_FROM_CLIENT_BYTES_MAX),
            head_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            descriptor_set_file: String::new(),
            openapi: false,
        }
    }
}

impl Default for HttpRoute {
    fn default() -> Self {
        Self {
            path: String::new(),
            method: "POST".into(),
            kind: 0,
            body: "json".into(),
            request: String::new(),
            response: String::new(),
            public: false,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7401".into(), token_file: ".tidegate/admin.token".into() }
    }
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: "jwt".into(),
            algorithm: "HS256".into(),
            key_file: ".tidegate/jwt-hs256.key".into(),
            jwks_file: String::new(),
            jwks_url: String::new(),
            jwks_refresh_ms: 300_000,
            audience: String::new(),
            issuer: String::new(),
            leeway_ms: 5_000,
            timeout_ms: limits::AUTH_TIMEOUT_MS.cast_signed(),
            failures_max: limits::AUTH_FAILURES_MAX.into(),
            verify_threads: 0,
            verifications_max: 4_096,
            verified_tokens_max: 262_144,
            lookups_max: 50_000,
            recheck_ms: 300_000,
        }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: limits::HEARTBEAT_INTERVAL_MS.into(),
            idle_timeout_ms: 0,
            login: "newest-wins".into(),
            connections_per_user_max: 8,
            on_token_expiry: "ignore".into(),
            token_expiry_grace_ms: 30_000,
            age_max_ms: 0,
            slow_pushes: "close".into(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: bytes(limits::FRAME_FROM_CLIENT_BYTES_MAX),
            frame_to_client_bytes_max: bytes(limits::FRAME_TO_CLIENT_BYTES_MAX),
            outbox_bytes_max: 1024 * 1024,
            memory_bytes_max: 0,
            connections_max: 0,
            accepts_per_second_max: 0,
            open_timeout_ms: 10_000,
            upgrade_bytes_max: 8 * 1024,
            message_bytes_max: 1024 * 1024,
            frames_per_second_max: 0,
            frames_burst_max: 100,
            calls_per_connection_max: 256,
            commands_max: 8192,
            commands_bytes_max: 64 * 1024 * 1024,
            push_keys_bytes_max: 64 * 1024 * 1024,
            fan_out_slice_members: 64,
        }
    }
}

impl Default for Socket {
    fn default() -> Self {
        Self {
            backlog: capacity::BACKLOG.into(),
            send_buffer_bytes: capacity::SEND_BUFFER_BYTES.cast_signed(),
            user_timeout_ms: 20_000,
        }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            log_bytes_max: 256 * 1024,
            slow_member: "skip".into(),
            merge_window_ms: 0,
            urgent_types: Vec::new(),
            replay_on_join: 0,
            rejoin: "ticket".into(),
            class: "durable".into(),
            idle_ttl_ms: 60_000,
            rooms_per_shard_max: 100_000,
            rooms_per_connection_max: 64,
            joins_per_second_max: 0,
            joins_burst_max: 64,
            offset_file: ".tidegate/offset".into(),
            ticket_ttl_ms: 12 * 60 * 60 * 1000,
            ticket_key_file: ".tidegate/ticket.key".into(),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: String::new(),
            pushes_url: String::new(),
            presence_url: String::new(),
            tokens_url: String::new(),
            password_file: String::new(),
            ca_file: String::new(),
            push_wait_ms: 60_000,
            offline_grace_ms: 10_000,
        }
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self {
            placement: "auto".into(),
            workers: 0,
            queue_calls_max: 100_000,
            queue_bytes_max: 64 << 20,
            batch_calls_max: 64,
            circuit_timeouts: 0,
        }
    }
}

impl Default for Route {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            backend: String::new(),
            timeout_ms: 5000,
            in_flight_max: 100_000,
            waiting_ms_max: 0,
            calls_per_second_max: 0,
            calls_burst_max: 1_000,
            user_calls_per_second_max: 0,
            user_calls_burst_max: 10,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: "text".into() }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            ready_grace_ms: 0,
            goodbye_window_ms: 3_000,
            drain_timeout_ms: 10_000,
            retry_after_ms: 1_000,
        }
    }
}

fn bytes(count: usize) -> i64 {
    i64::try_from(count).expect("the protocol's sizes fit")
}
