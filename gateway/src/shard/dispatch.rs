//! Dispatch: gives each message to the part that handles it, and applies the effects that the parts return.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_backend::UserId;
use tidegate_backend::publisher::Nobody;
use tidegate_protocol::proto::v1::{self, notice::What};

use super::clients::PushOutcome;
use super::clients::cause::Cause;
use super::clients::lifecycle::{EndedSession, Login};
use super::command::CommandPermit;
use super::mailbox::Message;
use super::repeats::Keyed;
use super::resumes::WaitingFrame;
use super::rooms::log::After;
use super::rooms::message::{AskedBy, RoomEffect, RoomMessage};
use super::users::message::{Eviction, SessionMessage, UserEffect, UserMessage};
use super::{Shard, delivery, rooms, users};
use crate::control::ShardInfo;
use crate::driver::{ConnId, Mechanism};
use crate::session_id::SessionAddr;
use crate::settings::NewSettings;

impl Shard {
    pub(super) fn handle(&mut self, message: Message, mechanism: Mechanism) {
        match message {
            Message::Answer(answer) => self.on_answer(answer),
            Message::Expired(call) => self.on_expired(call),
            Message::Shed(call) => self.on_shed(call),
            Message::User(mut message) => {
                let keyed = message.take_key();
                if self.is_to_be_pushed(keyed) {
                    self.users.handle(message, self.clock.now_ms());
                }
            }
            Message::Session(message) => self.on_session_message(message),
            Message::Token(message) => self.on_token_message(message),
            Message::Room(message) => {
                let keyed = message.keyed();
                if !self.is_to_be_pushed(keyed) {
                    return;
                }
                let Self { rooms, clients, clock, .. } = self;
                let state = |conn| delivery::conn_state(clients, conn);
                rooms.handle(message, clock.now_ms(), &|| clock.unix_ms(), &state);
            }
            // The operator may have stopped waiting.
            Message::InspectShard { reply } => {
                let info = self.levels().shard_info(self.id, mechanism);
                let drain = self.draining.progress(self.clock.now_ms());
                drop(reply.send(ShardInfo { drain, ..info }));
            }
            Message::CountMovable { spared_s, reply } => {
                let _ = reply.send(self.count_movable(spared_s));
            }
            Message::SendAway(share) => self.rebalance.start(share, self.clock.now_ms()),
            Message::Reload(new) => self.reload(&new),
            Message::Drain => self.draining.start(self.clock.now_ms()),
            Message::HurryDrain => self.draining.hurry(self.clock.now_ms()),
            Message::Stop => self.is_finished = true,
        }
        self.apply();
    }

    /// Has each part use other settings from now on. Nothing of it can fail.
    fn reload(&mut self, new: &NewSettings) {
        self.settings = Arc::clone(&new.settings);
        let config = &self.settings.config;
        self.clients.reconfigure(config);
        self.rooms.reconfigure(&config.rooms);
        self.repeats.reconfigure(config.limits.push_keys_bytes_max);
        self.calls.reconfigure(config);
        if !self.draining.has_begun() {
            self.admission.reconfigure(config.limits.accepts_per_second_max);
        }
        self.draining.reconfigure(&config.shutdown);
        new.confirm(self.id);
    }

    /// Whether a push is to be delivered: it has no key, or is the first one with its key.
    #[inline]
    fn is_to_be_pushed(&mut self, keyed: Option<Keyed>) -> bool {
        keyed.is_none_or(|keyed| self.repeats.is_first(keyed, self.clock.now_ms()))
    }

    /// Posts to a shard, which may be this one.
    pub(super) fn post(&mut self, shard: u16, message: Message) {
        if shard == self.id {
            self.messages.push_local(message);
        } else if let Some(address) = self.shared.addresses.get(usize::from(shard)) {
            address.post(message);
        }
    }

    /// Sends a message to a user's home. If that is this shard, it is handled at once: a login that is handled
    /// at once must not overtake the end of an earlier session of the same user.
    pub(super) fn send_home(&mut self, user_id: UserId, message: UserMessage) {
        let home = users::home(user_id, self.settings.config.shards);
        if home == self.id {
            self.users.handle(message, self.clock.now_ms());
        } else {
            self.post(home, message.into());
        }
    }

    /// Applies the effects of the parts, until there are none.
    #[inline]
    pub(super) fn apply(&mut self) {
        loop {
            if let Some(EndedSession { conn, user_id }) = self.clients.next_ended_session() {
                let addr = SessionAddr::new(self.id, conn);
                self.send_home(user_id, UserMessage::Deregister { user_id, addr });
                self.resumes.remove(conn.slot);
                self.rooms.leave_all(conn.slot, self.clock.now_ms());
            } else if let Some(change) = self.users.next_presence_change() {
                // The change gets its time here, before the client has its answer and can log in elsewhere.
                if let Some(cluster) = &self.shared.cluster {
                    cluster.post_presence(change);
                }
            } else if let Some(UserEffect(shard, message)) = self.users.next_effect() {
                if shard == self.id {
                    self.on_session_message(message);
                } else {
                    self.post(shard, Message::Session(message));
                }
            } else if let Some(effect) = self.rooms.next_effect() {
                match effect {
                    RoomEffect::Post(shard, message) => self.post(shard, message.into()),
                    RoomEffect::PushesPending(slot) => self.clients.schedule_pushes(slot),
                    RoomEffect::LastPushes(slot, chunk) => {
                        if let Err(WaitingFrame::Pushes(chunk)) =
                            self.resumes.keep(slot, WaitingFrame::Pushes(chunk))
                        {
                            self.clients.append_shared(slot, chunk);
                        }
                    }
                    RoomEffect::Joined(slot, joined, AskedBy::Client) => {
                        self.resumes.joined(slot, joined);
                        self.answer_resumed(slot);
                    }
                    RoomEffect::Joined(slot, joined, AskedBy::Backend) => {
                        let user_id = self.clients.at(slot).user_id;
                        let room = self.tickets().describe(user_id, joined);
                        self.notify(slot, What::Joined(room));
                    }
                    RoomEffect::Expel(user_id, room, permit) => {
                        self.send_home(user_id, UserMessage::Expel { user_id, room, permit });
                    }
                    RoomEffect::Left(slot, room) => {
                        self.notify(slot, What::Left(room.to_string()));
                    }
                    RoomEffect::ToCluster(message) => {
                        if let Some(cluster) = &self.shared.cluster {
                            cluster.post(message);
                        }
                    }
                }
            } else {
                return;
            }
        }
    }

    fn on_session_message(&mut self, message: SessionMessage) {
        match message {
            SessionMessage::Registered { conn, sequence } => {
                if self.clients.open_session(conn, &self.clock) {
                    let slot = conn.slot;
                    if self.resumes.contains(slot) {
                        return self.resume(slot, Login::Register);
                    }
                    let everybody = self.rooms.join_everybody(slot, After::Now);
                    self.write_session(slot, sequence, everybody, Vec::new());
                }
            }
            SessionMessage::Evict { conn, reason, permit: _ } => {
                if self.clients.get(conn).is_some() {
                    let cause = match reason {
                        Eviction::Replaced => Cause::Replaced,
                        Eviction::Kicked => Cause::Kicked,
                    };
                    self.close_gracefully(conn.slot, cause);
                }
            }
            SessionMessage::Leave { conn, room, permit } => {
                // Through the home, so that it stays behind an earlier join.
                let addr = SessionAddr::new(self.id, conn);
                let home = rooms::home(&room, self.settings.config.shards);
                self.post(home, RoomMessage::Leave { room, addr, permit }.into());
            }
            SessionMessage::Deliver { conn, frame, ends_ms, permit } => {
                // A connection that is gone has no entry: its slot's next one may have.
                if self.clients.get(conn).is_some() && self.resumes.is_full(conn.slot) {
                    self.clients.abort(conn.slot, Cause::OutboxFull);
                } else if self.clients.get(conn).is_some() && self.resumes.contains(conn.slot) {
                    let push = WaitingFrame::Push { frame, ends_ms, permit };
                    drop(self.resumes.keep(conn.slot, push));
                } else {
                    self.deliver(conn, &frame, ends_ms, &permit);
                }
            }
        }
    }

    /// Notifies a client that a membership has begun, was refused, or has ended.
    pub(super) fn notify(&mut self, slot: u32, what: What) {
        if self.resumes.is_full(slot) {
            return self.clients.abort(slot, Cause::OutboxFull);
        }
        if let Err(frame) = self.resumes.keep(slot, WaitingFrame::Notice(what))
            && let WaitingFrame::Notice(what) = frame
        {
            self.clients.write_notice(slot, &v1::Notice { what: Some(what) });
        }
    }

    pub(super) fn deliver(
        &mut self,
        conn: ConnId,
        frame: &Bytes,
        ends_ms: u64,
        permit: &CommandPermit,
    ) {
        if ends_ms <= self.clock.now_ms() {
            self.counters.expired_user_pushes += 1;
            return permit.set_nobody(Nobody::Expired);
        }
        match self.clients.write_push(conn, frame) {
            PushOutcome::Written => permit.count_connections(1),
            PushOutcome::Gone => {}
            PushOutcome::Skipped => permit.set_nobody(Nobody::Slow),
        }
    }
}
