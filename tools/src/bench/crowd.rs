//! What most scenarios start with: a worker's share of connections that come up, authenticate, stay
//! alive and go through the run's phases together.

use super::args::CommonArgs;
use super::course::{Seat, Share};
use super::engine::{CloseCause, Link, Nanos, Next, Sockets};
use super::sessions::Sessions;
use super::stopwatch::{Edge, Standing, Stopwatch};
use crate::count::{counted, grouped};

/// A share of the connections.
#[derive(Debug)]
pub(super) struct Crowd {
    pub(super) sessions: Sessions,
    pub(super) stopwatch: Stopwatch,
    /// Speaks no protocol.
    pub(super) raw: bool,
    /// Of those that are up, the entrance knows so many.
    known_up: usize,
    patience_ns: Nanos,
}

impl Crowd {
    pub(super) fn new(args: &CommonArgs, seat: &Seat, raw: bool) -> anyhow::Result<Self> {
        let sessions = Sessions::new(args, seat.share, raw);
        let patience_ns = u64::try_from(args.patience.as_nanos())?;
        Ok(Self { sessions, stopwatch: Stopwatch::new(args, seat)?, raw, known_up: 0, patience_ns })
    }

    pub(super) fn share(&self) -> Share {
        self.stopwatch.share()
    }

    /// How a worker stands whose connections are all that has to be ready, and which has received
    /// so much beside what belongs to the sessions.
    pub(super) fn standing(&self, drained: bool, received: u64) -> Standing {
        let drained = drained && self.sessions.pongs_are_in();
        let received = received + self.sessions.pulse().received;
        Standing { ready: self.sessions.all_up(), finished: false, drained, received }
    }

    /// Connects, sends heartbeats, moves on: what there is to do, and when there is more.
    ///
    /// # Errors
    /// A heartbeat or something else that is due has not come; nobody is let in.
    pub(super) fn tick(
        &mut self,
        standing: Standing,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<(Option<Edge>, Next)> {
        let session_at = self.sessions.tick(sockets, now)?;
        self.look_at_the_entrance(now)?;
        let edge = self.stopwatch.tick(standing, now)?;
        match edge {
            Some(Edge::Measure) => self.sessions.count_pongs_from_now(),
            Some(Edge::Stop) => {
                self.sessions.stop_counting_pongs();
                self.sessions.pause_heartbeats();
            }
            Some(Edge::Done) => return Ok((edge, Next::Done)),
            Some(Edge::Start) | None => {}
        }
        Ok((edge, Next::Whenever.min(session_at).min(self.stopwatch.phase_ends_at())))
    }

    /// Says who has come in, and whether somebody waits for too long.
    fn look_at_the_entrance(&mut self, now: Nanos) -> anyhow::Result<()> {
        let Seat { course, share, .. } = &self.stopwatch.seat;
        let up = self.sessions.up();
        if up > self.known_up {
            course.entrance.let_in(up - self.known_up, now);
            self.known_up = up;
        }
        if let Some(since) = self.sessions.waits_since()
            && let Some(remark) = course.entrance.look(since, self.patience_ns, now, |up| {
                format!("up are {} of {}", grouped(up), counted(share.total, "connection"))
            })?
        {
            course.remark(remark);
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) {
        self.sessions.opened(slot, &mut link.out, now);
    }

    /// A connection that is lost ends the run.
    pub(super) fn closed(&self, slot: usize, cause: &CloseCause) -> anyhow::Result<()> {
        Err(self.sessions.closed(slot, cause))
    }

    /// Takes another worker's findings in.
    pub(super) fn merge(&mut self, other: Self) {
        self.sessions.merge(other.sessions);
    }
}
