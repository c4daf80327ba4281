//! What may go wrong in a simulated network, and how likely it is.

use std::time::Duration;

/// How likely each fault is: from 0, never, to 1, whenever it is possible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// What was received is cut at a random place, and handed over in pieces.
    pub cut: f64,
    /// A send comes short: the rest waits for later polls.
    pub short_send: f64,
    /// A send that is done at once is reported a poll later.
    pub late_send: f64,
    /// The driver does not ask for a reply to what was received.
    pub late_reply: f64,
    /// For some polls nothing moves on a connection, in either direction.
    pub stall: f64,
    /// The network resets a connection.
    pub reset: f64,
    /// A connection fails for want of acknowledgements.
    pub time_out: f64,
    /// A connection is accepted a poll later.
    pub accept_delay: f64,
    /// An accept is refused, as if descriptors had run out.
    pub accept_pause: f64,
    /// The clock jumps forward, by up to [`Self::clock_jump_max`].
    pub clock_jump: f64,
    /// How far the clock jumps at most.
    pub clock_jump_max: Duration,
    /// The connections of a poll come in random order, rather than in that of their slots.
    pub shuffle: bool,
}
