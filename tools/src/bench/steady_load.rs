//! The base of most scenarios: a worker's share of connections that connect, authenticate, stay open and
//! pass through the run's phases together. The counterpart is [`ChurnLoad`](super::churn_load::ChurnLoad).

use super::args::CommonArgs;
use super::clock::Nanos;
use super::engine::Next;
use super::phases::{Phases, Transition, WorkerStatus};
use super::run_state::{Share, WorkerContext};
use super::sessions::Sessions;
use super::sockets::{CloseCause, Link, Sockets};
use crate::count::{counted, grouped};

/// A worker's share of the connections.
#[derive(Debug)]
pub(super) struct SteadyLoad {
    pub(super) sessions: Sessions,
    pub(super) phases: Phases,
    /// Sends and expects bare bytes, without the protocol.
    pub(super) raw: bool,
    /// The connections that [`AdmissionWatch`](super::admission::AdmissionWatch) knows to be up.
    known_up: usize,
    admission_timeout_ns: Nanos,
}

impl SteadyLoad {
    pub(super) fn new(
        args: &CommonArgs,
        context: &WorkerContext,
        raw: bool,
    ) -> anyhow::Result<Self> {
        let sessions = Sessions::new(args, context.share, raw);
        let admission_timeout_ns = u64::try_from(args.admission_timeout.as_nanos())?;
        Ok(Self {
            sessions,
            phases: Phases::new(args, context)?,
            raw,
            known_up: 0,
            admission_timeout_ns,
        })
    }

    pub(super) fn share(&self) -> Share {
        self.phases.share()
    }

    /// The status of a worker that needs nothing but its connections to be ready. `received` counts the
    /// messages beside those of the sessions.
    pub(super) fn standing(&self, drained: bool, received: u64) -> WorkerStatus {
        let drained = drained && self.sessions.all_pongs_received();
        let received = received + self.sessions.counters().received;
        WorkerStatus { ready: self.sessions.all_up(), finished: false, drained, received }
    }

    /// Connects, sends heartbeats and moves to the next phase. Returns the phase change, and when to call
    /// it again.
    ///
    /// # Errors
    /// A heartbeat or another answer is overdue, or the gateway admits nobody.
    pub(super) fn tick(
        &mut self,
        standing: WorkerStatus,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<(Option<Transition>, Next)> {
        let session_at = self.sessions.tick(sockets, now)?;
        self.check_admission(now)?;
        let transition = self.phases.tick(standing, now)?;
        match transition {
            Some(Transition::Measure) => self.sessions.start_counting_pongs(),
            Some(Transition::Stop) => {
                self.sessions.stop_counting_pongs();
                self.sessions.pause_heartbeats();
            }
            Some(Transition::Done) => return Ok((transition, Next::Done)),
            Some(Transition::Start) | None => {}
        }
        Ok((transition, Next::NoDeadline.min(session_at).min(self.phases.phase_ends_at())))
    }

    /// Reports new sessions, and checks how long the others have waited.
    fn check_admission(&mut self, now: Nanos) -> anyhow::Result<()> {
        let WorkerContext { run_state, share, .. } = &self.phases.context;
        let up = self.sessions.up();
        if up > self.known_up {
            run_state.admission.record_admitted(up - self.known_up, now);
            self.known_up = up;
        }
        if let Some(since) = self.sessions.waiting_since()
            && let Some(notice) =
                run_state.admission.check(since, self.admission_timeout_ns, now, |up| {
                    format!("{} of {} are up", grouped(up), counted(share.total, "connection"))
                })?
        {
            run_state.add_notice(notice);
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) {
        self.sessions.opened(slot, &mut link.out, now);
    }

    /// The error for a closed connection: it ends the run, since every connection has to stay open.
    pub(super) fn closed(&self, slot: usize, cause: &CloseCause) -> anyhow::Result<()> {
        Err(self.sessions.closed(slot, cause))
    }

    /// Adds another worker's results.
    pub(super) fn merge(&mut self, other: Self) {
        self.sessions.merge(other.sessions);
    }
}
