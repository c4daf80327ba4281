//! One connection's TLS, over rustls' unbuffered API: the caller owns all buffers.
//!
//! [`TlsSession`] decrypts what was received and encrypts what is to be sent. It owns no socket, no clock and, while the
//! connection is idle, no buffer.

use std::fmt;
use std::mem;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, ServerConfig};

/// What a record adds to its payload, at most: a header of 5 bytes, the content's type, and a tag of 16 bytes. With TLS 1.2
/// there are 8 bytes of nonce.
const RECORD_OVERHEAD: usize = 5 + 1 + 16 + 8;

/// The most payload of one record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// The most bytes of one record as they are received (RFC 5246, section 6.2.3).
pub const RECEIVED_RECORD_BYTES_MAX: usize = 5 + RECORD_BYTES_MAX + 2048;

/// The most bytes that are kept of an unfinished record, or of a handshake message in several records: a client's certificates fit.
const REST_BYTES_MAX: usize = RECEIVED_RECORD_BYTES_MAX;

/// One connection's TLS.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// The beginning of a record, or of a handshake message, that was received incompletely.
    rest: Vec<u8>,
    /// The peer has said that it sends no more.
    has_ended: bool,
    /// An error was returned. rustls is not called any more: it may still refer to messages in bytes that are gone, and
    /// panics when it is then given others.
    has_failed: bool,
}

impl fmt::Debug for TlsSession {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.rest.len();
        formatter.debug_struct("TlsSession").field("rest", &rest).finish_non_exhaustive()
    }
}

/// What was found in received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The peer may send more.
    Open,
    /// The peer sends no more (`close_notify`). It is said once.
    Ended,
}

impl TlsSession {
    /// A connection whose client has sent nothing yet.
    ///
    /// # Errors
    /// When the configuration is one that rustls can't use.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Self { connection, rest: Vec::new(), has_ended: false, has_failed: false })
    }

    /// Whether the handshake is not over yet.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether a step of the handshake can be done with these further bytes. See [`has_record`].
    #[must_use]
    pub fn has_record(&self, bytes: &[u8]) -> bool {
        has_record(&self.rest, bytes)
    }

    /// Takes received bytes, which are decrypted where they are. Appends what the peer is to be sent to `out`, and the
    /// payload of whole records to `payload`.
    ///
    /// # Errors
    /// When the peer breaks the protocol. The alert for it is in `out` then, unless a handshake message is too long. It is
    /// the last that can be said on the connection: each further call of a method fails, and appends nothing.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<Received, Error> {
        self.check()?;
        let received = self.take(bytes, out, payload);
        if received.is_err() {
            (self.has_failed, self.rest) = (true, Vec::new());
        }
        received
    }

    /// An error, if there was one before.
    fn check(&self) -> Result<(), Error> {
        if self.has_failed {
            Err(Error::General("TLS has failed before".to_owned()))
        } else {
            Ok(())
        }
    }

    fn take(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<Received, Error> {
        if self.has_ended {
            return Ok(Received::Open);
        }
        let received = if self.rest.is_empty() {
            let (taken, received) = self.process(bytes, out, payload)?;
            self.rest.extend_from_slice(&bytes[taken..]);
            received
        } else {
            let mut rest = mem::take(&mut self.rest);
            rest.extend_from_slice(bytes);
            let (taken, received) = self.process(&mut rest, out, payload)?;
            if taken < rest.len() {
                rest.drain(..taken);
                rest.shrink_to_fit();
                self.rest = rest;
            }
            received
        };
        if received == Received::Ended {
            // Bytes behind it are not payload, and are never read.
            (self.has_ended, self.rest) = (true, Vec::new());
        }
        if self.rest.len() > REST_BYTES_MAX {
            return Err(Error::General("a handshake message is too long".to_owned()));
        }
        Ok(received)
    }

    /// Says how many bytes were taken.
    fn process(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<(usize, Received), Error> {
        let mut taken = 0;
        let mut received = Received::Open;
        let mut failed = None;
        loop {
            // After a failure there is the alert to encode. To read on would be an error: rustls then looks for the
            // handshake messages that it has found, and panics where `bytes` are others.
            if failed.is_some() && !self.connection.wants_write() {
                break;
            }
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut bytes[taken..]);
            taken += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        taken += record.discard;
                        payload.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(out, &mut data, 1024);
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => received = Received::Ended,
                Ok(_) => break,
                // The alert is encoded by the next call.
                Err(error) if failed.is_none() => failed = Some(error),
                Err(_) => break,
            }
        }
        failed.map_or(Ok((taken, received)), Err)
    }

    /// Encrypts what is to be sent. Appends it to `out`.
    ///
    /// # Errors
    /// When the connection can't encrypt: the handshake is not over, its keys are used up, or [`Self::receive`] has failed.
    pub fn encrypt(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let records = bytes.len().div_ceil(RECORD_BYTES_MAX).max(1);
        let space = bytes.len() + records * RECORD_OVERHEAD;
        self.write(out, space, |traffic, space| traffic.encrypt(bytes, space))
    }

    /// Appends the `close_notify` alert, after which nothing is encrypted any more.
    ///
    /// # Errors
    /// As [`Self::encrypt`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.write(out, 2 + RECORD_OVERHEAD, |traffic, space| traffic.queue_close_notify(space))
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        space: usize,
        write: impl Fn(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        self.check()?;
        loop {
            // What is kept has to be there: it may hold the beginning of a handshake message, and rustls reads on behind it.
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.rest);
            debug_assert_eq!(discard, 0, "nothing whole is kept");
            match state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let mut exhausted = false;
                    append(out, space, |space| match write(&mut traffic, space) {
                        Ok(count) => Ok(count),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncryptError::EncryptExhausted) => {
                            exhausted = true;
                            Ok(0)
                        }
                    });
                    return if exhausted { Err(Error::EncryptError) } else { Ok(()) };
                }
                // A key update goes out first.
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(out, &mut data, 64);
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => {}
                _ => return Err(Error::HandshakeNotComplete),
            }
        }
    }
}

/// Whether a step of the handshake can be done with these bytes, `kept` and then `bytes`: a record is whole, or they are no
/// record of TLS.
#[must_use]
pub fn has_record(kept: &[u8], bytes: &[u8]) -> bool {
    let mut front = kept.iter().chain(bytes).copied();
    let Some(kind) = front.next() else { return false };
    if !(20..=23).contains(&kind) {
        return true;
    }
    let (Some(high), Some(low)) = (front.nth(2), front.next()) else { return false };
    let record_bytes = 5 + usize::from(u16::from_be_bytes([high, low]));
    let received_bytes = kept.len() + bytes.len();
    received_bytes >= record_bytes || record_bytes > RECEIVED_RECORD_BYTES_MAX
}

/// Appends bytes of the handshake, or an alert. `space`: how many are expected.
fn encode(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, ServerConnectionData>, space: usize) {
    append(out, space, |space| match data.encode(space) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}

/// Has `write` append to `out`: into `space` bytes, and where it says that it needs more, into that many.
fn append(
    out: &mut Vec<u8>,
    mut space: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
) {
    let start = out.len();
    loop {
        out.resize(start + space, 0);
        match write(&mut out[start..]) {
            Ok(count) => return out.truncate(start + count),
            Err(required) => space = required.max(space + 1),
        }
    }
}

#[cfg(test)]
mod tests;
