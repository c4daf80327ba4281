//! What the workers of a run agree on: when it began, which stages all have come to, and whether
//! one has failed. Nobody ever blocks here: each looks once a turn, so that none is left waiting
//! for another that is gone.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context as _;
use rustix::event::{EventfdFlags, eventfd};

use super::engine::Nanos;
use super::entrance::Entrance;
use super::latency::Live;

/// What all workers have to have come to before any goes on.
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
    /// All is prepared.
    Ready,
    /// What was to be measured is over, where no clock says so.
    Finished,
    /// Nothing is under way.
    Drained,
    /// Everybody has left.
    Left,
}

const STAGES: usize = Stage::Left as usize + 1;

/// What the run is about, for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Connections come up, up to the total.
    Connecting,
    /// Something goes on until then.
    Until(&'static str, Nanos, Nanos),
    /// Something goes on that takes what it takes.
    Going(&'static str),
}

/// Shared by the workers.
#[derive(Debug)]
pub(super) struct Course {
    /// Time counts from here.
    pub(super) origin: Instant,
    /// The server's memory before anything is connected.
    pub(super) rss_before_bytes: u64,
    workers: usize,
    arrived: [AtomicUsize; STAGES],
    /// 0: not yet.
    started_at: AtomicU64,
    /// When a worker last received something, while it drains.
    received_at: AtomicU64,
    /// Who has been let in.
    pub(super) entrance: Entrance,
    /// What the main thread is to say next, oldest first.
    remarks: Mutex<Vec<String>>,
    failed: AtomicBool,
    first_error: Mutex<Option<anyhow::Error>>,
    activity: Mutex<Activity>,
    /// Gives the worker that hears it a turn.
    bell: OwnedFd,
}

impl Course {
    /// Begins now. Its one descriptor has to be made before workers part from the table.
    pub(super) fn new(workers: usize, rss_before_bytes: u64) -> anyhow::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            origin: Instant::now(),
            rss_before_bytes,
            workers,
            arrived: Default::default(),
            started_at: AtomicU64::new(0),
            received_at: AtomicU64::new(0),
            entrance: Entrance::default(),
            remarks: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            first_error: Mutex::new(None),
            activity: Mutex::new(Activity::Connecting),
            bell: eventfd(0, flags).context("no eventfd")?,
        })
    }

    /// Ends the run for all workers. The first error is the one that is kept.
    pub(super) fn fail(&self, error: anyhow::Error) {
        self.first_error.lock().expect("no holder panics").get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a worker has failed.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// What ended the run, if anything did.
    pub(super) fn take_error(&self) -> Option<anyhow::Error> {
        self.first_error.lock().expect("no holder panics").take()
    }

    /// When the load started: the first who asks once all are ready says when.
    fn started_at(&self, now: Nanos) -> Nanos {
        let now = now.max(1);
        let set = self.started_at.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        set.map_or_else(|at| at, |_| now)
    }

    /// A worker that drains has received something.
    pub(super) fn received(&self, now: Nanos) {
        self.received_at.fetch_max(now, Ordering::Relaxed);
    }

    /// When a worker that drains last received something; 0: never.
    pub(super) fn received_at(&self) -> Nanos {
        self.received_at.load(Ordering::Relaxed)
    }

    /// Has the main thread tell who waits for the run. For what is said once, or now and then.
    pub(super) fn remark(&self, remark: String) {
        self.remarks.lock().expect("no holder panics").push(remark);
    }

    /// What was to be said since the last time.
    pub(super) fn take_remarks(&self) -> Vec<String> {
        std::mem::take(&mut *self.remarks.lock().expect("no holder panics"))
    }

    /// Says what the run is about.
    pub(super) fn set_activity(&self, activity: Activity) {
        *self.activity.lock().expect("no holder panics") = activity;
    }

    /// What the run is about.
    pub(super) fn activity(&self) -> Activity {
        *self.activity.lock().expect("no holder panics")
    }

    /// What [`Self::ring`] makes readable.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Gives the worker that listens to the bell a turn.
    pub(super) fn ring(&self) {
        if self.workers == 1 {
            // It is awake.
            return;
        }
        // It fails only when 2^64 rings are unheard, and then it has rung.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// A worker's part of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Which worker, from 0.
    pub(super) worker: usize,
    /// Of how many.
    pub(super) workers: usize,
    /// Its first slot.
    pub(super) first: usize,
    /// Its slots.
    pub(super) count: usize,
    /// Everybody's slots.
    pub(super) total: usize,
}

impl Share {
    /// Worker `worker`'s: contiguous, and as even as can be.
    pub(super) const fn new(worker: usize, workers: usize, total: usize) -> Self {
        let first = total * worker / workers;
        let count = total * (worker + 1) / workers - first;
        Self { worker, workers, first, count, total }
    }

    /// The slots after its last.
    pub(super) const fn end(&self) -> usize {
        self.first + self.count
    }

    /// The part of the slots from `first` on that are its own: the first of them, and how many.
    pub(super) fn from(&self, first: usize) -> (usize, usize) {
        let first = first.clamp(self.first, self.end());
        (first, self.end() - first)
    }

    /// Its part of so many things.
    pub(super) const fn part_of(&self, things: usize) -> usize {
        things * (self.worker + 1) / self.workers - things * self.worker / self.workers
    }

    /// Whether it is the one that does what only one does.
    pub(super) const fn leads(&self) -> bool {
        self.worker == 0
    }
}

/// A worker's place in the run.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) share: Share,
    pub(super) course: Arc<Course>,
    pub(super) live: Arc<Live>,
    /// A bit for each stage that this worker has come to.
    arrived: u32,
}

impl Seat {
    pub(super) fn new(share: Share, course: &Arc<Course>, live: &Arc<Live>) -> Self {
        Self { share, course: Arc::clone(course), live: Arc::clone(live), arrived: 0 }
    }

    /// This worker has come to a stage: whether all have.
    pub(super) fn arrive(&mut self, stage: Stage) -> bool {
        let arrived = &self.course.arrived[stage as usize];
        let bit = 1 << stage as u32;
        if self.arrived & bit == 0 {
            self.arrived |= bit;
            arrived.fetch_add(1, Ordering::AcqRel);
        }
        self.have_all(stage)
    }

    /// Whether all workers have come to a stage.
    pub(super) fn have_all(&self, stage: Stage) -> bool {
        self.course.arrived[stage as usize].load(Ordering::Acquire) == self.course.workers
    }

    /// This worker is ready: when the load started, if all are.
    pub(super) fn started_at(&mut self, now: Nanos) -> Option<Nanos> {
        self.arrive(Stage::Ready).then(|| self.course.started_at(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_contiguous_even_and_whole() {
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
    fn a_stage_is_over_when_all_have_come_to_it_once() {
        let course = Arc::new(Course::new(2, 0).unwrap());
        let live = Arc::new(Live::new());
        let mut seats = [0, 1].map(|worker| Seat::new(Share::new(worker, 2, 2), &course, &live));
        assert!(!seats[0].arrive(Stage::Up));
        assert!(!seats[0].arrive(Stage::Up));
        assert!(seats[1].arrive(Stage::Up));
        assert!(seats[0].have_all(Stage::Up));
        assert_eq!(seats[0].started_at(7), None);
        assert_eq!(seats[1].started_at(8), Some(8));
        assert_eq!(seats[0].started_at(9), Some(8));
    }

    #[test]
    fn the_first_error_is_kept() {
        let course = Course::new(2, 0).unwrap();
        course.fail(anyhow::anyhow!("first"));
        course.fail(anyhow::anyhow!("second"));
        assert!(course.has_failed());
        assert_eq!(course.take_error().unwrap().to_string(), "first");
    }
}
