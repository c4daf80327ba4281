//! Calls of one connection that were received together.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::handling_time::Start;
use super::queue::TimeoutId;
use crate::handler::Call;
use crate::publisher::SessionId;

/// Calls of a group, at most: a worker takes a whole group at once while calls are short, and handles its calls
/// one after the other.
pub(crate) const GROUP_CALLS_MAX: usize = 16;

/// Bytes of requests of a group, at most; a longer request is a separate group. So much may stay with a worker whose
/// handler hangs.
pub(crate) const GROUP_BYTES_MAX: usize = 16 * 1024;

/// The memory of a group without calls, for reuse.
#[derive(Debug, Default)]
pub(crate) struct Buffer(VecDeque<Call>);

/// Calls of one connection that were received at the same time and have the same timeout, in order.
#[derive(Debug)]
pub(crate) struct Group {
    received: Instant,
    pub(crate) timeout: TimeoutId,
    bytes: usize,
    calls: VecDeque<Call>,
}

impl Group {
    /// A group of one call.
    #[inline]
    pub(crate) fn new(call: Call, received: Instant, timeout: TimeoutId, buffer: Buffer) -> Self {
        let (bytes, mut calls) = (call.biz_data().len(), buffer.0);
        if calls.capacity() == 0 {
            // Most connections have one call at a time.
            calls.reserve_exact(1);
        }
        calls.push_back(call);
        Self { received, timeout, bytes, calls }
    }

    /// Appends a call, unless it is of another connection or time, has another timeout, or the group is full.
    ///
    /// # Errors
    /// The call, which belongs into the next group.
    #[inline]
    pub(crate) fn append(
        &mut self,
        call: Call,
        received: Instant,
        timeout: TimeoutId,
    ) -> Result<(), Call> {
        let bytes = self.bytes + call.biz_data().len();
        let belongs = call.session() == self.session_id()
            && (received, timeout) == (self.received, self.timeout)
            && self.calls.len() < GROUP_CALLS_MAX
            && bytes <= GROUP_BYTES_MAX;
        if !belongs {
            return Err(call);
        }
        self.bytes = bytes;
        self.calls.push_back(call);
        Ok(())
    }

    /// When the calls were received.
    #[inline]
    pub(crate) const fn received(&self) -> Instant {
        self.received
    }

    /// How long the calls have waited.
    #[inline]
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.received)
    }

    /// Whether the calls have expired.
    #[inline]
    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.waited(now) >= self.timeout.duration()
    }

    /// Whether the calls would probably expire while they are handled.
    #[inline]
    pub(crate) fn is_late(&self, start: Start) -> bool {
        start.is_late(self.waited(start.at), self.timeout.duration())
    }

    /// The next call, which leaves the group.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Call> {
        let call = self.calls.pop_front()?;
        self.bytes -= call.biz_data().len();
        Some(call)
    }

    /// Takes the first calls out, as a group in `buffer`. There must be more than `calls`.
    pub(crate) fn split_to(&mut self, calls: usize, buffer: Buffer) -> Self {
        let mut taken =
            Self { received: self.received, timeout: self.timeout, bytes: 0, calls: buffer.0 };
        taken.calls.extend(self.calls.drain(..calls));
        taken.bytes = taken.calls.iter().map(|call| call.biz_data().len()).sum();
        self.bytes -= taken.bytes;
        taken
    }

    /// The connection of the calls. The group must have one.
    #[inline]
    pub(crate) fn session(&self) -> u64 {
        self.session_id().0
    }

    #[inline]
    fn session_id(&self) -> SessionId {
        self.calls[0].session()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes of the requests.
    #[inline]
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory of a group without calls.
    #[inline]
    pub(crate) fn into_buffer(self) -> Buffer {
        debug_assert!(self.is_empty(), "its calls would be dropped");
        Buffer(self.calls)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::handler::{AnswerPort, CallId, Outcome};
    use crate::pool::queue::Queue;

    struct Nowhere;

    impl AnswerPort for Nowhere {
        fn answer(&self, _: CallId, _: Outcome) {}
    }

    fn call(session: u64, bytes: usize) -> Call {
        let data = Bytes::from(vec![0; bytes]);
        Call::new(1, 7, SessionId(session), data, CallId(1), Arc::new(Nowhere))
    }

    fn timeouts() -> (TimeoutId, TimeoutId) {
        let mut queue = Queue::default();
        let second = Duration::from_secs(1);
        (queue.add_timeout(second, None), queue.add_timeout(second, None))
    }

    #[test]
    fn only_calls_that_were_received_together_are_a_group() {
        let (now, (timeout, other)) = (Instant::now(), timeouts());
        let mut group = Group::new(call(1, 10), now, timeout, Buffer::default());
        group.append(call(1, 10), now, timeout).unwrap();
        group.append(call(2, 10), now, timeout).expect_err("of another connection");
        group.append(call(1, 10), now, other).expect_err("with another timeout");
        let later = now + Duration::from_nanos(1);
        group.append(call(1, 10), later, timeout).expect_err("received at another time");
        assert_eq!((group.len(), group.bytes()), (2, 20));
    }

    #[test]
    fn a_group_is_bounded_in_calls_and_in_bytes() {
        let (now, (timeout, _)) = (Instant::now(), timeouts());
        let mut group = Group::new(call(1, 0), now, timeout, Buffer::default());
        while group.append(call(1, 10), now, timeout).is_ok() {}
        assert_eq!(group.len(), GROUP_CALLS_MAX);
        let mut group = Group::new(call(1, GROUP_BYTES_MAX - 10), now, timeout, Buffer::default());
        group.append(call(1, 11), now, timeout).expect_err("too many bytes");
        group.append(call(1, 10), now, timeout).unwrap();
        assert_eq!(group.bytes(), GROUP_BYTES_MAX);
        // A request that is longer than the bound is alone in its group.
        let mut group = Group::new(call(1, GROUP_BYTES_MAX * 2), now, timeout, Buffer::default());
        group.append(call(1, 0), now, timeout).expect_err("too many bytes");
    }

    #[test]
    fn the_first_calls_can_be_taken_out() {
        let (now, (timeout, _)) = (Instant::now(), timeouts());
        let mut group = Group::new(call(1, 1), now, timeout, Buffer::default());
        for bytes in 2..=4 {
            group.append(call(1, bytes), now, timeout).unwrap();
        }
        let mut taken = group.split_to(2, Buffer::default());
        assert_eq!((taken.len(), taken.bytes()), (2, 1 + 2));
        assert_eq!((group.len(), group.bytes()), (2, 3 + 4));
        assert_eq!(taken.pop().unwrap().biz_data().len(), 1);
        assert_eq!(group.pop().unwrap().biz_data().len(), 3);
        assert_eq!((taken.bytes(), group.bytes()), (2, 4));
    }
}
