//! The configuration: as typed -> checked.
//!
//! Operators configure in layers, and a later layer wins: the defaults, those of a program with backends of its
//! own, a TOML file, the environment (`TIDEGATE_LIMITS__FRAME_BYTES_MAX`), flags. `layers` merges them and
//! remembers where each value came from. `typed` is their shape, with all defaults. `check` turns it into the
//! [`Config`] that the gateway uses, in which every value is in range; `limits` and `rooms` are parts of it.
//! `effective` shows that configuration. `at_run_time` says which keys a reload can change. Each error names the key, the value, where it came from, and how to
//! fix it.
//!
//! A file is read only if `--config` or `TIDEGATE_CONFIG` names it: what a server does must not depend on the folder in
//! which it was started.

mod address_limits;
mod addresses;
mod at_run_time;
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

pub(crate) use at_run_time::Fingerprint;
pub use at_run_time::{Change, Written};
pub use checked::*;
pub use error::ConfigError;
pub use redis::{RedisConfig, RedisKind, RedisTarget};
pub use rooms::{Rejoin, RoomClass, RoomPolicy, RoomsConfig, SlowMember};
pub use secret_text::SecretText;

use tidegate_machine::descriptors;

use flags::Flags;
use layers::{Layers, Origin, PREFIX as VARIABLES};
pub(crate) use nearest::nearest;

/// Names the file to read, where `--config` does not.
const CONFIG_VARIABLE: &str = "TIDEGATE_CONFIG";

/// What [`load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where it came from, to load it again.
    pub sources: Sources,
    /// Whether the operator only wanted to know if it is valid (`--check-config`).
    pub check_only: bool,
}

/// Where the configuration comes from: a program's defaults, a file, the environment and flags.
#[derive(Clone)]
pub struct Sources {
    defaults: String,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    /// As it was written when it was loaded.
    written: Written,
}

impl Sources {
    /// The configuration as it was written when it was loaded.
    #[must_use]
    pub const fn written(&self) -> &Written {
        &self.written
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        file_named(&Flags::try_parse_from(&self.arguments).ok()?, &self.variables)
    }

    /// Loads all of it again: the file as it is now, and the environment and flags with which the process was started.
    ///
    /// # Errors
    /// As [`load_over`]; also when the file is a pipe or a device.
    pub fn load_again(&self) -> Result<(Config, Written), ConfigError> {
        if let Some(path) = self.file()
            && std::fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file())
        {
            // A pipe would give nothing, which is a valid configuration, or would never end.
            return Err(ConfigError::NotAgain { path });
        }
        let Self { defaults, arguments, variables, .. } = self.clone();
        let loaded = load_over(&defaults, arguments, variables)?;
        Ok((loaded.config, loaded.sources.written))
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Variables may hold secrets of other programs.
        f.debug_struct("Sources").field("file", &self.file()).finish_non_exhaustive()
    }
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
    let arguments: Vec<_> = arguments.into_iter().collect();
    let flags = Flags::try_parse_from(&arguments)?;
    let is_ours = |(name, _): &(OsString, OsString)| {
        name.to_str().is_some_and(|name| name.starts_with(VARIABLES))
    };
    let variables: Vec<_> = variables.into_iter().filter(is_ours).collect();
    // Where the kernel refuses, the check uses the limit that holds.
    drop(descriptors::raise_limit());
    let mut layers = Layers::new();
    layers.toml(defaults, Path::new("the program's defaults"))?;
    let file = file_named(&flags, &variables);
    let file = file.map(|path| read_file(&mut layers, &path)).transpose()?;
    layers.environment(variables.iter().cloned())?;
    for (flag, key, value) in flags.settings()? {
        layers.text(&key, &value, &Origin::Flag(flag))?;
    }
    let (typed, origins) = layers.finish();
    let written = Written::of(&typed, file);
    let sources = Sources { defaults: defaults.to_owned(), arguments, variables, written };
    Ok(Loaded { config: check::check(&typed, &origins)?, sources, check_only: flags.check_config })
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

    /// Takes from another configuration what only a restart changes. Where the same is written in both, that may differ all the
    /// same: the gateway derives it from the machine.
    #[must_use]
    pub(crate) fn with_start_of(self, running: &Self) -> Self {
        let Self { mut tls, mut http, mut auth, mut limits, .. } = self;
        tls.handshakes_per_second_max = running.tls.handshakes_per_second_max;
        http.connections_max = running.http.connections_max;
        auth.verify_threads = running.auth.verify_threads;
        limits.connections_max = running.limits.connections_max;
        limits.connections_max_basis = running.limits.connections_max_basis;
        Self {
            tls,
            http,
            auth,
            limits,
            shards: running.shards,
            driver: running.driver,
            driver_refusal: running.driver_refusal.clone(),
            backends: running.backends.clone(),
            ..self
        }
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

fn read_file(layers: &mut Layers, path: &Path) -> Result<Fingerprint, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    layers.toml(&text, path)?;
    Ok(Fingerprint::of(text.as_bytes()))
}

fn check_layers(layers: Layers) -> Result<Config, ConfigError> {
    let (typed, origins) = layers.finish();
    check::check(&typed, &origins)
}
