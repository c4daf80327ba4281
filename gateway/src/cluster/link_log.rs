//! What is logged of a link that comes and goes.
//!
//! A server that accepts and closes again makes a link come and go ten times a second. So a link has a bounded number of lines in a
//! time. The newest line is never left out: it waits, so that the log ends with the state that the link has.

use std::time::{Duration, Instant};

/// Lines that a link may have in each `WINDOW`: a restart of Redis takes three.
const LINES_MAX: u8 = 6;

/// See `LINES_MAX`.
const WINDOW: Duration = Duration::from_secs(10);

/// What happened to a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// There is a connection.
    Connected,
    /// The first attempt of several failed.
    Unusable(String),
    /// The connection was lost.
    Lost(String),
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct LinkLog {
    waiting: Option<Line>,
    /// Lines that a later one has replaced.
    suppressed: u64,
    window_ends: Option<Instant>,
    lines_left: u8,
}

impl LinkLog {
    /// Adds a line, in place of one that waits.
    pub fn add(&mut self, line: Line) {
        self.suppressed += u64::from(self.waiting.replace(line).is_some());
    }

    /// The line to be written now, and how many were left out before it.
    pub fn next_line(&mut self, now: Instant) -> Option<(Line, u64)> {
        let line = self.waiting.take()?;
        if self.window_ends.is_none_or(|ends| ends <= now) {
            (self.window_ends, self.lines_left) = (Some(now + WINDOW), LINES_MAX);
        }
        if self.lines_left == 0 {
            self.waiting = Some(line);
            return None;
        }
        self.lines_left -= 1;
        Some((line, std::mem::take(&mut self.suppressed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_comes_and_goes_has_few_lines_and_the_last_one_says_how_it_is() {
        let (mut log, start) = (LinkLog::default(), Instant::now());
        let mut lines = Vec::new();
        for number in 0..100 {
            let now = start + Duration::from_millis(90 * number);
            let lost = Line::Lost(number.to_string());
            for line in [Line::Connected, lost] {
                log.add(line);
                lines.extend(log.next_line(now));
            }
        }
        assert_eq!(lines.len(), usize::from(LINES_MAX));
        assert!(lines.iter().all(|(_, suppressed)| *suppressed == 0));
        assert_eq!(log.next_line(start + WINDOW - Duration::from_millis(1)), None);
        let last = Some((Line::Lost("99".into()), 200 - u64::from(LINES_MAX) - 1));
        assert_eq!(log.next_line(start + WINDOW), last);
        assert_eq!(log.next_line(start + WINDOW), None);
    }
}
