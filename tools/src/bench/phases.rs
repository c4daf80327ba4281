//! The phases of a run, common to all workers: ramp, warm-up, measured window, drain. Also measures the CPU
//! time and the memory that were used in the window.
//!
//! CPU time is read in the same turns of the engine in which a scenario starts and stops counting, so both
//! cover the same work.

use anyhow::bail;

use super::args::CommonArgs;
use super::clock::Nanos;
use super::proc::{self, Usage};
use super::report::{Report, Unit};
use super::run_state::{Activity, Share, Stage, WorkerContext};

/// The longest silence in the drain: nothing received by any worker while something is in flight. The
/// whole drain may take longer: a push to two million connections takes a server core some 15 s.
const DRAIN_MAX_NS: Nanos = 10_000_000_000;
/// The longest window that ends when the work is finished: two million heartbeats at the slowest.
const FINISH_MAX_NS: Nanos = 300_000_000_000;
/// A client that used more of a core than this may have been the bottleneck.
const OWN_CORE_MAX: f64 = 0.9;
/// Below this CPU time the server's share in user mode is not reported: the kernel counts it in ticks of
/// 10 ms, which are too coarse then.
const TICKED_NS_MIN: u64 = 500_000_000;

/// A change of phase, and what a scenario has to do at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// All connections are up: start the load.
    Start,
    /// Start counting.
    Measure,
    /// Stop counting and sending.
    Stop,
    /// Nothing is in flight: the run is over.
    Done,
}

/// A worker's status, as its scenario reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WorkerStatus {
    /// All preparation is done.
    pub(super) ready: bool,
    /// The measured work is finished. Matters for [`WindowEnd::WhenFinished`] only.
    pub(super) finished: bool,
    /// Nothing is in flight.
    pub(super) drained: bool,
    /// Messages received in the whole run.
    pub(super) received: u64,
}

/// When the measured window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowEnd {
    /// After `--duration`.
    AfterDuration,
    /// When all workers have finished their work.
    WhenFinished,
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
struct UsageSample {
    at: Nanos,
    own: Usage,
    server: Usage,
}

/// A worker's view of the phases. All workers change phase together.
#[derive(Debug)]
pub(super) struct Phases {
    pub(super) context: WorkerContext,
    phase: Phase,
    window_end: WindowEnd,
    warmup_ns: Nanos,
    duration_ns: Nanos,
    /// The longest silence in the drain.
    drain_ns: Nanos,
    /// The drain's name on the progress bar.
    drain_label: &'static str,
    /// `WorkerStatus::received` in the last turn of the drain.
    received: u64,
    pid: Option<u32>,
    begin: UsageSample,
    end: UsageSample,
}

impl Phases {
    /// Only the first worker samples the processes: they are the same for all.
    pub(super) fn new(args: &CommonArgs, context: &WorkerContext) -> anyhow::Result<Self> {
        Ok(Self {
            context: context.clone(),
            phase: Phase::Ramp,
            window_end: WindowEnd::AfterDuration,
            warmup_ns: u64::try_from(args.warmup.as_nanos())?,
            duration_ns: u64::try_from(args.duration.as_nanos())?,
            drain_ns: DRAIN_MAX_NS,
            drain_label: "draining",
            received: 0,
            pid: args.pid,
            begin: UsageSample::default(),
            end: UsageSample::default(),
        })
    }

    /// Sets when the window ends.
    pub(super) fn with_window_end(mut self, window_end: WindowEnd) -> Self {
        self.window_end = window_end;
        self
    }

    /// Makes the drain longer by `more_ns`, and gives it this name on the progress bar.
    pub(super) fn with_longer_drain(mut self, label: &'static str, more_ns: Nanos) -> Self {
        self.drain_ns += more_ns;
        self.drain_label = label;
        self
    }

    /// The worker's share of the connections.
    pub(super) fn share(&self) -> Share {
        self.context.share
    }

    /// Moves to the next phase when it is time.
    ///
    /// # Errors
    /// The window or the drain took too long.
    pub(super) fn tick(
        &mut self,
        status: WorkerStatus,
        now: Nanos,
    ) -> anyhow::Result<Option<Transition>> {
        let current = self.phase;
        let (phase, transition) = match current {
            Phase::Ramp if status.ready => {
                let Some(started_at) = self.context.started_at(now) else { return Ok(None) };
                let until = started_at + self.warmup_ns;
                self.set_activity(Activity::Timed("warming up", started_at, until));
                (Phase::Warmup { until }, Transition::Start)
            }
            Phase::Warmup { until } if now >= until => {
                self.begin = self.sample(now)?;
                let until = now + self.window_ns();
                self.set_activity(match self.window_end {
                    WindowEnd::AfterDuration => Activity::Timed("measuring", now, until),
                    WindowEnd::WhenFinished => Activity::Unbounded("measuring"),
                });
                (Phase::Measure { until }, Transition::Measure)
            }
            Phase::Measure { until } if self.window_is_over(until, status.finished, now)? => {
                self.end = self.sample(now)?;
                let until = now + self.drain_ns;
                self.set_activity(Activity::Timed(self.drain_label, now, until));
                (Phase::Drain { until }, Transition::Stop)
            }
            Phase::Drain { .. } if status.drained => {
                if !self.context.reach(Stage::Drained) {
                    // Another worker still drains. If that takes too long, that worker reports it.
                    return Ok(None);
                }
                (Phase::Done, Transition::Done)
            }
            Phase::Drain { until } => {
                self.check_drain(status.received, until, now)?;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        self.phase = phase;
        Ok(Some(transition))
    }

    fn check_drain(&mut self, received: u64, until: Nanos, now: Nanos) -> anyhow::Result<()> {
        let run_state = &self.context.run_state;
        if received != self.received {
            self.received = received;
            run_state.received(now);
        }
        if now >= until.max(run_state.received_at() + self.drain_ns) {
            bail!(
                "answers or pushes are still missing, and nothing has arrived for {} s",
                self.drain_ns / 1_000_000_000
            );
        }
        Ok(())
    }

    fn window_ns(&self) -> Nanos {
        match self.window_end {
            WindowEnd::AfterDuration => self.duration_ns,
            WindowEnd::WhenFinished => FINISH_MAX_NS,
        }
    }

    fn window_is_over(&mut self, until: Nanos, finished: bool, now: Nanos) -> anyhow::Result<bool> {
        match self.window_end {
            WindowEnd::AfterDuration => Ok(now >= until),
            WindowEnd::WhenFinished if finished => Ok(self.context.reach(Stage::Finished)),
            WindowEnd::WhenFinished if now >= until => {
                bail!("the measured work is not finished after {} s", FINISH_MAX_NS / 1_000_000_000)
            }
            WindowEnd::WhenFinished => Ok(false),
        }
    }

    /// Sets what the progress bar shows. Only the first worker's call has an effect.
    pub(super) fn set_activity(&self, activity: Activity) {
        if self.context.share.is_leader() {
            self.context.run_state.set_activity(activity);
        }
    }

    /// When the phase ends, where time ends it.
    pub(super) fn phase_ends_at(&self) -> Option<Nanos> {
        match self.phase {
            Phase::Warmup { until } | Phase::Measure { until } => Some(until),
            Phase::Ramp | Phase::Drain { .. } | Phase::Done => None,
        }
    }

    /// The length of the window in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.end.at.saturating_sub(self.begin.at).max(1) as f64 / 1e9
    }

    /// The CPU time that the server used in the window, in seconds.
    pub(super) fn server_cpu_seconds(&self) -> Option<f64> {
        self.pid?;
        Some(self.end.server.cpu_ns.saturating_sub(self.begin.server.cpu_ns).max(1) as f64 / 1e9)
    }

    fn sample(&self, at: Nanos) -> anyhow::Result<UsageSample> {
        if !self.share().is_leader() {
            return Ok(UsageSample { at, ..UsageSample::default() });
        }
        let server = self.pid.map_or(Ok(Usage::default()), proc::usage)?;
        Ok(UsageSample { at, own: proc::usage(std::process::id())?, server })
    }

    /// Reports the memory, and the CPU time per item: there were `count` items, and `thing` is the name of
    /// one.
    pub(super) fn report(&self, report: &mut Report, thing: &str, count: u64) {
        // `proc::usage` sums over living threads: one that has ended since takes its CPU time with it.
        let own_ns = self.end.own.cpu_ns.saturating_sub(self.begin.own.cpu_ns);
        let own_core = own_ns as f64 / 1e9 / self.seconds();
        let each = |ns: u64| ns as f64 / count.max(1) as f64;
        if self.pid.is_some() {
            let (begin, end) = (&self.begin.server, &self.end.server);
            let server_ns = end.cpu_ns.saturating_sub(begin.cpu_ns);
            let ticks_ns = (end.user_ns - begin.user_ns) + (end.system_ns - begin.system_ns);
            let title = format!("server CPU per {thing}");
            report.add("server_cpu_ns_each", &title, each(server_ns), Unit::Nanos);
            let user = match ticks_ns {
                0..TICKED_NS_MIN => f64::NAN,
                _ => (end.user_ns - begin.user_ns) as f64 / ticks_ns as f64,
            };
            if server_ns == 0 {
                report.warn("the process that --pid names used no CPU time: is it the server?");
            }
            report.add("server_user_share", "  of it in user mode", user, Unit::Share);
            let core = server_ns as f64 / 1e9 / self.seconds();
            report.add("server_cores", "server cores used", core, Unit::Number);
            self.report_memory(report, end.rss_bytes);
        }
        let workers = self.share().workers;
        if workers > 1 {
            report.add("workers", "own threads", workers as u64, Unit::Number);
        }
        report.add("own_rss_bytes", "own memory", self.end.own.rss_bytes, Unit::Bytes);
        let title = format!("own CPU per {thing}");
        report.add("own_cpu_ns_each", &title, each(own_ns), Unit::Nanos);
        report.add("own_cores", "own cores used", own_core, Unit::Number);
        if own_core > OWN_CORE_MAX {
            report.warn(&format!(
                "tide itself used {:.0} % of a core: rates and latencies may be limited by tide and not by the \
                 server",
                own_core * 100.0
            ));
        }
    }

    fn report_memory(&self, report: &mut Report, rss_bytes: u64) {
        let before_bytes = self.context.run_state.rss_before_bytes;
        report.add("rss_before_bytes", "server memory before", before_bytes, Unit::Bytes);
        report.add("rss_bytes", "server memory", rss_bytes, Unit::Bytes);
        let grown = rss_bytes as f64 - before_bytes as f64;
        let each = grown / self.share().total as f64;
        report.add("rss_per_connection_bytes", "  growth per connection", each, Unit::Bytes);
    }
}
