//! Sessions: authentication, the user directory's messages, pushes to a user, kicks.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::UserId;
use tidegate_protocol::proto::v1;
use tidegate_protocol::{Code, server};

use super::Shard;
use super::closing::{Cause, millis};
use super::inbound::unix_ms;
use super::mailbox::Message;
use super::receipt::Receipt;
use super::users;
use crate::auth::AuthError;
use crate::connection::Phase;
use crate::control::{ConnectionInfo, UserInfo};
use crate::driver::ConnId;
use crate::session_id::Place;

impl Shard {
    pub(super) fn on_authenticate(
        &mut self,
        slot: u32,
        user_id: UserId,
        token: &str,
        sequence: u64,
    ) {
        if let Err(error) = self.shared.verifier.verify(user_id, token) {
            return self.refuse_token(slot, user_id, error, sequence);
        }
        let connection = self.at(slot);
        if connection.phase == Phase::Open {
            if connection.user_id != user_id {
                // A session may not change its user.
                return self.refuse_token(slot, user_id, AuthError::WrongUser, sequence);
            }
            return self.write_session(slot, sequence);
        }
        connection.user_id = user_id;
        connection.phase = Phase::Registering;
        let place = self.place(slot);
        let home = users::home(user_id, self.shared.config.shards);
        if home == self.id {
            self.on_register(user_id, place, sequence);
        } else {
            self.post(home, Message::Register { user_id, place, sequence });
        }
    }

    fn refuse_token(&mut self, slot: u32, user_id: UserId, error: AuthError, sequence: u64) {
        self.stats.refused_tokens[error as usize] += 1;
        self.log(slot, || tracing::debug!(user_id, %error, "authentication failed"));
        self.refuse_authentication(slot, 0, sequence);
    }

    /// Answers 100; closes at the last of the tries that a connection has.
    pub(super) fn refuse_authentication(&mut self, slot: u32, kind: i32, sequence: u64) {
        self.write_failure(slot, kind, sequence, Code::Unauthenticated, 0);
        let failures_max = self.shared.config.auth.failures_max;
        let connection = self.at(slot);
        connection.auth_failures = connection.auth_failures.saturating_add(1);
        if connection.auth_failures >= failures_max {
            self.say_goodbye(slot, Cause::AuthFailed, None);
        }
    }

    /// At a user's home: a session comes in, and one may have to go.
    pub(super) fn on_register(&mut self, user_id: UserId, place: Place, sequence: u64) {
        let sessions_max = self.shared.config.session.connections_per_user_max;
        if let Some(oldest) = self.users.register(user_id, place, sessions_max) {
            let conn = oldest.conn();
            let evict = Message::Evict { conn, code: Code::Replaced, receipt: None };
            self.post(oldest.shard(), evict);
        }
        if place.shard() == self.id {
            self.on_registered(place.conn(), sequence);
        } else {
            let conn = place.conn();
            self.post(place.shard(), Message::Registered { conn, sequence });
        }
    }

    pub(super) fn on_registered(&mut self, conn: ConnId, sequence: u64) {
        let idle_timeout = millis(self.shared.config.session.idle_timeout);
        let Some(connection) = self.connection(conn) else { return };
        if connection.phase != Phase::Registering {
            // It was told to go meanwhile, and the home knows.
            return;
        }
        connection.phase = Phase::Open;
        let user_id = connection.user_id;
        self.log(conn.slot, || tracing::debug!(user_id, "authenticated"));
        self.stats.sessions += 1;
        self.session_count += 1;
        self.timers.set(conn.slot, self.now_ms + idle_timeout);
        self.join_everybody(conn.slot);
        self.write_session(conn.slot, sequence);
        self.read_on(conn.slot);
    }

    fn write_session(&mut self, slot: u32, sequence: u64) {
        let interval = millis(self.shared.config.session.heartbeat_interval);
        let session = v1::Session {
            session_id: self.shared.session_ids.id(self.place(slot)).0,
            heartbeat_interval_ms: u32::try_from(interval).unwrap_or(u32::MAX),
            server_time_ms: unix_ms(),
        };
        self.write_control(slot, |out| server::put_session(out, sequence, &session));
    }

    /// Takes a connection out of the directory and of its rooms. Does nothing without a session.
    pub(super) fn end_session(&mut self, slot: u32) {
        let place = self.place(slot);
        let connection = self.at(slot);
        let user_id = connection.user_id;
        match connection.phase {
            Phase::Open => self.session_count -= 1,
            Phase::Registering => {}
            _ => return,
        }
        let home = users::home(user_id, self.shared.config.shards);
        self.post(home, Message::Deregister { user_id, place });
        self.leave_all(slot);
    }

    pub(super) fn on_evict(&mut self, conn: ConnId, code: Code) {
        if self.connection(conn).is_some() {
            self.say_goodbye(conn.slot, Cause::Replaced, Some(code));
        }
    }

    pub(super) fn on_kick(&mut self, user_id: UserId, receipt: &Arc<Receipt>) {
        let places = self.users.take(user_id);
        receipt.add(places.len());
        for place in places {
            let (conn, receipt) = (place.conn(), Some(Arc::clone(receipt)));
            let evict = Message::Evict { conn, code: Code::Replaced, receipt };
            self.post(place.shard(), evict);
        }
    }

    /// At a user's home: passes a push on to the user's connections.
    pub(super) fn on_push_user(&mut self, user_id: UserId, frame: &Bytes, receipt: &Arc<Receipt>) {
        self.stats.pushes_to_users += 1;
        for index in 0..self.users.places(user_id).len() {
            let place = self.users.places(user_id)[index];
            if place.shard() == self.id {
                self.on_deliver(place.conn(), frame, receipt);
            } else {
                let (frame, receipt) = (frame.clone(), Arc::clone(receipt));
                let deliver = Message::Deliver { conn: place.conn(), frame, receipt };
                self.post(place.shard(), deliver);
            }
        }
    }

    pub(super) fn on_deliver(&mut self, conn: ConnId, frame: &Bytes, receipt: &Arc<Receipt>) {
        if self.connection(conn).is_none_or(|connection| connection.phase != Phase::Open) {
            self.stats.stale_commands += 1;
            return;
        }
        if self.write(conn.slot, |out| out.extend_from_slice(frame)) {
            self.stats.deliveries += 1;
            receipt.add(1);
        }
    }

    pub(super) fn user_info(&self, user_id: UserId) -> UserInfo {
        let connections = self.users.places(user_id).iter().map(|&place| ConnectionInfo {
            session_id: format!("{:016x}", self.shared.session_ids.id(place).0),
            shard: place.shard(),
        });
        UserInfo { user_id, connections: connections.collect() }
    }
}
