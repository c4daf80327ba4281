//! Echoes: sends requests in a closed or an open loop, and checks every byte of the answers.

use anyhow::bail;
use tidegate_protocol::frame::frame_len;
use tidegate_protocol::limits::FRAME_TO_CLIENT_BYTES_MAX;
use tidegate_protocol::message::{Request, Response, SUCCESS};

use super::clock::{Nanos, due_after};
use super::latency::{Latency, LiveStats};
use super::pattern::Pattern;
use super::session::BUSINESS_SEQUENCE;
use super::sockets::Sockets;
use crate::count::{counted, grouped};

/// The demo backend's type that echoes.
pub(super) const ECHO_KIND: i32 = 1;
/// Open loop: requests in flight on one connection. Further ones wait, and their latency includes the wait.
const IN_FLIGHT_MAX: u32 = 1024;
/// A raw message is as long as a request with this sequence: it takes two bytes, as most of a run's do.
const TYPICAL_SEQUENCE: u64 = 1000;

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// A request follows each answer on the same connection: `depth` in flight on each.
    Closed { depth: u32 },
    /// This many a second in total, whether answers come or not.
    Open { per_second: f64 },
    /// One on each connection, with at most this many in flight.
    Once { in_flight_max: u64 },
    /// A request follows each answer on the next connection: this many in flight in total.
    RoundRobin { in_flight: u64 },
    /// When [`Echo::send_one`] is called, one at a time on each connection.
    OnDemand,
}

/// What is sent, when, and on which connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct EchoPlan {
    /// The first connection's slot.
    pub(super) first_slot: usize,
    /// The number of connections.
    pub(super) count: usize,
    /// The requests' type.
    pub(super) kind: i32,
    /// Bytes of `biz_data`.
    pub(super) bytes: usize,
    /// When requests are sent.
    pub(super) pace: Pace,
    /// Sends and expects bare bytes, without the protocol.
    pub(super) raw: bool,
}

/// The requests of one connection.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    sent: u64,
    /// Answers in the window.
    counted: u64,
    /// Requests that are not answered. in_flight <= sent
    in_flight: u32,
    /// Raw: bytes of the next answer that have arrived.
    partial_bytes: u32,
}

impl Lane {
    #[inline]
    fn answered(&self) -> u64 {
        self.sent - u64::from(self.in_flight)
    }
}

/// The requests of a worker's connections.
#[derive(Debug)]
pub(super) struct Echo {
    plan: EchoPlan,
    pattern: Pattern,
    lanes: Vec<Lane>,
    /// When each request in flight was sent, where no schedule tells: `depth` entries for each lane.
    sent_at: Vec<Nanos>,
    depth: u32,
    /// Turns of the lanes so far, where the pace is not closed: number `n` belongs to lane `n % count`.
    turns: u64,
    /// Requests of all lanes. answered <= sent
    sent: u64,
    answered: u64,
    started_at: Nanos,
    sending: bool,
    counting: bool,
    /// From the sending, scheduled or real, to the answer.
    pub(super) latency: Latency,
}

impl Echo {
    pub(super) fn new(mut plan: EchoPlan) -> Self {
        let bytes = if plan.raw { request_bytes(&plan) } else { plan.bytes };
        plan.bytes = bytes;
        let depth = match plan.pace {
            Pace::Closed { depth } => depth,
            Pace::RoundRobin { .. } | Pace::OnDemand => 1,
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

    /// Starts sending.
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

    /// Starts counting, from zero.
    pub(super) fn start_counting(&mut self) {
        self.counting = true;
        self.latency.start_counting();
        self.lanes.iter_mut().for_each(|lane| lane.counted = 0);
    }

    /// Stops counting and sending. Answers to requests in flight are still checked.
    pub(super) fn stop(&mut self) {
        self.counting = false;
        self.sending = false;
        self.latency.stop_counting();
    }

    /// Whether every request has been answered.
    pub(super) fn drained(&self) -> bool {
        self.sent == self.answered
    }

    /// Whether every connection has had its answer ([`Pace::Once`]).
    pub(super) fn all_answered(&self) -> bool {
        self.sent >= self.plan.count as u64 && self.drained()
    }

    /// Requests sent and answers received in the whole run.
    pub(super) fn sent_and_answered(&self) -> (u64, u64) {
        (self.sent, self.answered)
    }

    /// The answers of each connection in the window.
    pub(super) fn counted(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.counted).collect()
    }

    /// Ends the second.
    pub(super) fn flush(&mut self, live: Option<&LiveStats>) {
        self.latency.flush(live);
    }

    /// Adds another worker's results. Its connections follow this worker's.
    pub(super) fn merge(&mut self, other: Self) {
        self.lanes.extend(other.lanes);
        self.latency.merge(other.latency);
    }

    /// Sends the requests that are due, where the pace is not closed. Returns when the next is.
    pub(super) fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        let mut skipped = 0;
        while self.sending && skipped < self.plan.count {
            let lane = usize::try_from(self.turns % self.plan.count as u64).unwrap_or_default();
            let in_flight = self.sent - self.answered;
            match self.plan.pace {
                Pace::Closed { .. } | Pace::OnDemand => return None,
                Pace::Once { in_flight_max } => {
                    let all_sent = self.sent == self.plan.count as u64;
                    if all_sent || in_flight == in_flight_max {
                        return None;
                    }
                }
                Pace::RoundRobin { in_flight: most } => {
                    if in_flight == most {
                        return None;
                    }
                    if self.lanes[lane].in_flight > 0 {
                        // Its last answer is late: it is skipped until its next turn.
                        self.turns += 1;
                        skipped += 1;
                        continue;
                    }
                }
                Pace::Open { per_second } => {
                    let due_at = self.scheduled_at(self.turns, per_second);
                    if due_at > now {
                        return Some(due_at);
                    }
                    if self.lanes[lane].in_flight == IN_FLIGHT_MAX {
                        return None;
                    }
                }
            }
            sockets.send(self.plan.first_slot + lane, |out| self.put_next(lane, out, now));
            self.turns += 1;
        }
        None
    }

    /// Sends one request on a connection, unless one is in flight there. Returns whether it did.
    pub(super) fn send_one(&mut self, slot: usize, sockets: &mut Sockets, now: Nanos) -> bool {
        let lane = slot - self.plan.first_slot;
        let free = self.lanes[lane].in_flight == 0;
        if free {
            sockets.send(slot, |out| self.put_next(lane, out, now));
        }
        free
    }

    /// Checks an answer. In a closed loop, sends the next request.
    ///
    /// # Errors
    /// It is not the answer that is due, or differs from what was sent.
    #[inline]
    pub(super) fn answered(
        &mut self,
        slot: usize,
        answer: &Response<'_>,
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> anyhow::Result<()> {
        if answer.sequence == 0 && answer.status == SUCCESS {
            // A push: another client or an operator may push to all clients at any time.
            return Ok(());
        }
        let lane = slot - self.plan.first_slot;
        let Lane { in_flight, .. } = self.lanes[lane];
        let expected = BUSINESS_SEQUENCE + self.lanes[lane].answered();
        if in_flight == 0 || answer.sequence != expected || answer.kind != self.plan.kind {
            bail!(
                "connection {slot}: an answer of type {} to request {} came; the one due was to \
                 request {expected}, with {in_flight} in flight",
                answer.kind,
                answer.sequence
            );
        }
        check(slot, expected, answer.biz_data, self.pattern.message(slot, expected))?;
        self.complete(lane, out, now);
        Ok(())
    }

    /// Checks bytes that came back without the protocol.
    ///
    /// # Errors
    /// They differ from what was sent.
    pub(super) fn echoed(
        &mut self,
        slot: usize,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let lane = slot - self.plan.first_slot;
        while !bytes.is_empty() {
            let Lane { in_flight, partial_bytes, .. } = self.lanes[lane];
            if in_flight == 0 {
                let bytes = counted(bytes.len(), "byte");
                bail!("connection {slot}: {bytes} came, and none was due");
            }
            let sequence = BUSINESS_SEQUENCE + self.lanes[lane].answered();
            let expected = &self.pattern.message(slot, sequence)[partial_bytes as usize..];
            let (part, rest) = bytes.split_at(expected.len().min(bytes.len()));
            check(slot, sequence, part, &expected[..part.len()])?;
            bytes = rest;
            if part.len() < expected.len() {
                self.lanes[lane].partial_bytes += u32::try_from(part.len())?;
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
        self.lanes[lane].in_flight -= 1;
        self.answered += 1;
        let sent_at = match self.plan.pace {
            Pace::Closed { .. } | Pace::RoundRobin { .. } | Pace::OnDemand => {
                self.sent_at[sent_at_index(lane, answered, self.depth)]
            }
            Pace::Open { per_second } => {
                self.scheduled_at(answered * self.plan.count as u64 + lane as u64, per_second)
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
            self.sent_at[sent_at_index(lane, number, self.depth)] = now;
        }
        self.lanes[lane].sent += 1;
        self.lanes[lane].in_flight += 1;
        self.sent += 1;
    }

    #[inline]
    fn scheduled_at(&self, number: u64, per_second: f64) -> Nanos {
        self.started_at + due_after(number, 1e9 / per_second)
    }
}

/// The index into [`Echo::sent_at`] of a lane's request `number`.
#[inline]
fn sent_at_index(lane: usize, number: u64, depth: u32) -> usize {
    let offset = number % u64::from(depth);
    lane * depth as usize + usize::try_from(offset).unwrap_or_default()
}

fn request_bytes(plan: &EchoPlan) -> usize {
    let biz_data = &vec![0; plan.bytes][..];
    let sequence = TYPICAL_SEQUENCE;
    frame_len(Request { kind: plan.kind, biz_data, sequence, ..Request::default() }.payload_len())
}

#[inline]
fn check(slot: usize, sequence: u64, received: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    if received == sent {
        return Ok(());
    }
    let at = received.iter().zip(sent).take_while(|(received, sent)| received == sent).count();
    bail!(
        "connection {slot}: the answer to request {sequence} has {}, the request had {}; they differ from byte \
         {at} on",
        counted(received.len(), "byte"),
        grouped(sent.len())
    )
}

/// Decodes the frames in `bytes` and calls `take` with each answer.
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
            Err(error) => return Err(not_a_gateway(slot, &error)),
        };
        match answer {
            Ok(answer) => take(&answer)?,
            Err(error) => return Err(not_a_gateway(slot, &error)),
        }
    }
}

/// Received bytes are not the clients' protocol. The text says which connection received them, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ForeignBytes(String);

impl ForeignBytes {
    /// What a connection received instead.
    pub(super) fn new(slot: usize, what: &str) -> Self {
        Self(format!("connection {slot}: {what}"))
    }
}

fn not_a_gateway(slot: usize, error: &dyn std::fmt::Display) -> anyhow::Error {
    let text = format!(
        "the bytes received are not Tidegate's protocol ({error}); does a gateway listen there, and is it its port for \
         clients?"
    );
    ForeignBytes::new(slot, &text).into()
}
