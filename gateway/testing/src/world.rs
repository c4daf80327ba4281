//! Shards and all that is around them, in one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::auth::signatures::SignatureStats;
use tidegate::cluster::Inbox;
use tidegate::cluster::message::ToCluster;
use tidegate::config::Config;
use tidegate::control::{Control as _, RoomInfo};
use tidegate::driver::sim::Sim;
use tidegate::driver::{ConnId, Driver};
use tidegate::hub::Hub;
use tidegate::parts::Parts;
use tidegate::session_id::SessionAddr;
use tidegate::settings::Settings;
use tidegate::shard::Shard;
use tidegate::shard::clients::cause::Cause;
use tidegate::shard::mailbox::Message;
use tidegate::shard::stats::{Levels, Stats};
use tidegate_backend::pool::Worker;
use tidegate_backend::{Gateway, RoomId, SessionId, UserId};

/// [`World::pass`] moves the clock by so much at a time: less than what makes a shard believe that it was
/// stopped.
const STEP: Duration = Duration::from_millis(500);

/// A driver whose clock the world moves.
pub trait SteppedDriver: Driver {
    /// Moves the clock forward to this time.
    fn set_now(&mut self, now: Instant);
}

impl SteppedDriver for Sim {
    fn set_now(&mut self, now: Instant) {
        Self::set_now(self, now);
    }
}

/// Whole shards, their drivers, idle workers and one clock.
pub struct World<D = Sim> {
    parts: Parts,
    settings: Arc<Settings>,
    /// The shards. A test that ends one drops it.
    pub shards: Vec<Shard>,
    /// Each shard's driver.
    pub drivers: Vec<D>,
    /// The workers of all backends.
    pub workers: Vec<Worker>,
    /// The user that [`World::log_in`] logs in next.
    pub next_user_id: UserId,
    now: Instant,
    wall_ms: Arc<AtomicU64>,
    /// What shards say to the thread that speaks with Redis, where the gateway is one of several.
    cluster: Inbox,
}

impl<D> World<D> {
    pub(crate) fn from_parts(
        parts: Parts,
        shards: Vec<Shard>,
        drivers: Vec<D>,
        workers: Vec<Worker>,
        now: Instant,
        wall_ms: Arc<AtomicU64>,
        cluster: Inbox,
    ) -> Self {
        let settings = parts.shared.settings();
        Self { parts, settings, shards, drivers, workers, next_user_id: 7, now, wall_ms, cluster }
    }

    /// The time of all shards.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Moves both clocks. The shards see it in their next turn; more than a second at once looks to them as if
    /// they had been stopped.
    pub fn advance(&mut self, time: Duration) {
        self.now += time;
        let wall = Duration::from_millis(self.wall_ms()) + time;
        self.set_wall_ms(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
    }

    /// The wall clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::Relaxed)
    }

    /// Sets the wall clock, forward or back. The clock of the shards does not move.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::Relaxed);
    }

    /// The configuration at the start.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// The gateway as backends see it.
    #[must_use]
    pub const fn gateway(&self) -> &Gateway {
        &self.parts.gateway
    }

    /// What operators use.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.parts.hub
    }

    /// A session of this gateway whose connection is gone.
    #[must_use]
    pub fn gone_session(&self, shard: u16) -> SessionId {
        let conn = ConnId { slot: 5, generation: 1_000 };
        self.parts.shared.session_ids.id(SessionAddr::new(shard, conn))
    }

    /// Does the work that waits for workers, on this thread.
    pub fn run_workers(&mut self) {
        for worker in &mut self.workers {
            worker.run_pending(self.now);
        }
    }

    /// Checks the signatures that wait, on this thread.
    pub fn check_signatures(&self) {
        if let Some(signatures) = self.settings.verifier.signatures() {
            signatures.run_pending(self.now);
        }
    }

    /// What happened to signatures.
    #[must_use]
    pub fn signatures(&self) -> SignatureStats {
        let signatures = self.settings.verifier.signatures();
        signatures.map(|signatures| signatures.stats()).unwrap_or_default()
    }

    /// Pushes `bytes` bytes to everybody.
    pub fn push_all(&self, kind: i32, bytes: usize) {
        self.gateway().push_all(kind, vec![7; bytes]).expect("the push is accepted");
    }

    /// Pushes `bytes` bytes to a room.
    pub fn push_room(&self, room: &RoomId, kind: i32, bytes: usize) {
        self.gateway().push_room(room, kind, vec![7; bytes]).expect("the push is accepted");
    }

    /// Pushes to a user.
    pub fn push_user(&self, user_id: UserId, kind: i32, biz_data: &'static [u8]) {
        self.gateway().push_user(user_id, kind, biz_data).expect("the push is accepted");
    }

    /// Closes a user's connections with 110.
    pub fn kick(&self, user_id: UserId) {
        self.gateway().kick(user_id).expect("the kick is accepted");
    }

    /// What shards have said to the thread that speaks with Redis.
    pub fn asked_cluster(&mut self) -> Vec<ToCluster> {
        std::iter::from_fn(|| self.cluster.try_next()).collect()
    }

    /// Posts a message to a shard, as other threads do.
    pub fn post(&self, shard: u16, message: impl Into<Message>) {
        self.parts.shared.addresses[usize::from(shard)].post(message);
    }

    /// Tells all shards to drain.
    pub fn drain(&self) {
        self.parts.hub.tell_all(|| Message::Drain);
    }

    /// Tells all shards to end without a drain.
    pub fn stop(&self) {
        self.parts.hub.tell_all(|| Message::Stop);
    }

    /// Pushes and other commands under way.
    #[must_use]
    pub fn commands_in_flight(&self) -> usize {
        self.parts.shared.limiter.commands()
    }

    /// Open connections, as the shards' common counter says.
    #[must_use]
    pub fn counted_connections(&self) -> u64 {
        self.parts.shared.connections.load(Ordering::Relaxed)
    }

    /// The sum of a counter over the shards.
    #[must_use]
    pub fn count(&self, counter: impl Fn(&Stats) -> u64) -> u64 {
        self.shards.iter().map(|shard| counter(&shard.stats())).sum()
    }

    /// The sum of a level over the shards.
    #[must_use]
    pub fn level(&self, level: impl Fn(&Levels) -> usize) -> usize {
        self.shards.iter().map(|shard| level(&shard.levels())).sum()
    }

    /// Each shard's levels.
    #[must_use]
    pub fn levels(&self) -> Vec<Levels> {
        self.shards.iter().map(Shard::levels).collect()
    }

    /// Connections that ended for this cause.
    #[must_use]
    pub fn closed(&self, cause: Cause) -> u64 {
        self.count(|stats| stats.closed[cause as usize])
    }

    /// Whether all shards have ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.shards.iter().all(Shard::is_finished)
    }
}

impl<D: SteppedDriver> World<D> {
    /// One turn of one shard, unless it has ended. Its driver may move the clock forward.
    pub fn turn(&mut self, shard: usize) {
        let (shard, driver) = (&mut self.shards[shard], &mut self.drivers[shard]);
        if !shard.is_finished() {
            driver.set_now(self.now);
            shard.turn(driver).expect("the driver works");
            let jump = driver.now().saturating_duration_since(self.now);
            self.advance(jump);
        }
    }

    /// So many turns of each shard.
    pub fn turns(&mut self, count: usize) {
        for _ in 0..count {
            (0..self.shards.len()).for_each(|shard| self.turn(shard));
        }
    }

    /// Time passes in small steps, with four turns of each shard in every step.
    pub fn pass(&mut self, time: Duration) {
        let mut left = time;
        while left > Duration::ZERO {
            self.advance(STEP.min(left));
            left = left.saturating_sub(STEP);
            self.turns(4);
        }
    }

    /// What operators are shown of a room.
    #[must_use]
    pub fn room_info(&mut self, room: RoomId) -> Option<RoomInfo> {
        let mut answer = self.parts.hub.room(room);
        self.turns(3);
        answer.try_recv().expect("the shards answer")
    }
}
