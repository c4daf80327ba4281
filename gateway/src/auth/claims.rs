//! Checks a token's claims: RFC 7519's registered ones.
//!
//! Each claim that is present must have the RFC's type, also one that the gateway does not use. A token with another
//! type was probably not made by the expected issuer.

use serde_json::Value;

use super::AuthError;
use super::jws::Members;

/// What a token proves, once its claims are checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proof<'a> {
    /// Its `sub`.
    pub(super) subject: &'a str,
    /// Its `exp`, in seconds since the Unix epoch.
    pub(super) expires_s: f64,
}

/// What the configuration requires.
#[derive(Debug, PartialEq)]
pub(super) struct Demands {
    /// The audience that `aud` must contain; `None`: there must be no `aud`.
    pub(super) audience: Option<String>,
    /// The issuer that `iss` must be; `None`: any.
    pub(super) issuer: Option<String>,
    /// How far the issuer's clock may differ from the gateway's, in seconds.
    pub(super) leeway_s: f64,
}

impl Demands {
    /// Whether the time of a token's `exp` is over. Both are in seconds since the Unix epoch.
    pub(super) fn has_expired(&self, expires_s: f64, now_s: f64) -> bool {
        now_s >= expires_s + self.leeway_s
    }

    /// Checks all claims except `sub`, and returns that and `exp`. `now_s` is the time in seconds since the Unix epoch.
    pub(super) fn check<'a>(
        &self,
        claims: &'a Members,
        now_s: f64,
    ) -> Result<Proof<'a>, AuthError> {
        let subject = text(claims, "sub")?.ok_or(AuthError::Malformed)?;
        let expires_s = date(claims, "exp")?.ok_or(AuthError::Malformed)?;
        let begins_s = date(claims, "nbf")?;
        date(claims, "iat")?;
        text(claims, "jti")?;
        let issuer = text(claims, "iss")?;
        let audience = audience(claims)?;
        // A token has expired "on or after" `exp`: RFC 7519, 4.1.4.
        let over = self.has_expired(expires_s, now_s);
        let to_come = begins_s.is_some_and(|begins_s| now_s < begins_s - self.leeway_s);
        if over || to_come {
            return Err(AuthError::Expired);
        }
        let for_us = match (&self.audience, &audience) {
            // A gateway without a configured audience is none of the token's audiences: RFC 7519, 4.1.3.
            (None, audience) => audience.is_none(),
            (Some(_), None) => false,
            (Some(ours), Some(audience)) => audience.contains(&ours.as_str()),
        };
        let from_theirs = match (&self.issuer, issuer) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(theirs), Some(issuer)) => theirs == issuer,
        };
        if for_us && from_theirs {
            Ok(Proof { subject, expires_s })
        } else {
            Err(AuthError::Audience)
        }
    }
}

/// A StringOrURI.
fn text<'a>(claims: &'a Members, name: &str) -> Result<Option<&'a str>, AuthError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(AuthError::Malformed),
    }
}

/// A NumericDate: seconds since the Unix epoch, which may have a fraction.
fn date(claims: &Members, name: &str) -> Result<Option<f64>, AuthError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => number.as_f64().ok_or(AuthError::Malformed).map(Some),
        Some(_) => Err(AuthError::Malformed),
    }
}

/// One StringOrURI, or a list of them.
fn audience(claims: &Members) -> Result<Option<Vec<&str>>, AuthError> {
    match claims.get("aud") {
        None => Ok(None),
        Some(Value::String(one)) => Ok(Some(vec![one])),
        Some(Value::Array(list)) => {
            let names: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            names.ok_or(AuthError::Malformed).map(Some)
        }
        Some(_) => Err(AuthError::Malformed),
    }
}
