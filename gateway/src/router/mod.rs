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
#[derive(Clone, Copy, Debug)]
struct Route {
    first_type: i32,
    last_type: i32,
    /// The index of its backend.
    backend: u16,
    timeout_ms: u64,
    /// The timeout's id in the backend's pool, where it has one.
    timeout: Option<TimeoutId>,
    /// This shard's share of the route's bound.
    in_flight_max: usize,
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
    backends: Vec<ShardBackend>,
    /// Calls that have no answer yet.
    pub pending: PendingCalls,
}

impl Router {
    /// A router for one of `shards` shards. Each route's backend must be among `backends`: the
    /// configuration is checked.
    #[must_use]
    pub fn new(routes: &[RouteConfig], backends: &[Backend], shards: u16) -> Self {
        let index_of = |name: &str| backends.iter().position(|backend| &*backend.name == name);
        let mut backends: Vec<ShardBackend> = backends
            .iter()
            .map(|backend| ShardBackend {
                handler: Arc::clone(&backend.handler),
                submitter: backend.pool.as_ref().map(Pool::submitter),
            })
            .collect();
        let routes: Vec<Route> = routes
            .iter()
            .map(|route| {
                let backend = index_of(&route.backend)
                    .and_then(|index| u16::try_from(index).ok())
                    .expect("routes are checked against the backends at start");
                let timeout_ms = u64::try_from(route.timeout.as_millis()).unwrap_or(u64::MAX);
                let submitter = backends[usize::from(backend)].submitter.as_mut();
                let timeout = Duration::from_millis(timeout_ms);
                Route {
                    first_type: route.first_type,
                    last_type: route.last_type,
                    backend,
                    timeout_ms,
                    timeout: submitter.map(|submitter| submitter.timeout_id(timeout)),
                    in_flight_max: route.in_flight_max.div_ceil(usize::from(shards)),
                }
            })
            .collect();
        let pending = PendingCalls::new(routes.iter().map(|route| route.timeout_ms).collect());
        Self { routes, backends, pending }
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
        let index = RouteIndex(u16::try_from(index).expect("fewer routes than 2^16"));
        if self.pending.in_flight(index) >= route.in_flight_max {
            return Err(Refusal::RouteFull);
        }
        let backend = &self.backends[usize::from(route.backend)];
        if backend.submitter.as_ref().is_some_and(|submitter| !submitter.has_room(bytes)) {
            return Err(Refusal::QueueFull);
        }
        Ok(index)
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
        let route = &self.routes[usize::from(route.0)];
        let backend = &mut self.backends[usize::from(route.backend)];
        match (&mut backend.submitter, route.timeout) {
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
        usize::from(self.routes[usize::from(route.0)].backend)
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
}
