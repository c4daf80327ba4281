//! Counts as people write and read them: parses `100k`, and formats `100,000 connections`.

use std::fmt::Display;

/// The most connections that an argument may name: more than any machine holds.
const MOST: u64 = 1_000_000_000;

/// Parses a number of connections: a whole number, with `k` for thousands or `m` for millions.
///
/// # Errors
/// It is no such number, 0, or more than a billion.
pub(crate) fn connections(text: &str) -> Result<u32, String> {
    let (digits, each) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
        _ => (text, 1),
    };
    let Some(number) = digits_of(digits).and_then(|digits| digits.parse::<u64>().ok()) else {
        return Err("a count is a whole number, or one with k or m: 1500, 100k, 1m".into());
    };
    let count = number.checked_mul(each).filter(|count| (1..=MOST).contains(count));
    let count = count.and_then(|count| u32::try_from(count).ok());
    count.ok_or_else(|| format!("it is from 1 to {}", grouped(MOST)))
}

/// The digits of a typed number. Accepts the form that `tide` writes: `1,500` is 1500.
pub(crate) fn digits_of(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let is_plain = !digits.is_empty() && digits == text;
    (is_plain || (!digits.is_empty() && grouped(&digits) == text.replace('_', ",")))
        .then_some(digits)
}

/// Formats a number with a comma for every thousand. Text after its first digits is unchanged.
pub(crate) fn grouped(number: impl Display) -> String {
    let text = number.to_string();
    let from = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let count = text[from..].find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len() - from);
    let mut grouped = text[..from].to_owned();
    for (index, digit) in text[from..from + count].chars().enumerate() {
        if index > 0 && (count - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + &text[from + count..]
}

/// A count with its noun: `1 connection`, `2,000 deliveries`.
pub(crate) fn counted(count: impl Display, thing: &str) -> String {
    let count = grouped(count);
    if count == "1" { format!("1 {thing}") } else { format!("{count} {}", plural(thing)) }
}

/// The plural of a noun.
fn plural(thing: &str) -> String {
    let ends_in = |ends: &[&str]| ends.iter().any(|end| thing.ends_with(end));
    match thing.strip_suffix('y') {
        Some(stem) if !ends_in(&["ay", "ey", "oy", "uy"]) => format!("{stem}ies"),
        _ if ends_in(&["s", "x", "ch", "sh"]) => format!("{thing}es"),
        _ => format!("{thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_and_millions_have_a_letter() {
        assert_eq!(connections("1"), Ok(1));
        assert_eq!(connections("100000"), Ok(100_000));
        assert_eq!(connections("100k"), Ok(100_000));
        assert_eq!(connections("2K"), Ok(2_000));
        assert_eq!(connections("1m"), Ok(1_000_000));
        assert_eq!(connections("1000M"), Ok(1_000_000_000));
    }

    #[test]
    fn a_formatted_number_can_be_parsed() {
        for count in [1, 999, 1_000, 100_000, 1_000_000_000] {
            assert_eq!(connections(&grouped(count)), Ok(count));
        }
        assert_eq!(connections("100_000"), Ok(100_000));
        for wrong in [",", "1,", ",000", "1,00", "1,0000", "10,00,000", "1000,000", "1,000.5"] {
            assert!(connections(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_text_that_is_no_count_is_refused() {
        for wrong in
            ["", "k", "m", "1.5m", "-1", "+1", "1 k", "1kk", "1g", "1e6", "many", "1\u{e9}"]
        {
            let said = connections(wrong).unwrap_err();
            assert!(said.contains("1500, 100k, 1m"), "{wrong}: {said}");
        }
        for wrong in ["0", "0k", "1001m", "1000000001", "18446744073709551k"] {
            let said = connections(wrong).unwrap_err();
            assert!(said.contains("from 1 to 1,000,000,000"), "{wrong}: {said}");
        }
    }

    #[test]
    fn every_thousand_has_a_comma() {
        let numbers = [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("12345", "12,345"),
            ("123456", "123,456"),
            ("18446744073709551615", "18,446,744,073,709,551,615"),
            ("-1234", "-1,234"),
            ("1234.56789", "1,234.56789"),
            ("12345 /s", "12,345 /s"),
            ("unknown", "unknown"),
        ];
        for (number, text) in numbers {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn one_is_singular_and_all_else_is_plural() {
        assert_eq!(counted(1, "connection"), "1 connection");
        assert_eq!(counted(0, "connection"), "0 connections");
        assert_eq!(counted(2_000, "delivery"), "2,000 deliveries");
        assert_eq!(counted(1, "delivery"), "1 delivery");
        assert_eq!(counted(3, "address"), "3 addresses");
        assert_eq!(counted(3, "day"), "3 days");
    }
}
