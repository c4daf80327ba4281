//! Detects a gateway that admits nobody. A full gateway stops accepting, but the kernel still completes
//! connections into its accept queue. Nobody answers the first request on these, so a client without a
//! time limit would wait forever.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::bail;

use super::clock::Nanos;

/// A wait of this length is reported, or of half the time limit where that is shorter.
const REPORT_AFTER_NS: Nanos = 5_000_000_000;

/// What an operator should check.
pub(super) const FULL_HINT: &str = "A gateway that is full stops accepting: check its log, its \
     limits.connections_max and at its limit of open files (ulimit -n); `tide doctor` with the number of \
     connections and --pid says which is too small";

/// The admissions that all workers have seen.
#[derive(Debug, Default)]
pub(super) struct AdmissionWatch {
    admitted: AtomicUsize,
    /// When a worker last saw an admission.
    admitted_at: AtomicU64,
    /// Whether the present wait has been reported.
    reported: AtomicBool,
}

impl AdmissionWatch {
    /// Notes `count` further admissions.
    pub(super) fn record_admitted(&self, count: usize, now: Nanos) {
        self.admitted.fetch_add(count, Ordering::Relaxed);
        self.admitted_at.fetch_max(now, Ordering::Relaxed);
        self.reported.store(false, Ordering::Relaxed);
    }

    /// Checks a worker's wait that began at `since`. Returns a line to print, once for each wait.
    /// `progress` describes the run, given the number of admissions.
    ///
    /// # Errors
    /// No worker has seen an admission for `timeout_ns`.
    pub(super) fn check(
        &self,
        since: Nanos,
        timeout_ns: Nanos,
        now: Nanos,
        progress: impl Fn(usize) -> String,
    ) -> anyhow::Result<Option<String>> {
        let waited_ns = now.saturating_sub(since.max(self.admitted_at.load(Ordering::Relaxed)));
        let progress = || progress(self.admitted.load(Ordering::Relaxed));
        let seconds = waited_ns as f64 / 1e9;
        if waited_ns >= timeout_ns {
            bail!(
                "the gateway has admitted nobody for {seconds:.0} s (--admission-timeout): {}. {FULL_HINT}",
                progress()
            );
        }
        let is_long = waited_ns >= REPORT_AFTER_NS.min(timeout_ns / 2);
        if !is_long || self.reported.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let left = (timeout_ns - waited_ns) as f64 / 1e9;
        Ok(Some(format!(
            "the gateway has admitted nobody for {seconds:.0} s: {}; it may be full; giving up in {left:.0} s",
            progress()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn check(watch: &AdmissionWatch, since: Nanos, now: Nanos) -> anyhow::Result<Option<String>> {
        watch.check(since * SECOND, 30 * SECOND, now * SECOND, |up| format!("{up} of 9 are up"))
    }

    #[test]
    fn a_long_wait_is_reported_once_and_then_ends_the_run() {
        let watch = AdmissionWatch::default();
        watch.record_admitted(4, SECOND);
        assert_eq!(check(&watch, 0, 5).unwrap(), None);
        let notice = check(&watch, 0, 6).unwrap().unwrap();
        assert!(notice.contains("for 5 s: 4 of 9 are up"), "{notice}");
        assert_eq!(check(&watch, 0, 7).unwrap(), None);
        let error = check(&watch, 0, 31).unwrap_err().to_string();
        assert!(error.contains("4 of 9"), "{error}");
        assert!(error.contains("limits.connections_max") && error.contains("ulimit -n"), "{error}");
    }

    #[test]
    fn an_admission_seen_by_any_worker_restarts_the_wait() {
        let watch = AdmissionWatch::default();
        assert!(check(&watch, 0, 6).unwrap().is_some());
        watch.record_admitted(1, 29 * SECOND);
        assert_eq!(check(&watch, 0, 33).unwrap(), None);
        assert!(check(&watch, 0, 34).unwrap().is_some());
        // A worker whose wait began late has not waited for long.
        assert_eq!(check(&watch, 100, 104).unwrap(), None);
    }

    #[test]
    fn a_short_timeout_is_reported_after_half_of_it() {
        let watch = AdmissionWatch::default();
        let check = |now| watch.check(0, 2 * SECOND, now, |up| up.to_string());
        assert_eq!(check(SECOND - 1).unwrap(), None);
        assert!(check(SECOND).unwrap().is_some());
        assert!(check(2 * SECOND).is_err());
    }
}
