//! Intake: whether a connection is read from, how long its frames may be, and how many it may send.
//!
//! Reading from a connection is *paused*, so its next frames wait, while it has too many calls or too many
//! unsent bytes, while its token is being verified and its session opened, and while answers on this thread have to be sent first. The
//! connection is checked again when an answer or a send has ended.

use std::collections::VecDeque;
use std::mem;

use tidegate_protocol::limits::FRAME_BEFORE_SESSION_BYTES_MAX;

use super::connection::{Connection, Flags, Phase};
use crate::allocator::SHORT_BYTES;
use crate::config::LimitsConfig;
use crate::limits::rate::{Rate, RateLimiters};
use crate::shard::clock::Clock;

/// Unsent bytes of a peer that has not authenticated, before reading is paused: a hundred answers.
const ANONYMOUS_UNSENT_BYTES_MAX: usize = 4 * 1024;

/// What a shard's connections may send.
#[derive(Debug)]
pub struct Intake {
    frame_bytes_max: usize,
    unsent_bytes_max: usize,
    calls_max: u16,
    /// The rate limits, if there are any.
    rates: Option<RateLimiters>,
    /// Slots of connections whose reading is paused and may be resumed.
    resumable: VecDeque<u32>,
    /// Bytes of long frames that were read, or discarded unfinished, since they were last taken.
    freed_bytes: usize,
}

impl Intake {
    /// The intake that is configured.
    #[must_use]
    pub fn new(limits: &LimitsConfig) -> Self {
        let rate = limits.frames_per_second_max;
        let rate = rate.map(|per_second| Rate::new(per_second, limits.frames_burst_max));
        Self {
            frame_bytes_max: limits.frame_bytes_max,
            unsent_bytes_max: limits.outbox_bytes_max / 2,
            calls_max: limits.calls_per_connection_max,
            rates: rate.map(RateLimiters::new),
            resumable: VecDeque::new(),
            freed_bytes: 0,
        }
    }

    /// Takes as many frames as another configuration allows, from now on. Where the rate is another one, each connection begins
    /// it with a full burst: what it used of the other rate means nothing here.
    pub fn reconfigure(&mut self, limits: &LimitsConfig, slots: usize) {
        let new = Self::new(limits);
        let Self { frame_bytes_max, unsent_bytes_max, calls_max, .. } = new;
        self.frame_bytes_max = frame_bytes_max;
        self.unsent_bytes_max = unsent_bytes_max;
        self.calls_max = calls_max;
        let rate = |rates: &Option<RateLimiters>| rates.as_ref().map(RateLimiters::rate);
        if rate(&self.rates) != rate(&new.rates) {
            self.rates = new.rates;
            if let Some(rates) = &mut self.rates {
                rates.reset_all(slots);
            }
        }
    }

    /// The slot has a new connection.
    pub fn reset(&mut self, slot: u32) {
        if let Some(rates) = &mut self.rates {
            rates.reset(slot);
        }
    }

    /// Whether nothing is to be resumed.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.resumable.is_empty()
    }

    /// Bytes of long frames that were freed since the last call of this function.
    pub const fn take_freed_bytes(&mut self) -> usize {
        mem::replace(&mut self.freed_bytes, 0)
    }

    /// The longest frame that is read from a connection, in bytes of payload. Without a session it is what an
    /// authentication needs.
    #[inline]
    #[must_use]
    pub fn frame_bytes_max(&self, connection: &Connection) -> usize {
        match connection.phase {
            Phase::Open => self.frame_bytes_max,
            _ => self.frame_bytes_max.min(FRAME_BEFORE_SESSION_BYTES_MAX),
        }
    }

    /// Whether a connection's requests must wait: for the session, for answers, or for unsent bytes to be sent.
    #[inline]
    #[must_use]
    pub fn must_wait(&self, connection: &Connection, unsent_bytes: usize) -> bool {
        let unsent_bytes_max = match connection.phase {
            Phase::Anonymous => ANONYMOUS_UNSENT_BYTES_MAX,
            _ => self.unsent_bytes_max,
        };
        let is_verifying = connection.has(Flags::VERIFYING) && connection.phase != Phase::Open;
        is_verifying
            || connection.phase == Phase::Registering
            || connection.has(Flags::RESUMING)
            || connection.calls >= self.calls_max
            || unsent_bytes > unsent_bytes_max
    }

    /// A frame was read: a sign of life, and a request as far as the rate is concerned.
    ///
    /// # Errors
    /// It came too early: the milliseconds that it has to wait, at least 1.
    #[inline]
    pub fn count_frame(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        bytes: usize,
        clock: &Clock,
    ) -> Result<(), u32> {
        self.count_freed(bytes);
        connection.last_seen_ms = clock.wrapping_ms();
        match &mut self.rates {
            Some(rates) => rates.admit(slot, clock.now_ms()),
            None => Ok(()),
        }
    }

    /// Counts bytes that were read or discarded, if they are many: a long frame, or a part of one. Their memory
    /// is free now, or soon.
    #[inline]
    pub const fn count_freed(&mut self, bytes: usize) {
        if bytes > SHORT_BYTES {
            self.freed_bytes += bytes;
        }
    }

    /// The reason to pause reading from a connection may be gone.
    #[inline]
    pub fn resume_later(&mut self, slot: u32, connection: &Connection) {
        if connection.has(Flags::READ_PAUSED) {
            self.resumable.push_back(slot);
        }
    }

    /// The next slot for which [`Self::resume_later`] was called.
    #[inline]
    pub fn next_resumable(&mut self) -> Option<u32> {
        self.resumable.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::clock::WallClock;
    use crate::config::Config;

    fn limits() -> LimitsConfig {
        let mut limits = Config::embedded_default().limits;
        limits.frame_bytes_max = 64 * 1024;
        limits.outbox_bytes_max = 100_000;
        limits.calls_per_connection_max = 3;
        limits
    }

    fn connection(phase: Phase) -> Connection {
        let mut connection = Connection::accepted(1, 0);
        connection.phase = phase;
        connection
    }

    #[test]
    fn a_peer_without_a_session_may_send_no_more_than_an_authentication_needs() {
        let intake = Intake::new(&limits());
        for phase in [Phase::Anonymous, Phase::Registering] {
            assert_eq!(intake.frame_bytes_max(&connection(phase)), FRAME_BEFORE_SESSION_BYTES_MAX);
        }
        assert_eq!(intake.frame_bytes_max(&connection(Phase::Open)), 64 * 1024);
        let short = LimitsConfig { frame_bytes_max: 100, ..limits() };
        assert_eq!(Intake::new(&short).frame_bytes_max(&connection(Phase::Anonymous)), 100);
    }

    #[test]
    fn requests_wait_for_a_login_for_answers_and_for_unsent_bytes() {
        let intake = Intake::new(&limits());
        let mut open = connection(Phase::Open);
        assert!(!intake.must_wait(&open, 50_000) && intake.must_wait(&open, 50_001));
        open.calls = 2;
        assert!(!intake.must_wait(&open, 0));
        open.calls = 3;
        assert!(intake.must_wait(&open, 0));
        assert!(intake.must_wait(&connection(Phase::Registering), 0));
        open.calls = 0;
        open.flags |= Flags::VERIFYING;
        assert!(!intake.must_wait(&open, 0), "a session continues while a fresh token is verified");
        let mut verifying = connection(Phase::Anonymous);
        verifying.flags |= Flags::VERIFYING;
        assert!(intake.must_wait(&verifying, 0));
        let anonymous = connection(Phase::Anonymous);
        assert!(!intake.must_wait(&anonymous, 4 * 1024));
        assert!(intake.must_wait(&anonymous, 4 * 1024 + 1));
    }

    #[test]
    fn a_rate_may_come_change_and_go_while_connections_are_open() {
        let clock = Clock::new(Instant::now(), WallClock::system());
        let mut intake = Intake::new(&limits());
        let mut open = connection(Phase::Open);
        let mut frames = |intake: &mut Intake, count: usize| -> usize {
            let mut admitted = || intake.count_frame(3, &mut open, 10, &clock).is_ok();
            (0..count).filter(|_| admitted()).count()
        };
        let rate = |per_second, burst| LimitsConfig {
            frames_per_second_max: Some(per_second),
            frames_burst_max: burst,
            ..limits()
        };
        assert_eq!(frames(&mut intake, 50), 50);
        intake.reconfigure(&rate(1, 20), 4);
        assert_eq!(frames(&mut intake, 50), 20);
        intake.reconfigure(&rate(1, 20), 4);
        assert_eq!(frames(&mut intake, 50), 0, "it is the same rate");
        // At the slow rate the connection would have to wait for twenty seconds.
        intake.reconfigure(&rate(1_000, 2), 4);
        assert_eq!(frames(&mut intake, 50), 2);
        let shorter = LimitsConfig { frame_bytes_max: 9, ..limits() };
        intake.reconfigure(&shorter, 4);
        assert_eq!(frames(&mut intake, 50), 50);
        assert_eq!(intake.frame_bytes_max(&connection(Phase::Open)), 9);
    }

    #[test]
    fn only_a_connection_whose_reading_is_paused_is_resumed() {
        let mut intake = Intake::new(&limits());
        let mut open = connection(Phase::Open);
        intake.resume_later(1, &open);
        assert!(intake.is_idle());
        open.flags |= Flags::READ_PAUSED;
        intake.resume_later(2, &open);
        assert!(!intake.is_idle());
        assert_eq!((intake.next_resumable(), intake.next_resumable()), (Some(2), None));
    }

    #[test]
    fn long_frames_and_long_parts_of_frames_make_a_burst() {
        let mut intake = Intake::new(&limits());
        let clock = Clock::new(Instant::now(), WallClock::system());
        let mut open = connection(Phase::Open);
        intake.count_frame(1, &mut open, SHORT_BYTES, &clock).unwrap();
        intake.count_freed(SHORT_BYTES);
        assert_eq!(intake.take_freed_bytes(), 0);
        intake.count_frame(1, &mut open, 5_000, &clock).unwrap();
        intake.count_freed(60_000);
        assert_eq!((intake.take_freed_bytes(), intake.take_freed_bytes()), (65_000, 0));
    }

    #[test]
    fn each_new_connection_of_a_slot_has_its_whole_rate() {
        let limited =
            LimitsConfig { frames_per_second_max: Some(1), frames_burst_max: 1, ..limits() };
        let mut intake = Intake::new(&limited);
        let clock = Clock::new(Instant::now(), WallClock::system());
        let mut open = connection(Phase::Open);
        for _ in 0..2 {
            intake.reset(7);
            assert_eq!(intake.count_frame(7, &mut open, 1, &clock), Ok(()));
            assert_eq!(intake.count_frame(7, &mut open, 1, &clock), Err(1_000));
        }
    }
}
