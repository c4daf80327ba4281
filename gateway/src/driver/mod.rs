//! Drivers: a kernel mechanism on one side, facts and intents on the other.
//!
//! A driver owns the sockets of a shard's clients, and the shard's wait. It reports what happened as
//! [`Event`]s, and the shard says what should happen with the methods of [`Driver`]. A driver knows nothing
//! of frames, users or chat rooms. Nothing outside this folder names a client's socket.
//!
//! | module | what it owns |
//! |---|---|
//! | `epoll`, [`uring`], [`sim`] | a mechanism each |
//! | `accept_state` | whether a driver accepts, pauses or stops: one state machine for all |
//! | `coalesce` | how long a driver lets events gather before it takes them |
//! | `accept_queue` | what the kernel says of a listening socket's queue |
//! | `slots` | a table of connections by [`ConnId`] |
//!
//! # Who decides what
//!
//! | question | the core decides | the driver decides |
//! |---|---|---|
//! | Is a connection accepted? | how many: [`Sink::accept_budget`]; whether at all: [`Driver::set_accepting`] | when to try again where the kernel refuses |
//! | Is a connection read from? | [`Driver::pause_receive`], [`Driver::resume_receive`] | how much in one poll |
//! | Is a connection closed? | [`Driver::close`] | only where it is dead |
//!
//! With io_uring an accept may complete when the core no longer has a budget: `uring/accept.rs` says what
//! then becomes of the connection.
//!
//! # The contract
//!
//! 1. Inbound bytes are lent: those of [`Event::Received`] are valid until [`Sink::event`] returns. The sink may
//!    write to them, so that bytes can be decrypted or unmasked where they are.
//!    Outbound bytes are given: [`Driver::send`] takes shared bytes and keeps them until they are sent.
//! 2. At most one send is under way on a connection. The next may follow its [`Event::Sent`], or
//!    [`SendState::Done`].
//! 3. Commands never report inline: their results are reported by [`Driver::poll`]. A send returns what it
//!    has achieved at once. An event in a later poll would find the connection's state evicted from the cache,
//!    which was measured to cost as much as the gateway's own work for a push.
//! 4. [`Event::Closed`] is a connection's last event and comes exactly once, when no operation is in flight
//!    on it any more. A [`ConnId`] carries a generation, so a command that comes too late has no effect.
//! 5. After [`Driver::pause_receive`], bytes that were read already may still come: one event's worth.
//! 6. Short writes, would-block, re-arming and the read budget stay inside the driver: one connection
//!    gets at most [`RECEIVE_BYTES_MAX`] bytes in one poll, however much it sent.
//! 7. A driver reports what it knows before it waits, and asks [`Sink::idle_for`] how long it may. It
//!    passes the time to [`Sink::woken`] after each wait.
//! 8. After an [`Event::Received`] a driver may ask [`Sink::reply`] for what to send on that connection at
//!    once, while the kernel's state of its socket is still in the cache.
//! 9. [`Event::AcceptPaused`] and [`Event::AcceptResumed`] alternate. [`Event::ListeningStopped`] is the last
//!    event about accepting and comes once: no [`Event::Accepted`] follows, and a pause that lasts ends
//!    without an event.
//!
//! The tests in `conformance` check each driver against this contract.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub mod epoll;
pub mod sim;
#[expect(unsafe_code, reason = "the kernel shares memory with this driver")]
pub mod uring;

pub(crate) mod accept_queue;
mod accept_state;
mod coalesce;
#[cfg(test)]
pub(crate) mod conformance;
mod slots;

/// The most that one connection hands over in one poll, in bytes: large enough that a burst is one
/// system call.
pub const RECEIVE_BYTES_MAX: usize = 64 * 1024;

/// Listening sockets of a driver, at most: one for `listen`, and 32 for `[listeners]`.
pub const LISTENERS_MAX: usize = 33;

/// Names a connection of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Its index in the shard's tables. Slots are reused.
    pub slot: u32,
    /// Which of the slot's connections it is: below [`GENERATIONS`].
    pub generation: u32,
}

/// The number of a generation wraps here.
pub const GENERATIONS: u32 = 1 << 30;

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted.
    Accepted {
        /// Its id from now on.
        conn: ConnId,
        /// The address of the client, or of what it connects through.
        peer: SocketAddr,
        /// At which of the driver's listening sockets, counted from 0.
        listener: u8,
        /// It can be read from and sent to. `false`: its wire has to open first, and [`Event::Opened`] or [`Event::Failed`]
        /// follows in a bounded time. Only a wire reports that.
        is_open: bool,
    },
    /// Bytes were received.
    Received {
        /// On which connection.
        conn: ConnId,
        /// At least one, at most [`RECEIVE_BYTES_MAX`].
        bytes: &'a mut [u8],
    },
    /// The client's address is this one, as a balancer has said that is trusted. Only a wire reports it, before the first
    /// bytes: see [`crate::wire`].
    Named {
        /// Of which connection.
        conn: ConnId,
        /// The client's address.
        peer: SocketAddr,
    },
    /// The wire of a connection that was accepted without is open. Only a wire reports it, once, before the first bytes.
    Opened {
        /// Of which connection.
        conn: ConnId,
        /// It is a WebSocket.
        is_websocket: bool,
    },
    /// The peer has broken the protocol of the connection's wire, or has not opened the wire in time. Nothing more is received
    /// from it, and the core is to close the connection. Only a wire reports it, once.
    Failed {
        /// On which connection.
        conn: ConnId,
        /// What it was.
        failure: Failure,
        /// The same in words, for the log.
        reason: &'static str,
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
    /// The connection is closed. Its id is no longer valid.
    Closed {
        /// Which connection.
        conn: ConnId,
        /// Why.
        cause: CloseCause,
        /// Bytes of its sends that the kernel did not take, including those of a send that was
        /// [`SendState::Done`]. How many bytes the peer has not received is unknown.
        unsent_bytes: usize,
    },
    /// No connection can be accepted now. The driver retries without a command.
    AcceptPaused {
        /// Why: descriptors or memory have run out.
        error: io::Error,
    },
    /// Connections can be accepted again. One pause may have taken several tries.
    AcceptResumed,
    /// The listening sockets are closed, after [`Driver::stop_listening`]. No further connection is accepted.
    ListeningStopped {
        /// Connections that still waited to be accepted. The kernel resets them.
        reset: u32,
    },
}

/// Why a connection is closed.
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

/// How a wire fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The listening socket asks for a PROXY header, and the peer's address is not trusted with one.
    Untrusted,
    /// The connection does not begin with a PROXY header.
    Proxy,
    /// The TLS handshake failed, or a record could not be decrypted.
    Tls,
    /// The request for a WebSocket was refused.
    Upgrade,
    /// The peer has broken the WebSocket protocol.
    WebSocket,
    /// The peer has sent more than it may before its wire is open, or asks for answers and does not read them.
    TooMuch,
    /// The wire did not open in time.
    TimedOut,
}

impl Failure {
    /// The same in words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Untrusted => "a PROXY header is not taken from this address",
            Self::Proxy => "the connection does not begin with a PROXY header",
            Self::Tls => "TLS failed",
            Self::Upgrade => "the request for a WebSocket was refused",
            Self::WebSocket => "the WebSocket protocol was broken",
            Self::TooMuch => "the peer sends too much, or does not read",
            Self::TimedOut => "the connection was not opened in time",
        }
    }
}

/// What a send has achieved at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendState {
    /// The kernel has all of its bytes: no [`Event::Sent`] follows.
    Done,
    /// [`Event::Sent`] follows, or [`Event::Closed`].
    UnderWay,
}

/// Takes the events of a driver, and answers its questions: a shard.
pub trait Sink {
    /// Takes an event.
    fn event(&mut self, event: Event<'_>);

    /// How many more connections the driver may accept now. It reports no more than these as accepted.
    fn accept_budget(&mut self) -> usize {
        usize::MAX
    }

    /// What to send on a connection whose bytes were just reported, if that is all there is to send.
    /// It counts as a [`Driver::send`], and [`Event::Sent`] may follow at once.
    fn reply(&mut self, conn: ConnId) -> Option<Bytes> {
        let _ = conn;
        None
    }

    /// How long the driver may wait before it must return from [`Driver::poll`]: zero when the core has
    /// work to do, `None` until something happens.
    fn idle_for(&mut self) -> Option<Duration>;

    /// Called for each wait in which the driver lets events gather.
    fn coalescing(&mut self) {}

    /// Takes the time. Called after each wait, before the events that ended it.
    fn woken(&mut self, now: Instant);
}

/// Which mechanism a driver uses, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanism {
    /// `epoll`, `uring`, or a test's.
    pub name: &'static str,
    /// io_uring instances in use; 0 where there are none.
    pub rings: usize,
}

/// What wires count. Without wires it is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections whose wire is not open.
    pub opening: usize,
    /// Of these, those whose TLS handshake waits for its turn.
    pub waiting_handshakes: usize,
    /// TLS handshakes that were completed since the start.
    pub completed_handshakes: u64,
}

/// A kernel mechanism, or a simulated one. See the [contract](self).
pub trait Driver {
    /// Which mechanism it uses.
    fn mechanism(&self) -> Mechanism;

    /// The time: one read of the clock.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Reports what is known, waits if the sink is idle, and reports what has happened since.
    ///
    /// # Errors
    /// When the mechanism itself fails; the shard can't continue.
    fn poll(&mut self, sink: &mut impl Sink) -> io::Result<()>;

    /// Sends bytes: at least one. No other send may be under way on the connection.
    fn send(&mut self, conn: ConnId, bytes: Bytes) -> SendState;

    /// Stops receiving, so that the peer's TCP window fills. The core alone decides this, where the calls or
    /// the unsent bytes of a connection have reached their limit. A driver never pauses on its own decision.
    fn pause_receive(&mut self, conn: ConnId);

    /// Receives again.
    fn resume_receive(&mut self, conn: ConnId);

    /// Shuts down the sending side once the send under way is done. Receiving continues.
    fn shutdown(&mut self, conn: ConnId);

    /// Closes at once: a send under way is cut, and bytes that were not received are lost. A send that was
    /// [`SendState::Done`] still reaches a peer that reads. [`Event::Closed`] says how many bytes were not
    /// sent.
    fn close(&mut self, conn: ConnId);

    /// Stops accepting, or starts again. The listening sockets stay open.
    fn set_accepting(&mut self, accepting: bool);

    /// Closes the listening sockets permanently: new connections are refused. Connections that wait to be
    /// accepted are accepted first, since the kernel would reset them. At most as many are accepted as the
    /// queues may hold: those that come meanwhile are behind them in the queue. Where the sink has no budget,
    /// or descriptors have run out, the driver continues as connections close, until `until` at most. A second call can make
    /// that earlier.
    /// [`Event::ListeningStopped`] says when that is done, once.
    fn stop_listening(&mut self, until: Instant);

    /// What its wires have counted.
    fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Frees memory that is kept for reuse and was not needed lately. Called a few times a second.
    fn free_spare_memory(&mut self) {}
}
