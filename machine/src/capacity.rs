//! What a gateway takes of a machine, and how many connections it accepts when its configuration names no
//! number (`limits.connections_max = 0`).
//!
//! The gateway sets its own limit with it, and `tide doctor` predicts that limit with it.

use crate::memory;

/// Descriptors that a gateway needs beside its connections: the operators' HTTP, files, the standard streams.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Descriptors that each shard needs beside its connections: listener, poller, waker, and one to spare.
const RESERVED_DESCRIPTORS_PER_SHARD: u64 = 4;

/// Memory of one connection in bytes, rounded up: 3.7 kB of socket, 0.9 kB of an armed receive, what the
/// gateway remembers, and room for bytes in transit.
pub const CONNECTION_BYTES: u64 = 6 * 1024;

/// Connections that a gateway can address: all of them may be on one shard, whose slots have 26 bits.
pub const CONNECTIONS_MAX: u64 = 1 << 26;

/// Shards of a gateway at most.
pub const SHARDS_MAX: u64 = 256;

/// The default of `socket.backlog`: connections that the kernel queues for each shard until they are accepted.
pub const BACKLOG: u32 = 4096;

/// The default of `socket.send_buffer_bytes`.
pub const SEND_BUFFER_BYTES: u64 = 64 * 1024;

/// Descriptors that a gateway needs beside its connections.
#[must_use]
pub const fn reserved_descriptors(shards: u64) -> u64 {
    RESERVED_DESCRIPTORS + RESERVED_DESCRIPTORS_PER_SHARD * shards
}

/// Connections for which one table of descriptors has room; `limit` is `RLIMIT_NOFILE`, and `None` is no limit.
#[must_use]
pub fn connections_per_table(limit: Option<u64>, shards: u64) -> u64 {
    limit.unwrap_or(u64::MAX).saturating_sub(reserved_descriptors(shards))
}

/// How many connections a gateway accepts, and what decides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionsMax {
    /// Connections, all shards together.
    pub connections: u64,
    /// What decides it.
    pub basis: Basis,
}

/// What decides how many connections a gateway accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// `limits.connections_max` is set.
    Configured,
    /// epoll: one table of descriptors has room for no more.
    Descriptors,
    /// io_uring: the memory that bounds the process has room for no more.
    Memory(memory::Source),
    /// The gateway can't address more: [`CONNECTIONS_MAX`].
    Addressing,
}

impl ConnectionsMax {
    /// The default with epoll, whose connections are descriptors: what one table has room for. More need a
    /// table for each shard, which only a number in the configuration asks for.
    #[must_use]
    pub fn epoll_default(descriptors: Option<u64>, shards: u64) -> Self {
        Self::capped(connections_per_table(descriptors, shards), Basis::Descriptors)
    }

    /// The default with io_uring, whose connections are no descriptors of the process: what fits into memory.
    #[must_use]
    pub fn uring_default(limit: memory::Limit) -> Self {
        let connections = (limit.bytes / CONNECTION_BYTES).max(1);
        Self::capped(connections, Basis::Memory(limit.source))
    }

    fn capped(connections: u64, basis: Basis) -> Self {
        if connections <= CONNECTIONS_MAX {
            return Self { connections, basis };
        }
        Self { connections: CONNECTIONS_MAX, basis: Basis::Addressing }
    }
}

impl Basis {
    /// Its name in `/stats`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Descriptors => "descriptors",
            Self::Memory(memory::Source::Machine) => "machine_memory",
            Self::Memory(memory::Source::ControlGroup) => "control_group_memory",
            Self::Addressing => "addressing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_epoll_one_table_of_descriptors_decides() {
        // 64 and 4 for each of 9 shards are no connections.
        let max = ConnectionsMax::epoll_default(Some(1_000), 9);
        assert_eq!(max, ConnectionsMax { connections: 900, basis: Basis::Descriptors });
        assert_eq!(ConnectionsMax::epoll_default(Some(64), 1).connections, 0);
        let unlimited = ConnectionsMax::epoll_default(None, 1);
        assert_eq!((unlimited.connections, unlimited.basis), (1 << 26, Basis::Addressing));
    }

    #[test]
    fn with_io_uring_memory_decides() {
        let of = |bytes, source| ConnectionsMax::uring_default(memory::Limit { bytes, source });
        let group = of(6_144_000, memory::Source::ControlGroup);
        assert_eq!((group.connections, group.basis.name()), (1_000, "control_group_memory"));
        let machine = of(64 << 30, memory::Source::Machine);
        assert_eq!((machine.connections, machine.basis.name()), (11_184_810, "machine_memory"));
        assert_eq!(of(1, memory::Source::Machine).connections, 1);
        assert_eq!(of(1 << 50, memory::Source::Machine).basis, Basis::Addressing);
    }
}
