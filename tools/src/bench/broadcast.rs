//! `tide bench broadcast`: pushes to everybody, and the check that everybody gets each one once, in
//! order, byte by byte.

use anyhow::bail;

use super::args::{BroadcastArgs, reserve_descriptors};
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Engine, Link, Load, Nanos, Next, Sockets, due_after};
use super::publication::{HEADER_BYTES, Publications};
use super::report::{Report, Unit};
use super::session::Sessions;
use super::stopwatch::{Edge, Stopwatch};

/// The type that echoes.
const ECHO_KIND: i32 = 1;

struct BroadcastLoad {
    raw: bool,
    /// Slots below this one are receivers; this one publishes; those above it echo.
    publisher: usize,
    sessions: Sessions,
    stopwatch: Stopwatch,
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
    /// Raw: bytes that came to each receiver, in the window.
    raw_bytes: Vec<u64>,
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
    let echo_count = if args.echo_rate > 0.0 { args.echo_connections as usize } else { 0 };
    let count = if args.raw { receivers } else { receivers + 1 + echo_count };
    reserve_descriptors(count)?;
    let echo = (echo_count > 0).then(|| {
        Echo::new(EchoPlan {
            first_slot: receivers + 1,
            count: echo_count,
            kind: ECHO_KIND,
            bytes: args.echo_bytes,
            pace: Pace::Open { per_second: args.echo_rate },
            raw: false,
        })
    });
    let pace = match args.in_flight {
        _ if args.raw => PublishPace::Never,
        Some(in_flight) => PublishPace::InFlight(u64::from(in_flight)),
        None if args.rate > 0.0 => PublishPace::PerSecond(args.rate),
        None => PublishPace::Never,
    };
    let in_flight_max = args.in_flight.unwrap_or_default() as usize;
    let mut load = BroadcastLoad {
        raw: args.raw,
        publisher: receivers,
        sessions: Sessions::new(&args.common, count, args.raw),
        stopwatch: Stopwatch::new(&args.common, count)?,
        publications: Publications::new(args.kind, args.bytes, count, in_flight_max),
        echo,
        pace,
        publishing: false,
        started_at: 0,
        counting: false,
        reads: 0,
        to_receivers: 0,
        raw_bytes: vec![0; if args.raw { receivers } else { 0 }],
    };
    let mut engine = Engine::new(count, false)?.spinning(args.common.spin);
    if load.echo.is_some() {
        engine = engine.with_urgent_from(receivers + 1)?;
    }
    engine.run(&mut load)?;
    report(args, &load).print(&args.common)?;
    load.publications.verdict()
}

fn report(args: &BroadcastArgs, load: &BroadcastLoad) -> Report {
    let (receivers, bytes) = (args.common.connections, args.bytes);
    let mut report =
        Report::new("broadcast", format!("pushes of {bytes} bytes to {receivers} receivers"));
    report.add("connections", "receivers", u64::from(receivers), Unit::Number);
    let raw_bytes: u64 = load.raw_bytes.iter().sum();
    let deliveries =
        if load.raw { raw_bytes / bytes.max(1) as u64 } else { load.publications.deliveries() };
    report.add("deliveries", "deliveries", deliveries, Unit::Number);
    let per_second = deliveries as f64 / load.stopwatch.seconds();
    report.add("per_second", "deliveries a second", per_second, Unit::PerSecond);
    let mut counted = load.echo.as_ref().map_or_else(Vec::new, Echo::counted);
    let echoes: u64 = counted.iter().sum();
    match (deliveries, &load.echo) {
        (0, Some(_)) => load.stopwatch.report(&mut report, "echo", echoes),
        (_, Some(_)) => load.stopwatch.report(&mut report, "delivery, with echoes", deliveries),
        _ => load.stopwatch.report(&mut report, "delivery", deliveries),
    }
    let to_receivers = if load.raw { deliveries } else { load.to_receivers };
    if to_receivers > 0 {
        let reads = load.reads as f64 / to_receivers as f64;
        report.add("reads_per_delivery", "reads per delivery", reads, Unit::Number);
    }
    if !load.raw {
        load.publications.report(&mut report);
    }
    if let Some(echo) = &load.echo {
        report.add("echoes", "echoes, all of them right", echoes, Unit::Number);
        let per_second = echoes as f64 / load.stopwatch.seconds();
        report.add("echoes_per_second", "echoes a second", per_second, Unit::PerSecond);
        report.add_latency("echo_latency", "echo latency", &echo.latency);
        report.add_fairness(&mut counted);
    }
    report
}

impl BroadcastLoad {
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
            sockets.send(self.publisher, |out| self.publications.put_next(out, intended_at));
        }
        None
    }

    fn drained(&self) -> bool {
        self.publications.drained() && self.echo.as_ref().is_none_or(Echo::drained)
    }

    fn step(&mut self, edge: Edge, sockets: &mut Sockets, now: Nanos) {
        match edge {
            Edge::Start => {
                self.publishing = true;
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
        let counted_receiver = self.counting && slot < self.publisher;
        self.reads += u64::from(counted_receiver);
        if self.raw {
            self.raw_bytes[slot] += if self.counting { bytes.len() as u64 } else { 0 };
            return Ok(());
        }
        for_each_answer(slot, reassembler, bytes, |answer| {
            if self.publications.is_push(answer) {
                self.to_receivers += u64::from(counted_receiver);
                return self.publications.received(slot, answer, now);
            }
            if self.sessions.answered(slot, answer, now)? {
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
        Err(self.sessions.closed(slot, &cause))
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let session_at = self.sessions.tick(sockets, now)?;
        let (up, all_up, drained) = (self.sessions.up(), self.sessions.all_up(), self.drained());
        match self.stopwatch.tick(up, all_up, drained, now)? {
            Some(Edge::Done) => return Ok(Next::Done),
            Some(edge) => self.step(edge, sockets, now),
            None => {}
        }
        let publish_at = self.publish(sockets, now);
        let echo_at = self.echo.as_mut().and_then(|echo| echo.tick(sockets, now));
        let next = Next::Whenever.min(session_at).min(publish_at).min(echo_at);
        Ok(next.min(self.stopwatch.phase_ends_at()))
    }
}
