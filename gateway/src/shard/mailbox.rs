//! Mailboxes: the only way into a shard from another thread.
//!
//! Any thread may post. The shard takes all messages at once, in the order in which they were posted. A post wakes the
//! shard only if the shard sleeps, so a post to a busy shard costs no system call.
//!
//! The queue itself has no bound, since each kind of message is bounded at its source: answers and findings of
//! expired calls by the calls in flight, commands by the [`CommandLimiter`](super::command::CommandLimiter),
//! registrations by the connections, verdicts on tokens by the verifications under way. Revocations have no bound but the
//! network's.
//!
//! The mailbox of a shard that has ended is closed. It drops what it holds and what is posted later, and
//! refuses commands, so that no caller waits for an ended shard.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fmt, mem};

use crossbeam::utils::CachePadded;
use tidegate_backend::batch::{self, Wake};
use tidegate_backend::handler::{CallId, Outcome};
use tokio::sync::oneshot;

use super::rebalance::Share;
use super::rooms::message::RoomMessage;
use super::tokens::TokenMessage;
use super::users::message::{SessionMessage, UserMessage};
use crate::control::ShardInfo;
use crate::settings::NewSettings;

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
    /// A worker has found that a call expired before a handler got it.
    Expired(CallId),
    /// A call has left the queue of its backend, since it had waited too long for a worker.
    Shed(CallId),
    /// To a user's home.
    User(UserMessage),
    /// To the shard of a connection.
    Session(SessionMessage),
    /// About a room.
    Room(RoomMessage),
    /// About tokens.
    Token(TokenMessage),
    /// An operator wants to see the shard's figures. Who watches over the threads asks the HTTP gateway too.
    InspectShard {
        /// Takes the answer.
        reply: oneshot::Sender<ShardInfo>,
    },
    /// Send this number of clients to other gateways.
    SendAway(Share),
    /// Count the clients that a rebalance could send to other gateways, without those that came in the last `spared_s`
    /// seconds.
    CountMovable {
        /// See [`Order`](super::rebalance::Order).
        spared_s: u16,
        /// Takes the count.
        reply: oneshot::Sender<u64>,
    },
    /// Use other settings from now on.
    Reload(NewSettings),
    /// Close all connections gracefully, and end.
    Drain,
    /// The same, in a hurry. A drain that is under way is hurried.
    HurryDrain,
    /// End now.
    Stop,
}

impl Message {
    /// Whether it comes from a backend and says how a call has ended.
    #[inline]
    pub(super) const fn ends_a_call(&self) -> bool {
        matches!(self, Self::Answer(_) | Self::Expired(_) | Self::Shed(_))
    }

    /// Drops the message because its shard has ended. The caller of the command learns the reason.
    pub(crate) fn refuse(self) {
        match self {
            Self::User(message) => message.refuse(),
            Self::Room(message) => message.refuse(),
            // Their shard has no connection left, or no caller needs to know.
            Self::Session(_)
            | Self::Token(_)
            | Self::Answer(_)
            | Self::Expired(_)
            | Self::Shed(_)
            | Self::InspectShard { .. }
            | Self::SendAway(_)
            | Self::CountMovable { .. }
            | Self::Reload(_)
            | Self::Drain
            | Self::HurryDrain
            | Self::Stop => {}
        }
    }
}

impl From<UserMessage> for Message {
    fn from(message: UserMessage) -> Self {
        Self::User(message)
    }
}

impl From<TokenMessage> for Message {
    fn from(message: TokenMessage) -> Self {
        Self::Token(message)
    }
}

impl From<RoomMessage> for Message {
    fn from(message: RoomMessage) -> Self {
        Self::Room(message)
    }
}

/// The shard checks its mailbox without a wake-up.
const AWAKE: u8 = 0;
/// The shard waits, or is about to.
const ASLEEP: u8 = 1;

/// One shard's mailbox.
pub struct Mailbox {
    /// Held to append one message or to take all: never while one is handled.
    posted: Mutex<Posted>,
    /// Whether `posted` has messages. Written while it is locked, read without.
    has_messages: AtomicBool,
    /// What the shard does: [`AWAKE`] or [`ASLEEP`].
    state: CachePadded<AtomicU8>,
    /// Ends the shard's wait. Set once, before the shard first sleeps.
    waker: OnceLock<Arc<dyn Wake>>,
}

#[derive(Default)]
struct Posted {
    messages: VecDeque<Message>,
    /// The shard has ended.
    is_closed: bool,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let state = CachePadded::new(AtomicU8::new(AWAKE));
        let (posted, has_messages) = Default::default();
        Self { posted, has_messages, state, waker: OnceLock::new() }
    }

    /// Sets what ends the shard's wait. Only the first call counts.
    pub fn set_waker(&self, waker: Arc<dyn Wake>) {
        drop(self.waker.set(waker));
    }

    /// Only a lack of memory can panic while the lock is held.
    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all messages, the oldest first, into `taken`, which must be empty. Its memory is used for the
    /// messages to come.
    #[inline]
    pub(crate) fn take_all(&self, taken: &mut VecDeque<Message>) {
        debug_assert!(taken.is_empty(), "messages would come out of order");
        if self.has_messages.load(Ordering::Relaxed) {
            let mut posted = self.lock();
            mem::swap(&mut posted.messages, taken);
            self.has_messages.store(false, Ordering::Relaxed);
        }
    }

    /// The shard is about to wait. `false`: it must not, since there is a message.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either the poster sees `ASLEEP`, or we see the message.
        fence(Ordering::SeqCst);
        if !self.has_messages.load(Ordering::Relaxed) {
            return true;
        }
        self.state.store(AWAKE, Ordering::Relaxed);
        false
    }

    /// The shard is awake and checks its mailbox without a wake-up.
    pub(crate) fn stay_awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// The shard has ended. Refuses all messages.
    pub(crate) fn close(&self) {
        let mut posted = self.lock();
        posted.is_closed = true;
        let messages = mem::take(&mut posted.messages);
        drop(posted);
        messages.into_iter().for_each(Message::refuse);
    }
}

impl Wake for Mailbox {
    fn wake(&self) {
        // Pairs with the fence in `fall_asleep`.
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == AWAKE {
            return;
        }
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

    /// Posts a message and wakes the shard if it sleeps. On a worker's thread the end of a call wakes it at the
    /// end of the batch; a command wakes it at once, since the handler may wait for its outcome. If the shard
    /// has ended, the message is refused.
    #[inline]
    pub fn post(&self, message: impl Into<Message>) {
        let message = message.into();
        let may_defer_wake = message.ends_a_call();
        let mut posted = self.mailbox.lock();
        if posted.is_closed {
            drop(posted);
            return message.refuse();
        }
        posted.messages.push_back(message);
        self.mailbox.has_messages.store(true, Ordering::Relaxed);
        drop(posted);
        if may_defer_wake {
            batch::wake(&self.wake);
        } else {
            self.wake.wake();
        }
    }
}

impl Address {
    /// Posts several commands at once, in order, and wakes the shard if it sleeps. If the shard has ended, each
    /// is refused.
    pub fn post_all(&self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let mut posted = self.mailbox.lock();
        if posted.is_closed {
            drop(posted);
            return messages.into_iter().for_each(Message::refuse);
        }
        posted.messages.extend(messages);
        self.mailbox.has_messages.store(true, Ordering::Relaxed);
        drop(posted);
        self.wake.wake();
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
