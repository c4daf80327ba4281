//! The shard's clocks: the monotonic time that the driver reports, and the wall clock.
//!
//! The shard never reads the time itself. The driver reports it after each wait, so that all that one turn does
//! happens at one time.

use std::time::{Duration, Instant};

use tidegate_backend::publisher::PushOptions;

use super::rooms::lifetimes::NEVER_MS;
use crate::clock::WallClock;

/// If the shard did not look at its sockets for this long, in milliseconds, it does not trust any
/// connection's silence. By itself it waits no longer than until its next housekeeping.
const AWAY_MS: u64 = 1_000;

/// A shard's time. Everything but the wall clock counts from the gateway's start.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    wall: WallClock,
    now_ms: u64,
    received_us: u64,
    answered_us: u64,
    grace_until_ms: u64,
}

impl Clock {
    /// Starts at `started`, which all shards of a gateway have in common.
    #[must_use]
    pub const fn new(started: Instant, wall: WallClock) -> Self {
        Self { started, wall, now_ms: 0, received_us: 0, answered_us: 0, grace_until_ms: 0 }
    }

    /// The driver waited, and it is `now`. After a longer absence, silence is not counted for `grace_ms`:
    /// what clients sent meanwhile may not be read yet.
    #[inline]
    pub fn on_woken(&mut self, now: Instant, grace_ms: u64) {
        self.received_us = self.micros(now);
        self.answered_us = self.received_us;
        let now_ms = self.received_us / 1_000;
        if now_ms > self.now_ms + AWAY_MS {
            self.grace_until_ms = now_ms + grace_ms;
        }
        self.now_ms = now_ms;
    }

    /// The shard takes answers, and it is `now`.
    #[inline]
    pub fn on_answers(&mut self, now: Instant) {
        self.answered_us = self.micros(now);
    }

    /// Milliseconds since the start, when the driver last waited.
    #[inline]
    #[must_use]
    pub const fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The same in 32 bits, for connections. It wraps after 49 days, and is compared as a clock that does.
    #[expect(clippy::cast_possible_truncation, reason = "a clock that wraps")]
    #[inline]
    #[must_use]
    pub const fn wrapping_ms(&self) -> u32 {
        self.now_ms as u32
    }

    /// Seconds since the start in 16 bits, for connections. It wraps after 18 hours.
    #[expect(clippy::cast_possible_truncation, reason = "a clock that wraps")]
    #[must_use]
    pub const fn wrapping_s(&self) -> u16 {
        (self.now_ms / 1_000) as u16
    }

    /// When what the driver reports was received, in microseconds since the start.
    #[inline]
    #[must_use]
    pub const fn received_us(&self) -> u64 {
        self.received_us
    }

    /// When the shard last took answers, in microseconds since the start.
    #[inline]
    #[must_use]
    pub const fn answered_us(&self) -> u64 {
        self.answered_us
    }

    /// Until when no connection is closed for silence.
    #[must_use]
    pub const fn grace_until_ms(&self) -> u64 {
        self.grace_until_ms
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        self.wall.unix_ms()
    }

    /// A time of this clock as the driver takes it.
    #[must_use]
    pub fn instant(&self, at_ms: u64) -> Instant {
        self.started + Duration::from_millis(at_ms)
    }

    /// When the driver last waited, as an instant. What it reported since was received then.
    #[inline]
    #[must_use]
    pub fn received(&self) -> Instant {
        self.started + Duration::from_micros(self.received_us)
    }

    fn micros(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// When the time to live of a push is over that its home takes at `now_ms`; [`NEVER_MS`] if it has none.
#[must_use]
pub fn ends_ms(options: Option<&PushOptions>, now_ms: u64) -> u64 {
    let ttl = options.and_then(|options| options.ttl);
    ttl.map_or(NEVER_MS, |ttl| now_ms.saturating_add(millis(ttl)))
}

/// Whole milliseconds of a duration.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_does_not_count_after_an_absence() {
        let started = Instant::now();
        let mut clock = Clock::new(started, WallClock::new(|| Duration::from_millis(7)));
        let after = |ms| started + Duration::from_millis(ms);
        clock.on_woken(after(1_000), 30_000);
        assert_eq!((clock.now_ms(), clock.grace_until_ms()), (1_000, 0));
        clock.on_woken(after(2_001), 30_000);
        assert_eq!((clock.now_ms(), clock.grace_until_ms()), (2_001, 32_001));
        clock.on_answers(after(2_005));
        assert_eq!((clock.received_us(), clock.answered_us()), (2_001_000, 2_005_000));
        assert_eq!(clock.unix_ms(), 7);
    }

    #[test]
    fn a_time_before_the_start_is_the_start() {
        let started = Instant::now() + Duration::from_secs(60);
        let mut clock = Clock::new(started, WallClock::system());
        clock.on_woken(Instant::now(), 1);
        assert_eq!(clock.now_ms(), 0);
    }

    #[test]
    fn the_short_clock_wraps() {
        let started = Instant::now();
        let mut clock = Clock::new(started, WallClock::system());
        clock.on_woken(started + Duration::from_millis((1 << 32) + 5), 1);
        assert_eq!(clock.wrapping_ms(), 5);
        assert_eq!(clock.instant(5), started + Duration::from_millis(5));
    }
}
