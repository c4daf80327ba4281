//! Users: the part of the shard that knows where each user's sessions are.
//!
//! A user's home shard keeps the entry, puts two logins in order, and decides which session is closed when there
//! are too many. Other shards notify the home when sessions open and close. This part knows no connection: it
//! answers with messages for the shards that own them.

pub mod directory;
pub mod message;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::publisher::Nobody;
use tidegate_backend::{RoomId, UserId};

use crate::control::{ConnectionInfo, UserInfo};
use crate::session_id::{SessionAddr, SessionIds};
use crate::shard::clock;
use crate::shard::command::CommandPermit;
use crate::shard::stats::UserCounters;
use directory::Directory;
pub use directory::home;
use message::{Eviction, PresenceChange, SessionMessage, UserEffect, UserMessage};

/// The users whose home is this shard.
#[derive(Debug)]
pub struct Users {
    directory: Directory,
    session_ids: SessionIds,
    sessions_max: usize,
    effects: VecDeque<UserEffect>,
    /// Other gateways have to know which users are connected here.
    is_shared: bool,
    presence_changes: VecDeque<PresenceChange>,
    counters: UserCounters,
}

impl Users {
    /// No user yet. A user may have `sessions_max` sessions, at least 1. `is_shared`: the gateway is one of several.
    #[must_use]
    pub fn new(session_ids: SessionIds, sessions_max: usize, is_shared: bool) -> Self {
        Self {
            directory: Directory::default(),
            session_ids,
            sessions_max,
            effects: VecDeque::new(),
            is_shared,
            presence_changes: VecDeque::new(),
            counters: UserCounters::default(),
        }
    }

    /// Users with at least one session.
    #[must_use]
    pub fn len(&self) -> usize {
        self.directory.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.directory.is_empty()
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> &UserCounters {
        &self.counters
    }

    /// The next thing to do for this part.
    #[inline]
    pub fn next_effect(&mut self) -> Option<UserEffect> {
        self.effects.pop_front()
    }

    /// The next thing that other gateways have to learn.
    #[inline]
    pub fn next_presence_change(&mut self) -> Option<PresenceChange> {
        self.presence_changes.pop_front()
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.effects.shrink_to_fit();
        self.presence_changes.shrink_to_fit();
    }

    /// Handles a message to a user's home. `now_ms` is on the shard's clock.
    pub fn handle(&mut self, message: UserMessage, now_ms: u64) {
        match message {
            UserMessage::Register { user_id, addr, sequence } => {
                self.register(user_id, addr, sequence);
            }
            UserMessage::Deregister { user_id, addr } => self.deregister(user_id, addr),
            UserMessage::Replace { user_id, addr } => self.replace(user_id, addr),
            UserMessage::Kick { user_id, permit } => self.kick(user_id, &permit),
            UserMessage::Expel { user_id, room, permit } => self.expel(user_id, &room, &permit),
            UserMessage::Push { user_id, frame, options, permit } => {
                self.push(user_id, &frame, clock::ends_ms(options.as_deref(), now_ms), &permit);
            }
            // The operator may have stopped waiting.
            UserMessage::Inspect { user_id, reply } => drop(reply.send(self.info(user_id))),
        }
    }

    fn register(&mut self, user_id: UserId, addr: SessionAddr, sequence: u64) {
        if let Some(oldest) = self.directory.register(user_id, addr, self.sessions_max) {
            self.evict(oldest, Eviction::Replaced, None);
        }
        // Where users have several sessions, no login ends one at another gateway, so only the first one matters.
        if self.is_shared && (self.sessions_max == 1 || self.directory.sessions(user_id).len() == 1)
        {
            self.presence_changes.push_back(PresenceChange::Arrived(user_id, addr));
        }
        let registered = SessionMessage::Registered { conn: addr.conn(), sequence };
        self.effects.push_back(UserEffect(addr.shard(), registered));
    }

    fn deregister(&mut self, user_id: UserId, addr: SessionAddr) {
        let was_here = self.is_shared && !self.directory.sessions(user_id).is_empty();
        self.directory.deregister(user_id, addr);
        if was_here && self.directory.sessions(user_id).is_empty() {
            self.presence_changes.push_back(PresenceChange::Left(user_id));
        }
    }

    /// The message names one session, so a newer one of the same user stays.
    fn replace(&mut self, user_id: UserId, addr: SessionAddr) {
        if self.directory.sessions(user_id).contains(&addr) {
            self.deregister(user_id, addr);
            self.counters.replaced_elsewhere += 1;
            self.evict(addr, Eviction::Replaced, None);
        }
    }

    fn kick(&mut self, user_id: UserId, permit: &Arc<CommandPermit>) {
        let addrs = self.directory.take(user_id);
        permit.count_connections(addrs.len());
        if self.is_shared && !addrs.is_empty() {
            self.presence_changes.push_back(PresenceChange::Left(user_id));
        }
        for addr in addrs {
            self.evict(addr, Eviction::Kicked, Some(Arc::clone(permit)));
        }
    }

    fn evict(&mut self, addr: SessionAddr, reason: Eviction, permit: Option<Arc<CommandPermit>>) {
        let evict = SessionMessage::Evict { conn: addr.conn(), reason, permit };
        self.effects.push_back(UserEffect(addr.shard(), evict));
    }

    fn expel(&mut self, user_id: UserId, room: &RoomId, permit: &Arc<CommandPermit>) {
        for addr in self.directory.sessions(user_id) {
            let (room, permit) = (room.clone(), Arc::clone(permit));
            let leave = SessionMessage::Leave { conn: addr.conn(), room, permit };
            self.effects.push_back(UserEffect(addr.shard(), leave));
        }
    }

    fn push(&mut self, user_id: UserId, frame: &Bytes, ends_ms: u64, permit: &Arc<CommandPermit>) {
        self.counters.pushes_to_users += 1;
        permit.set_nobody(Nobody::NoConnection);
        for addr in self.directory.sessions(user_id) {
            let (frame, permit) = (frame.clone(), Arc::clone(permit));
            let deliver = SessionMessage::Deliver { conn: addr.conn(), frame, ends_ms, permit };
            self.effects.push_back(UserEffect(addr.shard(), deliver));
        }
    }

    fn info(&self, user_id: UserId) -> UserInfo {
        let connections = self.directory.sessions(user_id).iter().map(|&addr| ConnectionInfo {
            session_id: format!("{:016x}", self.session_ids.id(addr).0),
            shard: addr.shard(),
        });
        UserInfo { user_id, connections: connections.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ConnId;
    use crate::shard::command::CommandLimiter;

    fn addr(shard: u16, slot: u32) -> SessionAddr {
        SessionAddr::new(shard, ConnId { slot, generation: 1 })
    }

    fn users(sessions_max: usize) -> Users {
        Users::new(SessionIds::new(7), sessions_max, false)
    }

    fn register(users: &mut Users, addr: SessionAddr) {
        users.handle(UserMessage::Register { user_id: 5, addr, sequence: 9 }, 0);
    }

    #[test]
    fn a_login_beyond_the_limit_evicts_the_oldest_session_first() {
        let mut users = users(1);
        register(&mut users, addr(0, 1));
        assert!(matches!(
            users.next_effect(),
            Some(UserEffect(0, SessionMessage::Registered { conn, sequence: 9 })) if conn.slot == 1
        ));
        register(&mut users, addr(3, 2));
        assert!(matches!(
            users.next_effect(),
            Some(UserEffect(0, SessionMessage::Evict { conn, reason: Eviction::Replaced, permit: None }))
                if conn.slot == 1
        ));
        assert!(matches!(
            users.next_effect(),
            Some(UserEffect(3, SessionMessage::Registered { conn, .. })) if conn.slot == 2
        ));
        assert!(users.next_effect().is_none());
        assert_eq!(users.len(), 1);
    }

    #[test]
    fn a_push_goes_to_each_session_and_a_kick_takes_them_all() {
        let mut users = users(2);
        register(&mut users, addr(0, 1));
        register(&mut users, addr(1, 2));
        while users.next_effect().is_some() {}
        let limiter = Arc::new(CommandLimiter::new(10, 1000));
        let permit = || limiter.admit(0, &mut None).unwrap();
        let frame = Bytes::from_static(b"frame");
        users.handle(UserMessage::Push { user_id: 5, frame, options: None, permit: permit() }, 0);
        let mut shards = Vec::new();
        while let Some(UserEffect(shard, SessionMessage::Deliver { frame, .. })) =
            users.next_effect()
        {
            assert_eq!(frame, "frame");
            shards.push(shard);
        }
        assert_eq!(shards, [0, 1]);
        assert_eq!(users.counters().pushes_to_users, 1);
        users.handle(UserMessage::Kick { user_id: 5, permit: permit() }, 0);
        let mut evicted = 0;
        while let Some(UserEffect(_, SessionMessage::Evict { reason, permit, .. })) =
            users.next_effect()
        {
            assert_eq!(reason, Eviction::Kicked);
            assert!(
                permit.is_some(),
                "a kick is under way until each connection was asked to close"
            );
            evicted += 1;
        }
        assert_eq!(evicted, 2);
        assert!(users.is_empty());
        assert_eq!(limiter.commands(), 0);
    }

    fn shared_users(sessions_max: usize) -> Users {
        Users::new(SessionIds::new(7), sessions_max, true)
    }

    fn changes(users: &mut Users) -> Vec<PresenceChange> {
        std::iter::from_fn(|| users.next_presence_change()).collect()
    }

    fn end(users: &mut Users, addr: SessionAddr) {
        users.handle(UserMessage::Deregister { user_id: 5, addr }, 0);
    }

    #[test]
    fn each_login_is_a_presence_change_where_the_newest_one_wins() {
        let (first, second) = (addr(0, 1), addr(3, 2));
        let mut users = shared_users(1);
        register(&mut users, first);
        register(&mut users, second);
        let arrived = |addr| PresenceChange::Arrived(5, addr);
        assert_eq!(changes(&mut users), [arrived(first), arrived(second)]);
        // The end of a session that is no longer the user's.
        end(&mut users, first);
        assert_eq!(changes(&mut users), []);
        end(&mut users, second);
        assert_eq!(changes(&mut users), [PresenceChange::Left(5)]);
        end(&mut users, second);
        assert_eq!(changes(&mut users), []);
    }

    #[test]
    fn the_first_and_the_last_session_are_presence_changes_where_users_have_many() {
        let mut users = shared_users(2);
        for slot in 1..=3 {
            register(&mut users, addr(0, slot));
        }
        assert_eq!(changes(&mut users), [PresenceChange::Arrived(5, addr(0, 1))]);
        end(&mut users, addr(0, 2));
        assert_eq!(changes(&mut users), []);
        end(&mut users, addr(0, 3));
        assert_eq!(changes(&mut users), [PresenceChange::Left(5)]);
        register(&mut users, addr(0, 4));
        let limiter = Arc::new(CommandLimiter::new(10, 1000));
        let kick =
            || UserMessage::Kick { user_id: 5, permit: limiter.admit(0, &mut None).unwrap() };
        users.handle(kick(), 0);
        users.handle(kick(), 0);
        let both = [PresenceChange::Arrived(5, addr(0, 4)), PresenceChange::Left(5)];
        assert_eq!(changes(&mut users), both);
    }

    #[test]
    fn a_login_elsewhere_ends_the_session_that_it_names_and_no_newer_one() {
        let (old, new) = (addr(0, 1), addr(3, 2));
        let mut users = shared_users(1);
        register(&mut users, old);
        register(&mut users, new);
        while users.next_effect().is_some() {}
        changes(&mut users);
        users.handle(UserMessage::Replace { user_id: 5, addr: old }, 0);
        assert!(users.next_effect().is_none(), "the user has logged in again meanwhile");
        assert_eq!((users.len(), changes(&mut users)), (1, vec![]));
        users.handle(UserMessage::Replace { user_id: 5, addr: new }, 0);
        assert!(matches!(
            users.next_effect(),
            Some(UserEffect(3, SessionMessage::Evict { conn, reason: Eviction::Replaced, permit: None }))
                if conn.slot == 2
        ));
        assert_eq!((users.len(), changes(&mut users)), (0, vec![PresenceChange::Left(5)]));
        assert_eq!(users.counters().replaced_elsewhere, 1);
    }

    #[test]
    fn a_gateway_that_is_alone_records_no_presence() {
        let mut users = users(1);
        register(&mut users, addr(0, 1));
        end(&mut users, addr(0, 1));
        assert_eq!(changes(&mut users), []);
        assert_eq!(users.presence_changes.capacity(), 0);
    }

    #[test]
    fn operators_see_a_users_sessions() {
        let mut users = users(2);
        register(&mut users, addr(4, 1));
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        users.handle(UserMessage::Inspect { user_id: 5, reply }, 0);
        let info = answer.try_recv().unwrap();
        assert_eq!((info.user_id, info.connections.len(), info.connections[0].shard), (5, 1, 4));
    }
}
