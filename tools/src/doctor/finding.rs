//! What a check finds, and what an estimate says: plain values, for the report to show.

use serde::Serialize;

use crate::count::grouped;

/// What one limit means for the requested number of connections.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// The check's name.
    pub(super) check: &'static str,
    /// The outcome.
    pub(super) verdict: Verdict,
    /// What the machine allows.
    pub(super) allows: Amount,
    /// What that many connections need.
    pub(super) needs: Amount,
    /// Why it matters, in a sentence.
    pub(super) why: &'static str,
    /// Lines that fix it. Several lines are alternatives, or belong together, as their places say.
    pub(super) fix: Vec<Fix>,
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Enough.
    Ok,
    /// The connections fit, but it costs what the finding says.
    Note,
    /// It could not be read.
    Unknown,
    /// The connections don't fit.
    TooSmall,
}

/// A quantity, for people and, where there is one, as a number for programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Amount {
    /// The number that counts; its unit is the check's.
    pub(super) value: Option<u64>,
    /// The same in words.
    pub(super) text: String,
}

/// One line that fixes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fix {
    /// Where the line goes.
    pub(super) place: Place,
    /// The line.
    pub(super) line: String,
}

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// A file in /etc/sysctl.d, or behind `sysctl -w`.
    Sysctl,
    /// A file in /etc/security/limits.d.
    Limits,
    /// The `[Service]` section of a systemd unit.
    Systemd,
    /// The kernel's command line.
    Boot,
    /// The gateway's configuration.
    Tidegate,
    /// The command line of `docker run` or `podman run`.
    Container,
    /// A shell, as root.
    Shell,
}

/// A figure of the estimate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Estimate {
    /// What is estimated.
    pub(super) what: &'static str,
    /// The figure, in `unit`.
    pub(super) value: f64,
    /// Its unit.
    pub(super) unit: &'static str,
    /// How reliable it is.
    pub(super) confidence: Confidence,
    /// How it is computed.
    pub(super) basis: String,
}

/// How reliable an estimate is, the most reliable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Confidence {
    /// Measured at this size, on a virtual machine with two cores, over loopback.
    Measured,
    /// Between two measured sizes, or beyond one.
    Extrapolated,
    /// A figure that was not measured.
    Assumption,
}

/// The result of a check.
#[derive(Clone, Debug)]
pub(super) struct Judgement {
    /// The outcome.
    pub(super) verdict: Verdict,
    /// What the machine allows.
    pub(super) allows: Amount,
    /// What that many connections need.
    pub(super) needs: Amount,
    /// What fixes it.
    pub(super) fix: Vec<Fix>,
}

impl Judgement {
    /// A result without a fix.
    pub(super) const fn new(verdict: Verdict, allows: Amount, needs: Amount) -> Self {
        Self { verdict, allows, needs, fix: Vec::new() }
    }

    /// Adds a line that fixes it, unless the verdict is ok.
    pub(super) fn fix(mut self, place: Place, line: impl Into<String>) -> Self {
        if self.verdict != Verdict::Ok {
            self.fix.push(Fix { place, line: line.into() });
        }
        self
    }
}

impl Amount {
    /// A number alone.
    pub(super) fn number(value: u64) -> Self {
        Self { value: Some(value), text: grouped(value) }
    }

    /// A number, and a text that explains it.
    pub(super) fn with_text(value: u64, text: impl Into<String>) -> Self {
        Self { value: Some(value), text: text.into() }
    }

    /// A text without a number: a state, no limit, or something that could not be read.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { value: None, text: text.into() }
    }

    /// Bytes.
    pub(super) fn bytes(value: u64) -> Self {
        Self::with_text(value, bytes_text(value))
    }
}

impl Verdict {
    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Unknown => "unknown",
            Self::TooSmall => "too small",
        }
    }
}

impl Place {
    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Sysctl => "sysctl.d",
            Self::Limits => "limits.d",
            Self::Systemd => "systemd",
            Self::Boot => "boot",
            Self::Tidegate => "tidegate",
            Self::Container => "container",
            Self::Shell => "shell",
        }
    }
}

impl Confidence {
    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Measured => "measured on 2 virtual cores over loopback",
            Self::Extrapolated => "extrapolated",
            Self::Assumption => "assumption",
        }
    }
}

/// Bytes as text, in powers of 1024.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal place")]
pub(super) fn bytes_text(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    units.iter().find(|(size, _)| bytes >= *size).map_or_else(
        || format!("{bytes} B"),
        |(size, unit)| grouped(format_args!("{:.1} {unit}", bytes as f64 / *size as f64)),
    )
}
