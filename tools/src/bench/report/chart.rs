//! Which plots there are: of one run, or of several over each other; and why one is left out.

use super::axis::Quantity;
use super::document::Document;
use super::figure::Unit;
use super::plot::{Curve, Look, Plot};
use crate::bench::series::Sample;

/// Colours that can be told apart: the style sheet has as many.
const COLOURS: usize = 6;
/// Kinds of dashes, the first being none.
const DASHES: usize = 4;

/// One run of those that share a plot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    /// What it is called, and nothing where there is only one.
    pub(super) name: &'a str,
    pub(super) document: &'a Document,
}

/// A plot and what is to be said about it.
#[derive(Debug)]
pub(super) struct Chart {
    /// `None` when nothing of it is known.
    pub(super) plot: Option<Plot>,
    /// What is missing, and why.
    pub(super) notes: Vec<String>,
}

/// One curve of a plot over time.
struct Line {
    name: &'static str,
    value: fn(&Sample) -> Option<f64>,
}

struct OverTime {
    title: &'static str,
    y: Quantity,
    show: fn(f64) -> String,
    lines: &'static [Line],
    /// What to say of a run with samples of which none knows this.
    missing: fn(&Document) -> &'static str,
}

const OVER_TIME: [OverTime; 6] = [
    OverTime {
        title: "Connections",
        y: Quantity::Connections,
        show: |number| Unit::Number.show(number),
        lines: &[Line { name: "connections", value: |at| Some(at.connections as f64) }],
        missing: |_| "the connections were not counted",
    },
    OverTime {
        title: "Rates",
        y: Quantity::Rate,
        show: |number| Unit::PerSecond.show(number),
        lines: &[
            Line { name: "sent", value: |at| Some(at.sent_per_s) },
            Line { name: "received", value: |at| Some(at.received_per_s) },
        ],
        missing: |_| "the messages were not counted",
    },
    OverTime {
        title: "Latency",
        y: Quantity::Latency,
        show: |nanos| Unit::Nanos.show(nanos),
        lines: &[
            Line { name: "p50", value: |at| at.p50_ns },
            Line { name: "p90", value: |at| at.p90_ns },
            Line { name: "p99", value: |at| at.p99_ns },
            Line { name: "max", value: |at| at.max_ns },
        ],
        missing: |_| "nothing was timed: the latency over time is unknown",
    },
    OverTime {
        title: "Server CPU",
        y: Quantity::CpuShare,
        show: |share| Unit::Share.show(share),
        lines: &[Line { name: "server CPU", value: |at| at.server_cpu_share }],
        missing: |document| match document.run.option("pid") {
            None => "no --pid: the server's CPU time is unknown",
            Some(_) => "the server's CPU time was not sampled",
        },
    },
    OverTime {
        title: "Server memory (RSS)",
        y: Quantity::Memory,
        show: |bytes| Unit::Bytes.show(bytes),
        lines: &[Line { name: "server RSS", value: |at| at.server_rss_bytes }],
        missing: |document| match document.run.option("pid") {
            None => "no --pid: the server's memory is unknown",
            Some(_) => "the server's memory was not sampled",
        },
    },
    OverTime {
        title: "Growth of kernel memory (slab)",
        y: Quantity::Memory,
        show: |bytes| Unit::Bytes.show(bytes),
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
        let (mut curves, mut notes) = (Vec::new(), Vec::new());
        for (run, source) in sources.iter().enumerate() {
            let samples = &source.document.series;
            let before = curves.len();
            for (number, line) in self.lines.iter().enumerate() {
                let seconds = |at: &Sample| at.at_ms as f64 / 1e3;
                let value = |at: &Sample| (line.value)(at).filter(|value| value.is_finite());
                let points = samples.iter().map(|at| (seconds(at), value(at))).collect();
                let look = look(number, self.lines.len(), run, sources.len());
                curves.push(Curve { name: named(source, line.name), look, points });
            }
            curves.retain(|curve| curve.points.iter().any(|(_, value)| value.is_some()));
            if curves.len() == before {
                let why = match samples.is_empty() {
                    true => "no samples were taken",
                    false => (self.missing)(source.document),
                };
                notes.push(format!("{}: {}.", named(source, self.title), why));
            }
        }
        let &Self { title, y, show, .. } = self;
        let plot = Plot { title, x: Quantity::Time, y, show, curves };
        Chart { plot: (!plot.curves.is_empty()).then_some(plot), notes }
    }
}

/// The plot of latencies by percentile, over the whole run.
pub(super) fn distribution(sources: &[Source<'_>]) -> Chart {
    let (mut curves, mut notes) = (Vec::new(), Vec::new());
    // A latency has one colour in every run, also where a run has others before it.
    let mut keys: Vec<&str> = Vec::new();
    for distribution in sources.iter().flat_map(|source| &source.document.distributions) {
        if !keys.contains(&distribution.key.as_str()) {
            keys.push(&distribution.key);
        }
    }
    for (run, source) in sources.iter().enumerate() {
        for distribution in &source.document.distributions {
            let number = keys.iter().position(|key| *key == distribution.key).unwrap_or_default();
            let point = |&(quantile, nanos): &(f64, f64)| (quantile, Some(nanos));
            let points: Vec<_> = distribution.points.iter().map(point).collect();
            let look = look(number, keys.len(), run, sources.len());
            if !points.is_empty() {
                curves.push(Curve { name: named(source, &distribution.label), look, points });
            }
        }
        if source.document.distributions.is_empty() {
            let what = named(source, "Latency distribution");
            notes.push(format!("{what}: nothing was timed."));
        }
    }
    let (x, y, show) = (Quantity::Quantile, Quantity::Latency, |nanos| Unit::Nanos.show(nanos));
    let plot = Plot { title: "Latency distribution", x, y, show, curves };
    Chart { plot: (!plot.curves.is_empty()).then_some(plot), notes }
}

fn named(source: &Source<'_>, name: &str) -> String {
    match source.name {
        "" => name.to_owned(),
        run => format!("{run}: {name}"),
    }
}

/// In one run, curves differ in both colour and dashes, for who prints without colours. Where runs
/// lie over each other, the dashes are the run's; the colour is the curve's, or the run's too where
/// each has one curve, so that both show where they meet.
fn look(number: usize, of: usize, run: usize, runs: usize) -> Look {
    let small = |number: usize| u8::try_from(number).unwrap_or_default();
    let (colour, dashes) = match (of, runs) {
        (_, 1) => (number, number % DASHES),
        (1, _) => (run, run),
        _ => (number, run),
    };
    Look { colour: small(colour % COLOURS), dashes: small(dashes) }
}
