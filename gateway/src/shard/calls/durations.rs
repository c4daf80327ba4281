//! How long calls take: a Prometheus histogram for each backend.
//!
//! A shard counts in plain integers, without a lock or an allocation, and adds them to the gateway's a few
//! times a second. The recorder's own histograms are not used: they keep every sample until the metrics are requested,
//! which at a million calls a second is no small thing.

use std::fmt::Write as _;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_backend::histogram::{BOUNDS, BUCKETS, Durations};

/// The histogram's name.
pub const NAME: &str = "tidegate_call_duration_seconds";
/// Its help text.
pub const HELP: &str = "Time from a request's receipt to its answer or timeout, as the shard's clock has it: read once a \
     turn and when answers come, so a handler on a shard's thread that answers at once counts as 0.";

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

    /// Adds what a shard has counted of each backend, and resets that count.
    pub fn add(&self, counted: &mut [Durations]) {
        for (total, counted) in self.backends.iter().zip(counted) {
            let Durations { counts, sum_us } = mem::take(counted);
            for (total, calls) in total.calls.iter().zip(counts) {
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

    /// Writes it as Prometheus reads it.
    pub fn render(&self, page: &mut String) {
        let of = |Backend { name, calls, sum_us }: &Backend| {
            let counts = calls.each_ref().map(|calls| calls.load(Ordering::Relaxed));
            (Arc::clone(name), Durations { counts, sum_us: sum_us.load(Ordering::Relaxed) })
        };
        render(page, NAME, HELP, self.backends.iter().map(of));
    }
}

/// Writes a histogram for each backend as Prometheus reads it.
pub fn render(
    page: &mut String,
    name: &str,
    help: &str,
    backends: impl IntoIterator<Item = (Arc<str>, Durations)>,
) {
    head(page, name, help);
    for (backend, durations) in backends {
        series(page, name, &format!("backend=\"{backend}\""), &durations);
    }
    page.push('\n');
}

/// Writes a histogram without labels.
pub fn render_one(page: &mut String, name: &str, help: &str, durations: &Durations) {
    head(page, name, help);
    series(page, name, "", durations);
    page.push('\n');
}

fn head(page: &mut String, name: &str, help: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} histogram");
}

/// `labels`: those of the series beside `le`.
fn series(page: &mut String, name: &str, labels: &str, durations: &Durations) {
    let Durations { counts, sum_us } = durations;
    let comma = if labels.is_empty() { "" } else { "," };
    let bounds = BOUNDS.iter().map(|(_, le)| *le).chain(["+Inf"]);
    let mut up_to_here = 0;
    for (le, count) in bounds.zip(counts) {
        up_to_here += count;
        let _ = writeln!(page, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {up_to_here}");
    }
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let (seconds, us) = (sum_us / 1_000_000, sum_us % 1_000_000);
    let _ = writeln!(page, "{name}_sum{labels} {seconds}.{us:06}");
    let _ = writeln!(page, "{name}_count{labels} {up_to_here}");
}

#[cfg(test)]
mod tests {
    use super::*;

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
