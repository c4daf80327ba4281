//! A shard's figures: counted in plain integers, handed to `metrics` a few times a second.
//!
//! A counter on the hot path is an addition to memory that only this thread touches. The registry's
//! own counters are shared between threads; they get the differences.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tidegate_protocol::Code;

use super::closing::Cause;
use crate::auth::AuthError;

/// Defines [`Stats`], its counters' names, and how they reach the registry.
macro_rules! counters {
    ($($field:ident, $name:literal, $help:literal;)*) => {
        /// What has happened on a shard since it started.
        #[derive(Clone, Debug, Default)]
        #[expect(missing_docs, reason = "each has its help text below")]
        pub struct Stats {
            $(pub $field: u64,)*
            /// Connections parted with, by [`Cause`].
            pub closed: [u64; Cause::COUNT],
            /// Failures sent, by code less 100.
            pub failures: [u64; Code::ALL.len()],
            /// Tokens refused, by [`AuthError`].
            pub refused_tokens: [u64; AuthError::COUNT],
        }

        #[derive(Debug)]
        struct Counters {
            $($field: Counter,)*
        }

        impl Counters {
            fn new() -> Self {
                Self { $($field: counter!($name),)* }
            }

            fn add(&self, now: &Stats, before: &Stats) {
                $(if now.$field > before.$field {
                    self.$field.increment(now.$field - before.$field);
                })*
            }

            fn describe() {
                $(describe_counter!($name, $help);)*
            }
        }

        /// Counters without labels: name and help text. The table in the README is held to it.
        pub const COUNTERS: &[(&str, &str)] = &[$(($name, $help),)*];
    };
}

counters! {
    accepted, "tidegate_connections_accepted_total", "Connections accepted.";
    accept_pauses, "tidegate_accept_pauses_total", "Times accepting stopped because descriptors or memory had run out, or connections_max was reached.";
    memory_give_backs, "tidegate_memory_give_backs_total", "Times free memory was given back to the kernel after a burst of long messages.";
    received_bytes, "tidegate_received_bytes_total", "Bytes received from clients.";
    discarded_bytes, "tidegate_discarded_bytes_total", "Bytes received and never read: what came after a connection's last frame, or waited when it ended.";
    unsent_bytes, "tidegate_unsent_bytes_total", "Bytes never sent: what the kernel had not taken when a connection ended. With io_uring a short send counts as sent at once, and here too where it is cut.";
    received_frames, "tidegate_received_frames_total", "Frames received from clients.";
    receive_pauses, "tidegate_receive_pauses_total", "Times a connection was not read from because it has too many calls or unsent bytes.";
    heartbeats, "tidegate_heartbeats_total", "Heartbeats answered.";
    sessions, "tidegate_sessions_opened_total", "Authentications that opened a session.";
    calls, "tidegate_calls_total", "Requests handed to a backend.";
    answers, "tidegate_answers_total", "Calls whose success was written to the client.";
    late_answers, "tidegate_late_answers_total", "Answers thrown away because the call had timed out.";
    orphan_answers, "tidegate_orphan_answers_total", "Answers thrown away because the connection was gone, or ended with too many unsent bytes.";
    oversize_answers, "tidegate_oversize_answers_total", "Answers longer than max_frame_to_client_bytes, failed with 101.";
    pushes_to_users, "tidegate_user_pushes_total", "Pushes to a user.";
    pushes_to_rooms, "tidegate_room_pushes_total", "Pushes to a room, everybody's included.";
    refused_commands, "tidegate_commands_refused_total", "Pushes and other commands refused because commands_max or commands_bytes_max was reached.";
    deliveries, "tidegate_push_deliveries_total", "Pushes taken for a connection: written to it, or sent.";
    skipped_pushes, "tidegate_push_skipped_total", "Pushes that a slow member of a room missed.";
    merged_pushes, "tidegate_push_merged_total", "Pushes that a merge window put into one send with an earlier one, counted by each shard with members.";
    short_windows, "tidegate_merge_windows_short_total", "Merge windows that ended early, or did not begin, because what waited was longer than log_bytes_max, or half of commands_max or commands_bytes_max was taken.";
    refused_rooms, "tidegate_rooms_refused_total", "Joins and pushes refused because rooms_max or rooms_per_connection_max was reached.";
    stale_commands, "tidegate_commands_stale_total", "Commands for a connection that was gone.";
    sends, "tidegate_sends_total", "Sends completed.";
    sent_bytes, "tidegate_sent_bytes_total", "Bytes handed to the kernel.";
    turns, "tidegate_shard_turns_total", "Turns of the shards' loops.";
}

/// Metrics with labels, and gauges: name, labels and help text.
pub const OTHERS: &[(&str, &str, &str)] = &[
    ("tidegate_connections", "shard", "Open connections."),
    ("tidegate_sessions", "shard", "Authenticated connections."),
    ("tidegate_users", "shard", "Users in the directory."),
    (
        "tidegate_rooms",
        "shard",
        "Rooms with members on the shard or with their home there; everybody's is one on each.",
    ),
    ("tidegate_memberships", "shard", "Memberships of rooms, everybody's included."),
    ("tidegate_calls_in_flight", "shard", "Calls that wait for their answer."),
    (
        "tidegate_outbox_bytes",
        "shard",
        "Bytes that wait to be sent, those of sends under way included.",
    ),
    (
        "tidegate_commands_in_flight",
        "",
        "Pushes and other commands under way, all shards together.",
    ),
    ("tidegate_connections_closed_total", "cause", "Connections parted with, by cause."),
    ("tidegate_failures_total", "code", "Failures sent, by error code."),
    (
        "tidegate_auth_failures_total",
        "reason",
        "Tokens refused: malformed, signature, expired, audience, wrong_user.",
    ),
    (
        "tidegate_call_duration_seconds_bucket",
        "backend, le",
        "Calls by the time from a request's receipt to its answer: a Prometheus histogram's buckets.",
    ),
    ("tidegate_call_duration_seconds_count", "backend", "Calls whose duration is in the buckets."),
    ("tidegate_silent_shards", "", "Shards that have not answered for 5 s: they hang."),
    (
        "tidegate_operator_connections_cut_total",
        "cause",
        "Operators' connections that the gateway ended, by cause.",
    ),
];

/// Upper bounds of the call durations that are told apart, in milliseconds; above the last is infinity.
const DURATIONS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];

/// Durations of one backend's calls. The registry's own histograms keep every sample until somebody
/// asks, which at a million calls a second is no small thing; these are a few integers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durations([u64; DURATIONS_MS.len() + 1]);

impl Durations {
    /// Counts one.
    #[inline]
    pub fn note(&mut self, ms: u64) {
        let bucket = DURATIONS_MS.iter().position(|&bound| ms < bound);
        self.0[bucket.unwrap_or(DURATIONS_MS.len())] += 1;
    }
}

/// One backend's handles: a counter for each bucket, the last of them for all calls.
#[derive(Debug)]
struct DurationCounters {
    buckets: Vec<Counter>,
    count: Counter,
}

impl DurationCounters {
    fn new(backend: &str) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let bounds = DURATIONS_MS.iter().map(|&ms| (ms as f64 / 1000.0).to_string());
        let bucket = |le: String| {
            let backend = backend.to_owned();
            counter!("tidegate_call_duration_seconds_bucket", "backend" => backend, "le" => le)
        };
        Self {
            buckets: bounds.chain(["+Inf".to_owned()]).map(bucket).collect(),
            count: counter!("tidegate_call_duration_seconds_count", "backend" => backend.to_owned()),
        }
    }

    /// Adds calls. A bucket of Prometheus holds those of the smaller ones too.
    fn add(&self, durations: &Durations) {
        let mut up_to_here = 0;
        for (calls, bucket) in durations.0.iter().zip(&self.buckets) {
            up_to_here += calls;
            if up_to_here > 0 {
                bucket.increment(up_to_here);
            }
        }
        self.count.increment(up_to_here);
    }
}

/// What stands now, as opposed to what has happened.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "each has its help text in `OTHERS`")]
pub struct Levels {
    pub connections: usize,
    pub sessions: usize,
    pub users: usize,
    pub rooms: usize,
    pub memberships: usize,
    pub calls_in_flight: usize,
    pub outbox_bytes: usize,
}

/// A shard's handles in the registry.
#[derive(Debug)]
pub struct Exporter {
    counters: Counters,
    closed: [Counter; Cause::COUNT],
    failures: [Counter; Code::ALL.len()],
    refused_tokens: [Counter; AuthError::COUNT],
    gauges: [Gauge; 7],
    commands_in_flight: Gauge,
    durations: Vec<DurationCounters>,
    exported: Stats,
}

impl Exporter {
    /// Registers a shard's metrics.
    #[must_use]
    pub fn new(shard: u16, backends: &[std::sync::Arc<str>]) -> Self {
        let shard = shard.to_string();
        let level = |name: &'static str| gauge!(name, "shard" => shard.clone());
        Self {
            counters: Counters::new(),
            closed: Cause::ALL.map(
                |cause| counter!("tidegate_connections_closed_total", "cause" => cause.label()),
            ),
            failures: Code::ALL.map(
                |code| counter!("tidegate_failures_total", "code" => code.number().to_string()),
            ),
            refused_tokens: AuthError::ALL
                .map(|error| counter!("tidegate_auth_failures_total", "reason" => error.label())),
            gauges: [0, 1, 2, 3, 4, 5, 6].map(|index: usize| level(OTHERS[index].0)),
            commands_in_flight: gauge!("tidegate_commands_in_flight"),
            durations: backends.iter().map(|name| DurationCounters::new(name)).collect(),
            exported: Stats::default(),
        }
    }

    /// Hands over what has changed.
    pub fn export(
        &mut self,
        stats: &Stats,
        levels: Levels,
        commands_in_flight: usize,
        durations: &mut [Durations],
    ) {
        self.counters.add(stats, &self.exported);
        let closed = stats.closed.iter().zip(&self.exported.closed).zip(&self.closed);
        let failures = stats.failures.iter().zip(&self.exported.failures).zip(&self.failures);
        let refused_tokens = stats.refused_tokens.iter().zip(&self.exported.refused_tokens);
        let refused_tokens = refused_tokens.zip(&self.refused_tokens);
        for ((now, before), counter) in closed.chain(failures).chain(refused_tokens) {
            if now > before {
                counter.increment(now - before);
            }
        }
        let Levels { connections, sessions, users, rooms, memberships, .. } = levels;
        let Levels { calls_in_flight, outbox_bytes, .. } = levels;
        let levels =
            [connections, sessions, users, rooms, memberships, calls_in_flight, outbox_bytes];
        let gauges = self.gauges.iter().zip(levels);
        for (gauge, level) in gauges.chain([(&self.commands_in_flight, commands_in_flight)]) {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            gauge.set(level as f64);
        }
        for (durations, counters) in durations.iter_mut().zip(&self.durations) {
            counters.add(&std::mem::take(durations));
        }
        self.exported.clone_from(stats);
    }
}

/// Gives the registry the help texts. Call once.
pub fn describe() {
    Counters::describe();
    for &(name, labels, help) in OTHERS {
        match labels {
            "shard" | "" => describe_gauge!(name, help),
            _ => describe_counter!(name, help),
        }
    }
}
