//! The loop's part for rooms: facts of the pushes' Redis, and what [`rooms`](crate::cluster::rooms), members and publishing ask
//! for.

use std::io;
use std::sync::Arc;

use redis::{Cmd, PushKind, RedisError, Value};
use tidegate_backend::{PushError, RoomId, UserId};
use tokio::sync::oneshot;

use super::{Completion, NO_EPOCH, Runner};
use crate::cluster::contract;
use crate::cluster::links::Concern;
use crate::cluster::members;
use crate::cluster::rooms::{Open, Output};
use crate::cluster::users::Fault;
use crate::shard::command::CommandPermit;
use crate::shard::rooms::message::RoomMessage;

/// A request about a room that has ended.
pub(super) enum RoomCompletion {
    Opened(Open, Result<Value, RedisError>),
    Published {
        room: RoomId,
        number: u64,
        answer: Result<Value, RedisError>,
    },
    /// A shard has counted a room's members. `None`: it has ended, or the room is closed.
    Counted {
        room: RoomId,
        members: Option<u64>,
    },
    Barred(Pending, Result<Value, RedisError>),
    CountReported {
        room: RoomId,
        answer: Result<Value, RedisError>,
    },
    Subscribed {
        room: RoomId,
        is_on: bool,
        outcome: Result<(), RedisError>,
    },
}

/// The permit of a command that waits for Redis. If it is dropped, the command is refused.
pub(super) struct Pending(Option<Arc<CommandPermit>>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(|permit| permit.refuse(PushError::Stopping));
    }
}

impl Runner {
    pub(super) fn bar(
        &mut self,
        room: &RoomId,
        user_id: UserId,
        until_s: u32,
        permit: Arc<CommandPermit>,
    ) {
        let ttl_s = self.rooms_config.ticket_ttl.as_secs();
        let cmd = contract::bar(room, user_id, until_s, ttl_s, &self.gateway);
        let permit = Pending(Some(permit));
        self.call(cmd, move |answer| RoomCompletion::Barred(permit, answer));
    }

    pub(super) fn on_room_arrival(&mut self, kind: &PushKind, channel: &[u8], message: &[u8]) {
        let now_ms = self.now_ms();
        let room = || contract::room_of_channel(channel);
        match kind {
            PushKind::SMessage => match (room(), contract::room_event(message)) {
                (Some(room), Some(event)) => self.rooms.on_event(&room, event, now_ms),
                _ => self.exporter.unreadable += 1,
            },
            PushKind::SSubscribe => {
                room().into_iter().for_each(|room| self.rooms.on_subscribed(&room));
            }
            PushKind::SUnsubscribe => {
                room().into_iter().for_each(|room| self.rooms.on_unsubscribed(&room, now_ms));
            }
            _ => {}
        }
    }

    pub(super) fn on_room_completion(&mut self, epoch: u64, completion: RoomCompletion) {
        let now_ms = self.now_ms();
        match completion {
            RoomCompletion::Opened(open, answer) => {
                let answer = self.checked(epoch, answer).ok();
                let opened = answer.and_then(|answer| contract::opened(&answer));
                let Open { room, number, .. } = open;
                match opened {
                    Some(opened) => self.rooms.on_opened(&room, number, opened, now_ms),
                    None => self.rooms.on_open_failed(&room, number, now_ms),
                }
            }
            RoomCompletion::Published { room, number, answer } => {
                let answer = self.checked(epoch, answer);
                let is_final = matches!(answer, Err(Fault::Refused));
                match answer.ok().and_then(|answer| contract::published(&answer)) {
                    Some(published) => self.publishing.on_published(&room, number, &published),
                    None => self.publishing.on_failed(&room, number, is_final, now_ms),
                }
            }
            RoomCompletion::Counted { room, members } => {
                if self.members.on_counted(&room, members.unwrap_or(0), now_ms) {
                    self.report_count(room, members.unwrap_or(0));
                }
            }
            RoomCompletion::Barred(mut permit, answer) => {
                let outcome = self.checked(epoch, answer);
                if let Some(permit) = permit.0.take()
                    && outcome.is_err()
                {
                    permit.refuse(PushError::Unreachable);
                }
            }
            RoomCompletion::CountReported { room, answer } => {
                if self.checked(epoch, answer).is_err() {
                    self.members.on_failed(&room);
                }
            }
            RoomCompletion::Subscribed { room, is_on, outcome } => {
                let outcome = self.checked(epoch, outcome);
                if is_on && outcome.is_err() && self.links.get(Concern::Pushes).is_current(epoch) {
                    self.rooms.on_unsubscribed(&room, now_ms);
                }
            }
        }
    }

    pub(super) fn carry_out_rooms(&mut self) {
        while let Some(output) = self.rooms.next_output() {
            match output {
                Output::Post(shard, message) => {
                    if let RoomMessage::Fetched { room, .. } = &message {
                        self.members.count(room);
                    }
                    if let Some(address) = self.shards.get(usize::from(shard)) {
                        address.post(message);
                    }
                }
                Output::Subscribe(room) => self.subscribe(room, true),
                Output::Unsubscribe(room) => self.subscribe(room, false),
                Output::Open(open) => {
                    let policy = self.rooms_config.policy_of(open.room.as_str());
                    let cmd = contract::open(&open.room, open.after, &policy);
                    self.call(cmd, move |answer| RoomCompletion::Opened(open, answer));
                }
            }
        }
        let now_ms = self.now_ms();
        while let Some(room) = self.members.next_now(now_ms) {
            self.count(room);
        }
    }

    pub(super) fn carry_out_publishing(&mut self) {
        let now_ms = self.now_ms();
        if !self.links.get(Concern::Pushes).is_up() {
            return;
        }
        while let Some(room) = self.members.next_ended() {
            self.report_count(room, 0);
        }
        loop {
            let Self { publishing, rooms, members, .. } = self;
            // A push that a backend gave after a join has to count the member.
            let must_wait = |room: &RoomId| rooms.must_wait(room) || members.is_unknown(room);
            let Some(request) = publishing.next_request(must_wait, now_ms) else { return };
            let (room, number) = (request.room, request.number);
            self.call(request.cmd, move |answer| RoomCompletion::Published {
                room,
                number,
                answer,
            });
        }
    }

    /// Has a room's home count its members.
    pub(super) fn count(&mut self, room: RoomId) {
        let home = self.rooms.home(&room).and_then(|home| self.shards.get(usize::from(home)));
        let Some(home) = home else { return };
        let (reply, answer) = oneshot::channel();
        home.post(RoomMessage::Inspect { room: room.clone(), reply });
        self.requests.spawn(async move {
            let members = answer.await.ok().flatten().map(|info| info.members);
            Completion::Room(NO_EPOCH, RoomCompletion::Counted { room, members })
        });
    }

    fn report_count(&mut self, room: RoomId, members: u64) {
        let cmd = contract::count(&room, &self.gateway, members, members::VALID_MS);
        self.call(cmd, move |answer| RoomCompletion::CountReported { room, answer });
    }

    fn call(
        &mut self,
        cmd: Cmd,
        completion: impl FnOnce(Result<Value, RedisError>) -> RoomCompletion + Send + 'static,
    ) {
        self.exporter.commands += 1;
        if let Some((mut connection, epoch)) = self.links.get(Concern::Pushes).connection() {
            self.requests.spawn(async move {
                Completion::Room(epoch, completion(connection.call(&cmd).await))
            });
        } else {
            let away = io::Error::new(io::ErrorKind::NotConnected, "no connection to Redis");
            self.requests
                .spawn(async move { Completion::Room(NO_EPOCH, completion(Err(away.into()))) });
        }
    }

    fn subscribe(&mut self, room: RoomId, is_on: bool) {
        let Some((mut connection, epoch)) = self.links.get(Concern::Pushes).connection() else {
            return;
        };
        self.exporter.commands += 1;
        self.requests.spawn(async move {
            let outcome = connection.subscribe(&contract::room_key(&room), is_on).await;
            Completion::Room(epoch, RoomCompletion::Subscribed { room, is_on, outcome })
        });
    }
}
