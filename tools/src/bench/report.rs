//! What a scenario found: a table for people or one JSON object for programs.

use std::io::Write as _;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};

use super::engine::Nanos;
use super::series::Sample;

/// The longest latency that is told apart: two minutes.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// How often a progress bar moves.
const PROGRESS_INTERVAL_NS: Nanos = 100_000_000;

/// A histogram of latencies in nanoseconds, good to 0.1 %.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are valid")
}

/// Records a latency. What is longer than two minutes counts as that.
#[inline]
pub(super) fn record(histogram: &mut Histogram<u64>, latency_ns: u64) {
    histogram.saturating_record(latency_ns);
}

/// How a number is to be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    /// As it is.
    Number,
    /// A count a second.
    PerSecond,
    /// Nanoseconds.
    Nanos,
    /// Bytes.
    Bytes,
    /// A part of 1.
    Share,
}

/// A number of a report.
#[derive(Clone, Copy, Debug)]
pub(super) enum Figure {
    /// Counted.
    Count(u64),
    /// Measured.
    Measure(f64),
}

impl From<u64> for Figure {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Figure {
    fn from(measure: f64) -> Self {
        Self::Measure(measure)
    }
}

/// What a scenario found.
#[derive(Debug)]
pub(super) struct Report {
    title: String,
    lines: Vec<(String, String)>,
    json: Map<String, Value>,
    warnings: Vec<String>,
}

impl Report {
    /// An empty one. `scenario` names it in the JSON, `title` in the table.
    pub(super) fn new(scenario: &str, title: String) -> Self {
        let mut json = Map::new();
        json.insert("scenario".into(), scenario.into());
        Self { title, lines: Vec::new(), json, warnings: Vec::new() }
    }

    /// Adds a number: `key` in the JSON, `label` in the table.
    pub(super) fn add(&mut self, key: &str, label: &str, figure: impl Into<Figure>, unit: Unit) {
        let (json, number) = match figure.into() {
            Figure::Count(count) => (Value::from(count), count as f64),
            Figure::Measure(number) => (Value::from(number), number),
        };
        self.json.insert(key.into(), json);
        self.lines.push((label.into(), show(number, unit)));
    }

    /// Adds a distribution of latencies.
    pub(super) fn add_latency(&mut self, key: &str, label: &str, latency: &Histogram<u64>) {
        if latency.is_empty() {
            return;
        }
        let points = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];
        for (name, quantile) in points {
            let nanos = latency.value_at_quantile(quantile);
            self.add(&format!("{key}_{name}_ns"), &format!("{label} {name}"), nanos, Unit::Nanos);
        }
        self.add(&format!("{key}_max_ns"), &format!("{label} max"), latency.max(), Unit::Nanos);
    }

    /// Adds how evenly `counts` are spread over connections. It sorts them.
    pub(super) fn add_fairness(&mut self, counts: &mut [u64]) {
        counts.sort_unstable();
        let (Some(&least), Some(&most)) = (counts.first(), counts.last()) else { return };
        let median = counts[counts.len() / 2];
        self.add("per_connection_min", "per connection, least", least, Unit::Number);
        self.add("per_connection_median", "  median", median, Unit::Number);
        self.add("per_connection_max", "  most", most, Unit::Number);
        let fairness = least as f64 / median.max(1) as f64;
        self.add("fairness", "  least / median", fairness, Unit::Number);
    }

    /// Adds something that the reader has to know.
    pub(super) fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.into());
    }

    /// Adds the run, second by second.
    pub(super) fn set_series(&mut self, series: Vec<Sample>) {
        let series = series
            .into_iter()
            .map(|sample| serde_json::to_value(sample).expect("a sample is made of numbers"));
        self.json.insert("series".into(), series.collect());
    }

    /// Prints it.
    pub(super) fn print(mut self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            self.json.insert("warnings".into(), self.warnings.clone().into());
            serde_json::to_writer(&mut out, &self.json)?;
            writeln!(out)?;
        } else {
            let width = self.lines.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
            writeln!(out, "{}", self.title)?;
            for (label, value) in &self.lines {
                writeln!(out, "  {label:width$}  {value:>12}")?;
            }
        }
        for warning in &self.warnings {
            eprintln!("warning: {warning}");
        }
        Ok(())
    }
}

fn show(number: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => format!("{:.1} %", number * 100.0),
        Unit::Number if number.fract() == 0.0 => format!("{number:.0}"),
        Unit::Number => format!("{number:.2}"),
        Unit::PerSecond => format!("{number:.0} /s"),
        Unit::Nanos => match number {
            ..1e4 => format!("{number:.0} ns"),
            1e4..1e7 => format!("{:.1} us", number / 1e3),
            _ => format!("{:.1} ms", number / 1e6),
        },
        Unit::Bytes => match number.abs() {
            ..1e5 => format!("{number:.0} B"),
            _ => format!("{:.1} MiB", number / f64::from(1 << 20)),
        },
    }
}

/// A progress bar on standard error, and nothing where that is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    moved_at: Nanos,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar, moved_at: 0 }
    }

    /// Moves the bar, now and then.
    #[inline]
    pub(super) fn set(&mut self, position: u64, now: Nanos) {
        if now >= self.moved_at + PROGRESS_INTERVAL_NS {
            self.moved_at = now;
            self.bar.set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
