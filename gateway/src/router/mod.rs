//! The router: type -> route -> backend, and the calls that have no answer yet.
//!
//! A route is a range of types, a backend, a timeout and the bounds on its calls. The router
//! belongs to one shard. It knows no driver, and identifies connections only by their ids.

pub mod circuit;
mod pending;
pub mod queue_metrics;
pub mod refusals;
mod shedding;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tidegate_backend::pool::{Pool, Submitter, TimeoutId};
use tidegate_backend::{Call, Code, Failure, Handler, Placement, UserId};

use crate::config::{CallRate, RouteConfig};
use crate::limits::places::{NS_PER_MS, Places, WAIT_MS_MAX};
use crate::limits::rate::{Rate, RateLimiter};
use crate::limits::rate_sketch::Rate as UserRate;
use crate::limits::user_rates::UserRates;
use circuit::Circuit;
pub use pending::{PendingCall, PendingCalls, RouteIndex};
use refusals::{Refusal, Refusals};
use shedding::Shedding;

/// How long a client should wait at least when a backend is overloaded, in milliseconds.
const OVERLOADED_RETRY_MS: u64 = 500;

/// The time between the retries of two refused calls where the rate of the backend is unknown, in nanoseconds.
const UNKNOWN_INTERVAL_NS: u64 = 100_000;

/// The longest time until the first retry, in nanoseconds: half of the longest wait, so that the others are spread.
const FIRST_NS_MAX: u64 = WAIT_MS_MAX / 2 * NS_PER_MS;

/// A handler and where it runs, shared by all shards.
#[derive(Clone)]
pub struct Backend {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The handler itself.
    pub handler: Arc<dyn Handler>,
    /// Its workers; `None` if it runs on the shards' threads.
    pub pool: Option<Pool>,
    /// The calls that were refused.
    pub refusals: Arc<Refusals>,
    /// Whether it gets calls; `None`: always.
    pub circuit: Option<Arc<Circuit>>,
}

impl Backend {
    /// A backend that has refused no call yet.
    #[must_use]
    pub fn new(name: &str, handler: Arc<dyn Handler>, pool: Option<Pool>) -> Self {
        Self { name: name.into(), handler, pool, refusals: Arc::default(), circuit: None }
    }

    /// Opens the circuit after `timeouts_max` timeouts in a row; `None`: never.
    #[must_use]
    pub fn with_circuit(mut self, timeouts_max: Option<u32>) -> Self {
        let circuit = |timeouts_max| Arc::new(Circuit::new(Arc::clone(&self.name), timeouts_max));
        self.circuit = timeouts_max.map(circuit);
        self
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let placement = if self.pool.is_some() { Placement::Worker } else { Placement::Shard };
        f.debug_struct("Backend").field("name", &self.name).field("runs_on", &placement).finish()
    }
}

/// One backend, as one shard uses it.
struct ShardBackend {
    /// The handler itself.
    handler: Arc<dyn Handler>,
    /// Submits calls to its workers; `None` if it runs on the shard's own thread.
    submitter: Option<Submitter>,
    /// The calls that all shards have refused.
    refusals: Arc<Refusals>,
    circuit: Option<Arc<Circuit>>,
}

/// One route, as one shard sees it.
#[derive(Clone, Debug)]
struct Route {
    first_type: i32,
    last_type: i32,
    /// The lane of its calls.
    lane: RouteIndex,
    /// Lanes of routes that a reload has replaced with this one. Their calls count here until they have ended.
    older: Vec<RouteIndex>,
    /// This shard's share of the route's bound.
    in_flight_max: usize,
    /// `None`: calls may wait until their timeout, or the handler runs on the shard's own thread.
    shedding: Option<Shedding>,
    /// This shard's share of the route's rate, and what it has let through.
    rate: Option<(Rate, RateLimiter)>,
    /// The rate of each user.
    user_rate: Option<UserRate>,
    /// It has one of the bounds above, or its backend has a circuit.
    is_guarded: bool,
    /// When calls that were refused are to be retried.
    retries: Places,
}

/// Where the calls of a route go. A reload that changes a route's backend or timeout gives it another lane, since calls of a
/// lane expire in the order in which they came; a lane without a route lasts until its last call has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lane {
    /// The index of its backend.
    backend: u16,
    timeout_ms: u64,
    /// The timeout's id in the backend's pool, where it has one.
    timeout: Option<TimeoutId>,
}

impl Route {
    /// A route whose calls go to a backend by way of this lane. No call was refused yet.
    fn new(route: &RouteConfig, lane: RouteIndex, backend: &ShardBackend, shards: u16) -> Self {
        let waiting_max = backend.submitter.as_ref().and(route.waiting_max);
        let shedding = waiting_max.map(|waiting_max| Shedding::new(millis(waiting_max)));
        let CallRate { per_second_max, burst_max } = route.rate;
        let rate = per_second_max
            .map(|per_second| (Rate::shared(per_second, burst_max, shards), RateLimiter::new()));
        let CallRate { per_second_max, burst_max } = route.user_rate;
        let user_rate = per_second_max
            .map(|per_second| UserRate::new(per_second, Duration::from_secs(1), burst_max));
        Self {
            first_type: route.first_type,
            last_type: route.last_type,
            lane,
            older: Vec::new(),
            in_flight_max: route.in_flight_max.div_ceil(usize::from(shards)),
            shedding,
            rate,
            user_rate,
            is_guarded: shedding.is_some()
                || rate.is_some()
                || user_rate.is_some()
                || backend.circuit.is_some(),
            retries: Places::new(),
        }
    }

    /// Continues what the route of the same types has counted before a reload.
    fn continue_from(&mut self, before: &Self) {
        self.retries = before.retries;
        if let (Some((_, limiter)), Some((_, limiter_before))) = (&mut self.rate, before.rate) {
            *limiter = limiter_before;
        }
    }

    /// The lanes whose calls count against it.
    fn lanes(&self) -> impl Iterator<Item = RouteIndex> {
        std::iter::once(self.lane).chain(self.older.iter().copied())
    }
}

/// A shard's routes, and its calls in flight.
pub struct Router {
    /// By ascending type, not overlapping.
    routes: Vec<Route>,
    /// By [`RouteIndex`].
    lanes: Vec<Lane>,
    /// The names of the backends, by index.
    names: Vec<Arc<str>>,
    backends: Vec<ShardBackend>,
    /// Each serves its part of the calls.
    shards: u16,
    /// What each user has called, all shards together. It is empty while no route has a rate for each user.
    users: Arc<OnceLock<UserRates>>,
    /// Calls that have no answer yet.
    pub pending: PendingCalls,
}

impl Router {
    /// A router for one of `shards` shards. Each route's backend must be among `backends`: the
    /// configuration is checked.
    #[must_use]
    pub fn new(
        routes: &[RouteConfig],
        backends: &[Backend],
        users: Arc<OnceLock<UserRates>>,
        shards: u16,
    ) -> Self {
        let names = backends.iter().map(|backend| Arc::clone(&backend.name)).collect();
        let backends = backends
            .iter()
            .map(|backend| ShardBackend {
                handler: Arc::clone(&backend.handler),
                submitter: backend.pool.as_ref().map(Pool::submitter),
                refusals: Arc::clone(&backend.refusals),
                circuit: backend.circuit.clone(),
            })
            .collect();
        let (lanes, pending) = (Vec::new(), PendingCalls::new(Vec::new()));
        let mut router =
            Self { routes: Vec::new(), lanes, names, backends, shards, users, pending };
        router.reconfigure(routes, shards);
        router
    }

    /// Replaces the routes. Calls that wait keep their deadlines, and count against the routes that have their types now.
    pub fn reconfigure(&mut self, routes: &[RouteConfig], shards: u16) {
        self.shards = shards;
        let before = std::mem::take(&mut self.routes);
        for route in routes {
            let lane = self.lane_of(route);
            let overlaps = |old: &&Route| {
                old.first_type <= route.last_type && route.first_type <= old.last_type
            };
            let types = (route.first_type, route.last_type);
            let same = before.iter().find(|old| (old.first_type, old.last_type) == types);
            // The lane of a route that stays is not taken by another one.
            let stays = same.filter(|old| self.lanes[usize::from(old.lane.0)] == lane);
            let lane = match stays {
                Some(old) => old.lane,
                None => self.add_lane(lane, &before),
            };
            let backend = &self.backends[usize::from(self.lanes[usize::from(lane.0)].backend)];
            let mut new = Route::new(route, lane, backend, shards);
            same.inspect(|old| new.continue_from(old));
            let lanes_before = before.iter().filter(overlaps).flat_map(Route::lanes);
            let counts = |old: &RouteIndex| *old != lane && self.pending.in_flight(*old) > 0;
            new.older = lanes_before.filter(counts).collect();
            // A route that was split and is one again has each lane once.
            new.older.sort_unstable_by_key(|lane| lane.0);
            new.older.dedup();
            if new.user_rate.is_some() {
                self.users.get_or_init(UserRates::default);
            }
            self.routes.push(new);
        }
    }

    /// What a route's lane has to be.
    fn lane_of(&mut self, route: &RouteConfig) -> Lane {
        let backend = self.names.iter().position(|name| **name == *route.backend);
        let backend = backend
            .and_then(|index| u16::try_from(index).ok())
            .expect("routes are checked against the backends");
        let timeout_ms = millis(route.timeout);
        let submitter = self.backends[usize::from(backend)].submitter.as_mut();
        let timeout = Duration::from_millis(timeout_ms);
        let timeout = submitter.map(|submitter| submitter.timeout_id(timeout));
        Lane { backend, timeout_ms, timeout }
    }

    /// Gives a route a lane that no route of now or before has, and no call.
    fn add_lane(&mut self, lane: Lane, before: &[Route]) -> RouteIndex {
        let lanes =
            (0..self.lanes.len()).map(|index| RouteIndex(index.try_into().unwrap_or(u16::MAX)));
        let free = lanes.into_iter().find(|index| {
            let has_route = |route: &Route| route.lane == *index;
            self.pending.in_flight(*index) == 0
                && !self.routes.iter().any(has_route)
                && !before.iter().any(has_route)
        });
        if let Some(index) = free {
            self.lanes[usize::from(index.0)] = lane;
            self.pending.set_timeout(index, lane.timeout_ms);
            return index;
        }
        let index = u16::try_from(self.lanes.len()).expect("calls in flight bound the lanes");
        self.lanes.push(lane);
        self.pending.add_route(lane.timeout_ms);
        RouteIndex(index)
    }

    /// Finds the route of a type, if it takes one more call of this user with a request of this many bytes.
    ///
    /// # Errors
    /// What the client gets.
    #[inline]
    pub fn admit(
        &mut self,
        kind: i32,
        user_id: UserId,
        bytes: usize,
        now_ms: u64,
    ) -> Result<RouteIndex, Failure> {
        let index = self.routes.partition_point(|route| route.last_type < kind);
        let route = self
            .routes
            .get(index)
            .filter(|route| route.first_type <= kind)
            .ok_or(Failure::from(Code::NoRoute))?;
        let lane = route.lane;
        let mut in_flight = self.pending.in_flight(lane);
        if !route.older.is_empty() {
            in_flight +=
                route.older.iter().map(|&lane| self.pending.in_flight(lane)).sum::<usize>();
        }
        if in_flight >= route.in_flight_max {
            return Err(self.refuse(index, Refusal::RouteFull, now_ms));
        }
        let backend = &self.backends[self.backend_of(lane)];
        if backend.submitter.as_ref().is_some_and(|submitter| !submitter.has_room(bytes)) {
            return Err(self.refuse(index, Refusal::QueueFull, now_ms));
        }
        if route.is_guarded {
            self.check(index, user_id, now_ms)?;
        }
        Ok(lane)
    }

    /// Checks the bounds of a route that not all routes have. What takes something away comes last: a probe, and then the user's token.
    fn check(&mut self, index: usize, user_id: UserId, now_ms: u64) -> Result<(), Failure> {
        let route = &mut self.routes[index];
        let lane = &self.lanes[usize::from(route.lane.0)];
        let backend = &self.backends[usize::from(lane.backend)];
        let now_us = now_ms * 1_000;
        let limited = |retry_after_ms| Failure { code: Code::RateLimited, retry_after_ms };
        let user = route
            .user_rate
            .zip(self.users.get())
            .map(|(rate, users)| (rate, users, users.key(route.first_type, user_id)));
        if let Some((rate, users, key)) = user {
            users.check(key, rate, now_us).map_err(|retry_after_ms| {
                backend.refusals.count(Refusal::UserRate);
                limited(retry_after_ms)
            })?;
        }
        if let Some(shedding) = &mut route.shedding
            && let Some(submitter) = &backend.submitter
            && !shedding.admits(submitter.load(), submitter.workers(), now_ms)
        {
            return Err(self.refuse(index, Refusal::Waiting, now_ms));
        }
        if let Some((rate, limiter)) = &mut route.rate {
            limiter.admit(*rate, now_ms).map_err(|retry_after_ms| {
                backend.refusals.count(Refusal::RouteRate);
                limited(retry_after_ms)
            })?;
        }
        if let Some(circuit) = &backend.circuit
            && let Err(wait_ms) = circuit.admit(lane.timeout_ms, now_ms)
        {
            return Err(self.refuse_until(index, Refusal::Circuit, wait_ms, now_ms));
        }
        if let Some((rate, users, key)) = user {
            users.take(key, rate, now_us);
        }
        Ok(())
    }

    /// Refuses a call of a route. Its client is to come back after those that were refused before, at the rate at which the
    /// backend serves calls.
    #[cold]
    fn refuse(&mut self, route: usize, refusal: Refusal, now_ms: u64) -> Failure {
        self.refuse_until(route, refusal, OVERLOADED_RETRY_MS, now_ms)
    }

    /// As [`Self::refuse`]; no client is to come back before `wait_ms` have passed.
    #[cold]
    fn refuse_until(
        &mut self,
        route: usize,
        refusal: Refusal,
        wait_ms: u64,
        now_ms: u64,
    ) -> Failure {
        let route = &mut self.routes[route];
        let backend = self.lanes[usize::from(route.lane.0)].backend;
        let backend = &self.backends[usize::from(backend)];
        backend.refusals.count(refusal);
        let load = backend.submitter.as_ref().map(Submitter::load).unwrap_or_default();
        let interval_ns = match load.per_call_ns.saturating_mul(u64::from(self.shards)) {
            0 => UNKNOWN_INTERVAL_NS,
            interval_ns => interval_ns,
        };
        let now_ns = now_ms * NS_PER_MS;
        let wait_ns = wait_ms.max(OVERLOADED_RETRY_MS) * NS_PER_MS;
        let first_ns = now_ns + wait_ns.max(load.wait_ns()).min(FIRST_NS_MAX);
        let retry_after_ms = route.retries.next(first_ns, interval_ns, now_ns);
        Failure { code: Code::Overloaded, retry_after_ms }
    }

    /// A call of this route was answered in time.
    #[inline]
    pub fn note_answer(&self, route: RouteIndex, now_ms: u64) {
        if let Some(circuit) = &self.backends[self.backend_of(route)].circuit {
            circuit.note_answer(now_ms);
        }
    }

    /// A call of this route has timed out.
    #[inline]
    pub fn note_timeout(&self, route: RouteIndex, now_ms: u64) {
        if let Some(circuit) = &self.backends[self.backend_of(route)].circuit {
            circuit.note_timeout(self.lanes[usize::from(route.0)].timeout_ms, now_ms);
        }
    }

    /// Submits a call, which was received at `received`, to the workers of its route's backend.
    ///
    /// # Errors
    /// The call itself and its handler, where that runs on the shard's own thread.
    #[inline]
    pub fn submit(
        &mut self,
        route: RouteIndex,
        call: Call,
        received: Instant,
    ) -> Result<(), (Call, &dyn Handler)> {
        let lane = &self.lanes[usize::from(route.0)];
        let backend = &mut self.backends[usize::from(lane.backend)];
        match (&mut backend.submitter, lane.timeout) {
            (Some(submitter), Some(timeout)) => {
                submitter.submit(call, received, timeout);
                Ok(())
            }
            _ => Err((call, &*backend.handler)),
        }
    }

    /// The index of a route's backend.
    #[must_use]
    pub fn backend_of(&self, route: RouteIndex) -> usize {
        usize::from(self.lanes[usize::from(route.0)].backend)
    }

    /// Hands over what was submitted in this turn, and wakes a worker of a backend whose calls wait while no
    /// worker takes them. Returns whether anything was submitted.
    #[inline]
    pub fn flush(&mut self, now: Instant) -> bool {
        let submitters = self.backends.iter_mut().filter_map(|backend| backend.submitter.as_mut());
        submitters.fold(false, |any, submitter| submitter.flush(now) | any)
    }

    /// Whether calls were submitted since the last [`Self::flush`].
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        let mut submitters = self.backends.iter().filter_map(|backend| backend.submitter.as_ref());
        submitters.any(Submitter::has_unflushed)
    }

    /// Whether calls wait for workers.
    #[inline]
    #[must_use]
    pub fn has_queued(&self) -> bool {
        let mut submitters = self.backends.iter().filter_map(|backend| backend.submitter.as_ref());
        submitters.any(Submitter::has_queued)
    }

    /// Removes queued calls that have expired at `now`, a bounded number. Returns whether there may be more.
    pub fn remove_expired(&mut self, now: Instant) -> bool {
        let submitters = self.backends.iter_mut().filter_map(|backend| backend.submitter.as_mut());
        submitters.fold(false, |more, submitter| submitter.remove_expired(now) | more)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("routes", &self.routes).finish_non_exhaustive()
    }
}

/// A time in milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tidegate_backend::SessionId;
    use tidegate_backend::demo::{Demo, ECHO};
    use tidegate_backend::handler::{AnswerPort, CallId, Outcome};
    use tidegate_backend::harness::Harness;
    use tidegate_backend::pool::{PoolOptions, Worker};

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
        Router::new(
            &[route(5, 10), route(20, 20), route(30, i32::MAX)],
            &[backend],
            Arc::default(),
            2,
        )
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

    struct Nowhere;

    impl AnswerPort for Nowhere {
        fn answer(&self, _: CallId, _: Outcome) {}
    }

    /// A worker that handles a call in a millisecond, and clients that do not wait for their answers.
    struct World {
        router: Router,
        workers: Vec<Worker>,
        start: Instant,
        now_ms: u64,
        calls: u64,
    }

    impl World {
        fn new(waiting_max_ms: Option<u64>) -> Self {
            let handler: Arc<dyn Handler> = Arc::new(Demo::default());
            let gateway = Harness::new(Demo::default()).gateway().clone();
            let options = PoolOptions {
                workers: 1,
                queue_calls_max: 1_000_000,
                queue_bytes_max: 1,
                batch_calls_max: 1,
            };
            let (pool, workers) = Pool::idle(&handler, &gateway, options);
            let backend = Backend::new("demo", handler, Some(pool));
            let waiting_max = waiting_max_ms.map(Duration::from_millis);
            let route = RouteConfig { waiting_max, in_flight_max: 1_000_000, ..route(ECHO, ECHO) };
            let router = Router::new(&[route], &[backend], Arc::default(), 1);
            Self { router, workers, start: Instant::now(), now_ms: 0, calls: 0 }
        }

        /// For a while, `calls` in each millisecond, each on a connection of its own. Returns how many were handled, and the waits of
        /// those that were refused.
        fn run(&mut self, passed_ms: u64, calls: u64) -> (u64, Vec<u32>) {
            let (mut handled, mut waits) = (0, Vec::new());
            for _ in 0..passed_ms {
                let now = self.start + Duration::from_millis(self.now_ms);
                for _ in 0..calls {
                    self.calls += 1;
                    let (session, id) = (SessionId(self.calls), CallId(self.calls));
                    match self.router.admit(ECHO, 7, 0, self.now_ms) {
                        Ok(route) => {
                            let port = Arc::new(Nowhere);
                            let call = Call::new(ECHO, 7, session, Bytes::new(), id, port);
                            assert!(self.router.submit(route, call, now).is_ok());
                        }
                        Err(failure) => {
                            assert_eq!(failure.code, Code::Overloaded);
                            waits.push(failure.retry_after_ms);
                        }
                    }
                }
                self.router.flush(now);
                let ended = now + Duration::from_millis(1);
                handled += u64::from(self.workers[0].run_one(now, ended));
                self.router.remove_expired(ended);
                self.now_ms += 1;
            }
            (handled, waits)
        }

        /// How many calls wait.
        fn queued(&self) -> usize {
            self.router.backends[0].submitter.as_ref().unwrap().load().waiting_calls
        }
    }

    #[test]
    fn more_calls_than_can_be_served_are_refused_and_those_admitted_wait_for_a_short_time() {
        for times in [2, 5, 20] {
            let mut world = World::new(Some(50));
            assert_eq!(world.run(1_000, 1), (1_000, Vec::new()), "all that can be served");
            let (handled, _) = world.run(1_000, times);
            assert_eq!(handled, 1_000, "{times}");
            assert!(world.queued() <= 5, "{times}: {}", world.queued());
            let (handled, waits) = world.run(1_000, times);
            assert_eq!((handled, waits.len() as u64), (1_000, (times - 1) * 1_000), "{times}");
            // All is as it was.
            assert_eq!(world.run(3_000, 1), (3_000, Vec::new()));
        }
    }

    #[test]
    fn a_burst_that_fits_is_not_refused() {
        let mut world = World::new(Some(500));
        world.run(200, 1);
        assert!(world.run(1, 490).1.is_empty());
        assert_eq!(world.run(450, 0), (450, Vec::new()));
        assert!(world.run(1, 400).1.is_empty(), "the queue has not stood");
    }

    #[test]
    fn without_a_bound_calls_wait_until_they_expire() {
        let mut world = World::new(None);
        assert!(world.run(2_000, 5).1.is_empty());
        assert!(world.queued() > 4_000);
    }

    #[test]
    fn refused_calls_come_back_at_the_rate_of_the_workers() {
        let mut world = World::new(Some(10));
        world.run(1_000, 2);
        let waits = world.run(1, 2_000).1;
        assert!(waits.is_sorted() && waits.iter().all(|wait| (500..=30_000).contains(wait)));
        let spread = waits[waits.len() - 1] - waits[0];
        assert!((1_900..2_100).contains(&spread), "one in a millisecond: {spread} ms");
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
}
