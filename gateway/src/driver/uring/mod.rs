//! The io_uring driver: operations are asked for in batches, and complete in batches.
//!
//! A connection is a *direct descriptor*: a place in a ring's table, not in the process's. Such a table has
//! at most as many places as the process may open files, but a driver may have several rings: that is how
//! a million connections fit under a small limit. Each ring costs memory and time, so there is a second
//! one only when the first is full. The driver waits on its first ring; the others signal an eventfd that
//! the first one watches.
//!
//! | module | what it owns |
//! |---|---|
//! | `ring`, `buffers` | one ring as safe functions: all unsafe code |
//! | `token` | which operation a completion is of |
//! | `socket` | what is known of a connection |
//! | `accept` | connections in |
//! | `receive`, `send` | bytes in, bytes out |
//! | `ending` | what is armed to hear of a connection, and how it ends |
//!
//! See io_uring(7), and the comments at each operation for what the manual doesn't say.

mod accept;
mod buffers;
mod ending;
mod receive;
mod ring;
mod send;
mod socket;
mod token;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use tidegate_backend::batch::Wake;
use tidegate_machine::io_uring::on_helper_thread;
pub use tidegate_machine::io_uring::{Unavailable, probe};

use self::accept::Acceptor;
use self::ring::{Completion, Ring};
use self::send::FINISH_WITHIN;
use self::socket::{Flags, Rare, Socket};
use self::token::Token;
use super::slots::Slots;
use super::{CloseCause, ConnId, Driver, Event, Mechanism, SendState, Sink};

/// Completions that one poll takes, more or less: enough to share a system call, and a turn, among many
/// connections; few enough that the last of them waits for a few milliseconds.
const EVENTS_MAX: usize = 1024;

/// Numbers of polls wrap here.
const POLLS: u32 = 1 << 15;

/// Buffers of a ring. More brought nothing; with too few of them, receives end for want of one and have to
/// be armed again.
const BUFFERS: u16 = 512;

/// Buffers of a ring that is one of many.
const BUFFERS_OF_MANY: u16 = 256;

/// Direct descriptors that a ring may have, by the kernel's own limit.
const FILES_MAX: u32 = 1 << 20;

/// How large a driver may grow.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections, of this driver alone: at most 2^26. It sets the rings' size; who is let in is the
    /// sink's affair.
    pub connections: usize,
    /// Places in one ring's table: at most RLIMIT_NOFILE.
    pub files_each: u32,
}

/// A shard's sockets behind io_uring.
#[derive(Debug)]
pub struct Uring {
    /// Never empty. The driver waits on the first.
    rings: Vec<Ring>,
    /// The first ring belongs to this thread.
    enabled: bool,
    /// Places of each ring's table.
    files_each: u32,
    buffers_each: u16,
    wakeup: Arc<Wakeup>,
    acceptor: Acceptor,
    sockets: Slots<Socket>,
    /// By slot.
    rare: HashMap<u32, Rare>,
    /// What commands came to since the last poll.
    outcomes: Vec<Outcome>,
    /// Connections that are closed once their last bytes are out, and until when that may take.
    finishing: VecDeque<(Instant, ConnId)>,
    /// Connections that have bytes or an end which the shard has not heard of, and may.
    ready: Vec<ConnId>,
    completions: Vec<Completion>,
    /// Who is looked at next: where there is too much for one poll, nobody comes last each time.
    next_ring: usize,
    /// How long the last bytes of a closed connection may take.
    finish_within: Duration,
    /// Something waits until it is certain that a send has gone out.
    confirming: bool,
    /// The number of this poll: below [`POLLS`].
    poll: u32,
    /// What kept a command from being submitted: the next poll fails with it.
    failure: Option<io::Error>,
}

fn no_thread(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("no thread can be started to make a ring: {error}"))
}

#[derive(Debug)]
struct Wakeup(OwnedFd);

impl Wake for Wakeup {
    fn wake(&self) {
        // The only failure is a full counter, which means that it is awake already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

#[derive(Debug)]
enum Outcome {
    Sent(ConnId, usize),
    Closed(ConnId),
}

impl Uring {
    /// A driver that accepts from `listener`, or from nobody. The thread that polls it first is the one that
    /// uses it.
    ///
    /// # Errors
    /// When the kernel gives no ring, or no thread to make it.
    pub fn new(listener: Option<TcpListener>, capacity: Capacity) -> io::Result<Self> {
        let connections = u32::try_from(capacity.connections).unwrap_or(u32::MAX);
        let files_each = connections.min(capacity.files_each).clamp(1, FILES_MAX);
        let many = files_each < connections;
        let buffers_each = if many { BUFFERS_OF_MANY } else { BUFFERS };
        let wakeup = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            rings: vec![
                on_helper_thread(|| Ring::new(files_each, buffers_each))
                    .map_err(|error| no_thread(&error))??,
            ],
            enabled: false,
            files_each,
            buffers_each,
            wakeup: Arc::new(Wakeup(wakeup)),
            acceptor: Acceptor::new(listener),
            sockets: Slots::new(),
            rare: HashMap::new(),
            outcomes: Vec::new(),
            finishing: VecDeque::new(),
            ready: Vec::new(),
            completions: Vec::new(),
            next_ring: 0,
            confirming: false,
            finish_within: FINISH_WITHIN,
            poll: 0,
            failure: None,
        })
    }

    /// What ends a wait early, from any thread.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wakeup) as Arc<dyn Wake>
    }

    fn enable(&mut self) -> io::Result<()> {
        if !mem::replace(&mut self.enabled, true) {
            self.rings[0].enable()?;
            self.rings[0].watch_wakeups(self.wakeup.0.as_fd())?;
        }
        Ok(())
    }

    /// One more ring, for more connections than the others have places for. This thread uses the others too, and
    /// so hears of their end whoever makes them.
    fn add_ring(&mut self) -> io::Result<()> {
        let mut ring = Ring::new(self.files_each, self.buffers_each)?;
        ring.enable()?;
        ring.signal(self.wakeup.0.as_fd())?;
        self.rings.push(ring);
        Ok(())
    }

    /// Asks a ring for something. That it can't be asked fails the driver, in its next poll.
    #[inline]
    fn ask(&mut self, ring: u16, what: impl FnOnce(&mut Ring) -> io::Result<()>) {
        if let Err(error) = what(&mut self.rings[usize::from(ring)]) {
            self.failure.get_or_insert(error);
        }
    }

    fn report_outcomes(&mut self, sink: &mut impl Sink) {
        let mut outcomes = mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Sent(conn, bytes) => sink.event(Event::Sent { conn, bytes }),
                Outcome::Closed(conn) => {
                    let rare = self.rare.remove(&conn.slot);
                    if let Some(Socket { cause, .. }) = self.sockets.remove(conn) {
                        let unsent_bytes = rare.map_or(0, |rare| rare.cut);
                        sink.event(Event::Closed { conn, cause, unsent_bytes });
                        // A place, or a file of the system's, is free again.
                        self.acceptor.retry();
                    }
                }
            }
        }
        self.outcomes = outcomes;
    }

    /// Hands over what was asked for, and waits if there is nothing to do.
    fn submit_and_wait(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let mut idle_for = sink.idle_for();
        if let Some(retry_in) = self.acceptor.retry_in() {
            idle_for = Some(idle_for.map_or(retry_in, |idle_for| idle_for.min(retry_in)));
        }
        if let Some(stops_in) = self.acceptor.stops_in(sink) {
            idle_for = Some(idle_for.map_or(stops_in, |idle_for| idle_for.min(stops_in)));
        }
        if let Some((until, _)) = self.finishing.front() {
            let left = until.saturating_duration_since(Instant::now());
            idle_for = Some(idle_for.map_or(left, |idle_for| idle_for.min(left)));
        }
        let mut busy = idle_for == Some(Duration::ZERO)
            || !self.outcomes.is_empty()
            || !self.ready.is_empty()
            || self.confirming
            || self.failure.is_some();
        for ring in &mut self.rings[1..] {
            if ring.has_submissions() || ring.may_complete() {
                ring.submit()?;
            }
            busy = busy || ring.has_completions() || ring.may_complete();
        }
        // What happens in the others from now on ends this wait: each signals when it gets something to do.
        if !(busy || self.rings[0].has_completions()) {
            return self.rings[0].submit_and_wait(idle_for);
        }
        let first = &mut self.rings[0];
        if first.has_submissions() || first.may_complete() { first.submit() } else { Ok(()) }
    }

    /// Sees what has completed, and what completes meanwhile, for as long as there is some and it is not
    /// too much.
    fn harvest(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let mut seen = 0;
        // Rings in a row that have nothing.
        let mut empty = 0;
        while empty < self.rings.len() && seen < EVENTS_MAX {
            let count = self.harvest_ring(self.next_ring, sink)?;
            seen += count;
            empty = if count > 0 { 0 } else { empty + 1 };
            self.next_ring = (self.next_ring + 1) % self.rings.len();
        }
        Ok(())
    }

    /// Forgets the sends that have gone out, up to number `submitted`: their failures have been seen.
    fn confirm_sends(&mut self, ring: usize, submitted: u64) {
        while let Some(sent) = self.rings[ring].confirm_send(submitted) {
            if let Some(conn) = sent.conn {
                self.confirmed(conn);
            }
        }
    }

    /// Sees what has completed in one ring. Says how much that was.
    fn harvest_ring(&mut self, index: usize, sink: &mut impl Sink) -> io::Result<usize> {
        let mut completions = mem::take(&mut self.completions);
        let ring = &mut self.rings[index];
        if !ring.has_completions() && ring.may_complete() {
            // They are there once the kernel is let in: io_uring_setup(2), IORING_SETUP_DEFER_TASKRUN.
            ring.submit()?;
        }
        ring.take_completions(&mut completions);
        // Only what has been seen by now is certain: more is submitted below.
        let submitted = ring.submitted_sends();
        let count = completions.len();
        for completion in completions.drain(..) {
            self.complete(index, completion, sink);
        }
        self.completions = completions;
        if count > 0 {
            self.rings[index].buffers.publish();
        }
        self.confirm_sends(index, submitted);
        Ok(count)
    }

    #[inline]
    fn complete(&mut self, ring: usize, completion: Completion, sink: &mut impl Sink) {
        let Completion { token, result, more, .. } = completion;
        match token {
            Token::Receive(conn) => self.on_received(ring, conn, completion, sink),
            Token::SendNow(number) => self.on_send_failed(ring, number, result),
            Token::Send(conn) => self.on_sent(ring, conn, result),
            Token::Room(conn) => self.on_room(conn, result, more),
            Token::Accept(place) => self.on_accepted(ring, place, result, sink),
            Token::Watch(conn) => self.on_watched(conn, result, more),
            Token::Error(conn) => self.on_error_told(conn, result),
            Token::Shutdown(conn) => self.on_shut_down(conn),
            Token::Wake => {
                self.rings.iter_mut().for_each(Ring::signalled);
                if !more {
                    let wakeup = Arc::clone(&self.wakeup);
                    self.ask(0, |ring| ring.watch_wakeups(wakeup.0.as_fd()));
                }
            }
            Token::Nothing => {}
        }
    }

    /// What is unusual about a connection, to note more of it.
    fn rare(&mut self, conn: ConnId) -> &mut Rare {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::RARE);
        }
        self.rare.entry(conn.slot).or_default()
    }

    /// Forgets what is no longer unusual.
    fn tidy(&mut self, conn: ConnId) {
        if self.rare.get(&conn.slot).is_some_and(|rare| !rare.is_needed()) {
            self.rare.remove(&conn.slot);
            if let Some(socket) = self.sockets.get_mut(conn) {
                socket.flags.remove(Flags::RARE);
            }
        }
    }
}

impl Driver for Uring {
    fn mechanism(&self) -> Mechanism {
        Mechanism { name: "uring", rings: self.rings.len() }
    }

    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        self.enable()?;
        self.poll = (self.poll + 1) % POLLS;
        self.report_outcomes(sink);
        self.give_up_finishing();
        self.accept_more(sink);
        self.submit_and_wait(sink)?;
        let now = Instant::now();
        sink.woken(now);
        let ready = mem::take(&mut self.ready);
        // Whoever waits for a send that comes to be certain now goes on in this poll or asks again.
        self.confirming = false;
        self.harvest(sink)?;
        self.report_ready(ready, sink);
        self.acceptor.retry_if_due(now);
        self.stop_listening_if_last(now, sink)?;
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    #[inline]
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState {
        self.start_sending(conn, bytes)
    }

    fn pause_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.insert(Flags::PAUSED);
        }
    }

    fn resume_receive(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(conn) {
            socket.flags.remove(Flags::PAUSED);
            self.queue_ready(conn);
        }
    }

    fn shutdown(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(conn) else { return };
        if socket.has(Flags::SENDING) {
            socket.flags.insert(Flags::SHUTDOWN);
            self.confirming = true;
        } else {
            self.shut_down(conn);
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.end(conn, CloseCause::Local);
    }

    fn set_accepting(&mut self, accepting: bool) {
        self.set_wanted(accepting);
    }

    fn stop_listening(&mut self, until: Instant) {
        self.acceptor.stop(until);
    }
}

#[cfg(test)]
mod tests;
