//! `tide bench compare`: two reports side by side.
//!
//! | module | what it owns |
//! |---|---|
//! | `difference` | which figures differ, by how much, and for better or worse; what else differs |
//! | `output` | the table and the JSON |
//! | `page` | the page |

mod difference;
mod output;
mod page;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use tests::test_page;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};

use super::document::Document;
use super::{parse_new_file, write_file};
use crate::stdout;
use difference::{Comparison, Row};

/// A figure got worse by more than was allowed.
const WORSE: u8 = 1;
/// There was nothing to compare: so `diff` has it too, and a wrong command line.
const NOT_COMPARED: u8 = 2;

/// Puts two reports of one scenario side by side.
///
/// Exit codes: 0, compared; 1, a figure got worse by more than --fail-above; 2, they can't be compared, as
/// where one is of another scenario, or --fail-above could judge nothing, or not what --only names.
#[derive(Debug, clap::Args)]
pub(in crate::bench) struct CompareArgs {
    /// The report to start from.
    #[arg(value_name = "A.json")]
    a: PathBuf,
    /// The report that is held against it: ratios are B/A.
    #[arg(value_name = "B.json")]
    b: PathBuf,
    /// Compares only this figure, by its name in the table or in the JSON; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// WindowEnd with exit code 1 when a figure got worse by more than this factor, 1.10 being a tenth.
    /// Latency, CPU time and memory are better when lower, rates when higher; counts are neither.
    #[arg(long, value_name = "FACTOR", value_parser = parse_factor)]
    fail_above: Option<f64>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Writes a page with both runs' figures and plots: one file that needs nothing else.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    html: Option<PathBuf>,
}

/// Compares, and says how it ended by the exit code.
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

/// What got worse by more than it may, by its names for people.
fn compare(args: &CompareArgs) -> anyhow::Result<Vec<String>> {
    let (a, b) = (Document::read(&args.a)?, Document::read(&args.b)?);
    let names = [&args.a, &args.b].map(|path| path.display().to_string());
    ensure!(
        a.scenario == b.scenario,
        "{} is a report of `tide bench {}` and {} one of `tide bench {}`: no figure of one says anything about \
         the other; compare two runs of the same scenario",
        names[0],
        command(&a.scenario),
        names[1],
        command(&b.scenario)
    );
    let mut comparison = Comparison::of(names, [&a, &b]);
    if !args.only.is_empty() {
        for name in &args.only {
            if !comparison.rows.iter().any(|row| row.matches_name(name)) {
                let known = |row: &Row| format!("{} ({})", row.name, row.key);
                let known: Vec<_> = comparison.rows.iter().map(known).collect();
                bail!(
                    "--only {name}: neither report has that figure; there are {}",
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
            writeln!(out, "{}", output::json(&comparison))
        } else {
            output::table(out, &comparison)
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

/// A gate that judged nothing, or not what it was to judge, has not been passed.
fn ensure_judged(comparison: &Comparison<'_>, only: &[String]) -> anyhow::Result<()> {
    let unjudged = comparison.rows.iter().filter(|row| !row.is_judged());
    let names: Vec<_> = unjudged.map(|row| &row.name[..]).collect();
    let is_passed =
        if only.is_empty() { names.len() < comparison.rows.len() } else { names.is_empty() };
    ensure!(
        is_passed,
        "--fail-above can't judge {}: it takes a figure that gets better or worse, as a time or a rate does, and \
         is above 0 in both reports",
        names.join(", ")
    );
    Ok(())
}

/// What is typed to run a scenario.
fn command(scenario: &str) -> &str {
    if scenario == "cycle" { "connect --cycle" } else { scenario }
}

fn parse_factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| *factor >= 1.0 && f64::is_finite(*factor));
    factor.ok_or_else(|| "a factor is a number of 1 or more; 1.10 allows a tenth".into())
}
