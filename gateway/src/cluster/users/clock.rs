//! Redis' clock, as this gateway estimates it: the one by which logins at several gateways are put in order.
//!
//! Redis read its clock between the sending of a request and the receipt of the answer. So each reading gives a least and
//! a greatest difference of the two clocks. Over many readings, the greatest of the one kind and the least of the
//! other come from the fastest answers and the fastest requests, and are close together. The gateway's wall clock is
//! taken as Redis' where it lies between them: clocks of one machine, and clocks that are kept in step, agree better
//! than readings over a busy network can tell. A wall clock beyond them is corrected to the nearer one.
//!
//! With that, a login's stamp is the time of the login, however long the command waits on its way to Redis.

use std::collections::VecDeque;

/// Readings that are kept. With five a second they are those of the last ten seconds.
const READINGS_MAX: usize = 50;

/// How far two clocks drift apart in a second at most, in microseconds: 10 parts in a million. A difference that was
/// read earlier is less sure by that.
const DRIFT_US_PER_S: u64 = 10;

/// The stamp 0, in microseconds since the Unix epoch: 2026-01-01. Stamps have 14 digits until 2057, as many as Redis'
/// scripts write.
const STAMP_EPOCH_US: u64 = 1_767_225_600_000_000;

/// Microseconds of one unit of a stamp.
const STAMP_UNIT_US: u64 = 10;

/// One reading, and what it says of Redis' time since the Unix epoch less this gateway's time since its start.
#[derive(Clone, Copy, Debug)]
struct Reading {
    received_us: u64,
    least_us: u64,
    greatest_us: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct RedisClock {
    /// The wall clock less this gateway's time.
    wall_ahead_us: u64,
    readings: VecDeque<Reading>,
    ahead_us: Option<u64>,
}

impl RedisClock {
    /// Nothing was read yet. `wall_ahead_us`: the wall clock, in microseconds since the Unix epoch, at the gateway's start.
    #[must_use]
    pub const fn new(wall_ahead_us: u64) -> Self {
        Self { wall_ahead_us, readings: VecDeque::new(), ahead_us: None }
    }

    /// Redis has answered with its time: microseconds since the Unix epoch. The other times count from the gateway's start.
    pub fn on_time(&mut self, sent_us: u64, received_us: u64, redis_unix_us: u64) {
        if self.readings.len() == READINGS_MAX {
            self.readings.pop_front();
        }
        let newest = Reading {
            received_us,
            least_us: redis_unix_us.saturating_sub(received_us),
            greatest_us: redis_unix_us.saturating_sub(sent_us),
        };
        self.readings.push_back(newest);
        let (mut least_us, mut greatest_us) = self.bounds(received_us);
        if least_us > greatest_us {
            // Another server, or its clock was set.
            self.readings.clear();
            self.readings.push_back(newest);
            (least_us, greatest_us) = (newest.least_us, newest.greatest_us);
        }
        self.ahead_us = Some(self.wall_ahead_us.max(least_us).min(greatest_us));
    }

    /// The least and the greatest difference that all readings allow.
    fn bounds(&self, now_us: u64) -> (u64, u64) {
        self.readings.iter().fold((0, u64::MAX), |(least_us, greatest_us), reading| {
            let age_s = now_us.saturating_sub(reading.received_us) / 1_000_000;
            let drift_us = age_s * DRIFT_US_PER_S;
            let reading_least_us = reading.least_us.saturating_sub(drift_us);
            (least_us.max(reading_least_us), greatest_us.min(reading.greatest_us + drift_us))
        })
    }

    /// A time of this gateway in microseconds since the Unix epoch. `None`: Redis has not answered yet.
    #[must_use]
    pub fn unix_us(&self, at_us: u64) -> Option<u64> {
        self.ahead_us.map(|ahead_us| ahead_us + at_us)
    }

    /// The stamp of a login at this time, at least 1.
    #[must_use]
    pub fn stamp(&self, at_us: u64) -> Option<u64> {
        let since_us = self.unix_us(at_us)?.saturating_sub(STAMP_EPOCH_US);
        Some((since_us / STAMP_UNIT_US).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX_US: u64 = STAMP_EPOCH_US + 5_000_000_000;

    /// Redis is asked at this time and reads its clock in the middle, with a fast request or a fast answer.
    fn read(clock: &mut RedisClock, at_us: u64, ahead_us: u64) {
        clock.on_time(at_us, at_us + 90_100, at_us + 100 + ahead_us);
        clock.on_time(at_us + 100_000, at_us + 190_100, at_us + 190_000 + ahead_us);
    }

    #[test]
    fn a_wall_clock_that_the_readings_allow_is_taken() {
        let mut clock = RedisClock::new(UNIX_US + 99);
        assert_eq!((clock.unix_us(7), clock.stamp(7)), (None, None));
        read(&mut clock, 1_000, UNIX_US);
        assert_eq!(clock.unix_us(1_000), Some(UNIX_US + 1_099));
        assert_eq!(clock.stamp(1_000), Some(500_000_109));
    }

    #[test]
    fn a_wrong_wall_clock_is_corrected_to_what_a_fast_request_or_a_fast_answer_allows() {
        for wall_us in [UNIX_US - 60_000_000, UNIX_US + 60_000_000] {
            let mut clock = RedisClock::new(wall_us);
            read(&mut clock, 1_000, UNIX_US);
            let error_us = clock.unix_us(1_000).unwrap().abs_diff(UNIX_US + 1_000);
            assert!(error_us <= 100, "{error_us}");
        }
    }

    #[test]
    fn a_clock_that_was_set_is_followed_at_once() {
        let mut clock = RedisClock::new(UNIX_US);
        clock.on_time(100, 200, UNIX_US + 150);
        clock.on_time(1_000, 1_100, UNIX_US - 500_000 + 1_050);
        let error_us = clock.unix_us(2_000).unwrap().abs_diff(UNIX_US - 500_000 + 2_000);
        assert!(error_us <= 50, "{error_us}");
    }

    #[test]
    fn clocks_that_drift_apart_are_followed() {
        let mut clock = RedisClock::new(UNIX_US);
        for second in 0..100 {
            let sent_us = second * 1_000_000;
            clock.on_time(sent_us, sent_us + 100, UNIX_US + sent_us + 50 + 5 * second);
        }
        let drifted_us = clock.unix_us(0).unwrap() - UNIX_US;
        assert!(drifted_us.abs_diff(5 * 100) <= 100, "{drifted_us}");
    }

    #[test]
    fn a_stamp_has_14_digits_until_2057() {
        let mut clock = RedisClock::new(0);
        let year_2057_us = 2_745_446_400_000_000;
        clock.on_time(0, 0, year_2057_us);
        assert_eq!(clock.stamp(0).unwrap().to_string().len(), 14);
    }
}
