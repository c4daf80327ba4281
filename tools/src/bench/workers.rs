//! The workers of a run: threads, each with its own descriptor table, engine and share of the connections.
//!
//! The kernel limits open files per descriptor table, and a thread can unshare its table from its
//! process. So memory alone limits the connections of one process. The main thread starts the workers,
//! monitors the run, and collects the workers' results at the end.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::args::CommonArgs;
use super::clock::Nanos;
use super::destinations::Destinations;
use super::echo::ForeignBytes;
use super::engine::{Engine, EngineSetup, Load, Next};
use super::latency::{Counters, LiveStats};
use super::monitor::Monitor;
use super::proc;
use super::run_state::{RunState, Share, WorkerContext};
use super::series::Sample;
use super::sockets::{CloseCause, ConnectionEvents, Link, SocketSetup, Sockets};
use crate::count::{counted, grouped};
use crate::ports;
use crate::wire::Target;

/// Descriptors of a worker that are not connections: standard streams, epolls, the timer, the wakeup
/// eventfd, files under `/proc`, and what the main thread had open when the worker unshared its table.
pub(crate) const SPARE_DESCRIPTORS: usize = 48;
/// The most workers of a run: each has some 2 MB of buffers and histograms.
pub(crate) const WORKERS_MAX: usize = 512;
/// How often a worker publishes its counters.
const PUBLISH_INTERVAL_NS: Nanos = 100_000_000;
/// How often a worker hands its latencies over.
const FLUSH_INTERVAL_NS: Nanos = 1_000_000_000;

/// What the workers are to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunPlan<'a> {
    pub(super) args: &'a CommonArgs,
    /// The number of slots: connections that are open at the same time.
    pub(super) connections: usize,
    /// Whether a connection is closed with a reset (RST) and not with a FIN.
    pub(super) reset_on_close: bool,
    /// Slots from this one on are served first.
    pub(super) urgent_from: usize,
    /// The worker that has this slot takes a turn when [`RunState::wake`] is called.
    pub(super) wakeup_slot: usize,
}

impl<'a> RunPlan<'a> {
    /// A plan in which all connections are alike.
    pub(super) const fn new(args: &'a CommonArgs, connections: usize) -> Self {
        let (urgent_from, wakeup_slot) = (usize::MAX, usize::MAX);
        Self { args, connections, reset_on_close: false, urgent_from, wakeup_slot }
    }
}

/// What the workers leave when all of them have ended.
#[derive(Debug)]
pub(super) struct Finished<L> {
    /// Each worker's load. There is at least one.
    pub(super) loads: Vec<L>,
    /// One sample for each second of the run.
    pub(super) series: Vec<Sample>,
}

impl<L> Finished<L> {
    /// Merges all loads into the first.
    pub(super) fn merged(self, mut merge: impl FnMut(&mut L, L)) -> (L, Vec<Sample>) {
        let mut loads = self.loads.into_iter();
        let mut first = loads.next().expect("there is at least one worker");
        loads.for_each(|load| merge(&mut first, load));
        (first, self.series)
    }
}

/// Runs a load in as many workers as its connections need, or as `--workers` names.
///
/// # Errors
/// The first error of any worker. It ends all workers.
pub(super) fn run<L: Load + Send>(
    plan: &RunPlan<'_>,
    make: impl Fn(&WorkerContext) -> Result<L> + Sync,
) -> Result<Finished<L>> {
    let workers = worker_count(plan)?;
    let rss_before_bytes = plan.args.pid.map_or(Ok(0), proc::rss_bytes)?;
    if let Some(pid) = plan.args.pid {
        proc::demand_server(pid, &plan.args.socket_addresses())?;
    }
    let destinations = Destinations::new(&plan.args.trust, &plan.args.targets)?;
    let run_state = Arc::new(RunState::new(workers, rss_before_bytes)?);
    let live_stats: Vec<Arc<LiveStats>> =
        std::iter::repeat_with(|| Arc::new(LiveStats::new())).take(workers).collect();
    let mut monitor = Monitor::new(plan.args, plan.connections, &run_state, &live_stats)?;
    // Each worker holds a sender: the channel is disconnected when all workers have ended.
    let (running, all_ended) = mpsc::channel::<()>();
    let loads = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (worker, live) in live_stats.iter().enumerate() {
            let context =
                WorkerContext::new(Share::new(worker, workers, plan.connections), &run_state, live);
            let (running, make, to) = (running.clone(), &make, destinations.clone());
            let body = move || {
                let _running = running;
                let _fail_on_panic = FailOnPanic(Arc::clone(&context.run_state));
                run_worker(plan, to, &context, make)
                    .map_err(|error| context.run_state.fail(error))
                    .ok()
            };
            match thread::Builder::new().name(format!("worker {worker}")).spawn_scoped(scope, body)
            {
                Ok(thread) => threads.push(thread),
                Err(error) => run_state.fail(anyhow!(error).context("cannot start a worker")),
            }
        }
        drop(running);
        monitor.run_until(&all_ended);
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect::<Option<Vec<L>>>()
    });
    match (run_state.take_error(), loads) {
        (Some(error), _) => Err(with_hint(error, plan.args)),
        (None, Some(loads)) => Ok(Finished { loads, series: monitor.into_series() }),
        (None, None) => bail!("a worker ended without a result: this is an error in tide"),
    }
}

/// Says so where `--connect` names a gateway's port for operators.
fn with_hint(error: anyhow::Error, args: &CommonArgs) -> anyhow::Error {
    if !error.is::<ForeignBytes>() {
        return error;
    }
    let hint =
        |target: &Target| ports::is_for_operators(&target.address.to_string(), target.address);
    args.targets.iter().find_map(hint).map_or(error, anyhow::Error::msg)
}

/// Fails the run when its worker panics.
struct FailOnPanic(Arc<RunState>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(anyhow!("a worker panicked: this is an error in tide"));
        }
    }
}

fn run_worker<L: Load>(
    plan: &RunPlan<'_>,
    destinations: Destinations,
    context: &WorkerContext,
    make: &impl Fn(&WorkerContext) -> Result<L>,
) -> Result<L> {
    let share = context.share;
    // A single worker does so too: a table that no other thread shares is cheaper to use.
    let unshared = unshare(CloneFlags::CLONE_FILES);
    if share.workers > 1 {
        unshared.context(
            "a worker can't get its own descriptor table (a container may forbid it): run several tide bench \
             with fewer --connections, each with its own --first-user",
        )?;
    }
    let sockets = SocketSetup {
        slots: share.first..share.end(),
        destinations,
        total: share.total,
        reset_on_close: plan.reset_on_close,
    };
    let (origin, spin) = (context.run_state.origin, plan.args.spin);
    let mut engine = Engine::new(&EngineSetup { sockets, origin, spin })?;
    if plan.urgent_from < share.end() {
        engine = engine.with_urgent_from(plan.urgent_from)?;
    }
    if share.workers > 1 && share.contains(plan.wakeup_slot) {
        engine = engine.with_wakeup(context.run_state.wakeup())?;
    }
    let load = make(context)?;
    let mut reporting = ReportingLoad { load, context, publish_at: 0, flush_at: FLUSH_INTERVAL_NS };
    engine.run(&mut reporting)?;
    Ok(reporting.load)
}

/// A load that publishes its statistics, and stops when another worker has failed.
struct ReportingLoad<'a, L> {
    load: L,
    context: &'a WorkerContext,
    publish_at: Nanos,
    flush_at: Nanos,
}

impl<L: Load> ConnectionEvents for ReportingLoad<'_, L> {
    #[inline]
    fn opened(&mut self, slot: usize, link: &mut Link, now: Nanos) -> Result<()> {
        self.load.opened(slot, link, now)
    }

    #[inline]
    fn received(&mut self, slot: usize, link: &mut Link, bytes: &[u8], now: Nanos) -> Result<()> {
        self.load.received(slot, link, bytes, now)
    }

    #[inline]
    fn closed(&mut self, slot: usize, cause: CloseCause, now: Nanos) -> Result<()> {
        self.load.closed(slot, cause, now)
    }
}

impl<L: Load> Load for ReportingLoad<'_, L> {
    fn counters(&self) -> Counters {
        self.load.counters()
    }

    fn flush(&mut self, live: &LiveStats) {
        self.load.flush(live);
    }

    #[inline]
    fn tick(&mut self, sockets: &mut Sockets, now: Nanos) -> Result<Next> {
        if self.context.run_state.has_failed() {
            return Ok(Next::Done);
        }
        if now >= self.publish_at {
            self.publish_at = now + PUBLISH_INTERVAL_NS;
            self.context.live.publish(self.load.counters());
        }
        if now >= self.flush_at {
            self.flush_at = (now / FLUSH_INTERVAL_NS + 1) * FLUSH_INTERVAL_NS;
            self.load.flush(&self.context.live);
        }
        self.load.tick(sockets, now)
    }
}

/// How many workers to start. Raises the limit of open files where the workers need that.
fn worker_count(plan: &RunPlan<'_>) -> Result<usize> {
    let connections = plan.connections;
    let limit = getrlimit(Resource::Nofile);
    let per_worker = |files: Option<u64>| {
        let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
        files.saturating_sub(SPARE_DESCRIPTORS)
    };
    let (per_worker_now, per_worker_max) = (per_worker(limit.current), per_worker(limit.maximum));
    let asked = counted(connections, "connection");
    let needed = connections.div_ceil(per_worker_max.max(1));
    if needed > WORKERS_MAX || per_worker_max == 0 {
        bail!(
            "{asked} are too many for one process: it has at most {WORKERS_MAX} workers, and each may open {} \
             connections; run several tide bench, each with its own --first-user",
            grouped(per_worker_max)
        );
    }
    let workers = plan.args.workers.unwrap_or(needed);
    if workers < needed {
        bail!(
            "{asked} need {}, since each may open {} of them: omit --workers, or raise the limit of open files",
            counted(needed, "worker"),
            grouped(per_worker_max)
        );
    }
    if workers > connections || workers > WORKERS_MAX {
        bail!(
            "--workers is at most {WORKERS_MAX}, and at most the number of connections, {}",
            grouped(connections)
        );
    }
    if plan.args.spin && workers > 1 {
        bail!(
            "--spin works with one worker only, since spinning workers take CPU time from each other; {asked} \
             need {} workers here: omit --spin",
            grouped(workers)
        );
    }
    if connections.div_ceil(workers) > per_worker_now {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .context("cannot raise the limit of open files")?;
    }
    Ok(workers)
}
