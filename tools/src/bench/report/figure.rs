//! A number of a report: its unit, how it is written, and which direction is better.

use serde_json::Number;

use crate::count::grouped;

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Unit {
    /// No unit.
    Number,
    /// A count per second.
    PerSecond,
    /// Nanoseconds.
    Nanos,
    /// Bytes.
    Bytes,
    /// A fraction: 1 is all.
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

    /// The unit with this name. An unknown name is a plain number.
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
            // A unit is used from where the smaller one would round up to a thousand.
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

/// A number that a scenario adds to its report.
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
    /// Its name for people. Two spaces at the front: it is a detail of the figure above.
    pub(super) label: String,
    pub(super) unit: Unit,
    /// `None` where it could not be computed.
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

/// Which direction of a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    LowerIsBetter,
    HigherIsBetter,
}

impl Direction {
    /// The direction of a figure. `None` for a figure that does not judge the server: a count, what `tide` itself
    /// used, and the memory before the run.
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
