//! Draining: how a shard ends without losing an answer.
//!
//! | phase | what the shard does | it lasts |
//! |---|---|---|
//! | grace | serves and accepts as before, while `/readyz` says that the gateway drains | `shutdown.ready_grace_ms` |
//! | goodbyes | accepts no more, and sends its connections 108, spread evenly | `shutdown.goodbye_window_ms` at most |
//! | answers | waits for the answers under way, and for clients to close | `shutdown.drain_timeout_ms` at most |
//!
//! When its turn comes, a connection that waits for no answer gets 108 at once. Another one gets it with its last answer, or
//! at the end of the third phase without the answers that are missing; its further requests are refused. Until its turn a
//! connection is served as before: a refusal would have its client wait for the goodbye.
//!
//! Connections in the kernel's accept queue are let in, since the kernel would reset them, and get 108 at once. A
//! connection whose wire is not open gets it when the wire has opened, or at the end: before, it could not read the 108.
//!
//! The drain ends as soon as no connection is left. A drain that is hurried leaves out what is left of the first two phases,
//! and waits [`HURRY_MS`] for answers.

use std::time::Duration;

use super::clock::millis;
use crate::config::ShutdownConfig;
use crate::control::{DrainPhase, ShardDrain};

/// Connections that one turn closes, at most. It spreads the closing of many connections over several turns.
const CLOSED_MAX: usize = 1024;

/// Slots that one turn looks at, at most.
const LOOKED_AT_MAX: usize = 8192;

/// Time between two steps while goodbyes are spread, in milliseconds.
const STEP_MS: u64 = 10;

/// The longest time between two goodbyes of a shard, in milliseconds. A shard with few connections takes less than
/// the whole window: their clients are too few to be a burst elsewhere.
const GOODBYE_INTERVAL_MS_MAX: u64 = 10;

/// How often a draining shard checks whether it is done when nothing happens, in milliseconds.
pub const POLL_MS: u64 = 50;

/// How long a drain that is hurried waits for answers, in milliseconds.
pub const HURRY_MS: u64 = 1_000;

/// The shortest time that a client which is sent to another gateway has for its last frames, in milliseconds.
const LEAVE_MS_MIN: u64 = 2_000;

/// Whether a shard drains, and its progress.
#[derive(Debug)]
pub struct Draining {
    grace_ms: u64,
    window_ms: u64,
    timeout_ms: u64,
    retry_after_ms: u64,
    state: Option<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    phase: DrainPhase,
    /// When the goodbyes begin, on the shard's clock.
    begins_ms: u64,
    /// How long the goodbyes take. It is at most what is configured.
    window_ms: u64,
    /// When missing answers are waited for no longer, on the shard's clock.
    until_ms: u64,
    /// The driver has been told this deadline. `None`: it has not, or the deadline has changed since.
    told_until_ms: Option<u64>,
    /// No further connection comes in.
    listener_closed: bool,
    /// Connections that there were when the goodbyes began.
    connections: u64,
    /// Of these, those whose turn has come.
    notified: u64,
    /// The next slot to look at.
    next: usize,
    /// Connections that this step may still notify or close.
    may_notify: usize,
    /// Slots that this step may still look at.
    may_look_at: usize,
    /// The bounds of a step have cut the last one short.
    is_cut: bool,
    stepped_ms: u64,
    /// `until_ms` has passed: connections with missing answers are closed too.
    has_expired: bool,
    is_hurried: bool,
}

/// What the shard does in this turn, beside looking at the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The goodbyes begin with this step.
    pub is_first: bool,
    /// Tell the driver to stop listening, and until when, on the shard's clock.
    pub stop_listening_until_ms: Option<u64>,
    /// Close the connections that wait for answers too.
    pub has_expired: bool,
    /// End those that are being closed already and have not sent their last frames.
    pub aborts_closing: bool,
}

impl Draining {
    /// The shard does not drain yet.
    #[must_use]
    pub fn new(config: &ShutdownConfig) -> Self {
        Self {
            grace_ms: millis(config.ready_grace),
            window_ms: millis(config.goodbye_window),
            timeout_ms: millis(config.drain_timeout),
            retry_after_ms: millis(config.retry_after),
            state: None,
        }
    }

    /// Uses another configuration, unless a drain has begun: that one ends as it began.
    pub fn reconfigure(&mut self, config: &ShutdownConfig) {
        if self.state.is_none() {
            *self = Self::new(config);
        }
    }

    /// Whether a drain has begun, its time of grace included.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.state.is_some()
    }

    /// Whether the goodbyes have begun. Before, also in the time of grace, the shard serves all clients.
    #[inline]
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.is_some_and(|state| state.phase != DrainPhase::Grace)
    }

    /// Whether there is work for the next turn.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.state.is_some_and(|state| state.is_cut)
    }

    /// When the next step is due, on the shard's clock.
    #[must_use]
    pub fn next_step_ms(&self) -> Option<u64> {
        let state = self.state?;
        Some(match state.phase {
            DrainPhase::Grace => state.begins_ms,
            DrainPhase::Goodbyes => state.stepped_ms + STEP_MS,
            DrainPhase::Answers => state.stepped_ms + POLL_MS,
        })
    }

    /// Starts to drain, unless the shard drains already.
    pub fn start(&mut self, now_ms: u64) {
        if self.state.is_some() {
            return;
        }
        let begins_ms = now_ms.saturating_add(self.grace_ms);
        self.state = Some(State {
            phase: DrainPhase::Grace,
            begins_ms,
            window_ms: self.window_ms,
            until_ms: begins_ms.saturating_add(self.window_ms).saturating_add(self.timeout_ms),
            told_until_ms: None,
            listener_closed: false,
            connections: 0,
            notified: 0,
            next: 0,
            may_notify: 0,
            may_look_at: 0,
            is_cut: false,
            stepped_ms: now_ms,
            has_expired: false,
            is_hurried: false,
        });
    }

    /// Starts to drain, or hurries the drain that is under way.
    pub fn hurry(&mut self, now_ms: u64) {
        self.start(now_ms);
        let Some(state) = &mut self.state else { return };
        state.begins_ms = state.begins_ms.min(now_ms);
        state.window_ms = 0;
        // It never lasts longer than without the hurry.
        let until_ms = state.until_ms.min(now_ms + self.timeout_ms.min(HURRY_MS));
        if until_ms < state.until_ms {
            state.until_ms = until_ms;
            state.told_until_ms = None;
        }
        state.is_hurried = true;
        if state.has_expired {
            // Those that are closing are aborted now.
            state.next = 0;
        }
    }

    /// The driver has closed its listener.
    pub const fn listener_closed(&mut self) {
        if let Some(state) = &mut self.state {
            state.listener_closed = true;
        }
    }

    /// Starts a step. `connections`: how many the shard has. `None`: the shard does not drain, or is in its time of grace.
    pub fn start_step(&mut self, connections: usize, now_ms: u64) -> Option<Step> {
        let state = self.state.as_mut().filter(|state| now_ms >= state.begins_ms)?;
        let is_first = state.phase == DrainPhase::Grace;
        if is_first {
            state.phase = DrainPhase::Goodbyes;
            state.connections = connections as u64;
            state.window_ms =
                state.window_ms.min(state.connections.saturating_mul(GOODBYE_INTERVAL_MS_MAX));
            // Answers are waited for from the end of the goodbyes.
            let until_ms = state.begins_ms.saturating_add(state.window_ms);
            state.until_ms = state.until_ms.min(until_ms.saturating_add(self.timeout_ms));
        }
        if !state.has_expired && now_ms >= state.until_ms {
            state.has_expired = true;
            state.next = 0;
        }
        state.stepped_ms = now_ms;
        state.is_cut = false;
        state.may_look_at = LOOKED_AT_MAX;
        state.may_notify = state.due(now_ms).min(CLOSED_MAX);
        let until_ms = state.until_ms;
        let is_told = state.told_until_ms.replace(until_ms).is_some();
        Some(Step {
            is_first,
            stop_listening_until_ms: (!is_told).then_some(until_ms),
            has_expired: state.has_expired,
            aborts_closing: state.has_expired && state.is_hurried,
        })
    }

    /// The next slot to look at in this step. `slots`: how many there are.
    pub fn next_slot(&mut self, slots: usize) -> Option<u32> {
        let state = self.state.as_mut()?;
        if state.next >= slots {
            state.phase = DrainPhase::Answers;
            return None;
        }
        if state.may_notify == 0 || state.may_look_at == 0 {
            // What is due already goes on in the next turn.
            state.is_cut = state.may_look_at == 0 || state.due(state.stepped_ms) > 0;
            return None;
        }
        state.may_look_at -= 1;
        let slot = u32::try_from(state.next).expect("slots are 32 bits");
        state.next += 1;
        Some(slot)
    }

    /// The turn of the connection in the slot that was looked at has come.
    pub const fn count_notified(&mut self) {
        if let Some(state) = &mut self.state {
            state.may_notify = state.may_notify.saturating_sub(1);
            state.notified += 1;
        }
    }

    /// Whether the shard may end once the gateway has no connection.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.is_draining() && self.state.is_some_and(|state| state.listener_closed)
    }

    /// Whether the drain's time is over.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.state.is_some_and(|state| state.has_expired)
    }

    /// The progress, for operators; `None`: the shard does not drain.
    #[must_use]
    pub fn progress(&self, now_ms: u64) -> Option<ShardDrain> {
        let progress = |state: State| ShardDrain {
            phase: state.phase,
            left_ms: state.until_ms.saturating_sub(now_ms),
        };
        self.state.map(progress)
    }

    /// Until when a connection that is closed by the drain may take to be sent its answers, on the shard's
    /// clock; `None` once the drain has expired.
    #[must_use]
    pub fn close_until_ms(&self) -> Option<u64> {
        self.state.filter(|state| !state.has_expired).map(|state| state.until_ms)
    }

    /// Until when a connection may take to be sent its answers that is closed without a drain, on the shard's clock.
    #[must_use]
    pub fn leave_until_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.timeout_ms.max(LEAVE_MS_MIN)
    }

    /// How long a client should wait before it reconnects: up to twice what is configured, spread by
    /// slot, so that clients do not all reconnect at once.
    #[must_use]
    pub fn retry_after_ms(&self, slot: u32) -> u32 {
        spread(Duration::from_millis(self.retry_after_ms), slot)
    }
}

impl State {
    /// Connections whose turn has come by now and that were not notified yet. Once the window is over: all.
    fn due(&self, now_ms: u64) -> usize {
        let elapsed_ms = now_ms.saturating_sub(self.begins_ms);
        if self.has_expired || elapsed_ms >= self.window_ms {
            return usize::MAX;
        }
        let due =
            u128::from(self.connections) * u128::from(elapsed_ms) / u128::from(self.window_ms);
        // The first is due when the window begins.
        let due = u64::try_from(due).unwrap_or(u64::MAX).saturating_add(1);
        usize::try_from(due.saturating_sub(self.notified)).unwrap_or(usize::MAX)
    }
}

/// A time between this and twice as long, in milliseconds, spread by slot.
#[must_use]
pub fn spread(least: Duration, slot: u32) -> u32 {
    let part = u64::from(slot.wrapping_mul(0x9e37_79b9) >> 22);
    let least_ms = millis(least);
    u32::try_from(least_ms + least_ms * part / 1024).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draining(grace_ms: u64, window_ms: u64) -> Draining {
        Draining::new(&ShutdownConfig {
            ready_grace: Duration::from_millis(grace_ms),
            goodbye_window: Duration::from_millis(window_ms),
            drain_timeout: Duration::from_millis(500),
            retry_after: Duration::from_secs(2),
        })
    }

    /// One step of a shard whose slots all have a connection. Returns the slots whose turn has come.
    fn step(draining: &mut Draining, slots: usize, now_ms: u64) -> (Step, Vec<u32>) {
        let step = draining.start_step(slots, now_ms).unwrap();
        let mut notified = Vec::new();
        while let Some(slot) = draining.next_slot(slots) {
            draining.count_notified();
            notified.push(slot);
        }
        (step, notified)
    }

    #[test]
    fn a_drain_without_a_window_goes_through_all_slots_once_and_again_at_its_deadline() {
        let mut draining = draining(0, 0);
        assert_eq!(draining.start_step(5, 0), None);
        draining.start(1_000);
        draining.start(1_001);
        let slots = CLOSED_MAX + 3;
        let (first, notified) = step(&mut draining, slots, 1_000);
        assert_eq!((first.is_first, first.stop_listening_until_ms), (true, Some(1_500)));
        assert_eq!(notified, (0..1024).collect::<Vec<_>>());
        assert!(draining.is_busy());
        let (second, notified) = step(&mut draining, slots, 1_001);
        assert_eq!((second.is_first, second.stop_listening_until_ms), (false, None));
        assert_eq!(notified, [1024, 1025, 1026]);
        assert!(!draining.is_busy() && !draining.may_end());
        draining.listener_closed();
        assert!(draining.may_end());
        assert_eq!(step(&mut draining, slots, 1_499).1, [0; 0]);
        assert_eq!(draining.close_until_ms(), Some(1_500));
        let (second_pass, closed) = step(&mut draining, slots, 1_500);
        assert_eq!((closed.len(), second_pass.has_expired), (CLOSED_MAX, true));
        assert!(draining.is_busy() && !second_pass.aborts_closing);
        assert_eq!(draining.close_until_ms(), None);
    }

    #[test]
    fn nothing_happens_in_the_time_of_grace() {
        let mut draining = draining(5_000, 0);
        draining.start(1_000);
        assert!(!draining.is_draining() && !draining.is_busy());
        assert_eq!(draining.next_step_ms(), Some(6_000));
        assert_eq!(draining.start_step(5, 5_999), None);
        let progress = draining.progress(1_500).unwrap();
        assert_eq!((progress.phase, progress.left_ms), (DrainPhase::Grace, 5_000));
        let (first, notified) = step(&mut draining, 5, 6_000);
        assert_eq!((first.stop_listening_until_ms, notified.len()), (Some(6_500), 5));
        assert!(draining.is_draining());
    }

    #[test]
    fn goodbyes_are_spread_evenly_over_the_window() {
        let mut draining = draining(0, 1_000);
        draining.start(0);
        let counts: Vec<_> =
            (0..=10).map(|tenth| step(&mut draining, 2_000, tenth * 100).1.len()).collect();
        assert_eq!(counts, [1, 200, 200, 200, 200, 200, 200, 200, 200, 200, 199]);
        assert_eq!(draining.progress(1_000).unwrap().phase, DrainPhase::Answers);
    }

    #[test]
    fn goodbyes_that_are_due_are_spread_over_turns() {
        let mut draining = draining(0, 1_000);
        draining.start(0);
        let counts = [0, 500, 500, 500].map(|now_ms| {
            let notified = step(&mut draining, 5_000, now_ms).1.len();
            (notified, draining.is_busy())
        });
        assert_eq!(counts, [(1, false), (1024, true), (1024, true), (452, false)]);
    }

    #[test]
    fn few_connections_do_not_take_the_whole_window() {
        let mut draining = draining(0, 60_000);
        draining.start(0);
        let counts = [0, 10, 20, 30].map(|now_ms| step(&mut draining, 3, now_ms).1.len());
        assert_eq!(counts, [1, 1, 1, 0]);
        // The rest of the window does not move the deadline of the answers either.
        let progress = draining.progress(30).unwrap();
        assert_eq!((progress.phase, progress.left_ms), (DrainPhase::Answers, 500));
    }

    #[test]
    fn a_hurried_drain_leaves_grace_and_window_out_and_waits_less_for_answers() {
        let mut draining = draining(5_000, 5_000);
        draining.timeout_ms = 60_000;
        draining.start(0);
        draining.hurry(100);
        let (first, notified) = step(&mut draining, 700, 100);
        assert_eq!((first.stop_listening_until_ms, notified.len()), (Some(1_100), 700));
        draining.hurry(200);
        let (again, _) = step(&mut draining, 700, 200);
        assert_eq!(again.stop_listening_until_ms, None, "the deadline does not move away");
        assert!(step(&mut draining, 700, 1_100).0.aborts_closing);
    }

    #[test]
    fn a_hurry_in_the_window_moves_the_deadline_of_the_listener_too() {
        let mut draining = draining(0, 5_000);
        draining.start(0);
        assert_eq!(step(&mut draining, 1_000, 0).0.stop_listening_until_ms, Some(5_500));
        draining.hurry(100);
        let (next, notified) = step(&mut draining, 1_000, 101);
        assert_eq!((next.stop_listening_until_ms, notified.len()), (Some(600), 999));
    }

    #[test]
    fn hints_are_spread_between_once_and_twice_what_is_configured() {
        let draining = draining(0, 0);
        let hints: Vec<u32> = (0..1000).map(|slot| draining.retry_after_ms(slot)).collect();
        assert!(hints.iter().all(|hint| (2_000..4_000).contains(hint)));
        let early = hints.iter().filter(|&&hint| hint < 3_000).count();
        assert!((400..600).contains(&early), "{early}");
    }
}
