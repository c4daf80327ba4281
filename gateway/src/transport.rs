//! What stands between a driver's bytes and a connection's frames.
//!
//! A [`Transport`] turns what the wire carries into the protocol's bytes and back. Plain TCP changes
//! nothing and costs nothing; TLS and WebSocket will be further implementations, chosen per listener.
//! The connection never sees which.

use std::borrow::Cow;

use bytes::Bytes;

/// Why the wire can't be read: the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transport's own framing is broken")]
pub struct TransportError;

/// One connection's transport.
pub trait Transport {
    /// Takes bytes of the wire; returns the protocol's bytes in them, borrowed where nothing changes.
    ///
    /// # Errors
    /// [`TransportError`] when the connection has to be closed.
    fn open<'a>(&mut self, wire: &'a [u8]) -> Result<Cow<'a, [u8]>, TransportError>;

    /// Turns the protocol's bytes into the wire's.
    fn seal(&mut self, bytes: Bytes) -> Bytes;
}

/// Plain TCP: the wire's bytes are the protocol's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Transport for Plain {
    #[inline]
    fn open<'a>(&mut self, wire: &'a [u8]) -> Result<Cow<'a, [u8]>, TransportError> {
        Ok(Cow::Borrowed(wire))
    }

    #[inline]
    fn seal(&mut self, bytes: Bytes) -> Bytes {
        bytes
    }
}
