//! Where a shard's answers come to: straight back on its own thread, through its mailbox from other threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use tidegate_backend::handler::{AnswerPort, CallId, Outcome};

use crate::shard::mailbox::{Address, Answer, Message};

thread_local! {
    /// Whose shard this thread runs now, by the address of its mailbox; 0: none.
    static HERE: Cell<usize> = const { Cell::new(0) };
    /// The answers that were given on this thread, for the shard that it runs.
    static ANSWERS: RefCell<VecDeque<Answer>> = const { RefCell::new(VecDeque::new()) };
}

/// A shard's port for answers.
#[derive(Debug)]
pub struct Port {
    address: Address,
}

/// The thread runs the shard until this is dropped.
#[must_use]
pub struct OnThread;

impl Drop for OnThread {
    fn drop(&mut self) {
        HERE.set(0);
    }
}

impl Port {
    /// A port to the shard with this mailbox.
    #[must_use]
    pub const fn new(address: Address) -> Self {
        Self { address }
    }

    fn key(&self) -> usize {
        Arc::as_ptr(self.address.mailbox()).addr()
    }

    /// Says that this thread runs the shard for now.
    pub fn enter(&self) -> OnThread {
        HERE.set(self.key());
        OnThread
    }

    /// Whether answers that were given on this thread wait.
    #[must_use]
    #[inline]
    pub fn has_answers(&self) -> bool {
        ANSWERS.with_borrow(|answers| !answers.is_empty())
    }

    /// Frees the memory that is kept for answers on this thread.
    pub fn free_spare_memory(&self) {
        ANSWERS.with_borrow_mut(VecDeque::shrink_to_fit);
    }

    /// The next answer that was given on this thread.
    #[must_use]
    #[inline]
    pub fn next_answer(&self) -> Option<Answer> {
        ANSWERS.with_borrow_mut(VecDeque::pop_front)
    }
}

impl AnswerPort for Port {
    #[inline]
    fn answer(&self, call: CallId, outcome: Outcome) {
        let answer = Answer { call, outcome };
        if HERE.get() == self.key() {
            ANSWERS.with_borrow_mut(|answers| answers.push_back(answer));
        } else {
            self.address.post(Message::Answer(answer));
        }
    }

    /// Only a worker finds an expired call in its queue, and no worker runs on the shard's thread.
    fn call_expired(&self, call: CallId) {
        self.address.post(Message::Expired(call));
    }

    /// The shard itself takes calls out of the queue, too. The message comes after the answers that workers have posted, so it
    /// overtakes none of the same connection.
    fn call_shed(&self, call: CallId) {
        self.address.post(Message::Shed(call));
    }
}
