//! Requests that come back: sending them in a closed or an open loop, and checking every byte.

use anyhow::bail;
use hdrhistogram::Histogram;
use tidegate_protocol::frame::frame_len;
use tidegate_protocol::limits::FRAME_TO_CLIENT_BYTES_MAX;
use tidegate_protocol::message::{Request, Response, SUCCESS};

use super::engine::{Nanos, Sockets, due_after};
use super::pattern::Pattern;
use super::report::{histogram, record};
use super::session::BUSINESS_SEQUENCE;

/// Open loop: requests under way on one connection. More wait, and their latency counts the wait.
const UNDER_WAY_MAX: u64 = 1024;
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
    /// answered <= sent
    answered: u64,
    /// Answers in the window.
    counted: u64,
    /// Raw: bytes of the next answer that have come.
    partial_bytes: usize,
}

/// Requests on some connections.
#[derive(Debug)]
pub(super) struct Echo {
    plan: EchoPlan,
    pattern: Pattern,
    lanes: Vec<Lane>,
    /// Closed loop: when each request under way was sent; `depth` for each lane.
    sent_at: Vec<Nanos>,
    /// Open loop, and once: requests sent so far, on all lanes. Number `n` goes to lane `n % count`.
    sent: u64,
    under_way: u64,
    started_at: Nanos,
    sending: bool,
    counting: bool,
    /// From the (intended) sending to the answer.
    pub(super) latency: Histogram<u64>,
}

impl Echo {
    pub(super) fn new(mut plan: EchoPlan) -> Self {
        let bytes = if plan.raw { request_bytes(&plan) } else { plan.bytes };
        plan.bytes = bytes;
        let depth = match plan.pace {
            Pace::Closed { depth } => depth as usize,
            Pace::Open { .. } | Pace::Once { .. } => 0,
        };
        Self {
            pattern: Pattern::new(bytes),
            lanes: vec![Lane::default(); plan.count],
            sent_at: vec![0; plan.count * depth],
            sent: 0,
            under_way: 0,
            started_at: 0,
            sending: false,
            counting: false,
            latency: histogram(),
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
        self.latency.reset();
        self.lanes.iter_mut().for_each(|lane| lane.counted = 0);
    }

    /// Stops to count and to send. What is under way will still be checked.
    pub(super) fn stop(&mut self) {
        self.counting = false;
        self.sending = false;
    }

    /// Whether every request has been answered.
    pub(super) fn drained(&self) -> bool {
        self.under_way == 0
    }

    /// Whether every connection has had an answer.
    pub(super) fn all_answered(&self) -> bool {
        self.sent >= self.plan.count as u64 && self.drained()
    }

    /// Answers in the window, for each connection.
    pub(super) fn counted(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.counted).collect()
    }

    /// Sends what is due, where answers don't decide that; says when the next will be.
    pub(super) fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        while self.sending {
            let lane = usize::try_from(self.sent % self.plan.count as u64).unwrap_or_default();
            match self.plan.pace {
                Pace::Closed { .. } => return None,
                Pace::Once { under_way_max } => {
                    let all_sent = self.sent == self.plan.count as u64;
                    if all_sent || self.under_way == under_way_max {
                        return None;
                    }
                }
                Pace::Open { per_second } => {
                    let due_at = self.intended_at(self.sent, per_second);
                    if due_at > now {
                        return Some(due_at);
                    }
                    if self.lanes[lane].sent - self.lanes[lane].answered == UNDER_WAY_MAX {
                        return None;
                    }
                }
            }
            sockets.send(self.plan.first_slot + lane, |out| self.put_next(lane, out, now));
            self.sent += 1;
        }
        None
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
        let Lane { sent, answered, .. } = self.lanes[lane];
        let expected = BUSINESS_SEQUENCE + answered;
        if sent == answered || answer.sequence != expected || answer.kind != self.plan.kind {
            bail!(
                "connection {slot}: an answer of type {} to request {} came; the one due was to \
                 request {expected}, of {} under way",
                answer.kind,
                answer.sequence,
                sent - answered
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
            let Lane { sent, answered, partial_bytes, .. } = self.lanes[lane];
            if sent == answered {
                bail!("connection {slot}: {} bytes came that were never sent", bytes.len());
            }
            let sequence = BUSINESS_SEQUENCE + answered;
            let expected = &self.pattern.message(slot, sequence)[partial_bytes..];
            let (now_come, rest) = bytes.split_at(expected.len().min(bytes.len()));
            check(slot, sequence, now_come, &expected[..now_come.len()])?;
            bytes = rest;
            if now_come.len() < expected.len() {
                self.lanes[lane].partial_bytes += now_come.len();
            } else {
                self.lanes[lane].partial_bytes = 0;
                self.complete(lane, out, now);
            }
        }
        Ok(())
    }

    #[inline]
    fn complete(&mut self, lane: usize, out: &mut Vec<u8>, now: Nanos) {
        let answered = self.lanes[lane].answered;
        self.lanes[lane].answered += 1;
        self.under_way -= 1;
        if self.counting {
            let sent_at = match self.plan.pace {
                Pace::Closed { depth } => self.sent_at[slot_of(lane, answered, depth)],
                Pace::Open { per_second } => {
                    self.intended_at(answered * self.plan.count as u64 + lane as u64, per_second)
                }
                Pace::Once { .. } => self.started_at,
            };
            self.lanes[lane].counted += 1;
            record(&mut self.latency, now.saturating_sub(sent_at));
        }
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
        if let Pace::Closed { depth } = self.plan.pace {
            self.sent_at[slot_of(lane, number, depth)] = now;
        }
        self.lanes[lane].sent += 1;
        self.under_way += 1;
    }

    #[inline]
    fn intended_at(&self, number: u64, per_second: f64) -> Nanos {
        self.started_at + due_after(number, 1e9 / per_second)
    }
}

/// Where a lane's request `number` has its time of sending.
#[inline]
fn slot_of(lane: usize, number: u64, depth: u32) -> usize {
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
        "connection {slot}: request {sequence} came back with {} bytes where {} were sent; they \
         differ from byte {at} on",
        came.len(),
        sent.len()
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
            Err(error) => bail!("connection {slot}: {error}"),
        };
        match answer {
            Ok(answer) => take(&answer)?,
            Err(error) => bail!("connection {slot}: {error}"),
        }
    }
}
