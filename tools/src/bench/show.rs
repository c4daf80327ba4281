//! `tide bench show`: a mixed timeline, like a live show's. Everybody arrives, is asked questions
//! that a part of them answers, gets a barrage of pushes all the while, and leaves.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::bail;

use super::args::ShowArgs;
use super::course::{Activity, Seat, Stage};
use super::crew::{self, Task};
use super::crowd::Crowd;
use super::echo::{Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{CloseCause, Link, Load, Nanos, Next, Sockets, due_after};
use super::latency::{Live, Pulse};
use super::pattern::mix;
use super::proc;
use super::publication::{Board, Delivery, HEADER_BYTES, Publications, Topic};
use super::report::{Report, Unit, demand_any};
use super::stopwatch::Edge;
use super::timeline::{Answers, MOMENTS, Schedule};
use crate::count::grouped;

/// The type that echoes.
const ECHO_KIND: i32 = 1;
/// The type that pushes to everybody.
const PUSH_ALL_KIND: i32 = 2;
/// The longest leave: nobody sends heartbeats any more, and a gateway minds from 75 s on.
const LEAVE_MAX: Duration = Duration::from_secs(60);

struct ShowLoad {
    crowd: Crowd,
    /// The slot that publishes: the last.
    publisher: usize,
    publishes: bool,
    publications: Publications,
    schedule: Schedule,
    publishing: bool,
    echo: Echo,
    answers: Answers,
    answer_share: f64,
    leave_ns: Nanos,
    /// Since when everybody leaves, and how many of the share have.
    leaving: Option<(Nanos, usize)>,
    pid: Option<u32>,
    rss_after_bytes: u64,
}

/// Runs it.
pub(super) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    if args.bytes < HEADER_BYTES {
        bail!("a push has at least {HEADER_BYTES} bytes: its number and its time");
    }
    if args.common.connect_rate.is_some() {
        bail!("--arrive says how fast everybody comes: leave --connect-rate out");
    }
    if args.leave > LEAVE_MAX {
        bail!("--leave is at most {} s", LEAVE_MAX.as_secs());
    }
    let (from, to) = (args.common.warmup, args.common.warmup + args.common.duration);
    if !Schedule::new(args.question_every, args.barrage).has_any(from, to) {
        bail!(
            "nothing would be published while it is measured, from {} s to {} s after everybody has come: there is \
             a question every {} s (--question-every) and --barrage is {}; ask more often, or measure for longer \
             (--duration)",
            from.as_secs_f64(),
            to.as_secs_f64(),
            args.question_every.as_secs_f64(),
            args.barrage
        );
    }
    let audience = args.common.connections as usize;
    let task = Task { bell_at: audience, ..Task::new(&args.common, audience + 1) };
    let board = OnceLock::new();
    let finished = crew::run(&task, |seat| {
        let board = board.get_or_init(|| Board::new(seat.share.workers, 0));
        ShowLoad::new(args, seat, board)
    })?;
    let (mut load, series) = finished.merged(ShowLoad::merge);
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    load.publications.verdict()?;
    demand_any(load.publications.deliveries(), "push was delivered")
}

fn report(args: &ShowArgs, load: &mut ShowLoad) -> Report {
    let audience = u64::from(args.common.connections);
    let mut report = Report::new("show", format!("a show for {}", grouped(audience)));
    report.add("connections", "audience", audience, Unit::Number);
    let sessions = &mut load.crowd.sessions;
    let per_second = sessions.connects_per_second();
    report.add("connects_per_second", "arrived a second", per_second, Unit::PerSecond);
    report.add_latency("auth", "authenticate", sessions.auth_latency.window());
    let deliveries = load.publications.deliveries();
    report.add("deliveries", "deliveries", deliveries, Unit::Number);
    let seconds = load.crowd.stopwatch.seconds();
    report.add("per_second", "deliveries a second", deliveries as f64 / seconds, Unit::PerSecond);
    report.add("questions", "questions, in all", load.schedule.questions(), Unit::Number);
    load.publications.report(&mut report);
    let answers: u64 = load.echo.counted().iter().sum();
    report.add("answers", "answers to them, all of them right", answers, Unit::Number);
    report.add_latency("answer_latency", "answer latency", load.echo.latency.window());
    load.crowd.stopwatch.report(&mut report, "delivery, with answers", deliveries);
    if args.common.pid.is_some() {
        let after = load.rss_after_bytes;
        report.add("rss_after_bytes", "server memory when all have left", after, Unit::Bytes);
    }
    report
}

impl ShowLoad {
    fn new(args: &ShowArgs, seat: &Seat, board: &Arc<Board>) -> anyhow::Result<Self> {
        let share = seat.share;
        let publisher = args.common.connections as usize;
        let mut crowd = Crowd::new(&args.common, seat, false)?;
        crowd.sessions = crowd.sessions.arriving_within(args.arrive);
        let course = &seat.course;
        Ok(Self {
            crowd,
            publisher,
            publishes: (share.first..share.end()).contains(&publisher),
            publications: Publications::new(PUSH_ALL_KIND, args.bytes, share, board, course),
            schedule: Schedule::new(args.question_every, args.barrage),
            publishing: false,
            echo: Echo::new(EchoPlan {
                first_slot: share.first,
                count: share.count,
                kind: ECHO_KIND,
                bytes: args.answer_bytes,
                pace: Pace::OnDemand,
                raw: false,
            }),
            answers: Answers::new(),
            answer_share: args.answer_share,
            leave_ns: u64::try_from(args.leave.as_nanos())?,
            leaving: None,
            pid: args.common.pid.filter(|_| share.leads()),
            rss_after_bytes: 0,
        })
    }

    fn merge(&mut self, other: Self) {
        self.crowd.merge(other.crowd);
        self.publications.merge(other.publications);
        self.echo.merge(other.echo);
        self.schedule.merge(&other.schedule);
    }

    /// Publishes what is due; says when the next will be.
    fn publish(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while self.publishing && self.publications.has_room() {
            let (intended_at, topic) = self.schedule.next();
            if intended_at > now {
                return Some(intended_at);
            }
            sockets.send(self.publisher, |out| {
                self.publications.put_next(out, intended_at, topic);
            });
            self.schedule.done(topic);
        }
        None
    }

    /// Sends the answers that are due; says when the next will be.
    fn answer(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while let Some(due) = self.answers.take_due(now) {
            for slot in due {
                if !self.echo.ask(slot as usize, sockets, now) {
                    // Its last answer is still under way.
                    self.answers.plan(slot, 1);
                }
            }
        }
        self.answers.are_waiting().then(|| self.answers.next_at())
    }

    /// A connection got a push: it answers, perhaps, if that is a question.
    fn delivered(&mut self, slot: usize, delivery: Delivery) -> anyhow::Result<()> {
        if delivery.topic == Topic::News || slot == self.publisher {
            return Ok(());
        }
        let dice = mix((slot as u64) << 32 ^ delivery.number);
        let chosen = (dice >> 11) as f64 / (1_u64 << 53) as f64;
        if chosen < self.answer_share {
            let later = u32::try_from(dice % u64::from(MOMENTS))?;
            self.answers.plan(u32::try_from(slot)?, later);
        }
        Ok(())
    }

    fn step(&mut self, edge: Edge, now: Nanos) {
        match edge {
            Edge::Start => {
                self.publishing = self.publishes;
                self.schedule.start(now);
            }
            Edge::Measure => {
                self.publications.count_from_now();
                self.echo.count_from_now();
            }
            Edge::Stop => {
                self.publishing = false;
                self.publications.stop_counting();
                self.echo.stop();
                if self.publishes {
                    self.publications.close();
                }
            }
            Edge::Done => {
                self.leaving = Some((now, 0));
                self.crowd.stopwatch.say(Activity::Going("leaving"));
            }
        }
    }

    /// Everybody goes, evenly over the time that there is for it.
    fn leave(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        let Some((since, mut left)) = self.leaving else { return Ok(Next::Whenever) };
        let share = self.crowd.share();
        let spacing_ns = self.leave_ns as f64 / share.count as f64;
        let mut due_at = now;
        while left < share.count {
            due_at = since + due_after(left as u64 + 1, spacing_ns);
            if due_at > now {
                break;
            }
            sockets.hang_up(share.first + left);
            left += 1;
        }
        self.leaving = Some((since, left));
        if left < share.count {
            return Ok(Next::At(due_at));
        }
        if !self.crowd.stopwatch.seat.arrive(Stage::Left) {
            return Ok(Next::Whenever);
        }
        self.rss_after_bytes = self.pid.map_or(Ok(0), proc::rss_bytes)?;
        Ok(Next::Done)
    }
}

impl Load for ShowLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.crowd.opened(slot, link, now);
        Ok(())
    }

    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()> {
        let Link { reassembler, out, .. } = link;
        for_each_answer(slot, reassembler, bytes, |answer| {
            if self.publications.is_push(answer) {
                if let Some(delivery) = self.publications.received(slot, answer, now)? {
                    self.delivered(slot, delivery)?;
                }
                return Ok(());
            }
            if self.crowd.sessions.answered(slot, answer, now)? {
                return Ok(());
            }
            if slot == self.publisher {
                return self.publications.accepted(answer);
            }
            self.echo.answered(slot, answer, out, now)
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> anyhow::Result<()> {
        self.crowd.closed(slot, &cause)
    }

    fn pulse(&self) -> Pulse {
        let published = if self.publishes { self.publications.published() } else { 0 };
        let pulse = self.crowd.sessions.pulse().with(self.echo.sent_and_answered());
        let pulse = pulse.with((published, self.publications.received_in_all()));
        let left = self.leaving.map_or(0, |(_, left)| left as u64);
        Pulse { connections: pulse.connections - left, ..pulse }
    }

    fn flush(&mut self, live: &Live) {
        self.crowd.sessions.flush(None);
        self.publications.flush(Some(live));
        self.echo.flush(None);
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        if self.leaving.is_some() {
            return self.leave(sockets, now);
        }
        let answered = !self.answers.are_waiting() && self.echo.drained();
        let drained = answered && self.publications.drained(self.publishes);
        let standing = self.crowd.standing(drained, self.pulse().received);
        let (edge, next) = self.crowd.tick(standing, sockets, now)?;
        if let Some(edge) = edge {
            self.step(edge, now);
            if edge == Edge::Done {
                return self.leave(sockets, now);
            }
        }
        let publish_at = self.publish(sockets, now);
        let answer_at = self.answer(sockets, now);
        Ok(next.min(publish_at).min(answer_at))
    }
}
