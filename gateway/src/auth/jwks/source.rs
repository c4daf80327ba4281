//! Reads a key set, from a file or a URL. It waits, so only the start and the refresher's thread call it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::Proxy;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use super::{KeySet, KeySetError, SET_BYTES_MAX};
use crate::config::KeySetSource;
use crate::secret::{KeyFile, KeyFileError};

/// How long a request may take, with the name's lookup, the TLS handshake and the whole answer.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no set. The operator, or whoever serves the set, can fix it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be read.
    #[error("can't read it: {0}")]
    File(KeyFileError),
    /// There is no certificate to check the server's with.
    #[error(
        "the system has no certificate authorities to check the server with: install ca-certificates, or name a file \
         in the environment variable SSL_CERT_FILE{0}"
    )]
    NoRoots(String),
    /// The request failed.
    #[error("can't fetch it: {0}")]
    Fetch(#[source] Box<ureq::Error>),
    /// The server answered with something else than 200.
    #[error("the server answers with status {0}, not 200")]
    Status(u16),
    /// The server answered with a redirect.
    #[error(
        "the server redirects to {0:?}, which is not followed: name the last URL in auth.jwks_url"
    )]
    Redirect(String),
    /// It holds no usable set.
    #[error(transparent)]
    Set(#[from] KeySetError),
}

/// What distinguishes two versions of a file: device, inode, length, and the times of the last changes of the
/// file's contents and of its inode, in seconds and nanoseconds.
type Stamp = [i64; 7];

/// Where the set comes from.
#[derive(Debug)]
pub(super) struct Source {
    place: KeySetSource,
    /// The file as it was before the last read; `None`: there was none.
    stamp: Option<Stamp>,
}

impl Source {
    pub(super) fn new(place: &KeySetSource) -> Self {
        Self { place: place.clone(), stamp: None }
    }

    /// Reads the set.
    pub(super) fn read(&mut self) -> Result<KeySet, ReadError> {
        let json = match &self.place {
            KeySetSource::File(path) => {
                // Taken before the read, so that a change during the read is seen afterwards.
                self.stamp = stamp(path);
                let file = KeyFile::read_at_most(path, SET_BYTES_MAX, "a key set");
                file.map_err(ReadError::File)?.bytes
            }
            KeySetSource::Url(url) => fetch(url)?,
        };
        Ok(KeySet::parse(&json)?)
    }

    /// Whether it is a file that has changed since the last read. A file that was renamed to this name, and a link that
    /// leads to another file, have changed too.
    pub(super) fn has_changed(&self) -> bool {
        self.path().is_some_and(|path| stamp(path) != self.stamp)
    }

    /// The file; `None`: it is a URL.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        match &self.place {
            KeySetSource::File(path) => Some(path),
            KeySetSource::Url(_) => None,
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some([
        file.dev().cast_signed(),
        file.ino().cast_signed(),
        file.size().cast_signed(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ])
}

fn fetch(url: &str) -> Result<Vec<u8>, ReadError> {
    let failed = |error| ReadError::Fetch(Box::new(error));
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // A redirect could lead to another host, or to one without TLS.
        .max_redirects(0)
        .timeout_global(Some(FETCH_TIMEOUT))
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .accept("application/jwk-set+json, application/json");
    // The configuration allows http on loopback alone, where a proxy has no place.
    let agent = if url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:")) {
        config.https_only(true).proxy(Proxy::try_from_env()).tls_config(tls()?).build()
    } else {
        config.proxy(None).build()
    };
    let mut answer = agent.new_agent().get(url).call().map_err(failed)?;
    let status = answer.status();
    if status.is_redirection() {
        let location = answer.headers().get("location").map(|it| it.as_bytes().to_vec());
        let location = String::from_utf8_lossy(&location.unwrap_or_default()).into_owned();
        return Err(ReadError::Redirect(location));
    }
    if status.as_u16() != 200 {
        return Err(ReadError::Status(status.as_u16()));
    }
    let body = answer.body_mut().with_config().limit(SET_BYTES_MAX).read_to_vec();
    body.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => KeySetError::TooLong.into(),
        error => failed(error),
    })
}

/// TLS with the system's certificate authorities. They are loaded for each fetch: they may change as the keys do, and
/// there are fetches only every few minutes.
fn tls() -> Result<TlsConfig, ReadError> {
    let loaded = rustls_native_certs::load_native_certs();
    if loaded.certs.is_empty() {
        let errors: Vec<_> = loaded.errors.iter().map(|error| format!(": {error}")).collect();
        return Err(ReadError::NoRoots(errors.concat()));
    }
    let roots = loaded.certs.iter().map(|one| Certificate::from_der(one).to_owned());
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(crypto)
        .build())
}
