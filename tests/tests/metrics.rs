//! The metrics page, checked strictly against Prometheus's text format 0.0.4.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tidegate_tests::phone::{demo, quiz};
use tidegate_tests::{Phone, Setup};

type Labels = BTreeMap<String, String>;

/// One metric and its samples.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Samples with their names: a histogram has several names.
    samples: Vec<(String, Labels, f64)>,
}

/// Parses a page, and panics where it violates the format.
fn parse(page: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    let mut series = BTreeSet::new();
    assert!(page.ends_with('\n'), "the last line ends with a newline");
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(!families.contains_key(name), "the lines of {name} are not together");
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name, current, "the help line is right before the type line");
            let family = families.get_mut(name).unwrap();
            assert!(
                family.kind.is_empty() && family.samples.is_empty(),
                "one type line, before the samples: {line}"
            );
            family.kind = kind.to_owned();
        } else {
            assert!(!line.starts_with('#'), "{line}");
            let (name, labels, value) = sample(line);
            assert!(series.insert((name.clone(), labels.clone())), "a duplicate series: {line}");
            let family = families.get_mut(&current).expect(line);
            assert!(belongs(&name, &current, &family.kind), "{line} is among those of {current}");
            family.samples.push((name, labels, value));
        }
    }
    families
}

fn belongs(name: &str, family: &str, kind: &str) -> bool {
    match name.strip_prefix(family) {
        Some("") => kind != "histogram",
        Some("_bucket" | "_sum" | "_count") => kind == "histogram",
        _ => false,
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Parses `name{label="value",...} value`, without escapes, which no label needs, and without a time.
fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').expect(line)),
        None => (series, ""),
    };
    assert!(is_name(name), "{line}");
    let mut read = Labels::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (label, text) = label.split_once("=\"").expect(line);
        let text = text.strip_suffix('"').expect(line);
        assert!(is_name(label) && !text.contains(['"', '\\', '\n']), "{line}");
        assert!(read.insert(label.to_owned(), text.to_owned()).is_none(), "{line}");
    }
    (name.to_owned(), read, value.parse().expect(line))
}

/// Checks a metric by its type.
fn check(name: &str, family: &Family) {
    // Prometheus' own names for what holds for each process begin with "process_".
    let prefixes = ["tidegate_", "process_"];
    assert!(is_name(name) && prefixes.iter().any(|it| name.starts_with(it)), "{name}");
    assert!(family.help.ends_with('.'), "{name}: {}", family.help);
    assert!(!family.samples.is_empty(), "{name} has no value");
    let not_base = ["ms", "milliseconds", "us", "microseconds", "kb", "kib", "minutes"];
    assert!(!name.split('_').any(|word| not_base.contains(&word)), "{name}: not a base unit");
    for (sample, _, value) in &family.samples {
        assert!(value.is_finite() && *value >= 0.0, "{sample} {value}");
        assert!(value.fract() == 0.0 || name.ends_with("_seconds"), "{sample} {value}");
    }
    assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name} is a {}", family.kind);
    if family.kind == "histogram" {
        check_histogram(name, family);
    }
}

fn check_histogram(name: &str, family: &Family) {
    let mut buckets = BTreeMap::<Labels, Vec<(f64, f64)>>::new();
    for (sample, labels, value) in &family.samples {
        if *sample == format!("{name}_bucket") {
            let mut labels = labels.clone();
            let bound = labels.remove("le").unwrap().parse().unwrap();
            buckets.entry(labels).or_default().push((bound, *value));
        }
    }
    assert!(!buckets.is_empty());
    for (labels, buckets) in buckets {
        assert!(
            buckets.is_sorted_by(|one, next| one.0 < next.0),
            "{name}: the bounds do not ascend"
        );
        assert!(
            buckets.is_sorted_by(|one, next| one.1 <= next.1),
            "{name}: the buckets are not cumulative"
        );
        let (last, calls) = buckets[buckets.len() - 1];
        assert_eq!(last, f64::INFINITY);
        assert_eq!(value(family, &format!("{name}_count"), &labels), calls);
        assert!(calls > 0.0 || value(family, &format!("{name}_sum"), &labels) == 0.0);
    }
}

fn value(family: &Family, name: &str, labels: &Labels) -> f64 {
    let fits = |sample: &&(String, Labels, f64)| sample.0 == name && sample.1 == *labels;
    family.samples.iter().find(fits).unwrap_or_else(|| panic!("no {name}{labels:?}")).2
}

#[test]
fn the_metrics_page_follows_the_prometheus_text_format() {
    let gateway = Setup::quiz().shards(2).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=4).map(|user_id| gateway.login(user_id)).collect();
    phones.iter_mut().for_each(Phone::assert_is_served);
    phones[0].join("quiz", 0);
    phones[0].say("quiz", "hello");
    operator.push_all(5, b"x");
    let (status, page) = operator.get("/metrics");
    assert_eq!(status, 200);
    let families = parse(&page);
    families.iter().for_each(|(name, family)| check(name, family));
    assert!(families.len() > 30, "{families:?}");
}

#[test]
fn the_histogram_contains_the_durations_of_calls() {
    const CALLS: u32 = 10;
    const THINK_MS: u32 = 30;
    let gateway = Setup::quiz().shards(2).start();
    let operator = gateway.operator();
    let mut phones: Vec<_> = (1..=2).map(|user_id| gateway.login(user_id)).collect();
    let started = Instant::now();
    for call in 0..CALLS {
        let phone = &mut phones[call as usize % 2];
        phone.ask(quiz::THINK, THINK_MS.to_string().as_bytes()).unwrap();
    }
    // The client measures a longer time than the gateway.
    let longest = started.elapsed().as_secs_f64();
    (0..7).for_each(|_| {
        phones[0].ask(demo::ECHO, b"x").unwrap();
    });
    let count = "tidegate_call_duration_seconds_count";
    operator.wait_for_metric(count, "quiz", |n| n == f64::from(CALLS));
    operator.wait_for_metric(count, "demo", |n| n == 7.0);

    let families = parse(&operator.get("/metrics").1);
    let family = &families["tidegate_call_duration_seconds"];
    assert_eq!(family.kind, "histogram");
    let labels = |more: &[(&str, &str)]| -> Labels {
        let all = [("backend", "quiz")].iter().chain(more);
        all.map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let sum = value(family, "tidegate_call_duration_seconds_sum", &labels(&[]));
    let least = f64::from(CALLS * THINK_MS) / 1000.0;
    assert!((least..=longest).contains(&sum), "{least} {sum} {longest}");
    let bucket =
        |le| value(family, "tidegate_call_duration_seconds_bucket", &labels(&[("le", le)]));
    assert_eq!((bucket("0.02"), bucket("+Inf")), (0.0, f64::from(CALLS)));
}
