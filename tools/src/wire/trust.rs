//! Which certificates of gateways are accepted: those of the system's authorities, of the file that `--ca` names, or with
//! `--insecure` any, on loopback alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::tls::Tls;
use super::{Place, WireError};

/// The application protocol of TLS (ALPN).
const ALPN: &[u8] = b"tidegate/1";
/// The application protocol of a WebSocket in TLS.
const ALPN_WEBSOCKET: &[u8] = b"http/1.1";

/// Which certificates are accepted, on the command line.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Trust {
    /// With tls:// and wss://: the file with the certificate authority that signed the gateway's certificate, in PEM. By
    /// default, the authorities that the system trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// With tls:// and wss://: accept any certificate. Only for a gateway at a loopback address
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
}

/// Begins connections, each with the wire that its place names.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// For TLS, and for a WebSocket in TLS. `None`: no place has TLS.
    tls: Option<[Arc<ClientConfig>; 2]>,
    loopback_only: bool,
}

impl Dialer {
    /// A dialer for these places. Reads certificates only where a place has TLS.
    ///
    /// # Errors
    /// The file of `--ca` can't be used, or the system has no certificate authorities.
    pub(crate) fn new<'a>(
        trust: &Trust,
        places: impl IntoIterator<Item = &'a Place>,
    ) -> Result<Self> {
        let needs_tls = places.into_iter().any(|place| place.kind().has_tls());
        let tls = if needs_tls { Some(configs(trust)?) } else { None };
        Ok(Self { tls, loopback_only: trust.insecure })
    }

    pub(super) fn tls(&self, place: &Place, address: SocketAddr) -> Result<Tls, WireError> {
        if self.loopback_only && !address.ip().is_loopback() {
            return Err(WireError::NotLoopback(address));
        }
        let configs = self.tls.as_ref().expect("a dialer is made for its places");
        let config = &configs[usize::from(place.kind().has_websocket())];
        let name = ServerName::try_from(place.host().to_owned())
            .map_err(|_| WireError::NotAName(place.host().to_owned()))?;
        Tls::new(Arc::clone(config), name)
    }
}

fn configs(trust: &Trust) -> Result<[Arc<ClientConfig>; 2]> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("TLS can't begin")?;
    let builder = if trust.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let roots = match &trust.ca {
            Some(path) => from_file(path)?,
            None => of_the_system()?,
        };
        builder.with_root_certificates(roots)
    };
    let mut tls = builder.with_no_client_auth();
    // Each connection makes a full handshake: a bench is to measure them, and a client makes few.
    tls.resumption = Resumption::disabled();
    let mut websocket = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    websocket.alpn_protocols = vec![ALPN_WEBSOCKET.to_vec()];
    Ok([tls, websocket].map(Arc::new))
}

fn from_file(path: &Path) -> Result<RootCertStore> {
    let what = || format!("--ca {}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(what)? {
        let certificate = certificate.with_context(what)?;
        roots.add(certificate).with_context(what)?;
    }
    ensure!(!roots.is_empty(), "--ca {}: there is no certificate in PEM in it", path.display());
    Ok(roots)
}

fn of_the_system() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ensure!(
        !roots.is_empty(),
        "this system has no certificate authorities (package ca-certificates): name one with --ca FILE"
    );
    Ok(roots)
}

/// Accepts any certificate, and any signature.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
