//! Spans of time as people type them: `90s`, `24h`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Reads a whole number and a unit: `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// When it is neither, or too long to count in seconds.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => bail!("a span of time is a number and a unit: 500ms, 90s, 15m, 24h or 30d"),
    };
    let number: u64 = number.parse().context("a span of time starts with a whole number: 24h")?;
    let milliseconds = number.checked_mul(milliseconds).context("this span of time is too long")?;
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_number_and_a_unit() {
        let read = |text| parse(text).ok();
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("90s"), Some(Duration::from_secs(90)));
        assert_eq!(read("15m"), Some(Duration::from_secs(900)));
        assert_eq!(read("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(read("2d"), Some(Duration::from_secs(172_800)));
        for wrong in ["", "h", "24", "-1s", "1.5h", "1 h", "99999999999999999999s"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
