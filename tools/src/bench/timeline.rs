//! The timeline of a show: what is published when, and who answers when.

use std::time::Duration;

use super::engine::{Nanos, due_after};
use super::publication::Topic;

/// Everybody who answers does so within this long of the question.
const ANSWER_NS: Nanos = 1_000_000_000;
/// Answers are spread over so many moments.
pub(super) const MOMENTS: u32 = 64;
/// When something is published.
#[derive(Debug)]
pub(super) struct Schedule {
    started_at: Nanos,
    /// Between two questions.
    question_ns: f64,
    questions: u64,
    /// Between two pushes of the barrage; infinite without one.
    barrage_ns: f64,
    barrage: u64,
}

impl Schedule {
    /// A question every so often, and so many other pushes a second.
    pub(super) fn new(question_every: Duration, barrage: f64) -> Self {
        Self {
            started_at: 0,
            question_ns: question_every.as_secs_f64() * 1e9,
            questions: 0,
            barrage_ns: if barrage > 0.0 { 1e9 / barrage } else { f64::INFINITY },
            barrage: 0,
        }
    }

    /// Whether anything is published between these two times after the start.
    pub(super) fn has_any(&self, from: Duration, to: Duration) -> bool {
        let (from, to) = (from.as_secs_f64() * 1e9, to.as_secs_f64() * 1e9);
        // The first question comes at once, the first of the barrage one interval later.
        let falls_in = |interval_ns: f64, first: f64| {
            (from / interval_ns).ceil().max(first) * interval_ns < to
        };
        falls_in(self.question_ns, 0.0) || falls_in(self.barrage_ns, 1.0)
    }

    /// The first question comes now.
    pub(super) fn start(&mut self, now: Nanos) {
        self.started_at = now;
    }

    /// Questions that were published.
    pub(super) fn questions(&self) -> u64 {
        self.questions
    }

    /// Takes another worker's in: one of them publishes.
    pub(super) fn merge(&mut self, other: &Self) {
        self.questions += other.questions;
        self.barrage += other.barrage;
    }

    /// What comes next, and when.
    pub(super) fn next(&self) -> (Nanos, Topic) {
        let question_at = due_after(self.questions, self.question_ns);
        let barrage_at = due_after(self.barrage + 1, self.barrage_ns);
        let (after, topic) = if question_at <= barrage_at {
            (question_at, Topic::Question)
        } else {
            (barrage_at, Topic::News)
        };
        (self.started_at.saturating_add(after), topic)
    }

    /// It is published.
    pub(super) fn done(&mut self, topic: Topic) {
        match topic {
            Topic::Question => self.questions += 1,
            Topic::News => self.barrage += 1,
        }
    }
}

/// Who answers when: a ring of moments, with the slots that answer at each.
#[derive(Debug)]
pub(super) struct Answers {
    moments: Vec<Vec<u32>>,
    /// Moments that are over, since the run began.
    over: u64,
    waiting: usize,
}

impl Answers {
    const MOMENT_NS: Nanos = ANSWER_NS / MOMENTS as Nanos;

    /// Nobody's.
    pub(super) fn new() -> Self {
        Self { moments: vec![Vec::new(); MOMENTS as usize], over: 0, waiting: 0 }
    }

    /// Has a connection answer that many moments after this one's end.
    pub(super) fn plan(&mut self, slot: u32, moments_later: u32) {
        let moment = (self.over + u64::from(moments_later)) % u64::from(MOMENTS);
        self.moments[usize::try_from(moment).unwrap_or_default()].push(slot);
        self.waiting += 1;
    }

    /// The slots of the next moment that is over by now.
    pub(super) fn take_due(&mut self, now: Nanos) -> Option<Vec<u32>> {
        if self.waiting == 0 {
            self.over = now / Self::MOMENT_NS;
            return None;
        }
        if now < self.next_at() {
            return None;
        }
        let moment = usize::try_from(self.over % u64::from(MOMENTS)).unwrap_or_default();
        self.over += 1;
        let due = std::mem::take(&mut self.moments[moment]);
        self.waiting -= due.len();
        Some(due)
    }

    /// Whether somebody is to answer yet.
    pub(super) fn are_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// When the next moment is over.
    pub(super) fn next_at(&self) -> Nanos {
        (self.over + 1) * Self::MOMENT_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_the_barrage_come_in_the_order_of_their_times() {
        let mut schedule = Schedule::new(Duration::from_nanos(100), 25e6);
        schedule.start(5);
        let order: Vec<(Nanos, Topic)> = (0..5)
            .map(|_| {
                let next = schedule.next();
                schedule.done(next.1);
                next
            })
            .collect();
        let (question, news) = (Topic::Question, Topic::News);
        assert_eq!(order, [(5, question), (45, news), (85, news), (105, question), (125, news)]);
    }

    #[test]
    fn a_window_has_questions_or_barrage_or_nothing() {
        let has = |barrage: f64, from: u64, to: u64| {
            let schedule = Schedule::new(Duration::from_secs(10), barrage);
            schedule.has_any(Duration::from_secs(from), Duration::from_secs(to))
        };
        assert!(has(0.0, 0, 1));
        assert!(!has(0.0, 1, 10));
        assert!(has(0.0, 1, 11));
        assert!(!has(0.0, 3, 3));
        assert!(has(2.0, 1, 2));
        assert!(!has(0.5, 1, 2));
        assert!(has(0.5, 1, 3));
    }

    #[test]
    fn answers_come_at_their_moments_and_none_is_forgotten() {
        let mut answers = Answers::new();
        assert_eq!(answers.take_due(10 * ANSWER_NS), None);
        let began_at = answers.next_at();
        (0..MOMENTS).for_each(|moment| answers.plan(moment, moment));
        assert_eq!(answers.take_due(began_at - 1), None);
        let mut all = Vec::new();
        let end = began_at + ANSWER_NS;
        while let Some(due) = answers.take_due(end) {
            all.extend(due);
        }
        assert_eq!(all, (0..MOMENTS).collect::<Vec<_>>());
        assert_eq!(answers.waiting, 0);
    }
}
