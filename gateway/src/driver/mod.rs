//! Drivers: a kernel mechanism on one side, facts and intents on the other.
//!
//! A driver owns a shard's sockets and its waiting. It reports what happened as [`Event`]s and takes
//! what should happen as the methods of [`Driver`]. It knows nothing of frames, users or rooms, and
//! nothing outside this folder names a socket.
//!
//! # The contract
//!
//! 1. Inbound lends: the bytes of [`Event::Received`] are valid until [`Sink::event`] returns.
//!    Outbound gives: [`Driver::send`] takes shared bytes and keeps them until they are sent.
//! 2. At most one send is under way on a connection. The next may follow its [`Event::Sent`], or
//!    [`SendState::Done`].
//! 3. Commands never report inline: what comes of them comes through [`Driver::poll`]. What a send came
//!    to at once, it returns: an event later would find everything of the connection out of the cache,
//!    which was measured to cost as much as the gateway's own work for a push.
//! 4. [`Event::Closed`] is a connection's last event and comes exactly once, after all that was under
//!    way has ended. A [`ConnId`] carries a generation, so a command that comes too late hits nobody.
//! 5. After [`Driver::pause_receive`], bytes already on their way may still come: one event's worth.
//! 6. Short writes, would-block, re-arming and the read budget stay inside the driver: one connection
//!    gets at most [`RECEIVE_BYTES_MAX`] bytes in one poll, however much it sent.
//! 7. A driver reports what it knows before it waits, and asks [`Sink::idle_for`] how long it may. It
//!    says what time it is through [`Sink::woken`] after each wait: who waits knows the time.
//! 8. After an [`Event::Received`] a driver may ask [`Sink::reply`] for what to send on that connection at
//!    once, while everything that the kernel knows of its socket is still in the cache.
//!
//! `conformance` beside this module holds every driver to it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub mod epoll;
pub mod sim;
#[expect(unsafe_code, reason = "the kernel is met here")]
pub mod uring;

pub(crate) mod accept_queue;
mod accept_state;
#[cfg(test)]
mod conformance;
mod slots;

/// The most that one connection hands over in one poll, in bytes: large enough that a burst is one
/// system call.
pub const RECEIVE_BYTES_MAX: usize = 64 * 1024;

/// Names a connection of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Its place in the shard's tables. Places are reused.
    pub slot: u32,
    /// Which of the place's connections it is: below [`GENERATIONS`].
    pub generation: u32,
}

/// Generations start again after this many: 2^30.
pub const GENERATIONS: u32 = 1 << 30;

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection came in.
    Accepted {
        /// Its name from now on.
        conn: ConnId,
        /// Where it comes from.
        peer: SocketAddr,
    },
    /// Bytes came.
    Received {
        /// On which connection.
        conn: ConnId,
        /// At least one, at most [`RECEIVE_BYTES_MAX`].
        bytes: &'a [u8],
    },
    /// The peer has shut down its sending side: no more bytes will come. It may still read.
    Ended {
        /// On which connection.
        conn: ConnId,
    },
    /// The send under way is done: the kernel has all of its bytes.
    Sent {
        /// On which connection.
        conn: ConnId,
        /// How many bytes the send had.
        bytes: usize,
    },
    /// The connection is no more. Its name is void.
    Closed {
        /// Which connection.
        conn: ConnId,
        /// Why.
        cause: CloseCause,
        /// Bytes of its sends that the kernel never took, those of a send that was [`SendState::Done`]
        /// included. What the kernel took and the peer did not is unknown.
        unsent_bytes: usize,
    },
    /// No connection can be accepted now; the driver tries again by itself.
    AcceptPaused {
        /// What the kernel says: descriptors or memory have run out.
        error: io::Error,
    },
    /// Connections are accepted again, after one pause and all the tries that it took.
    AcceptResumed,
    /// The listening socket is closed, as [`Driver::stop_listening`] asked: nobody else comes in.
    ListeningStopped {
        /// Connections that still waited to be accepted: the kernel resets them.
        reset: u32,
    },
}

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// [`Driver::close`] was called.
    Local,
    /// The peer reset it.
    Reset,
    /// What was sent was not acknowledged in time (`TCP_USER_TIMEOUT`).
    TimedOut,
    /// The kernel failed otherwise.
    Failed,
}

impl CloseCause {
    /// The cause behind an error of the kernel.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Failed,
        }
    }
}

/// What a send came to at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendState {
    /// The kernel has all of its bytes: no [`Event::Sent`] follows.
    Done,
    /// [`Event::Sent`] follows, or [`Event::Closed`].
    UnderWay,
}

/// Takes a driver's facts: a shard.
pub trait Sink {
    /// Takes what happened.
    fn event(&mut self, event: Event<'_>);

    /// How many more connections may come in. A driver has at most as many accepts under way.
    fn accept_budget(&mut self) -> usize {
        usize::MAX
    }

    /// What to send on a connection that was just received from, if that is all there is to do for it.
    /// It counts as a [`Driver::send`], and [`Event::Sent`] may follow at once.
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        let _ = conn;
        None
    }

    /// How long the driver may wait before it must return from [`Driver::poll`]: zero when there is
    /// work to do, `None` for as long as nothing happens.
    fn idle_for(&mut self) -> Option<Duration>;

    /// Says what time it is. Called after each wait, before its events.
    fn woken(&mut self, now: Instant);
}

/// What a driver is, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanism {
    /// `epoll`, `uring`, or a test's.
    pub name: &'static str,
    /// io_uring instances in use; 0 where there are none.
    pub rings: usize,
}

/// A kernel mechanism, or a simulated one. See the [contract](self).
pub trait Driver {
    /// What it is.
    fn mechanism(&self) -> Mechanism;

    /// What time it is: one look at the clock.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Reports what is known, waits if the sink is idle, and reports what came of it.
    ///
    /// # Errors
    /// When the mechanism itself fails; the shard can't go on.
    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()>;

    /// Sends bytes: at least one. No other send may be under way on the connection.
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState;

    /// Stops receiving, so that the peer's TCP window fills.
    fn pause_receive(&mut self, conn: ConnId);

    /// Receives again.
    fn resume_receive(&mut self, conn: ConnId);

    /// Shuts down the sending side once the send under way is done. Receiving goes on.
    fn shutdown(&mut self, conn: ConnId);

    /// Closes at once: a send under way is cut, bytes that were not received are lost. What was
    /// [`SendState::Done`] still goes out to a peer that reads. [`Event::Closed`] says how much did not.
    fn close(&mut self, conn: ConnId);

    /// Stops accepting, or starts again. The listening socket stays open.
    fn set_accepting(&mut self, accepting: bool);

    /// Closes the listening socket for good: new connections are refused. Connections that wait to be
    /// accepted are accepted first, since the kernel would reset them: as many as the queue may hold, as
    /// those that come meanwhile queue up behind them. Where the sink has no room, or descriptors have run
    /// out, the driver goes on as connections close, until `until` at most.
    /// [`Event::ListeningStopped`] says when that is done, once.
    fn stop_listening(&mut self, until: Instant);
}
