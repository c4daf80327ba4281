//! The differences between two runs, and whether each is better or worse.

use super::super::document::Document;
use super::super::figure::{Direction, Entry, Unit};
use super::super::run;
use super::noise::{self, SAME_WITHIN};

/// A difference that is shown as none, which needs no explanation.
const INVISIBLE: f64 = 0.000_5;

/// How a figure changed from A to B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Better,
    Worse,
    Same,
    /// It has no better direction, as a count.
    Neutral,
    /// It can't be compared: one run has no value, or one of 0 or below.
    Unknown,
}

/// A figure of one run or of both.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: String,
    pub(super) label: String,
    /// The label, with that of the figure it is a detail of in front: for use outside of a table.
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) a: Option<f64>,
    pub(super) b: Option<f64>,
    /// B/A, where both can be compared.
    pub(super) ratio: Option<f64>,
    pub(super) direction: Option<Direction>,
    pub(super) change: Change,
}

/// An option or another fact of the run that differs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Differing {
    /// The option with its dashes, or the name of the fact.
    pub(super) what: String,
    pub(super) a: String,
    pub(super) b: String,
}

/// The comparison of two runs.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    /// The files.
    pub(super) names: [String; 2],
    pub(super) documents: [&'a Document; 2],
    /// In the order of A's table, then the figures that only B has.
    pub(super) rows: Vec<Row>,
    pub(super) differing: Vec<Differing>,
    /// The share within which any figure is called the same; see [`noise`] for wider bands.
    pub(super) same_within: f64,
    /// `--fail-above`.
    pub(super) fail_above: Option<f64>,
    /// Keys of the figures that got worse by more than that factor.
    pub(super) failed: Vec<String>,
}

impl Change {
    /// In a word.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::Neutral => "neutral",
            Self::Unknown => "unknown",
        }
    }
}

impl Row {
    fn of(key: &str, documents: [&Document; 2]) -> Option<Self> {
        let [a, b] = documents.map(|document| document.figure(key));
        let entry = a.or(b)?;
        let (label, unit) = (entry.label.clone(), entry.unit);
        let name = documents.into_iter().find_map(|document| full_label(document, key))?;
        let (a, b) = (a.and_then(Entry::value), b.and_then(Entry::value));
        let direction = Direction::of(key, unit);
        let ratio = a.zip(b).and_then(|(a, b)| ratio(a, b, direction));
        let (key, change) = (key.into(), Change::Unknown);
        Some(Self { key, label, name, unit, a, b, ratio, direction, change })
    }

    /// The change, where a figure within this share is the same. The band is as wide in both directions: what has
    /// doubled has to halve to be the same again.
    fn change_within(&self, same_within: f64) -> Change {
        match (self.worse_by(), self.direction) {
            (_, None) if self.a.is_some() && self.b.is_some() => Change::Neutral,
            (Some(factor), _) if factor > 1.0 + same_within => Change::Worse,
            (Some(factor), _) if factor * (1.0 + same_within) < 1.0 => Change::Better,
            (Some(_), _) => Change::Same,
            (None, _) => Change::Unknown,
        }
    }

    /// Whether it is called the same though its ratio shows a difference.
    fn is_within_noise(&self) -> bool {
        let differs = self.ratio.is_some_and(|ratio| (ratio - 1.0).abs() >= INVISIBLE);
        self.change == Change::Same && differs
    }

    /// Whether this is one of its names, for people or in the JSON.
    pub(super) fn matches_name(&self, name: &str) -> bool {
        [&self.key[..], &self.name, self.label.trim()].contains(&name)
    }

    /// Whether the change can be judged as better or worse.
    pub(super) fn is_judged(&self) -> bool {
        self.worse_by().is_some()
    }

    /// The factor by which it got worse; below 1 it got better. `None` where that can't be judged.
    fn worse_by(&self) -> Option<f64> {
        let ratio = self.ratio?;
        Some(match self.direction? {
            Direction::LowerIsBetter => ratio,
            // For a rate of 0 this is infinite: worse than any factor allows.
            Direction::HigherIsBetter => 1.0 / ratio,
        })
    }
}

impl<'a> Comparison<'a> {
    /// Compares all figures and options.
    pub(super) fn of(names: [String; 2], documents: [&'a Document; 2]) -> Self {
        let [a, b] = documents;
        let only_b = b.figures.iter().filter(|entry| a.figure(&entry.key).is_none());
        let keys = a.figures.iter().chain(only_b).map(|entry| &entry.key[..]);
        let rows = keys.filter_map(|key| Row::of(key, documents)).collect();
        let differing = differing(a, b);
        let (same_within, fail_above, failed) = (SAME_WITHIN, None, Vec::new());
        let comparison =
            Self { names, documents, rows, differing, same_within, fail_above, failed };
        comparison.same_within(same_within)
    }

    /// Calls figures within this share the same.
    pub(super) fn same_within(mut self, same_within: f64) -> Self {
        self.same_within = same_within;
        for row in &mut self.rows {
            let band = noise::band(&row.key, self.documents, same_within);
            row.change = row.change_within(band);
        }
        self
    }

    /// Finds the figures that got worse by more than this factor. They are worse, however wide the band of noise is.
    pub(super) fn judge(&mut self, factor: f64) {
        self.fail_above = Some(factor);
        for row in &mut self.rows {
            if row.worse_by().is_some_and(|by| by > factor) {
                row.change = Change::Worse;
                self.failed.push(row.key.clone());
            }
        }
    }

    /// The names of the figures that got worse by more than allowed.
    pub(super) fn failed_names(&self) -> Vec<String> {
        let failed = self.rows.iter().filter(|row| self.failed.contains(&row.key));
        failed.map(|row| row.name.clone()).collect()
    }

    /// What the reader of the figures has to know.
    pub(super) fn notes(&self) -> Vec<String> {
        let differs = |it: &Differing| {
            let [a, b] = [&it.a, &it.b].map(|value| run::display_value(&it.what, value));
            format!("{} differs: {a} in A, {b} in B", it.what)
        };
        let mut notes: Vec<_> = self.differing.iter().map(differs).collect();
        for (name, document) in ["A", "B"].into_iter().zip(self.documents) {
            if document.run.gateway.is_none() {
                let why = document.run.why_unknown();
                notes.push(format!("{name}: the gateway's settings are unknown: {why}"));
            }
            notes.extend(document.warnings.iter().map(|warning| format!("{name}: {warning}")));
        }
        if self.rows.iter().any(Row::is_within_noise) {
            let percent = self.same_within * 100.0;
            notes.push(format!(
                "figures that differ by {percent:.1} % or less are called the same (--same-within), and by more where \
                 the seconds of the runs are more scattered"
            ));
        }
        if self.fail_above.is_some() {
            let unjudged = |row: &&Row| row.direction.is_some() && row.worse_by().is_none();
            let names: Vec<_> =
                self.rows.iter().filter(unjudged).map(|row| &row.name[..]).collect();
            if !names.is_empty() {
                notes.push(format!(
                    "not judged, since a run has no value or one of 0 or below: {}",
                    names.join(", ")
                ));
            }
        }
        notes
    }
}

/// B/A, where it is meaningful. A time or a size of 0 was not measured, so a change to or from 0 is neither better
/// nor worse. A rate of 0 in B is a real result; a rate of 0 in A has no ratio.
fn ratio(a: f64, b: f64, direction: Option<Direction>) -> Option<f64> {
    let can_be = |value: f64, least_is_0: bool| {
        value.is_finite() && (value > 0.0 || (least_is_0 && value == 0.0))
    };
    let b_may_be_0 = direction != Some(Direction::LowerIsBetter);
    match (a, b) {
        (0.0, 0.0) if direction.is_none() => Some(1.0),
        _ if can_be(a, false) && can_be(b, b_may_be_0) => Some(b / a),
        _ => None,
    }
}

/// A figure's label. An indented label has that of the figure above in front.
fn full_label(document: &Document, key: &str) -> Option<String> {
    let mut above = "";
    for entry in &document.figures {
        let indented = entry.label.starts_with(' ');
        if entry.key == key {
            let label = entry.label.trim();
            return Some(if indented { format!("{above}: {label}") } else { label.to_owned() });
        }
        if !indented {
            above = &entry.label;
        }
    }
    None
}

/// The keys of the gateways' settings, each once.
pub(super) fn settings(documents: [&Document; 2]) -> Vec<&str> {
    let keys = documents.into_iter().filter_map(|document| document.run.gateway.as_ref());
    let mut settings: Vec<&str> = Vec::new();
    for (key, _) in keys.flat_map(|pairs| &pairs.0) {
        if !settings.contains(&&key[..]) {
            settings.push(key);
        }
    }
    settings
}

fn differing(a: &Document, b: &Document) -> Vec<Differing> {
    let mut differing = Vec::new();
    let mut look = |what: &str, a: &str, b: &str| {
        if a != b {
            differing.push(Differing { what: what.into(), a: a.into(), b: b.into() });
        }
    };
    let (options_a, options_b) = (&a.run.options.0, &b.run.options.0);
    let only_b = options_b.iter().filter(|(name, _)| a.run.option(name).is_none());
    for (name, _) in options_a.iter().chain(only_b) {
        let value = |document: &Document| match document.run.option(name) {
            // The process id differs in each run and has no meaning.
            Some(_) if name == "pid" => "given".to_owned(),
            Some(value) => value.to_owned(),
            None => "not given".to_owned(),
        };
        look(&format!("--{name}"), &value(a), &value(b));
    }
    // Where one report has no settings, a note reports it.
    if a.run.gateway.is_some() && b.run.gateway.is_some() {
        for key in settings([a, b]) {
            let value =
                |document: &Document| document.run.setting(key).unwrap_or("none").to_owned();
            look(&format!("the gateway's {key}"), &value(a), &value(b));
        }
    }
    look("the client's kernel", &a.run.kernel, &b.run.kernel);
    look("the client's number of CPUs", &a.run.cpus.to_string(), &b.run.cpus.to_string());
    look("the version of tide", &a.run.tide, &b.run.tide);
    differing
}
