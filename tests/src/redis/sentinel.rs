//! A master with two replicas and three sentinels, which promote a replica when the master is away.

use std::fs;

use super::{Redis, RedisSetup};
use crate::until;

/// The name of the master that the sentinels watch.
const NAME: &str = "tidegate";

/// The time without an answer after which the sentinels replace the master.
const DOWN_AFTER_MS: u32 = 500;

/// Three servers, one of which is the master, and three sentinels.
#[derive(Debug)]
pub struct SentinelSet {
    /// The servers.
    pub servers: Vec<Redis>,
    /// The sentinels.
    pub sentinels: Vec<Redis>,
}

impl SentinelSet {
    /// Starts the set. It is complete: the replicas are up to date and the sentinels know each other.
    #[must_use]
    pub fn start() -> Self {
        let master = RedisSetup::default().start();
        let replicas = [0, 1].map(|_| RedisSetup::default().replica_of(&master).start());
        replicas.iter().for_each(|replica| replica.wait_for_sync(&master));
        let sentinels = [0, 1, 2].map(|_| {
            RedisSetup::default()
                .sentinel()
                .line(&format!("sentinel monitor {NAME} 127.0.0.1 {} 2", master.port()))
                .line(&format!("sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}"))
                .line(&format!("sentinel failover-timeout {NAME} 3000"))
                .start()
        });
        let set = Self {
            servers: [master].into_iter().chain(replicas).collect(),
            sentinels: sentinels.into(),
        };
        until("the sentinels know everybody", || {
            set.sentinels.iter().all(Self::knows_everybody).then_some(())
        });
        set
    }

    fn knows_everybody(sentinel: &Redis) -> bool {
        let master = sentinel.cli(&["SENTINEL", "MASTER", NAME]);
        let lines: Vec<&str> = master.lines().collect();
        let has = |name: &str, value: &str| lines.windows(2).any(|pair| pair == [name, value]);
        has("num-slaves", "2") && has("num-other-sentinels", "2")
    }

    /// The name that clients ask the sentinels for.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        NAME
    }

    /// The URLs of the sentinels.
    #[must_use]
    pub fn sentinel_urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Redis::url).collect()
    }

    /// The index of the server that all sentinels call the master and that is one. None while they change it.
    #[must_use]
    pub fn master(&self) -> Option<usize> {
        let ports: Vec<Option<u16>> = self.sentinels.iter().map(master_port).collect();
        let port = ports[0].filter(|_| ports.iter().all(|port| *port == ports[0]))?;
        self.servers.iter().position(|server| server.port() == port && server.is_master())
    }

    /// Waits until the sentinels have made a master of another server than `old`. Returns its index.
    #[must_use]
    pub fn wait_for_another_master(&self, old: usize) -> usize {
        until("a replica is promoted", || self.master().filter(|&master| master != old))
    }

    /// Kills the master and waits for the next one. Returns the indexes of both.
    pub fn fail_over(&mut self) -> (usize, usize) {
        let old = until("the set has a master", || self.master());
        self.servers[old].kill();
        (old, self.wait_for_another_master(old))
    }

    /// What a sentinel has written to its configuration.
    #[must_use]
    pub fn configuration(&self, sentinel: usize) -> String {
        fs::read_to_string(self.sentinels[sentinel].folder().join("redis.conf")).unwrap()
    }
}

fn master_port(sentinel: &Redis) -> Option<u16> {
    let answer = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
    answer.lines().nth(1)?.parse().ok()
}
