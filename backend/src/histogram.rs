//! A histogram of durations with fixed bounds, in the form that Prometheus reads.

/// Upper bounds of the buckets: in microseconds, and in seconds as the label `le` has them. One more bucket
/// counts what is longer than the last bound.
pub const BOUNDS: [(u64, &str); 16] = [
    (100, "0.0001"),
    (200, "0.0002"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_000, "0.002"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (20_000, "0.02"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (200_000, "0.2"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_000_000, "2"),
    (5_000_000, "5"),
    (10_000_000, "10"),
];

/// Buckets of a histogram: one for each bound, and one for what is longer.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Durations, counted in plain integers: adding one takes no lock and no allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// By bucket: durations of at most its bound, and longer than the bound of the bucket before. Not
    /// cumulative.
    pub counts: [u64; BUCKETS],
    /// The sum of all durations, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// Counts one duration.
    #[inline]
    pub fn note(&mut self, us: u64) {
        self.note_many(us, 1);
    }

    /// Counts `count` equal durations.
    #[inline]
    pub fn note_many(&mut self, us: u64, count: u64) {
        self.counts[BOUNDS.partition_point(|&(bound_us, _)| bound_us < us)] += count;
        self.sum_us += us * count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_both_forms_agree() {
        assert!(BOUNDS.is_sorted_by(|one, next| one.0 < next.0));
        for (us, le) in BOUNDS {
            let seconds: f64 = le.parse().unwrap();
            assert!((seconds * 1e6 - us as f64).abs() < 1e-6, "{us} {le}");
        }
    }

    #[test]
    fn a_duration_equal_to_a_bound_is_in_the_bucket_of_that_bound() {
        let mut durations = Durations::default();
        for us in [0, 100, 101, 10_000_000, 10_000_001] {
            durations.note(us);
        }
        durations.note_many(150, 3);
        assert_eq!((durations.counts[0], durations.counts[1]), (2, 4));
        assert_eq!((durations.counts[BUCKETS - 2], durations.counts[BUCKETS - 1]), (1, 1));
        assert_eq!(durations.sum_us, 20_000_652);
    }
}
