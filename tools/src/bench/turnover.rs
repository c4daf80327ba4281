//! Connections that come and go all the time: which slots are free, who waits to be let in, and when no
//! more begin.

use std::time::Duration;

use anyhow::Context as _;

use super::course::{Seat, Share};
use super::engine::Nanos;
use super::entrance::FULL;
use super::latency::Latency;
use super::stopwatch::{Edge, Standing, Stopwatch};
use crate::count::{counted, grouped};

/// Slots that are used again and again.
#[derive(Debug)]
pub(super) struct Turnover {
    /// Slots to connect in the next tick.
    free: Vec<usize>,
    under_way: usize,
    /// Slots from this one on are to be let in; those before it are silent.
    comers_from: usize,
    /// Begun and not let in. waiting <= under_way
    waiting: usize,
    /// Since when somebody waits, with nobody let in.
    waits_since: Nanos,
    /// Let in since the last tick.
    let_in: usize,
    patience_ns: Nanos,
    stopping: bool,
    counting: bool,
}

impl Turnover {
    /// All slots of a worker's share, free. The first so many are silent: nobody lets them in.
    pub(super) fn new(share: Share, silent: usize, patience: Duration) -> Self {
        Self {
            comers_from: share.first + silent,
            waiting: 0,
            waits_since: 0,
            let_in: 0,
            patience_ns: u64::try_from(patience.as_nanos()).unwrap_or(Nanos::MAX),
            free: (share.first..share.end()).rev().collect(),
            under_way: 0,
            stopping: false,
            counting: false,
        }
    }

    /// A slot to connect, for as long as connections begin. It is under way from now on.
    pub(super) fn begin(&mut self, now: Nanos) -> Option<usize> {
        let slot = if self.stopping { None } else { self.free.pop() }?;
        self.under_way += 1;
        if slot >= self.comers_from {
            if self.waiting == 0 {
                self.waits_since = now;
            }
            self.waiting += 1;
        }
        Some(slot)
    }

    /// A connection's user is in.
    pub(super) fn came_in(&mut self, now: Nanos) {
        self.waiting -= 1;
        self.let_in += 1;
        self.waits_since = now;
    }

    /// A slot's connection is gone.
    pub(super) fn gone(&mut self, slot: usize) {
        self.under_way -= 1;
        self.free.push(slot);
    }

    /// Connections that have begun and are not gone.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether no more begin.
    pub(super) fn stopping(&self) -> bool {
        self.stopping
    }

    /// Whether what happens now counts.
    pub(super) fn counting(&self) -> bool {
        self.counting
    }

    /// Goes through the run's stages. Says whether it is over.
    ///
    /// # Errors
    /// Something that is due does not come; nobody is let in.
    pub(super) fn tick(
        &mut self,
        stopwatch: &mut Stopwatch,
        latency: &mut Latency,
        received: u64,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        self.look_at_the_entrance(&stopwatch.seat, now)?;
        let drained = self.under_way == 0;
        let standing = Standing { ready: true, finished: false, drained, received };
        let mut edge = stopwatch.tick(standing, now);
        if self.stopping && self.waiting > 0 {
            edge = edge.with_context(|| {
                format!("{} not let in. {FULL}", counted(self.waiting, "connection"))
            });
        }
        match edge? {
            Some(Edge::Measure) => {
                self.counting = true;
                latency.count_from_now();
            }
            Some(Edge::Stop) => {
                (self.counting, self.stopping) = (false, true);
                latency.stop_counting();
            }
            Some(Edge::Done) => return Ok(true),
            Some(Edge::Start) | None => {}
        }
        Ok(false)
    }

    /// Says who has come in, and whether somebody waits for too long.
    fn look_at_the_entrance(&mut self, seat: &Seat, now: Nanos) -> anyhow::Result<()> {
        let entrance = &seat.course.entrance;
        if self.let_in > 0 {
            entrance.let_in(std::mem::take(&mut self.let_in), now);
        }
        if self.waiting == 0 {
            return Ok(());
        }
        let total = grouped(seat.share.total);
        let standing = |up| format!("let in so far: {}, and {total} try at a time", grouped(up));
        if let Some(remark) = entrance.look(self.waits_since, self.patience_ns, now, standing)? {
            seat.course.remark(remark);
        }
        Ok(())
    }
}
