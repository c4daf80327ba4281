//! `tide bench connect`: many connections that do little, and what they take.

use anyhow::Context as _;

use super::args::{ConnectArgs, reserve_descriptors};
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Engine, Link, Load, Nanos, Next, Sockets};
use super::proc;
use super::report::{Report, Unit};
use super::session::Sessions;
use super::stopwatch::{Edge, Stopwatch};

/// Large answers under way at once: they are to be on sockets one after the other, not all together.
const LARGE_UNDER_WAY_MAX: u64 = 64;
/// The type that echoes.
const ECHO_KIND: i32 = 1;
/// How often the server's memory is looked at while it settles.
const LOOK_INTERVAL_NS: Nanos = 100_000_000;
/// Memory has settled when it was the same for so many looks.
const SAME_LOOKS: u32 = 10;
/// Memory that has not settled by then is taken as it is.
const SETTLE_MAX_NS: Nanos = 15_000_000_000;

struct ConnectLoad {
    raw: bool,
    sessions: Sessions,
    stopwatch: Stopwatch,
    pid: Option<u32>,
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
    let count = common.connections as usize;
    reserve_descriptors(count)?;
    let pace = Pace::Once { under_way_max: LARGE_UNDER_WAY_MAX };
    let raw = args.raw;
    let large = args.large_answers.map(|bytes| {
        Echo::new(EchoPlan { first_slot: 0, count, kind: ECHO_KIND, bytes, pace, raw })
    });
    let mut load = ConnectLoad {
        raw,
        sessions: Sessions::new(common, count, raw),
        stopwatch: Stopwatch::new(common, count)?,
        pid: common.pid,
        large,
        phase: Phase::Ramp,
        rss_idle_bytes: 0,
        rss_after_large_bytes: 0,
        settled: true,
    };
    let rss_before_bytes = common.pid.map_or(Ok(0), proc::rss_bytes)?;
    Engine::new(count, false)?.spinning(args.common.spin).run(&mut load)?;
    report(args, &load, rss_before_bytes).print(common)
}

fn report(args: &ConnectArgs, load: &ConnectLoad, rss_before_bytes: u64) -> Report {
    let connections = args.common.connections;
    let mut report = Report::new("connect", format!("{connections} connections, held"));
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    let per_second = load.sessions.connects_per_second();
    report.add("connects_per_second", "brought up a second", per_second, Unit::PerSecond);
    report.add_latency("connect", "connect", &load.sessions.connect_latency);
    report.add_latency("auth", "authenticate", &load.sessions.auth_latency);
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
    let heartbeats = load.sessions.pongs();
    report.add("heartbeats", "heartbeats answered", heartbeats, Unit::Number);
    load.stopwatch.report(&mut report, "connection held", u64::from(connections));
    report
}

impl ConnectLoad {
    /// Moves on through what comes before the hold.
    fn prepare(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<()> {
        match &mut self.phase {
            Phase::Ramp if self.sessions.all_up() => self.settle(false, now),
            Phase::Ramp | Phase::Hold => {}
            Phase::Large => {
                let large = self.large.as_mut().context("there are large answers to ask for")?;
                large.tick(sockets, now);
                if large.all_answered() {
                    self.settle(true, now);
                }
            }
            &mut Phase::Settle { large_done, ref mut settling } => {
                let Some(pid) = self.pid else { return self.settled(large_done, 0, sockets, now) };
                if now < settling.look_at {
                    return Ok(());
                }
                let rss_bytes = proc::rss_bytes(pid)?;
                let same = rss_bytes == settling.rss_bytes;
                settling.same_looks = if same { settling.same_looks + 1 } else { 0 };
                settling.rss_bytes = rss_bytes;
                settling.look_at = now + LOOK_INTERVAL_NS;
                let too_long = now >= settling.since + SETTLE_MAX_NS;
                if settling.same_looks == SAME_LOOKS || too_long {
                    self.settled &= !too_long;
                    return self.settled(large_done, rss_bytes, sockets, now);
                }
            }
        }
        Ok(())
    }

    fn settle(&mut self, large_done: bool, now: Nanos) {
        let settling = Settling { since: now, look_at: now, rss_bytes: 0, same_looks: 0 };
        self.phase = Phase::Settle { large_done, settling };
    }

    fn settled(
        &mut self,
        large_done: bool,
        rss_bytes: u64,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<()> {
        self.phase = match &mut self.large {
            Some(large) if !large_done => {
                self.rss_idle_bytes = rss_bytes;
                large.start(sockets, now);
                Phase::Large
            }
            Some(_) => {
                self.rss_after_large_bytes = rss_bytes;
                Phase::Hold
            }
            None => {
                self.rss_idle_bytes = rss_bytes;
                Phase::Hold
            }
        };
        Ok(())
    }
}

impl Load for ConnectLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.sessions.opened(slot, &mut link.out, now);
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
        if self.raw {
            return self.large.as_mut().with_context(unasked)?.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.sessions.answered(slot, answer, now)? {
                let large = self.large.as_mut().with_context(unasked)?;
                large.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        Err(self.sessions.closed(slot, &cause))
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let session_at = self.sessions.tick(sockets, now)?;
        self.prepare(sockets, now)?;
        let ready = matches!(self.phase, Phase::Hold);
        match self.stopwatch.tick(self.sessions.up(), ready, true, now)? {
            Some(Edge::Measure) => self.sessions.count_pongs_from_now(),
            Some(Edge::Done) => return Ok(Next::Done),
            Some(Edge::Start | Edge::Stop) | None => {}
        }
        Ok(Next::Whenever.min(session_at).min(self.stopwatch.phase_ends_at()))
    }
}
