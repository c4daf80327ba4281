//! A JSON Web Key Set: RFC 7517, and RFC 7518, 6, and RFC 8037 for what a key holds.
//!
//! A key that can't verify tokens here is skipped, as RFC 7517, 5, advises: an identity provider may add a key of a new
//! kind at any time, and the others have to work. A set without a usable key is refused. This module does no I/O.

mod live;
mod refresher;
mod schedule;
mod source;

pub use live::KeySetStatus;
pub(super) use live::{LiveKeySet, LiveKeySetError};
pub(super) use refresher::register_metrics;
pub(crate) use refresher::{KEYS, REFRESH_TIME, REFRESHES, SKIPPED_KEYS};
pub use source::ReadError;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde_json::Value;

use super::jws::{self, Key, KeySource, Members, unique_members};
use super::{AuthError, RSA_BITS_MIN};

/// Longest set that is read, in bytes: sixty-four keys with their certificates.
pub(super) const SET_BYTES_MAX: u64 = 256 * 1024;

/// Most keys of a set, whether they can be used or not. Issuers have two or three; each token without a known key looks
/// at all of them.
const KEYS_MAX: usize = 64;

/// Longest modulus of an RSA key, in bits: the library that verifies signatures takes no longer one.
const RSA_BITS_MAX: usize = 4096;

/// Longest part of a `kid` that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 64;

/// Why a set is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// It is too long.
    #[error("it is longer than {} KiB", SET_BYTES_MAX / 1024)]
    TooLong,
    /// It is not a JSON object, or a member comes twice.
    #[error("it is not a JSON Web Key Set, {{\"keys\": [...]}}: {0}")]
    NoJson(serde_json::Error),
    /// It has no list of keys.
    #[error("it is not a JSON Web Key Set, {{\"keys\": [...]}}: it has no list \"keys\"")]
    NoList,
    /// It has too many keys.
    #[error("it has {0} keys, and may have {KEYS_MAX}")]
    TooMany(usize),
    /// It has no key that can be used.
    #[error("it has no key that verifies tokens{}", reasons(.0))]
    NoUsableKey(Vec<Skipped>),
}

fn reasons(skipped: &[Skipped]) -> String {
    let reasons: Vec<_> = skipped.iter().map(|one| format!(": {one}")).collect();
    reasons.concat()
}

/// A key that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its `kid`, or its place in the list.
    name: String,
    why: Unfit,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key {} {}", self.name, self.why)
    }
}

/// Why a key is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("is no JSON object")]
    NoObject,
    #[error("has a member that is missing, or has the wrong type or length")]
    Malformed,
    #[error("is for something else than signatures (its \"use\" or \"key_ops\")")]
    OtherUse,
    #[error(
        "is of a kind that is not supported (its \"kty\" or \"crv\"): RSA, EC with P-256 and OKP with Ed25519 are"
    )]
    Kind,
    #[error("has another \"alg\" than RS256, ES256 or EdDSA, or one that does not fit its \"kty\"")]
    Algorithm,
    #[error(
        "is a secret (\"oct\"): whoever reads the set could make tokens, so a secret belongs in auth.key_file"
    )]
    Secret,
    #[error("is a private key (it has \"d\"): whoever reads the set could make tokens")]
    Private,
    #[error("has {0} bits, and an RSA key must have at least {RSA_BITS_MIN}")]
    Short(usize),
    #[error("has {0} bits, and an RSA key may have at most {RSA_BITS_MAX}")]
    Long(usize),
    #[error("is no valid public key")]
    Invalid,
    #[error("has the \"kid\" and the algorithm of an earlier key")]
    Duplicate,
}

/// The keys of a set that can be used: at least one.
pub(super) struct KeySet {
    keys: Vec<NamedKey>,
    skipped: Vec<Skipped>,
}

struct NamedKey {
    kid: Option<String>,
    key: Arc<Key>,
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// [`KeySetError`] when it is none, is too large, or has no usable key.
    pub(super) fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        if json.len() as u64 > SET_BYTES_MAX {
            return Err(KeySetError::TooLong);
        }
        let set = unique_members(json).map_err(KeySetError::NoJson)?;
        let list = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::NoList)?;
        if list.len() > KEYS_MAX {
            return Err(KeySetError::TooMany(list.len()));
        }
        let (mut keys, mut skipped) = (Vec::<NamedKey>::new(), Vec::new());
        for (index, jwk) in list.iter().enumerate() {
            match read_key(jwk).and_then(|key| unlike(&keys, key)) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(Skipped { name: name_of(jwk, index), why }),
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey(skipped));
        }
        Ok(Self { keys, skipped })
    }

    /// How many keys can be used.
    pub(super) const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether one of the keys is this one, whatever its name is.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.keys.iter().any(|named| named.key.id == key.id)
    }

    /// Whether both have the same keys, with the same names.
    pub(super) fn has_keys_of(&self, other: &Self) -> bool {
        let same = |(one, other): (&NamedKey, &NamedKey)| {
            one.kid == other.kid && one.key.id == other.key.id
        };
        self.keys.len() == other.keys.len() && self.keys.iter().zip(&other.keys).all(same)
    }

    /// The keys that are not used.
    pub(super) fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The `kid` and the algorithm of each key, for the log.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |NamedKey { kid, key }: &NamedKey| {
            let kid = kid.as_deref().map_or_else(|| "without kid".to_owned(), shown);
            format!("{kid} ({})", jws::name_of(key.algorithm))
        };
        self.keys.iter().map(name).collect()
    }
}

impl KeySource for KeySet {
    /// A token with a `kid` is verified with the key of that name, a token without one only where a single key has its
    /// algorithm: the gateway does not try keys in turn, or each forged token would cost as many signatures as the set
    /// has keys.
    fn find(&self, algorithm: &str, kid: Option<&str>) -> Result<&Arc<Key>, AuthError> {
        let named = || self.keys.iter().filter(|key| kid.is_none() || key.kid.as_deref() == kid);
        let mut fitting = named().filter(|named| jws::name_of(named.key.algorithm) == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some(found), None) => Ok(&found.key),
            // The algorithm is the key's, never the token's word.
            (None, _) if kid.is_some() && named().next().is_some() => Err(AuthError::Signature),
            _ => Err(AuthError::UnknownKey),
        }
    }
}

/// Two keys may share a `kid` if they have different algorithms (RFC 7517, 4.5), as a token then still names one.
fn unlike(keys: &[NamedKey], new: NamedKey) -> Result<NamedKey, Unfit> {
    let same = |old: &&NamedKey| old.kid == new.kid && old.key.algorithm == new.key.algorithm;
    let is_duplicate = new.kid.is_some() && keys.iter().any(|old| same(&old));
    if is_duplicate { Err(Unfit::Duplicate) } else { Ok(new) }
}

fn read_key(jwk: &Value) -> Result<NamedKey, Unfit> {
    let jwk = jwk.as_object().ok_or(Unfit::NoObject)?;
    let kid = text(jwk, "kid")?.map(str::to_owned);
    let kind = text(jwk, "kty")?.ok_or(Unfit::Malformed)?;
    if kind == "oct" {
        return Err(Unfit::Secret);
    }
    if jwk.contains_key("d") {
        return Err(Unfit::Private);
    }
    let verifies = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|one| one == "verify"),
        Some(_) => return Err(Unfit::Malformed),
    };
    if text(jwk, "use")?.is_some_and(|purpose| purpose != "sig") || !verifies {
        return Err(Unfit::OtherUse);
    }
    let algorithm = match (kind, text(jwk, "crv")?) {
        ("RSA", _) => Algorithm::RS256,
        ("EC", Some("P-256")) => Algorithm::ES256,
        ("OKP", Some("Ed25519")) => Algorithm::EdDSA,
        _ => return Err(Unfit::Kind),
    };
    if text(jwk, "alg")?.is_some_and(|name| name != jws::name_of(algorithm)) {
        return Err(Unfit::Algorithm);
    }
    let (key, parts) = match algorithm {
        Algorithm::RS256 => rsa(jwk),
        Algorithm::ES256 => p256(jwk),
        _ => ed25519(jwk),
    }?;
    // The library looks at a key only when it verifies with it: an error is the key's, a wrong signature is none.
    if crypto::verify("", b"", &key, algorithm).is_err() {
        return Err(Unfit::Invalid);
    }
    let parts = parts.each_ref().map(Vec::as_slice);
    Ok(NamedKey { kid, key: Arc::new(Key::new(key, algorithm, &parts)) })
}

/// A key, and the numbers of which it consists.
type KeyAndParts = (DecodingKey, [Vec<u8>; 2]);

/// RFC 7518, 6.3.1.
fn rsa(jwk: &Members) -> Result<KeyAndParts, Unfit> {
    let (modulus, exponent) = (bytes(jwk, "n")?, bytes(jwk, "e")?);
    let bits = bits(&modulus);
    if bits < RSA_BITS_MIN {
        return Err(Unfit::Short(bits));
    }
    if bits > RSA_BITS_MAX {
        return Err(Unfit::Long(bits));
    }
    // What the library takes: an odd exponent from 3 to 2^33 - 1, an odd modulus.
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    let is_odd = |bytes: &[u8]| bytes.last().is_some_and(|byte| byte % 2 == 1);
    let fits = exponent.len() <= 5 && (3..1 << 33).contains(&number(&exponent));
    if !fits || !is_odd(&exponent) || !is_odd(&modulus) {
        return Err(Unfit::Invalid);
    }
    Ok((DecodingKey::from_rsa_raw_components(&modulus, &exponent), [modulus, exponent]))
}

/// RFC 7518, 6.2.1: the coordinates have the curve's full length.
fn p256(jwk: &Members) -> Result<KeyAndParts, Unfit> {
    let (x, y) = (exactly_32(jwk, "x")?, exactly_32(jwk, "y")?);
    Ok((DecodingKey::from_ec_der(&[&[4], &*x, &*y].concat()), [x, y]))
}

/// RFC 8037, 2.
fn ed25519(jwk: &Members) -> Result<KeyAndParts, Unfit> {
    let x = exactly_32(jwk, "x")?;
    Ok((DecodingKey::from_ed_der(&x), [x, Vec::new()]))
}

fn exactly_32(jwk: &Members, name: &str) -> Result<Vec<u8>, Unfit> {
    bytes(jwk, name)
        .and_then(|bytes| if bytes.len() == 32 { Ok(bytes) } else { Err(Unfit::Malformed) })
}

/// A member in base64url without padding.
fn bytes(jwk: &Members, name: &str) -> Result<Vec<u8>, Unfit> {
    let text = text(jwk, name)?.ok_or(Unfit::Malformed)?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Unfit::Malformed)
}

fn text<'a>(jwk: &'a Members, name: &str) -> Result<Option<&'a str>, Unfit> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Unfit::Malformed),
    }
}

/// The bits of a number, without zeros before it.
fn bits(bytes: &[u8]) -> usize {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let first = bytes.get(zeros).map_or(8, |byte| byte.leading_zeros() as usize);
    8 * (bytes.len() - zeros) - if bytes.len() == zeros { 0 } else { first }
}

/// How a key is called in the log: its `kid`, or its place in the list.
fn name_of(jwk: &Value, index: usize) -> String {
    jwk.get("kid").and_then(Value::as_str).map_or_else(|| format!("keys[{index}]"), shown)
}

/// A `kid` in quotes, cut and escaped: it comes from elsewhere.
fn shown(kid: &str) -> String {
    let cut: String = kid.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < kid.len() { format!("{cut:?}...") } else { format!("{cut:?}") }
}

#[cfg(test)]
mod tests;
