//! Why connections end. Each connection ends for one cause, which is counted once.

use tidegate_protocol::Code;

use crate::driver::{CloseCause, Failure};
use crate::limits::addresses::Refusal;

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
    Replaced, "replaced", "The user logged in elsewhere: 107.";
    Kicked, "kicked", "An operator or a backend ended the user's sessions: 110.";
    Idle, "idle", "No frame came in time: 109.";
    TokenExpired, "token_expired", "Its token ended, and `session.on_token_expiry` is `close`: 100.";
    TokenRevoked, "token_revoked", "Its token was revoked in Redis: 110.";
    AuthTimeout, "auth_timeout", "It did not authenticate in time: 109.";
    AuthFailed, "auth_failed", "Too many failed authentications: 100.";
    OutboxFull, "outbox_full", "More than `outbox_bytes_max` bytes waited behind a send.";
    SlowMember, "slow_member", "Too slow for a room that closes slow members.";
    Draining, "draining", "The gateway drains: 108.";
    Untrusted, "untrusted", "It came to a listener that asks for PROXY headers, from an address that is not trusted.";
    NoProxyHeader, "no_proxy_header", "It did not begin with a PROXY header.";
    Tls, "tls", "Its TLS handshake failed, or a record could not be decrypted.";
    Upgrade, "upgrade", "Its request for a WebSocket was refused.";
    WebSocket, "websocket", "It broke the WebSocket protocol.";
    Flood, "flood", "It sent too much before it was open, or asked for answers of TLS or WebSocket and did not read them.";
    OpenTimeout, "open_timeout", "It did not send its PROXY header, handshake or upgrade in time.";
    Banned, "banned", "It came from an address or a network that is banned: see `addresses.ban_ms`.";
    AddressConnections, "address_connections", "Its address, or the network of it, had too many connections (`[addresses]`): 108.";
    AddressAccepts, "address_accepts", "Too many connections had come from its address, or the network of it (`[addresses]`): 108.";
    TurnedAway, "turned_away", "More came than `limits.accepts_per_second_max` lets in: 108, with a wait.";
    Rebalanced, "rebalanced", "It was sent to another gateway, as this one had more than its share: 108.";
    Aged, "aged", "It was open for `session.age_max_ms`: 108.";
}

impl Cause {
    /// The code of the goodbye that a connection is sent which is closed gracefully for this cause; `None`: no goodbye.
    #[must_use]
    pub const fn goodbye(self) -> Option<Code> {
        match self {
            Self::Malformed => Some(Code::Malformed),
            Self::Replaced => Some(Code::Replaced),
            Self::Kicked | Self::TokenRevoked => Some(Code::Kicked),
            Self::TokenExpired => Some(Code::Unauthenticated),
            Self::Idle | Self::AuthTimeout => Some(Code::Idle),
            Self::Draining
            | Self::Rebalanced
            | Self::Aged
            | Self::AddressConnections
            | Self::AddressAccepts
            | Self::TurnedAway => Some(Code::Draining),
            Self::Peer
            | Self::Reset
            | Self::TimedOut
            | Self::Failed
            | Self::AuthFailed
            | Self::OutboxFull
            | Self::SlowMember
            | Self::Banned
            | Self::Untrusted
            | Self::NoProxyHeader
            | Self::Tls
            | Self::Upgrade
            | Self::WebSocket
            | Self::Flood
            | Self::OpenTimeout => None,
        }
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Untrusted => Self::Untrusted,
            Failure::Proxy => Self::NoProxyHeader,
            Failure::Tls => Self::Tls,
            Failure::Upgrade => Self::Upgrade,
            Failure::WebSocket => Self::WebSocket,
            Failure::TooMuch => Self::Flood,
            Failure::TimedOut => Self::OpenTimeout,
        }
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Banned => Self::Banned,
            Refusal::Connections => Self::AddressConnections,
            Refusal::Accepts => Self::AddressAccepts,
        }
    }
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
