//! The rooms whose home is this shard: how they open, and when they close.

use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::{PushError, RoomId};

use super::expulsions::Expulsions;
use super::log::{Log, LogId, LogIds, LogName};
use super::subscribers::{Role, Subscribers};
use super::table::{EVERYBODY, RoomIndex, Table};
use crate::config::RoomsConfig;
use crate::shard::clock::millis;

/// Entries of the table that one housekeeping checks for idle rooms, at most.
const IDLE_CHECKS_MAX: usize = 4096;

/// What the rooms of a shard are configured to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This shard's number.
    pub shard: u16,
    /// How many shards there are.
    pub shards: u16,
    /// The lowest offset that a room may begin with.
    pub first_offset: u64,
    /// What the logs' ids are drawn with: a number that differs from run to run.
    pub log_key: u64,
    /// Gateways share the rooms' logs.
    pub is_shared: bool,
    /// Policies and limits.
    pub rooms: RoomsConfig,
}

/// How rooms open and close at their home.
#[derive(Debug)]
pub struct Homes {
    rooms_max: usize,
    idle_ttl_ms: u64,
    /// The lowest offset of a room that opens when the shard's clock starts.
    first_offset: u64,
    /// Above every offset of a room that was closed here.
    above_closed: u64,
    log_ids: LogIds,
    /// Whose tickets are worthless.
    pub expulsions: Expulsions,
    /// The shards of the gateway, and this one: a room's number is unique among all.
    shards: u16,
    shard: u16,
    /// The entry with which the search for idle rooms continues.
    idle_next: usize,
    /// The limit on log lines of rooms that could not be opened.
    refusals: LogLimit,
}

impl Homes {
    /// No room was closed yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let &Settings { ref rooms, first_offset, log_key, shard, shards, .. } = settings;
        let ticket_ttl_s = u32::try_from(rooms.ticket_ttl.as_secs()).unwrap_or(u32::MAX);
        Self {
            rooms_max: rooms.rooms_per_shard_max,
            idle_ttl_ms: millis(rooms.idle_ttl),
            first_offset,
            above_closed: first_offset,
            log_ids: LogIds::new(log_key, shard),
            expulsions: Expulsions::new(ticket_ttl_s),
            shards,
            shard,
            idle_next: 0,
            refusals: LogLimit::new(),
        }
    }

    /// Uses another configuration from now on.
    pub fn reconfigure(&mut self, rooms: &RoomsConfig) {
        self.rooms_max = rooms.rooms_per_shard_max;
        self.idle_ttl_ms = millis(rooms.idle_ttl);
    }

    /// Opens a room that is not open.
    ///
    /// # Errors
    /// [`PushError::RoomsFull`].
    pub fn open(
        &mut self,
        table: &mut Table,
        config: &RoomsConfig,
        room: &RoomId,
        now_ms: u64,
    ) -> Result<RoomIndex, PushError> {
        self.check_bound(table, 0, now_ms)?;
        let policy = config.policy_of(room.as_str());
        // By the monotonic clock, since the wall clock may be set back. A room gets less than one push a
        // microsecond, so this is above every offset that it had before.
        let elapsed_us = now_ms.saturating_mul(1_000);
        let first = self.above_closed.max(self.first_offset.saturating_add(elapsed_us));
        let name = self.draw_name(table.next_index());
        let log = Log::new(name, first, policy.log_bytes_max);
        let role = Role::Home { subscribers: Subscribers::default() };
        Ok(table.open(room.clone(), policy, log, role, now_ms))
    }

    /// Whether one more room may open. `fetched`: rooms that will open when their logs have arrived.
    ///
    /// # Errors
    /// [`PushError::RoomsFull`].
    pub fn check_bound(&self, table: &Table, fetched: usize, now_ms: u64) -> Result<(), PushError> {
        let rooms_max = self.rooms_max;
        if table.homes() + fetched < rooms_max {
            return Ok(());
        }
        if let Some(suppressed) = self.refusals.allow_at(now_ms) {
            tracing::warn!(
                rooms_max,
                suppressed,
                "refused to open a room: as many are open on this shard as rooms.rooms_per_shard_max allows"
            );
        }
        Err(PushError::RoomsFull { rooms_max })
    }

    /// The name of the log of a room at this index, with the id that gateways share; without one, a fresh id.
    pub fn name_shared(&mut self, index: RoomIndex, id: Option<LogId>) -> LogName {
        let name = self.draw_name(index);
        LogName { id: id.unwrap_or(name.id), ..name }
    }

    /// The name of the log of a room that opens at this index. The rooms of all shards have different numbers,
    /// and they are small, since they are in each push. The number of a closed room is given again: no
    /// connection is a member of it, and former members were notified that they have left.
    fn draw_name(&mut self, index: RoomIndex) -> LogName {
        let number = index.number() * u32::from(self.shards) + u32::from(self.shard) + 1;
        LogName { id: self.log_ids.draw(), number }
    }

    /// How long a room without members stays open.
    #[must_use]
    pub const fn idle_ttl_ms(&self) -> u64 {
        self.idle_ttl_ms
    }

    /// Closes rooms that have no members and, since `idle_since_ms`, had no push. Frees merged chunks that no member needs.
    /// Returns the bytes of the rooms that were closed, and adds their ids to `closed`.
    pub fn close_idle(
        &mut self,
        table: &mut Table,
        idle_since_ms: Option<u64>,
        closed: &mut Vec<RoomId>,
    ) -> usize {
        let mut freed_bytes = 0;
        let entries = table.entries();
        for _ in 0..IDLE_CHECKS_MAX.min(entries) {
            self.idle_next = (self.idle_next + 1) % entries;
            let Some((index, room)) = table.at(self.idle_next) else { continue };
            if !room.round.is_queued {
                // A member that resumed may have left a merged chunk.
                room.log.forget_merged();
            }
            let is_idle = idle_since_ms.is_some_and(|since_ms| room.active_at_ms <= since_ms);
            if index != EVERYBODY && is_idle && room.is_empty_home() {
                freed_bytes += self.close(table, index, closed);
            }
        }
        freed_bytes
    }

    /// If as many rooms are open as may be, closes an unused one, which has no members and never had a push. The one that was
    /// used for the shortest time goes first: rooms that a client joins and leaves at once take no places, and a room whose
    /// members have lost their connections keeps its log meanwhile. Returns the bytes of the room.
    pub fn close_unused(
        &mut self,
        table: &mut Table,
        fetched: usize,
        closed: &mut Vec<RoomId>,
    ) -> Option<usize> {
        if table.homes() + fetched < self.rooms_max {
            return None;
        }
        let index = table.briefest_unused()?;
        Some(self.close(table, index, closed))
    }

    fn close(&mut self, table: &mut Table, index: RoomIndex, closed: &mut Vec<RoomId>) -> usize {
        self.above_closed = self.above_closed.max(table.get(index).log.end());
        let Some(room) = table.close(index) else { return 0 };
        let bytes = room.memory_bytes();
        closed.push(room.id);
        bytes
    }
}
