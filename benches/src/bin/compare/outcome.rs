//! The results of a row's rounds: medians, a table, JSON.

use serde_json::{Map, Value, json};

use crate::rows::{Figure, Row, Unit};

/// The two reports of one round: the floor's and the gateway's.
pub(crate) type Round = (Map<String, Value>, Map<String, Value>);

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Outcome {
    name: String,
    unit: Unit,
    floor: f64,
    gateway: f64,
    /// The median of the rounds' ratios. It can differ from the ratio of the medians.
    ratio: f64,
    target: f64,
    fairness: Option<f64>,
    p99_to_p50: Option<f64>,
}

impl Outcome {
    fn new(row: &Row, figure: &Figure, rounds: &[Round]) -> Self {
        let floors = of_each(rounds, |round| number(&round.0, figure.floor_key));
        let gateways = of_each(rounds, |round| number(&round.1, figure.gateway_key));
        let ratios = of_each(rounds, |round| {
            Some(number(&round.1, figure.gateway_key)? / number(&round.0, figure.floor_key)?)
        });
        let p99_to_p50 = of_each(rounds, |(_, gateway)| {
            let p99 = number(gateway, &format!("{}_p99_ns", figure.latency))?;
            Some(p99 / number(gateway, &format!("{}_p50_ns", figure.latency))?)
        });
        let fairness = of_each(rounds, |round| number(&round.1, "fairness"));
        let of = |numbers| median(numbers).unwrap_or(f64::NAN);
        Self {
            name: format!("{}{}", row.name, figure.name),
            unit: figure.unit,
            floor: of(floors),
            gateway: of(gateways),
            ratio: of(ratios),
            target: figure.target,
            fairness: median(fairness),
            p99_to_p50: median(p99_to_p50),
        }
    }

    /// Whether the target is met.
    pub(crate) fn is_met(&self) -> bool {
        match self.unit {
            Unit::Nanos => self.ratio <= self.target,
            Unit::Bytes => self.gateway <= self.target,
        }
    }

    fn cells(&self) -> [String; 8] {
        let optional = |number: Option<f64>| number.map_or("-".into(), |it| format!("{it:.2}"));
        let (ratio, target) = match self.unit {
            Unit::Nanos if self.target.is_infinite() => (format!("{:.2}", self.ratio), "-".into()),
            Unit::Nanos => (format!("{:.2}", self.ratio), format!("{:.2}", self.target)),
            Unit::Bytes => ("-".into(), format!("{:.0} B", self.target)),
        };
        let unit = if self.unit == Unit::Nanos { "ns" } else { "B" };
        [
            self.name.clone(),
            format!("{:.0} {unit}", self.floor),
            format!("{:.0} {unit}", self.gateway),
            ratio,
            target,
            match self.is_met() {
                true if self.target.is_infinite() => "-".into(),
                true => "met".into(),
                false => "MISSED".into(),
            },
            optional(self.fairness),
            optional(self.p99_to_p50),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": if self.unit == Unit::Nanos { "ns" } else { "bytes" },
            "floor": self.floor,
            "gateway": self.gateway,
            "ratio": self.ratio,
            "target": self.target,
            "met": self.is_met(),
            "fairness": self.fairness,
            "p99_to_p50": self.p99_to_p50,
        })
    }
}

/// The outcomes of a row.
pub(crate) fn outcomes(row: &Row, rounds: &[Round]) -> Vec<Outcome> {
    row.figures.iter().map(|figure| Outcome::new(row, figure, rounds)).collect()
}

/// Everything as JSON.
pub(crate) fn json(rows: &[(Row, Vec<Round>)]) -> Value {
    rows.iter()
        .map(|(row, rounds)| {
            let reports: Vec<_> = rounds
                .iter()
                .map(|(floor, gateway)| json!({ "floor": floor, "gateway": gateway }))
                .collect();
            let figures: Vec<_> = outcomes(row, rounds).iter().map(Outcome::json).collect();
            json!({ "row": row.name, "figures": figures, "rounds": reports })
        })
        .collect()
}

/// The table as text.
pub(crate) fn table(outcomes: &[Outcome], sides: [&str; 2]) -> String {
    let head = ["", sides[0], sides[1], "ratio", "target", "", "fairness", "p99/p50"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(outcomes.iter().map(Outcome::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut table = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let cell =
                if column == 0 { format!("{cell:width$}") } else { format!("  {cell:>width$}") };
            table.push_str(&cell);
        }
        table.truncate(table.trim_end().len());
        table.push('\n');
    }
    table
}

fn number(report: &Map<String, Value>, key: &str) -> Option<f64> {
    report.get(key)?.as_f64()
}

fn of_each(rounds: &[Round], take: impl Fn(&Round) -> Option<f64>) -> Vec<f64> {
    rounds.iter().filter_map(take).collect()
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(numbers[middle]),
        _ => Some(f64::midpoint(numbers[middle - 1], numbers[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_row_takes_the_median_of_its_rounds_ratios() {
        let row = &crate::rows::all()[0];
        let round = |floor: f64, gateway: f64| {
            let report = |ns: f64| Map::from_iter([("server_cpu_ns_each".into(), ns.into())]);
            (report(floor), report(gateway))
        };
        let rounds = [round(100.0, 150.0), round(200.0, 220.0), round(100.0, 130.0)];
        let outcome = &outcomes(row, &rounds)[0];
        assert!((outcome.ratio - 1.3).abs() < 1e-9);
        assert!(!outcome.is_met());
        assert!(table(&outcomes(row, &rounds), ["floor", "gateway"]).contains("MISSED"));
    }
}
