//! Requests that come back: sending them in a closed or an open loop, and checking every byte.

use anyhow::bail;
use tidegate_protocol::frame::frame_len;
use tidegate_protocol::limits::FRAME_TO_CLIENT_BYTES_MAX;
use tidegate_protocol::message::{Request, Response, SUCCESS};

use super::engine::{Nanos, Sockets, due_after};
use super::latency::{Latency, Live};
use super::pattern::Pattern;
use super::session::BUSINESS_SEQUENCE;
use crate::count::{counted, grouped};

/// Open loop: requests under way on one connection. More wait, and their latency counts the wait.
const UNDER_WAY_MAX: u32 = 1024;
/// Sequence by which a raw message takes its size from a request: two bytes, like most of a run.
const TYPICAL_SEQUENCE: u64 = 1000;

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// The next one when one is answered, this many at a time on each connection.
    Closed { depth: u32 },
    /// This many a second in total, whatever comes back.
    Open { per_second: f64 },
    /// One on each connection, with this many under way.
    Once { under_way_max: u64 },
    /// The next one on the next connection when one is answered, this many at a time in total.
    Moving { under_way: u64 },
    /// When [`Echo::ask`] is called, one at a time on each connection.
    OnDemand,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct EchoPlan {
    /// The first connection's slot.
    pub(super) first_slot: usize,
    /// Connections.
    pub(super) count: usize,
    /// The requests' type.
    pub(super) kind: i32,
    /// Bytes of `biz_data`.
    pub(super) bytes: usize,
    /// When.
    pub(super) pace: Pace,
    /// Without the protocol.
    pub(super) raw: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    sent: u64,
    /// Answers in the window.
    counted: u64,
    /// Requests not yet answered. under_way <= sent
    under_way: u32,
    /// Raw: bytes of the next answer that have come.
    partial_bytes: u32,
}

impl Lane {
    #[inline]
    fn answered(&self) -> u64 {
        self.sent - u64::from(self.under_way)
    }
}

/// Requests on some connections.
#[derive(Debug)]
pub(super) struct Echo {
    plan: EchoPlan,
    pattern: Pattern,
    lanes: Vec<Lane>,
    /// When each request under way was sent, where no plan says so: `depth` for each lane.
    sent_at: Vec<Nanos>,
    depth: u32,
    /// Lanes' turns so far, where answers don't decide: number `n` is that of lane `n % count`.
    turns: u64,
    /// On all lanes. answered <= sent
    sent: u64,
    answered: u64,
    started_at: Nanos,
    sending: bool,
    counting: bool,
    /// From the (intended) sending to the answer.
    pub(super) latency: Latency,
}

impl Echo {
    pub(super) fn new(mut plan: EchoPlan) -> Self {
        let bytes = if plan.raw { request_bytes(&plan) } else { plan.bytes };
        plan.bytes = bytes;
        let depth = match plan.pace {
            Pace::Closed { depth } => depth,
            Pace::Moving { .. } | Pace::OnDemand => 1,
            Pace::Open { .. } | Pace::Once { .. } => 0,
        };
        Self {
            pattern: Pattern::new(bytes),
            lanes: vec![Lane::default(); plan.count],
            sent_at: vec![0; plan.count * depth as usize],
            depth,
            turns: 0,
            sent: 0,
            answered: 0,
            started_at: 0,
            sending: false,
            counting: false,
            latency: Latency::new(),
            plan,
        }
    }

    /// Starts to send.
    pub(super) fn start(&mut self, sockets: &mut Sockets, now: Nanos) {
        self.sending = true;
        self.started_at = now;
        if let Pace::Closed { depth } = self.plan.pace {
            for lane in 0..self.plan.count {
                for _ in 0..depth {
                    sockets.send(self.plan.first_slot + lane, |out| self.put_next(lane, out, now));
                }
            }
        }
    }

    /// Starts to count, from zero.
    pub(super) fn count_from_now(&mut self) {
        self.counting = true;
        self.latency.count_from_now();
        self.lanes.iter_mut().for_each(|lane| lane.counted = 0);
    }

    /// Stops to count and to send. What is under way will still be checked.
    pub(super) fn stop(&mut self) {
        self.counting = false;
        self.sending = false;
        self.latency.stop_counting();
    }

    /// Whether every request has been answered.
    pub(super) fn drained(&self) -> bool {
        self.sent == self.answered
    }

    /// Whether every connection has had an answer.
    pub(super) fn all_answered(&self) -> bool {
        self.sent >= self.plan.count as u64 && self.drained()
    }

    /// Requests sent, and answers that came, over the whole run.
    pub(super) fn sent_and_answered(&self) -> (u64, u64) {
        (self.sent, self.answered)
    }

    /// Answers in the window, for each connection.
    pub(super) fn counted(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.counted).collect()
    }

    /// A second is over.
    pub(super) fn flush(&mut self, live: Option<&Live>) {
        self.latency.flush(live);
    }

    /// Takes another worker's findings in, whose connections follow.
    pub(super) fn merge(&mut self, other: Self) {
        self.lanes.extend(other.lanes);
        self.latency.merge(other.latency);
    }

    /// Sends what is due, where answers don't decide that; says when the next will be.
    pub(super) fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        let mut skipped = 0;
        while self.sending && skipped < self.plan.count {
            let lane = usize::try_from(self.turns % self.plan.count as u64).unwrap_or_default();
            let under_way = self.sent - self.answered;
            match self.plan.pace {
                Pace::Closed { .. } | Pace::OnDemand => return None,
                Pace::Once { under_way_max } => {
                    let all_sent = self.sent == self.plan.count as u64;
                    if all_sent || under_way == under_way_max {
                        return None;
                    }
                }
                Pace::Moving { under_way: most } => {
                    if under_way == most {
                        return None;
                    }
                    if self.lanes[lane].under_way > 0 {
                        // It is slow: its next turn comes.
                        self.turns += 1;
                        skipped += 1;
                        continue;
                    }
                }
                Pace::Open { per_second } => {
                    let due_at = self.intended_at(self.turns, per_second);
                    if due_at > now {
                        return Some(due_at);
                    }
                    if self.lanes[lane].under_way == UNDER_WAY_MAX {
                        return None;
                    }
                }
            }
            sockets.send(self.plan.first_slot + lane, |out| self.put_next(lane, out, now));
            self.turns += 1;
        }
        None
    }

    /// Sends one on a connection, if the last one has been answered: whether it did.
    pub(super) fn ask(&mut self, slot: usize, sockets: &mut Sockets, now: Nanos) -> bool {
        let lane = slot - self.plan.first_slot;
        let free = self.lanes[lane].under_way == 0;
        if free {
            sockets.send(slot, |out| self.put_next(lane, out, now));
        }
        free
    }

    /// Takes an answer; sends the next request in a closed loop.
    ///
    /// # Errors
    /// It is not the answer that is due, or not byte by byte what was sent.
    #[inline]
    pub(super) fn answered(
        &mut self,
        slot: usize,
        answer: &Response<'_>,
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> anyhow::Result<()> {
        if answer.sequence == 0 && answer.status == SUCCESS {
            // A push: somebody else loads the gateway too, and everybody gets it.
            return Ok(());
        }
        let lane = slot - self.plan.first_slot;
        let Lane { under_way, .. } = self.lanes[lane];
        let expected = BUSINESS_SEQUENCE + self.lanes[lane].answered();
        if under_way == 0 || answer.sequence != expected || answer.kind != self.plan.kind {
            bail!(
                "connection {slot}: an answer of type {} to request {} came; the one due was to \
                 request {expected}, of {under_way} under way",
                answer.kind,
                answer.sequence
            );
        }
        check(slot, expected, answer.biz_data, self.pattern.message(slot, expected))?;
        self.complete(lane, out, now);
        Ok(())
    }

    /// Takes bytes that came back without the protocol.
    ///
    /// # Errors
    /// They are not what was sent.
    pub(super) fn echoed(
        &mut self,
        slot: usize,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let lane = slot - self.plan.first_slot;
        while !bytes.is_empty() {
            let Lane { under_way, partial_bytes, .. } = self.lanes[lane];
            if under_way == 0 {
                let bytes = counted(bytes.len(), "byte");
                bail!("connection {slot}: {bytes} came, and none was due");
            }
            let sequence = BUSINESS_SEQUENCE + self.lanes[lane].answered();
            let expected = &self.pattern.message(slot, sequence)[partial_bytes as usize..];
            let (now_come, rest) = bytes.split_at(expected.len().min(bytes.len()));
            check(slot, sequence, now_come, &expected[..now_come.len()])?;
            bytes = rest;
            if now_come.len() < expected.len() {
                self.lanes[lane].partial_bytes += u32::try_from(now_come.len())?;
            } else {
                self.lanes[lane].partial_bytes = 0;
                self.complete(lane, out, now);
            }
        }
        Ok(())
    }

    #[inline]
    fn complete(&mut self, lane: usize, out: &mut Vec<u8>, now: Nanos) {
        let answered = self.lanes[lane].answered();
        self.lanes[lane].under_way -= 1;
        self.answered += 1;
        let sent_at = match self.plan.pace {
            Pace::Closed { .. } | Pace::Moving { .. } | Pace::OnDemand => {
                self.sent_at[place_of(lane, answered, self.depth)]
            }
            Pace::Open { per_second } => {
                self.intended_at(answered * self.plan.count as u64 + lane as u64, per_second)
            }
            Pace::Once { .. } => self.started_at,
        };
        self.latency.record(now.saturating_sub(sent_at));
        self.lanes[lane].counted += u64::from(self.counting);
        if self.sending && matches!(self.plan.pace, Pace::Closed { .. }) {
            self.put_next(lane, out, now);
        }
    }

    #[inline]
    fn put_next(&mut self, lane: usize, out: &mut Vec<u8>, now: Nanos) {
        let slot = self.plan.first_slot + lane;
        let number = self.lanes[lane].sent;
        let sequence = BUSINESS_SEQUENCE + number;
        let biz_data = self.pattern.message(slot, sequence);
        if self.plan.raw {
            out.extend_from_slice(biz_data);
        } else {
            Request { kind: self.plan.kind, biz_data, sequence, ..Request::default() }
                .encode_frame(out);
        }
        if self.depth > 0 {
            self.sent_at[place_of(lane, number, self.depth)] = now;
        }
        self.lanes[lane].sent += 1;
        self.lanes[lane].under_way += 1;
        self.sent += 1;
    }

    #[inline]
    fn intended_at(&self, number: u64, per_second: f64) -> Nanos {
        self.started_at + due_after(number, 1e9 / per_second)
    }
}

/// Where a lane's request `number` has its time of sending.
#[inline]
fn place_of(lane: usize, number: u64, depth: u32) -> usize {
    let place = number % u64::from(depth);
    lane * depth as usize + usize::try_from(place).unwrap_or_default()
}

fn request_bytes(plan: &EchoPlan) -> usize {
    let biz_data = &vec![0; plan.bytes][..];
    let sequence = TYPICAL_SEQUENCE;
    frame_len(Request { kind: plan.kind, biz_data, sequence, ..Request::default() }.payload_len())
}

#[inline]
fn check(slot: usize, sequence: u64, came: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    if came == sent {
        return Ok(());
    }
    let at = came.iter().zip(sent).take_while(|(came, sent)| came == sent).count();
    bail!(
        "connection {slot}: request {sequence} came back with {}, sent were {}; they differ from byte \
         {at} on",
        counted(came.len(), "byte"),
        grouped(sent.len())
    )
}

/// Reads the frames in `bytes` and hands each answer on.
#[inline]
pub(super) fn for_each_answer(
    slot: usize,
    reassembler: &mut tidegate_protocol::Reassembler,
    bytes: &[u8],
    mut take: impl FnMut(&Response<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut frames = reassembler.frames(bytes, FRAME_TO_CLIENT_BYTES_MAX);
    loop {
        let answer = match frames.next() {
            Ok(Some(payload)) => Response::decode(payload),
            Ok(None) => return Ok(()),
            Err(error) => bail!(misunderstood(slot, &error)),
        };
        match answer {
            Ok(answer) => take(&answer)?,
            Err(error) => bail!(misunderstood(slot, &error)),
        }
    }
}

fn misunderstood(slot: usize, error: &dyn std::fmt::Display) -> String {
    format!(
        "connection {slot}: what came can't be understood ({error}); is it a gateway that listens there, and \
         for clients?"
    )
}
