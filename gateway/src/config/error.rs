//! Errors of a configuration. The operator can fix each of them.

use std::io;
use std::path::{Path, PathBuf};

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
    /// The file is a pipe or a device, whose contents were used up by the start.
    #[error(
        "the configuration {path:?} is no regular file, so it can't be read again: restart the gateway to change it",
        path = path.display()
    )]
    NotAgain {
        /// The file.
        path: PathBuf,
    },
    /// The file is no TOML.
    #[error("{path} is not valid TOML: line {line}, column {column}: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1. It is not shown itself, as it may hold a password.
        line: usize,
        /// The column, from 1: the character in the line.
        column: usize,
        /// What is wrong.
        reason: String,
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
    /// A text is no TOML. `error` quotes the line, so it is not kept.
    pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(text.len(), |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&char| char != '\n').count() + 1;
        Self::Syntax { path: path.to_owned(), line, column, reason: error.message().to_owned() }
    }

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
