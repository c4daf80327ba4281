//! The way into all shards at once: what backends command and operators ask.
//!
//! It finds the shard that a user, a room or a session has its home on, and posts there. It keeps
//! the bound on commands under way, and never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use crossbeam::atomic::AtomicCell;
use tidegate_backend::publisher::{Command, GatewayPort, Report, Target};
use tidegate_backend::{CommandOutcome, PushError, RoomId, SessionId, UserId};
use tidegate_protocol::message::Response;
use tidegate_protocol::server;
use tokio::sync::oneshot;

use crate::control::{Control, Readiness, Reply, RoomInfo, ShardInfo, UserInfo};
use crate::session_id::{Place, SessionIds};
use crate::shard::mailbox::{Address, Message};
use crate::shard::receipt::{Gate, Receipt};
use crate::shard::{rooms, users};

/// All shards' mailboxes, and who is to be found where.
#[derive(Debug)]
pub struct Hub {
    addresses: Vec<Address>,
    gate: Arc<Gate>,
    session_ids: SessionIds,
    frame_bytes_max: usize,
    readiness: AtomicCell<Readiness>,
    /// The shards have ended, or are about to: nobody takes commands.
    stopped: AtomicBool,
}

impl Hub {
    /// A hub over these shards.
    #[must_use]
    pub fn new(
        addresses: Vec<Address>,
        gate: Arc<Gate>,
        session_ids: SessionIds,
        frame_bytes_max: usize,
    ) -> Self {
        let readiness = AtomicCell::new(Readiness::Starting);
        let stopped = AtomicBool::new(false);
        Self { addresses, gate, session_ids, frame_bytes_max, readiness, stopped }
    }

    /// Says whether new connections are welcome.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.store(readiness);
    }

    /// Takes no more commands: [`PushError::Stopping`].
    pub fn set_stopped(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Tells every shard the same.
    pub fn tell_all(&self, message: impl Fn() -> Message) {
        self.addresses.iter().for_each(|address| address.post(message()));
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

    fn place(&self, session: SessionId) -> Result<Place, PushError> {
        let place = self.session_ids.place(session);
        if place.shard() < self.shards() { Ok(place) } else { Err(PushError::UnknownSession) }
    }

    /// Takes a command. Its report, if it has one, is taken with it; it is left where the command is not.
    fn take(&self, command: Command, report: &mut Option<Report>) -> Result<(), PushError> {
        match command {
            Command::Push { target, kind, biz_data } => {
                return self.push(target, kind, biz_data, report);
            }
            Command::Join { session, room, after_offset } => {
                let (place, receipt) = (self.place(session)?, self.enter(0, report)?);
                let home = self.home_of_room(&room);
                home.post(Message::Join { room, place, after_offset, receipt });
            }
            Command::Leave { session, room } => {
                let (place, receipt) = (self.place(session)?, self.enter(0, report)?);
                self.home_of_room(&room).post(Message::Leave { room, place, receipt });
            }
            Command::Kick { user_id } => {
                let receipt = self.enter(0, report)?;
                self.home_of_user(user_id).post(Message::Kick { user_id, receipt });
            }
        }
        Ok(())
    }

    fn push(
        &self,
        target: Target,
        kind: i32,
        biz_data: Bytes,
        report: &mut Option<Report>,
    ) -> Result<(), PushError> {
        if kind <= 0 {
            return Err(PushError::BadType(kind));
        }
        // The offset isn't known yet: it is taken as the longest.
        let push = Response { kind, status: 1, biz_data: &biz_data, ..Response::default() };
        let longest = Response { offset: u64::MAX, ..push };
        if longest.payload_len() > self.frame_bytes_max {
            let bytes = longest.payload_len();
            return Err(PushError::TooLong { bytes, bytes_max: self.frame_bytes_max });
        }
        let receipt = self.enter(biz_data.len(), report)?;
        match target {
            Target::User(user_id) => {
                let mut frame = BytesMut::with_capacity(push.payload_len() + 5);
                server::put_push(&mut frame, kind, &biz_data, 0);
                let frame = frame.freeze();
                self.home_of_user(user_id).post(Message::PushUser { user_id, frame, receipt });
            }
            Target::Room(room) => {
                let home = self.home_of_room(&room);
                home.post(Message::Publish { room, kind, biz_data, receipt });
            }
        }
        Ok(())
    }

    fn enter(&self, bytes: usize, report: &mut Option<Report>) -> Result<Arc<Receipt>, PushError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(PushError::Stopping);
        }
        self.gate.enter(bytes, report)
    }
}

impl GatewayPort for Hub {
    fn command(&self, command: Command) -> Result<(), PushError> {
        self.take(command, &mut None)
    }

    fn command_reporting(&self, command: Command, report: Report) {
        let mut report = Some(report);
        if let Err(error) = self.take(command, &mut report)
            && let Some(report) = report
        {
            report(Err(error));
        }
    }
}

impl Control for Hub {
    fn readiness(&self) -> Readiness {
        self.readiness.load()
    }

    fn command(&self, command: Command) -> Reply<CommandOutcome> {
        let (reply, answer) = oneshot::channel();
        let report = move |outcome| {
            // Who asked may have stopped waiting.
            let _ = reply.send(outcome);
        };
        self.command_reporting(command, Box::new(report));
        answer
    }

    fn user(&self, user_id: UserId) -> Reply<UserInfo> {
        let (reply, answer) = oneshot::channel();
        self.home_of_user(user_id).post(Message::AskUser { user_id, reply });
        answer
    }

    fn room(&self, room: RoomId) -> Reply<Option<RoomInfo>> {
        let (reply, answer) = oneshot::channel();
        self.home_of_room(&room).post(Message::AskRoom { room, reply });
        answer
    }

    fn shards(&self) -> u16 {
        Self::shards(self)
    }

    fn shard(&self, shard: u16) -> Reply<ShardInfo> {
        let (reply, answer) = oneshot::channel();
        self.addresses[usize::from(shard)].post(Message::AskShard { reply });
        answer
    }
}
