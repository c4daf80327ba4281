//! The calls that wait for a worker: a queue per connection, and which connections are next.
//!
//! A connection with calls has a *line*. A worker takes the line that has waited longest and holds it while it
//! handles calls from it, so the calls of one connection run in order and never at the same time, on
//! whichever worker is free.
//!
//! Calls of one connection that were received together wait as a [group](Group): a group enters and leaves the queue at
//! the price of one call. It also is in the list of its timeout, in the order of receipt: the groups that have
//! expired are at the front of these lists.
//!
//! This is a data structure only: no lock, no thread, no clock. The pool's lock is held around it, so it
//! never runs a handler and never drops a call (a drop may answer, or free a large request).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use slab::Slab;

use super::group::{Buffer, Group};
use super::handling_time::Start;
use super::list::{Links, List};
use super::standing::{Standing, WaitBound};
use crate::handler::Call;
use crate::histogram::Durations;

/// Slots for groups that are kept when the queue is empty: some 2 MiB. More are freed, so that a burst does not
/// occupy memory forever.
const KEPT_GROUPS: usize = 16 * 1024;

/// Emptied buffers of groups that are kept for groups to come: some 1.3 MiB.
const KEPT_BUFFERS: usize = 1024;

/// Calls that have expired that are removed under one lock, at most.
pub(crate) const EXPIRED_MAX: usize = 256;

/// Groups that one [`Queue::shed`] looks at, at most, so that the lock is not held for long.
const SHED_GROUPS_MAX: usize = 256;

/// Lines that one take passes over, at most, since their next call would expire while it is handled.
const PASSED_MAX: usize = 256;

/// Names a line while it has calls or is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineId(u32);

/// Names a timeout of one submitter. Calls with the same name expire in the order in which they were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutId {
    index: u32,
    duration: Duration,
}

impl TimeoutId {
    /// How long the timeout is.
    #[inline]
    pub(crate) const fn duration(self) -> Duration {
        self.duration
    }

    #[inline]
    const fn index(self) -> usize {
        self.index as usize
    }
}

/// Why a call leaves the queue without being handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Its timeout has passed.
    Expired,
    /// It has waited too long in a queue that stands.
    Shed,
}

/// Calls that a worker has found in the queue and does not handle, on their way to being answered.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    pub(crate) calls: Vec<(Call, Removal)>,
    /// Lines that are held until these calls are answered, so that no answer of a later call overtakes theirs.
    pub(crate) lines: Vec<LineId>,
}

/// A group that waits.
#[derive(Debug)]
struct Waiting {
    group: Group,
    line: u32,
    /// It is in the list of groups that were put back.
    is_returned: bool,
    in_line: Links,
    in_timeout: Links,
}

/// The calls of one connection.
#[derive(Debug)]
struct Line {
    session: u64,
    groups: List,
    /// A worker holds it.
    is_held: bool,
    /// Invariant: [`Place::None`] exactly when it is held or has no calls.
    place: Place,
    links: Links,
}

/// Which list a line is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// None: a worker holds it, or it has no calls.
    None,
    /// [`Queue::runnable`].
    Runnable,
    /// [`Queue::late`].
    Late,
}

/// The groups with one timeout.
#[derive(Debug, Default)]
struct TimeoutList {
    groups: List,
    /// Groups that a worker took and put back: a list of their own, since they are older than the end of `groups` and
    /// younger than its front.
    returned: List,
    /// How long its calls may wait; `None`: until their timeout.
    bound: Option<WaitBound>,
}

impl TimeoutList {
    fn of(&mut self, is_returned: bool) -> &mut List {
        if is_returned { &mut self.returned } else { &mut self.groups }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    groups: Slab<Waiting>,
    lines: Slab<Line>,
    by_session: HashMap<u64, u32, BuildHasherDefault<SessionHasher>>,
    /// Lines that a worker may take, the longest waiting first.
    runnable: List,
    /// Lines that a worker takes if there is no other: their next call would probably expire while it is handled.
    late: List,
    /// Lines in these two lists.
    runnable_lines: usize,
    timeouts: Vec<TimeoutList>,
    /// Emptied buffers of groups.
    buffers: Vec<Buffer>,
    calls: usize,
    bytes: usize,
    expired: u64,
    waits: Durations,
    /// Lines that are left when calls are shed.
    workers: usize,
    standing: Standing,
}

impl Queue {
    /// An empty queue for this many workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self { workers, ..Self::default() }
    }

    /// Calls that wait.
    pub(crate) const fn calls(&self) -> usize {
        self.calls
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

    /// Whether the queue stood, when it was last used, and calls with a bound are shed.
    pub(crate) const fn is_shedding(&self) -> bool {
        self.standing.is_shedding()
    }

    /// Identifies a timeout, which has a separate list. Its calls may wait for a worker as long as the bound says.
    pub(crate) fn add_timeout(&mut self, timeout: Duration, bound: Option<WaitBound>) -> TimeoutId {
        bound.inspect(|bound| self.standing.add(bound));
        self.timeouts.push(TimeoutList { bound, ..TimeoutList::default() });
        TimeoutId { index: narrow(self.timeouts.len() - 1), duration: timeout }
    }

    /// Notes whether a line waits at `now`. To be called after lines were taken or removed, and before lines are
    /// [released](Self::release).
    #[inline]
    pub(crate) fn note_level(&mut self, now: Instant) {
        self.standing.note(now, self.runnable_lines == 0);
    }

    /// Appends a group, which is not empty, to its connection's line.
    #[inline]
    pub(crate) fn push(&mut self, group: Group) {
        self.note_level(group.received());
        let line = self.line_of(group.session());
        let timeout = group.timeout;
        let index = self.insert(Waiting {
            group,
            line,
            is_returned: false,
            in_line: Links::NONE,
            in_timeout: Links::NONE,
        });
        let list = &mut self.timeouts[timeout.index()].groups;
        list.push_back(&mut self.groups, index, |group| &mut group.in_timeout);
        let of_line = &mut self.lines[line as usize];
        let was_empty = of_line.groups.is_empty();
        of_line.groups.push_back(&mut self.groups, index, |group| &mut group.in_line);
        if was_empty && !of_line.is_held {
            self.put(line, Place::Runnable);
        }
    }

    /// Takes the oldest calls of the line that has waited longest, as [`Self::take_from`] does. Lines whose next call
    /// would expire while it is handled come after all others. The line is held until it is
    /// [released](Self::release).
    ///
    /// It stops at [`EXPIRED_MAX`] expired calls, so that the lock is not held for long: then there may be more
    /// calls although it returns `None`.
    #[inline]
    pub(crate) fn take(
        &mut self,
        start: Start,
        calls_max: usize,
        expired: &mut Expired,
    ) -> Option<(LineId, Group)> {
        let mut passed = 0;
        while let Some(line) = self.runnable.front().or(self.late.front()) {
            if expired.calls.len() >= EXPIRED_MAX {
                return None;
            }
            let place = self.lift(line);
            if place == Place::Runnable && passed < PASSED_MAX && self.is_late(line, start) {
                passed += 1;
                self.put(line, Place::Late);
                continue;
            }
            let line = LineId(line);
            self.lines[line.0 as usize].is_held = true;
            match self.take_from(line, start.at, calls_max, expired) {
                Some(group) => {
                    self.note_level(start.at);
                    return Some((line, group));
                }
                // Only calls that are not handled were in it.
                None => expired.lines.push(line),
            }
        }
        self.note_level(start.at);
        None
    }

    /// Whether the next call of a line has not expired, and would while it is handled.
    #[inline]
    fn is_late(&self, line: u32, start: Start) -> bool {
        self.lines[line as usize].groups.front().is_some_and(|index| {
            let group = &self.groups[index as usize].group;
            group.is_late(start) && self.removable(index, start.at, self.runnable_lines).is_none()
        })
    }

    /// Takes the oldest group of a line that the caller holds, or its first `calls_max` calls (at least 1) if it is
    /// larger. Calls that have expired or are shed go to `expired` instead. The caller handles the calls before it
    /// [releases](Self::release) the line, or [puts them back](Self::put_back).
    #[inline]
    pub(crate) fn take_from(
        &mut self,
        line: LineId,
        now: Instant,
        calls_max: usize,
        expired: &mut Expired,
    ) -> Option<Group> {
        while expired.calls.len() < EXPIRED_MAX
            && let Some(index) = self.lines[line.0 as usize].groups.front()
        {
            let Some((removal, calls)) = self.removable(index, now, self.runnable_lines) else {
                return Some(self.remove_calls(index, calls_max));
            };
            let room = EXPIRED_MAX - expired.calls.len();
            let mut group = self.remove_calls(index, calls.min(room));
            if removal == Removal::Expired {
                self.expired += group.len() as u64;
            }
            let calls = std::iter::from_fn(|| group.pop());
            expired.calls.extend(calls.map(|call| (call, removal)));
            self.recycle(group);
        }
        None
    }

    /// Whether calls of this group, the first one of its line, are not to be handled: why, and how many of its first ones. Other
    /// lines that wait: `others`.
    #[inline]
    fn removable(&self, index: u32, now: Instant, others: usize) -> Option<(Removal, usize)> {
        let group = &self.groups[index as usize].group;
        if group.has_expired(now) {
            return Some((Removal::Expired, group.len()));
        }
        if !self.standing.has_bounds() {
            return None;
        }
        match self.sheddable(index, now, others) {
            0 => None,
            calls => Some((Removal::Shed, calls)),
        }
    }

    /// How many calls of this group are to be shed. Each worker is left a line with a call, however long that has waited: a late
    /// answer is better than a worker that has nothing to do.
    fn sheddable(&self, index: u32, now: Instant, others: usize) -> usize {
        let Waiting { group, in_line, .. } = &self.groups[index as usize];
        let bound = self.timeouts[group.timeout.index()].bound;
        if !bound.is_some_and(|bound| self.standing.is_too_long(bound, group.waited(now), now)) {
            return 0;
        }
        let is_needed = in_line.next().is_none() && others < self.workers;
        group.len() - usize::from(is_needed)
    }

    /// Takes calls with these timeouts that have waited too long out of a queue that stands, the oldest first. Calls behind an
    /// earlier one of their connection stay: no answer may overtake that call's.
    pub(crate) fn shed(
        &mut self,
        now: Instant,
        timeouts: impl Iterator<Item = TimeoutId>,
        shed: &mut Vec<Call>,
    ) {
        let mut seen = 0;
        for (id, is_returned) in timeouts.flat_map(|id| [(id, true), (id, false)]) {
            let mut next = self.timeouts[id.index()].of(is_returned).front();
            while seen < SHED_GROUPS_MAX
                && let Some(index) = next
            {
                seen += 1;
                let Waiting { group, line, in_line, in_timeout, .. } = &self.groups[index as usize];
                let (line, is_first) = (*line, in_line.prev().is_none());
                next = in_timeout.next();
                let bound = self.timeouts[id.index()].bound;
                let waited = group.waited(now);
                if !bound.is_some_and(|bound| self.standing.is_too_long(bound, waited, now)) {
                    break;
                }
                if !is_first || self.lines[line as usize].is_held {
                    continue;
                }
                let calls = self.sheddable(index, now, self.runnable_lines - 1);
                if calls > 0 {
                    let mut group = self.remove_calls(index, calls);
                    shed.extend(std::iter::from_fn(|| group.pop()));
                    self.recycle(group);
                    self.after_removal(line);
                }
            }
        }
    }

    /// Counts how long calls waited until they were handled.
    #[inline]
    pub(crate) fn note_waits(&mut self, waited: Duration, calls: u64) {
        self.waits.note_many(micros(waited), calls);
    }

    /// Puts calls that were taken and not handled back to the front of their line, which the caller holds.
    pub(crate) fn put_back(&mut self, line: LineId, group: Group) {
        if group.is_empty() {
            return self.recycle(group);
        }
        let (line, timeout) = (line.0, group.timeout);
        let index = self.insert(Waiting {
            group,
            line,
            is_returned: true,
            in_line: Links::NONE,
            in_timeout: Links::NONE,
        });
        // Workers put groups back in any order. There are few of them.
        let received = self.groups[index as usize].group.received();
        let list = &mut self.timeouts[timeout.index()].returned;
        let mut before = list.back();
        while let Some(key) = before
            && self.groups[key as usize].group.received() > received
        {
            before = self.groups[key as usize].in_timeout.prev();
        }
        list.insert_after(&mut self.groups, index, before, |group| &mut group.in_timeout);
        let of_line = &mut self.lines[line as usize].groups;
        of_line.push_front(&mut self.groups, index, |group| &mut group.in_line);
    }

    /// Ends the hold of a line: another worker may take it now, if it has calls.
    #[inline]
    pub(crate) fn release(&mut self, line: LineId) {
        let of_line = &mut self.lines[line.0 as usize];
        of_line.is_held = false;
        if of_line.groups.is_empty() {
            self.remove_line(line.0);
        } else {
            self.put(line.0, Place::Runnable);
        }
    }

    /// Removes calls with these timeouts that have expired at `now`, `calls_max` at most. Returns whether there
    /// may be more.
    pub(crate) fn remove_expired(
        &mut self,
        now: Instant,
        timeouts: impl Iterator<Item = TimeoutId>,
        calls_max: usize,
        expired: &mut Vec<Call>,
    ) -> bool {
        let lists = timeouts.flat_map(|id| [(id.index(), false), (id.index(), true)]);
        for (index, is_returned) in lists {
            while let Some(oldest) = self.timeouts[index].of(is_returned).front() {
                let Waiting { group, line, .. } = &self.groups[oldest as usize];
                let line = *line;
                if !group.has_expired(now) {
                    break;
                }
                if expired.len() == calls_max {
                    return true;
                }
                let group = self.remove_calls(oldest, calls_max - expired.len());
                self.expire(group, expired);
                self.after_removal(line);
            }
        }
        self.note_level(now);
        false
    }

    /// Calls of this line were removed.
    fn after_removal(&mut self, line: u32) {
        let of_line = &self.lines[line as usize];
        if of_line.is_held {
            return;
        }
        if of_line.groups.is_empty() {
            self.lift(line);
            self.remove_line(line);
        } else if of_line.place == Place::Late {
            // Its next call may be in time.
            self.lift(line);
            self.put(line, Place::Runnable);
        }
    }

    /// Gives emptied buffers for groups to come, `buffers_max` at most.
    #[inline]
    pub(crate) fn take_buffers(&mut self, buffers_max: usize, buffers: &mut Vec<Buffer>) {
        let kept = self.buffers.len().saturating_sub(buffers_max);
        buffers.extend(self.buffers.drain(kept..));
    }

    /// Takes back the buffer of a group whose calls were taken out of it.
    #[inline]
    pub(crate) fn recycle(&mut self, group: Group) {
        if self.buffers.len() < KEPT_BUFFERS {
            self.buffers.push(group.into_buffer());
        }
    }

    /// The line of a connection, which is made if there is none.
    #[inline]
    fn line_of(&mut self, session: u64) -> u32 {
        match self.by_session.entry(session) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                let (groups, place, links) = (List::EMPTY, Place::None, Links::NONE);
                let line = Line { session, groups, is_held: false, place, links };
                *vacant.insert(narrow(self.lines.insert(line)))
            }
        }
    }

    /// Counts a group, and gives it a slot. It is in no list yet.
    #[inline]
    fn insert(&mut self, waiting: Waiting) -> u32 {
        self.calls += waiting.group.len();
        self.bytes += waiting.group.bytes();
        narrow(self.groups.insert(waiting))
    }

    /// Takes the first calls of a group out, at most `calls_max`. A group that is empty then leaves its lists.
    /// Its line stays.
    #[inline]
    fn remove_calls(&mut self, index: u32, calls_max: usize) -> Group {
        let waiting = &mut self.groups[index as usize];
        let taken = if waiting.group.len() > calls_max {
            let buffer = self.buffers.pop().unwrap_or_default();
            waiting.group.split_to(calls_max, buffer)
        } else {
            let (line, is_returned) = (waiting.line as usize, waiting.is_returned);
            let timeout = waiting.group.timeout.index();
            self.lines[line].groups.remove(&mut self.groups, index, |group| &mut group.in_line);
            let list = self.timeouts[timeout].of(is_returned);
            list.remove(&mut self.groups, index, |group| &mut group.in_timeout);
            self.groups.remove(index as usize).group
        };
        self.calls -= taken.len();
        self.bytes -= taken.bytes();
        if self.groups.is_empty() && self.groups.capacity() > KEPT_GROUPS {
            self.groups = Slab::new();
        }
        taken
    }

    fn expire(&mut self, mut group: Group, expired: &mut Vec<Call>) {
        self.expired += group.len() as u64;
        expired.extend(std::iter::from_fn(|| group.pop()));
        self.recycle(group);
    }

    /// Appends a line that is in no list to one.
    #[inline]
    fn put(&mut self, line: u32, place: Place) {
        let list = match place {
            Place::Runnable => &mut self.runnable,
            Place::Late => &mut self.late,
            Place::None => return,
        };
        list.push_back(&mut self.lines, line, |line| &mut line.links);
        self.lines[line as usize].place = place;
        self.runnable_lines += 1;
    }

    /// Takes a line out of the list that it is in. Returns which one it was.
    #[inline]
    fn lift(&mut self, line: u32) -> Place {
        let place = std::mem::replace(&mut self.lines[line as usize].place, Place::None);
        let list = match place {
            Place::Runnable => &mut self.runnable,
            Place::Late => &mut self.late,
            Place::None => return place,
        };
        list.remove(&mut self.lines, line, |line| &mut line.links);
        self.runnable_lines -= 1;
        place
    }

    #[inline]
    fn remove_line(&mut self, line: u32) {
        let session = self.lines.remove(line as usize).session;
        self.by_session.remove(&session);
        if self.lines.is_empty() && self.lines.capacity() > KEPT_GROUPS {
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

/// Mixes a session's number. The gateway chooses these numbers, so clients can't make them collide on purpose.
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
