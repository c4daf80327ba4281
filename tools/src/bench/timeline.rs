//! The timeline of a show: what is published when, and which client answers when.

use std::time::Duration;

use super::clock::{Nanos, due_after};
use super::publication::Topic;

/// All answers to a question are sent within this time.
const ANSWER_NS: Nanos = 1_000_000_000;
/// That time is divided into this many buckets.
pub(super) const BUCKETS: u32 = 64;

/// When what is published.
#[derive(Debug)]
pub(super) struct Schedule {
    started_at: Nanos,
    /// The time between two questions.
    question_ns: f64,
    questions: u64,
    /// The time between two pushes of the barrage; infinite without a barrage.
    barrage_ns: f64,
    barrage: u64,
}

impl Schedule {
    /// A question every `question_every`, and `barrage` other pushes a second.
    pub(super) fn new(question_every: Duration, barrage: f64) -> Self {
        Self {
            started_at: 0,
            question_ns: question_every.as_secs_f64() * 1e9,
            questions: 0,
            barrage_ns: if barrage > 0.0 { 1e9 / barrage } else { f64::INFINITY },
            barrage: 0,
        }
    }

    /// Whether anything is published in this window, given in time after the start.
    pub(super) fn has_any(&self, from: Duration, to: Duration) -> bool {
        let (from, to) = (from.as_secs_f64() * 1e9, to.as_secs_f64() * 1e9);
        // The first question comes at the start, the first push of the barrage one interval later.
        let falls_in = |interval_ns: f64, first: f64| {
            (from / interval_ns).ceil().max(first) * interval_ns < to
        };
        falls_in(self.question_ns, 0.0) || falls_in(self.barrage_ns, 1.0)
    }

    /// Starts the timeline: the first question is due now.
    pub(super) fn start(&mut self, now: Nanos) {
        self.started_at = now;
    }

    /// The number of questions published.
    pub(super) fn questions(&self) -> u64 {
        self.questions
    }

    /// Adds another worker's counts. Only one worker publishes.
    pub(super) fn merge(&mut self, other: &Self) {
        self.questions += other.questions;
        self.barrage += other.barrage;
    }

    /// What is published next, and when.
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

    /// Notes that the next item is published.
    pub(super) fn done(&mut self, topic: Topic) {
        match topic {
            Topic::Question => self.questions += 1,
            Topic::News => self.barrage += 1,
        }
    }
}

/// The clients that have to answer: a ring of time buckets, each with the slots that answer at its end.
#[derive(Debug)]
pub(super) struct AnswerQueue {
    buckets: Vec<Vec<u32>>,
    /// Buckets that have ended since the run began.
    elapsed: u64,
    pending: usize,
}

impl AnswerQueue {
    const BUCKET_NS: Nanos = ANSWER_NS / BUCKETS as Nanos;

    /// An empty queue.
    pub(super) fn new() -> Self {
        Self { buckets: vec![Vec::new(); BUCKETS as usize], elapsed: 0, pending: 0 }
    }

    /// Has a connection answer at the end of a bucket: the present one, or one `buckets_later`.
    pub(super) fn push(&mut self, slot: u32, buckets_later: u32) {
        let bucket = (self.elapsed + u64::from(buckets_later)) % u64::from(BUCKETS);
        self.buckets[usize::try_from(bucket).unwrap_or_default()].push(slot);
        self.pending += 1;
    }

    /// Takes the slots of the next bucket that has ended by now.
    pub(super) fn take_due(&mut self, now: Nanos) -> Option<Vec<u32>> {
        if self.pending == 0 {
            self.elapsed = now / Self::BUCKET_NS;
            return None;
        }
        if now < self.next_at() {
            return None;
        }
        let bucket = usize::try_from(self.elapsed % u64::from(BUCKETS)).unwrap_or_default();
        self.elapsed += 1;
        let due = std::mem::take(&mut self.buckets[bucket]);
        self.pending -= due.len();
        Some(due)
    }

    /// Whether an answer is still to be sent.
    pub(super) fn has_pending(&self) -> bool {
        self.pending > 0
    }

    /// When the present bucket ends.
    pub(super) fn next_at(&self) -> Nanos {
        (self.elapsed + 1) * Self::BUCKET_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_barrage_are_published_in_order_of_time() {
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
    fn a_window_without_any_publication_is_recognised() {
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
    fn every_answer_is_due_in_its_bucket() {
        let mut answers = AnswerQueue::new();
        assert_eq!(answers.take_due(10 * ANSWER_NS), None);
        let began_at = answers.next_at();
        (0..BUCKETS).for_each(|bucket| answers.push(bucket, bucket));
        assert_eq!(answers.take_due(began_at - 1), None);
        let mut all = Vec::new();
        let end = began_at + ANSWER_NS;
        while let Some(due) = answers.take_due(end) {
            all.extend(due);
        }
        assert_eq!(all, (0..BUCKETS).collect::<Vec<_>>());
        assert!(!answers.has_pending());
    }
}
