//! The rooms' part of typed -> checked: the default policy, and the policies by prefix.

use tidegate_protocol::limits::ROOM_ID_BYTES_MAX;

use super::check::{DAY_MS, GIB};
use super::checked::{Rejoin, RoomClass, RoomPolicy, RoomsConfig, SlowMember};
use super::typed;
use super::values::{Checked, Checker, quoted};

/// The longest merge window, in milliseconds: a push that waits longer is no longer live.
const MERGE_WINDOW_MS_MAX: i64 = 10_000;

/// The most pushes that are replayed on a join: more than an app shows at once.
const REPLAY_MAX: i64 = 10_000;

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
