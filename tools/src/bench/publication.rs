//! Publications, and the check that each member gets each of them once, in order and unchanged.
//!
//! One worker publishes, and each worker checks its own members. The workers share the [`SharedLog`]. To keep it
//! cheap, a worker writes to it once for each publication: when the last of its members has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use tidegate_protocol::message::{Request, Response, SUCCESS};

use super::clock::Nanos;
use super::latency::{Latency, LiveStats};
use super::pattern::Pattern;
use super::report::{Report, Unit};
use super::run_state::{RunState, Share};
use super::session::{BUSINESS_SEQUENCE, failed};
use crate::count::{counted, grouped};

/// The first bytes of a publication: its number, and the time at which it was scheduled.
pub(super) const HEADER_BYTES: usize = 16;
/// Publications in flight at a fixed rate. Further ones wait, and their latency includes the wait.
const IN_FLIGHT_MAX: usize = 256;
/// The publisher's sender number in the pattern.
const PUBLISHER: usize = 0;
/// Stands for no publication.
const NONE: u64 = u64::MAX;

/// What members do with a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// Nothing.
    News,
    /// A share of them answers it.
    Question,
}

/// A push that came when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The number of the publication.
    pub(super) number: u64,
    pub(super) topic: Topic,
}

/// The publications in flight, for all workers.
#[derive(Debug)]
pub(super) struct SharedLog {
    /// Publication `n` is at `n % entries.len()`.
    entries: Vec<SharedEntry>,
    workers: usize,
    /// completed <= published <= completed + entries.len()
    published: AtomicU64,
    /// All members of all workers have the publications below this number.
    completed: AtomicU64,
    /// Whether the publisher has stopped.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct SharedEntry {
    scheduled_at: AtomicU64,
    is_question: AtomicBool,
    /// Workers of which each member has it or has missed it.
    workers_done: AtomicUsize,
}

impl SharedLog {
    /// A log with room for this many publications in flight.
    pub(super) fn new(workers: usize, in_flight_max: usize) -> Arc<Self> {
        let entries = in_flight_max.max(IN_FLIGHT_MAX);
        Arc::new(Self {
            entries: std::iter::repeat_with(SharedEntry::default).take(entries).collect(),
            workers,
            published: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }
}

/// A publication in one worker's copy.
#[derive(Clone, Debug)]
struct Publication {
    number: u64,
    biz_data: Vec<u8>,
    scheduled_at: Nanos,
    topic: Topic,
    /// The worker's members that have it or have missed it.
    members_done: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The number of the push that is due; 0 before the first has arrived.
    expected: u32,
    /// The difference between offset and number, which stays the same: its lower 32 bits.
    offset_delta: u32,
}

/// The publications of one publisher to all clients, as one worker checks them.
#[derive(Debug)]
pub(super) struct Publications {
    kind: i32,
    shared_log: Arc<SharedLog>,
    run_state: Arc<RunState>,
    pattern: Pattern,
    /// The slot of the first member.
    first: usize,
    members: Vec<Member>,
    /// Publication `n` is at `n % ring.len()`, once this worker has loaded it.
    ring: Vec<Publication>,
    /// The gateway has answered the publications below this number. accepted <= published
    accepted: u64,
    counting: bool,
    published_in_window: u64,
    deliveries: u64,
    /// Pushes received in the whole run.
    received: u64,
    lost: u64,
    repeated: u64,
    misnumbered: u64,
    first_violation: Option<String>,
    pub(super) latency: Latency,
}

impl Publications {
    /// Checks the pushes of type `kind` on all slots of a worker.
    pub(super) fn new(
        kind: i32,
        bytes: usize,
        share: Share,
        shared_log: &Arc<SharedLog>,
        run_state: &Arc<RunState>,
    ) -> Self {
        let (number, topic) = (NONE, Topic::News);
        let empty =
            Publication { number, biz_data: Vec::new(), scheduled_at: 0, topic, members_done: 0 };
        Self {
            kind,
            shared_log: Arc::clone(shared_log),
            run_state: Arc::clone(run_state),
            pattern: Pattern::new(bytes),
            first: share.first,
            members: vec![Member::default(); share.count],
            ring: vec![empty; shared_log.entries.len()],
            accepted: 0,
            counting: false,
            published_in_window: 0,
            deliveries: 0,
            received: 0,
            lost: 0,
            repeated: 0,
            misnumbered: 0,
            first_violation: None,
            latency: Latency::new(),
        }
    }

    /// The number of publications so far.
    pub(super) fn published(&self) -> u64 {
        self.shared_log.published()
    }

    /// Publications that not all members have.
    pub(super) fn in_flight(&self) -> u64 {
        // Reads `completed` first: in the other order it could be the larger one, and the difference underflow.
        let completed = self.shared_log.completed();
        self.shared_log.published() - completed
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.ring.len() as u64
    }

    /// Whether the publisher has stopped and all members have everything. Where this worker `publishes`, also
    /// whether the gateway has answered each publication.
    pub(super) fn drained(&self, publishes: bool) -> bool {
        self.shared_log.closed.load(Ordering::Acquire)
            && self.in_flight() == 0
            && (!publishes || self.accepted == self.shared_log.published())
    }

    /// Deliveries in the window.
    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Pushes received in the whole run.
    pub(super) fn received_in_run(&self) -> u64 {
        self.received
    }

    /// Starts counting, from zero.
    pub(super) fn start_counting(&mut self) {
        self.counting = true;
        self.latency.start_counting();
    }

    /// Stops counting. Pushes in flight are still checked.
    pub(super) fn stop_counting(&mut self) {
        self.counting = false;
        self.latency.stop_counting();
    }

    /// Called by the publisher when it stops.
    pub(super) fn close(&self) {
        self.shared_log.closed.store(true, Ordering::Release);
    }

    /// Ends the second.
    pub(super) fn flush(&mut self, live: Option<&LiveStats>) {
        self.latency.flush(live);
    }

    /// Adds another worker's results.
    pub(super) fn merge(&mut self, other: Self) {
        self.published_in_window += other.published_in_window;
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.misnumbered += other.misnumbered;
        self.first_violation = self.first_violation.take().or(other.first_violation);
        self.latency.merge(other.latency);
    }

    /// Writes the next publication.
    pub(super) fn put_next(&mut self, out: &mut Vec<u8>, scheduled_at: Nanos, topic: Topic) {
        let number = self.shared_log.published();
        let index = self.index_of(number);
        let entry = &self.shared_log.entries[index];
        entry.scheduled_at.store(scheduled_at, Ordering::Relaxed);
        entry.is_question.store(topic == Topic::Question, Ordering::Relaxed);
        entry.workers_done.store(0, Ordering::Relaxed);
        self.shared_log.published.store(number + 1, Ordering::Release);
        self.load_entry(number);
        let sequence = BUSINESS_SEQUENCE + number;
        let biz_data = &self.ring[index].biz_data;
        Request { kind: self.kind, biz_data, sequence, ..Request::default() }.encode_frame(out);
        self.published_in_window += u64::from(self.counting);
    }

    /// Copies a publication from the shared log and generates its contents.
    #[inline(never)]
    fn load_entry(&mut self, number: u64) {
        let index = self.index_of(number);
        let entry = &self.shared_log.entries[index];
        let publication = &mut self.ring[index];
        publication.number = number;
        publication.members_done = 0;
        publication.scheduled_at = entry.scheduled_at.load(Ordering::Relaxed);
        let is_question = entry.is_question.load(Ordering::Relaxed);
        publication.topic = if is_question { Topic::Question } else { Topic::News };
        let biz_data = &mut publication.biz_data;
        biz_data.clear();
        biz_data.extend_from_slice(self.pattern.message(PUBLISHER, number));
        biz_data[..8].copy_from_slice(&number.to_le_bytes());
        biz_data[8..HEADER_BYTES].copy_from_slice(&publication.scheduled_at.to_le_bytes());
    }

    /// Checks the gateway's answer to the publisher.
    ///
    /// # Errors
    /// It is not the answer that is due.
    pub(super) fn accepted(&mut self, answer: &Response<'_>) -> anyhow::Result<()> {
        let expected = BUSINESS_SEQUENCE + self.accepted;
        if answer.sequence != expected || self.accepted == self.shared_log.published() {
            bail!("the answer to publication {expected} is due, and {answer:?} came");
        }
        self.accepted += 1;
        Ok(())
    }

    /// Whether this is a push and not an answer.
    #[inline]
    pub(super) fn is_push(&self, answer: &Response<'_>) -> bool {
        answer.sequence == 0 && answer.kind == self.kind
    }

    /// Checks a push that a member got. Returns what was delivered, unless the member had it before.
    ///
    /// # Errors
    /// It is a failure, or its contents were not published. Lost, repeated and misnumbered pushes are counted
    /// instead; see [`Self::check_deliveries`].
    #[inline]
    pub(super) fn received(
        &mut self,
        slot: usize,
        push: &Response<'_>,
        now: Nanos,
    ) -> anyhow::Result<Option<Delivery>> {
        let &Response { biz_data, offset, .. } = push;
        if push.status != SUCCESS {
            return Err(failed(slot, push));
        }
        let Some(header) = biz_data.first_chunk::<8>() else {
            let bytes = counted(biz_data.len(), "byte");
            bail!("connection {slot}: a push of {bytes} came, which this run did not publish");
        };
        let number = u64::from_le_bytes(*header);
        let member = self.members[slot - self.first];
        let expected = u64::from(member.expected);
        self.received += 1;
        if number < expected {
            self.repeated += 1;
            self.record_violation(slot, number, "came again");
            return Ok(None);
        }
        let index = self.index_of(number);
        if self.ring[index].number != number && number < self.shared_log.published() {
            self.load_entry(number);
        }
        if self.ring[index].number != number || self.ring[index].biz_data != biz_data {
            bail!("connection {slot}: push {number} differs from what was published");
        }
        let skipped = number - expected;
        if skipped > 0 {
            self.lost += skipped;
            self.record_violation(slot, expected, "never came");
            (expected..number).for_each(|lost| self.mark_member_done(lost));
        }
        let offset_delta = lower_half(offset.wrapping_sub(number));
        if expected > 0 && offset_delta != member.offset_delta {
            self.misnumbered += 1;
            self.record_violation(slot, number, "has an offset that is not one more than the last");
        }
        let expected = u32::try_from(number + 1).context("4 billion publications are too many")?;
        self.members[slot - self.first] = Member { expected, offset_delta };
        self.deliveries += u64::from(self.counting);
        self.latency.record(now.saturating_sub(self.ring[index].scheduled_at));
        self.mark_member_done(number);
        Ok(Some(Delivery { number, topic: self.ring[index].topic }))
    }

    /// Notes that one more member has a publication or has missed it.
    #[inline]
    fn mark_member_done(&mut self, number: u64) {
        let index = self.index_of(number);
        if self.ring[index].number != number {
            self.load_entry(number);
        }
        self.ring[index].members_done += 1;
        if self.ring[index].members_done == self.members.len() {
            self.mark_worker_done(number);
        }
    }

    /// Notes that this worker's members are all done with a publication.
    fn mark_worker_done(&self, number: u64) {
        let entry = &self.shared_log.entries[self.index_of(number)];
        if entry.workers_done.fetch_add(1, Ordering::AcqRel) + 1 == self.shared_log.workers {
            // Each member gets the publications in order, so they complete in order.
            self.shared_log.completed.fetch_max(number + 1, Ordering::AcqRel);
            self.run_state.wake();
        }
    }

    #[inline]
    fn index_of(&self, number: u64) -> usize {
        usize::try_from(number % self.ring.len() as u64).unwrap_or_default()
    }

    #[cold]
    fn record_violation(&mut self, slot: usize, number: u64, what: &str) {
        self.first_violation
            .get_or_insert_with(|| format!("connection {slot}: push {number} {what}"));
    }

    /// Reports the window.
    pub(super) fn report(&mut self, report: &mut Report) {
        report.add("published", "published", self.published_in_window, Unit::Number);
        report.add_latency("latency", "delivery latency", self.latency.window());
        report.add("lost", "never delivered", self.lost, Unit::Number);
        report.add("repeated", "delivered again", self.repeated, Unit::Number);
        report.add("misnumbered", "wrong offsets", self.misnumbered, Unit::Number);
    }

    /// Checks that each member got each publication once and in order, in the whole run.
    ///
    /// # Errors
    /// One did not. The error names the first.
    pub(super) fn check_deliveries(&self) -> anyhow::Result<()> {
        match &self.first_violation {
            None => Ok(()),
            Some(first) => bail!(
                "{} never came, {} came again, {} misnumbered; first: {first}",
                counted(self.lost, "delivery"),
                grouped(self.repeated),
                grouped(self.misnumbered)
            ),
        }
    }
}

#[inline]
fn lower_half(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One for each of `workers` with `members` each. The first worker publishes.
    fn publications_of(workers: usize, members: usize) -> Vec<Publications> {
        let shared_log = SharedLog::new(workers, 8);
        let run_state = Arc::new(RunState::new(workers, 0).unwrap());
        let share = |worker| Share::new(worker, workers, workers * members);
        (0..workers)
            .map(|worker| Publications::new(2, 40, share(worker), &shared_log, &run_state))
            .collect()
    }

    fn publish(publications: &mut Publications, count: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        (0..count).for_each(|_| publications.put_next(&mut out, 5, Topic::News));
        publications.ring[..count].iter().map(|it| it.biz_data.clone()).collect()
    }

    fn published(members: usize, count: usize) -> (Publications, Vec<Vec<u8>>) {
        let mut publications = publications_of(1, members).pop().unwrap();
        let sent = publish(&mut publications, count);
        (publications, sent)
    }

    fn push(biz_data: &[u8], offset: u64) -> Response<'_> {
        Response { kind: 2, status: 1, biz_data, offset, ..Response::default() }
    }

    #[test]
    fn everything_once_and_in_order_completes() {
        let (mut publications, sent) = published(2, 2);
        for slot in 0..2 {
            publications.received(slot, &push(&sent[0], 7), 9).unwrap();
            publications.received(slot, &push(&sent[1], 8), 9).unwrap();
        }
        assert_eq!(publications.in_flight(), 0);
        publications.check_deliveries().unwrap();
    }

    #[test]
    fn a_publication_is_complete_when_all_members_of_all_workers_have_it() {
        let mut workers = publications_of(2, 2);
        workers[0].put_next(&mut Vec::new(), 5, Topic::Question);
        let sent = workers[0].ring[0].biz_data.clone();
        for (slot, in_flight) in [(2, 1), (0, 1), (3, 1), (1, 0)] {
            let push = push(&sent, 7);
            let delivery = Delivery { number: 0, topic: Topic::Question };
            assert_eq!(workers[slot / 2].received(slot, &push, 9).unwrap(), Some(delivery));
            assert_eq!(workers[0].in_flight(), in_flight);
        }
        assert!(!workers[1].drained(false));
        workers[0].close();
        assert!(workers[1].drained(false) && !workers[0].drained(true));
        let other = workers.pop().unwrap();
        workers[0].merge(other);
        workers[0].check_deliveries().unwrap();
    }

    #[test]
    fn lost_repeated_and_misnumbered_pushes_are_counted_and_the_run_continues() {
        let (mut publications, sent) = published(1, 5);
        publications.received(0, &push(&sent[0], 7), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[3], 12), 9).unwrap();
        let Publications { lost, repeated, misnumbered, .. } = publications;
        assert_eq!((lost, repeated, misnumbered, publications.in_flight()), (1, 1, 1, 1));
        let wrong = publications.check_deliveries().unwrap_err().to_string();
        assert!(wrong.contains("push 1 never came"), "{wrong}");
    }

    #[test]
    fn a_byte_that_differs_is_an_error() {
        let (mut publications, mut sent) = published(1, 1);
        sent[0][39] ^= 1;
        publications.received(0, &push(&sent[0], 7), 9).unwrap_err();
        publications.received(0, &push(b"short", 7), 9).unwrap_err();
    }
}
