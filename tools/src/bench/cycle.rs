//! `tide bench connect --cycle`: whole connections, from the connect to the close, again and again.

use anyhow::{Context as _, bail};

use super::args::ConnectArgs;
use super::course::Seat;
use super::crew::{self, Task};
use super::echo::for_each_answer;
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets};
use super::latency::{Latency, Live, Pulse};
use super::report::{Report, Unit, demand_any};
use super::session::{Credentials, SessionAnswer, put_heartbeat, read_answer};
use super::source::Addresses;
use super::stopwatch::Stopwatch;
use super::turnover::Turnover;
use crate::count::grouped;

struct CycleLoad<'a> {
    args: &'a ConnectArgs,
    addresses: Addresses,
    credentials: Credentials,
    stopwatch: Stopwatch,
    lanes: Vec<Lane>,
    turnover: Turnover,
    /// Begun, over the whole run.
    begun: usize,
    pulse: Pulse,
    counted: u64,
    latency: Latency,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    began_at: Nanos,
    step: Step,
    /// Raw: bytes that have to come back yet. Otherwise unused.
    owed_bytes: usize,
    /// Raw: bytes of the heartbeat, which follow once those are back.
    heartbeat_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Neither answer has come.
    #[default]
    Authenticate,
    /// The heartbeat's is missing.
    Heartbeat,
    /// The heartbeat's came first, as it may: the authentication's is missing.
    Overtaken,
    Over,
}

/// Runs it.
pub(super) fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    args.common.demand_window()?;
    let count = args.common.connections as usize;
    let task = Task { reset_on_close: args.reset, ..Task::new(&args.common, count) };
    let finished = crew::run(&task, |seat| CycleLoad::new(args, seat))?;
    let (mut load, series) = finished.merged(|load, other| {
        load.counted += other.counted;
        load.latency.merge(other.latency);
    });
    let how = if args.pipelined { "one segment" } else { "one after the other" };
    let together = grouped(count);
    let title = format!("connect, authenticate, heartbeat, close: {together} at a time, {how}");
    let mut report = Report::new("cycle", title);
    report.add("connections", "connections at a time", count as u64, Unit::Number);
    report.add("cycles", "whole connections", load.counted, Unit::Number);
    let per_second = load.counted as f64 / load.stopwatch.seconds();
    report.add("per_second", "whole connections a second", per_second, Unit::PerSecond);
    load.stopwatch.report(&mut report, "connection", load.counted);
    report.add_latency("latency", "latency", load.latency.window());
    report.set_series(series);
    report.print(&args.common)?;
    demand_any(load.counted, "connection was gone through")
}

impl<'a> CycleLoad<'a> {
    fn new(args: &'a ConnectArgs, seat: &Seat) -> anyhow::Result<Self> {
        let share = seat.share;
        Ok(Self {
            args,
            addresses: args.common.addresses(),
            credentials: Credentials::new(&args.common),
            stopwatch: Stopwatch::new(&args.common, seat)?,
            lanes: vec![Lane::default(); share.count],
            turnover: Turnover::new(share, 0, args.common.patience),
            begun: 0,
            pulse: Pulse::default(),
            counted: 0,
            latency: Latency::new(),
        })
    }

    fn lane(&mut self, slot: usize) -> &mut Lane {
        let first = self.stopwatch.share().first;
        &mut self.lanes[slot - first]
    }

    /// The lane's work is done: closes.
    fn over(&mut self, slot: usize, link: &mut Link) {
        self.lane(slot).step = Step::Over;
        link.close = true;
    }

    fn answered(
        &mut self,
        slot: usize,
        answer: SessionAnswer,
        link: &mut Link,
    ) -> anyhow::Result<()> {
        let pipelined = self.args.pipelined;
        self.pulse.received += 1;
        let lane = self.lane(slot);
        match (answer, lane.step) {
            (SessionAnswer::Authenticated { .. }, Step::Authenticate) => {
                lane.step = Step::Heartbeat;
                if !pipelined {
                    put_heartbeat(&mut link.out);
                }
            }
            (SessionAnswer::Pong, Step::Authenticate) if pipelined => {
                lane.step = Step::Overtaken;
            }
            (SessionAnswer::Pong, Step::Heartbeat)
            | (SessionAnswer::Authenticated { .. }, Step::Overtaken) => self.over(slot, link),
            (answer, step) => bail!("connection {slot}: {answer:?} came in step {step:?}"),
        }
        Ok(())
    }

    fn echoed(&mut self, slot: usize, bytes: usize, link: &mut Link) -> anyhow::Result<()> {
        let lane = self.lane(slot);
        let more = || format!("connection {slot}: more bytes came back than were sent");
        lane.owed_bytes = lane.owed_bytes.checked_sub(bytes).with_context(more)?;
        if lane.owed_bytes > 0 {
            return Ok(());
        }
        if lane.heartbeat_bytes > 0 {
            put_heartbeat(&mut link.out);
            lane.owed_bytes = std::mem::take(&mut lane.heartbeat_bytes);
            return Ok(());
        }
        self.over(slot, link);
        Ok(())
    }
}

impl Load for CycleLoad<'_> {
    fn opened(&mut self, slot: usize, link: &mut Link, _: Nanos) -> anyhow::Result<()> {
        // Another user each time: the last one's connection may not be gone yet at the server.
        let share = self.stopwatch.share();
        let user = self.begun * share.workers + share.worker;
        self.begun += 1;
        // The authentication and the heartbeat.
        self.pulse.sent += 2;
        self.credentials.put_authenticate(user, &mut link.out);
        let authenticate_bytes = link.out.len();
        put_heartbeat(&mut link.out);
        let (pipelined, raw) = (self.args.pipelined, self.args.raw);
        let lane = self.lane(slot);
        if pipelined {
            lane.owed_bytes = if raw { link.out.len() } else { 0 };
        } else {
            lane.heartbeat_bytes = link.out.len() - authenticate_bytes;
            lane.owed_bytes = authenticate_bytes;
            link.out.truncate(authenticate_bytes);
        }
        Ok(())
    }

    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        _: Nanos,
    ) -> anyhow::Result<()> {
        if self.args.raw {
            return self.echoed(slot, bytes.len(), link);
        }
        let mut reassembler = std::mem::take(&mut link.reassembler);
        for_each_answer(slot, &mut reassembler, bytes, |answer| {
            self.answered(slot, read_answer(slot, answer)?, link)
        })?;
        link.reassembler = reassembler;
        Ok(())
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> anyhow::Result<()> {
        let lane = *self.lane(slot);
        if lane.step != Step::Over {
            bail!("connection {slot} was {cause} in step {:?}", lane.step);
        }
        self.turnover.came_in(now);
        self.counted += u64::from(self.turnover.counting());
        self.latency.record(now.saturating_sub(lane.began_at));
        self.turnover.gone(slot);
        Ok(())
    }

    fn pulse(&self) -> Pulse {
        Pulse { connections: self.turnover.under_way() as u64, ..self.pulse }
    }

    fn flush(&mut self, live: &Live) {
        self.latency.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let received = self.pulse.received;
        if self.turnover.tick(&mut self.stopwatch, &mut self.latency, received, now)? {
            return Ok(Next::Done);
        }
        while let Some(slot) = self.turnover.begin(now) {
            let (to, from) = self.addresses.of(slot);
            sockets.connect(slot, to, from)?;
            *self.lane(slot) = Lane { began_at: now, ..Lane::default() };
        }
        Ok(Next::Whenever.min(self.stopwatch.phase_ends_at()))
    }
}
