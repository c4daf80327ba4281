//! `tide bench broadcast`: pushes to all clients, and checks that each gets every push once, in order and
//! unchanged.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};

use super::args::BroadcastArgs;
use super::clock::{Nanos, due_after};
use super::echo::{ECHO_KIND, Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{Load, Next};
use super::latency::{Counters, LiveStats};
use super::phases::Transition;
use super::publication::{HEADER_BYTES, Publications, SharedLog, Topic};
use super::report::{Report, Unit, ensure_measured};
use super::run_state::WorkerContext;
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::steady_load::SteadyLoad;
use super::workers::{self, RunPlan};
use crate::count::counted;

struct BroadcastLoad {
    steady: SteadyLoad,
    /// The slot that publishes. Slots below it receive, slots above it echo.
    publisher: usize,
    /// Whether this worker has that slot.
    publishes: bool,
    publications: Publications,
    echo: Option<Echo>,
    pace: PublishPace,
    publishing: bool,
    started_at: Nanos,
    counting: bool,
    /// Reads on receivers in the window.
    reads: u64,
    /// Deliveries to receivers in the window, without those to the publisher and the echoing clients.
    to_receivers: u64,
    /// Raw: bytes that receivers got in the window.
    raw_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum PublishPace {
    Never,
    PerSecond(f64),
    MaxInFlight(u64),
}

/// Runs the scenario.
pub(super) fn run(args: &BroadcastArgs) -> Result<()> {
    let receivers = args.common.connections as usize;
    if !args.raw && args.bytes < HEADER_BYTES {
        bail!("--bytes is at least {HEADER_BYTES}: each push carries its number and its time");
    }
    args.common.ensure_window()?;
    if !args.raw && args.in_flight.is_none() && args.rate == 0.0 && args.echo_rate == 0.0 {
        bail!(
            "--rate 0 without --echo-rate measures nothing: use a --rate above 0, or measure echoes alone with \
             --echo-rate; `tide bench connect` holds idle connections"
        );
    }
    let echo_count = if args.echo_rate > 0.0 { args.echo_connections as usize } else { 0 };
    let count = if args.raw { receivers } else { receivers + 1 + echo_count };
    let mut plan = RunPlan { wakeup_slot: receivers, ..RunPlan::new(&args.common, count) };
    if echo_count > 0 {
        plan.urgent_from = receivers + 1;
    }
    let in_flight_max = args.in_flight.unwrap_or_default() as usize;
    let shared_log = OnceLock::new();
    let finished = workers::run(&plan, |context| {
        let shared_log =
            shared_log.get_or_init(|| SharedLog::new(context.share.workers, in_flight_max));
        BroadcastLoad::new(args, context, shared_log)
    })?;
    let (mut load, series) = finished.merged(BroadcastLoad::merge);
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    load.publications.check_deliveries()?;
    let echoes: u64 = load.echo.as_ref().map_or(0, |echo| echo.counted().iter().sum());
    ensure_measured(load.publications.deliveries() + load.raw_bytes + echoes, "push was delivered")
}

fn report(args: &BroadcastArgs, load: &mut BroadcastLoad) -> Report {
    let (receivers, bytes) = (args.common.connections, args.bytes);
    let (of, to) = (counted(bytes, "byte"), counted(receivers, "receiver"));
    let mut report = Report::new("broadcast", format!("pushes of {of} to {to}"));
    report.add("connections", "receivers", u64::from(receivers), Unit::Number);
    let raw = load.steady.raw;
    let deliveries =
        if raw { load.raw_bytes / bytes.max(1) as u64 } else { load.publications.deliveries() };
    let phases = &load.steady.phases;
    report.add("deliveries", "deliveries", deliveries, Unit::Number);
    let per_second = deliveries as f64 / phases.seconds();
    report.add("per_second", "deliveries per second", per_second, Unit::PerSecond);
    let mut counted = load.echo.as_ref().map_or_else(Vec::new, Echo::counted);
    let echoes: u64 = counted.iter().sum();
    match (deliveries, &load.echo) {
        (0, Some(_)) => phases.report(&mut report, "echo", echoes),
        (_, Some(_)) => phases.report(&mut report, "delivery, with echoes", deliveries),
        _ => phases.report(&mut report, "delivery", deliveries),
    }
    let to_receivers = if raw { deliveries } else { load.to_receivers };
    if to_receivers > 0 {
        let reads = load.reads as f64 / to_receivers as f64;
        report.add("reads_per_delivery", "reads per delivery", reads, Unit::Number);
    }
    if !raw {
        load.publications.report(&mut report);
    }
    if let Some(echo) = &mut load.echo {
        report.add("echoes", "echoes, all correct", echoes, Unit::Number);
        let per_second = echoes as f64 / phases.seconds();
        report.add("echoes_per_second", "echoes per second", per_second, Unit::PerSecond);
        report.add_latency("echo_latency", "echo latency", echo.latency.window());
        report.add_fairness(&mut counted);
    }
    report
}

impl BroadcastLoad {
    fn new(
        args: &BroadcastArgs,
        context: &WorkerContext,
        shared_log: &Arc<SharedLog>,
    ) -> Result<Self> {
        let share = context.share;
        let publisher = args.common.connections as usize;
        let (first_slot, count) = share.from(publisher + 1);
        let echo = (count > 0).then(|| {
            let all = share.total - (publisher + 1);
            let per_second = args.echo_rate * count as f64 / all as f64;
            Echo::new(EchoPlan {
                first_slot,
                count,
                kind: ECHO_KIND,
                bytes: args.echo_bytes,
                pace: Pace::Open { per_second },
                raw: false,
            })
        });
        let pace = match args.in_flight {
            _ if args.raw => PublishPace::Never,
            Some(in_flight) => PublishPace::MaxInFlight(u64::from(in_flight)),
            None if args.rate > 0.0 => PublishPace::PerSecond(args.rate),
            None => PublishPace::Never,
        };
        let run_state = &context.run_state;
        Ok(Self {
            steady: SteadyLoad::new(&args.common, context, args.raw)?,
            publisher,
            publishes: share.contains(publisher),
            publications: Publications::new(args.kind, args.bytes, share, shared_log, run_state),
            echo,
            pace,
            publishing: false,
            started_at: 0,
            counting: false,
            reads: 0,
            to_receivers: 0,
            raw_bytes: 0,
        })
    }

    /// Adds another worker's results.
    fn merge(&mut self, other: Self) {
        self.steady.merge(other.steady);
        self.publications.merge(other.publications);
        self.reads += other.reads;
        self.to_receivers += other.to_receivers;
        self.raw_bytes += other.raw_bytes;
        match (&mut self.echo, other.echo) {
            (Some(echo), Some(other)) => echo.merge(other),
            (echo @ None, other) => *echo = other,
            (Some(_), None) => {}
        }
    }

    /// Publishes what is due. Returns when the next publication is.
    fn publish(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while self.publishing && self.publications.has_room() {
            let scheduled_at = match self.pace {
                PublishPace::Never => return None,
                PublishPace::MaxInFlight(_) => now,
                PublishPace::PerSecond(rate) => {
                    let number = self.publications.published();
                    self.started_at + due_after(number, 1e9 / rate)
                }
            };
            if scheduled_at > now {
                return Some(scheduled_at);
            }
            if let PublishPace::MaxInFlight(most) = self.pace
                && self.publications.in_flight() >= most
            {
                return None;
            }
            sockets.send(self.publisher, |out| {
                self.publications.put_next(out, scheduled_at, Topic::News);
            });
        }
        None
    }

    fn drained(&self) -> bool {
        let published = self.steady.raw || self.publications.drained(self.publishes);
        published && self.echo.as_ref().is_none_or(Echo::drained)
    }

    fn step(&mut self, transition: Transition, sockets: &mut Sockets, now: Nanos) {
        match transition {
            Transition::Start => {
                self.publishing = self.publishes;
                self.started_at = now;
                if let Some(echo) = &mut self.echo {
                    echo.start(sockets, now);
                }
            }
            Transition::Measure => {
                self.counting = true;
                self.publications.start_counting();
                if let Some(echo) = &mut self.echo {
                    echo.start_counting();
                }
            }
            Transition::Stop => {
                (self.counting, self.publishing) = (false, false);
                self.publications.stop_counting();
                if self.publishes {
                    self.publications.close();
                }
                if let Some(echo) = &mut self.echo {
                    echo.stop();
                }
            }
            Transition::Done => {}
        }
    }
}

impl ConnectionEvents for BroadcastLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        self.steady.opened(slot, link, now);
        Ok(())
    }

    #[inline]
    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        let Link { reassembler, out, .. } = link;
        let counted_receiver = self.counting && slot < self.publisher;
        self.reads += u64::from(counted_receiver);
        if self.steady.raw {
            self.raw_bytes += if self.counting { bytes.len() as u64 } else { 0 };
            return Ok(());
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if self.publications.is_push(answer) {
                self.to_receivers += u64::from(counted_receiver);
                self.publications.received(slot, answer, now)?;
                return Ok(());
            }
            if self.steady.sessions.answered(slot, answer, now)? {
                return Ok(());
            }
            match &mut self.echo {
                Some(echo) if slot > self.publisher => echo.answered(slot, answer, out, now),
                _ if slot == self.publisher => self.publications.accepted(answer),
                _ => bail!("receiver {slot}: {answer:?} came without a request"),
            }
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> Result<()> {
        self.steady.closed(slot, &cause)
    }
}

impl Load for BroadcastLoad {
    fn counters(&self) -> Counters {
        let echoes = self.echo.as_ref().map_or((0, 0), Echo::sent_and_answered);
        let published = if self.publishes { self.publications.published() } else { 0 };
        let received = self.publications.received_in_run();
        self.steady.sessions.counters().plus(echoes).plus((published, received))
    }

    fn flush(&mut self, live: &LiveStats) {
        self.steady.sessions.flush(None);
        // The samples show the echoes' latencies where there are echoes in any worker, and the deliveries'
        // otherwise.
        let echoes = self.steady.share().total > self.publisher + 1;
        self.publications.flush((!echoes).then_some(live));
        if let Some(echo) = &mut self.echo {
            echo.flush(Some(live));
        }
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        let received = self.counters().received;
        let standing = self.steady.standing(self.drained(), received);
        let (transition, next) = self.steady.tick(standing, sockets, now)?;
        if let Some(transition) = transition {
            self.step(transition, sockets, now);
        }
        let publish_at = self.publish(sockets, now);
        let echo_at = self.echo.as_mut().and_then(|echo| echo.tick(sockets, now));
        Ok(next.min(publish_at).min(echo_at))
    }
}
