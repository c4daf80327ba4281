//! How far a figure may differ between two runs without meaning anything.
//!
//! A report has no repeated rounds, but a sample of each second. Where a second's figure is scattered, as the tail of the
//! latencies is, so is the whole run's. So a figure that the samples have gets a wider band: two standard errors of
//! the difference between the runs.

use super::super::document::Document;
use crate::bench::series::Sample;

/// The least share by which a figure differs from itself, unless --same-within names another. Two runs of 10 seconds of
/// the same gateway on the same machine differ by 2 or 3 %, so one run each can't tell a smaller difference from
/// noise.
pub(super) const SAME_WITHIN: f64 = 0.05;

/// Fewer samples do not show how scattered they are.
const SAMPLES_MIN: usize = 5;

/// The middle half of normally distributed values is as wide as so many standard deviations.
const MIDDLE_HALF: f64 = 1.35;

/// The share within which a figure of these runs is the same: at least `least`.
pub(super) fn band(key: &str, documents: [&Document; 2], least: f64) -> f64 {
    let errors = documents.map(|document| standard_error(key, &document.series));
    let [Some(a), Some(b)] = errors else { return least };
    (2.0 * a.hypot(b)).max(least)
}

/// The standard error of a run's figure, as a share of it; `None` where the samples do not tell.
fn standard_error(key: &str, series: &[Sample]) -> Option<f64> {
    let of = value_of(key)?;
    let mut values: Vec<_> = series.iter().filter_map(of).filter(|value| *value > 0.0).collect();
    if values.len() < SAMPLES_MIN {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
    // The ramp and the end of a run are in the samples too. They hardly change the middle half.
    let deviation = (at(3) - at(1)) / MIDDLE_HALF / at(2);
    Some(deviation / (values.len() as f64).sqrt())
}

/// The value in a sample that a figure of the whole run stands for.
fn value_of(key: &str) -> Option<fn(&Sample) -> Option<f64>> {
    Some(match key {
        "per_second" => |sample| Some(sample.received_per_s),
        "latency_p50_ns" => |sample| sample.p50_ns,
        "latency_p90_ns" => |sample| sample.p90_ns,
        "latency_p99_ns" => |sample| sample.p99_ns,
        // A second has no such figure, which is at least as scattered as its maximum.
        "latency_p999_ns" | "latency_max_ns" => |sample| sample.max_ns,
        _ => return None,
    })
}
