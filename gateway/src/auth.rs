//! Authentication: verifies clients' tokens.
//!
//! A [`Verifier`] reads and prepares its key once. The shards then call it on their own threads: it opens no
//! file, takes no lock, reads no clock and never waits. HS256 costs a few microseconds, an RS256 or EdDSA
//! signature some tens of them.

mod claims;
mod jws;

use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use tidegate_backend::UserId;

use claims::{Demands, Proof};

use crate::config::{AuthConfig, AuthMode, JwtAlgorithm};
use crate::secret::{KeyFile, KeyFileError, SecretError, check_secret, load_or_create_secret};

/// Shortest modulus of an RSA key, in bits: RFC 7518, 3.3.
const RSA_BITS_MIN: usize = 2048;

/// Longest token that is parsed, in bytes. Real tokens are far shorter, and a longer one costs nothing.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Why a token is refused: the peer's fault, answered with 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// It is not a token, or lacks a claim, or has a claim whose type is not that of RFC 7519.
    #[error("the token can't be read, or lacks a claim, or has one of the wrong type")]
    Malformed,
    /// It was not signed with the key, or with another algorithm than the accepted one.
    #[error("the token was not signed with the gateway's key and algorithm")]
    Signature,
    /// `exp` has passed, or `nbf` has not.
    #[error("the token has expired, or is not valid yet")]
    Expired,
    /// It was made for another audience, or by another issuer.
    #[error("the token was made for another audience, or by another issuer")]
    Audience,
    /// It belongs to another user.
    #[error("the token belongs to another user")]
    WrongUser,
}

impl AuthError {
    /// The number of variants.
    pub const COUNT: usize = Self::ALL.len();
    /// All variants, in order.
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::Signature, Self::Expired, Self::Audience, Self::WrongUser];

    /// The value of the metric's label `reason`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::Audience => "audience",
            Self::WrongUser => "wrong_user",
        }
    }
}

/// When a token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenEnd {
    /// It has no end.
    Never,
    /// At its `exp`.
    At {
        /// Milliseconds since the Unix epoch.
        unix_ms: u64,
    },
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
}

/// Verifies tokens.
pub struct Verifier {
    /// `None`: demo tokens.
    jwt: Option<Jwt>,
}

struct Jwt {
    key: DecodingKey,
    /// The one algorithm that is accepted, whatever a token's header says.
    algorithm: Algorithm,
    demands: Demands,
}

impl Verifier {
    /// Reads and prepares the key. Makes the secret of HS256 if it is missing.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn new(config: &AuthConfig) -> Result<Self, KeyError> {
        let AuthMode::Jwt { algorithm, key_file, audience, issuer } = &config.mode else {
            return Ok(Self { jwt: None });
        };
        let key = match algorithm {
            JwtAlgorithm::Hs256 => {
                let secret = load_or_create_secret(key_file).map_err(KeyError::Secret)?;
                DecodingKey::from_secret(secret.as_bytes())
            }
            JwtAlgorithm::Rs256 => {
                let key = public_key(key_file, "RS256", DecodingKey::from_rsa_pem)?;
                let bits = key.try_get_as_bytes().map_or(0, rsa_bits);
                if bits < RSA_BITS_MIN {
                    return Err(KeyError::Short { path: key_file.clone(), bits });
                }
                key
            }
            JwtAlgorithm::EdDsa => public_key(key_file, "EdDSA", DecodingKey::from_ed_pem)?,
        };
        let algorithm = match algorithm {
            JwtAlgorithm::Hs256 => Algorithm::HS256,
            JwtAlgorithm::Rs256 => Algorithm::RS256,
            JwtAlgorithm::EdDsa => Algorithm::EdDSA,
        };
        let demands = Demands {
            audience: audience.clone(),
            issuer: issuer.clone(),
            leeway_s: config.leeway.as_secs_f64(),
        };
        Ok(Self { jwt: Some(Jwt { key, algorithm, demands }) })
    }

    /// Checks that the key can be read. Makes none: the first start makes a missing secret of HS256.
    ///
    /// # Errors
    /// [`KeyError`] when there is no usable key.
    pub fn check(config: &AuthConfig) -> Result<(), KeyError> {
        match &config.mode {
            AuthMode::Jwt { algorithm: JwtAlgorithm::Hs256, key_file, .. } => {
                check_secret(key_file).map_err(KeyError::Secret)
            }
            _ => Self::new(config).map(drop),
        }
    }

    /// Checks that a token proves a user now, at `unix_ms` milliseconds since the Unix epoch. Returns when the
    /// token ends.
    ///
    /// # Errors
    /// [`AuthError`] when it does not.
    pub fn verify(
        &self,
        user_id: UserId,
        token: &str,
        unix_ms: u64,
    ) -> Result<TokenEnd, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Malformed);
        }
        match &self.jwt {
            Some(jwt) => jwt.verify(user_id, token, unix_ms),
            None => match token.strip_prefix("token-") {
                Some(id) if names(id, user_id) => Ok(TokenEnd::Never),
                Some(_) => Err(AuthError::WrongUser),
                None => Err(AuthError::Malformed),
            },
        }
    }
}

impl Jwt {
    fn verify(&self, user_id: UserId, token: &str, unix_ms: u64) -> Result<TokenEnd, AuthError> {
        let claims = jws::open(token, &self.key, self.algorithm)?;
        let now_s = Duration::from_millis(unix_ms).as_secs_f64();
        let Proof { subject, expires_s } = self.demands.check(&claims, now_s)?;
        if !names(subject, user_id) {
            return Err(AuthError::WrongUser);
        }
        // A date that is too large is the last one.
        let expires = Duration::try_from_secs_f64(expires_s).unwrap_or(Duration::MAX);
        Ok(TokenEnd::At { unix_ms: u64::try_from(expires.as_millis()).unwrap_or(u64::MAX) })
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // This never shows the key.
        f.debug_struct("Verifier").field("jwt", &self.jwt.is_some()).finish()
    }
}

/// Whether a text is a user id in plain decimal digits: not `+7`, not `007`.
fn names(text: &str, user_id: UserId) -> bool {
    let usual = text == "0" || text.starts_with(|c: char| ('1'..='9').contains(&c));
    usual && text.parse() == Ok(user_id)
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
mod tests {
    use std::fs;

    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const RSA_PUBLIC: &[u8] = include_bytes!("../testdata/rs256.public.pem");
    const RSA_PRIVATE: &[u8] = include_bytes!("../testdata/rs256.private.pem");
    const ED_PUBLIC: &[u8] = include_bytes!("../testdata/eddsa.public.pem");
    const ED_PRIVATE: &[u8] = include_bytes!("../testdata/eddsa.private.pem");

    impl Verifier {
        /// Whether a token proves a user now.
        pub(super) fn verify_now(&self, user_id: UserId, token: &str) -> Result<(), AuthError> {
            self.verify(user_id, token, 1_000 * get_current_timestamp()).map(drop)
        }
    }

    fn config(mode: AuthMode) -> AuthConfig {
        AuthConfig {
            mode,
            leeway: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            failures_max: 3,
        }
    }

    fn try_jwt(
        algorithm: JwtAlgorithm,
        key: &[u8],
        audience: Option<&str>,
    ) -> Result<Verifier, KeyError> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("key");
        fs::write(&key_file, key).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        let audience = audience.map(str::to_owned);
        Verifier::new(&config(AuthMode::Jwt { algorithm, key_file, audience, issuer: None }))
    }

    fn jwt(algorithm: JwtAlgorithm, key: &[u8]) -> Verifier {
        try_jwt(algorithm, key, None).unwrap()
    }

    fn in_an_hour() -> u64 {
        get_current_timestamp() + 3600
    }

    fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn hs256(claims: &Value) -> String {
        sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), claims)
    }

    #[test]
    fn each_algorithm_takes_its_own_tokens_and_no_others() {
        let claims = json!({ "sub": "7", "exp": in_an_hour() });
        let rsa = EncodingKey::from_rsa_pem(RSA_PRIVATE).unwrap();
        let ed = EncodingKey::from_ed_pem(ED_PRIVATE).unwrap();
        let tokens = [
            hs256(&claims),
            sign(Algorithm::RS256, &rsa, &claims),
            sign(Algorithm::EdDSA, &ed, &claims),
        ];
        let verifiers = [
            jwt(JwtAlgorithm::Hs256, SECRET.as_bytes()),
            jwt(JwtAlgorithm::Rs256, RSA_PUBLIC),
            jwt(JwtAlgorithm::EdDsa, ED_PUBLIC),
        ];
        for (index, verifier) in verifiers.iter().enumerate() {
            for (other, token) in tokens.iter().enumerate() {
                let expected = if index == other { Ok(()) } else { Err(AuthError::Signature) };
                assert_eq!(verifier.verify_now(7, token), expected, "{index} {other}");
            }
        }
    }

    #[test]
    fn an_rsa_key_that_can_be_broken_is_refused() {
        let short = include_bytes!("../testdata/rs256.short.public.pem");
        let error = try_jwt(JwtAlgorithm::Rs256, short, None).unwrap_err().to_string();
        assert!(error.contains("1024 bits") && error.contains("2048"), "{error}");
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let claims = json!({ "sub": "7", "exp": in_an_hour() });
        for public in [RSA_PUBLIC, RSA_PUBLIC.trim_ascii()] {
            let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(public), &claims);
            let verifier = jwt(JwtAlgorithm::Rs256, RSA_PUBLIC);
            assert_eq!(verifier.verify_now(7, &forged), Err(AuthError::Signature));
        }
    }

    #[test]
    fn unsigned_and_changed_tokens_fail() {
        let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
        let token = hs256(&json!({ "sub": "7", "exp": in_an_hour() }));
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("a token has three parts") };
        // {"alg":"none","typ":"JWT"}
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        let other = hs256(&json!({ "sub": "8", "exp": in_an_hour() }));
        let other_claims = other.split('.').nth(1).unwrap();
        for (forged, error) in [
            (format!("{none}.{claims}."), AuthError::Signature),
            (format!("{none}.{claims}.{signature}"), AuthError::Signature),
            (format!("{header}.{claims}."), AuthError::Signature),
            (format!("{header}.{other_claims}.{signature}"), AuthError::Signature),
            (format!("{header}.{claims}"), AuthError::Malformed),
            (String::new(), AuthError::Malformed),
            ("a".repeat(TOKEN_BYTES_MAX + 1), AuthError::Malformed),
        ] {
            assert_eq!(verifier.verify_now(7, &forged), Err(error), "{forged}");
            assert_eq!(verifier.verify_now(8, &forged), Err(error), "{forged}");
        }
        assert_eq!(verifier.verify_now(7, &token), Ok(()));
        let other_secret = jwt(JwtAlgorithm::Hs256, SECRET.replace('0', "1").as_bytes());
        assert_eq!(other_secret.verify_now(7, &token), Err(AuthError::Signature));
    }

    #[test]
    fn claims_are_demanded_and_honoured() {
        let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
        let (now, later) = (get_current_timestamp(), in_an_hour());
        for (claims, expected) in [
            (json!({ "sub": "7", "exp": later }), Ok(())),
            (json!({ "sub": "7", "exp": now - 1 }), Ok(())),
            (json!({ "sub": "7", "exp": now - 60 }), Err(AuthError::Expired)),
            (json!({ "sub": "7", "exp": later, "nbf": now + 60 }), Err(AuthError::Expired)),
            (json!({ "sub": "7" }), Err(AuthError::Malformed)),
            (json!({ "sub": "7", "exp": "soon" }), Err(AuthError::Malformed)),
            (json!({ "exp": later }), Err(AuthError::Malformed)),
            (json!({ "sub": 7, "exp": later }), Err(AuthError::Malformed)),
            (json!({ "sub": "8", "exp": later }), Err(AuthError::WrongUser)),
            (json!({ "sub": "07", "exp": later }), Err(AuthError::WrongUser)),
            (json!({ "sub": "+7", "exp": later }), Err(AuthError::WrongUser)),
            (json!({ "sub": "", "exp": later }), Err(AuthError::WrongUser)),
            (json!({ "sub": "7", "exp": later, "aud": "shop" }), Err(AuthError::Audience)),
        ] {
            assert_eq!(verifier.verify_now(7, &hs256(&claims)), expected, "{claims}");
        }
        let most = json!({ "sub": u64::MAX.to_string(), "exp": later });
        assert_eq!(verifier.verify_now(u64::MAX, &hs256(&most)), Ok(()));

        let shop = try_jwt(JwtAlgorithm::Hs256, SECRET.as_bytes(), Some("shop")).unwrap();
        for (claims, expected) in [
            (json!({ "sub": "7", "exp": later, "aud": ["shop", "x"] }), Ok(())),
            (json!({ "sub": "7", "exp": later, "aud": "bank" }), Err(AuthError::Audience)),
            (json!({ "sub": "7", "exp": later }), Err(AuthError::Malformed)),
        ] {
            assert_eq!(shop.verify_now(7, &hs256(&claims)), expected, "{claims}");
        }
    }

    #[test]
    fn a_token_says_when_it_ends_and_counts_until_then_and_the_leeway() {
        let verifier = jwt(JwtAlgorithm::Hs256, SECRET.as_bytes());
        let verify = |exp: Value, unix_ms| {
            verifier.verify(7, &hs256(&json!({ "sub": "7", "exp": exp })), unix_ms)
        };
        let end = |unix_ms| Ok(TokenEnd::At { unix_ms });
        assert_eq!(verify(json!(2_000_000_000), 0), end(2_000_000_000_000));
        assert_eq!(verify(json!(2_000_000_000), 2_000_000_004_999), end(2_000_000_000_000));
        assert_eq!(verify(json!(2_000_000_000), 2_000_000_005_000), Err(AuthError::Expired));
        assert_eq!(verify(json!(2_000_000_000.25), 0), end(2_000_000_000_250));
        assert_eq!(verify(json!(1e300), 0), end(u64::MAX));
        let demo = Verifier::new(&config(AuthMode::Demo)).unwrap();
        assert_eq!(demo.verify(7, "token-7", 0), Ok(TokenEnd::Never));
    }

    #[test]
    fn demo_tokens_name_their_user() {
        let verifier = Verifier::new(&config(AuthMode::Demo)).unwrap();
        assert_eq!(verifier.verify_now(7, "token-7"), Ok(()));
        assert_eq!(verifier.verify_now(7, "token-8"), Err(AuthError::WrongUser));
        assert_eq!(verifier.verify_now(7, "token-07"), Err(AuthError::WrongUser));
        assert_eq!(verifier.verify_now(7, "7"), Err(AuthError::Malformed));
    }

    #[test]
    fn a_file_without_the_key_says_how_to_make_it() {
        for (algorithm, key) in [
            (JwtAlgorithm::Rs256, SECRET.as_bytes()),
            (JwtAlgorithm::Rs256, RSA_PRIVATE),
            (JwtAlgorithm::Rs256, ED_PUBLIC),
            (JwtAlgorithm::EdDsa, RSA_PUBLIC),
        ] {
            let error = try_jwt(algorithm, key, None).unwrap_err().to_string();
            assert!(error.contains("openssl pkey"), "{error}");
        }
    }
}
