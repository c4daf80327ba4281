//! A gateway's parts, before it has drivers and threads: the server runs them, a simulation steps them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use arc_swap::ArcSwap;
use tidegate_backend::Gateway;
use tidegate_backend::publisher::GatewayPort;

use crate::allocator::Heap;
use crate::auth::Verifier;
use crate::clock::WallClock;
use crate::cluster::ClusterAddress;
use crate::config::Config;
use crate::hub::Hub;
use crate::limits::addresses::AddressLimits;
use crate::limits::memory::MemoryBudget;
use crate::limits::sessions::JoinRate;
use crate::router::Backend;
use crate::session_id::SessionIds;
use crate::settings::Settings;
use crate::shard::calls::durations::CallDurations;
use crate::shard::command::CommandLimiter;
use crate::shard::mailbox::Address;
use crate::shard::{Shard, Shared};
use crate::tickets::Tickets;

/// Where a gateway's clocks and numbers begin: what differs from run to run.
#[derive(Clone, Debug)]
pub struct Origin {
    /// When the shards' clocks start.
    pub started: Instant,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// See [`Shared::first_offset`].
    pub first_offset: u64,
    /// What session ids are scrambled with.
    pub session_key: u64,
    /// What the logs' ids are drawn with.
    pub log_key: u64,
}

/// What the gateway checks clients' proofs with.
#[derive(Debug)]
pub struct Keys {
    /// Checks tokens.
    pub verifier: Verifier,
    /// Makes and checks tickets.
    pub tickets: Tickets,
}

/// What all shards of a gateway have in common, and the ways in.
#[derive(Clone)]
pub struct Parts {
    /// What the shards share.
    pub shared: Arc<Shared>,
    /// The way into all of them.
    pub hub: Arc<Hub>,
    /// The same, as backends see it.
    pub gateway: Gateway,
}

impl Parts {
    /// Puts a gateway together. `backends` makes what the configuration's routes lead to.
    ///
    /// # Errors
    /// What `backends` fails with.
    pub fn new<E>(
        config: Config,
        keys: Keys,
        origin: Origin,
        cluster: Option<ClusterAddress>,
        backends: impl FnOnce(&Config, &Gateway) -> Result<Vec<Backend>, E>,
    ) -> Result<Self, E> {
        let Origin { started, wall_clock, first_offset, session_key, log_key } = origin;
        let Keys { verifier, tickets } = keys;
        let addresses: Vec<Address> = (0..config.shards).map(|_| Address::new()).collect();
        let limits = &config.limits;
        let limiter = Arc::new(CommandLimiter::new(limits.commands_max, limits.commands_bytes_max));
        let address_limits = AddressLimits::new(config.addresses.clone(), started);
        let memory = limits.memory_bytes_max.map(MemoryBudget::new);
        let session_ids = SessionIds::new(session_key);
        let frame_bytes_max = limits.frame_to_client_bytes_max;
        let join_rate = JoinRate::of_config(&config.rooms, started);
        let hub = Hub::new(
            addresses.clone(),
            cluster.clone(),
            (Arc::clone(&limiter), join_rate),
            session_ids,
            frame_bytes_max,
        );
        let hub = Arc::new(hub);
        let gateway = Gateway::new(Arc::clone(&hub) as Arc<dyn GatewayPort>);
        let backends = backends(&config, &gateway)?;
        let settings = Settings { config, verifier: Arc::new(verifier), tickets };
        let connections = AtomicU64::new(0);
        let names = backends.iter().map(|backend| Arc::clone(&backend.name));
        let call_durations = Arc::new(CallDurations::new(names));
        let shared = Arc::new(Shared {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            cluster,
            addresses,
            address_limits: Arc::new(address_limits),
            memory,
            limiter,
            session_ids,
            first_offset,
            log_key,
            started,
            wall_clock,
            backends,
            user_rates: Arc::default(),
            connections,
            call_durations,
            heap: Heap::default(),
        });
        Ok(Self { shared, hub, gateway })
    }

    /// One of the shards: below `config.shards`, each once.
    #[must_use]
    pub fn shard(&self, id: u16) -> Shard {
        Shard::new(id, Arc::clone(&self.shared), self.gateway.clone())
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("hub", &self.hub).finish_non_exhaustive()
    }
}
