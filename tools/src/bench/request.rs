//! `tide bench request`.

use anyhow::bail;

use super::args::RequestArgs;
use super::course::Seat;
use super::crew::{self, Task};
use super::crowd::Crowd;
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets};
use super::latency::{Live, Pulse};
use super::report::{Report, Unit, demand_any};
use super::stopwatch::Edge;
use crate::count::{counted, grouped};

struct RequestLoad {
    crowd: Crowd,
    echo: Echo,
}

/// Runs it.
pub(super) fn run(args: &RequestArgs) -> anyhow::Result<()> {
    args.common.demand_window()?;
    let count = args.common.connections as usize;
    if let Some(under_way) = args.under_way.filter(|most| *most > args.common.connections) {
        bail!(
            "--under-way {} is more than one on each of {}: --depth puts several on each",
            grouped(under_way),
            counted(count, "connection")
        );
    }
    let finished = crew::run(&Task::new(&args.common, count), |seat| RequestLoad::new(args, seat))?;
    let (mut load, series) = finished.merged(|load, other| {
        load.crowd.merge(other.crowd);
        load.echo.merge(other.echo);
    });
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    demand_any(load.echo.counted().iter().sum(), "answer came")
}

fn pace(args: &RequestArgs, seat: &Seat) -> anyhow::Result<Pace> {
    let share = seat.share;
    Ok(match (args.rate, args.under_way) {
        (Some(rate), _) => {
            let per_second = rate * share.count as f64 / share.total as f64;
            Pace::Open { per_second }
        }
        (None, Some(under_way)) => {
            let part = share.part_of(under_way as usize) as u64;
            if part == 0 {
                bail!(
                    "--under-way {} is less than one for each of {}",
                    grouped(under_way),
                    counted(share.workers, "worker")
                );
            }
            Pace::Moving { under_way: part.min(share.count as u64) }
        }
        (None, None) => Pace::Closed { depth: args.depth },
    })
}

fn report(args: &RequestArgs, load: &mut RequestLoad) -> Report {
    let (connections, bytes) = (args.common.connections, args.bytes);
    let pace = match (args.rate, args.under_way) {
        (Some(rate), _) => format!("{} a second", grouped(rate)),
        (None, Some(under_way)) => format!("{} under way", grouped(under_way)),
        (None, None) => format!("depth {}", grouped(args.depth)),
    };
    let (of, on) = (counted(bytes, "byte"), counted(connections, "connection"));
    let title = format!("requests of {of} on {on}, {pace}");
    let mut report = Report::new("request", title);
    let mut counts = load.echo.counted();
    let messages: u64 = counts.iter().sum();
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    report.add("messages", "answers, all of them right", messages, Unit::Number);
    let per_second = messages as f64 / load.crowd.stopwatch.seconds();
    report.add("per_second", "answers a second", per_second, Unit::PerSecond);
    load.crowd.stopwatch.report(&mut report, "message", messages);
    report.add_latency("latency", "latency", load.echo.latency.window());
    report.add_fairness(&mut counts);
    report
}

impl RequestLoad {
    fn new(args: &RequestArgs, seat: &Seat) -> anyhow::Result<Self> {
        let (first_slot, count) = (seat.share.first, seat.share.count);
        let (kind, bytes, raw) = (args.kind, args.bytes, args.raw);
        let pace = pace(args, seat)?;
        let plan = EchoPlan { first_slot, count, kind, bytes, pace, raw };
        Ok(Self { crowd: Crowd::new(&args.common, seat, raw)?, echo: Echo::new(plan) })
    }
}

impl Load for RequestLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.crowd.opened(slot, link, now);
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
        if self.crowd.raw {
            return self.echo.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.crowd.sessions.answered(slot, answer, now)? {
                self.echo.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        self.crowd.closed(slot, &cause)
    }

    fn pulse(&self) -> Pulse {
        self.crowd.sessions.pulse().with(self.echo.sent_and_answered())
    }

    fn flush(&mut self, live: &Live) {
        self.crowd.sessions.flush(None);
        self.echo.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let (_, answered) = self.echo.sent_and_answered();
        let standing = self.crowd.standing(self.echo.drained(), answered);
        let (edge, next) = self.crowd.tick(standing, sockets, now)?;
        match edge {
            Some(Edge::Start) => self.echo.start(sockets, now),
            Some(Edge::Measure) => self.echo.count_from_now(),
            Some(Edge::Stop) => self.echo.stop(),
            Some(Edge::Done) | None => {}
        }
        Ok(next.min(self.echo.tick(sockets, now)))
    }
}
