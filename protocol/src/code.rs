//! The error codes that the gateway sends, in one place.
//!
//! A failure's `biz_data` is its code as four bytes, big-endian.

use std::fmt;

/// Why a request failed, or why the gateway ends a session.
///
/// The numbers are sent on the wire and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Code {
    /// The token did not verify, or a business frame came before authentication. As a goodbye: the token
    /// has expired, and the connection is closed.
    Unauthenticated = 100,
    /// The business layer failed on this request.
    BackendFailed = 101,
    /// The business layer did not answer in time; whether it acted is unknown.
    Timeout = 102,
    /// This user, connection or address sends too fast.
    RateLimited = 103,
    /// Load is being shed; the request was not handed over.
    Overloaded = 104,
    /// No backend serves this type.
    NoRoute = 105,
    /// A frame could not be read, or is too long. The connection is closed.
    Malformed = 106,
    /// The same user logged in elsewhere. The connection is closed.
    Replaced = 107,
    /// The gateway drains: reconnect after `retry_after_ms`. The connection is closed.
    Draining = 108,
    /// No frame came in time. The connection is closed.
    Idle = 109,
    /// An operator or a backend ended the session. The connection is closed.
    Kicked = 110,
}

impl Code {
    /// Every code, in order.
    pub const ALL: [Self; 11] = [
        Self::Unauthenticated,
        Self::BackendFailed,
        Self::Timeout,
        Self::RateLimited,
        Self::Overloaded,
        Self::NoRoute,
        Self::Malformed,
        Self::Replaced,
        Self::Draining,
        Self::Idle,
        Self::Kicked,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The code with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// The name as the protocol spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::BackendFailed => "BACKEND_FAILED",
            Self::Timeout => "TIMEOUT",
            Self::RateLimited => "RATE_LIMITED",
            Self::Overloaded => "OVERLOADED",
            Self::NoRoute => "NO_ROUTE",
            Self::Malformed => "MALFORMED",
            Self::Replaced => "REPLACED",
            Self::Draining => "DRAINING",
            Self::Idle => "IDLE",
            Self::Kicked => "KICKED",
        }
    }

    /// The `biz_data` that carries this code.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.number().to_be_bytes()
    }

    /// The code in a failure's `biz_data`; `None` when it is not four bytes or not a known code.
    #[must_use]
    pub fn from_bytes(biz_data: &[u8]) -> Option<Self> {
        let bytes: [u8; 4] = biz_data.try_into().ok()?;
        Self::from_number(u32::from_be_bytes(bytes))
    }

    /// Whether a gateway may send this code unasked, to end the session.
    #[must_use]
    pub const fn ends_session(self) -> bool {
        matches!(
            self,
            Self::Unauthenticated
                | Self::Malformed
                | Self::Replaced
                | Self::Draining
                | Self::Idle
                | Self::Kicked
        )
    }

    /// Whether a gateway may answer a request with this code. [`Code::Unauthenticated`] and
    /// [`Code::Draining`] may also end the session.
    #[must_use]
    pub const fn fails_request(self) -> bool {
        !matches!(self, Self::Malformed | Self::Replaced | Self::Idle | Self::Kicked)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.number() as usize, 100 + index);
            assert_eq!(Code::from_bytes(&code.to_bytes()), Some(code));
        }
        assert_eq!(Code::from_number(99), None);
        assert_eq!(Code::from_bytes(&[0, 0, 106]), None);
    }
}
