//! `make bench`: compares the gateway with bare floors in one run.
//!
//! A single time means little: it depends on the machine and on what else runs there. So floor and gateway are measured
//! alternately, and the result is the median of the rounds' ratios.

mod outcome;
mod process;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use outcome::Round;
use process::Bench;
use rows::{Driver, Row, Side};

/// The time limit of a run beyond its seconds: for connecting, settling and draining.
const OVERHEAD_MAX: Duration = Duration::from_secs(240);

/// Compares the gateway with bare floors.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds. Each measures the floor and then the gateway.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Other rows: echoes and pushes at 1,000 to 1,000,000 connections. A million needs 9 GiB of memory, and one
    /// round of
    /// all rows takes a quarter of an hour.
    #[arg(long)]
    scale: bool,
    /// The gateway's driver.
    #[arg(long, value_enum, default_value = "auto")]
    driver: Driver,
    /// Compares the gateway with itself on epoll, and not with the floors.
    #[arg(long)]
    against_epoll: bool,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// Does not build the binaries.
    #[arg(long)]
    no_build: bool,
    /// The core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the client.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Where the JSON goes; by default `compare.json` in cargo's target directory.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// The result of all rows.
struct Measured {
    results: Vec<(Row, Vec<Round>)>,
    /// The number of rows that could not be measured.
    failed: usize,
}

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> anyhow::Result<()> {
    let args = Args::parse();
    let rows = chosen(&args)?;
    if args.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    let binary = std::env::current_exe().context("this program has no path")?;
    let binaries = binary.parent().context("this program is in no directory")?.to_owned();
    if !args.no_build {
        process::build(env!("CARGO_MANIFEST_DIR").as_ref())?;
    }
    let target = binaries.parent().unwrap_or(&binaries).to_owned();
    let scratch = target.join("compare");
    std::fs::create_dir_all(&scratch)?;
    process::end_all_on_signal()?;
    let (server_core, client_core) = (args.server_core, args.client_core);
    let bench = Bench { binaries, scratch, server_core, client_core };
    let Measured { results, failed } = measure(&args, &bench, rows)?;

    let output = args.output.clone().unwrap_or_else(|| target.join("compare.json"));
    std::fs::write(&output, serde_json::to_vec_pretty(&outcome::json(&results))?)
        .with_context(|| format!("cannot write {}", output.display()))?;
    let outcomes: Vec<_> =
        results.iter().flat_map(|(row, rounds)| outcome::outcomes(row, rounds)).collect();
    let sides =
        if args.against_epoll { ["epoll", args.driver.name()] } else { ["floor", "gateway"] };
    print!("{}", outcome::table(&outcomes, sides));
    println!("ratio: the median of {} rounds; all of it: {}", args.rounds, output.display());
    if failed > 0 {
        bail!("{failed} rows could not be measured");
    }
    Ok(())
}

fn chosen(args: &Args) -> anyhow::Result<Vec<Row>> {
    let rows = if args.scale { rows::scale() } else { rows::all() };
    let mut rows: Vec<_> = rows.into_iter().map(|row| row.driven_by(args.driver)).collect();
    if args.against_epoll {
        rows = rows.into_iter().map(Row::against_epoll).collect();
    }
    if let Some(pattern) = &args.only {
        rows.retain(|row| row.name.contains(pattern));
    }
    if rows.is_empty() {
        bail!("no row has that in its name; --list says which there are");
    }
    Ok(rows)
}

/// A row that fails is reported, and the others are still measured.
fn measure(args: &Args, bench: &Bench, rows: Vec<Row>) -> anyhow::Result<Measured> {
    let total = rows.len() as u64 * u64::from(args.rounds) * 2;
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}\n{msg}")?);
    let mut measured = Measured { results: Vec::new(), failed: 0 };
    for row in rows {
        bar.set_message(row.name);
        let run_counted = |side: &Side| {
            let seconds = args.seconds.max(row.seconds_min);
            let duration = Duration::from_secs(seconds.into());
            let report = match row.keeps_awake {
                true => bench.while_awake(|| run(bench, side, duration)),
                false => run(bench, side, duration),
            };
            bar.inc(1);
            report
        };
        let rounds = (0..args.rounds)
            .map(|_| Ok((run_counted(&row.floor)?, run_counted(&row.gateway)?)))
            .collect::<anyhow::Result<Vec<Round>>>();
        match rounds {
            Ok(rounds) => measured.results.push((row, rounds)),
            Err(error) => {
                bar.suspend(|| eprintln!("{}: {error:#}", row.name));
                measured.failed += 1;
            }
        }
    }
    bar.finish_and_clear();
    Ok(measured)
}

/// One side of one round, with a new server and a new client.
fn run(
    bench: &Bench,
    side: &Side,
    duration: Duration,
) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let server = bench.serve(&side.server)?;
    let time_max = OVERHEAD_MAX + duration;
    let beside = match &side.beside {
        // It is killed when the measured load has ended. Its own duration matters only if that does not happen.
        Some(beside) => Some(bench.start_load(&server, &with_duration(beside, time_max))?),
        None => None,
    };
    let report = bench.load(&server, &with_duration(&side.load, duration), time_max)?;
    if let Some(mut beside) = beside
        && beside.has_ended()?
    {
        bail!("the load beside it ended too early");
    }
    Ok(report)
}

fn with_duration(load: &[String], duration: Duration) -> Vec<String> {
    let duration = ["--duration".into(), format!("{}s", duration.as_secs())];
    load.iter().cloned().chain(duration).collect()
}
