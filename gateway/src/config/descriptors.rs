//! How many files and sockets the process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the gateway needs beside its connections: for the admin server, files, and the
/// standard streams.
const RESERVED: u64 = 64;

/// Descriptors that each shard needs beside its connections: listener, poller, waker, one to spare.
const PER_SHARD: u64 = 4;

/// Descriptors that the gateway needs beside its connections.
#[must_use]
pub fn reserve(shards: u16) -> u64 {
    RESERVED + PER_SHARD * u64::from(shards)
}

/// Descriptors that one table leaves for connections.
#[must_use]
pub fn for_connections(shards: u16) -> u64 {
    limit().unwrap_or(u64::MAX).saturating_sub(reserve(shards))
}

/// The soft limit (`RLIMIT_NOFILE`), which is what the kernel holds the process to; `None` when there
/// is none.
#[must_use]
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Raises the soft limit to the hard one and returns it.
///
/// Many systems start processes with a soft limit of 1024 for the sake of programs that use
/// `select`, and expect those that don't to raise it.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_limit() -> io::Result<Option<u64>> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum)
}
