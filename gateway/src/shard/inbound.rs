//! Bytes in: from what a driver received to what a client asks.

use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_protocol::Code;
use tidegate_protocol::server::{self, Incoming};

use super::Shard;
use super::closing::{Cause, millis};
use crate::connection::{Connection, Phase};
use crate::driver::ConnId;
use crate::transport::Transport as _;

/// Unsent bytes of a peer that has not shown who it is, before it is not read from: a hundred answers.
const ANONYMOUS_UNSENT_BYTES_MAX: usize = 4 * 1024;

impl Shard {
    pub(super) fn on_accepted(&mut self, conn: ConnId, peer: SocketAddr) {
        let index = conn.slot as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, Connection::vacant);
        }
        let now_ms = self.clock_ms();
        let touched = self.connections[index].flags.touched;
        let mut connection = Connection::accepted(conn.generation, now_ms);
        connection.flags.touched = touched;
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (shard, slot, generation) = (self.id, conn.slot, conn.generation);
            let span = tracing::debug_span!("connection", %peer, shard, slot, generation);
            span.in_scope(|| tracing::debug!("accepted"));
            self.spans.insert(conn.slot, span);
        }
        if let Some(rates) = &mut self.rates {
            rates.reset(conn.slot);
        }
        self.connections[index] = connection;
        self.connection_count += 1;
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        self.stats.accepted += 1;
        self.timers.set(conn.slot, self.now_ms + millis(self.shared.config.auth.timeout));
        if self.draining.is_some() {
            self.say_goodbye(conn.slot, Cause::Draining, Some(Code::Draining));
        }
    }

    #[inline]
    pub(super) fn on_received(&mut self, conn: ConnId, wire: &[u8]) {
        let now_ms = self.clock_ms();
        self.stats.received_bytes += wire.len() as u64;
        let Some(connection) = self.connection(conn) else { return };
        if connection.is_going() {
            self.stats.discarded_bytes += wire.len() as u64;
            return;
        }
        connection.last_seen_ms = now_ms;
        let mut transport = mem::take(&mut connection.transport);
        match transport.open(wire) {
            Ok(bytes) => self.read(conn.slot, &bytes),
            Err(error) => self.malformed(conn.slot, &error),
        }
        self.at(conn.slot).transport = transport;
    }

    /// Reads frames until there are none, or the connection holds or ends.
    #[inline]
    fn read(&mut self, slot: u32, bytes: &[u8]) {
        let frame_bytes_max = self.shared.config.limits.frame_bytes_max;
        let mut inbox = mem::take(&mut self.at(slot).inbox);
        let mut frames = inbox.frames(bytes, frame_bytes_max);
        loop {
            if self.holds(slot) {
                self.at(slot).flags.held = true;
                self.touch(slot);
                frames.keep_rest();
                break;
            }
            match frames.next() {
                Ok(Some(payload)) => self.on_frame(slot, payload),
                Ok(None) => {
                    frames.keep_rest();
                    break;
                }
                Err(error) => {
                    self.malformed(slot, &error);
                    self.stats.discarded_bytes += frames.discard_rest() as u64;
                    break;
                }
            }
            if self.at(slot).is_going() {
                self.stats.discarded_bytes += frames.discard_rest() as u64;
                break;
            }
        }
        self.at(slot).inbox = inbox;
    }

    /// Whether requests must wait: for the session, for answers, or for room to answer.
    #[inline]
    fn holds(&mut self, slot: u32) -> bool {
        let limits = &self.shared.config.limits;
        let connection = &self.connections[slot as usize];
        let unsent_bytes_max = match connection.phase {
            Phase::Anonymous => ANONYMOUS_UNSENT_BYTES_MAX,
            _ => limits.outbox_bytes_max / 2,
        };
        connection.holds(limits.calls_per_connection_max)
            || self.unsent_bytes(slot) > unsent_bytes_max
    }

    /// Reads on where it stopped, if the reason is gone.
    #[inline]
    pub(super) fn read_on(&mut self, slot: u32) {
        if self.at(slot).flags.held && !self.holds(slot) {
            let now_ms = self.clock_ms();
            let connection = self.at(slot);
            connection.flags.held = false;
            // Silence that nobody listened to doesn't count.
            connection.last_seen_ms = now_ms;
            self.read(slot, &[]);
            self.touch(slot);
        }
    }

    #[inline]
    fn on_frame(&mut self, slot: u32, payload: &[u8]) {
        self.stats.received_frames += 1;
        let incoming = match Incoming::decode(payload) {
            Ok(incoming) => incoming,
            Err(error) => return self.malformed(slot, &error),
        };
        if let Some(rates) = &mut self.rates
            && let Err(retry_after_ms) = rates.ask(slot, self.now_ms)
        {
            let (kind, sequence) = (incoming.kind(), incoming.sequence());
            return self.write_failure(slot, kind, sequence, Code::RateLimited, retry_after_ms);
        }
        match incoming {
            Incoming::Business { kind, biz_data, sequence } => {
                self.on_business(slot, kind, biz_data, sequence);
            }
            Incoming::Heartbeat { sequence } => {
                self.stats.heartbeats += 1;
                self.write_control(slot, |out| server::put_pong(out, sequence, unix_ms()));
            }
            Incoming::Authenticate { user_id, token, sequence } => {
                self.on_authenticate(slot, user_id, token, sequence);
            }
        }
    }

    fn malformed(&mut self, slot: u32, error: &dyn std::error::Error) {
        self.log(slot, || tracing::debug!(%error, "malformed"));
        self.say_goodbye(slot, Cause::Malformed, Some(Code::Malformed));
    }

    /// The client has shut down its sending side: it still gets what it is owed.
    pub(super) fn on_ended(&mut self, conn: ConnId) {
        if let Some(connection) = self.connection(conn) {
            connection.flags.ended = true;
            if connection.phase == Phase::Lingering {
                connection.phase = Phase::Aborted;
            }
            self.touch(conn.slot);
        }
    }

    /// Whether a connection that has ended has the answers to all that it asked, as far as they can
    /// be written.
    pub(super) fn is_done(&self, slot: u32) -> bool {
        let connection = &self.connections[slot as usize];
        connection.flags.ended
            && !connection.flags.held
            && connection.calls == 0
            && matches!(connection.phase, Phase::Anonymous | Phase::Open)
    }

    /// The shard's clock as connections keep it: it wraps after 49 days, and is compared as one that does.
    #[expect(clippy::cast_possible_truncation, reason = "a clock that wraps")]
    #[inline]
    pub(super) fn clock_ms(&self) -> u32 {
        self.now_ms as u32
    }
}

/// What time it is for people, in milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
