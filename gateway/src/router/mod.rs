//! The router: type -> route -> backend, and the calls that wait for their answer.
//!
//! A route is a range of types, a backend, a timeout and a bound on the calls in flight. The router
//! belongs to one shard; it never sees a driver, and of a connection only its name.

mod pending;

use std::sync::Arc;

use tidegate_backend::pool::{Pool, Submitter};
use tidegate_backend::{Handler, Placement};

use crate::config::RouteConfig;
pub use pending::{Pending, PendingCalls, RouteIndex};

/// A handler and where it runs, shared by all shards.
#[derive(Clone)]
pub struct Backend {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// The handler itself.
    pub handler: Arc<dyn Handler>,
    /// Its workers; `None` where it runs on the shard's own thread.
    pub pool: Option<Pool>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let placement = if self.pool.is_some() { Placement::Worker } else { Placement::Shard };
        f.debug_struct("Backend").field("name", &self.name).field("runs_on", &placement).finish()
    }
}

/// A shard's way to one backend.
pub struct Lane {
    /// The handler itself.
    pub handler: Arc<dyn Handler>,
    /// The way to its workers; `None` where it runs on the shard's own thread.
    pub submitter: Option<Submitter>,
}

/// One route, as one shard sees it.
#[derive(Clone, Copy, Debug)]
struct Route {
    first_type: i32,
    last_type: i32,
    lane: u16,
    timeout_ms: u64,
    /// This shard's share of the route's bound.
    in_flight_max: usize,
}

/// Why a request is not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No route has its type: 105.
    NoRoute,
    /// The route has its fill of calls in flight: 104.
    RouteFull,
    /// The backend's queue is full: 104.
    QueueFull,
}

/// A shard's routes, and its calls in flight.
pub struct Router {
    /// By ascending type, not overlapping.
    routes: Vec<Route>,
    lanes: Vec<Lane>,
    /// Calls that wait for their answer.
    pub pending: PendingCalls,
}

impl Router {
    /// A router for one of `shards` shards. Each route's backend must be among `backends`: the
    /// configuration is checked.
    #[must_use]
    pub fn new(routes: &[RouteConfig], backends: &[Backend], shards: u16) -> Self {
        let lane_of = |name: &str| backends.iter().position(|backend| &*backend.name == name);
        let routes: Vec<Route> = routes
            .iter()
            .map(|route| Route {
                first_type: route.first_type,
                last_type: route.last_type,
                lane: lane_of(&route.backend)
                    .and_then(|lane| u16::try_from(lane).ok())
                    .expect("routes are checked against the backends at start"),
                timeout_ms: u64::try_from(route.timeout.as_millis()).unwrap_or(u64::MAX),
                in_flight_max: route.in_flight_max.div_ceil(usize::from(shards)),
            })
            .collect();
        let lanes = backends
            .iter()
            .map(|backend| Lane {
                handler: Arc::clone(&backend.handler),
                submitter: backend.pool.as_ref().map(Pool::submitter),
            })
            .collect();
        let pending = PendingCalls::new(routes.iter().map(|route| route.timeout_ms).collect());
        Self { routes, lanes, pending }
    }

    /// Finds the route of a type, if it takes one more call.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline]
    pub fn admit(&self, kind: i32) -> Result<RouteIndex, Refusal> {
        let index = self.routes.partition_point(|route| route.last_type < kind);
        let route = self
            .routes
            .get(index)
            .filter(|route| route.first_type <= kind)
            .ok_or(Refusal::NoRoute)?;
        let index = RouteIndex(u16::try_from(index).expect("fewer routes than 2^16"));
        if self.pending.in_flight(index) >= route.in_flight_max {
            return Err(Refusal::RouteFull);
        }
        let lane = &self.lanes[usize::from(route.lane)];
        if lane.submitter.as_ref().is_some_and(|submitter| !submitter.has_room()) {
            return Err(Refusal::QueueFull);
        }
        Ok(index)
    }

    /// The way to a route's backend.
    #[inline]
    pub fn lane(&mut self, route: RouteIndex) -> &mut Lane {
        let lane = self.routes[usize::from(route.0)].lane;
        &mut self.lanes[usize::from(lane)]
    }

    /// Which backend a route leads to, by its place among them.
    #[must_use]
    pub fn backend_of(&self, route: RouteIndex) -> usize {
        usize::from(self.routes[usize::from(route.0)].lane)
    }

    /// Hands over what was submitted in this turn. Says whether there was anything.
    #[inline]
    pub fn flush(&mut self) -> bool {
        let submitters = self.lanes.iter_mut().filter_map(|lane| lane.submitter.as_mut());
        submitters.fold(false, |any, submitter| submitter.flush() | any)
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
    fn a_type_finds_its_range_or_none() {
        let router = router();
        for (kind, want) in [(5, 0), (10, 0), (20, 1), (30, 2), (i32::MAX, 2)] {
            assert_eq!(router.admit(kind), Ok(RouteIndex(want)), "{kind}");
        }
        for kind in [1, 4, 11, 19, 21, 29] {
            assert_eq!(router.admit(kind), Err(Refusal::NoRoute), "{kind}");
        }
    }

    #[test]
    fn a_route_has_its_share_of_calls_in_flight() {
        let mut router = router();
        let conn = crate::driver::ConnId { slot: 0, generation: 0 };
        let route = router.admit(20).unwrap();
        let first =
            router.pending.open(Pending { conn, sequence: 1, kind: 20, route, started_us: 0 });
        router.pending.open(Pending { conn, sequence: 2, kind: 20, route, started_us: 0 });
        assert_eq!(router.admit(20), Err(Refusal::RouteFull));
        assert_eq!(router.admit(5), Ok(RouteIndex(0)));
        assert!(router.pending.close(first).is_some());
        assert_eq!(router.admit(20), Ok(route));
    }
}
