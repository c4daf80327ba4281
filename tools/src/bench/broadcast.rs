//! `tide bench broadcast`: pushes to everybody, and the check that everybody gets each one once, in
//! order, byte by byte.

use std::sync::{Arc, OnceLock};

use anyhow::bail;

use super::args::BroadcastArgs;
use super::course::Seat;
use super::crew::{self, Task};
use super::crowd::Crowd;
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets, due_after};
use super::latency::{Live, Pulse};
use super::publication::{Board, HEADER_BYTES, Publications, Topic};
use super::report::{Report, Unit, demand_any};
use super::stopwatch::Edge;
use crate::count::counted;

/// The type that echoes.
const ECHO_KIND: i32 = 1;

struct BroadcastLoad {
    crowd: Crowd,
    /// Slots below this one are receivers; this one publishes; those above it echo.
    publisher: usize,
    /// Whether the publisher is this worker's.
    publishes: bool,
    publications: Publications,
    echo: Option<Echo>,
    pace: PublishPace,
    publishing: bool,
    started_at: Nanos,
    counting: bool,
    /// Reads of receivers, in the window.
    reads: u64,
    /// Deliveries to receivers alone, in the window.
    to_receivers: u64,
    /// Raw: bytes that came to receivers, in the window.
    raw_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum PublishPace {
    Never,
    PerSecond(f64),
    InFlight(u64),
}

/// Runs it.
pub(super) fn run(args: &BroadcastArgs) -> anyhow::Result<()> {
    let receivers = args.common.connections as usize;
    if !args.raw && args.bytes < HEADER_BYTES {
        bail!("a push has at least {HEADER_BYTES} bytes: its number and its time");
    }
    args.common.demand_window()?;
    if !args.raw && args.in_flight.is_none() && args.rate == 0.0 && args.echo_rate == 0.0 {
        bail!(
            "--rate 0 without --echo-rate measures nothing: name a --rate, or measure echoes alone with \
             --echo-rate; `tide bench connect` holds connections that do nothing"
        );
    }
    let echo_count = if args.echo_rate > 0.0 { args.echo_connections as usize } else { 0 };
    let count = if args.raw { receivers } else { receivers + 1 + echo_count };
    let mut task = Task { bell_at: receivers, ..Task::new(&args.common, count) };
    if echo_count > 0 {
        task.urgent_from = receivers + 1;
    }
    let in_flight_max = args.in_flight.unwrap_or_default() as usize;
    let board = OnceLock::new();
    let finished = crew::run(&task, |seat| {
        let board = board.get_or_init(|| Board::new(seat.share.workers, in_flight_max));
        BroadcastLoad::new(args, seat, board)
    })?;
    let (mut load, series) = finished.merged(BroadcastLoad::merge);
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    load.publications.verdict()?;
    let echoes: u64 = load.echo.as_ref().map_or(0, |echo| echo.counted().iter().sum());
    demand_any(load.publications.deliveries() + load.raw_bytes + echoes, "push was delivered")
}

fn report(args: &BroadcastArgs, load: &mut BroadcastLoad) -> Report {
    let (receivers, bytes) = (args.common.connections, args.bytes);
    let (of, to) = (counted(bytes, "byte"), counted(receivers, "receiver"));
    let mut report = Report::new("broadcast", format!("pushes of {of} to {to}"));
    report.add("connections", "receivers", u64::from(receivers), Unit::Number);
    let raw = load.crowd.raw;
    let deliveries =
        if raw { load.raw_bytes / bytes.max(1) as u64 } else { load.publications.deliveries() };
    let stopwatch = &load.crowd.stopwatch;
    report.add("deliveries", "deliveries", deliveries, Unit::Number);
    let per_second = deliveries as f64 / stopwatch.seconds();
    report.add("per_second", "deliveries a second", per_second, Unit::PerSecond);
    let mut counted = load.echo.as_ref().map_or_else(Vec::new, Echo::counted);
    let echoes: u64 = counted.iter().sum();
    match (deliveries, &load.echo) {
        (0, Some(_)) => stopwatch.report(&mut report, "echo", echoes),
        (_, Some(_)) => stopwatch.report(&mut report, "delivery, with echoes", deliveries),
        _ => stopwatch.report(&mut report, "delivery", deliveries),
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
        report.add("echoes", "echoes, all of them right", echoes, Unit::Number);
        let per_second = echoes as f64 / stopwatch.seconds();
        report.add("echoes_per_second", "echoes a second", per_second, Unit::PerSecond);
        report.add_latency("echo_latency", "echo latency", echo.latency.window());
        report.add_fairness(&mut counted);
    }
    report
}

impl BroadcastLoad {
    fn new(args: &BroadcastArgs, seat: &Seat, board: &Arc<Board>) -> anyhow::Result<Self> {
        let share = seat.share;
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
            Some(in_flight) => PublishPace::InFlight(u64::from(in_flight)),
            None if args.rate > 0.0 => PublishPace::PerSecond(args.rate),
            None => PublishPace::Never,
        };
        let course = &seat.course;
        Ok(Self {
            crowd: Crowd::new(&args.common, seat, args.raw)?,
            publisher,
            publishes: (share.first..share.end()).contains(&publisher),
            publications: Publications::new(args.kind, args.bytes, share, board, course),
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

    /// Takes another worker's findings in.
    fn merge(&mut self, other: Self) {
        self.crowd.merge(other.crowd);
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

    /// Publishes what is due; says when the next will be.
    fn publish(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while self.publishing && self.publications.has_room() {
            let intended_at = match self.pace {
                PublishPace::Never => return None,
                PublishPace::InFlight(_) => now,
                PublishPace::PerSecond(rate) => {
                    let number = self.publications.published();
                    self.started_at + due_after(number, 1e9 / rate)
                }
            };
            if intended_at > now {
                return Some(intended_at);
            }
            if let PublishPace::InFlight(most) = self.pace
                && self.publications.in_flight() >= most
            {
                return None;
            }
            sockets.send(self.publisher, |out| {
                self.publications.put_next(out, intended_at, Topic::News);
            });
        }
        None
    }

    fn drained(&self) -> bool {
        let published = self.crowd.raw || self.publications.drained(self.publishes);
        published && self.echo.as_ref().is_none_or(Echo::drained)
    }

    fn step(&mut self, edge: Edge, sockets: &mut Sockets, now: Nanos) {
        match edge {
            Edge::Start => {
                self.publishing = self.publishes;
                self.started_at = now;
                if let Some(echo) = &mut self.echo {
                    echo.start(sockets, now);
                }
            }
            Edge::Measure => {
                self.counting = true;
                self.publications.count_from_now();
                if let Some(echo) = &mut self.echo {
                    echo.count_from_now();
                }
            }
            Edge::Stop => {
                (self.counting, self.publishing) = (false, false);
                self.publications.stop_counting();
                if self.publishes {
                    self.publications.close();
                }
                if let Some(echo) = &mut self.echo {
                    echo.stop();
                }
            }
            Edge::Done => {}
        }
    }
}

impl Load for BroadcastLoad {
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
        let counted_receiver = self.counting && slot < self.publisher;
        self.reads += u64::from(counted_receiver);
        if self.crowd.raw {
            self.raw_bytes += if self.counting { bytes.len() as u64 } else { 0 };
            return Ok(());
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if self.publications.is_push(answer) {
                self.to_receivers += u64::from(counted_receiver);
                self.publications.received(slot, answer, now)?;
                return Ok(());
            }
            if self.crowd.sessions.answered(slot, answer, now)? {
                return Ok(());
            }
            match &mut self.echo {
                Some(echo) if slot > self.publisher => echo.answered(slot, answer, out, now),
                _ if slot == self.publisher => self.publications.accepted(answer),
                _ => bail!("receiver {slot}: {answer:?} came, which nothing asked for"),
            }
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        self.crowd.closed(slot, &cause)
    }

    fn pulse(&self) -> Pulse {
        let echoes = self.echo.as_ref().map_or((0, 0), Echo::sent_and_answered);
        let published = if self.publishes { self.publications.published() } else { 0 };
        let received = self.publications.received_in_all();
        self.crowd.sessions.pulse().with(echoes).with((published, received))
    }

    fn flush(&mut self, live: &Live) {
        self.crowd.sessions.flush(None);
        // Where there are echoes, they are what is shown, by whichever worker has them.
        let echoes = self.crowd.share().total > self.publisher + 1;
        self.publications.flush((!echoes).then_some(live));
        if let Some(echo) = &mut self.echo {
            echo.flush(Some(live));
        }
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let received = self.pulse().received;
        let standing = self.crowd.standing(self.drained(), received);
        let (edge, next) = self.crowd.tick(standing, sockets, now)?;
        if let Some(edge) = edge {
            self.step(edge, sockets, now);
        }
        let publish_at = self.publish(sockets, now);
        let echo_at = self.echo.as_mut().and_then(|echo| echo.tick(sockets, now));
        Ok(next.min(publish_at).min(echo_at))
    }
}
