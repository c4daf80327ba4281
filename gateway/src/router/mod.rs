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
mod tests;
