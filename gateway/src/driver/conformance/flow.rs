//! Receiving, sending and flow control.

use super::{Bench, Fact, Read, World, pattern};
use crate::driver::{CloseCause, Driver as _, RECEIVE_BYTES_MAX};

pub(super) fn a_half_closed_peer_still_receives<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.world.write(peer, b"ask");
    bench.world.half_close(peer);
    bench.until_fact(&Fact::Ended(conn));
    assert_eq!(bench.received(conn), b"ask", "the end comes after the bytes");
    for answer in [&b"one"[..], b"two"] {
        let sent = bench.outcomes(conn).len();
        bench.send(conn, answer);
        bench.until("not sent", |bench| bench.outcomes(conn).len() > sent);
        assert_eq!(bench.peer_reads(peer, 3), answer);
    }
    bench.driver().close(conn);
    assert_eq!(bench.peer_reads_end(peer), Read::End);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
}

pub(super) fn a_large_send_to_a_slow_reader_is_reported_once<W: World>() {
    const BYTES: usize = 8 * 1024 * 1024;
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    let (other, other_conn) = bench.connect();
    bench.send(conn, pattern(BYTES));
    bench.polls(20);
    assert_eq!(bench.outcomes(conn), [], "more than the buffers hold");
    // Meanwhile other connections are served.
    bench.send(other_conn, &b"hello"[..]);
    assert_eq!(bench.peer_reads(other, 5), b"hello");
    assert_eq!(bench.peer_reads(peer, BYTES), pattern(BYTES));
    bench.until_fact(&Fact::Sent(conn, BYTES));
    bench.send(conn, &b"next"[..]);
    bench.until_fact(&Fact::Sent(conn, 4));
    assert_eq!(bench.peer_reads(peer, 4), b"next");
    bench.polls(10);
    assert_eq!(bench.outcomes(conn), [Fact::Sent(conn, BYTES), Fact::Sent(conn, 4)]);
}

pub(super) fn shutdown_waits_for_the_send_under_way<W: World>() {
    for count in [10, 8 * 1024 * 1024] {
        let mut bench = Bench::<W>::new();
        let (peer, conn) = bench.connect();
        bench.send(conn, pattern(count));
        bench.driver().shutdown(conn);
        assert_eq!(bench.peer_reads(peer, count), pattern(count));
        assert_eq!(bench.peer_reads_end(peer), Read::End);
        bench.until_fact(&Fact::Sent(conn, count));
        assert_eq!(bench.outcomes(conn), [Fact::Sent(conn, count)], "a shutdown does not close it");
    }
}

pub(super) fn receiving_goes_on_after_a_shutdown<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    bench.driver().shutdown(conn);
    assert_eq!(bench.peer_reads_end(peer), Read::End);
    bench.world.write(peer, b"hello");
    bench.until("no bytes", |bench| bench.received(conn) == b"hello");
    bench.world.half_close(peer);
    bench.until_fact(&Fact::Ended(conn));
    bench.driver().close(conn);
    bench.until_fact(&Fact::Closed(conn, CloseCause::Local));
}

pub(super) fn pausing_stops_bytes_and_loses_none<W: World>() {
    let mut bench = Bench::<W>::new();
    let (peer, conn) = bench.connect();
    // More than the rounds take.
    let sent = pattern(12 * RECEIVE_BYTES_MAX);
    let mut written = 0;
    for round in 0..4 {
        bench.driver().pause_receive(conn);
        let before = bench.received(conn).len();
        written += bench.world.write(peer, &sent[written..]);
        bench.polls(10);
        let more = bench.received(conn).len() - before;
        assert!(
            more <= RECEIVE_BYTES_MAX + W::KEPT_BYTES_MAX,
            "round {round}: {more} bytes while paused"
        );
        bench.driver().resume_receive(conn);
        let polls = bench.facts().len();
        bench.until("no bytes after resuming", |bench| bench.facts().len() > polls);
        written += bench.world.write(peer, &sent[written..]);
    }
    bench.until("bytes are lost", |bench| {
        written += bench.world.write(peer, &sent[written..]);
        bench.received(conn).len() == sent.len()
    });
    assert_eq!(bench.received(conn), sent);
}

pub(super) fn an_end_while_paused_comes_after_the_bytes<W: World>() {
    for count in [1, 100, RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX + 1] {
        let mut bench = Bench::<W>::new();
        let (peer, conn) = bench.connect();
        bench.driver().pause_receive(conn);
        let mut written = bench.world.write(peer, &pattern(count));
        bench.polls(5);
        bench.driver().resume_receive(conn);
        bench.until("the peer can't write", |bench| {
            written += bench.world.write(peer, &pattern(count)[written..]);
            written == count
        });
        bench.driver().pause_receive(conn);
        bench.world.half_close(peer);
        bench.polls(10);
        bench.driver().resume_receive(conn);
        bench.until_fact(&Fact::Ended(conn));
        assert_eq!(bench.received(conn), pattern(count));
    }
}

/// However much one peer sends, a poll takes a bounded part of it and serves the other connections.
pub(super) fn one_flooding_peer_does_not_starve_others<W: World>() {
    let mut bench = Bench::<W>::new();
    let (flooder, flooded) = bench.connect();
    let (other, quiet) = bench.connect();
    let flood = pattern(4 * 1024 * 1024);
    let mut written = bench.world.write(flooder, &flood);
    assert!(written > RECEIVE_BYTES_MAX, "{written} bytes are no flood");
    bench.world.write(other, b"hello");
    let (mut received, mut at_hello) = (0, None);
    bench.until("the flood never ends", |bench| {
        // More comes before and after what is left of the last poll.
        written += bench.world.write(flooder, &flood[written..]);
        let now = bench.received_bytes(flooded);
        let received_max = RECEIVE_BYTES_MAX + W::KEPT_BYTES_MAX;
        assert!(now - received <= received_max, "{} bytes in one poll", now - received);
        received = now;
        if at_hello.is_none() && bench.received_bytes(quiet) == 5 {
            at_hello = Some(received);
        }
        received == flood.len()
    });
    let at_hello = at_hello.expect("the quiet peer is received from");
    assert!(at_hello <= 8 * RECEIVE_BYTES_MAX, "received after {at_hello} bytes of the flood");
}

impl<W: World> Bench<W> {
    fn received_bytes(&self, conn: super::ConnId) -> usize {
        let bytes = |fact: &Fact| match fact {
            Fact::Received(from, bytes) if *from == conn => bytes.len(),
            _ => 0,
        };
        self.facts().iter().map(bytes).sum()
    }
}

pub(super) fn bytes_of_many_connections_are_not_mixed<W: World>() {
    let mut bench = Bench::<W>::new();
    let peers: Vec<_> = (0..40).map(|_| bench.connect()).collect();
    let said = |round: usize, peer: usize| format!("{round}: {}", "x".repeat(peer)).into_bytes();
    for round in 0..3 {
        // Between two polls some write, some write and end, some end, some are reset.
        for &(peer, _) in &peers {
            match peer % 7 {
                _ if round < 2 => assert!(bench.world.write(peer, &said(round, peer)) > 0),
                0 => bench.world.half_close(peer),
                1 => {
                    bench.world.write(peer, &said(round, peer));
                    bench.world.half_close(peer);
                }
                2 => bench.world.reset(peer),
                _ => assert!(bench.world.write(peer, &said(round, peer)) > 0),
            }
        }
        for &(peer, conn) in &peers {
            if round == 2 && peer % 7 == 2 {
                bench.until_fact(&Fact::Closed(conn, CloseCause::Reset));
                continue;
            }
            let rounds = if round == 2 && peer % 7 == 0 { 2 } else { round + 1 };
            let all: Vec<_> = (0..rounds).flat_map(|round| said(round, peer)).collect();
            bench.until("bytes are missing", |bench| bench.received(conn).len() >= all.len());
            assert_eq!(bench.received(conn), all, "of {peer} in round {round}");
            if round == 2 && peer % 7 < 2 {
                bench.until_fact(&Fact::Ended(conn));
            }
        }
    }
}

pub(super) fn a_reply_is_sent_and_reported_once<W: World>() {
    let mut bench = Bench::<W>::new();
    let peers: Vec<_> = (0..20).map(|_| bench.connect()).collect();
    for length in [1, 1000] {
        for &(peer, conn) in &peers {
            bench.recorder.replies.push((conn, pattern(length + peer).into()));
            bench.world.write(peer, b"ask");
        }
        bench.until("the driver did not ask for all replies", |bench| {
            let lacks: Vec<_> = bench.recorder.replies.iter().map(|(conn, _)| *conn).collect();
            for &(peer, _) in peers.iter().filter(|(_, conn)| lacks.contains(conn)) {
                bench.world.write(peer, b"again");
            }
            lacks.is_empty()
        });
        for &(peer, conn) in &peers {
            assert_eq!(bench.peer_reads(peer, length + peer), pattern(length + peer));
            bench.until_fact(&Fact::Sent(conn, length + peer));
        }
    }
    bench.polls(10);
    for (peer, conn) in peers {
        let sent = [Fact::Sent(conn, 1 + peer), Fact::Sent(conn, 1000 + peer)];
        assert_eq!(bench.outcomes(conn), sent);
    }
}
