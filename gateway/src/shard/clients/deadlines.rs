//! Deadlines of connections: to authenticate, to send a frame now and then, to show a fresh token before the
//! last one has ended, not to be too old, to go away after the last frame.
//!
//! Each connection has one deadline at most: the first of those that it has to meet. A frame only notes the
//! time, so a deadline may expire too early. What it means is decided when it has expired.

use super::ages::Ages;
use super::cause::Cause;
use super::connection::{Connection, Flags, Phase};
use super::timers::Timers;
use super::token_ends::{NEVER, TokenEnds};
use crate::auth::TokenEnd;
use crate::config::Config;
use crate::driver::ConnId;
use crate::shard::clock::Clock;

/// Deadlines that one turn handles. It spreads a mass timeout over several turns.
const DEADLINES_MAX: usize = 1024;

/// How often a connection that is too old is looked at while its session waits for its rooms, in milliseconds.
const RESUMING_MS: u64 = 250;

/// The deadlines of a shard's connections.
#[derive(Debug)]
pub struct Deadlines {
    timers: Timers,
    idle_timeout_ms: u64,
    /// When sessions end with their tokens; `None`: they don't.
    token_ends: Option<TokenEnds>,
    /// When connections are too old; `None`: never.
    ages: Option<Ages>,
    /// Slots whose deadline has expired.
    expired: Vec<u32>,
    /// More deadlines have expired than one turn handles.
    has_more: bool,
}

/// What an expired deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineAction {
    /// It came too early: set it to this time.
    Reschedule(u64),
    /// Close the connection gracefully.
    Close(Cause),
    /// It is too old and waits for answers: refuse its requests, close it with its last answer, and look again at
    /// this time.
    Leave(u64),
    /// Close it at once: it had its time to go away.
    Abort,
    /// The connection is gone.
    Nothing,
}

impl Deadlines {
    /// No deadline yet. A session ends after `idle_timeout_ms` without a frame, at its end in `token_ends`, and at that of its
    /// connection in `ages`.
    #[must_use]
    pub fn new(idle_timeout_ms: u64, token_ends: Option<TokenEnds>, ages: Option<Ages>) -> Self {
        let (timers, expired) = (Timers::new(), Vec::new());
        Self { timers, idle_timeout_ms, token_ends, ages, expired, has_more: false }
    }

    /// Uses another configuration for the tokens and connections that come from now on. Without a highest age, the
    /// connections that had one lose it.
    pub fn reconfigure(&mut self, config: &Config) {
        if let Some(token_ends) = &mut self.token_ends {
            token_ends.reconfigure(config);
        }
        self.ages = match (self.ages.take(), Ages::new(config)) {
            (Some(ages), Some(new)) => Some(ages.with_settings_of(&new)),
            (_, new) => new,
        };
    }

    /// A connection was accepted: its age counts from now.
    pub fn set_age(&mut self, conn: ConnId, now_ms: u64) {
        if let Some(ages) = &mut self.ages {
            ages.set(conn, now_ms);
        }
    }

    /// Whether a connection is too old.
    #[must_use]
    pub fn is_aged(&self, slot: u32, now_ms: u64) -> bool {
        self.age_end_ms(slot) <= now_ms
    }

    /// When a connection is too old.
    fn age_end_ms(&self, slot: u32) -> u64 {
        self.ages.as_ref().map_or(NEVER, |ages| ages.end_ms(slot))
    }

    /// When the session of a connection ends, whatever its client sends.
    fn end_ms(&self, slot: u32) -> u64 {
        self.session_end_ms(slot).min(self.age_end_ms(slot))
    }

    /// Sets a slot's deadline.
    pub fn set(&mut self, slot: u32, at_ms: u64) {
        self.timers.set(slot, at_ms);
    }

    /// Sets the deadline of a connection whose session has just opened.
    pub fn set_idle(&mut self, slot: u32, now_ms: u64) {
        let at_ms = (now_ms + self.idle_timeout_ms).min(self.end_ms(slot));
        self.timers.set(slot, at_ms);
    }

    /// A client has authenticated with a token that ends then. If it has a session, the session's end moves:
    /// its deadline is set again.
    pub fn set_token_end(&mut self, slot: u32, end: TokenEnd, phase: Phase, clock: &Clock) {
        if let Some(token_ends) = &mut self.token_ends {
            token_ends.set(slot, end, clock);
            if phase == Phase::Open {
                self.set_idle(slot, clock.now_ms());
            }
        }
    }

    /// Milliseconds until the token of a session ends; 0: its end does not end the session.
    #[must_use]
    pub fn token_expires_in_ms(&self, slot: u32, now_ms: u64) -> u64 {
        self.token_ends.as_ref().map_or(0, |token_ends| token_ends.expires_in_ms(slot, now_ms))
    }

    /// When a session ends with its token.
    fn session_end_ms(&self, slot: u32) -> u64 {
        self.token_ends.as_ref().map_or(NEVER, |token_ends| token_ends.end_ms(slot))
    }

    /// Clears a slot's deadline.
    pub fn clear(&mut self, slot: u32) {
        self.timers.clear(slot);
    }

    /// Milliseconds until a deadline may expire.
    #[must_use]
    pub fn next_in_ms(&self, now_ms: u64) -> Option<u64> {
        self.timers.next_in_ms(now_ms)
    }

    /// Whether more deadlines have expired than one turn handles.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.has_more
    }

    /// Collects the deadlines that have expired, as many as one turn handles.
    pub fn collect(&mut self, now_ms: u64) {
        let Self { timers, expired, .. } = self;
        self.has_more = timers.expire(now_ms, DEADLINES_MAX, |slot| expired.push(slot));
    }

    /// The next slot of those collected.
    pub fn next_expired(&mut self) -> Option<u32> {
        self.expired.pop()
    }

    /// What the expired deadline of a connection means.
    #[must_use]
    pub fn check(&self, slot: u32, connection: &Connection, clock: &Clock) -> DeadlineAction {
        let (now_ms, grace_until_ms) = (clock.now_ms(), clock.grace_until_ms());
        let end_ms = match connection.phase {
            Phase::Open => self.session_end_ms(slot),
            _ => NEVER,
        };
        match connection.phase {
            Phase::Anonymous | Phase::Registering | Phase::Open if now_ms < grace_until_ms => {
                DeadlineAction::Reschedule(grace_until_ms)
            }
            // Also where reading from it is paused: whoever does not read its answers must not outlive its token.
            Phase::Open if end_ms <= now_ms => DeadlineAction::Close(Cause::TokenExpired),
            Phase::Open if self.is_aged(slot, now_ms) => self.check_aged(slot, connection, now_ms),
            // Reading from it is paused, so it can't be silent. If it takes nothing, TCP_USER_TIMEOUT closes
            // it; if it waits for a call, the call's timeout ends that.
            // (Where its session's answer waits for its rooms, it waits for other shards, and one may hang.)
            Phase::Registering | Phase::Open
                if connection.has(Flags::READ_PAUSED) && !connection.has(Flags::RESUMING) =>
            {
                let end_ms = self.end_ms(slot).max(now_ms + RESUMING_MS);
                DeadlineAction::Reschedule((now_ms + self.idle_timeout_ms).min(end_ms))
            }
            Phase::Anonymous => DeadlineAction::Close(Cause::AuthTimeout),
            Phase::Registering | Phase::Open => {
                let silent_ms = clock.wrapping_ms().wrapping_sub(connection.last_seen_ms);
                match now_ms - u64::from(silent_ms) + self.idle_timeout_ms {
                    at_ms if at_ms <= now_ms => DeadlineAction::Close(Cause::Idle),
                    // While it registers, its end may have passed: it is not looked at in each turn.
                    at_ms => DeadlineAction::Reschedule(
                        at_ms.min(self.end_ms(slot).max(now_ms + RESUMING_MS)),
                    ),
                }
            }
            Phase::Closing | Phase::Lingering => DeadlineAction::Abort,
            // The wire has a deadline of its own.
            Phase::Opening | Phase::Vacant | Phase::Aborted => DeadlineAction::Nothing,
        }
    }

    /// What to do with a session whose connection is too old. It gets the answers that it waits for, if they come in time.
    fn check_aged(&self, slot: u32, connection: &Connection, now_ms: u64) -> DeadlineAction {
        let until_ms = self.ages.as_ref().map_or(now_ms, |ages| ages.answers_until_ms(slot));
        if now_ms >= until_ms || connection.calls == 0 && !connection.has(Flags::RESUMING) {
            return DeadlineAction::Close(Cause::Aged);
        }
        // A session that waits for its rooms ends soon after them.
        let next_ms = if connection.calls == 0 { now_ms + RESUMING_MS } else { until_ms };
        let next_ms = next_ms.min(until_ms).min(self.session_end_ms(slot));
        if connection.calls == 0 {
            DeadlineAction::Reschedule(next_ms)
        } else {
            DeadlineAction::Leave(next_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::WallClock;
    use crate::config::OnTokenExpiry;

    const SLOT: u32 = 3;

    /// The time that the clock of a shard without interruptions has reached.
    fn clock_at(ms: u64) -> Clock {
        let started = Instant::now();
        let mut clock = Clock::new(started, WallClock::new(|| Duration::from_secs(1_700_000_000)));
        for at_ms in (0..ms).step_by(900).chain([ms]) {
            clock.on_woken(started + Duration::from_millis(at_ms), 30_000);
        }
        clock
    }

    fn connection(phase: Phase, last_seen_ms: u32) -> Connection {
        let mut connection = Connection::accepted(1, last_seen_ms);
        connection.phase = phase;
        connection
    }

    #[test]
    fn a_session_without_a_frame_is_closed_after_the_idle_timeout() {
        let deadlines = Deadlines::new(75_000, None, None);
        let clock = clock_at(80_000);
        for phase in [Phase::Open, Phase::Registering] {
            let check =
                |last_seen_ms| deadlines.check(SLOT, &connection(phase, last_seen_ms), &clock);
            assert_eq!(check(5_000), DeadlineAction::Close(Cause::Idle));
            assert_eq!(check(5_001), DeadlineAction::Reschedule(80_001));
            assert_eq!(check(80_000), DeadlineAction::Reschedule(155_000));
        }
    }

    #[test]
    fn a_connection_whose_reading_is_paused_is_not_silent() {
        let deadlines = Deadlines::new(75_000, None, None);
        let clock = clock_at(80_000);
        let mut paused = connection(Phase::Open, 0);
        paused.flags |= Flags::READ_PAUSED;
        assert_eq!(deadlines.check(SLOT, &paused, &clock), DeadlineAction::Reschedule(155_000));
        paused.phase = Phase::Anonymous;
        assert_eq!(
            deadlines.check(SLOT, &paused, &clock),
            DeadlineAction::Close(Cause::AuthTimeout)
        );
    }

    /// The deadlines, at 80,000 ms, of a gateway whose sessions end with their tokens at once.
    fn with_token_ends() -> Deadlines {
        let mut config = Config::embedded_default();
        config.auth.leeway = Duration::ZERO;
        config.session.on_token_expiry = OnTokenExpiry::Close;
        config.session.token_expiry_grace = Duration::ZERO;
        let mut deadlines = Deadlines::new(75_000, TokenEnds::new(&config), None);
        deadlines.collect(80_000);
        deadlines
    }

    /// A token that ends so long after now.
    fn ends_in(ms: u64, clock: &Clock) -> TokenEnd {
        TokenEnd::At { unix_ms: clock.unix_ms() + ms }
    }

    #[test]
    fn a_session_ends_with_its_token_however_much_it_sends() {
        let mut deadlines = with_token_ends();
        let clock = clock_at(80_000);
        let mut alive = connection(Phase::Open, 80_000);
        deadlines.set_token_end(SLOT, ends_in(60_000, &clock), Phase::Registering, &clock);
        assert_eq!(deadlines.next_in_ms(80_000), None, "the session is not open yet");
        deadlines.set_idle(SLOT, 80_000);
        let in_ms = deadlines.next_in_ms(80_000).unwrap();
        assert!((60_000..62_000).contains(&in_ms), "{in_ms}");
        // The token's end comes before that of the silence, and is looked at again then.
        for flags in [Flags::empty(), Flags::READ_PAUSED] {
            alive.flags = flags;
            let check = |clock| deadlines.check(SLOT, &alive, clock);
            assert_eq!(check(&clock), DeadlineAction::Reschedule(140_000));
            assert_eq!(check(&clock_at(140_000)), DeadlineAction::Close(Cause::TokenExpired));
        }
        let mut closing = connection(Phase::Closing, 80_000);
        for (phase, due) in [
            (Phase::Closing, DeadlineAction::Abort),
            (Phase::Anonymous, DeadlineAction::Close(Cause::AuthTimeout)),
        ] {
            closing.phase = phase;
            assert_eq!(deadlines.check(SLOT, &closing, &clock_at(140_000)), due);
        }
    }

    #[test]
    fn a_fresh_token_moves_the_end_of_a_session_in_either_direction() {
        let mut deadlines = with_token_ends();
        let clock = clock_at(80_000);
        let next_in_ms = |deadlines: &Deadlines| deadlines.next_in_ms(80_000).unwrap();
        deadlines.set_token_end(SLOT, ends_in(60_000, &clock), Phase::Open, &clock);
        assert!((60_000..62_000).contains(&next_in_ms(&deadlines)));
        deadlines.set_token_end(SLOT, ends_in(10_000, &clock), Phase::Open, &clock);
        assert!((10_000..10_100).contains(&next_in_ms(&deadlines)));
        deadlines.set_token_end(SLOT, ends_in(600_000, &clock), Phase::Open, &clock);
        assert!((75_000..77_500).contains(&next_in_ms(&deadlines)), "the silence comes first");
        deadlines.set_token_end(SLOT, TokenEnd::Never, Phase::Open, &clock);
        assert_eq!(deadlines.token_expires_in_ms(SLOT, 80_000), 0);
        let alive = connection(Phase::Open, 80_000);
        assert_eq!(deadlines.check(SLOT, &alive, &clock), DeadlineAction::Reschedule(155_000));
    }

    #[test]
    fn the_ends_of_tokens_are_ignored_by_default() {
        let mut deadlines =
            Deadlines::new(75_000, TokenEnds::new(&Config::embedded_default()), None);
        let clock = clock_at(80_000);
        deadlines.set_token_end(SLOT, ends_in(1, &clock), Phase::Open, &clock);
        assert_eq!(deadlines.next_in_ms(80_000), None);
        assert_eq!(deadlines.token_expires_in_ms(SLOT, 80_000), 0);
    }

    #[test]
    fn no_connection_is_closed_for_silence_while_the_shard_did_not_run() {
        let deadlines = Deadlines::new(75_000, None, None);
        let mut clock = clock_at(0);
        clock.on_woken(clock.instant(90_000), 30_000);
        for phase in [Phase::Anonymous, Phase::Registering, Phase::Open] {
            assert_eq!(
                deadlines.check(SLOT, &connection(phase, 0), &clock),
                DeadlineAction::Reschedule(120_000)
            );
        }
        clock.on_woken(clock.instant(90_500), 30_000);
        assert_eq!(
            deadlines.check(SLOT, &connection(Phase::Closing, 0), &clock),
            DeadlineAction::Abort
        );
        for at_ms in (91_000..=120_000).step_by(1_000) {
            clock.on_woken(clock.instant(at_ms), 30_000);
        }
        assert_eq!(
            deadlines.check(SLOT, &connection(Phase::Open, 0), &clock),
            DeadlineAction::Close(Cause::Idle),
            "the grace time is over"
        );
    }

    #[test]
    fn a_closing_connection_has_its_time_and_a_closed_one_none() {
        let deadlines = Deadlines::new(75_000, None, None);
        let clock = clock_at(1_000);
        for (phase, due) in [
            (Phase::Closing, DeadlineAction::Abort),
            (Phase::Lingering, DeadlineAction::Abort),
            (Phase::Aborted, DeadlineAction::Nothing),
            (Phase::Opening, DeadlineAction::Nothing),
            (Phase::Vacant, DeadlineAction::Nothing),
        ] {
            assert_eq!(deadlines.check(SLOT, &connection(phase, 0), &clock), due);
        }
    }

    #[test]
    fn a_mass_timeout_is_spread_over_turns() {
        let mut deadlines = Deadlines::new(75_000, None, None);
        let slots = u32::try_from(DEADLINES_MAX).unwrap() + 3;
        (0..slots).for_each(|slot| deadlines.set(slot, 1_000));
        deadlines.clear(5);
        deadlines.set_idle(6, 1_000);
        // The end of the tick of 64 ms that it is in.
        assert_eq!(deadlines.next_in_ms(0), Some(1_024));
        let mut expired = Vec::new();
        deadlines.collect(2_000);
        assert!(deadlines.has_more());
        expired.extend(std::iter::from_fn(|| deadlines.next_expired()));
        assert_eq!(expired.len(), DEADLINES_MAX);
        deadlines.collect(2_000);
        assert!(!deadlines.has_more());
        expired.extend(std::iter::from_fn(|| deadlines.next_expired()));
        expired.sort_unstable();
        let expected: Vec<u32> = (0..slots).filter(|slot| ![5, 6].contains(slot)).collect();
        assert_eq!(expired, expected);
    }
}
