//! What waits to be sent on a connection with a wire, while something does.
//!
//! A driver takes one send at a time, and a wire has bytes of its own to send beside those of the core: a handshake, a pong,
//! an alert. They go out in the order in which they were made, since TLS records carry numbers. An idle connection has
//! no [`Flow`].

use std::collections::VecDeque;

use bytes::Bytes;

/// Sends that may wait before one more answer of the wire's own is too many: a peer that asks for answers and does not read
/// them gets no more.
const WAITING_MAX: usize = 16;

/// Bytes of a wire's own that may wait before more are too many. One event of a driver can ask for as many.
const OWN_BYTES_MAX: usize = 64 * 1024;

/// The sends of one connection.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The send that the driver has: how many bytes of the core it carries; 0: only the wire's own.
    under_way: Option<usize>,
    /// What goes out next, each with the number of the core's bytes that it carries.
    waiting: VecDeque<(Bytes, usize)>,
    /// The bytes in `waiting` that are the wire's own.
    own_bytes: usize,
    /// The sending side is to be shut down when nothing waits any more.
    pub(super) shuts_down: bool,
}

impl Flow {
    /// Whether the driver has a send.
    pub(super) const fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether nothing is under way and nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_none() && self.waiting.is_empty()
    }

    /// Whether it has bytes of the core.
    pub(super) fn carries_core_bytes(&self) -> bool {
        self.unsent_core_bytes(usize::MAX) > 0
    }

    /// Whether one more answer of the wire's own may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX && self.own_bytes < OWN_BYTES_MAX
    }

    /// Bytes of the wire's own that wait.
    #[cfg(test)]
    pub(super) const fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// Adds a send that carries `core_bytes` bytes of the core.
    pub(super) fn push(&mut self, bytes: Bytes, core_bytes: usize) {
        if core_bytes == 0 {
            self.own_bytes += bytes.len();
        }
        self.waiting.push_back((bytes, core_bytes));
    }

    /// The next send, if the driver has none: it is under way now.
    pub(super) fn start_next(&mut self) -> Option<Bytes> {
        if self.is_busy() {
            return None;
        }
        let (bytes, core_bytes) = self.waiting.pop_front()?;
        if core_bytes == 0 {
            self.own_bytes -= bytes.len();
        }
        self.under_way = Some(core_bytes);
        Some(bytes)
    }

    /// The driver has a send that carries `core_bytes` bytes of the core.
    pub(super) const fn started(core_bytes: usize) -> Self {
        Self {
            under_way: Some(core_bytes),
            waiting: VecDeque::new(),
            own_bytes: 0,
            shuts_down: false,
        }
    }

    /// The send under way is done. Says how many bytes of the core it carried.
    pub(super) fn finish(&mut self) -> usize {
        self.under_way.take().unwrap_or(0)
    }

    /// Bytes of the core that the kernel does not have, where the driver has `left` bytes of the send under way. Which of
    /// these are the wire's own is not known.
    pub(super) fn unsent_core_bytes(&self, left: usize) -> usize {
        let waiting: usize = self.waiting.iter().map(|(_, core_bytes)| core_bytes).sum();
        self.under_way.unwrap_or(0).min(left) + waiting
    }
}
