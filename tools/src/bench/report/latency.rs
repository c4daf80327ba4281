//! Recording latencies, and what a report keeps of their distribution.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The longest latency that is recorded exactly: two minutes.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// Points of a distribution per nine: from 0 to 90 %, from 90 to 99 %, and so on.
const POINTS_PER_NINE: u32 = 20;

/// A histogram of latencies in nanoseconds, exact to 0.1 %.
pub(in crate::bench) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid")
}

/// Records a latency. A longer one than two minutes counts as two minutes.
#[inline]
pub(in crate::bench) fn record(histogram: &mut Histogram<u64>, latency_ns: u64) {
    histogram.saturating_record(latency_ns);
}

/// The distribution of latencies over a whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Distribution {
    /// The prefix of its figures' names in the JSON.
    pub(super) key: String,
    /// The prefix of their names for people.
    pub(super) label: String,
    /// The number of latencies.
    pub(super) count: u64,
    /// Pairs of quantile, from 0 to below 1, and latency in nanoseconds, both ascending. The last pair is the
    /// longest latency, at the quantile `1 - 1 / count`.
    pub(super) points: Vec<(f64, f64)>,
}

impl Distribution {
    /// The distribution of a histogram, which must not be empty.
    pub(super) fn of(key: &str, label: &str, latency: &Histogram<u64>) -> Self {
        let count = latency.len();
        let nines = (count as f64).log10();
        let step = 1.0 / f64::from(POINTS_PER_NINE);
        let mut points: Vec<_> = (0_u32..)
            .map(|point| f64::from(point) * step)
            .take_while(|nines_here| *nines_here < nines)
            .map(|nines_here| 1.0 - 10_f64.powf(-nines_here))
            .map(|quantile| (quantile, latency.value_at_quantile(quantile) as f64))
            .collect();
        points.push((1.0 - 1.0 / count as f64, latency.max() as f64));
        Self { key: key.into(), label: label.into(), count, points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_goes_up_to_the_longest_latency() {
        let mut latency = histogram();
        (1..=10_000).for_each(|number| record(&mut latency, number * 1_000));
        let distribution = Distribution::of("latency", "latency", &latency);
        let points = &distribution.points;
        assert_eq!(points.len(), 4 * POINTS_PER_NINE as usize + 1);
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{points:?}");
        assert_eq!(points.last(), Some(&(0.9999, latency.max() as f64)));
        let ninety = points.iter().find(|point| (point.0 - 0.9).abs() < 1e-9).unwrap();
        assert!((ninety.1 / 9e6 - 1.0).abs() < 0.002, "{ninety:?}");
    }

    #[test]
    fn one_latency_is_one_point() {
        let mut latency = histogram();
        record(&mut latency, 700);
        assert_eq!(Distribution::of("latency", "", &latency).points, [(0.0, 700.0)]);
    }
}
