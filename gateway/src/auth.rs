//! Authentication: verifies clients' tokens.
//!
//! A [`Verifier`] has one key, or a set of keys that a separate thread keeps up to date (`jwks`). The shards call it on
//! their own threads: it opens no file, takes no lock, reads no clock and never waits. It checks all that takes a few
//! microseconds, and says what else a token needs ([`Verification`]):
//!
//! | a token | is verified |
//! |---|---|
//! | signed with HS256, or a demo token | at once |
//! | signed with RS256, ES256 or EdDSA | by [`signatures::SignaturePool`], unless its signature was verified before |
//! | of Redis | by the thread that speaks with Redis ([`crate::cluster::tokens`]), which is given its [`TokenDigest`] |
//!
//! A signature that costs time is checked last: a token whose claims do not hold is refused before. So for RS256, ES256 and
//! EdDSA the first reason that applies is: the token's form and header, its key, its claims (their form, their time, audience and
//! issuer, the user), its signature. With HS256 the signature comes before the claims. Clients can't distinguish a
//! wrong signature from a wrong audience or issuer: [`AuthError::text_for_client`].

mod claims;
mod digest;
mod fair_queue;
mod jwks;
mod jws;
pub mod signatures;
mod verified;

pub use digest::TokenDigest;
pub use fair_queue::Flow;
pub(crate) use jwks::{KEYS, REFRESH_TIME, REFRESHES, SKIPPED_KEYS};
pub use jwks::{KeySetError, KeySetStatus, ReadError, Skipped};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use tidegate_backend::UserId;

use claims::{Demands, Proof};
use jwks::{LiveKeySet, LiveKeySetError};
use jws::{Envelope, Key};
use signatures::{SignatureCheck, SignaturePool};

use crate::config::{AuthConfig, AuthMode, JwtAlgorithm, JwtKeys, KeySetSource};
use crate::secret::{
    KeyFile, KeyFileError, SecretError, check_secret, load_or_create_secret, load_secret,
};

/// Shortest modulus of an RSA key, in bits: RFC 7518, 3.3.
const RSA_BITS_MIN: usize = 2048;

/// Longest token that is parsed, in bytes. Real tokens are far shorter, and a longer one costs nothing.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Why a token is refused: the peer's fault, answered with 100, except where [`Self::is_unknowable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It is not a token, or lacks a claim, or has a claim whose type is not that of RFC 7519.
    #[error("the token can't be read, or lacks a claim, or has one of the wrong type")]
    Malformed,
    /// It was not signed with the key, or with another algorithm than the accepted one.
    #[error("the token was not signed with the gateway's key and algorithm")]
    Signature,
    /// It names a key that is not in the set, or names none where not exactly one key has its algorithm.
    #[error(
        "the token names no key of the key set (its kid), or names none where one has to be named"
    )]
    UnknownKey,
    /// The gateway has no key set yet, so it can't know: its own fault, answered with 104.
    #[error("the gateway has no key set yet")]
    NoKeys,
    /// `exp` has passed, or `nbf` has not.
    #[error("the token has expired, or is not valid yet")]
    Expired,
    /// It was made for another audience, or by another issuer.
    #[error("the token was made for another audience, or by another issuer")]
    Audience,
    /// It belongs to another user.
    #[error("the token belongs to another user")]
    WrongUser,
    /// Redis holds no such token of this user: it was not issued, has ended, or was revoked.
    #[error("Redis holds no such token of this user")]
    UnknownToken,
    /// Redis did not say in time whether the token is good.
    #[error("Redis did not say in time whether the token is good")]
    RedisUnavailable,
    /// Too many tokens are being verified: looked up in Redis, or waiting for the check of their signature. Or one of this
    /// connection is.
    #[error("too many tokens are being verified")]
    TooManyVerifications,
}

impl AuthError {
    /// The number of variants.
    pub const COUNT: usize = Self::ALL.len();
    /// All variants, in order.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Signature,
        Self::UnknownKey,
        Self::NoKeys,
        Self::Expired,
        Self::Audience,
        Self::WrongUser,
        Self::UnknownToken,
        Self::RedisUnavailable,
        Self::TooManyVerifications,
    ];

    /// Whether the gateway can't know if the token is good: its own fault, answered with 104.
    #[must_use]
    pub const fn is_unknowable(self) -> bool {
        matches!(self, Self::NoKeys | Self::RedisUnavailable | Self::TooManyVerifications)
    }

    /// The reason as a client may know it. A token that nobody has signed must not reveal which audience and issuer the
    /// gateway expects.
    #[must_use]
    pub fn text_for_client(self) -> String {
        match self {
            Self::Signature | Self::Audience => {
                format!(
                    "{}, or it was made for another audience or by another issuer",
                    Self::Signature
                )
            }
            error => error.to_string(),
        }
    }

    /// Whether it is what a guess comes to, and counts as a failed login of the client's address. A token that has ended, or whose key
    /// was changed, does not count: thousands of phones behind one address may show theirs when they wake up.
    #[must_use]
    pub const fn is_guess(self) -> bool {
        !self.is_unknowable() && !matches!(self, Self::Expired | Self::UnknownKey)
    }

    /// The value of the metric's label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::UnknownKey => "unknown_key",
            Self::NoKeys => "no_keys",
            Self::Expired => "expired",
            Self::Audience => "audience",
            Self::WrongUser => "wrong_user",
            Self::UnknownToken => "unknown_token",
            Self::RedisUnavailable => "redis_unavailable",
            Self::TooManyVerifications => "too_many_verifications",
        }
    }
}

/// When a token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEnd {
    /// It has no end.
    Never,
    /// At its `exp`, or when Redis forgets it.
    At {
        /// Milliseconds since the Unix epoch.
        unix_ms: u64,
    },
}

impl TokenEnd {
    /// So many milliseconds after `unix_ms`; `None`: never.
    #[must_use]
    pub const fn after(ms: Option<u64>, unix_ms: u64) -> Self {
        match ms {
            Some(ms) => Self::At { unix_ms: unix_ms.saturating_add(ms) },
            None => Self::Never,
        }
    }
}

/// What a token needs to be verified.
#[derive(Debug)]
pub enum Verification {
    /// Nothing more: it is good until its end, or is refused.
    Ended(Result<TokenEnd, AuthError>),
    /// Redis has to know it.
    Redis(TokenDigest),
    /// Its signature has to be checked. All else holds.
    Signature(Arc<SignatureCheck>),
}

/// Why there is no verifier. The operator can fix it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The secret of HS256.
    #[error("auth.key_file: {0}")]
    Secret(SecretError),
    /// The file of the public key can't be read.
    #[error("auth.key_file: can't read {path}: {cause}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: KeyFileError,
    },
    /// The key is too short to be secure.
    #[error(
        "auth.key_file: the RSA key in {path} has {bits} bits, and must have at least {RSA_BITS_MIN}: \
         `openssl genrsa 3072` makes one",
        path = path.display()
    )]
    Short {
        /// The file.
        path: PathBuf,
        /// Bits of its modulus.
        bits: usize,
    },
    /// The file holds no key for the algorithm.
    #[error(
        "auth.key_file: {path} holds no public key for {algorithm} ({cause}): it must begin with \
         -----BEGIN PUBLIC KEY-----; `openssl pkey -in private.pem -pubout` makes it",
        path = path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The algorithm.
        algorithm: &'static str,
        /// Why.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file holds no usable key set.
    #[error("auth.jwks_file: {path}: {cause}", path = path.display())]
    Set {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: ReadError,
    },
    /// A key set could not be fetched from another URL than before.
    #[error("auth.jwks_url: {reason}")]
    NotFetched {
        /// Why.
        reason: String,
    },
    /// The system gives no thread to refresh the key set.
    #[error("can't start the thread that refreshes the key set: {0}")]
    Thread(std::io::Error),
}

/// Verifies tokens.
pub struct Verifier {
    method: Method,
}

/// How a token proves a user.
enum Method {
    Demo,
    Jwt(Jwt),
    /// Redis knows it.
    Lookup,
}

struct Jwt {
    keys: Keys,
    demands: Arc<Demands>,
    /// Checks signatures. It stays where a reload brings a key whose signatures are checked at once.
    pool: Option<Arc<SignaturePool>>,
}

/// What verifies signatures. A key has one algorithm, whatever a token's header says.
enum Keys {
    /// The one key that was configured.
    One(Arc<Key>),
    /// A set that changes while the gateway runs.
    Set(Arc<LiveKeySet>),
}

/// The verifier that a reload brings.
#[derive(Debug)]
pub(crate) struct Renewed {
    /// The one before, where nothing has changed.
    pub(crate) verifier: Arc<Verifier>,
    /// The key whose file holds another key than before.
    pub(crate) changed_file: Option<&'static str>,
}

impl Keys {
    /// Whether signatures are checked within a few microseconds, and so at once.
    fn are_cheap(&self) -> bool {
        matches!(self, Self::One(key) if key.is_cheap())
    }
}

impl Verifier {
    /// Reads and prepares the keys. Makes the secret of HS256 if it is missing. Starts to keep a key set up to date; one
    /// at a URL is not there yet then: see [`Self::wait_for_keys`].
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn new(config: &AuthConfig) -> Result<Self, KeyError> {
        jwks::register_metrics();
        let (keys, audience, issuer) = match &config.mode {
            AuthMode::Demo => return Ok(Self { method: Method::Demo }),
            AuthMode::Redis => return Ok(Self { method: Method::Lookup }),
            AuthMode::Jwt { keys, audience, issuer } => (keys, audience, issuer),
        };
        let keys = match keys {
            JwtKeys::One { algorithm, key_file } => {
                Keys::One(Arc::new(read_key(*algorithm, key_file)?))
            }
            JwtKeys::Set(source) => Keys::Set(start_set(source, config)?),
        };
        let demands = demands(config, audience.as_deref(), issuer.as_deref());
        Ok(Self { method: Method::Jwt(Jwt::new(keys, demands, config, None)) })
    }

    /// The verifier that replaces this one, which was made for `before`, where the configuration is `config` now. The files of
    /// keys are read again; none is made. A key set that was fetched from the same URL stays: see [`Self::keep_up_to_date`]. From
    /// another URL one is fetched now.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub(crate) fn renew(
        self: &Arc<Self>,
        before: &AuthConfig,
        config: &AuthConfig,
    ) -> Result<Renewed, KeyError> {
        let unchanged = || Renewed { verifier: Arc::clone(self), changed_file: None };
        let (
            Method::Jwt(jwt),
            AuthMode::Jwt { keys: keys_before, .. },
            AuthMode::Jwt { keys, audience, issuer },
        ) = (&self.method, &before.mode, &config.mode)
        else {
            // The mode does not change while the gateway runs.
            return Ok(unchanged());
        };
        let is_same_place = keys == keys_before;
        let (new, changed_file) = match (keys, &jwt.keys) {
            (JwtKeys::One { algorithm, key_file }, current) => {
                let new = read_existing_key(*algorithm, key_file)?;
                let is_same = matches!(current, Keys::One(key) if key.id == new.id);
                (Keys::One(Arc::new(new)), (is_same_place && !is_same).then_some("auth.key_file"))
            }
            (JwtKeys::Set(source), Keys::Set(live)) if is_same_place => {
                if live.is_current(source).map_err(|cause| unusable_set(source, cause))? {
                    (Keys::Set(Arc::clone(live)), None)
                } else {
                    (Keys::Set(start_set(source, config)?), Some("auth.jwks_file"))
                }
            }
            (JwtKeys::Set(source), _) => {
                let live = start_set(source, config)?;
                live.wait_for_first_read(&|| false);
                if let Some(reason) = live.status().missing() {
                    return Err(KeyError::NotFetched { reason });
                }
                (Keys::Set(live), None)
            }
        };
        let demands = demands(config, audience.as_deref(), issuer.as_deref());
        if is_same_place && changed_file.is_none() && demands == *jwt.demands {
            return Ok(unchanged());
        }
        let jwt = Jwt::new(new, demands, config, jwt.pool.clone());
        Ok(Renewed { verifier: Arc::new(Self { method: Method::Jwt(jwt) }), changed_file })
    }

    /// Has the key set, if there is one, be read again soon, and at this interval from then on.
    pub(crate) fn keep_up_to_date(&self, config: &AuthConfig) {
        if let Method::Jwt(Jwt { keys: Keys::Set(live), .. }) = &self.method {
            live.set_interval(config.jwks_refresh);
            live.request_refresh();
        }
    }

    /// Checks that the key, or the file of the key set, can be read. Makes no file: the first start makes a missing secret
    /// of HS256. Fetches nothing.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn check(config: &AuthConfig) -> Result<(), KeyError> {
        match &config.mode {
            AuthMode::Demo | AuthMode::Redis => Ok(()),
            AuthMode::Jwt { keys: JwtKeys::One { algorithm, key_file }, .. } => match algorithm {
                JwtAlgorithm::Hs256 => check_secret(key_file).map_err(KeyError::Secret),
                _ => read_key(*algorithm, key_file).map(drop),
            },
            AuthMode::Jwt { keys: JwtKeys::Set(source), .. } => {
                LiveKeySet::check(source).map_err(|cause| unusable_set(source, cause))
            }
        }
    }

    /// Waits until a key set at a URL was fetched, or could not be: five seconds at most. Without a set the gateway can
    /// start nevertheless; it answers 104 to each token until there is one.
    pub fn wait_for_keys(&self, interrupted: &dyn Fn() -> bool) {
        if let Method::Jwt(Jwt { keys: Keys::Set(set), .. }) = &self.method {
            set.wait_for_first_read(interrupted);
        }
    }

    /// Whether there is a key set; `None`: none is needed.
    #[must_use]
    pub fn key_set_status(&self) -> Option<KeySetStatus> {
        match &self.method {
            Method::Jwt(Jwt { keys: Keys::Set(set), .. }) => Some(set.status()),
            _ => None,
        }
    }

    /// What checks signatures; `None`: there are none, or they are checked at once.
    #[must_use]
    pub fn signatures(&self) -> Option<&Arc<SignaturePool>> {
        match &self.method {
            Method::Jwt(jwt) => jwt.signatures(),
            Method::Demo | Method::Lookup => None,
        }
    }

    /// What checks signatures, also where the keys now need none.
    pub(crate) fn pool(&self) -> Option<&Arc<SignaturePool>> {
        match &self.method {
            Method::Jwt(jwt) => jwt.pool.as_ref(),
            Method::Demo | Method::Lookup => None,
        }
    }

    /// Whether tokens are in Redis: they don't say whose they are.
    #[must_use]
    pub const fn is_redis(&self) -> bool {
        matches!(self.method, Method::Lookup)
    }

    /// The user whom a token claims to be of, as far as it says that. Nothing is verified here.
    #[must_use]
    pub fn claimed_user(&self, token: &str) -> Option<UserId> {
        let text = match &self.method {
            Method::Jwt(_) => {
                let claims = jws::unverified_claims(token)?;
                claims.get("sub")?.as_str()?.to_owned()
            }
            Method::Demo => token.strip_prefix("token-")?.to_owned(),
            Method::Lookup => return None,
        };
        text.parse().ok()
    }

    /// Checks of a token what takes a few microseconds: whether it may prove a user now, at `unix_ms` milliseconds since the
    /// Unix epoch.
    #[must_use]
    pub fn begin(&self, user_id: UserId, token: &str, unix_ms: u64) -> Verification {
        if token.len() > TOKEN_BYTES_MAX {
            return Verification::Ended(Err(AuthError::Malformed));
        }
        match &self.method {
            Method::Jwt(jwt) => jwt
                .begin(user_id, token, unix_ms)
                .unwrap_or_else(|error| Verification::Ended(Err(error))),
            Method::Demo => Verification::Ended(match token.strip_prefix("token-") {
                Some(id) if names(id, user_id) => Ok(TokenEnd::Never),
                Some(_) => Err(AuthError::WrongUser),
                None => Err(AuthError::Malformed),
            }),
            Method::Lookup if token.is_empty() => Verification::Ended(Err(AuthError::Malformed)),
            Method::Lookup => Verification::Redis(TokenDigest::of(token)),
        }
    }

    /// Ends the verification of a token whose signature was checked with this result. What may have changed since it began
    /// is checked again. Returns when the token ends.
    ///
    /// # Errors
    /// [`AuthError`] when the token does not prove its user.
    pub fn finish(
        &self,
        check: &SignatureCheck,
        signed: Result<(), AuthError>,
        unix_ms: u64,
    ) -> Result<TokenEnd, AuthError> {
        signed?;
        match &self.method {
            Method::Jwt(jwt) => jwt.finish(check, unix_ms),
            // No check began here.
            Method::Demo | Method::Lookup => Err(AuthError::Signature),
        }
    }
}

impl Jwt {
    /// `pool`: what checks signatures already.
    fn new(
        keys: Keys,
        demands: Demands,
        config: &AuthConfig,
        pool: Option<Arc<SignaturePool>>,
    ) -> Self {
        let new = || SignaturePool::new(config.verifications_max, config.verified_tokens_max);
        let pool = pool.or_else(|| (!keys.are_cheap()).then(|| Arc::new(new())));
        Self { keys, demands: Arc::new(demands), pool }
    }

    /// Checks signatures; `None`: they are checked at once.
    fn signatures(&self) -> Option<&Arc<SignaturePool>> {
        self.pool.as_ref().filter(|_| !self.keys.are_cheap())
    }

    fn begin(&self, user_id: UserId, token: &str, unix_ms: u64) -> Result<Verification, AuthError> {
        let envelope = match &self.keys {
            Keys::One(key) => Envelope::open(token, key)?,
            Keys::Set(live) => {
                let current = live.current();
                let set = current.as_deref().ok_or(AuthError::NoKeys)?;
                Envelope::open(token, set).inspect_err(|error| {
                    if *error == AuthError::UnknownKey {
                        live.request_refresh();
                    }
                })?
            }
        };
        if self.signatures().is_none() {
            envelope.check_signature()?;
        }
        let claims = envelope.claims()?;
        let Proof { subject, expires_s } = self.demands.check(&claims, seconds(unix_ms))?;
        if !names(subject, user_id) {
            return Err(AuthError::WrongUser);
        }
        let Some(signatures) = self.signatures() else {
            return Ok(Verification::Ended(Ok(token_end(expires_s))));
        };
        let id = signatures.id(token, &envelope.key);
        if signatures.is_known(id) {
            return Ok(Verification::Ended(Ok(token_end(expires_s))));
        }
        let (key, token, demands) = (envelope.key, token.into(), Arc::clone(&self.demands));
        let check = SignatureCheck { key, token, id, expires_s, demands };
        Ok(Verification::Signature(Arc::new(check)))
    }

    fn finish(&self, check: &SignatureCheck, unix_ms: u64) -> Result<TokenEnd, AuthError> {
        // A key that was removed meanwhile proves nothing.
        let is_known = match &self.keys {
            Keys::One(key) => key.id == check.key.id,
            Keys::Set(live) => {
                let current = live.current();
                current.as_deref().ok_or(AuthError::NoKeys)?.contains(&check.key)
            }
        };
        if !is_known {
            return Err(AuthError::UnknownKey);
        }
        if check.demands != self.demands {
            // A reload has brought others. That the token could be read was checked before.
            let claims = jws::unverified_claims(&check.token).ok_or(AuthError::Malformed)?;
            self.demands.check(&claims, seconds(unix_ms))?;
        }
        if self.demands.has_expired(check.expires_s, seconds(unix_ms)) {
            return Err(AuthError::Expired);
        }
        Ok(token_end(check.expires_s))
    }
}

fn seconds(unix_ms: u64) -> f64 {
    Duration::from_millis(unix_ms).as_secs_f64()
}

/// A date that is too large is the last one.
fn token_end(expires_s: f64) -> TokenEnd {
    let expires = Duration::try_from_secs_f64(expires_s).unwrap_or(Duration::MAX);
    TokenEnd::At { unix_ms: u64::try_from(expires.as_millis()).unwrap_or(u64::MAX) }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // This never shows the key.
        let method = match self.method {
            Method::Demo => "demo",
            Method::Jwt(_) => "jwt",
            Method::Lookup => "redis",
        };
        f.debug_struct("Verifier").field("method", &method).finish()
    }
}

/// Whether a text is a user id in plain decimal digits: not `+7`, not `007`.
fn names(text: &str, user_id: UserId) -> bool {
    let usual = text == "0" || text.starts_with(|c: char| ('1'..='9').contains(&c));
    usual && text.parse() == Ok(user_id)
}

fn demands(config: &AuthConfig, audience: Option<&str>, issuer: Option<&str>) -> Demands {
    let (audience, issuer) = (audience.map(str::to_owned), issuer.map(str::to_owned));
    Demands { audience, issuer, leeway_s: config.leeway.as_secs_f64() }
}

/// Starts to keep a key set up to date.
fn start_set(source: &KeySetSource, config: &AuthConfig) -> Result<Arc<LiveKeySet>, KeyError> {
    let set = LiveKeySet::start(source, config.jwks_refresh);
    set.map(Arc::new).map_err(|error| match error {
        LiveKeySetError::Read(cause) => unusable_set(source, cause),
        LiveKeySetError::Thread(cause) => KeyError::Thread(cause),
    })
}

/// Reads the one key that is configured, and makes a missing secret.
fn read_key(algorithm: JwtAlgorithm, key_file: &Path) -> Result<Key, KeyError> {
    read_key_with(algorithm, key_file, load_or_create_secret)
}

/// Reads the one key that is configured.
fn read_existing_key(algorithm: JwtAlgorithm, key_file: &Path) -> Result<Key, KeyError> {
    read_key_with(algorithm, key_file, load_secret)
}

fn read_key_with(
    algorithm: JwtAlgorithm,
    key_file: &Path,
    secret: fn(&Path) -> Result<String, SecretError>,
) -> Result<Key, KeyError> {
    let (algorithm, key) = match algorithm {
        JwtAlgorithm::Hs256 => {
            let secret = secret(key_file).map_err(KeyError::Secret)?;
            (Algorithm::HS256, DecodingKey::from_secret(secret.as_bytes()))
        }
        JwtAlgorithm::Rs256 => {
            let key = public_key(key_file, "RS256", DecodingKey::from_rsa_pem)?;
            let bits = key.try_get_as_bytes().map_or(0, rsa_bits);
            if bits < RSA_BITS_MIN {
                return Err(KeyError::Short { path: key_file.to_owned(), bits });
            }
            (Algorithm::RS256, key)
        }
        JwtAlgorithm::EdDsa => {
            (Algorithm::EdDSA, public_key(key_file, "EdDSA", DecodingKey::from_ed_pem)?)
        }
    };
    let bytes = key.try_get_as_bytes().unwrap_or_default().to_vec();
    Ok(Key::new(key, algorithm, &[&bytes]))
}

/// Only a file is read while someone waits for the outcome.
fn unusable_set(source: &KeySetSource, cause: ReadError) -> KeyError {
    let path = match source {
        KeySetSource::File(path) => path.clone(),
        KeySetSource::Url(url) => url.into(),
    };
    KeyError::Set { path, cause }
}

fn public_key(
    path: &Path,
    algorithm: &'static str,
    parse: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
) -> Result<DecodingKey, KeyError> {
    let pem = KeyFile::read(path)
        .map_err(|cause| KeyError::Unreadable { path: path.to_owned(), cause })?
        .bytes;
    let no_key = |cause| KeyError::NoKey { path: path.to_owned(), algorithm, cause };
    // The library accepts a private key too, but then verifies no token with it.
    if !pem.windows(10).any(|window| window == b"PUBLIC KEY") {
        return Err(no_key("it is not a public key".into()));
    }
    parse(&pem).map_err(|error| no_key(error.into()))
}

/// Bits of the modulus of an RSA key in DER (RFC 8017, A.1.1), in whole bytes; 0 if it is not an RSA key.
fn rsa_bits(der: &[u8]) -> usize {
    // A tag, a length in one byte or in as many bytes as that byte says, and the contents.
    let contents = |der: &'_ [u8], tag: u8| -> Option<(usize, usize)> {
        let [first, length, rest @ ..] = der else { return None };
        if *first != tag {
            return None;
        }
        let bytes = if *length < 0x80 { 0 } else { usize::from(*length & 0x7f) };
        let long = rest.get(..bytes)?.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        Some((2 + bytes, if bytes == 0 { usize::from(*length) } else { long }))
    };
    let modulus = || {
        let (start, _) = contents(der, 0x30)?;
        let (header, length) = contents(&der[start..], 0x02)?;
        der.get(start + header..start + header + length)
    };
    let modulus = modulus().unwrap_or_default();
    8 * modulus.iter().skip_while(|&&byte| byte == 0).count()
}

#[cfg(test)]
mod rfcs;

#[cfg(test)]
mod tests;
