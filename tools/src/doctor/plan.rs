//! What a number of connections takes: shards, driver, rings, descriptors, memory, CPU time.
//!
//! Each constant says whether the gateway defines it or it was measured.

use tidegate_machine::Machine;
use tidegate_machine::capacity::{self, SHARDS_MAX};

use super::args::{Question, Role};
use super::driver::Driver;
use super::finding::{Confidence, Estimate};
use super::resolved_plan::ResolvedPlan;
use super::running::Running;
use crate::bench;
use crate::count::{counted, grouped};

/// Descriptors of a worker of `tide bench` that are no connections.
pub(super) const SPARE_FILES_CLIENT: u64 = bench::SPARE_DESCRIPTORS as u64;

/// Workers of one `tide bench` at most.
pub(super) const WORKERS_MAX: u64 = bench::WORKERS_MAX as u64;

/// How full a ring's table of direct descriptors is assumed to get, in percent. The gateway fills a table, but
/// connections that end may leave room in one ring while new ones come to another.
pub(super) const RING_FILL_PERCENT: u64 = 85;

/// Direct descriptors of a ring at most, whatever `RLIMIT_NOFILE`: `IORING_MAX_FIXED_FILES` in the
/// kernel's io_uring/rsrc.c.
pub(super) const RING_FILES_MAX: u64 = 1 << 20;

/// Memory of a ring with a table of 20,000, in bytes. Measured. Most of it is the table, whose size grows with its
/// capacity; but all rings together hold the same connections.
const RING_BYTES: u64 = 413_000;

/// Mappings of a ring: its queues, its entries, its buffers, and what an allocator splits.
pub(super) const RING_MAPPINGS: u64 = 4;

/// Kernel memory of an idle connection's socket, in bytes, one end. Measured: socket, inode, dentry,
/// file.
const SOCKET_BYTES: u64 = 3_670;

/// What an armed multishot receive adds, in bytes. Measured.
const URING_BYTES: u64 = 870;

/// What a registration with epoll adds, in bytes, at most. Measured: 210 to 285.
const EPOLL_BYTES: u64 = 285;

/// The gateway's own memory for an idle connection, in bytes: 150 to 170 were measured, and a burst leaves some more.
pub(super) const GATEWAY_BYTES_EACH: u64 = 256;

/// CPU time of a heartbeat and its answer, in microseconds, at [`HEARTBEAT_FEW`] connections. Measured.
const HEARTBEAT_FEW_US: f64 = 5.7;

/// See [`HEARTBEAT_FEW_US`].
const HEARTBEAT_FEW: f64 = 100_000.0;

/// CPU time of a heartbeat and its answer, in microseconds, at [`HEARTBEAT_MANY`] connections, in one
/// thread with 60 rings. Measured.
const HEARTBEAT_MANY_US: f64 = 8.2;

/// See [`HEARTBEAT_MANY_US`].
const HEARTBEAT_MANY: f64 = 1_000_000.0;

/// CPU time of a push's delivery of 130 bytes to one connection, in microseconds, at a million. Measured.
const DELIVERY_US: f64 = 7.5;

/// The question, and what the machine or the running gateway adds to it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Connections: at least 1.
    pub(super) connections: u64,
    pub(super) question: Question,
    /// What the question left open.
    pub(super) resolved: ResolvedPlan,
}

impl Plan {
    /// Fills in what the question left open.
    pub(super) fn new(
        connections: u64,
        question: Question,
        machine: &Machine,
        running: Option<&Running>,
    ) -> Self {
        let resolved = ResolvedPlan::of(&question, machine, running);
        Self { connections, question, resolved }
    }

    /// Shards of the gateway: at least 1.
    pub(super) const fn shards(&self) -> u64 {
        self.resolved.shards
    }

    /// The driver of the gateway.
    pub(super) const fn driver(&self) -> Driver {
        self.resolved.driver
    }

    /// The fewest epoll shards that hold the connections, each with its own table.
    pub(super) fn fewest_shards(&self, limit: u64) -> Option<u64> {
        let holds = |shards: &u64| {
            capacity::connections_per_table(Some(limit), *shards) * shards >= self.connections
        };
        (1..=SHARDS_MAX).find(holds)
    }

    /// Workers of `tide bench` that hold the connections under a limit of descriptors.
    pub(super) fn workers(&self, limit: Option<u64>) -> u64 {
        let each = limit.map_or(u64::MAX, |limit| limit.saturating_sub(SPARE_FILES_CLIENT));
        self.connections.div_ceil(each.max(1))
    }

    /// Connections of the fullest shard.
    pub(super) const fn connections_per_shard(&self) -> u64 {
        self.connections.div_ceil(self.resolved.shards)
    }

    /// Rings of all shards under this limit of descriptors; `None` is no limit.
    pub(super) fn rings(&self, limit: Option<u64>) -> u64 {
        let table = limit.unwrap_or(RING_FILES_MAX).min(RING_FILES_MAX);
        let fill = (table * RING_FILL_PERCENT / 100).max(1);
        self.resolved.shards * self.connections_per_shard().div_ceil(fill)
    }

    /// Plain descriptors of a process with this number of rings.
    pub(super) const fn plain_files(&self, rings: u64) -> u64 {
        capacity::reserved_descriptors(self.resolved.shards) + rings
    }

    /// Memory for all connections, kernel and gateway, one end, in bytes.
    pub(super) fn memory_bytes(&self, limit: Option<u64>) -> u64 {
        let (each, rings) = match self.driver() {
            Driver::Epoll => (EPOLL_BYTES, 0),
            Driver::Uring => (URING_BYTES, self.rings(limit)),
        };
        self.connections * (SOCKET_BYTES + each + GATEWAY_BYTES_EACH) + rings * RING_BYTES
    }

    /// CPU seconds a second, for heartbeats and pushes.
    pub(super) fn cpus(&self) -> f64 {
        (self.heartbeats_per_second() * self.heartbeat_us()
            + self.deliveries_per_second() * DELIVERY_US)
            / 1e6
    }

    fn heartbeats_per_second(&self) -> f64 {
        to_f64(self.connections) / self.resolved.heartbeat_interval.as_secs_f64()
    }

    fn deliveries_per_second(&self) -> f64 {
        to_f64(self.connections) * self.question.pushes_per_second
    }

    /// Between the two measured sizes it grows with the logarithm, as cache misses tend to.
    fn heartbeat_us(&self) -> f64 {
        let count = to_f64(self.connections).clamp(HEARTBEAT_FEW, HEARTBEAT_MANY);
        let way = (count / HEARTBEAT_FEW).ln() / (HEARTBEAT_MANY / HEARTBEAT_FEW).ln();
        HEARTBEAT_FEW_US + way * (HEARTBEAT_MANY_US - HEARTBEAT_FEW_US)
    }

    /// The estimates, and how reliable they are.
    pub(super) fn estimates(&self, limit: Option<u64>) -> Vec<Estimate> {
        let measured_size =
            self.connections == whole(HEARTBEAT_FEW) || self.connections == whole(HEARTBEAT_MANY);
        let sure = if measured_size { Confidence::Measured } else { Confidence::Extrapolated };
        let mut estimates = self.memory_estimates(limit);
        estimates.push(Estimate {
            what: "heartbeats",
            value: self.heartbeats_per_second() * self.heartbeat_us() / 1e6,
            unit: "CPUs",
            confidence: sure,
            basis: format!(
                "{} a second, {:.1} us each; a bare server over loopback: {HEARTBEAT_FEW_US} us at \
                 100,000 connections, {HEARTBEAT_MANY_US} us at 1,000,000 in one thread with 60 rings",
                grouped(format_args!("{:.0}", self.heartbeats_per_second())),
                self.heartbeat_us(),
            ),
        });
        if self.question.pushes_per_second > 0.0 {
            let confidence = if self.connections == whole(HEARTBEAT_MANY) {
                Confidence::Measured
            } else {
                Confidence::Extrapolated
            };
            estimates.push(Estimate {
                what: "pushes",
                value: self.deliveries_per_second() * DELIVERY_US / 1e6,
                unit: "CPUs",
                confidence,
                basis: format!(
                    "{} deliveries a second, {DELIVERY_US} us each for 130 bytes at 1,000,000 \
                     connections; pushes that merge into one send cost less",
                    grouped(format_args!("{:.0}", self.deliveries_per_second())),
                ),
            });
        }
        estimates
    }

    fn memory_estimates(&self, limit: Option<u64>) -> Vec<Estimate> {
        let mib = |bytes: u64| to_f64(bytes) / to_f64(1 << 20);
        let user = self.connections * GATEWAY_BYTES_EACH;
        let kernel = self.memory_bytes(limit) - user;
        let (added, rings) = match self.driver() {
            Driver::Epoll => (format!("{EPOLL_BYTES} epoll"), String::new()),
            Driver::Uring => (
                format!("{URING_BYTES} armed receive"),
                format!("; {} of {} B", counted(self.rings(limit), "ring"), grouped(RING_BYTES)),
            ),
        };
        let user_confidence = match self.question.role {
            Role::Gateway => Confidence::Extrapolated,
            Role::Client => Confidence::Assumption,
        };
        // The size of kernel objects depends on nothing but their number.
        vec![
            Estimate {
                what: "kernel memory, idle",
                value: mib(kernel),
                unit: "MiB",
                confidence: Confidence::Measured,
                basis: format!(
                    "{} B socket + {added} a connection, one end{rings}",
                    grouped(SOCKET_BYTES)
                ),
            },
            Estimate {
                what: "user memory, idle",
                value: mib(user),
                unit: "MiB",
                confidence: user_confidence,
                basis: format!(
                    "{GATEWAY_BYTES_EACH} B a connection, as the gateway has, rounded up"
                ),
            },
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of connections are far below 2^52")]
const fn to_f64(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
const fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use tidegate_machine::fixture::Tree;

    use super::super::tests::question;
    use super::*;

    fn plan(connections: u64, shards: u64) -> Plan {
        let question = Question { shards: Some(shards), ..question() };
        Plan::new(connections, question, &Tree::good().machine(), None)
    }

    #[test]
    fn rings_are_filled_to_85_percent_and_no_further_than_the_kernels_own_bound() {
        assert_eq!(plan(17_000, 1).rings(Some(20_000)), 1);
        assert_eq!(plan(17_001, 1).rings(Some(20_000)), 2);
        assert_eq!(plan(1_000_000, 1).rings(Some(20_000)), 59);
        assert_eq!(plan(1_000_000, 2).rings(Some(20_000)), 60);
        // 0.85 * 2^20 = 891289.
        assert_eq!(plan(891_289, 1).rings(None), 1);
        assert_eq!(plan(891_290, 1).rings(None), 2);
        assert_eq!(plan(5, 1).rings(Some(0)), 5);
    }

    #[test]
    fn memory_is_the_sum_of_what_was_measured() {
        let plan = plan(1_000_000, 1);
        assert_eq!(plan.driver(), Driver::Uring);
        assert_eq!(plan.memory_bytes(None), 1_000_000 * (3_670 + 870 + 256) + 2 * 413_000);
    }

    #[test]
    fn the_cost_of_a_heartbeat_is_interpolated_between_measurements() {
        let us = |connections| plan(connections, 1).heartbeat_us();
        assert!((us(1_000) - 5.7).abs() < 1e-9);
        assert!((us(100_000) - 5.7).abs() < 1e-9);
        assert!((us(1_000_000) - 8.2).abs() < 1e-9);
        assert!((5.8..8.1).contains(&us(300_000)));
        // 1,000,000 / 30 s * 8.2 us.
        assert!((plan(1_000_000, 1).cpus() - 0.2733).abs() < 1e-3);
    }

    #[test]
    fn how_sure_an_estimate_is_depends_on_whether_its_size_was_measured() {
        let of = |connections| plan(connections, 1).estimates(None)[2].confidence;
        assert_eq!(of(1_000_000), Confidence::Measured);
        assert_eq!(of(100_000), Confidence::Measured);
        assert_eq!(of(500_000), Confidence::Extrapolated);
    }
}
