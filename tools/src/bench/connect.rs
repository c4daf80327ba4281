//! `tide bench connect`: holds many idle connections, and measures what each costs.

use anyhow::{Context as _, Result};

use super::args::ConnectArgs;
use super::clock::Nanos;
use super::echo::{ECHO_KIND, Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{Load, Next};
use super::latency::{Counters, LiveStats};
use super::phases::{Transition, WindowEnd, WorkerStatus};
use super::proc;
use super::report::{Report, Unit};
use super::run_state::{Stage, WorkerContext};
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::steady_load::SteadyLoad;
use super::workers::{self, RunPlan};
use crate::count::counted;

/// Large answers of all workers in flight at the same time. Few, since the connections are to have them one
/// after the other and not all together.
const LARGE_IN_FLIGHT_MAX: usize = 64;
/// How often the server's memory is read while it settles.
const CHECK_INTERVAL_NS: Nanos = 100_000_000;
/// Memory has settled after this many equal readings, 3 s: the gateway gives the memory of a burst back after
/// two quiet seconds.
const SAME_READINGS: u32 = 30;
/// After this time the last reading is taken, settled or not.
const SETTLE_MAX_NS: Nanos = 15_000_000_000;

struct ConnectLoad {
    steady: SteadyLoad,
    /// Set in the first worker only: it reads the server's memory.
    pid: Option<u32>,
    sweeps: bool,
    large: Option<Echo>,
    phase: Phase,
    rss_idle_bytes: u64,
    rss_after_large_bytes: u64,
    settled: bool,
}

enum Phase {
    Ramp,
    /// The server's memory settles after the ramp, or after the large answers.
    Settle {
        large_done: bool,
        settling: Settling,
    },
    Large,
    /// All preparation is done, and [`Phases`](super::phases::Phases) takes over.
    Hold,
}

struct Settling {
    since: Nanos,
    check_at: Nanos,
    rss_bytes: u64,
    same_readings: u32,
}

/// Runs the scenario.
pub(super) fn run(args: &ConnectArgs) -> Result<()> {
    let common = &args.common;
    let plan = RunPlan::new(common, common.connections as usize);
    let finished = workers::run(&plan, |context| ConnectLoad::new(args, context))?;
    let (mut load, series) =
        finished.merged(|load, other: ConnectLoad| load.steady.merge(other.steady));
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(common)
}

fn report(args: &ConnectArgs, load: &mut ConnectLoad) -> Report {
    let connections = args.common.connections;
    let rss_before_bytes = load.steady.phases.context.run_state.rss_before_bytes;
    let sessions = &mut load.steady.sessions;
    let mut report =
        Report::new("connect", format!("{}, held", counted(connections, "connection")));
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    let per_second = sessions.connects_per_second();
    report.add("connects_per_second", "connections opened per second", per_second, Unit::PerSecond);
    report.add_latency("connect", "connect", sessions.connect_latency.window());
    report.add_latency("auth", "authenticate", sessions.auth_latency.window());
    if args.common.pid.is_some() {
        let each = |bytes: u64| (bytes as f64 - rss_before_bytes as f64) / f64::from(connections);
        let idle = each(load.rss_idle_bytes);
        report.add("idle_bytes_each", "server memory per idle connection", idle, Unit::Bytes);
        if args.large_answers.is_some() {
            let after = each(load.rss_after_large_bytes);
            let label = "  after a large answer each";
            report.add("idle_after_large_bytes_each", label, after, Unit::Bytes);
        }
        if !load.settled {
            report.warn("the server's memory did not settle: the figures show the last reading");
        }
    }
    let heartbeats = sessions.pongs();
    report.add("heartbeats", "heartbeats answered", heartbeats, Unit::Number);
    report.add_latency("heartbeat", "heartbeat", sessions.heartbeat_latency.window());
    if load.sweeps {
        let per_second = heartbeats as f64 / load.steady.phases.seconds();
        report.add("heartbeats_per_second", "heartbeats a second", per_second, Unit::PerSecond);
        load.steady.phases.report(&mut report, "heartbeat", heartbeats);
    } else {
        load.steady.phases.report(&mut report, "connection held", u64::from(connections));
    }
    report
}

impl ConnectLoad {
    fn new(args: &ConnectArgs, context: &WorkerContext) -> Result<Self> {
        let share = context.share;
        let large = args.large_answers.map(|bytes| {
            let in_flight_max = (LARGE_IN_FLIGHT_MAX / share.workers).max(1) as u64;
            Echo::new(EchoPlan {
                first_slot: share.first,
                count: share.count,
                kind: ECHO_KIND,
                bytes,
                pace: Pace::Once { in_flight_max },
                raw: args.raw,
            })
        });
        let mut steady = SteadyLoad::new(&args.common, context, args.raw)?;
        if args.heartbeat_sweep {
            steady.phases = steady.phases.with_window_end(WindowEnd::WhenFinished);
        }
        Ok(Self {
            steady,
            pid: args.common.pid.filter(|_| share.is_leader()),
            sweeps: args.heartbeat_sweep,
            large,
            phase: Phase::Ramp,
            rss_idle_bytes: 0,
            rss_after_large_bytes: 0,
            settled: true,
        })
    }

    /// Runs the phases before the hold.
    fn prepare(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<()> {
        match &mut self.phase {
            Phase::Ramp if self.steady.sessions.all_up() => {
                if self.steady.phases.context.reach(Stage::Up) {
                    self.settle(false, now);
                }
            }
            Phase::Ramp | Phase::Hold => {}
            Phase::Large => {
                let large = self.large.as_mut().context("large answers are configured")?;
                large.tick(sockets, now);
                if large.all_answered() && self.steady.phases.context.reach(Stage::LargeAnswered) {
                    self.settle(true, now);
                }
            }
            &mut Phase::Settle { large_done, ref mut settling } => {
                let Some(pid) = self.pid else {
                    self.settled(large_done, sockets, now);
                    return Ok(());
                };
                if now < settling.check_at {
                    return Ok(());
                }
                let rss_bytes = proc::rss_bytes(pid)?;
                let same = rss_bytes == settling.rss_bytes;
                settling.same_readings = if same { settling.same_readings + 1 } else { 0 };
                settling.rss_bytes = rss_bytes;
                settling.check_at = now + CHECK_INTERVAL_NS;
                let too_long = now >= settling.since + SETTLE_MAX_NS;
                if settling.same_readings >= SAME_READINGS || too_long {
                    self.settled &= !too_long;
                    let rss = if large_done {
                        &mut self.rss_after_large_bytes
                    } else {
                        &mut self.rss_idle_bytes
                    };
                    *rss = rss_bytes;
                    self.settled(large_done, sockets, now);
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self, large_done: bool, now: Nanos) {
        let settling = Settling { since: now, check_at: now, rss_bytes: 0, same_readings: 0 };
        self.phase = Phase::Settle { large_done, settling };
    }

    /// This worker no longer waits for the memory. Continues when all workers are that far.
    fn settled(&mut self, large_done: bool, sockets: &mut Sockets, now: Nanos) {
        let stage = if large_done { Stage::LargeSettled } else { Stage::IdleSettled };
        if !self.steady.phases.context.reach(stage) {
            return;
        }
        self.phase = match &mut self.large {
            Some(large) if !large_done => {
                large.start(sockets, now);
                Phase::Large
            }
            _ => Phase::Hold,
        };
    }
}

impl ConnectionEvents for ConnectLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        self.steady.opened(slot, link, now);
        Ok(())
    }

    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        let Link { reassembler, out, .. } = link;
        let unasked = || format!("connection {slot}: bytes came without a request");
        if self.steady.raw {
            return self.large.as_mut().with_context(unasked)?.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.steady.sessions.answered(slot, answer, now)? {
                let large = self.large.as_mut().with_context(unasked)?;
                large.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> Result<()> {
        self.steady.closed(slot, &cause)
    }
}

impl Load for ConnectLoad {
    fn counters(&self) -> Counters {
        let large = self.large.as_ref().map_or((0, 0), Echo::sent_and_answered);
        self.steady.sessions.counters().plus(large)
    }

    fn flush(&mut self, live: &LiveStats) {
        self.steady.sessions.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        self.prepare(sockets, now)?;
        let standing = WorkerStatus {
            ready: matches!(self.phase, Phase::Hold),
            finished: self.steady.sessions.sweep_is_done(),
            ..self.steady.standing(true, 0)
        };
        let (transition, next) = self.steady.tick(standing, sockets, now)?;
        match transition {
            // The heartbeats in flight are answered in the warm-up, before the sweep begins.
            Some(Transition::Start) if self.sweeps => self.steady.sessions.pause_heartbeats(),
            Some(Transition::Measure) if self.sweeps => {
                self.steady.sessions.sweep();
                return Ok(next.min(Some(now)));
            }
            _ => {}
        }
        Ok(next)
    }
}
