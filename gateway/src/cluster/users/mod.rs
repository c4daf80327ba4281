//! Users over all gateways: who is online where, and commands to users at other gateways.
//!
//! | part | what it owns |
//! |---|---|
//! | [`clock`] | Redis' clock, by which logins are put in order |
//! | [`presence`] | who is here, and what Redis knows of it |
//! | [`channels`] | the channels on which this gateway hears of its users, and its sign of life |
//! | [`sending`] | commands to users at other gateways |
//! | [`chores`] | sweeps, events of users who went offline, counts |
//! | [`sweeping`] | which buckets are swept, and how fast |
//!
//! They do no I/O and read no clock. This module passes facts to them. All times count from the gateway's start, in
//! microseconds.

pub mod channels;
pub mod chores;
pub mod clock;
pub mod presence;
pub mod sending;
pub mod sweeping;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis::{Cmd, Value};
use tidegate_backend::{Push, PushError, RoomId, UserId};
use tidegate_protocol::message::Response;
use tidegate_protocol::server;

use super::message::UserOrder;
use super::user_contract::{self as contract, UserEvent};
use crate::config::Config;
use crate::session_id::SessionAddr;
use crate::shard::command::{CommandLimiter, CommandPermit};
use crate::shard::mailbox::Message;
use crate::shard::rooms::message::RoomMessage;
use crate::shard::users::message::UserMessage;
use crate::shard::{rooms, users};
use channels::{Channels, Confirmed};
use chores::Chores;
use clock::RedisClock;
use presence::Presence;
use sending::Sending;
use sweeping::Bucket;

/// Time between two readings of Redis' clock, in microseconds.
const TIME_EVERY_US: u64 = 200_000;

/// Readings of Redis' clock before the first login is sent.
const FIRST_READINGS: u8 = 16;

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The library refuses it, and would do so again.
    Refused,
    /// It was not carried out.
    NotDone,
    /// It may have been carried out or not.
    Unknown,
}

/// What a command was for. Its answer comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// This gateway's id.
    GatewayId,
    /// Redis' time.
    Time,
    /// A sign of life in a partition.
    Alive(u8),
    /// Arrivals of a partition's round.
    Arrive(u8, u64),
    /// Departures of a partition's round.
    Depart(u8, u64),
    /// A batch of commands to users of a partition.
    Send(u8, u64),
    /// Who is alive.
    Gateways,
    /// Who of a partition went offline.
    Due(u8),
    /// The event that this user of a partition went offline, and when.
    Append(u8, UserId, u64),
    /// Such events are appended.
    Told(u8),
    /// A bucket.
    Sweep(Bucket),
    /// The number of users of a partition.
    Count(u8),
}

/// When a command was sent and its answer received.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Times {
    pub sent_us: u64,
    pub received_us: u64,
}

/// What this part asks for.
#[derive(Debug)]
pub enum Output {
    /// Send a command.
    Call(Tag, Cmd),
    /// Subscribe to a partition's channel, of this name.
    Subscribe(u8, String),
    /// Post a message to a shard.
    Post(u16, Message),
}

/// What was counted of messages that came for users.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Pushes, kicks and expulsions that were passed to shards.
    pub received: u64,
    /// Pushes, kicks and expulsions that were dropped: too many are under way, or the push is too long.
    pub dropped: u64,
    /// Pushes whose time to live was over.
    pub expired: u64,
    /// Messages for users who are not here.
    pub astray: u64,
}

/// How far this gateway is with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Down,
    /// The gateway's id and Redis' time are being asked for.
    Starting {
        readings: u8,
    },
    Running,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Users {
    shards: u16,
    frame_bytes_max: usize,
    limiter: Arc<CommandLimiter>,
    /// This gateway's id. It is drawn once.
    gateway: Option<String>,
    phase: Phase,
    /// The id or the time is being asked for.
    is_asking: bool,
    next_time_us: u64,
    clock: RedisClock,
    presence: Presence,
    channels: Channels,
    sending: Sending,
    chores: Chores,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Users {
    /// Nobody is here, and Redis is not there yet. `limiter`: the bound on commands that come from Redis. `seed`: a number
    /// that differs from gateway to gateway. A command waits for Redis for `wait_max_us`. `wall_ahead_us`: the wall
    /// clock, in microseconds since the Unix epoch, at the gateway's start.
    #[must_use]
    pub fn new(
        config: &Config,
        limiter: Arc<CommandLimiter>,
        grace_ms: u64,
        wait_max_us: u64,
        wall_ahead_us: u64,
        seed: usize,
    ) -> Self {
        let is_newest_wins = config.session.connections_per_user_max == 1;
        Self {
            shards: config.shards,
            frame_bytes_max: config.limits.frame_to_client_bytes_max,
            limiter,
            gateway: None,
            phase: Phase::Down,
            is_asking: false,
            next_time_us: 0,
            clock: RedisClock::new(wall_ahead_us),
            presence: Presence::new(is_newest_wins, grace_ms),
            channels: Channels::default(),
            sending: Sending::new(wait_max_us),
            chores: Chores::new(grace_ms, seed % 4096),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Who is here.
    #[must_use]
    pub const fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Commands to users at other gateways.
    #[must_use]
    pub const fn sending(&self) -> &Sending {
        &self.sending
    }

    /// What is done for all gateways.
    #[must_use]
    pub const fn chores(&self) -> &Chores {
        &self.chores
    }

    /// What was counted of messages that came.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether Redis knows who is here, as far as it can.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.phase != Phase::Running || self.presence.waiting() == 0
    }

    /// A login: see [`Presence::arrived`].
    pub fn arrived(&mut self, user_id: UserId, addr: SessionAddr, at_us: u64) {
        self.presence.arrived(user_id, addr, at_us, &self.clock);
    }

    /// The user's last session here has ended.
    pub fn left(&mut self, user_id: UserId, at_us: u64) {
        self.presence.left(user_id, at_us, &self.clock);
    }

    /// A command to the sessions of a user at other gateways.
    pub fn send(
        &mut self,
        user_id: UserId,
        order: UserOrder,
        permit: Arc<CommandPermit>,
        now_us: u64,
    ) {
        // A push to a user who is here has reached it. To wait for Redis would hold the permit, and with many of them all
        // other commands.
        if matches!(self.phase, Phase::Down) {
            permit.refuse(PushError::Unreachable);
        } else {
            self.sending.send(user_id, order, permit, now_us);
        }
    }

    /// There is a connection.
    pub fn on_up(&mut self) {
        self.phase = Phase::Starting { readings: 0 };
        self.ask();
    }

    /// Asks for what has to be known before the first login is sent.
    fn ask(&mut self) {
        self.is_asking = true;
        let (tag, cmd) = match self.gateway {
            None => (Tag::GatewayId, contract::gateway_id()),
            Some(_) => (Tag::Time, contract::time()),
        };
        self.outputs.push_back(Output::Call(tag, cmd));
    }

    /// The connection is lost.
    pub fn on_down(&mut self) {
        self.phase = Phase::Down;
        self.is_asking = false;
        self.presence.on_down();
        self.channels.on_down();
        self.chores.on_down();
    }

    /// The subscription to a partition's channel is confirmed.
    pub fn on_subscribed(&mut self, partition: u8) {
        self.channels.on_subscribed(partition);
    }

    /// The subscription to a partition's channel has failed, or the server has ended it.
    pub fn on_unsubscribed(&mut self, partition: u8, now_us: u64) {
        self.channels.on_unsubscribed(partition, now_us);
    }

    /// A message came for a user. Returns whether it can be read.
    pub fn on_message(&mut self, message: &[u8], now_us: u64) -> bool {
        let Some((user_id, event)) = contract::user_event(message) else { return false };
        if let UserEvent::Replaced { stamp } = event {
            self.presence.on_replaced(user_id, stamp, &self.clock);
            self.post_replaced();
            return true;
        }
        if !self.presence.is_here(user_id) {
            self.counters.astray += 1;
            let nobody = SessionAddr::new(0, crate::driver::ConnId { slot: 0, generation: 0 });
            self.presence.remove_stray(user_id, nobody, now_us, &self.clock);
            return true;
        }
        let home = users::home(user_id, self.shards);
        match event {
            UserEvent::Push { kind, ends_unix_ms, biz_data } => {
                self.pass_push(user_id, kind, ends_unix_ms, &biz_data, now_us);
            }
            UserEvent::Kick => {
                self.pass(0, |permit| (home, UserMessage::Kick { user_id, permit }.into()));
            }
            UserEvent::Expel(room) => self.pass_expulsion(user_id, room),
            UserEvent::Replaced { .. } => {}
        }
        true
    }

    fn pass_push(
        &mut self,
        user_id: UserId,
        kind: i32,
        ends_unix_ms: u64,
        biz_data: &Bytes,
        now_us: u64,
    ) {
        let now_unix_us = self.clock.unix_us(now_us).unwrap_or(0);
        if ends_unix_ms != 0 && ends_unix_ms.saturating_mul(1000) <= now_unix_us {
            self.counters.expired += 1;
            return;
        }
        let push = Response { kind, status: 1, biz_data, ..Response::default() };
        if push.payload_len() > self.frame_bytes_max {
            self.counters.dropped += 1;
            return;
        }
        let mut frame = BytesMut::with_capacity(push.payload_len() + 5);
        server::put_push(&mut frame, kind, biz_data, 0, 0);
        let (frame, home) = (frame.freeze(), users::home(user_id, self.shards));
        let left_us = ends_unix_ms.saturating_mul(1000).saturating_sub(now_unix_us);
        let options = (ends_unix_ms != 0).then(|| {
            let push = Push::to_user(user_id, kind, Bytes::new());
            push.ttl(Duration::from_micros(left_us)).options
        });
        let options = options.flatten();
        self.pass(biz_data.len(), |permit| {
            (home, UserMessage::Push { user_id, frame, options, permit }.into())
        });
    }

    fn pass_expulsion(&mut self, user_id: UserId, room: RoomId) {
        let home = rooms::home(&room, self.shards);
        self.pass(0, |permit| (home, RoomMessage::Expel { room, user_id, permit }.into()));
    }

    /// Posts a message that has to be admitted.
    fn pass(&mut self, bytes: usize, message: impl FnOnce(Arc<CommandPermit>) -> (u16, Message)) {
        match self.limiter.admit(bytes, &mut None) {
            Ok(permit) => {
                let (shard, message) = message(permit);
                self.counters.received += 1;
                self.outputs.push_back(Output::Post(shard, message));
            }
            Err(_) => self.counters.dropped += 1,
        }
    }

    fn post_replaced(&mut self) {
        while let Some((user_id, addr)) = self.presence.next_replaced() {
            let (home, message) =
                (users::home(user_id, self.shards), UserMessage::Replace { user_id, addr });
            self.outputs.push_back(Output::Post(home, message.into()));
        }
    }

    /// An answer.
    pub fn on_answer(&mut self, tag: Tag, answer: Result<Value, Fault>, times: Times) {
        let now_us = times.received_us;
        let value = answer.as_ref().ok();
        let number = value.and_then(super::contract::number);
        match tag {
            Tag::GatewayId | Tag::Time => self.on_asked(tag, value, times),
            Tag::Alive(partition) => {
                let was_alive = number.map(|number| number == 1);
                let confirmed = self.channels.on_alive(partition, was_alive, now_us);
                if let Some(Confirmed { is_new, was_alive }) = confirmed {
                    let has_missed = is_new && self.presence.is_newest_wins();
                    if is_new || !was_alive {
                        self.presence.on_ready(partition, has_missed || !was_alive);
                    }
                }
            }
            Tag::Arrive(partition, number) => {
                let stamps =
                    answer.and_then(|value| contract::read_arrived(&value).ok_or(Fault::Refused));
                self.presence.on_arrived(partition, number, stamps, now_us);
                self.post_replaced();
            }
            Tag::Depart(partition, number) => {
                self.presence.on_departed(partition, number, answer.map(drop), now_us);
            }
            Tag::Send(partition, number) => {
                self.sending.on_sent(partition, number, answer.as_ref().map_err(|e| *e), now_us);
            }
            Tag::Gateways => {
                let gateways = value.and_then(contract::read_gateways);
                let (own, now_us) = (self.gateway.as_deref(), self.clock.unix_us(now_us));
                let now_unix_ms = now_us.unwrap_or(0) / 1000;
                self.chores.on_gateways(gateways, own.unwrap_or_default(), now_unix_ms);
            }
            Tag::Due(partition) => {
                self.chores.on_due(partition, value.and_then(contract::read_due));
            }
            Tag::Append(partition, user_id, at_ms) => {
                self.chores.on_appended(partition, (user_id, at_ms), value.is_some());
            }
            Tag::Told(partition) => self.chores.on_told(partition),
            Tag::Sweep(bucket) => {
                let took_us = now_us.saturating_sub(times.sent_us);
                self.chores.on_swept(bucket, number, took_us, now_us);
            }
            Tag::Count(partition) => self.chores.on_counted(partition, number),
        }
    }

    fn on_asked(&mut self, tag: Tag, answer: Option<&Value>, times: Times) {
        self.is_asking = false;
        let is_read = match tag {
            Tag::GatewayId => {
                let id = answer.and_then(contract::read_gateway_id);
                if self.gateway.is_none() {
                    self.gateway = id.map(str::to_owned);
                }
                false
            }
            _ => {
                let time = answer.and_then(contract::read_time);
                time.inspect(|&time| self.clock.on_time(times.sent_us, times.received_us, time))
                    .is_some()
            }
        };
        let Phase::Starting { readings } = self.phase else { return };
        let readings = readings + u8::from(is_read);
        if readings >= FIRST_READINGS {
            self.phase = Phase::Running;
            self.next_time_us = times.received_us + TIME_EVERY_US;
            self.channels.on_up();
            return;
        }
        self.phase = Phase::Starting { readings };
        // After a failure the next tick asks again.
        if answer.is_some() {
            self.ask();
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now_us: u64) {
        self.sending.tick(now_us);
        match self.phase {
            Phase::Down => {}
            Phase::Starting { .. } if self.is_asking => {}
            Phase::Starting { .. } => self.ask(),
            Phase::Running => {
                if self.next_time_us <= now_us && !self.is_asking {
                    self.next_time_us = now_us + TIME_EVERY_US;
                    self.ask();
                }
                self.presence.tick(now_us);
                self.chores.tick(now_us);
            }
        }
    }

    /// The next thing to do for this part.
    pub fn next_output(&mut self, now_us: u64) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let (Phase::Running, Some(gateway)) = (self.phase, &self.gateway) else { return None };
        if let Some(output) = self.channels.next_output(gateway, now_us) {
            return Some(output);
        }
        let (tag, cmd) = self
            .presence
            .next_request(gateway, now_us, &self.clock)
            .or_else(|| self.sending.next_request(gateway, now_us))
            .or_else(|| self.chores.next_request())?;
        Some(Output::Call(tag, cmd))
    }

    /// The thread ends: refuses what waits.
    pub fn refuse_all(&mut self) {
        self.sending.refuse_all();
    }
}
