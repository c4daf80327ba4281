use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tidegate_backend::SessionId;
use tidegate_backend::demo::{Demo, ECHO};
use tidegate_backend::handler::{AnswerPort, CallId, Outcome};
use tidegate_backend::harness::Harness;
use tidegate_backend::pool::PoolOptions;

use super::*;

fn route(first_type: i32, last_type: i32) -> RouteConfig {
    RouteConfig {
        first_type,
        last_type,
        backend: "demo".into(),
        timeout: Duration::from_secs(1),
        in_flight_max: 3,
        waiting_max: None,
        rate: CallRate::UNLIMITED,
        user_rate: CallRate::UNLIMITED,
    }
}

fn router() -> Router {
    let backend = Backend::new("demo", Arc::new(Demo::default()), None);
    Router::new(&[route(5, 10), route(20, 20), route(30, i32::MAX)], &[backend], Arc::default(), 2)
}

fn admit(router: &mut Router, kind: i32) -> Result<RouteIndex, Code> {
    router.admit(kind, 7, 0, 0).map_err(|failure| failure.code)
}

#[test]
fn a_type_has_the_route_of_its_range_or_none() {
    let mut router = router();
    for (kind, want) in [(5, 0), (10, 0), (20, 1), (30, 2), (i32::MAX, 2)] {
        assert_eq!(admit(&mut router, kind), Ok(RouteIndex(want)), "{kind}");
    }
    for kind in [1, 4, 11, 19, 21, 29] {
        assert_eq!(admit(&mut router, kind), Err(Code::NoRoute), "{kind}");
    }
}

#[test]
fn a_route_has_its_share_of_calls_in_flight() {
    let mut router = router();
    let conn = crate::driver::ConnId { slot: 0, generation: 0 };
    let route = admit(&mut router, 20).unwrap();
    let first =
        router.pending.open(PendingCall { conn, sequence: 1, kind: 20, route, started_us: 0 });
    router.pending.open(PendingCall { conn, sequence: 2, kind: 20, route, started_us: 0 });
    assert_eq!(admit(&mut router, 20), Err(Code::Overloaded));
    assert_eq!(router.backends[0].refusals.counted(Refusal::RouteFull), 1);
    assert_eq!(admit(&mut router, 5), Ok(RouteIndex(0)));
    assert!(router.pending.close(first).is_some());
    assert_eq!(admit(&mut router, 20), Ok(route));
}

#[test]
fn calls_beyond_the_rate_of_a_route_or_of_a_user_are_refused() {
    let backend = Backend::new("demo", Arc::new(Demo::default()), None);
    let rate = |per_second, burst_max| CallRate { per_second_max: Some(per_second), burst_max };
    let route = RouteConfig { rate: rate(10, 10), user_rate: rate(2, 3), ..route(ECHO, ECHO) };
    let users = Arc::default();
    let backends = [backend];
    let mut shards = [(); 2]
        .map(|()| Router::new(std::slice::from_ref(&route), &backends, Arc::clone(&users), 2));
    let mut ask = |shard: usize, user_id| shards[shard].admit(ECHO, user_id, 0, 1_000);
    // A user's rate is the same on all shards.
    assert!(ask(0, 1).is_ok() && ask(0, 1).is_ok() && ask(1, 1).is_ok());
    for retry_after_ms in [500, 1_000, 1_500] {
        let refused = Failure { code: Code::RateLimited, retry_after_ms };
        assert_eq!(ask(1, 1), Err(refused));
    }
    // Each shard has half of the route's rate.
    assert!(ask(0, 2).is_ok() && ask(0, 3).is_ok() && ask(0, 4).is_ok());
    let refused = Failure { code: Code::RateLimited, retry_after_ms: 200 };
    assert_eq!(ask(0, 5), Err(refused));
    assert!(ask(1, 5).is_ok(), "its token was not taken");
    let counted = |refusal| backends[0].refusals.counted(refusal);
    assert_eq!((counted(Refusal::UserRate), counted(Refusal::RouteRate)), (3, 1));
}

#[test]
fn a_backend_that_answers_nothing_gets_probes_alone_until_one_is_answered() {
    let backend = Backend::new("demo", Arc::new(Demo::default()), None).with_circuit(Some(3));
    let (timeout_ms, backends) = (1_000, [backend]);
    let mut router = Router::new(&[route(ECHO, ECHO)], &backends, Arc::default(), 1);
    let route = router.admit(ECHO, 7, 0, 1_000).unwrap();
    (0..3).for_each(|_| router.note_timeout(route, 2_000));
    let refused = router.admit(ECHO, 7, 0, 2_000).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Overloaded, 1_000));
    assert!(router.admit(ECHO, 7, 0, 2_000).unwrap_err().retry_after_ms > 1_000);
    assert_eq!(router.admit(ECHO, 7, 0, 3_000), Ok(route), "a probe");
    assert!(router.admit(ECHO, 7, 0, 3_000 + timeout_ms).is_err());
    router.note_answer(route, 3_000 + timeout_ms);
    assert_eq!(router.admit(ECHO, 7, 0, 3_000 + timeout_ms), Ok(route));
    assert_eq!(backends[0].refusals.counted(Refusal::Circuit), 3);
}

/// Notes the calls that were shed.
#[derive(Default)]
struct ShedCalls(Mutex<Vec<CallId>>);

impl AnswerPort for ShedCalls {
    fn answer(&self, _: CallId, _: Outcome) {}

    fn call_shed(&self, call: CallId) {
        self.0.lock().unwrap().push(call);
    }
}

fn route_with_workers(waiting_max_ms: u64) -> (RouteConfig, Backend) {
    let handler: Arc<dyn Handler> = Arc::new(Demo::default());
    let gateway = Harness::new(Demo::default()).gateway().clone();
    let (queue_calls_max, queue_bytes_max) = (1_000_000, 1);
    let options = PoolOptions { workers: 1, queue_calls_max, queue_bytes_max, batch_calls_max: 1 };
    let (pool, _) = Pool::idle(&handler, &gateway, options);
    let waiting_max = Some(Duration::from_millis(waiting_max_ms));
    let route = RouteConfig { waiting_max, in_flight_max: 1_000_000, ..route(ECHO, ECHO) };
    (route, Backend::new("demo", handler, Some(pool)))
}

#[test]
fn calls_that_are_shed_free_their_places_and_come_back_one_after_the_other() {
    const CALLS: u64 = 10_000;
    let (route, backend) = route_with_workers(100);
    let mut router = Router::new(&[route], &[backend], Arc::default(), 1);
    let (shed, start) = (Arc::new(ShedCalls::default()), Instant::now());
    assert_eq!(router.shed_after_ms(), None, "none waits");
    for number in 0..CALLS {
        let route = router.admit(ECHO, 7, 0, 0).unwrap();
        let conn = crate::driver::ConnId { slot: 0, generation: 0 };
        let pending = PendingCall { conn, sequence: 1, kind: ECHO, route, started_us: 0 };
        let (id, port) = (router.pending.open(pending), Arc::clone(&shed));
        let call = Call::new(ECHO, 7, SessionId(number), Bytes::new(), id, port);
        assert!(router.submit(route, call, start).is_ok());
    }
    router.flush(start);
    assert_eq!(router.shed_after_ms(), Some(5));
    router.flush(start + Duration::from_millis(99));
    assert!(shed.0.lock().unwrap().is_empty(), "it may be a burst");
    while shed.0.lock().unwrap().len() as u64 != CALLS - 1 {
        router.flush(start + Duration::from_millis(100));
    }
    let mut waits: Vec<_> = std::mem::take(&mut *shed.0.lock().unwrap())
        .into_iter()
        .map(|call| router.shed(call, 100).unwrap().1.retry_after_ms)
        .collect();
    assert_eq!(router.pending.len(), 1, "a worker would take one");
    assert_eq!(router.backends[0].refusals.counted(Refusal::Waiting), CALLS - 1);
    assert!(waits.is_sorted() && waits.iter().all(|wait| (500..=30_000).contains(wait)));
    waits.dedup();
    assert!(waits.len() > 9_000, "{} waits", waits.len());
}

#[test]
fn a_reload_changes_how_long_calls_may_wait() {
    let (route, backend) = route_with_workers(100);
    let mut router = Router::new(std::slice::from_ref(&route), &[backend], Arc::default(), 1);
    let before = admit(&mut router, ECHO).unwrap();
    router.reconfigure(std::slice::from_ref(&route), 1);
    assert_eq!(admit(&mut router, ECHO), Ok(before));
    let other = |waiting_max| RouteConfig { waiting_max, ..route.clone() };
    router.reconfigure(&[other(Some(Duration::from_millis(400)))], 1);
    let lane = admit(&mut router, ECHO).unwrap();
    assert_ne!(router.lanes[usize::from(lane.0)].timeout, router.lanes[0].timeout);
    assert_eq!(router.shed_after_ms, Some(20));
    router.reconfigure(&[other(None)], 1);
    assert_eq!(router.shed_after_ms, None);
}

#[test]
fn calls_of_a_full_route_come_back_within_a_second() {
    let mut router = router();
    router.reconfigure(&[RouteConfig { in_flight_max: 0, ..route(5, 10) }], 1);
    let refused = |_| router.admit(5, 7, 0, 1_000).unwrap_err().retry_after_ms;
    let mut waits: Vec<_> = (0..10_000).map(refused).collect();
    waits.sort_unstable();
    waits.dedup();
    assert_eq!(waits, (500..=1_000).collect::<Vec<_>>());
}

fn config(first_type: i32, last_type: i32, timeout_ms: u64) -> RouteConfig {
    let timeout = Duration::from_millis(timeout_ms);
    RouteConfig { timeout, in_flight_max: 4, ..route(first_type, last_type) }
}

/// Begins a call of a type.
fn call(router: &mut Router, kind: i32, started_ms: u64) -> Result<CallId, Code> {
    let conn = crate::driver::ConnId { slot: 0, generation: 0 };
    let (sequence, started_us) = (1, started_ms * 1000);
    let route = admit(router, kind)?;
    Ok(router.pending.open(PendingCall { conn, sequence, kind, route, started_us }))
}

#[test]
fn calls_keep_their_deadline_and_count_when_their_route_changes() {
    let mut router = router();
    router.reconfigure(&[config(1, 9, 1_000)], 2);
    let first = call(&mut router, 5, 0).unwrap();
    router.reconfigure(&[config(1, 9, 100)], 2);
    let second = call(&mut router, 5, 0).unwrap();
    assert_eq!(call(&mut router, 5, 0), Err(Code::Overloaded), "both count");
    assert_eq!(router.pending.next_deadline_ms(), Some(100));
    assert!(router.pending.take_expired(100).is_some());
    assert_eq!(
        (router.pending.close(second), router.pending.next_deadline_ms()),
        (None, Some(1_000))
    );
    // The route is split, and back at its old timeout: the call that waits counts for both.
    router.reconfigure(&[config(1, 4, 1_000), config(5, 9, 1_000)], 4);
    for kind in [4, 5] {
        assert_eq!(call(&mut router, kind, 0), Err(Code::Overloaded));
    }
    router.reconfigure(&[], 4);
    assert_eq!(call(&mut router, 5, 0), Err(Code::NoRoute));
    assert!(router.pending.close(first).is_some(), "its answer is still taken");
}

#[test]
fn a_route_that_stays_keeps_its_lane_and_lanes_are_used_again() {
    let mut router = router();
    router.reconfigure(&[config(1, 9, 10), config(10, 19, 10)], 1);
    let lanes = router.lanes.len();
    let stays = admit(&mut router, 12).unwrap();
    for round in 0..100 {
        router.reconfigure(&[config(1, 9, 20 + round), config(10, 19, 10)], 1);
        assert_eq!(admit(&mut router, 12), Ok(stays));
    }
    assert!(router.lanes.len() <= lanes + 1, "{:?}", router.lanes);
    // More calls may be in flight than before, or fewer.
    let wider = RouteConfig { in_flight_max: 1, ..config(10, 19, 10) };
    router.reconfigure(&[wider], 1);
    assert!(call(&mut router, 12, 0).is_ok());
    assert_eq!(call(&mut router, 12, 0), Err(Code::Overloaded));
}
