//! The state of one connection: 16 bytes, 20 with its generation, and more only while something is unusual.
//!
//! It is plain state, which [`connections`](super::connections) owns. It asks the kernel for nothing.

use bitflags::bitflags;
use bytes::Bytes;

use crate::driver::{CloseCause, RECEIVE_BYTES_MAX};

/// Bits of [`Socket::taken`] that count bytes.
const TAKEN_BITS: u32 = 17;

const _: () = assert!(RECEIVE_BYTES_MAX < 1 << TAKEN_BITS, "the count would not fit");

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    /// Its direct descriptor in the ring's table.
    pub(super) file: u32,
    /// How many bytes were reported, and in which poll: see [`Self::within_share`].
    taken: u32,
    /// Which ring it belongs to.
    pub(super) ring: u16,
    pub(super) flags: Flags,
    pub(super) armed: Armed,
    /// Operations in flight, but for the one that is `armed` and sends that were reported as done.
    pub(super) operations: u8,
    /// Why it was closed, once `CLOSED` is set.
    pub(super) cause: CloseCause,
}

/// The operation that the kernel completes when something comes from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Armed {
    /// Nothing.
    Nothing,
    /// Bytes are received as they come.
    Receive,
    /// Only the connection's end completes it.
    Watch,
}

bitflags! {
    /// Facts about one socket.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Flags: u16 {
        /// The core does not want bytes now.
        const PAUSED = 1;
        /// The armed operation is being cancelled.
        const CANCELLING = 1 << 1;
        /// The peer has shut down its sending side. That may not be reported yet.
        const ENDED = 1 << 2;
        /// A send is in flight, or unconfirmed: see [`send`](super::send).
        const SENDING = 1 << 3;
        /// The sending side is to be shut down once `SENDING` is removed.
        const SHUTDOWN = 1 << 4;
        /// It is among the connections that have something to report.
        const QUEUED = 1 << 5;
        /// It is closed. `Closed` is reported once nothing is in flight.
        const CLOSED = 1 << 6;
        /// The connection is dead, or both sides are shut down: there is nothing left to watch for.
        const HUNG_UP = 1 << 7;
        /// There is a [`Cold`].
        const COLD = 1 << 8;
        /// Closed by the core, and what was reported as sent is not out yet. It counts as one operation.
        /// `CLOSED` is set too.
        const LINGERING = 1 << 9;
        /// Closed before a send was confirmed. It counts as one operation until the result is known.
        const AWAITS_RESULT = 1 << 10;
        /// The kernel shuts down the sending side: the direct descriptor must not be reused yet.
        const SHUTTING_DOWN = 1 << 11;
        /// The direct descriptor is to be freed when `SHUTTING_DOWN` is removed.
        const RELEASE = 1 << 12;
    }
}

/// State that few connections have, and those for a short time.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// Bytes that came while the connection was paused, or had had its share of a poll.
    pub(super) unread: Vec<u8>,
    /// The peer's end came behind them.
    pub(super) end: bool,
    /// The send that goes out in steps.
    pub(super) sending: Option<Sending>,
    /// The send after it.
    pub(super) next: Option<Bytes>,
    /// Bytes of sends that were given up. It is complete when the connection is closed and nothing is in
    /// flight.
    pub(super) unsent_bytes: usize,
}

/// A send that goes out in steps.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) rest: Bytes,
    /// How many bytes to report as sent when it is done; `None` if the send was reported as done already.
    pub(super) report: Option<usize>,
}

impl Cold {
    pub(super) fn is_needed(&self) -> bool {
        let sends = self.sending.is_some() || self.next.is_some() || self.unsent_bytes > 0;
        sends || !self.unread.is_empty() || self.end
    }
}

impl Socket {
    pub(super) const fn new(ring: u16, file: u32) -> Self {
        Self {
            file,
            taken: 0,
            ring,
            flags: Flags::empty(),
            armed: Armed::Nothing,
            operations: 0,
            cause: CloseCause::Local,
        }
    }

    pub(super) const fn has(&self, flag: Flags) -> bool {
        self.flags.contains(flag)
    }

    /// Counts bytes towards the connection's share of a poll, [`RECEIVE_BYTES_MAX`]. `false`: they are beyond
    /// it.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a share is below 2^17")]
    pub(super) fn within_share(&mut self, poll: u32, bytes: usize) -> bool {
        let poll = poll << TAKEN_BITS;
        let taken = if self.taken >> TAKEN_BITS == poll >> TAKEN_BITS {
            self.taken & ((1 << TAKEN_BITS) - 1)
        } else {
            0
        };
        let more = taken as usize + bytes;
        if more > RECEIVE_BYTES_MAX {
            return false;
        }
        self.taken = poll | more as u32;
        true
    }

    /// Whether the bytes of its sends are still to go out.
    pub(super) const fn may_send(&self) -> bool {
        !self.has(Flags::CLOSED) || self.has(Flags::LINGERING)
    }

    /// The operation that should be armed now.
    pub(super) const fn to_arm(&self, unread: bool) -> Armed {
        if self.has(Flags::CLOSED) {
            return Armed::Nothing;
        }
        if !self.has(Flags::ENDED) && !unread {
            // Also while it is paused, until something comes: mostly nothing does.
            return Armed::Receive;
        }
        if self.has(Flags::HUNG_UP) { Armed::Nothing } else { Armed::Watch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_per_poll() {
        let mut socket = Socket::new(0, 0);
        assert!(socket.within_share(7, RECEIVE_BYTES_MAX));
        assert!(!socket.within_share(7, 1));
        assert!(socket.within_share(8, RECEIVE_BYTES_MAX - 1));
        assert!(socket.within_share(8, 1));
        assert!(!socket.within_share(8, 1));
        assert!(socket.within_share(9 + (1 << 15), 1), "numbers of polls wrap");
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<Socket>(), 16);
    }
}
