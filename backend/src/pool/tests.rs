use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use tidegate_protocol::Code;

use super::*;
use crate::batch::Batch;
use crate::handler::{AnswerPort, CallId, Outcome};
use crate::harness::Harness;
use crate::publisher::SessionId;

const TIMEOUT: Duration = Duration::from_secs(60);

const OPTIONS: PoolOptions =
    PoolOptions { workers: 1, queue_calls_max: 1000, queue_bytes_max: 1 << 20, batch_calls_max: 8 };

/// Panics on "boom", answers with the bytes otherwise.
struct Fragile;

impl Handler for Fragile {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        assert_ne!(call.biz_data(), "boom");
        echo(call);
    }
}

fn echo(call: Call) {
    let same = call.biz_data().clone();
    call.answer(same);
}

/// Answers in the order in which they were given, for tests that wait for them.
struct Answers {
    sender: Sender<(u64, Outcome)>,
    receiver: Receiver<(u64, Outcome)>,
}

struct Port(Mutex<Sender<(u64, Outcome)>>);

impl AnswerPort for Port {
    fn answer(&self, call: CallId, outcome: Outcome) {
        // Nobody listens where the test has failed.
        drop(self.0.lock().unwrap().send((call.0, outcome)));
    }
}

impl Answers {
    fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }

    fn call(&self, id: u64, session: u64, biz_data: &'static str) -> Call {
        let port = Arc::new(Port(Mutex::new(self.sender.clone())));
        let data = Bytes::from_static(biz_data.as_bytes());
        Call::new(1, 7, SessionId(session), data, CallId(id), port)
    }

    /// The calls that were answered until now.
    fn so_far(&self) -> Vec<(u64, Outcome)> {
        self.receiver.try_iter().collect()
    }

    fn ids_so_far(&self) -> Vec<u64> {
        self.so_far().into_iter().map(|(id, _)| id).collect()
    }

    /// Waits for `count` answers; returns which calls they are for, sorted.
    fn wait_for(&self, count: usize) -> Vec<u64> {
        let wait = || self.receiver.recv_timeout(TIMEOUT).unwrap().0;
        let mut ids: Vec<_> = (0..count).map(|_| wait()).collect();
        ids.sort_unstable();
        ids
    }
}

/// A pool under test, whose calls all have the same timeout.
struct World {
    pool: Pool,
    workers: Vec<Worker>,
    submitter: Submitter,
    timeout: TimeoutId,
    answers: Answers,
    start: Instant,
}

impl World {
    /// A pool whose workers the test runs.
    fn idle(handler: impl Handler, options: PoolOptions) -> Self {
        let handler: Arc<dyn Handler> = Arc::new(handler);
        let (pool, workers) = Pool::idle(&handler, Harness::new(Fragile).gateway(), options);
        Self::of(pool, workers)
    }

    /// A pool with threads.
    fn running(handler: impl Handler, options: PoolOptions) -> Self {
        let handler: Arc<dyn Handler> = Arc::new(handler);
        let gateway = Harness::new(Fragile).gateway().clone();
        Self::of(Pool::start("test", &handler, &gateway, options).unwrap(), Vec::new())
    }

    fn of(pool: Pool, workers: Vec<Worker>) -> Self {
        let mut submitter = pool.submitter();
        let timeout = submitter.timeout_id(TIMEOUT, None);
        let (answers, start) = (Answers::new(), Instant::now());
        Self { pool, workers, submitter, timeout, answers, start }
    }

    /// Submits calls: of each its number, its session and its request.
    fn submit(&mut self, calls: &[(u64, u64, &'static str)]) {
        for &(id, session, biz_data) in calls {
            let call = self.answers.call(id, session, biz_data);
            self.submitter.submit(call, self.start, self.timeout);
        }
        self.submitter.flush(self.start);
    }

    fn run(&mut self) -> bool {
        let start = self.start;
        self.workers.iter_mut().fold(false, |any, worker| worker.run_pending(start) | any)
    }
}

#[test]
fn a_panic_costs_one_call_and_the_others_are_handled_in_order() {
    let mut world = World::idle(Fragile, PoolOptions { batch_calls_max: 3, ..OPTIONS });
    world.submit(&[(0, 1, "a"), (1, 1, "boom"), (2, 1, "c"), (3, 1, "d"), (4, 1, "boom")]);
    assert_eq!(world.pool.stats().calls, 5);
    assert!(world.run());
    let failed = || Err(Code::BackendFailed.into());
    let (a, c, d) = (Ok("a".into()), Ok("c".into()), Ok("d".into()));
    let want = [(0, a), (1, failed()), (2, c), (3, d), (4, failed())];
    assert_eq!(world.answers.so_far(), want);
    assert_eq!(world.pool.stats().calls, 0);
    assert!(!world.run());
}

#[test]
fn a_full_queue_is_reported_before_a_call_is_made() {
    let mut world = World::idle(Fragile, PoolOptions { queue_calls_max: 2, ..OPTIONS });
    world.submit(&[(0, 1, "a")]);
    assert!(world.submitter.has_room(1));
    let call = world.answers.call(1, 2, "b");
    world.submitter.submit(call, world.start, world.timeout);
    assert!(!world.submitter.has_room(1), "what was gathered counts");
    world.submit(&[]);
    assert!(!world.submitter.has_room(1) && !world.pool.submitter().has_room(1));
    world.run();
    assert!(world.submitter.has_room(1));
}

#[test]
fn a_queue_is_full_when_its_bytes_are() {
    let mut world = World::idle(Fragile, PoolOptions { queue_bytes_max: 10, ..OPTIONS });
    let call = world.answers.call(0, 1, "seven..");
    world.submitter.submit(call, world.start, world.timeout);
    assert!(world.submitter.has_room(3) && !world.submitter.has_room(4));
    world.submit(&[]);
    assert_eq!(world.pool.stats().bytes, 7);
    assert!(world.submitter.has_room(3) && !world.submitter.has_room(4));
    world.run();
    assert!(
        world.submitter.has_room(1000),
        "a request that is longer than the bound may wait alone"
    );
}

#[test]
fn threads_answer_what_waits_and_end_with_the_pool() {
    let handler: Arc<dyn Handler> = Arc::new(Fragile);
    let gateway = Harness::new(Fragile).gateway().clone();
    let options = PoolOptions { workers: 2, ..OPTIONS };
    let mut world =
        World::of(Pool::start("test", &handler, &gateway, options).unwrap(), Vec::new());
    let calls: Vec<_> = (0..100).map(|id| (id, id, "x")).collect();
    world.submit(&calls);
    let World { pool, submitter, answers, .. } = world;
    drop((pool, submitter));
    // The workers hold the handler until they end.
    while Arc::strong_count(&handler) > 1 {
        thread::yield_now();
    }
    assert_eq!(answers.so_far().len(), 100);
}

/// Blocks on "block" until the test sends a release.
struct Blocking {
    began: Mutex<Sender<()>>,
    release: Mutex<Receiver<()>>,
}

impl Handler for Blocking {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        if call.biz_data() == "block" {
            self.began.lock().unwrap().send(()).unwrap();
            self.release.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        }
        echo(call);
    }
}

/// A pool with threads whose handler blocks on request: what tells that a call has begun, and what releases it.
fn blocking(options: PoolOptions) -> (World, Receiver<()>, Sender<()>) {
    let ((began, has_begun), (release, released)) = (channel(), channel());
    let handler = Blocking { began: Mutex::new(began), release: Mutex::new(released) };
    (World::running(handler, options), has_begun, release)
}

#[test]
fn a_call_that_blocks_delays_only_its_own_connection() {
    let (mut world, has_begun, release) = blocking(PoolOptions { workers: 2, ..OPTIONS });
    world.submit(&[(0, 1, "block"), (1, 1, "x")]);
    has_begun.recv_timeout(TIMEOUT).unwrap();
    for round in 0..50 {
        let calls: Vec<_> = (0..20).map(|n| (100 + round * 20 + n, 2 + n, "x")).collect();
        world.submit(&calls);
        assert_eq!(world.answers.wait_for(20), calls.iter().map(|call| call.0).collect::<Vec<_>>());
    }
    assert_eq!(world.pool.stats().calls, 1, "its own later call waits for it");
    release.send(()).unwrap();
    assert_eq!(world.answers.wait_for(2), [0, 1]);
}

#[test]
fn the_calls_behind_one_that_blocks_go_to_another_worker() {
    let (mut world, has_begun, release) = blocking(PoolOptions { workers: 2, ..OPTIONS });
    // The pool expects short calls: it wakes one worker for all of these.
    let short: Vec<_> = (1000..1200).map(|id| (id, id, "x")).collect();
    world.submit(&short);
    world.answers.wait_for(200);
    world.submit(&[(0, 1, "block"), (1, 2, "x"), (2, 3, "x"), (3, 4, "x")]);
    has_begun.recv_timeout(TIMEOUT).unwrap();
    // A shard looks again in its next turn, at some later time.
    world.start = Instant::now() + 2 * SLOW_CALL;
    world.submit(&[]);
    assert_eq!(world.answers.wait_for(3), [1, 2, 3]);
    release.send(()).unwrap();
    assert_eq!(world.answers.wait_for(1), [0]);
}

#[test]
fn expired_calls_hold_nothing_while_all_workers_block() {
    let (mut world, has_begun, release) = blocking(OPTIONS);
    world.submit(&[(0, 1, "block")]);
    has_begun.recv_timeout(TIMEOUT).unwrap();
    world.submit(&[(1, 1, "late"), (2, 2, "late")]);
    let request = Bytes::from(vec![0; 100]);
    let long = Call::new(1, 7, SessionId(4), request.clone(), CallId(4), Arc::new(Nowhere));
    world.submitter.submit(long, world.start, world.timeout);
    world.submitter.flush(world.start);
    world.start += TIMEOUT / 2;
    world.submit(&[(3, 3, "in time")]);
    assert_eq!((world.pool.stats().calls, world.pool.stats().bytes), (4, 115));
    assert!(!request.is_unique());
    assert!(!world.submitter.remove_expired(world.start + TIMEOUT / 2));
    let stats = world.pool.stats();
    assert_eq!((stats.calls, stats.bytes, stats.expired), (1, 7, 3));
    assert!(request.is_unique(), "its bytes are freed");
    release.send(()).unwrap();
    // They are not answered either: the shard that submitted them has done that.
    assert_eq!(world.answers.wait_for(2), [0, 3]);
    let World { pool, submitter, answers, .. } = world;
    drop((pool, submitter));
    assert_eq!(answers.ids_so_far(), []);
}

struct Nowhere;

impl AnswerPort for Nowhere {
    fn answer(&self, _: CallId, _: Outcome) {}
}

#[test]
fn an_expired_call_is_answered_by_its_worker_before_the_next_one_of_its_connection() {
    let mut world = World::idle(Fragile, OPTIONS);
    world.submit(&[(0, 1, "a")]);
    world.start += TIMEOUT;
    world.submit(&[(1, 1, "b"), (2, 2, "c")]);
    assert!(world.run());
    let answers = world.answers.so_far();
    let ids: Vec<_> = answers.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [0, 1, 2]);
    assert_eq!(answers[0].1, Err(Code::Timeout.into()));
    let stats = world.pool.stats();
    assert_eq!((stats.calls, stats.bytes, stats.expired), (0, 0, 1));
    assert_eq!(stats.waits.counts.iter().sum::<u64>(), 2);
}

#[test]
fn a_mass_timeout_is_spread_over_several_turns() {
    let mut world = World::idle(Fragile, PoolOptions { queue_calls_max: 10_000, ..OPTIONS });
    let calls: Vec<_> = (0..EXPIRE_CALLS_MAX as u64 + 1).map(|id| (id, id, "x")).collect();
    world.submit(&calls);
    assert!(world.submitter.remove_expired(world.start + TIMEOUT));
    assert_eq!(world.pool.stats().calls, 1);
    assert!(!world.submitter.remove_expired(world.start + TIMEOUT));
    assert_eq!(world.pool.stats().calls, 0);
}

/// Runs another worker while it handles its first batch.
struct Nesting {
    other: Mutex<Option<Worker>>,
    /// Collects its calls, rather than handle them one by one.
    collects: bool,
}

impl Handler for Nesting {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        let other = self.other.lock().unwrap().take();
        if let Some(mut other) = other {
            other.run_pending(Instant::now());
        }
        echo(call);
    }

    fn handle_batch(&self, batch: &mut Batch, gateway: &Gateway) {
        if self.collects {
            let calls: Vec<_> = batch.by_ref().take(2).collect();
            calls.into_iter().for_each(|call| self.handle(call, gateway));
        } else {
            batch.each(|call| self.handle(call, gateway));
        }
    }
}

/// Which calls are answered, in order, where the second worker runs while the first has the first call.
fn nested(collects: bool, calls: &[(u64, u64, &'static str)]) -> Vec<u64> {
    let handler = Arc::new(Nesting { other: Mutex::default(), collects });
    let shared: Arc<dyn Handler> = Arc::<Nesting>::clone(&handler);
    let options = PoolOptions { workers: 2, ..OPTIONS };
    let (pool, mut workers) = Pool::idle(&shared, Harness::new(Fragile).gateway(), options);
    *handler.other.lock().unwrap() = workers.pop();
    let mut world = World::of(pool, workers);
    world.submit(calls);
    world.run();
    world.answers.ids_so_far()
}

#[test]
fn another_worker_takes_the_rest_of_a_batch_but_not_of_the_connection_at_hand() {
    let calls = [(10, 1, "x"), (11, 1, "x"), (20, 2, "x"), (21, 2, "x"), (30, 3, "x")];
    assert_eq!(nested(false, &calls), [20, 30, 21, 10, 11]);
}

#[test]
fn connections_whose_calls_were_collected_wait_until_the_batch_is_handled() {
    let calls =
        [(10, 1, "x"), (20, 2, "x"), (30, 3, "x"), (11, 1, "x"), (12, 1, "x"), (21, 2, "x")];
    // The first worker collects 10 and 11. The other takes 20 and 21, then 30.
    assert_eq!(nested(true, &calls), [20, 21, 30, 10, 11, 12]);
}

/// Takes none of the calls that it is given.
struct Lazy;

impl Handler for Lazy {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        echo(call);
    }

    fn handle_batch(&self, _batch: &mut Batch, _gateway: &Gateway) {}
}

#[test]
fn a_handler_that_takes_no_call_of_a_batch_fails_one_call_each_time() {
    let mut world = World::idle(Lazy, OPTIONS);
    world.submit(&[(0, 1, "a"), (1, 1, "b"), (2, 2, "c")]);
    assert!(world.run());
    let failed = |id| (id, Err(Code::BackendFailed.into()));
    assert_eq!(world.answers.so_far(), [failed(0), failed(2), failed(1)]);
}

#[test]
fn calls_of_a_pool_without_workers_are_answered_when_it_ends() {
    let mut world = World::idle(Fragile, OPTIONS);
    world.submit(&[(0, 1, "a")]);
    let World { pool, workers, submitter, answers, .. } = world;
    drop((pool, workers, submitter));
    assert_eq!(answers.so_far(), [(0, Err(Code::BackendFailed.into()))]);
}

/// Blocks on "block", echoes otherwise.
struct Sleepy(Duration);

impl Handler for Sleepy {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        if call.biz_data() == "block" {
            thread::sleep(self.0);
        }
        echo(call);
    }
}

#[test]
fn calls_behind_one_that_blocks_are_not_handled_after_their_time() {
    // Longer than the coarse clock takes to move.
    let blocked = Duration::from_millis(50);
    let mut world = World::running(Sleepy(blocked), OPTIONS);
    let short: Vec<_> = (0..200).map(|id| (id, id, "x")).collect();
    world.start = Instant::now();
    world.submit(&short);
    world.answers.wait_for(200);
    // One connection, so that all of them are taken together; each has 10 ms.
    let timeout = world.submitter.timeout_id(Duration::from_millis(10), None);
    let received = Instant::now();
    for id in 1000..1010 {
        let call = world.answers.call(id, 7, if id == 1000 { "block" } else { "x" });
        world.submitter.submit(call, received, timeout);
    }
    world.submitter.flush(received);
    assert_eq!(world.answers.wait_for(1), [1000]);
    // What comes behind them is handled, so they are out of the queue.
    let call = world.answers.call(2000, 7, "x");
    world.submitter.submit(call, Instant::now(), world.timeout);
    world.submitter.flush(Instant::now());
    assert_eq!(world.answers.wait_for(10), (1001..1010).chain([2000]).collect::<Vec<_>>());
    assert_eq!(world.pool.stats().expired, 9);
}

/// Keeps the first call of a batch, and handles the others one by one.
struct KeepsFirst;

impl Handler for KeepsFirst {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        echo(call);
    }

    fn handle_batch(&self, batch: &mut Batch, _gateway: &Gateway) {
        let first = batch.next();
        batch.each(echo);
        first.into_iter().for_each(echo);
    }
}

#[test]
fn a_call_that_is_kept_is_not_overtaken_by_later_calls_of_its_connection() {
    let mut world = World::idle(KeepsFirst, OPTIONS);
    for round in 0..20 {
        let id = round * 10;
        world.submit(&[(id, 1, "x"), (id + 1, 1, "x"), (id + 2, 1, "x"), (id + 3, 2, "x")]);
        assert!(world.run());
        let of_first: Vec<_> =
            world.answers.ids_so_far().into_iter().filter(|answered| *answered < id + 3).collect();
        assert_eq!(of_first, [id, id + 1, id + 2], "in round {round}");
    }
}

#[test]
fn a_worker_without_a_call_does_not_count_as_blocked() {
    let mut world = World::idle(Fragile, OPTIONS);
    for id in 0..100 {
        world.submit(&[(id, id, "x")]);
        assert!(world.run());
    }
    let later = world.start + Duration::from_secs(60);
    assert_eq!(world.pool.shared().blocked_workers(later), 0);
}

#[test]
fn the_waits_of_calls_never_go_down() {
    let mut world = World::idle(Fragile, OPTIONS);
    let mut counted = 0;
    for round in 0..30 {
        let calls: Vec<_> = (0..20).map(|call| (round * 20 + call, 1, "x")).collect();
        world.submit(&calls);
        world.run();
        let now = world.pool.stats().waits.counts.iter().sum::<u64>();
        assert!(now >= counted, "{now} after {counted}");
        counted = now;
    }
    assert_eq!(counted, 600, "each call is counted once");
}

/// Sleeps for as many milliseconds as the request says.
struct Sleeping;

impl Handler for Sleeping {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        let ms: u64 = std::str::from_utf8(call.biz_data()).unwrap().parse().unwrap();
        thread::sleep(Duration::from_millis(ms));
        echo(call);
    }
}

#[test]
fn a_worker_prefers_calls_that_it_can_answer_in_time() {
    let mut world = World::running(Sleeping, OPTIONS);
    // The worker learns that calls take 50 ms.
    world.submit(&[(0, 1, "50"), (1, 1, "50"), (2, 1, "50")]);
    assert_eq!(world.answers.wait_for(3), [0, 1, 2]);
    // While it works on one, two more come. The older one has 30 ms left when it is done, at most.
    world.submit(&[(3, 9, "50")]);
    let (now, timeout) = (Instant::now(), world.submitter.timeout_id(Duration::from_secs(1), None));
    let almost_expired = now - Duration::from_millis(920);
    world.submitter.submit(world.answers.call(4, 2, "0"), almost_expired, timeout);
    world.submitter.submit(world.answers.call(5, 3, "0"), now, timeout);
    world.submitter.flush(now);
    let next = || world.answers.receiver.recv_timeout(TIMEOUT).unwrap();
    let answers = [next(), next(), next()];
    let order = answers.each_ref().map(|answer| answer.0);
    // On a busy machine it may have expired meanwhile.
    let has_expired = answers.iter().any(|answer| answer.0 == 4 && answer.1.is_err());
    assert!(order == [3, 5, 4] || has_expired, "{answers:?}");
}

#[test]
fn one_slow_call_costs_no_other_call_its_answer() {
    let mut world = World::running(Sleeping, OPTIONS);
    // When the slow call is done, the others have less time left than it took.
    let (now, timeout) = (Instant::now(), world.submitter.timeout_id(Duration::from_secs(2), None));
    let mut submit = |id, ms| {
        let call = world.answers.call(id, id, ms);
        world.submitter.submit(call, now, timeout);
    };
    submit(0, "1200");
    (1..=20).for_each(|id| submit(id, "0"));
    world.submitter.flush(now);
    let answers: Vec<_> =
        (0..=20).map(|_| world.answers.receiver.recv_timeout(TIMEOUT).unwrap()).collect();
    assert!(answers.iter().all(|(_, outcome)| outcome.is_ok()), "{answers:?}");
}

#[test]
fn the_wait_of_a_call_that_hangs_is_counted() {
    let (began, has_begun) = channel();
    let (release, released) = channel();
    let handler = Blocking { began: Mutex::new(began), release: Mutex::new(released) };
    let mut world = World::running(handler, OPTIONS);
    world.submit(&[(0, 1, "block"), (1, 1, "next")]);
    has_begun.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(world.pool.stats().waits.counts.iter().sum::<u64>(), 1);
    release.send(()).unwrap();
    assert_eq!(world.answers.wait_for(2), [0, 1]);
}
