//! Axes: where a value stands, and the ticks that a reader expects there.

use std::ops::Range;

use crate::count::grouped;

/// Ticks that an axis aims at; there can be one or two more.
const TICKS: f64 = 5.0;
/// Latencies over fewer decades than this have ticks at 2 and 5 too.
const BARE_DECADES_MIN: i32 = 3;
/// The most nines of a percentile that an axis shows: one in 10^12.
const NINES_MAX: f64 = 12.0;

/// Up to so many, each nine has a tick.
const ALL_NINES_MAX: f64 = 6.0;

/// What is measured along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// In seconds.
    Time,
    Connections,
    /// Messages a second.
    Rate,
    /// In nanoseconds; on a logarithmic axis.
    Latency,
    /// 1 is one core.
    CpuShare,
    /// In bytes.
    Memory,
    /// A quantile; the axis gives each further nine as much room as the one before.
    Quantile,
}

/// How the numbers at the ticks are written.
#[derive(Clone, Copy, Debug)]
struct Scale {
    divisor: f64,
    /// Of every tick.
    suffix: &'static str,
    /// In the title.
    unit: &'static str,
}

/// One axis of a plot.
#[derive(Debug)]
pub(super) struct Axis {
    quantity: Quantity,
    /// In places, as [`Axis::place`] gives them.
    pub(super) range: Range<f64>,
    /// Place and label, ascending.
    pub(super) ticks: Vec<(f64, String)>,
    pub(super) title: String,
}

impl Axis {
    /// One that holds these values.
    pub(super) fn over(quantity: Quantity, values: impl Iterator<Item = f64>) -> Self {
        let bounds = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), bounds);
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        match quantity {
            Quantity::Latency => Self::latency(low, high),
            Quantity::Quantile => Self::quantile(high),
            _ => Self::linear(quantity, high),
        }
    }

    /// Where a value stands.
    pub(super) fn place(&self, value: f64) -> f64 {
        match self.quantity {
            Quantity::Latency => value.max(1.0).log10(),
            Quantity::Quantile => nines(value),
            _ => value,
        }
    }

    /// The label of the tick at a place.
    pub(super) fn label(&self, place: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - place).abs() <= place.abs() * 1e-9;
        self.ticks.iter().find(near).map(|(_, label)| label.clone()).unwrap_or_default()
    }

    fn linear(quantity: Quantity, high: f64) -> Self {
        let scale = scale(quantity, high);
        let high = if high > 0.0 { high / scale.divisor } else { 1.0 };
        let mut step = round_step(high / TICKS);
        if quantity == Quantity::Connections && scale.divisor == 1.0 {
            step = step.max(1.0);
        }
        // Time ends where the samples do; other axes end at a tick.
        let end = if quantity == Quantity::Time { high } else { (high / step).ceil() * step };
        let digits = if step < 1.0 { usize::from(step < 0.1) + 1 } else { 0 };
        let ticks = (0_u32..)
            .map(|number| f64::from(number) * step)
            .take_while(|tick| *tick <= end * (1.0 + 1e-9))
            .map(|tick| {
                let suffix = if tick > 0.0 { scale.suffix } else { "" };
                (tick * scale.divisor, grouped(format_args!("{tick:.digits$}{suffix}")))
            })
            .collect();
        let title = format!("{}{}", name(quantity), scale.unit);
        Self { quantity, range: 0.0..end * scale.divisor, ticks, title }
    }

    fn latency(low: f64, high: f64) -> Self {
        let (low, high) = (low.max(1.0).log10(), high.max(1.0).log10());
        let (from, to) = (whole(low.floor()), whole(high.ceil()));
        let to = to.max(from + 1);
        let bare = to - from >= BARE_DECADES_MIN;
        let heads: &[f64] = if bare { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let ticks = (from..=to)
            .flat_map(|decade| heads.iter().map(move |head| head * 10_f64.powi(decade)))
            .map(|nanos| (nanos.log10(), show_nanos(nanos)));
        let mut ticks: Vec<_> = ticks.filter(|tick| tick.0 <= f64::from(to) + 1e-9).collect();
        // Between the last tick below and the first one above, but never less than two.
        let above = ticks.iter().position(|tick| tick.0 >= high - 1e-9).unwrap_or(ticks.len() - 1);
        ticks.truncate(above.max(1) + 1);
        let below = ticks.iter().rposition(|tick| tick.0 <= low + 1e-9).unwrap_or_default();
        ticks.drain(..below.min(ticks.len() - 2));
        let range = ticks[0].0..ticks[ticks.len() - 1].0;
        Self { quantity: Quantity::Latency, range, ticks, title: name(Quantity::Latency).into() }
    }

    fn quantile(high: f64) -> Self {
        let end = nines(high).max(1.0);
        // Labels grow longer with each nine: where there are many, every other one has room.
        let step = if end > ALL_NINES_MAX { 2 } else { 1 };
        let whole_nines =
            (0..=whole(NINES_MAX)).step_by(step).take_while(|nines| f64::from(*nines) <= end);
        let ticks = whole_nines
            .map(|nines| {
                let digits = usize::try_from(nines - 2).unwrap_or_default();
                let percent = 100.0 - 100.0 * 10_f64.powi(-nines);
                (f64::from(nines), format!("{percent:.digits$}"))
            })
            .collect();
        let title = name(Quantity::Quantile).into();
        Self { quantity: Quantity::Quantile, range: 0.0..end, ticks, title }
    }
}

const fn name(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::Time => "time since the start",
        Quantity::Connections => "connections",
        Quantity::Rate => "messages a second",
        Quantity::Latency => "latency (log scale)",
        Quantity::CpuShare => "CPU time, % of one core",
        Quantity::Memory => "memory",
        Quantity::Quantile => "share of all that were as fast, %",
    }
}

fn scale(quantity: Quantity, high: f64) -> Scale {
    let plain = |divisor, suffix| Scale { divisor, suffix, unit: "" };
    let titled = |divisor, unit| Scale { divisor, suffix: "", unit };
    match quantity {
        Quantity::Time if high <= 300.0 => titled(1.0, ", s"),
        Quantity::Time if high <= 3.0 * 3600.0 => titled(60.0, ", min"),
        Quantity::Time => titled(3600.0, ", h"),
        Quantity::Memory if high < f64::from(1 << 20) => titled(1024.0, ", KiB"),
        Quantity::Memory if high < f64::from(10 << 20) * 1024.0 => {
            titled(f64::from(1 << 20), ", MiB")
        }
        Quantity::Memory => titled(f64::from(1 << 30), ", GiB"),
        Quantity::CpuShare => plain(0.01, " %"),
        _ if high < 1e4 => plain(1.0, ""),
        _ if high < 5e6 => plain(1e3, "k"),
        _ => plain(1e6, "M"),
    }
}

/// The next of 1, 2, 5, 10, 20, ... that is not below.
fn round_step(least: f64) -> f64 {
    let decade = 10_f64.powf(least.log10().floor());
    let heads = [1.0, 2.0, 5.0].map(|head| head * decade);
    heads.into_iter().find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * decade)
}

/// 1 for 0.9, 2 for 0.99, and so on.
fn nines(quantile: f64) -> f64 {
    (-(1.0 - quantile).max(0.0).log10()).clamp(0.0, NINES_MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "the decades of any number are few")]
fn whole(number: f64) -> i32 {
    number as i32
}

/// A latency as briefly as a round one can be written.
fn show_nanos(nanos: f64) -> String {
    match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        1e3..1e6 => format!("{:.0} us", nanos / 1e3),
        1e6..1e9 => format!("{:.0} ms", nanos / 1e6),
        _ => format!("{:.0} s", nanos / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(quantity: Quantity, values: &[f64]) -> String {
        let axis = Axis::over(quantity, values.iter().copied());
        let labels: Vec<_> = axis.ticks.iter().map(|(place, _)| axis.label(*place)).collect();
        labels.join(" | ")
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(labels(Quantity::Time, &[0.5, 10.2]), "0 | 5 | 10");
        assert_eq!(labels(Quantity::Time, &[900.0]), "0 | 5 | 10 | 15");
        assert_eq!(labels(Quantity::Connections, &[2.0]), "0 | 1 | 2");
        assert_eq!(labels(Quantity::Connections, &[15_000.0]), "0 | 5k | 10k | 15k");
        assert_eq!(labels(Quantity::Rate, &[4_900.0]), "0 | 1,000 | 2,000 | 3,000 | 4,000 | 5,000");
        assert_eq!(labels(Quantity::CpuShare, &[0.37]), "0 | 10 % | 20 % | 30 % | 40 %");
        assert_eq!(labels(Quantity::Memory, &[f64::from(150 << 20)]), "0 | 50 | 100 | 150");
        assert_eq!(
            labels(Quantity::Latency, &[15_000.0, 60_000.0]),
            "10 us | 20 us | 50 us | 100 us"
        );
        assert_eq!(
            labels(Quantity::Latency, &[15_000.0, 2e7]),
            "10 us | 100 us | 1 ms | 10 ms | 100 ms"
        );
        assert_eq!(labels(Quantity::Latency, &[3e5, 1.1e6]), "200 us | 500 us | 1 ms | 2 ms");
        assert_eq!(labels(Quantity::Quantile, &[0.9995]), "0 | 90 | 99 | 99.9");
    }

    #[test]
    fn nothing_and_zeros_have_an_axis_too() {
        let quantities = [
            Quantity::Time,
            Quantity::Connections,
            Quantity::Rate,
            Quantity::Latency,
            Quantity::CpuShare,
            Quantity::Memory,
            Quantity::Quantile,
        ];
        for quantity in quantities {
            for values in [&[][..], &[0.0], &[0.0, 0.3], &[1e15]] {
                let axis = Axis::over(quantity, values.iter().copied());
                assert!(axis.range.start < axis.range.end, "{axis:?}");
                assert!((2..=20).contains(&axis.ticks.len()), "{axis:?}");
                let place = |value: &f64| axis.place(*value);
                let range = axis.range.start - 1e-9..=axis.range.end * (1.0 + 1e-9);
                assert!(values.iter().map(place).all(|at| range.contains(&at)), "{axis:?}");
            }
        }
    }
}
