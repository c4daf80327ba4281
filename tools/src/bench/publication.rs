//! Publications, and who has got which: once, in order, byte by byte.

use anyhow::bail;
use hdrhistogram::Histogram;
use tidegate_protocol::message::{Request, Response};

use super::engine::Nanos;
use super::pattern::Pattern;
use super::report::{Report, Unit, histogram, record};
use super::session::{BUSINESS_SEQUENCE, failed};

/// A publication begins with its number and the time at which it was meant to go out.
pub(super) const HEADER_BYTES: usize = 16;
/// Publications under way at a fixed rate. More wait, and their latency counts the wait.
const UNDER_WAY_MAX: usize = 256;
/// The publisher's name in the pattern.
const PUBLISHER: usize = 0;

/// A publication under way.
#[derive(Clone, Debug, Default)]
struct Publication {
    biz_data: Vec<u8>,
    intended_at: Nanos,
    /// Members that have it, or will never have it.
    settled: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The number of the push that is due.
    expected: u64,
    /// Of the push before it; 0 before the first.
    offset: u64,
}

/// The publications of one publisher to everybody.
#[derive(Debug)]
pub(super) struct Publications {
    kind: i32,
    pattern: Pattern,
    members: Vec<Member>,
    /// Publication `n` is at `n % ring.len()`.
    ring: Vec<Publication>,
    /// completed <= published <= completed + ring.len()
    published: u64,
    /// All members have those below.
    completed: u64,
    /// The gateway has answered those below. accepted <= published
    accepted: u64,
    counting: bool,
    published_in_window: u64,
    deliveries: u64,
    lost: u64,
    repeated: u64,
    misnumbered: u64,
    first_wrong: Option<String>,
    latency: Histogram<u64>,
}

impl Publications {
    pub(super) fn new(kind: i32, bytes: usize, members: usize, in_flight_max: usize) -> Self {
        Self {
            kind,
            pattern: Pattern::new(bytes),
            members: vec![Member::default(); members],
            ring: vec![Publication::default(); in_flight_max.max(UNDER_WAY_MAX)],
            published: 0,
            completed: 0,
            accepted: 0,
            counting: false,
            published_in_window: 0,
            deliveries: 0,
            lost: 0,
            repeated: 0,
            misnumbered: 0,
            first_wrong: None,
            latency: histogram(),
        }
    }

    /// Publications made so far.
    pub(super) fn published(&self) -> u64 {
        self.published
    }

    /// Publications that somebody has not got.
    pub(super) fn in_flight(&self) -> u64 {
        self.published - self.completed
    }

    /// Whether one more can be kept track of.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.ring.len() as u64
    }

    /// Whether everybody has everything, and the gateway has said so.
    pub(super) fn drained(&self) -> bool {
        self.completed == self.published && self.accepted == self.published
    }

    /// Deliveries in the window.
    pub(super) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Starts to count, from zero.
    pub(super) fn count_from_now(&mut self) {
        self.counting = true;
    }

    /// Stops to count. What is under way will still be checked.
    pub(super) fn stop_counting(&mut self) {
        self.counting = false;
    }

    /// Writes the next publication.
    pub(super) fn put_next(&mut self, out: &mut Vec<u8>, intended_at: Nanos) {
        let number = self.published;
        let place = self.place(number);
        let publication = &mut self.ring[place];
        let biz_data = &mut publication.biz_data;
        biz_data.clear();
        biz_data.extend_from_slice(self.pattern.message(PUBLISHER, number));
        biz_data[..8].copy_from_slice(&number.to_le_bytes());
        biz_data[8..HEADER_BYTES].copy_from_slice(&intended_at.to_le_bytes());
        publication.intended_at = intended_at;
        publication.settled = 0;
        let sequence = BUSINESS_SEQUENCE + number;
        Request { kind: self.kind, biz_data, sequence, ..Request::default() }.encode_frame(out);
        self.published += 1;
        self.published_in_window += u64::from(self.counting);
    }

    /// The publisher's answer came.
    ///
    /// # Errors
    /// It is not the answer that is due.
    pub(super) fn accepted(&mut self, answer: &Response<'_>) -> anyhow::Result<()> {
        let expected = BUSINESS_SEQUENCE + self.accepted;
        if answer.sequence != expected || self.accepted == self.published {
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

    /// A member got a push.
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
    ) -> anyhow::Result<()> {
        let &Response { biz_data, offset, .. } = push;
        if push.status != tidegate_protocol::message::SUCCESS {
            return Err(failed(slot, push));
        }
        let Some(header) = biz_data.first_chunk::<8>() else {
            bail!("connection {slot}: a push of {} bytes was not published here", biz_data.len());
        };
        let number = u64::from_le_bytes(*header);
        let member = self.members[slot];
        if number < member.expected {
            self.repeated += 1;
            self.wrong(slot, number, "came again");
            return Ok(());
        }
        let place = self.place(number);
        if number >= self.published || self.ring[place].biz_data != biz_data {
            bail!("connection {slot}: push {number} is not what was published");
        }
        let skipped = number - member.expected;
        if skipped > 0 {
            self.lost += skipped;
            self.wrong(slot, member.expected, "never came");
            (member.expected..number).for_each(|lost| self.settle(lost));
        }
        if member.offset > 0 && offset != member.offset + 1 + skipped {
            self.misnumbered += 1;
            self.wrong(slot, number, "has an offset that is not one more than the last");
        }
        self.members[slot] = Member { expected: number + 1, offset };
        if self.counting {
            self.deliveries += 1;
            record(&mut self.latency, now.saturating_sub(self.ring[place].intended_at));
        }
        self.settle(number);
        Ok(())
    }

    /// One member more is done with a publication.
    #[inline]
    fn settle(&mut self, number: u64) {
        let place = self.place(number);
        self.ring[place].settled += 1;
        // Each member takes them in order, so they complete in order.
        if self.ring[place].settled == self.members.len() {
            self.completed = number + 1;
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
    pub(super) fn report(&self, report: &mut Report) {
        report.add("published", "published", self.published_in_window, Unit::Number);
        report.add_latency("latency", "delivery latency", &self.latency);
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
                "{} deliveries never came, {} came again, {} were misnumbered; first: {first}",
                self.lost,
                self.repeated,
                self.misnumbered
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(members: usize, count: usize) -> (Publications, Vec<Vec<u8>>) {
        let mut publications = Publications::new(2, 40, members, 8);
        let mut out = Vec::new();
        (0..count).for_each(|_| publications.put_next(&mut out, 5));
        let sent = publications.ring.iter().map(|it| it.biz_data.clone()).collect();
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
    fn what_is_lost_repeated_or_misnumbered_is_counted_and_goes_on() {
        let (mut publications, sent) = published(1, 5);
        publications.received(0, &push(&sent[0], 7), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[2], 9), 9).unwrap();
        publications.received(0, &push(&sent[3], 12), 9).unwrap();
        let Publications { lost, repeated, misnumbered, completed, .. } = publications;
        assert_eq!((lost, repeated, misnumbered, completed), (1, 1, 1, 4));
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
