//! `tide bench request`.

use super::args::{RequestArgs, reserve_descriptors};
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Engine, Link, Load, Nanos, Next, Sockets};
use super::report::{Report, Unit};
use super::session::Sessions;
use super::stopwatch::{Edge, Stopwatch};

struct RequestLoad {
    raw: bool,
    sessions: Sessions,
    echo: Echo,
    stopwatch: Stopwatch,
}

/// Runs it.
pub(super) fn run(args: &RequestArgs) -> anyhow::Result<()> {
    let count = args.common.connections as usize;
    reserve_descriptors(count)?;
    let pace = match args.rate {
        Some(per_second) => Pace::Open { per_second },
        None => Pace::Closed { depth: args.depth },
    };
    let (kind, bytes, raw) = (args.kind, args.bytes, args.raw);
    let plan = EchoPlan { first_slot: 0, count, kind, bytes, pace, raw };
    let mut load = RequestLoad {
        raw,
        sessions: Sessions::new(&args.common, count, raw),
        echo: Echo::new(plan),
        stopwatch: Stopwatch::new(&args.common, count)?,
    };
    Engine::new(count, false)?.spinning(args.common.spin).run(&mut load)?;
    report(args, &load).print(&args.common)
}

fn report(args: &RequestArgs, load: &RequestLoad) -> Report {
    let (connections, bytes) = (args.common.connections, args.bytes);
    let pace = match args.rate {
        Some(rate) => format!("{rate} a second"),
        None => format!("depth {}", args.depth),
    };
    let title = format!("requests of {bytes} bytes on {connections} connections, {pace}");
    let mut report = Report::new("request", title);
    let mut counts = load.echo.counted();
    let messages: u64 = counts.iter().sum();
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    report.add("messages", "answers, all of them right", messages, Unit::Number);
    let per_second = messages as f64 / load.stopwatch.seconds();
    report.add("per_second", "answers a second", per_second, Unit::PerSecond);
    load.stopwatch.report(&mut report, "message", messages);
    report.add_latency("latency", "latency", &load.echo.latency);
    report.add_fairness(&mut counts);
    report
}

impl Load for RequestLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.sessions.opened(slot, &mut link.out, now);
        Ok(())
    }

    #[inline]
    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()> {
        let Link { reassembler, out, .. } = link;
        if self.raw {
            return self.echo.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.sessions.answered(slot, answer, now)? {
                self.echo.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        Err(self.sessions.closed(slot, &cause))
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let session_at = self.sessions.tick(sockets, now)?;
        let drained = self.echo.drained();
        let (up, all_up) = (self.sessions.up(), self.sessions.all_up());
        match self.stopwatch.tick(up, all_up, drained, now)? {
            Some(Edge::Start) => self.echo.start(sockets, now),
            Some(Edge::Measure) => self.echo.count_from_now(),
            Some(Edge::Stop) => self.echo.stop(),
            Some(Edge::Done) => return Ok(Next::Done),
            None => {}
        }
        let send_at = self.echo.tick(sockets, now);
        Ok(Next::Whenever.min(session_at).min(send_at).min(self.stopwatch.phase_ends_at()))
    }
}
