//! How connections end, and how the shard does.
//!
//! Every connection is parted with exactly once, for one [`Cause`], which is counted. The gateway's
//! own partings say why in a last frame, wait until it is sent, shut down the sending side and linger
//! until the peer has closed too: a socket closed with unread bytes is reset by the kernel, and a
//! reset takes the last frame with it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_protocol::{Code, server};

use super::Shard;
use crate::connection::{Connection, Phase};
use crate::driver::{CloseCause, ConnId, Driver};
use crate::router::Pending;

/// How long a connection lingers after its last frame, in milliseconds: a few round trips of a bad
/// mobile network.
const LINGER_MS: u64 = 2_000;

/// Connections that one turn says goodbye to, when the shard drains.
const GOODBYES_MAX: usize = 1024;

/// Defines [`Cause`] and its labels.
macro_rules! causes {
    ($($name:ident, $label:literal, $help:literal;)*) => {
        /// Why a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Cause {
            $(#[doc = $help] $name,)*
        }

        impl Cause {
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// All of them, in order.
            pub const ALL: [Self; [$($label,)*].len()] = [$(Self::$name,)*];

            /// The metric's label.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

causes! {
    Peer, "peer", "The client closed.";
    Reset, "reset", "The client, or the network, reset the connection.";
    TimedOut, "timed_out", "What was sent was not acknowledged in time.";
    Failed, "failed", "The kernel failed.";
    Malformed, "malformed", "A frame could not be read: 106.";
    Replaced, "replaced", "The user came in elsewhere, or was kicked: 107.";
    Idle, "idle", "No sign of life: 109.";
    AuthTimeout, "auth_timeout", "It did not authenticate in time: 109.";
    AuthFailed, "auth_failed", "Too many failed tries to authenticate: 100.";
    OutboxFull, "outbox_full", "More than `outbox_bytes_max` bytes wait behind a send.";
    SlowMember, "slow_member", "Too slow for a room whose policy is to close.";
    Draining, "draining", "The gateway goes away: 108.";
}

/// A shard that says goodbye to everybody.
#[derive(Debug)]
pub(super) struct Draining {
    /// The next slot to look at.
    next: usize,
    /// Whether `next` has gone through all slots.
    all_told: bool,
    /// Whether nobody else comes in.
    deaf: bool,
    /// When answers are waited for no longer, on the shard's clock.
    until_ms: u64,
    /// It is past that: who is left is told too.
    is_overdue: bool,
}

impl Draining {
    pub(super) const fn is_busy(&self) -> bool {
        !self.all_told
    }
}

impl Shard {
    /// Parts with a connection: says `code`, if there is one to say, and closes when it is sent.
    pub(super) fn say_goodbye(&mut self, slot: u32, cause: Cause, code: Option<Code>) {
        if self.at(slot).is_going() {
            return;
        }
        self.hand_out_all(slot);
        self.part(slot, cause);
        if let Some(code) = code {
            let retry_after_ms = if code == Code::Draining { self.retry_after_ms(slot) } else { 0 };
            self.stats.failures[code.number() as usize - 100] += 1;
            self.write_control(slot, |out| server::put_goodbye(out, code, retry_after_ms));
        }
        self.at(slot).phase = Phase::Closing;
        match &self.draining {
            // Its answers may take as long as draining may.
            Some(draining) if code == Some(Code::Draining) && !draining.is_overdue => {
                self.timers.set(slot, draining.until_ms);
            }
            _ => self.set_linger(slot),
        }
        self.touch(slot);
    }

    /// Parts with a connection and closes it at once.
    pub(super) fn abort(&mut self, slot: u32, cause: Cause) {
        if self.at(slot).is_going() {
            return;
        }
        self.part(slot, cause);
        self.at(slot).phase = Phase::Aborted;
        self.timers.clear(slot);
        self.touch(slot);
    }

    /// Counts the parting, ends the session and gives up what was kept to be read.
    pub(super) fn part(&mut self, slot: u32, cause: Cause) {
        self.stats.closed[cause as usize] += 1;
        self.log(slot, || tracing::debug!(cause = cause.label(), "parted"));
        let connection = self.at(slot);
        let unread_bytes = connection.inbox.kept_bytes() as u64;
        connection.inbox = tidegate_protocol::Reassembler::new();
        connection.flags.held = false;
        self.stats.discarded_bytes += unread_bytes;
        self.end_session(slot);
    }

    /// The driver has closed a connection: the slot is free.
    pub(super) fn on_closed(&mut self, conn: ConnId, cause: CloseCause) {
        let slot = conn.slot;
        if self.connection(conn).is_none() {
            return;
        }
        if !self.at(slot).is_going() {
            let cause = match cause {
                CloseCause::Local => Cause::Peer,
                CloseCause::Reset => Cause::Reset,
                CloseCause::TimedOut => Cause::TimedOut,
                CloseCause::Failed => Cause::Failed,
            };
            self.part(slot, cause);
        }
        self.timers.clear(slot);
        self.spans.remove(&slot);
        let connection = &mut self.connections[slot as usize];
        self.in_flight_bytes -= connection.in_flight_bytes as usize;
        let unsent = self.outboxes.drain(&mut connection.outbox);
        self.stats.unsent_bytes += unsent.map_or(0, |unsent| unsent.len() as u64);
        let touched = self.at(slot).flags.touched;
        *self.at(slot) = Connection::vacant();
        // It may still stand in the list: whoever gets the slot must not be listed twice.
        self.at(slot).flags.touched = touched;
        self.connection_count -= 1;
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// A connection's deadline has passed.
    pub(super) fn on_deadline(&mut self, slot: u32) {
        let idle_timeout = self.shared.config.session.idle_timeout;
        let (now_ms, clock_ms) = (self.now_ms, self.clock_ms());
        let grace_until_ms = self.grace_until_ms;
        let connection = self.at(slot);
        match connection.phase {
            Phase::Anonymous | Phase::Registering | Phase::Open if now_ms < grace_until_ms => {
                self.timers.set(slot, grace_until_ms);
            }
            Phase::Registering | Phase::Open if connection.flags.held => {
                // Nobody listens to it. Whether it is still there, TCP_USER_TIMEOUT finds out where it
                // takes nothing, and a call's timeout where it waits for one.
                self.timers.set(slot, now_ms + millis(idle_timeout));
            }
            Phase::Anonymous => self.say_goodbye(slot, Cause::AuthTimeout, Some(Code::Idle)),
            Phase::Registering | Phase::Open => {
                let silent_ms = clock_ms.wrapping_sub(connection.last_seen_ms);
                let at_ms = now_ms - u64::from(silent_ms) + millis(idle_timeout);
                if at_ms <= now_ms {
                    self.say_goodbye(slot, Cause::Idle, Some(Code::Idle));
                } else {
                    self.timers.set(slot, at_ms);
                }
            }
            Phase::Closing | Phase::Lingering => {
                connection.phase = Phase::Aborted;
                self.touch(slot);
            }
            Phase::Vacant | Phase::Aborted => {}
        }
    }

    /// Sets the deadline by which a connection's last frame has to be sent, or its peer to be gone.
    pub(super) fn set_linger(&mut self, slot: u32) {
        self.timers.set(slot, self.now_ms + LINGER_MS);
    }

    /// A call's time is up.
    pub(super) fn on_timeout(&mut self, pending: Pending) {
        self.finish_call(pending, Err(Code::Timeout.into()));
    }

    /// Starts to say goodbye to everybody.
    pub(super) fn start_draining(&mut self) {
        if self.draining.is_none() {
            let drain_timeout = self.shared.config.shutdown.drain_timeout;
            let until_ms = self.now_ms + millis(drain_timeout);
            self.draining = Some(Draining {
                next: 0,
                all_told: false,
                deaf: false,
                until_ms,
                is_overdue: false,
            });
            self.end_windows(u64::MAX);
        }
    }

    pub(super) fn on_listening_stopped(&mut self, reset: u32) {
        self.stats.queue_resets += u64::from(reset);
        if reset > 0 {
            tracing::warn!(
                connections = reset,
                "reset in the accept queue: there was no room for them before the drain's end"
            );
        }
        if let Some(draining) = &mut self.draining {
            draining.deaf = true;
        }
    }

    /// One turn's part of draining: some goodbyes, and the end when nobody is left.
    pub(super) fn drain_step(&mut self, driver: &mut impl Driver) {
        let Some(draining) = &mut self.draining else { return };
        if draining.next == 0 && !draining.all_told {
            let until_ms = Duration::from_millis(draining.until_ms);
            driver.stop_listening(self.shared.started + until_ms);
        }
        if !draining.is_overdue && self.now_ms >= draining.until_ms {
            draining.is_overdue = true;
            draining.next = 0;
        }
        let is_overdue = draining.is_overdue;
        let first = draining.next;
        let last = (first + GOODBYES_MAX).min(self.connections.len());
        draining.next = last;
        draining.all_told = last == self.connections.len();
        for slot in first..last {
            let slot = u32::try_from(slot).expect("slots are 32 bits");
            if is_overdue || self.at(slot).calls == 0 {
                self.say_goodbye(slot, Cause::Draining, Some(Code::Draining));
            }
        }
        let told =
            self.draining.as_ref().is_some_and(|draining| draining.all_told && draining.deaf);
        // All shards end together: each is home to some of the others' users and rooms.
        self.finished |= told && self.shared.connections.load(Ordering::Relaxed) == 0;
        if !self.finished {
            // Look again before long, with or without an event.
            self.housekeeping_at_ms = self.housekeeping_at_ms.min(self.now_ms + 50);
        }
    }

    /// What a client is told to wait before it reconnects: up to twice what is configured, spread by
    /// slot, so that not everybody comes back at once.
    pub(super) fn retry_after_ms(&self, slot: u32) -> u32 {
        let retry_after_ms = millis(self.shared.config.shutdown.retry_after);
        let spread = u64::from(slot.wrapping_mul(0x9e37_79b9) >> 22);
        u32::try_from(retry_after_ms + retry_after_ms * spread / 1024).unwrap_or(u32::MAX)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
