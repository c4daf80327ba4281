//! Mailboxes: the only way into a shard from another thread.
//!
//! Anybody posts, the shard drains. Posting wakes the shard only if it sleeps, and says so before it
//! does: a shard that is busy costs its neighbours no system call.
//!
//! The queue itself has no bound. Everything in it has one at its source: answers by the calls in
//! flight, commands by the [`Gate`](super::receipt::Gate), registrations by the connections.
//!
//! The mailbox of a shard that has ended is closed: what is in it and what is posted later is dropped, and
//! commands are refused, so that nobody waits for a shard that is no more.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use tidegate_backend::batch::{self, Wake};
use tidegate_backend::handler::{CallId, Outcome};
use tidegate_backend::{PushError, RoomId, UserId};
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

impl Message {
    /// Drops it because the shard that it was for has ended. Whose command it was hears of it.
    pub(super) fn refuse(self) {
        match self {
            // These are for the home of a user or of a room: nothing was done.
            Self::Kick { receipt, .. }
            | Self::PushUser { receipt, .. }
            | Self::Publish { receipt, .. }
            | Self::Join { receipt, .. }
            | Self::Leave { receipt, .. } => receipt.refuse(PushError::Stopping),
            // The shard's connections ended before it.
            Self::Joined { receipt, .. } => receipt.refuse(PushError::SessionGone),
            // Nobody is left there whom it could go to.
            _ => {}
        }
    }
}

/// The shard looks at its mailbox by itself.
const AWAKE: u8 = 0;
/// The shard waits, or is about to.
const ASLEEP: u8 = 1;
/// The shard has ended.
const CLOSED: u8 = 2;

/// One shard's mailbox.
pub struct Mailbox {
    queue: SegQueue<Message>,
    /// What the shard does: [`AWAKE`], [`ASLEEP`] or [`CLOSED`], which it stays.
    state: CachePadded<AtomicU8>,
    /// How to end its wait. Set once, before the shard first sleeps.
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let state = CachePadded::new(AtomicU8::new(AWAKE));
        Self { queue: SegQueue::new(), state, waker: OnceLock::new() }
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
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `post`: either the poster sees `ASLEEP`, or we see the message.
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.state.store(AWAKE, Ordering::Relaxed);
        false
    }

    /// Says that the shard looks at its mailbox by itself.
    pub(super) fn stay_awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Says that the shard has ended, and refuses what is left.
    pub(super) fn close(&self) {
        self.state.store(CLOSED, Ordering::Relaxed);
        // Pairs with the fence in `post`, as above: nobody's message stays behind.
        fence(Ordering::SeqCst);
        self.refuse_all();
    }

    fn refuse_all(&self) {
        while let Some(message) = self.queue.pop() {
            message.refuse();
        }
    }
}

impl Wake for Mailbox {
    fn wake(&self) {
        let was_asleep =
            self.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if was_asleep && let Some(waker) = self.waker.get() {
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

    /// Posts a message, and sees to it that the shard looks. Where it has ended, the message is dropped.
    #[inline]
    pub fn post(&self, message: Message) {
        self.mailbox.queue.push(message);
        fence(Ordering::SeqCst);
        match self.mailbox.state.load(Ordering::Relaxed) {
            AWAKE => {}
            ASLEEP => batch::wake(&self.wake),
            _ => self.mailbox.refuse_all(),
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
