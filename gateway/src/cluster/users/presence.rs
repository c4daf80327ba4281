//! Who is here, and what Redis knows of it.
//!
//! Redis keeps an entry for each user and gateway. Its stamp is the time of the user's newest login at that gateway, by
//! Redis' clock. Users are split into partitions. A partition has one *round* under way: the users who came and
//! those who left. What happens meanwhile waits for the next round, each user once. So the order of what happens to
//! one user is kept, and the more logins there are, the fewer commands they take.
//!
//! **Why the newer login wins, and exactly one stays** (`session.login = "newest-wins"`). A login has its stamp from the
//! moment that its home took it, and keeps it. Redis compares stamps, and keeps the user's entry with the greatest one.
//! Each gateway with a smaller one learns the winning stamp: as the answer to its own command, or as a message if its
//! entry was there before. This part then ends the login whose stamp is smaller, and names it by the address of its
//! session. So:
//!
//! - Of two logins at two gateways, the command that Redis carries out later sees the other's entry. Whichever that is,
//!   the smaller stamp loses, and its gateway learns of it. The greater one is told nothing.
//! - The user logs in here again while an answer or a message about the older login is under way: the newer login has
//!   a greater stamp. A message with a winning stamp between the two does not touch it. An answer is about the login
//!   that the command was sent for, and that is named by its address: the newer one has another.
//! - A message is lost with the connection: after each new subscription, all users of the partition are asserted
//!   again. Redis compares again, and answers who was replaced.
//! - A command is sent again since its answer was lost: it carries the same stamp, so nothing changes.
//!
//! While Redis is away, logins wait as the state of their users: a user who comes and goes meanwhile leaves nothing
//! behind. What was sent and may be stored is remembered until Redis has confirmed that it is gone.
//!
//! A Redis that is there and fails, as a Cluster whose slots have no node, confirms nothing, and users come and go. So a
//! partition in which [`DEPARTED_MAX`] such users are remembered sends departures alone until there are fewer: who logs in
//! meanwhile waits, and leaves nothing behind either. Redis learns of these users when it carries out commands again.

use std::collections::VecDeque;

use hashbrown::HashMap;
use redis::Cmd;
use tidegate_backend::UserId;

use super::clock::RedisClock;
use super::{Fault, Tag};
use crate::allocator::should_shrink;
use crate::cluster::user_contract::{self as contract, PARTITIONS, partition_of};
use crate::session_id::SessionAddr;

/// Users of one round, at most: Redis spends some 5 ms on them.
const ROUND_USERS_MAX: usize = 256;

/// Partitions whose users are asserted again at the same time, at most.
const ASSERTING_MAX: usize = 2;

/// Users of a partition whose departure Redis has not confirmed. At this number no further login is sent. They take 40 bytes each:
/// 20 MB in all partitions. More can only be users whose logins were sent before.
pub const DEPARTED_MAX: usize = 4_096;

/// Time until a round that failed is started again, in microseconds.
const RETRY_US: u64 = 250_000;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Arrivals and departures that were sent.
    pub updates: u64,
    /// Users who were asserted again.
    pub asserted: u64,
    /// Logins that lost against one at another gateway.
    pub replaced: u64,
}

/// A user's state: 16 bytes. Flags in the upper bits, and in the lower ones the stamp of the last login, or of the
/// departure.
#[derive(Clone, Copy, Debug)]
struct Entry {
    bits: u64,
    addr: SessionAddr,
}

impl Entry {
    /// The user is in the queue of the next round.
    const QUEUED: u64 = 1 << 56;
    /// The user is in the round under way.
    const UNDER_WAY: u64 = 1 << 57;
    /// Redis may have an entry.
    const STORED: u64 = 1 << 58;
    /// The user is not here any more.
    const GONE: u64 = 1 << 59;
    /// Redis knows the present state.
    const KNOWN: u64 = 1 << 60;
    /// Redis' clock is not known yet: the stamp is a time of this gateway.
    const UNDRAWN: u64 = 1 << 61;

    const STAMP: u64 = Self::QUEUED - 1;

    const fn has(self, flags: u64) -> bool {
        self.bits & flags != 0
    }

    const fn set(&mut self, flags: u64) {
        self.bits |= flags;
    }

    const fn clear(&mut self, flags: u64) {
        self.bits &= !flags;
    }

    const fn stamp(self) -> u64 {
        self.bits & Self::STAMP
    }

    const fn set_stamp(&mut self, stamp: u64) {
        self.bits = self.bits & !Self::STAMP | stamp & Self::STAMP;
    }

    /// Gives the entry the stamp of an event at this time: greater than that of each earlier one.
    fn restamp(&mut self, at_us: u64, clock: &RedisClock) {
        self.draw(clock);
        match clock.stamp(at_us) {
            Some(stamp) => self.set_stamp(stamp.max(self.stamp() + 1)),
            None => {
                self.set_stamp(at_us);
                self.set(Self::UNDRAWN);
            }
        }
    }

    /// Turns a time of this gateway into a stamp once that is possible.
    fn draw(&mut self, clock: &RedisClock) {
        if self.has(Self::UNDRAWN)
            && let Some(stamp) = clock.stamp(self.stamp())
        {
            self.set_stamp(stamp);
            self.clear(Self::UNDRAWN);
        }
    }
}

/// A login that a round tells Redis.
#[derive(Clone, Copy, Debug)]
struct Login {
    user_id: UserId,
    stamp: u64,
    addr: SessionAddr,
    /// Redis may have had an entry before.
    was_stored: bool,
}

/// Commands of a round without an answer. A number tells them apart from those of earlier rounds.
#[derive(Debug, Default)]
struct Round {
    arrivals: Option<(u64, Vec<Login>)>,
    departures: Option<(u64, Vec<(UserId, u64)>)>,
}

/// Which users are to be asserted again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Assertion {
    #[default]
    None,
    /// Those whose state Redis may not know.
    Changed,
    All,
}

#[derive(Debug, Default)]
struct Partition {
    users: HashMap<UserId, Entry>,
    /// Of these, users who are not here any more.
    departed: usize,
    queue: VecDeque<UserId>,
    round: Round,
    /// Redis takes commands, and this gateway hears of its users.
    is_ready: bool,
    retry_at_us: u64,
    /// It is in the list of partitions that may have a round to start.
    is_touched: bool,
    wanted: Assertion,
    is_asserting: bool,
}

impl Partition {
    const fn is_busy(&self) -> bool {
        self.round.arrivals.is_some() || self.round.departures.is_some()
    }

    /// Puts a user into the queue. Users who are asserted again wait for those to whom something has happened.
    fn enqueue(&mut self, user_id: UserId) {
        let Some(entry) = self.users.get_mut(&user_id) else { return };
        if !self.is_ready || entry.has(Entry::QUEUED) {
            return;
        }
        entry.set(Entry::QUEUED);
        if self.is_asserting {
            self.queue.push_front(user_id);
        } else {
            self.queue.push_back(user_id);
        }
    }

    fn remove(&mut self, user_id: UserId) {
        let removed = self.users.remove(&user_id);
        self.departed -= usize::from(removed.is_some_and(|entry| entry.has(Entry::GONE)));
        if should_shrink(self.users.len(), self.users.capacity()) {
            self.users.shrink_to(2 * self.users.len());
        }
    }

    fn on_down(&mut self) {
        self.is_ready = false;
        self.queue = VecDeque::new();
        self.round = Round::default();
        self.retry_at_us = 0;
        (self.wanted, self.is_asserting) = (Assertion::None, false);
        self.users.retain(|_, entry| {
            entry.clear(Entry::QUEUED | Entry::UNDER_WAY);
            !entry.has(Entry::GONE) || entry.has(Entry::STORED)
        });
        self.departed = self.users.values().filter(|entry| entry.has(Entry::GONE)).count();
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Presence {
    partitions: Vec<Partition>,
    /// 1: a user has one session over all gateways. 0: no login ends a session at another gateway.
    sessions_max: u8,
    grace_ms: u64,
    touched: VecDeque<u8>,
    /// Partitions whose users are to be asserted again.
    assert_queue: VecDeque<u8>,
    asserting: usize,
    next_number: u64,
    requests: VecDeque<(Tag, Cmd)>,
    replaced: VecDeque<(UserId, SessionAddr)>,
    counters: Counters,
}

impl Presence {
    /// Nobody is here. `is_newest_wins`: a user has one session over all gateways. A user without a session counts as
    /// online for `grace_ms` more.
    #[must_use]
    pub fn new(is_newest_wins: bool, grace_ms: u64) -> Self {
        Self {
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            sessions_max: u8::from(is_newest_wins),
            grace_ms,
            touched: VecDeque::new(),
            assert_queue: VecDeque::new(),
            asserting: 0,
            next_number: 0,
            requests: VecDeque::new(),
            replaced: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Users whose state waits to be sent, or whose answer is missing.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let waiting = |partition: &Partition| {
            let Round { arrivals, departures } = &partition.round;
            let arrivals = arrivals.as_ref().map_or(0, |(_, users)| users.len());
            let departures = departures.as_ref().map_or(0, |(_, users)| users.len());
            partition.queue.len() + arrivals + departures
        };
        self.partitions.iter().map(waiting).sum()
    }

    /// Users whose departure Redis has not confirmed.
    #[must_use]
    pub fn departed(&self) -> usize {
        self.partitions.iter().map(|partition| partition.departed).sum()
    }

    /// Whether a login at another gateway ends one here.
    #[must_use]
    pub const fn is_newest_wins(&self) -> bool {
        self.sessions_max == 1
    }

    /// Whether the user has a session here.
    #[must_use]
    pub fn is_here(&self, user_id: UserId) -> bool {
        let users = &self.partitions[usize::from(partition_of(user_id))].users;
        users.get(&user_id).is_some_and(|entry| !entry.has(Entry::GONE))
    }

    /// A login: the user's first session here, or its newest one where a user has one session.
    pub fn arrived(&mut self, user_id: UserId, addr: SessionAddr, at_us: u64, clock: &RedisClock) {
        let index = partition_of(user_id);
        let partition = &mut self.partitions[usize::from(index)];
        let entry = partition.users.entry(user_id).or_insert(Entry { bits: 0, addr });
        partition.departed -= usize::from(entry.has(Entry::GONE));
        entry.restamp(at_us, clock);
        entry.addr = addr;
        entry.clear(Entry::GONE | Entry::KNOWN);
        partition.enqueue(user_id);
        self.touch(index);
    }

    /// The user's last session here has ended.
    pub fn left(&mut self, user_id: UserId, at_us: u64, clock: &RedisClock) {
        let index = partition_of(user_id);
        let partition = &mut self.partitions[usize::from(index)];
        let Some(entry) = partition.users.get_mut(&user_id) else { return };
        // Redis removes an entry that is not newer, so this does not touch that of a later login.
        entry.restamp(at_us, clock);
        partition.departed += usize::from(!entry.has(Entry::GONE));
        entry.set(Entry::GONE);
        entry.clear(Entry::KNOWN);
        if entry.has(Entry::STORED) {
            partition.enqueue(user_id);
            self.touch(index);
        } else if !entry.has(Entry::QUEUED) {
            partition.remove(user_id);
        }
    }

    /// Redis has an entry of a user who is not here: a command was carried out late. Removes it.
    pub fn remove_stray(
        &mut self,
        user_id: UserId,
        addr: SessionAddr,
        at_us: u64,
        clock: &RedisClock,
    ) {
        let index = partition_of(user_id);
        let partition = &mut self.partitions[usize::from(index)];
        // Beyond the bound, a later message for the user finds it again.
        let has_room = partition.departed < DEPARTED_MAX;
        if partition.is_ready && has_room && !partition.users.contains_key(&user_id) {
            partition.departed += 1;
            let mut entry = Entry { bits: Entry::GONE | Entry::STORED, addr };
            entry.restamp(at_us, clock);
            partition.users.insert(user_id, entry);
            partition.enqueue(user_id);
            self.touch(index);
        }
    }

    /// Another gateway has a login of this user with this stamp.
    pub fn on_replaced(&mut self, user_id: UserId, winning: u64, clock: &RedisClock) {
        let partition = &mut self.partitions[usize::from(partition_of(user_id))];
        let Some(entry) = partition.users.get_mut(&user_id) else { return };
        entry.draw(clock);
        if self.sessions_max == 0 || entry.has(Entry::GONE) || entry.stamp() >= winning {
            return;
        }
        // Redis has removed the entry, but may have it again: the user may have been asserted while the message was on its
        // way, after the winner had left. So the departure is sent.
        self.counters.replaced += 1;
        self.replaced.push_back((user_id, entry.addr));
    }

    /// The next login that lost against one at another gateway.
    pub fn next_replaced(&mut self) -> Option<(UserId, SessionAddr)> {
        self.replaced.pop_front()
    }

    /// Redis takes commands about a partition, and this gateway hears of its users. `all`: Redis may have lost what it
    /// knew, or a message about a replaced login was missed.
    pub fn on_ready(&mut self, index: u8, all: bool) {
        let partition = &mut self.partitions[usize::from(index)];
        partition.is_ready = true;
        if partition.wanted == Assertion::None {
            self.assert_queue.push_back(index);
        }
        let wanted = if all { Assertion::All } else { Assertion::Changed };
        if partition.wanted != Assertion::All {
            partition.wanted = wanted;
        }
    }

    /// The connection is lost.
    pub fn on_down(&mut self) {
        self.partitions.iter_mut().for_each(Partition::on_down);
        self.assert_queue.clear();
        self.asserting = 0;
        self.requests.clear();
    }

    fn touch(&mut self, index: u8) {
        let partition = &mut self.partitions[usize::from(index)];
        if partition.is_ready && !std::mem::replace(&mut partition.is_touched, true) {
            self.touched.push_back(index);
        }
    }

    /// The next command.
    pub fn next_request(
        &mut self,
        gateway: &str,
        now_us: u64,
        clock: &RedisClock,
    ) -> Option<(Tag, Cmd)> {
        while self.requests.is_empty() {
            self.start_assertions();
            let index = self.touched.pop_front()?;
            self.partitions[usize::from(index)].is_touched = false;
            self.start_round(index, gateway, now_us, clock);
        }
        self.requests.pop_front()
    }

    fn start_assertions(&mut self) {
        while self.asserting < ASSERTING_MAX
            && let Some(index) = self.assert_queue.pop_front()
        {
            let partition = &mut self.partitions[usize::from(index)];
            let all = std::mem::take(&mut partition.wanted) == Assertion::All;
            for (&user_id, entry) in &mut partition.users {
                if !entry.has(Entry::QUEUED) && (all || !entry.has(Entry::KNOWN)) {
                    self.counters.asserted += u64::from(entry.has(Entry::STORED));
                    entry.set(Entry::QUEUED);
                    partition.queue.push_back(user_id);
                }
            }
            if !partition.queue.is_empty() {
                self.asserting += usize::from(!partition.is_asserting);
                partition.is_asserting = true;
                self.touch(index);
            }
        }
    }

    fn start_round(&mut self, index: u8, gateway: &str, now_us: u64, clock: &RedisClock) {
        let partition = &mut self.partitions[usize::from(index)];
        if !partition.is_ready || partition.is_busy() || partition.retry_at_us > now_us {
            return;
        }
        let (mut arrivals, mut departures) = (Vec::new(), Vec::new());
        let (is_full, mut held) = (partition.departed >= DEPARTED_MAX, Vec::new());
        while arrivals.len() + departures.len() < ROUND_USERS_MAX
            && let Some(user_id) = partition.queue.pop_front()
        {
            let Some(entry) = partition.users.get_mut(&user_id) else { continue };
            if is_full && !entry.has(Entry::GONE | Entry::STORED) {
                held.push(user_id);
                continue;
            }
            entry.clear(Entry::QUEUED);
            entry.draw(clock);
            let stamp = entry.stamp();
            if !entry.has(Entry::GONE) {
                let was_stored = entry.has(Entry::STORED);
                entry.set(Entry::STORED | Entry::UNDER_WAY);
                arrivals.push(Login { user_id, stamp, addr: entry.addr, was_stored });
            } else if entry.has(Entry::STORED) {
                entry.set(Entry::UNDER_WAY);
                departures.push((user_id, stamp));
            } else {
                partition.remove(user_id);
            }
        }
        held.into_iter().rev().for_each(|user_id| partition.queue.push_front(user_id));
        self.counters.updates += (arrivals.len() + departures.len()) as u64;
        if !arrivals.is_empty() {
            self.next_number += 1;
            let number = self.next_number;
            let users = arrivals.iter().map(|login| (login.user_id, login.stamp));
            let cmd = contract::arrive(index, gateway, self.sessions_max, users);
            self.requests.push_back((Tag::Arrive(index, number), cmd));
            partition.round.arrivals = Some((number, arrivals));
        }
        if !departures.is_empty() {
            self.next_number += 1;
            let number = self.next_number;
            let users = departures.iter().copied();
            let cmd = contract::depart(index, gateway, self.grace_ms, users);
            self.requests.push_back((Tag::Depart(index, number), cmd));
            partition.round.departures = Some((number, departures));
        }
        if !partition.is_busy() && std::mem::take(&mut partition.is_asserting) {
            self.asserting -= 1;
        }
    }

    /// The answer to the arrivals of a round: for each user its stamp, and the smallest one that stays.
    pub fn on_arrived(
        &mut self,
        index: u8,
        number: u64,
        answer: Result<Vec<(u64, u64)>, Fault>,
        now_us: u64,
    ) {
        let partition = &mut self.partitions[usize::from(index)];
        let Some((_, logins)) =
            partition.round.arrivals.take_if(|(under_way, _)| *under_way == number)
        else {
            return;
        };
        match answer {
            Ok(stamps) if stamps.len() == logins.len() => {
                for (login, (stamp, winning)) in logins.into_iter().zip(stamps) {
                    let Some(entry) = partition.users.get_mut(&login.user_id) else { continue };
                    entry.clear(Entry::UNDER_WAY);
                    let is_replaced = stamp < winning;
                    if is_replaced {
                        entry.clear(Entry::STORED);
                    }
                    // The user may have left or logged in again meanwhile.
                    if entry.has(Entry::QUEUED | Entry::GONE) || entry.addr != login.addr {
                        continue;
                    }
                    entry.set(Entry::KNOWN);
                    if is_replaced {
                        self.counters.replaced += 1;
                        self.replaced.push_back((login.user_id, login.addr));
                    } else {
                        entry.set_stamp(stamp.max(entry.stamp()));
                    }
                }
            }
            answer => {
                let fault = answer.err().unwrap_or(Fault::Refused);
                let users = logins.into_iter().map(|login| (login.user_id, login.was_stored));
                Self::fail(partition, users, fault, now_us);
            }
        }
        self.touch(index);
    }

    /// The answer to the departures of a round.
    pub fn on_departed(&mut self, index: u8, number: u64, answer: Result<(), Fault>, now_us: u64) {
        let partition = &mut self.partitions[usize::from(index)];
        let Some((_, users)) =
            partition.round.departures.take_if(|(under_way, _)| *under_way == number)
        else {
            return;
        };
        match answer {
            Ok(()) => {
                for (user_id, _) in users {
                    let Some(entry) = partition.users.get_mut(&user_id) else { continue };
                    entry.clear(Entry::UNDER_WAY | Entry::STORED);
                    if entry.has(Entry::GONE) && !entry.has(Entry::QUEUED) {
                        partition.remove(user_id);
                    }
                }
            }
            Err(fault) => {
                let users = users.into_iter().map(|(user_id, _)| (user_id, true));
                Self::fail(partition, users, fault, now_us);
            }
        }
        self.touch(index);
    }

    /// A command failed. It is sent again, unless Redis would refuse it again. `users`: each with whether Redis may have had
    /// an entry before.
    fn fail(
        partition: &mut Partition,
        users: impl Iterator<Item = (UserId, bool)>,
        fault: Fault,
        now_us: u64,
    ) {
        partition.retry_at_us = now_us + RETRY_US;
        for (user_id, was_stored) in users {
            let Some(entry) = partition.users.get_mut(&user_id) else { continue };
            entry.clear(Entry::UNDER_WAY);
            if fault != Fault::Unknown && !was_stored {
                entry.clear(Entry::STORED);
            }
            let (is_gone, is_queued) = (entry.has(Entry::GONE), entry.has(Entry::QUEUED));
            let is_over = is_gone && (fault == Fault::Refused || !entry.has(Entry::STORED));
            if is_over && !is_queued {
                partition.remove(user_id);
            } else if fault != Fault::Refused {
                partition.enqueue(user_id);
            }
        }
    }

    /// Starts rounds again that failed.
    pub fn tick(&mut self, now_us: u64) {
        for index in 0..PARTITIONS {
            let partition = &self.partitions[usize::from(index)];
            let has_work = !partition.queue.is_empty() || partition.is_asserting;
            if partition.retry_at_us <= now_us && has_work {
                self.touch(index);
            }
        }
    }
}
