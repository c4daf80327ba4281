//! Admission: whether new connections are accepted, and what the log says when they are not.
//!
//! The gateway has one bound on connections for all shards. Each shard may accept its share of what is left of it. It may have a
//! [`Pace`], too.

use std::io;
use std::mem;

use tidegate_backend::log_limit::LogLimit;

use super::pace::{Allowance, Pace};

/// Refused connections that a shard tells why in a second. Each may keep its place for 2 s.
const EXPLANATIONS_PER_SECOND: f64 = 5_000.0;

/// A shard's admission of connections. See the [module](self).
#[derive(Debug)]
pub struct Admission {
    connections_max: usize,
    shards: u16,
    /// Accepting is paused because the gateway is full.
    is_full: bool,
    /// Of all shards together, as configured.
    per_second: Option<u32>,
    /// Accepting is paused because the memory budget is used.
    lacks_memory: bool,
    /// `None`: connections are let in as they come.
    pace: Option<Pace>,
    /// How many refused connections may be told why.
    explanations: Allowance,
    /// Accepting is paused, because the gateway is full or to keep the pace.
    is_paused: bool,
    /// The log has a line that accepting is paused, and none that it has resumed.
    has_warned: bool,
    warnings: LogLimit,
    pauses: u64,
}

impl Admission {
    /// Connections are accepted from the start.
    #[must_use]
    pub fn new(connections_max: usize, per_second: Option<u32>, shards: u16) -> Self {
        Self {
            explanations: Allowance::new(EXPLANATIONS_PER_SECOND, EXPLANATIONS_PER_SECOND),
            per_second,
            pace: per_second.map(|per_second| Pace::new(per_second, shards)),
            is_paused: false,
            connections_max,
            shards,
            is_full: false,
            lacks_memory: false,
            has_warned: false,
            warnings: LogLimit::new(),
            pauses: 0,
        }
    }

    /// Uses another pace, if it is another one than before: its schedule begins anew.
    pub fn reconfigure(&mut self, per_second: Option<u32>) {
        if self.per_second != per_second {
            self.per_second = per_second;
            self.pace = per_second.map(|per_second| Pace::new(per_second, self.shards));
        }
    }

    /// Times accepting stopped.
    #[must_use]
    pub const fn pauses(&self) -> u64 {
        self.pauses
    }

    /// How many connections may come in now, where the gateway has `connections`. All shards together may accept one each
    /// beyond the bound.
    #[inline]
    #[must_use]
    pub fn budget(&mut self, connections: u64, now_ms: u64) -> usize {
        if self.lacks_memory {
            return 0;
        }
        let share = self.share(connections);
        self.pace.as_mut().map_or(share, |pace| share.min(pace.budget(now_ms)))
    }

    /// This shard's share of the connections that there may still be.
    fn share(&self, connections: u64) -> usize {
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        self.connections_max.saturating_sub(connections).div_ceil(usize::from(self.shards))
    }

    /// A connection is open: it is let in, if the pace allows it.
    ///
    /// # Errors
    /// It does not: how many milliseconds its client is to wait before it comes back.
    pub fn let_in(&mut self, now_ms: u64) -> Result<(), u32> {
        self.pace.as_mut().map_or(Ok(()), |pace| pace.let_in(now_ms))
    }

    /// Whether a refused connection may be told why.
    pub fn may_say_why(&mut self, now_ms: u64) -> bool {
        self.explanations.take(now_ms)
    }

    /// Whether the memory budget allows no more connections from now on. The budget logs it.
    pub fn set_lacks_memory(&mut self, lacks_memory: bool) {
        self.pauses += u64::from(lacks_memory && !self.lacks_memory);
        self.lacks_memory = lacks_memory;
    }

    /// Each connection is let in from now on: the shard drains.
    pub fn drop_pace(&mut self) {
        self.pace = None;
    }

    /// When connections may be accepted again that wait only for the pace.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        let waits_for_pace = self.is_paused && !self.is_full && !self.lacks_memory;
        self.pace.as_ref().filter(|_| waits_for_pace).map(Pace::next_ms)
    }

    /// Compares the number of connections with the bound at the end of a turn. `Some`: the driver is to accept,
    /// or to pause.
    pub fn update(&mut self, connections: u64, now_ms: u64) -> Option<bool> {
        let is_full = self.share(connections) == 0;
        if mem::replace(&mut self.is_full, is_full) != is_full {
            self.full_or_not(now_ms);
        }
        if let Some(pace) = &mut self.pace {
            pace.turn_ends(self.is_paused, now_ms);
        }
        let is_paused = self.budget(connections, now_ms) == 0;
        (mem::replace(&mut self.is_paused, is_paused) != is_paused).then_some(!is_paused)
    }

    fn full_or_not(&mut self, now_ms: u64) {
        if !self.is_full {
            return self.resumed();
        }
        self.pauses += 1;
        if let Some(suppressed) = self.may_warn(now_ms) {
            tracing::warn!(
                limits.connections_max = self.connections_max,
                suppressed,
                "full: accepting is paused until a connection closes"
            );
        }
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
        let mut admission = Admission::new(10, None, 2);
        assert_eq!([0, 9, 11].map(|connections| admission.budget(connections, 0)), [5, 1, 0]);
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
        let mut admission = Admission::new(1, None, 1);
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

    #[test]
    fn a_pace_pauses_accepting_and_says_when_it_goes_on() {
        let mut admission = Admission::new(1_000, Some(20), 2);
        assert_eq!((admission.budget(0, 0), admission.update(0, 0)), (1, None));
        admission.let_in(0).unwrap();
        assert_eq!((admission.update(1, 0), admission.next_ms()), (Some(false), Some(100)));
        assert_eq!((admission.update(1, 99), admission.update(1, 100)), (None, Some(true)));
        assert_eq!(admission.next_ms(), None);
        admission.let_in(100).unwrap();
        assert_eq!(admission.update(2, 100), Some(false));
        // Nothing of that is a pause because the gateway is full.
        assert_eq!((admission.pauses(), admission.has_warned), (0, false));
        // The same pace goes on; another one begins anew.
        admission.reconfigure(Some(20));
        assert_eq!(admission.update(2, 101), None);
        admission.reconfigure(Some(2_000));
        assert_eq!(admission.update(2, 101), Some(true));
        admission.reconfigure(None);
        assert_eq!((admission.budget(2, 101), admission.let_in(101)), (499, Ok(())));
        admission.reconfigure(Some(20));
        admission.let_in(101).unwrap();
        assert_eq!(admission.update(2, 101), Some(false));
        admission.drop_pace();
        assert_eq!((admission.budget(2, 100), admission.update(2, 100)), (499, Some(true)));
        assert_eq!(admission.let_in(100), Ok(()));
    }
}
