//! The building blocks of checks: ranges, choices, addresses, and the one kind of refusal.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::layers::Origins;

pub(super) type Checked<T> = Result<T, ConfigError>;

/// Checks values and knows where they came from.
pub(super) struct Checker<'a> {
    pub(super) origins: &'a Origins,
}

impl Checker<'_> {
    /// A number in a range that fits `T`.
    pub(super) fn number<T: TryFrom<i64>>(
        &self,
        key: &str,
        value: i64,
        range: RangeInclusive<i64>,
    ) -> Checked<T> {
        let checked = Some(value).filter(|value| range.contains(value));
        checked.and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
            let reason = format!("this must be from {} to {}", range.start(), range.end());
            self.refuse(key, value, reason)
        })
    }

    pub(super) fn millis(
        &self,
        key: &str,
        value: i64,
        range: RangeInclusive<i64>,
    ) -> Checked<Duration> {
        self.number(key, value, range).map(Duration::from_millis)
    }

    /// The first and the last of a range of types.
    pub(super) fn types(&self, key: &str, types: &[i64]) -> Checked<(i32, i32)> {
        let refuse = |reason: &str| self.refuse(key, format!("{types:?}"), reason);
        let &[first, last] = types else {
            let name = key.rsplit('.').next().unwrap_or(key);
            let reason = format!("it takes the first and the last type, as in {name} = [1, 99]");
            return Err(refuse(&reason));
        };
        let whole = |kind: i64| i32::try_from(kind).ok().filter(|&kind| kind > 0);
        let (Some(first_type), Some(last_type)) = (whole(first), whole(last)) else {
            let max = i32::MAX;
            let reason =
                format!("types must be from 1 to {max}: the protocol keeps those below for itself");
            return Err(refuse(&reason));
        };
        if last_type < first_type {
            return Err(refuse("the last type is below the first"));
        }
        Ok((first_type, last_type))
    }

    pub(super) fn choice<T: Clone>(
        &self,
        key: &str,
        value: &str,
        choices: &[(&str, T)],
    ) -> Checked<T> {
        let found = choices.iter().find(|(name, _)| *name == value);
        found.map(|(_, choice)| choice.clone()).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| quoted(name)).collect();
            self.refuse(key, quoted(value), format!("this must be {}", names.join(" or ")))
        })
    }

    pub(super) fn address(&self, key: &str, value: &str) -> Checked<SocketAddr> {
        value.parse().map_err(|_| {
            let reason = "this must be an IP address and a port, as in 127.0.0.1:7400 or [::]:7400";
            self.refuse(key, quoted(value), reason)
        })
    }

    pub(super) fn path(&self, key: &str, value: &str) -> Checked<PathBuf> {
        if value.is_empty() {
            return Err(self.refuse(key, quoted(value), "this must be the path of a file"));
        }
        Ok(value.into())
    }

    pub(super) fn refuse(
        &self,
        key: &str,
        value: impl fmt::Display,
        reason: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            key: key.to_owned(),
            value: value.to_string(),
            origin: self.origins.of(key),
            reason: reason.into(),
        }
    }
}

/// A text in TOML's quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}
