//! The state machine without a kernel: what it reports, allows and waits for.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A connection is in the kernel's queue.
const QUEUED: Waiting = Waiting { in_queue: true, parked: false };
/// A connection is parked, and the queue is empty.
const PARKED: Waiting = Waiting { in_queue: false, parked: true };
const NOBODY: Waiting = Waiting { in_queue: false, parked: false };

fn out_of_descriptors() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// A listening socket that the kernel has refused to accept from.
fn paused(now: Instant) -> AcceptState {
    let mut state = AcceptState::new(true);
    let event = state.on_refused(out_of_descriptors(), now);
    assert!(matches!(event, Some(Event::AcceptPaused { .. })), "{event:?}");
    state
}

fn stopping(queue_max: u32, until: Instant) -> AcceptState {
    let mut state = AcceptState::new(true);
    state.stop(queue_max, until);
    state
}

#[test]
fn accepts_within_the_budget_while_wanted() {
    let mut state = AcceptState::new(true);
    assert_eq!((state.accepts_allowed(7), state.accepts_allowed(0)), (7, 0));
    assert!(state.set_wanted(false), "a change");
    assert!(!state.set_wanted(false), "none");
    assert_eq!(state.accepts_allowed(7), 0);
    assert!(!state.may_report(7));
    assert!(state.set_wanted(true));
    assert_eq!(state.accepts_allowed(7), 7);
    assert!(state.may_report(1) && !state.may_report(0));
    assert_eq!(AcceptState::new(false).accepts_allowed(7), 0, "nobody listens");
}

#[test]
fn a_pause_is_reported_once_however_many_tries_fail() {
    let now = Instant::now();
    let mut state = paused(now);
    for tries in 1..4 {
        assert_eq!(state.accepts_allowed(1), 0);
        let at = now + RETRY_AFTER * tries;
        state.on_time(at - Duration::from_nanos(1));
        assert_eq!(state.accepts_allowed(1), 0, "before its time");
        state.on_time(at);
        assert_eq!(state.accepts_allowed(1), 1);
        assert!(state.on_refused(out_of_descriptors(), at).is_none());
    }
    assert!(matches!(state.on_accepted(), Some(Event::AcceptResumed)));
    assert!(state.on_accepted().is_none(), "once");
    // The next pause is another one.
    assert!(state.on_refused(out_of_descriptors(), now).is_some());
}

#[test]
fn a_connection_that_closes_ends_the_wait_but_not_the_pause() {
    let now = Instant::now();
    let mut state = paused(now);
    assert_eq!(state.wait(QUEUED, 1), Wait::Until(now + RETRY_AFTER));
    state.on_connection_closed();
    assert_eq!(state.accepts_allowed(1), 1);
    assert_eq!(state.wait(QUEUED, 1), Wait::No);
    assert!(state.on_refused(out_of_descriptors(), now).is_none(), "still the same pause");
}

#[test]
fn an_empty_queue_ends_a_pause_only_if_a_try_has_shown_it() {
    let now = Instant::now();
    let mut state = paused(now);
    assert!(state.on_queue_empty().is_none(), "the last try was refused");
    state.on_time(now + RETRY_AFTER);
    assert!(matches!(state.on_queue_empty(), Some(Event::AcceptResumed)));
    assert!(state.on_queue_empty().is_none(), "once");
    assert!(AcceptState::new(true).on_queue_empty().is_none(), "there was no pause");
}

#[test]
fn only_the_core_holds_a_parked_connection_back() {
    let now = Instant::now();
    let state = paused(now);
    assert!(state.may_report(1));
    assert_eq!(state.wait(PARKED, 1), Wait::No);
    assert_eq!(state.wait(PARKED, 0), Wait::Until(now + RETRY_AFTER));
}

#[test]
fn a_driver_waits_for_ever_where_nothing_can_be_accepted() {
    let mut state = AcceptState::new(true);
    assert_eq!(state.wait(NOBODY, 1), Wait::Forever);
    assert_eq!(
        state.wait(QUEUED, 0),
        Wait::Forever,
        "no budget: a connection that closes wakes it"
    );
    state.set_wanted(false);
    assert_eq!(state.wait(QUEUED, 1), Wait::Forever);
    state.set_wanted(true);
    assert_eq!(state.wait(QUEUED, 1), Wait::No);
}

#[test]
fn the_shorter_wait_counts_and_gets_shorter_as_time_passes() {
    let now = Instant::now();
    let until = Wait::Until(now + SECOND);
    assert_eq!(until.or_shorter(None, || now), Some(SECOND));
    assert_eq!(until.or_shorter(None, || now + SECOND / 4), Some(SECOND * 3 / 4));
    assert_eq!(until.or_shorter(Some(SECOND / 2), || now), Some(SECOND / 2));
    assert_eq!(until.or_shorter(Some(SECOND * 2), || now), Some(SECOND));
    assert_eq!(until.or_shorter(Some(SECOND), || now + SECOND * 2), Some(Duration::ZERO));
    let no_clock = || -> Instant { panic!("the clock is not needed") };
    assert_eq!(Wait::No.or_shorter(None, no_clock), Some(Duration::ZERO));
    assert_eq!(Wait::Forever.or_shorter(None, no_clock), None);
    assert_eq!(Wait::Forever.or_shorter(Some(SECOND), no_clock), Some(SECOND));
}

#[test]
fn the_last_accepts_are_as_many_as_the_queue_holds() {
    let until = Instant::now();
    let mut state = stopping(3, until);
    for left in (1..=3).rev() {
        assert_eq!(state.accepts_allowed(100), left);
        assert!(!state.may_close(QUEUED, 100, until + SECOND), "who waits is let in");
        assert!(state.on_accepted().is_none());
    }
    assert_eq!(state.accepts_allowed(100), 0);
    assert!(state.may_close(QUEUED, 100, until - SECOND), "who came since is refused");
    assert!(state.on_accepted().is_none(), "an accept that was in flight may come on top");
    assert_eq!(state.accepts_allowed(100), 0);
}

#[test]
fn stopping_asks_for_connections_again_and_the_core_may_change_its_mind() {
    let now = Instant::now();
    let mut state = AcceptState::new(true);
    state.set_wanted(false);
    state.stop(3, now + SECOND);
    assert_eq!(state.accepts_allowed(1), 1);
    state.set_wanted(false);
    assert_eq!(state.accepts_allowed(1), 0);
    assert!(!state.may_close(QUEUED, 1, now));
    assert!(state.may_close(QUEUED, 1, now + SECOND));
}

#[test]
fn a_socket_with_an_empty_queue_closes_without_a_wait() {
    let now = Instant::now();
    let state = stopping(3, now + SECOND);
    assert!(state.may_close(NOBODY, 0, now));
    assert_eq!(state.wait(NOBODY, 0), Wait::No);
    assert!(!AcceptState::new(true).may_close(NOBODY, 0, now), "nobody asked for it");
}

#[test]
fn waiting_connections_without_a_budget_delay_the_close_to_the_deadline() {
    let now = Instant::now();
    let state = stopping(3, now + SECOND);
    for waiting in [QUEUED, PARKED] {
        assert!(!state.may_close(waiting, 0, now + SECOND - Duration::from_nanos(1)));
        assert_eq!(state.wait(waiting, 0), Wait::Until(now + SECOND));
        assert!(state.may_close(waiting, 0, now + SECOND));
        assert!(
            !state.may_close(waiting, 1, now + SECOND),
            "a connection that can be accepted, is"
        );
    }
}

#[test]
fn a_second_stop_makes_the_deadline_earlier_and_never_later() {
    let now = Instant::now();
    let mut state = stopping(3, now + SECOND);
    state.stop(3, now + SECOND / 4);
    assert_eq!(state.wait(QUEUED, 0), Wait::Until(now + SECOND / 4));
    state.stop(3, now + 2 * SECOND);
    assert_eq!(state.wait(QUEUED, 0), Wait::Until(now + SECOND / 4));
    assert!(state.may_close(QUEUED, 0, now + SECOND / 4));
}

#[test]
fn a_parked_connection_delays_the_close_though_no_accept_is_left() {
    let now = Instant::now();
    let mut state = stopping(1, now + SECOND);
    assert!(state.on_accepted().is_none());
    assert!(!state.may_close(PARKED, 0, now));
    assert!(state.may_close(PARKED, 0, now + SECOND));
    assert!(state.may_close(QUEUED, 0, now));
}

#[test]
fn a_pause_bounds_the_last_accepts_too() {
    let now = Instant::now();
    let mut state = paused(now);
    state.stop(3, now + SECOND);
    assert!(!state.may_close(QUEUED, 1, now));
    assert_eq!(state.wait(QUEUED, 1), Wait::Until(now + RETRY_AFTER));
    assert!(state.may_close(QUEUED, 1, now + SECOND), "the kernel has not given in");
    let mut state = paused(now);
    state.stop(3, now + RETRY_AFTER / 2);
    assert_eq!(state.wait(QUEUED, 1), Wait::Until(now + RETRY_AFTER / 2), "the nearer of the two");
}

#[test]
fn the_end_of_listening_is_reported_once_and_nothing_after_it() {
    let now = Instant::now();
    let mut state = paused(now);
    state.stop(3, now);
    assert!(state.is_stopping());
    assert!(matches!(state.on_closed(2), Event::ListeningStopped { reset: 2 }));
    state.stop(3, now + SECOND);
    assert!(!state.is_stopping(), "permanently");
    assert!(!state.may_close(NOBODY, 1, now));
    state.set_wanted(true);
    assert_eq!(state.accepts_allowed(1), 0);
    assert!(state.on_queue_empty().is_none() && state.on_accepted().is_none(), "no pause is left");
    assert_eq!(state.wait(NOBODY, 1), Wait::Forever);
}

#[test]
fn a_second_stop_changes_neither_the_count_nor_the_deadline() {
    let now = Instant::now();
    let mut state = stopping(1, now);
    state.stop(9, now + SECOND);
    assert_eq!(state.accepts_allowed(100), 1);
    assert!(state.may_close(QUEUED, 0, now));
}

#[test]
fn an_error_of_one_connection_is_no_pause() {
    for errno in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::ENETUNREACH] {
        assert!(is_of_one_connection(errno), "{errno}");
    }
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EINVAL] {
        assert!(!is_of_one_connection(errno), "{errno}");
    }
}
