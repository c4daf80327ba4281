//! How long calls take: a Prometheus histogram for each backend.
//!
//! A shard counts in plain integers, without a lock or an allocation, and adds them to the gateway's a few
//! times a second. The recorder's own histograms are not used: they keep every sample until somebody asks,
//! which at a million calls a second is no small thing.

use std::fmt::Write as _;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The histogram's name, and what it is.
pub const NAME: &str = "tidegate_call_duration_seconds";
/// Its help text.
pub const HELP: &str = "Time from a request's receipt to its answer or timeout, as the shard's clock has it: read once a \
     turn and when answers come, so a handler on a shard's thread that answers at once counts as 0.";

/// Upper bounds of the buckets, in microseconds, and as `le` says them in seconds; above the last is
/// infinity.
const BOUNDS: [(u64, &str); 16] = [
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

const BUCKETS: usize = BOUNDS.len() + 1;

/// Durations of one backend's calls, on one shard, that were not exported yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Durations {
    /// Calls of at most the bucket's bound, and more than the one's below.
    calls: [u64; BUCKETS],
    sum_us: u64,
}

impl Durations {
    /// Counts one.
    #[inline]
    pub fn note(&mut self, us: u64) {
        self.calls[BOUNDS.partition_point(|&(bound_us, _)| bound_us < us)] += 1;
        self.sum_us += us;
    }
}

/// A gateway's histogram: each shard adds to it, and the operators' page shows it.
#[derive(Debug)]
pub struct CallDurations {
    backends: Vec<Backend>,
}

#[derive(Debug)]
struct Backend {
    name: Arc<str>,
    calls: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl CallDurations {
    /// A histogram for each of these.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = Arc<str>>) -> Self {
        let backend = |name| Backend { name, calls: Default::default(), sum_us: AtomicU64::new(0) };
        Self { backends: backends.into_iter().map(backend).collect() }
    }

    /// Adds what a shard has counted of each backend, and has it begin anew.
    pub fn add(&self, counted: &mut [Durations]) {
        for (total, counted) in self.backends.iter().zip(counted) {
            let Durations { calls, sum_us } = mem::take(counted);
            for (total, calls) in total.calls.iter().zip(calls) {
                // Most are empty, and the others' shards use the same memory.
                if calls > 0 {
                    total.fetch_add(calls, Ordering::Relaxed);
                }
            }
            if sum_us > 0 {
                total.sum_us.fetch_add(sum_us, Ordering::Relaxed);
            }
        }
    }

    /// Writes it as Prometheus reads it. `_count` is what `+Inf` says, whatever is added meanwhile.
    pub fn render(&self, page: &mut String) {
        // Writing to a text can't fail.
        let _ = writeln!(page, "# HELP {NAME} {HELP}\n# TYPE {NAME} histogram");
        for Backend { name, calls, sum_us } in &self.backends {
            let bounds = BOUNDS.iter().map(|(_, le)| *le).chain(["+Inf"]);
            let mut up_to_here = 0;
            for (le, calls) in bounds.zip(calls) {
                up_to_here += calls.load(Ordering::Relaxed);
                let _ =
                    writeln!(page, "{NAME}_bucket{{backend=\"{name}\",le=\"{le}\"}} {up_to_here}");
            }
            let sum_us = sum_us.load(Ordering::Relaxed);
            let (seconds, us) = (sum_us / 1_000_000, sum_us % 1_000_000);
            let _ = writeln!(page, "{NAME}_sum{{backend=\"{name}\"}} {seconds}.{us:06}");
            let _ = writeln!(page, "{NAME}_count{{backend=\"{name}\"}} {up_to_here}");
        }
        page.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_ascend_and_are_what_they_say() {
        assert!(BOUNDS.is_sorted_by(|one, next| one.0 < next.0));
        for (us, le) in BOUNDS {
            let seconds: f64 = le.parse().unwrap();
            assert!((seconds * 1e6 - us as f64).abs() < 1e-6, "{us} {le}");
        }
    }

    #[test]
    fn a_call_of_exactly_a_bound_is_within_it() {
        let total = CallDurations::new(["demo".into(), "quiz".into()]);
        let mut shards = [[Durations::default(); 2]; 2];
        shards[0][0].note(0);
        shards[0][0].note(100);
        shards[1][0].note(101);
        shards[1][0].note(10_000_000);
        shards[1][0].note(10_000_001);
        for _ in 0..2 {
            // What was added is not added again.
            shards.iter_mut().for_each(|shard| total.add(shard));
        }
        let mut page = String::new();
        total.render(&mut page);
        for line in [
            "# TYPE tidegate_call_duration_seconds histogram",
            "tidegate_call_duration_seconds_bucket{backend=\"demo\",le=\"0.0001\"} 2",
            "tidegate_call_duration_seconds_bucket{backend=\"demo\",le=\"0.0002\"} 3",
            "tidegate_call_duration_seconds_bucket{backend=\"demo\",le=\"5\"} 3",
            "tidegate_call_duration_seconds_bucket{backend=\"demo\",le=\"10\"} 4",
            "tidegate_call_duration_seconds_bucket{backend=\"demo\",le=\"+Inf\"} 5",
            "tidegate_call_duration_seconds_sum{backend=\"demo\"} 20.000202",
            "tidegate_call_duration_seconds_count{backend=\"demo\"} 5",
            "tidegate_call_duration_seconds_bucket{backend=\"quiz\",le=\"+Inf\"} 0",
            "tidegate_call_duration_seconds_sum{backend=\"quiz\"} 0.000000",
            "tidegate_call_duration_seconds_count{backend=\"quiz\"} 0",
        ] {
            assert!(page.lines().any(|there| there == line), "{line} is not in:\n{page}");
        }
    }
}
