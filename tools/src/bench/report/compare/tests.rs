//! Comparisons of reports, within the process. `tools/tests/compare.rs` tests the binary.

use serde_json::{Value, json};

use super::super::Unit;
use super::super::document::Document;
use super::super::pairs::Pairs;
use super::super::tests::{asked, plot, report, samples, text, without_script, xml};
use super::difference::{Change, Comparison};
use super::{page, text as as_text};

const NAMES: [&str; 2] = ["a.json", "b.json"];

fn names() -> [String; 2] {
    NAMES.map(String::from)
}

fn made(slower: f64, more: &[&str]) -> Document {
    let line = [&["request", "--connect", "127.0.0.1:1", "--pid", "1"], more].concat();
    let mut made = report("a title", slower, samples(slower)).document(&asked(&line).invocation);
    made.run.set_gateway(Ok(gateway("uring", "300")));
    made
}

/// The settings of a gateway.
fn gateway(driver: &str, coalesce_us: &str) -> Pairs<String> {
    let settings = [("driver", driver), ("coalesce_us", coalesce_us)];
    Pairs(settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

/// The page of a comparison in which the second run is slower.
pub(in super::super) fn test_page() -> String {
    let (a, b) = (made(1.0, &[]), made(1.3, &["--depth", "8"]));
    let mut comparison = Comparison::of(names(), [&a, &b]);
    comparison.judge(1.1);
    page::page(&comparison)
}

/// The ratio and change of a figure from `a` to `b`, and whether it fails with a factor of 1.1.
fn change(key: &str, unit: Unit, a: f64, b: f64) -> (Option<f64>, Change, bool) {
    let one = |value: f64| {
        let mut report = report("", 1.0, Vec::new());
        report.add(key, key, value, unit);
        report.document(&asked(&["request", "--connect", "127.0.0.1:1"]).invocation)
    };
    let (a, b) = (one(a), one(b));
    let mut comparison = Comparison::of(names(), [&a, &b]);
    comparison.judge(1.10);
    let row = comparison.rows.iter().find(|row| row.key == key).unwrap();
    (row.ratio, row.change, !comparison.failed.is_empty())
}

#[test]
fn the_better_direction_depends_on_the_figure() {
    let ratio = Some(1.5);
    assert_eq!(change("x_ns", Unit::Nanos, 10.0, 15.0), (ratio, Change::Worse, true));
    assert_eq!(change("x_bytes", Unit::Bytes, 10.0, 15.0), (ratio, Change::Worse, true));
    assert_eq!(change("x_rate", Unit::PerSecond, 10.0, 15.0), (ratio, Change::Better, false));
    assert_eq!(change("x", Unit::Number, 10.0, 15.0), (ratio, Change::Neutral, false));
    assert_eq!(change("x", Unit::Share, 10.0, 15.0), (ratio, Change::Neutral, false));
    assert_eq!(change("own_x_ns", Unit::Nanos, 10.0, 15.0), (ratio, Change::Neutral, false));
    assert_eq!(change("x_rate", Unit::PerSecond, 15.0, 12.0), (Some(0.8), Change::Worse, true));
}

#[test]
fn a_figure_may_get_worse_by_exactly_the_factor() {
    assert_eq!(change("x_ns", Unit::Nanos, 10.0, 11.0), (Some(1.1), Change::Worse, false));
    assert_eq!(change("x_ns", Unit::Nanos, 1000.0, 1101.0), (Some(1.101), Change::Worse, true));
    assert_eq!(change("x_ns", Unit::Nanos, 10.0, 9.0), (Some(0.9), Change::Better, false));
}

#[test]
fn a_difference_within_the_noise_of_two_runs_is_the_same() {
    for ratio in [0.97, 1.03, 1.05] {
        let (a, b) = (1000.0, 1000.0 * ratio);
        for unit in [Unit::Nanos, Unit::PerSecond] {
            assert_eq!(change("x", unit, a, b), (Some(b / a), Change::Same, false), "{ratio}");
        }
    }
    assert_eq!(change("x_ns", Unit::Nanos, 1000.0, 1051.0).1, Change::Worse);
    assert_eq!(change("x_ns", Unit::Nanos, 1051.0, 1000.0).1, Change::Better);

    let (a, b) = (made(1.0, &[]), made(1.03, &[]));
    let of = |comparison: &Comparison<'_>| {
        let cpu = comparison.rows.iter().find(|row| row.key == "server_cpu_ns_each").unwrap();
        (cpu.change, comparison.notes())
    };
    let mut comparison = Comparison::of(names(), [&a, &b]);
    let note = "figures that differ by 5.0 % or less are called the same (--same-within), and by more where the seconds \
                of the runs are more scattered";
    assert_eq!(of(&comparison), (Change::Same, vec![note.to_owned()]));
    assert_eq!(as_text::json(&comparison)["same_within"], 0.05);
    // A smaller allowance reports smaller differences.
    comparison.judge(1.02);
    assert_eq!(of(&comparison).0, Change::Worse);
    let comparison = comparison.same_within(0.01);
    assert_eq!(of(&comparison).0, Change::Worse);
}

#[test]
fn a_figure_that_is_scattered_from_second_to_second_has_a_wider_band() {
    let change = |p99: fn(usize) -> f64| {
        let with = |slower: f64| {
            let mut made = made(slower, &[]);
            for (second, sample) in made.series.iter_mut().enumerate() {
                sample.p99_ns = Some(p99(second) * slower);
            }
            made
        };
        let (a, b) = (with(1.0), with(1.15));
        let comparison = Comparison::of(names(), [&a, &b]);
        comparison.rows.iter().find(|row| row.key == "latency_p99_ns").unwrap().change
    };
    assert_eq!(change(|_| 1e6), Change::Worse);
    assert_eq!(change(|second| if second % 2 == 0 { 1e6 } else { 2e6 }), Change::Same);
    // A few seconds of a ramp say nothing of the rest.
    assert_eq!(change(|second| if second < 5 { 9e6 } else { 1e6 }), Change::Worse);
}

#[test]
fn the_band_of_a_tail_is_no_narrower_for_many_seconds() {
    let change = |key: &str, slower: f64| {
        let with = |slower: f64| {
            let mut made = made(slower, &[]);
            for (second, sample) in made.series.iter_mut().enumerate() {
                let value = if second % 2 == 0 { 1e6 } else { 2e6 };
                (sample.p99_ns, sample.max_ns) = (Some(value), Some(value));
            }
            made
        };
        let (a, b) = (with(1.0), with(slower));
        let comparison = Comparison::of(names(), [&a, &b]);
        comparison.rows.iter().find(|row| row.key == key).unwrap().change
    };
    // Two standard errors are 38 % for the p99 of 31 seconds, and 210 % for the tail.
    assert_eq!(change("latency_p99_ns", 1.6), Change::Worse);
    for tail in ["latency_p999_ns", "latency_max_ns"] {
        assert_eq!(change(tail, 1.6), Change::Same, "{tail}");
        assert_eq!(change(tail, 4.0), Change::Worse, "{tail}");
    }
}

#[test]
fn settings_of_the_gateway_that_differ_and_labels_are_shown() {
    let (mut a, mut b) = (made(1.0, &[]), made(1.0, &[]));
    b.run.set_gateway(Ok(gateway("uring", "0")));
    a.run.label = Some("a <label>".into());
    let shown = |a: &Document, b: &Document| {
        let comparison = Comparison::of(names(), [a, b]);
        let mut table = Vec::new();
        as_text::table(&mut anstream::StripStream::new(&mut table), &comparison).unwrap();
        (String::from_utf8(table).unwrap(), without_script(&page::page(&comparison)))
    };
    let (table, html) = shown(&a, &b);
    assert!(table.starts_with("A  a.json: a <label>, request, a title"), "{table}");
    assert!(html.contains("<p>A: a &lt;label&gt;, request, a title"), "{html}");
    let note = "the gateway's coalesce_us differs: 300 in A, 0 in B";
    assert!(table.contains(note) && !table.contains("the gateway's driver differs"), "{table}");
    let row = "<th scope=\"row\">Gateway: coalesce_us</th><td>300</td><td>0</td>";
    assert!(html.contains(row), "{html}");

    b.run.set_gateway(Err("it did not answer".into()));
    let (table, _) = shown(&a, &b);
    assert!(table.contains("B: the gateway's settings are unknown: it did not answer"), "{table}");
    assert!(!table.contains("differs"), "{table}");
}

#[test]
fn a_figure_that_was_not_measured_is_neither_better_nor_worse() {
    let unknown = (None, Change::Unknown, false);
    for unit in [Unit::Nanos, Unit::Bytes, Unit::PerSecond] {
        for nothing in [0.0, -0.0, -5.0, f64::NAN, f64::INFINITY] {
            let is_rate = unit == Unit::PerSecond;
            assert_eq!(change("x", unit, nothing, 5.0), unknown, "{unit:?} {nothing} to 5");
            assert_eq!(change("x", unit, nothing, nothing), unknown, "{unit:?} {nothing} twice");
            if !(is_rate && nothing == 0.0) {
                assert_eq!(change("x", unit, 5.0, nothing), unknown, "{unit:?} 5 to {nothing}");
            }
        }
        assert_eq!(change("x", unit, 5.0, 5.0), (Some(1.0), Change::Same, false));
    }
    // A rate of 0 is a real result.
    assert_eq!(change("x", Unit::PerSecond, 5.0, 0.0), (Some(0.0), Change::Worse, true));
    assert_eq!(change("x", Unit::Number, 0.0, 3.0), (None, Change::Neutral, false));
    assert_eq!(change("x", Unit::Number, 0.0, 0.0), (Some(1.0), Change::Neutral, false));
}

#[test]
fn a_figure_that_can_not_be_compared_is_marked_and_has_no_colour() {
    let one = |value: f64| {
        let mut report = report("", 1.0, Vec::new());
        report.add("x_ns", "a time", value, Unit::Nanos);
        report.document(&asked(&["request", "--connect", "127.0.0.1:1"]).invocation)
    };
    let (a, b) = (one(5.0), one(0.0));
    let comparison = Comparison::of(names(), [&a, &b]);
    let mut table = Vec::new();
    as_text::table(&mut anstream::StripStream::new(&mut table), &comparison).unwrap();
    let table = String::from_utf8(table).unwrap();
    let line = table.lines().find(|line| line.contains("a time")).unwrap();
    assert!(line.ends_with("-  not comparable"), "{table}");
    let html = page::page(&comparison);
    assert!(html.contains("<td class=\"verdict\">not comparable</td>"), "{html}");
}

#[test]
fn figures_of_one_run_only_are_listed_and_named_as_not_judged() {
    let (mut a, mut b) = (made(1.0, &[]), made(1.0, &[]));
    a.figures.retain(|entry| entry.key != "latency_p99_ns");
    b.figures.retain(|entry| entry.key != "rss_bytes" && entry.key != "fairness");
    let mut comparison = Comparison::of(names(), [&a, &b]);
    let row = |key| comparison.rows.iter().find(|row| row.key == key).unwrap();
    assert_eq!((row("latency_p99_ns").a, row("latency_p99_ns").change), (None, Change::Unknown));
    assert_eq!(row("rss_bytes").formatted(), ["86.8 MiB", "-"]);
    assert_eq!(row("rss_bytes").formatted_ratio(), "-");
    assert_eq!(comparison.rows.len(), 15);
    assert!(comparison.notes().is_empty(), "{:?}", comparison.notes());
    comparison.judge(1.0);
    assert!(comparison.failed.is_empty(), "{:?}", comparison.failed);
    let [note] = &comparison.notes()[..] else { panic!("{:?}", comparison.notes()) };
    assert!(
        note.starts_with("not judged")
            && note
                .ends_with(": server memory, per connection, least: least / median, latency p99"),
        "{note}"
    );
}

#[test]
fn options_that_differ_are_named_but_not_the_process() {
    let a = made(1.0, &["--depth", "1", "--spin"]);
    let mut b = made(1.0, &["--depth", "8"]);
    b.run.options.0.iter_mut().find(|(name, _)| name == "pid").unwrap().1 = "77".into();
    b.warnings.push("it was late".into());
    let notes = Comparison::of(names(), [&a, &b]).notes();
    let expected = [
        "--spin differs: true in A, not given in B",
        "--depth differs: 1 in A, 8 in B",
        "B: it was late",
    ];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    assert!(expected.iter().all(|note| notes.iter().any(|it| it == note)), "{notes:?}");

    b.run.options.0.retain(|(name, _)| name != "pid");
    let notes = Comparison::of(names(), [&a, &b]).notes();
    assert!(notes.contains(&"--pid differs: given in A, not given in B".into()), "{notes:?}");
}

#[test]
fn a_written_report_is_read_unchanged() {
    let document = made(1.0, &["--depth", "8"]);
    let read = Document::from_json(&document.to_json().unwrap()).unwrap();
    let figures = |document: &Document| -> Vec<_> {
        let names = document.figures.iter();
        names
            .map(|entry| (entry.key.clone(), entry.label.clone(), entry.unit, entry.value()))
            .collect()
    };
    assert_eq!(figures(&read), figures(&document));
    assert_eq!((&read.title, &read.run.options), (&document.title, &document.run.options));
    assert_eq!((read.series.len(), read.distributions.len()), (31, 1));
    assert_eq!(read.distributions[0].points.len(), document.distributions[0].points.len());
}

#[test]
fn members_of_a_later_tide_are_ignored() {
    let mut json: Value = serde_json::from_str(&made(1.0, &[]).to_json().unwrap()).unwrap();
    json["later"] = json!({ "x": [1] });
    json["run"]["later"] = json!(7);
    json["units"]["fairness"] = json!("furlongs");
    let read = Document::from_json(&json.to_string()).unwrap();
    assert_eq!(read.figures.len(), 15);
    assert_eq!(read.figure("fairness").map(|entry| entry.unit), Some(Unit::Number));
}

#[test]
fn the_table_and_the_json_have_the_same_figures() {
    let (a, b) = (made(1.0, &[]), made(1.3, &[]));
    let mut comparison = Comparison::of(names(), [&a, &b]);
    comparison.judge(1.25);
    let mut table = Vec::new();
    as_text::table(&mut anstream::StripStream::new(&mut table), &comparison).unwrap();
    let table = String::from_utf8(table).unwrap();
    let line = |label: &str| table.lines().find(|line| line.contains(label)).unwrap();
    let words: Vec<_> = line("server CPU per message").split_whitespace().collect();
    assert_eq!(words[4..], ["2.3", "us", "3.0", "us", "1.300", "worse"]);
    assert!(line("own CPU per message").ends_with("1.300"), "{table}");

    let json = as_text::json(&comparison);
    let figures = json["figures"].as_array().unwrap();
    let figure = figures.iter().find(|it| it["key"] == "server_cpu_ns_each").unwrap();
    let expected = json!({
        "key": "server_cpu_ns_each", "label": "server CPU per message", "unit": "ns",
        "a": 2340.0, "b": 3042.0, "ratio": 1.3, "better_when": "lower", "change": "worse",
    });
    assert_eq!(*figure, expected);
    assert!(json["failed"].as_array().unwrap().contains(&json!("server_cpu_ns_each")), "{json}");
    assert!(!json["failed"].as_array().unwrap().contains(&json!("rss_bytes")), "{json}");
}

#[test]
fn the_page_has_both_runs_in_the_same_plots() {
    let (a, b) = (made(1.0, &[]), made(1.3, &["--depth", "8"]));
    let comparison = Comparison::of(["<a>.json".into(), "b&.json".into()], [&a, &b]);
    let html = without_script(&page::page(&comparison));
    let xml = xml(&html);
    let curves = [
        ("Connections", 2),
        ("Rates", 4),
        ("Latency", 8),
        ("Server CPU", 2),
        ("Server memory (RSS)", 2),
        ("Growth of kernel memory (slab)", 2),
        ("Latency distribution", 2),
    ];
    for (caption, count) in curves {
        let (names, styles) = plot(&xml, caption).unwrap_or_else(|| panic!("no {caption}"));
        assert_eq!((names.len(), styles), (count, count), "{caption}: {names:?}");
        let of_b = names.iter().filter(|name| name.starts_with("B: ")).count();
        assert_eq!(of_b, count / 2, "{names:?}");
    }
    let cells: Vec<_> =
        xml.descendants().filter(|it| it.tag_name().name() == "td").map(text).collect();
    for row in &comparison.rows {
        for shown in row.formatted().into_iter().chain([row.formatted_ratio()]) {
            assert!(cells.contains(&shown), "{shown} is not in {cells:?}");
        }
    }
    assert!(html.contains("A: &lt;a&gt;.json compared with B: b&amp;.json"), "{html}");
    assert!(html.contains("--depth differs: 1 in A, 8 in B"), "{html}");
}

#[test]
fn a_plot_that_one_run_has_no_values_for_has_a_note() {
    let (a, mut b) = (made(1.0, &[]), made(1.0, &[]));
    b.series.iter_mut().for_each(|sample| sample.server_cpu_share = None);
    let html = without_script(&page::page(&Comparison::of(names(), [&a, &b])));
    assert_eq!(plot(&xml(&html), "Server CPU").unwrap().0, ["A: server CPU"]);
    assert!(
        html.contains("<li>B: Server CPU: the server&#39;s CPU time was not sampled.</li>"),
        "{html}"
    );
    b.series.clear();
    let html = page::page(&Comparison::of(names(), [&a, &b]));
    assert!(html.contains("<li>B: Connections: no samples were taken.</li>"), "{html}");
}
