//! Watches a run from its main thread: the progress bar, and a sample each second.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::args::CommonArgs;
use super::course::{Activity, Course};
use super::engine::Nanos;
use super::latency::{Live, Pulse};
use super::proc::{self, Usage};
use super::report::{Progress, histogram};
use super::series::Sample;
use crate::stdout;

/// How often the progress bar moves.
const MOVE_INTERVAL: Duration = Duration::from_millis(100);
/// Samples are taken this long after a full second, when the workers have handed theirs over.
const AFTER_SECOND_NS: Nanos = 100_000_000;
/// Between two samples.
const SECOND_NS: Nanos = 1_000_000_000;

/// What the main thread knows of a run.
pub(super) struct Watch<'a> {
    connections: u64,
    course: &'a Course,
    lives: &'a [Arc<Live>],
    pid: Option<u32>,
    slab_before_bytes: Option<u64>,
    sampled_at: Nanos,
    pulse: Pulse,
    server: Option<Usage>,
    second: Histogram<u64>,
    series: Vec<Sample>,
    bar: Option<(Activity, Progress)>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        args: &CommonArgs,
        connections: usize,
        course: &'a Course,
        lives: &'a [Arc<Live>],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            connections: connections as u64,
            course,
            lives,
            pid: args.pid,
            slab_before_bytes: proc::slab_bytes(),
            sampled_at: 0,
            pulse: Pulse::default(),
            server: args.pid.map(proc::usage).transpose()?,
            second: histogram(),
            series: Vec::new(),
            bar: None,
        })
    }

    /// Watches until all workers are through: until nobody holds the channel's other end.
    pub(super) fn until_over(&mut self, all_through: &Receiver<()>) {
        let shows = stderr().is_terminal();
        let mut sample_at = SECOND_NS + AFTER_SECOND_NS;
        loop {
            let until_sample = Duration::from_nanos(sample_at.saturating_sub(self.now()));
            let wait = if shows { until_sample.min(MOVE_INTERVAL) } else { until_sample };
            let over = all_through.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
            for remark in self.course.take_remarks() {
                self.say(&remark);
            }
            if over {
                self.bar = None;
                return;
            }
            let now = self.now();
            if shows {
                self.move_bar(now);
            }
            if now >= sample_at {
                self.sample(now);
                sample_at = (now / SECOND_NS + 1) * SECOND_NS + AFTER_SECOND_NS;
            }
        }
    }

    /// The run, second by second.
    pub(super) fn into_series(self) -> Vec<Sample> {
        self.series
    }

    fn now(&self) -> Nanos {
        u64::try_from(Instant::now().duration_since(self.course.origin).as_nanos())
            .unwrap_or(Nanos::MAX)
    }

    fn pulse(&self) -> Pulse {
        self.lives.iter().map(|live| live.pulse()).fold(Pulse::default(), |sum, pulse| Pulse {
            connections: sum.connections + pulse.connections,
            sent: sum.sent + pulse.sent,
            received: sum.received + pulse.received,
        })
    }

    fn sample(&mut self, now: Nanos) {
        let elapsed_ns = now.saturating_sub(self.sampled_at).max(1);
        let per_second = |count: u64| count as f64 * 1e9 / elapsed_ns as f64;
        let pulse = self.pulse();
        self.second.reset();
        self.lives.iter().for_each(|live| live.take_second(&mut self.second));
        // A server that is gone is the workers' to report.
        let server = self.pid.and_then(|pid| proc::usage(pid).ok());
        let cpu_ns =
            server.zip(self.server).map(|(now, then)| now.cpu_ns.saturating_sub(then.cpu_ns));
        let grown = |slab: u64| self.slab_before_bytes.map(|before| slab as f64 - before as f64);
        let quantile = |quantile: f64| {
            (!self.second.is_empty()).then(|| self.second.value_at_quantile(quantile) as f64)
        };
        self.series.push(Sample {
            at_ms: now / 1_000_000,
            connections: pulse.connections,
            sent_per_s: per_second(pulse.sent.saturating_sub(self.pulse.sent)),
            received_per_s: per_second(pulse.received.saturating_sub(self.pulse.received)),
            p50_ns: quantile(0.5),
            p90_ns: quantile(0.9),
            p99_ns: quantile(0.99),
            max_ns: quantile(1.0),
            server_cpu_share: cpu_ns.map(|cpu_ns| cpu_ns as f64 / elapsed_ns as f64),
            server_rss_bytes: server.map(|server| server.rss_bytes as f64),
            kernel_slab_bytes: proc::slab_bytes().and_then(grown),
        });
        (self.sampled_at, self.pulse, self.server) = (now, pulse, server.or(self.server));
    }

    /// Says something above the bar, if there is one.
    fn say(&self, remark: &str) {
        let say = || stdout::remark(&format!("tide: {remark}"));
        match &self.bar {
            Some((_, progress)) => progress.aside(say),
            None => say(),
        }
    }

    fn move_bar(&mut self, now: Nanos) {
        let activity = self.course.activity();
        if self.bar.as_ref().is_none_or(|(shown, _)| *shown != activity) {
            // The old one goes before the new one comes.
            self.bar = None;
            let progress = match activity {
                Activity::Connecting => Progress::new("connecting", self.connections),
                Activity::Until(what, since, until) => {
                    Progress::new(what, (until - since).div_ceil(SECOND_NS))
                }
                Activity::Going(what) => Progress::new(what, self.connections),
            };
            self.bar = Some((activity, progress));
        }
        let up = self.pulse().connections;
        let Some((activity, progress)) = &mut self.bar else { return };
        match *activity {
            Activity::Connecting | Activity::Going(_) => progress.set(up, now),
            Activity::Until(_, since, _) => {
                progress.set(now.saturating_sub(since) / SECOND_NS, now);
            }
        }
    }
}
