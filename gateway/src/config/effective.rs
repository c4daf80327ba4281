//! The configuration that the gateway uses, as JSON under the keys of `tidegate.toml`.
//!
//! Each 0 that leaves a value to the gateway is shown as the value that it took, and what another key overrules as it
//! holds: `connections_per_user_max` is 1 where `login` is `newest-wins`. A secret is never in the
//! configuration: it names files.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_backend::Placement;

use super::auth::without_query;
use super::checked::*;
use super::redis::RedisConfig;
use super::rooms::{RoomPolicy, RoomsConfig};
use crate::limits::addresses::Settings;

impl Config {
    /// What this configuration comes to, by key.
    #[must_use]
    pub fn effective(&self) -> Value {
        json!({
            "reload_on_change": self.reload_on_change,
            "listen": self.listen.map_or_else(String::new, |listen| listen.to_string()),
            "listeners": Value::Object(
                self.listeners.iter().chain(&self.http.listeners).map(listener).collect(),
            ),
            "tls": tls(&self.tls),
            "http": http(&self.http),
            "http_routes": self.http.routes.iter().map(http_route).collect::<Vec<_>>(),
            "shards": self.shards,
            "driver": self.driver.name(),
            "coalesce_us": u64::try_from(self.coalesce.as_micros()).unwrap_or(u64::MAX),
            "admin": { "listen": self.admin.listen, "token_file": self.admin.token_file },
            "auth": auth(&self.auth),
            "session": session(&self.session),
            "limits": limits(&self.limits),
            "addresses": address_limits(&self.addresses),
            "socket": {
                "backlog": self.socket.backlog,
                "send_buffer_bytes": self.socket.send_buffer_bytes,
                "user_timeout_ms": ms(self.socket.user_timeout),
            },
            "rooms": rooms(&self.rooms),
            "room_policies": self.rooms.policies.iter().map(named_policy).collect::<Vec<_>>(),
            "redis": redis(self.redis.as_ref()),
            "backends": Value::Object(self.backends.iter().map(backend).collect()),
            "routes": self.routes.iter().map(route).collect::<Vec<_>>(),
            "log": { "filter": self.log.filter, "format": self.log.format.name() },
            "shutdown": {
                "ready_grace_ms": ms(self.shutdown.ready_grace),
                "goodbye_window_ms": ms(self.shutdown.goodbye_window),
                "drain_timeout_ms": ms(self.shutdown.drain_timeout),
                "retry_after_ms": ms(self.shutdown.retry_after),
            },
        })
    }
}

fn listener(listener: &ListenerConfig) -> (String, Value) {
    let networks: Vec<_> = listener.proxy_from.iter().map(ToString::to_string).collect();
    let mut value = json!({
        "listen": listener.listen,
        "wire": listener.wire.name(),
        "proxy_from": networks,
    });
    if let Some(rules) = &listener.upgrade {
        value["path"] = json!(rules.path);
        value["origins"] = json!(rules.origins);
        value["token_from"] = json!(rules.token.names());
    }
    if listener.wire.is_http() {
        value["origins"] = json!(listener.origins);
    }
    (listener.name.clone(), value)
}

fn address_limits(limits: &Settings) -> Value {
    let Settings { host, network, ban, shares_bans, exempt, retry_after } = limits;
    let exempt: Vec<_> = exempt.iter().map(ToString::to_string).collect();
    let number = |value: Option<u32>| value.unwrap_or(0);
    json!({
        "exempt": exempt,
        "connections_max": number(host.connections_max),
        "network_connections_max": number(network.connections_max),
        "accepts_per_second_max": number(host.accepts.map(|accepts| accepts.count)),
        "accepts_burst_max": host.accepts_burst_max,
        "network_accepts_per_second_max": number(network.accepts.map(|accepts| accepts.count)),
        "network_accepts_burst_max": network.accepts_burst_max,
        "failed_logins_per_minute_max": number(host.failed_logins.map(|logins| logins.count)),
        "network_failed_logins_per_minute_max": number(network.failed_logins.map(|logins| logins.count)),
        "ban_ms": ms(*ban),
        "shares_bans": shares_bans,
        "retry_after_ms": ms(*retry_after),
    })
}

fn http(http: &HttpConfig) -> Value {
    json!({
        "connections_max": http.connections_max,
        "requests_max": http.requests_max,
        "head_bytes_max": http.head_bytes_max,
        "body_bytes_max": http.body_bytes_max,
        "head_timeout_ms": ms(http.head_timeout),
        "body_timeout_ms": ms(http.body_timeout),
        "descriptor_set_file": http.descriptor_set_file.as_deref().unwrap_or(Path::new("")),
        "openapi": http.openapi,
    })
}

fn http_route(route: &HttpRouteConfig) -> Value {
    let (body, request, response) = match &route.body {
        HttpBody::Json => ("json", "", ""),
        HttpBody::Bytes => ("bytes", "", ""),
        HttpBody::Messages { request, response } => ("json", request.as_str(), response.as_str()),
    };
    json!({
        "path": route.path,
        "method": route.method.name(),
        "type": route.kind,
        "body": body,
        "request": request,
        "response": response,
        "public": route.is_public,
    })
}

fn tls(tls: &TlsConfig) -> Value {
    let certificate = |files: &CertificateConfig| {
        let none = Path::new("");
        let value = json!({
            "chain_file": files.chain_file,
            "key_file": files.key_file,
            "ocsp_file": files.ocsp_file.as_deref().unwrap_or(none),
        });
        (files.name.clone(), value)
    };
    let (client_certificates, client_ca_file) = match &tls.client_certificates {
        ClientCertificates::None => ("none", Path::new("")),
        ClientCertificates::Optional(path) => ("optional", path.as_path()),
        ClientCertificates::Required(path) => ("required", path.as_path()),
    };
    json!({
        "certificates": Value::Object(tls.certificates.iter().map(certificate).collect()),
        "version_min": if tls.takes_tls12 { "1.2" } else { "1.3" },
        "client_certificates": client_certificates,
        "client_ca_file": client_ca_file,
        "handshakes_per_second_max": tls.handshakes_per_second_max,
    })
}

fn auth(auth: &AuthConfig) -> Value {
    let mut value = json!({
        "jwks_refresh_ms": ms(auth.jwks_refresh),
        "leeway_ms": ms(auth.leeway),
        "timeout_ms": ms(auth.timeout),
        "failures_max": auth.failures_max,
        "verify_threads": auth.verify_threads,
        "verifications_max": auth.verifications_max,
        "verified_tokens_max": auth.verified_tokens_max,
        "lookups_max": auth.lookups_max,
        "recheck_ms": ms(auth.recheck),
    });
    match &auth.mode {
        AuthMode::Demo => value["mode"] = "demo".into(),
        AuthMode::Redis => value["mode"] = "redis".into(),
        AuthMode::Jwt { keys, audience, issuer } => {
            value["mode"] = "jwt".into();
            jwt_keys(keys, &mut value);
            value["audience"] = json!(audience.as_deref().unwrap_or_default());
            value["issuer"] = json!(issuer.as_deref().unwrap_or_default());
        }
    }
    value
}

/// Each key says its own algorithm where they come from a set.
fn jwt_keys(keys: &JwtKeys, value: &mut Value) {
    let none = || Value::from("");
    let (algorithm, key_file, jwks_file, jwks_url) = match keys {
        JwtKeys::One { algorithm, key_file } => {
            (algorithm.name().into(), json!(key_file), none(), none())
        }
        JwtKeys::Set(KeySetSource::File(path)) => (none(), none(), json!(path), none()),
        JwtKeys::Set(KeySetSource::Url(url)) => (none(), none(), none(), json!(without_query(url))),
    };
    value["algorithm"] = algorithm;
    value["key_file"] = key_file;
    value["jwks_file"] = jwks_file;
    value["jwks_url"] = jwks_url;
}

fn session(session: &SessionConfig) -> Value {
    json!({
        "heartbeat_interval_ms": ms(session.heartbeat_interval),
        "idle_timeout_ms": ms(session.idle_timeout),
        "login": if session.connections_per_user_max == 1 { "newest-wins" } else { "many" },
        "connections_per_user_max": session.connections_per_user_max,
        "on_token_expiry": session.on_token_expiry.name(),
        "token_expiry_grace_ms": ms(session.token_expiry_grace),
        "age_max_ms": session.age_max.map_or(0, ms),
        "slow_pushes": session.slow_pushes.name(),
    })
}

fn limits(limits: &LimitsConfig) -> Value {
    json!({
        "frame_bytes_max": limits.frame_bytes_max,
        "frame_to_client_bytes_max": limits.frame_to_client_bytes_max,
        "outbox_bytes_max": limits.outbox_bytes_max,
        "memory_bytes_max": limits.memory_bytes_max.unwrap_or(0),
        "connections_max": limits.connections_max,
        "accepts_per_second_max": limits.accepts_per_second_max.unwrap_or(0),
        "open_timeout_ms": ms(limits.open_timeout),
        "upgrade_bytes_max": limits.upgrade_bytes_max,
        "message_bytes_max": limits.message_bytes_max,
        "frames_per_second_max": limits.frames_per_second_max.unwrap_or(0),
        "frames_burst_max": limits.frames_burst_max,
        "calls_per_connection_max": limits.calls_per_connection_max,
        "commands_max": limits.commands_max,
        "commands_bytes_max": limits.commands_bytes_max,
        "push_keys_bytes_max": limits.push_keys_bytes_max,
        "fan_out_slice_members": limits.fan_out_slice_members,
    })
}

fn rooms(rooms: &RoomsConfig) -> Value {
    let mut value = policy(&rooms.default_policy);
    value["offset_file"] = json!(rooms.offset_file.as_deref().unwrap_or(Path::new("")));
    value["idle_ttl_ms"] = ms(rooms.idle_ttl).into();
    value["ticket_ttl_ms"] = ms(rooms.ticket_ttl).into();
    value["ticket_key_file"] = json!(rooms.ticket_key_file);
    value["rooms_per_shard_max"] = rooms.rooms_per_shard_max.into();
    value["rooms_per_connection_max"] = rooms.rooms_per_connection_max.into();
    value["joins_per_second_max"] = rooms.joins_per_second_max.unwrap_or(0).into();
    value["joins_burst_max"] = rooms.joins_burst_max.into();
    value
}

fn named_policy((prefix, named): &(String, RoomPolicy)) -> Value {
    let mut value = policy(named);
    value["prefix"] = prefix.as_str().into();
    value
}

fn policy(policy: &RoomPolicy) -> Value {
    let urgent_types = policy.urgent_types.map(|(first, last)| vec![first, last]);
    json!({
        "log_bytes_max": policy.log_bytes_max,
        "slow_member": policy.slow_member.name(),
        "merge_window_ms": ms(policy.merge_window),
        "urgent_types": urgent_types.unwrap_or_default(),
        "replay_on_join": policy.replay_on_join,
        "rejoin": policy.rejoin.name(),
        "class": policy.class.name(),
    })
}

/// Users and passwords are left out.
fn redis(redis: Option<&RedisConfig>) -> Value {
    let Some(redis) = redis else {
        return json!({
            "url": "", "pushes_url": "", "presence_url": "", "tokens_url": "",
            "password_file": "", "ca_file": "", "push_wait_ms": 0, "offline_grace_ms": 0,
        });
    };
    json!({
        "url": redis.shared.to_string(),
        "pushes_url": redis.pushes.to_string(),
        "presence_url": redis.presence.to_string(),
        "tokens_url": redis.tokens.to_string(),
        "password_file": redis.password_file,
        "ca_file": redis.ca_file,
        "push_wait_ms": ms(redis.push_wait),
        "offline_grace_ms": ms(redis.offline_grace),
    })
}

fn backend(backend: &BackendConfig) -> (String, Value) {
    let placement = match backend.placement {
        None => "auto",
        Some(Placement::Worker) => "worker",
        Some(Placement::Shard) => "shard",
    };
    let value = json!({
        "placement": placement,
        "workers": backend.workers,
        "queue_calls_max": backend.queue_calls_max,
        "queue_bytes_max": backend.queue_bytes_max,
        "batch_calls_max": backend.batch_calls_max,
        "circuit_timeouts": backend.circuit_timeouts.unwrap_or(0),
    });
    (backend.name.clone(), value)
}

fn route(route: &RouteConfig) -> Value {
    json!({
        "types": [route.first_type, route.last_type],
        "backend": route.backend,
        "timeout_ms": ms(route.timeout),
        "in_flight_max": route.in_flight_max,
        "waiting_ms_max": route.waiting_max.map_or(0, ms),
        "calls_per_second_max": route.rate.per_second_max.unwrap_or(0),
        "calls_burst_max": route.rate.burst_max,
        "user_calls_per_second_max": route.user_rate.per_second_max.unwrap_or(0),
        "user_calls_burst_max": route.user_rate.burst_max,
    })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
