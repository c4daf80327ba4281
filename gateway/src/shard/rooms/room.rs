//! One room, as one shard sees it: its log, its list of members, and the round that serves them.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use tidegate_backend::RoomId;

use super::log::Log;
use super::subscribers::Role;
use crate::config::RoomPolicy;
use crate::control::RoomInfo;
use crate::shard::command::CommandPermit;

/// Identifies a membership of a room other than everybody's. Never zero, so that an `Option` of it takes 4 bytes.
pub type MembershipId = NonZeroU32;

/// One room, as one shard sees it.
#[derive(Debug)]
pub struct Room {
    /// Its id.
    pub id: RoomId,
    /// How it treats its members.
    pub policy: RoomPolicy,
    /// Its pushes.
    pub log: Log,
    /// How many members it has on this shard.
    pub member_count: usize,
    /// The members; none for everybody's room. members.len() == member_count otherwise.
    members: Vec<MembershipId>,
    /// The round that is under way, or the last one.
    pub round: Round,
    /// When the open merge window ends, on the shard's clock. A room without members has no window.
    pub window_ends_ms: Option<u64>,
    /// When the next push's time to live is over, as the table has noted it.
    pub expiry_ms: Option<u64>,
    /// Permits of the pushes that were not offered to every member yet, by offset. They hold the pushes under
    /// way, so the bound on commands bounds what the log holds beyond its own bound.
    pub permits: VecDeque<(u64, Arc<CommandPermit>)>,
    /// Whether this shard is the home.
    pub role: Role,
    /// When it was opened, on the shard's clock.
    pub opened_at_ms: u64,
    /// When a push came or a member left last, on the shard's clock. opened_at_ms <= active_at_ms
    pub active_at_ms: u64,
    /// Bytes of its log, as the table has counted them.
    pub counted_bytes: usize,
    /// If it has no members and never had a push: for how long it was used before, and since when it is not, as the table
    /// has noted it. At its home alone.
    pub unused: Option<(u64, u64)>,
    /// Members are being notified that the log has another id. Pushes wait until all were.
    pub is_being_renamed: bool,
}

/// A round of the fan-out: it serves each member of a room once. Pushes that are released meanwhile are for the
/// next round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// The room is in the queue of the fan-out.
    pub is_queued: bool,
    /// The offset behind the pushes that this round offers: what the log had released when it began.
    pub end: u64,
    /// Every member was offered the pushes before this offset.
    pub offered: u64,
    /// The next member to serve: its index, or its slot in everybody's room.
    pub next_member: usize,
    /// Members that this round still has to serve, at most. 0: the round is over. members_left <= member_count
    pub members_left: usize,
}

impl Room {
    /// A room without members.
    #[must_use]
    pub fn new(id: RoomId, policy: RoomPolicy, log: Log, role: Role, now_ms: u64) -> Self {
        Self {
            id,
            policy,
            log,
            member_count: 0,
            members: Vec::new(),
            round: Round::default(),
            window_ends_ms: None,
            expiry_ms: None,
            permits: VecDeque::new(),
            role,
            opened_at_ms: now_ms,
            active_at_ms: now_ms,
            counted_bytes: 0,
            unused: None,
            is_being_renamed: false,
        }
    }

    /// Starts a round: every member is to be offered what the log has released.
    pub fn start_round(&mut self) {
        self.round.members_left = self.member_count;
        if self.members.is_empty() {
            // Everybody's room: the first slot.
            self.round.next_member = 0;
        }
        self.round.end = self.log.released();
    }

    /// The next member in the list that the round serves. members_left > 0
    #[inline]
    pub fn next_in_round(&mut self) -> MembershipId {
        self.round.members_left -= 1;
        let id = self.members[self.round.next_member];
        self.round.next_member = (self.round.next_member + 1) % self.members.len();
        id
    }

    /// The member at a position of the list.
    #[must_use]
    pub fn member_at(&self, position: usize) -> Option<MembershipId> {
        self.members.get(position).copied()
    }

    /// Puts another log into the place of the room's. What the round, and the permits, know of pushes that the new log
    /// does not hold is forgotten.
    pub fn replace_log(&mut self, log: Log) {
        let end = log.end();
        self.log = log;
        self.permits.retain(|&(offset, _)| offset < end);
        self.round.end = self.round.end.min(end);
        self.round.offered = self.round.offered.min(end);
    }

    /// Adds a member to the list. Returns its position.
    pub fn add_member(&mut self, id: MembershipId) -> u32 {
        let position = u32::try_from(self.members.len()).expect("fewer members than 2^32");
        self.members.push(id);
        if self.round.members_left > 0 {
            self.round.members_left = (self.round.members_left + 1).min(self.members.len());
        }
        position
    }

    /// Removes the member at a position of the list. Returns the member that moved to that position, if one did.
    pub fn remove_member(&mut self, position: u32) -> Option<MembershipId> {
        self.members.swap_remove(position as usize);
        let count = self.members.len();
        self.round.members_left = self.round.members_left.min(count);
        if self.round.next_member >= count {
            self.round.next_member = 0;
        }
        self.members.get(position as usize).copied()
    }

    /// Memory that it takes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.log.bytes()
    }

    /// What an operator sees of it on this shard.
    #[must_use]
    pub fn info(&self) -> RoomInfo {
        RoomInfo {
            room: self.id.to_string(),
            members: self.member_count as u64,
            last_offset: self.log.end() - 1,
            first_offset: self.log.first(),
            log_bytes: self.log.bytes() as u64,
        }
    }

    /// Whether this shard is its home, and no shard has members.
    #[must_use]
    pub fn is_empty_home(&self) -> bool {
        match &self.role {
            Role::Home { subscribers } => self.member_count == 0 && subscribers.is_empty(),
            Role::Replica { .. } => false,
        }
    }

    /// Whether it counts against `rooms_per_shard_max`.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        matches!(self.role, Role::Home { .. }) && !self.id.is_everybody()
    }
}
