//! One connection's TLS: the one place that drives rustls.

use std::fmt;
use std::mem;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, Error, ServerConfig};

use crate::side::Side;
use crate::{RECEIVED_RECORD_BYTES_MAX, RECORD_BYTES_MAX, RECORD_OVERHEAD};

/// One connection's TLS. See the [crate](crate).
pub struct Session<S> {
    pub(crate) connection: S,
    /// The beginning of a record, or of a handshake message, that was received incompletely.
    ///
    /// Invariant: at most [`Side::REST_BYTES_MAX`] bytes, and none after a failure or after the peer's `close_notify`.
    pub(crate) rest: Vec<u8>,
    /// How many bytes at the front of `rest` are complete records, which hold the beginning of a handshake message. It can't be
    /// found out later: rustls moves the parts of a message together, over the headers of records. 0 after the handshake.
    ///
    /// Invariant: at most `rest.len()`.
    complete_bytes: u32,
    /// The peer's `close_notify` was received.
    has_ended: bool,
    /// The own `close_notify` was appended.
    has_closed: bool,
    /// An error was returned. rustls is not called any more: it may still refer to messages in bytes that are gone, and
    /// panics when it is then given others.
    has_failed: bool,
}

/// The TLS of a connection that was accepted.
pub type ServerSession = Session<UnbufferedServerConnection>;

/// The TLS of a connection to a server.
pub type ClientSession = Session<UnbufferedClientConnection>;

impl<S> fmt::Debug for Session<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.rest.len();
        formatter.debug_struct("Session").field("rest", &rest).finish_non_exhaustive()
    }
}

/// Whether the peer may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The peer may send more.
    Open,
    /// The peer sends no more: its `close_notify` was received. It is returned once, and later bytes are ignored.
    Ended,
}

impl ServerSession {
    /// A session whose client has sent nothing yet.
    ///
    /// # Errors
    /// rustls can't use the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(Self::of)
    }
}

impl ClientSession {
    /// A session that has sent nothing yet. [`Self::receive`] without bytes begins the handshake. `name` is what the server's
    /// certificate has to be for.
    ///
    /// # Errors
    /// rustls can't use the configuration.
    pub fn new(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        UnbufferedClientConnection::new(config, name).map(Self::of)
    }
}

impl<S: Side> Session<S> {
    const fn of(connection: S) -> Self {
        let (has_ended, has_closed, has_failed) = (false, false, false);
        let rest = Vec::new();
        Self { connection, rest, complete_bytes: 0, has_ended, has_closed, has_failed }
    }

    /// Whether the handshake is not over yet. Before it is, nothing can be encrypted.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether a step of the handshake can be done with these further bytes. See [`has_record`].
    #[must_use]
    pub fn has_record(&self, bytes: &[u8]) -> bool {
        // Complete records that are kept have been read. A step needs the next one.
        has_record(self.rest.get(self.complete_bytes as usize..).unwrap_or_default(), bytes)
    }

    /// Takes received bytes, cut anywhere, and decrypts them in place. Appends what the peer has to be sent to `out`, and the
    /// payload of complete records to `payload`.
    ///
    /// # Errors
    /// The peer broke the protocol, or a certificate was not accepted. `payload` then has what came before, and `out` ends with
    /// the alert, where there is one: not for a handshake message that is too long or interrupted. Nothing can follow an alert:
    /// each further call of a method returns an error and appends nothing.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<Received, Error> {
        self.check()?;
        let received = self.take(bytes, out, payload);
        if received.is_err() {
            (self.has_failed, self.rest, self.complete_bytes) = (true, Vec::new(), 0);
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
            // Bytes behind `close_notify` are not payload, and are never read.
            (self.has_ended, self.rest, self.complete_bytes) = (true, Vec::new(), 0);
        }
        if self.rest.len() > S::REST_BYTES_MAX {
            return Err(Error::General("a handshake message is too long".to_owned()));
        }
        Ok(received)
    }

    /// Returns how many bytes were taken.
    fn process(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<(usize, Received), Error> {
        // Before rustls changes them.
        let complete_bytes = if self.is_handshaking() {
            complete_records(bytes, self.complete_bytes as usize)
        } else {
            0
        };
        let mut taken = 0;
        let mut received = Received::Open;
        let mut failed = None;
        loop {
            // After a failure, only the alert is left to encode. To read on would be an error: rustls would look for the
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
                // The next call encodes the alert.
                Err(error) if failed.is_none() => failed = Some(error),
                Err(_) => break,
            }
        }
        // They fit: there are at most [`Side::REST_BYTES_MAX`].
        self.complete_bytes = u32::try_from(complete_bytes.saturating_sub(taken)).unwrap_or(0);
        failed.map_or(Ok((taken, received)), Err)
    }

    /// Encrypts what is to be sent. Appends it to `out`.
    ///
    /// # Errors
    /// The session can't encrypt: the handshake is not over, the keys are used up, [`Self::close`] was called, or
    /// [`Self::receive`] has failed. Nothing of `bytes` is in `out` then.
    pub fn encrypt(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let records = bytes.len().div_ceil(RECORD_BYTES_MAX).max(1);
        let space = bytes.len() + records * RECORD_OVERHEAD;
        self.write(out, space, |traffic, space| traffic.encrypt(bytes, space))
    }

    /// Appends the `close_notify` alert. Nothing can be encrypted after it. The peer may still send.
    ///
    /// # Errors
    /// As [`Self::encrypt`]: also when it was called before.
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.write(out, 2 + RECORD_OVERHEAD, |traffic, space| traffic.queue_close_notify(space))?;
        self.has_closed = true;
        Ok(())
    }

    fn write(
        &mut self,
        out: &mut Vec<u8>,
        space: usize,
        write: impl Fn(&mut WriteTraffic<'_, S::Data>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        self.check()?;
        if self.has_closed {
            return Err(Error::General("close_notify was sent before".to_owned()));
        }
        if self.is_handshaking() {
            // rustls would begin a client's handshake here, and `out` may be dropped after an error.
            return Err(Error::HandshakeNotComplete);
        }
        loop {
            // rustls has to see the bytes that are kept: they may hold the beginning of a handshake message, behind which it
            // reads on.
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut self.rest);
            debug_assert_eq!(discard, 0, "nothing complete is kept");
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
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
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(out, &mut data, 64);
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => {}
                Ok(_) => return Err(Error::HandshakeNotComplete),
                Err(error) => {
                    (self.has_failed, self.rest, self.complete_bytes) = (true, Vec::new(), 0);
                    return Err(error);
                }
            }
        }
    }
}

/// Whether a step of the handshake can be done with these bytes, `kept` and then `bytes`: a record is complete, or they are no
/// record of TLS. So a caller that limits its work need not call [`Session::receive`] for each part of a record, nor begin a session
/// before there is one.
#[must_use]
pub fn has_record(kept: &[u8], bytes: &[u8]) -> bool {
    let mut front = [0; HEADER_BYTES];
    let count =
        front.iter_mut().zip(kept.iter().chain(bytes)).map(|(to, byte)| *to = *byte).count();
    match header(&front[..count]) {
        Header::Incomplete => false,
        Header::Invalid => true,
        Header::Of(record_bytes) => kept.len() + bytes.len() >= record_bytes,
    }
}

/// How many bytes at the front of `bytes` are complete records. The first `known` of them are.
fn complete_records(bytes: &[u8], known: usize) -> usize {
    let mut complete = known;
    while let Some(rest) = bytes.get(complete..)
        && let Header::Of(record_bytes) = header(rest)
        && record_bytes <= rest.len()
    {
        complete += record_bytes;
    }
    complete
}

/// The length of a record's header.
const HEADER_BYTES: usize = 5;

/// What the header of a record says.
enum Header {
    /// More bytes are needed.
    Incomplete,
    /// It is none of TLS, or its record is too long.
    Invalid,
    /// The length of the record, with the header.
    Of(usize),
}

/// Reads the header of a record, with which `bytes` begins.
const fn header(bytes: &[u8]) -> Header {
    match *bytes {
        [20..=23, _, _, high, low, ..] => {
            let record_bytes = HEADER_BYTES + u16::from_be_bytes([high, low]) as usize;
            if record_bytes > RECEIVED_RECORD_BYTES_MAX {
                return Header::Invalid;
            }
            Header::Of(record_bytes)
        }
        [] | [20..=23, ..] => Header::Incomplete,
        _ => Header::Invalid,
    }
}

/// Appends bytes of the handshake, or an alert. `space`: how many are expected.
fn encode<D>(out: &mut Vec<u8>, data: &mut EncodeTlsData<'_, D>, space: usize) {
    append(out, space, |space| match data.encode(space) {
        Ok(count) => Ok(count),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}

/// Lets `write` append to `out`: into `space` bytes and, where it returns that it needs more, into that many.
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
