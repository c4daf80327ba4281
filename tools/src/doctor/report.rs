//! The findings, as text for people and as JSON for programs.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::args::Role;
use super::checks::{CONNECTIONS_MAX, Impact, Judged};
use super::finding::{Estimate, Finding, Fix, Verdict};
use super::plan::Plan;
use crate::count::{counted, grouped};
use crate::stdout;

/// Everything that is reported.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    connections: u64,
    role: &'static str,
    shards: u64,
    driver: &'static str,
    pid: Option<u32>,
    basis: &'a [String],
    /// Whether they fit.
    fits: Fits,
    /// The same in words, and what to do.
    conclusion: String,
    exit_status: u8,
    findings: Vec<&'a Finding>,
    estimates: &'a [Estimate],
}

/// The exit status: something is too small.
const TOO_SMALL: u8 = 1;

/// The exit status: something that may be too small could not be read.
pub(super) const UNREADABLE: u8 = 2;

/// Whether the connections fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fits {
    Yes,
    No,
    /// What may be too small could not be read.
    Unknown,
}

const DIM: Style = Style::new().dimmed();
const FIX: Style = AnsiColor::Cyan.on_default();

impl<'a> Report<'a> {
    /// Summarises the findings.
    pub(super) fn new(
        plan: &'a Plan,
        pid: Option<u32>,
        judged: &'a [Judged],
        estimates: &'a [Estimate],
    ) -> Self {
        let fits = Fits::of(judged);
        Self {
            connections: plan.connections,
            role: match plan.question.role {
                Role::Gateway => "gateway",
                Role::Client => "client",
            },
            shards: plan.shards(),
            driver: plan.driver().name(),
            pid,
            basis: &plan.resolved.basis,
            fits,
            conclusion: conclusion(fits, judged),
            exit_status: fits.exit_status(),
            findings: judged.iter().map(|judged| &judged.finding).collect(),
            estimates,
        }
    }

    /// The exit status of the process.
    pub(super) const fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// Prints one JSON object.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub(super) fn print_json(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        stdout::print(|out| writeln!(out, "{text}"))
    }

    /// Prints lines, with colours on a terminal.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub(super) fn print_text(&self) -> anyhow::Result<()> {
        stdout::print(|out| self.write(out))
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let shards = match self.role {
            "gateway" => format!(", {} on {}", counted(self.shards, "shard"), self.driver),
            _ => String::new(),
        };
        let whose = self.pid.map_or(String::new(), |pid| format!(", process {pid}"));
        writeln!(out, "{}, {}{shards}{whose}", counted(self.connections, "connection"), self.role)?;
        for basis in self.basis {
            writeln!(out, "  with {basis}")?;
        }
        for finding in &self.findings {
            let Finding { check, verdict, allows, needs, why, fix } = finding;
            let style = style(*verdict);
            writeln!(out, "\n{style}{:<9}{style:#} {check}", verdict.words())?;
            writeln!(out, "          allows {}", allows.text)?;
            writeln!(out, "          needs  {}", needs.text)?;
            writeln!(out, "          {DIM}why    {why}{DIM:#}")?;
            for fix in fix {
                writeln!(out, "          fix   {:<9} {FIX}{}{FIX:#}", fix.place.words(), fix.line)?;
            }
        }
        writeln!(out, "\nestimate, without requests and without a network card's share")?;
        for Estimate { what, value, unit, confidence, basis } in self.estimates {
            let value = grouped(format_args!("{value:.2}"));
            writeln!(out, "  {value:>10} {unit:<5} {what}: {basis} ({})", confidence.words())?;
        }
        let count = |verdict| self.findings.iter().filter(|f| f.verdict == verdict).count();
        writeln!(
            out,
            "\n{} too small, {} unknown, {} to note, {} ok",
            count(Verdict::TooSmall),
            count(Verdict::Unknown),
            count(Verdict::Note),
            count(Verdict::Ok)
        )?;
        let style = self.fits.style().bold();
        writeln!(out, "{style}{}{style:#}", self.conclusion)
    }
}

const fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Ok => AnsiColor::Green.on_default(),
        Verdict::Note | Verdict::Unknown => AnsiColor::Yellow.on_default(),
        Verdict::TooSmall => AnsiColor::Red.on_default().bold(),
    }
}

impl Fits {
    /// "Too small" counts before "unknown". A check whose impact is cost does not count.
    fn of(judged: &[Judged]) -> Self {
        let too_small = judged.iter().any(|judged| judged.finding.verdict == Verdict::TooSmall);
        match (too_small, judged.iter().any(may_be_too_small)) {
            (true, _) => Self::No,
            (false, true) => Self::Unknown,
            (false, false) => Self::Yes,
        }
    }

    const fn exit_status(self) -> u8 {
        match self {
            Self::Yes => 0,
            Self::No => TOO_SMALL,
            Self::Unknown => UNREADABLE,
        }
    }

    const fn style(self) -> Style {
        style(match self {
            Self::Yes => Verdict::Ok,
            Self::No => Verdict::TooSmall,
            Self::Unknown => Verdict::Unknown,
        })
    }
}

/// Whether something that may be too small could not be read.
fn may_be_too_small(Judged { finding, impact }: &Judged) -> bool {
    finding.verdict == Verdict::Unknown && *impact == Impact::Capacity
}

/// Whether it fits, in words, with the first thing to do.
fn conclusion(fits: Fits, judged: &[Judged]) -> String {
    let of = |verdict| judged.iter().map(|it| &it.finding).filter(move |it| it.verdict == verdict);
    let line = |fix: &Fix| format!("{} ({})", fix.line, fix.place.words());
    match fits {
        Fits::No => {
            let checks: Vec<_> = of(Verdict::TooSmall).map(|finding| finding.check).collect();
            let first = of(Verdict::TooSmall).find_map(|it| Some((it.check, it.fix.first()?)));
            let fix = first.map_or_else(
                || {
                    "no setting fixes that: ask for fewer connections, or take a larger machine"
                        .into()
                },
                |(check, fix)| format!("fix {check} first: {}", line(fix)),
            );
            format!("it does not fit, too small: {}; {fix}", checks.join(", "))
        }
        Fits::Unknown => {
            let unread = judged.iter().filter(|it| may_be_too_small(it)).map(|it| &it.finding);
            let unread: Vec<_> = unread
                .map(|finding| format!("{} ({})", finding.check, finding.allows.text))
                .collect();
            format!("whether it fits is unknown; not readable: {}", unread.join(", "))
        }
        Fits::Yes => {
            // The machine has room, but the gateway uses it only with this key.
            let mut notes = of(Verdict::Note);
            let key = notes.clone().find(|it| it.check == CONNECTIONS_MAX);
            let key = key.and_then(|finding| finding.fix.first());
            let once =
                key.map_or(String::new(), |fix| format!(", once this is set: {}", line(fix)));
            let costs = notes.any(|it| it.check != CONNECTIONS_MAX);
            let costs = if costs { "; the notes say what it costs" } else { "" };
            format!("it fits{once}{costs}")
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_machine::fixture::Tree;

    use super::super::args::{DriverChoice, Question};
    use super::super::checks;
    use super::super::tests::question;
    use super::*;

    /// The exit status and the last line, on a good machine with one change.
    fn end(driver: DriverChoice, change: impl FnOnce(&mut Tree)) -> (u8, String) {
        let mut tree = Tree::good();
        change(&mut tree);
        let machine = tree.machine();
        let plan = Plan::new(1_000_000, Question { driver, ..question() }, &machine, None);
        let judged = checks::judge(&machine, &plan);
        let report = Report::new(&plan, None, &judged, &[]);
        let mut text = Vec::new();
        report.write(&mut anstream::StripStream::new(&mut text)).unwrap();
        let text = String::from_utf8(text).unwrap();
        (report.exit_status(), text.lines().last().unwrap().to_owned())
    }

    fn status(change: impl FnOnce(&mut Tree)) -> u8 {
        end(DriverChoice::Auto, change).0
    }

    #[test]
    fn the_exit_status_says_what_a_build_must_know() {
        assert_eq!(status(|_| {}), 0);
        assert_eq!(status(|tree| tree.set("proc/sys/net/core/somaxconn", "1")), 0);
        assert_eq!(status(|tree| tree.remove("proc/sys/net/core/somaxconn")), 0);
        assert_eq!(status(|tree| tree.remove("proc/sys/fs/file-max")), UNREADABLE);
        assert_eq!(status(|tree| tree.set("proc/sys/fs/file-max", "5")), TOO_SMALL);
        let both = |tree: &mut Tree| {
            tree.set("proc/sys/fs/file-max", "5");
            tree.remove("proc/meminfo");
        };
        assert_eq!(status(both), TOO_SMALL);
    }

    #[test]
    fn the_last_line_says_whether_it_fits_and_what_to_do_first() {
        let said = |change: fn(&mut Tree)| end(DriverChoice::Auto, change).1;
        assert_eq!(said(|_| {}), "it fits");
        let note = said(|tree| tree.set("proc/sys/net/core/somaxconn", "1"));
        assert_eq!(note, "it fits; the notes say what it costs");
        let small = said(|tree| tree.set("proc/sys/fs/file-max", "5"));
        let fix = "fix file-max first: fs.file-max = 1002496 (sysctl.d)";
        assert_eq!(small, format!("it does not fit, too small: file-max; {fix}"));
        let two = said(|tree| {
            tree.set("proc/meminfo", "MemTotal: 1 kB\nMemAvailable: 1 kB");
            tree.set("proc/sys/fs/file-max", "5");
        });
        assert_eq!(two, format!("it does not fit, too small: file-max, memory; {fix}"));
        let memory = said(|tree| tree.set("proc/meminfo", "MemTotal: 1 kB\nMemAvailable: 1 kB"));
        assert!(memory.starts_with("it does not fit, too small: memory; no setting"), "{memory}");
        let unread = said(|tree| tree.remove("proc/sys/fs/file-max"));
        assert!(
            unread.starts_with("whether it fits is unknown; not readable: file-max ("),
            "{unread}"
        );
        // 8 shards with a table each have room, which the gateway uses only with this key.
        let (status, epoll) = end(DriverChoice::Epoll, |tree| tree.open_files("1024", "130000"));
        assert_eq!(status, 0);
        let key = "limits.connections_max = 1000000 (tidegate)";
        assert_eq!(epoll, format!("it fits, once this is set: {key}"));
    }
}
