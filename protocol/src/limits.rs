//! Sizes and intervals that both ends must agree on, with the defaults of the protocol.

/// Longest frame that a client may send by default, in bytes of payload: 64 KiB.
pub const FRAME_FROM_CLIENT_BYTES_MAX: usize = 64 * 1024;

/// Longest frame that a gateway takes from a client without a session, in bytes of payload: 16 KiB. The longest token
/// that a gateway looks at has 8 KiB.
pub const FRAME_BEFORE_SESSION_BYTES_MAX: usize = 16 * 1024;

/// Longest frame that a gateway sends by default, in bytes of payload: 1 MiB.
pub const FRAME_TO_CLIENT_BYTES_MAX: usize = 1024 * 1024;

/// Longest length prefix: five bytes hold 35 bits, more than any length of 32 bits needs.
pub const PREFIX_BYTES_MAX: usize = 5;

/// Longest payload that a length prefix can announce at all.
pub const FRAME_BYTES_CEILING: usize = u32::MAX as usize;

/// How often a client should give a sign of life by default, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u32 = 30_000;

/// A connection is closed after this many tenths of a heartbeat interval in silence: 2.5 intervals.
pub const IDLE_INTERVAL_TENTHS: u64 = 25;

/// How long a connection may stay unauthenticated by default, in milliseconds.
pub const AUTH_TIMEOUT_MS: u64 = 10_000;

/// A connection is closed after this many failed tries to authenticate.
pub const AUTH_FAILURES_MAX: u8 = 3;

/// Longest room id, in bytes of UTF-8. `*` is everybody's room.
pub const ROOM_ID_BYTES_MAX: usize = 128;

/// Bytes of a push's idempotency key, at most. It is not on the wire: backends and operators give it.
pub const PUSH_KEY_BYTES_MAX: usize = 64;

/// Longest ticket, in bytes. It is about twice what a gateway needs: an expiry and a MAC of 256 bits.
pub const TICKET_BYTES_MAX: usize = 64;

/// Longest `Resume` that a client should send, in bytes: 7 KiB. With a token of 8 KiB it still fits
/// [`FRAME_BEFORE_SESSION_BYTES_MAX`]. It holds about 100 positions with names of ten bytes, and at least 30 of any kind.
pub const RESUME_BYTES_MAX: usize = 7 * 1024;
