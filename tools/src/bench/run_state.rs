//! The state that the workers of a run share: when the run began, which stages all workers have reached,
//! and the first error. Nothing here blocks: each worker polls once per turn, so no worker can hang on
//! another one that has ended.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};

use super::admission::AdmissionWatch;
use super::clock::Nanos;
use super::latency::LiveStats;

/// A stage that all workers have to reach before any of them continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// All connections are up.
    Up,
    /// The server's memory has settled.
    IdleSettled,
    /// Each connection has had its large answer.
    LargeAnswered,
    /// The server's memory has settled again.
    LargeSettled,
    /// All preparation is done.
    Ready,
    /// The measured work is finished, where the work ends the window and not the clock.
    Finished,
    /// Nothing is in flight.
    Drained,
    /// All connections are closed.
    Left,
}

const STAGES: usize = Stage::Left as usize + 1;

/// What the run is doing, for the progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Connections are being opened, up to the total.
    Connecting,
    /// A phase with a known start and end.
    Timed(&'static str, Nanos, Nanos),
    /// A phase without a known end.
    Unbounded(&'static str),
}

/// Shared by the workers.
#[derive(Debug)]
pub(super) struct RunState {
    /// The origin of all times of this run.
    pub(super) origin: Instant,
    /// The server's memory before the first connection.
    pub(super) rss_before_bytes: u64,
    workers: usize,
    /// For each stage, how many workers have reached it.
    reached: [AtomicUsize; STAGES],
    /// When the load started; 0: not yet.
    started_at: AtomicU64,
    /// When any draining worker last received something.
    received_at: AtomicU64,
    /// Detects that the gateway admits nobody.
    pub(super) admission: AdmissionWatch,
    /// Lines that the main thread prints next, oldest first.
    notices: Mutex<Vec<String>>,
    failed: AtomicBool,
    first_error: Mutex<Option<anyhow::Error>>,
    activity: Mutex<Activity>,
    /// An eventfd: writing to it gives the worker that polls it a turn.
    wakeup: OwnedFd,
}

impl RunState {
    /// Starts the run's clock. Create it before the workers unshare their descriptor tables, so that all
    /// of them have its eventfd.
    pub(super) fn new(workers: usize, rss_before_bytes: u64) -> anyhow::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            origin: Instant::now(),
            rss_before_bytes,
            workers,
            reached: Default::default(),
            started_at: AtomicU64::new(0),
            received_at: AtomicU64::new(0),
            admission: AdmissionWatch::default(),
            notices: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            first_error: Mutex::new(None),
            activity: Mutex::new(Activity::Connecting),
            wakeup: eventfd(0, flags).context("no eventfd")?,
        })
    }

    /// Ends the run for all workers. Only the first error is kept.
    pub(super) fn fail(&self, error: anyhow::Error) {
        self.first_error.lock().expect("no holder panics").get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a worker has failed.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes the error that ended the run, if there is one.
    pub(super) fn take_error(&self) -> Option<anyhow::Error> {
        self.first_error.lock().expect("no holder panics").take()
    }

    /// When the load started. The first worker that asks after all are ready sets it.
    fn started_at(&self, now: Nanos) -> Nanos {
        let now = now.max(1);
        let set = self.started_at.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        set.map_or_else(|at| at, |_| now)
    }

    /// Notes that a draining worker received something.
    pub(super) fn received(&self, now: Nanos) {
        self.received_at.fetch_max(now, Ordering::Relaxed);
    }

    /// When a draining worker last received something; 0: never.
    pub(super) fn received_at(&self) -> Nanos {
        self.received_at.load(Ordering::Relaxed)
    }

    /// Has the main thread print a line. For rare lines: the list has no bound.
    pub(super) fn add_notice(&self, notice: String) {
        self.notices.lock().expect("no holder panics").push(notice);
    }

    /// Takes the lines added since the last call.
    pub(super) fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut *self.notices.lock().expect("no holder panics"))
    }

    /// Sets what the run is doing.
    pub(super) fn set_activity(&self, activity: Activity) {
        *self.activity.lock().expect("no holder panics") = activity;
    }

    /// What the run is doing.
    pub(super) fn activity(&self) -> Activity {
        *self.activity.lock().expect("no holder panics")
    }

    /// The descriptor that [`Self::wake`] makes readable.
    pub(super) fn wakeup(&self) -> BorrowedFd<'_> {
        self.wakeup.as_fd()
    }

    /// Gives the worker that polls [`Self::wakeup`] a turn.
    pub(super) fn wake(&self) {
        if self.workers == 1 {
            // The only worker is the caller, so it is awake.
            return;
        }
        // The write fails only when the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.wakeup, &1_u64.to_ne_bytes());
    }
}

/// A worker's share of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// The worker's number, from 0.
    pub(super) worker: usize,
    /// The number of workers.
    pub(super) workers: usize,
    /// The worker's first slot.
    pub(super) first: usize,
    /// The number of its slots.
    pub(super) count: usize,
    /// The number of slots of all workers.
    pub(super) total: usize,
}

impl Share {
    /// The share of worker `worker`. Shares are contiguous and differ by at most one slot.
    pub(super) const fn new(worker: usize, workers: usize, total: usize) -> Self {
        let first = total * worker / workers;
        let count = total * (worker + 1) / workers - first;
        Self { worker, workers, first, count, total }
    }

    /// One past its last slot.
    pub(super) const fn end(&self) -> usize {
        self.first + self.count
    }

    /// Whether the worker has this slot.
    pub(super) fn contains(&self, slot: usize) -> bool {
        (self.first..self.end()).contains(&slot)
    }

    /// The worker's slots that are not below `first`: the first of them, and their number.
    pub(super) fn from(&self, first: usize) -> (usize, usize) {
        let first = first.clamp(self.first, self.end());
        (first, self.end() - first)
    }

    /// The worker's part when `things` items are split over all workers.
    pub(super) const fn part_of(&self, things: usize) -> usize {
        things * (self.worker + 1) / self.workers - things * self.worker / self.workers
    }

    /// Whether this is the one worker that does what must be done once.
    pub(super) const fn is_leader(&self) -> bool {
        self.worker == 0
    }
}

/// What a worker needs of the run: its share, the shared state, and its own statistics.
#[derive(Clone, Debug)]
pub(super) struct WorkerContext {
    pub(super) share: Share,
    pub(super) run_state: Arc<RunState>,
    pub(super) live: Arc<LiveStats>,
    /// A bit for each stage that this worker has reached.
    reached: u32,
}

impl WorkerContext {
    pub(super) fn new(share: Share, run_state: &Arc<RunState>, live: &Arc<LiveStats>) -> Self {
        Self { share, run_state: Arc::clone(run_state), live: Arc::clone(live), reached: 0 }
    }

    /// Notes that this worker has reached a stage. Returns whether all workers have.
    pub(super) fn reach(&mut self, stage: Stage) -> bool {
        let reached = &self.run_state.reached[stage as usize];
        let bit = 1 << stage as u32;
        if self.reached & bit == 0 {
            self.reached |= bit;
            reached.fetch_add(1, Ordering::AcqRel);
        }
        self.all_reached(stage)
    }

    /// Whether all workers have reached a stage.
    pub(super) fn all_reached(&self, stage: Stage) -> bool {
        self.run_state.reached[stage as usize].load(Ordering::Acquire) == self.run_state.workers
    }

    /// Notes that this worker is ready. Returns when the load started, once all workers are ready.
    pub(super) fn started_at(&mut self, now: Nanos) -> Option<Nanos> {
        self.reach(Stage::Ready).then(|| self.run_state.started_at(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_contiguous_and_even_and_cover_all_slots() {
        for (workers, total) in [(1, 1), (3, 10), (53, 1_000_000), (7, 7)] {
            let shares: Vec<Share> =
                (0..workers).map(|worker| Share::new(worker, workers, total)).collect();
            assert_eq!(shares[0].first, 0);
            assert_eq!(shares[workers - 1].end(), total);
            assert!(shares.windows(2).all(|pair| pair[0].end() == pair[1].first));
            assert!(shares.iter().all(|share| share.count.abs_diff(total / workers) <= 1));
            assert_eq!(shares.iter().map(|share| share.part_of(5)).sum::<usize>(), 5);
        }
        assert_eq!(Share::new(1, 2, 10).from(7), (7, 3));
        assert_eq!(Share::new(0, 2, 10).from(7), (5, 0));
        assert_eq!(Share::new(1, 2, 10).from(2), (5, 5));
    }

    #[test]
    fn a_stage_is_reached_when_each_worker_has_reached_it() {
        let run_state = Arc::new(RunState::new(2, 0).unwrap());
        let live = Arc::new(LiveStats::new());
        let mut contexts =
            [0, 1].map(|worker| WorkerContext::new(Share::new(worker, 2, 2), &run_state, &live));
        assert!(!contexts[0].reach(Stage::Up));
        assert!(!contexts[0].reach(Stage::Up));
        assert!(contexts[1].reach(Stage::Up));
        assert!(contexts[0].all_reached(Stage::Up));
        assert_eq!(contexts[0].started_at(7), None);
        assert_eq!(contexts[1].started_at(8), Some(8));
        assert_eq!(contexts[0].started_at(9), Some(8));
    }

    #[test]
    fn the_first_error_is_kept() {
        let run_state = RunState::new(2, 0).unwrap();
        run_state.fail(anyhow::anyhow!("first"));
        run_state.fail(anyhow::anyhow!("second"));
        assert!(run_state.has_failed());
        assert_eq!(run_state.take_error().unwrap().to_string(), "first");
    }
}
