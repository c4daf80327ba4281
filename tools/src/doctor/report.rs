//! What was found, for people and for programs.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::args::Role;
use super::checks::{Judged, Stakes};
use super::finding::{Estimate, Finding, Verdict};
use super::plan::{Driver, Plan};
use super::settled::counted;
use crate::stdout;

/// All that there is to say.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    connections: u64,
    role: &'static str,
    shards: u64,
    driver: &'static str,
    pid: Option<u32>,
    basis: &'a [String],
    exit_status: u8,
    findings: Vec<&'a Finding>,
    estimates: &'a [Estimate],
}

/// The exit status: something is too small.
const TOO_SMALL: u8 = 1;

/// The exit status: something that may be too small could not be read.
pub(super) const UNREADABLE: u8 = 2;

const DIM: Style = Style::new().dimmed();
const MEND: Style = AnsiColor::Cyan.on_default();

impl<'a> Report<'a> {
    /// Sums up.
    pub(super) fn new(
        plan: &'a Plan,
        pid: Option<u32>,
        judged: &'a [Judged],
        estimates: &'a [Estimate],
    ) -> Self {
        Self {
            connections: plan.connections,
            role: match plan.question.role {
                Role::Gateway => "gateway",
                Role::Client => "client",
            },
            shards: plan.shards,
            driver: match plan.driver {
                Driver::Epoll => "epoll",
                Driver::Uring => "uring",
            },
            pid,
            basis: &plan.basis,
            exit_status: exit_status(judged),
            findings: judged.iter().map(|judged| &judged.finding).collect(),
            estimates,
        }
    }

    /// What the process ends with.
    pub(super) const fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// One object.
    ///
    /// # Errors
    /// When standard output can't be written.
    pub(super) fn print_json(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        stdout::print(|out| writeln!(out, "{text}"))
    }

    /// Lines; colours where there is a terminal.
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
        writeln!(out, "{} connections, {}{shards}{whose}", self.connections, self.role)?;
        for basis in self.basis {
            writeln!(out, "  with {basis}")?;
        }
        for finding in &self.findings {
            let Finding { check, verdict, allows, needs, why, mend } = finding;
            let style = style(*verdict);
            writeln!(out, "\n{style}{:<9}{style:#} {check}", verdict.words())?;
            writeln!(out, "          allows {}", allows.text)?;
            writeln!(out, "          needs  {}", needs.text)?;
            writeln!(out, "          {DIM}why    {why}{DIM:#}")?;
            for mend in mend {
                writeln!(
                    out,
                    "          mend   {:<9} {MEND}{}{MEND:#}",
                    mend.place.words(),
                    mend.line
                )?;
            }
        }
        writeln!(out, "\nestimate, without requests and without a network card's share")?;
        for Estimate { what, value, unit, confidence, basis } in self.estimates {
            writeln!(out, "  {value:>10.2} {unit:<5} {what}: {basis} ({})", confidence.words())?;
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
        Ok(())
    }
}

const fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Ok => AnsiColor::Green.on_default(),
        Verdict::Note | Verdict::Unknown => AnsiColor::Yellow.on_default(),
        Verdict::TooSmall => AnsiColor::Red.on_default().bold(),
    }
}

/// What is too small counts before what is unknown, and what only costs something counts for nothing.
fn exit_status(judged: &[Judged]) -> u8 {
    let too_small = judged.iter().any(|judged| judged.finding.verdict == Verdict::TooSmall);
    let unknown = judged.iter().any(|Judged { finding, stakes }| {
        finding.verdict == Verdict::Unknown && *stakes == Stakes::Holding
    });
    match (too_small, unknown) {
        (true, _) => TOO_SMALL,
        (false, true) => UNREADABLE,
        (false, false) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks;
    use super::super::fixture::{Tree, question};
    use super::*;

    fn status(change: impl FnOnce(&mut Tree)) -> u8 {
        let mut tree = Tree::good();
        change(&mut tree);
        let machine = tree.machine();
        exit_status(&checks::judge(&machine, &Plan::new(1_000_000, question(), &machine)))
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
}
