//! Deadlines of connections: to authenticate, to send a frame now and then, to go away after the last frame.
//!
//! Each connection has one deadline at most. A frame only notes the time, so a deadline may expire too early.
//! What it means is decided when it has expired.

use super::cause::Cause;
use super::connection::{Connection, Flags, Phase};
use super::timers::Timers;
use crate::shard::clock::Clock;

/// Deadlines that one turn handles. It spreads a mass timeout over several turns.
const DEADLINES_MAX: usize = 1024;

/// The deadlines of a shard's connections.
#[derive(Debug)]
pub struct Deadlines {
    timers: Timers,
    idle_timeout_ms: u64,
    /// Slots whose deadline has expired.
    expired: Vec<u32>,
    /// More deadlines have expired than one turn handles.
    has_more: bool,
}

/// What an expired deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineAction {
    /// It came too early: set it to this time.
    Reschedule(u64),
    /// Close the connection gracefully, with 109.
    Close(Cause),
    /// Close it at once: it had its time to go away.
    Abort,
    /// The connection is gone.
    Nothing,
}

impl Deadlines {
    /// No deadline yet. A session ends after `idle_timeout_ms` without a frame.
    #[must_use]
    pub fn new(idle_timeout_ms: u64) -> Self {
        Self { timers: Timers::new(), idle_timeout_ms, expired: Vec::new(), has_more: false }
    }

    /// Sets a slot's deadline.
    pub fn set(&mut self, slot: u32, at_ms: u64) {
        self.timers.set(slot, at_ms);
    }

    /// Sets the deadline of a connection whose session has just opened.
    pub fn set_idle(&mut self, slot: u32, now_ms: u64) {
        self.timers.set(slot, now_ms + self.idle_timeout_ms);
    }

    /// Clears a slot's deadline.
    pub fn clear(&mut self, slot: u32) {
        self.timers.clear(slot);
    }

    /// Milliseconds until a deadline may expire.
    #[must_use]
    pub fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.timers.next_in_ms(now_ms)
    }

    /// Whether more deadlines have expired than one turn handles.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.has_more
    }

    /// Collects the deadlines that have expired, as many as one turn handles.
    pub fn collect(&mut self, now_ms: u64) {
        let Self { timers, expired, .. } = self;
        self.has_more = timers.expire(now_ms, DEADLINES_MAX, |slot| expired.push(slot));
    }

    /// The next slot of those collected.
    pub fn next_expired(&mut self) -> Option<u32> {
        self.expired.pop()
    }

    /// What the expired deadline of a connection means.
    #[must_use]
    pub fn check(&self, connection: &Connection, clock: &Clock) -> DeadlineAction {
        let (now_ms, grace_until_ms) = (clock.now_ms(), clock.grace_until_ms());
        match connection.phase {
            Phase::Anonymous | Phase::Registering | Phase::Open if now_ms < grace_until_ms => {
                DeadlineAction::Reschedule(grace_until_ms)
            }
            // Reading from it is paused, so it can't be silent. If it takes nothing, TCP_USER_TIMEOUT closes
            // it; if it waits for a call, the call's timeout ends that.
            Phase::Registering | Phase::Open if connection.has(Flags::READ_PAUSED) => {
                DeadlineAction::Reschedule(now_ms + self.idle_timeout_ms)
            }
            Phase::Anonymous => DeadlineAction::Close(Cause::AuthTimeout),
            Phase::Registering | Phase::Open => {
                let silent_ms = clock.wrapping_ms().wrapping_sub(connection.last_seen_ms);
                match now_ms - u64::from(silent_ms) + self.idle_timeout_ms {
                    at_ms if at_ms <= now_ms => DeadlineAction::Close(Cause::Idle),
                    at_ms => DeadlineAction::Reschedule(at_ms),
                }
            }
            Phase::Closing | Phase::Lingering => DeadlineAction::Abort,
            Phase::Vacant | Phase::Aborted => DeadlineAction::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::WallClock;

    /// A clock that a shard which is never away has come to.
    fn clock_at(ms: u64) -> Clock {
        let started = Instant::now();
        let mut clock = Clock::new(started, WallClock::system());
        for at_ms in (0..ms).step_by(900).chain([ms]) {
            clock.on_woken(started + Duration::from_millis(at_ms), 30_000);
        }
        clock
    }

    fn connection(phase: Phase, last_seen_ms: u32) -> Connection {
        let mut connection = Connection::accepted(1, last_seen_ms);
        connection.phase = phase;
        connection
    }

    #[test]
    fn a_session_without_a_frame_is_closed_after_the_idle_timeout() {
        let deadlines = Deadlines::new(75_000);
        let clock = clock_at(80_000);
        for phase in [Phase::Open, Phase::Registering] {
            let check = |last_seen_ms| deadlines.check(&connection(phase, last_seen_ms), &clock);
            assert_eq!(check(5_000), DeadlineAction::Close(Cause::Idle));
            assert_eq!(check(5_001), DeadlineAction::Reschedule(80_001));
            assert_eq!(check(80_000), DeadlineAction::Reschedule(155_000));
        }
    }

    #[test]
    fn a_connection_whose_reading_is_paused_is_not_silent() {
        let deadlines = Deadlines::new(75_000);
        let clock = clock_at(80_000);
        let mut paused = connection(Phase::Open, 0);
        paused.flags |= Flags::READ_PAUSED;
        assert_eq!(deadlines.check(&paused, &clock), DeadlineAction::Reschedule(155_000));
        paused.phase = Phase::Anonymous;
        assert_eq!(deadlines.check(&paused, &clock), DeadlineAction::Close(Cause::AuthTimeout));
    }

    #[test]
    fn nobody_is_closed_for_silence_while_the_shard_was_away() {
        let deadlines = Deadlines::new(75_000);
        let mut clock = clock_at(0);
        clock.on_woken(clock.instant(90_000), 30_000);
        for phase in [Phase::Anonymous, Phase::Registering, Phase::Open] {
            assert_eq!(
                deadlines.check(&connection(phase, 0), &clock),
                DeadlineAction::Reschedule(120_000)
            );
        }
        clock.on_woken(clock.instant(90_500), 30_000);
        assert_eq!(deadlines.check(&connection(Phase::Closing, 0), &clock), DeadlineAction::Abort);
        for at_ms in (91_000..=120_000).step_by(1_000) {
            clock.on_woken(clock.instant(at_ms), 30_000);
        }
        assert_eq!(
            deadlines.check(&connection(Phase::Open, 0), &clock),
            DeadlineAction::Close(Cause::Idle),
            "the grace time is over"
        );
    }

    #[test]
    fn a_closing_connection_has_its_time_and_a_closed_one_none() {
        let deadlines = Deadlines::new(75_000);
        let clock = clock_at(1_000);
        for (phase, due) in [
            (Phase::Closing, DeadlineAction::Abort),
            (Phase::Lingering, DeadlineAction::Abort),
            (Phase::Aborted, DeadlineAction::Nothing),
            (Phase::Vacant, DeadlineAction::Nothing),
        ] {
            assert_eq!(deadlines.check(&connection(phase, 0), &clock), due);
        }
    }

    #[test]
    fn a_mass_timeout_is_spread_over_turns() {
        let mut deadlines = Deadlines::new(75_000);
        let slots = u32::try_from(DEADLINES_MAX).unwrap() + 3;
        (0..slots).for_each(|slot| deadlines.set(slot, 1_000));
        deadlines.clear(5);
        deadlines.set_idle(6, 1_000);
        // The end of the tick of 64 ms that it is in.
        assert_eq!(deadlines.next_in_ms(0), Some(1_024));
        let mut expired = Vec::new();
        deadlines.collect(2_000);
        assert!(deadlines.has_more());
        expired.extend(std::iter::from_fn(|| deadlines.next_expired()));
        assert_eq!(expired.len(), DEADLINES_MAX);
        deadlines.collect(2_000);
        assert!(!deadlines.has_more());
        expired.extend(std::iter::from_fn(|| deadlines.next_expired()));
        expired.sort_unstable();
        let expected: Vec<u32> = (0..slots).filter(|slot| ![5, 6].contains(slot)).collect();
        assert_eq!(expired, expected);
    }
}
