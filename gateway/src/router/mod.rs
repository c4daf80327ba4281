//! The router: type -> route -> backend, and the calls that have no answer yet.
//!
//! A route is a range of types, a backend, a timeout and a bound on the calls in flight. The router
//! belongs to one shard. It knows no driver, and identifies connections only by their ids.

mod pending;
pub mod queue_metrics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_backend::pool::{Pool, Submitter, TimeoutId};
use tidegate_backend::{Call, Code, Failure, Handler, Placement};

use crate::config::RouteConfig;
pub use pending::{PendingCall, PendingCalls, RouteIndex};

/// How long a client should wait when a backend is overloaded, in milliseconds.
const OVERLOADED_RETRY_MS: u32 = 500;

/// A handler and where it runs, shared by all shards.
#[derive(Clone)]
pub struct Backend {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The handler itself.
    pub handler: Arc<dyn Handler>,
    /// Its workers; `None` if it runs on the shards' threads.
    pub pool: Option<Pool>,
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
    /// The lanes whose calls count against it.
    fn lanes(&self) -> impl Iterator<Item = RouteIndex> {
        std::iter::once(self.lane).chain(self.older.iter().copied())
    }
}

/// Why a request is not given to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No route has its type: 105.
    NoRoute,
    /// The route has as many calls in flight as it may: 104.
    RouteFull,
    /// The backend's queue has too many calls or bytes: 104.
    QueueFull,
}

impl Refusal {
    /// What the client gets.
    #[must_use]
    pub fn failure(self) -> Failure {
        match self {
            Self::NoRoute => Code::NoRoute.into(),
            Self::RouteFull | Self::QueueFull => {
                Failure { code: Code::Overloaded, retry_after_ms: OVERLOADED_RETRY_MS }
            }
        }
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
    /// Calls that have no answer yet.
    pub pending: PendingCalls,
}

impl Router {
    /// A router for one of `shards` shards. Each route's backend must be among `backends`: the
    /// configuration is checked.
    #[must_use]
    pub fn new(routes: &[RouteConfig], backends: &[Backend], shards: u16) -> Self {
        let names = backends.iter().map(|backend| Arc::clone(&backend.name)).collect();
        let backends = backends
            .iter()
            .map(|backend| ShardBackend {
                handler: Arc::clone(&backend.handler),
                submitter: backend.pool.as_ref().map(Pool::submitter),
            })
            .collect();
        let pending = PendingCalls::new(Vec::new());
        let mut router = Self { routes: Vec::new(), lanes: Vec::new(), names, backends, pending };
        router.reconfigure(routes, shards);
        router
    }

    /// Replaces the routes. Calls that wait keep their deadlines, and count against the routes that have their types now.
    pub fn reconfigure(&mut self, routes: &[RouteConfig], shards: u16) {
        let before = std::mem::take(&mut self.routes);
        for route in routes {
            let lane = self.lane_of(route);
            let overlaps = |old: &&Route| {
                old.first_type <= route.last_type && route.first_type <= old.last_type
            };
            // The lane of a route that stays is not taken by another one.
            let stays = before.iter().filter(overlaps).find(|old| {
                let types = (old.first_type, old.last_type);
                types == (route.first_type, route.last_type)
                    && self.lanes[usize::from(old.lane.0)] == lane
            });
            let lane = match stays {
                Some(old) => old.lane,
                None => self.add_lane(lane, &before),
            };
            let lanes_before = before.iter().filter(overlaps).flat_map(Route::lanes);
            let older = lanes_before.filter(|&old| old != lane && self.pending.in_flight(old) > 0);
            self.routes.push(Route {
                first_type: route.first_type,
                last_type: route.last_type,
                lane,
                older: older.collect(),
                in_flight_max: route.in_flight_max.div_ceil(usize::from(shards)),
            });
        }
    }

    /// What a route's lane has to be.
    fn lane_of(&mut self, route: &RouteConfig) -> Lane {
        let backend = self.names.iter().position(|name| **name == *route.backend);
        let backend = backend
            .and_then(|index| u16::try_from(index).ok())
            .expect("routes are checked against the backends");
        let timeout_ms = u64::try_from(route.timeout.as_millis()).unwrap_or(u64::MAX);
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

    /// Finds the route of a type, if it takes one more call with a request of this many bytes.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline]
    pub fn admit(&self, kind: i32, bytes: usize) -> Result<RouteIndex, Refusal> {
        let index = self.routes.partition_point(|route| route.last_type < kind);
        let route = self
            .routes
            .get(index)
            .filter(|route| route.first_type <= kind)
            .ok_or(Refusal::NoRoute)?;
        let mut in_flight = self.pending.in_flight(route.lane);
        if !route.older.is_empty() {
            in_flight +=
                route.older.iter().map(|&lane| self.pending.in_flight(lane)).sum::<usize>();
        }
        if in_flight >= route.in_flight_max {
            return Err(Refusal::RouteFull);
        }
        let backend = self.lanes[usize::from(route.lane.0)].backend;
        let backend = &self.backends[usize::from(backend)];
        if backend.submitter.as_ref().is_some_and(|submitter| !submitter.has_room(bytes)) {
            return Err(Refusal::QueueFull);
        }
        Ok(route.lane)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_backend::demo::Demo;
    use tidegate_backend::handler::CallId;

    use super::*;

    fn router() -> Router {
        let backend =
            Backend { name: "demo".into(), handler: Arc::new(Demo::default()), pool: None };
        let route = |first_type, last_type| RouteConfig {
            first_type,
            last_type,
            backend: "demo".into(),
            timeout: Duration::from_secs(1),
            in_flight_max: 3,
        };
        Router::new(&[route(5, 10), route(20, 20), route(30, i32::MAX)], &[backend], 2)
    }

    #[test]
    fn a_type_has_the_route_of_its_range_or_none() {
        let router = router();
        for (kind, want) in [(5, 0), (10, 0), (20, 1), (30, 2), (i32::MAX, 2)] {
            assert_eq!(router.admit(kind, 0), Ok(RouteIndex(want)), "{kind}");
        }
        for kind in [1, 4, 11, 19, 21, 29] {
            assert_eq!(router.admit(kind, 0), Err(Refusal::NoRoute), "{kind}");
        }
    }

    #[test]
    fn a_route_has_its_share_of_calls_in_flight() {
        let mut router = router();
        let conn = crate::driver::ConnId { slot: 0, generation: 0 };
        let route = router.admit(20, 0).unwrap();
        let first =
            router.pending.open(PendingCall { conn, sequence: 1, kind: 20, route, started_us: 0 });
        router.pending.open(PendingCall { conn, sequence: 2, kind: 20, route, started_us: 0 });
        assert_eq!(router.admit(20, 0), Err(Refusal::RouteFull));
        assert_eq!(router.admit(5, 0), Ok(RouteIndex(0)));
        assert!(router.pending.close(first).is_some());
        assert_eq!(router.admit(20, 0), Ok(route));
    }

    fn config(first_type: i32, last_type: i32, timeout_ms: u64) -> RouteConfig {
        let timeout = Duration::from_millis(timeout_ms);
        RouteConfig { first_type, last_type, backend: "demo".into(), timeout, in_flight_max: 4 }
    }

    /// Begins a call of a type.
    fn call(router: &mut Router, kind: i32, started_ms: u64) -> Result<CallId, Refusal> {
        let conn = crate::driver::ConnId { slot: 0, generation: 0 };
        let (sequence, started_us) = (1, started_ms * 1000);
        let route = router.admit(kind, 0)?;
        Ok(router.pending.open(PendingCall { conn, sequence, kind, route, started_us }))
    }

    #[test]
    fn calls_keep_their_deadline_and_count_when_their_route_changes() {
        let mut router = router();
        router.reconfigure(&[config(1, 9, 1_000)], 2);
        let first = call(&mut router, 5, 0).unwrap();
        router.reconfigure(&[config(1, 9, 100)], 2);
        let second = call(&mut router, 5, 0).unwrap();
        assert_eq!(call(&mut router, 5, 0), Err(Refusal::RouteFull), "both count");
        assert_eq!(router.pending.next_deadline_ms(), Some(100));
        assert!(router.pending.take_expired(100).is_some());
        assert_eq!(
            (router.pending.close(second), router.pending.next_deadline_ms()),
            (None, Some(1_000))
        );
        // The route is split, and back at its old timeout: the call that waits counts for both.
        router.reconfigure(&[config(1, 4, 1_000), config(5, 9, 1_000)], 4);
        for kind in [4, 5] {
            assert_eq!(call(&mut router, kind, 0), Err(Refusal::RouteFull));
        }
        router.reconfigure(&[], 4);
        assert_eq!(call(&mut router, 5, 0), Err(Refusal::NoRoute));
        assert!(router.pending.close(first).is_some(), "its answer is still taken");
    }

    #[test]
    fn a_route_that_stays_keeps_its_lane_and_lanes_are_used_again() {
        let mut router = router();
        router.reconfigure(&[config(1, 9, 10), config(10, 19, 10)], 1);
        let lanes = router.lanes.len();
        let stays = router.admit(12, 0).unwrap();
        for round in 0..100 {
            router.reconfigure(&[config(1, 9, 20 + round), config(10, 19, 10)], 1);
            assert_eq!(router.admit(12, 0), Ok(stays));
        }
        assert!(router.lanes.len() <= lanes + 1, "{:?}", router.lanes);
        // More calls may be in flight than before, or fewer.
        let wider = RouteConfig { in_flight_max: 1, ..config(10, 19, 10) };
        router.reconfigure(&[wider], 1);
        assert!(call(&mut router, 12, 0).is_ok());
        assert_eq!(call(&mut router, 12, 0), Err(Refusal::RouteFull));
    }
}
