//! Session tokens that are in Redis: lookups, revocations, and the check that no revocation was missed.
//!
//! A **lookup** is a login's. Lookups are gathered by the users' partitions. A partition has one command under way, so the
//! more logins come, the fewer commands each takes. Each lookup gets one verdict, after two seconds at the latest.
//!
//! A **revocation** comes through a partition's channel. All shards are told, since a user may have sessions on several.
//! Verdicts and revocations go to a shard through one mailbox, so a login that Redis has answered before is found. A lookup
//! that is under way is made again: its answer may be older than the revocation.
//!
//! A revocation is missed while nobody listens. So once all channels are subscribed to, and then every
//! `auth.recheck_ms`, the tokens of all sessions are **checked**: each shard lists them, page by page, and those that Redis
//! no longer holds are revoked. Checks wait behind logins and are gathered for longer.
//!
//! This part does no I/O and reads no clock.

pub mod walk;

use std::collections::VecDeque;
use std::mem;

use redis::Cmd;
use tidegate_backend::UserId;

use super::token_contract::{self, PARTITIONS, partition_of};
use crate::auth::TokenDigest;
use crate::session_id::SessionAddr;
use crate::shard::tokens::{ListedToken, TokenMessage, TokenPage, Verdict};
use walk::Walk;

/// Tokens that one command asks for, at most.
const BATCH_MAX: usize = 500;

/// How long a lookup waits for Redis, in milliseconds.
const PATIENCE_MS: u64 = 2_000;

/// Time until a command that failed is made again, in milliseconds.
const RETRY_MS: u64 = 100;

/// Checks are sent together with logins, or once their partition has this number of them, or after this time.
const CHECKS_MIN: usize = 100;
const GATHER_MS: u64 = 1_000;

/// An answer to a check that is older says nothing: the token may have ended by itself meanwhile.
const CHECK_AGE_MS: u64 = 30_000;

/// A token's end has changed if it differs by more than this, in milliseconds.
const END_TOLERANCE_MS: u64 = 5_000;

/// Time until a subscription that failed is made again, in milliseconds.
const SUBSCRIBE_AGAIN_MS: u64 = 1_000;

/// Time until a subscription without any outcome is made again, in milliseconds: longer than a command may take. When a
/// Cluster's node ends a subscription as its slot moves, the client may take that for the outcome of another subscription, whose
/// own outcome is then lost.
const CONFIRM_MS: u64 = 10_000;

/// What this part asks for.
#[derive(Debug)]
pub enum Output {
    /// Post a message to a shard.
    Post(u16, TokenMessage),
    /// Post a message to all shards: the sessions of a user that came with a token are to be closed.
    Revoke(UserId, Option<TokenDigest>),
    /// Subscribe to the channel of a partition.
    Subscribe(u8),
}

/// A command to be sent. Its outcome has to carry the partition and the number.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Request {
    pub partition: u8,
    pub number: u64,
    pub cmd: Cmd,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens of logins that were looked up.
    pub lookups: u64,
    /// Of these, those that Redis did not answer in time.
    pub unavailable: u64,
    /// Revocations that were heard.
    pub revocations: u64,
    /// Tokens of sessions that were checked.
    pub checks: u64,
    /// Of these, those that Redis no longer held.
    pub gone: u64,
}

/// Why a token is looked up.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Login,
    /// `ends_in_ms`: as the shard knows it.
    Check {
        ends_in_ms: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Item {
    addr: SessionAddr,
    user_id: UserId,
    token: TokenDigest,
    purpose: Purpose,
    since_ms: u64,
}

impl Item {
    const fn is_login(&self) -> bool {
        matches!(self.purpose, Purpose::Login)
    }
}

/// The tokens of one command.
#[derive(Debug)]
struct Batch {
    number: u64,
    /// In the order of the command. `None`: it has its verdict.
    items: Vec<Option<Item>>,
    /// What was revoked while it was under way.
    revoked: Vec<(UserId, Option<TokenDigest>)>,
}

#[derive(Debug, Default)]
struct Partition {
    logins: VecDeque<Item>,
    checks: VecDeque<Item>,
    batch: Option<Batch>,
    /// The last command failed: the next one is not sent earlier.
    not_before_ms: u64,
    subscription: Subscription,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Subscription {
    #[default]
    None,
    /// It is to be made then.
    At(u64),
    /// It is made again then if it is not confirmed before.
    UnderWay(u64),
    Confirmed,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tokens {
    partitions: Vec<Partition>,
    /// Partitions that may have a command to send.
    ready: VecDeque<u8>,
    next_number: u64,
    is_up: bool,
    /// When the connection was lost, or the start: lookups wait no longer than `PATIENCE_MS` after that.
    down_since_ms: u64,
    /// Items in all partitions.
    waiting_logins: usize,
    waiting_checks: usize,
    walk: Walk,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Tokens {
    /// Nothing waits. Sessions are checked every `recheck_ms`.
    #[must_use]
    pub fn new(shards: u16, recheck_ms: u64) -> Self {
        Self {
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            ready: VecDeque::new(),
            next_number: 0,
            is_up: false,
            down_since_ms: 0,
            waiting_logins: 0,
            waiting_checks: 0,
            walk: Walk::new(shards, recheck_ms),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What was counted so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Lookups of logins without a verdict.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting_logins
    }

    /// Partitions whose revocations are heard.
    #[must_use]
    pub fn heard_partitions(&self) -> usize {
        let heard = |partition: &&Partition| partition.subscription == Subscription::Confirmed;
        self.partitions.iter().filter(heard).count()
    }

    /// What to do next.
    pub fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// A login's token is to be looked up.
    pub fn look_up(&mut self, addr: SessionAddr, user_id: UserId, token: TokenDigest, now_ms: u64) {
        self.counters.lookups += 1;
        self.waiting_logins += 1;
        let item = Item { addr, user_id, token, purpose: Purpose::Login, since_ms: now_ms };
        if !self.is_up && now_ms >= self.down_since_ms + PATIENCE_MS {
            return self.give(&item, Verdict::Unavailable);
        }
        let partition = partition_of(user_id);
        self.at(partition).logins.push_back(item);
        if self.is_up {
            self.ready.push_back(partition);
        }
    }

    /// A shard has listed a page of its sessions' tokens.
    pub fn on_page(&mut self, page: TokenPage, now_ms: u64) {
        let TokenPage { shard, from, tokens, next } = page;
        if !self.walk.on_page(shard, from, next, now_ms) {
            return;
        }
        self.waiting_checks += tokens.len();
        for ListedToken { conn, user_id, token, ends_in_ms } in tokens {
            let addr = SessionAddr::new(shard, conn);
            let purpose = Purpose::Check { ends_in_ms };
            let partition = partition_of(user_id);
            let checks = &mut self.at(partition).checks;
            checks.push_back(Item { addr, user_id, token, purpose, since_ms: now_ms });
            if checks.len() == CHECKS_MIN {
                self.ready.push_back(partition);
            }
        }
    }

    /// The next command.
    pub fn next_request(&mut self, now_ms: u64) -> Option<Request> {
        while self.is_up {
            let partition = self.ready.pop_front()?;
            let request = self.start(partition, now_ms);
            if request.is_some() {
                return request;
            }
        }
        None
    }

    /// Starts a partition's next command, if it has none and something to ask.
    fn start(&mut self, partition: u8, now_ms: u64) -> Option<Request> {
        let number = self.next_number + 1;
        let it = self.at(partition);
        if it.batch.is_some() || now_ms < it.not_before_ms {
            return None;
        }
        let logins = it.logins.len().min(BATCH_MAX);
        let mut items: Vec<Item> = it.logins.drain(..logins).collect();
        let is_due = it.checks.front().is_some_and(|check| check.since_ms + GATHER_MS <= now_ms);
        if !items.is_empty() || it.checks.len() >= CHECKS_MIN || is_due {
            let checks = it.checks.len().min(BATCH_MAX - items.len());
            items.extend(it.checks.drain(..checks));
        }
        if items.is_empty() {
            return None;
        }
        let asked = items.iter().map(|item| (item.user_id, item.token));
        let cmd = token_contract::tokens(partition, asked);
        let items = items.into_iter().map(Some).collect();
        it.batch = Some(Batch { number, items, revoked: Vec::new() });
        self.next_number = number;
        Some(Request { partition, number, cmd })
    }

    /// Redis has answered a command, or it failed: `None`.
    pub fn on_answer(
        &mut self,
        partition: u8,
        number: u64,
        verdicts: Option<Vec<Verdict>>,
        now_ms: u64,
    ) {
        let it = self.at(partition);
        let Some(batch) = it.batch.take_if(|batch| batch.number == number) else { return };
        if self.is_up {
            self.ready.push_back(partition);
        }
        let verdicts = verdicts.filter(|verdicts| verdicts.len() == batch.items.len());
        let Some(verdicts) = verdicts else { return self.on_failed(partition, batch, now_ms) };
        for (item, verdict) in batch.items.into_iter().zip(verdicts) {
            let Some(item) = item else { continue };
            let is_revoked = |(user_id, token): &(UserId, Option<TokenDigest>)| {
                *user_id == item.user_id && token.is_none_or(|token| token == item.token)
            };
            match item.purpose {
                // It may have been answered before it was revoked.
                Purpose::Login if batch.revoked.iter().any(is_revoked) => {
                    self.at(partition).logins.push_front(item);
                }
                Purpose::Login => self.give(&item, verdict),
                Purpose::Check { ends_in_ms } => {
                    self.on_checked(&item, ends_in_ms, verdict, now_ms);
                }
            }
        }
    }

    /// Logins are looked up again for as long as they have time; a later pass makes up for the checks.
    fn on_failed(&mut self, partition: u8, batch: Batch, now_ms: u64) {
        self.requeue(partition, batch);
        self.at(partition).not_before_ms = now_ms + RETRY_MS;
    }

    fn requeue(&mut self, partition: u8, batch: Batch) {
        for item in batch.items.into_iter().rev().flatten() {
            if item.is_login() {
                self.at(partition).logins.push_front(item);
            } else {
                self.waiting_checks -= 1;
                self.walk.on_doubt();
            }
        }
    }

    fn on_checked(&mut self, item: &Item, ends_in_ms: Option<u64>, verdict: Verdict, now_ms: u64) {
        self.waiting_checks -= 1;
        let age_ms = now_ms - item.since_ms;
        if age_ms > CHECK_AGE_MS {
            return self.walk.on_doubt();
        }
        self.counters.checks += 1;
        let Item { addr, user_id, token, .. } = *item;
        match verdict {
            Verdict::Known { ends_in_ms: now } => {
                let expected = ends_in_ms.map(|ms| ms.saturating_sub(age_ms));
                let has_changed = match (now, expected) {
                    (Some(now), Some(expected)) => now.abs_diff(expected) > END_TOLERANCE_MS,
                    (now, expected) => now.is_some() != expected.is_some(),
                };
                if has_changed {
                    let conn = addr.conn();
                    let message = TokenMessage::NewEnd { conn, token, ends_in_ms: now };
                    self.outputs.push_back(Output::Post(addr.shard(), message));
                }
            }
            Verdict::Unknown => {
                self.counters.gone += 1;
                let message = TokenMessage::Revoke { user_id, token: Some(token) };
                self.outputs.push_back(Output::Post(addr.shard(), message));
            }
            Verdict::Unavailable => {}
        }
    }

    /// Gives a login its verdict.
    fn give(&mut self, item: &Item, verdict: Verdict) {
        self.waiting_logins -= 1;
        self.counters.unavailable += u64::from(verdict == Verdict::Unavailable);
        let message = TokenMessage::Verdict { conn: item.addr.conn(), verdict };
        self.outputs.push_back(Output::Post(item.addr.shard(), message));
    }

    /// A token of a user was revoked; `None`: all of them.
    pub fn on_revoked(&mut self, user_id: UserId, token: Option<TokenDigest>) {
        self.counters.revocations += 1;
        if let Some(batch) = &mut self.at(partition_of(user_id)).batch
            && batch.items.iter().flatten().any(|item| item.user_id == user_id)
        {
            batch.revoked.push((user_id, token));
        }
        self.outputs.push_back(Output::Revoke(user_id, token));
    }

    /// There is a connection.
    pub fn on_up(&mut self, now_ms: u64) {
        self.is_up = true;
        for number in 0..PARTITIONS {
            let partition = self.at(number);
            partition.subscription = Subscription::UnderWay(now_ms + CONFIRM_MS);
            // The last command failed with the connection before.
            partition.not_before_ms = 0;
            self.outputs.push_back(Output::Subscribe(number));
            self.ready.push_back(number);
        }
        self.walk.on_doubt();
    }

    /// The connection is lost. A command that is under way may take seconds to fail, so its logins are looked up on the
    /// next connection without waiting for that. Its answer, if it still comes, is ignored.
    pub fn on_down(&mut self, now_ms: u64) {
        (self.is_up, self.down_since_ms) = (false, now_ms);
        for number in 0..PARTITIONS {
            if let Some(batch) = self.at(number).batch.take() {
                self.requeue(number, batch);
            }
            let partition = &mut self.partitions[usize::from(number)];
            partition.subscription = Subscription::None;
            self.waiting_checks -= mem::take(&mut partition.checks).len();
        }
        self.ready.clear();
        self.walk.stop();
    }

    /// The revocations of a partition are heard from now on.
    pub fn on_subscribed(&mut self, partition: u8) {
        if self.is_up {
            self.at(partition).subscription = Subscription::Confirmed;
            self.walk.on_doubt();
        }
    }

    /// The revocations of a partition are not heard: its slot has moved, or the subscription failed.
    pub fn on_unsubscribed(&mut self, partition: u8, now_ms: u64) {
        if self.is_up {
            let at_ms = now_ms + SUBSCRIBE_AGAIN_MS;
            self.at(partition).subscription = Subscription::At(at_ms);
            self.walk.on_doubt();
        }
    }

    /// A connection to a node of a Cluster was lost, and is made again by itself.
    pub fn on_node_lost(&mut self) {
        self.walk.on_doubt();
    }

    /// Does what is due.
    pub fn tick(&mut self, now_ms: u64) {
        for number in 0..PARTITIONS {
            self.tick_partition(number, now_ms);
        }
        let is_heard = self.is_up && self.heard_partitions() == usize::from(PARTITIONS);
        self.walk.tick(is_heard, self.waiting_checks, now_ms);
        while let Some((shard, from)) = self.walk.next_page() {
            self.outputs.push_back(Output::Post(shard, TokenMessage::List { from }));
        }
    }

    fn tick_partition(&mut self, number: u8, now_ms: u64) {
        let has_no_hope = !self.is_up && self.down_since_ms + PATIENCE_MS <= now_ms;
        let is_late = |item: &Item| has_no_hope || item.since_ms + PATIENCE_MS <= now_ms;
        let it = self.at(number);
        let mut late = Vec::new();
        while it.logins.front().is_some_and(is_late) {
            late.extend(it.logins.pop_front());
        }
        for item in it.batch.iter_mut().flat_map(|batch| &mut batch.items) {
            late.extend(item.take_if(|item| item.is_login() && is_late(item)));
        }
        let is_due = it.checks.front().is_some_and(|check| check.since_ms + GATHER_MS <= now_ms);
        let is_ready =
            it.batch.is_none() && it.not_before_ms <= now_ms && (is_due || !it.logins.is_empty());
        let subscribes = match it.subscription {
            Subscription::At(at_ms) | Subscription::UnderWay(at_ms) => at_ms <= now_ms,
            Subscription::None | Subscription::Confirmed => false,
        };
        if subscribes {
            it.subscription = Subscription::UnderWay(now_ms + CONFIRM_MS);
            self.outputs.push_back(Output::Subscribe(number));
        }
        if is_ready && self.is_up {
            self.ready.push_back(number);
        }
        late.iter().for_each(|item| self.give(item, Verdict::Unavailable));
    }

    fn at(&mut self, partition: u8) -> &mut Partition {
        &mut self.partitions[usize::from(partition)]
    }
}

#[cfg(test)]
mod tests;
