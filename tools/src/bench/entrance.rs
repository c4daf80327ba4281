//! Whether the gateway lets anybody in. One that is full stops accepting: the kernel goes on to take
//! connections, whose first words nobody answers, and who waits for them would wait for ever.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use anyhow::bail;

use super::engine::Nanos;

/// How long nobody is let in before that is said. No longer than half of the patience there is.
const SILENT_MAX_NS: Nanos = 5_000_000_000;

/// What there is to look at.
pub(super) const FULL: &str = "A gateway that is full stops accepting: look at its log, at its \
     limits.connections_max and at its limit of open files (ulimit -n); `tide doctor` with the number of \
     connections and --pid says which is too small";

/// What all workers know of those who come.
#[derive(Debug, Default)]
pub(super) struct Entrance {
    up: AtomicUsize,
    /// When a worker last saw somebody let in.
    let_in_at: AtomicU64,
    /// Since then it was said that nobody is.
    said: AtomicBool,
}

impl Entrance {
    /// So many more are up.
    pub(super) fn let_in(&self, count: usize, now: Nanos) {
        self.up.fetch_add(count, Ordering::Relaxed);
        self.let_in_at.fetch_max(now, Ordering::Relaxed);
        self.said.store(false, Ordering::Relaxed);
    }

    /// A worker has had somebody waiting since then: what is to be said of it, once. `standing` says how
    /// it stands when so many have been let in.
    ///
    /// # Errors
    /// Nobody at all has been let in for as long as there is patience.
    pub(super) fn look(
        &self,
        since: Nanos,
        patience_ns: Nanos,
        now: Nanos,
        standing: impl Fn(usize) -> String,
    ) -> anyhow::Result<Option<String>> {
        let waited_ns = now.saturating_sub(since.max(self.let_in_at.load(Ordering::Relaxed)));
        let standing = || standing(self.up.load(Ordering::Relaxed));
        let seconds = waited_ns as f64 / 1e9;
        if waited_ns >= patience_ns {
            bail!("nobody has been let in for {seconds:.0} s (--patience): {}. {FULL}", standing());
        }
        let is_long = waited_ns >= SILENT_MAX_NS.min(patience_ns / 2);
        if !is_long || self.said.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let left = (patience_ns - waited_ns) as f64 / 1e9;
        Ok(Some(format!(
            "nobody has been let in for {seconds:.0} s: {}; waiting for {left:.0} s more, as the gateway may \
             be full",
            standing()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn look(entrance: &Entrance, since: Nanos, now: Nanos) -> anyhow::Result<Option<String>> {
        entrance.look(since * SECOND, 30 * SECOND, now * SECOND, |up| format!("{up} of 9 are up"))
    }

    #[test]
    fn a_wait_is_said_once_and_bounded() {
        let entrance = Entrance::default();
        entrance.let_in(4, SECOND);
        assert_eq!(look(&entrance, 0, 5).unwrap(), None);
        let said = look(&entrance, 0, 6).unwrap().unwrap();
        assert!(said.contains("for 5 s: 4 of 9 are up"), "{said}");
        assert_eq!(look(&entrance, 0, 7).unwrap(), None);
        let ended = look(&entrance, 0, 31).unwrap_err().to_string();
        assert!(ended.contains("4 of 9"), "{ended}");
        assert!(ended.contains("limits.connections_max") && ended.contains("ulimit -n"), "{ended}");
    }

    #[test]
    fn who_is_let_in_anywhere_begins_the_wait_anew() {
        let entrance = Entrance::default();
        assert!(look(&entrance, 0, 6).unwrap().is_some());
        entrance.let_in(1, 29 * SECOND);
        assert_eq!(look(&entrance, 0, 33).unwrap(), None);
        assert!(look(&entrance, 0, 34).unwrap().is_some());
        // Somebody who came late has not waited for long.
        assert_eq!(look(&entrance, 100, 104).unwrap(), None);
    }

    #[test]
    fn little_patience_is_half_over_when_it_is_said() {
        let entrance = Entrance::default();
        let look = |now| entrance.look(0, 2 * SECOND, now, |up| up.to_string());
        assert_eq!(look(SECOND - 1).unwrap(), None);
        assert!(look(SECOND).unwrap().is_some());
        assert!(look(2 * SECOND).is_err());
    }
}
