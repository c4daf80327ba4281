//! Parses a token's envelope: RFC 7515's compact serialization, and its header.
//!
//! It is stricter than most libraries, so that all readers understand a token alike: base64url must be canonical, no
//! member may come twice, and no header parameter may change the meaning of the rest.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{AuthError, RSA_BITS_MIN};

/// The values of `typ`, in small letters and without `application/`: a JSON Web Token, or an OAuth access token
/// (RFC 9068). Issuers sign other tokens with the same key, such as logout tokens (RFC 8725, 3.11).
const TYPES: [&str; 2] = ["jwt", "at+jwt"];

/// The members of a JSON object.
pub(super) type Members = Map<String, Value>;

/// A key that verifies signatures, of one algorithm: RFC 8725, 3.1.
pub(super) struct Key {
    key: DecodingKey,
    pub(super) algorithm: Algorithm,
    /// What distinguishes it from any other key: a hash of what it consists of.
    pub(super) id: [u8; 32],
}

impl Key {
    /// `parts`: what the key consists of.
    pub(super) fn new(key: DecodingKey, algorithm: Algorithm, parts: &[&[u8]]) -> Self {
        let mut id = Sha256::new();
        id.update(name_of(algorithm));
        for part in parts {
            id.update((part.len() as u64).to_be_bytes());
            id.update(part);
        }
        Self { key, algorithm, id: id.finalize().into() }
    }

    /// Whether a signature is checked within a few microseconds. Those of the other algorithms take from some tens to some
    /// hundreds of them.
    pub(super) const fn is_cheap(&self) -> bool {
        matches!(self.algorithm, Algorithm::HS256)
    }

    /// Whether a signature of this many bytes can be one of the key's.
    const fn may_sign_with(&self, bytes: usize) -> bool {
        match self.algorithm {
            Algorithm::HS256 => bytes == 32,
            // RFC 7518, 3.4, and RFC 8037, 3.1.
            Algorithm::ES256 | Algorithm::EdDSA => bytes == 64,
            // As long as the modulus: RFC 8017, 8.2.2.
            _ => 8 * bytes >= RSA_BITS_MIN,
        }
    }

    /// Whether the key has signed a token. This is what costs time.
    pub(super) fn has_signed(&self, token: &str) -> bool {
        let Some((message, signature)) = token.rsplit_once('.') else { return false };
        // An error is a signature that none can be.
        crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }
}

/// Where the key for a token is found.
pub(super) trait KeySource {
    /// The key for a token whose header has this `alg` and this `kid`. The key's algorithm is that `alg`.
    ///
    /// # Errors
    /// [`AuthError::Signature`] when the algorithm is another one, [`AuthError::UnknownKey`] when there is no such key.
    fn find(&self, algorithm: &str, kid: Option<&str>) -> Result<&Arc<Key>, AuthError>;
}

impl KeySource for Arc<Key> {
    /// The only key there is, whatever the `kid` is: its issuer is free to name it.
    fn find(&self, algorithm: &str, _: Option<&str>) -> Result<&Self, AuthError> {
        // Case-sensitive: RFC 7515, 4.1.1.
        if algorithm == name_of(self.algorithm) { Ok(self) } else { Err(AuthError::Signature) }
    }
}

/// An algorithm's name in a header; `""`: an algorithm that no key here has.
pub(super) const fn name_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 => "HS256",
        Algorithm::RS256 => "RS256",
        Algorithm::EdDSA => "EdDSA",
        Algorithm::ES256 => "ES256",
        _ => "",
    }
}

/// The claims of a token, of which nothing is verified.
pub(super) fn unverified_claims(token: &str) -> Option<Members> {
    let claims = token.split('.').nth(1).filter(|_| token.len() <= super::TOKEN_BYTES_MAX)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// A token whose form and header are good. Its signature is not checked yet.
pub(super) struct Envelope<'a> {
    pub(super) key: Arc<Key>,
    token: &'a str,
    /// The claims, decoded and not read.
    claims: Vec<u8>,
}

impl<'a> Envelope<'a> {
    /// Checks a token's form and header.
    pub(super) fn open(token: &'a str, keys: &impl KeySource) -> Result<Self, AuthError> {
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(AuthError::Malformed)?;
        let header = object(header)?;
        let key = Arc::clone(check_header(&header, keys)?);
        let claims = decoded(claims)?;
        if !key.may_sign_with(decoded(signature)?.len()) {
            return Err(AuthError::Signature);
        }
        Ok(Self { key, token, claims })
    }

    /// Checks the signature.
    pub(super) fn check_signature(&self) -> Result<(), AuthError> {
        if self.key.has_signed(self.token) { Ok(()) } else { Err(AuthError::Signature) }
    }

    /// Reads the claims.
    pub(super) fn claims(&self) -> Result<Members, AuthError> {
        members(&self.claims)
    }
}

fn check_header<'a>(header: &Members, keys: &'a impl KeySource) -> Result<&'a Arc<Key>, AuthError> {
    let text = |name: &str| match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(AuthError::Malformed),
    };
    // Parameters that the gateway does not use must have the RFC's types too: 4.1.2 to 4.1.8.
    for name in ["jku", "kid", "x5u", "x5t", "x5t#S256"] {
        text(name)?;
    }
    let key_is_object = header.get("jwk").is_none_or(Value::is_object);
    let chain_is_texts = header.get("x5c").is_none_or(|chain| {
        chain.as_array().is_some_and(|chain| chain.iter().all(Value::is_string))
    });
    if !key_is_object || !chain_is_texts {
        return Err(AuthError::Malformed);
    }
    let name = text("alg")?.filter(|name| !name.is_empty()).ok_or(AuthError::Malformed)?;
    let key = keys.find(name, text("kid")?)?;
    // Extensions that a reader must understand; the gateway understands none: 4.1.11.
    let critical = header.contains_key("crit");
    // An unencoded payload, which no token may have: RFC 7797, 7.
    let unencoded = header.get("b64").is_some_and(|b64| *b64 != Value::Bool(true));
    let kind = text("typ")?.map(media_type);
    let strange = kind.is_some_and(|kind| !TYPES.contains(&kind.as_str()));
    // A token within a token: RFC 7519, 5.2.
    let nested = text("cty")?.map(media_type).is_some_and(|content| content == "jwt");
    if critical || unencoded || strange || nested { Err(AuthError::Malformed) } else { Ok(key) }
}

/// A media type in the form in which it is compared: RFC 7515, 4.1.9.
fn media_type(text: &str) -> String {
    let small = text.to_ascii_lowercase();
    small.strip_prefix("application/").map_or(small.clone(), str::to_owned)
}

fn object(part: &str) -> Result<Members, AuthError> {
    members(&decoded(part)?)
}

/// base64url without padding, white space and leftover bits: RFC 7515, 2.
fn decoded(part: &str) -> Result<Vec<u8>, AuthError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthError::Malformed)
}

fn members(json: &[u8]) -> Result<Members, AuthError> {
    unique_members(json).map_err(|_| AuthError::Malformed)
}

/// The members of a JSON object, none of which comes twice.
pub(super) fn unique_members(json: &[u8]) -> serde_json::Result<Members> {
    serde_json::from_slice::<Unique>(json).map(|unique| unique.0)
}

/// A JSON object in which no member comes twice: RFC 7515, 4, and RFC 7519, 4.
struct Unique(Members);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut members = Members::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member comes twice"));
            }
        }
        Ok(Unique(members))
    }
}
