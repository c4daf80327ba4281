//! A report as its JSON has it, written and read.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::figure::{Entry, Unit};
use super::latency::Distribution;
use super::pairs::Pairs;
use super::run::Run;
use crate::bench::series::Sample;

/// The version of the JSON. It increases when a member is removed or changes its meaning, not when one is added.
pub(super) const SCHEMA: u64 = 1;

/// Everything that a report contains.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// The scenario's name in the JSON.
    pub(super) scenario: String,
    /// What was done, in one line.
    pub(super) title: String,
    pub(super) run: Run,
    /// In the order of the table.
    pub(super) figures: Vec<Entry>,
    /// In order of time.
    pub(super) series: Vec<Sample>,
    pub(super) distributions: Vec<Distribution>,
    /// What the reader of the figures has to know.
    pub(super) warnings: Vec<String>,
}

/// The JSON, member by member.
#[derive(Serialize, Deserialize)]
struct Wire {
    schema: u64,
    scenario: String,
    title: String,
    #[serde(flatten)]
    figures: Pairs<Value>,
    run: Run,
    units: Pairs<String>,
    labels: Pairs<String>,
    #[serde(default)]
    series: Vec<Sample>,
    #[serde(default)]
    distributions: Vec<Distribution>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl Document {
    /// The figure with this key.
    pub(super) fn figure(&self, key: &str) -> Option<&Entry> {
        self.figures.iter().find(|entry| entry.key == key)
    }

    /// The JSON, in one line.
    pub(super) fn to_json(&self) -> anyhow::Result<String> {
        let pairs = |value: fn(&Entry) -> &str| {
            let pair = |entry: &Entry| (entry.key.clone(), value(entry).to_owned());
            Pairs(self.figures.iter().map(pair).collect())
        };
        let figure = |entry: &Entry| {
            let number = entry.number.clone().map_or(Value::Null, Value::Number);
            (entry.key.clone(), number)
        };
        let wire = Wire {
            schema: SCHEMA,
            scenario: self.scenario.clone(),
            title: self.title.clone(),
            figures: Pairs(self.figures.iter().map(figure).collect()),
            run: self.run.clone(),
            units: pairs(|entry| entry.unit.name()),
            labels: pairs(|entry| &entry.label),
            series: self.series.clone(),
            distributions: self.distributions.clone(),
            warnings: self.warnings.clone(),
        };
        Ok(serde_json::to_string(&wire)?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read, is no report, or has a later schema. The error names the file.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{name} can't be read"))?;
        Self::from_json(&text).with_context(|| format!("{name} can't be compared"))
    }

    pub(super) fn from_json(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(text).context("it is not JSON")?;
        match (value["schema"].as_u64(), value["scenario"].as_str()) {
            (Some(..=SCHEMA), Some(_)) => {}
            (Some(schema), Some(_)) => bail!(
                "it has schema {schema}, and this tide reads up to {SCHEMA}: use the tide that wrote it, or a \
                 later one"
            ),
            (None, Some(_)) => bail!(
                "it has no `schema`: an old tide wrote it; run the scenario again with this one"
            ),
            _ => bail!(
                "it is no report of tide bench, since it has no `scenario`; --output or --json of tide bench \
                 writes one"
            ),
        }
        let wire: Wire =
            serde_json::from_str(text).context("it is no complete report of tide bench")?;
        Ok(wire.into())
    }
}

impl From<Wire> for Document {
    fn from(wire: Wire) -> Self {
        let Wire { scenario, title, figures, run, series, distributions, warnings, .. } = wire;
        let entry = |(key, label): &(String, String)| Entry {
            key: key.clone(),
            label: label.clone(),
            unit: wire.units.get(key).map_or(Unit::Number, |unit| Unit::named(unit)),
            number: figures.get(key).and_then(Value::as_number).cloned(),
        };
        let figures = wire.labels.0.iter().map(entry).collect();
        Self { scenario, title, run, figures, series, distributions, warnings }
    }
}
