//! `tide bench connect`: many connections that do little, and what they take.

use anyhow::Context as _;

use super::args::ConnectArgs;
use super::course::{Seat, Stage};
use super::crew::{self, Task};
use super::crowd::Crowd;
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets};
use super::latency::{Live, Pulse};
use super::proc;
use super::report::{Report, Unit};
use super::stopwatch::{Edge, Ends, Standing};
use crate::count::counted;

/// Large answers under way at once, of all workers: they are to be on sockets one after the other,
/// not all together.
const LARGE_UNDER_WAY_MAX: usize = 64;
/// The type that echoes.
const ECHO_KIND: i32 = 1;
/// How often the server's memory is looked at while it settles.
const LOOK_INTERVAL_NS: Nanos = 100_000_000;
/// Memory has settled when it was the same for so many looks: the gateway gives back what a burst leaves when
/// it was quiet for two seconds.
const SAME_LOOKS: u32 = 30;
/// Memory that has not settled by then is taken as it is.
const SETTLE_MAX_NS: Nanos = 15_000_000_000;

struct ConnectLoad {
    crowd: Crowd,
    /// The first worker's: it looks at the server.
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
    /// All is prepared: the stopwatch runs.
    Hold,
}

struct Settling {
    since: Nanos,
    look_at: Nanos,
    rss_bytes: u64,
    same_looks: u32,
}

/// Runs it.
pub(super) fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    let common = &args.common;
    let task = Task::new(common, common.connections as usize);
    let finished = crew::run(&task, |seat| ConnectLoad::new(args, seat))?;
    let (mut load, series) =
        finished.merged(|load, other: ConnectLoad| load.crowd.merge(other.crowd));
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(common)
}

fn report(args: &ConnectArgs, load: &mut ConnectLoad) -> Report {
    let connections = args.common.connections;
    let rss_before_bytes = load.crowd.stopwatch.seat.course.rss_before_bytes;
    let sessions = &mut load.crowd.sessions;
    let mut report =
        Report::new("connect", format!("{}, held", counted(connections, "connection")));
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    let per_second = sessions.connects_per_second();
    report.add("connects_per_second", "brought up a second", per_second, Unit::PerSecond);
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
            report.warn("the server's memory did not settle: it is what it was at the end");
        }
    }
    let heartbeats = sessions.pongs();
    report.add("heartbeats", "heartbeats answered", heartbeats, Unit::Number);
    report.add_latency("heartbeat", "heartbeat", sessions.heartbeat_latency.window());
    if load.sweeps {
        let per_second = heartbeats as f64 / load.crowd.stopwatch.seconds();
        report.add("heartbeats_per_second", "heartbeats a second", per_second, Unit::PerSecond);
        load.crowd.stopwatch.report(&mut report, "heartbeat", heartbeats);
    } else {
        load.crowd.stopwatch.report(&mut report, "connection held", u64::from(connections));
    }
    report
}

impl ConnectLoad {
    fn new(args: &ConnectArgs, seat: &Seat) -> anyhow::Result<Self> {
        let share = seat.share;
        let large = args.large_answers.map(|bytes| {
            let under_way_max = (LARGE_UNDER_WAY_MAX / share.workers).max(1) as u64;
            Echo::new(EchoPlan {
                first_slot: share.first,
                count: share.count,
                kind: ECHO_KIND,
                bytes,
                pace: Pace::Once { under_way_max },
                raw: args.raw,
            })
        });
        let mut crowd = Crowd::new(&args.common, seat, args.raw)?;
        if args.heartbeat_sweep {
            crowd.stopwatch = crowd.stopwatch.ending(Ends::WhenFinished);
        }
        Ok(Self {
            crowd,
            pid: args.common.pid.filter(|_| share.leads()),
            sweeps: args.heartbeat_sweep,
            large,
            phase: Phase::Ramp,
            rss_idle_bytes: 0,
            rss_after_large_bytes: 0,
            settled: true,
        })
    }

    /// Moves on through what comes before the hold.
    fn prepare(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<()> {
        match &mut self.phase {
            Phase::Ramp if self.crowd.sessions.all_up() => {
                if self.crowd.stopwatch.seat.arrive(Stage::Up) {
                    self.settle(false, now);
                }
            }
            Phase::Ramp | Phase::Hold => {}
            Phase::Large => {
                let large = self.large.as_mut().context("there are large answers to ask for")?;
                large.tick(sockets, now);
                if large.all_answered() && self.crowd.stopwatch.seat.arrive(Stage::LargeAnswered) {
                    self.settle(true, now);
                }
            }
            &mut Phase::Settle { large_done, ref mut settling } => {
                let Some(pid) = self.pid else {
                    self.settled(large_done, sockets, now);
                    return Ok(());
                };
                if now < settling.look_at {
                    return Ok(());
                }
                let rss_bytes = proc::rss_bytes(pid)?;
                let same = rss_bytes == settling.rss_bytes;
                settling.same_looks = if same { settling.same_looks + 1 } else { 0 };
                settling.rss_bytes = rss_bytes;
                settling.look_at = now + LOOK_INTERVAL_NS;
                let too_long = now >= settling.since + SETTLE_MAX_NS;
                if settling.same_looks >= SAME_LOOKS || too_long {
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
        let settling = Settling { since: now, look_at: now, rss_bytes: 0, same_looks: 0 };
        self.phase = Phase::Settle { large_done, settling };
    }

    /// This worker doesn't wait for the memory any more: goes on if all are so far.
    fn settled(&mut self, large_done: bool, sockets: &mut Sockets, now: Nanos) {
        let stage = if large_done { Stage::LargeSettled } else { Stage::IdleSettled };
        if !self.crowd.stopwatch.seat.arrive(stage) {
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

impl Load for ConnectLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.crowd.opened(slot, link, now);
        Ok(())
    }

    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()> {
        let Link { reassembler, out, .. } = link;
        let unasked = || format!("connection {slot}: bytes came that nothing asked for");
        if self.crowd.raw {
            return self.large.as_mut().with_context(unasked)?.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.crowd.sessions.answered(slot, answer, now)? {
                let large = self.large.as_mut().with_context(unasked)?;
                large.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        self.crowd.closed(slot, &cause)
    }

    fn pulse(&self) -> Pulse {
        let large = self.large.as_ref().map_or((0, 0), Echo::sent_and_answered);
        self.crowd.sessions.pulse().with(large)
    }

    fn flush(&mut self, live: &Live) {
        self.crowd.sessions.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        self.prepare(sockets, now)?;
        let standing = Standing {
            ready: matches!(self.phase, Phase::Hold),
            finished: self.crowd.sessions.swept(),
            ..self.crowd.standing(true, 0)
        };
        let (edge, next) = self.crowd.tick(standing, sockets, now)?;
        match edge {
            // What is under way then is answered before the sweep begins.
            Some(Edge::Start) if self.sweeps => self.crowd.sessions.pause_heartbeats(),
            Some(Edge::Measure) if self.sweeps => {
                self.crowd.sessions.sweep();
                return Ok(next.min(Some(now)));
            }
            _ => {}
        }
        Ok(next)
    }
}
