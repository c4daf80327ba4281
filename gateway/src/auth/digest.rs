//! What the gateway and Redis know a session token by: its SHA-256.
//!
//! So read access to Redis does not allow a login, keys in Redis have one shape whatever a client sends,
//! and a session costs 32 bytes to be looked up again.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Bytes of a digest.
const BYTES: usize = 32;

/// The SHA-256 of a session token. In Redis it has 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; BYTES]);

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Reads 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn from_hex(digits: &[u8]) -> Option<Self> {
        let mut bytes = [0; BYTES];
        if digits.len() != 2 * BYTES {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Some(Self(bytes))
    }
}

const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 2 * BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for TokenDigest {
    /// The first digits are enough to distinguish digests in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}…", self.0[0], self.0[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_sha_256_in_hexadecimal_digits() {
        // FIPS 180-2, B.1.
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = TokenDigest::of("abc");
        assert_eq!(digest.to_string(), hex);
        assert_eq!(TokenDigest::from_hex(hex.as_bytes()), Some(digest));
        assert_eq!(format!("{digest:?}"), "ba78…");
        let upper = hex.to_uppercase();
        for wrong in [&hex[1..], &format!("{hex}0"), upper.as_str(), &hex.replace('b', "g"), ""] {
            assert_eq!(TokenDigest::from_hex(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
