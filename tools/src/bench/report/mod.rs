//! What a scenario found: a table for people, JSON for programs, a page to show around; and two such
//! reports side by side.
//!
//! | module | what it owns |
//! |---|---|
//! | `figure` | one number: its unit, how it is written, which way it gets better |
//! | `latency` | histograms, and what is kept of one |
//! | `run` | what was run, when and where |
//! | `document` | the whole report, as its JSON has it |
//! | `table` | text |
//! | `html` | the parts of a page; nothing gets into one unescaped |
//! | `page` | the page of one run |
//! | `chart` | which plots there are, and why one is left out |
//! | `axis`, `plot` | drawing one |
//! | `compare` | `tide bench compare` |
//! | `progress` | how far a run is |

#[cfg(test)]
mod browser;
mod chart;
mod compare;
mod document;
#[cfg(test)]
mod drawing_tests;
mod figure;
mod html;
mod latency;
mod page;
mod progress;
mod run;
mod table;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;

use super::args::CommonArgs;
use super::series::Sample;
use crate::stdout;
use document::Document;
use figure::{Entry, Figure};
use latency::Distribution;
use run::Run;

pub(super) use compare::{CompareArgs, run as compare};
pub(super) use figure::Unit;
pub(super) use latency::{histogram, record};
pub(super) use progress::Progress;
pub(super) use run::Invocation;

/// Where a report goes.
#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Writes the JSON to a file, whatever is printed.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    output: Option<PathBuf>,
    /// Writes a page with figures and plots: one file that needs nothing else.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    html: Option<PathBuf>,
}

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
    /// An empty one. `scenario` names it in the JSON, `title` in the table.
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
        debug_assert!(self.figures.iter().all(|entry| entry.key != key), "{key} is there twice");
        self.figures.push(Entry::new(key, label, figure.into(), unit));
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
        self.distributions.push(Distribution::of(key, label, latency));
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

    /// Sets what was seen as the run went, in the order of time.
    pub(super) fn set_series(&mut self, series: Vec<Sample>) {
        self.series = series;
    }

    /// Prints it, and writes the files that were asked for.
    ///
    /// # Errors
    /// One of them can't be written; what could be printed has been.
    pub(super) fn print(self, common: &CommonArgs) -> anyhow::Result<()> {
        let output = &common.output;
        let document = self.document(&common.invocation);
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

/// WindowEnd a run that found nothing with an error: no figure of it means anything.
///
/// # Errors
/// Nothing was counted.
pub(super) fn ensure_measured(count: u64, what: &str) -> anyhow::Result<()> {
    ensure!(
        count > 0,
        "nothing was measured: no {what} in the measured window; make it longer with --duration, or the load \
         heavier"
    );
    Ok(())
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks before a run what would be a pity to find out after it.
fn parse_new_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let folder = match path.parent() {
        None => return Err("it takes the name of a file".into()),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    match std::fs::metadata(folder) {
        _ if path.is_dir() => Err("it is a folder; name a file in it".into()),
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err(format!("{} is no folder; name a file in one that exists", folder.display())),
        Err(error) => {
            Err(format!("{}: {error}; name a file in a folder that exists", folder.display()))
        }
    }
}
