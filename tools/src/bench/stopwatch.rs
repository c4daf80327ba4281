//! Ramp, warm-up, measured window, drain; and what was used of CPU and memory in the window.
//!
//! CPU time is read right after the warm-up and right before the window ends, at the very turns of
//! the engine at which a scenario starts and stops to count.

use anyhow::bail;

use super::args::CommonArgs;
use super::engine::Nanos;
use super::proc::{self, Usage};
use super::report::{Progress, Report, Unit};

/// How long answers may take that were under way when the window ended.
const DRAIN_MAX_NS: Nanos = 10_000_000_000;
/// A client that used more of a core than this may have been the bottleneck.
const OWN_CORE_MAX: f64 = 0.9;

/// What a scenario has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// Everybody is up: start the load.
    Start,
    /// Start to count.
    Measure,
    /// Stop to count, and to send.
    Stop,
    /// All is drained.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ramp,
    Warmup { until: Nanos },
    Measure { until: Nanos },
    Drain { until: Nanos },
    Done,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    at: Nanos,
    own: Usage,
    server: Usage,
}

/// Tells the phases apart and measures one.
#[derive(Debug)]
pub(super) struct Stopwatch {
    phase: Phase,
    warmup_ns: Nanos,
    duration_ns: Nanos,
    connections: usize,
    pid: Option<u32>,
    rss_before_bytes: u64,
    begin: Sample,
    end: Sample,
    progress: Progress,
}

impl Stopwatch {
    /// Looks at the server's memory, before anything is connected.
    pub(super) fn new(args: &CommonArgs, connections: usize) -> anyhow::Result<Self> {
        Ok(Self {
            phase: Phase::Ramp,
            warmup_ns: u64::try_from(args.warmup.as_nanos())?,
            duration_ns: u64::try_from(args.duration.as_nanos())?,
            connections,
            pid: args.pid,
            rss_before_bytes: args.pid.map_or(Ok(0), proc::rss_bytes)?,
            begin: Sample::default(),
            end: Sample::default(),
            progress: Progress::new("connecting", connections as u64),
        })
    }

    /// Moves on when it is time to. `up`: connections that are up. `ready`: all is prepared.
    /// `drained`: nothing is under way.
    pub(super) fn tick(
        &mut self,
        up: usize,
        ready: bool,
        drained: bool,
        now: Nanos,
    ) -> anyhow::Result<Option<Edge>> {
        let (phase, edge) = match self.phase {
            Phase::Ramp if ready => (Phase::Warmup { until: now + self.warmup_ns }, Edge::Start),
            Phase::Warmup { until } if now >= until => {
                self.begin = self.sample(now)?;
                let seconds = self.duration_ns.div_ceil(1_000_000_000);
                self.progress = Progress::new("measuring", seconds);
                (Phase::Measure { until: now + self.duration_ns }, Edge::Measure)
            }
            Phase::Measure { until } if now >= until => {
                self.end = self.sample(now)?;
                (Phase::Drain { until: now + DRAIN_MAX_NS }, Edge::Stop)
            }
            Phase::Drain { .. } if drained => (Phase::Done, Edge::Done),
            Phase::Drain { until } if now >= until => {
                bail!(
                    "something that is due has still not come {} s after the end",
                    DRAIN_MAX_NS / 1_000_000_000
                )
            }
            Phase::Ramp => {
                self.progress.set(up as u64, now);
                return Ok(None);
            }
            Phase::Measure { .. } => {
                self.progress.set((now - self.begin.at) / 1_000_000_000, now);
                return Ok(None);
            }
            _ => return Ok(None),
        };
        self.phase = phase;
        Ok(Some(edge))
    }

    /// When the phase ends, if that is known.
    pub(super) fn phase_ends_at(&self) -> Option<Nanos> {
        match self.phase {
            Phase::Warmup { until } | Phase::Measure { until } | Phase::Drain { until } => {
                Some(until)
            }
            Phase::Ramp | Phase::Done => None,
        }
    }

    /// How long the window was, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.end.at.saturating_sub(self.begin.at).max(1) as f64 / 1e9
    }

    fn sample(&self, at: Nanos) -> anyhow::Result<Sample> {
        let server = self.pid.map_or(Ok(Usage::default()), proc::usage)?;
        Ok(Sample { at, own: proc::usage(std::process::id())?, server })
    }

    /// Reports CPU time for each of `count` things, `thing` being one's name, and the memory.
    pub(super) fn report(&self, report: &mut Report, thing: &str, count: u64) {
        let own_ns = self.end.own.cpu_ns - self.begin.own.cpu_ns;
        let own_core = own_ns as f64 / 1e9 / self.seconds();
        let each = |ns: u64| ns as f64 / count.max(1) as f64;
        if self.pid.is_some() {
            let (begin, end) = (&self.begin.server, &self.end.server);
            let server_ns = end.cpu_ns - begin.cpu_ns;
            let ticks_ns = (end.user_ns - begin.user_ns) + (end.system_ns - begin.system_ns);
            let title = format!("server CPU per {thing}");
            report.add("server_cpu_ns_each", &title, each(server_ns), Unit::Nanos);
            let user = (end.user_ns - begin.user_ns) as f64 / ticks_ns.max(1) as f64;
            report.add("server_user_share", "  of it in user mode", user, Unit::Share);
            let core = server_ns as f64 / 1e9 / self.seconds();
            report.add("server_cores", "server cores used", core, Unit::Number);
            self.report_memory(report, end.rss_bytes);
        }
        let title = format!("own CPU per {thing}");
        report.add("own_cpu_ns_each", &title, each(own_ns), Unit::Nanos);
        report.add("own_cores", "own cores used", own_core, Unit::Number);
        if own_core > OWN_CORE_MAX {
            report.warn(&format!(
                "the client itself used {:.0} % of a core: rates and latencies may be its own, \
                 not the server's",
                own_core * 100.0
            ));
        }
    }

    fn report_memory(&self, report: &mut Report, rss_bytes: u64) {
        report.add("rss_before_bytes", "server memory before", self.rss_before_bytes, Unit::Bytes);
        report.add("rss_bytes", "server memory", rss_bytes, Unit::Bytes);
        let grown = rss_bytes as f64 - self.rss_before_bytes as f64;
        let each = grown / self.connections as f64;
        report.add("rss_per_connection_bytes", "  grown per connection", each, Unit::Bytes);
    }
}
