//! Why connections end. Each connection ends for one cause, which is counted once.

use crate::driver::CloseCause;

/// Defines [`Cause`] and its labels.
macro_rules! causes {
    ($($name:ident, $label:literal, $help:literal;)*) => {
        /// Why a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Cause {
            $(#[doc = $help] $name,)*
        }

        impl Cause {
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// All of them, in order.
            pub const ALL: [Self; [$($label,)*].len()] = [$(Self::$name,)*];

            /// The label of the metric.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

causes! {
    Peer, "peer", "The client closed.";
    Reset, "reset", "The client, or the network, reset the connection.";
    TimedOut, "timed_out", "What was sent was not acknowledged in time.";
    Failed, "failed", "The kernel failed.";
    Malformed, "malformed", "A frame could not be read: 106.";
    Replaced, "replaced", "The user logged in elsewhere, or was kicked: 107.";
    Idle, "idle", "No frame came in time: 109.";
    AuthTimeout, "auth_timeout", "It did not authenticate in time: 109.";
    AuthFailed, "auth_failed", "Too many failed authentications: 100.";
    OutboxFull, "outbox_full", "More than `outbox_bytes_max` bytes waited behind a send.";
    SlowMember, "slow_member", "Too slow for a room that closes slow members.";
    Draining, "draining", "The gateway drains: 108.";
}

impl From<CloseCause> for Cause {
    /// The cause of a connection that the gateway did not close.
    fn from(cause: CloseCause) -> Self {
        match cause {
            CloseCause::Local => Self::Peer,
            CloseCause::Reset => Self::Reset,
            CloseCause::TimedOut => Self::TimedOut,
            CloseCause::Failed => Self::Failed,
        }
    }
}
