//! `tide bench storm`: connects, authenticates, closes, and again, as fast as possible. With `--slow-share` some
//! clients connect and then send nothing.

use std::ops::RangeInclusive;

use anyhow::{Result, bail};
use tidegate_protocol::Code;
use tidegate_protocol::message::{AUTHENTICATE, Response, SUCCESS};

use super::args::{StormArgs, connect_label};
use super::churn_load::ChurnLoad;
use super::clock::Nanos;
use super::echo::for_each_answer;
use super::engine::{Load, Next};
use super::latency::{Counters, Latency, LiveStats};
use super::phases::Phases;
use super::report::{Report, Unit, ensure_measured};
use super::run_state::WorkerContext;
use super::session::{Credentials, SessionAnswer, failed, read_answer};
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::source::Addresses;
use super::workers::{self, RunPlan};
use crate::count::{counted, grouped};

/// Source addresses are used again after this many connections: by then their ports have left TIME_WAIT.
const SOURCE_CYCLE: usize = 1_000_000;
/// How often the waits of the silent clients are checked.
const CHECK_INTERVAL_NS: Nanos = 100_000_000;

struct StormLoad {
    addresses: Addresses,
    credentials: Credentials,
    phases: Phases,
    lanes: Vec<Lane>,
    /// The first lanes of this worker are silent: this many.
    silent: usize,
    /// The share of all connections that are silent.
    silent_share: f64,
    silent_max_ns: Nanos,
    check_at: Nanos,
    churn: ChurnLoad,
    /// Connections started in the whole run.
    started: usize,
    counters: Counters,
    authenticated: u64,
    /// Silent clients that the gateway closed with 109, in the whole run.
    silent_closed: u64,
    /// From the start of the connect to the session.
    latency: Latency,
    /// From the open connection to the goodbye, in the whole run.
    silence_latency: Latency,
    /// Whether the wait at the end has been announced.
    wait_announced: bool,
}

/// What happens on one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// When the connect started. For a silent client: when the connection was open.
    since: Nanos,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Connect,
    Authenticate,
    /// The client sends nothing and waits for the goodbye.
    Silent,
    /// Only the close is left.
    Closing,
}

/// Runs the scenario.
pub(super) fn run(args: &StormArgs) -> Result<()> {
    args.common.ensure_window()?;
    let count = args.common.connections as usize;
    let plan = RunPlan { reset_on_close: args.reset, ..RunPlan::new(&args.common, count) };
    let finished = workers::run(&plan, |context| StormLoad::new(args, context))?;
    let (mut load, series) = finished.merged(|load, other| {
        load.authenticated += other.authenticated;
        load.silent_closed += other.silent_closed;
        load.silent += other.silent;
        load.latency.merge(other.latency);
        load.silence_latency.merge(other.silence_latency);
    });
    let connect = connect_label(&args.common);
    let title = format!("{connect}, authenticate, close: {} at a time", grouped(count));
    let mut report = Report::new("storm", title);
    report.add("connections", "connections at a time", count as u64, Unit::Number);
    report.add("authenticated", "authenticated, none refused", load.authenticated, Unit::Number);
    let per_second = load.authenticated as f64 / load.phases.seconds();
    report.add("per_second", "authenticated a second", per_second, Unit::PerSecond);
    if let Some(seconds) = load.phases.server_cpu_seconds() {
        let per_core = load.authenticated as f64 / seconds;
        report.add("per_core_per_second", "  for each server core", per_core, Unit::PerSecond);
    }
    load.phases.report(&mut report, "connection", load.authenticated);
    report.add_latency("latency", "connect to session", load.latency.window());
    if load.silent > 0 {
        report.add("silent", "silent clients at a time", load.silent as u64, Unit::Number);
        let closed = load.silent_closed;
        report.add("sent_away", "silent clients closed with 109", closed, Unit::Number);
        report.add_latency("silent", "silence until 109", load.silence_latency.window());
    }
    report.set_series(series);
    report.print(&args.common)?;
    ensure_measured(load.authenticated + load.silent_closed, "connection was completed")
}

impl StormLoad {
    fn new(args: &StormArgs, context: &WorkerContext) -> Result<Self> {
        let share = context.share;
        let silent_max_ns = u64::try_from(args.slow_deadline.as_nanos())?;
        let phases = Phases::new(&args.common, context)?;
        let silent = count_silent(share.first + 1..=share.end(), args.slow_share);
        Ok(Self {
            addresses: args.common.addresses(),
            credentials: Credentials::new(&args.common),
            phases: if silent > 0 {
                phases.with_longer_drain("awaiting 109", silent_max_ns)
            } else {
                phases
            },
            lanes: vec![Lane::default(); share.count],
            silent,
            silent_share: args.slow_share,
            silent_max_ns,
            check_at: 0,
            churn: ChurnLoad::new(share, silent, args.common.admission_timeout),
            started: 0,
            counters: Counters::default(),
            authenticated: 0,
            silent_closed: 0,
            latency: Latency::new(),
            silence_latency: Latency::counting_from_start(),
            wait_announced: false,
        })
    }

    fn first(&self) -> usize {
        self.phases.share().first
    }

    fn answered(&mut self, slot: usize, answer: &Response<'_>, now: Nanos) -> Result<Step> {
        self.counters.received += 1;
        let lane = self.lanes[slot - self.first()];
        match lane.step {
            Step::Silent => {
                let goodbye = answer.kind == AUTHENTICATE && answer.sequence == 0;
                if !goodbye || answer.code() != Some(Code::Idle) {
                    bail!("connection {slot} is silent and expects a goodbye 109; {answer:?} came");
                }
                self.silent_closed += 1;
                self.silence_latency.record(now.saturating_sub(lane.since));
                Ok(Step::Closing)
            }
            Step::Authenticate => match read_answer(slot, answer)? {
                SessionAnswer::Authenticated { .. } => {
                    self.churn.record_admitted(now);
                    self.authenticated += u64::from(self.churn.counting());
                    self.latency.record(now.saturating_sub(lane.since));
                    Ok(Step::Closing)
                }
                other => bail!("connection {slot}: {other:?} came before the session"),
            },
            // A push: another client or an operator may push to all clients at any time.
            step if answer.status == SUCCESS && answer.sequence == 0 => Ok(step),
            _ => Err(failed(slot, answer)),
        }
    }

    fn connect(&mut self, slot: usize, sockets: &mut Sockets, now: Nanos) -> Result<()> {
        let share = self.phases.share();
        let number = self.started * share.workers + share.worker;
        let (to, from) = self.addresses.of(number % SOURCE_CYCLE);
        sockets.connect(slot, to, from)?;
        self.lanes[slot - share.first] = Lane { since: now, step: Step::Connect };
        self.started += 1;
        Ok(())
    }

    /// Prints once, after the window, what the run still waits for and how long that may take.
    fn announce_final_wait(&mut self) {
        let context = &self.phases.context;
        if self.wait_announced || !self.churn.stopping() || !context.share.is_leader() {
            return;
        }
        self.wait_announced = true;
        let silent = count_silent(1..=context.share.total, self.silent_share);
        if silent > 0 {
            let seconds = self.silent_max_ns as f64 / 1e9;
            context.run_state.add_notice(format!(
                "measured; now waiting until the gateway has closed {} with 109, each within {seconds} s of its \
                 connect (--slow-deadline)",
                counted(silent, "silent client")
            ));
        }
    }

    /// Fails the run where the gateway leaves a silent client connected for too long: anybody could use up its
    /// connections.
    fn check_silent_deadline(&mut self, now: Nanos) -> Result<()> {
        if now < self.check_at {
            return Ok(());
        }
        self.check_at = now + CHECK_INTERVAL_NS;
        let too_long = |lane: &Lane| {
            lane.step == Step::Silent && now.saturating_sub(lane.since) > self.silent_max_ns
        };
        if let Some(number) = self.lanes[..self.silent].iter().position(too_long) {
            bail!(
                "connection {} has sent nothing for {} s, and the gateway did not close it with 109",
                self.first() + number,
                self.silent_max_ns / 1_000_000_000
            );
        }
        Ok(())
    }
}

/// How many of the connections with these numbers are silent. Numbers start at 1.
fn count_silent(numbers: RangeInclusive<usize>, share: f64) -> usize {
    numbers.filter(|number| is_silent(*number, share)).count()
}

/// Whether connection `number` is silent. Numbers start at 1, and the silent ones are spread evenly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is no larger")]
fn is_silent(number: usize, share: f64) -> bool {
    let of = |number: usize| (number as f64 * share).round() as usize;
    of(number) > of(number - 1)
}

impl ConnectionEvents for StormLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        let share = self.phases.share();
        let number = slot - share.first;
        if number < self.silent {
            self.lanes[number] = Lane { since: now, step: Step::Silent };
            return Ok(());
        }
        // A new user each time: the server may not have closed the last user's connection yet, and would
        // replace it (107).
        let user = self.started * share.total + slot;
        self.credentials.put_authenticate(user, &mut link.out);
        self.lanes[number].step = Step::Authenticate;
        self.counters.sent += 1;
        Ok(())
    }

    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        let number = slot - self.first();
        for_each_answer(slot, &mut link.reassembler, bytes, |answer| {
            self.lanes[number].step = self.answered(slot, answer, now)?;
            Ok(())
        })?;
        // A silent client waits for the server to close.
        link.close = self.lanes[number].step == Step::Closing && number >= self.silent;
        Ok(())
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> Result<()> {
        let number = slot - self.first();
        let step = self.lanes[number].step;
        if step != Step::Closing {
            bail!("connection {slot} was {cause} in step {step:?}");
        }
        self.lanes[number] = Lane::default();
        self.churn.record_closed(slot);
        Ok(())
    }
}

impl Load for StormLoad {
    fn counters(&self) -> Counters {
        Counters { connections: self.churn.open() as u64, ..self.counters }
    }

    fn flush(&mut self, live: &LiveStats) {
        self.latency.flush(Some(live));
        self.silence_latency.flush(None);
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        self.check_silent_deadline(now)?;
        let received = self.counters.received;
        if self.churn.tick(&mut self.phases, &mut self.latency, received, now)? {
            return Ok(Next::Done);
        }
        self.announce_final_wait();
        while let Some(slot) = self.churn.start_next(now) {
            self.connect(slot, sockets, now)?;
        }
        Ok(Next::NoDeadline.min(self.phases.phase_ends_at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_silent_clients_follows_from_their_share() {
        let count = |total: usize, share| count_silent(1..=total, share);
        assert_eq!(count(100, 0.0), 0);
        assert_eq!(count(100, 0.25), 25);
        assert_eq!(count(3, 0.33), 1);
        assert_eq!(count(100, 1.0), 100);
    }
}
