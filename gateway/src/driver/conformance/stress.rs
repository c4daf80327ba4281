//! Many connections, and many operations at once.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fastrand::Rng;

use super::{Bench, Fact, Read, World, pattern};
use crate::driver::{CloseCause, ConnId, Driver as _, RECEIVE_BYTES_MAX};

/// More than a socket takes at once.
const LARGE: usize = 8 * 1024 * 1024;

/// Held by a test while it has many connections: all tests of the process share its limit on open files.
static MANY_CONNECTIONS: Mutex<()> = Mutex::new(());

/// See [`MANY_CONNECTIONS`].
pub(super) type ManyConnections = MutexGuard<'static, ()>;

impl<W: World> Bench<W> {
    /// Peers that connect between two polls, and their connections. While the bench lasts, no other has as
    /// many.
    #[track_caller]
    fn connect_many(&mut self, count: usize) -> Vec<(usize, ConnId)> {
        // A test that fails must not fail the others.
        self.many_connections
            .get_or_insert_with(|| MANY_CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner));
        let before = self.accepted().len();
        let mut peers = Vec::new();
        // Accepting is slower than connecting, and this is what the queue holds.
        while peers.len() < count {
            let burst = (count - peers.len()).min(100);
            peers.extend((0..burst).map(|_| self.world.connect().expect("the listener is open")));
            let accepted = before + peers.len();
            self.until("not all are accepted", |bench| bench.accepted().len() >= accepted);
        }
        assert_eq!(self.accepted().len(), before + count);
        peers.into_iter().zip(self.accepted().split_off(before)).collect()
    }

    fn closed(&self, conn: ConnId) -> Option<CloseCause> {
        self.facts().iter().find_map(|fact| match fact {
            Fact::Closed(of, cause) if *of == conn => Some(*cause),
            _ => None,
        })
    }

    #[track_caller]
    fn closes(&mut self, connections: &[(usize, ConnId)]) {
        connections.iter().for_each(|&(_, conn)| self.driver().close(conn));
        for &(_, conn) in connections {
            self.until("not closed", |bench| bench.closed(conn).is_some());
        }
    }
}

/// Bytes that show which peer a connection is of.
fn greeting(round: usize, peer: usize) -> Vec<u8> {
    format!("round {round}, peer {peer:05}").into_bytes()
}

/// Rings, queues and slots fill and empty, and are used again.
pub(super) fn bursts_of_connections_open_and_close<W: World>() {
    let mut bench = Bench::<W>::new();
    for round in 0..4 {
        let together = bench.connect_many(110);
        // They may be accepted in another order than they connected: the bytes show which is which.
        for &(peer, _) in &together {
            bench.world.write(peer, &greeting(round, peer));
        }
        for &(_, conn) in &together {
            let count = greeting(0, 0).len();
            bench.until("no bytes", |bench| bench.received(conn).len() == count);
            let greeting = bench.received(conn);
            bench.send(conn, greeting);
        }
        for &(peer, _) in &together {
            let greeting = greeting(round, peer);
            assert_eq!(bench.peer_reads(peer, greeting.len()), greeting);
        }
        // Some stay open, so that the free slots are scattered.
        let (stays, goes) = together.split_at(if round == 3 { 0 } else { 5 });
        bench.closes(goes);
        assert!(stays.iter().all(|&(_, conn)| bench.closed(conn).is_none()));
    }
}

/// More sends in one turn than any queue of the driver holds.
pub(super) fn one_turn_sends_on_very_many_connections<W: World>() {
    // A ring takes 256 at once.
    const COUNT: usize = 300;
    let mut bench = Bench::<W>::new();
    let together = bench.connect_many(COUNT);
    for round in 0..3 {
        for &(_, conn) in &together {
            bench.send(conn, vec![round; 100]);
        }
        for &(peer, _) in &together {
            assert_eq!(bench.peer_reads(peer, 100), [round; 100]);
        }
    }
    bench.polls(3);
    for &(_, conn) in &together {
        assert_eq!(bench.outcomes(conn), vec![Fact::Sent(conn, 100); 3]);
    }
}

pub(super) fn many_are_reset_while_large_sends_wait<W: World>() {
    let mut bench = Bench::<W>::new();
    let together = bench.connect_many(24);
    let bytes = Bytes::from(pattern(LARGE));
    for &(_, conn) in &together {
        bench.send(conn, bytes.clone());
    }
    bench.polls(5);
    for &(peer, _) in together.iter().filter(|(peer, _)| peer % 2 == 0) {
        bench.world.reset(peer);
    }
    bench.until("a reset is not reported", |bench| {
        together.iter().filter(|&&(_, conn)| bench.closed(conn).is_some()).count() == 12
    });
    for &(peer, _) in together.iter().filter(|(peer, _)| peer % 2 == 1) {
        assert!(bench.peer_reads(peer, LARGE) == bytes, "bytes of {peer} are wrong");
    }
    bench.until("a send is not reported", |bench| {
        together.iter().all(|&(_, conn)| !bench.outcomes(conn).is_empty())
    });
    bench.polls(5);
    let sent = |conn| bench.outcomes(conn) == [Fact::Sent(conn, LARGE)];
    let reset = |conn| bench.outcomes(conn) == [Fact::Closed(conn, CloseCause::Reset)];
    assert_eq!(together.iter().filter(|&&(_, conn)| sent(conn)).count(), 12);
    assert_eq!(together.iter().filter(|&&(_, conn)| reset(conn)).count(), 12);
}

pub(super) fn frequent_pauses_lose_nothing<W: World>() {
    const BYTES: usize = 200_000;
    let mut rng = Rng::with_seed(7);
    let mut bench = Bench::<W>::new();
    let together = bench.connect_many(8);
    let sent: Vec<_> = (0..together.len()).map(|_| pattern(BYTES)).collect();
    let mut written = vec![0; together.len()];
    let mut received = vec![Vec::new(); together.len()];
    let mut ends = vec![false; together.len()];
    let mut seen = bench.facts().len();
    while !(ends.iter().all(|&ended| ended)) {
        for (index, &(peer, _)) in together.iter().enumerate() {
            let until = (written[index] + rng.usize(0..20_000)).min(BYTES);
            let more = bench.world.write(peer, &sent[index][written[index]..until]);
            if more > 0 && written[index] + more == BYTES {
                bench.world.half_close(peer);
            }
            written[index] += more;
            let conn = together[rng.usize(0..together.len())].1;
            match rng.u8(0..4) {
                0 => bench.driver().pause_receive(conn),
                1 => {
                    bench.driver().pause_receive(conn);
                    bench.driver().resume_receive(conn);
                }
                _ => bench.driver().resume_receive(conn),
            }
        }
        bench.poll();
        for fact in &bench.recorder.facts[seen..] {
            let index = |conn| together.iter().position(|(_, of)| *of == conn).unwrap();
            match fact {
                Fact::Received(conn, bytes) => received[index(*conn)].extend_from_slice(bytes),
                Fact::Ended(conn) => ends[index(*conn)] = true,
                fact => panic!("{fact:?}"),
            }
        }
        seen = bench.facts().len();
    }
    assert!(received.iter().all(|received| *received == pattern(BYTES)));
}

/// All peers together write far more at once than the driver has buffers for.
pub(super) fn more_bytes_than_buffers_arrive_whole<W: World>() {
    let mut bench = Bench::<W>::new();
    let together = bench.connect_many(40);
    for _ in 0..3 {
        let mut seen = bench.facts().len();
        let sent = pattern(RECEIVE_BYTES_MAX);
        let mut written = vec![0; together.len()];
        let mut bytes = vec![Vec::new(); together.len()];
        bench.until("bytes are lost", |bench| {
            for (&(peer, _), written) in together.iter().zip(&mut written) {
                *written += bench.world.write(peer, &sent[*written..]);
            }
            for fact in &bench.facts()[seen..] {
                if let Fact::Received(conn, more) = fact {
                    let index = together.iter().position(|(_, of)| of == conn).unwrap();
                    bytes[index].extend_from_slice(more);
                }
            }
            seen = bench.facts().len();
            bytes.iter().all(|bytes| bytes.len() == RECEIVE_BYTES_MAX)
        });
        assert!(bytes.iter().all(|bytes| *bytes == sent));
    }
}

pub(super) fn closes_among_other_operations_are_reported_once<W: World>() {
    let mut bench = Bench::<W>::new();
    let bytes = Bytes::from(pattern(LARGE));
    for round in 0..3 {
        let together = bench.connect_many(60);
        for (index, &(peer, conn)) in together.iter().enumerate() {
            if index % 2 == 0 {
                bench.send(conn, bytes.clone());
            }
            if index % 3 == 0 {
                bench.driver().pause_receive(conn);
            }
            bench.world.write(peer, &pattern(5000));
            if index % 5 == 0 {
                bench.driver().shutdown(conn);
            }
        }
        bench.polls(round);
        for &(peer, conn) in &together {
            match peer % 4 {
                0 => bench.world.half_close(peer),
                1 => bench.world.reset(peer),
                _ => {}
            }
            bench.driver().resume_receive(conn);
        }
        bench.closes(&together);
        bench.polls(5);
        for &(_, conn) in &together {
            let outcomes = bench.outcomes(conn);
            let closed = outcomes.iter().filter(|fact| matches!(fact, Fact::Closed(..))).count();
            assert_eq!(closed, 1, "{outcomes:?}");
        }
        // A connection that reuses a slot gets its own bytes alone.
        let (peer, conn) = bench.connect();
        bench.send(conn, &b"hello"[..]);
        assert_eq!(bench.peer_reads(peer, 5), b"hello");
        bench.polls(5);
        assert_eq!(bench.world.read(peer), Read::Nothing);
        assert_eq!(bench.received(conn), b"");
    }
}
