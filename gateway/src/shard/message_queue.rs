//! The messages that a shard has still to handle: its own, and those that it took from its mailbox.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use super::mailbox::{Mailbox, Message};

/// Messages that one turn handles, at most, so that a flood of them does not keep the shard from its sockets.
pub const MESSAGES_MAX: usize = 4096;

/// Messages for which the emptied buffers of the mailbox keep memory: some 2 MiB a shard.
const MESSAGES_KEPT_MAX: usize = 2 * MESSAGES_MAX;

/// A shard's messages. See the [module](self).
pub struct MessageQueue {
    mailbox: Arc<Mailbox>,
    /// Messages from the shard to itself. They come first.
    local: VecDeque<Message>,
    /// Messages that were taken from the mailbox.
    posted: VecDeque<Message>,
    /// Bytes of buffers that were freed since they were last asked for.
    freed_bytes: usize,
}

impl MessageQueue {
    /// No message yet. Other threads post to `mailbox`.
    #[must_use]
    pub const fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, local: VecDeque::new(), posted: VecDeque::new(), freed_bytes: 0 }
    }

    /// Adds a message from the shard to itself.
    pub fn push_local(&mut self, message: Message) {
        self.local.push_back(message);
    }

    /// The next message, if there is one.
    #[inline]
    pub fn next_message(&mut self) -> Option<Message> {
        if self.local.is_empty() && self.posted.is_empty() {
            if self.posted.capacity() > MESSAGES_KEPT_MAX {
                // A burst has passed. The mailbox's own buffer comes here with the next messages.
                self.freed_bytes += self.posted.capacity() * size_of::<Message>();
                self.posted = VecDeque::new();
            }
            self.mailbox.take_all(&mut self.posted);
        }
        self.local.pop_front().or_else(|| self.posted.pop_front())
    }

    /// Puts a message that was taken from the mailbox, and is handled in part, before all others from there.
    pub fn put_back(&mut self, message: Message) {
        self.posted.push_front(message);
    }

    /// The shard is about to wait. `false`: it must not, since there is a message.
    pub fn fall_asleep(&self) -> bool {
        self.local.is_empty() && self.posted.is_empty() && self.mailbox.fall_asleep()
    }

    /// The shard is awake and checks its mailbox without a wake-up.
    #[inline]
    pub fn stay_awake(&self) {
        self.mailbox.stay_awake();
    }

    /// Bytes of buffers that were freed after bursts since the last call of this function.
    pub const fn take_freed_bytes(&mut self) -> usize {
        mem::replace(&mut self.freed_bytes, 0)
    }

    /// Frees the memory that is kept for reuse.
    pub fn free_spare_memory(&mut self) {
        self.local.shrink_to_fit();
    }

    /// The shard has ended: refuses all messages, also those to come.
    pub fn close(&mut self) {
        self.mailbox.close();
        self.local.drain(..).chain(self.posted.drain(..)).for_each(Message::refuse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mailbox::Address;

    #[test]
    fn the_shards_own_messages_come_first_and_keep_it_awake() {
        let address = Address::new();
        let mut messages = MessageQueue::new(Arc::clone(address.mailbox()));
        address.post(Message::Drain);
        address.post(Message::Drain);
        assert!(matches!(messages.next_message(), Some(Message::Drain)));
        messages.push_local(Message::Stop);
        assert!(!messages.fall_asleep());
        assert!(matches!(messages.next_message(), Some(Message::Stop)));
        assert!(matches!(messages.next_message(), Some(Message::Drain)));
        assert!(messages.next_message().is_none());
        assert!(messages.fall_asleep());
    }

    #[test]
    fn a_message_that_is_put_back_comes_before_later_ones_and_keeps_the_shard_awake() {
        let address = Address::new();
        let mut messages = MessageQueue::new(Arc::clone(address.mailbox()));
        address.post(Message::Stop);
        let taken = messages.next_message().expect("it was posted");
        assert!(messages.fall_asleep());
        messages.stay_awake();
        address.post(Message::Drain);
        messages.put_back(taken);
        assert!(!messages.fall_asleep());
        assert!(matches!(messages.next_message(), Some(Message::Stop)));
        assert!(matches!(messages.next_message(), Some(Message::Drain)));
        assert!(messages.next_message().is_none());
    }

    #[test]
    fn the_buffer_of_a_burst_is_freed_and_counted() {
        let address = Address::new();
        let mut messages = MessageQueue::new(Arc::clone(address.mailbox()));
        (0..=MESSAGES_KEPT_MAX).for_each(|_| address.post(Message::Drain));
        while messages.next_message().is_some() {}
        assert!(messages.take_freed_bytes() > MESSAGES_KEPT_MAX * size_of::<Message>());
        assert_eq!(messages.take_freed_bytes(), 0);
    }
}
