//! The router: type -> route -> backend, and the calls that have no answer yet.
//!
//! A route is a range of types, a backend, a timeout and the bounds on its calls. The router
//! belongs to one shard. It knows no driver, and identifies connections only by their ids.

pub mod circuit;
mod pending;
pub mod queue_metrics;
pub mod refusals;
pub mod shedding;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tidegate_backend::handler::CallId;
use tidegate_backend::pool::{Pool, Submitter, TimeoutId, WaitBound};
use tidegate_backend::{Call, Code, Failure, Handler, Placement, UserId};

use crate::config::{CallRate, RouteConfig};
use crate::limits::places::{NS_PER_MS, Places};
use crate::limits::rate::{Rate, RateLimiter};
use crate::limits::rate_sketch::Rate as UserRate;
use crate::limits::user_rates::UserRates;
use circuit::Circuit;
pub use pending::{PendingCall, PendingCalls, RouteIndex};
use refusals::{Refusal, Refusals};
use shedding::SheddingLog;

/// How long a client should wait at least when a backend is overloaded, in milliseconds.
const OVERLOADED_RETRY_MS: u64 = 500;

/// The time between the retries of two calls that were refused since they would wait too long, in nanoseconds: the longest wait has
/// 15,000 places.
const INTERVAL_NS: u64 = 2 * NS_PER_MS;

/// Retries of calls for which a route or a queue was full are spread over this time, in milliseconds: a level may sink at once.
const FULL_SPREAD_MS: u64 = 500;

/// The same for their interval, in nanoseconds.
const FULL_INTERVAL_NS: u64 = 100_000;

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
    /// Whether its calls are shed, for the log.
    pub shedding: Arc<SheddingLog>,
}

impl Backend {
    /// A backend that has refused no call yet.
    #[must_use]
    pub fn new(name: &str, handler: Arc<dyn Handler>, pool: Option<Pool>) -> Self {
        let name: Arc<str> = name.into();
        let shedding = Arc::new(SheddingLog::new(Arc::clone(&name)));
        Self { name, handler, pool, refusals: Arc::default(), circuit: None, shedding }
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
    shedding: Arc<SheddingLog>,
    /// When calls that were refused are to be retried.
    retries: Places,
    /// The same where a route or the queue was full.
    full_retries: Places,
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
    /// This shard's share of the route's rate, and what it has let through.
    rate: Option<(Rate, RateLimiter)>,
    /// The rate of each user.
    user_rate: Option<UserRate>,
    /// It has one of the bounds above, or its backend has a circuit.
    is_guarded: bool,
}

/// Where the calls of a route go. A reload that changes a route's backend, timeout or `waiting_max` gives it another lane, since
/// calls of a lane expire in the order in which they came; a lane without a route lasts until its last call has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lane {
    /// The index of its backend.
    backend: u16,
    timeout_ms: u64,
    /// The id in the backend's pool of the timeout and `waiting_max`, where it has a pool.
    timeout: Option<TimeoutId>,
}

impl Route {
    /// A route whose calls go to a backend by way of this lane.
    fn new(route: &RouteConfig, lane: RouteIndex, backend: &ShardBackend, shards: u16) -> Self {
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
            rate,
            user_rate,
            is_guarded: rate.is_some() || user_rate.is_some() || backend.circuit.is_some(),
        }
    }

    /// Continues what the route of the same types has counted before a reload.
    fn continue_from(&mut self, before: &Self) {
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
    /// The shortest time after which a call of a route may be shed, in milliseconds; `None`: no call is.
    shed_after_ms: Option<u64>,
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
                shedding: Arc::clone(&backend.shedding),
                retries: Places::new(),
                full_retries: Places::new(),
            })
            .collect();
        let (lanes, pending) = (Vec::new(), PendingCalls::new(Vec::new()));
        let (routes_now, shed_after_ms) = (Vec::new(), None);
        let mut router =
            Self { routes: routes_now, lanes, names, backends, shed_after_ms, users, pending };
        router.reconfigure(routes, shards);
        router
    }

    /// Replaces the routes. Calls that wait keep their deadlines, and count against the routes that have their types now.
    pub fn reconfigure(&mut self, routes: &[RouteConfig], shards: u16) {
        self.shed_after_ms = None;
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
        let bound = submitter.as_ref().and(route.waiting_max).map(WaitBound::new);
        if let Some(bound) = bound {
            let after_ms = millis(bound.standing_max()).max(1);
            let least_ms = self.shed_after_ms.unwrap_or(u64::MAX);
            self.shed_after_ms = Some(least_ms.min(after_ms));
        }
        let timeout = submitter.map(|submitter| submitter.timeout_id(timeout, bound));
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
            return Err(self.refuse_full(lane, Refusal::RouteFull, now_ms));
        }
        let backend = &self.backends[self.backend_of(lane)];
        if backend.submitter.as_ref().is_some_and(|submitter| !submitter.has_room(bytes)) {
            return Err(self.refuse_full(lane, Refusal::QueueFull, now_ms));
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
        if let Some((rate, limiter)) = &mut route.rate {
            limiter.admit(*rate, now_ms).map_err(|retry_after_ms| {
                backend.refusals.count(Refusal::RouteRate);
                limited(retry_after_ms)
            })?;
        }
        if let Some(circuit) = &backend.circuit
            && let Err(wait_ms) = circuit.admit(lane.timeout_ms, now_ms)
        {
            let lane = route.lane;
            return Err(self.refuse(lane, Refusal::Circuit, wait_ms, now_ms));
        }
        if let Some((rate, users, key)) = user {
            users.take(key, rate, now_us);
        }
        Ok(())
    }

    /// Refuses a call since its route or the backend's queue is full.
    #[cold]
    fn refuse_full(&mut self, lane: RouteIndex, refusal: Refusal, now_ms: u64) -> Failure {
        let backend = self.backend_of(lane);
        let ShardBackend { refusals, full_retries, .. } = &mut self.backends[backend];
        refusals.count(refusal);
        let first_ms = now_ms + OVERLOADED_RETRY_MS;
        let (first_ns, end_ns) = (first_ms * NS_PER_MS, (first_ms + FULL_SPREAD_MS) * NS_PER_MS);
        let now_ns = now_ms * NS_PER_MS;
        let retry_after_ms = full_retries.next_until(end_ns, first_ns, FULL_INTERVAL_NS, now_ns);
        Failure { code: Code::Overloaded, retry_after_ms }
    }

    /// Refuses a call since the backend serves too few. Its client is to come back after those that were refused before, and not
    /// before `wait_ms` have passed.
    #[cold]
    fn refuse(&mut self, lane: RouteIndex, refusal: Refusal, wait_ms: u64, now_ms: u64) -> Failure {
        let backend = self.backend_of(lane);
        let ShardBackend { refusals, retries, .. } = &mut self.backends[backend];
        refusals.count(refusal);
        let now_ns = now_ms * NS_PER_MS;
        let first_ns = now_ns + wait_ms.max(OVERLOADED_RETRY_MS) * NS_PER_MS;
        let retry_after_ms = retries.next(first_ns, INTERVAL_NS, now_ns);
        Failure { code: Code::Overloaded, retry_after_ms }
    }

    /// Ends a call that has left the backend's queue since it had waited too long. `None`: it has expired meanwhile.
    pub fn shed(&mut self, call: CallId, now_ms: u64) -> Option<(PendingCall, Failure)> {
        let pending = self.pending.close(call)?;
        let failure = self.refuse(pending.route, Refusal::Waiting, OVERLOADED_RETRY_MS, now_ms);
        Some((pending, failure))
    }

    /// How soon calls that wait may have to be shed, in milliseconds; `None`: none waits, or none may be shed.
    #[must_use]
    pub fn shed_after_ms(&self) -> Option<u64> {
        self.shed_after_ms.filter(|_| self.has_queued())
    }

    /// Says in the log when calls begin to be shed, and when that ends.
    #[inline]
    pub fn note_shedding(&self, now_ms: u64) {
        if self.shed_after_ms.is_none() {
            return;
        }
        for backend in &self.backends {
            if let Some(submitter) = &backend.submitter {
                backend.shedding.note(submitter.is_shedding(), now_ms);
            }
        }
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
        let options =
            PoolOptions { workers: 1, queue_calls_max, queue_bytes_max, batch_calls_max: 1 };
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
}
