//! The report as text, for a terminal.

use std::io::{self, Write};

use super::document::Document;

/// Writes the title and a line for each figure.
pub(super) fn write(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    let width = document.figures.iter().map(|entry| entry.label.len()).max().unwrap_or_default();
    writeln!(out, "{}", document.title)?;
    for entry in &document.figures {
        writeln!(out, "  {:width$}  {:>12}", entry.label, entry.formatted())?;
    }
    Ok(())
}
