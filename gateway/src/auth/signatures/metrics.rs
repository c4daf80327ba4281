//! What happens to signatures, as Prometheus reads it: read from the pool for each scrape.

use std::fmt::Write as _;

use super::SignatureStats;
use crate::shard::calls::durations;

const CHECKS: (&str, &str) = (
    "tidegate_signature_checks_total",
    "Signatures of tokens: valid or invalid, as checked; known, as checked before; not checked as abandoned by a client that has gone, or refused with 104 as too many waited.",
);
const WAITING: (&str, &str) =
    ("tidegate_signatures_waiting", "Tokens that wait for the check of their signature.");
const WAIT: (&str, &str) = (
    "tidegate_signature_wait_seconds",
    "Time for which tokens waited for the check of their signature.",
);

/// The metrics by name, labels and help text.
pub const METRICS: [(&str, &str, &str); 3] =
    [(CHECKS.0, "result", CHECKS.1), (WAITING.0, "", WAITING.1), (WAIT.0, "le", WAIT.1)];

impl SignatureStats {
    /// Writes them.
    pub fn render(&self, page: &mut String) {
        let Self { valid, invalid, abandoned, refused, known, waiting, waits } = *self;
        let (name, help) = CHECKS;
        // Writing to a string can't fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} counter");
        for (result, count) in [
            ("valid", valid),
            ("invalid", invalid),
            ("known", known),
            ("abandoned", abandoned),
            ("refused", refused),
        ] {
            let _ = writeln!(page, "{name}{{result=\"{result}\"}} {count}");
        }
        let (name, help) = WAITING;
        let _ = writeln!(page, "\n# HELP {name} {help}\n# TYPE {name} gauge\n{name} {waiting}\n");
        durations::render_one(page, WAIT.0, WAIT.1, &waits);
    }
}
