//! `tide bench storm`: everybody comes at once. Connect, authenticate, close, and again, as fast as
//! it goes; among them, if asked for, clients that connect and then say nothing.

use std::ops::RangeInclusive;

use anyhow::bail;
use tidegate_protocol::Code;
use tidegate_protocol::message::{AUTHENTICATE, Response, SUCCESS};

use super::args::StormArgs;
use super::course::Seat;
use super::crew::{self, Task};
use super::echo::for_each_answer;
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets};
use super::latency::{Latency, Live, Pulse};
use super::report::{Report, Unit, demand_any};
use super::session::{Credentials, SessionAnswer, failed, read_answer};
use super::source::Addresses;
use super::stopwatch::Stopwatch;
use super::turnover::Turnover;
use crate::count::{counted, grouped};

/// Connections after which sources are used again: by then their ports are no more in TIME_WAIT.
const SPREAD: usize = 1_000_000;
/// How often it is looked whether a silent client has waited for too long.
const LOOK_INTERVAL_NS: Nanos = 100_000_000;

struct StormLoad {
    addresses: Addresses,
    credentials: Credentials,
    stopwatch: Stopwatch,
    lanes: Vec<Lane>,
    /// Lanes before this one are silent.
    silent: usize,
    /// Of all connections, so many are silent.
    silent_share: f64,
    silent_max_ns: Nanos,
    look_at: Nanos,
    turnover: Turnover,
    /// Begun, over the whole run.
    begun: usize,
    pulse: Pulse,
    authenticated: u64,
    /// Silent clients that were sent away, over the whole run.
    sent_away: u64,
    /// From the connect to the session.
    latency: Latency,
    /// From the connection's being open to the goodbye, over the whole run.
    patience: Latency,
    /// It was said what is waited for at the end.
    said: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// When it began to connect; a silent one: when it was connected.
    since: Nanos,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Connect,
    Authenticate,
    /// It says nothing and waits for the goodbye.
    Silent,
    /// The close is all that is missing.
    Over,
}

/// Runs it.
pub(super) fn run(args: &StormArgs) -> anyhow::Result<()> {
    args.common.demand_window()?;
    let count = args.common.connections as usize;
    let task = Task { reset_on_close: args.reset, ..Task::new(&args.common, count) };
    let finished = crew::run(&task, |seat| StormLoad::new(args, seat))?;
    let (mut load, series) = finished.merged(|load, other| {
        load.authenticated += other.authenticated;
        load.sent_away += other.sent_away;
        load.silent += other.silent;
        load.latency.merge(other.latency);
        load.patience.merge(other.patience);
    });
    let title = format!("connect, authenticate, close: {} at a time", grouped(count));
    let mut report = Report::new("storm", title);
    report.add("connections", "connections at a time", count as u64, Unit::Number);
    report.add("authenticated", "authenticated, none refused", load.authenticated, Unit::Number);
    let per_second = load.authenticated as f64 / load.stopwatch.seconds();
    report.add("per_second", "authenticated a second", per_second, Unit::PerSecond);
    if let Some(seconds) = load.stopwatch.server_cpu_seconds() {
        let per_core = load.authenticated as f64 / seconds;
        report.add("per_core_per_second", "  for each server core", per_core, Unit::PerSecond);
    }
    load.stopwatch.report(&mut report, "connection", load.authenticated);
    report.add_latency("latency", "connect to session", load.latency.window());
    if load.silent > 0 {
        report.add("silent", "silent clients at a time", load.silent as u64, Unit::Number);
        report.add("sent_away", "silent clients sent away", load.sent_away, Unit::Number);
        report.add_latency("silent", "silence until 109", load.patience.window());
    }
    report.set_series(series);
    report.print(&args.common)?;
    demand_any(load.authenticated + load.sent_away, "connection was gone through")
}

impl StormLoad {
    fn new(args: &StormArgs, seat: &Seat) -> anyhow::Result<Self> {
        let share = seat.share;
        let silent_max_ns = u64::try_from(args.slow_deadline.as_nanos())?;
        let stopwatch = Stopwatch::new(&args.common, seat)?;
        let silent = count_silent(share.first + 1..=share.end(), args.slow_share);
        Ok(Self {
            addresses: args.common.addresses(),
            credentials: Credentials::new(&args.common),
            stopwatch: if silent > 0 {
                stopwatch.draining_longer("awaiting 109", silent_max_ns)
            } else {
                stopwatch
            },
            lanes: vec![Lane::default(); share.count],
            silent,
            silent_share: args.slow_share,
            silent_max_ns,
            look_at: 0,
            turnover: Turnover::new(share, silent, args.common.patience),
            begun: 0,
            pulse: Pulse::default(),
            authenticated: 0,
            sent_away: 0,
            latency: Latency::new(),
            patience: Latency::counting(),
            said: false,
        })
    }

    fn first(&self) -> usize {
        self.stopwatch.share().first
    }

    fn answered(&mut self, slot: usize, answer: &Response<'_>, now: Nanos) -> anyhow::Result<Step> {
        self.pulse.received += 1;
        let lane = self.lanes[slot - self.first()];
        match lane.step {
            Step::Silent => {
                let goodbye = answer.kind == AUTHENTICATE && answer.sequence == 0;
                if !goodbye || answer.code() != Some(Code::Idle) {
                    bail!("connection {slot} said nothing, was due a goodbye 109, got {answer:?}");
                }
                self.sent_away += 1;
                self.patience.record(now.saturating_sub(lane.since));
                Ok(Step::Over)
            }
            Step::Authenticate => match read_answer(slot, answer)? {
                SessionAnswer::Authenticated { .. } => {
                    self.turnover.came_in(now);
                    self.authenticated += u64::from(self.turnover.counting());
                    self.latency.record(now.saturating_sub(lane.since));
                    Ok(Step::Over)
                }
                other => bail!("connection {slot}: {other:?} came before the session"),
            },
            // Somebody else may push to everybody meanwhile.
            step if answer.status == SUCCESS && answer.sequence == 0 => Ok(step),
            _ => Err(failed(slot, answer)),
        }
    }

    fn connect(&mut self, slot: usize, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<()> {
        let share = self.stopwatch.share();
        let (to, from) = self.addresses.of((self.begun * share.workers + share.worker) % SPREAD);
        sockets.connect(slot, to, from)?;
        self.lanes[slot - share.first] = Lane { since: now, step: Step::Connect };
        self.begun += 1;
        Ok(())
    }

    /// At the end, says what there is yet to wait for, and how long at most.
    fn say_what_is_awaited(&mut self) {
        let seat = &self.stopwatch.seat;
        if self.said || !self.turnover.stopping() || !seat.share.leads() {
            return;
        }
        self.said = true;
        let silent = count_silent(1..=seat.share.total, self.silent_share);
        if silent > 0 {
            let seconds = self.silent_max_ns as f64 / 1e9;
            seat.course.remark(format!(
                "measured; now waiting until the gateway has sent {} away with 109, each within {seconds} s \
                 of its connect (--slow-deadline)",
                counted(silent, "silent client")
            ));
        }
    }

    /// A silent client that nobody sends away is a hole in the gateway.
    fn look_for_forgotten(&mut self, now: Nanos) -> anyhow::Result<()> {
        if now < self.look_at {
            return Ok(());
        }
        self.look_at = now + LOOK_INTERVAL_NS;
        let too_long = |lane: &Lane| {
            lane.step == Step::Silent && now.saturating_sub(lane.since) > self.silent_max_ns
        };
        if let Some(number) = self.lanes[..self.silent].iter().position(too_long) {
            bail!(
                "connection {} has said nothing for {} s, and was not sent away with 109",
                self.first() + number,
                self.silent_max_ns / 1_000_000_000
            );
        }
        Ok(())
    }
}

/// How many are silent of those with these numbers, from 1.
fn count_silent(numbers: RangeInclusive<usize>, share: f64) -> usize {
    numbers.filter(|number| is_silent(*number, share)).count()
}

/// Whether the silent ones become one more with the `number`th connection, from 1.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is no larger")]
fn is_silent(number: usize, share: f64) -> bool {
    let of = |number: usize| (number as f64 * share).round() as usize;
    of(number) > of(number - 1)
}

impl Load for StormLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        let share = self.stopwatch.share();
        let number = slot - share.first;
        if number < self.silent {
            self.lanes[number] = Lane { since: now, step: Step::Silent };
            return Ok(());
        }
        // Another user each time: the last one's connection may not be gone yet at the server.
        let user = self.begun * share.total + slot;
        self.credentials.put_authenticate(user, &mut link.out);
        self.lanes[number].step = Step::Authenticate;
        self.pulse.sent += 1;
        Ok(())
    }

    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()> {
        let number = slot - self.first();
        for_each_answer(slot, &mut link.reassembler, bytes, |answer| {
            self.lanes[number].step = self.answered(slot, answer, now)?;
            Ok(())
        })?;
        // A silent one waits for the server to close.
        link.close = self.lanes[number].step == Step::Over && number >= self.silent;
        Ok(())
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        let number = slot - self.first();
        let step = self.lanes[number].step;
        if step != Step::Over {
            bail!("connection {slot} was {cause} in step {step:?}");
        }
        self.lanes[number] = Lane::default();
        self.turnover.gone(slot);
        Ok(())
    }

    fn pulse(&self) -> Pulse {
        Pulse { connections: self.turnover.under_way() as u64, ..self.pulse }
    }

    fn flush(&mut self, live: &Live) {
        self.latency.flush(Some(live));
        self.patience.flush(None);
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        self.look_for_forgotten(now)?;
        let received = self.pulse.received;
        if self.turnover.tick(&mut self.stopwatch, &mut self.latency, received, now)? {
            return Ok(Next::Done);
        }
        self.say_what_is_awaited();
        while let Some(slot) = self.turnover.begin(now) {
            self.connect(slot, sockets, now)?;
        }
        Ok(Next::Whenever.min(self.stopwatch.phase_ends_at()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_silent_as_their_share_says() {
        let count = |total: usize, share| count_silent(1..=total, share);
        assert_eq!(count(100, 0.0), 0);
        assert_eq!(count(100, 0.25), 25);
        assert_eq!(count(3, 0.33), 1);
        assert_eq!(count(100, 1.0), 100);
    }
}
