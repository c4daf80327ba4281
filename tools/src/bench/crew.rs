//! The workers of a run: threads, each with a table of descriptors, an engine and a share of the
//! connections of its own.
//!
//! The kernel's limit of open files holds for a table of descriptors, and a thread can part from
//! its process's: so one process holds as many connections as there is memory for. The main thread
//! starts the workers, watches, and takes their findings when all are through.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::args::CommonArgs;
use super::course::{Course, Seat, Share};
use super::engine::{CloseCause, Engine, EngineSetup, Link, Load, Nanos, Next, Sockets};
use super::latency::{Live, Pulse};
use super::proc;
use super::series::Sample;
use super::watch::Watch;
use crate::count::{counted, grouped};

/// Descriptors that are not connections: standard streams, epolls, the timer, the bell, files under
/// `/proc`, and what the main thread had open when a worker parted from it.
pub(crate) const SPARE_DESCRIPTORS: usize = 48;
/// Workers at most: each has some 2 MB of buffers and histograms.
pub(crate) const WORKERS_MAX: usize = 512;
/// How often a worker shows how far it is.
const SHOW_INTERVAL_NS: Nanos = 100_000_000;
/// How often a worker hands its latencies over.
const FLUSH_INTERVAL_NS: Nanos = 1_000_000_000;

/// What a crew is needed for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    pub(super) args: &'a CommonArgs,
    /// Connections at a time.
    pub(super) connections: usize,
    /// Closes with a reset rather than in order.
    pub(super) reset_on_close: bool,
    /// Slots from this one on are served first.
    pub(super) urgent_from: usize,
    /// The slot whose worker takes a turn when the bell rings.
    pub(super) bell_at: usize,
}

impl<'a> Task<'a> {
    /// Many connections, all alike.
    pub(super) const fn new(args: &'a CommonArgs, connections: usize) -> Self {
        let (urgent_from, bell_at) = (usize::MAX, usize::MAX);
        Self { args, connections, reset_on_close: false, urgent_from, bell_at }
    }
}

/// What is left when all workers are through.
#[derive(Debug)]
pub(super) struct Finished<L> {
    /// Each worker's load. There is at least one.
    pub(super) loads: Vec<L>,
    /// The run, second by second.
    pub(super) series: Vec<Sample>,
}

impl<L> Finished<L> {
    /// Merges all loads into the first.
    pub(super) fn merged(self, mut merge: impl FnMut(&mut L, L)) -> (L, Vec<Sample>) {
        let mut loads = self.loads.into_iter();
        let mut first = loads.next().expect("a crew has a worker");
        loads.for_each(|load| merge(&mut first, load));
        (first, self.series)
    }
}

/// Runs a load in as many workers as its connections need, or as were asked for.
///
/// # Errors
/// The first error of any worker, which ends all of them.
pub(super) fn run<L: Load + Send>(
    task: &Task<'_>,
    make: impl Fn(&Seat) -> anyhow::Result<L> + Sync,
) -> anyhow::Result<Finished<L>> {
    let workers = enlist(task)?;
    let rss_before_bytes = task.args.pid.map_or(Ok(0), proc::rss_bytes)?;
    let course = Arc::new(Course::new(workers, rss_before_bytes)?);
    let lives: Vec<Arc<Live>> =
        std::iter::repeat_with(|| Arc::new(Live::new())).take(workers).collect();
    let mut watch = Watch::new(task.args, task.connections, &course, &lives)?;
    let (working, all_through) = mpsc::channel::<()>();
    let loads = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (worker, live) in lives.iter().enumerate() {
            let seat = Seat::new(Share::new(worker, workers, task.connections), &course, live);
            let (working, make) = (working.clone(), &make);
            let body = move || {
                let _working = working;
                let _alarm = Alarm(Arc::clone(&seat.course));
                work(task, &seat, make).map_err(|error| seat.course.fail(error)).ok()
            };
            match thread::Builder::new().name(format!("worker {worker}")).spawn_scoped(scope, body)
            {
                Ok(thread) => threads.push(thread),
                Err(error) => course.fail(anyhow!(error).context("cannot start a worker")),
            }
        }
        drop(working);
        watch.until_over(&all_through);
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect::<Option<Vec<L>>>()
    });
    match (course.take_error(), loads) {
        (Some(error), _) => Err(error),
        (None, Some(loads)) => Ok(Finished { loads, series: watch.into_series() }),
        (None, None) => bail!("a worker ended without a word"),
    }
}

/// Ends the run when a worker panics.
struct Alarm(Arc<Course>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(anyhow!("a worker panicked: this is an error in tide"));
        }
    }
}

fn work<L: Load>(
    task: &Task<'_>,
    seat: &Seat,
    make: &impl Fn(&Seat) -> anyhow::Result<L>,
) -> anyhow::Result<L> {
    let share = seat.share;
    // One worker parts too: a table that no other thread shares is cheaper to use.
    let parted = unshare(CloneFlags::CLONE_FILES);
    if share.workers > 1 {
        parted.context(
            "a worker can't have a table of descriptors of its own, as where a container forbids \
             it: run several tide bench with fewer --connections, each with a --first-user",
        )?;
    }
    let mut engine = Engine::new(&EngineSetup {
        slots: share.first..share.end(),
        total: share.total,
        origin: seat.course.origin,
        reset_on_close: task.reset_on_close,
        spin: task.args.spin,
    })?;
    if task.urgent_from < share.end() {
        engine = engine.with_urgent_from(task.urgent_from)?;
    }
    if share.workers > 1 && (share.first..share.end()).contains(&task.bell_at) {
        engine = engine.with_bell(seat.course.bell())?;
    }
    let mut shown = Shown { load: make(seat)?, seat, show_at: 0, flush_at: FLUSH_INTERVAL_NS };
    engine.run(&mut shown)?;
    Ok(shown.load)
}

/// A load whose worker shows how far it is, and stops when another has failed.
struct Shown<'a, L> {
    load: L,
    seat: &'a Seat,
    show_at: Nanos,
    flush_at: Nanos,
}

impl<L: Load> Load for Shown<'_, L> {
    #[inline]
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> anyhow::Result<()> {
        self.load.opened(slot, link, now)
    }

    #[inline]
    fn received(
        &mut self,
        slot: usize,
        link: &mut Link,
        bytes: &[u8],
        now: Nanos,
    ) -> anyhow::Result<()> {
        self.load.received(slot, link, bytes, now)
    }

    #[inline]
    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> anyhow::Result<()> {
        self.load.closed(slot, cause, now)
    }

    fn pulse(&self) -> Pulse {
        self.load.pulse()
    }

    fn flush(&mut self, live: &Live) {
        self.load.flush(live);
    }

    #[inline]
    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Next> {
        if self.seat.course.has_failed() {
            return Ok(Next::Done);
        }
        if now >= self.show_at {
            self.show_at = now + SHOW_INTERVAL_NS;
            self.seat.live.show(self.load.pulse());
        }
        if now >= self.flush_at {
            self.flush_at = (now / FLUSH_INTERVAL_NS + 1) * FLUSH_INTERVAL_NS;
            self.load.flush(&self.seat.live);
        }
        self.load.tick(sockets, now)
    }
}

/// How many workers there have to be; makes room for their connections.
fn enlist(task: &Task<'_>) -> anyhow::Result<usize> {
    let connections = task.connections;
    let limit = getrlimit(Resource::Nofile);
    let room = |files: Option<u64>| {
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        files.saturating_sub(SPARE_DESCRIPTORS)
    };
    let (room_now, room_max) = (room(limit.current), room(limit.maximum));
    let asked = counted(connections, "connection");
    let needed = connections.div_ceil(room_max.max(1));
    if needed > WORKERS_MAX || room_max == 0 {
        bail!(
            "{asked} are too many for one process: a worker may open {} of them, and there are \
             {WORKERS_MAX} workers at most; run several tide bench, each with a --first-user of its own",
            grouped(room_max)
        );
    }
    let workers = task.args.workers.unwrap_or(needed);
    if workers < needed {
        bail!(
            "{asked} need {}, as each may open {} of them: leave --workers out, or raise the limit of open \
             files",
            counted(needed, "worker"),
            grouped(room_max)
        );
    }
    if workers > connections || workers > WORKERS_MAX {
        bail!(
            "--workers is at most {WORKERS_MAX}, and no more than the connections: {}",
            grouped(connections)
        );
    }
    if task.args.spin && workers > 1 {
        bail!(
            "--spin is for one worker, and {asked} have {} here, which would take each other's time: leave \
             it out",
            grouped(workers)
        );
    }
    if connections.div_ceil(workers) > room_now {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .context("cannot raise the limit of open files")?;
    }
    Ok(workers)
}
