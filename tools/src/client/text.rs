//! Bytes as text that is safe on a terminal, and back.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

/// Bytes for people: text with its control characters escaped, or `hex:` where the bytes are no text.
pub(super) fn printable(bytes: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return bytes.iter().fold("hex:".to_owned(), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_direction_control(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Parses pairs of hexadecimal digits. Spaces are ignored.
///
/// # Errors
/// The text has another character, or half a byte at its end.
pub(super) fn bytes_of_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let digits: Vec<u8> = digits
        .into_iter()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .context("what follows hex: is not hexadecimal; an example is hex:0aff")?;
    ensure!(digits.len().is_multiple_of(2), "what follows hex: has half a byte at its end");
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Unicode characters that change the direction of the text around them.
const fn is_direction_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable(b"a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("gr\u{fc}n \u{202e}x".as_bytes()), "gr\u{fc}n \\u{202e}x");
        assert_eq!(printable(&[0xc3]), "hex:c3");
    }

    #[test]
    fn hex_is_pairs_of_digits() {
        assert_eq!(bytes_of_hex("00 fF").unwrap(), [0, 0xff]);
        assert_eq!(bytes_of_hex("").unwrap(), [0_u8; 0]);
        assert!(bytes_of_hex("0").is_err());
        assert!(bytes_of_hex("0g").is_err());
    }
}
