//! The coalescer against peers whose behaviour is computed: no socket, no clock.

use super::*;

const DELAY_MAX: Duration = Duration::from_micros(300);
const MICRO: Duration = Duration::from_micros(1);

/// How peers behave.
#[derive(Clone, Copy)]
enum Peers {
    /// Together they send a request every so often, whatever becomes of the ones before.
    Open(Duration),
    /// A number of peers, each of which sends its next request only when it has the answer to the last one,
    /// after a round trip of so long.
    Closed(u32, Duration),
    /// The same, but each of them at its own time.
    Unsynchronised(u32, Duration),
}

/// How long the simulated shard works on one event.
const WORK: Duration = Duration::from_micros(5);

/// Polls under a load.
struct Run {
    now: Instant,
    coalescer: Coalescer,
    /// When the next request of an open loop comes.
    next: Instant,
    /// When the next request of each peer comes that is not in step.
    due: Vec<Instant>,
    polls: u32,
    delayed: u32,
    events: u64,
}

impl Run {
    fn new(delay_max: Duration) -> Self {
        let now = Instant::now();
        let coalescer = Coalescer::new(delay_max);
        let due = Vec::new();
        Self { now, coalescer, next: now, due, polls: 0, delayed: 0, events: 0 }
    }

    /// Runs for a time from now on, and counts.
    fn under(&mut self, peers: Peers, time: Duration) -> &Self {
        let until = self.now + time;
        (self.polls, self.delayed, self.events) = (0, 0, 0);
        self.next = self.next.max(self.now);
        while self.now < until {
            let delay = self.coalescer.delay();
            self.now += delay.unwrap_or_default();
            let events = match peers {
                Peers::Open(interval) => {
                    self.now = self.now.max(self.next);
                    let mut events = 0;
                    while self.next <= self.now {
                        self.next += interval;
                        events += 1;
                    }
                    events
                }
                Peers::Unsynchronised(count, round_trip) => {
                    if self.due.is_empty() {
                        let apart = round_trip / count;
                        self.due = (0..count).map(|peer| self.now + apart * peer).collect();
                    }
                    let first = self.due.iter().min().copied().unwrap_or(self.now);
                    self.now = self.now.max(first);
                    let arrived = self.due.iter_mut().filter(|due| **due <= self.now);
                    // Each sends its next request a round trip after its answer.
                    let answered = arrived.zip(1..).map(|(due, number)| {
                        *due = self.now + WORK * number + round_trip;
                    });
                    u32::try_from(answered.count()).unwrap_or(u32::MAX)
                }
                Peers::Closed(count, round_trip) => {
                    self.now += round_trip.saturating_sub(delay.unwrap_or_default());
                    count
                }
            };
            self.coalescer.on_polled(self.now, events as usize);
            self.now += WORK * events;
            self.polls += 1;
            self.delayed += u32::from(delay.is_some());
            self.events += u64::from(events);
        }
        self
    }

    fn events_per_poll(&self) -> f64 {
        self.events as f64 / f64::from(self.polls)
    }

    fn delayed_share(&self) -> f64 {
        f64::from(self.delayed) / f64::from(self.polls)
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn events_of_an_open_loop_gather() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Open(MICRO * 50), SECOND);
    assert!(run.events_per_poll() > 3.5, "{}", run.events_per_poll());
    assert!(run.delayed_share() > 0.9, "{}", run.delayed_share());
}

#[test]
fn a_delay_ends_when_enough_events_are_expected() {
    let mut run = Run::new(Duration::from_millis(10));
    run.under(Peers::Open(MICRO * 20), SECOND);
    let delay = run.coalescer.delay().expect("polls are delayed under this load");
    assert!(delay <= MICRO * 20 * EVENTS_ENOUGH + MICRO, "{delay:?}");
}

#[test]
fn nothing_is_delayed_where_few_events_come() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Open(MICRO * 1000), SECOND);
    assert_eq!(run.delayed, 0);
}

#[test]
fn delays_end_when_the_load_falls() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Open(MICRO * 50), SECOND);
    // In the window that is under way, polls may be delayed.
    run.under(Peers::Open(MICRO * 1000), SECOND);
    assert!(run.delayed <= 2 * WINDOW_POLLS, "{}", run.delayed);
    run.under(Peers::Open(MICRO * 1000), SECOND);
    assert_eq!(run.delayed, 0);
}

#[test]
fn nothing_is_delayed_where_many_events_wait_already() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Closed(100, MICRO * 30), SECOND);
    assert_eq!(run.delayed, 0);
}

#[test]
fn peers_that_wait_for_answers_are_not_slowed_down() {
    for peers in [1, 2, 5, 10] {
        let load = Peers::Closed(peers, MICRO * 30);
        let free = Run::new(Duration::ZERO).under(load, SECOND).events;
        let mut run = Run::new(DELAY_MAX);
        run.under(load, SECOND * 5);
        let with_delays = run.under(load, SECOND).events;
        assert!(with_delays * 20 > free * 19, "{peers} peers: {with_delays}, not {free}");
        // Once it is known, it is tried ever more rarely.
        assert!(run.delayed_share() < 0.05, "{peers} peers: {}", run.delayed_share());
    }
}

/// The loss of peers that wait for answers and are not in step with each other is bounded by a quarter.
#[test]
fn peers_that_wait_for_answers_get_three_quarters_at_least() {
    for (peers, round_trip) in [(5, 500), (10, 1000), (30, 1000), (100, 1000)] {
        let load = Peers::Unsynchronised(peers, MICRO * round_trip);
        let free = Run::new(Duration::ZERO).under(load, SECOND).events;
        let mut run = Run::new(DELAY_MAX);
        run.under(load, SECOND * 5);
        let with_delays = run.under(load, SECOND).events;
        assert!(with_delays * 4 > free * 3, "{peers} peers: {with_delays}, not {free}");
    }
}

#[test]
fn an_open_loop_after_a_closed_one_is_found_again() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Closed(2, MICRO * 30), SECOND * 10);
    run.under(Peers::Open(MICRO * 50), SECOND * 10);
    assert!(run.under(Peers::Open(MICRO * 50), SECOND).delayed_share() > 0.9);
}

#[test]
fn after_a_poll_that_took_nothing_the_next_event_is_taken_at_once() {
    let mut run = Run::new(DELAY_MAX);
    run.under(Peers::Open(MICRO * 50), SECOND);
    assert!(run.coalescer.delay().is_some());
    run.coalescer.on_polled(run.now, 0);
    assert_eq!(run.coalescer.delay(), None);
}

#[test]
fn a_maximum_of_zero_delays_nothing() {
    let mut run = Run::new(Duration::ZERO);
    run.under(Peers::Open(MICRO * 50), SECOND);
    assert_eq!(run.delayed, 0);
}
