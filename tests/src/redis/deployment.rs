//! What a test does with the Redis of its gateways, whether that is one server, a Sentinel set or a Cluster.

use std::slice;

use super::{Cluster, Redis, SentinelSet};
use crate::until;

/// The Redis of a system of gateways.
pub trait Deployment {
    /// What gateways have in `redis.url`.
    fn url(&self) -> String;

    /// Runs a command on the server that has its key: see [`Redis::cli`].
    fn cli(&self, arguments: &[&str]) -> String;

    /// All servers with data.
    fn servers(&self) -> &[Redis];

    /// As [`Self::servers`].
    fn servers_mut(&mut self) -> &mut [Redis];

    /// Waits until all of it serves.
    fn wait_until_ready(&self);

    /// Runs a command that must be answered with OK.
    fn ok(&self, arguments: &[&str]) {
        assert_eq!(self.cli(arguments), "OK", "{arguments:?}");
    }

    /// Stops all servers with SIGSTOP: their sockets stay and nothing is answered.
    fn pause(&self) {
        self.servers().iter().for_each(Redis::pause);
    }

    /// Lets all servers go on after [`Self::pause`].
    fn resume(&self) {
        self.servers().iter().for_each(Redis::resume);
    }

    /// Kills all servers with SIGKILL.
    fn kill(&mut self) {
        self.servers_mut().iter_mut().for_each(Redis::kill);
    }

    /// Starts all servers again, with their data and on their ports. All must have ended.
    fn restart(&mut self) {
        self.servers_mut().iter_mut().for_each(Redis::restart);
        self.wait_until_ready();
    }

    /// Removes all data.
    fn clear(&self) {
        self.wait_until_ready();
        for master in self.servers().iter().filter(|server| server.is_master()) {
            master.ok(&["FLUSHALL"]);
        }
    }
}

impl Deployment for Redis {
    fn url(&self) -> String {
        Self::url(self)
    }

    fn cli(&self, arguments: &[&str]) -> String {
        Self::cli(self, arguments)
    }

    fn servers(&self) -> &[Self] {
        slice::from_ref(self)
    }

    fn servers_mut(&mut self) -> &mut [Self] {
        slice::from_mut(self)
    }

    fn wait_until_ready(&self) {
        until("Redis answers", || (self.cli(&["PING"]) == "PONG").then_some(()));
    }
}

impl Deployment for SentinelSet {
    fn url(&self) -> String {
        format!("redis-sentinel://{}/{}", hosts(&self.sentinels), self.name())
    }

    fn cli(&self, arguments: &[&str]) -> String {
        let master = until("the set has a master", || self.master());
        self.servers[master].cli(arguments)
    }

    fn servers(&self) -> &[Redis] {
        &self.servers
    }

    fn servers_mut(&mut self) -> &mut [Redis] {
        &mut self.servers
    }

    fn wait_until_ready(&self) {
        until("the set has a master", || self.master());
    }
}

impl Deployment for Cluster {
    fn url(&self) -> String {
        format!("redis-cluster://{}", hosts(&self.nodes))
    }

    fn cli(&self, arguments: &[&str]) -> String {
        self.nodes[0].cli_in_cluster(arguments)
    }

    fn servers(&self) -> &[Redis] {
        &self.nodes
    }

    fn servers_mut(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }

    fn wait_until_ready(&self) {
        self.wait_until_whole();
    }
}

fn hosts(servers: &[Redis]) -> String {
    let hosts = servers.iter().map(|server| format!("127.0.0.1:{}", server.port()));
    hosts.collect::<Vec<_>>().join(",")
}

/// Makes tests of functions that take a `&mut dyn Deployment`: for each function one test on one server, and one test for all
/// of them on a Cluster, which starts once.
///
/// ```ignore
/// tidegate_tests::on_each_deployment!(a_push_is_read, a_user_is_kicked);
/// ```
#[macro_export]
macro_rules! on_each_deployment {
    ($($test:ident),* $(,)?) => {
        mod on_one_server {
            $(
                #[test]
                fn $test() {
                    super::$test(&mut $crate::Redis::single());
                }
            )*
        }

        #[test]
        fn all_hold_on_a_cluster() {
            let mut cluster = $crate::Cluster::start();
            $(
                println!("on a Cluster: {}", stringify!($test));
                $test(&mut cluster);
                $crate::Deployment::clear(&cluster);
            )*
        }
    };
}
