//! The client's side of a wire: what stands between a socket and the protocol. Plain TCP, TLS, a WebSocket, or a WebSocket
//! in TLS.
//!
//! A [`Wire`] does no I/O. Its owner writes what it appends to `out`, and passes what the socket received. `tide client` and
//! `tide bench` both use it. The counterpart is the gateway's module of the same name.
//!
//! | module | what it owns |
//! |---|---|
//! | `place` | where a gateway is, as written on the command line |
//! | `trust` | which certificates are accepted |
//! | `tls` | one connection's TLS |
//! | `websocket` | the upgrade, and the frames |
//! | `error` | what goes wrong, and what to do |

mod error;
mod place;
#[cfg(test)]
mod tests;
mod tls;
mod trust;
mod websocket;

use std::net::SocketAddr;

pub(crate) use error::{Spoken, WireError, mismatch};
pub(crate) use place::{Place, Target, WireKind};
use tls::Tls;
pub(crate) use trust::{Dialer, Trust};
use websocket::WebSocket;

/// The most payload bytes of one WebSocket message. The gateway limits messages, and the protocol does not depend on how
/// they cut its stream.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What stands between a socket and the protocol. A plain connection has none: its bytes are the protocol's.
#[derive(Debug)]
pub(crate) struct Wire {
    tls: Option<Tls>,
    websocket: Option<WebSocket>,
    stage: Stage,
    /// Kept for its memory while a handshake needs it.
    decrypted: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    Upgrade,
    Open,
}

/// What received bytes changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The wire is open from now on.
    pub(crate) has_opened: bool,
    /// The gateway sends no more.
    pub(crate) has_ended: bool,
}

impl Wire {
    /// Begins a connection. Appends the first bytes to send to `out`.
    ///
    /// # Errors
    /// TLS can't begin.
    fn start(
        tls: Option<Tls>,
        websocket: Option<WebSocket>,
        out: &mut Vec<u8>,
    ) -> Result<Self, WireError> {
        let mut wire = Self { tls, websocket, stage: Stage::Handshake, decrypted: Vec::new() };
        match &mut wire.tls {
            Some(tls) => tls.receive(&mut [], out, &mut wire.decrypted).map(drop)?,
            None => wire.begin_upgrade(out)?,
        }
        Ok(wire)
    }

    /// Whether payload can be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Takes bytes from the socket, and may change them. Appends what they carry to `payload`, and what has to be sent in
    /// answer to `out`.
    ///
    /// # Errors
    /// [`WireError`]: the connection is of no use any more.
    pub(crate) fn receive(
        &mut self,
        bytes: &mut [u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, WireError> {
        let before = self.stage;
        let mut has_ended = false;
        if let Some(tls) = &mut self.tls {
            let to = if self.websocket.is_some() { &mut self.decrypted } else { &mut *payload };
            has_ended = tls.receive(bytes, out, to)?;
            if self.stage == Stage::Handshake && !tls.is_handshaking() {
                self.begin_upgrade(out)?;
            }
            if self.websocket.is_some() {
                let mut decrypted = std::mem::take(&mut self.decrypted);
                let read = self.read_frames(&decrypted, payload, out);
                if self.stage == Stage::Open {
                    decrypted = Vec::new();
                }
                decrypted.clear();
                self.decrypted = decrypted;
                has_ended |= read?;
            }
        } else {
            has_ended |= self.read_frames(bytes, payload, out)?;
        }
        let has_opened = before != Stage::Open && self.is_open();
        Ok(Progress { has_opened, has_ended })
    }

    /// Appends payload to `out`, as it has to be sent.
    ///
    /// # Errors
    /// The wire is not open, or can't encrypt any more.
    pub(crate) fn send(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        match (&mut self.tls, &mut self.websocket) {
            (Some(tls), None) => tls.encrypt(payload, out),
            (None, Some(websocket)) => {
                payload
                    .chunks(MESSAGE_BYTES_MAX)
                    .for_each(|message| websocket.put_message(message, out));
                Ok(())
            }
            (Some(tls), Some(websocket)) => {
                let mut framed = Vec::with_capacity(payload.len() + 16);
                payload
                    .chunks(MESSAGE_BYTES_MAX)
                    .for_each(|message| websocket.put_message(message, &mut framed));
                tls.encrypt(&framed, out)
            }
            (None, None) => {
                out.extend_from_slice(payload);
                Ok(())
            }
        }
    }

    /// Appends this side's end to `out`: a close frame, an alert. Nothing can be sent after it.
    pub(crate) fn goodbye(&mut self, out: &mut Vec<u8>) {
        let mut close = Vec::new();
        if let Some(websocket) = self.websocket.as_mut().filter(|_| self.stage == Stage::Open) {
            websocket.put_close(&mut close);
        }
        match &mut self.tls {
            // They fail only where nothing can be encrypted.
            Some(tls) => {
                if !close.is_empty() {
                    drop(tls.encrypt(&close, out));
                }
                drop(tls.close(out));
            }
            None => out.append(&mut close),
        }
    }

    /// The error for a connection that has ended before the wire was open.
    pub(crate) fn ended_early(&self) -> WireError {
        let refused = self.websocket.as_ref().and_then(WebSocket::incomplete_refusal);
        refused.unwrap_or(match self.stage {
            Stage::Handshake => WireError::Closed("during the TLS handshake"),
            Stage::Upgrade | Stage::Open => WireError::Closed("before it answered the upgrade"),
        })
    }

    /// TLS, if there is any, is ready.
    fn begin_upgrade(&mut self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let Some(websocket) = &mut self.websocket else {
            self.stage = Stage::Open;
            return Ok(());
        };
        self.stage = Stage::Upgrade;
        let request = websocket.request();
        match &mut self.tls {
            Some(tls) => tls.encrypt(request.as_bytes(), out),
            None => {
                out.extend_from_slice(request.as_bytes());
                Ok(())
            }
        }
    }

    /// Takes what a WebSocket received. Returns whether the gateway sends no more.
    fn read_frames(
        &mut self,
        bytes: &[u8],
        payload: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, WireError> {
        let Some(websocket) = self.websocket.as_mut().filter(|_| !bytes.is_empty()) else {
            return Ok(false);
        };
        let mut control = Vec::new();
        let has_ended = websocket.receive(bytes, payload, &mut control)?;
        if self.stage == Stage::Upgrade && websocket.is_open() {
            self.stage = Stage::Open;
        }
        if !control.is_empty() {
            match &mut self.tls {
                Some(tls) => tls.encrypt(&control, out)?,
                None => out.extend_from_slice(&control),
            }
        }
        Ok(has_ended)
    }
}

impl Dialer {
    /// Begins a connection to a place, which has this address. Appends the first bytes to send to `out`. `None`: the
    /// connection is plain.
    ///
    /// # Errors
    /// TLS can't begin, or `--insecure` was given and the address is not of this machine's loopback.
    pub(crate) fn start(
        &self,
        place: &Place,
        address: SocketAddr,
        out: &mut Vec<u8>,
    ) -> Result<Option<Wire>, WireError> {
        let kind = place.kind();
        if kind == WireKind::Plain {
            return Ok(None);
        }
        let tls = if kind.has_tls() { Some(self.tls(place, address)?) } else { None };
        let websocket = kind.has_websocket().then(|| WebSocket::new(place));
        Wire::start(tls, websocket, out).map(Some)
    }
}
