//! Which buckets this gateway sweeps, and how fast: a sweep drops what gateways that have died left in a bucket.
//!
//! In normal operation one bucket a second is swept. A death starts a *pass* over all buckets of this gateway's share, and
//! the pass goes on without a pause until it is over, however long that takes. Several sweeps are under way at the
//! same time, so that a slow connection does not slow the pass down. Redis' own time is bounded: what an answer took
//! beyond the fastest one counts as that.

use std::collections::VecDeque;

use crate::cluster::user_contract::{BUCKETS, PARTITIONS};

/// Time between two sweeps in normal operation, in microseconds.
const SWEEP_EVERY_US: u64 = 1_000_000;

/// Sweeps of one tick while gateways that have died are swept, at most.
const SWEEPS_MAX: u8 = 32;

/// Sweeps that are under way at the same time, at most: Redis spends a millisecond or two on them.
const UNDER_WAY_MAX: usize = 8;

/// How long Redis sweeps in one tick, in microseconds: a fifth of the time, so that it has time for the rest. The sweeps
/// under way when it is over still end.
const SWEEPING_US: u64 = 10_000;

/// Time until the next sweep after one that failed, in microseconds.
const RETRY_US: u64 = 1_000_000;

/// Buckets of all partitions.
const ALL_BUCKETS: usize = PARTITIONS as usize * BUCKETS as usize;

/// A bucket of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The partition.
    pub partition: u8,
    /// Its number in the partition.
    pub bucket: u8,
}

impl Bucket {
    fn at(index: usize) -> Self {
        let partitions = usize::from(PARTITIONS);
        let low = |index: usize| u8::try_from(index).unwrap_or_default();
        Self { partition: low(index % partitions), bucket: low(index / partitions) }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Sweeping {
    /// The index of the next bucket: below `ALL_BUCKETS`.
    next: usize,
    /// Buckets that the pass still has to go through, those of other gateways' shares included.
    pass_left: usize,
    /// Redis still knows a gateway that has died.
    has_dead: bool,
    under_way: Vec<Bucket>,
    /// Their sweeps failed.
    failed: VecDeque<Bucket>,
    /// Buckets whose sweeps were under way when the connection was lost.
    lost: Vec<Bucket>,
    /// A sweep has failed since a batch of one was chosen.
    has_failed: bool,
    /// Nothing is swept earlier.
    not_before_us: u64,
    /// When the next sweep of normal operation is due.
    next_us: u64,
    /// What this tick may still sweep.
    sweeps_left: u8,
    sweeping_left_us: u64,
    /// The slowest answer of those that were sent together.
    slowest_us: u64,
    /// The fastest answer on this connection: nearly all of it is the way to Redis and back.
    fastest_us: u64,
}

impl Sweeping {
    /// Begins with the bucket of this index.
    #[must_use]
    pub const fn new(first: usize) -> Self {
        Self {
            next: first % ALL_BUCKETS,
            pass_left: 0,
            has_dead: false,
            under_way: Vec::new(),
            lost: Vec::new(),
            failed: VecDeque::new(),
            has_failed: false,
            not_before_us: 0,
            next_us: 0,
            sweeps_left: 0,
            sweeping_left_us: 0,
            slowest_us: 0,
            fastest_us: u64::MAX,
        }
    }

    /// Whether a pass is under way.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        self.pass_left > 0
    }

    /// Starts a pass, also in place of one that is under way.
    pub const fn start_pass(&mut self) {
        self.pass_left = ALL_BUCKETS;
    }

    /// Whether Redis knows a gateway that has died. While it does, sweeps do not pause between passes.
    pub const fn set_dead(&mut self, has_dead: bool) {
        self.has_dead = has_dead;
    }

    /// The connection is lost. What was under way is swept again.
    pub fn on_down(&mut self) {
        self.lost.append(&mut self.under_way);
        (self.sweeps_left, self.slowest_us, self.fastest_us) = (0, 0, u64::MAX);
    }

    /// Time has passed.
    pub const fn tick(&mut self, now_us: u64) {
        let is_fast = self.has_dead || self.is_passing();
        if now_us < self.not_before_us {
            self.sweeps_left = 0;
        } else if is_fast {
            (self.sweeps_left, self.sweeping_left_us) = (SWEEPS_MAX, SWEEPING_US);
        } else if self.next_us <= now_us {
            self.next_us = now_us + SWEEP_EVERY_US;
            (self.sweeps_left, self.sweeping_left_us) = (1, SWEEPING_US);
        }
    }

    /// The buckets to sweep now, which are then under way. `is_mine`: whether a partition belongs to this gateway's share.
    pub fn next_buckets(&mut self, is_mine: impl Fn(usize) -> bool) -> Vec<Bucket> {
        let mut buckets = Vec::new();
        // Those that were sent together end together, so that their time can be told from that of the way.
        if !self.under_way.is_empty() || self.sweeping_left_us == 0 || self.sweeps_left == 0 {
            return buckets;
        }
        // One that fails again and again, in a slot that is half moved, must not keep the others from being swept.
        let may_retry = self.sweeps_left > 1 || !std::mem::take(&mut self.has_failed);
        self.failed.retain(|bucket| is_mine(usize::from(bucket.partition)));
        let mut retried = if may_retry { self.failed.pop_front() } else { None };
        while self.sweeps_left > 0
            && buckets.len() < UNDER_WAY_MAX
            && let Some(bucket) =
                (self.lost.pop()).or_else(|| retried.take()).or_else(|| self.next_bucket(&is_mine))
        {
            self.sweeps_left -= 1;
            buckets.push(bucket);
        }
        // The lost ones left no place for it.
        self.failed.extend(retried);
        self.under_way.clone_from(&buckets);
        buckets
    }

    fn next_bucket(&mut self, is_mine: impl Fn(usize) -> bool) -> Option<Bucket> {
        let partitions = usize::from(PARTITIONS);
        // There is one, unless there are more gateways than partitions.
        let steps = (0..partitions).find(|step| is_mine((self.next + step) % partitions));
        let Some(steps) = steps else {
            self.pass_left = 0;
            return None;
        };
        let index = (self.next + steps) % ALL_BUCKETS;
        self.next = (index + 1) % ALL_BUCKETS;
        self.pass_left = self.pass_left.saturating_sub(steps + 1);
        Some(Bucket::at(index))
    }

    /// A bucket was swept, or that failed. The answer took this time.
    pub fn on_swept(&mut self, bucket: Bucket, is_done: bool, took_us: u64, now_us: u64) {
        let Some(index) = self.under_way.iter().position(|&under_way| under_way == bucket) else {
            return;
        };
        self.under_way.swap_remove(index);
        if is_done {
            self.slowest_us = self.slowest_us.max(took_us);
            self.fastest_us = self.fastest_us.min(took_us);
        } else {
            self.failed.push_back(bucket);
            self.has_failed = true;
            self.not_before_us = now_us + RETRY_US;
            self.sweeps_left = 0;
        }
        if self.under_way.is_empty() {
            let swept_us = std::mem::take(&mut self.slowest_us).saturating_sub(self.fastest_us);
            self.sweeping_left_us = self.sweeping_left_us.saturating_sub(swept_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TICK_US: u64 = 50_000;

    /// Sweeps for one tick in which each answer takes `round_trip_us`, and Redis `each_us` for each sweep.
    fn tick(
        sweeping: &mut Sweeping,
        now_us: u64,
        (round_trip_us, each_us): (u64, u64),
    ) -> Vec<Bucket> {
        sweeping.tick(now_us);
        let (mut swept, mut passed_us) = (Vec::new(), 0);
        while passed_us < TICK_US {
            let buckets = sweeping.next_buckets(|_| true);
            if buckets.is_empty() {
                break;
            }
            for (&bucket, number) in buckets.iter().zip(1..) {
                let took_us = round_trip_us + number * each_us;
                sweeping.on_swept(bucket, true, took_us, now_us + passed_us + took_us);
            }
            passed_us += round_trip_us + buckets.len() as u64 * each_us;
            swept.extend(buckets);
        }
        swept
    }

    fn ticks_of_a_pass(costs: (u64, u64)) -> usize {
        let mut sweeping = Sweeping::new(4_000);
        sweeping.start_pass();
        let mut seen = HashSet::new();
        for number in 1_usize.. {
            let swept = tick(&mut sweeping, number as u64 * TICK_US, costs);
            assert!(!swept.is_empty(), "a pass does not pause");
            seen.extend(swept.iter().map(|it| (it.partition, it.bucket)));
            if !sweeping.is_passing() {
                assert_eq!(seen.len(), ALL_BUCKETS);
                return number;
            }
        }
        unreachable!()
    }

    #[test]
    fn a_pass_over_a_slow_connection_is_not_much_slower() {
        let (near, far) = (ticks_of_a_pass((300, 100)), ticks_of_a_pass((20_000, 100)));
        assert_eq!(near, ALL_BUCKETS.div_ceil(usize::from(SWEEPS_MAX)));
        assert!(far <= 2 * near, "{far} ticks, and {near} when Redis is near");
        // Each tick sweeps, however slow the answers are.
        assert_eq!(ticks_of_a_pass((200_000, 100)), ALL_BUCKETS / UNDER_WAY_MAX);
    }

    #[test]
    fn the_time_that_redis_spends_in_a_tick_is_bounded() {
        let mut sweeping = Sweeping::new(0);
        sweeping.start_pass();
        // 8 sweeps take Redis 16 ms.
        assert_eq!(tick(&mut sweeping, TICK_US, (20_000, 2_000)).len(), UNDER_WAY_MAX);
    }

    #[test]
    fn without_a_death_one_bucket_a_second_is_swept() {
        let mut sweeping = Sweeping::new(130);
        let swept: Vec<_> =
            (1..=60).flat_map(|it| tick(&mut sweeping, it * TICK_US, (300, 100))).collect();
        assert_eq!(swept, [130, 131, 132].map(Bucket::at));
        sweeping.set_dead(true);
        assert_eq!(tick(&mut sweeping, 61 * TICK_US, (300, 100)).len(), usize::from(SWEEPS_MAX));
    }

    #[test]
    fn a_bucket_whose_sweep_failed_or_was_lost_with_the_connection_is_swept_again() {
        let mut sweeping = Sweeping::new(0);
        sweeping.start_pass();
        sweeping.tick(TICK_US);
        let first = sweeping.next_buckets(|_| true);
        sweeping.on_swept(first[0], false, 300, TICK_US);
        first[1..].iter().for_each(|&it| sweeping.on_swept(it, true, 300, TICK_US));
        sweeping.tick(2 * TICK_US);
        assert_eq!(sweeping.next_buckets(|_| true), [], "not at once");
        sweeping.tick(TICK_US + RETRY_US);
        let second = sweeping.next_buckets(|_| true);
        assert_eq!((second[0], second.len()), (first[0], UNDER_WAY_MAX));
        sweeping.on_down();
        sweeping.on_swept(second[0], true, 300, 2 * RETRY_US);
        sweeping.tick(2 * RETRY_US);
        let mut again = sweeping.next_buckets(|_| true);
        again.reverse();
        assert_eq!(again, second);
    }

    #[test]
    fn a_bucket_whose_sweep_always_fails_keeps_no_other_from_being_swept() {
        let stuck = Bucket::at(5);
        for passes in [true, false] {
            let mut sweeping = Sweeping::new(0);
            if passes {
                sweeping.start_pass();
            }
            let (mut swept, mut tries) = (HashSet::new(), 0);
            for number in 1..=400_000 {
                let now_us = number * TICK_US;
                sweeping.tick(now_us);
                for bucket in sweeping.next_buckets(|_| true) {
                    tries += u32::from(bucket == stuck);
                    swept.insert((bucket.partition, bucket.bucket));
                    sweeping.on_swept(bucket, bucket != stuck, 300, now_us);
                }
                if swept.len() == ALL_BUCKETS && tries > 3 {
                    break;
                }
            }
            assert_eq!(swept.len(), ALL_BUCKETS, "in a pass: {passes}");
            assert!(tries > 3, "it is tried again, too");
        }
    }

    #[test]
    fn a_gateway_without_a_share_sweeps_nothing() {
        let mut sweeping = Sweeping::new(0);
        sweeping.start_pass();
        sweeping.tick(TICK_US);
        assert_eq!(sweeping.next_buckets(|_| false), []);
        assert!(!sweeping.is_passing());
    }
}
