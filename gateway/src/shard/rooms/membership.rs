//! Memberships: how a connection joins and leaves a room, through the room's home, and what its client is sent about it.

use tidegate_backend::{PushError, RoomId};
use tidegate_protocol::proto::v1::Recovery;

use super::log::{After, Log};
use super::message::{AskedBy, Asker, ConnState, Joined, RoomEffect, RoomMessage};
use super::room::Room;
use super::subscribers::{Role, home};
use super::table::{EVERYBODY, Member, RoomIndex};
use super::{Rooms, Settings, reader};
use crate::config::SlowMember;
use crate::driver::ConnId;
use crate::session_id::SessionAddr;
use crate::shard::command::CommandPermit;

impl Rooms {
    /// At a room's home: a connection becomes a member.
    pub(super) fn join(
        &mut self,
        room: RoomId,
        addr: SessionAddr,
        (after, ticket_s): (After, u32),
        asker: Asker,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let (shard, conn) = (addr.shard(), addr.conn());
        let is_allowed = match asker {
            Asker::Backend(_) => true,
            Asker::Client { user_id, ticket_made_s } => {
                self.homes.expulsions.allow(&room, user_id, ticket_made_s)
            }
        };
        let opened = if is_allowed { self.find_or_open(&room, now_ms).map(Some) } else { Ok(None) };
        let index = match opened {
            Ok(Some(index)) => index,
            refused => {
                refused.err().into_iter().for_each(|error| asker.refuse(error));
                return self.post(shard, RoomMessage::JoinRefused { room, conn, asker });
            }
        };
        self.report_first_member(index);
        if shard == self.settings.shard {
            self.join_here(index, conn, after, ticket_s, &asker, state);
            return self.table.note_use(index);
        }
        let Room { role, log, .. } = self.table.get(index);
        let Role::Home { subscribers } = role else { return };
        let log = subscribers.count_join(shard).then(|| Box::new(log.released_copy()));
        self.table.note_use(index);
        self.post(shard, RoomMessage::Joined { room, conn, after, ticket_s, log, asker });
    }

    /// At a connection's shard: the home has made it a member.
    #[expect(clippy::too_many_arguments, reason = "the fields of the message")]
    pub(super) fn joined(
        &mut self,
        room: RoomId,
        conn: ConnId,
        (after, ticket_s): (After, u32),
        log: Option<Box<Log>>,
        asker: &Asker,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let index = match (self.table.find(&room), log) {
            (Some(index), None) => index,
            (None, Some(log)) => {
                let policy = self.settings.rooms.policy_of(room.as_str());
                let role = Role::Replica { joins: 0 };
                let index = self.table.open(room, policy, *log, role, now_ms);
                // The home may have taken it for live a moment ago.
                self.expire_pushes(now_ms);
                index
            }
            (found, _) => {
                debug_assert!(false, "a log comes with the first join alone: {found:?}");
                return;
            }
        };
        if let Role::Replica { joins } = &mut self.table.get(index).role {
            *joins += 1;
        }
        self.join_here(index, conn, after, ticket_s, asker, state);
    }

    fn join_here(
        &mut self,
        index: RoomIndex,
        conn: ConnId,
        after: After,
        ticket_s: u32,
        asker: &Asker,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        if state(conn) == ConnState::Gone {
            self.counters.stale_commands += 1;
            asker.refuse(PushError::SessionGone);
            return self.unsubscribe_if_empty(index);
        }
        let rooms_max = self.settings.rooms.rooms_per_connection_max;
        let (joined, next) = self.plan_join(conn.slot, index, after, ticket_s);
        let released = self.table.get(index).log.released();
        match self.table.join_from(conn.slot, index, next, rooms_max) {
            Ok(is_new) => {
                let is_by_client = matches!(asker, Asker::Client { .. });
                if let Asker::Backend(permit) = asker {
                    permit.count_connections(1);
                }
                // A client's session waits for the report.
                if is_new || after != After::Now || is_by_client {
                    self.report_join(conn.slot, joined, asker);
                }
                if next < released {
                    self.effects.push_back(RoomEffect::PushesPending(conn.slot));
                }
            }
            Err(error) => {
                self.counters.refused_rooms += 1;
                asker.refuse(error);
                self.report_join(conn.slot, Joined::refused(joined.name), asker);
                self.unsubscribe_if_empty(index);
            }
        }
    }

    /// What a member is sent when it joins, and the offset from which on it gets pushes. A member that joins again
    /// without a position stays where it is: nothing is replayed to it.
    fn plan_join(
        &mut self,
        slot: u32,
        index: RoomIndex,
        after: After,
        ticket_s: u32,
    ) -> (Joined, u64) {
        let is_member = self.table.find_member(slot, index).is_some();
        let Room { id, log, policy, .. } = self.table.get(index);
        let replayed = if is_member { 0 } else { policy.replay_on_join };
        let (next, mut recovery) = log.start_after(after, replayed);
        // It gets the newest alone.
        let misses_some = policy.slow_member == SlowMember::Latest && next + 1 < log.end();
        if misses_some && recovery == Recovery::Complete {
            recovery = Recovery::Gap;
        }
        // A client that misses nothing may have seen more of a shared log than this gateway.
        let seen = match after {
            After::Position { offset, .. } if recovery == Recovery::Complete => offset,
            _ => 0,
        };
        let (name, head) = (id.to_string(), log.head().max(seen));
        (Joined { name, log: Some(log.name()), head, recovery, ticket_s }, next)
    }

    /// What a client is sent about a room that its connection is a member of; `None`: it is no member.
    pub fn describe_membership(&mut self, slot: u32, room: &str) -> Option<Joined> {
        let index = self.table.find(&RoomId::new(room).ok()?)?;
        self.table.find_member(slot, index)?;
        // Without a ticket: this shard does not know since when the membership lasts.
        Some(self.plan_join(slot, index, After::Now, 0).0)
    }

    pub(super) fn report_join(&mut self, slot: u32, joined: Joined, asker: &Asker) {
        let asked_by = match asker {
            Asker::Backend(_) => AskedBy::Backend,
            Asker::Client { .. } => AskedBy::Client,
        };
        self.effects.push_back(RoomEffect::Joined(slot, joined, asked_by));
    }

    /// What a client that has not asked for earlier pushes is sent about everybody's room.
    pub fn everybody(&mut self) -> Joined {
        let Room { id, log, .. } = self.table.get(EVERYBODY);
        let (name, log, head) = (id.to_string(), Some(log.name()), log.head());
        Joined { name, log, head, recovery: Recovery::NotAsked, ticket_s: 0 }
    }

    /// Makes a new session a member of everybody's room, or moves its cursor back if it is one. Returns what
    /// its client is sent.
    pub fn join_everybody(&mut self, slot: u32, after: After) -> Joined {
        let (joined, next) = self.plan_join(slot, EVERYBODY, after, 0);
        let released = self.table.get(EVERYBODY).log.released();
        self.table
            .join_from(slot, EVERYBODY, next, usize::MAX)
            .expect("no bound on rooms concerns everybody's");
        if next < released {
            self.effects.push_back(RoomEffect::PushesPending(slot));
        }
        joined
    }

    /// At a connection's shard: it leaves a room, and first gets the pushes that were published before.
    pub(super) fn left(
        &mut self,
        room: &RoomId,
        conn: ConnId,
        permit: &CommandPermit,
        now_ms: u64,
        state: impl Fn(ConnId) -> ConnState,
    ) {
        let connection = state(conn);
        if connection == ConnState::Gone {
            self.counters.stale_commands += 1;
            return permit.refuse(PushError::SessionGone);
        }
        let Some(index) = self.table.find(room) else { return };
        if let Some(member) = self.table.find_member(conn.slot, index) {
            permit.count_connections(1);
            let Self { table, counters, effects, .. } = self;
            let write = |chunk| effects.push_back(RoomEffect::LastPushes(conn.slot, chunk));
            match connection {
                ConnState::Open => reader::read_unoffered(table, member, counters, write),
                ConnState::Resuming => reader::read_all(table, member, counters, write),
                ConnState::Backlogged | ConnState::Gone => {}
            }
            self.leave(member, now_ms);
            self.effects.push_back(RoomEffect::Left(conn.slot, room.clone()));
        }
    }

    /// Ends all of a connection's memberships.
    pub fn leave_all(&mut self, slot: u32, now_ms: u64) {
        while let Some(member) = self.table.first_member(slot) {
            self.leave(member, now_ms);
        }
    }

    fn leave(&mut self, member: Member, now_ms: u64) {
        let index = self.table.room_of(member);
        if let Some(moved) = self.table.leave(member) {
            // The round may pass over the member that moved to the free position.
            self.effects.push_back(RoomEffect::PushesPending(moved));
        }
        let room = self.table.get(index);
        room.active_at_ms = now_ms;
        if room.member_count == 0 && room.window_ends_ms.is_some() {
            self.pushes.release(&mut self.table, index);
        }
        self.table.note_use(index);
        self.unsubscribe_if_empty(index);
    }

    /// Tells a room's home that this shard has no members left.
    fn unsubscribe_if_empty(&mut self, index: RoomIndex) {
        let Settings { shard, shards, .. } = self.settings;
        let found = self.table.get(index);
        if let Role::Replica { joins } = found.role
            && found.member_count == 0
            && index != EVERYBODY
        {
            let room = found.id.clone();
            self.post(home(&room, shards), RoomMessage::Unsubscribe { room, shard, joins });
        }
    }

    /// At a room's home: a shard has no members left, unless a join is on its way there.
    pub(super) fn unsubscribe(&mut self, room: RoomId, shard: u16, joins: u64, now_ms: u64) {
        let Some(index) = self.table.find(&room) else { return };
        let Room { role, active_at_ms, .. } = self.table.get(index);
        let Role::Home { subscribers } = role else { return };
        if subscribers.end(shard, joins) {
            *active_at_ms = now_ms;
            self.table.note_use(index);
            self.post(shard, RoomMessage::Unsubscribed { room });
        }
    }
}
