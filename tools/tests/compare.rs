//! `tide bench compare`, the binary: what it prints and writes, and its exit status.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A minimal report of `tide bench request`.
fn report(cpu_ns: f64, options: &Value) -> Value {
    json!({
        "schema": 1,
        "scenario": "request",
        "title": "requests",
        "connections": 10,
        "server_cpu_ns_each": cpu_ns,
        "per_second": 1000.0,
        "run": {
            "tide": "0.1.0", "date_utc": "2026-01-02T03:04:05Z", "kernel": "Linux 6.1", "cpus": 2,
            "options": options,
        },
        "units": { "connections": "number", "server_cpu_ns_each": "ns", "per_second": "per_second" },
        "labels": {
            "connections": "connections", "server_cpu_ns_each": "server CPU", "per_second": "answers",
        },
    })
}

/// A folder with two reports. The second run is a fifth slower.
fn reports() -> TempDir {
    let folder = TempDir::new().unwrap();
    let (a, b) =
        (report(1000.0, &json!({ "depth": "1" })), report(1200.0, &json!({ "depth": "8" })));
    fs::write(folder.path().join("a.json"), a.to_string()).unwrap();
    fs::write(folder.path().join("b.json"), b.to_string()).unwrap();
    folder
}

fn compare(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tide"));
    command.args(["bench", "compare"]).args(arguments).current_dir(folder).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn two_reports_are_compared() {
    let folder = reports();
    let output = compare(folder.path(), &["a.json", "b.json", "--html", "diff.html"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("--depth differs: 1 in A, 8 in B"), "{said}");
    let cpu = said.lines().find(|line| line.contains("server CPU")).unwrap();
    assert!(cpu.contains("1.0 us") && cpu.contains("1.2 us"), "{said}");
    assert!(cpu.ends_with("1.200  worse"), "colours go to a terminal alone: {said:?}");
    let html = fs::read_to_string(folder.path().join("diff.html")).unwrap();
    assert!(html.contains("A: a.json compared with B: b.json") && html.contains("1.200"), "{html}");
}

#[test]
fn json_is_one_object() {
    let folder = reports();
    let output = compare(folder.path(), &["a.json", "b.json", "--json"]);
    let json: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(json["figures"].as_array().map(Vec::len), Some(3), "{json}");
    assert_eq!(json["differing"], json!([{ "what": "--depth", "a": "1", "b": "8" }]));
    assert_eq!(json["b"]["file"], "b.json");
}

#[test]
fn a_figure_that_got_worse_by_more_than_allowed_fails() {
    let folder = reports();
    let at = |factor: &str, more: &[&str]| {
        let arguments = [&["a.json", "b.json", "--fail-above", factor], more].concat();
        let output = compare(folder.path(), &arguments);
        assert!(stdout(&output).contains("1.200"), "the table is printed anyway");
        (output.status.code(), stderr(&output).to_owned())
    };
    assert_eq!(at("1.25", &[]), (Some(0), String::new()));
    let (code, said) = at("1.10", &[]);
    assert_eq!(code, Some(1));
    assert!(said.ends_with("worse by more than 1.1: server CPU\n"), "{said}");
    let only = ["--only", "server CPU", "--only", "per_second"];
    assert_eq!(at("1.10", &only).0, Some(1));
    let backwards = compare(folder.path(), &["b.json", "a.json", "--fail-above", "1.10"]);
    assert_eq!(backwards.status.code(), Some(0));
    let only = ["a.json", "b.json", "--fail-above", "1.1", "--only", "per_second"];
    assert_eq!(compare(folder.path(), &only).status.code(), Some(0));
}

#[test]
fn a_file_that_can_not_be_compared_is_named_with_the_reason() {
    let folder = reports();
    let refused = |b: &str| {
        fs::write(folder.path().join("odd.json"), b).unwrap();
        let output = compare(folder.path(), &["a.json", "odd.json"]);
        assert_eq!(output.status.code(), Some(2), "{b}");
        assert!(output.stdout.is_empty(), "{}", stdout(&output));
        assert!(stderr(&output).contains("odd.json"), "{}", stderr(&output));
        stderr(&output).to_owned()
    };
    assert!(refused("{ \"schema\": 1,").contains("it is not JSON"));
    assert!(refused("").contains("it is not JSON"));
    assert!(refused("[1, 2]").contains("no report of tide bench"));
    assert!(refused("{\"a\": 1}").contains("no report of tide bench"));
    assert!(refused("{\"scenario\": \"request\"}").contains("no `schema`"));
    assert!(refused("{\"schema\": 1, \"scenario\": \"request\"}").contains("no complete report"));
    let mut other = report(1.0, &json!({}));
    other["scenario"] = json!("cycle");
    let said = refused(&other.to_string());
    assert!(said.contains("`tide bench request`"), "{said}");
    assert!(said.contains("`tide bench connect --cycle`: their figures"), "{said}");
    let mut later = report(1.0, &json!({}));
    later["schema"] = json!(2);
    assert!(refused(&later.to_string()).contains("it has schema 2, and this tide reads up to 1"));
}

#[test]
fn wrong_arguments_are_named() {
    let folder = reports();
    let wrong = |arguments: &[&str]| {
        let output = compare(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        stderr(&output).to_owned()
    };
    assert!(wrong(&["a.json", "none.json"]).contains("none.json can't be read"));
    assert!(
        wrong(&["a.json", "b.json", "--only", "cpu"]).contains("server CPU (server_cpu_ns_each)")
    );
    assert!(wrong(&["a.json", "b.json", "--fail-above", "0.5"]).contains("1 or more"));
    assert!(wrong(&["a.json", "b.json", "--html", "no/such.html"]).contains("no/such.html"));
    assert!(wrong(&["a.json"]).contains("B.json"));
}

/// `--fail-above` must not succeed where nothing was measured.
#[test]
fn a_figure_of_0_is_not_better_and_never_passes_fail_above() {
    let folder = reports();
    let nothing = report(0.0, &json!({ "depth": "8" })).to_string();
    fs::write(folder.path().join("0.json"), nothing).unwrap();
    for [a, b] in [["a.json", "0.json"], ["0.json", "a.json"], ["0.json", "0.json"]] {
        let output = compare(folder.path(), &[a, b]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let said = stdout(&output);
        let cpu = said.lines().find(|line| line.contains("server CPU")).unwrap();
        assert!(cpu.ends_with("-  not comparable"), "{said}");

        let gate = ["--only", "server CPU", "--fail-above", "1.1"];
        let output = compare(folder.path(), &[&[a, b][..], &gate].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
        assert!(stderr(&output).contains("can't judge server CPU"), "{}", stderr(&output));
    }
    // The rate can be judged; a note names the figures that can't.
    let output = compare(folder.path(), &["a.json", "0.json", "--fail-above", "1.1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("note: not judged"), "{}", stdout(&output));
}
