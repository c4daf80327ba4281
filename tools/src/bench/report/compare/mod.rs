//! `tide bench compare`: compares two reports.
//!
//! | module | what it owns |
//! |---|---|
//! | `difference` | which figures and options differ, by how much, and what is better or worse |
//! | `noise` | how far a figure may differ without meaning anything |
//! | `text` | the table and the JSON |
//! | `page` | the page |

mod difference;
mod noise;
mod page;
#[cfg(test)]
mod tests;
mod text;

#[cfg(test)]
pub(super) use tests::test_page;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};

use super::document::Document;
use super::output::{parse_new_file, write_file};
use crate::{argument, stdout};
use difference::{Comparison, Row};
use noise::SAME_WITHIN;

/// The exit status where a figure got worse by more than allowed.
const WORSE: u8 = 1;
/// The exit status where nothing was compared. `diff` uses the same, and so does a wrong command line.
const NOT_COMPARED: u8 = 2;

/// Compares two reports of the same scenario.
///
/// Exit status: 0, compared; 1, a figure got worse by more than --fail-above; 2, not compared: the scenarios
/// differ, a file can't be read, or --fail-above can't judge any figure, or not each one that --only names.
#[derive(Debug, clap::Args)]
pub(in crate::bench) struct CompareArgs {
    /// The report to compare with.
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The report to judge: ratios are B/A.
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Compares only this figure, by its name in the table or in the JSON; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Calls figures that differ by this share or less the same: two runs of the same gateway differ by 2 or 3 %.
    /// Rates and latencies have a wider band where they are more scattered from second to second.
    #[arg(long, value_name = "SHARE", default_value_t = SAME_WITHIN, value_parser = argument::share)]
    same_within: f64,
    /// Exits with status 1 when a figure got worse by more than this factor; 1.10 allows a tenth.
    /// Latency, CPU time and memory are better when lower, rates when higher; counts are not judged.
    #[arg(long, value_name = "FACTOR", value_parser = parse_factor)]
    fail_above: Option<f64>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Writes a page with the figures and plots of both runs: one self-contained file.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    html: Option<PathBuf>,
}

/// Compares the reports. Returns the exit status.
pub(in crate::bench) fn run(args: &CompareArgs) -> ExitCode {
    match compare(args) {
        Ok(worse) if worse.is_empty() => ExitCode::SUCCESS,
        Ok(worse) => {
            let factor = args.fail_above.unwrap_or_default();
            stdout::print_stderr(&format!(
                "tide: worse by more than {factor}: {}",
                worse.join(", ")
            ));
            ExitCode::from(WORSE)
        }
        Err(error) => {
            stdout::print_stderr(&format!("tide: {error:#}"));
            ExitCode::from(NOT_COMPARED)
        }
    }
}

/// Returns the names of the figures that got worse by more than allowed.
fn compare(args: &CompareArgs) -> anyhow::Result<Vec<String>> {
    let (a, b) = (Document::read(&args.a)?, Document::read(&args.b)?);
    let names = [&args.a, &args.b].map(|path| path.display().to_string());
    ensure!(
        a.scenario == b.scenario,
        "{} is a report of `tide bench {}` and {} one of `tide bench {}`: their figures can't be compared; \
         compare two runs of the same scenario",
        names[0],
        command(&a.scenario),
        names[1],
        command(&b.scenario)
    );
    let mut comparison = Comparison::of(names, [&a, &b]).same_within(args.same_within);
    if !args.only.is_empty() {
        for name in &args.only {
            if !comparison.rows.iter().any(|row| row.matches_name(name)) {
                let known = |row: &Row| format!("{} ({})", row.name, row.key);
                let known: Vec<_> = comparison.rows.iter().map(known).collect();
                bail!(
                    "--only {name}: neither report has that figure; they have {}",
                    known.join(", ")
                );
            }
        }
        comparison.rows.retain(|row| args.only.iter().any(|name| row.matches_name(name)));
    }
    if let Some(factor) = args.fail_above {
        comparison.judge(factor);
    }
    stdout::print(|out| {
        if args.json {
            writeln!(out, "{}", text::json(&comparison))
        } else {
            text::table(out, &comparison)
        }
    })?;
    if let Some(path) = &args.html {
        write_file(path, &page::page(&comparison))?;
    }
    if args.fail_above.is_some() && comparison.failed.is_empty() {
        ensure_judged(&comparison, &args.only)?;
    }
    Ok(comparison.failed_names())
}

/// Fails where --fail-above judged no figure, or not each one that --only names: then nothing was checked.
fn ensure_judged(comparison: &Comparison<'_>, only: &[String]) -> anyhow::Result<()> {
    let unjudged = comparison.rows.iter().filter(|row| !row.is_judged());
    let names: Vec<_> = unjudged.map(|row| &row.name[..]).collect();
    let is_passed =
        if only.is_empty() { names.len() < comparison.rows.len() } else { names.is_empty() };
    ensure!(
        is_passed,
        "--fail-above can't judge {}: a figure can be judged if it has a better direction, as a time or a rate, and \
         is above 0 in both reports",
        names.join(", ")
    );
    Ok(())
}

/// The command line that runs a scenario.
fn command(scenario: &str) -> &str {
    if scenario == "cycle" { "connect --cycle" } else { scenario }
}

fn parse_factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| *factor >= 1.0 && f64::is_finite(*factor));
    factor.ok_or_else(|| "a factor is a number of 1 or more; 1.10 allows a tenth".into())
}
