//! `tide token`: makes a token, as an app's login service would.
//!
//! Standard output gets the token and nothing else, so that `$(tide token --user 7)` works.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use crate::{argument, duration, stdout};

/// The file to which a gateway writes the secret that it makes on its first start, relative to its working directory.
const SECRET_FILE: &str = ".tidegate/jwt-hs256.key";

/// The arguments of `tide token`.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// The user that the token is for
    #[arg(long, value_name = "ID", value_parser = argument::user)]
    user: u64,
    #[command(flatten)]
    signing: Signing,
}

/// How a token is signed, and how long it is valid.
#[derive(Args, Debug)]
pub(crate) struct Signing {
    /// How long the token is valid: a number and ms, s, m, h or d
    #[arg(long, default_value = "24h", value_name = "SPAN", value_parser = duration::parse_above_0)]
    ttl: Duration,
    /// The algorithm of the signature
    #[arg(long, default_value = "HS256")]
    algorithm: Algorithm,
    /// HS256: the file with the secret, by default .tidegate/jwt-hs256.key. Others: the file with the private key in PEM
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The key's name in the gateway's key set
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
}

/// The algorithms that a gateway verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    /// The same secret signs and verifies
    #[value(name = "HS256", alias = "hs256")]
    Hs256,
    /// RSA
    #[value(name = "RS256", alias = "rs256")]
    Rs256,
    /// ECDSA with P-256; for gateways with a key set
    #[value(name = "ES256", alias = "es256")]
    Es256,
    /// Ed25519
    #[value(name = "EdDSA", aliases = ["eddsa", "EDDSA"])]
    EdDsa,
}

#[derive(Serialize)]
struct Claims {
    sub: String,
    /// In seconds since the Unix epoch.
    iat: u64,
    /// In seconds since the Unix epoch.
    exp: u64,
}

/// Prints a token.
///
/// # Errors
/// The key can't be read, or does not fit the algorithm.
pub(crate) fn run(args: &TokenArgs) -> Result<()> {
    let token = args.signing.mint(args.user)?;
    stdout::print(|out| writeln!(out, "{token}"))
}

impl Signing {
    /// Makes a token for a user, valid from now on.
    ///
    /// # Errors
    /// The key can't be read, or does not fit the algorithm.
    pub(crate) fn mint(&self, user_id: u64) -> Result<String> {
        let (algorithm, key) = self.key()?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970: set it, or no token will verify")?;
        let exp = now.checked_add(self.ttl).context("the token would outlive the clock")?;
        let claims = Claims { sub: user_id.to_string(), iat: now.as_secs(), exp: exp.as_secs() };
        let header = Header { kid: self.kid.clone(), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, &claims, &key).context("can't sign the token with this key")
    }

    fn key(&self) -> Result<(jsonwebtoken::Algorithm, EncodingKey)> {
        let Some(path) = self.key_file.as_deref().or_else(|| self.default_key_file()) else {
            bail!(
                "{:?} needs a private key: name its PEM file with --key-file",
                jsonwebtoken::Algorithm::from(self.algorithm)
            );
        };
        let text = self.read_key(path)?;
        let key = match self.algorithm {
            Algorithm::Hs256 => {
                let secret = text.trim();
                ensure!(
                    !secret.is_empty(),
                    "{} is empty: remove it and restart the gateway, which makes a new secret",
                    path.display()
                );
                EncodingKey::from_secret(secret.as_bytes())
            }
            Algorithm::Rs256 => EncodingKey::from_rsa_pem(text.as_bytes())
                .with_context(|| format!("{} holds no RSA private key in PEM", path.display()))?,
            Algorithm::Es256 => EncodingKey::from_ec_pem(text.as_bytes()).with_context(|| {
                format!("{} holds no EC private key in PEM (PKCS #8)", path.display())
            })?,
            Algorithm::EdDsa => EncodingKey::from_ed_pem(text.as_bytes()).with_context(|| {
                format!("{} holds no Ed25519 private key in PEM (PKCS #8)", path.display())
            })?,
        };
        Ok((self.algorithm.into(), key))
    }

    fn default_key_file(&self) -> Option<&Path> {
        (self.algorithm == Algorithm::Hs256).then_some(Path::new(SECRET_FILE))
    }

    fn read_key(&self, path: &Path) -> Result<String> {
        fs::read_to_string(path).with_context(|| {
            let hint = if self.key_file.is_none() {
                ": a gateway makes it on its first start, in its working directory; run this \
                 there, or name the file with --key-file"
            } else {
                ""
            };
            format!("can't read the key file {}{hint}", path.display())
        })
    }
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Hs256 => Self::HS256,
            Algorithm::Rs256 => Self::RS256,
            Algorithm::Es256 => Self::ES256,
            Algorithm::EdDsa => Self::EdDSA,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    const ED_PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEICs+TOi+PKA0WSTY2pDrMog/2anCJcXTQx/SZCeWC7UX\n\
        -----END PRIVATE KEY-----\n";
    const ED_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAW3l9++2dpeLcRfRt6KV6reuucuLc0/oiphlXAcBPGB4=\n\
        -----END PUBLIC KEY-----\n";

    fn signing(algorithm: Algorithm, key_file: PathBuf) -> Signing {
        Signing { ttl: Duration::from_secs(60), algorithm, key_file: Some(key_file), kid: None }
    }

    fn key_file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tide-{}-{name}", std::process::id()));
        fs::write(&path, text).unwrap();
        path
    }

    fn claims(token: &str, key: &DecodingKey, algorithm: Algorithm) -> HashMap<String, String> {
        let mut validation = Validation::new(algorithm.into());
        validation.set_required_spec_claims(&["sub", "exp"]);
        let claims: HashMap<String, serde_json::Value> =
            jsonwebtoken::decode(token, key, &validation).unwrap().claims;
        claims.into_iter().map(|(name, value)| (name, value.to_string())).collect()
    }

    #[test]
    fn the_secret_is_the_trimmed_text_of_its_file() {
        let path = key_file("hs", "  c2VjcmV0\n");
        let token = signing(Algorithm::Hs256, path.clone()).mint(7).unwrap();
        let claims = claims(&token, &DecodingKey::from_secret(b"c2VjcmV0"), Algorithm::Hs256);
        assert_eq!(claims["sub"], "\"7\"");
        let seconds = |name: &str| claims[name].parse::<u64>().unwrap();
        assert_eq!(seconds("exp") - seconds("iat"), 60);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_private_key_signs_what_its_public_key_verifies() {
        let path = key_file("ed", ED_PRIVATE);
        let token = signing(Algorithm::EdDsa, path.clone()).mint(9).unwrap();
        let key = DecodingKey::from_ed_pem(ED_PUBLIC.as_bytes()).unwrap();
        assert_eq!(claims(&token, &key, Algorithm::EdDsa)["sub"], "\"9\"");
        let wrong = signing(Algorithm::Rs256, path.clone()).mint(9).unwrap_err();
        assert!(wrong.to_string().contains("no RSA private key"), "{wrong}");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn without_a_key_the_error_says_what_makes_one() {
        let none =
            Signing { ttl: Duration::ZERO, algorithm: Algorithm::Rs256, key_file: None, kid: None };
        assert!(none.mint(1).unwrap_err().to_string().contains("--key-file"));
        let empty = key_file("empty", "\n");
        let error = signing(Algorithm::Hs256, empty.clone()).mint(1).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
        fs::remove_file(empty).unwrap();
        let default =
            Signing { ttl: Duration::ZERO, algorithm: Algorithm::Hs256, key_file: None, kid: None };
        let error = default.mint(1).unwrap_err().to_string();
        assert!(error.contains(".tidegate/jwt-hs256.key"), "{error}");
        assert!(error.contains("first start"), "{error}");
    }
}
