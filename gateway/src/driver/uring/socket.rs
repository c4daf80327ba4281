//! What the driver knows of a connection: 16 bytes, 20 with its generation, and more only while something is unusual.

use bitflags::bitflags;
use bytes::Bytes;

use crate::driver::{CloseCause, RECEIVE_BYTES_MAX};

/// Bits of [`Socket::taken`] that count bytes.
const TAKEN_BITS: u32 = 17;

const _: () = assert!(RECEIVE_BYTES_MAX < 1 << TAKEN_BITS, "the count would not fit");

/// A connection.
#[derive(Debug)]
pub(super) struct Socket {
    /// Its place in the ring's table of direct descriptors.
    pub(super) file: u32,
    /// How many bytes were handed over in which poll.
    taken: u32,
    /// Which ring it belongs to.
    pub(super) ring: u16,
    pub(super) flags: Flags,
    pub(super) armed: Armed,
    /// Operations under way, apart from `reading` and sends that must not wait.
    pub(super) operations: u8,
    /// Why it ends, once it does.
    pub(super) cause: CloseCause,
}

/// What is armed to hear of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Armed {
    /// Nothing.
    Nothing,
    /// Bytes are received as they come.
    Receive,
    /// Only its end is told.
    Watch,
}

bitflags! {
    /// Facts about one socket.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Flags: u16 {
        /// The shard does not want bytes now.
        const PAUSED = 1;
        /// What is armed is being cancelled.
        const CANCELLING = 1 << 1;
        /// The peer will send no more. The shard may be yet to hear of it.
        const ENDED = 1 << 2;
        /// A send is under way, or not certain to have gone out.
        const SENDING = 1 << 3;
        /// The sending side is to be shut down when it no longer is.
        const SHUTDOWN = 1 << 4;
        /// It stands among those that have something for the shard.
        const QUEUED = 1 << 5;
        /// `Closed` is on its way.
        const CLOSED = 1 << 6;
        /// It is dead, or both sides are shut down: nothing is left to watch for.
        const HUNG_UP = 1 << 7;
        /// There is a [`Cold`].
        const COLD = 1 << 8;
        /// It is closed once what was said to be sent is. `CLOSED` too, and one operation, until then.
        const LINGERING = 1 << 9;
        /// Closed before it was certain that a send had gone out: one operation, until that is.
        const AWAITS_RESULT = 1 << 10;
        /// The kernel shuts down the sending side: its place in the ring's table must stay its own.
        const SHUTTING_DOWN = 1 << 11;
        /// Its place is to be given back when the kernel has done so.
        const RELEASE = 1 << 12;
    }
}

/// What few connections have, and those not for long.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// Bytes that came while the shard wanted none, or had its fill.
    pub(super) unread: Vec<u8>,
    /// The end came behind them.
    pub(super) end: bool,
    /// What goes out in steps, as there is room.
    pub(super) sending: Option<Sending>,
    /// The send after it.
    pub(super) next: Option<Bytes>,
    /// Bytes of sends that were given up, all of them once the connection is closed and nothing is under way.
    pub(super) unsent_bytes: usize,
}

/// A send that goes out in steps.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) rest: Bytes,
    /// How many bytes to report as sent when it is done; `None` where that was said already.
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

    /// Counts bytes towards the connection's share of a poll. `false`: they are beyond it.
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

    /// Whether what is to be sent still goes out.
    pub(super) const fn may_send(&self) -> bool {
        !self.has(Flags::CLOSED) || self.has(Flags::LINGERING)
    }

    /// What should be armed now.
    pub(super) const fn to_arm(&self, unread: bool) -> Armed {
        if self.has(Flags::CLOSED) {
            return Armed::Nothing;
        }
        if !self.has(Flags::ENDED) && !unread {
            // Who is paused is received from until something comes: mostly nothing does.
            return Armed::Receive;
        }
        if self.has(Flags::HUNG_UP) { Armed::Nothing } else { Armed::Watch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_one_poll() {
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
