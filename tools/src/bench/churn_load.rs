//! The base of scenarios that open and close connections all the time: which slots are free, which
//! connections wait to be admitted, and when no new ones start.

use std::time::Duration;

use anyhow::Context as _;

use super::admission::FULL_HINT;
use super::clock::Nanos;
use super::latency::Latency;
use super::phases::{Phases, Transition, WorkerStatus};
use super::run_state::{Share, WorkerContext};
use crate::count::{counted, grouped};

/// A worker's slots, each used for one connection after another.
#[derive(Debug)]
pub(super) struct ChurnLoad {
    /// Slots without a connection.
    free: Vec<usize>,
    /// Connections that have started and not ended.
    open: usize,
    /// Slots from this one on authenticate; those before it stay silent.
    active_from: usize,
    /// Connections that have started and are not admitted. waiting <= open
    waiting: usize,
    /// Since when connections wait without any admission.
    waiting_since: Nanos,
    /// Admissions since the last tick.
    admitted: usize,
    admission_timeout_ns: Nanos,
    stopping: bool,
    counting: bool,
}

impl ChurnLoad {
    /// All slots of a worker's share, free. The first `silent` of them never authenticate, so they are
    /// never admitted.
    pub(super) fn new(share: Share, silent: usize, admission_timeout: Duration) -> Self {
        Self {
            active_from: share.first + silent,
            waiting: 0,
            waiting_since: 0,
            admitted: 0,
            admission_timeout_ns: u64::try_from(admission_timeout.as_nanos()).unwrap_or(Nanos::MAX),
            free: (share.first..share.end()).rev().collect(),
            open: 0,
            stopping: false,
            counting: false,
        }
    }

    /// Takes a free slot, which the caller has to connect. `None` when none is free or the run stops.
    pub(super) fn start_next(&mut self, now: Nanos) -> Option<usize> {
        let slot = if self.stopping { None } else { self.free.pop() }?;
        self.open += 1;
        if slot >= self.active_from {
            if self.waiting == 0 {
                self.waiting_since = now;
            }
            self.waiting += 1;
        }
        Some(slot)
    }

    /// The gateway has admitted a connection.
    pub(super) fn record_admitted(&mut self, now: Nanos) {
        self.waiting -= 1;
        self.admitted += 1;
        self.waiting_since = now;
    }

    /// A slot's connection has ended.
    pub(super) fn record_closed(&mut self, slot: usize) {
        self.open -= 1;
        self.free.push(slot);
    }

    /// Connections that have started and not ended.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Whether no new connections start.
    pub(super) fn stopping(&self) -> bool {
        self.stopping
    }

    /// Whether the measured window is open.
    pub(super) fn counting(&self) -> bool {
        self.counting
    }

    /// Moves to the next phase when it is time. Returns whether the run is over.
    ///
    /// # Errors
    /// An answer is overdue, or the gateway admits nobody.
    pub(super) fn tick(
        &mut self,
        phases: &mut Phases,
        latency: &mut Latency,
        received: u64,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        self.check_admission(&phases.context, now)?;
        let drained = self.open == 0;
        let standing = WorkerStatus { ready: true, finished: false, drained, received };
        let mut transition = phases.tick(standing, now);
        if self.stopping && self.waiting > 0 {
            transition = transition.with_context(|| {
                format!("{} not admitted. {FULL_HINT}", counted(self.waiting, "connection"))
            });
        }
        match transition? {
            Some(Transition::Measure) => {
                self.counting = true;
                latency.start_counting();
            }
            Some(Transition::Stop) => {
                (self.counting, self.stopping) = (false, true);
                latency.stop_counting();
            }
            Some(Transition::Done) => return Ok(true),
            Some(Transition::Start) | None => {}
        }
        Ok(false)
    }

    /// Reports new admissions, and checks how long the others have waited.
    fn check_admission(&mut self, context: &WorkerContext, now: Nanos) -> anyhow::Result<()> {
        let admission = &context.run_state.admission;
        if self.admitted > 0 {
            admission.record_admitted(std::mem::take(&mut self.admitted), now);
        }
        if self.waiting == 0 {
            return Ok(());
        }
        let total = grouped(context.share.total);
        let progress =
            |up| format!("{} admitted so far, and {total} try at the same time", grouped(up));
        let (since, timeout_ns) = (self.waiting_since, self.admission_timeout_ns);
        if let Some(notice) = admission.check(since, timeout_ns, now, progress)? {
            context.run_state.add_notice(notice);
        }
        Ok(())
    }
}
