//! Mailboxes: the only way into a shard from another thread.
//!
//! Any thread may post. The shard takes the messages out. A post wakes the shard only if the shard sleeps, so a post to a
//! busy shard costs no system call.
//!
//! The queue itself has no bound, since each kind of message is bounded at its source: answers by the calls in
//! flight, commands by the [`CommandLimiter`](super::command::CommandLimiter), registrations by the connections.
//!
//! The mailbox of a shard that has ended is closed. It drops what it holds and what is posted later, and
//! refuses commands, so that no caller waits for an ended shard.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use tidegate_backend::batch::{self, Wake};
use tidegate_backend::handler::{CallId, Outcome};
use tokio::sync::oneshot;

use super::rooms::message::RoomMessage;
use super::users::message::{SessionMessage, UserMessage};
use crate::control::ShardInfo;

/// The answer of a call, on its way to the shard.
#[derive(Debug)]
pub struct Answer {
    /// Which call.
    pub call: CallId,
    /// How it ended.
    pub outcome: Outcome,
}

/// A message to a shard.
#[derive(Debug)]
pub enum Message {
    /// A backend has answered a call.
    Answer(Answer),
    /// To a user's home.
    User(UserMessage),
    /// To the shard of a connection.
    Session(SessionMessage),
    /// About a room.
    Room(RoomMessage),
    /// An operator asks for the shard's figures.
    AskShard {
        /// Takes the answer.
        reply: oneshot::Sender<ShardInfo>,
    },
    /// Close all connections gracefully, and end.
    Drain,
    /// End now.
    Stop,
}

impl Message {
    /// Drops the message because its shard has ended. Whoever gave the command learns the reason.
    pub(super) fn refuse(self) {
        match self {
            Self::User(message) => message.refuse(),
            Self::Room(message) => message.refuse(),
            // Their shard has no connection left, or nobody needs to know.
            Self::Session(_)
            | Self::Answer(_)
            | Self::AskShard { .. }
            | Self::Drain
            | Self::Stop => {}
        }
    }
}

impl From<UserMessage> for Message {
    fn from(message: UserMessage) -> Self {
        Self::User(message)
    }
}

impl From<RoomMessage> for Message {
    fn from(message: RoomMessage) -> Self {
        Self::Room(message)
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
    /// [`AWAKE`], [`ASLEEP`] or [`CLOSED`]. A closed mailbox stays closed.
    state: CachePadded<AtomicU8>,
    /// Ends the shard's wait. Set once, before the shard first sleeps.
    waker: OnceLock<Arc<dyn Wake>>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let state = CachePadded::new(AtomicU8::new(AWAKE));
        Self { queue: SegQueue::new(), state, waker: OnceLock::new() }
    }

    /// Sets what ends the shard's wait. Only the first call counts.
    pub fn set_waker(&self, waker: Arc<dyn Wake>) {
        drop(self.waker.set(waker));
    }

    /// Takes the oldest message.
    #[inline]
    pub(super) fn pop(&self) -> Option<Message> {
        self.queue.pop()
    }

    /// The shard is about to wait. `false`: it must not, since there is a message.
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

    /// The shard is awake and looks at its mailbox by itself.
    pub(super) fn stay_awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// The shard has ended. Refuses all messages.
    pub(super) fn close(&self) {
        self.state.store(CLOSED, Ordering::Relaxed);
        // Pairs with the fence in `post`, as above: no message stays in the queue.
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

    /// Posts a message and wakes the shard if it sleeps. If the shard has ended, the message is refused.
    #[inline]
    pub fn post(&self, message: impl Into<Message>) {
        self.mailbox.queue.push(message.into());
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
