//! The way into all shards at once: what backends command and operators ask.
//!
//! It finds the shard that a user, a room or a session has its home on, and posts there. It keeps
//! the bound on commands under way, and never blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use tidegate_backend::publisher::{Command, GatewayPort, Target};
use tidegate_backend::{PushError, RoomId, SessionId, UserId};
use tidegate_protocol::message::Response;
use tidegate_protocol::server;
use tokio::sync::oneshot;

use crate::control::{Control, Reply, RoomInfo, ShardInfo, UserInfo};
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
    ready: AtomicBool,
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
        let (ready, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { addresses, gate, session_ids, frame_bytes_max, ready, stopped }
    }

    /// Says whether new connections are welcome.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
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

    fn send_push(
        &self,
        target: Target,
        kind: i32,
        biz_data: Bytes,
        reply: Option<oneshot::Sender<u64>>,
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
        let receipt = self.enter(biz_data.len(), reply)?;
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

    fn enter(
        &self,
        bytes: usize,
        reply: Option<oneshot::Sender<u64>>,
    ) -> Result<Arc<Receipt>, PushError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(PushError::Stopping);
        }
        self.gate.enter(bytes, reply)
    }
}

impl GatewayPort for Hub {
    fn command(&self, command: Command) -> Result<(), PushError> {
        match command {
            Command::Push { target, kind, biz_data } => {
                self.send_push(target, kind, biz_data, None)?;
            }
            Command::Join { session, room, after_offset } => {
                let (place, receipt) = (self.place(session)?, self.enter(0, None)?);
                let home = self.home_of_room(&room);
                home.post(Message::Join { room, place, after_offset, receipt });
            }
            Command::Leave { session, room } => {
                let (place, receipt) = (self.place(session)?, self.enter(0, None)?);
                self.home_of_room(&room).post(Message::Leave { room, place, receipt });
            }
            Command::Kick { user_id } => {
                let receipt = self.enter(0, None)?;
                self.home_of_user(user_id).post(Message::Kick { user_id, receipt });
            }
        }
        Ok(())
    }
}

impl Control for Hub {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn push(&self, target: Target, kind: i32, biz_data: Bytes) -> Result<Reply<u64>, PushError> {
        let (reply, answer) = oneshot::channel();
        self.send_push(target, kind, biz_data, Some(reply))?;
        Ok(answer)
    }

    fn kick(&self, user_id: UserId) -> Result<Reply<u64>, PushError> {
        let (reply, answer) = oneshot::channel();
        let receipt = self.enter(0, Some(reply))?;
        self.home_of_user(user_id).post(Message::Kick { user_id, receipt });
        Ok(answer)
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

    fn stats(&self) -> Vec<Reply<ShardInfo>> {
        let ask = |address: &Address| {
            let (reply, answer) = oneshot::channel();
            address.post(Message::AskShard { reply });
            answer
        };
        self.addresses.iter().map(ask).collect()
    }
}
