//! Counts of connections as people type them: `100000`, `100k`, `1m`.

/// The most that can be asked for: more than any machine holds.
const MOST: u64 = 1_000_000_000;

/// Reads a whole number of connections, in thousands with a `k` behind it, in millions with an `m`.
///
/// # Errors
/// When it is no such number, 0, or more than a billion.
pub(crate) fn connections(text: &str) -> Result<u32, String> {
    let (digits, each) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
        _ => (text, 1),
    };
    // `parse` takes a sign, too.
    let number = digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+'));
    let Some(number) = number else {
        return Err("a count is a whole number, or one with k or m: 1500, 100k, 1m".into());
    };
    let count = number.checked_mul(each).filter(|count| (1..=MOST).contains(count));
    let count = count.and_then(|count| u32::try_from(count).ok());
    count.ok_or_else(|| format!("it is from 1 to {MOST}"))
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
    fn nonsense_is_refused_in_words() {
        for wrong in
            ["", "k", "m", "1.5m", "-1", "+1", "1 k", "1kk", "1g", "1e6", "many", "1\u{e9}"]
        {
            let said = connections(wrong).unwrap_err();
            assert!(said.contains("1500, 100k, 1m"), "{wrong}: {said}");
        }
        for wrong in ["0", "0k", "1001m", "1000000001", "18446744073709551615k"] {
            let said = connections(wrong).unwrap_err();
            assert!(said.contains("from 1 to 1000000000"), "{wrong}: {said}");
        }
    }
}
