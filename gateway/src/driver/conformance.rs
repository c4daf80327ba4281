//! One suite for all drivers: the [contract](super), checked at both ends of a connection.
//!
//! A [`World`] is a driver with peers that a test controls. A test never sleeps: it
//! polls until what it waits for has happened. [`POLLS_MAX`] only ends a test that would never end.

mod flow;
mod lifecycle;
mod stress;
pub(crate) mod wires;
mod worlds;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_backend::batch::Wake;

use super::epoll::Epoll;
use super::sim::Sim;
use super::uring::Uring;
use super::{CloseCause, ConnId, Driver, Event, Failure, SendState, Sink};
use stress::ManyConnections;
use wires::{OnProxy, OnTls, OnWebSocket, OnWss, WireWorld};
use worlds::{ManyRings, RealWorld, SimWorld};

/// Polls after which a test gives up.
const POLLS_MAX: usize = 20_000;

/// Enough for the peers that a test connects between two polls.
const BACKLOG: u16 = 128;

/// A driver, and its peers by number.
trait World {
    type Driver: Driver;

    /// How many bytes more than [`RECEIVE_BYTES_MAX`](super::RECEIVE_BYTES_MAX) a poll may report of a connection: a wire keeps the
    /// beginning of a record or of a frame until its end has come.
    const KEPT_BYTES_MAX: usize = 0;

    /// `backlog`: one connection fewer than the accept queue holds.
    fn with_backlog(backlog: u16) -> Self;
    fn driver(&mut self) -> &mut Self::Driver;
    /// `None`: the connection is refused.
    fn connect(&mut self) -> Option<usize>;
    /// Writes what the connection takes. Says how many bytes.
    fn write(&mut self, peer: usize, bytes: &[u8]) -> usize;
    fn read(&mut self, peer: usize) -> Read;
    fn half_close(&mut self, peer: usize);
    fn reset(&mut self, peer: usize);
    /// Moves what peers have to say of themselves, as to open a wire. Called before each poll.
    fn advance(&mut self) {}
    /// Whether sends on the connection reach its peer.
    fn is_open(&mut self, conn: ConnId) -> bool {
        let _ = conn;
        true
    }
    /// Whether the peer was told in the wire's own way that nothing more comes.
    fn has_goodbye(&self, peer: usize) -> bool {
        let _ = peer;
        true
    }
    /// Whether a driver may report `reported` bytes as unsent where `count` are.
    fn may_be_unsent(count: usize, reported: usize) -> bool {
        count == reported
    }
}

/// The result of a peer's read.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

/// An [`Event`] that was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    Accepted(ConnId),
    Received(ConnId, Vec<u8>),
    Ended(ConnId),
    Sent(ConnId, usize),
    Closed(ConnId, CloseCause),
    AcceptPaused,
    AcceptResumed,
    /// With the number of connections that were reset.
    ListeningStopped(u32),
    /// Only wires report it.
    Failed(ConnId, Failure),
}

/// A sink that records the events, and checks that the driver keeps the contract.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) facts: Vec<Fact>,
    pub(crate) idle_for: Option<Duration>,
    /// The unsent bytes of all closed connections.
    pub(crate) unsent_bytes: usize,
    /// Connections that are open, and whether they have ended.
    open: Vec<(ConnId, bool)>,
    now: Option<Instant>,
    /// What to reply on a connection, once.
    pub(crate) replies: Vec<(ConnId, Bytes)>,
    /// How many more connections may be accepted.
    accept_budget: usize,
    /// Waits in which the driver has let events gather.
    coalesced_waits: usize,
    /// How many facts there were when the driver last asked how long to wait.
    known: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        let idle_for = Some(Duration::from_millis(1));
        Self {
            facts: Vec::new(),
            idle_for,
            unsent_bytes: 0,
            open: Vec::new(),
            now: None,
            replies: Vec::new(),
            accept_budget: usize::MAX,
            coalesced_waits: 0,
            known: 0,
        }
    }
}

impl Recorder {
    fn open(&mut self, conn: ConnId) -> &mut bool {
        let open = self.open.iter_mut().find(|(open, _)| *open == conn);
        &mut open.expect("events come between `Accepted` and `Closed` only").1
    }
}

impl Sink for Recorder {
    fn coalescing(&mut self) {
        self.coalesced_waits += 1;
    }

    fn event(&mut self, event: Event<'_>) {
        let fact = match event {
            Event::Accepted { conn, peer, .. } => {
                assert!(self.open.iter().all(|(open, _)| open.slot != conn.slot), "a slot in use");
                assert_ne!(peer, SocketAddr::from(([0, 0, 0, 0], 0)));
                self.accept_budget =
                    self.accept_budget.checked_sub(1).expect("the budget allows it");
                self.open.push((conn, false));
                Fact::Accepted(conn)
            }
            Event::Received { conn, bytes } => {
                assert!(!*self.open(conn), "bytes after the end");
                assert!((1..=super::RECEIVE_BYTES_MAX).contains(&bytes.len()));
                Fact::Received(conn, bytes.to_vec())
            }
            Event::Opened { conn, .. } => {
                self.open(conn);
                return;
            }
            Event::Named { conn, .. } => {
                assert!(!*self.open(conn), "a name after the end");
                return;
            }
            Event::Failed { conn, failure, .. } => {
                self.open(conn);
                let failed = |fact: &Fact| matches!(fact, Fact::Failed(of, _) if *of == conn);
                assert!(!self.facts.iter().any(failed), "a second failure");
                Fact::Failed(conn, failure)
            }
            Event::Ended { conn } => {
                assert!(!std::mem::replace(self.open(conn), true), "a second end");
                Fact::Ended(conn)
            }
            Event::Sent { conn, bytes } => {
                self.open(conn);
                Fact::Sent(conn, bytes)
            }
            Event::Closed { conn, cause, unsent_bytes } => {
                self.unsent_bytes += unsent_bytes;
                self.open(conn);
                self.open.retain(|(open, _)| *open != conn);
                Fact::Closed(conn, cause)
            }
            Event::AcceptPaused { .. } => Fact::AcceptPaused,
            Event::AcceptResumed => Fact::AcceptResumed,
            Event::ListeningStopped { reset } => Fact::ListeningStopped(reset),
        };
        self.facts.push(fact);
    }

    fn accept_budget(&mut self) -> usize {
        self.accept_budget
    }

    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        let index = self.replies.iter().position(|(to, _)| *to == conn)?;
        Some(self.replies.swap_remove(index).1)
    }

    fn idle_for(&mut self) -> Option<Duration> {
        // After an event the core has something to do.
        let is_busy = std::mem::replace(&mut self.known, self.facts.len()) < self.facts.len();
        if is_busy { Some(Duration::ZERO) } else { self.idle_for }
    }

    fn woken(&mut self, now: Instant) {
        assert!(self.now.is_none_or(|before| before <= now), "time never goes back");
        self.now = Some(now);
    }
}

/// A world under test, and what its driver has reported.
struct Bench<W> {
    world: W,
    recorder: Recorder,
    /// Dropped last.
    many_connections: Option<ManyConnections>,
}

impl<W: World> Bench<W> {
    fn new() -> Self {
        Self::with_backlog(BACKLOG)
    }

    fn with_backlog(backlog: u16) -> Self {
        Self {
            world: W::with_backlog(backlog),
            recorder: Recorder::default(),
            many_connections: None,
        }
    }

    fn driver(&mut self) -> &mut W::Driver {
        self.world.driver()
    }

    /// Sends. A send that is done at once is recorded as if it had been reported.
    fn send(&mut self, conn: ConnId, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let count = bytes.len();
        self.until_open(conn);
        if self.world.driver().send(conn, bytes) == SendState::Done {
            self.recorder.facts.push(Fact::Sent(conn, count));
        }
    }

    fn facts(&self) -> &[Fact] {
        &self.recorder.facts
    }

    /// A wire opens in polls of its own.
    #[track_caller]
    fn until_open(&mut self, conn: ConnId) {
        self.until("the wire does not open", |bench| bench.world.is_open(conn));
    }

    fn poll(&mut self) {
        self.world.advance();
        self.world.driver().poll(&mut self.recorder).unwrap();
    }

    fn polls(&mut self, count: usize) {
        (0..count).for_each(|_| self.poll());
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut happened: impl FnMut(&mut Self) -> bool) {
        for _ in 0..POLLS_MAX {
            if happened(self) {
                return;
            }
            self.poll();
        }
        let mut last = format!("{:?}", self.facts().iter().rev().take(10).collect::<Vec<_>>());
        last.truncate(2_000);
        panic!("{what}: {last}");
    }

    #[track_caller]
    fn until_fact(&mut self, fact: &Fact) {
        self.until(&format!("no {fact:?}"), |bench| bench.facts().contains(fact));
    }

    /// A peer and its accepted connection.
    #[track_caller]
    fn connect(&mut self) -> (usize, ConnId) {
        let before = self.accepted().len();
        let peer = self.world.connect().expect("the listener is open");
        self.until("nothing is accepted", |bench| bench.accepted().len() > before);
        let conn = *self.accepted().last().unwrap();
        self.until_open(conn);
        (peer, conn)
    }

    fn accepted(&self) -> Vec<ConnId> {
        let accepted = |fact: &Fact| match fact {
            Fact::Accepted(conn) => Some(*conn),
            _ => None,
        };
        self.facts().iter().filter_map(accepted).collect()
    }

    fn received(&self, conn: ConnId) -> Vec<u8> {
        let bytes = |fact: &Fact| match fact {
            Fact::Received(from, bytes) if *from == conn => Some(bytes.clone()),
            _ => None,
        };
        self.facts().iter().filter_map(bytes).flatten().collect()
    }

    /// What was reported of sends and of the end.
    fn outcomes(&self, conn: ConnId) -> Vec<Fact> {
        let of_conn = |fact: &&Fact| match fact {
            Fact::Sent(of, _) | Fact::Closed(of, _) => *of == conn,
            _ => false,
        };
        self.facts().iter().filter(of_conn).cloned().collect()
    }

    /// Reads until the peer has `count` bytes.
    #[track_caller]
    fn peer_reads(&mut self, peer: usize, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("the peer lacks bytes", |bench| {
            match bench.world.read(peer) {
                Read::Bytes(more) => bytes.extend(more),
                Read::Nothing => {}
                end => assert!(bytes.len() >= count, "{end:?} after {} bytes", bytes.len()),
            }
            bytes.len() >= count
        });
        bytes
    }

    /// Reads until the peer's connection has ended, or was reset.
    #[track_caller]
    fn peer_reads_to_the_end(&mut self, peer: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("no end for the peer", |bench| match bench.world.read(peer) {
            Read::Bytes(more) => {
                bytes.extend(more);
                false
            }
            Read::Nothing => false,
            Read::End | Read::Reset => true,
        });
        bytes
    }

    #[track_caller]
    fn peer_reads_end(&mut self, peer: usize) -> Read {
        let mut end = Read::Nothing;
        self.until("no end for the peer", |bench| {
            end = bench.world.read(peer);
            assert!(!matches!(end, Read::Bytes(_)), "bytes before the end: {end:?}");
            end != Read::Nothing
        });
        end
    }
}

/// Bytes in which a lost, doubled or misplaced one shows.
fn pattern(count: usize) -> Vec<u8> {
    let once: Vec<u8> = (0..251).collect();
    let mut bytes = once.repeat(count.div_ceil(once.len()));
    bytes.truncate(count);
    bytes
}

/// Runs each test of the suite for each driver.
macro_rules! conformance {
    ($($module:ident: $($test:ident),+;)+) => {
        conformance!(epoll: RealWorld<Epoll>: $($($module $test)+)+);
        conformance!(uring: RealWorld<Uring>: $($($module $test)+)+);
        conformance!(uring_many_rings: RealWorld<ManyRings>: $($($module $test)+)+);
        conformance!(sim: SimWorld<Sim>: $($($module $test)+)+);
        conformance!(proxy_epoll: WireWorld<RealWorld<OnProxy<Epoll>>>: $($($module $test)+)+);
        conformance!(proxy_uring: WireWorld<RealWorld<OnProxy<Uring>>>: $($($module $test)+)+);
        conformance!(proxy_sim: WireWorld<SimWorld<OnProxy<Sim>>>: $($($module $test)+)+);
        conformance!(tls_epoll: WireWorld<RealWorld<OnTls<Epoll>>>: $($($module $test)+)+);
        conformance!(tls_uring: WireWorld<RealWorld<OnTls<Uring>>>: $($($module $test)+)+);
        conformance!(tls_sim: WireWorld<SimWorld<OnTls<Sim>>>: $($($module $test)+)+);
        conformance!(websocket_epoll: WireWorld<RealWorld<OnWebSocket<Epoll>>>: $($($module $test)+)+);
        conformance!(websocket_uring: WireWorld<RealWorld<OnWebSocket<Uring>>>: $($($module $test)+)+);
        conformance!(websocket_sim: WireWorld<SimWorld<OnWebSocket<Sim>>>: $($($module $test)+)+);
        conformance!(wss_epoll: WireWorld<RealWorld<OnWss<Epoll>>>: $($($module $test)+)+);
        conformance!(wss_uring: WireWorld<RealWorld<OnWss<Uring>>>: $($($module $test)+)+);
        conformance!(wss_sim: WireWorld<SimWorld<OnWss<Sim>>>: $($($module $test)+)+);
    };
    ($driver:ident: $world:ty: $($module:ident $test:ident)+) => {
        mod $driver {
            use super::*;
            $(#[test] fn $test() { $module::$test::<$world>(); })+
        }
    };
}

conformance! {
    lifecycle:
        bytes_and_ends_are_reported,
        a_close_right_after_a_send_is_reported,
        closed_is_reported_once_and_last,
        a_command_with_an_old_id_has_no_effect,
        a_reset_is_reported,
        a_reset_is_reported_while_paused,
        a_reset_after_an_end_is_reported,
        close_cuts_a_send,
        bytes_sent_after_a_close_count_as_unsent,
        bytes_sent_after_a_reset_count_as_unsent,
        a_close_loses_no_byte_of_a_send_that_was_done,
        nothing_is_accepted_beyond_the_budget,
        accepting_stops_and_starts_again,
        connections_are_refused_once_listening_has_stopped,
        waiting_connections_are_accepted_before_listening_stops,
        waiting_connections_are_accepted_as_others_close,
        connections_beyond_the_budget_at_the_deadline_are_reset_and_counted,
        an_idle_listener_closes_without_a_wait,
        the_deadline_ends_a_wait_for_ever,
        the_last_accepts_are_as_many_as_the_queue_holds,
        connections_accepted_beyond_the_budget_keep_until_the_deadline,
        known_events_are_reported_without_a_wait;
    flow:
        a_half_closed_peer_still_receives,
        a_large_send_to_a_slow_reader_is_reported_once,
        shutdown_waits_for_the_send_under_way,
        receiving_goes_on_after_a_shutdown,
        pausing_stops_bytes_and_loses_none,
        an_end_while_paused_comes_after_the_bytes,
        one_flooding_peer_does_not_starve_others,
        bytes_of_many_connections_are_not_mixed,
        a_reply_is_sent_and_reported_once;
    stress:
        bursts_of_connections_open_and_close,
        one_turn_sends_on_very_many_connections,
        many_are_reset_while_large_sends_wait,
        frequent_pauses_lose_nothing,
        more_bytes_than_buffers_arrive_whole,
        closes_among_other_operations_are_reported_once;
}

#[test]
fn a_waker_ends_a_wait_for_ever() {
    let mut driver = super::epoll::Epoll::new(Vec::new()).unwrap();
    let waker = driver.waker();
    let mut recorder = Recorder { idle_for: None, ..Recorder::default() };
    let (polling, polled) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        polling.send(()).unwrap();
        driver.poll(&mut recorder).unwrap();
        recorder.facts
    });
    polled.recv().unwrap();
    waker.wake();
    assert_eq!(thread.join().unwrap(), []);
}

/// Wake-ups from other threads come as often as answers do, and are no events that could gather.
fn only_wakeups(mut driver: impl Driver, waker: &dyn Wake) {
    let mut recorder = Recorder { idle_for: None, ..Recorder::default() };
    for _ in 0..1000 {
        waker.wake();
        driver.poll(&mut recorder).unwrap();
    }
    assert_eq!(recorder.coalesced_waits, 0);
}

#[test]
fn epoll_does_not_let_wakeups_gather() {
    let driver = super::epoll::Epoll::new(Vec::new()).unwrap().coalescing(Duration::from_secs(1));
    let waker = driver.waker();
    only_wakeups(driver, &*waker);
}

#[test]
fn uring_does_not_let_wakeups_gather() {
    let capacity = super::uring::Capacity { connections: 10, files_each: 10 };
    let driver = super::uring::Uring::new(Vec::new(), capacity).unwrap();
    let driver = driver.coalescing(Duration::from_secs(1));
    let waker = driver.waker();
    only_wakeups(driver, &*waker);
}
