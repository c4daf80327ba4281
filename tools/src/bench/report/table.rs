//! The report as text, for a terminal.

use std::io::{self, Write};

use super::document::Document;

/// Writes the title, the label, the gateway's settings, and a line for each figure.
pub(super) fn write(out: &mut dyn Write, document: &Document) -> io::Result<()> {
    let width = document.figures.iter().map(|entry| entry.label.len()).max().unwrap_or_default();
    writeln!(out, "{}", document.title)?;
    if let Some(label) = &document.run.label {
        writeln!(out, "label: {label}")?;
    }
    writeln!(out, "gateway: {}", document.run.gateway_line())?;
    for entry in &document.figures {
        writeln!(out, "  {:width$}  {:>12}", entry.label, entry.formatted())?;
    }
    Ok(())
}
