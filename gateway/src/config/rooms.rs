//! Rooms: the default policy and the policies by prefix, and their part of typed -> checked.

use std::path::PathBuf;
use std::time::Duration;

use tidegate_protocol::limits::ROOM_ID_BYTES_MAX;

use super::check::{DAY_MS, GIB};
use super::typed;
use super::values::{Checked, Checker, quoted};

/// The longest merge window, in milliseconds: a push that waits longer is no longer live.
const MERGE_WINDOW_MS_MAX: i64 = 10_000;

/// The most pushes that are replayed on a join: more than an app shows at once.
const REPLAY_MAX: i64 = 10_000;

/// Rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomsConfig {
    /// For rooms without a policy of their own.
    pub default_policy: RoomPolicy,
    /// By prefix of the room's id, longest first: the first that matches applies. `*` is the room of everybody.
    pub policies: Vec<(String, RoomPolicy)>,
    /// How long a room with no members keeps its log after its last push.
    pub idle_ttl: Duration,
    /// Rooms at most, on each shard. More: joins and pushes to a new room are refused and counted.
    pub rooms_per_shard_max: usize,
    /// Rooms of one connection, without the room of everybody. More: the join is refused and counted.
    pub rooms_per_connection_max: usize,
    /// Joins of one session in a second; `None`: there is no limit. More: the join is refused and counted.
    pub joins_per_second_max: Option<u32>,
    /// How many of them at once.
    pub joins_burst_max: u32,
    /// The file that keeps a restart from giving offsets again; `None`: there is none.
    pub offset_file: Option<PathBuf>,
    /// How long a ticket is valid after it was made.
    pub ticket_ttl: Duration,
    /// The file with the key of tickets, which is made where it is missing.
    pub ticket_key_file: PathBuf,
}

/// The policy of one room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomPolicy {
    /// Bytes of pushes that the log keeps. The oldest are dropped first; the newest is always kept.
    pub log_bytes_max: usize,
    /// What happens to a member whose cursor is behind the start of the log.
    pub slow_member: SlowMember,
    /// How long a push waits for others, to be sent together. Zero: it does not wait.
    pub merge_window: Duration,
    /// The first and the last type of pushes that end a window: they are sent at once, with the pushes that wait.
    pub urgent_types: Option<(i32, i32)>,
    /// How many of the last pushes a member gets that joins without a position.
    pub replay_on_join: u64,
    /// What lets a client that reconnects into the room again.
    pub rejoin: Rejoin,
    /// Whether Redis keeps its pushes, where gateways share rooms.
    pub class: RoomClass,
}

impl RoomsConfig {
    /// The policy of a room by its id, which is `*` for the room of everybody.
    #[must_use]
    pub fn policy_of(&self, room: &str) -> RoomPolicy {
        let applies = |prefix: &str| match prefix {
            "*" => room == "*",
            _ => room.starts_with(prefix),
        };
        let policy = self.policies.iter().find(|(prefix, _)| applies(prefix));
        policy.map_or(self.default_policy, |(_, policy)| *policy)
    }
}

impl RoomPolicy {
    /// Whether Redis does not keep its pushes, where gateways share rooms.
    #[must_use]
    pub fn is_fleeting(&self) -> bool {
        self.class == RoomClass::Fleeting
    }

    /// Whether a push of this type is sent at once.
    #[must_use]
    pub fn is_urgent(&self, kind: i32) -> bool {
        self.urgent_types.is_some_and(|(first, last)| (first..=last).contains(&kind))
    }
}

/// What happens to a member whose cursor is behind the start of its room's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowMember {
    /// Its cursor moves to the oldest push that is left. The client sees the gap in `offset`.
    Skip,
    /// Its connection is closed.
    Close,
    /// Each send to a member, slow or not, has the newest push alone: what it waited for longer is skipped. The client
    /// sees the gap in `offset`.
    Latest,
}

impl SlowMember {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Close => "close",
            Self::Latest => "latest",
        }
    }
}

/// Whether Redis keeps a room's pushes, where gateways share rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomClass {
    /// In a stream: a client that resumes at another gateway misses nothing.
    Durable,
    /// Nowhere: a client that is not connected misses it. It costs Redis the least.
    Fleeting,
}

impl RoomClass {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Fleeting => "fleeting",
        }
    }
}

/// What lets a client that reconnects into a room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// Its ticket does, and no backend is asked.
    Ticket,
    /// Only a backend: members get no ticket.
    Backend,
}

impl Rejoin {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Backend => "backend",
        }
    }
}

impl Checker<'_> {
    pub(super) fn rooms(
        &self,
        rooms: &typed::Rooms,
        policies: &[typed::RoomPolicy],
    ) -> Checked<RoomsConfig> {
        let default_policy = self.policy("rooms", rooms, &typed::RoomPolicy::default())?;
        let mut checked: Vec<(String, RoomPolicy)> = Vec::with_capacity(policies.len());
        for (index, policy) in policies.iter().enumerate() {
            let (at, prefix) = (format!("room_policies[{index}]"), &policy.prefix);
            let reason = if prefix.is_empty() {
                "this is missing, or empty: what holds for all other rooms is set in [rooms]"
            } else if prefix.len() > ROOM_ID_BYTES_MAX {
                "no room's id is this long: at most 128 bytes"
            } else if checked.iter().any(|(other, _)| other == prefix) {
                "another policy has the same prefix: remove one"
            } else {
                checked.push((prefix.clone(), self.policy(&at, rooms, policy)?));
                continue;
            };
            return Err(self.refuse(&format!("{at}.prefix"), quoted(prefix), reason));
        }
        checked.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(RoomsConfig {
            default_policy,
            policies: checked,
            idle_ttl: self.millis("rooms.idle_ttl_ms", rooms.idle_ttl_ms, 0..=30 * DAY_MS)?,
            rooms_per_shard_max: self.number(
                "rooms.rooms_per_shard_max",
                rooms.rooms_per_shard_max,
                1..=10_000_000,
            )?,
            rooms_per_connection_max: self.number(
                "rooms.rooms_per_connection_max",
                rooms.rooms_per_connection_max,
                1..=10_000,
            )?,
            joins_per_second_max: Some(self.number(
                "rooms.joins_per_second_max",
                rooms.joins_per_second_max,
                0..=1_000_000,
            )?)
            .filter(|&limit| limit > 0),
            joins_burst_max: self.joins_burst_max(rooms)?,
            offset_file: (!rooms.offset_file.is_empty()).then(|| (&rooms.offset_file).into()),
            ticket_ttl: self.millis(
                "rooms.ticket_ttl_ms",
                rooms.ticket_ttl_ms,
                1_000..=30 * DAY_MS,
            )?,
            ticket_key_file: self.path("rooms.ticket_key_file", &rooms.ticket_key_file)?,
        })
    }

    /// A backend may join a session to all of its rooms at once, as at a login.
    fn joins_burst_max(&self, rooms: &typed::Rooms) -> Checked<u32> {
        let (key, typed) = ("rooms.joins_burst_max", rooms.joins_burst_max);
        let burst = self.number(key, typed, 1..=1_000_000)?;
        if rooms.joins_per_second_max > 0 && typed < rooms.rooms_per_connection_max {
            let reason = format!(
                "this must be at least rooms.rooms_per_connection_max ({}), or a session could not join all of its rooms at once",
                rooms.rooms_per_connection_max
            );
            return Err(self.refuse(key, burst, reason));
        }
        Ok(burst)
    }

    /// The policy that is typed at `at`. What it leaves out is as for all rooms.
    fn policy(
        &self,
        at: &str,
        rooms: &typed::Rooms,
        policy: &typed::RoomPolicy,
    ) -> Checked<RoomPolicy> {
        let key = |key| format!("{at}.{key}");
        let log_bytes_max = policy.log_bytes_max.unwrap_or(rooms.log_bytes_max);
        let slow_member = policy.slow_member.as_ref().unwrap_or(&rooms.slow_member);
        let slow_members = [SlowMember::Skip, SlowMember::Close, SlowMember::Latest]
            .map(|kind| (kind.name(), kind));
        let rejoin = policy.rejoin.as_ref().unwrap_or(&rooms.rejoin);
        let rejoins = [Rejoin::Ticket, Rejoin::Backend].map(|kind| (kind.name(), kind));
        let class = policy.class.as_ref().unwrap_or(&rooms.class);
        let classes = [RoomClass::Durable, RoomClass::Fleeting].map(|kind| (kind.name(), kind));
        let merge_window_ms = policy.merge_window_ms.unwrap_or(rooms.merge_window_ms);
        let urgent_types = policy.urgent_types.as_ref().unwrap_or(&rooms.urgent_types);
        Ok(RoomPolicy {
            log_bytes_max: self.number(&key("log_bytes_max"), log_bytes_max, 0..=GIB)?,
            slow_member: self.choice(&key("slow_member"), slow_member, &slow_members)?,
            merge_window: self.millis(
                &key("merge_window_ms"),
                merge_window_ms,
                0..=MERGE_WINDOW_MS_MAX,
            )?,
            urgent_types: match urgent_types.as_slice() {
                [] => None,
                types => Some(self.types(&key("urgent_types"), types)?),
            },
            replay_on_join: self.number(
                &key("replay_on_join"),
                policy.replay_on_join.unwrap_or(rooms.replay_on_join),
                0..=REPLAY_MAX,
            )?,
            rejoin: self.choice(&key("rejoin"), rejoin, &rejoins)?,
            class: self.choice(&key("class"), class, &classes)?,
        })
    }
}
