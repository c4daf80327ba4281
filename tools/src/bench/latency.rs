//! Latencies and counters, for each second and for the measured window.
//!
//! A latency is recorded once, in the histogram of the current second. At the end of the second that
//! histogram is added to the window's, and to the one that the run's main thread takes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::report::{histogram, record};

/// Latencies of one kind in one worker.
#[derive(Debug)]
pub(super) struct Latency {
    second: Histogram<u64>,
    window: Histogram<u64>,
    counting: bool,
}

impl Latency {
    /// A recorder whose window opens with [`Self::start_counting`].
    pub(super) fn new() -> Self {
        Self { second: histogram(), window: histogram(), counting: false }
    }

    /// A recorder whose window is the whole run.
    pub(super) fn counting_from_start() -> Self {
        Self { counting: true, ..Self::new() }
    }

    #[inline]
    pub(super) fn record(&mut self, latency_ns: u64) {
        record(&mut self.second, latency_ns);
    }

    /// Opens the window.
    pub(super) fn start_counting(&mut self) {
        self.clear_second();
        self.counting = true;
    }

    /// Closes the window.
    pub(super) fn stop_counting(&mut self) {
        if std::mem::take(&mut self.counting) {
            add(&mut self.window, &self.second);
        }
    }

    /// Ends the second.
    pub(super) fn flush(&mut self, live: Option<&LiveStats>) {
        if self.second.is_empty() {
            return;
        }
        if self.counting {
            add(&mut self.window, &self.second);
        }
        if let Some(live) = live {
            add(&mut live.second.lock().expect("no holder panics"), &self.second);
        }
        self.clear_second();
    }

    /// Empties the second's histogram, unless it is empty: that would write to pages that are untouched so
    /// far and take no memory, in each of many workers.
    fn clear_second(&mut self) {
        if !self.second.is_empty() {
            self.second.reset();
        }
    }

    /// Adds the window of another worker.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.stop_counting();
        other.stop_counting();
        add(&mut self.window, &other.window);
    }

    /// The latencies of the window.
    pub(super) fn window(&mut self) -> &Histogram<u64> {
        self.stop_counting();
        &self.window
    }
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.add(part).expect("all have the same bounds");
}

/// What a worker has done since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Connections that are up.
    pub(super) connections: u64,
    /// Messages sent.
    pub(super) sent: u64,
    /// Messages received.
    pub(super) received: u64,
}

impl Counters {
    /// The same counters with further messages sent and received.
    pub(super) fn plus(self, (sent, received): (u64, u64)) -> Self {
        Self { sent: self.sent + sent, received: self.received + received, ..self }
    }
}

/// What a worker publishes for the run's main thread.
#[derive(Debug)]
pub(super) struct LiveStats {
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    second: Mutex<Histogram<u64>>,
}

impl LiveStats {
    pub(super) fn new() -> Self {
        Self {
            connections: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            second: Mutex::new(histogram()),
        }
    }

    /// Publishes the worker's counters.
    pub(super) fn publish(&self, counters: Counters) {
        self.connections.store(counters.connections, Ordering::Relaxed);
        self.sent.store(counters.sent, Ordering::Relaxed);
        self.received.store(counters.received, Ordering::Relaxed);
    }

    /// The counters that the worker published last.
    pub(super) fn counters(&self) -> Counters {
        Counters {
            connections: self.connections.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }

    /// Moves the latencies published since the last call to `sum`.
    pub(super) fn take_second(&self, sum: &mut Histogram<u64>) {
        let mut second = self.second.lock().expect("no holder panics");
        if !second.is_empty() {
            add(sum, &second);
            second.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_has_its_own_latencies_and_the_live_statistics_have_every_second() {
        let live = LiveStats::new();
        let mut latency = Latency::new();
        latency.record(1);
        latency.flush(Some(&live));
        latency.start_counting();
        latency.record(2);
        latency.flush(Some(&live));
        latency.record(3);
        latency.stop_counting();
        latency.record(4);
        latency.flush(Some(&live));
        assert_eq!((latency.window().len(), latency.window().max()), (2, 3));
        let mut seconds = histogram();
        live.take_second(&mut seconds);
        live.take_second(&mut seconds);
        assert_eq!((seconds.len(), seconds.max()), (4, 4));
        let mut other = Latency::counting_from_start();
        other.record(9);
        latency.merge(other);
        assert_eq!((latency.window().len(), latency.window().max()), (3, 9));
    }
}
