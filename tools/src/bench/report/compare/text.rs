//! The comparison as text and as JSON.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::super::document::SCHEMA;
use super::super::figure::Direction;
use super::difference::{Change, Comparison, Row};

impl Row {
    /// A and B for people.
    pub(super) fn formatted(&self) -> [String; 2] {
        let show = |value: Option<f64>| value.map_or("-".into(), |value| self.unit.format(value));
        [show(self.a), show(self.b)]
    }

    /// B/A for people.
    pub(super) fn formatted_ratio(&self) -> String {
        self.ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"))
    }

    /// The change in a word; empty for a figure that has no better direction.
    pub(super) fn verdict(&self) -> &'static str {
        match self.change {
            Change::Neutral => "",
            Change::Unknown => "not comparable",
            change => change.name(),
        }
    }
}

/// Writes the two runs, the notes and a line for each figure.
pub(super) fn table(out: &mut dyn Write, comparison: &Comparison<'_>) -> io::Result<()> {
    let about = comparison.names.iter().zip(comparison.documents);
    for (name, (file, document)) in ["A", "B"].into_iter().zip(about) {
        let (title, date) = (&document.title, &document.run.date_utc);
        let label = document.run.label.as_ref().map_or_else(String::new, |it| format!("{it}, "));
        writeln!(out, "{name}  {file}: {label}{}, {title}, {date}", document.scenario)?;
    }
    for note in comparison.notes() {
        writeln!(out, "note: {note}")?;
    }
    let width = comparison.rows.iter().map(|row| row.label.len()).max().unwrap_or_default();
    writeln!(out, "  {:width$}  {:>12}  {:>12}  {:>8}", "", "A", "B", "B/A")?;
    for row in &comparison.rows {
        let ([a, b], ratio) = (row.formatted(), row.formatted_ratio());
        let style = match row.change {
            Change::Better => Style::new().fg_color(Some(AnsiColor::Green.into())),
            Change::Worse => Style::new().fg_color(Some(AnsiColor::Red.into())).bold(),
            _ => Style::new(),
        };
        let (label, verdict) = (&row.label, row.verdict());
        let line =
            format!("  {label:width$}  {a:>12}  {b:>12}  {style}{ratio:>8}  {verdict}{style:#}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The comparison as one JSON object.
pub(super) fn json(comparison: &Comparison<'_>) -> Value {
    let run = |number: usize| {
        let document = comparison.documents[number];
        json!({
            "file": comparison.names[number],
            "scenario": document.scenario,
            "title": document.title,
            "run": document.run,
            "warnings": document.warnings,
        })
    };
    let figure = |row: &Row| {
        json!({
            "key": row.key,
            "label": row.label.trim(),
            "unit": row.unit.name(),
            "a": row.a,
            "b": row.b,
            "ratio": row.ratio,
            "better_when": row.direction.map(Direction::name),
            "change": row.change.name(),
        })
    };
    let differing: Vec<_> = comparison
        .differing
        .iter()
        .map(|it| json!({ "what": it.what, "a": it.a, "b": it.b }))
        .collect();
    json!({
        "schema": SCHEMA,
        "a": run(0),
        "b": run(1),
        "differing": differing,
        "figures": comparison.rows.iter().map(figure).collect::<Vec<_>>(),
        "same_within": comparison.same_within,
        "fail_above": comparison.fail_above,
        "failed": comparison.failed,
    })
}
