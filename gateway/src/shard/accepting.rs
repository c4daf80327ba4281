//! Whether new connections come in, and what is said when they don't.

use std::io;
use std::mem;
use std::sync::atomic::Ordering;

use super::Shard;
use crate::driver::Driver;

/// Whether the driver accepts, and whether it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    Yes,
    /// There are as many connections as there may be.
    Full,
}

impl Shard {
    /// Pauses accepting when there are as many connections as there may be, and resumes.
    pub(super) fn accept_more(&mut self, driver: &mut impl Driver) {
        match (self.accepting, self.places_left() == 0) {
            (Accepting::Yes, true) => {
                let limit = self.shared.config.limits.connections_max;
                if let Some(suppressed) = self.may_warn_of_pause() {
                    tracing::warn!(
                        limits.connections_max = limit,
                        suppressed,
                        "full: accepting is paused until a connection closes"
                    );
                }
                self.stats.accept_pauses += 1;
                self.accepting = Accepting::Full;
                driver.set_accepting(false);
            }
            (Accepting::Full, false) => {
                self.tell_of_resumption();
                self.accepting = Accepting::Yes;
                driver.set_accepting(true);
            }
            _ => {}
        }
    }

    /// The driver can't accept for now.
    pub(super) fn on_accept_paused(&mut self, error: &io::Error) {
        self.stats.accept_pauses += 1;
        if let Some(suppressed) = self.may_warn_of_pause() {
            tracing::warn!(
                %error,
                suppressed,
                "accepting is paused until a connection closes; raise the limit on open files"
            );
        }
    }

    /// Whether to say that accepting is paused: a gateway that is full pauses whenever somebody goes and
    /// somebody comes.
    fn may_warn_of_pause(&mut self) -> Option<u64> {
        let suppressed = self.log_limits.accept_pause.allow_at(self.now_ms);
        self.warned_of_pause |= suppressed.is_some();
        suppressed
    }

    pub(super) fn tell_of_resumption(&mut self) {
        if mem::take(&mut self.warned_of_pause) {
            tracing::info!("accepting again");
        }
    }

    /// A shard's share of the places that are left. All together may let in one each too many.
    #[inline]
    pub(super) fn places_left(&self) -> usize {
        let config = &self.shared.config;
        let connections = self.shared.connections.load(Ordering::Relaxed);
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let left = config.limits.connections_max.saturating_sub(connections);
        left.div_ceil(usize::from(config.shards))
    }
}
