//! Certificates that change, and what their clients get.

use std::fs;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::client::Resumption;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use tempfile::TempDir;
use tidegate_tls::ServerSession;

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A folder with a gateway's certificate, and perhaps with an authority of clients.
pub(crate) struct Files {
    folder: TempDir,
    asks_clients: bool,
}

impl Files {
    pub(crate) fn new(asks_clients: bool) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), asks_clients };
        files.write_certificate(2000, 3000);
        files
    }

    fn write(&self, name: &str, text: String) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// A certificate that is good from the beginning of a year to that of another.
    fn write_certificate(&self, from: i32, to: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) =
            (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        self.write("chain.pem", params.self_signed(&key).unwrap().pem());
        self.write("key.pem", key.serialize_pem());
    }

    /// From now on each read of the certificate waits, as on a disk that hangs: it is a pipe without a writer.
    pub(crate) fn hang(&self) {
        let (pipe, chain) = (self.folder.path().join("pipe"), self.folder.path().join("chain.pem"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::remove_file(&chain).unwrap();
        fs::hard_link(pipe, chain).unwrap();
    }

    /// Lets all who wait go on. It waits for the first of them.
    pub(crate) fn go_on(&self) {
        let writer = fs::OpenOptions::new().write(true).open(self.folder.path().join("pipe"));
        fs::remove_file(self.folder.path().join("chain.pem")).unwrap();
        self.write_certificate(2000, 3000);
        drop(writer.unwrap());
    }

    fn config(&self) -> CertificateConfig {
        let path = |name: &str| self.folder.path().join(name);
        CertificateConfig {
            name: "main".to_owned(),
            chain_file: path("chain.pem"),
            key_file: path("key.pem"),
            ocsp_file: None,
        }
    }

    pub(crate) fn load(&self) -> Certificates {
        Certificates::load(self.tls()).unwrap()
    }

    pub(crate) fn tls(&self) -> TlsConfig {
        let path = |name: &str| self.folder.path().join(name);
        let client_certificates = match self.asks_clients {
            true => ClientCertificates::Required(path("ca.pem")),
            false => ClientCertificates::None,
        };
        TlsConfig {
            certificates: vec![self.config()],
            takes_tls12: true,
            client_certificates,
            handshakes_per_second_max: 1000,
        }
    }

    /// A client that trusts the certificate, resumes, and may have a certificate of its own.
    fn client(&self, authority: Option<&Authority>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in TlsFile::chain(&self.config()).certificates().unwrap() {
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let key = KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec!["phone".to_owned()]).unwrap();
                let certificate = params.signed_by(&key, authority).unwrap();
                let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
                builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }
}

/// One handshake. `Err`: the gateway refuses it.
fn shake_hands(
    certificates: &Certificates,
    client: &Arc<ClientConfig>,
) -> Result<HandshakeKind, rustls::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerSession::new(certificates.tls().load_full()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let (mut out, mut payload) = (Vec::new(), Vec::new());
        server.receive(&mut bytes, &mut out, &mut payload)?;
        let mut out = &out[..];
        while !out.is_empty() {
            client.read_tls(&mut out).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    Ok(client.handshake_kind().unwrap())
}

#[test]
fn a_client_of_an_authority_that_was_removed_does_not_resume() {
    let files = Files::new(true);
    let (old, new) = (authority(), authority());
    files.write("ca.pem", old.pem());
    let certificates = files.load();
    let (client, other) = (files.client(Some(&old)), files.client(Some(&new)));
    assert_eq!(shake_hands(&certificates, &client), Ok(HandshakeKind::Full));
    assert_eq!(shake_hands(&certificates, &client), Ok(HandshakeKind::Resumed));
    assert!(shake_hands(&certificates, &other).is_err());
    files.write("ca.pem", new.pem());
    assert!(certificates.reload().unwrap());
    assert!(shake_hands(&certificates, &client).is_err());
    assert_eq!(shake_hands(&certificates, &other), Ok(HandshakeKind::Full));
}

#[test]
fn clients_without_certificates_resume_after_a_change() {
    let files = Files::new(false);
    let certificates = files.load();
    let client = files.client(None);
    assert_eq!(shake_hands(&certificates, &client), Ok(HandshakeKind::Full));
    files.write_certificate(2000, 2999);
    assert!(certificates.reload().unwrap());
    assert_eq!(shake_hands(&certificates, &client), Ok(HandshakeKind::Resumed));
}

#[test]
fn a_certificate_that_is_out_of_date_does_not_replace_a_good_one() {
    let files = Files::new(false);
    let certificates = files.load();
    let client = files.client(None);
    for (from, to, reason) in
        [(2000, 2001, "expired on 2001-01-01"), (2999, 3000, "is not valid before 2999-01-01")]
    {
        files.write_certificate(from, to);
        let error = certificates.reload().unwrap_err().to_string();
        assert!(error.contains("chain.pem") && error.contains(reason), "{error}");
        shake_hands(&certificates, &client).unwrap();
    }
    files.write_certificate(2000, 2998);
    assert!(certificates.reload().unwrap());
}

#[test]
fn a_start_with_a_certificate_that_is_out_of_date_is_possible_and_any_other_replaces_it() {
    let files = Files::new(false);
    files.write_certificate(2000, 2001);
    let certificates = files.load();
    files.write_certificate(2000, 2002);
    assert!(certificates.reload().unwrap());
    files.write_certificate(2000, 3000);
    assert!(certificates.reload().unwrap());
    shake_hands(&certificates, &files.client(None)).unwrap();
}

#[test]
fn a_certificate_that_expires_while_it_is_used_has_one_warning_before_and_one_after() {
    const DAY: i64 = 86_400;
    let files = Files::new(false);
    files.write_certificate(2000, 2998);
    let certificates = files.load();
    let warnings_of = |year: i32, seconds: i64| {
        let at = date_time_ymd(year, 1, 1).unix_timestamp() + seconds;
        let at = Duration::from_secs(at.try_into().unwrap());
        certificates.end_warnings(UnixTime::since_unix_epoch(at))
    };
    let assert_one = |warnings: Vec<String>, text: &str| {
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        for part in ["tls.certificates.main.chain_file", "chain.pem", text] {
            assert!(warning.contains(part), "{warning}");
        }
    };
    assert!(warnings_of(2026, 0).is_empty());
    assert!(warnings_of(2998, -7 * DAY - 1).is_empty());
    assert_one(warnings_of(2998, -7 * DAY + 1), "expires on 2998-01-01 00:00:00 UTC");
    assert!(warnings_of(2998, -DAY).is_empty(), "it was logged before");
    assert!(warnings_of(2998, 0).is_empty(), "it is still valid");
    assert_one(warnings_of(2998, 1), "expired on 2998-01-01 00:00:00 UTC");
    assert!(warnings_of(2998, DAY).is_empty(), "it was logged before");
    // A new one has warnings of its own.
    files.write_certificate(2000, 2999);
    assert!(certificates.reload().unwrap());
    assert!(warnings_of(2998, DAY).is_empty());
    assert_one(warnings_of(2999, 1), "expired on 2999-01-01 00:00:00 UTC");
}

#[test]
fn the_end_of_a_certificate_is_that_of_the_one_in_use() {
    let files = Files::new(false);
    let end_of = |year: i32| date_time_ymd(year, 1, 1).unix_timestamp().try_into().unwrap();
    files.write_certificate(2000, 2998);
    let certificates = files.load();
    assert_eq!(certificates.expiry_times(), [("main".to_owned(), end_of(2998))]);
    files.write_certificate(2000, 2999);
    assert!(certificates.reload().unwrap());
    assert_eq!(certificates.expiry_times(), [("main".to_owned(), end_of(2999))]);
}

#[test]
fn what_the_start_logs_of_a_certificate_is_not_logged_again() {
    let files = Files::new(false);
    files.write_certificate(2000, 2001);
    let certificates = files.load();
    let warnings = certificates.warnings();
    assert!(warnings.iter().any(|warning| warning.contains("expired on 2001")), "{warnings:?}");
    assert!(certificates.end_warnings(UnixTime::now()).is_empty());
}

#[test]
fn a_renewal_does_not_put_back_the_configuration_from_before_a_reload() {
    let files = Files::new(false);
    let certificates = files.load();
    files.write_certificate(2000, 3001);
    let renewal = certificates.prepare(&files.tls()).unwrap().unwrap();
    assert!(renewal.has_new_contents());
    // The reload comes before the renewal has ended.
    let after = TlsConfig { takes_tls12: false, ..files.tls() };
    certificates.commit(certificates.prepare(&after).unwrap().unwrap());
    assert!(!certificates.replace(renewal, Some(0)));
    assert!(!certificates.in_use().config.takes_tls12);
    assert!(!certificates.reload().unwrap(), "the reload has read the new certificate");
    let back = certificates.prepare(&files.tls()).unwrap().unwrap();
    assert!(!back.has_new_contents());
}
