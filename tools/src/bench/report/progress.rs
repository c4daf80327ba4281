//! The progress bar of a run.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bench::clock::Nanos;

/// How often a progress bar moves.
const PROGRESS_INTERVAL_NS: Nanos = 100_000_000;

/// A progress bar on standard error. Shows nothing where that is no terminal.
#[derive(Debug)]
pub(in crate::bench) struct Progress {
    bar: ProgressBar,
    moved_at: Nanos,
}

impl Progress {
    pub(in crate::bench) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{msg:12} {wide_bar} {human_pos}/{human_len} {eta}")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar, moved_at: 0 }
    }

    /// Hides the bar while `print` writes to the terminal.
    pub(in crate::bench) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Moves the bar, at most once per interval.
    #[inline]
    pub(in crate::bench) fn set(&mut self, position: u64, now: Nanos) {
        if now >= self.moved_at + PROGRESS_INTERVAL_NS {
            self.moved_at = now;
            self.bar.set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
