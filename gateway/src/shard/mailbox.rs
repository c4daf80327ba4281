//! Mailboxes: the only way into a shard from another thread.
//!
//! Anybody posts, the shard drains. Posting wakes the shard only if it sleeps, and says so before it
//! does: a shard that is busy costs its neighbours no system call.
//!
//! The queue itself has no bound. Everything in it has one at its source: answers by the calls in
//! flight, commands by the [`Gate`](super::receipt::Gate), registrations by the connections.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use tidegate_backend::batch::{self, Wake};
use tidegate_backend::handler::{CallId, Outcome};
use tidegate_backend::{RoomId, UserId};
use tidegate_protocol::Code;
use tokio::sync::oneshot;

use super::log::Log;
use super::receipt::{Gather, Receipt};
use super::windows::Urgency;
use crate::control::{RoomInfo, ShardInfo, UserInfo};
use crate::driver::ConnId;
use crate::session_id::Place;

/// The answer of a call, on its way back.
#[derive(Debug)]
pub struct Answer {
    /// Which call.
    pub call: CallId,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a shard is told from outside.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their types say")]
pub enum Message {
    /// A backend has answered.
    Answer(Answer),

    /// To a user's home: this connection shows that it is the user's.
    Register { user_id: UserId, place: Place, sequence: u64 },
    /// From a user's home: the session may open.
    Registered { conn: ConnId, sequence: u64 },
    /// To a user's home: the connection is gone.
    Deregister { user_id: UserId, place: Place },
    /// From a user's home: close the connection, with a goodbye.
    Evict { conn: ConnId, code: Code, receipt: Option<Arc<Receipt>> },
    /// To a user's home: close all of the user's connections with 107.
    Kick { user_id: UserId, receipt: Arc<Receipt> },
    /// To a user's home: a push to each of the user's connections.
    PushUser { user_id: UserId, frame: Bytes, receipt: Arc<Receipt> },
    /// From a user's home: a push to this connection.
    Deliver { conn: ConnId, frame: Bytes, receipt: Arc<Receipt> },

    /// To a room's home: number it, remember it, pass it on.
    Publish { room: RoomId, kind: i32, biz_data: Bytes, receipt: Arc<Receipt> },
    /// From a room's home to each shard with members: the next frame of the room's log.
    Append { room: RoomId, offset: u64, frame: Bytes, urgency: Urgency, receipt: Arc<Receipt> },
    /// To a room's home.
    Join { room: RoomId, place: Place, after_offset: Option<u64>, receipt: Arc<Receipt> },
    /// From a room's home; with the log where the shard has none.
    Joined {
        room: RoomId,
        conn: ConnId,
        after_offset: Option<u64>,
        log: Option<Box<Log>>,
        receipt: Arc<Receipt>,
    },
    /// To a room's home.
    Leave { room: RoomId, place: Place, receipt: Arc<Receipt> },
    /// From a room's home.
    Left { room: RoomId, conn: ConnId, receipt: Arc<Receipt> },
    /// To a room's home: no members left here, after this many [`Message::Joined`].
    Unsubscribe { room: RoomId, shard: u16, joins: u64 },
    /// From a room's home: nothing more of this room will come.
    Unsubscribed { room: RoomId },

    /// To a user's home.
    AskUser { user_id: UserId, reply: oneshot::Sender<UserInfo> },
    /// To a room's home.
    AskRoom { room: RoomId, reply: oneshot::Sender<Option<RoomInfo>> },
    /// From a room's home: add what you have.
    CountMembers { room: RoomId, gather: Arc<Gather<Option<RoomInfo>>> },
    /// To any shard.
    AskShard { reply: oneshot::Sender<ShardInfo> },

    /// Say goodbye to everybody and end.
    Drain,
    /// End now.
    Stop,
}

/// One shard's mailbox.
pub struct Mailbox {
    queue: SegQueue<Message>,
    /// Whether the shard waits, or is about to.
    asleep: CachePadded<AtomicBool>,
    /// How to end its wait. Set once, before the shard first sleeps.
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let asleep = CachePadded::new(AtomicBool::new(false));
        Self { queue: SegQueue::new(), asleep, waker: OnceLock::new() }
    }

    /// Says how to end the shard's wait. Only the first one counts.
    pub fn set_waker(&self, waker: Arc<dyn Wake>) {
        drop(self.waker.set(waker));
    }

    /// Takes the oldest message.
    #[inline]
    pub(super) fn pop(&self) -> Option<Message> {
        self.queue.pop()
    }

    /// Says that the shard is about to wait. `false`: don't, there is something here.
    pub(super) fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `post`: either the poster sees `asleep`, or we see the message.
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::Relaxed);
        false
    }

    /// Says that the shard looks at its mailbox by itself.
    pub(super) fn stay_awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl Wake for Mailbox {
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }
}

/// A way into a shard's mailbox, for any thread.
#[derive(Clone)]
pub struct Address {
    mailbox: Arc<Mailbox>,
    wake: Arc<dyn Wake>,
}

impl Address {
    /// A fresh mailbox's address.
    #[must_use]
    pub fn new() -> Self {
        let mailbox = Arc::new(Mailbox::new());
        Self { wake: Arc::clone(&mailbox) as Arc<dyn Wake>, mailbox }
    }

    /// The mailbox itself, for its shard.
    #[must_use]
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Posts a message, and sees to it that the shard looks.
    #[inline]
    pub fn post(&self, message: Message) {
        self.mailbox.queue.push(message);
        fence(Ordering::SeqCst);
        if self.mailbox.asleep.load(Ordering::Relaxed) {
            batch::wake(&self.wake);
        }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}
