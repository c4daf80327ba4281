//! Connections that come and go all the time: which slots are free, and when no more begin.

use super::course::Share;
use super::engine::Nanos;
use super::latency::Latency;
use super::stopwatch::{Edge, Standing, Stopwatch};

/// Slots that are used again and again.
#[derive(Debug)]
pub(super) struct Turnover {
    /// Slots to connect in the next tick.
    free: Vec<usize>,
    under_way: usize,
    stopping: bool,
    counting: bool,
}

impl Turnover {
    /// All slots of a worker's share, free.
    pub(super) fn new(share: Share) -> Self {
        Self {
            free: (share.first..share.end()).rev().collect(),
            under_way: 0,
            stopping: false,
            counting: false,
        }
    }

    /// A slot to connect, for as long as connections begin. It is under way from now on.
    pub(super) fn begin(&mut self) -> Option<usize> {
        let slot = if self.stopping { None } else { self.free.pop() }?;
        self.under_way += 1;
        Some(slot)
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

    /// Whether what happens now counts.
    pub(super) fn counting(&self) -> bool {
        self.counting
    }

    /// Goes through the run's stages. Says whether it is over.
    ///
    /// # Errors
    /// Something that is due does not come.
    pub(super) fn tick(
        &mut self,
        stopwatch: &mut Stopwatch,
        latency: &mut Latency,
        received: u64,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        let drained = self.under_way == 0;
        let standing = Standing { ready: true, finished: false, drained, received };
        match stopwatch.tick(standing, now)? {
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
}
