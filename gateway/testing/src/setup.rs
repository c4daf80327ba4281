//! What a test decides about a gateway, and how the gateway is put together.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::auth::Verifier;
use tidegate::clock::WallClock;
use tidegate::cluster::{self, ClusterAddress};
use tidegate::config::{AuthMode, Config};
use tidegate::driver::sim::{Faults, Sim};
use tidegate::parts::{Keys, Origin, Parts};
use tidegate::router::Backend;
use tidegate::tickets::Tickets;
use tidegate_backend::pool::{Pool, PoolOptions, Worker};
use tidegate_backend::{Handler, Placement};

use crate::world::SteppedDriver;
use crate::{Scripted, World, sim};

/// The first offset of a gateway, as large as JSON numbers hold exactly, less a few.
pub const FIRST_OFFSET: u64 = (1 << 53) - 5;

/// The wall clock at the start of a world, in milliseconds since the Unix epoch.
const WALL_MS: u64 = 1_700_000_000_000;

/// A shard that was not running closes nobody for silence until this time has passed.
const GRACE: Duration = Duration::from_secs(31);

/// A gateway before it is put together.
pub struct Setup {
    /// The configuration: the defaults, but one shard, demo tokens, and no window for goodbyes.
    pub config: Config,
    /// Serves each backend of the configuration.
    pub handler: Arc<dyn Handler>,
    /// How long ago the shards' clocks started.
    pub age: Duration,
    /// See [`Origin::first_offset`].
    pub first_offset: u64,
    /// What session ids are scrambled with.
    pub session_key: u64,
    /// The gateway is one of several: the test answers in place of the thread that speaks with Redis.
    pub has_cluster: bool,
}

impl Setup {
    /// A gateway with this handler; `configure` changes the configuration.
    pub fn new(handler: impl Handler, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::embedded_default();
        config.shards = 1;
        config.auth.mode = AuthMode::Demo;
        // A drain says goodbye to all clients at once.
        config.shutdown.goodbye_window = Duration::ZERO;
        configure(&mut config);
        Self {
            config,
            handler: Arc::new(handler),
            age: Duration::ZERO,
            first_offset: FIRST_OFFSET,
            session_key: 1,
            has_cluster: false,
        }
    }

    /// A gateway whose clients say in each request what the backend shall do.
    pub fn scripted(configure: impl FnOnce(&mut Config)) -> Self {
        Self::new(Scripted::default(), configure)
    }

    /// Puts the gateway together, without drivers and threads. The workers are those of all backends; they
    /// work only when [`Worker::run_pending`] is called.
    #[must_use]
    pub fn assemble(self, started: Instant, wall_clock: WallClock) -> (Parts, Vec<Worker>) {
        self.assemble_with(started, wall_clock, None)
    }

    fn assemble_with(
        self,
        started: Instant,
        wall_clock: WallClock,
        cluster: Option<ClusterAddress>,
    ) -> (Parts, Vec<Worker>) {
        let Self { config, handler, first_offset, session_key, .. } = self;
        let log_key = session_key;
        let origin = Origin { started, wall_clock, first_offset, session_key, log_key };
        let verifier = Verifier::new(&config.auth).expect("its key is there, if it needs one");
        let tickets = Tickets::new(b"a key of tests", config.rooms.ticket_ttl);
        let keys = Keys { verifier, tickets };
        let mut workers = Vec::new();
        let Ok(parts) = Parts::new(config, keys, origin, cluster, |config, gateway| {
            let backends = config.backends.iter().map(|backend| {
                let pool = match backend.placement.unwrap_or_else(|| handler.placement()) {
                    Placement::Shard => None,
                    Placement::Worker => {
                        let options = PoolOptions {
                            workers: backend.workers,
                            queue_calls_max: backend.queue_calls_max,
                            queue_bytes_max: backend.queue_bytes_max,
                            batch_calls_max: backend.batch_calls_max,
                        };
                        let (pool, idle) = Pool::idle(&handler, gateway, options);
                        workers.extend(idle);
                        Some(pool)
                    }
                };
                Backend::new(&backend.name, Arc::clone(&handler), pool)
                    .with_circuit(backend.circuit_timeouts)
            });
            Ok::<_, Infallible>(backends.collect())
        });
        (parts, workers)
    }

    /// The world, on a network without faults.
    #[must_use]
    pub fn world(self) -> World {
        self.world_on(|shard, now| sim(shard.into(), now, Faults::default()))
    }

    /// The world, with the driver that `driver` makes for each shard.
    #[must_use]
    pub fn world_on<D: SteppedDriver>(self, mut driver: impl FnMut(u16, Instant) -> D) -> World<D> {
        let started = Instant::now();
        let (age, shards) = (self.age, 0..self.config.shards);
        let wall_ms = Arc::new(AtomicU64::new(WALL_MS));
        let read = Arc::clone(&wall_ms);
        let wall_clock =
            WallClock::new(move || Duration::from_millis(read.load(Ordering::Relaxed)));
        let (address, inbox) = cluster::channel();
        let has_cluster = self.has_cluster;
        let (parts, workers) =
            self.assemble_with(started, wall_clock, has_cluster.then_some(address));
        let now = started + age;
        let drivers = shards.clone().map(|id| driver(id, now)).collect();
        let shards = shards.map(|id| parts.shard(id)).collect();
        let mut world = World::from_parts(parts, shards, drivers, workers, now, wall_ms, inbox);
        if age > Duration::ZERO {
            world.turns(1);
            world.pass(GRACE);
        }
        world
    }
}

impl World<Sim> {
    /// A world of one shard with the [`Scripted`] handler; `configure` changes the configuration.
    pub fn new(configure: impl FnOnce(&mut Config)) -> Self {
        Setup::scripted(configure).world()
    }
}
