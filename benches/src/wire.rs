//! The server's side of a wire with the least work: TLS over rustls' unbuffered API, a WebSocket, or both. No limits, no SNI,
//! no deadlines: what a gateway does beyond this is the gateway's own cost. So it does not use the gateway's crate for TLS either: a
//! cost of that crate would be in the floor too, and would not be seen.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tungstenite::handshake::machine::TryParse as _;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The most payload of a record, and what a record adds to it.
const RECORD_BYTES: (usize, usize) = (16 * 1024, 5 + 1 + 16 + 8);

/// What stands between the socket and the payload.
#[derive(Clone, Debug)]
pub struct Kind {
    /// The certificate, if there is TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether there is a WebSocket.
    pub has_websocket: bool,
}

/// A configuration of TLS as the gateway's: TLS 1.3, tickets with the client.
///
/// # Errors
/// A file can't be used.
pub fn server_config(chain: &Path, key: &Path, alpn: &str) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![alpn.into()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// One connection.
#[expect(missing_debug_implementations, reason = "rustls' connections have none")]
pub struct Wire {
    tls: Option<Box<UnbufferedServerConnection>>,
    websocket: Option<WebSocket>,
    /// Received, and too little to use.
    rest: Vec<u8>,
    is_open: bool,
}

#[derive(Debug, Default)]
struct WebSocket {
    is_upgraded: bool,
    mask: [u8; 4],
    left: u64,
    rest: Vec<u8>,
}

impl Wire {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// The configuration can't be used.
    pub fn new(kind: &Kind) -> Result<Self> {
        let tls = kind.tls.clone().map(UnbufferedServerConnection::new).transpose()?;
        let websocket = kind.has_websocket.then(WebSocket::default);
        let is_open = tls.is_none() && websocket.is_none();
        Ok(Self { tls: tls.map(Box::new), websocket, rest: Vec::new(), is_open })
    }

    /// Whether payload can be sent.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes received bytes. Appends their payload to `payload`, and answers to `out`.
    ///
    /// # Errors
    /// The client broke a protocol, or closed.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Some(tls) = &mut self.tls else {
            return match &mut self.websocket {
                Some(websocket) => {
                    websocket.receive(bytes, payload, out)?;
                    self.is_open = websocket.is_upgraded;
                    Ok(())
                }
                None => {
                    payload.extend_from_slice(bytes);
                    Ok(())
                }
            };
        };
        let mut decrypted = Vec::new();
        let to = if self.websocket.is_some() { &mut decrypted } else { &mut *payload };
        if self.rest.is_empty() {
            let taken = decrypt(tls, bytes, to, out)?;
            self.rest.extend_from_slice(&bytes[taken..]);
        } else {
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(bytes);
            let taken = decrypt(tls, &mut rest, to, out)?;
            rest.drain(..taken);
            if !rest.is_empty() {
                self.rest = rest;
            }
        }
        let is_secure = !tls.is_handshaking();
        match &mut self.websocket {
            None => self.is_open = is_secure,
            Some(websocket) if !decrypted.is_empty() => {
                let mut answer = Vec::new();
                websocket.receive(&mut decrypted, payload, &mut answer)?;
                self.is_open = websocket.is_upgraded;
                if !answer.is_empty() {
                    encrypt(tls, &answer, out)?;
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Appends payload to `out`, as it has to be sent.
    ///
    /// # Errors
    /// It can't be encrypted.
    pub fn send(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match (&mut self.tls, &self.websocket) {
            (None, None) => out.extend_from_slice(payload),
            (None, Some(_)) => put_message(payload, out),
            (Some(tls), None) => encrypt(tls, payload, out)?,
            (Some(tls), Some(_)) => {
                let mut framed = Vec::with_capacity(payload.len() + 10);
                put_message(payload, &mut framed);
                encrypt(tls, &framed, out)?;
            }
        }
        Ok(())
    }

    /// Appends a message that [`put_message`] has framed once for all to `out`.
    ///
    /// # Errors
    /// It can't be encrypted.
    pub fn send_framed(&mut self, framed: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match &mut self.tls {
            Some(tls) => encrypt(tls, framed, out),
            None => {
                out.extend_from_slice(framed);
                Ok(())
            }
        }
    }
}

/// Appends a message of a WebSocket to `out`.
pub fn put_message(payload: &[u8], out: &mut Vec<u8>) {
    let opcode = OpCode::Data(Data::Binary);
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    header.format(payload.len() as u64, out).expect("a vector takes all bytes");
    out.extend_from_slice(payload);
}

fn decrypt(
    tls: &mut UnbufferedServerConnection,
    bytes: &mut [u8],
    payload: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<usize> {
    let mut taken = 0;
    loop {
        let UnbufferedStatus { discard, state } = tls.process_tls_records(&mut bytes[taken..]);
        taken += discard;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
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
            ConnectionState::PeerClosed => bail!("closed"),
            _ => return Ok(taken),
        }
    }
}

fn encrypt(tls: &mut UnbufferedServerConnection, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let (record_bytes, overhead) = RECORD_BYTES;
    let space = bytes.len() + bytes.len().div_ceil(record_bytes).max(1) * overhead;
    let UnbufferedStatus { state, .. } = tls.process_tls_records(&mut []);
    let ConnectionState::WriteTraffic(mut traffic) = state? else { bail!("it can't encrypt now") };
    let mut is_exhausted = false;
    append(out, space, |space| match traffic.encrypt(bytes, space) {
        Ok(count) => Ok(count),
        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncryptError::EncryptExhausted) => {
            is_exhausted = true;
            Ok(0)
        }
    });
    if is_exhausted { bail!("the keys are used up") } else { Ok(()) }
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

impl WebSocket {
    fn receive(
        &mut self,
        bytes: &mut [u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if self.rest.is_empty() && self.is_upgraded {
            let taken = self.read_frames(bytes, payload)?;
            self.rest.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let mut taken = 0;
        if !self.is_upgraded {
            let Some((head_bytes, request)) = Request::try_parse(&rest)? else {
                self.rest = rest;
                return Ok(());
            };
            let mut response = create_response(&request)?;
            let protocol = HeaderValue::from_static("tidegate.v1");
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            write_response(&mut *out, &response)?;
            (self.is_upgraded, taken) = (true, head_bytes);
        }
        taken += self.read_frames(&mut rest[taken..], payload)?;
        self.rest.extend_from_slice(&rest[taken..]);
        Ok(())
    }

    fn read_frames(&mut self, bytes: &mut [u8], payload: &mut Vec<u8>) -> Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            if self.left > 0 {
                let count = usize::try_from(self.left)?.min(bytes.len() - taken);
                let part = &mut bytes[taken..taken + count];
                unmask(part, self.mask);
                self.mask.rotate_left(count % 4);
                payload.extend_from_slice(part);
                taken += count;
                self.left -= count as u64;
                continue;
            }
            let mut cursor = Cursor::new(&bytes[taken..]);
            let Some((header, length)) = FrameHeader::parse(&mut cursor)? else { break };
            if matches!(header.opcode, OpCode::Control(Control::Close)) {
                bail!("closed");
            }
            taken += usize::try_from(cursor.position())?;
            self.mask = header.mask.context("a client masks")?;
            self.left = length;
        }
        Ok(taken)
    }
}

/// Eight bytes at a time: a mask of 4 bytes fits twice.
fn unmask(bytes: &mut [u8], [a, b, c, d]: [u8; 4]) {
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes(<[u8; 8]>::try_from(&*chunk).expect("a chunk has 8 bytes"));
        chunk.copy_from_slice(&(word ^ twice).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip([a, b, c, d].iter().cycle()) {
        *byte ^= mask;
    }
}
