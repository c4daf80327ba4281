//! Monitors a run from the main thread: moves the progress bar, and takes a sample each second.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::args::CommonArgs;
use super::clock::Nanos;
use super::latency::{Counters, LiveStats};
use super::proc::{self, Usage};
use super::report::{Progress, histogram};
use super::run_state::{Activity, RunState};
use super::series::Sample;
use crate::stdout;

/// How often the progress bar moves.
const MOVE_INTERVAL: Duration = Duration::from_millis(100);
/// A sample is taken this long after the full second, so that the workers have flushed theirs before.
const AFTER_SECOND_NS: Nanos = 100_000_000;
/// The time between two samples.
const SECOND_NS: Nanos = 1_000_000_000;

/// The main thread's view of a run.
pub(super) struct Monitor<'a> {
    connections: u64,
    run_state: &'a RunState,
    live_stats: &'a [Arc<LiveStats>],
    pid: Option<u32>,
    slab_before_bytes: Option<u64>,
    sampled_at: Nanos,
    counters: Counters,
    server: Option<Usage>,
    second: Histogram<u64>,
    series: Vec<Sample>,
    bar: Option<(Activity, Progress)>,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(
        args: &CommonArgs,
        connections: usize,
        run_state: &'a RunState,
        live_stats: &'a [Arc<LiveStats>],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            connections: connections as u64,
            run_state,
            live_stats,
            pid: args.pid,
            slab_before_bytes: proc::slab_bytes(),
            sampled_at: 0,
            counters: Counters::default(),
            server: args.pid.map(proc::usage).transpose()?,
            second: histogram(),
            series: Vec::new(),
            bar: None,
        })
    }

    /// Monitors until all workers have ended: until the channel has no sender left.
    pub(super) fn run_until(&mut self, all_ended: &Receiver<()>) {
        let shows_bar = stderr().is_terminal();
        let mut sample_at = SECOND_NS + AFTER_SECOND_NS;
        loop {
            let until_sample = Duration::from_nanos(sample_at.saturating_sub(self.now()));
            let wait = if shows_bar { until_sample.min(MOVE_INTERVAL) } else { until_sample };
            let over = all_ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
            for notice in self.run_state.take_notices() {
                self.print_notice(&notice);
            }
            if over {
                self.bar = None;
                return;
            }
            let now = self.now();
            if shows_bar {
                self.move_bar(now);
            }
            if now >= sample_at {
                self.sample(now);
                sample_at = (now / SECOND_NS + 1) * SECOND_NS + AFTER_SECOND_NS;
            }
        }
    }

    /// One sample for each second of the run.
    pub(super) fn into_series(self) -> Vec<Sample> {
        self.series
    }

    fn now(&self) -> Nanos {
        u64::try_from(Instant::now().duration_since(self.run_state.origin).as_nanos())
            .unwrap_or(Nanos::MAX)
    }

    fn counters(&self) -> Counters {
        self.live_stats.iter().map(|live| live.counters()).fold(
            Counters::default(),
            |sum, counters| Counters {
                connections: sum.connections + counters.connections,
                sent: sum.sent + counters.sent,
                received: sum.received + counters.received,
            },
        )
    }

    fn sample(&mut self, now: Nanos) {
        let elapsed_ns = now.saturating_sub(self.sampled_at).max(1);
        let per_second = |count: u64| count as f64 * 1e9 / elapsed_ns as f64;
        let counters = self.counters();
        self.second.reset();
        self.live_stats.iter().for_each(|live| live.take_second(&mut self.second));
        // If the server has ended, the workers report that.
        let server = self.pid.and_then(|pid| proc::usage(pid).ok());
        let cpu_ns =
            server.zip(self.server).map(|(now, then)| now.cpu_ns.saturating_sub(then.cpu_ns));
        let growth = |slab: u64| self.slab_before_bytes.map(|before| slab as f64 - before as f64);
        let quantile = |quantile: f64| {
            (!self.second.is_empty()).then(|| self.second.value_at_quantile(quantile) as f64)
        };
        self.series.push(Sample {
            at_ms: now / 1_000_000,
            connections: counters.connections,
            sent_per_s: per_second(counters.sent.saturating_sub(self.counters.sent)),
            received_per_s: per_second(counters.received.saturating_sub(self.counters.received)),
            p50_ns: quantile(0.5),
            p90_ns: quantile(0.9),
            p99_ns: quantile(0.99),
            max_ns: quantile(1.0),
            server_cpu_share: cpu_ns.map(|cpu_ns| cpu_ns as f64 / elapsed_ns as f64),
            server_rss_bytes: server.map(|server| server.rss_bytes as f64),
            kernel_slab_bytes: proc::slab_bytes().and_then(growth),
        });
        (self.sampled_at, self.counters, self.server) = (now, counters, server.or(self.server));
    }

    /// Prints a line above the progress bar.
    fn print_notice(&self, notice: &str) {
        let print = || stdout::print_stderr(&format!("tide: {notice}"));
        match &self.bar {
            Some((_, progress)) => progress.suspend(print),
            None => print(),
        }
    }

    fn move_bar(&mut self, now: Nanos) {
        let activity = self.run_state.activity();
        if self.bar.as_ref().is_none_or(|(shown, _)| *shown != activity) {
            // Drop the old bar first: dropping it clears its line.
            self.bar = None;
            let progress = match activity {
                Activity::Connecting => Progress::new("connecting", self.connections),
                Activity::Timed(what, since, until) => {
                    Progress::new(what, (until - since).div_ceil(SECOND_NS))
                }
                Activity::Unbounded(what) => Progress::new(what, self.connections),
            };
            self.bar = Some((activity, progress));
        }
        let up = self.counters().connections;
        let Some((activity, progress)) = &mut self.bar else { return };
        match *activity {
            Activity::Connecting | Activity::Unbounded(_) => progress.set(up, now),
            Activity::Timed(_, since, _) => {
                progress.set(now.saturating_sub(since) / SECOND_NS, now);
            }
        }
    }
}
