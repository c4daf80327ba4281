//! Facts in: what the driver reports to the shard, and asks it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Shard;
use super::clients::cause::Cause;
use super::clock::millis;
use crate::driver::{ConnId, Event, Sink};

impl Sink for Shard {
    #[inline]
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Received { conn, bytes } => {
                if let Some(inbox) = self.clients.take_inbox(conn, bytes.len()) {
                    self.read_frames(conn.slot, inbox, bytes);
                }
            }
            Event::Sent { conn, bytes } => self.clients.send_finished(conn, bytes, &self.clock),
            Event::Accepted { conn, peer } => {
                self.clients.accepted(conn, peer, self.id, &self.clock);
                self.shared.connections.fetch_add(1, Ordering::Relaxed);
                if self.draining.is_draining() {
                    self.close_gracefully(conn.slot, Cause::Draining);
                }
            }
            Event::Ended { conn } => self.clients.peer_ended(conn),
            Event::Closed { conn, cause, unsent_bytes } => {
                if self.clients.closed(conn, cause, unsent_bytes) {
                    self.shared.connections.fetch_sub(1, Ordering::Relaxed);
                    self.apply();
                }
            }
            Event::AcceptPaused { error } => {
                self.admission.paused_by_driver(&error, self.clock.now_ms());
            }
            Event::AcceptResumed => self.admission.resumed(),
            Event::ListeningStopped { reset } => {
                self.counters.queue_resets += u64::from(reset);
                if reset > 0 {
                    tracing::warn!(
                        connections = reset,
                        "reset in the accept queue: there was no room for them before the drain's end"
                    );
                }
                self.draining.listener_closed();
            }
        }
    }

    #[inline]
    fn accept_budget(&mut self) -> usize {
        self.admission.budget(self.connections())
    }

    #[inline]
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        self.clients.take_reply(conn.slot)
    }

    fn idle_for(&mut self) -> Option<Duration> {
        let is_busy = self.clients.is_busy()
            || self.rooms.is_busy()
            || self.draining.is_busy()
            || self.has_expired_calls_left
            || self.is_finished;
        if is_busy || !self.messages.fall_asleep() {
            return Some(Duration::ZERO);
        }
        let now_ms = self.clock.now_ms();
        let in_ms = |at_ms: u64| at_ms.saturating_sub(now_ms);
        let times = [
            self.clients.next_deadline_in_ms(now_ms),
            self.calls.next_poll_ms(now_ms).map(in_ms),
            self.rooms.next_window_end_ms().map(in_ms),
            self.rebalance.next_step_ms().map(in_ms),
        ];
        let ms = times.into_iter().flatten().fold(in_ms(self.housekeeping.next_at_ms()), u64::min);
        // One more, since a wait that is cut to whole milliseconds ends too early.
        Some(Duration::from_millis(ms + 1))
    }

    #[inline]
    fn coalescing(&mut self) {
        self.counters.coalesced_waits += 1;
    }

    #[inline]
    fn woken(&mut self, now: Instant) {
        self.messages.stay_awake();
        let grace_ms = millis(self.shared.config.session.heartbeat_interval);
        self.clock.on_woken(now, grace_ms);
        self.rooms.expire_pushes(self.clock.now_ms());
    }
}
