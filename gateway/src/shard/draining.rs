//! Draining: how a shard ends without losing an answer.
//!
//! When the shard drains, each connection is closed gracefully with 108: at once if it waits for no answer,
//! otherwise with its last answer, or at the end of `shutdown.drain_timeout_ms` without the answers that are
//! missing. Connections in the kernel's accept queue are let in first, since the kernel would reset them. A connection whose
//! wire is not open is closed when it has opened, or at that timeout: before, it could not read the 108.

use std::ops::Range;

use super::clock::millis;
use crate::config::ShutdownConfig;

/// Connections that one turn closes, at most. It spreads the closing of many connections over several turns.
const CLOSED_MAX: usize = 1024;

/// How often a draining shard checks whether it is done when nothing happens, in milliseconds.
pub const POLL_MS: u64 = 50;

/// The shortest time that a client which is sent to another gateway has for its last frames, in milliseconds.
const LEAVE_MS_MIN: u64 = 2_000;

/// Whether a shard drains, and its progress.
#[derive(Debug)]
pub struct Draining {
    timeout_ms: u64,
    retry_after_ms: u64,
    state: Option<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// The driver has been asked to stop listening.
    is_listening_stopped: bool,
    /// The next slot to look at.
    next: usize,
    /// `next` has gone through all slots.
    all_notified: bool,
    /// No further connection comes in.
    listener_closed: bool,
    /// When missing answers are waited for no longer, on the shard's clock.
    until_ms: u64,
    /// That deadline has expired: connections with missing answers are closed too.
    has_expired: bool,
}

/// One turn's part of a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Tell the driver to stop listening, and until when, on the shard's clock.
    pub stop_listening_until_ms: Option<u64>,
    /// Close the connections in these slots.
    pub slots: Range<usize>,
    /// Close those that wait for answers too.
    pub has_expired: bool,
}

impl Draining {
    /// The shard does not drain yet.
    #[must_use]
    pub fn new(config: &ShutdownConfig) -> Self {
        Self {
            timeout_ms: millis(config.drain_timeout),
            retry_after_ms: millis(config.retry_after),
            state: None,
        }
    }

    /// Whether the shard drains.
    #[inline]
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.state.is_some()
    }

    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.state.is_some_and(|state| !state.all_notified)
    }

    /// Starts to drain. Returns `false` if the shard drains already.
    pub fn start(&mut self, now_ms: u64) -> bool {
        if self.is_draining() {
            return false;
        }
        self.state = Some(State {
            is_listening_stopped: false,
            next: 0,
            all_notified: false,
            listener_closed: false,
            until_ms: now_ms + self.timeout_ms,
            has_expired: false,
        });
        true
    }

    /// The driver has closed its listener.
    pub const fn listener_closed(&mut self) {
        if let Some(state) = &mut self.state {
            state.listener_closed = true;
        }
    }

    /// What to do in this turn. `slots`: how many slots there are.
    pub fn step(&mut self, slots: usize, now_ms: u64) -> Option<Step> {
        let state = self.state.as_mut()?;
        let is_first = !std::mem::replace(&mut state.is_listening_stopped, true);
        if !state.has_expired && now_ms >= state.until_ms {
            state.has_expired = true;
            state.next = 0;
        }
        let first = state.next.min(slots);
        state.next = (first + CLOSED_MAX).min(slots);
        state.all_notified = state.next == slots;
        Some(Step {
            stop_listening_until_ms: is_first.then_some(state.until_ms),
            slots: first..state.next,
            has_expired: state.has_expired,
        })
    }

    /// Whether the shard may end, as far as it alone is concerned.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state.is_some_and(|state| state.all_notified && state.listener_closed)
    }

    /// Whether the drain's time is over.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.state.is_some_and(|state| state.has_expired)
    }

    /// Until when a connection that is closed by the drain may take to be sent its answers, on the shard's
    /// clock; `None` once the drain has expired.
    #[must_use]
    pub fn close_until_ms(&self) -> Option<u64> {
        self.state.filter(|state| !state.has_expired).map(|state| state.until_ms)
    }

    /// Until when a connection may take to be sent its answers that is closed without a drain, on the shard's clock.
    #[must_use]
    pub fn leave_until_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.timeout_ms.max(LEAVE_MS_MIN)
    }

    /// How long a client should wait before it reconnects: up to twice what is configured, spread by
    /// slot, so that clients do not all reconnect at once.
    #[must_use]
    pub fn retry_after_ms(&self, slot: u32) -> u32 {
        let spread = u64::from(slot.wrapping_mul(0x9e37_79b9) >> 22);
        let retry_after_ms = self.retry_after_ms + self.retry_after_ms * spread / 1024;
        u32::try_from(retry_after_ms).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn draining() -> Draining {
        let drain_timeout = Duration::from_millis(500);
        Draining::new(&ShutdownConfig { drain_timeout, retry_after: Duration::from_secs(2) })
    }

    #[test]
    fn a_drain_goes_through_all_slots_once_and_again_at_its_deadline() {
        let mut draining = draining();
        assert_eq!(draining.step(5, 0), None);
        assert!(draining.start(1_000) && !draining.start(1_001));
        let slots = CLOSED_MAX + 3;
        let step = |draining: &mut Draining, now_ms| draining.step(slots, now_ms).unwrap();
        let first = step(&mut draining, 1_000);
        assert_eq!((first.stop_listening_until_ms, first.slots), (Some(1_500), 0..CLOSED_MAX));
        assert!(draining.is_busy());
        let second = step(&mut draining, 1_001);
        assert_eq!((second.stop_listening_until_ms, second.slots), (None, CLOSED_MAX..slots));
        assert!(!draining.is_busy() && !draining.is_done());
        draining.listener_closed();
        assert!(draining.is_done());
        assert_eq!(step(&mut draining, 1_499).slots, slots..slots);
        assert_eq!(draining.close_until_ms(), Some(1_500));
        let second_pass = step(&mut draining, 1_500);
        assert_eq!((second_pass.slots, second_pass.has_expired), (0..CLOSED_MAX, true));
        assert!(!draining.is_done());
        assert_eq!(draining.close_until_ms(), None);
    }

    #[test]
    fn hints_are_spread_between_once_and_twice_what_is_configured() {
        let draining = draining();
        let hints: Vec<u32> = (0..1000).map(|slot| draining.retry_after_ms(slot)).collect();
        assert!(hints.iter().all(|hint| (2_000..4_000).contains(hint)));
        let early = hints.iter().filter(|&&hint| hint < 3_000).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
