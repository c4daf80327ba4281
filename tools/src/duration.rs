//! Durations as people write them: `90s`, `1.5s`, `24h`.

use std::time::Duration;

/// The longest duration, in seconds: a hundred years.
const SECONDS_MAX: f64 = 36_525.0 * 86_400.0;

/// Parses a number with a unit: `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// It is no such duration, or longer than a hundred years.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = "a span of time is a number and a unit: 500ms, 90s, 15m, 24h or 30d";
    span(text, None).ok_or_else(|| wrong.into())
}

/// As [`parse`], but not 0.
///
/// # Errors
/// It is no duration, or 0.
pub(crate) fn parse_above_0(text: &str) -> Result<Duration, String> {
    let span = parse(text)?;
    if span.is_zero() {
        return Err("it is longer than nothing: 500ms, 90s, 15m, 24h or 30d".into());
    }
    Ok(span)
}

/// As [`parse`], but a number without a unit means seconds.
///
/// # Errors
/// It is no such duration, or longer than a hundred years.
pub(crate) fn parse_or_seconds(text: &str) -> Result<Duration, String> {
    let wrong =
        "a span of time is a number of seconds, or one with a unit: 4, 500ms, 1.5s, 2m or 1h";
    span(text, Some(1.0)).ok_or_else(|| wrong.into())
}

/// As [`parse_or_seconds`], but a millisecond or more.
///
/// # Errors
/// It is no duration, or a shorter one.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_or_seconds(text)?;
    if interval < Duration::from_millis(1) {
        return Err("it is at least 1ms".into());
    }
    Ok(interval)
}

/// `bare`: the number of seconds that a number without a unit counts; `None`: it needs a unit.
fn span(text: &str, bare: Option<f64>) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_each = match unit {
        "" => bare?,
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    // `f64::parse` would accept a sign and an exponent, too.
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = number.parse::<f64>().ok().filter(|_| is_plain)? * seconds_each;
    (seconds <= SECONDS_MAX).then(|| Duration::from_secs_f64(seconds))
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
        assert_eq!(read("1.5h"), Some(Duration::from_secs(5_400)));
        for wrong in ["", "h", "24", "-1s", "+1s", "1 h", "1e3s", "1.2.3s", "99999999999999999999s"]
        {
            let said = parse(wrong).unwrap_err();
            assert!(said.contains("500ms, 90s, 15m, 24h or 30d"), "{wrong}: {said}");
        }
    }

    #[test]
    fn where_seconds_are_meant_the_unit_may_be_left_out() {
        let read = |text| parse_or_seconds(text).ok();
        assert_eq!(read("4"), Some(Duration::from_secs(4)));
        assert_eq!(read("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("2m"), Some(Duration::from_secs(120)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        for wrong in ["", "x", "4w", "-1", "NaN", "inf", "."] {
            let said = parse_or_seconds(wrong).unwrap_err();
            assert!(said.contains("4, 500ms, 1.5s"), "{wrong}: {said}");
        }
        assert_eq!(parse_interval("0").unwrap_err(), "it is at least 1ms");
    }
}
