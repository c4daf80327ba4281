//! `tide bench request`: echoes on many connections.

use anyhow::{Result, bail};

use super::args::RequestArgs;
use super::clock::Nanos;
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{Load, Next};
use super::latency::{Counters, LiveStats};
use super::phases::Transition;
use super::report::{Report, Unit, ensure_measured};
use super::run_state::WorkerContext;
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::steady_load::SteadyLoad;
use super::workers::{self, RunPlan};
use crate::count::{counted, grouped};

struct RequestLoad {
    steady: SteadyLoad,
    echo: Echo,
}

/// Runs the scenario.
pub(super) fn run(args: &RequestArgs) -> Result<()> {
    args.common.ensure_window()?;
    let count = args.common.connections as usize;
    if let Some(in_flight) = args.in_flight.filter(|most| *most > args.common.connections) {
        bail!(
            "--in-flight {} is more than one on each of {}: use --depth to have several on each",
            grouped(in_flight),
            counted(count, "connection")
        );
    }
    let finished = workers::run(&RunPlan::new(&args.common, count), |context| {
        RequestLoad::new(args, context)
    })?;
    let (mut load, series) = finished.merged(|load, other| {
        load.steady.merge(other.steady);
        load.echo.merge(other.echo);
    });
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    ensure_measured(load.echo.counted().iter().sum(), "answer came")
}

fn pace(args: &RequestArgs, context: &WorkerContext) -> Result<Pace> {
    let share = context.share;
    Ok(match (args.rate, args.in_flight) {
        (Some(rate), _) => {
            let per_second = rate * share.count as f64 / share.total as f64;
            Pace::Open { per_second }
        }
        (None, Some(in_flight)) => {
            let part = share.part_of(in_flight as usize) as u64;
            if part == 0 {
                bail!(
                    "--in-flight {} is less than one for each of {}",
                    grouped(in_flight),
                    counted(share.workers, "worker")
                );
            }
            Pace::RoundRobin { in_flight: part.min(share.count as u64) }
        }
        (None, None) => Pace::Closed { depth: args.depth },
    })
}

fn report(args: &RequestArgs, load: &mut RequestLoad) -> Report {
    let (connections, bytes) = (args.common.connections, args.bytes);
    let pace = match (args.rate, args.in_flight) {
        (Some(rate), _) => format!("{} per second", grouped(rate)),
        (None, Some(in_flight)) => format!("{} in flight", grouped(in_flight)),
        (None, None) => format!("depth {}", grouped(args.depth)),
    };
    let (of, on) = (counted(bytes, "byte"), counted(connections, "connection"));
    let title = format!("requests of {of} on {on}, {pace}");
    let mut report = Report::new("request", title);
    let mut counts = load.echo.counted();
    let messages: u64 = counts.iter().sum();
    report.add("connections", "connections", u64::from(connections), Unit::Number);
    report.add("messages", "answers, all correct", messages, Unit::Number);
    let per_second = messages as f64 / load.steady.phases.seconds();
    report.add("per_second", "answers per second", per_second, Unit::PerSecond);
    load.steady.phases.report(&mut report, "message", messages);
    report.add_latency("latency", "latency", load.echo.latency.window());
    report.add_fairness(&mut counts);
    report
}

impl RequestLoad {
    fn new(args: &RequestArgs, context: &WorkerContext) -> Result<Self> {
        let (first_slot, count) = (context.share.first, context.share.count);
        let (kind, bytes, raw) = (args.kind, args.bytes, args.raw);
        let pace = pace(args, context)?;
        let plan = EchoPlan { first_slot, count, kind, bytes, pace, raw };
        Ok(Self { steady: SteadyLoad::new(&args.common, context, raw)?, echo: Echo::new(plan) })
    }
}

impl ConnectionEvents for RequestLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        self.steady.opened(slot, link, now);
        Ok(())
    }

    #[inline]
    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        let Link { reassembler, out, .. } = link;
        if self.steady.raw {
            return self.echo.echoed(slot, bytes, out, now);
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if !self.steady.sessions.answered(slot, answer, now)? {
                self.echo.answered(slot, answer, out, now)?;
            }
            Ok(())
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> Result<()> {
        self.steady.closed(slot, &cause)
    }
}

impl Load for RequestLoad {
    fn counters(&self) -> Counters {
        self.steady.sessions.counters().plus(self.echo.sent_and_answered())
    }

    fn flush(&mut self, live: &LiveStats) {
        self.steady.sessions.flush(None);
        self.echo.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        let (_, answered) = self.echo.sent_and_answered();
        let standing = self.steady.standing(self.echo.drained(), answered);
        let (transition, next) = self.steady.tick(standing, sockets, now)?;
        match transition {
            Some(Transition::Start) => self.echo.start(sockets, now),
            Some(Transition::Measure) => self.echo.start_counting(),
            Some(Transition::Stop) => self.echo.stop(),
            Some(Transition::Done) | None => {}
        }
        Ok(next.min(self.echo.tick(sockets, now)))
    }
}
