//! The report of a scenario: a table for people, JSON for programs, a page to share; and the comparison of two
//! reports.
//!
//! | module | what it owns |
//! |---|---|
//! | `figure` | one number: its unit, how it is written, which direction is better |
//! | `latency` | histograms, and what a report keeps of one |
//! | `run` | what was run, when and where |
//! | `gateway` | the settings of the gateway that was measured |
//! | `pairs` | a JSON object that keeps its order |
//! | `document` | the whole report, as in its JSON |
//! | `table` | the report as text |
//! | `html`, `page.css` | the parts of a page; nothing gets into one unescaped |
//! | `page` | the page of one run |
//! | `chart` | which plots a page has, and why one is missing |
//! | `plot.js` | draws the plots in the browser |
//! | `compare` | `tide bench compare` |
//! | `output` | where reports are written to |
//! | `progress` | the progress bar |

#[cfg(test)]
mod browser;
mod chart;
mod compare;
mod document;
#[cfg(test)]
mod drawing_tests;
mod figure;
mod gateway;
mod html;
mod latency;
mod output;
mod page;
mod pairs;
mod progress;
mod run;
mod table;
#[cfg(test)]
mod tests;

use anyhow::ensure;
use hdrhistogram::Histogram;

use super::args::CommonArgs;
use super::series::Sample;
use crate::stdout;
use document::Document;
use figure::{Entry, Figure};
use latency::Distribution;
use output::write_file;
use run::Run;

pub(super) use compare::{CompareArgs, run as compare};
pub(super) use figure::Unit;
pub(super) use gateway::GatewayArgs;
pub(super) use latency::{histogram, record};
pub(super) use output::OutputArgs;
pub(super) use progress::Progress;
pub(super) use run::Invocation;

/// What a scenario found.
#[derive(Debug)]
pub(super) struct Report {
    scenario: String,
    title: String,
    figures: Vec<Entry>,
    series: Vec<Sample>,
    distributions: Vec<Distribution>,
    warnings: Vec<String>,
}

impl Report {
    /// An empty report. `scenario` names it in the JSON, `title` in the table.
    pub(super) fn new(scenario: &str, title: String) -> Self {
        Self {
            scenario: scenario.into(),
            title,
            figures: Vec::new(),
            series: Vec::new(),
            distributions: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a number: `key` in the JSON, `label` in the table.
    pub(super) fn add(&mut self, key: &str, label: &str, figure: impl Into<Figure>, unit: Unit) {
        debug_assert!(self.figures.iter().all(|entry| entry.key != key), "{key} was added twice");
        self.figures.push(Entry::new(key, label, figure.into(), unit));
    }

    /// Adds a distribution of latencies, unless it is empty.
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
        self.distributions.push(Distribution::of(key, label, latency));
    }

    /// Adds how evenly `counts`, one for each connection, are distributed. Sorts them.
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

    /// Adds a warning for the reader of the figures.
    pub(super) fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.into());
    }

    /// Sets the samples of the run, in order of time.
    pub(super) fn set_series(&mut self, series: Vec<Sample>) {
        self.series = series;
    }

    /// Asks the gateway for its settings, prints the report of a run, and writes the files that the arguments name.
    ///
    /// # Errors
    /// A file can't be written. The report has been printed by then.
    pub(super) fn print(self, args: &CommonArgs) -> anyhow::Result<()> {
        let output = &args.output;
        let mut document = self.document(&args.invocation);
        document.run.label.clone_from(&output.label);
        let settings = args.targets.first().map(|target| args.gateway.ask(target.address));
        document.run.set_gateway(settings.unwrap_or_else(|| Err("no --connect".into())));
        let json = document.to_json()?;
        stdout::print(|out| {
            if output.json { writeln!(out, "{json}") } else { table::write(out, &document) }
        })?;
        for warning in &document.warnings {
            stdout::print_stderr(&format!("warning: {warning}"));
        }
        if let Some(path) = &output.output {
            write_file(path, &json)?;
        }
        if let Some(path) = &output.html {
            write_file(path, &page::page(&document))?;
        }
        Ok(())
    }

    fn document(self, asked: &Invocation) -> Document {
        let Self { scenario, title, figures, series, distributions, warnings } = self;
        let run = Run::on_this_machine(asked);
        Document { scenario, title, run, figures, series, distributions, warnings }
    }
}

/// Makes a run without any measurement an error: none of its figures is meaningful.
///
/// # Errors
/// `count` is 0.
pub(super) fn ensure_measured(count: u64, what: &str) -> anyhow::Result<()> {
    ensure!(
        count > 0,
        "nothing was measured: no {what} in the measured window; use a longer --duration or more load"
    );
    Ok(())
}
