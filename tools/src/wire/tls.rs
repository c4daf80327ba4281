//! One connection's TLS, over rustls' unbuffered API: an idle connection owns no buffer, so that one process holds many.

use std::fmt;
use std::mem;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};

use super::WireError;
use super::error::Spoken;

/// What a record adds to its payload, at most: a header of 5 bytes, the content's type, a tag of 16 bytes, and with TLS 1.2
/// a nonce of 8.
const RECORD_OVERHEAD: usize = 5 + 1 + 16 + 8;
/// The most payload of one record (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// One connection's TLS.
pub(super) struct Tls {
    connection: UnbufferedClientConnection,
    /// The beginning of a record that was received incompletely.
    rest: Vec<u8>,
    /// Bytes have been received.
    has_heard: bool,
    /// An error has come: nothing can be encrypted any more.
    has_failed: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("rest", &self.rest.len()).finish_non_exhaustive()
    }
}

impl Tls {
    /// A connection on which nothing has been sent.
    pub(super) fn new(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Self { connection, rest: Vec::new(), has_heard: false, has_failed: false })
    }

    /// Whether the handshake is not over.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes received bytes. Appends what has to be sent to `out`, and what was decrypted to `payload`. Returns whether the
    /// other side sends no more. Without bytes it begins the handshake.
    pub(super) fn receive(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<bool, WireError> {
        if !self.has_heard && !bytes.is_empty() {
            self.has_heard = true;
            if let Some(spoken) = Spoken::instead_of_tls(bytes) {
                return Err(WireError::Foreign(spoken));
            }
        }
        if self.rest.is_empty() {
            let (taken, has_ended) = self.process(bytes, out, payload)?;
            self.rest.extend_from_slice(&bytes[taken..]);
            return Ok(has_ended);
        }
        let mut rest = mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let (taken, has_ended) = self.process(&mut rest, out, payload)?;
        if taken < rest.len() {
            rest.drain(..taken);
            self.rest = rest;
        }
        Ok(has_ended)
    }

    fn process(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<(usize, bool), WireError> {
        let (mut taken, mut has_ended, mut failed) = (0, false, None);
        loop {
            // After a failure there is the alert to encode. To read on would be an error: rustls then looks for the
            // handshake messages that it has found, and panics where `bytes` are others.
            if failed.is_some() && !self.connection.wants_write() {
                break;
            }
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut bytes[taken..]);
            taken += discard;
            let state = match state {
                Ok(state) => state,
                // The alert for it is encoded by the next call.
                Err(error) if failed.is_none() => {
                    failed = Some(error);
                    continue;
                }
                Err(_) => break,
            };
            match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(WireError::Tls)?;
                        taken += record.discard;
                        payload.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(out, 1024, |space| match data.encode(space) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                    });
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => has_ended = true,
                _ => break,
            }
        }
        self.has_failed = failed.is_some();
        failed.map_or(Ok((taken, has_ended)), |error| Err(WireError::Tls(error)))
    }

    /// Appends the records that carry these bytes to `out`.
    pub(super) fn encrypt(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        let records = bytes.len().div_ceil(RECORD_BYTES_MAX).max(1);
        let space = bytes.len() + records * RECORD_OVERHEAD;
        self.write(out, space, |traffic, space| traffic.encrypt(bytes, space))
    }

    /// Appends the alert after which nothing is sent.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> Result<(), WireError> {
        self.write(out, 2 + RECORD_OVERHEAD, |traffic, space| traffic.queue_close_notify(space))
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        space: usize,
        write: impl Fn(
            &mut WriteTraffic<'_, ClientConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), WireError> {
        if self.has_failed {
            return Err(WireError::Tls(rustls::Error::EncryptError));
        }
        loop {
            // What is kept has to be there: it may hold the beginning of a handshake message, and rustls reads on behind it.
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.rest);
            debug_assert_eq!(discard, 0, "nothing whole is kept");
            match state.map_err(WireError::Tls)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let mut is_exhausted = false;
                    append(out, space, |space| match write(&mut traffic, space) {
                        Ok(count) => Ok(count),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncryptError::EncryptExhausted) => {
                            is_exhausted = true;
                            Ok(0)
                        }
                    });
                    let exhausted = WireError::Tls(rustls::Error::EncryptError);
                    return if is_exhausted { Err(exhausted) } else { Ok(()) };
                }
                // A key update goes out first.
                ConnectionState::EncodeTlsData(mut data) => {
                    append(out, 64, |space| match data.encode(space) {
                        Ok(count) => Ok(count),
                        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                    });
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => {}
                _ => return Err(WireError::Tls(rustls::Error::HandshakeNotComplete)),
            }
        }
    }
}

/// Has `write` append to `out`: into `space` bytes, or into as many as it asks for.
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
