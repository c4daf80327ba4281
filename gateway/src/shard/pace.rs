//! How many connections are let in in a second (`limits.accepts_per_second_max`), and when the others are to come back.
//!
//! After a restart, or when a show begins, all phones come at once. Those beyond the rate wait in the kernel's accept queue, for
//! [`QUEUE_MS_MAX`]. A storm that lasts longer is longer than any queue: the kernel then drops what comes, and the phones
//! try again after 1, 3, 7 s, all together. So from then on each connection is accepted, and what is beyond the rate is told 108
//! with a wait of its own.
//!
//! **Waits are places in a schedule.** Each wait ends where the one before it ended and a connection more can be let in. So
//! those that were told to wait come back at the rate, and not in a crowd: a storm of `n` phones is over after `n / rate`
//! seconds, and nearly every phone has tried twice at most. One in [`SPARE`] places is left free, for phones that come for the first
//! time meanwhile.

/// How long connections beyond the rate wait in the kernel's queue before they are told to come back, in milliseconds.
const QUEUE_MS_MAX: u64 = 500;

/// One in so many places of the schedule is left free.
const SPARE: f64 = 8.0;

/// The shortest wait, in milliseconds: below it, nothing is gained by a second connection.
const WAIT_MS_MIN: f64 = 1_000.0;

/// The longest wait, in milliseconds. Further ones are spread between half of it and it.
const WAIT_MS_MAX: f64 = 300_000.0;

/// How much of a second's connections may come at once.
const BURST: f64 = 0.1;

/// A shard's pace.
#[derive(Debug)]
pub struct Pace {
    /// The shard's share of the rate.
    per_second: f64,
    /// How many may be let in now.
    allowance: f64,
    updated_ms: u64,
    /// Since when there were more than the rate allows, without a pause.
    crowded_since_ms: Option<u64>,
    /// The next free place in the schedule, on the shard's clock.
    next_place_ms: f64,
}

impl Pace {
    /// `per_second`: how many all shards together let in.
    #[must_use]
    pub fn new(per_second: u32, shards: u16) -> Self {
        let per_second = f64::from(per_second) / f64::from(shards);
        Self {
            per_second,
            allowance: Self::burst(per_second),
            updated_ms: 0,
            crowded_since_ms: None,
            next_place_ms: 0.0,
        }
    }

    fn burst(per_second: f64) -> f64 {
        (per_second * BURST).max(1.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "a gap between two turns is short")]
    fn update(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.updated_ms) as f64;
        self.updated_ms = now_ms;
        let most = Self::burst(self.per_second);
        self.allowance = (self.allowance + passed_ms * self.per_second / 1_000.0).min(most);
        if self.allowance >= most {
            self.crowded_since_ms = None;
        }
    }

    /// How many connections may be accepted now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and small"
    )]
    pub fn budget(&mut self, now_ms: u64) -> usize {
        self.update(now_ms);
        if self.allowance >= 1.0 {
            return self.allowance as usize;
        }
        let since_ms = *self.crowded_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) < QUEUE_MS_MAX { 0 } else { usize::MAX }
    }

    /// When [`Self::budget`] may be above 0 again, if it is 0 now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and small"
    )]
    #[must_use]
    pub fn next_ms(&self) -> u64 {
        let lacking = (1.0 - self.allowance).max(0.0);
        self.updated_ms + (lacking * 1_000.0 / self.per_second).ceil() as u64
    }

    /// A connection is to be let in.
    ///
    /// # Errors
    /// It is not: how many milliseconds its client is to wait before it comes back.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "times are far below 2^52 ms"
    )]
    pub fn let_in(&mut self, now_ms: u64) -> Result<(), u32> {
        self.update(now_ms);
        if self.allowance >= 1.0 {
            self.allowance -= 1.0;
            return Ok(());
        }
        let now_ms = now_ms as f64;
        let place_ms = self.next_place_ms.max(now_ms + WAIT_MS_MIN);
        let wait_ms = place_ms - now_ms;
        if wait_ms > WAIT_MS_MAX {
            // The schedule is full: from half of it on, again.
            self.next_place_ms = now_ms + WAIT_MS_MAX / 2.0;
        } else {
            let each_ms = 1_000.0 / (self.per_second * (1.0 - 1.0 / SPARE));
            self.next_place_ms = place_ms + each_ms;
        }
        Err(wait_ms.min(WAIT_MS_MAX) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_rate_wait_in_the_queue_and_then_are_accepted_to_be_told() {
        let mut pace = Pace::new(200, 2);
        assert_eq!(pace.budget(0), 10);
        (0..10).for_each(|_| assert_eq!(pace.let_in(0), Ok(())));
        assert_eq!(pace.budget(0), 0);
        assert_eq!(pace.next_ms(), 10);
        assert_eq!(pace.budget(10), 1);
        assert_eq!(pace.let_in(10), Ok(()));
        // As long as each is taken at once that the rate allows, it is crowded.
        for now_ms in (20..QUEUE_MS_MAX).step_by(10) {
            assert_eq!(pace.budget(now_ms), 1);
            pace.let_in(now_ms).unwrap();
            assert_eq!(pace.budget(now_ms), 0);
        }
        assert_eq!(pace.budget(QUEUE_MS_MAX - 1), 0);
        assert_eq!(pace.budget(QUEUE_MS_MAX + 9), 1);
        pace.let_in(QUEUE_MS_MAX + 9).unwrap();
        assert_eq!(pace.budget(QUEUE_MS_MAX + 9), usize::MAX);
        assert_eq!(pace.let_in(QUEUE_MS_MAX + 9), Err(1_000));
        // A pause.
        assert_eq!(pace.budget(2_000), 10);
        (0..10).for_each(|_| pace.let_in(2_000).unwrap());
        assert_eq!(pace.budget(2_000), 0);
    }

    #[test]
    fn waits_bring_a_storm_back_at_the_rate() {
        // 100,000 phones at once, 5,000 a second.
        let mut pace = Pace::new(5_000, 1);
        let (mut waiting, mut tries, mut inside) = (vec![(0_u64, 0_u32); 100_000], 0_u64, 0_u64);
        let (mut most_tries, mut last_ms) = (0, 0);
        while !waiting.is_empty() {
            waiting.sort_unstable();
            let (at_ms, tried) = waiting[0];
            let due: Vec<_> = waiting.iter().take_while(|(ms, _)| *ms == at_ms).copied().collect();
            waiting.drain(..due.len());
            for (_, tried) in due {
                tries += 1;
                match pace.let_in(at_ms) {
                    Ok(()) => inside += 1,
                    Err(wait_ms) => waiting.push((at_ms + u64::from(wait_ms), tried + 1)),
                }
            }
            (most_tries, last_ms) = (most_tries.max(tried + 1), last_ms.max(at_ms));
        }
        assert_eq!(inside, 100_000);
        assert!(last_ms < 26_000, "the last came in after {last_ms} ms, of 20,000 at least");
        assert!(tries < 205_000 && most_tries <= 3, "{tries} tries, {most_tries} of one phone");
    }

    #[test]
    fn no_wait_is_longer_than_the_longest() {
        let mut pace = Pace::new(10, 1);
        let waits: Vec<u32> = (0..10_000).filter_map(|_| pace.let_in(0).err()).collect();
        let longest = waits.iter().max().unwrap();
        assert!(f64::from(*longest) <= WAIT_MS_MAX, "{longest}");
        let late = waits.iter().filter(|wait| f64::from(**wait) > WAIT_MS_MAX / 2.0).count();
        assert!(late > 8_000, "{late}: they are spread over the second half");
    }
}
