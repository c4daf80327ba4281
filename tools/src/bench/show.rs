//! `tide bench show`: a mixed load like that of a live show. The audience connects, gets questions and a barrage
//! of other pushes, a part of it answers each question, and all of it disconnects at the end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};

use super::args::ShowArgs;
use super::clock::{Nanos, due_after};
use super::echo::{ECHO_KIND, Echo, EchoPlan, Pace, for_each_answer};
use super::engine::{Load, Next};
use super::latency::{Counters, LiveStats};
use super::pattern::mix;
use super::phases::Transition;
use super::proc;
use super::publication::{Delivery, HEADER_BYTES, Publications, SharedLog, Topic};
use super::report::{Report, Unit, ensure_measured};
use super::run_state::{Activity, Stage, WorkerContext};
use super::sockets::{CloseCause, ConnectionEvents, Link, Sockets};
use super::steady_load::SteadyLoad;
use super::timeline::{AnswerQueue, BUCKETS, Schedule};
use super::workers::{self, RunPlan};
use crate::count::grouped;

/// The demo backend's type that pushes to all clients.
const PUSH_ALL_KIND: i32 = 2;
/// The longest `--leave`. No heartbeats are sent in that time, and a gateway closes an idle connection after 75 s.
const LEAVE_MAX: Duration = Duration::from_secs(60);

struct ShowLoad {
    steady: SteadyLoad,
    /// The slot that publishes: the last of all workers.
    publisher: usize,
    /// Whether this worker has that slot.
    publishes: bool,
    publications: Publications,
    schedule: Schedule,
    publishing: bool,
    echo: Echo,
    answers: AnswerQueue,
    answer_share: f64,
    leave_ns: Nanos,
    /// When the audience began to leave, and how many of this worker's connections have.
    leaving: Option<(Nanos, usize)>,
    pid: Option<u32>,
    rss_after_bytes: u64,
}

/// Runs the scenario.
pub(super) fn run(args: &ShowArgs) -> Result<()> {
    if args.bytes < HEADER_BYTES {
        bail!("--bytes is at least {HEADER_BYTES}: each push carries its number and its time");
    }
    if args.common.connect_rate.is_some() {
        bail!("--arrive sets how fast the audience connects: omit --connect-rate");
    }
    if args.leave > LEAVE_MAX {
        bail!("--leave is at most {} s", LEAVE_MAX.as_secs());
    }
    let (from, to) = (args.common.warmup, args.common.warmup + args.common.duration);
    if !Schedule::new(args.question_every, args.barrage).has_any(from, to) {
        bail!(
            "nothing would be published in the measured window, from {} s to {} s after the audience has arrived: \
             a question comes every {} s (--question-every), and --barrage is {}; ask more often, or measure for \
             longer (--duration)",
            from.as_secs_f64(),
            to.as_secs_f64(),
            args.question_every.as_secs_f64(),
            args.barrage
        );
    }
    let audience = args.common.connections as usize;
    let plan = RunPlan { wakeup_slot: audience, ..RunPlan::new(&args.common, audience + 1) };
    let shared_log = OnceLock::new();
    let finished = workers::run(&plan, |context| {
        let shared_log = shared_log.get_or_init(|| SharedLog::new(context.share.workers, 0));
        ShowLoad::new(args, context, shared_log)
    })?;
    let (mut load, series) = finished.merged(ShowLoad::merge);
    let mut report = report(args, &mut load);
    report.set_series(series);
    report.print(&args.common)?;
    load.publications.check_deliveries()?;
    ensure_measured(load.publications.deliveries(), "push was delivered")
}

fn report(args: &ShowArgs, load: &mut ShowLoad) -> Report {
    let audience = u64::from(args.common.connections);
    let mut report = Report::new("show", format!("a show for {}", grouped(audience)));
    report.add("connections", "audience", audience, Unit::Number);
    let sessions = &mut load.steady.sessions;
    let per_second = sessions.connects_per_second();
    report.add("connects_per_second", "arrivals per second", per_second, Unit::PerSecond);
    report.add_latency("auth", "authenticate", sessions.auth_latency.window());
    let deliveries = load.publications.deliveries();
    report.add("deliveries", "deliveries", deliveries, Unit::Number);
    let seconds = load.steady.phases.seconds();
    let per_second = deliveries as f64 / seconds;
    report.add("per_second", "deliveries per second", per_second, Unit::PerSecond);
    report.add("questions", "questions in the whole run", load.schedule.questions(), Unit::Number);
    load.publications.report(&mut report);
    let answers: u64 = load.echo.counted().iter().sum();
    report.add("answers", "answers to questions, all correct", answers, Unit::Number);
    report.add_latency("answer_latency", "answer latency", load.echo.latency.window());
    load.steady.phases.report(&mut report, "delivery, with answers", deliveries);
    if args.common.pid.is_some() {
        let after = load.rss_after_bytes;
        let label = "server memory after the audience left";
        report.add("rss_after_bytes", label, after, Unit::Bytes);
    }
    report
}

impl ShowLoad {
    fn new(args: &ShowArgs, context: &WorkerContext, shared_log: &Arc<SharedLog>) -> Result<Self> {
        let share = context.share;
        let publisher = args.common.connections as usize;
        let mut steady = SteadyLoad::new(&args.common, context, false)?;
        steady.sessions = steady.sessions.connecting_within(args.arrive);
        let run_state = &context.run_state;
        Ok(Self {
            steady,
            publisher,
            publishes: share.contains(publisher),
            publications: Publications::new(
                PUSH_ALL_KIND,
                args.bytes,
                share,
                shared_log,
                run_state,
            ),
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
            answers: AnswerQueue::new(),
            answer_share: args.answer_share,
            leave_ns: u64::try_from(args.leave.as_nanos())?,
            leaving: None,
            pid: args.common.pid.filter(|_| share.is_leader()),
            rss_after_bytes: 0,
        })
    }

    fn merge(&mut self, other: Self) {
        self.steady.merge(other.steady);
        self.publications.merge(other.publications);
        self.echo.merge(other.echo);
        self.schedule.merge(&other.schedule);
    }

    /// Publishes what is due. Returns when the next publication is.
    fn publish(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while self.publishing && self.publications.has_room() {
            let (scheduled_at, topic) = self.schedule.next();
            if scheduled_at > now {
                return Some(scheduled_at);
            }
            sockets.send(self.publisher, |out| {
                self.publications.put_next(out, scheduled_at, topic);
            });
            self.schedule.done(topic);
        }
        None
    }

    /// Sends the answers that are due. Returns when the next are.
    fn answer(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while let Some(due) = self.answers.take_due(now) {
            for slot in due {
                if !self.echo.send_one(slot as usize, sockets, now) {
                    // Its last answer is still in flight.
                    self.answers.push(slot, 1);
                }
            }
        }
        self.answers.has_pending().then(|| self.answers.next_at())
    }

    /// A connection got a push. Where that is a question, the connection answers if it is in the share that does.
    fn delivered(&mut self, slot: usize, delivery: Delivery) -> Result<()> {
        if delivery.topic == Topic::News || slot == self.publisher {
            return Ok(());
        }
        let random = mix((slot as u64) << 32 ^ delivery.number);
        let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
        if fraction < self.answer_share {
            let buckets_later = u32::try_from(random % u64::from(BUCKETS))?;
            self.answers.push(u32::try_from(slot)?, buckets_later);
        }
        Ok(())
    }

    fn step(&mut self, transition: Transition, now: Nanos) {
        match transition {
            Transition::Start => {
                self.publishing = self.publishes;
                self.schedule.start(now);
            }
            Transition::Measure => {
                self.publications.start_counting();
                self.echo.start_counting();
            }
            Transition::Stop => {
                self.publishing = false;
                self.publications.stop_counting();
                self.echo.stop();
                if self.publishes {
                    self.publications.close();
                }
            }
            Transition::Done => {
                self.leaving = Some((now, 0));
                self.steady.phases.set_activity(Activity::Unbounded("leaving"));
            }
        }
    }

    /// Closes the connections evenly over `--leave`.
    fn leave(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        let Some((since, mut left)) = self.leaving else { return Ok(Next::NoDeadline) };
        let share = self.steady.share();
        let spacing_ns = self.leave_ns as f64 / share.count as f64;
        let mut due_at = now;
        while left < share.count {
            due_at = since + due_after(left as u64 + 1, spacing_ns);
            if due_at > now {
                break;
            }
            sockets.drop_connection(share.first + left);
            left += 1;
        }
        self.leaving = Some((since, left));
        if left < share.count {
            return Ok(Next::At(due_at));
        }
        if !self.steady.phases.context.reach(Stage::Left) {
            return Ok(Next::NoDeadline);
        }
        self.rss_after_bytes = self.pid.map_or(Ok(0), proc::rss_bytes)?;
        Ok(Next::Done)
    }
}

impl ConnectionEvents for ShowLoad {
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        self.steady.opened(slot, link, now);
        Ok(())
    }

    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        let Link { reassembler, out, .. } = link;
        for_each_answer(slot, reassembler, bytes, |answer| {
            if self.publications.is_push(answer) {
                if let Some(delivery) = self.publications.received(slot, answer, now)? {
                    self.delivered(slot, delivery)?;
                }
                return Ok(());
            }
            if self.steady.sessions.answered(slot, answer, now)? {
                return Ok(());
            }
            if slot == self.publisher {
                return self.publications.accepted(answer);
            }
            self.echo.answered(slot, answer, out, now)
        })
    }

    fn closed(&mut self, slot: usize, cause: CloseCause, _: Nanos) -> Result<()> {
        self.steady.closed(slot, &cause)
    }
}

impl Load for ShowLoad {
    fn counters(&self) -> Counters {
        let published = if self.publishes { self.publications.published() } else { 0 };
        let counters = self.steady.sessions.counters().plus(self.echo.sent_and_answered());
        let counters = counters.plus((published, self.publications.received_in_run()));
        let left = self.leaving.map_or(0, |(_, left)| left as u64);
        Counters { connections: counters.connections - left, ..counters }
    }

    fn flush(&mut self, live: &LiveStats) {
        self.steady.sessions.flush(None);
        self.publications.flush(Some(live));
        self.echo.flush(None);
    }

    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        if self.leaving.is_some() {
            return self.leave(sockets, now);
        }
        let answered = !self.answers.has_pending() && self.echo.drained();
        let drained = answered && self.publications.drained(self.publishes);
        let standing = self.steady.standing(drained, self.counters().received);
        let (transition, next) = self.steady.tick(standing, sockets, now)?;
        if let Some(transition) = transition {
            self.step(transition, now);
            if transition == Transition::Done {
                return self.leave(sockets, now);
            }
        }
        let publish_at = self.publish(sockets, now);
        let answer_at = self.answer(sockets, now);
        Ok(next.min(publish_at).min(answer_at))
    }
}
