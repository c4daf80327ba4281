//! Holds the table "Bounds, and what happens" of `ARCHITECTURE.md` to the tests: each row names at least one,
//! and each that is named exists.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the workspace.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The rows of the table, without the header: the cells of each.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let lines = page.lines().skip_while(|line| !line.starts_with("| what | bound | when full |"));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Adds all Rust files below a folder.
fn collect_sources(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                collect_sources(&path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}

/// Whether a source has a function of this name with the attribute `#[test]`, or in a list of tests that run with each
/// deployment of Redis.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<_> = source.lines().map(str::trim_start).collect();
    let (_, listed) = source.split_once("on_each_deployment!(").unwrap_or_default();
    let (listed, _) = listed.split_once(");").unwrap_or_default();
    if listed.split(',').any(|listed| listed.trim() == name) {
        return source.contains(&format!("fn {name}("));
    }
    let function = format!("fn {name}(");
    let tests = lines.iter().enumerate().filter(|(_, line)| line.starts_with(&function));
    let mut attributes = tests.map(|(at, _)| {
        let above = lines[..at].iter().rev();
        above
            .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
            .any(|line| *line == "#[test]")
    });
    attributes.any(|is_test| is_test)
}

#[test]
fn each_bound_names_tests_that_exist() {
    let page = fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let mut sources = Vec::new();
    for folder in ["backend", "gateway", "protocol", "tests"] {
        collect_sources(&workspace().join(folder), &mut sources);
    }
    let rows = rows(&page);
    assert!(rows.len() >= 25, "the table is there: {rows:?}");
    let mut wrong = Vec::new();
    let mut texts = BTreeMap::new();
    for row in &rows {
        let [what, .., tests] = row[..] else { panic!("{row:?} has cells") };
        let tests: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        if row.len() != 4 || tests.is_empty() {
            wrong.push(format!("the row `{what}` names no test in a fourth cell"));
        }
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            let mut files = sources.iter().filter(|path| path.ends_with(file));
            let (Some(path), None) = (files.next(), files.next()) else {
                wrong.push(format!("`{what}`: {file} is not the name of one file"));
                continue;
            };
            let text = texts.entry(path).or_insert_with(|| fs::read_to_string(path).unwrap());
            if !has_test(text, name) {
                wrong.push(format!("`{what}`: {file} has no test {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_metric_of_the_page_is_in_the_readme() {
    let [page, readme] = ["ARCHITECTURE.md", "README.md"]
        .map(|file| fs::read_to_string(workspace().join(file)).unwrap());
    let metrics = page.split('`').filter(|text| text.starts_with("tidegate_"));
    let missing: Vec<_> =
        metrics.filter(|metric| !readme.contains(&format!("`{metric}`"))).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn a_function_is_a_test_only_with_its_attribute() {
    let source =
        "#[test]\n#[ignore]\nfn one() {\n}\n\nfn two() {\n}\n    #[test]\n    fn three() {";
    for (name, is_test) in [("one", true), ("two", false), ("three", true), ("on", false)] {
        assert_eq!(has_test(source, name), is_test, "{name}");
    }
    let cells = vec!["a", "`b`", "c", "`d.rs::e`"];
    assert_eq!(
        rows("| what | bound | when full | tests |\n|---|\n| a | `b` | c | `d.rs::e` |\n"),
        [cells]
    );
}
