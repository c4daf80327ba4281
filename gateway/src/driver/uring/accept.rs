//! Connections in: a number of accepts is always under way, each into a free place of a ring's table.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::ring::ACCEPTS_MAX;
use super::socket::Socket;
use super::token::{SLOTS_MAX, Token};
use super::{CloseCause, Uring};
use crate::driver::accept_queue::{self, LastAccepts};
use crate::driver::{Event, Sink};

/// How long to wait before accepting is tried again when the kernel has nothing to give.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the kernel is asked to give back what it still accepts into.
const CANCEL_TRIES: u32 = 1_000;

/// The listening socket, and who is on the way in.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: Option<TcpListener>,
    /// Whether the shard wants connections.
    wanted: bool,
    /// Places for addresses that nobody is accepted into.
    free: Vec<u16>,
    /// The ring that each of the others belongs to.
    under_way: Vec<(u16, u16)>,
    /// Those who came in when the sink had no room left, or wanted nobody: as if they waited in the
    /// kernel's queue. At most as many as there are accepts.
    parked: VecDeque<Parked>,
    /// The ring that takes connections in.
    ring: u16,
    /// The kernel had nothing to give, and the sink was told. Nobody came in since.
    paused: bool,
    /// When to try again; `Some` only while `paused`, or when one more ring can't be had.
    retry_at: Option<Instant>,
    /// The listening socket is to be closed, after these.
    last: Option<LastAccepts>,
}

/// A connection that the sink has not heard of.
#[derive(Debug)]
struct Parked {
    ring: usize,
    file: u32,
    peer: SocketAddr,
}

impl Acceptor {
    pub(super) fn new(listener: Option<TcpListener>) -> Self {
        Self {
            listener,
            wanted: true,
            free: (0..ACCEPTS_MAX).collect(),
            under_way: Vec::with_capacity(usize::from(ACCEPTS_MAX)),
            parked: VecDeque::new(),
            ring: 0,
            paused: false,
            retry_at: None,
            last: None,
        }
    }

    /// Tries again now, if it was to be tried later.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
    }

    pub(super) fn retry_if_due(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
    }

    /// How long until it is tried again.
    pub(super) fn retry_in(&self) -> Option<Duration> {
        self.retry_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// How long the driver may wait while the listening socket is to be closed: not at all where a
    /// connection can be accepted.
    pub(super) fn stops_in(&self, sink: &mut impl Sink) -> Option<Duration> {
        let last = self.last.as_ref()?;
        if self.can_accept(sink) {
            return Some(Duration::ZERO);
        }
        Some(last.until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn stop(&mut self, until: Instant) {
        if let Some(listener) = &self.listener
            && self.last.is_none()
        {
            self.last = Some(LastAccepts::new(listener, until));
            self.wanted = true;
        }
    }

    /// Whether a connection that waits can be accepted now.
    fn can_accept(&self, sink: &mut impl Sink) -> bool {
        self.wanted && self.retry_at.is_none() && sink.accept_budget() > 0
    }

    /// Whether somebody waits to be let in.
    fn is_waited_for(&self) -> bool {
        let in_queue = |listener| accept_queue::is_waited_for(listener, Duration::ZERO);
        !self.parked.is_empty() || self.listener.as_ref().is_some_and(in_queue)
    }
}

impl Uring {
    /// Has as many accepts under way as there is room for.
    pub(super) fn accept_more(&mut self, sink: &mut impl Sink) {
        while self.acceptor.wanted
            && sink.accept_budget() > 0
            && let Some(Parked { ring, file, peer }) = self.acceptor.parked.pop_front()
        {
            self.take_in(ring, file, peer, sink);
        }
        let may_accept = self.acceptor.last.as_ref().is_none_or(LastAccepts::has_left);
        if !may_accept
            || !self.acceptor.wanted
            || self.acceptor.retry_at.is_some()
            || self.acceptor.free.is_empty()
        {
            return;
        }
        let Some(listener) = self.acceptor.listener.take() else { return };
        let wanted = sink.accept_budget().min(usize::from(ACCEPTS_MAX));
        while self.acceptor.under_way.len() + self.acceptor.parked.len() < wanted {
            let ring = match self.ring_with_a_place() {
                Ok(ring) => ring,
                Err(error) if self.acceptor.under_way.is_empty() => {
                    self.pause_accepting(error, sink);
                    break;
                }
                Err(_) => {
                    // Those under way may be all that come: nothing is to be told yet.
                    self.acceptor.retry_at = Some(Instant::now() + ACCEPT_RETRY);
                    break;
                }
            };
            let Some(place) = self.acceptor.free.pop() else { break };
            self.acceptor.under_way.push((place, ring));
            self.ask(ring, |ring| ring.accept(listener.as_fd(), place));
        }
        self.acceptor.listener = Some(listener);
    }

    /// The ring to take the next connection in: the one that did so last, for as long as it has places.
    fn ring_with_a_place(&mut self) -> io::Result<u16> {
        let free = |ring: &super::Ring| ring.files_max - ring.files;
        if free(&self.rings[usize::from(self.acceptor.ring)]) == 0 {
            let emptiest = self.rings.iter().map(free).enumerate().max_by_key(|(_, free)| *free);
            let ring = match emptiest {
                Some((ring, 1..)) => ring,
                _ => {
                    self.add_ring()?;
                    self.rings.len() - 1
                }
            };
            self.acceptor.ring = u16::try_from(ring).map_err(io::Error::other)?;
        }
        Ok(self.acceptor.ring)
    }

    pub(super) fn on_accepted(
        &mut self,
        ring: usize,
        place: u16,
        result: i32,
        sink: &mut impl Sink,
    ) {
        let peer = self.rings[ring].take_peer(place);
        self.acceptor.under_way.retain(|(under_way, _)| *under_way != place);
        self.acceptor.free.push(place);
        if result >= 0 {
            self.end_pause(sink);
            if let Some(last) = &mut self.acceptor.last {
                last.count();
            }
            let peer = peer.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
            let file = result.cast_unsigned();
            if self.acceptor.wanted && sink.accept_budget() > 0 {
                return self.take_in(ring, file, peer, sink);
            }
            // It was accepted before the sink's room went to others.
            return self.acceptor.parked.push_back(Parked { ring, file, peer });
        }
        self.rings[ring].files -= 1;
        match -result {
            // The connection was gone before it was taken: accept(2).
            libc::ECANCELED | libc::ECONNABORTED | libc::EINTR | libc::EAGAIN => {}
            errno => self.pause_accepting(io::Error::from_raw_os_error(errno), sink),
        }
    }

    fn take_in(&mut self, ring: usize, file: u32, peer: SocketAddr, sink: &mut impl Sink) {
        let index = u16::try_from(ring).expect("rings are numbered with 16 bits");
        let conn = self.sockets.insert(Socket::new(index, file));
        sink.event(Event::Accepted { conn, peer });
        if conn.slot < SLOTS_MAX {
            self.settle(conn);
        } else {
            self.end(conn, CloseCause::Failed);
        }
    }

    /// The kernel has nothing to give: accepting is tried again later.
    fn pause_accepting(&mut self, error: io::Error, sink: &mut impl Sink) {
        self.acceptor.retry_at = Some(Instant::now() + ACCEPT_RETRY);
        if !mem::replace(&mut self.acceptor.paused, true) {
            sink.event(Event::AcceptPaused { error });
        }
    }

    fn end_pause(&mut self, sink: &mut impl Sink) {
        if mem::take(&mut self.acceptor.paused) {
            sink.event(Event::AcceptResumed);
        }
    }

    pub(super) fn set_wanted(&mut self, wanted: bool) {
        if mem::replace(&mut self.acceptor.wanted, wanted) && !wanted {
            // At once: who connects from now on is to wait in the queue.
            self.cancel_accepts();
        }
    }

    fn cancel_accepts(&mut self) {
        for index in 0..self.acceptor.under_way.len() {
            let (place, ring) = self.acceptor.under_way[index];
            self.ask(ring, |ring| ring.cancel(Token::Accept(place)));
        }
        for index in 0..self.rings.len() {
            let ring = &mut self.rings[index];
            if ring.has_submissions()
                && let Err(error) = ring.submit()
            {
                self.failure.get_or_insert(error);
            }
        }
    }

    /// Closes the listening socket, if it is to be closed and nobody waits who may still be let in.
    pub(super) fn stop_listening_if_last(
        &mut self,
        now: Instant,
        sink: &mut impl Sink,
    ) -> io::Result<()> {
        let Some(last) = &self.acceptor.last else { return Ok(()) };
        if self.acceptor.is_waited_for() && last.go_on(self.acceptor.can_accept(sink), now) {
            return Ok(());
        }
        for _ in 0..CANCEL_TRIES {
            // One that is on its way to its second try is found by none but a later cancellation.
            self.cancel_accepts();
            if self.acceptor.under_way.is_empty() {
                break;
            }
            for ring in &mut self.rings[1..] {
                ring.submit()?;
            }
            self.rings[0].submit_and_wait(Some(Duration::from_millis(1)))?;
            self.harvest(sink)?;
        }
        self.acceptor.wanted = false;
        let mut reset = self.acceptor.listener.as_ref().map_or(0, accept_queue::waiting);
        // There is no room for these, now or later.
        for Parked { ring, file, .. } in mem::take(&mut self.acceptor.parked) {
            self.rings[ring].close(file)?;
            reset += 1;
        }
        self.acceptor.last = None;
        self.acceptor.retry_at = None;
        self.acceptor.listener = None;
        sink.event(Event::ListeningStopped { reset });
        Ok(())
    }
}
