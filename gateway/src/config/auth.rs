//! Checks `[auth]`: how a token proves a user, and with which keys.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use axum::http::Uri;

use super::check::{DAY_MS, cores};
use super::checked::*;
use super::typed;
use super::values::{Checked, Checker, quoted};

/// The maximum of the clocks' leeway: more would be as long as a token's life.
const LEEWAY_MS_MAX: i64 = 600_000;

/// The least time between two reads of a key set: whoever serves it is asked no more often by a mistyped number.
const REFRESH_MS_MIN: i64 = 1_000;

/// The maximum of threads that check signatures.
const VERIFY_THREADS_MAX: i64 = 256;

/// The maximum of tokens that wait for the check of their signature.
const VERIFICATIONS_MAX: i64 = 1_000_000;

/// The maximum of tokens whose signatures are not checked again: 256 MiB.
const VERIFIED_TOKENS_MAX: i64 = 1 << 24;

/// The maximum of tokens that are being looked up.
const LOOKUPS_MAX: i64 = 1_000_000;

/// The least time between two checks of sessions' tokens.
const RECHECK_MS_MIN: i64 = 1_000;

/// The modes by their names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Jwt,
    Demo,
    Redis,
}

impl Checker<'_> {
    /// `has_redis`: the configuration names a Redis.
    pub(super) fn auth(
        &self,
        auth: &typed::Auth,
        clients: &[SocketAddr],
        has_redis: bool,
    ) -> Checked<AuthConfig> {
        let modes = [("jwt", Mode::Jwt), ("demo", Mode::Demo), ("redis", Mode::Redis)];
        let mode = self.choice("auth.mode", &auth.mode, &modes)?;
        if mode == Mode::Redis && !has_redis {
            let reason = "redis.url is not set: set it to the Redis that the app's login writes tokens to, as in \
                          redis.url = \"redis://127.0.0.1/\", or redis.url and redis.tokens_url";
            return Err(self.refuse("auth.mode", quoted(&auth.mode), reason));
        }
        if mode == Mode::Demo
            && let Some(listen) = clients.iter().find(|listen| !listen.ip().is_loopback())
        {
            let reason = format!(
                "anybody can make a demo token, so this is for loopback alone, and clients connect at {listen}: \
                 use auth.mode = \"jwt\", or listen = \"127.0.0.1:{}\"",
                listen.port()
            );
            return Err(self.refuse("auth.mode", quoted(&auth.mode), reason));
        }
        let keys = self.jwt_keys(auth, mode == Mode::Jwt)?;
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let (audience, issuer) = (some(&auth.audience), some(&auth.issuer));
        Ok(AuthConfig {
            mode: match mode {
                Mode::Jwt => AuthMode::Jwt { keys, audience, issuer },
                Mode::Demo => AuthMode::Demo,
                Mode::Redis => AuthMode::Redis,
            },
            jwks_refresh: self.millis(
                "auth.jwks_refresh_ms",
                auth.jwks_refresh_ms,
                REFRESH_MS_MIN..=DAY_MS,
            )?,
            leeway: self.millis("auth.leeway_ms", auth.leeway_ms, 0..=LEEWAY_MS_MAX)?,
            timeout: self.millis("auth.timeout_ms", auth.timeout_ms, 1..=DAY_MS)?,
            failures_max: self.number("auth.failures_max", auth.failures_max, 1..=255)?,
            verify_threads: self.verify_threads(auth.verify_threads)?,
            verifications_max: self.number(
                "auth.verifications_max",
                auth.verifications_max,
                1..=VERIFICATIONS_MAX,
            )?,
            verified_tokens_max: self.number(
                "auth.verified_tokens_max",
                auth.verified_tokens_max,
                0..=VERIFIED_TOKENS_MAX,
            )?,
            lookups_max: self.number("auth.lookups_max", auth.lookups_max, 1..=LOOKUPS_MAX)?,
            recheck: self.millis("auth.recheck_ms", auth.recheck_ms, RECHECK_MS_MIN..=DAY_MS)?,
        })
    }

    /// By default a quarter of the cores: the rest is for sessions.
    fn verify_threads(&self, threads: i64) -> Checked<usize> {
        let threads = self.number("auth.verify_threads", threads, 0..=VERIFY_THREADS_MAX)?;
        Ok(if threads == 0 { (cores() / 4).max(1) } else { threads })
    }

    /// The keys of tokens: one, or a set. `used`: tokens are JSON Web Tokens, so the keys have to fit together.
    fn jwt_keys(&self, auth: &typed::Auth, used: bool) -> Checked<JwtKeys> {
        let algorithms = [JwtAlgorithm::Hs256, JwtAlgorithm::Rs256, JwtAlgorithm::EdDsa];
        let algorithms = algorithms.map(|algorithm| (algorithm.name(), algorithm));
        let algorithm = self.choice("auth.algorithm", &auth.algorithm, &algorithms)?;
        let key_file = self.path("auth.key_file", &auth.key_file)?;
        let source = match (auth.jwks_file.as_str(), auth.jwks_url.as_str()) {
            ("", "") => None,
            (file, "") => Some(("auth.jwks_file", KeySetSource::File(file.into()))),
            ("", url) => Some(("auth.jwks_url", self.key_set_url(url)?)),
            (_, url) => {
                let reason =
                    "auth.jwks_file is set too: the keys come from one of them, so remove one";
                return Err(self.refuse("auth.jwks_url", quoted(&without_query(url)), reason));
            }
        };
        let Some((key, source)) = source else {
            let needs_file = algorithm != JwtAlgorithm::Hs256;
            if used && needs_file && !self.origins.is_set("auth.key_file") {
                let reason = "set auth.key_file too: the PEM file of the public key that verifies tokens; or \
                              auth.jwks_file or auth.jwks_url instead of both";
                return Err(self.refuse("auth.algorithm", quoted(&auth.algorithm), reason));
            }
            return Ok(JwtKeys::One { algorithm, key_file });
        };
        for (other, value) in
            [("auth.key_file", &auth.key_file), ("auth.algorithm", &auth.algorithm)]
        {
            if used && self.origins.is_set(other) {
                let reason = format!(
                    "{key} is set too: its keys say their algorithms and replace auth.key_file and \
                     auth.algorithm, so remove one or the other"
                );
                return Err(self.refuse(other, quoted(value), reason));
            }
        }
        Ok(JwtKeys::Set(source))
    }

    fn key_set_url(&self, url: &str) -> Checked<KeySetSource> {
        let shown = quoted(&without_query(url));
        let refuse = |reason: &str| Err(self.refuse("auth.jwks_url", shown.clone(), reason));
        let Ok(parsed) = url.parse::<Uri>() else {
            return refuse("this must be a URL, as in https://id.example/.well-known/jwks.json");
        };
        let (Some(scheme), Some(host)) = (parsed.scheme_str(), parsed.host()) else {
            return refuse(
                "this must be a whole URL, as in https://id.example/.well-known/jwks.json",
            );
        };
        if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            // `/stats` shows the configuration.
            let said = "***";
            let reason =
                "a URL with a user or a password is not supported: a set of public keys needs none";
            return Err(self.refuse("auth.jwks_url", said, reason));
        }
        match scheme {
            "https" => {}
            "http" if is_loopback(host) => {}
            "http" => {
                return refuse(
                    "whoever can change what is sent over http can make tokens for every user: use https; http is \
                     for loopback alone",
                );
            }
            _ => return refuse("this must begin with https://"),
        }
        Ok(KeySetSource::Url(url.to_owned()))
    }
}

/// A URL as operators are shown it: its query may hold a token.
pub(super) fn without_query(url: &str) -> Cow<'_, str> {
    url.split_once('?').map_or(url.into(), |(before, _)| format!("{before}?...").into())
}

/// Whether a URL's host is this machine.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
