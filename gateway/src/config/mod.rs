//! The configuration: as typed -> checked.
//!
//! Operators configure in layers, and a later layer wins: the defaults, those of a program with backends of its
//! own, a TOML file, the environment (`TIDEGATE_LIMITS__FRAME_BYTES_MAX`), flags. `layers` merges them and
//! remembers where each value came from. `typed` is their shape, with all defaults. `check` turns it into the
//! [`Config`] that the gateway uses, in which every value is in range; `limits` and `rooms` are parts of it.
//! `effective` shows that configuration. Each error names the key, the value, where it came from, and how to
//! fix it.
//!
//! A file is read only if `--config` or `TIDEGATE_CONFIG` names it: what a server does must not depend on the folder in
//! which it was started.

mod address_limits;
mod addresses;
mod auth;
mod check;
mod checked;
mod effective;
mod error;
mod flags;
mod http;
mod layers;
mod limits;
mod listeners;
mod nearest;
mod redis;
mod rooms;
mod secret_text;
mod typed;
mod values;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;

pub use checked::*;
pub use error::ConfigError;
pub use redis::{RedisConfig, RedisKind, RedisTarget};
pub use secret_text::SecretText;

use tidegate_machine::descriptors;

use flags::Flags;
use layers::{Layers, Origin};
pub(crate) use nearest::nearest;

/// Names the file to read, where `--config` does not.
const CONFIG_VARIABLE: &str = "TIDEGATE_CONFIG";

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Whether the operator only wanted to know if it is valid (`--check-config`).
    pub check_only: bool,
}

/// Reads the configuration: `arguments` are the process's, its name first; `variables` the
/// environment's.
///
/// Raises the soft limit of open descriptors to the hard one, since `limits.connections_max` is
/// checked against it.
///
/// # Errors
/// [`ConfigError`]; `--help` and `--version` too come as one, which [`ConfigError::exit`] prints.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    load_over("", arguments, variables)
}

/// As [`load`], over defaults of the program's own, which are TOML: the backends that it brings, and
/// the types that go to them. Operators may overlay them with theirs.
///
/// # Errors
/// As [`load`]; also when the defaults are no TOML, or a key or a value in them is wrong.
pub fn load_over(
    defaults: &str,
    arguments: impl IntoIterator<Item = OsString>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let flags = Flags::try_parse_from(arguments)?;
    let variables: Vec<_> = variables.into_iter().collect();
    // Where the kernel refuses, the check uses the limit that holds.
    drop(descriptors::raise_limit());
    let mut layers = Layers::new();
    layers.toml(defaults, Path::new("the program's defaults"))?;
    if let Some(path) = file_named(&flags, &variables) {
        read_file(&mut layers, &path)?;
    }
    layers.environment(variables)?;
    for (flag, key, value) in flags.settings()? {
        layers.text(&key, &value, &Origin::Flag(flag))?;
    }
    Ok(Loaded { config: check_layers(layers)?, check_only: flags.check_config })
}

impl Config {
    /// The defaults, checked: for programs that embed the gateway, and for tests. It reads no file and no
    /// environment.
    ///
    /// # Panics
    /// When the process may open fewer descriptors than the gateway needs beside its connections.
    #[must_use]
    pub fn embedded_default() -> Self {
        check_layers(Layers::new()).expect("the defaults are in range")
    }

    /// The defaults, overlaid with a file's text.
    ///
    /// # Errors
    /// [`ConfigError`] when the text is no TOML, or a key or a value in it is wrong.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        layers.toml(text, Path::new("the TOML text"))?;
        check_layers(layers)
    }
}

fn file_named(flags: &Flags, variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let by_variable = || {
        let (_, path) = variables.iter().find(|(name, _)| name == CONFIG_VARIABLE)?;
        (!path.is_empty()).then(|| PathBuf::from(path))
    };
    flags.config.clone().or_else(by_variable)
}

fn read_file(layers: &mut Layers, path: &Path) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    layers.toml(&text, path)
}

fn check_layers(layers: Layers) -> Result<Config, ConfigError> {
    let (typed, origins) = layers.finish();
    check::check(&typed, &origins)
}
