//! Traffic between the driver and the clients' connections: the one place in which the shard handles bytes and sockets.
//!
//! | what happens | where |
//! |---|---|
//! | a connection is accepted, has ended, is closed | [`Sink::event`] |
//! | bytes were received: they are cut into frames, each of which is a [request](super::requests) | [`Shard::read_frames`] |
//! | reading was paused, and is resumed | [`Shard::answer_and_resume`] |
//! | pushes of rooms are sent to their members | [`Shard::fan_out`] |
//! | bytes that wait for a connection are sent | [`Sink::reply`], [`Shard::flush`] |
//! | a connection is closed, after what waits for it | [`Shard::close_gracefully`] |
//!
//! The parts decide what is read and sent, and when: [`clients`](super::clients) and [`delivery`].

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_protocol::Reassembler;

use super::clients::cause::Cause;
use super::clock::millis;
use super::delivery::TooSlow;
use super::draining::spread;
use super::{Shard, delivery};
use crate::driver::{ConnId, Driver, Event, SendState, Sink};
use crate::limits::addresses::Refusal;

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
            Event::Accepted { conn, peer, listener, is_open } => {
                self.clients.accepted(conn, peer, is_open, self.id, &self.clock);
                self.note_address(conn, peer);
                self.shared.connections.fetch_add(1, Ordering::Relaxed);
                // Before its wire is open it could not be told why: until the drain's end it has time for that.
                if self.draining.is_draining() && (is_open || self.draining.has_expired()) {
                    self.close_gracefully(conn.slot, Cause::Draining);
                } else if !self.arrivals.is_proxied(listener) {
                    self.arrived(conn, peer);
                }
                if is_open {
                    self.let_in(conn);
                }
            }
            Event::Named { conn, peer } => {
                self.clients.named(conn, peer);
                self.note_address(conn, peer);
                self.arrived(conn, peer);
            }
            Event::Opened { conn, is_websocket } => {
                self.counters.websockets += u64::from(is_websocket);
                if self.clients.opened(conn, &self.clock) {
                    if self.draining.is_draining() {
                        self.close_gracefully(conn.slot, Cause::Draining);
                    } else {
                        self.let_in(conn);
                    }
                }
            }
            Event::Failed { conn, failure, reason } => {
                if self.clients.wire_failed(conn, reason) {
                    self.close_gracefully(conn.slot, failure.into());
                }
            }
            Event::Ended { conn } => self.clients.peer_ended(conn),
            Event::Closed { conn, cause, unsent_bytes } => {
                self.arrivals.left(conn, &self.shared.address_limits);
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
        self.admission.budget(self.connections(), self.clock.now_ms())
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
            self.draining.next_step_ms().map(in_ms),
            self.admission.next_ms().map(in_ms),
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
        let grace_ms = millis(self.settings.config.session.heartbeat_interval);
        self.clock.on_woken(now, grace_ms);
        self.rooms.expire_pushes(self.clock.now_ms());
    }
}

/// Bytes in.
impl Shard {
    /// The address of a new connection is known: it is served, if its address may have it.
    fn arrived(&mut self, conn: ConnId, peer: SocketAddr) {
        let Self { arrivals, shared, clock, .. } = self;
        let limits = &shared.address_limits;
        match arrivals.arrived(conn, peer.ip(), limits, clock.now_ms()) {
            Ok(()) => {}
            Err(Refusal::Banned) => self.clients.abort(conn.slot, Cause::Banned),
            Err(refusal) if self.may_say_why() => self.close_gracefully(conn.slot, refusal.into()),
            Err(refusal) => self.clients.abort(conn.slot, refusal.into()),
        }
    }

    /// The wire of a new connection is open: it stays, if the pace allows it.
    fn let_in(&mut self, conn: ConnId) {
        if self.draining.is_draining() || self.clients.at(conn.slot).is_closing() {
            return;
        }
        if let Err(retry_after_ms) = self.admission.let_in(self.clock.now_ms()) {
            if self.may_say_why() {
                self.close_gracefully_with(conn.slot, Cause::TurnedAway, retry_after_ms, None);
            } else {
                self.clients.abort(conn.slot, Cause::TurnedAway);
            }
        }
    }

    /// Whether a connection that is refused may be told why. It then has its place until its client closes, or for 2 s: nobody
    /// may take all places in that way.
    fn may_say_why(&mut self) -> bool {
        self.admission.may_say_why(self.clock.now_ms())
    }

    /// The address of a connection's client, or of the balancer before it, is known.
    #[inline]
    fn note_address(&mut self, conn: ConnId, peer: SocketAddr) {
        if let Some(signatures) = self.settings.verifier.signatures() {
            self.clients.set_flow(conn, signatures.flow(peer.ip()));
        }
    }

    /// Reads frames until there are none, or reading is paused, or the connection is closed.
    #[inline]
    fn read_frames(&mut self, slot: u32, mut inbox: Reassembler, bytes: &[u8]) {
        let mut frames = inbox.frames(bytes, 0);
        while self.may_read_frame(slot) {
            // The frame before may have opened the session.
            frames.set_payload_bytes_max(self.clients.frame_bytes_max(slot));
            match frames.next() {
                Ok(Some(payload)) => self.on_frame(slot, payload),
                Ok(None) => break,
                Err(error) => self.on_malformed(slot, &error),
            }
            if self.clients.at(slot).is_closing() {
                self.clients.count_discarded(frames.discard_rest());
                return self.apply();
            }
        }
        frames.keep_rest();
        self.clients.put_inbox(slot, inbox);
        self.apply();
    }

    #[inline]
    fn may_read_frame(&mut self, slot: u32) -> bool {
        if self.has_answers_left {
            self.clients.pause_reading_for_answers(slot);
            return false;
        }
        self.clients.may_read_frame(slot)
    }

    pub(super) fn on_malformed(&mut self, slot: u32, error: &dyn std::error::Error) {
        self.clients.log(slot, || tracing::debug!(%error, "malformed"));
        self.close_gracefully(slot, Cause::Malformed);
    }

    /// Passes on the answers that were given on this thread, and resumes reading where it was paused. Each may
    /// cause the other, so this repeats until there are none. It is a loop and not a recursion: clients could
    /// make a recursion arbitrarily deep.
    pub(super) fn answer_and_resume(&mut self, driver: &mut impl Driver) {
        loop {
            if self.clients.has_long_outbox() && self.calls.has_answers() {
                // What the driver does not take is under way then, and the bound on what waits behind it holds.
                self.flush_listed(driver);
            }
            if let Some(answer) = self.calls.next_answer() {
                self.on_answer(answer);
                self.apply();
                continue;
            }
            self.has_answers_left = false;
            if let Some(slot) = self.clients.next_resumed(&self.clock) {
                let conn = self.clients.conn_id(slot);
                if let Some(inbox) = self.clients.take_inbox(conn, 0) {
                    self.read_frames(slot, inbox, &[]);
                }
            } else {
                return;
            }
        }
    }
}

/// Bytes out, and closing.
impl Shard {
    /// Serves one turn's slice of members.
    pub(super) fn fan_out(&mut self, driver: &mut impl Driver) {
        let mut budget = self.settings.config.limits.fan_out_slice_members;
        loop {
            let Self { rooms, clients, clock, .. } = self;
            let too_slow = delivery::fan_out(rooms, clients, &mut budget, driver, clock);
            let Some(slot) = too_slow else { return };
            self.close_slow_member(slot);
        }
    }

    /// Flushes every connection in the list of those to flush.
    pub(super) fn flush(&mut self, driver: &mut impl Driver) {
        // A connection that may be read from again need not be paused first.
        self.answer_and_resume(driver);
        self.flush_listed(driver);
    }

    fn flush_listed(&mut self, driver: &mut impl Driver) {
        let mut flush_list = self.clients.take_flush_list();
        for slot in flush_list.drain(..) {
            if self.clients.start_flush(slot, driver) {
                self.send_waiting(slot, driver);
            }
        }
        self.clients.put_flush_list(flush_list);
    }

    /// Sends what waits for a connection, as long as the driver takes it.
    #[inline]
    fn send_waiting(&mut self, slot: u32, driver: &mut impl Driver) {
        while self.clients.at(slot).in_flight_bytes == 0 {
            let piece = delivery::next_piece(&mut self.rooms, &mut self.clients, slot);
            let piece = piece.unwrap_or_else(|TooSlow| {
                self.close_slow_member(slot);
                None
            });
            if self.clients.at(slot).has_finished() {
                // It has the answers to all that it asked. It gets no later pushes.
                self.rooms.leave_all(slot, self.clock.now_ms());
                self.apply();
            }
            let Some(piece) = piece else {
                self.clients.finish_flush(slot, driver, &self.clock);
                return self.apply();
            };
            let state = self.clients.send(slot, piece, driver, &self.clock);
            if state == SendState::UnderWay || !self.clients.has_more(slot) {
                return;
            }
        }
    }

    fn close_slow_member(&mut self, slot: u32) {
        self.clients.abort(slot, Cause::SlowMember);
        self.apply();
    }

    /// Closes a connection after what waits for it, the last pushes of its rooms, and the goodbye of the cause.
    pub(super) fn close_gracefully(&mut self, slot: u32, cause: Cause) {
        if self.clients.at(slot).is_closing() {
            return;
        }
        let Self { draining, clock, settings, .. } = self;
        let (retry_after_ms, until_ms) = match cause {
            Cause::Draining => (draining.retry_after_ms(slot), draining.close_until_ms()),
            Cause::Rebalanced | Cause::Aged => {
                let leave_until_ms = draining.leave_until_ms(clock.now_ms());
                // A drain does not wait longer for it than for others.
                let until_ms = draining
                    .close_until_ms()
                    .map_or(leave_until_ms, |until_ms| until_ms.min(leave_until_ms));
                (draining.retry_after_ms(slot), Some(until_ms))
            }
            Cause::AddressConnections | Cause::AddressAccepts => {
                (spread(settings.config.addresses.retry_after, slot), None)
            }
            _ => (0, None),
        };
        self.close_gracefully_with(slot, cause, retry_after_ms, until_ms);
    }

    /// Closes a connection that is not closing. `until_ms`: how long it may take to be sent its answers.
    fn close_gracefully_with(
        &mut self,
        slot: u32,
        cause: Cause,
        retry_after_ms: u32,
        until_ms: Option<u64>,
    ) {
        let Self { clients, rooms, clock, .. } = self;
        if !clients.is_resuming(slot) {
            delivery::write_last_pushes(rooms, clients, slot);
        }
        clients.close_gracefully(slot, cause, retry_after_ms, until_ms, clock);
        self.apply();
    }
}
