//! Where reports are written to.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// What a report is called, and where it goes.
#[derive(Debug, clap::Args)]
pub(in crate::bench) struct OutputArgs {
    /// What is special about this run, in your words: the report shows it, and so does `compare`.
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    /// Writes the JSON to a file, in addition to what is printed.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    pub(super) output: Option<PathBuf>,
    /// Writes a page with the figures and plots: one self-contained file.
    #[arg(long, value_name = "FILE", value_parser = parse_new_file)]
    pub(super) html: Option<PathBuf>,
}

/// Writes a file.
///
/// # Errors
/// It can't be written. The error names it.
pub(super) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks before a run that a file can be created, so that no run is lost for a mistyped name.
///
/// # Errors
/// It can't. The error says why.
pub(super) fn parse_new_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let folder = match path.parent() {
        None => return Err("it is no name of a file".into()),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    match std::fs::metadata(folder) {
        _ if path.is_dir() => Err("it is a folder; name a file in it".into()),
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err(format!("{} is no folder; name a file in one that exists", folder.display())),
        Err(error) => {
            Err(format!("{}: {error}; name a file in a folder that exists", folder.display()))
        }
    }
}
