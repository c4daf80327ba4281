//! The parts of a page. A [`Page`] takes text of the source code as HTML, and escapes all other text. The page is
//! also well-formed XML, apart from its script.

use super::chart::{Chart, Plot, Table};

/// The page loads nothing, and runs only the script with this hash: even a mistake in the escaping would run no
/// other. A test demands that the hash fits, and names the right one.
const HEAD: &str = concat!(
    "<meta charset=\"utf-8\"/>\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n",
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; ",
    "script-src 'sha256-MXdq0zFP7bheH/OQ+0DQ/oNTubsb/bQAvt8qWgJguOs='\"/>\n<style>\n",
    include_str!("page.css"),
    "</style>\n"
);
const SCRIPT: &str = concat!("<script>\n", include_str!("plot.js"), "</script>\n");

/// A page that is being written.
#[derive(Debug)]
pub(super) struct Page {
    html: String,
}

impl Page {
    /// An open page with this title.
    pub(super) fn new(title: &str) -> Self {
        let html = "<!DOCTYPE html>\n".into();
        let mut page = Self { html };
        page.raw("<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n").raw(HEAD);
        page.raw("<title>").text(title).raw("</title>\n</head>\n<body>\n<h1>").text(title);
        page.raw("</h1>\n");
        page
    }

    /// Closes the page and returns it.
    pub(super) fn finish(mut self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        self.raw("<noscript><p>The plots need JavaScript. The tables have their numbers.</p></noscript>\n");
        self.raw("<footer>Made by tide bench ").text(version).raw("</footer>\n");
        self.raw(SCRIPT).raw("</body>\n</html>\n");
        self.html
    }

    /// Adds HTML of the source code.
    pub(super) fn raw(&mut self, html: &'static str) -> &mut Self {
        self.html += html;
        self
    }

    /// Adds a text of any origin.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.html += &escape(text);
        self
    }

    /// Adds a heading.
    pub(super) fn heading(&mut self, text: &'static str) -> &mut Self {
        self.raw("<h2>").raw(text).raw("</h2>\n")
    }

    /// Adds a list of notes, unless there are none.
    pub(super) fn notes(&mut self, notes: &[String]) -> &mut Self {
        if notes.is_empty() {
            return self;
        }
        self.raw("<ul class=\"notes\">\n");
        for note in notes {
            self.raw("<li>").text(note).raw("</li>\n");
        }
        self.raw("</ul>\n")
    }

    /// Adds the numbers of plots as tables, from which the script draws, and notes on what is missing.
    pub(super) fn charts(&mut self, charts: &[Chart]) -> &mut Self {
        self.raw("<div class=\"plots\">\n");
        charts.iter().filter_map(|chart| chart.plot.as_ref()).for_each(|plot| self.plot(plot));
        let notes: Vec<_> = charts.iter().flat_map(|chart| chart.notes.clone()).collect();
        self.raw("</div>\n").notes(&notes)
    }

    fn plot(&mut self, plot: &Plot) {
        self.raw("<figure data-x=\"").raw(plot.x.name());
        self.raw("\" data-x-label=\"").raw(plot.x.label());
        self.raw("\" data-y=\"").raw(plot.y.name());
        self.raw("\" data-y-label=\"").raw(plot.y_label);
        self.raw("\">\n<figcaption><strong>").raw(plot.title).raw("</strong></figcaption>\n");
        self.raw("<details><summary>Numbers</summary>\n<div class=\"wide\">\n");
        for table in &plot.tables {
            self.table(plot, table);
        }
        self.raw("</div></details>\n</figure>\n");
    }

    fn table(&mut self, plot: &Plot, table: &Table) {
        self.raw("<table>\n<thead><tr><th scope=\"col\">").raw(plot.x.label()).raw("</th>");
        for curve in &table.curves {
            self.raw("<th class=\"number\" scope=\"col\" data-color=\"");
            self.text(&curve.style.colour.to_string()).raw("\" data-dashes=\"");
            self.text(&curve.style.dashes.to_string()).raw("\">").text(&curve.name).raw("</th>");
        }
        self.raw("</tr></thead>\n<tbody>\n");
        for (row, &x) in table.xs.iter().enumerate() {
            self.raw("<tr><th scope=\"row\" data-value=\"").text(&x.to_string()).raw("\">");
            self.text(&plot.x.format(x)).raw("</th>");
            for curve in &table.curves {
                match curve.ys.get(row).copied().flatten() {
                    None => self.raw("<td class=\"number\">-</td>"),
                    Some(y) => self
                        .raw("<td class=\"number\" data-value=\"")
                        .text(&y.to_string())
                        .raw("\">")
                        .text(&plot.y.format(y))
                        .raw("</td>"),
                };
            }
            self.raw("</tr>\n");
        }
        self.raw("</tbody></table>\n");
    }
}

/// A text for use in an element or in an attribute. Characters that XML does not allow are replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\n' | '\t' => escaped.push(c),
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c if c.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
