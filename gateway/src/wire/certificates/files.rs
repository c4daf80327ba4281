//! The files that `[tls]` names: reads them, and says what is wrong with one, under which key it is, and what to do.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{EndEntityCert, KeyUsage};

use super::CertificateError;
use crate::config::{CertificateConfig, ClientCertificates, TlsConfig};
use crate::secret::KeyFile;

/// Any user of the machine may read, write or use the file.
const OTHERS: u32 = 0o007;

/// How long before the end of a certificate the log warns.
const SOON: Duration = Duration::from_secs(7 * 86_400);

/// The last second that a certificate can name, in the year 9999. One that is valid until then has no end.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// How to make a certificate that is no authority's.
const MAKE_ONE: &str = "`tide cert --dev` makes one for development, and so does `openssl req -x509` with \
                        `-addext basicConstraints=critical,CA:FALSE`";

/// A file, and the key that names it.
#[derive(Clone, Debug)]
pub(super) struct TlsFile {
    key: String,
    path: PathBuf,
}

impl TlsFile {
    pub(super) fn chain(files: &CertificateConfig) -> Self {
        Self::of(files, "chain_file", &files.chain_file)
    }

    pub(super) fn private_key(files: &CertificateConfig) -> Self {
        Self::of(files, "key_file", &files.key_file)
    }

    pub(super) fn ocsp(files: &CertificateConfig) -> Option<Self> {
        files.ocsp_file.as_deref().map(|path| Self::of(files, "ocsp_file", path))
    }

    pub(super) fn client_ca(config: &TlsConfig) -> Option<Self> {
        match &config.client_certificates {
            ClientCertificates::None => None,
            ClientCertificates::Optional(path) | ClientCertificates::Required(path) => {
                Some(Self { key: "tls.client_ca_file".to_owned(), path: path.clone() })
            }
        }
    }

    /// All files of a configuration.
    pub(super) fn all(config: &TlsConfig) -> Vec<Self> {
        let of =
            |files| [Some(Self::chain(files)), Some(Self::private_key(files)), Self::ocsp(files)];
        let of_certificates = config.certificates.iter().flat_map(of).flatten();
        of_certificates.chain(Self::client_ca(config)).collect()
    }

    fn of(files: &CertificateConfig, key: &str, path: &Path) -> Self {
        Self { key: format!("tls.certificates.{}.{key}", files.name), path: path.to_owned() }
    }

    /// The key and the file, as an error or a warning begins.
    fn name(&self) -> String {
        format!("{} = {:?}", self.key, self.path.display().to_string())
    }

    /// The error that this file can't be used.
    pub(super) fn refuse(&self, reason: impl Into<String>) -> CertificateError {
        CertificateError::Unusable { file: self.name(), reason: reason.into() }
    }

    pub(super) fn read(&self) -> Result<Vec<u8>, CertificateError> {
        fs::read(&self.path).map_err(|cause| CertificateError::Unreadable {
            file: self.name(),
            hint: self.hint(&cause),
            cause,
        })
    }

    /// What to do where the file can't be read: empty, or text that begins with a semicolon.
    fn hint(&self, cause: &io::Error) -> String {
        let development = "for development, `tide cert --dev` makes a certificate and its key";
        match cause.kind() {
            ErrorKind::NotFound if self.key.starts_with("tls.certificates.") => {
                format!(
                    "; set {} to the file of your certificate authority; {development}",
                    self.key
                )
            }
            ErrorKind::NotFound => format!("; set {} to the right file", self.key),
            ErrorKind::PermissionDenied => {
                let user = rustix::process::geteuid().as_raw();
                format!("; this process runs as user {user}, who has to be able to read it")
            }
            _ => String::new(),
        }
    }

    /// The certificates in this file: at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        let bytes = self.read()?;
        let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            Ok(_) | Err(pem::Error::NoItemsFound) => {
                let instead = instead_of_a_certificate(&bytes);
                Err(self.refuse(format!("there is no certificate in this file{instead}")))
            }
            Err(error) => {
                Err(self.refuse(format!("this is no certificate in PEM: {}", text(&error))))
            }
        }
    }

    /// The private key in this file.
    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, CertificateError> {
        let bytes = self.read()?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            let instead = instead_of_a_key(&bytes);
            match error {
                pem::Error::NoItemsFound => {
                    self.refuse(format!("there is no private key in this file{instead}"))
                }
                error if instead.is_empty() => {
                    self.refuse(format!("this is no private key in PEM: {}", text(&error)))
                }
                _ => self.refuse(format!("there is no usable private key in this file{instead}")),
            }
        })
    }

    /// A warning where any user of the machine may use this private key.
    pub(super) fn warning_of_mode(&self) -> Option<String> {
        let file = KeyFile::read(&self.path).ok().filter(|file| file.mode & OTHERS != 0)?;
        let (name, hide) = (self.name(), file.way_to_hide(&self.path));
        Some(format!(
            "{name} has mode {:04o}: any user of this machine may use it; {hide}",
            file.mode
        ))
    }

    /// A warning where clients will refuse this certificate.
    pub(super) fn warning_of(&self, flaw: Flaw) -> String {
        format!("{}: {}", self.name(), flaw.text())
    }
}

/// An error of PEM in words. The crate's own text shows lines as lists of numbers.
fn text(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let label = String::from_utf8_lossy(end_marker);
            let label = label.trim().trim_matches('-').trim_start_matches("END ");
            format!(
                "it is cut off, or wrong at its end: the line \"-----END {label}-----\" is missing"
            )
        }
        pem::Error::IllegalSectionStart { .. } => {
            "a line begins with \"-----BEGIN\" and does not end with \"-----\"".to_owned()
        }
        pem::Error::Base64Decode(_) => {
            "the text between its lines BEGIN and END is not base64, or a part of it is missing"
                .to_owned()
        }
        error => error.to_string(),
    }
}

/// DER begins with a sequence.
const DER_START: u8 = 0x30;

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// What a file has that should hold a certificate: empty, or text that begins with a colon.
fn instead_of_a_certificate(bytes: &[u8]) -> &'static str {
    if holds(bytes, "PRIVATE KEY-----") {
        return ": it holds a private key; are chain_file and key_file swapped?";
    }
    if holds(bytes, "-----BEGIN CERTIFICATE REQUEST") {
        return ": it holds a certificate request, which the certificate authority answers with a certificate";
    }
    match bytes.first() {
        None => ": it is empty",
        Some(&DER_START) => {
            ": it seems to be DER, which `openssl x509 -inform DER -in FILE -out FILE.pem` turns into PEM"
        }
        _ => ": it has to be PEM, with the line \"-----BEGIN CERTIFICATE-----\"",
    }
}

/// What a file has that should hold a private key: empty, or text that begins with a colon.
fn instead_of_a_key(bytes: &[u8]) -> &'static str {
    if holds(bytes, "ENCRYPTED") {
        return ": the key is encrypted; `openssl pkey -in FILE -out FILE.plain` decrypts it";
    }
    if holds(bytes, "PRIVATE KEY-----") {
        return "";
    }
    if holds(bytes, "-----BEGIN CERTIFICATE") {
        return ": it holds a certificate; are chain_file and key_file swapped?";
    }
    if holds(bytes, "PUBLIC KEY-----") {
        return ": it holds a public key";
    }
    match bytes.first() {
        None => ": it is empty",
        Some(&DER_START) => {
            ": it seems to be DER, which `openssl pkey -inform DER -in FILE -out FILE.pem` turns into PEM"
        }
        _ => ": it has to be PEM, with the line \"-----BEGIN PRIVATE KEY-----\"",
    }
}

/// Why clients refuse a certificate that the gateway can use, or will refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It was valid until then.
    Expired { not_after: UnixTime },
    /// It becomes valid then.
    NotYetValid { not_before: UnixTime },
    /// It is the certificate of an authority (CA:TRUE). `openssl req -x509` makes such ones.
    IsAuthority,
    /// Its extended key usage has no server.
    NotForServers,
    /// It is valid until then, which is soon.
    ExpiresSoon { not_after: UnixTime },
}

impl Flaw {
    /// The flaw of a certificate: one that clients check first.
    pub(super) fn of(key: &CertifiedKey, now: UnixTime) -> Option<Self> {
        match verify(key, now) {
            Some(webpki::Error::CertExpired { not_after, .. }) => Some(Self::Expired { not_after }),
            Some(webpki::Error::CertNotValidYet { not_before, .. }) => {
                Some(Self::NotYetValid { not_before })
            }
            Some(webpki::Error::CaUsedAsEndEntity) => Some(Self::IsAuthority),
            Some(webpki::Error::RequiredEkuNotFoundContext(_)) => Some(Self::NotForServers),
            _ => Self::of_end(key, now),
        }
    }

    /// That a certificate has expired, or expires soon, whatever other flaw it has.
    pub(super) fn of_end(key: &CertifiedKey, now: UnixTime) -> Option<Self> {
        let not_after = |at| match verify(key, at) {
            Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
            _ => None,
        };
        let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + SOON);
        not_after(now)
            .map(|not_after| Self::Expired { not_after })
            .or_else(|| not_after(soon).map(|not_after| Self::ExpiresSoon { not_after }))
    }

    /// Whether clients refuse it now for its dates.
    pub(super) const fn is_out_of_date(self) -> bool {
        matches!(self, Self::Expired { .. } | Self::NotYetValid { .. })
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::Expired { not_after } => {
                format!(
                    "the certificate expired on {}: clients refuse it; renew it",
                    date(not_after)
                )
            }
            Self::NotYetValid { not_before } => format!(
                "the certificate is not valid before {}: clients refuse it until then; is this machine's clock right?",
                date(not_before)
            ),
            Self::IsAuthority => format!(
                "this is the certificate of an authority (CA:TRUE), which some clients refuse for a server, as `tide` \
                 does; {MAKE_ONE}"
            ),
            Self::NotForServers => {
                "the certificate's extended key usage is not that of a server: clients refuse it; \
                                    its authority has to give it the usage serverAuth"
                    .to_owned()
            }
            Self::ExpiresSoon { not_after } => format!(
                "the certificate expires on {}: clients refuse it from then on; renew it",
                date(not_after)
            ),
        }
    }
}

/// When a certificate expires.
pub(super) fn not_after(key: &CertifiedKey) -> Option<UnixTime> {
    match verify(key, UnixTime::since_unix_epoch(END_OF_TIME)) {
        Some(webpki::Error::CertExpired { not_after, .. }) => Some(not_after),
        _ => None,
    }
}

/// What a client that trusts its authority finds wrong with a certificate at a time.
fn verify(key: &CertifiedKey, at: UnixTime) -> Option<webpki::Error> {
    let parsed = EndEntityCert::try_from(key.end_entity_cert().ok()?).ok()?;
    // That there is no authority to trust is the error of a certificate that is good.
    parsed.verify_for_usage(&[], &[], &[], at, KeyUsage::server_auth(), None, None).err()
}

/// A time, as people read it.
fn date(time: UnixTime) -> String {
    let time = i64::try_from(time.as_secs()).ok();
    let time = time.and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.map_or_else(
        || "an unknown date".to_owned(),
        |text| text.replace('T', " ").replace('Z', " UTC"),
    )
}
