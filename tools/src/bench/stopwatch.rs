//! Ramp, warm-up, measured window, drain, the same for all workers; and what was used of CPU and
//! memory in the window.
//!
//! CPU time is read right after the warm-up and right before the window ends, at the very turns of
//! the engine at which a scenario starts and stops to count.

use anyhow::bail;

use super::args::CommonArgs;
use super::course::{Activity, Seat, Share, Stage};
use super::engine::Nanos;
use super::proc::{self, Usage};
use super::report::{Report, Unit};

/// How long nothing may come, to any worker, while something is under way after the window's end.
/// All of it may take longer: a push to two million takes a server core some 15 s.
const DRAIN_MAX_NS: Nanos = 10_000_000_000;
/// How long something may take that ends by itself: two million of the slowest heartbeats.
const FINISH_MAX_NS: Nanos = 300_000_000_000;
/// A client that used more of a core than this may have been the bottleneck.
const OWN_CORE_MAX: f64 = 0.9;
/// CPU time of the server below which its ticks, of 10 ms each, say nothing about user mode.
const TICKED_NS_MIN: u64 = 500_000_000;

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

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// All is prepared.
    pub(super) ready: bool,
    /// What is measured until it is finished is that.
    pub(super) finished: bool,
    /// Nothing is under way.
    pub(super) drained: bool,
    /// What has been received, over the whole run.
    pub(super) received: u64,
}

/// When the measured window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// After `--duration`.
    InTime,
    /// When all workers are finished.
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
struct Sample {
    at: Nanos,
    own: Usage,
    server: Usage,
}

/// Tells the phases apart, which are the same for all workers, and measures one.
#[derive(Debug)]
pub(super) struct Stopwatch {
    /// Where all workers meet.
    pub(super) seat: Seat,
    phase: Phase,
    ends: Ends,
    warmup_ns: Nanos,
    duration_ns: Nanos,
    drain_ns: Nanos,
    /// What is said of it meanwhile.
    draining: &'static str,
    /// What had been received when it was last looked at.
    received: u64,
    pid: Option<u32>,
    begin: Sample,
    end: Sample,
}

impl Stopwatch {
    /// One of a worker's. The first worker's looks at the processes.
    pub(super) fn new(args: &CommonArgs, seat: &Seat) -> anyhow::Result<Self> {
        Ok(Self {
            seat: seat.clone(),
            phase: Phase::Ramp,
            ends: Ends::InTime,
            warmup_ns: u64::try_from(args.warmup.as_nanos())?,
            duration_ns: u64::try_from(args.duration.as_nanos())?,
            drain_ns: DRAIN_MAX_NS,
            draining: "draining",
            received: 0,
            pid: args.pid,
            begin: Sample::default(),
            end: Sample::default(),
        })
    }

    /// Ends the window otherwise than in time.
    pub(super) fn ending(mut self, ends: Ends) -> Self {
        self.ends = ends;
        self
    }

    /// Waits so much longer for what is under way when the window ends, and calls the wait by this name.
    pub(super) fn draining_longer(mut self, draining: &'static str, more_ns: Nanos) -> Self {
        self.drain_ns += more_ns;
        self.draining = draining;
        self
    }

    /// Whose part of the connections this is.
    pub(super) fn share(&self) -> Share {
        self.seat.share
    }

    /// Moves on when it is time to.
    ///
    /// # Errors
    /// Something did not come to its end.
    pub(super) fn tick(&mut self, standing: Standing, now: Nanos) -> anyhow::Result<Option<Edge>> {
        let now_in = self.phase;
        let (phase, edge) = match now_in {
            Phase::Ramp if standing.ready => {
                let Some(started_at) = self.seat.started_at(now) else { return Ok(None) };
                let until = started_at + self.warmup_ns;
                self.say(Activity::Until("warming up", started_at, until));
                (Phase::Warmup { until }, Edge::Start)
            }
            Phase::Warmup { until } if now >= until => {
                self.begin = self.sample(now)?;
                let until = now + self.window_ns();
                self.say(match self.ends {
                    Ends::InTime => Activity::Until("measuring", now, until),
                    Ends::WhenFinished => Activity::Going("measuring"),
                });
                (Phase::Measure { until }, Edge::Measure)
            }
            Phase::Measure { until } if self.is_over(until, standing.finished, now)? => {
                self.end = self.sample(now)?;
                let until = now + self.drain_ns;
                self.say(Activity::Until(self.draining, now, until));
                (Phase::Drain { until }, Edge::Stop)
            }
            Phase::Drain { .. } if standing.drained => {
                if !self.seat.arrive(Stage::Drained) {
                    // It is for those who are late to say so.
                    return Ok(None);
                }
                (Phase::Done, Edge::Done)
            }
            Phase::Drain { until } => {
                self.drain(standing.received, until, now)?;
                return Ok(None);
            }
            _ => return Ok(None),
        };
        self.phase = phase;
        Ok(Some(edge))
    }

    fn drain(&mut self, received: u64, until: Nanos, now: Nanos) -> anyhow::Result<()> {
        let course = &self.seat.course;
        if received != self.received {
            self.received = received;
            course.received(now);
        }
        if now >= until.max(course.received_at() + self.drain_ns) {
            bail!(
                "something that is due has still not come: nothing has for {} s",
                self.drain_ns / 1_000_000_000
            );
        }
        Ok(())
    }

    fn window_ns(&self) -> Nanos {
        match self.ends {
            Ends::InTime => self.duration_ns,
            Ends::WhenFinished => FINISH_MAX_NS,
        }
    }

    fn is_over(&mut self, until: Nanos, finished: bool, now: Nanos) -> anyhow::Result<bool> {
        match self.ends {
            Ends::InTime => Ok(now >= until),
            Ends::WhenFinished if finished => Ok(self.seat.arrive(Stage::Finished)),
            Ends::WhenFinished if now >= until => {
                bail!("it is not finished after {} s", FINISH_MAX_NS / 1_000_000_000)
            }
            Ends::WhenFinished => Ok(false),
        }
    }

    /// Says what the run is about, if this worker is the one that does.
    pub(super) fn say(&self, activity: Activity) {
        if self.seat.share.leads() {
            self.seat.course.set_activity(activity);
        }
    }

    /// When the phase ends, if that is known.
    pub(super) fn phase_ends_at(&self) -> Option<Nanos> {
        match self.phase {
            Phase::Warmup { until } | Phase::Measure { until } => Some(until),
            Phase::Ramp | Phase::Drain { .. } | Phase::Done => None,
        }
    }

    /// How long the window was, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.end.at.saturating_sub(self.begin.at).max(1) as f64 / 1e9
    }

    /// CPU time that the server used in the window.
    pub(super) fn server_cpu_seconds(&self) -> Option<f64> {
        self.pid?;
        Some(self.end.server.cpu_ns.saturating_sub(self.begin.server.cpu_ns).max(1) as f64 / 1e9)
    }

    fn sample(&self, at: Nanos) -> anyhow::Result<Sample> {
        if !self.share().leads() {
            return Ok(Sample { at, ..Sample::default() });
        }
        let server = self.pid.map_or(Ok(Usage::default()), proc::usage)?;
        Ok(Sample { at, own: proc::usage(std::process::id())?, server })
    }

    /// Reports CPU time for each of `count` things, `thing` being one's name, and the memory.
    pub(super) fn report(&self, report: &mut Report, thing: &str, count: u64) {
        // Threads that have ended since take their time with them.
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
                // The kernel counts it in ticks of 10 ms: fewer of them say nothing.
                0..TICKED_NS_MIN => f64::NAN,
                _ => (end.user_ns - begin.user_ns) as f64 / ticks_ns as f64,
            };
            if server_ns == 0 {
                report.warn("the process of --pid used no CPU time: is it the server?");
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
                "the client itself used {:.0} % of a core: rates and latencies may be its own, \
                 not the server's",
                own_core * 100.0
            ));
        }
    }

    fn report_memory(&self, report: &mut Report, rss_bytes: u64) {
        let before_bytes = self.seat.course.rss_before_bytes;
        report.add("rss_before_bytes", "server memory before", before_bytes, Unit::Bytes);
        report.add("rss_bytes", "server memory", rss_bytes, Unit::Bytes);
        let grown = rss_bytes as f64 - before_bytes as f64;
        let each = grown / self.share().total as f64;
        report.add("rss_per_connection_bytes", "  grown per connection", each, Unit::Bytes);
    }
}
