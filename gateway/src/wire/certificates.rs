//! Certificates: read from files into what rustls uses, and read again while the gateway runs.
//!
//! A client gets the certificate of the name that it asks for (SNI), or the first one. What is read again counts for
//! connections that begin after that: no connection is closed. Where a file can't be used, the certificates in use stay
//! as they are, and the error names the file and its key.
//!
//! **Session tickets and client certificates.** A ticket holds the certificate of its client, and a client that resumes with
//! it is not verified again. So where clients are asked for certificates, a change of the files invalidates all tickets:
//! otherwise the clients of an authority that was removed could resume for up to twelve hours.
//!
//! **A certificate that has expired, or is not valid yet,** is used with a warning at the start: clients that check no dates can
//! connect then. It never replaces one that is valid. The log also warns of a certificate in use that expires within 7 days, and
//! once more when it has expired.

mod files;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam::channel::{self, RecvTimeoutError, Sender};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::UnixTime;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use webpki::EndEntityCert;

use crate::config::{CertificateConfig, ClientCertificates, TlsConfig};
use files::{Flaw, TlsFile};

/// Counts what reading certificates again came to. The table in the README is held to its help text.
pub const RELOADS: &str = "tidegate_certificate_reloads_total";

/// The help text of [`RELOADS`].
pub const RELOADS_HELP: &str =
    "Times certificates were read again and had changed, or could not be used, by outcome.";

/// When a certificate in use expires, by its name in the configuration. A certificate without an end has no value.
pub const EXPIRY_TIME: &str = "tidegate_certificate_expiry_time_seconds";

/// The help text of [`EXPIRY_TIME`].
pub const EXPIRY_TIME_HELP: &str = "When a certificate in use expires, in seconds since 1970.";

/// The interval at which the files are read.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// The application protocol of a TLS connection (ALPN).
const ALPN: &[u8] = b"tidegate/1";

/// The application protocol of a WebSocket in TLS.
const ALPN_WEBSOCKET: &[u8] = b"http/1.1";

/// Why certificates can't be used. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read.
    #[error("{file}: {cause}{hint}")]
    Unreadable {
        /// The key that names it, and the file.
        file: String,
        /// The error of the system.
        cause: io::Error,
        /// What to do: empty, or text that begins with a semicolon.
        hint: String,
    },
    /// A file is not what it should be.
    #[error("{file}: {reason}")]
    Unusable {
        /// The key that names it, and the file.
        file: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Files don't fit together.
    #[error("tls.certificates.{name}: {reason}")]
    Mismatch {
        /// The certificate's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The system refuses random numbers.
    #[error("TLS can't begin: {0}")]
    Tls(rustls::Error),
}

/// The certificates of a gateway that runs.
pub struct Certificates {
    provider: Arc<CryptoProvider>,
    tls: Arc<ArcSwap<ServerConfig>>,
    websocket: Arc<ArcSwap<ServerConfig>>,
    in_use: Mutex<InUse>,
    /// Its end stops the thread that watches the files.
    watch: Mutex<Option<Sender<()>>>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Certificates")
            .field("config", &self.in_use().config)
            .finish_non_exhaustive()
    }
}

/// What new connections get.
struct InUse {
    /// How many times it was replaced.
    generation: u64,
    config: TlsConfig,
    /// The contents of the files, to see whether they have changed.
    contents: Vec<Vec<u8>>,
    /// One for each certificate of the configuration.
    keys: Vec<Arc<CertifiedKey>>,
    /// What the log last said of the end of each certificate.
    ends: Vec<Option<Flaw>>,
    /// Makes and reads session tickets. Its keys change every six hours. They stay when certificates are read again, unless
    /// clients show certificates.
    tickets: Arc<dyn ProducesTickets>,
}

/// What a client is answered with.
#[derive(Debug)]
struct ByName {
    first: Arc<CertifiedKey>,
    /// By names in lower case. A name that begins with `*.` is for one more label.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else { return Some(Arc::clone(&self.first)) };
        let name = name.to_ascii_lowercase();
        let exact = self.named.get(&name);
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.named.get(&format!("*.{parent}"))
        };
        Some(Arc::clone(exact.or_else(wildcard).unwrap_or(&self.first)))
    }
}

impl Certificates {
    /// Reads all files.
    ///
    /// # Errors
    /// [`CertificateError`], which names the file.
    pub fn load(config: TlsConfig) -> Result<Self, CertificateError> {
        let provider = Arc::new(ring::default_provider());
        let contents = read_all(&config)?;
        let keys = keys(&config, &provider)?;
        let tickets = ring::Ticketer::new().map_err(CertificateError::Tls)?;
        let make = |alpn| server_config(&config, &provider, &keys, &tickets, alpn);
        let (tls, websocket) = (make(ALPN)?, make(ALPN_WEBSOCKET)?);
        Ok(Self {
            tls: Arc::new(ArcSwap::from_pointee(tls)),
            websocket: Arc::new(ArcSwap::from_pointee(websocket)),
            // [`Self::warnings`] has these, and the start logs them.
            in_use: Mutex::new(InUse {
                generation: 0,
                config,
                contents,
                ends: ends(&keys, UnixTime::now()),
                keys,
                tickets,
            }),
            watch: Mutex::new(None),
            provider,
        })
    }

    fn in_use(&self) -> MutexGuard<'_, InUse> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is likely to be wrong with the certificates in use: clients refuse them, or others can read a key. Each is a
    /// sentence for the operator.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let in_use = self.in_use();
        let now = UnixTime::now();
        let of_one = |(files, key): (&CertificateConfig, &Arc<CertifiedKey>)| {
            let flaw = Flaw::of(key, now).map(|flaw| TlsFile::chain(files).warning_of(flaw));
            [flaw, TlsFile::private_key(files).warning_of_mode()]
        };
        in_use.config.certificates.iter().zip(&in_use.keys).flat_map(of_one).flatten().collect()
    }

    /// Warnings about certificates that have expired by now, or expire soon: those that neither this nor [`Self::warnings`] has
    /// returned before.
    fn end_warnings(&self, now: UnixTime) -> Vec<String> {
        let mut in_use = self.in_use();
        let ends = ends(&in_use.keys, now);
        let before = std::mem::replace(&mut in_use.ends, ends.clone());
        let of_one = |((files, end), before): ((&CertificateConfig, Option<Flaw>), _)| {
            end.filter(|_| end != before).map(|end| TlsFile::chain(files).warning_of(end))
        };
        in_use.config.certificates.iter().zip(ends).zip(before).filter_map(of_one).collect()
    }

    /// When each certificate in use expires, in seconds since 1970, by its name.
    fn expiry_times(&self) -> Vec<(String, u64)> {
        let in_use = self.in_use();
        let names = in_use.config.certificates.iter().map(|files| files.name.clone());
        let ends = in_use.keys.iter().map(|key| files::not_after(key));
        names.zip(ends).filter_map(|(name, end)| Some((name, end?.as_secs()))).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn export_expiry_times(&self) {
        for (name, seconds) in self.expiry_times() {
            gauge!(EXPIRY_TIME, "certificate" => name).set(seconds as f64);
        }
    }

    /// What connections with TLS use.
    #[must_use]
    pub fn tls(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.tls)
    }

    /// What connections with WebSockets in TLS use.
    #[must_use]
    pub fn websocket(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.websocket)
    }

    /// Reads all files again. Says whether something has changed.
    ///
    /// # Errors
    /// [`CertificateError`]: then nothing changes.
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let result = self.read_again();
        match &result {
            Ok(false) => {}
            Ok(true) => {
                counter!(RELOADS, "outcome" => "changed").increment(1);
                self.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            Err(_) => counter!(RELOADS, "outcome" => "failed").increment(1),
        }
        result
    }

    fn read_again(&self) -> Result<bool, CertificateError> {
        loop {
            let (config, generation) = {
                let in_use = self.in_use();
                (in_use.config.clone(), in_use.generation)
            };
            let Some(prepared) = self.prepare(&config)? else { return Ok(false) };
            // A reload may have brought another configuration meanwhile.
            if self.replace(prepared, Some(generation)) {
                return Ok(true);
            }
        }
    }

    /// Reads the files of a configuration, which may be another one than before. `None`: all is as before. Nothing changes
    /// until [`Self::commit`].
    ///
    /// # Errors
    /// [`CertificateError`], which is counted.
    pub(crate) fn prepare_counted(
        &self,
        config: &TlsConfig,
    ) -> Result<Option<Prepared>, CertificateError> {
        self.prepare(config).inspect_err(|_| counter!(RELOADS, "outcome" => "failed").increment(1))
    }

    /// New connections get what was prepared.
    pub(crate) fn commit(&self, prepared: Prepared) {
        self.replace(prepared, None);
        counter!(RELOADS, "outcome" => "changed").increment(1);
        self.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    }

    /// `of`: the generation that it was prepared of; where another one is in use, nothing is replaced. Says whether it was replaced.
    fn replace(&self, prepared: Prepared, of: Option<u64>) -> bool {
        let Prepared { tls, websocket, in_use: new, .. } = prepared;
        let mut in_use = self.in_use();
        if of.is_some_and(|of| of != in_use.generation) {
            return false;
        }
        self.tls.store(Arc::new(tls));
        self.websocket.store(Arc::new(websocket));
        *in_use = InUse { generation: in_use.generation + 1, ..new };
        true
    }

    fn prepare(&self, config: &TlsConfig) -> Result<Option<Prepared>, CertificateError> {
        let provider = &self.provider;
        let contents = read_all(config)?;
        let in_use = self.in_use();
        let has_new_contents = in_use.contents != contents;
        if !has_new_contents && in_use.config == *config {
            return Ok(None);
        }
        let keys = keys(config, provider)?;
        let now = UnixTime::now();
        for (files, key) in config.certificates.iter().zip(&keys) {
            let mut before = in_use.config.certificates.iter().zip(&in_use.keys);
            let Some((_, before)) = before.find(|(before, _)| before.name == files.name) else {
                continue;
            };
            let out_of_date = |key| Flaw::of(key, now).filter(|flaw| flaw.is_out_of_date());
            if let Some(flaw) = out_of_date(key)
                && out_of_date(before).is_none()
            {
                let reason = format!("{}; the one in use is still valid, and stays", flaw.text());
                return Err(TlsFile::chain(files).refuse(reason));
            }
        }
        let tickets = match config.client_certificates {
            ClientCertificates::None
                if in_use.config.client_certificates == ClientCertificates::None =>
            {
                Arc::clone(&in_use.tickets)
            }
            _ => ring::Ticketer::new().map_err(CertificateError::Tls)?,
        };
        let make = |alpn| server_config(config, provider, &keys, &tickets, alpn);
        let (tls, websocket) = (make(ALPN)?, make(ALPN_WEBSOCKET)?);
        let config = config.clone();
        let ends = ends(&keys, now);
        let in_use = InUse { generation: 0, config, contents, ends, keys, tickets };
        Ok(Some(Prepared { tls, websocket, in_use, has_new_contents }))
    }
}

/// Certificates that can be used, and are not yet.
pub(crate) struct Prepared {
    tls: ServerConfig,
    websocket: ServerConfig,
    /// Its generation is set when it is used.
    in_use: InUse,
    has_new_contents: bool,
}

impl Prepared {
    /// Whether the files hold something else than before. Otherwise only the configuration differs.
    pub(crate) const fn has_new_contents(&self) -> bool {
        self.has_new_contents
    }
}

/// Starts a thread that reads the files again when they have changed, and logs which certificates expire, as long as the
/// certificates are in use.
///
/// # Errors
/// When the system refuses a thread.
pub fn watch(certificates: &Arc<Certificates>) -> io::Result<()> {
    describe_counter!(RELOADS, RELOADS_HELP);
    describe_gauge!(EXPIRY_TIME, EXPIRY_TIME_HELP);
    certificates.export_expiry_times();
    // Both are shown before the first one happens: an alert sees an increase only of what it has seen before.
    for outcome in ["changed", "failed"] {
        counter!(RELOADS, "outcome" => outcome).increment(0);
    }
    let watched = Arc::downgrade(certificates);
    let (stop, stopped) = channel::bounded::<()>(0);
    *certificates.watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(stop);
    thread::Builder::new().name("certificates".into()).spawn(move || {
        let mut last_error = None;
        while stopped.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let Some(certificates) = Weak::upgrade(&watched) else { return };
            // While the files are wrong, the log says so once.
            let error = match certificates.reload() {
                Ok(true) => {
                    tracing::info!("new connections get the new certificates");
                    None
                }
                Ok(false) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = &error
                && last_error.as_ref() != Some(error)
            {
                tracing::error!(%error, "the new certificates can't be used; those from before stay");
            }
            last_error = error;
            certificates.export_expiry_times();
            let warnings = certificates.end_warnings(UnixTime::now());
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
    })?;
    Ok(())
}

fn read_all(config: &TlsConfig) -> Result<Vec<Vec<u8>>, CertificateError> {
    TlsFile::all(config).iter().map(TlsFile::read).collect()
}

fn ends(keys: &[Arc<CertifiedKey>], now: UnixTime) -> Vec<Option<Flaw>> {
    keys.iter().map(|key| Flaw::of_end(key, now)).collect()
}

fn server_config(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
    keys: &[Arc<CertifiedKey>],
    tickets: &Arc<dyn ProducesTickets>,
    alpn: &[u8],
) -> Result<ServerConfig, CertificateError> {
    let versions: &[_] = if config.takes_tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .map_err(CertificateError::Tls)?;
    let builder = match TlsFile::client_ca(config) {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let refuse = |reason: String| file.refuse(reason);
            let mut roots = RootCertStore::empty();
            for certificate in file.certificates()? {
                roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            let verifier = match config.client_certificates {
                ClientCertificates::Optional(_) => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier.build().map_err(|error| refuse(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_cert_resolver(Arc::new(by_name(config, keys)?));
    server.alpn_protocols = vec![alpn.to_vec()];
    // Tickets are with the clients: the gateway keeps nothing of a session that has ended.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.ticketer = Arc::clone(tickets);
    server.send_tls13_tickets = 1;
    Ok(server)
}

fn keys(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<Vec<Arc<CertifiedKey>>, CertificateError> {
    config.certificates.iter().map(|files| certified_key(files, provider).map(Arc::new)).collect()
}

fn by_name(config: &TlsConfig, keys: &[Arc<CertifiedKey>]) -> Result<ByName, CertificateError> {
    let mut named = HashMap::new();
    for (files, key) in config.certificates.iter().zip(keys) {
        for name in names(key, &TlsFile::chain(files))? {
            named.entry(name).or_insert_with(|| Arc::clone(key));
        }
    }
    let first = keys.first().cloned().ok_or_else(|| CertificateError::Mismatch {
        name: "main".to_owned(),
        reason: "there is no certificate".to_owned(),
    })?;
    Ok(ByName { first, named })
}

fn certified_key(
    files: &CertificateConfig,
    provider: &Arc<CryptoProvider>,
) -> Result<CertifiedKey, CertificateError> {
    let (chain_file, key_file) = (TlsFile::chain(files), TlsFile::private_key(files));
    let key = provider.key_provider.load_private_key(key_file.key()?).map_err(|error| {
        let reason = format!("this is no RSA, ECDSA or Ed25519 key that can be used: {error}");
        key_file.refuse(reason)
    })?;
    let mut key = CertifiedKey::new(chain_file.certificates()?, key);
    match key.keys_match() {
        // That it is unknown is no error: the key's kind can't say.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let (chain, key) = (files.chain_file.display(), files.key_file.display());
            let reason = format!(
                "{chain} and {key} don't fit together: the key is that of another certificate"
            );
            return Err(CertificateError::Mismatch { name: files.name.clone(), reason });
        }
        Err(error) => {
            return Err(chain_file.refuse(format!("this is no certificate of a server: {error}")));
        }
    }
    key.ocsp = TlsFile::ocsp(files).map(|file| file.read()).transpose()?;
    Ok(key)
}

/// The names that a certificate is for.
fn names(key: &CertifiedKey, file: &TlsFile) -> Result<Vec<String>, CertificateError> {
    let end_entity = key.end_entity_cert().map_err(|error| file.refuse(error.to_string()))?;
    let parsed = EndEntityCert::try_from(end_entity)
        .map_err(|error| file.refuse(format!("this is no certificate of a server: {error}")))?;
    Ok(parsed.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

#[cfg(test)]
pub(crate) mod tests;
