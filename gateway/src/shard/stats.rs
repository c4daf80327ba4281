//! A shard's figures: counted in plain integers, handed to `metrics` a few times a second.
//!
//! A counter on the hot path is an addition to memory that only this thread touches. The registry's
//! own counters are shared between threads; they get the differences.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tidegate_protocol::Code;

use super::calls::durations;
use super::clients::cause::Cause;
use crate::auth::{self, AuthError};
use crate::control::ShardInfo;
use crate::driver::Mechanism;
use crate::limits::{addresses, memory, sessions};
use crate::metrics_page::RESIDENT_MEMORY;
use crate::offset_file;
use crate::router::{queue_metrics, refusals};

/// Defines the counters of each part of a shard, all of them together as [`Stats`], their names, and how they reach
/// the registry.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $part:ident: $type:ident {
        $($field:ident, $name:literal, $help:literal;)*
    })*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Debug, Default)]
            #[expect(missing_docs, reason = "each has its help text below")]
            pub struct $type {
                $(pub $field: u64,)*
            }
        )*

        /// What has happened on a shard since it started.
        #[derive(Clone, Debug, Default)]
        #[expect(missing_docs, reason = "each has its help text below")]
        pub struct Stats {
            $($(pub $field: u64,)*)*
            /// Connections closed, by [`Cause`].
            pub closed: [u64; Cause::COUNT],
            /// Failures sent, by code less 100.
            pub failures: [u64; Code::ALL.len()],
            /// Tokens refused, by [`AuthError`].
            pub refused_tokens: [u64; AuthError::COUNT],
        }

        /// The counters of a shard's parts.
        #[derive(Clone, Copy, Debug)]
        #[expect(missing_docs, reason = "each is what its type says")]
        pub struct Parts<'a> {
            $(pub $part: &'a $type,)*
            pub labelled: &'a LabelledCounters,
        }

        impl Parts<'_> {
            /// All of them together.
            #[must_use]
            pub fn stats(&self) -> Stats {
                let LabelledCounters { closed, failures, refused_tokens } = *self.labelled;
                Stats { $($($field: self.$part.$field,)*)* closed, failures, refused_tokens }
            }
        }

        #[derive(Debug)]
        struct Counters {
            $($($field: Counter,)*)*
        }

        impl Counters {
            fn new() -> Self {
                Self { $($($field: counter!($name),)*)* }
            }

            fn add(&self, now: &Stats, before: &Stats) {
                $($(if now.$field > before.$field {
                    self.$field.increment(now.$field - before.$field);
                })*)*
            }

            fn describe() {
                $($(describe_counter!($name, $help);)*)*
            }
        }

        /// Counters without labels: name and help text. The table in the README is held to it.
        pub const COUNTERS: &[(&str, &str)] = &[$($(($name, $help),)*)*];
    };
}

/// The counters of connections that have a label.
#[derive(Clone, Debug, Default)]
pub struct LabelledCounters {
    /// Connections closed, by [`Cause`].
    pub closed: [u64; Cause::COUNT],
    /// Failures sent, by code less 100.
    pub failures: [u64; Code::ALL.len()],
    /// Tokens refused, by [`AuthError`].
    pub refused_tokens: [u64; AuthError::COUNT],
}

counters! {
    /// Counted by [`Shard`](super::Shard) itself.
    shard: ShardCounters {
        turns, "tidegate_shard_turns_total", "Turns of the shards' loops.";
        coalesced_waits, "tidegate_shard_coalesced_waits_total", "Waits in which a shard let events gather before it took them (`coalesce_us`). 0 is normal: at the default, fewer than some 7,000 requests a second on a shard are not delayed, nor are clients that the delay would slow down.";
        accept_pauses, "tidegate_accept_pauses_total", "Times accepting stopped because descriptors or memory had run out, or connections_max was reached.";
        tls_handshakes, "tidegate_tls_handshakes_total", "TLS handshakes completed, whatever came of the connection then.";
        websockets, "tidegate_websockets_opened_total", "Connections that became WebSockets.";
        queue_resets, "tidegate_accept_queue_resets_total", "Connections reset in the kernel's accept queue at the end of a drain, as there was no room for them until then.";
        memory_trims, "tidegate_memory_trims_total", "Times free memory was given back to the kernel after a burst of long messages.";
        resumes, "tidegate_resumes_total", "Authentications that named rooms, with which the client came back.";
        refused_tickets, "tidegate_tickets_refused_total", "Rooms that a client named and did not get: its ticket did not hold, or it named too many rooms.";
        expired_user_pushes, "tidegate_user_pushes_expired_total", "Pushes to a user not written to a connection, since their time to live was over.";
        refused_for_memory, "tidegate_memory_refusals_total", "Requests refused with 104 because limits.memory_bytes_max was nearly reached.";
        refused_commands, "tidegate_commands_refused_total", "Pushes and other commands refused because commands_max or commands_bytes_max was reached.";
    }
    /// Counted by [`Clients`](super::clients::Clients).
    clients: ClientCounters {
        accepted, "tidegate_connections_accepted_total", "Connections accepted.";
        received_bytes, "tidegate_received_bytes_total", "Bytes received from clients.";
        discarded_bytes, "tidegate_discarded_bytes_total", "Bytes received and not read: they came after a connection's last frame, or waited when it was closed.";
        unsent_bytes, "tidegate_unsent_bytes_total", "Bytes never sent: what the kernel had not taken when a connection ended. With io_uring a short send counts as sent at once, and here too where it is cut.";
        received_frames, "tidegate_received_frames_total", "Frames received from clients.";
        receive_pauses, "tidegate_receive_pauses_total", "Times reading from a connection was paused because it had too many calls or unsent bytes.";
        heartbeats, "tidegate_heartbeats_total", "Heartbeats answered.";
        sessions, "tidegate_sessions_opened_total", "Authentications that opened a session.";
        answers, "tidegate_answers_total", "Calls whose success was written to the client.";
        orphan_answers, "tidegate_orphan_answers_total", "Answers discarded because the connection was closed, or was closed for too many unsent bytes.";
        oversize_answers, "tidegate_oversize_answers_total", "Answers longer than frame_to_client_bytes_max, failed with 101.";
        notices, "tidegate_notices_total", "Notices sent: a connection became a member of a room, or left one.";
        user_deliveries, "tidegate_user_pushes_delivered_total", "Pushes to a user, counted once for each connection that they were written to.";
        skipped_pushes_to_users, "tidegate_user_pushes_skipped_total", "Pushes to a user dropped because a connection was too slow for them: session.slow_pushes.";
        stale_pushes, "tidegate_user_pushes_stale_total", "Pushes to a user that found one of the user's connections gone.";
        sends, "tidegate_sends_total", "Sends completed.";
        sent_bytes, "tidegate_sent_bytes_total", "Bytes handed to the kernel.";
    }
    /// Counted by [`Calls`](super::calls::Calls).
    calls: CallCounters {
        calls, "tidegate_calls_total", "Requests handed to a backend.";
        late_answers, "tidegate_late_answers_total", "Answers discarded because the call had timed out.";
    }
    /// Counted by [`Users`](super::users::Users).
    users: UserCounters {
        pushes_to_users, "tidegate_user_pushes_total", "Pushes to a user.";
        replaced_elsewhere, "tidegate_users_replaced_elsewhere_total", "Sessions closed with 107 because their user logged in at another gateway later.";
    }
    /// Counted by [`Rooms`](super::rooms::Rooms).
    rooms: RoomCounters {
        pushes_to_rooms, "tidegate_room_pushes_total", "Pushes to a room, everybody's included.";
        room_deliveries, "tidegate_room_pushes_delivered_total", "Pushes to a room, counted once for each member that they were written or sent to.";
        revoked_tickets, "tidegate_tickets_revoked_total", "Times all tickets of a shard's rooms became worthless, because too many users were expelled.";
        skipped_pushes, "tidegate_room_pushes_skipped_total", "Pushes that a slow member of a room missed.";
        expired_pushes, "tidegate_room_pushes_expired_total", "Pushes to a room whose time to live was over before all members were offered them, counted by each shard with members.";
        merged_pushes, "tidegate_room_pushes_merged_total", "Pushes that a merge window put into one send with an earlier one, counted by each shard with members.";
        short_windows, "tidegate_merge_windows_ended_early_total", "Merge windows that ended early, or did not begin, because what waited was longer than log_bytes_max, or half of commands_max or commands_bytes_max was taken.";
        refused_rooms, "tidegate_rooms_refused_total", "Joins and pushes refused because rooms_per_shard_max or rooms_per_connection_max was reached.";
        displaced_rooms, "tidegate_rooms_displaced_total", "Rooms that had neither members nor a push, closed for another because rooms_per_shard_max was reached.";
        stale_commands, "tidegate_room_commands_stale_total", "Joins and leaves for a connection that was gone.";
    }
    /// Counted by [`Repeats`](super::repeats::Repeats).
    repeats: RepeatCounters {
        repeated_pushes, "tidegate_push_repeats_total", "Pushes with the key of an earlier one, answered as that one was.";
        refused_keys, "tidegate_push_keys_refused_total", "Pushes with a key refused because push_keys_bytes_max was reached.";
    }
}

/// Counts reloads of the configuration.
pub const RELOADS: &str = "tidegate_reloads_total";

/// How many of them have changed something.
pub const GENERATION: &str = "tidegate_config_generation";

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
    ("tidegate_push_keys", "shard", "Keys of pushes that are remembered."),
    (
        "tidegate_rebalance_remaining",
        "shard",
        "Clients that the shard has still to send to other gateways: see `tide cluster rebalance`.",
    ),
    (
        "tidegate_connections_opening",
        "shard",
        "Open connections whose PROXY header, TLS handshake or WebSocket upgrade is not complete.",
    ),
    (
        "tidegate_tls_handshakes_waiting",
        "shard",
        "Connections whose TLS handshake waits for its turn: see tls.handshakes_per_second_max.",
    ),
    (
        "tidegate_drain_phase",
        "shard",
        "How far the shard's drain has come: 0 it does not drain, 1 grace, 2 goodbyes, 3 answers.",
    ),
    (
        "tidegate_commands_in_flight",
        "",
        "Pushes and other commands under way, all shards together.",
    ),
    ("tidegate_connections_closed_total", "reason", "Connections closed, by reason."),
    (
        "tidegate_log_lines_dropped_total",
        "stream, reason",
        "Lines that never reached stderr (the log) or stdout: queue_full, as the reader is too slow, or write_failed, as the reader is gone or the disk is full.",
    ),
    ("tidegate_failures_total", "code", "Failures and goodbyes sent, by error code."),
    (
        "tidegate_auth_failures_total",
        "reason",
        "Tokens refused: malformed, signature, unknown_key, no_keys, expired, audience, wrong_user, unknown_token, redis_unavailable, too_many_verifications.",
    ),
    (
        auth::REFRESHES,
        "outcome",
        "Reads of the key set (auth.jwks_file, auth.jwks_url): ok, or failed, as it was not there or held no usable key; then the last good set stays.",
    ),
    (auth::KEYS, "", "Keys of the key set that tokens are verified with."),
    (auth::SKIPPED_KEYS, "", "Keys of the key set that can't be used: the log says which and why."),
    (
        auth::REFRESH_TIME,
        "",
        "When the key set was last read, in seconds since 1970; 0: never. time() less this is its age.",
    ),
    auth::signatures::METRICS[0],
    auth::signatures::METRICS[1],
    auth::signatures::METRICS[2],
    memory::METRICS[0],
    memory::METRICS[1],
    (sessions::REFUSED.0, "", sessions::REFUSED.1),
    (addresses::METRICS[0].0, "", addresses::METRICS[0].1),
    (addresses::METRICS[1].0, "", addresses::METRICS[1].1),
    (addresses::METRICS[2].0, "", addresses::METRICS[2].1),
    (addresses::METRICS[3].0, "", addresses::METRICS[3].1),
    (addresses::METRICS[4].0, "", addresses::METRICS[4].1),
    (durations::NAME, "backend, le", durations::HELP),
    (queue_metrics::QUEUED_CALLS.0, "backend", queue_metrics::QUEUED_CALLS.1),
    (queue_metrics::QUEUED_BYTES.0, "backend", queue_metrics::QUEUED_BYTES.1),
    (queue_metrics::EXPIRED_CALLS.0, "backend", queue_metrics::EXPIRED_CALLS.1),
    (queue_metrics::SHEDDING.0, "backend", queue_metrics::SHEDDING.1),
    (queue_metrics::QUEUE_WAIT.0, "backend, le", queue_metrics::QUEUE_WAIT.1),
    (refusals::REFUSED_CALLS.0, "backend, reason", refusals::REFUSED_CALLS.1),
    (refusals::CIRCUIT_OPEN.0, "backend", refusals::CIRCUIT_OPEN.1),
    (refusals::CIRCUIT_OPENINGS.0, "backend", refusals::CIRCUIT_OPENINGS.1),
    (offset_file::WRITE_ERRORS, "", "Times that rooms.offset_file could not be written."),
    ("tidegate_unresponsive_shards", "", "Shards that have not answered for 5 s."),
    ("tidegate_build_info", "version", "Always 1; the label is the version of the gateway."),
    ("tidegate_connections_max", "", "Connections that the gateway accepts at most."),
    ("process_start_time_seconds", "", "When the gateway started, in seconds since 1970."),
    (RESIDENT_MEMORY.0, "", RESIDENT_MEMORY.1),
    (
        "tidegate_operator_connections_closed_total",
        "reason",
        "Operators' connections that the gateway closed, by reason.",
    ),
    (
        RELOADS,
        "result",
        "Reloads of the configuration, by result: applied, unchanged or refused. See `tide reload`.",
    ),
    (GENERATION, "", "Reloads that have changed something since the start."),
    (
        "tidegate_operator_tokens_refused_total",
        "reason",
        "Operators' requests refused for their token: no_token, wrong_token.",
    ),
];

/// The current values of a shard's gauges.
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
    pub push_keys: usize,
    pub rebalance_remaining: usize,
    pub opening: usize,
    pub waiting_handshakes: usize,
    pub drain_phase: usize,
}

impl Levels {
    /// What an operator sees of a shard.
    #[must_use]
    pub const fn shard_info(&self, shard: u16, mechanism: Mechanism) -> ShardInfo {
        ShardInfo {
            shard,
            driver: mechanism.name,
            rings: mechanism.rings as u64,
            connections: self.connections as u64,
            sessions: self.sessions as u64,
            users: self.users as u64,
            rooms: self.rooms as u64,
            memberships: self.memberships as u64,
            calls_in_flight: self.calls_in_flight as u64,
            outbox_bytes: self.outbox_bytes as u64,
            drain: None,
        }
    }
}

/// A shard's handles in the registry.
#[derive(Debug)]
pub struct Exporter {
    counters: Counters,
    closed: [Counter; Cause::COUNT],
    failures: [Counter; Code::ALL.len()],
    refused_tokens: [Counter; AuthError::COUNT],
    gauges: [Gauge; 12],
    commands_in_flight: Gauge,
    exported: Stats,
}

impl Exporter {
    /// Registers a shard's metrics.
    #[must_use]
    pub fn new(shard: u16) -> Self {
        let shard = shard.to_string();
        let level = |name: &'static str| gauge!(name, "shard" => shard.clone());
        Self {
            counters: Counters::new(),
            closed: Cause::ALL.map(
                |cause| counter!("tidegate_connections_closed_total", "reason" => cause.label()),
            ),
            failures: Code::ALL.map(
                |code| counter!("tidegate_failures_total", "code" => code.number().to_string()),
            ),
            refused_tokens: AuthError::ALL
                .map(|error| counter!("tidegate_auth_failures_total", "reason" => error.label())),
            gauges: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
                .map(|index: usize| level(OTHERS[index].0)),
            commands_in_flight: gauge!("tidegate_commands_in_flight"),
            exported: Stats::default(),
        }
    }

    /// Hands over what has changed.
    pub fn export(&mut self, stats: &Stats, levels: Levels, commands_in_flight: usize) {
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
        let Levels { calls_in_flight, outbox_bytes, push_keys, rebalance_remaining, .. } = levels;
        let Levels { opening, waiting_handshakes, drain_phase, .. } = levels;
        let levels = [
            connections,
            sessions,
            users,
            rooms,
            memberships,
            calls_in_flight,
            outbox_bytes,
            push_keys,
            rebalance_remaining,
            opening,
            waiting_handshakes,
            drain_phase,
        ];
        let gauges = self.gauges.iter().zip(levels);
        for (gauge, level) in gauges.chain([(&self.commands_in_flight, commands_in_flight)]) {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            gauge.set(level as f64);
        }
        self.exported.clone_from(stats);
    }
}

/// Gives the registry the help texts. Call once.
pub fn describe() {
    Counters::describe();
    let apart = || auth::signatures::METRICS.iter().chain(&memory::METRICS);
    let own = |name| apart().any(|(other, ..)| *other == name);
    for &(name, labels, help) in OTHERS.iter().filter(|(name, ..)| !own(*name)) {
        match labels {
            "shard" | "version" | "" if !name.ends_with("_total") => describe_gauge!(name, help),
            // What is not in the registry has its help text where it is written.
            "backend" | "backend, le" => {}
            _ => describe_counter!(name, help),
        }
    }
    // It is shown before the first error.
    counter!(offset_file::WRITE_ERRORS).increment(0);
    counter!(sessions::REFUSED.0).increment(0);
    memory::describe();
}
