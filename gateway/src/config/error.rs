//! Errors of a configuration. The operator can fix each of them.

use std::io;
use std::path::PathBuf;

use crate::telemetry::output;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The flags can't be read, or ask for help or the version.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file can't be read.
    #[error(
        "can't read the configuration {path:?}, which --config or TIDEGATE_CONFIG names: {cause}",
        path = path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file is no TOML.
    #[error("{path} is not valid TOML: {cause}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the cause.
        cause: Box<toml::de::Error>,
    },
    /// There is no such key.
    #[error("unknown key \"{key}\" in {place}: {hint}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The file or the flag.
        place: String,
        /// The nearest known key, or all known keys of this table.
        hint: String,
    },
    /// An environment variable begins with `TIDEGATE_` and names no key.
    #[error("unknown environment variable {name}: {hint}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The nearest known variable, or all known variables of this table.
        hint: String,
    },
    /// A value is wrong.
    #[error("{key} = {value} ({origin}): {reason}")]
    Value {
        /// The key.
        key: String,
        /// The value, as TOML.
        value: String,
        /// Where the value came from.
        origin: String,
        /// What is wrong, and how to fix it.
        reason: String,
    },
    /// The limit of descriptors leaves none for connections.
    #[error(
        "the limit of open descriptors ({limit}) leaves none for connections: the gateway itself \
         needs {reserve}; raise it with `ulimit -n` or systemd's LimitNOFILE="
    )]
    Descriptors {
        /// The soft limit.
        limit: u64,
        /// Descriptors that the gateway needs beside its connections.
        reserve: u64,
    },
}

impl ConfigError {
    /// Prints this error and ends the process, with code 0 after `--help` and `--version`, otherwise with 2.
    pub fn exit(&self) -> ! {
        let Self::Flags(error) = self else {
            output::stderr().line(format!("tidegate: {self}"));
            output::flush();
            std::process::exit(2)
        };
        let output = if error.use_stderr() { output::stderr() } else { output::stdout() };
        let text = error.render();
        let text = if output.takes_colours() { text.ansi().to_string() } else { text.to_string() };
        output.line(text.trim_end());
        output::flush();
        std::process::exit(error.exit_code())
    }
}
