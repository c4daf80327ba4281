//! Tests of a report's JSON, and of its page as text. `drawing_tests` has the page in a browser.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args as _, Parser as _};
use roxmltree::{Document as Xml, Node, ParsingOptions};
use sha2::{Digest as _, Sha256};

use super::compare::test_page;
use super::output::parse_new_file;
use super::*;
use crate::bench::BenchArgs;
use crate::bench::args::{CommonArgs, Scenario};

/// A text that would run a script if a page did not escape it, with a character that XML does not allow.
pub(super) const HOSTILE: &str = "<script>alert('1')</script>&\"\u{1b}{user}";

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

/// The common arguments of a command line of `tide bench`.
pub(super) fn asked(line: &[&str]) -> CommonArgs {
    let cli = Cli::try_parse_from([&["tide"], line].concat()).unwrap();
    match cli.bench.scenario {
        Scenario::Connect(args) => args.common,
        Scenario::Request(args) => args.common,
        Scenario::Broadcast(args) => args.common,
        Scenario::Storm(args) => args.common,
        Scenario::Show(args) => args.common,
        Scenario::Compare(_) => panic!("it runs nothing"),
    }
}

#[test]
fn equal_numbers_of_connections_are_recorded_equally() {
    let of = |count: &str| {
        let common = asked(&["request", "--connect", "127.0.0.1:1", "--connections", count]);
        let document = report("", 1.0, Vec::new()).document(&common.invocation);
        document.run.option("connections").map(str::to_owned)
    };
    assert_eq!(of("100k"), Some("100000".into()));
    assert_eq!(of("100k"), of("100000"));
}

/// Thirty seconds of a run whose ramp takes ten; every latency is multiplied by `slower`.
pub(super) fn samples(slower: f64) -> Vec<Sample> {
    let sample = |second: u32| {
        let wave = slower * (1.2 + f64::from(second).sin());
        // No requests in the first seconds of the ramp.
        let answered = (second >= 5).then_some(wave);
        Sample {
            at_ms: u64::from(second) * 1000,
            connections: u64::from(second.min(10)) * 1_500,
            sent_per_s: f64::from(second.min(10)) * 8_100.0 + 900.0 * wave,
            received_per_s: f64::from(second.min(10)) * 8_000.0 + 900.0 * wave,
            p50_ns: answered.map(|wave| wave * 41e3),
            p90_ns: answered.map(|wave| wave * 130e3),
            p99_ns: answered.map(|wave| wave * 780e3),
            max_ns: answered.map(|wave| wave * 9e6),
            server_cpu_share: Some((f64::from(second.min(10)) * 0.08 * slower).min(1.6)),
            server_rss_bytes: Some(f64::from(second.min(10)) * 7e6 + 21e6),
            kernel_slab_bytes: Some(f64::from(second.min(10)) * 18e6 + 190e6),
        }
    };
    (0..=30).map(sample).collect()
}

pub(super) fn report(title: &str, slower: f64, series: Vec<Sample>) -> Report {
    let mut report = Report::new("request", title.into());
    report.add("connections", "connections", 15_000, Unit::Number);
    report.add("per_second", "answers a second", 80_000.0 / slower, Unit::PerSecond);
    report.add("server_cpu_ns_each", "server CPU per message", 2_340.0 * slower, Unit::Nanos);
    report.add("server_user_share", "  of it in user mode", 0.25, Unit::Share);
    report.add("rss_bytes", "server memory", 91_000_000, Unit::Bytes);
    report.add("own_cpu_ns_each", "own CPU per message", 3_000.0 * slower, Unit::Nanos);
    let mut latency = histogram();
    for number in 0..200_000_u32 {
        let tail = 1.0 / (1.0 - f64::from(number) / 200_001.0);
        record(&mut latency, Figure::from(38e3 * slower * tail.powf(0.6)).rounded());
    }
    report.add_latency("latency", "latency", &latency);
    report.add_fairness(&mut [3, 4, 5]);
    report.set_series(series);
    report
}

impl Figure {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "of a test")]
    fn rounded(self) -> u64 {
        match self {
            Self::Count(count) => count,
            Self::Measure(number) => number as u64,
        }
    }
}

pub(super) fn document(line: &[&str], series: Vec<Sample>) -> Document {
    report("a title", 1.0, series).document(&asked(line).invocation)
}

/// A page without its script.
pub(super) fn without_script(page: &str) -> String {
    let (before, rest) = page.split_once("<script>").unwrap();
    let (_, after) = rest.split_once("</script>").unwrap();
    format!("{before}{after}")
}

/// Reads a page without its script as XML, which finds every tag that is not closed and every character that is not
/// escaped.
pub(super) fn xml(page: &str) -> Xml<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Xml::parse_with_options(page, options).unwrap_or_else(|error| panic!("{error}:\n{page}"))
}

/// The text of a node and of all that is in it.
pub(super) fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|it| it.text()).collect()
}

/// The plot with this title: the names of its curves, and how many different styles they have.
pub(super) fn plot(page: &Xml<'_>, title: &str) -> Option<(Vec<String>, usize)> {
    let is_it = |node: &Node<'_, '_>| {
        node.tag_name().name() == "figure" && text(node.first_element_child().unwrap()) == title
    };
    let figure = page.descendants().find(is_it)?;
    let curves = || figure.descendants().filter(|node| node.has_attribute("data-color"));
    let style = |node: Node<'_, '_>| {
        ["data-color", "data-dashes"].map(|name| node.attribute(name).unwrap().to_owned())
    };
    let styles: BTreeSet<_> = curves().map(style).collect();
    Some((curves().map(text).collect(), styles.len()))
}

const LINE: [&str; 6] = ["request", "--connect", "127.0.0.1:7400", "--pid", "1", "--spin"];
const WITHOUT_PID: [&str; 3] = ["request", "--connect", "127.0.0.1:7400"];

#[test]
fn a_page_has_every_figure_with_its_label_and_unit() {
    let document = document(&LINE, samples(1.0));
    let html = without_script(&page::page(&document));
    let xml = xml(&html);
    let rows: Vec<_> = xml
        .descendants()
        .filter(|node| node.tag_name().name() == "tr")
        .map(|row| row.children().map(text).collect::<Vec<_>>())
        .collect();
    assert_eq!(document.figures.len(), 6 + 5 + 4);
    for entry in &document.figures {
        let row = vec![entry.label.trim().to_owned(), entry.formatted()];
        assert!(rows.contains(&row), "{row:?} is not in {rows:?}");
    }
    for row in
        [["answers a second", "80,000 /s"], ["server memory", "86.8 MiB"], ["--spin", "true"]]
    {
        assert!(rows.contains(&row.map(String::from).to_vec()), "{row:?} is not in {rows:?}");
    }
    assert!(rows.contains(&vec!["Server".into(), "127.0.0.1:7400".into()]), "{rows:?}");
    assert!(rows.contains(&vec!["Date (UTC)".into(), document.run.date_utc]), "{rows:?}");
}

#[test]
fn a_report_has_its_label_and_the_settings_of_the_gateway_or_why_it_has_none() {
    let mut document = document(&[&LINE[..], &["--label", HOSTILE]].concat(), samples(1.0));
    assert!(document.run.option("label").is_none(), "it is no option of the run");
    document.run.label = Some(HOSTILE.into());
    let settings = [("driver", "uring"), ("backends.demo.workers", "4"), ("log.filter", "info")];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
    document.run.set_gateway(Ok(pairs::Pairs(settings.into())));
    let shown = |document: &Document| {
        let mut table = Vec::new();
        table::write(&mut table, document).unwrap();
        let json: serde_json::Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
        let html = without_script(&page::page(document));
        let cells: Vec<_> = xml(&html).descendants().filter(Node::is_element).map(text).collect();
        (String::from_utf8(table).unwrap(), json["run"].clone(), cells)
    };
    let (table, run, cells) = shown(&document);
    let gateway = "gateway: driver uring, backends.demo.workers 4\n";
    assert!(table.starts_with(&format!("a title\nlabel: {HOSTILE}\n{gateway}")), "{table}");
    assert_eq!((&run["label"], &run["gateway"]["log.filter"]), (&HOSTILE.into(), &"info".into()));
    let has = |cells: &[String], text: &str| cells.iter().any(|cell| cell == text);
    assert!(has(&cells, &HOSTILE.replace('\u{1b}', "\u{fffd}")), "{cells:?}");
    assert!(has(&cells, "Gateway: log.filter") && has(&cells, "info"), "{cells:?}");

    document.run.set_gateway(Err("it did not answer".into()));
    let (table, run, cells) = shown(&document);
    assert!(table.contains("gateway: its settings are unknown: it did not answer\n"), "{table}");
    assert!(run["gateway"].is_null() && run["gateway_unknown"] == "it did not answer", "{run}");
    assert!(has(&cells, "its settings are unknown: it did not answer"), "{cells:?}");
}

#[test]
fn each_plot_has_its_curves() {
    let html = without_script(&page::page(&document(&LINE, samples(1.0))));
    let xml = xml(&html);
    let expected: [(&str, &[&str]); 7] = [
        ("Connections", &["connections"]),
        ("Rates", &["sent", "received"]),
        ("Latency", &["p50", "p90", "p99", "max"]),
        ("Server CPU", &["server CPU"]),
        ("Server memory (RSS)", &["server RSS"]),
        ("Growth of kernel memory (slab)", &["kernel slab"]),
        ("Latency distribution", &["latency"]),
    ];
    for (title, curves) in expected {
        let (names, styles) = plot(&xml, title).unwrap_or_else(|| panic!("no {title}"));
        assert_eq!(names, curves, "{title}");
        assert_eq!(styles, curves.len(), "{title}");
    }
}

#[test]
fn a_page_loads_nothing() {
    let page = page::page(&document(&LINE, samples(1.0)));
    assert_eq!(page.matches("<script").count(), 1);
    let html = without_script(&page);
    for node in xml(&html).descendants().filter(Node::is_element) {
        assert!(!["link", "img", "iframe", "object"].contains(&node.tag_name().name()));
        for attribute in node.attributes() {
            assert!(!["src", "href", "style"].contains(&attribute.name()), "{attribute:?}");
        }
    }
    assert!(!html.contains("url(") && !html.contains("@import"));
}

#[test]
fn a_plot_without_values_is_omitted_and_the_page_gives_the_reason() {
    let unknown = |sample: Sample| Sample {
        server_cpu_share: None,
        server_rss_bytes: None,
        kernel_slab_bytes: None,
        ..sample
    };
    let series = samples(1.0).into_iter().map(unknown).collect();
    let html = without_script(&page::page(&document(&WITHOUT_PID, series)));
    let with_latency = xml(&html);
    for title in ["Server CPU", "Server memory (RSS)", "Growth of kernel memory (slab)"] {
        assert!(plot(&with_latency, title).is_none(), "{title}");
        assert!(html.contains(&format!("<li>{title}: no --pid: ")), "{html}");
    }
    assert!(plot(&with_latency, "Latency").is_some());

    let html = without_script(&page::page(&document(&WITHOUT_PID, Vec::new())));
    assert!(html.contains("No samples were taken"), "{html}");
    assert!(plot(&xml(&html), "Connections").is_none());
}

#[test]
fn a_value_that_is_no_number_is_a_gap() {
    let mut series = samples(1.0);
    series[10].p50_ns = None;
    series[15].p50_ns = Some(f64::NAN);
    let before = page::page(&document(&LINE, samples(1.0)));
    let after = page::page(&document(&LINE, series));
    let gaps = |html: &str| html.matches("<td class=\"number\">-</td>").count();
    assert_eq!(gaps(&after), gaps(&before) + 2);
}

#[test]
fn the_policy_of_both_pages_allows_their_own_script_alone() {
    for html in [page::page(&document(&LINE, samples(1.0))), test_page()] {
        let between = |open: &str, close: &str| {
            assert_eq!(html.matches(open).count(), 1, "{open}");
            let (_, rest) = html.split_once(open).unwrap();
            rest.split_once(close).unwrap().0
        };
        let policy = between("\"Content-Security-Policy\" content=\"", "\"");
        let hash = BASE64_STANDARD.encode(Sha256::digest(between("<script>", "</script>")));
        let expected = format!("script-src 'sha256-{hash}'");
        assert!(policy.split("; ").any(|found| found == expected), "{expected} is not in {policy}");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    }
}

#[test]
fn a_hostile_text_is_escaped() {
    let line = [&LINE[..], &["--token-template", HOSTILE]].concat();
    let mut report = report(HOSTILE, 1.0, samples(1.0));
    report.warn(HOSTILE);
    report.add("hostile", HOSTILE, 1, Unit::Number);
    report.add_latency("hostile", HOSTILE, &{
        let mut latency = histogram();
        record(&mut latency, 5);
        latency
    });
    let html = page::page(&report.document(&asked(&line).invocation));
    assert!(!html.contains("<script>alert") && !html.contains('\u{1b}'), "{html}");
    let html = without_script(&html);
    let xml = xml(&html);
    let shown = HOSTILE.replace('\u{1b}', "\u{fffd}");
    for name in ["title", "h1", "td", "th", "li"] {
        let mut with_name = xml.descendants().filter(|node| node.tag_name().name() == name);
        assert!(with_name.any(|node| text(node).contains(&shown)), "no {name} has it:\n{html}");
    }
}

#[test]
fn the_json_has_flat_figures_and_the_run() {
    let line = [&LINE[..], &["--connect", "[::1]:7400", "--depth", "8"]].concat();
    let json = document(&line, samples(1.0)).to_json().unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["scenario"], "request");
    assert_eq!(json["connections"], 15_000);
    assert_eq!(json["server_cpu_ns_each"], 2340.0);
    assert!(json["latency_p99_ns"].is_u64(), "{json}");
    assert_eq!(json["units"]["server_cpu_ns_each"], "ns");
    assert_eq!(json["labels"]["per_second"], "answers a second");
    assert_eq!(json["series"].as_array().map(Vec::len), Some(31));
    assert_eq!(json["series"][30]["at_ms"], 30_000);
    assert!(json["series"][0]["p50_ns"].is_null(), "{json}");
    assert_eq!(json["distributions"][0]["count"], 200_000);
    let options = &json["run"]["options"];
    assert_eq!(options["connect"], "127.0.0.1:7400, [::1]:7400");
    assert_eq!(
        (&options["depth"], &options["type"], &options["duration"]),
        (&"8".into(), &"1".into(), &"10s".into())
    );
    assert_eq!(options["spin"], "true");
    for absent in ["raw", "json", "html", "output", "rate"] {
        assert!(options.get(absent).is_none(), "{absent}: {options}");
    }
    assert!(json["run"]["cpus"].as_u64() > Some(0), "{json}");
    let date = json["run"]["date_utc"].as_str().unwrap();
    assert!(date.len() == 20 && date.starts_with("20") && date.ends_with('Z'), "{date}");
}

#[test]
fn every_option_of_every_scenario_is_recorded() {
    let scenarios = [
        "connect --large-answers 7 --raw",
        "connect --cycle --pipelined --reset",
        "broadcast --rate 3 --echo-rate 2 --echo-bytes 9 --kind-is-type 4",
    ];
    for line in scenarios {
        let line = line.replace("--kind-is-type", "--type");
        let line: Vec<_> = line.split(' ').chain(["--connect", "127.0.0.1:1", "--json"]).collect();
        let options = document(&line, Vec::new()).run.options;
        for option in line.iter().filter_map(|word| word.strip_prefix("--")) {
            assert_eq!(options.get(option).is_some(), option != "json", "{option}: {options:?}");
        }
        assert!(options.get("warmup").is_some() && options.get("first-user").is_some());
    }
}

/// A report takes an option's name from its id.
#[test]
fn every_option_has_its_long_name_as_id() {
    let bench = BenchArgs::augment_args(clap::Command::new("bench"));
    let mut count = 0;
    for option in bench.get_subcommands().flat_map(clap::Command::get_arguments) {
        if let Some(long) = option.get_long() {
            assert_eq!(option.get_id().as_str().replace('_', "-"), long);
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn a_template_that_is_a_token_is_not_recorded() {
    let with = |template| {
        let line = [&LINE[..], &["--token-template", template]].concat();
        document(&line, Vec::new()).to_json().unwrap()
    };
    assert!(with("token-{user}").contains("token-{user}"));
    assert!(!with("eyJ.secret.sig").contains("secret"));
}

#[test]
fn a_figure_that_is_no_number_is_unknown_and_null_in_the_json() {
    let mut report = Report::new("request", String::new());
    report.add("nothing", "nothing", f64::NAN, Unit::Nanos);
    let document = report.document(&asked(&LINE).invocation);
    assert_eq!(document.figures[0].formatted(), "unknown");
    let json: serde_json::Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
    assert!(json["nothing"].is_null());
}

#[test]
fn an_output_file_that_can_not_be_created_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| parse_new_file(folder.path().join(name).to_str().unwrap());
    assert!(of("run.html").is_ok());
    assert!(parse_new_file("run.html").is_ok());
    assert!(of("missing/run.html").unwrap_err().contains("missing"));
    assert!(parse_new_file(folder.path().to_str().unwrap()).unwrap_err().contains("is a folder"));
}
