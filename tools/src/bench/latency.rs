//! Latencies and counts as they come about, second by second and over the measured window.
//!
//! A latency is recorded once, in the histogram of the current second. When the second is over, it
//! goes to the window's, and to where the run's main thread picks it up.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::report::{histogram, record};

/// Latencies of one kind, as one worker sees them.
#[derive(Debug)]
pub(super) struct Latency {
    second: Histogram<u64>,
    window: Histogram<u64>,
    counting: bool,
}

impl Latency {
    /// One that counts from when it is told to.
    pub(super) fn new() -> Self {
        Self { second: histogram(), window: histogram(), counting: false }
    }

    /// One that counts from the outset, and to the end.
    pub(super) fn counting() -> Self {
        Self { counting: true, ..Self::new() }
    }

    #[inline]
    pub(super) fn record(&mut self, latency_ns: u64) {
        record(&mut self.second, latency_ns);
    }

    /// Opens the window.
    pub(super) fn count_from_now(&mut self) {
        self.clear_second();
        self.counting = true;
    }

    /// Closes the window.
    pub(super) fn stop_counting(&mut self) {
        if std::mem::take(&mut self.counting) {
            add(&mut self.window, &self.second);
        }
    }

    /// The second is over.
    pub(super) fn flush(&mut self, live: Option<&Live>) {
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

    /// Leaves pages alone that were never written to: each of many workers has them.
    fn clear_second(&mut self) {
        if !self.second.is_empty() {
            self.second.reset();
        }
    }

    /// Takes the window of another worker's in.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.stop_counting();
        other.stop_counting();
        add(&mut self.window, &other.window);
    }

    /// All that was recorded in the window.
    pub(super) fn window(&mut self) -> &Histogram<u64> {
        self.stop_counting();
        &self.window
    }
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    sum.add(part).expect("all have the same bounds");
}

/// What has gone on in a worker since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    /// Connections that are up.
    pub(super) connections: u64,
    /// Messages sent.
    pub(super) sent: u64,
    /// Messages received.
    pub(super) received: u64,
}

impl Pulse {
    /// With messages sent and received beside.
    pub(super) fn with(self, (sent, received): (u64, u64)) -> Self {
        Self { sent: self.sent + sent, received: self.received + received, ..self }
    }
}

/// What a worker shows to the run's main thread.
#[derive(Debug)]
pub(super) struct Live {
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    second: Mutex<Histogram<u64>>,
}

impl Live {
    pub(super) fn new() -> Self {
        Self {
            connections: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            second: Mutex::new(histogram()),
        }
    }

    /// Shows how far the worker is.
    pub(super) fn show(&self, pulse: Pulse) {
        self.connections.store(pulse.connections, Ordering::Relaxed);
        self.sent.store(pulse.sent, Ordering::Relaxed);
        self.received.store(pulse.received, Ordering::Relaxed);
    }

    /// How far the worker is.
    pub(super) fn pulse(&self) -> Pulse {
        Pulse {
            connections: self.connections.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }

    /// Moves the latencies shown since the last time to `sum`.
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
    fn the_window_has_what_was_recorded_in_it_and_live_has_each_second() {
        let live = Live::new();
        let mut latency = Latency::new();
        latency.record(1);
        latency.flush(Some(&live));
        latency.count_from_now();
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
        let mut other = Latency::counting();
        other.record(9);
        latency.merge(other);
        assert_eq!((latency.window().len(), latency.window().max()), (3, 9));
    }
}
