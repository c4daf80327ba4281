//! Opens many connections, authenticates them, and keeps them alive with heartbeats.

use std::time::Duration;

use anyhow::{anyhow, bail};
use tidegate_protocol::limits::HEARTBEAT_INTERVAL_MS;
use tidegate_protocol::message::Response;

use super::args::CommonArgs;
use super::clock::{Nanos, due_after, due_at};
use super::latency::{Counters, Latency, LiveStats};
use super::run_state::Share;
use super::session::{Credentials, SessionAnswer, put_heartbeat, read_answer};
use super::sockets::{CloseCause, Sockets};
use super::source::Addresses;

/// Connections of all workers that connect or authenticate at the same time: fewer than any accept queue holds.
const IN_FLIGHT_MAX: usize = 128;
/// The same for each of many workers: with fewer, a worker would wake up for each single connection.
const IN_FLIGHT_MIN: usize = 8;
/// A heartbeat that is not answered within this time is an error.
const PONG_MAX_NS: Nanos = 10_000_000_000;
/// Heartbeats of all workers in flight at the same time in a sweep.
const SWEEP_IN_FLIGHT_MAX: usize = 4096;

/// The sessions of a worker's share of the connections. Slot `n` is user `first_user + n`.
#[derive(Debug)]
pub(super) struct Sessions {
    share: Share,
    addresses: Addresses,
    credentials: Credentials,
    raw: bool,
    /// Nanoseconds between two connects; 0: as fast as possible.
    connect_interval_ns: f64,
    /// Connections that may connect or authenticate at the same time.
    in_flight_max: usize,
    /// Connections that have started to connect, in slot order. up <= started <= share.count
    started: usize,
    /// Connections that are authenticated, or open where the load is raw.
    up: usize,
    /// When the last connection came up, or when the first of those that wait started.
    waiting_since: Nanos,
    /// For each connection: when it started to connect, then when it started to authenticate, then when its
    /// last heartbeat was sent.
    since: Vec<Nanos>,
    states: Vec<ConnectionState>,
    /// Connections in [`ConnectionState::AwaitsPong`].
    pongs_pending: usize,
    first_connect_at: Option<Nanos>,
    all_up_at: Nanos,
    heartbeats: Heartbeats,
    heartbeat_interval_ns: Nanos,
    /// Whether `--heartbeat-interval` sets the interval. Otherwise the gateway does.
    interval_is_fixed: bool,
    /// Heartbeats that have been due so far: number `n` belongs to connection `n % share.count`.
    turns: u64,
    /// When the turns began: when the first connection came up.
    turns_since: Option<Nanos>,
    counting: bool,
    pongs: u64,
    sent: u64,
    received: u64,
    /// From writing the authentication to its answer.
    pub(super) auth_latency: Latency,
    /// From the start of the connect until the socket is open.
    pub(super) connect_latency: Latency,
    /// From a heartbeat to its answer.
    pub(super) heartbeat_latency: Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    /// Not authenticated.
    Down,
    /// Authenticated.
    Up,
    /// Authenticated, and its heartbeat has not been answered.
    AwaitsPong,
}

/// Which connections are sent a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heartbeats {
    /// Each connection, once an interval.
    Periodic,
    /// Each connection once, as fast as they are answered. `next` is the first that has not been sent its own.
    Sweep { next: usize },
    /// None.
    Paused,
}

impl Sessions {
    /// A share of which no connection is open. Raw connections are up as soon as they are open.
    pub(super) fn new(args: &CommonArgs, share: Share, raw: bool) -> Self {
        let interval = args.heartbeat_interval.map(|it| u64::try_from(it.as_nanos()));
        let interval_ns = interval.and_then(Result::ok);
        let of_all = share.total as f64 / share.count as f64;
        Self {
            share,
            addresses: args.addresses(),
            credentials: Credentials::new(args),
            raw,
            connect_interval_ns: args.connect_rate.map_or(0.0, |rate| 1e9 / rate * of_all),
            in_flight_max: (IN_FLIGHT_MAX / share.workers).max(IN_FLIGHT_MIN),
            started: 0,
            up: 0,
            waiting_since: 0,
            since: vec![0; share.count],
            states: vec![ConnectionState::Down; share.count],
            pongs_pending: 0,
            first_connect_at: None,
            all_up_at: 0,
            heartbeats: Heartbeats::Periodic,
            heartbeat_interval_ns: interval_ns
                .unwrap_or(u64::from(HEARTBEAT_INTERVAL_MS) * 1_000_000),
            interval_is_fixed: interval_ns.is_some(),
            turns: 0,
            turns_since: None,
            counting: false,
            pongs: 0,
            sent: 0,
            received: 0,
            auth_latency: Latency::counting_from_start(),
            connect_latency: Latency::counting_from_start(),
            heartbeat_latency: Latency::new(),
        }
    }

    /// Spreads the connects evenly over this time.
    pub(super) fn connecting_within(mut self, ramp: Duration) -> Self {
        self.connect_interval_ns = ramp.as_secs_f64() * 1e9 / self.share.count as f64;
        self
    }

    /// Whether all connections are up.
    pub(super) fn all_up(&self) -> bool {
        self.up == self.share.count
    }

    /// Heartbeats answered in the window.
    pub(super) fn pongs(&self) -> u64 {
        self.pongs
    }

    /// Starts counting heartbeats, from zero.
    pub(super) fn start_counting_pongs(&mut self) {
        (self.counting, self.pongs) = (true, 0);
        self.heartbeat_latency.start_counting();
    }

    /// Stops counting heartbeats.
    pub(super) fn stop_counting_pongs(&mut self) {
        self.counting = false;
        self.heartbeat_latency.stop_counting();
    }

    /// Stops sending heartbeats.
    pub(super) fn pause_heartbeats(&mut self) {
        self.heartbeats = Heartbeats::Paused;
    }

    /// Starts to send one heartbeat on each connection.
    pub(super) fn sweep(&mut self) {
        self.heartbeats = Heartbeats::Sweep { next: 0 };
    }

    /// Whether every heartbeat of a sweep has been sent and answered.
    pub(super) fn sweep_is_done(&self) -> bool {
        self.heartbeats == Heartbeats::Sweep { next: self.share.count } && self.all_pongs_received()
    }

    /// How many connections are up.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// Since when connections wait without any of them coming up; `None` where none waits.
    pub(super) fn waiting_since(&self) -> Option<Nanos> {
        (self.started > self.up).then_some(self.waiting_since)
    }

    /// Whether every heartbeat has been answered.
    pub(super) fn all_pongs_received(&self) -> bool {
        self.pongs_pending == 0
    }

    /// What the sessions have done so far.
    pub(super) fn counters(&self) -> Counters {
        Counters { connections: self.up as u64, sent: self.sent, received: self.received }
    }

    /// Ends the second. Publishes the latencies of authentications and heartbeats.
    pub(super) fn flush(&mut self, live: Option<&LiveStats>) {
        self.auth_latency.flush(live);
        self.connect_latency.flush(None);
        self.heartbeat_latency.flush(live);
    }

    /// Adds another worker's results.
    pub(super) fn merge(&mut self, other: Self) {
        self.up += other.up;
        self.pongs += other.pongs;
        self.first_connect_at = self.first_connect_at.min(other.first_connect_at);
        self.all_up_at = self.all_up_at.max(other.all_up_at);
        self.auth_latency.merge(other.auth_latency);
        self.connect_latency.merge(other.connect_latency);
        self.heartbeat_latency.merge(other.heartbeat_latency);
    }

    /// Connections that came up per second, over the whole ramp.
    pub(super) fn connects_per_second(&self) -> f64 {
        let began_at = self.first_connect_at.unwrap_or_default();
        self.up as f64 * 1e9 / (self.all_up_at.saturating_sub(began_at).max(1)) as f64
    }

    /// Opens the connections and sends the heartbeats that are due. Returns when the next are.
    pub(super) fn tick(
        &mut self,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<Option<Nanos>> {
        let began_at = *self.first_connect_at.get_or_insert(now);
        let mut next = None;
        while self.started < self.share.count && self.started - self.up < self.in_flight_max {
            // Offset by the worker's number: the workers' connects interleave evenly.
            let number = self.started as f64 + self.share.worker as f64 / self.share.workers as f64;
            let due_at = began_at + due_at(number, self.connect_interval_ns);
            if due_at > now {
                next = Some(due_at);
                break;
            }
            let slot = self.share.first + self.started;
            let (to, from) = self.addresses.of(slot);
            sockets.connect(slot, to, from)?;
            self.since[self.started] = now;
            if self.started == self.up {
                self.waiting_since = now;
            }
            self.started += 1;
        }
        let heartbeat_at = match self.heartbeats {
            Heartbeats::Periodic => self.send_due_heartbeats(sockets, now)?,
            Heartbeats::Sweep { next } => self.sweep_from(next, sockets, now),
            Heartbeats::Paused => None,
        };
        Ok(match (next, heartbeat_at) {
            (Some(next), Some(heartbeat_at)) => Some(next.min(heartbeat_at)),
            (next, heartbeat_at) => next.or(heartbeat_at),
        })
    }

    /// Spreads the heartbeats evenly over the interval: each connection has one turn in it.
    fn send_due_heartbeats(
        &mut self,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<Option<Nanos>> {
        let Some(since) = self.turns_since.filter(|_| !self.raw) else { return Ok(None) };
        let spacing_ns = self.heartbeat_interval_ns as f64 / self.share.count as f64;
        loop {
            let due_at = since + due_after(self.turns + 1, spacing_ns);
            if due_at > now {
                return Ok(Some(due_at));
            }
            let count = self.share.count as u64;
            let number = usize::try_from(self.turns % count).unwrap_or_default();
            self.turns += 1;
            match self.states[number] {
                ConnectionState::Up => self.put_heartbeat(number, sockets, now),
                ConnectionState::AwaitsPong if now > self.since[number] + PONG_MAX_NS => {
                    bail!("connection {}: a heartbeat was not answered", self.share.first + number)
                }
                // Skips this turn. A connection that is down authenticates or fails long before the gateway
                // wants a heartbeat. One that awaits a pong has shown that it lives.
                ConnectionState::Down | ConnectionState::AwaitsPong => {}
            }
        }
    }

    fn sweep_from(&mut self, from: usize, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        let in_flight_max = (SWEEP_IN_FLIGHT_MAX / self.share.workers).max(1);
        let mut next = from;
        while next < self.share.count
            && self.pongs_pending < in_flight_max
            && self.states[next] == ConnectionState::Up
        {
            self.put_heartbeat(next, sockets, now);
            next += 1;
        }
        self.heartbeats = Heartbeats::Sweep { next };
        None
    }

    fn put_heartbeat(&mut self, number: usize, sockets: &mut Sockets, now: Nanos) {
        sockets.send(self.share.first + number, |out| {
            put_heartbeat(out);
            (self.states[number], self.since[number]) = (ConnectionState::AwaitsPong, now);
            self.pongs_pending += 1;
            self.sent += 1;
        });
    }

    /// The connection is open: authenticates it.
    pub(super) fn opened(&mut self, slot: usize, out: &mut Vec<u8>, now: Nanos) {
        let since = &mut self.since[slot - self.share.first];
        self.connect_latency.record(now.saturating_sub(*since));
        *since = now;
        if self.raw {
            self.record_up(now);
        } else {
            self.credentials.put_authenticate(slot, out);
            self.sent += 1;
        }
    }

    /// Handles an answer. Returns whether it belongs to the session.
    ///
    /// # Errors
    /// It is a failure, or no such answer is due.
    #[inline]
    pub(super) fn answered(
        &mut self,
        slot: usize,
        answer: &Response<'_>,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        let number = slot - self.share.first;
        match read_answer(slot, answer)? {
            SessionAnswer::Other => return Ok(false),
            SessionAnswer::Pong => {
                if self.states[number] != ConnectionState::AwaitsPong {
                    bail!("connection {slot}: the answer to a heartbeat came, but none was sent");
                }
                self.states[number] = ConnectionState::Up;
                self.pongs_pending -= 1;
                self.pongs += u64::from(self.counting);
                self.heartbeat_latency.record(now.saturating_sub(self.since[number]));
            }
            SessionAnswer::Authenticated { heartbeat_interval_ms } => {
                if self.states[number] != ConnectionState::Down {
                    bail!("connection {slot}: its authentication was answered twice");
                }
                self.states[number] = ConnectionState::Up;
                self.auth_latency.record(now.saturating_sub(self.since[number]));
                if heartbeat_interval_ms > 0 && !self.interval_is_fixed {
                    self.heartbeat_interval_ns = u64::from(heartbeat_interval_ms) * 1_000_000;
                }
                self.record_up(now);
            }
        }
        self.received += 1;
        Ok(true)
    }

    /// The error for a closed connection: the load closes none before the end.
    pub(super) fn closed(&self, slot: usize, cause: &CloseCause) -> anyhow::Error {
        anyhow!("connection {slot} was {cause}, while {} were up", self.up)
    }

    fn record_up(&mut self, now: Nanos) {
        self.up += 1;
        (self.all_up_at, self.waiting_since) = (now, now);
        self.turns_since.get_or_insert(now);
    }
}
