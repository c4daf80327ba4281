//! Publications, and who has got which: once, in order, byte by byte.
//!
//! One worker publishes; each follows its own members. What they share is the [`Board`]: a worker
//! writes to it once for each publication, when the last of its members has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use tidegate_protocol::message::{Request, Response, SUCCESS};

use super::course::{Course, Share};
use super::engine::Nanos;
use super::latency::{Latency, Live};
use super::pattern::Pattern;
use super::report::{Report, Unit};
use super::session::{BUSINESS_SEQUENCE, failed};
use crate::count::{counted, grouped};

/// A publication begins with its number and the time at which it was meant to go out.
pub(super) const HEADER_BYTES: usize = 16;
/// Publications under way at a fixed rate. More wait, and their latency counts the wait.
const UNDER_WAY_MAX: usize = 256;
/// The publisher's name in the pattern.
const PUBLISHER: usize = 0;
/// The number of no publication.
const NONE: u64 = u64::MAX;

/// What a publication is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// To be read.
    News,
    /// To be answered.
    Question,
}

/// A push that came when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Which publication.
    pub(super) number: u64,
    /// What for.
    pub(super) topic: Topic,
}

/// What all workers know of the publications.
#[derive(Debug)]
pub(super) struct Board {
    /// Publication `n` is at `n % places.len()`.
    places: Vec<Place>,
    workers: usize,
    /// completed <= published <= completed + places.len()
    published: AtomicU64,
    /// All members of all workers have those below.
    completed: AtomicU64,
    /// There will be no more.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Place {
    intended_at: AtomicU64,
    asks: AtomicBool,
    /// Workers all of whose members have it, or will never have it.
    settled: AtomicUsize,
}

impl Board {
    /// One with room for this many publications under way.
    pub(super) fn new(workers: usize, in_flight_max: usize) -> Arc<Self> {
        let places = in_flight_max.max(UNDER_WAY_MAX);
        Arc::new(Self {
            places: std::iter::repeat_with(Place::default).take(places).collect(),
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

/// A publication as one worker knows it.
#[derive(Clone, Debug)]
struct Publication {
    number: u64,
    biz_data: Vec<u8>,
    intended_at: Nanos,
    topic: Topic,
    /// The worker's members that have it, or will never have it.
    settled: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The number of the push that is due; 0 before the first has come.
    expected: u32,
    /// By how much the offsets lie above the numbers: the lower half of it.
    ahead: u32,
}

/// The publications of one publisher to everybody, as one worker follows them.
#[derive(Debug)]
pub(super) struct Publications {
    kind: i32,
    board: Arc<Board>,
    course: Arc<Course>,
    pattern: Pattern,
    /// The slot of the first member.
    first: usize,
    members: Vec<Member>,
    /// Publication `n` is at `n % ring.len()`, once this worker has come to know it.
    ring: Vec<Publication>,
    /// The gateway has answered those below. accepted <= published
    accepted: u64,
    counting: bool,
    published_in_window: u64,
    deliveries: u64,
    /// Pushes that came, over the whole run.
    received: u64,
    lost: u64,
    repeated: u64,
    misnumbered: u64,
    first_wrong: Option<String>,
    pub(super) latency: Latency,
}

impl Publications {
    /// Follows those of type `kind` to all of a worker's slots.
    pub(super) fn new(
        kind: i32,
        bytes: usize,
        share: Share,
        board: &Arc<Board>,
        course: &Arc<Course>,
    ) -> Self {
        let (number, topic) = (NONE, Topic::News);
        let unknown =
            Publication { number, biz_data: Vec::new(), intended_at: 0, topic, settled: 0 };
        Self {
            kind,
            board: Arc::clone(board),
            course: Arc::clone(course),
            pattern: Pattern::new(bytes),
            first: share.first,
            members: vec![Member::default(); share.count],
            ring: vec![unknown; board.places.len()],
            accepted: 0,
            counting: false,
            published_in_window: 0,
            deliveries: 0,
            received: 0,
            lost: 0,
            repeated: 0,
            misnumbered: 0,
            first_wrong: None,
            latency: Latency::new(),
        }
    }

    /// Publications made so far.
    pub(super) fn published(&self) -> u64 {
        self.board.published()
    }

    /// Publications that somebody has not got.
    pub(super) fn in_flight(&self) -> u64 {
        // In this order, so that what is published between the two is not completed before.
        let completed = self.board.completed();
        self.board.published() - completed
    }

    /// Whether one more can be kept track of.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.ring.len() as u64
    }

    /// Whether all is published, everybody has everything, and the gateway has said so to this
    /// worker if it `publishes`.
    pub(super) fn drained(&self, publishes: bool) -> bool {
        self.board.closed.load(Ordering::Acquire)
            && self.in_flight() == 0
            && (!publishes || self.accepted == self.board.published())
    }

    /// Deliveries in the window.
    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Pushes that came, over the whole run.
    pub(super) fn received_in_all(&self) -> u64 {
        self.received
    }

    /// Starts to count, from zero.
    pub(super) fn count_from_now(&mut self) {
        self.counting = true;
        self.latency.count_from_now();
    }

    /// Stops to count. What is under way will still be checked.
    pub(super) fn stop_counting(&mut self) {
        self.counting = false;
        self.latency.stop_counting();
    }

    /// The publisher's: there will be no more.
    pub(super) fn close(&self) {
        self.board.closed.store(true, Ordering::Release);
    }

    /// A second is over.
    pub(super) fn flush(&mut self, live: Option<&Live>) {
        self.latency.flush(live);
    }

    /// Takes another worker's findings in.
    pub(super) fn merge(&mut self, other: Self) {
        self.published_in_window += other.published_in_window;
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.misnumbered += other.misnumbered;
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
        self.latency.merge(other.latency);
    }

    /// Writes the next publication.
    pub(super) fn put_next(&mut self, out: &mut Vec<u8>, intended_at: Nanos, topic: Topic) {
        let number = self.board.published();
        let place = self.place(number);
        let shared = &self.board.places[place];
        shared.intended_at.store(intended_at, Ordering::Relaxed);
        shared.asks.store(topic == Topic::Question, Ordering::Relaxed);
        shared.settled.store(0, Ordering::Relaxed);
        self.board.published.store(number + 1, Ordering::Release);
        self.know(number);
        let sequence = BUSINESS_SEQUENCE + number;
        let biz_data = &self.ring[place].biz_data;
        Request { kind: self.kind, biz_data, sequence, ..Request::default() }.encode_frame(out);
        self.published_in_window += u64::from(self.counting);
    }

    /// Makes a publication's contents anew, from what is on the board.
    #[inline(never)]
    fn know(&mut self, number: u64) {
        let place = self.place(number);
        let shared = &self.board.places[place];
        let publication = &mut self.ring[place];
        publication.number = number;
        publication.settled = 0;
        publication.intended_at = shared.intended_at.load(Ordering::Relaxed);
        let asks = shared.asks.load(Ordering::Relaxed);
        publication.topic = if asks { Topic::Question } else { Topic::News };
        let biz_data = &mut publication.biz_data;
        biz_data.clear();
        biz_data.extend_from_slice(self.pattern.message(PUBLISHER, number));
        biz_data[..8].copy_from_slice(&number.to_le_bytes());
        biz_data[8..HEADER_BYTES].copy_from_slice(&publication.intended_at.to_le_bytes());
    }

    /// The publisher's answer came.
    ///
    /// # Errors
    /// It is not the answer that is due.
    pub(super) fn accepted(&mut self, answer: &Response<'_>) -> anyhow::Result<()> {
        let expected = BUSINESS_SEQUENCE + self.accepted;
        if answer.sequence != expected || self.accepted == self.board.published() {
            bail!("publication {expected} is due to be answered, and {answer:?} came");
        }
        self.accepted += 1;
        Ok(())
    }

    /// Whether this is a push and no answer.
    #[inline]
    pub(super) fn is_push(&self, answer: &Response<'_>) -> bool {
        answer.sequence == 0 && answer.kind == self.kind
    }

    /// A member got a push: which, if it is new to it.
    ///
    /// # Errors
    /// It is a failure, or nothing that was published. What is lost, repeated or misnumbered is
    /// counted; see [`Self::verdict`].
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
            bail!("connection {slot}: a push of {bytes} was not published here");
        };
        let number = u64::from_le_bytes(*header);
        let member = self.members[slot - self.first];
        let expected = u64::from(member.expected);
        self.received += 1;
        if number < expected {
            self.repeated += 1;
            self.wrong(slot, number, "came again");
            return Ok(None);
        }
        let place = self.place(number);
        if self.ring[place].number != number && number < self.board.published() {
            self.know(number);
        }
        if self.ring[place].number != number || self.ring[place].biz_data != biz_data {
            bail!("connection {slot}: push {number} is not what was published");
        }
        let skipped = number - expected;
        if skipped > 0 {
            self.lost += skipped;
            self.wrong(slot, expected, "never came");
            (expected..number).for_each(|lost| self.settle(lost));
        }
        let ahead = lower_half(offset.wrapping_sub(number));
        if expected > 0 && ahead != member.ahead {
            self.misnumbered += 1;
            self.wrong(slot, number, "has an offset that is not one more than the last");
        }
        let expected = u32::try_from(number + 1).context("4 billion publications are too many")?;
        self.members[slot - self.first] = Member { expected, ahead };
        self.deliveries += u64::from(self.counting);
        self.latency.record(now.saturating_sub(self.ring[place].intended_at));
        self.settle(number);
        Ok(Some(Delivery { number, topic: self.ring[place].topic }))
    }

    /// One member more is done with a publication.
    #[inline]
    fn settle(&mut self, number: u64) {
        let place = self.place(number);
        if self.ring[place].number != number {
            self.know(number);
        }
        self.ring[place].settled += 1;
        if self.ring[place].settled == self.members.len() {
            self.complete(number);
        }
    }

    /// All of this worker's members are done with a publication.
    fn complete(&self, number: u64) {
        let shared = &self.board.places[self.place(number)];
        if shared.settled.fetch_add(1, Ordering::AcqRel) + 1 == self.board.workers {
            // Each member takes them in order, so they complete in order.
            self.board.completed.fetch_max(number + 1, Ordering::AcqRel);
            self.course.ring();
        }
    }

    #[inline]
    fn place(&self, number: u64) -> usize {
        usize::try_from(number % self.ring.len() as u64).unwrap_or_default()
    }

    #[cold]
    fn wrong(&mut self, slot: usize, number: u64, what: &str) {
        self.first_wrong.get_or_insert_with(|| format!("connection {slot}: push {number} {what}"));
    }

    /// Reports the window.
    pub(super) fn report(&mut self, report: &mut Report) {
        report.add("published", "published", self.published_in_window, Unit::Number);
        report.add_latency("latency", "delivery latency", self.latency.window());
        report.add("lost", "never delivered", self.lost, Unit::Number);
        report.add("repeated", "delivered again", self.repeated, Unit::Number);
        report.add("misnumbered", "wrong offsets", self.misnumbered, Unit::Number);
    }

    /// Whether everybody got everything once and in order, over the whole run.
    ///
    /// # Errors
    /// Somebody did not; says who first.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        match &self.first_wrong {
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

    /// Followed by so many workers with so many members each: the first one publishes.
    fn crew(workers: usize, members: usize) -> Vec<Publications> {
        let board = Board::new(workers, 8);
        let course = Arc::new(Course::new(workers, 0).unwrap());
        let share = |worker| Share::new(worker, workers, workers * members);
        (0..workers)
            .map(|worker| Publications::new(2, 40, share(worker), &board, &course))
            .collect()
    }

    fn publish(publications: &mut Publications, count: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        (0..count).for_each(|_| publications.put_next(&mut out, 5, Topic::News));
        publications.ring[..count].iter().map(|it| it.biz_data.clone()).collect()
    }

    fn published(members: usize, count: usize) -> (Publications, Vec<Vec<u8>>) {
        let mut publications = crew(1, members).pop().unwrap();
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
        publications.verdict().unwrap();
    }

    #[test]
    fn a_publication_is_complete_when_every_worker_has_seen_it_whole() {
        let mut crew = crew(2, 2);
        crew[0].put_next(&mut Vec::new(), 5, Topic::Question);
        let sent = crew[0].ring[0].biz_data.clone();
        for (slot, in_flight) in [(2, 1), (0, 1), (3, 1), (1, 0)] {
            let push = push(&sent, 7);
            let delivery = Delivery { number: 0, topic: Topic::Question };
            assert_eq!(crew[slot / 2].received(slot, &push, 9).unwrap(), Some(delivery));
            assert_eq!(crew[0].in_flight(), in_flight);
        }
        assert!(!crew[1].drained(false));
        crew[0].close();
        assert!(crew[1].drained(false) && !crew[0].drained(true));
        let other = crew.pop().unwrap();
        crew[0].merge(other);
        crew[0].verdict().unwrap();
    }

    #[test]
    fn what_is_lost_repeated_or_misnumbered_is_counted_and_goes_on() {
        let (mut publications, sent) = published(1, 5);
        publications.received(0, &push(&sent[0], 7), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[3], 12), 9).unwrap();
        let Publications { lost, repeated, misnumbered, .. } = publications;
        assert_eq!((lost, repeated, misnumbered, publications.in_flight()), (1, 1, 1, 1));
        let wrong = publications.verdict().unwrap_err().to_string();
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
