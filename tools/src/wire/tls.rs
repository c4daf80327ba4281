//! A connection's TLS as `tide` needs it: it names what a server speaks instead of TLS.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tidegate_tls::{ClientSession, Received};

use super::WireError;
use super::error::Spoken;

/// One connection's TLS.
#[derive(Debug)]
pub(super) struct Tls {
    session: ClientSession,
    has_received: bool,
}

impl Tls {
    /// A connection on which nothing has been sent.
    pub(super) fn new(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, WireError> {
        let session = ClientSession::new(config, name).map_err(WireError::Tls)?;
        Ok(Self { session, has_received: false })
    }

    /// Whether the handshake is not over.
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Takes received bytes. Appends what has to be sent to `out`, and what was decrypted to `payload`. Returns whether the
    /// other side sends no more. Without bytes it begins the handshake.
    pub(super) fn receive(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        payload: &mut Vec<u8>,
    ) -> Result<bool, WireError> {
        if !self.has_received && !bytes.is_empty() {
            self.has_received = true;
            if let Some(spoken) = Spoken::instead_of_tls(bytes) {
                return Err(WireError::Foreign(spoken));
            }
        }
        let received = self.session.receive(bytes, out, payload).map_err(WireError::Tls)?;
        Ok(received == Received::Ended)
    }

    /// Appends the records that carry these bytes to `out`.
    pub(super) fn encrypt(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        self.session.encrypt(bytes, out).map_err(WireError::Tls)
    }

    /// Appends the alert after which nothing is sent.
    pub(super) fn close(&mut self, out: &mut Vec<u8>) -> Result<(), WireError> {
        self.session.close(out).map_err(WireError::Tls)
    }
}
