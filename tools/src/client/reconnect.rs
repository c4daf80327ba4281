//! When to connect again after a lost connection: with a wait that grows and has a random part, so that the clients of a
//! gateway that has ended do not all reconnect in the same moment. `PROTOCOL.md`, section 10.

use std::time::{Duration, Instant};

use tidegate_protocol::Code;

use super::session::Ending;

/// A session that was open for this long was a success: the next wait is the shortest one again.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// The longest first wait. Each failed try doubles it.
const WAIT_MAX_AT_FIRST: Duration = Duration::from_secs(1);

/// The longest wait of all.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// When to connect again. It has no clock: the loop passes the time in.
#[derive(Debug)]
pub(super) struct Reconnects {
    /// The most tries in a row.
    tries_max: u32,
    tries: u32,
    /// Failed tries in a row, for the wait. A session that was soon lost counts.
    failed: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No session was open yet, or the client has stopped.
    Idle,
    /// There is a connection. The time: since when its session is open.
    Up(Option<Instant>),
    /// Connect at this time.
    Waiting(Instant),
}

impl Reconnects {
    /// Limits how many attempts to connect again may fail in a row.
    pub(super) const fn new(tries_max: u32) -> Self {
        Self { tries_max, tries: 0, failed: 0, state: State::Idle }
    }

    /// The client begins to connect again.
    pub(super) fn started(&mut self) {
        self.state = State::Up(None);
    }

    /// The session is open.
    pub(super) fn opened(&mut self, now: Instant) {
        self.tries = 0;
        self.state = State::Up(Some(now));
    }

    /// Whether [`Self::lost`] is due once there is no connection.
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// When to connect; `None`: nothing is planned.
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(at) => Some(at),
            State::Idle | State::Up(_) => None,
        }
    }

    /// The connection is lost, or could not be opened. Returns how long to wait; `None`: the client stops.
    pub(super) fn lost(&mut self, now: Instant, ending: Option<Ending>) -> Option<Duration> {
        let State::Up(opened) = self.state else { return None };
        self.state = State::Idle;
        let code = ending.and_then(|ending| ending.failure.code);
        if opened.is_some_and(|at| now.saturating_duration_since(at) >= STABLE_AFTER) {
            self.failed = 0;
        } else if code != Some(Code::Draining) {
            self.failed = self.failed.saturating_add(1);
        }
        if code.is_some_and(is_final) || self.tries >= self.tries_max {
            self.tries = 0;
            return None;
        }
        self.tries += 1;
        let wait = match ending {
            Some(Ending { at, failure }) if !failure.retry_after.is_zero() => {
                let wait = failure.retry_after + random_up_to(failure.retry_after / 2);
                wait.saturating_sub(now.saturating_duration_since(at))
            }
            _ => random_up_to(
                WAIT_MAX_AT_FIRST.saturating_mul(1 << self.failed.min(6)).min(WAIT_MAX),
            ),
        };
        self.state = State::Waiting(now + wait);
        Some(wait)
    }
}

/// Whether a client must not reconnect automatically: the user is logged in elsewhere, was kicked, has a bad token, or the
/// client sends what the gateway can't read.
const fn is_final(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::Malformed | Code::Replaced | Code::Kicked)
}

fn random_up_to(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use tidegate_protocol::client::Failure;

    use super::*;

    fn ending(at: Instant, code: Code, retry_after_ms: u64) -> Option<Ending> {
        let retry_after = Duration::from_millis(retry_after_ms);
        Some(Ending { at, failure: Failure { code: Some(code), retry_after } })
    }

    /// The longest of many waits of a client after this number of failures in a row.
    fn longest(failed: u32) -> Duration {
        let now = Instant::now();
        let wait = || {
            let mut reconnects = Reconnects::new(u32::MAX);
            reconnects.opened(now);
            let waits = (0..failed).map(|_| {
                let wait = reconnects.lost(now, None).unwrap();
                assert_eq!(reconnects.due(), Some(now + wait));
                reconnects.started();
                wait
            });
            waits.last().unwrap()
        };
        (0..1000).map(|_| wait()).max().unwrap()
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_is_random() {
        for (failed, seconds) in [(1, 2), (2, 4), (5, 32), (6, 60), (40, 60)] {
            let longest = longest(failed);
            assert!(longest <= Duration::from_secs(seconds), "{failed}: {longest:?}");
            assert!(longest > Duration::from_secs(seconds) / 2, "{failed}: {longest:?}");
        }
    }

    #[test]
    fn a_session_of_half_a_minute_resets_the_wait() {
        let now = Instant::now();
        let mut reconnects = Reconnects::new(10);
        reconnects.opened(now);
        for _ in 0..10 {
            reconnects.lost(now, None).unwrap();
            reconnects.started();
        }
        reconnects.opened(now);
        assert!(reconnects.lost(now + STABLE_AFTER, None).unwrap() <= WAIT_MAX_AT_FIRST);
    }

    #[test]
    fn the_wait_that_a_gateway_asks_for_counts_from_its_frame() {
        let now = Instant::now();
        for _ in 0..100 {
            let mut reconnects = Reconnects::new(1);
            reconnects.opened(now);
            let closed = now + Duration::from_millis(300);
            let wait = reconnects.lost(closed, ending(now, Code::Draining, 1000)).unwrap();
            assert!((700..=1200).contains(&wait.as_millis()), "{wait:?}");
        }
    }

    #[test]
    fn it_stops_after_the_last_try_and_where_it_must_not_reconnect() {
        let now = Instant::now();
        let mut reconnects = Reconnects::new(2);
        assert_eq!(reconnects.lost(now, None), None, "no session was ever open");
        reconnects.opened(now);
        assert!(reconnects.is_up());
        for _ in 0..2 {
            assert!(reconnects.lost(now, None).is_some());
            reconnects.started();
        }
        assert_eq!(reconnects.lost(now, None), None);
        assert!(!reconnects.is_up() && reconnects.due().is_none());
        for code in [Code::Replaced, Code::Kicked, Code::Unauthenticated, Code::Malformed] {
            reconnects.opened(now);
            assert_eq!(reconnects.lost(now, ending(now, code, 0)), None, "{code}");
        }
        reconnects.opened(now);
        assert!(reconnects.lost(now, ending(now, Code::Idle, 0)).is_some());
    }
}
