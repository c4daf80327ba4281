//! Which keys can change while the gateway runs, and which keys two configurations differ in.
//!
//! The table here is the one place that says it: a reload asks it, the README's table is compared with it, and a test
//! demands that it has each key.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};

use serde_json::Value;

use super::typed::Typed;

/// The keys that a reload changes. A `*` stands for any name; the keys of a list have no index.
pub(super) const AT_RUN_TIME: &[&str] = &[
    "reload_on_change",
    "tls.certificates.*.chain_file",
    "tls.certificates.*.key_file",
    "tls.certificates.*.ocsp_file",
    "tls.version_min",
    "tls.client_certificates",
    "tls.client_ca_file",
    "http.requests_max",
    "http.head_bytes_max",
    "http.body_bytes_max",
    "http.head_timeout_ms",
    "http.body_timeout_ms",
    "auth.algorithm",
    "auth.key_file",
    "auth.jwks_file",
    "auth.jwks_url",
    "auth.jwks_refresh_ms",
    "auth.audience",
    "auth.issuer",
    "auth.leeway_ms",
    "auth.timeout_ms",
    "auth.failures_max",
    "session.token_expiry_grace_ms",
    "session.age_max_ms",
    "session.slow_pushes",
    "limits.frame_bytes_max",
    "limits.outbox_bytes_max",
    "limits.accepts_per_second_max",
    "limits.frames_per_second_max",
    "limits.frames_burst_max",
    "limits.calls_per_connection_max",
    "limits.commands_max",
    "limits.commands_bytes_max",
    "limits.push_keys_bytes_max",
    "limits.fan_out_slice_members",
    "addresses.exempt",
    "addresses.connections_max",
    "addresses.network_connections_max",
    "addresses.accepts_per_second_max",
    "addresses.accepts_burst_max",
    "addresses.network_accepts_per_second_max",
    "addresses.network_accepts_burst_max",
    "addresses.failed_logins_per_minute_max",
    "addresses.network_failed_logins_per_minute_max",
    "addresses.ban_ms",
    "addresses.retry_after_ms",
    "rooms.log_bytes_max",
    "rooms.slow_member",
    "rooms.merge_window_ms",
    "rooms.urgent_types",
    "rooms.replay_on_join",
    "rooms.rejoin",
    "rooms.class",
    "rooms.idle_ttl_ms",
    "rooms.rooms_per_shard_max",
    "rooms.rooms_per_connection_max",
    "rooms.ticket_key_file",
    "room_policies.prefix",
    "room_policies.log_bytes_max",
    "room_policies.slow_member",
    "room_policies.merge_window_ms",
    "room_policies.urgent_types",
    "room_policies.replay_on_join",
    "room_policies.rejoin",
    "room_policies.class",
    "routes.types",
    "routes.backend",
    "routes.timeout_ms",
    "routes.in_flight_max",
    "routes.waiting_ms_max",
    "routes.calls_per_second_max",
    "routes.calls_burst_max",
    "routes.user_calls_per_second_max",
    "routes.user_calls_burst_max",
    "log.filter",
    "shutdown.ready_grace_ms",
    "shutdown.goodbye_window_ms",
    "shutdown.drain_timeout_ms",
    "shutdown.retry_after_ms",
];

/// The keys that only a restart changes: sockets, threads, what they have reserved, and what clients have received at login.
pub(super) const AT_START: &[&str] = &[
    "listen",
    "listeners.*.listen",
    "listeners.*.wire",
    "listeners.*.proxy_from",
    "listeners.*.path",
    "listeners.*.origins",
    "listeners.*.token_from",
    "tls.handshakes_per_second_max",
    "http.connections_max",
    "http.descriptor_set_file",
    "http.openapi",
    "http_routes.path",
    "http_routes.method",
    "http_routes.type",
    "http_routes.body",
    "http_routes.request",
    "http_routes.response",
    "http_routes.public",
    "addresses.shares_bans",
    "limits.memory_bytes_max",
    "rooms.joins_per_second_max",
    "rooms.joins_burst_max",
    "shards",
    "driver",
    "coalesce_us",
    "admin.listen",
    "admin.token_file",
    "auth.mode",
    "auth.verify_threads",
    "auth.verifications_max",
    "auth.verified_tokens_max",
    "auth.lookups_max",
    "auth.recheck_ms",
    "session.heartbeat_interval_ms",
    "session.idle_timeout_ms",
    "session.login",
    "session.connections_per_user_max",
    "session.on_token_expiry",
    "limits.frame_to_client_bytes_max",
    "limits.connections_max",
    "limits.open_timeout_ms",
    "limits.upgrade_bytes_max",
    "limits.message_bytes_max",
    "socket.backlog",
    "socket.send_buffer_bytes",
    "socket.user_timeout_ms",
    "rooms.offset_file",
    "rooms.ticket_ttl_ms",
    "redis.url",
    "redis.pushes_url",
    "redis.presence_url",
    "redis.tokens_url",
    "redis.password_file",
    "redis.ca_file",
    "redis.push_wait_ms",
    "redis.offline_grace_ms",
    "backends.*.placement",
    "backends.*.workers",
    "backends.*.queue_calls_max",
    "backends.*.queue_bytes_max",
    "backends.*.batch_calls_max",
    "backends.*.circuit_timeouts",
    "log.format",
];

/// Of these keys a change says that there is one, and not which: a URL may hold a password, or a token in its query.
const NOT_SHOWN: &[&str] =
    &["redis.url", "redis.pushes_url", "redis.presence_url", "redis.tokens_url", "auth.jwks_url"];

/// Lists of tables. Their keys have an index: `routes[0].backend`.
const LISTS: [&str; 3] = ["routes", "room_policies", "http_routes"];

/// A configuration as it was written, every default included: what two of them are compared by. `Debug` shows no value, since
/// some are secrets.
#[derive(Clone)]
pub struct Written {
    values: BTreeMap<String, Value>,
    /// What its file held; `None`: there is no file.
    file: Option<Fingerprint>,
}

/// The contents of a file, to compare them with others. It reveals nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn of(contents: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(contents);
        Self(hasher.finish())
    }
}

/// A key that differs between two configurations. `Debug` shows what `Display` does, which hides secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// The key: `limits.commands_max`, `routes[0].backend`.
    pub key: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl Written {
    pub(super) fn of(typed: &Typed, file: Option<Fingerprint>) -> Self {
        let value = serde_json::to_value(typed).expect("the configuration serialises");
        let mut keys = BTreeMap::new();
        collect("", value, &mut keys);
        Self { values: keys, file }
    }

    /// What its file held; `None`: there is no file.
    pub(crate) const fn file(&self) -> Option<Fingerprint> {
        self.file
    }

    /// The keys whose values differ in a later configuration, in alphabetical order.
    #[must_use]
    pub fn changes_to(&self, later: &Self) -> Vec<Change> {
        let mut keys: Vec<_> = self.values.keys().chain(later.values.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let change = |key: &String| {
            let (before, after) = (self.values.get(key).cloned(), later.values.get(key).cloned());
            (before != after).then(|| Change { key: key.clone(), before, after })
        };
        keys.into_iter().filter_map(change).collect()
    }
}

impl Change {
    /// Whether the gateway can do it while it runs.
    #[must_use]
    pub fn is_at_run_time(&self) -> bool {
        let pattern = pattern_of(&self.key);
        let is_at_run_time = AT_RUN_TIME.contains(&&*pattern);
        debug_assert!(is_at_run_time != AT_START.contains(&&*pattern), "{pattern} is in one table");
        is_at_run_time
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("keys", &self.values.keys()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if NOT_SHOWN.contains(&&*self.key) {
            return write!(f, "{}: another value, which is not shown", self.key);
        }
        let text = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        };
        write!(f, "{}: {} -> {}", self.key, text(&self.before), text(&self.after))
    }
}

fn collect(above: &str, value: Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                let key = if above.is_empty() { name } else { format!("{above}.{name}") };
                collect(&key, value, keys);
            }
        }
        Value::Array(list) if LISTS.contains(&above) => {
            for (index, value) in list.into_iter().enumerate() {
                collect(&format!("{above}[{index}]"), value, keys);
            }
        }
        // A policy that does not say it.
        Value::Null => {}
        value => {
            keys.insert(above.to_owned(), value);
        }
    }
}

/// The key as the table has it: without indexes, and with a `*` for a name of the operator's.
pub(super) fn pattern_of(key: &str) -> String {
    let mut parts: Vec<_> =
        key.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect();
    let name = match *parts.as_slice() {
        ["backends" | "listeners", _, _] => 1,
        ["tls", "certificates", _, _] => 2,
        _ => return parts.join("."),
    };
    parts[name] = "*";
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::Layers;

    const README: &str = include_str!("../../../README.md");

    fn written(toml: &str) -> Written {
        let mut layers = Layers::new();
        layers.toml(toml, "test".as_ref()).unwrap();
        Written::of(&layers.finish().0, None)
    }

    fn changes(before: &str, after: &str) -> Vec<String> {
        written(before).changes_to(&written(after)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_key_can_be_changed_at_run_time_or_only_by_a_restart() {
        let known =
            Written::of(&Typed::sample(), None).values.into_keys().map(|key| pattern_of(&key));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        known.dedup();
        let mut classified: Vec<_> = AT_RUN_TIME.iter().chain(AT_START).copied().collect();
        classified.sort_unstable();
        let twice = classified.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
        let missing: Vec<_> = known.iter().filter(|key| !classified.contains(&&***key)).collect();
        assert!(
            missing.is_empty(),
            "these keys are neither in AT_RUN_TIME nor in AT_START: {missing:?}. In AT_RUN_TIME a \
             `reconfigure` of the part has to apply it"
        );
        let stale: Vec<_> =
            classified.iter().filter(|key| !known.iter().any(|known| known == **key)).collect();
        assert!(stale.is_empty(), "there are no such keys: {stale:?}");
    }

    #[test]
    fn the_readme_names_each_key_that_a_reload_changes_and_each_that_it_does_not() {
        let section = README.split("### Reload").nth(1).expect("README has a section about it");
        let section = section.split("\n### ").next().unwrap_or(section);
        let (changes, restart) = section.split_once("Only a restart changes").expect("both lists");
        for (keys, text) in [(AT_RUN_TIME, changes), (AT_START, restart)] {
            for key in keys {
                assert!(text.contains(&format!("`{key}`")), "{key} is not in the right list");
            }
        }
    }

    #[test]
    fn changes_name_the_key_and_both_values() {
        let routes = "[[routes]]\ntypes = [1, 9]\nbackend = \"demo\"\n";
        assert_eq!(changes("", ""), [""; 0]);
        assert_eq!(changes("", "[limits]\ncommands_max = 7\n"), ["limits.commands_max: 8192 -> 7"]);
        assert_eq!(
            changes(routes, &format!("{routes}timeout_ms = 9\n")),
            ["routes[0].timeout_ms: 5000 -> 9"]
        );
        let two = format!("{routes}[[routes]]\ntypes = [10, 19]\nbackend = \"demo\"\n");
        let added = changes(routes, &two);
        assert!(added.contains(&"routes[1].types: none -> [10,19]".to_owned()), "{added:?}");
        let policy = "[[room_policies]]\nprefix = \"a\"\nlog_bytes_max = 1\n";
        assert_eq!(
            changes(policy, ""),
            ["room_policies[0].log_bytes_max: 1 -> none", "room_policies[0].prefix: \"a\" -> none"]
        );
        let redis = changes("", "[redis]\nurl = \"redis://:secret@127.0.0.1/\"\n");
        assert!(redis[0].contains("not shown") && !redis[0].contains("secret"), "{redis:?}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let redis =
            |password| written(&format!("[redis]\nurl = \"redis://:{password}@127.0.0.1/\"\n"));
        let (before, after) = (redis("hush"), redis("hushed"));
        let shown = format!("{:?} {:?}", before.changes_to(&after), [before, after]);
        assert!(shown.contains("redis.url: another value") && !shown.contains("hush"), "{shown}");
    }

    #[test]
    fn the_keys_of_names_that_operators_give_are_found() {
        let backend = written("").changes_to(&written("[backends.mine]\nworkers = 2\n"));
        assert!(!backend.is_empty() && !backend.iter().any(Change::is_at_run_time));
        let chain = "[tls.certificates.main]\nchain_file = \"a\"\n";
        let chain = written("").changes_to(&written(chain));
        assert!(!chain.is_empty() && chain.iter().all(Change::is_at_run_time), "{chain:?}");
    }
}
