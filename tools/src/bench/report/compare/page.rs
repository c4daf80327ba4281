//! The comparison as a page, with the curves of both runs in the same plots.

use super::super::chart::{self, Source};
use super::super::html::Page;
use super::super::run;
use super::difference::{Change, Comparison, settings};

/// Writes the page.
pub(super) fn page(comparison: &Comparison<'_>) -> String {
    let [a, b] = &comparison.names;
    let mut page = Page::new(&format!("A: {a} compared with B: {b}"));
    for (name, document) in ["A", "B"].into_iter().zip(comparison.documents) {
        page.raw("<p>").raw(name).raw(": ");
        if let Some(label) = &document.run.label {
            page.text(label).raw(", ");
        }
        page.text(&document.scenario).raw(", ");
        page.text(&document.title).raw(", ").text(&document.run.date_utc).raw("</p>\n");
    }
    page.notes(&comparison.notes());
    page.raw("<div class=\"sides\">\n<div>");
    figures(&mut page, comparison);
    page.raw("</div>\n<div>");
    run_table(&mut page, comparison);
    page.raw("</div>\n</div>\n");
    let [a, b] = comparison.documents;
    let sources = [Source { name: "A", document: a }, Source { name: "B", document: b }];
    page.heading("Over time").charts(&chart::over_time(&sources));
    page.heading("Latency of the whole runs").charts(&[chart::distribution(&sources)]);
    page.finish()
}

fn figures(page: &mut Page, comparison: &Comparison<'_>) {
    page.heading("Figures").raw("<div class=\"wide\"><table>\n<thead><tr><th></th>");
    for name in ["A", "B", "B/A"] {
        page.raw("<th class=\"number\" scope=\"col\">").raw(name).raw("</th>");
    }
    page.raw("<th></th></tr></thead>\n<tbody>\n");
    for row in &comparison.rows {
        page.row_head(&row.label);
        for shown in row.formatted() {
            page.raw("<td class=\"number\">").text(&shown).raw("</td>");
        }
        let failed = if comparison.failed.contains(&row.key) { ", more than allowed" } else { "" };
        let class = match row.change {
            Change::Better => " better",
            Change::Worse => " worse",
            _ => "",
        };
        page.raw("<td class=\"number").raw(class).raw("\">").text(&row.formatted_ratio());
        page.raw("</td><td class=\"verdict").raw(class).raw("\">");
        page.raw(row.verdict()).raw(failed).raw("</td></tr>\n");
    }
    page.raw("</tbody></table></div>\n");
}

fn run_table(page: &mut Page, comparison: &Comparison<'_>) {
    let [a, b] = comparison.documents;
    page.heading("Runs").raw("<div class=\"wide\"><table>\n");
    page.raw("<thead><tr><th></th><th scope=\"col\">A</th><th scope=\"col\">B</th></tr></thead>\n<tbody>\n");
    line(page, "Scenario", &a.scenario, &b.scenario);
    let environment = a.run.environment().into_iter().zip(b.run.environment());
    for ((name, of_a), (_, of_b)) in environment {
        line(page, name, &of_a, &of_b);
    }
    for key in settings([a, b]) {
        let [of_a, of_b] = [a, b].map(|document| document.run.setting(key).unwrap_or("unknown"));
        line(page, &format!("Gateway: {key}"), of_a, of_b);
    }
    let only_b = b.run.options.0.iter().filter(|(name, _)| a.run.option(name).is_none());
    for (name, _) in a.run.options.0.iter().chain(only_b) {
        let option = format!("--{name}");
        let [of_a, of_b] = [a, b].map(|document| {
            let value = document.run.option(name).unwrap_or("not given");
            run::display_value(&option, value)
        });
        line(page, &option, &of_a, &of_b);
    }
    page.raw("</tbody></table></div>\n");
}

fn line(page: &mut Page, name: &str, a: &str, b: &str) {
    page.raw(if a == b { "<tr>" } else { "<tr class=\"differs\">" });
    page.raw("<th scope=\"row\">").text(name).raw("</th><td>").text(a);
    page.raw("</td><td>").text(b).raw("</td></tr>\n");
}
