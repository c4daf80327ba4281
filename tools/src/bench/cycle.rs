//! `tide bench connect --cycle`: complete connections, from the connect to the close, again and again.

use anyhow::{Context as _, Result, bail};

use super::args::{ConnectArgs, connect_label};
use super::churn_load::ChurnLoad;
use super::clock::Nanos;
use super::echo::for_each_answer;
use super::engine::{Load, Next};
use super::latency::{Counters, Latency, LiveStats};
use super::phases::Phases;
use super::report::{Report, Unit, ensure_measured};
use super::run_state::WorkerContext;
use super::session::{Credentials, SessionAnswer, put_heartbeat, read_answer};
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::source::Addresses;
use super::workers::{self, RunPlan};
use crate::count::grouped;

struct CycleLoad<'a> {
    args: &'a ConnectArgs,
    addresses: Addresses,
    credentials: Credentials,
    phases: Phases,
    lanes: Vec<Lane>,
    churn: ChurnLoad,
    /// Connections started in the whole run.
    started: usize,
    counters: Counters,
    counted: u64,
    latency: Latency,
}

/// What happens on one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    started_at: Nanos,
    step: Step,
    /// Raw: bytes that were not echoed yet. Otherwise unused.
    pending_bytes: usize,
    /// Raw: bytes of the heartbeat, which is sent when those are back. Otherwise unused.
    heartbeat_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// No answer has arrived.
    #[default]
    Authenticate,
    /// The answer to the heartbeat is missing.
    Heartbeat,
    /// The answer to the heartbeat came first, which the protocol allows. That to the authentication is missing.
    HeartbeatFirst,
    /// Only the close is left.
    Closing,
}

/// Runs the scenario.
pub(super) fn run(args: &ConnectArgs) -> Result<()> {
    args.common.ensure_window()?;
    let count = args.common.connections as usize;
    let plan = RunPlan { reset_on_close: args.reset, ..RunPlan::new(&args.common, count) };
    let finished = workers::run(&plan, |context| CycleLoad::new(args, context))?;
    let (mut load, series) = finished.merged(|load, other| {
        load.counted += other.counted;
        load.latency.merge(other.latency);
    });
    let how = if args.pipelined { "one segment" } else { "one after the other" };
    let together = grouped(count);
    let connect = connect_label(&args.common);
    let title = format!("{connect}, authenticate, heartbeat, close: {together} at a time, {how}");
    let mut report = Report::new("cycle", title);
    report.add("connections", "connections at a time", count as u64, Unit::Number);
    report.add("cycles", "complete connections", load.counted, Unit::Number);
    let per_second = load.counted as f64 / load.phases.seconds();
    report.add("per_second", "complete connections per second", per_second, Unit::PerSecond);
    if let Some(seconds) = load.phases.server_cpu_seconds() {
        let per_core = load.counted as f64 / seconds;
        report.add("per_core_per_second", "  for each server core", per_core, Unit::PerSecond);
    }
    load.phases.report(&mut report, "connection", load.counted);
    report.add_latency("latency", "latency", load.latency.window());
    report.set_series(series);
    report.print(&args.common)?;
    ensure_measured(load.counted, "connection was completed")
}

impl<'a> CycleLoad<'a> {
    fn new(args: &'a ConnectArgs, context: &WorkerContext) -> Result<Self> {
        let share = context.share;
        Ok(Self {
            args,
            addresses: args.common.addresses(),
            credentials: Credentials::new(&args.common),
            phases: Phases::new(&args.common, context)?,
            lanes: vec![Lane::default(); share.count],
            churn: ChurnLoad::new(share, 0, args.common.admission_timeout),
            started: 0,
            counters: Counters::default(),
            counted: 0,
            latency: Latency::new(),
        })
    }

    fn lane(&mut self, slot: usize) -> &mut Lane {
        let first = self.phases.share().first;
        &mut self.lanes[slot - first]
    }

    /// Closes a connection that has all its answers.
    fn close(&mut self, slot: usize, link: &mut Link) {
        self.lane(slot).step = Step::Closing;
        link.close = true;
    }

    fn answered(&mut self, slot: usize, answer: SessionAnswer, link: &mut Link) -> Result<()> {
        let pipelined = self.args.pipelined;
        self.counters.received += 1;
        let lane = self.lane(slot);
        match (answer, lane.step) {
            (SessionAnswer::Authenticated { .. }, Step::Authenticate) => {
                lane.step = Step::Heartbeat;
                if !pipelined {
                    put_heartbeat(&mut link.out);
                }
            }
            (SessionAnswer::Pong, Step::Authenticate) if pipelined => {
                lane.step = Step::HeartbeatFirst;
            }
            (SessionAnswer::Pong, Step::Heartbeat)
            | (SessionAnswer::Authenticated { .. }, Step::HeartbeatFirst) => self.close(slot, link),
            (answer, step) => bail!("connection {slot}: {answer:?} came in step {step:?}"),
        }
        Ok(())
    }

    fn echoed(&mut self, slot: usize, bytes: usize, link: &mut Link) -> Result<()> {
        let lane = self.lane(slot);
        let more = || format!("connection {slot}: more bytes came back than were sent");
        lane.pending_bytes = lane.pending_bytes.checked_sub(bytes).with_context(more)?;
        if lane.pending_bytes > 0 {
            return Ok(());
        }
        if lane.heartbeat_bytes > 0 {
            put_heartbeat(&mut link.out);
            lane.pending_bytes = std::mem::take(&mut lane.heartbeat_bytes);
            return Ok(());
        }
        self.close(slot, link);
        Ok(())
    }
}

impl ConnectionEvents for CycleLoad<'_> {
    fn opened(&mut self, slot: usize, link: &mut Link, _: Nanos) -> Result<()> {
        // A new user each time: the server may not have closed the last user's connection yet, and would
        // replace it (107).
        let share = self.phases.share();
        let user = self.started * share.workers + share.worker;
        self.started += 1;
        // The authentication and the heartbeat.
        self.counters.sent += 2;
        self.credentials.put_authenticate(user, &mut link.out);
        let authenticate_bytes = link.out.len();
        put_heartbeat(&mut link.out);
        let (pipelined, raw) = (self.args.pipelined, self.args.raw);
        let lane = self.lane(slot);
        if pipelined {
            lane.pending_bytes = if raw { link.out.len() } else { 0 };
        } else {
            lane.heartbeat_bytes = link.out.len() - authenticate_bytes;
            lane.pending_bytes = authenticate_bytes;
            link.out.truncate(authenticate_bytes);
        }
        Ok(())
    }

    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], _: Nanos) -> Result<()> {
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

    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> Result<()> {
        let lane = *self.lane(slot);
        if lane.step != Step::Closing {
            bail!("connection {slot} was {cause} in step {:?}", lane.step);
        }
        self.churn.record_admitted(now);
        self.counted += u64::from(self.churn.counting());
        self.latency.record(now.saturating_sub(lane.started_at));
        self.churn.record_closed(slot);
        Ok(())
    }
}

impl Load for CycleLoad<'_> {
    fn counters(&self) -> Counters {
        Counters { connections: self.churn.open() as u64, ..self.counters }
    }

    fn flush(&mut self, live: &LiveStats) {
        self.latency.flush(Some(live));
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        let received = self.counters.received;
        if self.churn.tick(&mut self.phases, &mut self.latency, received, now)? {
            return Ok(Next::Done);
        }
        while let Some(slot) = self.churn.start_next(now) {
            let (to, from) = self.addresses.of(slot);
            sockets.connect(slot, to, from)?;
            *self.lane(slot) = Lane { started_at: now, ..Lane::default() };
        }
        Ok(Next::NoDeadline.min(self.phases.phase_ends_at()))
    }
}
