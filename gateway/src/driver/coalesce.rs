//! Event coalescing: when a driver lets events gather for a moment before it takes them.
//!
//! A wait that ends costs a context switch, and a turn that hands calls to a worker costs two more. Far below full load
//! each request pays for all of them alone: measured at 20,000 requests a second, half of the CPU time. If the driver
//! waits a fraction of a millisecond longer, several requests share them. Network cards do the same with
//! interrupts (ethtool(8), `rx-usecs` and `adaptive-rx`).
//!
//! A delay costs latency: each request waits for it, and so does each answer that a worker gives later. Peers
//! that send a request only when they have the answer to the one before get fewer answers then, for nothing. So
//! the [`Coalescer`] measures. It counts events and time in windows of [`WINDOW_POLLS`] polls. While nothing is
//! delayed, a window yields the rate at which events come. From that rate it expects whether a delay gathers
//! [`EVENTS_MIN`] events or more. While polls are delayed, each window is compared with that rate: if all
//! events together come more slowly by a quarter, peers wait for answers, and the delay ends for a number of
//! windows. That number grows exponentially, until a delay has been of use.
//!
//! A few peers that wait for answers, among many that do not, are not seen in the rate of all events: they bear
//! the delay. To a phone, whose round trip takes tens of milliseconds, it is nothing; where it matters,
//! `coalesce_us` is set to 0.
//!
//! It has no clock and no socket. Both drivers use it: epoll sleeps for the delay. io_uring waits for
//! [`EVENTS_ENOUGH`] completions, with the delay as the time limit; with several rings, which signal the first one
//! together, that is the limit.

use std::time::{Duration, Instant};

/// Polls of a window: enough that the rates of two windows under the same load differ by less than a quarter nearly
/// always.
const WINDOW_POLLS: u32 = 64;

/// A delay has to gather this many events.
const EVENTS_MIN: u64 = 2;

/// Events that are enough: more of them would save little more. A delay ends when as many are expected.
pub(super) const EVENTS_ENOUGH: u32 = 16;

/// A poll that took as many is not followed by a delay: more wait already, or soon will.
const EVENTS_MANY: u32 = 2 * EVENTS_ENOUGH;

/// A shorter delay costs more than it saves.
const DELAY_MIN: Duration = Duration::from_micros(20);

/// Windows with delays between two without, which measure the rate again.
const DELAYED_WINDOWS: u32 = 64;

/// Windows without delays after delays have slowed peers down, at most.
const PAUSE_WINDOWS_MAX: u32 = 1024;

/// Decides how long a driver lets events gather. The default is not at all; the gateway sets its own. See the
/// [module](self).
#[derive(Debug)]
pub(super) struct Coalescer {
    /// The longest delay; zero: none.
    delay_max: Duration,
    mode: Mode,
    /// The delay of this window.
    delay: Duration,
    window: Window,
    /// Events that the last poll took.
    last_events: u32,
    /// Windows without delays after the next time that delays slow peers down.
    pause_windows: u32,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    /// No poll is delayed for at least this number of windows.
    Immediate { windows_left: u32 },
    /// Polls are delayed for at most this number of windows. `rate`: that of events without delays.
    Delayed { windows_left: u32, rate: Rate },
}

/// Polls since the window began.
#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    polls: u32,
    events: u64,
}

/// Events in a time.
#[derive(Clone, Copy, Debug)]
struct Rate {
    events: u64,
    time: Duration,
}

impl Rate {
    /// The number of events in a time.
    fn in_time(self, time: Duration) -> u64 {
        let events = u128::from(self.events) * time.as_nanos() / self.time.as_nanos().max(1);
        u64::try_from(events).unwrap_or(u64::MAX)
    }

    /// The time in which a number of events comes.
    fn time_of(self, events: u32) -> Duration {
        let nanos = self.time.as_nanos() * u128::from(events) / u128::from(self.events.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new(Duration::ZERO)
    }
}

impl Coalescer {
    /// Delays polls by `delay_max` at most. Zero: by nothing.
    pub(super) fn new(delay_max: Duration) -> Self {
        Self {
            delay_max,
            mode: Mode::Immediate { windows_left: 0 },
            delay: Duration::ZERO,
            window: Window::default(),
            last_events: 0,
            pause_windows: 1,
        }
    }

    /// How long the wait that comes next lets events gather, at most, if it is one that blocks.
    #[inline]
    pub(super) fn delay(&self) -> Option<Duration> {
        // After a poll that took nothing, the next event may be far away: it is taken at once.
        let is_useful = self.last_events > 0 && self.last_events < EVENTS_MANY;
        (is_useful && self.delay >= DELAY_MIN).then_some(self.delay)
    }

    /// Takes how many events a poll has taken, when its wait has ended at `now`. Wake-ups from other threads
    /// are none: with a delay, fewer of them are needed for the same answers, which is no sign that peers are
    /// slowed down.
    #[inline]
    pub(super) fn on_polled(&mut self, now: Instant, events: usize) {
        if self.delay_max.is_zero() {
            return;
        }
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        self.last_events = events;
        let window = &mut self.window;
        // The events of the poll that begins a window came before it.
        let Some(began) = window.began else {
            window.began = Some(now);
            return;
        };
        window.polls += 1;
        window.events += u64::from(events);
        if window.polls == WINDOW_POLLS {
            let time = now.saturating_duration_since(began);
            let rate = Rate { events: window.events, time };
            self.window = Window { began: Some(now), ..Window::default() };
            self.on_window(rate);
        }
    }

    fn on_window(&mut self, rate: Rate) {
        let is_useful = rate.in_time(self.delay_max) >= EVENTS_MIN
            && rate.events < u64::from(EVENTS_MANY * WINDOW_POLLS);
        self.mode = match self.mode {
            Mode::Immediate { windows_left } if windows_left > 0 => {
                Mode::Immediate { windows_left: windows_left - 1 }
            }
            Mode::Immediate { .. } if is_useful => {
                Mode::Delayed { windows_left: DELAYED_WINDOWS, rate }
            }
            Mode::Immediate { .. } => Mode::Immediate { windows_left: 0 },
            Mode::Delayed { rate: before, .. }
                if rate.in_time(before.time) * 4 < before.events * 3 =>
            {
                let windows_left = self.pause_windows;
                self.pause_windows = PAUSE_WINDOWS_MAX.min(4 * windows_left);
                Mode::Immediate { windows_left }
            }
            Mode::Delayed { windows_left, rate: before } if is_useful && windows_left > 0 => {
                self.pause_windows = 1;
                Mode::Delayed { windows_left: windows_left - 1, rate: before }
            }
            Mode::Delayed { .. } => Mode::Immediate { windows_left: 0 },
        };
        self.delay = match self.mode {
            Mode::Immediate { .. } => Duration::ZERO,
            Mode::Delayed { .. } => self.delay_max.min(rate.time_of(EVENTS_ENOUGH)),
        };
    }
}

#[cfg(test)]
mod tests;
