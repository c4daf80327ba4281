//! Overload, step by step: workers with a given speed, and a clock of the test.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::WaitBound;
use crate::handler::{AnswerPort, Call, CallId, Handler, Outcome};
use crate::harness::Harness;
use crate::pool::{Pool, PoolOptions, Submitter, TimeoutId, Worker};
use crate::publisher::{Gateway, SessionId};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// How often workers look for calls.
const TICK: u64 = 100;
const WORKERS: usize = 2;
const WAITING_MAX: u64 = 100 * MS;
const STANDING_MAX: u64 = 5 * MS;

struct Echo;

impl Handler for Echo {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        let same = call.biz_data().clone();
        call.answer(same);
    }
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    call: u64,
    is_shed: bool,
    at: u64,
}

#[derive(Default)]
struct Log {
    now: AtomicU64,
    ends: Mutex<Vec<End>>,
}

impl Log {
    fn note(&self, call: CallId, is_shed: bool) {
        let at = self.now.load(Ordering::Relaxed);
        self.ends.lock().unwrap().push(End { call: call.0, is_shed, at });
    }
}

impl AnswerPort for Log {
    fn answer(&self, call: CallId, outcome: Outcome) {
        assert!(outcome.is_ok(), "{outcome:?}");
        self.note(call, false);
    }

    fn call_shed(&self, call: CallId) {
        self.note(call, true);
    }
}

/// A shard: its way into the pool, and the timeouts with a bound and without one.
struct Shard {
    submitter: Submitter,
    bounded: TimeoutId,
    unbounded: TimeoutId,
}

/// Times are in microseconds.
struct World {
    log: Arc<Log>,
    pool: Pool,
    workers: Vec<(Worker, u64)>,
    shards: Vec<Shard>,
    start: Instant,
    now: u64,
    /// What a call takes.
    handling: u64,
    /// Of each call its session and when it was received.
    calls: Vec<(u64, u64)>,
    due: u64,
}

/// What happened in a while.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    handled: u64,
    shed: u64,
    /// The longest wait of those that were handled.
    wait: u64,
}

impl World {
    fn new(handling: u64) -> Self {
        let handler: Arc<dyn Handler> = Arc::new(Echo);
        let options = PoolOptions {
            workers: WORKERS,
            queue_calls_max: usize::MAX,
            queue_bytes_max: 1,
            batch_calls_max: 1,
        };
        let (pool, workers) = Pool::idle(&handler, Harness::new(Echo).gateway(), options);
        let bound = WaitBound::new(Duration::from_micros(WAITING_MAX));
        let shard = |_| {
            let mut submitter = pool.submitter();
            let bounded = submitter.timeout_id(Duration::from_secs(60), Some(bound));
            let unbounded = submitter.timeout_id(Duration::from_secs(60), None);
            Shard { submitter, bounded, unbounded }
        };
        let shards = (0..3).map(shard).collect();
        let workers = workers.into_iter().map(|worker| (worker, 0)).collect();
        let (log, start, calls) = (Arc::default(), Instant::now(), Vec::new());
        Self { log, pool, workers, shards, start, now: 0, handling, calls, due: 0 }
    }

    fn at(&self, time: u64) -> Instant {
        self.start + Duration::from_micros(time)
    }

    /// A connection sends a call. A session stays on its shard.
    fn send(&mut self, session: u64, is_bounded: bool) {
        let (id, received) = (CallId(self.calls.len() as u64), self.at(self.now));
        self.calls.push((session, self.now));
        let port = Arc::clone(&self.log) as Arc<dyn AnswerPort>;
        let call = Call::new(1, 7, SessionId(session), Bytes::new(), id, port);
        let index = usize::try_from(session).unwrap() % self.shards.len();
        let shard = &mut self.shards[index];
        let timeout = if is_bounded { shard.bounded } else { shard.unbounded };
        shard.submitter.submit(call, received, timeout);
    }

    /// Calls of connections of their own.
    fn burst(&mut self, calls: u64) {
        for _ in 0..calls {
            self.send(1_000 + self.calls.len() as u64, true);
        }
    }

    /// Time passes. In each turn of the shards, that is each millisecond, `send` sends.
    fn run_with(&mut self, time: u64, mut send: impl FnMut(&mut Self)) -> Report {
        let first = self.log.ends.lock().unwrap().len();
        let end = self.now + time;
        while self.now < end {
            self.log.now.store(self.now, Ordering::Relaxed);
            let now = self.at(self.now);
            if self.now.is_multiple_of(MS) {
                send(self);
                self.shards.iter_mut().for_each(|shard| {
                    shard.submitter.flush(now);
                });
            }
            let ended = self.at(self.now + self.handling);
            for (worker, busy_until) in &mut self.workers {
                if *busy_until <= self.now && worker.run_one(now, ended) {
                    *busy_until = self.now + self.handling;
                }
            }
            self.now += TICK;
        }
        let mut report = Report::default();
        for end in &self.log.ends.lock().unwrap()[first..] {
            if end.is_shed {
                report.shed += 1;
            } else {
                let wait = end.at - self.calls[usize::try_from(end.call).unwrap()].1;
                report.handled += 1;
                report.wait = report.wait.max(wait);
            }
        }
        report
    }

    /// A load of connections with a call each, in percent of what the workers serve.
    fn run(&mut self, time: u64, percent: u64) -> Report {
        let capacity = WORKERS as u64 * SECOND / self.handling;
        self.run_with(time, |world| {
            world.due += capacity * percent;
            let calls = world.due / (100 * 1_000);
            world.due %= 100 * 1_000;
            world.burst(calls);
        })
    }

    /// All calls have ended once, and those of a connection in their order.
    fn check(&mut self) {
        self.run(10 * SECOND, 0);
        let ends = self.log.ends.lock().unwrap();
        let mut seen = vec![false; self.calls.len()];
        let mut last = std::collections::HashMap::new();
        for end in &*ends {
            let call = usize::try_from(end.call).unwrap();
            assert!(!std::mem::replace(&mut seen[call], true), "{call} has two answers");
            let before = last.insert(self.calls[call].0, end.call);
            assert!(before.is_none_or(|before| before < end.call), "{call} overtook {before:?}");
        }
        assert!(seen.iter().all(|seen| *seen));
        let stats = self.pool.stats();
        assert_eq!((stats.calls, stats.bytes, stats.is_shedding), (0, 0, false));
    }
}

#[test]
fn under_overload_the_workers_serve_what_they_can_and_calls_wait_for_a_short_time() {
    for times in [2, 5, 20] {
        let mut world = World::new(MS);
        assert_eq!(world.run(SECOND, 80).shed, 0);
        let onset = world.run(SECOND, times * 100);
        assert!(onset.wait <= WAITING_MAX && onset.handled >= 1_990, "{times}: {onset:?}");
        let report = world.run(3 * SECOND, times * 100);
        assert!(report.handled >= 5_990, "{times}: {report:?}");
        assert!(report.wait <= STANDING_MAX + MS, "{times}: {report:?}");
        assert!(world.pool.stats().is_shedding);
        let waiting = world.pool.stats().calls as u64;
        assert!(waiting <= times * 2 * 7, "what came lately: {waiting}");
        // It ends when the queue is empty once.
        world.run(30 * MS, 80);
        assert!(!world.pool.stats().is_shedding);
        assert_eq!(world.run(SECOND, 80).shed, 0, "{times}");
        world.check();
    }
}

#[test]
fn slightly_too_much_load_sheds_the_excess_alone() {
    let mut world = World::new(MS);
    world.run(2 * SECOND, 110);
    let report = world.run(2 * SECOND, 110);
    assert!(report.handled >= 3_990 && (350..450).contains(&report.shed), "{report:?}");
    assert!(report.wait <= STANDING_MAX + MS, "{report:?}");
    world.check();
}

#[test]
fn a_burst_that_fits_is_not_shed_however_often_it_comes() {
    let mut world = World::new(MS);
    for _ in 0..20 {
        world.burst(190);
        let report = world.run(200 * MS, 0);
        assert_eq!((report.handled, report.shed), (190, 0));
    }
    // One that doesn't fit is cut, and the next one is not.
    world.burst(400);
    assert!(world.run(SECOND, 0).shed > 150);
    world.burst(190);
    assert_eq!(world.run(200 * MS, 0).shed, 0);
    world.check();
}

#[test]
fn nothing_is_left_of_an_overload_after_silence() {
    let mut world = World::new(MS);
    world.run(SECOND, 2_000);
    world.run(20 * MS, 0);
    world.now += 3_600 * SECOND;
    world.burst(190);
    assert_eq!(world.run(SECOND, 0), Report { handled: 190, shed: 0, wait: 94 * MS });
    world.check();
}

#[test]
fn a_connection_with_many_calls_sheds_neither_its_own_nor_those_of_others() {
    let mut world = World::new(MS);
    (0..256).for_each(|_| world.send(1, true));
    let report = world.run(SECOND, 40);
    assert_eq!(report.shed, 0, "{report:?}");
    world.check();
}

#[test]
fn connections_that_send_many_calls_at_once_get_their_answers_in_order() {
    let mut world = World::new(MS);
    let mut turn = 0_u64;
    let report = world.run_with(3 * SECOND, |world| {
        // 30 connections send 5 times of what is served, and some of it may wait without a bound.
        turn += 1;
        (0..10).for_each(|call| world.send((turn * 7 + call / 3) % 30, !turn.is_multiple_of(100)));
    });
    assert!(report.handled >= 5_990 && report.shed > 15_000, "{report:?}");
    world.check();
}

#[test]
fn workers_that_are_slower_than_the_bound_always_have_a_call() {
    for percent in [150, 200, 500, 2_000] {
        let mut world = World::new(100 * MS);
        world.run(2 * SECOND, percent);
        let report = world.run(10 * SECOND, percent);
        assert!(report.handled >= 198, "{percent}: {report:?}");
        assert!(report.wait <= WAITING_MAX + 100 * MS, "{percent}: {report:?}");
        world.check();
    }
}

#[test]
fn while_handlers_hang_calls_are_shed_and_the_newest_stay() {
    let mut world = World::new(MS);
    world.run(SECOND, 50);
    world.workers.iter_mut().for_each(|(_, busy_until)| *busy_until = u64::MAX);
    let report = world.run(2 * SECOND, 50);
    assert!(report.handled == 0 && report.shed > 1_900, "{report:?}");
    assert!(world.pool.stats().calls <= 10, "{:?}", world.pool.stats());
    world.workers.iter_mut().for_each(|(_, busy_until)| *busy_until = 0);
    let report = world.run(SECOND, 50);
    assert!(report.wait <= STANDING_MAX + MS && report.shed <= 1, "{report:?}");
    world.check();
}

#[test]
fn each_worker_is_left_a_call_however_long_that_has_waited() {
    let mut world = World::new(MS);
    world.workers.iter_mut().for_each(|(_, busy_until)| *busy_until = u64::MAX);
    world.burst(50);
    assert_eq!(world.run(SECOND, 0).shed, 50 - WORKERS as u64);
    world.workers.iter_mut().for_each(|(_, busy_until)| *busy_until = 0);
    assert_eq!(world.run(10 * MS, 0).handled, WORKERS as u64);
    world.check();
}

#[test]
fn calls_without_a_bound_are_never_shed() {
    let mut world = World::new(MS);
    let report = world.run_with(SECOND, |world| {
        for _ in 0..4 {
            world.send(1_000 + world.calls.len() as u64, false);
        }
    });
    assert_eq!((report.handled, report.shed), (2_000, 0));
    assert!(!world.pool.stats().is_shedding || world.pool.stats().calls > 0);
    world.check();
}
