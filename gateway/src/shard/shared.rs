//! What all shards of a gateway share. On the way of a frame it is only read.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::calls::durations::CallDurations;
use super::command::CommandLimiter;
use super::mailbox::Address;
use crate::allocator::Heap;
use crate::clock::WallClock;
use crate::cluster::ClusterAddress;
use crate::limits::addresses::AddressLimits;
use crate::limits::memory::MemoryBudget;
use crate::limits::user_rates::UserRates;
use crate::router::Backend;
use crate::session_id::SessionIds;
use crate::settings::Settings;

/// What all shards share. It does not change while they run, but for the counters, the limiter and the settings.
pub struct Shared {
    /// The settings of the gateway: see [`Self::settings`]. What the hub keeps has a clone of this alone: a clone of all that is
    /// shared has the backends, whose workers keep the hub.
    pub(crate) settings: Arc<ArcSwap<Settings>>,
    /// The way to the thread that speaks with the other gateways; `None`: this gateway is alone.
    pub cluster: Option<ClusterAddress>,
    /// Every shard's mailbox, by its number.
    pub addresses: Vec<Address>,
    /// What one address may have.
    pub address_limits: Arc<AddressLimits>,
    /// The memory budget of the process; `None`: there is none.
    pub memory: Option<MemoryBudget>,
    /// The bound on commands under way.
    pub limiter: Arc<CommandLimiter>,
    /// Makes session ids.
    pub session_ids: SessionIds,
    /// The first offset of everybody's room, and the lowest of any other: microseconds since the
    /// Unix epoch when the gateway started, so that a restart begins above what the last run gave.
    pub first_offset: u64,
    /// What the logs' ids are drawn with: a random number of this run.
    pub log_key: u64,
    /// When the shards' clocks started.
    pub started: Instant,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// The backends that routes lead to.
    pub backends: Vec<Backend>,
    /// What each user has called. It is empty while no route has had a rate for each user.
    pub user_rates: Arc<OnceLock<UserRates>>,
    /// Open connections, all shards together.
    pub connections: AtomicU64,
    /// How long calls took, all shards together.
    pub call_durations: Arc<CallDurations>,
    /// The process's heap, whose free memory is given back after a burst.
    pub heap: Heap,
}

impl Shared {
    /// The settings now. A shard uses those that it has applied instead.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("backends", &self.backends).finish_non_exhaustive()
    }
}
