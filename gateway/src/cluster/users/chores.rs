//! What gateways do for all users, each for its share of the partitions: they drop what dead gateways have left, and say
//! which users went offline. And each counts the users of all gateways.
//!
//! The gateways that are alive are read from Redis. Their ids, in order, decide who does which partition. While they
//! disagree, a partition may be done twice or not at all for some seconds. Both do no harm: an event may come twice.
//!
//! What a gateway that has died left is swept in a pass of its own: see [`Sweeping`].
//!
//! The event that a user went offline is appended to the stream first, and then struck from the list. So a gateway
//! that dies between, or a Redis that does not answer, makes an event come twice, and never not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use redis::Cmd;
use tidegate_backend::UserId;

use super::Tag;
use super::sweeping::{Bucket, Sweeping};
use crate::cluster::user_contract::{self as contract, PARTITIONS};

/// Time between two looks at who is alive, in microseconds.
const GATEWAYS_EVERY_US: u64 = 2_000_000;

/// Time between two looks at who went offline, in microseconds.
const DUE_EVERY_US: u64 = 1_000_000;

/// Users of a partition whose events are appended at once, at most.
const DUE_USERS_MAX: usize = 64;

/// How long after a gateway's death no partition takes it for alive, in milliseconds. It gives its sign of life in each
/// partition apart, every 5 s, so its last ones end at different times. One of them is read.
const DEATH_SPREAD_MS: u64 = 6_000;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Events that were appended.
    pub offline_events: u64,
    /// Entries of dead gateways that were dropped.
    pub swept: u64,
}

/// A look at who went offline.
#[derive(Debug, Default)]
struct Round {
    is_under_way: bool,
    /// Events without an answer.
    appending: usize,
    appended: Vec<(UserId, u64)>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Chores {
    grace_ms: u64,
    /// Gateways that are alive, and the position of this one among them.
    gateways: usize,
    rank: usize,
    /// Gateways that have died, and for which a pass was started.
    swept_dead: BTreeSet<String>,
    is_reading_gateways: bool,
    next_gateways_us: u64,
    next_due_us: u64,
    rounds: Vec<Round>,
    sweeping: Sweeping,
    /// The users of each partition, as last counted.
    users: Vec<u64>,
    next_count: u8,
    is_counting: bool,
    requests: VecDeque<(Tag, Cmd)>,
    counters: Counters,
}

impl Chores {
    /// A user without a session counts as online for `grace_ms` more. `first_bucket`: where this gateway begins to sweep.
    #[must_use]
    pub fn new(grace_ms: u64, first_bucket: usize) -> Self {
        Self {
            grace_ms,
            gateways: 1,
            rank: 0,
            swept_dead: BTreeSet::new(),
            is_reading_gateways: false,
            next_gateways_us: 0,
            next_due_us: 0,
            rounds: (0..PARTITIONS).map(|_| Round::default()).collect(),
            sweeping: Sweeping::new(first_bucket),
            users: vec![0; usize::from(PARTITIONS)],
            next_count: 0,
            is_counting: false,
            requests: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Gateways that are alive.
    #[must_use]
    pub const fn gateways(&self) -> usize {
        self.gateways
    }

    /// Users at all gateways.
    #[must_use]
    pub fn users(&self) -> u64 {
        self.users.iter().sum()
    }

    /// The next command.
    pub fn next_request(&mut self) -> Option<(Tag, Cmd)> {
        self.requests.pop_front()
    }

    /// The connection is lost. What was under way gets no answer that counts.
    pub fn on_down(&mut self) {
        self.requests.clear();
        self.rounds.fill_with(Round::default);
        self.sweeping.on_down();
        (self.is_reading_gateways, self.is_counting) = (false, false);
    }

    const fn is_mine(&self, partition: usize) -> bool {
        partition % self.gateways == self.rank
    }

    /// Starts what is due.
    pub fn tick(&mut self, now_us: u64) {
        if self.next_gateways_us <= now_us && !self.is_reading_gateways {
            self.next_gateways_us = now_us + GATEWAYS_EVERY_US;
            self.is_reading_gateways = true;
            self.requests.push_back((Tag::Gateways, contract::gateways(0)));
        }
        if self.next_due_us <= now_us {
            self.next_due_us = now_us + DUE_EVERY_US;
            for partition in 0..PARTITIONS {
                let index = usize::from(partition);
                if self.is_mine(index) && !self.rounds[index].is_under_way {
                    self.rounds[index].is_under_way = true;
                    let cmd = contract::due(partition, DUE_USERS_MAX);
                    self.requests.push_back((Tag::Due(partition), cmd));
                }
            }
        }
        self.sweeping.tick(now_us);
        self.sweep();
        if !self.is_counting {
            self.is_counting = true;
            let cmd = contract::count_users(self.next_count);
            self.requests.push_back((Tag::Count(self.next_count), cmd));
            self.next_count = (self.next_count + 1) % PARTITIONS;
        }
    }

    fn sweep(&mut self) {
        let Self { sweeping, gateways, rank, .. } = self;
        for bucket in sweeping.next_buckets(|partition| partition % *gateways == *rank) {
            let cmd = contract::sweep(bucket.partition, bucket.bucket, self.grace_ms);
            self.requests.push_back((Tag::Sweep(bucket), cmd));
        }
    }

    /// The gateways that Redis knows, and until when each counts as alive. `None`: the answer is missing.
    pub fn on_gateways(
        &mut self,
        gateways: Option<BTreeMap<String, u64>>,
        gateway: &str,
        now_unix_ms: u64,
    ) {
        self.is_reading_gateways = false;
        let Some(gateways) = gateways else { return };
        let is_alive = |(_, until_ms): &(&String, &u64)| **until_ms >= now_unix_ms;
        let (alive, dead): (Vec<_>, Vec<_>) = gateways.iter().partition(is_alive);
        let share = (self.gateways, self.rank);
        self.gateways = alive.len().max(1);
        self.rank = alive.iter().position(|(id, _)| *id == gateway).unwrap_or(0);
        self.sweeping.set_dead(!dead.is_empty());
        self.swept_dead.retain(|id| dead.iter().any(|(dead, _)| *dead == id));
        let is_over = |(_, until_ms): &(&String, &u64)| **until_ms + DEATH_SPREAD_MS <= now_unix_ms;
        let mut is_new = false;
        for (id, _) in dead.into_iter().filter(is_over) {
            is_new |= self.swept_dead.insert(id.clone());
        }
        // With another share, the pass may have left out what now belongs to it.
        let has_moved = share != (self.gateways, self.rank) && self.sweeping.is_passing();
        if is_new || has_moved {
            self.sweeping.start_pass();
        }
    }

    /// Users of a partition who went offline, and when. `None`: the answer is missing.
    pub fn on_due(&mut self, partition: u8, users: Option<Vec<(UserId, u64)>>) {
        let round = &mut self.rounds[usize::from(partition)];
        let users = users.unwrap_or_default();
        round.appending = users.len();
        round.is_under_way = !users.is_empty();
        for (user_id, at_ms) in users {
            let cmd = contract::append_offline(user_id, at_ms);
            self.requests.push_back((Tag::Append(partition, user_id, at_ms), cmd));
        }
    }

    /// An event was appended, or that failed.
    pub fn on_appended(&mut self, partition: u8, user: (UserId, u64), is_done: bool) {
        let round = &mut self.rounds[usize::from(partition)];
        if round.appending == 0 {
            return;
        }
        round.appending -= 1;
        if is_done {
            self.counters.offline_events += 1;
            round.appended.push(user);
        }
        if round.appending == 0 {
            let appended = std::mem::take(&mut round.appended);
            if appended.is_empty() {
                round.is_under_way = false;
            } else {
                let cmd = contract::told(partition, &appended);
                self.requests.push_back((Tag::Told(partition), cmd));
            }
        }
    }

    /// Users were struck from the list, or that failed.
    pub fn on_told(&mut self, partition: u8) {
        self.rounds[usize::from(partition)].is_under_way = false;
    }

    /// A bucket was swept in this time, and this number of entries was dropped. `None`: it failed.
    pub fn on_swept(&mut self, bucket: Bucket, dropped: Option<u64>, took_us: u64, now_us: u64) {
        self.counters.swept += dropped.unwrap_or(0);
        self.sweeping.on_swept(bucket, dropped.is_some(), took_us, now_us);
        self.sweep();
    }

    /// The users of a partition were counted.
    pub fn on_counted(&mut self, partition: u8, users: Option<u64>) {
        self.is_counting = false;
        if let Some(users) = users {
            self.users[usize::from(partition)] = users;
        }
    }
}
