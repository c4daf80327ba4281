//! The parts of a page. A [`Page`] takes its own text as it stands, which has to be written here in
//! the source, and anything else only escaped. What comes out is XHTML too, and can be read by any XML parser.

use super::chart::Chart;
use super::plot::{Look, Svg};

/// Colours after Okabe and Ito, which the colour-blind can tell apart; by night, lighter ones.
/// Without scripts, pictures or fonts there is nothing to load, and the policy forbids it anyway.
const HEAD: &str = r#"<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<style>
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a636d; --paper: #ffffff; --line: #d5dae0;
  --c0: #0072b2; --c1: #d55e00; --c2: #00825e; --c3: #a8508a; --c4: #56b4e9; --c5: #b07d00;
  --better: #00694c; --worse: #a63c00; --note: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --paper: #14181c; --line: #363d45;
    --c0: #56b4e9; --c1: #ff9040; --c2: #2fc79a; --c3: #e58fc4; --c4: #9ccff0; --c5: #e6b422;
    --better: #4fd6ad; --worse: #ff9a5c; --note: #3a3013; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, footer { color: var(--soft); margin: .25rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--soft); }
thead th { font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.part th { padding-left: 1.25rem; }
td { overflow-wrap: anywhere; }
td.verdict { overflow-wrap: normal; }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; }
.differs td { font-weight: 600; }
ul.notes { list-style: none; padding: 0; margin: .75rem 0; }
ul.notes li { background: var(--note); padding: .4rem .75rem; margin: .25rem 0; border-radius: .25rem; }
.sides { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.sides > div { flex: 1 1 auto; min-width: 0; max-width: 100%; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; break-inside: avoid; max-width: 35rem; }
figcaption { font-weight: 600; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; margin: .15rem 0; font-size: .9rem; }
ul.legend svg { width: 2rem; height: .7rem; margin-right: .35rem; }
figure > svg { display: block; width: 100%; height: auto; }
.text { fill: var(--ink); }
.frame { stroke: var(--soft); }
.grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.dot { stroke: none; }
.tip { fill: transparent; }
.tip:hover { fill: var(--soft); fill-opacity: .4; }
.curve.c0 { stroke: var(--c0); } .dot.c0 { fill: var(--c0); }
.curve.c1 { stroke: var(--c1); } .dot.c1 { fill: var(--c1); }
.curve.c2 { stroke: var(--c2); } .dot.c2 { fill: var(--c2); }
.curve.c3 { stroke: var(--c3); } .dot.c3 { fill: var(--c3); }
.curve.c4 { stroke: var(--c4); } .dot.c4 { fill: var(--c4); }
.curve.c5 { stroke: var(--c5); } .dot.c5 { fill: var(--c5); }
.d1 { stroke-dasharray: 7 3; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 9 3 2 3; }
@media print { body { max-width: none; padding: 0; } h2 { break-after: avoid; } tr { break-inside: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } .sides { font-size: .85rem; } }
</style>
"#;

/// A page in the making.
#[derive(Debug)]
pub(super) struct Page {
    html: String,
}

impl Page {
    /// An open one with this title.
    pub(super) fn new(title: &str) -> Self {
        let html = "<!DOCTYPE html>\n".into();
        let mut page = Self { html };
        page.raw("<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n").raw(HEAD);
        page.raw("<title>").text(title).raw("</title>\n</head>\n<body>\n<h1>").text(title);
        page.raw("</h1>\n");
        page
    }

    /// The whole of it.
    pub(super) fn finish(mut self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        self.raw("<footer>Made by tide bench ").text(version).raw("</footer>\n</body>\n</html>\n");
        self.html
    }

    /// Adds what stands in the source.
    pub(super) fn raw(&mut self, html: &'static str) -> &mut Self {
        self.html += html;
        self
    }

    /// Adds what came from anywhere.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.html += &escape(text);
        self
    }

    /// Adds a heading.
    pub(super) fn heading(&mut self, text: &'static str) -> &mut Self {
        self.raw("<h2>").raw(text).raw("</h2>\n")
    }

    /// Adds a list of things to know, unless there are none.
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

    /// Adds plots, and what is to be said of those that are missing.
    ///
    /// # Errors
    /// One can't be drawn.
    pub(super) fn charts(&mut self, charts: &[Chart]) -> anyhow::Result<()> {
        self.raw("<div class=\"plots\">\n");
        for plot in charts.iter().filter_map(|chart| chart.plot.as_ref()) {
            self.raw("<figure>\n<figcaption>").text(plot.title).raw("</figcaption>\n");
            self.raw("<ul class=\"legend\">\n");
            for curve in &plot.curves {
                self.raw("<li>").swatch(curve.look).text(&curve.name).raw("</li>\n");
            }
            let Svg(svg) = plot.draw()?;
            self.raw("</ul>\n").html += &svg;
            self.raw("</figure>\n");
        }
        let notes: Vec<_> = charts.iter().flat_map(|chart| chart.notes.clone()).collect();
        self.raw("</div>\n").notes(&notes);
        Ok(())
    }

    fn swatch(&mut self, look: Look) -> &mut Self {
        self.raw("<svg viewBox=\"0 0 32 10\" aria-hidden=\"true\"><line class=\"");
        self.text(&look.classes()).raw("\" x1=\"0\" y1=\"5\" x2=\"32\" y2=\"5\"/></svg>")
    }
}

/// A text as it may stand in an element or in an attribute. What XML can't hold is replaced.
pub(super) fn escape(text: &str) -> String {
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
