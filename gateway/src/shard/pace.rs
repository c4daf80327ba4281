//! How many connections are let in each second (`limits.accepts_per_second_max`), and when the others are to come back.
//!
//! After a restart, or when a show begins, all phones come at once. Those beyond the rate wait in the kernel's accept queue, for
//! half a second. A storm that lasts longer is longer than any queue: the kernel then drops what comes, and the phones
//! try again after 1, 3, 7 s, all together. So from then on each connection is accepted, and what is beyond the rate is told 108
//! with a wait of its own.
//!
//! **Waits are places in a schedule.** Each place comes after the one before it, by the time that the rate needs for one
//! connection. So those that were told to wait come back at the rate, and not in a crowd. Clients wait for up to half as long again
//! as they were told (PROTOCOL.md, "Reconnecting"), so they are told four fifths of the time to their place. One in eight places is left
//! free, for phones that come for the first time meanwhile. A place whose phone does not come is returned: what the rate allows and
//! nobody uses shortens the schedule.

/// How long connections beyond the rate wait in the kernel's queue before they are told to come back, in milliseconds.
const QUEUE_MS_MAX: u64 = 500;

/// How long fewer than the rate must come, until a storm is over, in milliseconds.
const CALM_MS: u64 = 100;

/// One place of this many in the schedule is left free.
const SPARE: f64 = 8.0;

/// The part of the time to its place that a client is told to wait: it adds a quarter on average.
const TOLD: f64 = 0.8;

/// The nearest place, in milliseconds: below it, nothing is gained by a second connection.
const PLACE_MS_MIN: f64 = 1_250.0;

/// The furthest place, in milliseconds. Further ones are spread between half of it and it.
const PLACE_MS_MAX: f64 = 150_000.0;

/// How much of a second's connections may come at once.
const BURST: f64 = 0.1;

/// A token bucket.
#[derive(Debug)]
pub struct Allowance {
    per_second: f64,
    most: f64,
    left: f64,
    updated_ms: u64,
}

impl Allowance {
    /// A full one. `most`: how many at once, at least 1.
    #[must_use]
    pub const fn new(per_second: f64, most: f64) -> Self {
        let most = most.max(1.0);
        Self { per_second, most, left: most, updated_ms: 0 }
    }

    /// Time has passed. Returns how many were not used, and are lost.
    #[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 ms")]
    fn update(&mut self, now_ms: u64) -> f64 {
        let passed_ms = now_ms.saturating_sub(self.updated_ms) as f64;
        self.updated_ms = now_ms;
        let left = self.left + passed_ms * self.per_second / 1_000.0;
        self.left = left.min(self.most);
        left - self.left
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        self.update(now_ms);
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }
}

/// A shard's pace.
#[derive(Debug)]
pub struct Pace {
    allowance: Allowance,
    /// Since when there were more than the rate allows.
    crowded_since_ms: Option<u64>,
    /// Since when fewer came than the rate allows.
    calm_since_ms: Option<u64>,
    /// The next free place in the schedule, on the shard's clock.
    next_place_ms: f64,
}

impl Pace {
    /// `per_second`: how many all shards together let in.
    #[must_use]
    pub fn new(per_second: u32, shards: u16) -> Self {
        let per_second = f64::from(per_second) / f64::from(shards);
        Self {
            allowance: Allowance::new(per_second, per_second * BURST),
            crowded_since_ms: None,
            calm_since_ms: None,
            next_place_ms: 0.0,
        }
    }

    /// The time between two places.
    fn place_ms(&self) -> f64 {
        1_000.0 / (self.allowance.per_second * (1.0 - 1.0 / SPARE))
    }

    fn update(&mut self, now_ms: u64) {
        let unused = self.allowance.update(now_ms);
        self.next_place_ms -= unused * self.place_ms();
        if self.calm_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= CALM_MS) {
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
        if self.allowance.left >= 1.0 {
            return self.allowance.left as usize;
        }
        self.calm_since_ms = None;
        let since_ms = *self.crowded_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) < QUEUE_MS_MAX { 0 } else { usize::MAX }
    }

    /// A turn ends. `was_paused`: nothing was accepted in it. Where connections might have been accepted and there is an
    /// allowance left, the queue is empty.
    pub const fn turn_ends(&mut self, was_paused: bool, now_ms: u64) {
        if was_paused || self.allowance.left < 1.0 {
            self.calm_since_ms = None;
        } else if self.calm_since_ms.is_none() {
            self.calm_since_ms = Some(now_ms);
        }
    }

    /// When [`Self::budget`] may be above 0 again, if it is 0 now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and small"
    )]
    #[must_use]
    pub fn next_ms(&self) -> u64 {
        let lacking = (1.0 - self.allowance.left).max(0.0);
        let wait_ms = (lacking * 1_000.0 / self.allowance.per_second).ceil() as u64;
        let next_ms = self.allowance.updated_ms + wait_ms;
        self.crowded_since_ms.map_or(next_ms, |since_ms| next_ms.min(since_ms + QUEUE_MS_MAX))
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
        if self.allowance.left >= 1.0 {
            self.allowance.left -= 1.0;
            return Ok(());
        }
        self.calm_since_ms = None;
        let now_ms = now_ms as f64;
        let mut place_ms = self.next_place_ms.max(now_ms + PLACE_MS_MIN);
        if place_ms - now_ms > PLACE_MS_MAX {
            // The schedule is full: the second half of it is given out once more.
            place_ms = now_ms + PLACE_MS_MAX / 2.0;
        }
        self.next_place_ms = place_ms + self.place_ms();
        Err(((place_ms - now_ms) * TOLD) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all that may be accepted now, as a full queue does.
    fn take_all(pace: &mut Pace, now_ms: u64) -> usize {
        let budget = pace.budget(now_ms);
        if budget < usize::MAX {
            (0..budget).for_each(|_| pace.let_in(now_ms).unwrap());
        }
        pace.turn_ends(budget == 0, now_ms);
        budget
    }

    #[test]
    fn connections_beyond_the_rate_wait_in_the_queue_and_then_are_accepted_to_be_told() {
        // Also where the burst is a single one.
        for (per_second, burst) in [(200, 10), (20, 1), (2, 1)] {
            let mut pace = Pace::new(per_second, 2);
            assert_eq!(take_all(&mut pace, 0), burst);
            assert_eq!(pace.budget(0), 0);
            let each_ms = 2_000 / u64::from(per_second);
            let step = usize::try_from(each_ms).unwrap();
            assert_eq!(pace.next_ms(), each_ms.min(QUEUE_MS_MAX));
            for now_ms in (each_ms..QUEUE_MS_MAX).step_by(step) {
                assert_eq!((take_all(&mut pace, now_ms), pace.budget(now_ms)), (1, 0));
            }
            let late_ms = QUEUE_MS_MAX + each_ms - 1;
            take_all(&mut pace, late_ms);
            assert_eq!(pace.budget(late_ms), usize::MAX, "{per_second}");
            assert_eq!(pace.let_in(late_ms), Err(1_000));
            // It goes on as long as all are taken that the rate allows, also after a long turn.
            for turn in 1..20 {
                let now_ms = late_ms + turn * 1_000;
                take_all(&mut pace, now_ms);
                assert_eq!(pace.budget(now_ms), usize::MAX, "{per_second} {turn}");
            }
            // The queue is empty.
            let calm_ms = late_ms + 100_000;
            assert!(pace.budget(calm_ms) > 0);
            pace.turn_ends(false, calm_ms);
            assert_eq!(take_all(&mut pace, calm_ms + CALM_MS), burst);
            assert_eq!(pace.budget(calm_ms + CALM_MS), 0);
        }
    }

    #[test]
    fn waits_bring_a_storm_back_at_the_rate() {
        const PHONES: u32 = 100_000;
        // All at once, 5,000 a second. As PROTOCOL.md has it, each waits up to half as long again as it was told.
        let mut pace = Pace::new(5_000, 1);
        let mut random = fastrand::Rng::with_seed(7);
        let mut waiting = std::collections::BTreeMap::from([(0_u64, vec![0_u32; PHONES as usize])]);
        let (mut tries, mut inside, mut most_tries, mut last_ms) = (0_u32, 0_u32, 0, 0);
        while let Some((now_ms, phones)) = waiting.pop_first() {
            for tried in phones {
                tries += 1;
                match pace.let_in(now_ms) {
                    Ok(()) => {
                        inside += 1;
                        (most_tries, last_ms) = (most_tries.max(tried + 1), now_ms);
                    }
                    Err(told_ms) => {
                        let wait_ms = u64::from(told_ms + random.u32(0..=told_ms / 2));
                        waiting.entry(now_ms + wait_ms).or_default().push(tried + 1);
                    }
                }
            }
        }
        assert_eq!(inside, PHONES);
        assert!(last_ms < 30_000, "the last came in after {last_ms} ms, of 20,000 at least");
        let each = f64::from(tries) / f64::from(PHONES);
        assert!(each < 2.3 && most_tries <= 6, "{each} tries each, {most_tries} of one phone");
    }

    #[test]
    fn those_that_do_not_come_back_keep_nobody_waiting() {
        let mut pace = Pace::new(5_000, 1);
        let waits: Vec<u32> = (0..2_000_000).filter_map(|_| pace.let_in(0).err()).collect();
        let longest = *waits.iter().max().unwrap();
        assert!(f64::from(longest) <= PLACE_MS_MAX * TOLD, "{longest}");
        // Nobody comes for as long as the schedule is.
        pace.budget(169_000);
        while pace.let_in(200_000).is_ok() {}
        assert_eq!(pace.let_in(200_000), Err(1_000));
    }
}
