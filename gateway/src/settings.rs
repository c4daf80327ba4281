//! What a gateway is set to: its configuration, and what checks clients' proofs.
//!
//! The settings are one value that never changes. A reload makes the next one, and replaces the whole: so no part ever sees a
//! half of each. Each shard keeps the settings that it applied last; all other threads ask [`Shared`](crate::shard::Shared).

use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::auth::Verifier;
use crate::config::Config;
use crate::tickets::Tickets;

/// See the [module](self).
#[derive(Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Checks tokens.
    pub verifier: Arc<Verifier>,
    /// Makes and checks tickets.
    pub tickets: Tickets,
}

/// The settings that a shard, or the HTTP gateway, is to use from now on.
#[derive(Clone, Debug)]
pub struct NewSettings {
    /// The settings.
    pub settings: Arc<Settings>,
    /// Takes the number of each thread that has applied them. Its end says that a thread has ended instead.
    pub applied: Sender<u16>,
}

impl NewSettings {
    /// A thread has applied the settings.
    pub fn confirm(&self, number: u16) {
        // The operator may have stopped waiting.
        let _ = self.applied.send(number);
    }
}
