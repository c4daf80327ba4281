//! Reads `PROTOCOL.md`: its code blocks and its tables.

use std::fs;
use std::path::Path;

/// A file of this crate.
#[must_use]
pub fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(path).expect("the file is there")
}

/// The code blocks of the page with this language: what follows the language, and the text.
#[must_use]
pub fn blocks(page: &str, language: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let (found, rest) = info.split_once(' ').unwrap_or((info, ""));
        if found == language {
            blocks.push((rest.to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// The rows of the table whose header begins like this, without the header: the cells of each.
#[must_use]
pub fn rows(page: &str, header: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows: Vec<_> = lines
        .take_while(|line| line.starts_with('|'))
        .map(|row| cells(row.trim_start_matches('|').trim_end_matches('|')))
        .collect();
    assert!(!rows.is_empty(), "there is no table {header}");
    rows
}
