//! Admission: whether new connections are accepted, and what the log says when they are not.
//!
//! The gateway has one bound on connections for all shards. Each shard may accept its share of what is left of it.

use std::io;
use std::mem;

use tidegate_backend::log_limit::LogLimit;

/// A shard's admission of connections. See the [module](self).
#[derive(Debug)]
pub struct Admission {
    connections_max: usize,
    shards: usize,
    /// Accepting is paused because the gateway is full.
    is_full: bool,
    /// The log has a line that accepting is paused, and none that it has resumed.
    has_warned: bool,
    warnings: LogLimit,
    pauses: u64,
}

impl Admission {
    /// Connections are accepted from the start.
    #[must_use]
    pub fn new(connections_max: usize, shards: u16) -> Self {
        Self {
            connections_max,
            shards: usize::from(shards),
            is_full: false,
            has_warned: false,
            warnings: LogLimit::new(),
            pauses: 0,
        }
    }

    /// Times accepting stopped.
    #[must_use]
    pub const fn pauses(&self) -> u64 {
        self.pauses
    }

    /// This shard's share of the connections that may still come in, where the gateway has `connections`. All shards
    /// together may accept one each beyond the bound.
    #[inline]
    #[must_use]
    pub fn budget(&self, connections: u64) -> usize {
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        self.connections_max.saturating_sub(connections).div_ceil(self.shards)
    }

    /// Compares the number of connections with the bound at the end of a turn. `Some`: the driver is to accept,
    /// or to pause.
    pub fn update(&mut self, connections: u64, now_ms: u64) -> Option<bool> {
        let is_full = self.budget(connections) == 0;
        if mem::replace(&mut self.is_full, is_full) == is_full {
            return None;
        }
        if is_full {
            self.pauses += 1;
            if let Some(suppressed) = self.may_warn(now_ms) {
                tracing::warn!(
                    limits.connections_max = self.connections_max,
                    suppressed,
                    "full: accepting is paused until a connection closes"
                );
            }
        } else {
            self.resumed();
        }
        Some(!is_full)
    }

    /// The driver can't accept for now.
    pub fn paused_by_driver(&mut self, error: &io::Error, now_ms: u64) {
        self.pauses += 1;
        if let Some(suppressed) = self.may_warn(now_ms) {
            tracing::warn!(
                %error,
                suppressed,
                "accepting is paused until a connection closes; raise the limit on open files"
            );
        }
    }

    /// Connections are accepted again.
    pub fn resumed(&mut self) {
        if mem::take(&mut self.has_warned) {
            tracing::info!("accepting again");
        }
    }

    /// A full gateway pauses whenever a connection closes and another comes, so the log lines are limited.
    fn may_warn(&mut self, now_ms: u64) -> Option<u64> {
        let suppressed = self.warnings.allow_at(now_ms);
        self.has_warned |= suppressed.is_some();
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_reported_to_the_driver_once() {
        let mut admission = Admission::new(10, 2);
        assert_eq!((admission.budget(0), admission.budget(9), admission.budget(11)), (5, 1, 0));
        assert_eq!(admission.update(9, 0), None);
        assert_eq!(admission.update(10, 0), Some(false));
        assert_eq!(admission.update(11, 1), None);
        assert_eq!(admission.update(9, 2), Some(true));
        assert_eq!(admission.update(8, 3), None);
        assert_eq!(admission.pauses(), 1);
        admission.paused_by_driver(&io::Error::other("no descriptors"), 4);
        assert_eq!(admission.pauses(), 2);
    }

    #[test]
    fn log_lines_about_pauses_are_limited_and_each_has_one_about_its_end() {
        let mut admission = Admission::new(1, 1);
        assert_eq!(admission.may_warn(0), Some(0));
        assert!(admission.has_warned);
        admission.resumed();
        assert!(!admission.has_warned);
        assert_eq!(admission.may_warn(9_999), None);
        assert!(!admission.has_warned, "no line says that it paused");
        assert_eq!(admission.may_warn(10_000), Some(1));
        assert_eq!(admission.may_warn(10_001), None);
        assert!(admission.has_warned);
    }
}
