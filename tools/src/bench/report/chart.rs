//! Which plots a page has, for one run or for several runs in the same plots; and why a plot is missing.

use super::document::Document;
use super::figure::Unit;
use crate::bench::series::Sample;

/// The number of colours in the style sheet. They are distinguishable.
const COLOURS: usize = 6;
/// The number of dash patterns in the style sheet. The first is a solid line.
const DASHES: usize = 4;

/// One of the runs of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// The run's name; empty where there is only one run.
    pub(super) name: &'a str,
    pub(super) document: &'a Document,
}

/// A plot, and notes about it.
#[derive(Debug)]
pub(super) struct Chart {
    /// `None` where no run has a value for it.
    pub(super) plot: Option<Plot>,
    /// What is missing, and why.
    pub(super) notes: Vec<String>,
}

/// A plot. Each of its curves has at least one value.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) x: XAxis,
    pub(super) y_label: &'static str,
    /// The unit of the curves' values.
    pub(super) y: Unit,
    pub(super) tables: Vec<Table>,
}

/// Curves that have their points at the same places of the x axis.
#[derive(Debug)]
pub(super) struct Table {
    /// Ascending.
    pub(super) xs: Vec<f64>,
    pub(super) curves: Vec<Curve>,
}

/// One curve.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) style: Style,
    /// A value for each x of the table; `None` is a gap in the curve.
    pub(super) ys: Vec<Option<f64>>,
}

/// How a curve looks: numbers of a colour and of a dash pattern in the style sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) colour: usize,
    pub(super) dashes: usize,
}

/// What an x axis shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XAxis {
    /// Seconds since the start of the run.
    Time,
    /// A quantile, from 0 to 1.
    Quantile,
}

impl XAxis {
    /// The name by which the script knows it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Quantile => "quantile",
        }
    }

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Time => "time since the start",
            Self::Quantile => "percentile",
        }
    }

    /// A value for people.
    pub(super) fn format(self, value: f64) -> String {
        match self {
            Self::Time => format!("{value:.1} s"),
            Self::Quantile => format!("{:.3} %", value * 100.0),
        }
    }
}

/// One curve of a plot over time.
struct Line {
    name: &'static str,
    value: fn(&Sample) -> Option<f64>,
}

struct OverTime {
    title: &'static str,
    y_label: &'static str,
    y: Unit,
    lines: &'static [Line],
    /// Why a run that has samples has no value for this plot.
    missing: fn(&Document) -> &'static str,
}

const OVER_TIME: [OverTime; 6] = [
    OverTime {
        title: "Connections",
        y_label: "number",
        y: Unit::Number,
        lines: &[Line { name: "connections", value: |at| Some(at.connections as f64) }],
        missing: |_| "the connections were not counted",
    },
    OverTime {
        title: "Rates",
        y_label: "messages per second",
        y: Unit::PerSecond,
        lines: &[
            Line { name: "sent", value: |at| Some(at.sent_per_s) },
            Line { name: "received", value: |at| Some(at.received_per_s) },
        ],
        missing: |_| "the messages were not counted",
    },
    OverTime {
        title: "Latency",
        y_label: "time",
        y: Unit::Nanos,
        lines: &[
            Line { name: "p50", value: |at| at.p50_ns },
            Line { name: "p90", value: |at| at.p90_ns },
            Line { name: "p99", value: |at| at.p99_ns },
            Line { name: "max", value: |at| at.max_ns },
        ],
        missing: |_| "no latency was measured",
    },
    OverTime {
        title: "Server CPU",
        y_label: "share of one core",
        y: Unit::Share,
        lines: &[Line { name: "server CPU", value: |at| at.server_cpu_share }],
        missing: |document| match document.run.option("pid") {
            None => "no --pid: the server's CPU time is unknown",
            Some(_) => "the server's CPU time was not sampled",
        },
    },
    OverTime {
        title: "Server memory (RSS)",
        y_label: "size",
        y: Unit::Bytes,
        lines: &[Line { name: "server RSS", value: |at| at.server_rss_bytes }],
        missing: |document| match document.run.option("pid") {
            None => "no --pid: the server's memory is unknown",
            Some(_) => "the server's memory was not sampled",
        },
    },
    OverTime {
        title: "Growth of kernel memory (slab)",
        y_label: "size",
        y: Unit::Bytes,
        lines: &[Line { name: "kernel slab", value: |at| at.kernel_slab_bytes }],
        missing: |document| match document.run.option("pid") {
            None => "no --pid: the memory of the server's kernel is unknown",
            Some(_) => "the kernel's memory was not sampled, or /proc/meminfo can't be read",
        },
    },
];

/// The plots over time.
pub(super) fn over_time(sources: &[Source<'_>]) -> Vec<Chart> {
    if sources.iter().all(|source| source.document.series.is_empty()) {
        let note = "No samples were taken: there are no plots over time.".into();
        return vec![Chart { plot: None, notes: vec![note] }];
    }
    OVER_TIME.iter().map(|over_time| over_time.chart(sources)).collect()
}

impl OverTime {
    fn chart(&self, sources: &[Source<'_>]) -> Chart {
        let (mut tables, mut notes) = (Vec::new(), Vec::new());
        for (run, source) in sources.iter().enumerate() {
            let samples = &source.document.series;
            let curve = |(number, line): (usize, &Line)| {
                let value = |at: &Sample| (line.value)(at).filter(|value| value.is_finite());
                let style = style(number, self.lines.len(), run, sources.len());
                let ys = samples.iter().map(value).collect();
                Curve { name: full_name(source, line.name), style, ys }
            };
            let mut curves: Vec<_> = self.lines.iter().enumerate().map(curve).collect();
            curves.retain(|curve| curve.ys.iter().any(Option::is_some));
            if curves.is_empty() {
                let reason = match samples.is_empty() {
                    true => "no samples were taken",
                    false => (self.missing)(source.document),
                };
                notes.push(format!("{}: {reason}.", full_name(source, self.title)));
                continue;
            }
            let xs = samples.iter().map(|at| at.at_ms as f64 / 1e3).collect();
            tables.push(Table { xs, curves });
        }
        let &Self { title, y_label, y, .. } = self;
        let plot = Plot { title, x: XAxis::Time, y_label, y, tables };
        Chart { plot: (!plot.tables.is_empty()).then_some(plot), notes }
    }
}

/// The plot of latencies by percentile, for the whole run.
pub(super) fn distribution(sources: &[Source<'_>]) -> Chart {
    let (mut tables, mut notes) = (Vec::new(), Vec::new());
    // The colour follows from the key, so that a latency has the same colour in each run.
    let mut keys: Vec<&str> = Vec::new();
    for distribution in sources.iter().flat_map(|source| &source.document.distributions) {
        if !keys.contains(&distribution.key.as_str()) {
            keys.push(&distribution.key);
        }
    }
    for (run, source) in sources.iter().enumerate() {
        for distribution in &source.document.distributions {
            let number = keys.iter().position(|key| *key == distribution.key).unwrap_or_default();
            let style = style(number, keys.len(), run, sources.len());
            let points = &distribution.points;
            let (xs, ys): (Vec<_>, Vec<_>) = points.iter().map(|&(x, y)| (x, Some(y))).unzip();
            let curve = Curve { name: full_name(source, &distribution.label), style, ys };
            if !xs.is_empty() {
                tables.push(Table { xs, curves: vec![curve] });
            }
        }
        if source.document.distributions.is_empty() {
            let title = full_name(source, "Latency distribution");
            notes.push(format!("{title}: no latency was measured."));
        }
    }
    let (title, x, y) = ("Latency distribution", XAxis::Quantile, Unit::Nanos);
    let plot = Plot { title, x, y_label: "time", y, tables };
    Chart { plot: (!plot.tables.is_empty()).then_some(plot), notes }
}

fn full_name(source: &Source<'_>, name: &str) -> String {
    match source.name {
        "" => name.to_owned(),
        run => format!("{run}: {name}"),
    }
}

/// In a page of one run, curves differ in both colour and dashes, for prints without colours. In a page of several
/// runs the dashes tell the run and the colour tells the curve. Where each run has a single curve, the colour
/// shows the run too, so that curves that cross can be distinguished.
fn style(curve: usize, curves: usize, run: usize, runs: usize) -> Style {
    let (colour, dashes) = match (curves, runs) {
        (_, 1) => (curve, curve % DASHES),
        (1, _) => (run, run),
        _ => (curve, run),
    };
    Style { colour: colour % COLOURS, dashes }
}
