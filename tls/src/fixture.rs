//! What tests and fuzzers of TLS need: a certificate, sessions after their handshake, and a peer that breaks the protocol.
//!
//! Where something fails that can't fail, it panics: that is how a test fails.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

mod records;

use std::sync::{Arc, OnceLock};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use crate::{ClientSession, ServerSession, Session, Side};

pub use records::{RecordKind, Records};

/// The certificate of all servers in tests, and its key.
pub struct Certificate {
    /// What a server is configured with: TLS 1.3 and 1.2.
    pub server: Arc<ServerConfig>,
    /// What trusts it. Sessions are not resumed.
    pub client: Arc<ClientConfig>,
    /// The certificate, for other clients.
    pub roots: RootCertStore,
}

/// The name that the certificate is for.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

/// The certificate of all servers in this process. Signatures by its key all have one length.
pub fn certificate() -> &'static Certificate {
    static CERTIFICATE: OnceLock<Certificate> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("it is well-formed");
        let provider = Arc::new(ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("they belong together");
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("both versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        // For `Records`.
        (server.enable_secret_extraction, client.enable_secret_extraction) = (true, true);
        Certificate { server: Arc::new(server), client: Arc::new(client), roots }
    })
}

/// A server's session after its handshake, and what its client sends from then on.
#[must_use]
pub fn open_server() -> (ServerSession, Records) {
    let session = ServerSession::new(Arc::clone(&certificate().server)).expect("it begins");
    let client = ClientConnection::new(Arc::clone(&certificate().client), server_name());
    open(session, client.expect("it begins").into())
}

/// A client's session after its handshake, and what its server sends from then on.
#[must_use]
pub fn open_client() -> (ClientSession, Records) {
    let session = ClientSession::new(Arc::clone(&certificate().client), server_name());
    let server = ServerConnection::new(Arc::clone(&certificate().server)).expect("it begins");
    open(session.expect("it begins"), server.into())
}

fn open<S: Side>(mut session: Session<S>, mut peer: Connection) -> (Session<S>, Records) {
    let (mut to_session, mut to_peer) = (Vec::new(), Vec::new());
    loop {
        let mut payload = Vec::new();
        session.receive(&mut to_session, &mut to_peer, &mut payload).expect("the peer is good");
        to_session.clear();
        let mut bytes = &to_peer[..];
        while !bytes.is_empty() {
            peer.read_tls(&mut bytes).expect("memory can be read");
            peer.process_new_packets().expect("the session is good");
        }
        to_peer.clear();
        while peer.wants_write() {
            peer.write_tls(&mut to_session).expect("a vector takes all");
        }
        if to_session.is_empty() && !session.is_handshaking() {
            return (session, Records::after(peer));
        }
    }
}
