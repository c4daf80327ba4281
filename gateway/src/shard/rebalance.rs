//! Rebalancing: a shard sends a share of its clients to other gateways.
//!
//! An operator starts a [`run`](divide): so many clients in all, so many a second. Each shard gets a [`Share`] in
//! proportion to its clients that may be sent, and goes through its slots once. A client that came only recently is spared, so that
//! nobody is sent round in circles: recently before the run started, so that none that was sent and came back is sent
//! again however long the run takes. A run that follows soon spares those that came during the one before. The others are closed with 108, as in a drain, at the pace of the share. A shard
//! that was stopped for a while does not catch up: that would be a burst.
//!
//! The run ends when all shares have ended: when enough clients were sent, when no slot is left, when the run is
//! cancelled, or when the shard drains.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Time between two steps, in milliseconds.
const STEP_MS: u64 = 50;

/// The longest time that one step makes up for, in milliseconds.
const STEP_MS_MAX: u64 = 2 * STEP_MS;

/// Clients that one step sends away, at most.
const SENT_MAX: usize = 1024;

/// Slots that one step looks at, at most.
const LOOKED_AT_MAX: usize = 4096;

/// What an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Clients to send away, all shards together.
    pub count: u64,
    /// How many a second, all shards together: at least 1.
    pub per_second: u64,
    /// Clients that were accepted in this number of seconds before the run stay.
    pub spared_s: u16,
}

/// How far a run has come. The shards write it and operators read it.
#[derive(Debug)]
pub struct Progress {
    order: Order,
    sent: AtomicU64,
    shards_left: AtomicUsize,
    is_cancelled: AtomicBool,
}

/// One shard's part of a run.
#[derive(Debug)]
pub struct Share {
    count: u64,
    /// How many clients are sent in 1,000 seconds.
    per_1000_s: u64,
    progress: Arc<Progress>,
}

/// Divides a run among the shards, in proportion to their clients that may be sent. A shard without a part gets no share.
#[must_use]
pub fn divide(order: Order, movable: &[u64]) -> (Arc<Progress>, Vec<Option<Share>>) {
    let all: u64 = movable.iter().sum();
    let (mut before, mut given) = (0, 0);
    let counts: Vec<_> = movable
        .iter()
        .map(|&movable| {
            before += movable;
            let so_far = share_of(order.count, before, all);
            so_far - std::mem::replace(&mut given, so_far)
        })
        .collect();
    let progress = Arc::new(Progress {
        order,
        sent: AtomicU64::new(0),
        shards_left: AtomicUsize::new(counts.iter().filter(|&&count| count > 0).count()),
        is_cancelled: AtomicBool::new(false),
    });
    let share = |count| {
        let per_1000_s = share_of(order.per_second * 1_000, count, order.count).max(1);
        Share { count, per_1000_s, progress: Arc::clone(&progress) }
    };
    let shares = counts.into_iter().map(|count| (count > 0).then(|| share(count))).collect();
    (progress, shares)
}

/// Seconds between two times, as connections count them: each time is rounded down.
fn elapsed_s(from_ms: u64, to_ms: u64) -> u16 {
    u16::try_from((to_ms / 1_000).saturating_sub(from_ms / 1_000)).unwrap_or(u16::MAX)
}

/// `whole * part / all`, rounded down.
fn share_of(whole: u64, part: u64, all: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(all.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

impl Progress {
    /// What was ordered.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.order
    }

    /// Clients that were sent away so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether no shard sends anybody away any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shards_left.load(Ordering::Acquire) == 0
    }

    /// Ends the run. The shards see it in their next step.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether an operator ended the run.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.progress.shards_left.fetch_sub(1, Ordering::Release);
    }
}

/// A shard's share, and how far it has come.
#[derive(Debug, Default)]
pub struct Rebalance {
    state: Option<State>,
    /// The next slot to look at. It is kept from run to run, so that each looks at other slots first.
    next: usize,
    last: Option<LastRun>,
}

/// When the last run was, on the shard's clock.
#[derive(Clone, Copy, Debug)]
struct LastRun {
    started_ms: u64,
    ended_ms: u64,
}

#[derive(Debug)]
struct State {
    share: Share,
    started_ms: u64,
    /// Only clients that were accepted at least this number of seconds before the start are sent away.
    before_start_s: u16,
    /// Clients of the share that are still to be sent.
    left: u64,
    stepped_ms: u64,
    /// Millionths of a client that the pace allows and that were not sent.
    credit: u64,
    /// Clients that this step may still send.
    may_send: usize,
    /// Slots that this step may still look at.
    may_look_at: usize,
    /// Slots that all steps have looked at.
    looked_at: usize,
}

impl Rebalance {
    /// Starts to work on a share. It takes the place of an earlier one.
    pub fn start(&mut self, share: Share, now_ms: u64) {
        self.end();
        let (left, started_ms) = (share.count, now_ms);
        let before_start_s = self.spared_s(share.progress.order.spared_s, now_ms);
        self.state = Some(State {
            share,
            started_ms,
            before_start_s,
            left,
            stepped_ms: now_ms,
            credit: 0,
            may_send: 0,
            may_look_at: 0,
            looked_at: 0,
        });
    }

    /// Sends nobody away any more.
    pub fn end(&mut self) {
        if let Some(State { started_ms, stepped_ms, .. }) = self.state.take() {
            self.last = Some(LastRun { started_ms, ended_ms: stepped_ms });
        }
    }

    /// How many seconds ago a client has to be accepted to be sent by a run that starts now and spares those of `spared_s`.
    /// If the last run ended less than that ago, those that came since its start are spared too.
    #[must_use]
    pub fn spared_s(&self, spared_s: u16, now_ms: u64) -> u16 {
        let is_recent = |last: &LastRun| last.ended_ms + u64::from(spared_s) * 1_000 > now_ms;
        let since_last = |last: LastRun| elapsed_s(last.started_ms, now_ms).saturating_add(1);
        self.last.filter(is_recent).map_or(spared_s, |last| spared_s.max(since_last(last)))
    }

    /// Clients that are still to be sent away.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.state.as_ref().map_or(0, |state| usize::try_from(state.left).unwrap_or(usize::MAX))
    }

    /// When the next step is due, on the shard's clock.
    #[must_use]
    pub fn next_step_ms(&self) -> Option<u64> {
        self.state.as_ref().map(|state| state.stepped_ms + STEP_MS)
    }

    /// Starts a step, if one is due.
    pub fn start_step(&mut self, now_ms: u64) {
        let Some(state) = &mut self.state else { return };
        if state.share.progress.is_cancelled() {
            return self.end();
        }
        let elapsed_ms = now_ms.saturating_sub(state.stepped_ms);
        if elapsed_ms < STEP_MS {
            return;
        }
        state.stepped_ms = now_ms;
        state.credit += elapsed_ms.min(STEP_MS_MAX) * state.share.per_1000_s;
        let may_send = (state.credit / 1_000_000).min(state.left);
        state.may_send = usize::try_from(may_send).unwrap_or(usize::MAX).min(SENT_MAX);
        // What was not sent, since the step looked at too few, is not kept for a burst.
        state.credit %= 1_000_000;
        state.may_look_at = LOOKED_AT_MAX;
    }

    /// The next slot to look at in this step, and how many seconds ago its connection has to be accepted. `slots`: how many
    /// there are. The share ends with its last slot.
    pub fn next_slot(&mut self, slots: usize) -> Option<(u32, u16)> {
        let state = self.state.as_mut()?;
        if state.left == 0 || state.looked_at >= slots {
            self.end();
            return None;
        }
        if state.may_send == 0 || state.may_look_at == 0 {
            return None;
        }
        state.may_look_at -= 1;
        state.looked_at += 1;
        let slot = if self.next < slots { self.next } else { 0 };
        self.next = slot + 1;
        let slot = u32::try_from(slot).expect("slots are 32 bits");
        let since_start_s = elapsed_s(state.started_ms, state.stepped_ms);
        Some((slot, state.before_start_s.saturating_add(since_start_s)))
    }

    /// The client in the slot that was looked at is sent away.
    pub fn count_sent(&mut self) {
        if let Some(state) = &mut self.state {
            state.may_send -= 1;
            state.left -= 1;
            state.share.progress.sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order = Order { count: 100, per_second: 20, spared_s: 60 };

    fn one_share(order: Order) -> (Arc<Progress>, Share) {
        let (progress, mut shares) = divide(order, &[7]);
        (progress, shares.pop().flatten().unwrap())
    }

    /// One step in which each slot that is looked at is sent away. Returns the slots.
    fn step(rebalance: &mut Rebalance, slots: usize, now_ms: u64) -> Vec<u32> {
        rebalance.start_step(now_ms);
        let mut sent = Vec::new();
        while let Some((slot, spared_s)) = rebalance.next_slot(slots) {
            assert!(spared_s >= ORDER.spared_s);
            rebalance.count_sent();
            sent.push(slot);
        }
        sent
    }

    #[test]
    fn a_run_is_divided_in_proportion_to_the_sessions() {
        let (progress, shares) = divide(ORDER, &[10, 0, 20, 3]);
        let counts: Vec<_> = shares.iter().map(|it| it.as_ref().map(|it| it.count)).collect();
        assert_eq!(counts, [Some(30), None, Some(60), Some(10)]);
        let rates: Vec<_> = shares.iter().flatten().map(|share| share.per_1000_s).collect();
        assert_eq!(rates, [6_000, 12_000, 2_000]);
        assert!(!progress.has_ended());
        drop(shares);
        assert!(progress.has_ended(), "no shard works on it");
        assert!(divide(Order { count: 0, ..ORDER }, &[5]).0.has_ended());
        assert!(divide(ORDER, &[0, 0]).0.has_ended(), "there is nobody to send away");
    }

    #[test]
    fn clients_are_sent_at_the_pace_of_the_order() {
        let (progress, share) = one_share(ORDER);
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 1_000);
        assert_eq!(step(&mut rebalance, 500, 1_000), [0; 0]);
        assert_eq!(rebalance.next_step_ms(), Some(1_050));
        assert_eq!(step(&mut rebalance, 500, 1_049), [0; 0], "it is not due");
        for number in 0..100 {
            assert_eq!(rebalance.remaining() as u64, 100 - number);
            let now_ms = 1_050 + 50 * number;
            assert_eq!(u64::from(step(&mut rebalance, 500, now_ms)[0]), number);
        }
        assert!(progress.has_ended() && !progress.is_cancelled());
        assert_eq!((progress.sent(), rebalance.next_step_ms()), (100, None));
    }

    #[test]
    fn a_shard_that_was_stopped_does_not_catch_up() {
        let (_, share) = one_share(Order { per_second: 100, ..ORDER });
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 0);
        assert_eq!(step(&mut rebalance, 500, 50).len(), 5);
        assert_eq!(step(&mut rebalance, 500, 60_000).len(), 10);
        assert_eq!(step(&mut rebalance, 500, 60_050).len(), 5);
    }

    #[test]
    fn each_slot_is_looked_at_once_and_the_next_run_goes_on_behind() {
        let (progress, share) = one_share(Order { count: 3, per_second: 10_000, ..ORDER });
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 0);
        assert_eq!(step(&mut rebalance, 5, 50), [0, 1, 2]);
        assert!(progress.has_ended());
        let (progress, share) = one_share(Order { count: 9, per_second: 10_000, ..ORDER });
        rebalance.start(share, 100);
        assert_eq!(step(&mut rebalance, 5, 150), [3, 4, 0, 1, 2]);
        assert!(progress.has_ended(), "there are no others");
        assert_eq!(progress.sent(), 5);
    }

    #[test]
    fn one_step_looks_at_and_sends_a_bounded_number() {
        let (_, share) = one_share(Order { count: 1 << 20, per_second: 1 << 20, ..ORDER });
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 0);
        assert_eq!(step(&mut rebalance, 1 << 20, 50).len(), SENT_MAX);
        rebalance.start_step(100);
        let looked_at = std::iter::from_fn(|| rebalance.next_slot(1 << 20)).count();
        assert_eq!(looked_at, LOOKED_AT_MAX);
    }

    /// How long ago a client has to be accepted in the next step.
    fn spared_in_step(rebalance: &mut Rebalance, now_ms: u64) -> u16 {
        rebalance.start_step(now_ms);
        rebalance.next_slot(500).unwrap().1
    }

    #[test]
    fn a_client_that_comes_during_a_run_is_spared_however_long_the_run_takes() {
        let (_, share) = one_share(ORDER);
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 1_000_999);
        assert_eq!(spared_in_step(&mut rebalance, 1_001_099), 61, "60 s before the start");
        assert_eq!(spared_in_step(&mut rebalance, 1_400_000), 460);
        // Connections count seconds in 16 bits.
        assert_eq!(spared_in_step(&mut rebalance, 100_000_000), u16::MAX);
    }

    #[test]
    fn a_run_that_follows_soon_spares_those_that_came_during_the_last_one() {
        let mut rebalance = Rebalance::default();
        rebalance.start(one_share(ORDER).1, 1_000_000);
        rebalance.start_step(1_300_000);
        rebalance.end();
        assert_eq!(rebalance.spared_s(60, 1_310_000), 311);
        assert_eq!(rebalance.spared_s(600, 1_310_000), 600);
        assert_eq!(rebalance.spared_s(60, 1_360_000), 60, "the last one ended long enough ago");
        assert_eq!(rebalance.spared_s(0, 1_300_000), 0, "as ordered");
        rebalance.start(one_share(ORDER).1, 1_310_000);
        assert_eq!(spared_in_step(&mut rebalance, 1_320_000), 321);
    }

    #[test]
    fn a_run_that_is_cancelled_ends_with_the_next_step() {
        let (progress, share) = one_share(ORDER);
        let mut rebalance = Rebalance::default();
        rebalance.start(share, 0);
        assert_eq!(step(&mut rebalance, 500, 50).len(), 1);
        progress.cancel();
        assert_eq!(step(&mut rebalance, 500, 60), [0; 0]);
        assert!(progress.has_ended() && progress.is_cancelled());
        assert_eq!(progress.sent(), 1);
    }
}
