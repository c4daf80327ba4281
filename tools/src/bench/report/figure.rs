//! A number of a report: how it is to be read, written, and told better from worse.

use serde_json::Number;

use crate::count::grouped;

/// How a number is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Unit {
    /// As it is.
    Number,
    /// A count a second.
    PerSecond,
    /// Nanoseconds.
    Nanos,
    /// Bytes.
    Bytes,
    /// A part of 1.
    Share,
}

impl Unit {
    const ALL: [Self; 5] = [Self::Number, Self::PerSecond, Self::Nanos, Self::Bytes, Self::Share];

    /// Its name in the JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::PerSecond => "per_second",
            Self::Nanos => "ns",
            Self::Bytes => "bytes",
            Self::Share => "share",
        }
    }

    /// The one with this name; one that is not known is a plain number.
    pub(super) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|unit| unit.name() == name).unwrap_or(Self::Number)
    }

    /// Writes a number for people.
    pub(super) fn format(self, number: f64) -> String {
        grouped(match self {
            Self::Share => format!("{:.1} %", number * 100.0),
            Self::Number if number.fract() == 0.0 => format!("{number:.0}"),
            Self::Number => format!("{number:.2}"),
            Self::PerSecond => format!("{number:.0} /s"),
            // Each unit begins where the one below would be rounded up to a thousand.
            Self::Nanos => match number {
                ..999.5 => format!("{number:.0} ns"),
                999.5..999.95e3 => format!("{:.1} us", number / 1e3),
                999.95e3..999.95e6 => format!("{:.1} ms", number / 1e6),
                _ => format!("{:.1} s", number / 1e9),
            },
            Self::Bytes => match number.abs() {
                ..1e5 => format!("{number:.0} B"),
                _ => format!("{:.1} MiB", number / f64::from(1 << 20)),
            },
        })
    }
}

/// A number of a report, as a scenario states it.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) enum Figure {
    /// Counted.
    Count(u64),
    /// Measured.
    Measure(f64),
}

impl From<u64> for Figure {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Figure {
    fn from(measure: f64) -> Self {
        Self::Measure(measure)
    }
}

/// A number of a report, with its names.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name in the JSON.
    pub(super) key: String,
    /// Its name for people. Two blanks at the front: it belongs to the one above.
    pub(super) label: String,
    pub(super) unit: Unit,
    /// `None` when it could not be computed.
    pub(super) number: Option<Number>,
}

impl Entry {
    pub(super) fn new(key: &str, label: &str, figure: Figure, unit: Unit) -> Self {
        let number = match figure {
            Figure::Count(count) => Some(count.into()),
            Figure::Measure(number) => Number::from_f64(number),
        };
        Self { key: key.into(), label: label.into(), unit, number }
    }

    pub(super) fn value(&self) -> Option<f64> {
        self.number.as_ref().and_then(Number::as_f64)
    }

    /// The number for people.
    pub(super) fn formatted(&self) -> String {
        self.value().map_or_else(|| "unknown".into(), |number| self.unit.format(number))
    }
}

/// Which way a figure gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    LowerIsBetter,
    HigherIsBetter,
}

impl Direction {
    /// That of a figure, where it has one: a count by itself is neither good nor bad, nor is what
    /// the client takes or what was there before the run.
    pub(super) fn of(key: &str, unit: Unit) -> Option<Self> {
        if key.starts_with("own_") || key == "rss_before_bytes" {
            return None;
        }
        match unit {
            Unit::Nanos | Unit::Bytes => Some(Self::LowerIsBetter),
            Unit::PerSecond => Some(Self::HigherIsBetter),
            Unit::Number if key == "fairness" => Some(Self::HigherIsBetter),
            Unit::Number | Unit::Share => None,
        }
    }

    /// Its name in the JSON.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::LowerIsBetter => "lower",
            Self::HigherIsBetter => "higher",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_the_unit_of_its_size() {
        let shown = |nanos| Unit::Nanos.format(nanos);
        assert_eq!(shown(0.0), "0 ns");
        assert_eq!(shown(999.0), "999 ns");
        assert_eq!(shown(999.6), "1.0 us");
        assert_eq!(shown(2_340.0), "2.3 us");
        assert_eq!(shown(999_949.0), "999.9 us");
        assert_eq!(shown(999_960.0), "1.0 ms");
        assert_eq!(shown(4_139_000.0), "4.1 ms");
        assert_eq!(shown(999_960_000.0), "1.0 s");
        assert_eq!(shown(12_340_000_000.0), "12.3 s");
        assert_eq!(shown(-5.0), "-5 ns");
        assert_eq!(shown(4_321e9), "4,321.0 s");
    }

    #[test]
    fn every_thousand_has_a_comma() {
        assert_eq!(Unit::Number.format(8_000_000.0), "8,000,000");
        assert_eq!(Unit::Number.format(1_234.5), "1,234.50");
        assert_eq!(Unit::PerSecond.format(114_285.7), "114,286 /s");
        assert_eq!(Unit::Bytes.format(-54_321.0), "-54,321 B");
        assert_eq!(Unit::Bytes.format(4e9), "3,814.7 MiB");
        assert_eq!(Unit::Share.format(12.345), "1,234.5 %");
    }
}
