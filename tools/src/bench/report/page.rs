//! The page of one run.

use super::chart::{self, Source};
use super::document::Document;
use super::html::Page;
use super::run;

/// Writes the page.
pub(super) fn page(document: &Document) -> String {
    let mut page = Page::new(&format!("{}: {}", document.scenario, document.title));
    let server = document.run.option("connect").unwrap_or("unknown");
    if let Some(label) = &document.run.label {
        page.raw("<p>").text(label).raw("</p>\n");
    }
    page.raw("<p>Server ").text(server).raw(", ").text(&document.run.date_utc).raw("</p>\n");
    page.notes(&document.warnings).raw("<div class=\"sides\">\n<div>");
    figures(&mut page, document);
    page.raw("</div>\n<div>");
    run_table(&mut page, document);
    page.raw("</div>\n</div>\n");
    let sources = [Source { name: "", document }];
    page.heading("Over time").charts(&chart::over_time(&sources));
    page.heading("Latency of the whole run").charts(&[chart::distribution(&sources)]);
    page.finish()
}

fn figures(page: &mut Page, document: &Document) {
    page.heading("Figures").raw("<div class=\"wide\"><table>\n");
    for entry in &document.figures {
        page.row_head(&entry.label);
        page.raw("<td class=\"number\">").text(&entry.formatted()).raw("</td></tr>\n");
    }
    page.raw("</table></div>\n");
}

fn run_table(page: &mut Page, document: &Document) {
    page.heading("Run").raw("<div class=\"wide\"><table>\n");
    let server = document.run.option("connect").unwrap_or("unknown");
    let facts = [("Scenario", document.scenario.clone()), ("Server", server.into())];
    for (name, value) in facts.into_iter().chain(document.run.environment()) {
        page.row_head(name);
        page.raw("<td>").text(&value).raw("</td></tr>\n");
    }
    match &document.run.gateway {
        None => {
            page.row_head("Gateway");
            page.raw("<td>").text(&document.run.gateway_line()).raw("</td></tr>\n");
        }
        Some(settings) => {
            for (key, value) in &settings.0 {
                page.row_head(&format!("Gateway: {key}"));
                page.raw("<td>").text(value).raw("</td></tr>\n");
            }
        }
    }
    for (name, value) in document.run.options.0.iter().filter(|(name, _)| name != "connect") {
        let option = format!("--{name}");
        page.row_head(&option);
        page.raw("<td>").text(&run::display_value(&option, value)).raw("</td></tr>\n");
    }
    page.raw("</table></div>\n");
}

impl Page {
    /// Opens a table row with its label. Two spaces at the front: it is a detail of the row above.
    pub(super) fn row_head(&mut self, label: &str) {
        match label.strip_prefix("  ") {
            Some(part) => self.raw("<tr class=\"part\"><th scope=\"row\">").text(part),
            None => self.raw("<tr><th scope=\"row\">").text(label),
        };
        self.raw("</th>");
    }
}
