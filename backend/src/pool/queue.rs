//! The calls that wait for a worker: a queue per connection, and which connections are next.
//!
//! A connection with calls has a *line*. A worker takes the line that has waited longest and holds it while it
//! handles a call from it, so the calls of one connection run in order and never at the same time, on
//! whichever worker is free. A call also stands in the list of its timeout, in the order of receipt: the
//! calls that have expired are at the front of these lists.
//!
//! This is a data structure only: no lock, no thread, no clock. The pool's lock is held around it, so it
//! never runs a handler and never drops a call (a drop may answer, or free a large request).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use slab::Slab;

use super::list::{Links, List};
use crate::handler::Call;
use crate::histogram::Durations;

/// Slots for calls that are kept when the queue is empty: 2 MiB. More are freed, so that a burst does not
/// occupy memory for ever.
const KEPT_CALLS: usize = 16 * 1024;

/// Calls that have expired that are removed under one lock, at most.
pub(crate) const EXPIRED_MAX: usize = 256;

/// Names a line while it has calls or is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineId(u32);

/// Names a timeout of one submitter. Calls with the same name expire in the order in which they were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutId(u32);

impl TimeoutId {
    #[inline]
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Expired calls that a worker has found in the queue, on their way to being answered.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    pub(crate) calls: Vec<Call>,
    /// Lines that are held until these calls are answered, so that no answer of a later call overtakes theirs.
    pub(crate) lines: Vec<LineId>,
}

/// A call that a worker has taken and not handled yet.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) call: Call,
    pub(crate) received: Instant,
    pub(crate) timeout: TimeoutId,
}

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    call: Call,
    received: Instant,
    timeout: TimeoutId,
    line: u32,
    /// It is in the list of calls that were put back.
    is_returned: bool,
    in_line: Links,
    in_timeout: Links,
}

/// The calls of one connection.
#[derive(Debug)]
struct Line {
    session: u64,
    calls: List,
    /// A worker holds it. Invariant: it is in [`Queue::runnable`] exactly when it is not held and has calls.
    held: bool,
    in_runnable: Links,
}

#[derive(Debug)]
struct TimeoutList {
    timeout: Duration,
    calls: List,
    /// Calls that a worker took and put back: a list of their own, since they are older than the end of `calls` and
    /// younger than its front.
    returned: List,
}

impl TimeoutList {
    fn of(&mut self, is_returned: bool) -> &mut List {
        if is_returned { &mut self.returned } else { &mut self.calls }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    calls: Slab<Waiting>,
    lines: Slab<Line>,
    by_session: HashMap<u64, u32, BuildHasherDefault<SessionHasher>>,
    /// The session and line of the call that was pushed last: often the next call has the same.
    last_pushed: Option<(u64, u32)>,
    /// Lines that a worker may take, the longest waiting first.
    runnable: List,
    runnable_lines: usize,
    timeouts: Vec<TimeoutList>,
    bytes: usize,
    expired: u64,
    waits: Durations,
}

impl Queue {
    /// Calls that wait.
    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Bytes of their requests.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls that were removed because they had expired.
    pub(crate) const fn expired(&self) -> u64 {
        self.expired
    }

    /// How long calls waited until a worker took them.
    pub(crate) const fn waits(&self) -> &Durations {
        &self.waits
    }

    /// Connections that a free worker could take.
    pub(crate) const fn runnable_lines(&self) -> usize {
        self.runnable_lines
    }

    /// A name for a timeout: a list of its own.
    pub(crate) fn add_timeout(&mut self, timeout: Duration) -> TimeoutId {
        self.timeouts.push(TimeoutList { timeout, calls: List::EMPTY, returned: List::EMPTY });
        TimeoutId(narrow(self.timeouts.len() - 1))
    }

    /// Appends a call to its connection's line.
    #[inline]
    pub(crate) fn push(&mut self, call: Call, received: Instant, timeout: TimeoutId) {
        self.bytes += call.biz_data().len();
        let session = call.session().0;
        let line = match self.last_pushed {
            Some((last, line)) if last == session => line,
            _ => self.line_of(session),
        };
        let (in_line, in_timeout) = (Links::NONE, Links::NONE);
        let is_returned = false;
        let waiting = Waiting { call, received, timeout, line, is_returned, in_line, in_timeout };
        let index = narrow(self.calls.insert(waiting));
        let list = &mut self.timeouts[timeout.index()].calls;
        list.push_back(&mut self.calls, index, |call| &mut call.in_timeout);
        let of_line = &mut self.lines[line as usize];
        let was_empty = of_line.calls.is_empty();
        of_line.calls.push_back(&mut self.calls, index, |call| &mut call.in_line);
        if was_empty && !of_line.held {
            self.make_runnable(line);
        }
    }

    /// Takes the oldest call of the line that has waited longest. The line is held until it is
    /// [released](Self::release).
    ///
    /// It stops at [`EXPIRED_MAX`] expired calls, so that the lock is not held for long: then there may be more
    /// calls although it returns `None`.
    #[inline]
    pub(crate) fn take(&mut self, now: Instant, expired: &mut Expired) -> Option<(LineId, Call)> {
        while let Some(line) = self.runnable.front() {
            if expired.calls.len() >= EXPIRED_MAX {
                return None;
            }
            self.runnable.remove(&mut self.lines, line, |line| &mut line.in_runnable);
            self.runnable_lines -= 1;
            self.lines[line as usize].held = true;
            let line = LineId(line);
            match self.take_from(line, now, expired) {
                Some(call) => return Some((line, call)),
                // Only calls that have expired were in it.
                None => expired.lines.push(line),
            }
        }
        None
    }

    /// Takes further calls of a line that the caller holds into `taken`, within two limits: calls, and bytes of their requests. The caller
    /// handles them before it [releases](Self::release) the line, or [puts them back](Self::put_back).
    #[inline]
    pub(crate) fn take_more(
        &mut self,
        line: LineId,
        now: Instant,
        (calls_max, bytes_max): (usize, usize),
        taken: &mut VecDeque<Taken>,
    ) {
        let mut bytes_left = bytes_max;
        for _ in 0..calls_max {
            let Some(index) = self.lines[line.0 as usize].calls.front() else { return };
            let Waiting { call, received, timeout, .. } = &self.calls[index as usize];
            let waited = now.saturating_duration_since(*received);
            let has_expired = waited >= self.timeouts[timeout.index()].timeout;
            let Some(left) = bytes_left.checked_sub(call.biz_data().len()) else { return };
            if has_expired {
                return;
            }
            bytes_left = left;
            let Waiting { call, received, timeout, .. } = self.remove(index);
            taken.push_back(Taken { call, received, timeout });
        }
    }

    /// Counts how long a call that was taken with others waited until it was handled.
    #[inline]
    pub(crate) fn note_wait(&mut self, waited: Duration) {
        self.waits.note(micros(waited));
    }

    /// The duration that a name means.
    #[inline]
    pub(crate) fn timeout(&self, timeout: TimeoutId) -> Duration {
        self.timeouts[timeout.index()].timeout
    }

    /// Puts calls that were taken and not handled back to the front of their line, which the caller holds.
    pub(crate) fn put_back(&mut self, line: LineId, taken: &mut VecDeque<Taken>) {
        let mut in_line_before = None;
        for Taken { call, received, timeout } in taken.drain(..) {
            self.bytes += call.biz_data().len();
            let (in_line, in_timeout) = (Links::NONE, Links::NONE);
            let (line, is_returned) = (line.0, true);
            let waiting =
                Waiting { call, received, timeout, line, is_returned, in_line, in_timeout };
            let index = narrow(self.calls.insert(waiting));
            let list = &mut self.timeouts[timeout.index()].returned;
            list.push_back(&mut self.calls, index, |call| &mut call.in_timeout);
            let of_line = &mut self.lines[line as usize].calls;
            of_line.insert_after(&mut self.calls, index, in_line_before, |call| &mut call.in_line);
            in_line_before = Some(index);
        }
    }

    /// Takes the next call of a line that the caller holds. Expired calls go to `expired` instead.
    #[inline]
    pub(crate) fn take_from(
        &mut self,
        line: LineId,
        now: Instant,
        expired: &mut Expired,
    ) -> Option<Call> {
        while expired.calls.len() < EXPIRED_MAX
            && let Some(index) = self.lines[line.0 as usize].calls.front()
        {
            let Waiting { call, received, timeout, .. } = self.remove(index);
            let waited = now.saturating_duration_since(received);
            if waited < self.timeouts[timeout.index()].timeout {
                self.waits.note(micros(waited));
                return Some(call);
            }
            self.expired += 1;
            expired.calls.push(call);
        }
        None
    }

    /// Ends the hold of a line: another worker may take it now, if it has calls.
    #[inline]
    pub(crate) fn release(&mut self, line: LineId) {
        let of_line = &mut self.lines[line.0 as usize];
        of_line.held = false;
        if of_line.calls.is_empty() {
            self.remove_line(line.0);
        } else {
            self.make_runnable(line.0);
        }
    }

    /// Removes calls with these timeouts that have expired at `now`, `calls_max` at most. Returns whether there may be more.
    pub(crate) fn remove_expired(
        &mut self,
        now: Instant,
        timeouts: impl Iterator<Item = TimeoutId>,
        calls_max: usize,
        expired: &mut Vec<Call>,
    ) -> bool {
        let indices = timeouts.map(TimeoutId::index);
        let lists = indices.flat_map(|index| [(index, false), (index, true)]);
        for (index, is_returned) in lists {
            while let Some(oldest) = self.timeouts[index].of(is_returned).front() {
                let waiting = &self.calls[oldest as usize];
                let waited = now.saturating_duration_since(waiting.received);
                if waited < self.timeouts[index].timeout {
                    break;
                }
                if expired.len() == calls_max {
                    return true;
                }
                let line = waiting.line;
                expired.push(self.remove(oldest).call);
                self.expired += 1;
                let of_line = &self.lines[line as usize];
                if of_line.calls.is_empty() && !of_line.held {
                    self.runnable.remove(&mut self.lines, line, |line| &mut line.in_runnable);
                    self.runnable_lines -= 1;
                    self.remove_line(line);
                }
            }
        }
        false
    }

    /// The line of a connection, which is made if there is none.
    #[inline]
    fn line_of(&mut self, session: u64) -> u32 {
        let line = match self.by_session.entry(session) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                let (calls, in_runnable) = (List::EMPTY, Links::NONE);
                let line = self.lines.insert(Line { session, calls, held: false, in_runnable });
                *vacant.insert(narrow(line))
            }
        };
        self.last_pushed = Some((session, line));
        line
    }

    /// Takes a call out of the lists. Its line stays.
    #[inline]
    fn remove(&mut self, index: u32) -> Waiting {
        let (line, timeout, is_returned) = {
            let waiting = &self.calls[index as usize];
            (waiting.line as usize, waiting.timeout.index(), waiting.is_returned)
        };
        self.lines[line].calls.remove(&mut self.calls, index, |call| &mut call.in_line);
        let list = self.timeouts[timeout].of(is_returned);
        list.remove(&mut self.calls, index, |call| &mut call.in_timeout);
        let waiting = self.calls.remove(index as usize);
        self.bytes -= waiting.call.biz_data().len();
        if self.calls.is_empty() && self.calls.capacity() > KEPT_CALLS {
            self.calls = Slab::new();
        }
        waiting
    }

    #[inline]
    fn make_runnable(&mut self, line: u32) {
        self.runnable.push_back(&mut self.lines, line, |line| &mut line.in_runnable);
        self.runnable_lines += 1;
    }

    #[inline]
    fn remove_line(&mut self, line: u32) {
        let session = self.lines.remove(line as usize).session;
        self.by_session.remove(&session);
        if self.last_pushed.is_some_and(|(last, _)| last == session) {
            self.last_pushed = None;
        }
        if self.lines.is_empty() && self.lines.capacity() > KEPT_CALLS {
            self.lines = Slab::new();
            self.by_session = HashMap::default();
        }
    }
}

/// Slab keys as 32 bits: `queue_calls_max` is far below that.
#[inline]
fn narrow(key: usize) -> u32 {
    u32::try_from(key).expect("a queue has fewer calls than 2^32")
}

#[inline]
fn micros(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())
}

/// Mixes a session's number. The gateway chooses these numbers, so nobody can make them collide on purpose.
#[derive(Debug, Default)]
struct SessionHasher(u64);

impl Hasher for SessionHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    /// A folded multiply: the high half of the product depends on all bits of the number.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
