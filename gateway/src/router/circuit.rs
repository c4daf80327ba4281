//! When a backend gets no more calls, since it answers none.
//!
//! A call that times out has occupied its client, its place in the queue, and mostly a worker, for as long as the timeout. When many time out in a
//! row, and no call was answered in time for as long as a timeout, the circuit *opens*: calls are refused at once. One call at
//! a time, a *probe*, is let through, at intervals that double up to 30 s. Any answer in time closes the circuit, a failure
//! too: a handler that panics is not dead.
//!
//! All shards share the circuit. It writes to that memory at most once in a millisecond for each shard while calls are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use tidegate_backend::log_limit::LogLimit;

/// The time from the opening to the first probe, in milliseconds.
const PROBE_MS_MIN: u64 = 1_000;

/// The longest time between the timeout of a probe and the next one, in milliseconds.
const PROBE_MS_MAX: u64 = 30_000;

/// The value of [`Circuit::probe_at_ms`] while the circuit is closed.
const CLOSED: u64 = 0;

/// A circuit of one backend. Times are in milliseconds on the shards' clock.
#[derive(Debug)]
pub struct Circuit {
    backend: Arc<str>,
    /// Timeouts in a row that open it: at least 1.
    timeouts_max: u32,
    /// Timeouts since the last answer.
    timeouts: AtomicU32,
    /// When the last answer came.
    answered_ms: AtomicU64,
    /// When the next probe is due.
    probe_at_ms: AtomicU64,
    /// The time after the timeout of the next probe until the one after it.
    interval_ms: AtomicU64,
    openings: AtomicU64,
    /// The limits on log lines of openings and of ends.
    opened_log: LogLimit,
    closed_log: LogLimit,
}

impl Circuit {
    /// A closed circuit.
    #[must_use]
    pub fn new(backend: Arc<str>, timeouts_max: u32) -> Self {
        Self {
            backend,
            timeouts_max: timeouts_max.max(1),
            timeouts: AtomicU32::new(0),
            answered_ms: AtomicU64::new(0),
            probe_at_ms: AtomicU64::new(CLOSED),
            interval_ms: AtomicU64::new(PROBE_MS_MIN),
            openings: AtomicU64::new(0),
            opened_log: LogLimit::new(),
            closed_log: LogLimit::new(),
        }
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.probe_at_ms.load(Relaxed) != CLOSED
    }

    /// How often it has opened.
    #[must_use]
    pub fn openings(&self) -> u64 {
        self.openings.load(Relaxed)
    }

    /// Lets a call with this timeout through, if it is closed or a probe is due.
    ///
    /// # Errors
    /// How long it is until the next probe.
    #[inline]
    pub fn admit(&self, timeout_ms: u64, now_ms: u64) -> Result<(), u64> {
        match self.probe_at_ms.load(Relaxed) {
            CLOSED => Ok(()),
            probe_at_ms => self.probe(probe_at_ms, timeout_ms, now_ms),
        }
    }

    #[cold]
    fn probe(&self, probe_at_ms: u64, timeout_ms: u64, now_ms: u64) -> Result<(), u64> {
        if let Some(wait_ms) = probe_at_ms.checked_sub(now_ms)
            && wait_ms > 0
        {
            return Err(wait_ms);
        }
        let interval_ms = self.interval_ms.load(Relaxed);
        let next_ms = now_ms.saturating_add(timeout_ms).saturating_add(interval_ms);
        // Of several shards, one sends the probe.
        let won = self.probe_at_ms.compare_exchange(probe_at_ms, next_ms, Relaxed, Relaxed);
        if won.is_err() {
            return Err(timeout_ms);
        }
        self.interval_ms.store((interval_ms * 2).min(PROBE_MS_MAX), Relaxed);
        Ok(())
    }

    /// A call was answered in time.
    #[inline]
    pub fn note_answer(&self, now_ms: u64) {
        if self.answered_ms.load(Relaxed) != now_ms {
            self.answered_ms.store(now_ms, Relaxed);
        }
        if self.timeouts.load(Relaxed) != 0 {
            self.timeouts.store(0, Relaxed);
        }
        if self.is_open() {
            self.close(now_ms);
        }
    }

    #[cold]
    fn close(&self, now_ms: u64) {
        if self.probe_at_ms.swap(CLOSED, Relaxed) == CLOSED {
            return;
        }
        if let Some(suppressed) = self.closed_log.allow_at(now_ms) {
            let backend = &*self.backend;
            tracing::info!(backend, suppressed, "the backend answers again: its circuit is closed");
        }
    }

    /// A call with this timeout has timed out.
    pub fn note_timeout(&self, timeout_ms: u64, now_ms: u64) {
        let timeouts = self.timeouts.fetch_add(1, Relaxed).saturating_add(1);
        let silent_ms = now_ms.saturating_sub(self.answered_ms.load(Relaxed));
        if timeouts < self.timeouts_max || silent_ms < timeout_ms {
            return;
        }
        let probe_at_ms = now_ms + PROBE_MS_MIN;
        if self.probe_at_ms.compare_exchange(CLOSED, probe_at_ms, Relaxed, Relaxed).is_err() {
            return;
        }
        self.interval_ms.store(PROBE_MS_MIN, Relaxed);
        self.openings.fetch_add(1, Relaxed);
        if let Some(suppressed) = self.opened_log.allow_at(now_ms) {
            tracing::warn!(
                backend = &*self.backend,
                timeouts,
                silent_ms,
                suppressed,
                "the backend answers no call: its circuit is open, and calls get 104"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT_MS: u64 = 100;

    fn circuit() -> Circuit {
        Circuit::new("quiz".into(), 3)
    }

    fn time_out(circuit: &Circuit, times: u32, now_ms: u64) {
        (0..times).for_each(|_| circuit.note_timeout(TIMEOUT_MS, now_ms));
    }

    #[test]
    fn it_opens_when_calls_only_time_out() {
        let circuit = circuit();
        time_out(&circuit, 2, 1_000);
        circuit.note_answer(1_001);
        time_out(&circuit, 2, 1_200);
        assert!(!circuit.is_open(), "one was answered between them");
        time_out(&circuit, 1, 1_200);
        assert!(circuit.is_open());
        assert_eq!(circuit.admit(TIMEOUT_MS, 1_200), Err(1_000));
        time_out(&circuit, 5, 1_300);
        assert_eq!((circuit.openings(), circuit.admit(TIMEOUT_MS, 1_300)), (1, Err(900)));
    }

    #[test]
    fn it_stays_closed_while_an_answer_is_younger_than_the_timeout() {
        let circuit = circuit();
        circuit.note_answer(1_000);
        time_out(&circuit, 50, 1_099);
        assert_eq!(circuit.admit(TIMEOUT_MS, 1_099), Ok(()));
        time_out(&circuit, 1, 1_100);
        assert!(circuit.is_open());
    }

    #[test]
    fn probes_are_single_and_their_intervals_double() {
        let circuit = circuit();
        time_out(&circuit, 3, 1_000);
        let mut probes = Vec::new();
        for now_ms in 1_000..200_000 {
            if circuit.admit(TIMEOUT_MS, now_ms).is_ok() {
                probes.push(now_ms);
            }
            if probes.last().is_some_and(|sent_ms| sent_ms + TIMEOUT_MS == now_ms) {
                time_out(&circuit, 1, now_ms);
            }
        }
        let pauses: Vec<_> = probes.windows(2).map(|pair| pair[1] - pair[0] - TIMEOUT_MS).collect();
        assert_eq!(probes[0], 2_000);
        assert_eq!(
            pauses,
            [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000, 30_000]
        );
    }

    #[test]
    fn an_answer_closes_it() {
        let circuit = circuit();
        time_out(&circuit, 3, 1_000);
        assert_eq!(circuit.admit(TIMEOUT_MS, 2_000), Ok(()));
        assert!(circuit.admit(TIMEOUT_MS, 2_000).is_err());
        circuit.note_answer(2_050);
        assert_eq!(circuit.admit(TIMEOUT_MS, 2_050), Ok(()));
        time_out(&circuit, 3, 3_000);
        assert_eq!((circuit.openings(), circuit.admit(TIMEOUT_MS, 3_999)), (2, Err(1)));
        assert_eq!(circuit.admit(TIMEOUT_MS, 4_000), Ok(()));
        assert_eq!(circuit.admit(TIMEOUT_MS, 4_001), Err(1_099), "the intervals begin again");
    }
}
