//! The pages in a real browser: what the script draws from the tables, and how a reader gets at the values.

use serde_json::Value;

use super::browser::Browser;
use super::compare::test_page;
use super::document::Document;
use super::tests::{HOSTILE, asked, document, report, samples};
use super::{Unit, histogram, page, record};

const LINE: [&str; 5] = ["request", "--connect", "127.0.0.1:7400", "--pid", "1"];

/// For each plot its title and kinds of axes; for each curve its values and the pixels at which they are drawn.
const DRAWN: &str = r#"[...document.querySelectorAll("figure")].map((figure) => ({
    title: figure.querySelector("strong").textContent,
    kinds: [figure.dataset.x, figure.dataset.y],
    curves: [...figure.querySelectorAll("table")].flatMap(curvesOf).map((curve) => ({
        name: curve.name, points: curve.points.filter((it) => it !== null).map((it) => [it.x, it.y]) })),
    paths: [...figure.querySelectorAll("svg.plot > path.curve")].map((path) => path.getAttribute("d")),
    legend: [...figure.querySelectorAll("ul.legend li")].map((it) => it.textContent.trim()),
}))"#;

/// The points of a path: `M1,2h0L3,4` has two.
fn pixels(path: &Value) -> Vec<[f64; 2]> {
    let points = path.as_str().unwrap().split(['M', 'L']).filter(|point| !point.is_empty());
    let pair = |point: &str| {
        let (x, y) = point.trim_end_matches("h0").split_once(',').unwrap();
        [x.parse().unwrap(), y.parse().unwrap()]
    };
    points.map(pair).collect()
}

/// Where a value is on an axis of this kind, but for the origin and the length of the axis.
fn place(kind: &str, value: f64) -> f64 {
    match kind {
        "ns" => value.max(1.0).log10(),
        "quantile" => -(1.0 - value).log10(),
        _ => value,
    }
}

/// Demands that pixels are the places but for an origin and a factor: that the axis is drawn to scale.
fn assert_to_scale(mut pairs: Vec<(f64, f64)>, size: f64, about: &str) {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let ((from, start), (to, end)) = (pairs[0], pairs[pairs.len() - 1]);
    for (place, pixel) in pairs {
        let expected =
            if to > from { start + (end - start) * (place - from) / (to - from) } else { start };
        assert!(
            (pixel - expected).abs() < 0.2,
            "{about}: {place} is drawn at {pixel}, not {expected}"
        );
        assert!((0.0..=size).contains(&pixel), "{about}: {pixel} is outside of the plot");
    }
}

/// Demands that each plot has all points of its curves, in their places. Returns the titles.
fn assert_drawn(browser: &mut Browser) -> Vec<String> {
    let drawn = browser.eval(DRAWN);
    let mut titles = Vec::new();
    for plot in drawn.as_array().unwrap() {
        let title = plot["title"].as_str().unwrap();
        let (curves, paths) =
            (plot["curves"].as_array().unwrap(), plot["paths"].as_array().unwrap());
        assert_eq!(curves.len(), paths.len(), "{title}");
        for axis in [0, 1] {
            let kind = plot["kinds"][axis].as_str().unwrap();
            let mut pairs = Vec::new();
            for (curve, path) in curves.iter().zip(paths) {
                let points = curve["points"].as_array().unwrap();
                let pixels = pixels(path);
                assert_eq!(points.len(), pixels.len(), "{title}: {curve}");
                let value = |point: &Value| place(kind, point[axis].as_f64().unwrap());
                pairs.extend(points.iter().map(value).zip(pixels.iter().map(|pixel| pixel[axis])));
            }
            let size = [460.0, 270.0][axis];
            assert_to_scale(pairs, size, &format!("{title}, axis {axis}"));
        }
        let names: Vec<_> = curves.iter().map(|curve| curve["name"].clone()).collect();
        assert_eq!(plot["legend"], Value::from(names), "{title}");
        titles.push(title.to_owned());
    }
    assert_eq!(browser.logged, [""; 0]);
    titles
}

/// The number of values that a page has to draw, for each plot over time.
fn known(document: &Document) -> usize {
    let count = |sample: &crate::bench::series::Sample| {
        [sample.p50_ns, sample.p90_ns, sample.p99_ns, sample.max_ns].iter().flatten().count()
    };
    document.series.iter().map(count).sum()
}

#[test]
fn every_value_of_a_run_is_drawn_to_scale() {
    let document = document(&LINE, samples(1.0));
    let mut browser = Browser::open(&page::page(&document), true);
    assert_eq!(assert_drawn(&mut browser).len(), 7);
    let latency =
        "document.querySelectorAll('figure')[2].querySelectorAll('svg.plot > path.curve')";
    let paths = browser.eval(&format!("[...{latency}].map((path) => path.getAttribute('d'))"));
    let drawn: usize = paths.as_array().unwrap().iter().map(|path| pixels(path).len()).sum();
    assert_eq!(drawn, known(&document));
}

#[test]
fn gaps_single_samples_zeros_and_large_values_are_drawn() {
    let mut series = samples(1.0);
    for gap in [10, 12, 20] {
        series[gap].p50_ns = None;
    }
    let mut browser = Browser::open(&page::page(&document(&LINE, series)), true);
    assert_drawn(&mut browser);
    let path =
        "document.querySelectorAll('figure')[2].querySelector('path.curve').getAttribute('d')";
    // From sample 5 on, in four pieces: before, between and after the gaps.
    assert_eq!(browser.eval(&format!("{path}.split('M').length - 1")), 4);

    let one = samples(1.0).split_off(30);
    assert_drawn(&mut Browser::open(&page::page(&document(&LINE, one)), true));

    // The kernel's memory may shrink in a run.
    let mut shrinking = samples(1.0);
    (0_u32..).zip(&mut shrinking).for_each(|(second, sample)| {
        sample.kernel_slab_bytes = Some(5e6 - f64::from(second) * 1e6);
    });
    assert_drawn(&mut Browser::open(&page::page(&document(&LINE, shrinking)), true));

    let mut extreme = samples(1.0);
    for sample in &mut extreme {
        (sample.connections, sample.sent_per_s, sample.received_per_s) = (0, 0.0, 1e15);
        (sample.p50_ns, sample.max_ns) = (Some(0.0), Some(1e15));
        (sample.server_cpu_share, sample.server_rss_bytes) = (Some(0.0), Some(1e15));
    }
    assert_drawn(&mut Browser::open(&page::page(&document(&LINE, extreme)), true));
}

#[test]
fn a_comparison_draws_both_runs() {
    let mut browser = Browser::open(&test_page(), true);
    assert_eq!(assert_drawn(&mut browser).len(), 7);
    let legend = "[...document.querySelectorAll('ul.legend')[0].children].map((it) => it.textContent.trim())";
    assert_eq!(browser.eval(legend), serde_json::json!(["A: connections", "B: connections"]));
}

#[test]
fn axes_have_few_and_round_ticks() {
    let mut browser = Browser::open(&page::page(&document(&LINE, samples(1.0))), true);
    let mut ticks = |kind: &str, values: &str| {
        let scale = format!("scale('{kind}', {values}).ticks.map((tick) => tick.text).join(' | ')");
        browser.eval(&scale).as_str().unwrap().to_owned()
    };
    assert_eq!(ticks("time", "[0.5, 10.2]"), "0 | 5 | 10");
    assert_eq!(ticks("time", "[900]"), "0 | 5 | 10 | 15");
    assert_eq!(ticks("number", "[2]"), "0 | 1 | 2");
    assert_eq!(ticks("number", "[15000]"), "0 | 5k | 10k | 15k");
    assert_eq!(ticks("per_second", "[4900]"), "0 | 1,000 | 2,000 | 3,000 | 4,000 | 5,000");
    assert_eq!(ticks("share", "[0.37]"), "0 | 10 | 20 | 30 | 40");
    assert_eq!(ticks("bytes", "[150 * 1024 * 1024]"), "0 | 50 | 100 | 150");
    assert_eq!(ticks("ns", "[15000, 60000]"), "10 us | 20 us | 50 us | 100 us");
    assert_eq!(ticks("ns", "[15000, 2e7]"), "10 us | 100 us | 1 ms | 10 ms | 100 ms");
    assert_eq!(ticks("ns", "[3e5, 1.1e6]"), "200 us | 500 us | 1 ms | 2 ms");
    assert_eq!(ticks("quantile", "[0.9995]"), "0 | 90 | 99 | 99.9");
    for kind in ["time", "number", "per_second", "share", "bytes", "ns", "quantile"] {
        for values in ["[0]", "[0, 0.3]", "[0.999999999999]"] {
            let count = ticks(kind, values).split(" | ").count();
            assert!((2..=20).contains(&count), "{kind} {values}: {count} ticks");
        }
    }
}

#[test]
fn values_are_shown_for_keys_and_for_the_mouse() {
    let mut browser = Browser::open(&page::page(&document(&LINE, samples(1.0))), true);
    let plot = "document.querySelectorAll('svg.plot')[2]";
    let said = format!("{plot}.getAttribute('aria-valuetext')");
    let shown = format!("{plot}.closest('figure').querySelector('ul.legend').textContent");
    // Each plot can be reached with the Tab key: the summary of each table comes between two plots.
    for _ in 0..5 {
        browser.press("Tab");
    }
    assert_eq!(browser.eval(&format!("document.activeElement === {plot}")), true);
    browser.press("Home");
    browser.press("ArrowRight");
    let at_6 = browser.eval(&said).as_str().unwrap().to_owned();
    // The first sample with latencies is the sixth, at 5 s.
    assert!(at_6.starts_with("6.0 s: p50 ") && at_6.contains(" ms"), "{at_6}");
    browser.press("ArrowLeft");
    assert!(browser.eval(&said).as_str().unwrap().starts_with("5.0 s: "));
    browser.press("End");
    let at_end = browser.eval(&said).as_str().unwrap().to_owned();
    assert!(at_end.starts_with("30.0 s: "), "{at_end}");
    assert!(browser.eval(&shown).as_str().unwrap().contains(" us"));

    let scroll = format!("{plot}.scrollIntoView({{ block: 'center' }})");
    browser.eval(&scroll);
    let boxed = browser.eval(&format!(
        "(({{ x, y, width, height }}) => [x, y, width, height])({plot}.getBoundingClientRect())"
    ));
    let at = |index: usize| boxed[index].as_f64().unwrap();
    browser.point_at(at(0) + at(2) / 2.0, at(1) + at(3) / 2.0);
    let at_mouse = browser.eval(&said).as_str().unwrap().to_owned();
    assert!(at_mouse != at_end && at_mouse.contains("p99 "), "{at_mouse}");
    browser.point_at(1.0, 1.0);
    assert!(!browser.eval(&shown).as_str().unwrap().contains(" us"));
    assert_eq!(browser.logged, [""; 0]);
}

#[test]
fn without_scripts_the_numbers_can_be_read() {
    let mut browser = Browser::open(&page::page(&document(&LINE, samples(1.0))), false);
    let text = browser.call("Runtime.evaluate", &serde_json::json!({ "expression":
        "document.querySelectorAll('details').forEach((it) => { it.open = true; }); document.body.innerText" }));
    let text = text["result"]["value"].as_str().unwrap();
    assert!(
        text.contains("30.0 s") && text.contains("p99") && text.contains("need JavaScript"),
        "{text}"
    );
    assert!(!text.contains("undefined"), "{text}");
}

#[test]
fn a_hostile_text_runs_nothing() {
    let line = [&LINE[..], &["--token-template", HOSTILE]].concat();
    let mut report = report(HOSTILE, 1.0, samples(1.0));
    let texts = [
        "</script><script>window.harmed = true</script>",
        "<!--<script>",
        "\"\u{2028}'><img src=x onerror=\"window.harmed = true\">",
    ];
    for (number, text) in texts.into_iter().enumerate() {
        report.warn(text);
        report.add(&format!("hostile_{number}"), text, 1, Unit::Number);
        let mut latency = histogram();
        record(&mut latency, 5);
        report.add_latency(&format!("hostile_latency_{number}"), text, &latency);
    }
    let mut browser = Browser::open(&page::page(&report.document(&asked(&line).invocation)), true);
    assert_eq!(browser.eval("window.harmed === undefined"), true);
    assert_eq!(assert_drawn(&mut browser).len(), 7);
}

/// In a window as narrow as a phone's nothing is wider than the page, and no verdict of a comparison is broken.
#[test]
fn a_narrow_page_cuts_nothing() {
    let mut browser = Browser::open(&test_page(), true);
    for width in [360, 700, 1200] {
        let size = serde_json::json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", &size);
        let overflow =
            "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        let wide = "[...document.querySelectorAll('body *')].filter((it) => it.getBoundingClientRect().right > \
            document.documentElement.clientWidth && it.closest('.wide') === null).map((it) => it.outerHTML.slice(0, 99))";
        assert_eq!(browser.eval(overflow), 0, "at {width}: {}", browser.eval(wide));
        // A word that is broken is in two boxes.
        let broken = "[...document.querySelectorAll('td.verdict')].filter((it) => {
            const range = document.createRange();
            range.selectNodeContents(it);
            return !it.textContent.includes(' ') && range.getClientRects().length > 1;
        }).length";
        assert_eq!(browser.eval(broken), 0, "a broken verdict at {width}");
    }
}
