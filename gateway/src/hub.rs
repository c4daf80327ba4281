//! Routes commands of backends and questions of operators to the shards.
//!
//! It finds the home shard of a user, a room or a session, and posts to that shard's mailbox. It enforces the bound on
//! commands in flight. It never blocks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use crossbeam::atomic::AtomicCell;
use tidegate_backend::log_limit::LogLimit;
use tidegate_backend::publisher::{Command, GatewayPort, Push, Report, Target};
use tidegate_backend::{CommandOutcome, PushError, RoomId, SessionId, UserId};
use tidegate_protocol::message::Response;
use tidegate_protocol::server;
use tokio::sync::oneshot;

use crate::cluster::ClusterAddress;
use crate::cluster::message::{ToCluster, UserOrder};
use crate::control::{Control, Drains, Readiness, Reply, RoomInfo, ShardInfo, UserInfo};
use crate::limits::sessions::JoinRate;
use crate::session_id::{SessionAddr, SessionIds};
use crate::settings::NewSettings;
use crate::shard::command::{CommandClass, CommandLimiter, CommandPermit, RoomPush};
use crate::shard::mailbox::{Address, Message};
use crate::shard::rebalance::Share;
use crate::shard::rooms;
use crate::shard::rooms::log::After;
use crate::shard::rooms::message::{Asker, RoomMessage};
use crate::shard::users::{self, message::UserMessage};

/// The mailboxes of all shards, and which shard is the home of what.
#[derive(Debug)]
pub struct Hub {
    addresses: Vec<Address>,
    /// The mailbox of the HTTP gateway, where there is one.
    http: OnceLock<Address>,
    /// What drains beside the shards. A gateway without it has shards alone.
    beside: OnceLock<Arc<dyn Drains>>,
    /// The way to the other gateways; `None`: this gateway is alone.
    cluster: Option<ClusterAddress>,
    limiter: Arc<CommandLimiter>,
    /// The limit on log lines of refused commands.
    refusals: LogLimit,
    /// How often a session may join rooms; `None`: there is no limit.
    join_rate: Option<JoinRate>,
    session_ids: SessionIds,
    frame_bytes_max: usize,
    readiness: AtomicCell<Readiness>,
    /// The shards have ended, or are about to: commands are refused.
    stopped: AtomicBool,
}

/// Who gives a command.
#[derive(Clone, Copy, Debug)]
enum Caller {
    Backend,
    Operator,
}

impl Caller {
    /// The class of a command that is of the class `backends` if a backend gives it.
    const fn class(self, backends: CommandClass) -> CommandClass {
        match self {
            Self::Backend => backends,
            Self::Operator => CommandClass::Operator,
        }
    }
}

impl Hub {
    /// A hub over these shards.
    #[must_use]
    pub fn new(
        addresses: Vec<Address>,
        cluster: Option<ClusterAddress>,
        (limiter, join_rate): (Arc<CommandLimiter>, Option<JoinRate>),
        session_ids: SessionIds,
        frame_bytes_max: usize,
    ) -> Self {
        let readiness = AtomicCell::new(Readiness::Starting);
        let stopped = AtomicBool::new(false);
        let (http, beside) = (OnceLock::new(), OnceLock::new());
        Self {
            addresses,
            http,
            beside,
            cluster,
            limiter,
            refusals: LogLimit::new(),
            join_rate,
            session_ids,
            frame_bytes_max,
            readiness,
            stopped,
        }
    }

    /// The mailbox of the HTTP gateway: there is one from now on.
    pub fn add_http(&self) -> Address {
        self.http.get_or_init(Address::new).clone()
    }

    /// What drains beside the shards, from now on. Only the first call counts.
    pub fn drain_beside(&self, beside: Arc<dyn Drains>) {
        drop(self.beside.set(beside));
    }

    /// Sets whether new connections are accepted.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(readiness);
    }

    /// Refuses commands from now on: [`PushError::Stopping`].
    pub fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Posts a message to every shard.
    pub fn tell_all(&self, message: impl Fn() -> Message) {
        self.addresses.iter().for_each(|address| address.post(message()));
    }

    /// Posts other settings to every shard and to the HTTP gateway. Returns the numbers with which they confirm that.
    pub(crate) fn reload(&self, new: &NewSettings) -> Vec<u16> {
        let all = self.addresses.iter().chain(self.http.get());
        all.clone().for_each(|address| address.post(Message::Reload(new.clone())));
        (0..).zip(all).map(|(number, _)| number).collect()
    }

    fn shards(&self) -> u16 {
        u16::try_from(self.addresses.len()).expect("at most 256 shards")
    }

    fn home_of_user(&self, user_id: UserId) -> &Address {
        &self.addresses[usize::from(users::home(user_id, self.shards()))]
    }

    fn home_of_room(&self, room: &RoomId) -> &Address {
        &self.addresses[usize::from(rooms::home(room, self.shards()))]
    }

    fn addr(&self, session: SessionId) -> Result<SessionAddr, PushError> {
        let addr = self.session_ids.addr(session);
        if addr.shard() < self.shards() { Ok(addr) } else { Err(PushError::UnknownSession) }
    }

    /// Posts a command. Takes the report with it, if there is one. An error leaves the report to the caller, or was given to
    /// it.
    fn take(
        &self,
        command: Command,
        caller: Caller,
        report: &mut Option<Report>,
    ) -> Result<(), PushError> {
        match command {
            Command::Push(push) => {
                let (shard, message) = self.prepare(push, caller, report)?;
                self.addresses[usize::from(shard)].post(message);
            }
            Command::Join { session, room, after_offset } => {
                let (addr, permit) = self.admit_join(session, caller, report)?;
                let after = after_offset.map_or(After::Now, After::Offset);
                let (home, asker) = (self.home_of_room(&room), Asker::Backend(permit));
                home.post(RoomMessage::Join { room, addr, after, asker });
            }
            Command::Leave { session, room } => {
                let addr = self.addr(session)?;
                let permit = self.admit(caller.class(CommandClass::Release), 0, report)?;
                self.home_of_room(&room).post(RoomMessage::Leave { room, addr, permit });
            }
            Command::Expel { user_id, room } => {
                let permit = self.admit(caller.class(CommandClass::Release), 0, report)?;
                self.home_of_room(&room).post(RoomMessage::Expel { room, user_id, permit });
            }
            Command::Kick { user_id } => {
                let permit = self.admit(caller.class(CommandClass::Release), 0, report)?;
                self.send_elsewhere(user_id, &permit, || UserOrder::Kick);
                self.home_of_user(user_id).post(UserMessage::Kick { user_id, permit });
            }
        }
        Ok(())
    }

    /// Checks and admits a push. Returns the message for its home, and which shard that is.
    fn prepare(
        &self,
        push: Push,
        caller: Caller,
        report: &mut Option<Report>,
    ) -> Result<(u16, Message), PushError> {
        push.check()?;
        let Push { target, kind, biz_data, options, .. } = push;
        // The offset and the room's number are not known yet, so their longest encodings count.
        let push = Response { kind, status: 1, biz_data: &biz_data, ..Response::default() };
        let longest = Response { offset: u64::MAX, room: u32::MAX, ..push };
        if longest.payload_len() > self.frame_bytes_max {
            let bytes = longest.payload_len();
            return Err(PushError::TooLong { bytes, bytes_max: self.frame_bytes_max });
        }
        let permit = self.admit(caller.class(CommandClass::Push), biz_data.len(), report)?;
        match target {
            Target::User(user_id) => {
                let mut frame = BytesMut::with_capacity(push.payload_len() + 5);
                server::put_push(&mut frame, kind, &biz_data, 0, 0);
                let frame = frame.freeze();
                let order = || UserOrder::Push { kind, biz_data, options: options.clone() };
                self.send_elsewhere(user_id, &permit, order);
                let home = users::home(user_id, self.shards());
                Ok((home, UserMessage::Push { user_id, frame, options, permit }.into()))
            }
            Target::Room(room) => {
                let home = rooms::home(&room, self.shards());
                let push = RoomPush { room, kind, biz_data, options, permit };
                Ok((home, RoomMessage::Publish(push).into()))
            }
        }
    }

    /// Sends a command to the user's sessions at other gateways, if there may be any. The command ends when both parts of
    /// it have.
    fn send_elsewhere(
        &self,
        user_id: UserId,
        permit: &Arc<CommandPermit>,
        order: impl FnOnce() -> UserOrder,
    ) {
        if let Some(cluster) = &self.cluster {
            let permit = Arc::clone(permit);
            cluster.post(ToCluster::ToUser { user_id, order: order(), permit });
        }
    }

    /// Admits a join of a session. The rate comes last: a join that is refused for the bound takes nothing of it.
    fn admit_join(
        &self,
        session: SessionId,
        caller: Caller,
        report: &mut Option<Report>,
    ) -> Result<(SessionAddr, Arc<CommandPermit>), PushError> {
        let addr = self.addr(session)?;
        let permit = self.admit(caller.class(CommandClass::Join), 0, report)?;
        if let Some(Err(error)) = self.join_rate.as_ref().map(|rate| rate.take(session)) {
            permit.refuse(error);
            return Err(error);
        }
        Ok((addr, permit))
    }

    fn admit(
        &self,
        class: CommandClass,
        bytes: usize,
        report: &mut Option<Report>,
    ) -> Result<Arc<CommandPermit>, PushError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(PushError::Stopping);
        }
        self.limiter.admit_as(class, bytes, report).inspect_err(|_| self.log_refused(class, bytes))
    }

    #[cold]
    fn log_refused(&self, class: CommandClass, bytes: usize) {
        let Some(suppressed) = self.refusals.allow() else { return };
        let (commands_max, commands_bytes_max) = self.limiter.bounds();
        tracing::warn!(
            ?class,
            bytes,
            commands = self.limiter.commands(),
            limits.commands_max = commands_max,
            limits.commands_bytes_max = commands_bytes_max,
            suppressed,
            "refused a command: what its class may use of limits.commands_max or limits.commands_bytes_max is taken"
        );
    }
}

impl Hub {
    fn take_reporting(&self, command: Command, caller: Caller, report: Report) {
        let mut report = Some(report);
        if let Err(error) = self.take(command, caller, &mut report)
            && let Some(report) = report
        {
            report(Err(error));
        }
    }

    /// Posts once to each shard that is the home of a target. So pushes to one target stay in order.
    fn take_many(
        &self,
        pushes: Vec<(Push, Option<Report>)>,
        caller: Caller,
    ) -> Vec<Result<(), PushError>> {
        let mut messages: Vec<Vec<Message>> = self.addresses.iter().map(|_| Vec::new()).collect();
        let mut prepare = |(push, mut report): (Push, Option<Report>)| {
            let prepared = self.prepare(push, caller, &mut report);
            if let (Err(error), Some(report)) = (&prepared, report) {
                report(Err(*error));
            }
            let (shard, message) = prepared?;
            messages[usize::from(shard)].push(message);
            Ok(())
        };
        let taken = pushes.into_iter().map(&mut prepare).collect();
        for (address, messages) in self.addresses.iter().zip(messages) {
            address.post_all(messages);
        }
        taken
    }
}

/// The commands of backends.
impl GatewayPort for Hub {
    fn command(&self, command: Command) -> Result<(), PushError> {
        self.take(command, Caller::Backend, &mut None)
    }

    fn command_reporting(&self, command: Command, report: Report) {
        self.take_reporting(command, Caller::Backend, report);
    }

    fn push_many(&self, pushes: Vec<(Push, Option<Report>)>) -> Vec<Result<(), PushError>> {
        self.take_many(pushes, Caller::Backend)
    }
}

/// The commands of operators, which have a reserve of the bound on commands.
struct OperatorsPort<'a>(&'a Hub);

impl GatewayPort for OperatorsPort<'_> {
    fn command(&self, command: Command) -> Result<(), PushError> {
        self.0.take(command, Caller::Operator, &mut None)
    }

    fn command_reporting(&self, command: Command, report: Report) {
        self.0.take_reporting(command, Caller::Operator, report);
    }

    fn push_many(&self, pushes: Vec<(Push, Option<Report>)>) -> Vec<Result<(), PushError>> {
        self.0.take_many(pushes, Caller::Operator)
    }
}

impl Control for Hub {
    fn readiness(&self) -> Readiness {
        self.readiness.load()
    }

    fn command(&self, command: Command) -> Reply<CommandOutcome> {
        let (reply, answer) = oneshot::channel();
        let report = move |outcome| {
            // The receiver may have stopped waiting.
            let _ = reply.send(outcome);
        };
        OperatorsPort(self).command_reporting(command, Box::new(report));
        answer
    }

    fn push_many(&self, pushes: Vec<Push>) -> Reply<Vec<CommandOutcome>> {
        let (reply, answer) = oneshot::channel();
        let report = move |outcomes| {
            // The receiver may have stopped waiting.
            let _ = reply.send(outcomes);
        };
        OperatorsPort(self).push_many_reporting(pushes, Box::new(report));
        answer
    }

    fn user(&self, user_id: UserId) -> Reply<UserInfo> {
        let (reply, answer) = oneshot::channel();
        self.home_of_user(user_id).post(UserMessage::Inspect { user_id, reply });
        answer
    }

    fn room(&self, room: RoomId) -> Reply<Option<RoomInfo>> {
        let (reply, answer) = oneshot::channel();
        self.home_of_room(&room).post(RoomMessage::Inspect { room, reply });
        answer
    }

    fn shards(&self) -> u16 {
        Self::shards(self)
    }

    fn shard(&self, shard: u16) -> Reply<ShardInfo> {
        let (reply, answer) = oneshot::channel();
        self.addresses[usize::from(shard)].post(Message::InspectShard { reply });
        answer
    }

    fn http(&self) -> Option<Reply<ShardInfo>> {
        let (reply, answer) = oneshot::channel();
        self.http.get()?.post(Message::InspectShard { reply });
        Some(answer)
    }

    fn count_movable(&self, shard: u16, spared_s: u16) -> Reply<u64> {
        let (reply, answer) = oneshot::channel();
        self.addresses[usize::from(shard)].post(Message::CountMovable { spared_s, reply });
        answer
    }

    fn send_away(&self, shard: u16, share: Share) {
        self.addresses[usize::from(shard)].post(Message::SendAway(share));
    }

    fn drain(&self) {
        if self.readiness.swap(Readiness::Draining) != Readiness::Draining {
            self.beside.get().inspect(|beside| beside.drain());
            self.tell_all(|| Message::Drain);
        }
    }

    fn hurry_drain(&self) {
        self.drain();
        self.beside.get().inspect(|beside| beside.hurry());
        self.tell_all(|| Message::HurryDrain);
    }
}
