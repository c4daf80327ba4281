//! Calls that a backend's routes have refused, by reason.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Backend;
use super::circuit::Circuit;

/// The metric: name and help text.
pub const REFUSED_CALLS: (&str, &str) = (
    "tidegate_refused_calls_total",
    "Requests that were refused before they were handed to the backend, by reason: route_full (in_flight_max), queue_full \
     (queue_calls_max, queue_bytes_max), waiting (waiting_ms_max), circuit (circuit_timeouts), route_rate (calls_per_second_max), \
     user_rate (user_calls_per_second_max).",
);
/// See [`REFUSED_CALLS`].
pub const CIRCUIT_OPEN: (&str, &str) = (
    "tidegate_circuit_open",
    "1 while the backend gets only probes, since it answered no call in time; 0 otherwise.",
);
/// See [`REFUSED_CALLS`].
pub const CIRCUIT_OPENINGS: (&str, &str) =
    ("tidegate_circuit_openings_total", "Times the backend's circuit opened.");

/// Why a request is not handed to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The route has as many calls in flight as it may: 104.
    RouteFull,
    /// The backend's queue has too many calls or bytes: 104.
    QueueFull,
    /// It would wait too long for a worker: 104.
    Waiting,
    /// The backend answers no call: 104.
    Circuit,
    /// The route gets more calls than it may: 103.
    RouteRate,
    /// The user calls the route more often than a user may: 103.
    UserRate,
}

impl Refusal {
    const ALL: [Self; 6] = [
        Self::RouteFull,
        Self::QueueFull,
        Self::Waiting,
        Self::Circuit,
        Self::RouteRate,
        Self::UserRate,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::RouteFull => "route_full",
            Self::QueueFull => "queue_full",
            Self::Waiting => "waiting",
            Self::Circuit => "circuit",
            Self::RouteRate => "route_rate",
            Self::UserRate => "user_rate",
        }
    }
}

/// How many requests all shards have refused, by [`Refusal`].
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    /// Counts one.
    pub fn count(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn counted(&self, refusal: Refusal) -> u64 {
        self.0[refusal as usize].load(Ordering::Relaxed)
    }
}

/// The refusals and the circuits of all backends, for the page of metrics.
#[derive(Clone, Debug)]
pub struct RefusalMetrics(Vec<Observed>);

#[derive(Clone, Debug)]
struct Observed {
    backend: Arc<str>,
    refusals: Arc<Refusals>,
    circuit: Option<Arc<Circuit>>,
}

impl RefusalMetrics {
    /// The metrics of these backends.
    #[must_use]
    pub fn new(backends: &[Backend]) -> Self {
        let of = |backend: &Backend| Observed {
            backend: Arc::clone(&backend.name),
            refusals: Arc::clone(&backend.refusals),
            circuit: backend.circuit.clone(),
        };
        Self(backends.iter().map(of).collect())
    }

    /// Writes them as Prometheus reads them.
    pub fn render(&self, page: &mut String) {
        head(page, REFUSED_CALLS, "counter");
        for Observed { backend, refusals, .. } in &self.0 {
            for refusal in Refusal::ALL {
                let labels = format!("backend=\"{backend}\",reason=\"{}\"", refusal.label());
                line(page, REFUSED_CALLS.0, &labels, refusals.counted(refusal));
            }
        }
        self.circuits(page, CIRCUIT_OPEN, "gauge", |circuit| circuit.is_open().into());
        self.circuits(page, CIRCUIT_OPENINGS, "counter", Circuit::openings);
        page.push('\n');
    }

    fn circuits(
        &self,
        page: &mut String,
        metric: (&str, &str),
        kind: &str,
        value: impl Fn(&Circuit) -> u64,
    ) {
        head(page, metric, kind);
        for Observed { backend, circuit, .. } in &self.0 {
            // A backend without a circuit has one that never opens.
            let value = circuit.as_deref().map_or(0, &value);
            line(page, metric.0, &format!("backend=\"{backend}\""), value);
        }
    }
}

// Writing to a string can't fail.

fn head(page: &mut String, (name, help): (&str, &str), kind: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(page: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(page, "{name}{{{labels}}} {value}");
}
