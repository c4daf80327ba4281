//! Facts in: what a driver tells the shard, and asks it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Shard;
use super::closing::{Draining, millis};
use crate::driver::{ConnId, Event, Sink};

/// Time that the shard did not look at its sockets, in milliseconds, after which it trusts no
/// connection's silence: by itself it waits for its next housekeeping at most.
const AWAY_MS: u64 = 1_000;

/// How soon after workers were given calls the shard looks for their answers unasked, in milliseconds:
/// a wake-up that waits for a batch's end may wait for a slow call of it.
const LOOK_FOR_ANSWERS_MS: u64 = 16;

impl Sink for Shard {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Received { conn, bytes } => self.on_received(conn, bytes),
            Event::Sent { conn, bytes } => self.on_sent(conn, bytes),
            Event::Accepted { conn, peer } => self.on_accepted(conn, peer),
            Event::Ended { conn } => self.on_ended(conn),
            Event::Closed { conn, cause, unsent_bytes } => {
                self.stats.unsent_bytes += unsent_bytes as u64;
                self.on_closed(conn, cause);
            }
            Event::AcceptPaused { error } => self.on_accept_paused(&error),
            Event::AcceptResumed => self.tell_of_resumption(),
            Event::ListeningStopped { reset } => self.on_listening_stopped(reset),
        }
    }

    #[inline]
    fn room(&mut self) -> usize {
        self.places_left()
    }

    #[inline]
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        self.take_reply(conn.slot)
    }

    fn idle_for(&mut self) -> Option<Duration> {
        let busy = !self.touched.is_empty()
            || !self.unsent_less.is_empty()
            || !self.local.is_empty()
            || self.fan_out.is_busy()
            || self.draining.as_ref().is_some_and(Draining::is_busy)
            || self.deadlines_left
            || self.finished;
        let mailbox = self.shared.addresses[usize::from(self.id)].mailbox();
        if busy || !mailbox.fall_asleep() {
            return Some(Duration::ZERO);
        }
        let timers = self.timers.next_in_ms(self.now_ms);
        let calls = self.router.pending.next_deadline_ms();
        let calls = calls.map(|at_ms| at_ms.saturating_sub(self.now_ms));
        let housekeeping = self.housekeeping_at_ms.saturating_sub(self.now_ms);
        let windows = self.windows.next_end_ms().map(|at_ms| at_ms.saturating_sub(self.now_ms));
        // Twice as long each time, so that a slow backend costs few looks.
        let look = self.now_ms.saturating_sub(self.handed_over_at_ms).max(LOOK_FOR_ANSWERS_MS);
        let look = calls.map(|_| look);
        let deadlines = timers.into_iter().chain(calls).chain(look).chain(windows);
        let ms = deadlines.fold(housekeeping, u64::min);
        // One more, since a wait that is cut to whole milliseconds ends too early.
        Some(Duration::from_millis(ms + 1))
    }

    #[inline]
    fn woken(&mut self, now: Instant) {
        self.shared.addresses[usize::from(self.id)].mailbox().stay_awake();
        self.received_us = self.micros(now);
        self.answered_us = self.received_us;
        let now_ms = self.received_us / 1_000;
        if now_ms > self.now_ms + AWAY_MS {
            self.grace_until_ms = now_ms + millis(self.shared.config.session.heartbeat_interval);
        }
        self.now_ms = now_ms;
    }
}

impl Shard {
    /// The shard's clock: microseconds since it started.
    #[inline]
    pub(super) fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.shared.started);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}
