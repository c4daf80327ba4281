//! The shards that do not answer: how the rest of this module finds them, and how they are shown to operators.

use serde::Serialize;
use tokio::sync::watch;

use crate::service::Silence;

/// The shards that do not answer now.
pub(super) type SilentShards = watch::Receiver<Vec<Silence>>;

/// A shard that does not answer, as JSON.
#[derive(Serialize)]
pub(super) struct SilentShard {
    pub(super) shard: u16,
    silent_ms: u64,
}

impl From<&Silence> for SilentShard {
    fn from(silence: &Silence) -> Self {
        let silent_ms = u64::try_from(silence.lasts.as_millis()).unwrap_or(u64::MAX);
        Self { shard: silence.shard, silent_ms }
    }
}
