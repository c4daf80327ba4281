//! Calls without an answer, and when they time out.
//!
//! Every call of a route has the same timeout, so calls of a route time out in the order in which they start. A
//! list per route, linked through the table, replaces a timer.

use tidegate_backend::handler::CallId;

use crate::driver::ConnId;

/// Identifies a route of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteIndex(pub(super) u16);

/// What a shard needs to know of a call when its answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingCall {
    /// The connection that sent the request.
    pub conn: ConnId,
    /// The request's sequence.
    pub sequence: u64,
    /// The request's type.
    pub kind: i32,
    /// Its route.
    pub route: RouteIndex,
    /// When it was received, in microseconds on the shard's clock.
    pub started_us: u64,
}

impl PendingCall {
    /// When it was received in milliseconds, which is the resolution of timeouts.
    const fn started_ms(&self) -> u64 {
        self.started_us / 1_000
    }
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Entry {
    generation: u32,
    /// Neighbours in the route's list, which is ordered by age. A free entry uses only `next`.
    next: u32,
    prev: u32,
    pending: Option<PendingCall>,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
    count: usize,
    timeout_ms: u64,
}

/// A shard's calls in flight.
#[derive(Debug)]
pub struct PendingCalls {
    entries: Vec<Entry>,
    free: u32,
    /// By route.
    queues: Vec<Queue>,
}

impl PendingCalls {
    pub(super) fn new(timeouts_ms: Vec<u64>) -> Self {
        let queues = timeouts_ms
            .into_iter()
            .map(|timeout_ms| Queue { oldest: NONE, newest: NONE, count: 0, timeout_ms })
            .collect();
        Self { entries: Vec::new(), free: NONE, queues }
    }

    /// Adds a route, which gets the next index.
    pub(super) fn add_route(&mut self, timeout_ms: u64) {
        self.queues.push(Queue { oldest: NONE, newest: NONE, count: 0, timeout_ms });
    }

    /// Gives a route that has no call another timeout.
    pub(super) fn set_timeout(&mut self, route: RouteIndex, timeout_ms: u64) {
        let queue = &mut self.queues[usize::from(route.0)];
        debug_assert_eq!(queue.count, 0, "calls keep their deadline");
        queue.timeout_ms = timeout_ms;
    }

    /// Calls of a route that have no answer yet.
    #[inline]
    #[must_use]
    pub fn in_flight(&self, route: RouteIndex) -> usize {
        self.queues[usize::from(route.0)].count
    }

    /// Calls of all routes that have no answer yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.iter().map(|queue| queue.count).sum()
    }

    /// Whether there is no such call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.count == 0)
    }

    /// Adds a call.
    #[inline]
    pub fn open(&mut self, pending: PendingCall) -> CallId {
        let queue = &mut self.queues[usize::from(pending.route.0)];
        let index = if self.free == NONE {
            let index =
                u32::try_from(self.entries.len()).expect("routes bound the calls in flight");
            self.entries.push(Entry { generation: 0, next: NONE, prev: NONE, pending: None });
            index
        } else {
            self.free
        };
        let prev = std::mem::replace(&mut queue.newest, index);
        queue.count += 1;
        if prev == NONE {
            queue.oldest = index;
        } else {
            self.entries[prev as usize].next = index;
        }
        let entry = &mut self.entries[index as usize];
        if self.free == index {
            self.free = entry.next;
        }
        entry.next = NONE;
        entry.prev = prev;
        entry.pending = Some(pending);
        CallId(u64::from(entry.generation) << 32 | u64::from(index))
    }

    /// Removes a call. `None`: it was removed before, so its answer is late.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
    pub fn close(&mut self, call: CallId) -> Option<PendingCall> {
        let (generation, index) = ((call.0 >> 32) as u32, call.0 as u32);
        let entry = self.entries.get_mut(index as usize)?;
        if entry.generation != generation {
            return None;
        }
        let pending = entry.pending.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        let (next, prev) = (entry.next, entry.prev);
        entry.next = self.free;
        self.free = index;
        let queue = &mut self.queues[usize::from(pending.route.0)];
        queue.count -= 1;
        match next {
            NONE => queue.newest = prev,
            next => self.entries[next as usize].prev = prev,
        }
        match prev {
            NONE => queue.oldest = next,
            prev => self.entries[prev as usize].next = next,
        }
        Some(pending)
    }

    /// Removes an expired call, if there is one.
    pub fn take_expired(&mut self, now_ms: u64) -> Option<PendingCall> {
        let oldest = self.queues.iter().find_map(|queue| {
            let pending = self.entries.get(queue.oldest as usize)?.pending?;
            (pending.started_ms() + queue.timeout_ms <= now_ms).then_some(queue.oldest)
        })?;
        self.close_at(oldest)
    }

    fn close_at(&mut self, index: u32) -> Option<PendingCall> {
        let generation = self.entries.get(index as usize)?.generation;
        self.close(CallId(u64::from(generation) << 32 | u64::from(index)))
    }

    /// Removes the oldest call of the route of `call`: in the end, `call` itself. `None`: it is removed.
    #[expect(clippy::cast_possible_truncation, reason = "the halves of 64 bits")]
    pub fn take_oldest_until(&mut self, call: CallId) -> Option<PendingCall> {
        let entry = self.entries.get(call.0 as u32 as usize)?;
        let route = entry.pending?.route;
        if entry.generation != (call.0 >> 32) as u32 {
            return None;
        }
        self.close_at(self.queues[usize::from(route.0)].oldest)
    }

    /// When the next call expires, on the shard's clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.queues
            .iter()
            .filter_map(|queue| {
                let pending = self.entries.get(queue.oldest as usize)?.pending?;
                Some(pending.started_ms() + queue.timeout_ms)
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(sequence: u64, route: u16, started_ms: u64) -> PendingCall {
        let conn = ConnId { slot: 1, generation: 1 };
        let started_us = started_ms * 1_000;
        PendingCall { conn, sequence, kind: 1, route: RouteIndex(route), started_us }
    }

    #[test]
    fn calls_time_out_in_order_and_a_late_answer_has_no_call() {
        let mut calls = PendingCalls::new(vec![100, 1000]);
        let slow = calls.open(pending(1, 1, 0));
        let first = calls.open(pending(2, 0, 0));
        let second = calls.open(pending(3, 0, 50));
        let third = calls.open(pending(4, 0, 60));
        assert_eq!(calls.next_deadline_ms(), Some(100));
        assert_eq!(calls.close(second).map(|call| call.sequence), Some(3));
        assert_eq!(calls.close(second), None);
        assert_eq!(calls.take_expired(99), None);
        assert_eq!(calls.take_expired(100).map(|call| call.sequence), Some(2));
        assert_eq!(calls.take_expired(100), None);
        assert_eq!(calls.close(first), None);
        assert_eq!(calls.next_deadline_ms(), Some(160));
        assert_eq!(calls.len(), 2);
        // Entries are reused; an old id does not match the new call.
        let again = calls.open(pending(5, 0, 70));
        assert_eq!(calls.close(first), None);
        assert_eq!(calls.close(third).map(|call| call.sequence), Some(4));
        assert_eq!(calls.take_expired(170).map(|call| call.sequence), Some(5));
        assert_eq!(calls.close(again), None);
        assert_eq!(calls.close(slow).map(|call| call.sequence), Some(1));
        assert!(calls.is_empty());
        assert_eq!(calls.next_deadline_ms(), None);
    }

    #[test]
    fn the_older_calls_of_a_route_are_taken_before_one_that_expired_in_its_queue() {
        let mut calls = PendingCalls::new(vec![100, 1000]);
        let first = calls.open(pending(1, 0, 0));
        calls.open(pending(2, 1, 0));
        let third = calls.open(pending(3, 0, 5));
        calls.open(pending(4, 0, 6));
        assert_eq!(calls.take_oldest_until(third).map(|call| call.sequence), Some(1));
        assert_eq!(calls.take_oldest_until(first), None, "it is closed");
        assert_eq!(calls.take_oldest_until(third).map(|call| call.sequence), Some(3));
        assert_eq!(calls.take_oldest_until(third), None);
        assert_eq!(calls.len(), 2);
    }
}
