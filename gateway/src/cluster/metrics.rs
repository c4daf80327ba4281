//! The figures of the thread that speaks with Redis.

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::links::Concern;
use super::publishing::Publishing;
use super::rooms::{Counters, Rooms};
use super::tokens::{self, Tokens};
use super::users::Users;

/// Counters: name and help text. The table in the README is held to it.
pub const COUNTERS: &[(&str, &str)] = &[
    ("tidegate_redis_connects_total", "Connections to Redis that were made"),
    ("tidegate_redis_commands_total", "Commands sent to Redis"),
    ("tidegate_redis_errors_total", "Commands that Redis did not carry out"),
    (
        "tidegate_redis_messages_unreadable_total",
        "Messages of Redis' channels, and shared bans, that can't be read",
    ),
    ("tidegate_shared_pushes_total", "Pushes that came from the logs that gateways share"),
    ("tidegate_shared_pushes_repeated_total", "Such pushes that came again and were ignored"),
    (
        "tidegate_shared_pushes_dropped_total",
        "Fleeting pushes dropped because too many are under way",
    ),
    (
        "tidegate_shared_pushes_lost_total",
        "Pushes that Redis no longer held when they were fetched",
    ),
    ("tidegate_shared_log_holes_total", "Times that pushes were missing and were fetched"),
    ("tidegate_shared_logs_renamed_total", "Times that a shared log had another id than before"),
    (
        "tidegate_rooms_opened_alone_total",
        "Rooms that opened without their shared log, since Redis did not answer",
    ),
    ("tidegate_presence_updates_total", "Changes of users' presence that were reported to Redis"),
    (
        "tidegate_presence_asserted_total",
        "Of these, repeated reports of connected users, since Redis may have lost the entry or a message was missed",
    ),
    (
        "tidegate_user_commands_elsewhere_total",
        "Pushes to users, kicks and expulsions that Redis took for the sessions at other gateways",
    ),
    (
        "tidegate_user_commands_heard_total",
        "Of these, counted once for each other gateway that has the user and received it",
    ),
    (
        "tidegate_user_messages_total",
        "Pushes to users, kicks and expulsions that came through Redis",
    ),
    (
        "tidegate_user_messages_dropped_total",
        "Such messages dropped because too many are under way, or the push is too long",
    ),
    (
        "tidegate_user_messages_expired_total",
        "Pushes to users that came through Redis after their time to live",
    ),
    ("tidegate_user_messages_astray_total", "Such messages for users who have no session here"),
    ("tidegate_offline_events_total", "Events for backends that a user went offline"),
    (
        "tidegate_presence_swept_total",
        "Sessions of gateways that have died, removed from Redis by this gateway",
    ),
    ("tidegate_token_lookups_total", "Tokens of logins that were looked up in Redis."),
    (
        "tidegate_token_lookups_unavailable_total",
        "Of these, those that Redis did not answer in time: answered with 104.",
    ),
    ("tidegate_token_revocations_total", "Revocations of tokens that came from Redis."),
    ("tidegate_token_checks_total", "Tokens of sessions that were looked up again."),
    (
        "tidegate_token_checks_gone_total",
        "Of these, those that Redis no longer held: their sessions were ended with 110.",
    ),
];

/// Gauges: name and help text.
pub const GAUGES: &[(&str, &str)] = &[
    ("tidegate_redis_up", "Whether there is a connection to the Redis of pushes to rooms"),
    ("tidegate_shared_rooms", "Rooms whose shared logs this gateway follows"),
    ("tidegate_shared_rooms_behind", "Of these, rooms whose logs are being fetched"),
    ("tidegate_shared_pushes_waiting", "Pushes to rooms that wait for Redis"),
    ("tidegate_presence_up", "Whether there is a connection to the Redis of presence"),
    ("tidegate_presence_waiting", "Users whose presence is on its way to Redis"),
    (
        "tidegate_presence_departed",
        "Users who left this gateway and whose departure Redis has not confirmed",
    ),
    ("tidegate_user_commands_waiting", "Pushes to users, kicks and expulsions that wait for Redis"),
    ("tidegate_cluster_users", "Users with a session at any gateway, as last counted"),
    ("tidegate_redis_tokens_up", "Whether there is a connection to the Redis of tokens."),
    (
        "tidegate_token_partitions_heard",
        "Partitions of tokens whose revocations are received, of 128.",
    ),
    ("tidegate_token_lookups_waiting", "Tokens of logins that wait for Redis."),
];

/// Gauges of the registry: name and help text.
pub const REGISTRY: &[(&str, &str)] = &[
    (
        "tidegate_gateways_alive",
        "Gateways that were alive when the registry was last read, this one included",
    ),
    ("tidegate_gateways_gone", "Gateways that were gone then, and have been for less than an hour"),
    ("tidegate_redis_requests_in_flight", "Commands that wait for Redis' answer"),
];

/// Hands the figures of the registry to the metrics' registry.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn export_registry(alive: usize, gone: usize, requests: usize) {
    for ((name, _), level) in REGISTRY.iter().zip([alive, gone, requests]) {
        gauge!(*name).set(level as f64);
    }
}

/// Declares the metrics.
pub fn describe() {
    REGISTRY.iter().for_each(|&(name, help)| describe_gauge!(name, help));
    COUNTERS.iter().for_each(|&(name, help)| describe_counter!(name, help));
    GAUGES.iter().for_each(|&(name, help)| describe_gauge!(name, help));
}

/// What the thread counts directly, and its export to the registry.
#[derive(Debug, Default)]
pub struct Exporter {
    /// Connections that were made.
    pub connects: u64,
    /// Commands that were sent.
    pub commands: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Messages of channels that can't be read.
    pub unreadable: u64,
}

impl Exporter {
    /// Hands the figures to the registry.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn export(
        &self,
        [pushes_up, presence_up, tokens_up]: [bool; Concern::ALL.len()],
        rooms: &Rooms,
        publishing: &Publishing,
        users: &Users,
        tokens: &Tokens,
    ) {
        let Counters { pushes, repeated, holes, new_logs, lost, dropped, opened_alone } =
            rooms.counters();
        let Self { connects, commands, errors, unreadable } = self;
        let (presence, sending) = (users.presence().counters(), users.sending().counters());
        let (chores, messages) = (users.chores().counters(), users.counters());
        let tokens::Counters { lookups, unavailable, revocations, checks, gone } =
            tokens.counters();
        let values = [
            *connects,
            *commands,
            *errors,
            *unreadable,
            pushes,
            repeated,
            dropped,
            lost,
            holes,
            new_logs,
            opened_alone,
            presence.updates,
            presence.asserted,
            sending.commands,
            sending.heard,
            messages.received,
            messages.dropped,
            messages.expired,
            messages.astray,
            chores.offline_events,
            chores.swept,
            lookups,
            unavailable,
            revocations,
            checks,
            gone,
        ];
        for ((name, _), value) in COUNTERS.iter().zip(values) {
            counter!(*name).absolute(value);
        }
        let levels = [
            f64::from(u8::from(pushes_up)),
            rooms.len() as f64,
            rooms.behind() as f64,
            publishing.len() as f64,
            f64::from(u8::from(presence_up)),
            users.presence().waiting() as f64,
            users.presence().departed() as f64,
            users.sending().waiting() as f64,
            users.chores().users() as f64,
            f64::from(u8::from(tokens_up)),
            tokens.heard_partitions() as f64,
            tokens.waiting() as f64,
        ];
        for ((name, _), level) in GAUGES.iter().zip(levels) {
            gauge!(*name).set(level);
        }
    }
}
