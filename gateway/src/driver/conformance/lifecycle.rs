//! How connections are accepted and closed, and how listening stops.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Bench, Fact, Read, World, pattern};
use crate::driver::{CloseCause, Driver as _, SendState};

/// A deadline that has passed.
fn at_once() -> Instant {
    Instant::now()
}

/// More than any buffer on the way holds.
const LARGE: usize = 24 * 1024 * 1024;

pub(super) fn bytes_and_ends_are_reported<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    assert_eq!(bench.world.write(peer, b"hello"), 5);
    bench.until("no bytes", |bench| bench.received(conn) == b"hello");
    bench.send(conn, &b"world"[..]);
    bench.until_fact(&Fact::Sent(conn, 5));
    assert_eq!(bench.peer_reads(peer, 5), b"world");
    bench.world.half_close(peer);
    bench.until_fact(&Fact::Ended(conn));
    bench.driver().close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
    assert_eq!(bench.peer_reads_end(peer), Read::End);
    assert!(bench.world.has_goodbye(peer), "cut off");
}

pub(super) fn a_close_right_after_a_send_is_reported<W: World>() {
    let mut bench = Bench::<W>::new();
    let (_, conn) = bench.connect();
    let _ = bench.driver().send(conn, Bytes::from_static(b"hello"));
    bench.driver().shutdown(conn);
    bench.driver().close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
}

pub(super) fn closed_is_reported_once_and_last<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.send(conn, pattern(LARGE));
    bench.world.write(peer, b"unread");
    bench.world.reset(peer);
    bench.driver().close(conn);
    bench.driver().close(conn);
    bench.until("not closed", |bench| !bench.outcomes(conn).is_empty());
    assert!((1..=LARGE).contains(&bench.recorder.unsent_bytes), "{}", bench.recorder.unsent_bytes);
    bench.polls(50);
    // The recorder fails on an event after `Closed`.
    assert!(matches!(bench.outcomes(conn)[..], [Fact::Closed(..)]), "{:?}", bench.outcomes(conn));
}

pub(super) fn a_command_with_an_old_id_has_no_effect<W: World>() {
    let mut bench = Bench::<W>::new();
    let (_, old) = bench.connect();
    bench.driver().close(old);
    bench.until_fact(&Fact::Closed(old, CloseCause::Local));
    let (peer, new) = bench.connect();
    assert_eq!(new.slot, old.slot, "slots are reused");
    assert_ne!(new, old);
    let driver = bench.driver();
    driver.pause_receive(old);
    assert_eq!(driver.send(old, Bytes::from_static(b"late")), SendState::UnderWay);
    driver.shutdown(old);
    driver.close(old);
    bench.send(new, &b"hello"[..]);
    bench.until_fact(&Fact::Sent(new, 5));
    assert_eq!(bench.peer_reads(peer, 5), b"hello");
    bench.world.write(peer, b"world");
    bench.until("no bytes", |bench| bench.received(new) == b"world");
    bench.polls(20);
    assert_eq!(bench.world.read(peer), Read::Nothing, "still open");
    assert_eq!(bench.outcomes(old), [Fact::Closed(old, CloseCause::Local)]);
}

pub(super) fn a_reset_is_reported<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.world.reset(peer);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
}

pub(super) fn a_reset_is_reported_while_paused<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.driver().pause_receive(conn);
    bench.world.write(peer, &pattern(100));
    bench.polls(5);
    bench.world.reset(peer);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
}

/// A peer that has shut down its sending side may still reset the connection.
pub(super) fn a_reset_after_an_end_is_reported<W: World>() {
    for paused in [false, true] {
        let mut bench = Bench::<W>::new();
        let (peer, conn) = bench.connect();
        if paused {
            bench.driver().pause_receive(conn);
            bench.world.write(peer, b"unread");
        }
        bench.polls(5);
        bench.world.half_close(peer);
        if !paused {
            bench.until_fact(&Fact::Ended(conn));
        }
        bench.polls(5);
        bench.world.reset(peer);
        bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
    }
}

pub(super) fn close_cuts_a_send<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.send(conn, pattern(LARGE));
    bench.polls(20);
    bench.driver().close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
    assert_eq!(bench.outcomes(conn), [Fact::Closed(conn, CloseCause::Local)], "nothing was sent");
    let got = bench.peer_reads_to_the_end(peer);
    assert!(got.len() < LARGE);
    assert!(pattern(LARGE).starts_with(&got));
    bench.assert_unsent(LARGE - got.len());
}

/// The send follows the close in the same turn.
pub(super) fn bytes_sent_after_a_close_count_as_unsent<W: World>() {
    let mut bench = Bench::<W>::new();
    let (_, conn) = bench.connect();
    bench.driver().close(conn);
    // A wire that has said goodbye takes it as done.
    let _ = bench.driver().send(conn, pattern(1000).into());
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
    bench.assert_unsent(1000);
}

/// The kernel knows of the reset, and the driver does not yet.
pub(super) fn bytes_sent_after_a_reset_count_as_unsent<W: World>() {
    for pushed in [1000, LARGE] {
        let mut bench = Bench::<W>::new();
        let (peer, conn) = bench.connect();
        bench.world.reset(peer);
        let mut asked = 0;
        // Where the first send is reported as done, the second one waits for its end.
        for _ in 0..2 {
            asked += pushed;
            if bench.driver().send(conn, pattern(pushed).into()) == SendState::UnderWay {
                break;
            }
        }
        bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
        bench.assert_unsent(asked);
    }
}

/// What a driver reports as sent reaches a peer that reads, also if the connection is closed right after.
pub(super) fn a_close_loses_no_byte_of_a_send_that_was_done<W: World>() {
    let chunk = Bytes::from(pattern(15_000));
    // How many chunks are sent before the close. No poll follows the last one.
    let mut counts = vec![usize::MAX];
    while let Some(most) = counts.pop() {
        let mut bench = Bench::<W>::new();
        let (peer, conn) = bench.connect();
        let (mut asked, mut sent) = (0, 0);
        while sent < most {
            asked += 1;
            if bench.driver().send(conn, chunk.clone()) == SendState::UnderWay {
                break;
            }
            sent += 1;
            if sent < most {
                bench.polls(2);
            }
        }
        if most == usize::MAX {
            counts.extend(sent.saturating_sub(4)..=sent);
        }
        bench.driver().close(conn);
        let got = bench.peer_reads_to_the_end(peer);
        assert!(got.len() >= sent * chunk.len(), "{} bytes of {sent} chunks", got.len());
        assert!(chunk.repeat(sent + 1).starts_with(&got), "bytes out of place");
        bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
        bench.assert_unsent(asked * chunk.len() - got.len());
    }
}

impl<W: World> Bench<W> {
    #[track_caller]
    fn assert_unsent(&self, count: usize) {
        let reported = self.recorder.unsent_bytes;
        assert!(W::may_be_unsent(count, reported), "{reported} reported, {count} unsent");
    }
}

/// The budget may get smaller after the driver has asked for accepts.
pub(super) fn nothing_is_accepted_beyond_the_budget<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.recorder.accept_budget = 3;
    bench.polls(3);
    bench.recorder.accept_budget = 1;
    let peers: Vec<_> =
        (0..3).map(|_| bench.world.connect().expect("a place in the queue")).collect();
    bench.until("nothing is accepted", |bench| !bench.accepted().is_empty());
    bench.polls(20);
    assert_eq!(bench.accepted().len(), 1);
    bench.recorder.accept_budget = 2;
    bench.until("not all accepted", |bench| bench.accepted().len() == 3);
    for (peer, conn) in peers.into_iter().zip(bench.accepted()) {
        bench.send(conn, &b"hello"[..]);
        assert_eq!(bench.peer_reads(peer, 5), b"hello");
    }
}

pub(super) fn accepting_stops_and_starts_again<W: World>() {
    let mut bench = Bench::<W>::new();
    let (first, conn) = bench.connect();
    bench.driver().set_accepting(false);
    bench.world.connect().expect("a place in the queue");
    bench.polls(20);
    assert_eq!(bench.accepted().len(), 1);
    // A connection that was accepted before is served.
    bench.world.write(first, b"hello");
    bench.until("no bytes", |bench| bench.received(conn) == b"hello");
    assert_eq!(bench.accepted().len(), 1);
    bench.driver().set_accepting(true);
    bench.until("not accepted", |bench| bench.accepted().len() == 2);
}

pub(super) fn connections_are_refused_once_listening_has_stopped<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.driver().stop_listening(at_once());
    bench.poll();
    assert!(bench.world.connect().is_none());
    bench.driver().set_accepting(true);
    bench.polls(5);
    assert!(bench.world.connect().is_none(), "it listened again");
    bench.world.write(peer, b"hello");
    bench.until("no bytes", |bench| bench.received(conn) == b"hello");
}

pub(super) fn waiting_connections_are_accepted_before_listening_stops<W: World>() {
    for accepting in [true, false] {
        let mut bench = Bench::<W>::new();
        bench.driver().set_accepting(accepting);
        let peers: Vec<_> =
            (0..3).map(|_| bench.world.connect().expect("a place in the queue")).collect();
        bench.driver().stop_listening(at_once());
        bench.until_fact(&Fact::ListeningStopped(0));
        assert_eq!(bench.accepted().len(), 3);
        assert_eq!(
            bench.facts().last(),
            Some(&Fact::ListeningStopped(0)),
            "nothing is accepted after it"
        );
        bench.driver().stop_listening(at_once());
        bench.polls(5);
        let stops = bench.facts().iter().filter(|fact| matches!(fact, Fact::ListeningStopped(_)));
        assert_eq!(stops.count(), 1);
        for (peer, conn) in peers.into_iter().zip(bench.accepted()) {
            bench.send(conn, &b"hello"[..]);
            bench.until_fact(&Fact::Sent(conn, 5));
            assert_eq!(bench.peer_reads(peer, 5), b"hello");
        }
    }
}

/// Each connection that closes lets the driver accept the next: none is reset, and none waits for the
/// deadline.
pub(super) fn waiting_connections_are_accepted_as_others_close<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.recorder.accept_budget = 1;
    let (_, first) = bench.connect();
    bench.driver().set_accepting(false);
    let waiting: Vec<_> =
        (0..5).map(|_| bench.world.connect().expect("a place in the queue")).collect();
    let until = Instant::now() + Duration::from_secs(3600);
    bench.driver().stop_listening(until);
    bench.polls(20);
    assert_eq!(bench.accepted().len(), 1, "one was accepted beyond the budget");
    let mut leaving = first;
    for count in 2..=6 {
        bench.driver().close(leaving);
        bench.until_fact(&Fact::Closed(leaving, CloseCause::Local));
        bench.recorder.accept_budget = 1;
        bench.until("not accepted", |bench| bench.accepted().len() == count);
        leaving = bench.accepted()[count - 1];
    }
    bench.until_fact(&Fact::ListeningStopped(0));
    bench.send(leaving, &b"hello"[..]);
    assert_eq!(bench.peer_reads(waiting[4], 5), b"hello", "the order is that of the queue");
    assert!(bench.world.connect().is_none());
}

pub(super) fn connections_beyond_the_budget_at_the_deadline_are_reset_and_counted<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.driver().set_accepting(false);
    bench.polls(5);
    let waiting: Vec<_> =
        (0..3).map(|_| bench.world.connect().expect("a place in the queue")).collect();
    bench.recorder.accept_budget = 1;
    bench.driver().stop_listening(at_once());
    bench.until_fact(&Fact::ListeningStopped(2));
    let accepted = bench.accepted();
    assert_eq!(accepted.len(), 1);
    for peer in &waiting[1..] {
        assert_eq!(bench.peer_reads_end(*peer), Read::Reset);
    }
    bench.send(accepted[0], &b"hello"[..]);
    assert_eq!(bench.peer_reads(waiting[0], 5), b"hello");
}

/// Also where the core has no budget and would wait for ever.
pub(super) fn an_idle_listener_closes_without_a_wait<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.recorder.accept_budget = 0;
    bench.recorder.idle_for = None;
    let until = Instant::now() + Duration::from_secs(60);
    bench.driver().stop_listening(until);
    bench.until_fact(&Fact::ListeningStopped(0));
    assert!(bench.recorder.now < Some(until), "it waited for the deadline");
}

pub(super) fn the_deadline_ends_a_wait_for_ever<W: World>() {
    let mut bench = Bench::<W>::new();
    bench.recorder.accept_budget = 0;
    bench.recorder.idle_for = None;
    let peer = bench.world.connect().expect("a place in the queue");
    bench.driver().stop_listening(Instant::now() + Duration::from_millis(50));
    bench.until_fact(&Fact::ListeningStopped(1));
    assert_eq!(bench.peer_reads_end(peer), Read::Reset);
}

/// Connections keep coming, so one waits at all times. Those that came before the stop are accepted.
pub(super) fn the_last_accepts_are_as_many_as_the_queue_holds<W: World>() {
    const BACKLOG: u16 = 2;
    let queue_max = usize::from(BACKLOG) + 1;
    let mut bench = Bench::<W>::with_backlog(BACKLOG);
    bench.recorder.accept_budget = 0;
    bench.polls(3);
    let connect = |bench: &mut Bench<W>| bench.world.connect().expect("a place in the queue");
    let first: Vec<_> = (0..queue_max).map(|_| connect(&mut bench)).collect();
    bench.driver().stop_listening(Instant::now() + Duration::from_secs(3600));
    let mut later = Vec::new();
    for count in 1..=queue_max {
        bench.recorder.accept_budget = 1;
        bench.until("not accepted", |bench| bench.accepted().len() == count);
        if count < queue_max {
            later.push(connect(&mut bench));
        }
    }
    bench.until_fact(&Fact::ListeningStopped(2));
    for (peer, conn) in first.into_iter().zip(bench.accepted()) {
        bench.send(conn, &b"hello"[..]);
        assert_eq!(bench.peer_reads(peer, 5), b"hello");
    }
    for peer in later {
        assert_eq!(bench.peer_reads_end(peer), Read::Reset);
    }
}

/// They complete after the stop and use up the last accepts, and the budget has gone to other shards.
pub(super) fn connections_accepted_beyond_the_budget_keep_until_the_deadline<W: World>() {
    let mut bench = Bench::<W>::with_backlog(1);
    bench.recorder.accept_budget = 2;
    bench.polls(3);
    let peers = [(); 2].map(|()| bench.world.connect().expect("a place in the queue"));
    bench.driver().stop_listening(Instant::now() + Duration::from_secs(3600));
    bench.recorder.accept_budget = 0;
    bench.polls(20);
    assert_eq!(bench.facts(), [], "accepted beyond the budget, or closed before the deadline");
    bench.recorder.accept_budget = 2;
    bench.until_fact(&Fact::ListeningStopped(0));
    let accepted = bench.accepted();
    assert_eq!(accepted.len(), 2);
    for (peer, conn) in peers.into_iter().zip(accepted) {
        bench.send(conn, &b"hello"[..]);
        assert_eq!(bench.peer_reads(peer, 5), b"hello");
    }
}

/// A sink that would wait for ever still gets the results of its commands at once.
pub(super) fn known_events_are_reported_without_a_wait<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.recorder.idle_for = None;
    bench.send(conn, &b"hello"[..]);
    bench.until_fact(&Fact::Sent(conn, 5));
    // Bytes that came while paused are reported after a resume alone.
    bench.recorder.idle_for = Some(std::time::Duration::from_millis(1));
    bench.driver().pause_receive(conn);
    bench.world.write(peer, b"hello");
    bench.polls(10);
    bench.recorder.idle_for = None;
    bench.driver().resume_receive(conn);
    bench.until("no bytes", |bench| bench.received(conn) == b"hello");
    bench.driver().close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
}
