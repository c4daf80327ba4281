//! The two drivers that a gateway's shards may use.

use serde::{Deserialize, Serialize};

/// The driver of a gateway's shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Driver {
    /// Connections are descriptors, in one table or in a table for each shard.
    Epoll,
    /// Connections are direct descriptors of rings.
    Uring,
}

impl Driver {
    /// Its name in the gateway's configuration.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        }
    }
}
