//! How many descriptors the calling process may have open (`RLIMIT_NOFILE`).

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit, to which the kernel holds the process; `None` when there is none.
#[must_use]
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The hard limit, to which the process may raise the soft one; `None` when there is none.
#[must_use]
pub fn hard_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Raises the soft limit to the hard one.
///
/// Many systems start processes with a soft limit of 1024, for programs that use `select`, and expect all others
/// to raise it.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
