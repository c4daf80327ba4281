//! TLS 1.3 records that no honest client sends: properly encrypted, with any content.

use rustls::ClientConnection;
use rustls::crypto::cipher::{AeadKey, Iv, MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion};

/// What a record says that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Payload.
    Data,
    /// Handshake messages, or parts of them.
    Handshake,
    /// An alert.
    Alert,
}

/// Makes the records that a client sends after its handshake.
pub struct Records {
    encrypter: Box<dyn MessageEncrypter>,
    number: u64,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Records").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Records {
    pub(super) fn after(client: ClientConnection) -> Self {
        let suite = client.negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let suite = suite.expect("TLS 1.3 and the handshake is over");
        let secrets = client.dangerous_extract_secrets().expect("extraction is allowed");
        let (number, secrets) = secrets.tx;
        let (key, iv): (AeadKey, Iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => unreachable!("TLS 1.3 has no other"),
        };
        Self { encrypter: suite.aead_alg.encrypter(key, iv), number }
    }

    /// One record.
    ///
    /// # Panics
    /// When the content is longer than a record may be.
    pub fn record(&mut self, kind: RecordKind, content: &[u8]) -> Vec<u8> {
        let typ = match kind {
            RecordKind::Data => ContentType::ApplicationData,
            RecordKind::Handshake => ContentType::Handshake,
            RecordKind::Alert => ContentType::Alert,
        };
        let payload = OutboundChunks::Single(content);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload };
        let record = self.encrypter.encrypt(message, self.number).expect("it fits into a record");
        self.number += 1;
        record.encode()
    }
}
