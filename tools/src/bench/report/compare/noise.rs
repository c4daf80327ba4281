//! How far a figure may differ between two runs without meaning anything.
//!
//! A report has no repeated rounds, but a sample of each second. Where a second's figure is scattered, as the tail of the
//! latencies is, so is the whole run's. So a figure that the samples have gets a wider band: two standard errors of
//! the difference between the runs.
//!
//! The longer a run, the less its rate, its median or its p99 is scattered, as for a mean. Its maximum is another matter:
//! one latency decides it, so a longer run makes it larger and no less scattered. See [`Scatter`].

use super::super::document::Document;
use crate::bench::series::Sample;

/// The least share by which a figure differs from itself, unless --same-within names another. Two runs of 10 seconds of
/// the same gateway on the same machine differ by 2 or 3 %, so one run each can't tell a smaller difference from
/// noise.
pub(super) const SAME_WITHIN: f64 = 0.05;

/// Fewer samples do not show how scattered they are.
const SAMPLES_MIN: usize = 5;

/// The middle half of normally distributed values has a width of this number of standard deviations.
const MIDDLE_HALF: f64 = 1.35;

/// How the scatter of a run's figure follows from that of its seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scatter {
    /// All seconds contribute. So it is smaller by the square root of their number.
    OfMean,
    /// The worst latencies decide. So it is as large as that of one second, however many there are.
    OfTail,
}

/// The share within which a figure of these runs is the same: at least `least`.
pub(super) fn band(key: &str, documents: [&Document; 2], least: f64) -> f64 {
    let errors = documents.map(|document| standard_error(key, &document.series));
    let [Some(a), Some(b)] = errors else { return least };
    (2.0 * a.hypot(b)).max(least)
}

/// The standard error of a run's figure, as a share of it; `None` where the samples do not tell.
fn standard_error(key: &str, series: &[Sample]) -> Option<f64> {
    let (of, scatter) = value_of(key)?;
    let mut values: Vec<_> = series.iter().filter_map(of).filter(|value| *value > 0.0).collect();
    if values.len() < SAMPLES_MIN {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
    // The ramp and the end of a run are in the samples too. They hardly change the middle half.
    let deviation = (at(3) - at(1)) / MIDDLE_HALF / at(2);
    Some(match scatter {
        Scatter::OfMean => deviation / (values.len() as f64).sqrt(),
        Scatter::OfTail => deviation,
    })
}

/// A figure's value in a sample.
type OfSample = fn(&Sample) -> Option<f64>;

/// The value in a sample that a figure of the whole run summarises, and how the figure is scattered.
fn value_of(key: &str) -> Option<(OfSample, Scatter)> {
    Some(match key {
        "per_second" => (|sample| Some(sample.received_per_s), Scatter::OfMean),
        "latency_p50_ns" => (|sample| sample.p50_ns, Scatter::OfMean),
        "latency_p90_ns" => (|sample| sample.p90_ns, Scatter::OfMean),
        "latency_p99_ns" => (|sample| sample.p99_ns, Scatter::OfMean),
        // A sample has no p999. Its maximum is used instead, and nothing is known of how that averages out.
        "latency_p999_ns" | "latency_max_ns" => (|sample| sample.max_ns, Scatter::OfTail),
        _ => return None,
    })
}
