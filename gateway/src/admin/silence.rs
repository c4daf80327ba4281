//! The threads that do not answer: how the rest of this module finds them, and how they are shown to operators.

use serde::Serialize;
use tokio::sync::watch;

use crate::service::{ServingThread, Silence};

/// The threads that do not answer now.
pub(super) type Silent = watch::Receiver<Vec<Silence>>;

/// The threads that do not answer, as JSON.
#[derive(Default, Serialize)]
pub(super) struct Unresponsive {
    #[serde(rename = "unresponsive_shards")]
    pub(super) shards: Vec<SilentShard>,
    /// How long the HTTP gateway has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_silent_ms: Option<u64>,
}

/// A shard that does not answer, as JSON.
#[derive(Serialize)]
pub(super) struct SilentShard {
    shard: u16,
    silent_ms: u64,
}

impl Unresponsive {
    pub(super) fn add(&mut self, silence: &Silence) {
        let silent_ms = u64::try_from(silence.lasts.as_millis()).unwrap_or(u64::MAX);
        match silence.thread {
            ServingThread::Shard(shard) => self.shards.push(SilentShard { shard, silent_ms }),
            ServingThread::Http => self.http_silent_ms = Some(silent_ms),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty() && self.http_silent_ms.is_none()
    }
}

impl From<&[Silence]> for Unresponsive {
    fn from(silent: &[Silence]) -> Self {
        let mut unresponsive = Self::default();
        silent.iter().for_each(|silence| unresponsive.add(silence));
        unresponsive
    }
}
