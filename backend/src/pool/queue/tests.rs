//! The queue alone: no lock, no thread.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::handler::{AnswerPort, CallId, Outcome};
use crate::publisher::SessionId;

struct Nowhere;

impl AnswerPort for Nowhere {
    fn answer(&self, _: CallId, _: Outcome) {}
}

const SECOND: Duration = Duration::from_secs(1);

struct World {
    queue: Queue,
    start: Instant,
    expired: Expired,
    timeouts: Vec<TimeoutId>,
}

fn call(session: u64, id: u64) -> Call {
    let data = Bytes::from_static(&[0; 10]);
    Call::new(1, 7, SessionId(session), data, CallId(id), Arc::new(Nowhere))
}

/// Takes the calls out of a group.
fn ids(mut group: Group) -> Vec<u64> {
    std::iter::from_fn(|| group.pop()).map(|call| call.id().0).collect()
}

impl World {
    fn new() -> Self {
        let (queue, expired, timeouts) = Default::default();
        Self { queue, start: Instant::now(), expired, timeouts }
    }

    fn timeout_id(&mut self, timeout: Duration) -> TimeoutId {
        let known = self.timeouts.iter().find(|id| id.duration() == timeout);
        known.copied().unwrap_or_else(|| {
            let id = self.queue.add_timeout(timeout, None);
            self.timeouts.push(id);
            id
        })
    }

    /// A call that was received `received` after the start.
    fn push(&mut self, session: u64, id: u64, received: Duration, timeout: Duration) {
        self.push_group(session, &[id], received, timeout);
    }

    /// Calls that were received together.
    fn push_group(&mut self, session: u64, ids: &[u64], received: Duration, timeout: Duration) {
        let timeout = self.timeout_id(timeout);
        let received = self.start + received;
        let mut calls = ids.iter().map(|&id| call(session, id));
        let first = calls.next().expect("a group has a call");
        let mut group = Group::new(first, received, timeout, Buffer::default());
        for call in calls {
            group.append(call, received, timeout).expect("it belongs to the group");
        }
        self.queue.push(group);
    }

    /// Releases the lines of the expired calls that were found.
    fn release_expired(&mut self) {
        self.expired.calls.clear();
        self.expired.lines.drain(..).for_each(|line| self.queue.release(line));
    }

    /// A worker that expects its handler to take no time.
    fn at(&self, at: Duration) -> Start {
        Start { at: self.start + at, handling: Duration::ZERO }
    }

    /// Takes one call.
    fn take(&mut self, at: Duration) -> Option<(LineId, u64)> {
        let (line, group) = self.queue.take(self.at(at), 1, &mut self.expired)?;
        Some((line, ids(group)[0]))
    }

    /// Takes one call of a line.
    fn take_from(&mut self, line: LineId, at: Duration) -> Option<u64> {
        self.take_group_from(line, at, 1).map(|group| ids(group)[0])
    }

    fn take_group_from(&mut self, line: LineId, at: Duration, calls_max: usize) -> Option<Group> {
        self.queue.take_from(line, self.start + at, calls_max, &mut self.expired)
    }

    fn expire(&mut self, at: Duration, calls_max: usize) -> (Vec<u64>, bool) {
        let mut expired = Vec::new();
        let timeouts = self.timeouts.iter().copied();
        let more = self.queue.remove_expired(self.start + at, timeouts, calls_max, &mut expired);
        (expired.iter().map(|call| call.id().0).collect(), more)
    }

    fn is_clear(&self) -> bool {
        let Queue { groups, lines, by_session, runnable, late, .. } = &self.queue;
        groups.is_empty()
            && lines.is_empty()
            && by_session.is_empty()
            && runnable.is_empty()
            && late.is_empty()
            && (self.queue.calls, self.queue.bytes, self.queue.runnable_lines) == (0, 0, 0)
            && self
                .queue
                .timeouts
                .iter()
                .all(|list| list.groups.is_empty() && list.returned.is_empty())
    }
}

#[test]
fn a_held_line_keeps_its_later_calls_from_other_workers() {
    let mut world = World::new();
    for (session, id) in [(1, 10), (1, 11), (2, 20), (1, 12)] {
        world.push(session, id, Duration::ZERO, SECOND);
    }
    let (first, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 10);
    let (second, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 20);
    assert_eq!(world.take(Duration::ZERO), None);
    // What comes for a held line waits too.
    world.push(2, 21, Duration::ZERO, SECOND);
    assert_eq!(world.take(Duration::ZERO), None);
    world.queue.release(second);
    let (second, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 21);
    assert_eq!(world.take_from(first, Duration::ZERO), Some(11));
    world.queue.release(first);
    let (first, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!((id, world.queue.calls()), (12, 0));
    world.queue.release(first);
    world.queue.release(second);
    assert!(world.is_clear());
}

#[test]
fn lines_are_taken_in_the_order_in_which_they_became_runnable() {
    let mut world = World::new();
    for session in 1..=3 {
        world.push(session, session * 10, Duration::ZERO, SECOND);
        world.push(session, session * 10 + 1, Duration::ZERO, SECOND);
    }
    let mut order = Vec::new();
    while let Some((line, id)) = world.take(Duration::ZERO) {
        order.push(id);
        world.queue.release(line);
    }
    assert_eq!(order, [10, 20, 30, 11, 21, 31]);
    assert!(world.is_clear());
}

#[test]
fn expired_calls_are_removed_and_hold_nothing() {
    let mut world = World::new();
    world.push(1, 10, Duration::ZERO, 2 * SECOND);
    world.push(1, 11, Duration::ZERO, SECOND);
    world.push(2, 20, Duration::ZERO, SECOND);
    world.push(3, 30, SECOND, SECOND);
    assert_eq!((world.queue.calls(), world.queue.bytes()), (4, 40));
    assert_eq!(world.expire(SECOND / 2, 100), (vec![], false));
    assert_eq!(world.expire(SECOND, 1), (vec![11], true));
    assert_eq!(world.expire(SECOND, 100), (vec![20], false));
    assert_eq!((world.queue.calls(), world.queue.bytes()), (2, 20));
    assert_eq!((world.queue.runnable_lines(), world.queue.lines.len()), (2, 2));
    assert_eq!(world.expire(2 * SECOND, 100), (vec![10, 30], false));
    assert_eq!(world.queue.expired(), 4);
    assert!(world.is_clear());
}

#[test]
fn an_expired_call_is_not_taken() {
    let mut world = World::new();
    world.push(1, 10, Duration::ZERO, SECOND);
    world.push(1, 11, SECOND, SECOND);
    world.push(2, 20, Duration::ZERO, SECOND);
    let (line, id) = world.take(SECOND).unwrap();
    assert_eq!((id, world.expired.calls.len()), (11, 1));
    assert_eq!(world.take(SECOND), None);
    assert_eq!((world.expired.calls.len(), world.queue.expired()), (2, 2));
    world.queue.release(line);
    // The line of 20 is held until 20 is answered: what comes behind it meanwhile must not be answered before.
    world.push(2, 21, SECOND, SECOND);
    assert_eq!(world.take(SECOND), None);
    world.release_expired();
    let (line, id) = world.take(SECOND).unwrap();
    assert_eq!(id, 21);
    world.queue.release(line);
    assert!(world.is_clear());
}

#[test]
fn a_held_line_whose_calls_expire_is_usable_until_it_is_released() {
    let mut world = World::new();
    world.push(1, 10, Duration::ZERO, SECOND);
    world.push(1, 11, Duration::ZERO, SECOND);
    let (line, _) = world.take(Duration::ZERO).unwrap();
    assert_eq!(world.expire(SECOND, 100), (vec![11], false));
    assert_eq!(world.take_from(line, SECOND), None);
    world.push(1, 12, SECOND, SECOND);
    assert_eq!(world.take(SECOND), None);
    assert_eq!(world.take_from(line, SECOND), Some(12));
    world.queue.release(line);
    assert!(world.is_clear());
}

#[test]
fn a_group_is_taken_whole_or_by_calls() {
    let mut world = World::new();
    world.push_group(1, &[10, 11, 12, 13], Duration::ZERO, SECOND);
    world.push_group(2, &[20], Duration::ZERO, SECOND);
    world.push_group(1, &[14], Duration::ZERO, SECOND);
    assert_eq!((world.queue.calls(), world.queue.bytes()), (6, 60));
    let (line, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!((id, world.queue.calls(), world.queue.bytes()), (10, 5, 50));
    let group = world.take_group_from(line, Duration::ZERO, 2).unwrap();
    assert_eq!((ids(group), world.queue.calls()), (vec![11, 12], 3));
    let group = world.take_group_from(line, Duration::ZERO, 100).unwrap();
    assert_eq!((ids(group), world.queue.bytes()), (vec![13], 20), "14 was received alone");
    assert!(world.take_group_from(line, SECOND, 100).is_none(), "it has expired");
    assert_eq!(world.expired.calls.len(), 1);
}

#[test]
fn calls_of_a_group_expire_together_within_the_limit() {
    let mut world = World::new();
    world.push_group(1, &[10, 11, 12], Duration::ZERO, SECOND);
    world.push_group(1, &[13, 14], SECOND, SECOND);
    assert_eq!(world.expire(SECOND, 2), (vec![10, 11], true));
    assert_eq!(world.expire(SECOND, 2), (vec![12], false));
    assert_eq!((world.queue.calls(), world.queue.bytes(), world.queue.expired()), (2, 20, 3));
    let (line, id) = world.take(SECOND).unwrap();
    assert_eq!(id, 13);
    assert_eq!(world.take_from(line, SECOND * 2), None);
    assert_eq!((world.expired.calls.len(), world.queue.expired()), (1, 4));
    world.queue.release(line);
    assert!(world.is_clear());
}

#[test]
fn calls_that_are_put_back_are_next_in_order_and_expire_in_order() {
    let mut world = World::new();
    world.push(2, 20, Duration::ZERO, SECOND);
    world.push_group(1, &[10, 11, 12], Duration::from_millis(1), SECOND);
    world.push(1, 13, Duration::from_millis(2), SECOND);
    world.push(2, 21, Duration::from_millis(3), SECOND);
    let (other, _) = world.take(Duration::ZERO).unwrap();
    let (line, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 10);
    let group = world.take_group_from(line, Duration::ZERO, 100).unwrap();
    assert_eq!((group.len(), world.queue.calls(), world.queue.bytes()), (2, 2, 20));
    world.queue.put_back(line, group);
    assert_eq!((world.queue.calls(), world.queue.bytes()), (4, 40));
    assert_eq!(world.take_from(line, Duration::ZERO), Some(11));
    world.queue.release(line);
    world.queue.release(other);
    let at = |ms| SECOND + Duration::from_millis(ms);
    assert_eq!(world.expire(at(1), 100), (vec![12], false));
    assert_eq!(world.expire(at(3), 100), (vec![13, 21], false));
    assert!(world.is_clear());
}

impl World {
    /// Takes one call as a worker does that expects its handler to take 20 ms.
    fn take_in_time(&mut self, at: Duration) -> Option<(LineId, u64)> {
        let start = Start { handling: Duration::from_millis(20), ..self.at(at) };
        let (line, group) = self.queue.take(start, 1, &mut self.expired)?;
        Some((line, ids(group)[0]))
    }
}

#[test]
fn a_call_that_would_expire_while_it_is_handled_comes_after_all_others() {
    let mut world = World::new();
    world.push(1, 10, Duration::ZERO, SECOND);
    world.push(1, 11, Duration::from_millis(50), SECOND);
    world.push(2, 20, Duration::from_millis(1), SECOND);
    world.push(3, 30, Duration::from_millis(50), SECOND);
    let at = SECOND * 99 / 100;
    let (third, id) = world.take_in_time(at).unwrap();
    assert_eq!((id, world.queue.runnable_lines(), world.queue.expired()), (30, 2, 0));
    // There is no other: so the late ones are taken, in order.
    let (first, id) = world.take_in_time(at).unwrap();
    assert_eq!(id, 10);
    let (second, id) = world.take_in_time(at).unwrap();
    assert_eq!((id, world.queue.runnable_lines()), (20, 0));
    world.queue.release(first);
    let (first, id) = world.take_in_time(at).unwrap();
    assert_eq!(id, 11);
    [first, second, third].into_iter().for_each(|line| world.queue.release(line));
    assert!(world.is_clear());
}

#[test]
fn a_late_line_whose_late_call_has_expired_is_as_others_again() {
    let mut world = World::new();
    world.push(1, 10, Duration::ZERO, SECOND);
    world.push(2, 20, Duration::ZERO, SECOND);
    world.push(3, 30, SECOND / 2, SECOND);
    world.push(1, 11, SECOND * 9 / 10, SECOND);
    let (third, id) = world.take_in_time(SECOND * 99 / 100).unwrap();
    assert_eq!(id, 30);
    world.push(4, 40, SECOND, SECOND);
    assert_eq!(world.expire(SECOND, 100), (vec![10, 20], false));
    assert_eq!(world.queue.runnable_lines(), 2);
    assert!(world.queue.late.is_empty());
    let (fourth, id) = world.take_in_time(SECOND).unwrap();
    assert_eq!(id, 40);
    let (first, id) = world.take_in_time(SECOND).unwrap();
    assert_eq!(id, 11);
    [first, third, fourth].into_iter().for_each(|line| world.queue.release(line));
    assert!(world.is_clear());
}

#[test]
fn one_take_passes_over_so_many_late_lines_at_most() {
    let mut world = World::new();
    let late = PASSED_MAX as u64 + 5;
    (0..late).for_each(|id| world.push(id, id, Duration::ZERO, SECOND));
    world.push(late, late, SECOND, SECOND);
    let (_, id) = world.take_in_time(SECOND * 99 / 100).unwrap();
    assert_eq!(id, PASSED_MAX as u64);
    let (_, id) = world.take_in_time(SECOND * 99 / 100).unwrap();
    assert_eq!(id, late);
}

#[test]
fn a_take_stops_after_so_many_expired_calls() {
    let mut world = World::new();
    let calls = EXPIRED_MAX as u64 + 5;
    for id in 0..calls {
        world.push(id, id, Duration::ZERO, SECOND);
    }
    world.push(calls, calls, SECOND, SECOND);
    assert_eq!(world.take(SECOND), None);
    assert_eq!((world.expired.calls.len(), world.queue.calls()), (EXPIRED_MAX, 6));
    world.release_expired();
    let (line, id) = world.take(SECOND).unwrap();
    assert_eq!((id, world.expired.calls.len()), (calls, 5));
    world.release_expired();
    world.queue.release(line);
    assert!(world.is_clear());
}

#[test]
fn a_call_that_is_put_back_expires_in_its_time_whatever_else_waits() {
    let mut world = World::new();
    world.push(1, 10, Duration::from_millis(1), SECOND);
    world.push(2, 20, Duration::from_millis(2), SECOND);
    world.push(2, 21, Duration::from_millis(3), SECOND);
    world.push(1, 11, Duration::from_millis(4), SECOND);
    let (_, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 10);
    let (line, id) = world.take(Duration::ZERO).unwrap();
    assert_eq!(id, 20);
    world.push(3, 30, Duration::from_millis(2), SECOND);
    let group = world.take_group_from(line, Duration::ZERO, 100).unwrap();
    world.queue.put_back(line, group);
    // 21 is in time until 3 ms after the second. 30 was pushed behind 11, so it expires behind it.
    let mut expired = world.expire(SECOND + Duration::from_millis(3), 100).0;
    expired.sort_unstable();
    assert_eq!(expired, [21]);
    assert_eq!(world.expire(SECOND + SECOND, 100).0, [11, 30]);
}

#[test]
fn groups_that_are_put_back_expire_in_the_order_of_receipt() {
    let mut world = World::new();
    let received = |ms| Duration::from_millis(ms);
    [(1, 10, 1), (2, 20, 2), (3, 30, 3)]
        .iter()
        .for_each(|&(session, id, ms)| world.push(session, id, received(ms), SECOND));
    let start = world.at(Duration::ZERO);
    let mut take = || world.queue.take(start, 16, &mut world.expired).unwrap();
    let (first, second, third) = (take(), take(), take());
    // Workers put back what they have in any order.
    for (line, group) in [second, third, first] {
        world.queue.put_back(line, group);
        world.queue.release(line);
    }
    assert_eq!(world.expire(SECOND + received(1), 100), (vec![10], false));
    assert_eq!(world.expire(SECOND + received(3), 100), (vec![20, 30], false));
    assert!(world.is_clear());
}

#[test]
fn buffers_are_used_again_and_not_more_than_so_many_are_kept() {
    let mut world = World::new();
    for id in 0..KEPT_BUFFERS as u64 + 10 {
        world.push(id, id, Duration::ZERO, SECOND);
    }
    world.expire(SECOND, usize::MAX);
    assert_eq!(world.queue.buffers.len(), KEPT_BUFFERS);
    let mut buffers = Vec::new();
    world.queue.take_buffers(10, &mut buffers);
    assert_eq!((buffers.len(), world.queue.buffers.len()), (10, KEPT_BUFFERS - 10));
    let timeout = world.timeout_id(SECOND);
    let group = Group::new(call(1, 1), world.start, timeout, buffers.pop().unwrap());
    assert_eq!(ids(group), [1]);
}

#[test]
fn memory_of_a_large_burst_is_freed_when_the_queue_is_empty() {
    let mut world = World::new();
    let burst = KEPT_GROUPS as u64 + 1;
    (0..burst).for_each(|id| world.push(id, id, Duration::ZERO, SECOND));
    assert_eq!(world.expire(SECOND, usize::MAX).0.len() as u64, burst);
    assert!(world.is_clear());
    assert_eq!((world.queue.groups.capacity(), world.queue.lines.capacity()), (0, 0));
}
