//! Connecting, authenticating, staying alive: what most scenarios' connections go through first.

use std::time::Duration;

use anyhow::{anyhow, bail};
use tidegate_protocol::limits::HEARTBEAT_INTERVAL_MS;
use tidegate_protocol::message::Response;

use super::args::CommonArgs;
use super::course::Share;
use super::engine::{CloseCause, Nanos, Sockets, due_after, due_at};
use super::latency::{Latency, Live, Pulse};
use super::session::{Credentials, SessionAnswer, put_heartbeat, read_answer};
use super::source::Addresses;

/// Connections under way at once, of all workers: less than any accept queue holds.
const UNDER_WAY_MAX: usize = 128;
/// Connections under way at once in each of many workers: fewer would have it wake for each.
const UNDER_WAY_MIN: usize = 8;
/// A heartbeat that isn't answered by then never will be.
const PONG_MAX_NS: Nanos = 10_000_000_000;
/// Heartbeats under way at once in a sweep, of all workers.
const SWEEP_UNDER_WAY_MAX: usize = 4096;

/// Brings connections up and keeps them up. Slot `n` is user `first_user + n`.
#[derive(Debug)]
pub(super) struct Sessions {
    share: Share,
    addresses: Addresses,
    credentials: Credentials,
    raw: bool,
    /// Nanoseconds between two connects; 0: as fast as it goes.
    connect_interval_ns: f64,
    under_way_max: usize,
    /// Of its share, those before this one have been told to connect. up <= started <= share.count
    started: usize,
    up: usize,
    /// Since when somebody waits to come up: since the last one did, or the first began to.
    waits_since: Nanos,
    /// When each began to connect, then when it began to authenticate, then when its last heartbeat
    /// was sent.
    since: Vec<Nanos>,
    lines: Vec<Line>,
    /// Connections that await a pong.
    owed: usize,
    first_connect_at: Option<Nanos>,
    all_up_at: Nanos,
    heartbeats: Heartbeats,
    heartbeat_interval_ns: Nanos,
    /// `--heartbeat-interval`: whatever the gateway names.
    interval_is_ours: bool,
    /// Heartbeats' turns so far: number `n` is that of `n % share.count`.
    turns: u64,
    turns_since: Option<Nanos>,
    counting: bool,
    pongs: u64,
    sent: u64,
    received: u64,
    /// From the first byte of the authentication to its answer.
    pub(super) auth_latency: Latency,
    /// From the connect to the socket's being open.
    pub(super) connect_latency: Latency,
    /// From a heartbeat to its answer.
    pub(super) heartbeat_latency: Latency,
}

/// How a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// It is not authenticated.
    Down,
    /// It is.
    Up,
    /// And its heartbeat has not been answered.
    AwaitsPong,
}

/// Who is sent a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heartbeats {
    /// Each connection, once an interval.
    InTurn,
    /// Each connection from this one on, once, as fast as they are answered.
    Sweep { next: usize },
    /// Nobody.
    Paused,
}

impl Sessions {
    /// Plans a share of the connections. Raw ones are up as soon as they are open.
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
            under_way_max: (UNDER_WAY_MAX / share.workers).max(UNDER_WAY_MIN),
            started: 0,
            up: 0,
            waits_since: 0,
            since: vec![0; share.count],
            lines: vec![Line::Down; share.count],
            owed: 0,
            first_connect_at: None,
            all_up_at: 0,
            heartbeats: Heartbeats::InTurn,
            heartbeat_interval_ns: interval_ns
                .unwrap_or(u64::from(HEARTBEAT_INTERVAL_MS) * 1_000_000),
            interval_is_ours: interval_ns.is_some(),
            turns: 0,
            turns_since: None,
            counting: false,
            pongs: 0,
            sent: 0,
            received: 0,
            auth_latency: Latency::counting(),
            connect_latency: Latency::counting(),
            heartbeat_latency: Latency::new(),
        }
    }

    /// Has everybody arrive evenly within this long.
    pub(super) fn arriving_within(mut self, arrive: Duration) -> Self {
        self.connect_interval_ns = arrive.as_secs_f64() * 1e9 / self.share.count as f64;
        self
    }

    /// Whether all are up.
    pub(super) fn all_up(&self) -> bool {
        self.up == self.share.count
    }

    /// Heartbeats answered since the counting began.
    pub(super) fn pongs(&self) -> u64 {
        self.pongs
    }

    /// Starts to count heartbeats, from zero.
    pub(super) fn count_pongs_from_now(&mut self) {
        (self.counting, self.pongs) = (true, 0);
        self.heartbeat_latency.count_from_now();
    }

    /// Stops to count heartbeats.
    pub(super) fn stop_counting_pongs(&mut self) {
        self.counting = false;
        self.heartbeat_latency.stop_counting();
    }

    /// Sends no heartbeat any more.
    pub(super) fn pause_heartbeats(&mut self) {
        self.heartbeats = Heartbeats::Paused;
    }

    /// Sends one on each connection, once.
    pub(super) fn sweep(&mut self) {
        self.heartbeats = Heartbeats::Sweep { next: 0 };
    }

    /// Whether every connection has had its heartbeat of a sweep, and answered it.
    pub(super) fn swept(&self) -> bool {
        self.heartbeats == Heartbeats::Sweep { next: self.share.count } && self.pongs_are_in()
    }

    /// How many are up.
    pub(super) fn up(&self) -> usize {
        self.up
    }

    /// Since when somebody waits to come up, with nobody coming up; `None`: nobody waits.
    pub(super) fn waits_since(&self) -> Option<Nanos> {
        (self.started > self.up).then_some(self.waits_since)
    }

    /// Whether every heartbeat has been answered.
    pub(super) fn pongs_are_in(&self) -> bool {
        self.owed == 0
    }

    /// How far it is.
    pub(super) fn pulse(&self) -> Pulse {
        Pulse { connections: self.up as u64, sent: self.sent, received: self.received }
    }

    /// A second is over. What it shows: authentications at first, then heartbeats.
    pub(super) fn flush(&mut self, live: Option<&Live>) {
        self.auth_latency.flush(live);
        self.connect_latency.flush(None);
        self.heartbeat_latency.flush(live);
    }

    /// Takes another worker's findings in.
    pub(super) fn merge(&mut self, other: Self) {
        self.up += other.up;
        self.pongs += other.pongs;
        self.first_connect_at = self.first_connect_at.min(other.first_connect_at);
        self.all_up_at = self.all_up_at.max(other.all_up_at);
        self.auth_latency.merge(other.auth_latency);
        self.connect_latency.merge(other.connect_latency);
        self.heartbeat_latency.merge(other.heartbeat_latency);
    }

    /// Connections brought up a second, over the whole ramp.
    pub(super) fn connects_per_second(&self) -> f64 {
        let began_at = self.first_connect_at.unwrap_or_default();
        self.up as f64 * 1e9 / (self.all_up_at.saturating_sub(began_at).max(1)) as f64
    }

    /// Opens what is due and sends the heartbeats that are; says when more will be.
    pub(super) fn tick(
        &mut self,
        sockets: &mut Sockets,
        now: Nanos,
    ) -> anyhow::Result<Option<Nanos>> {
        let began_at = *self.first_connect_at.get_or_insert(now);
        let mut next = None;
        while self.started < self.share.count && self.started - self.up < self.under_way_max {
            // The workers' connects lie between each other.
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
                self.waits_since = now;
            }
            self.started += 1;
        }
        let heartbeat_at = match self.heartbeats {
            Heartbeats::InTurn => self.heartbeat(sockets, now)?,
            Heartbeats::Sweep { next } => self.sweep_from(next, sockets, now),
            Heartbeats::Paused => None,
        };
        Ok(match (next, heartbeat_at) {
            (Some(next), Some(heartbeat_at)) => Some(next.min(heartbeat_at)),
            (next, heartbeat_at) => next.or(heartbeat_at),
        })
    }

    /// Spreads the heartbeats evenly: each connection has its turn once an interval.
    fn heartbeat(&mut self, sockets: &mut Sockets, now: Nanos) -> anyhow::Result<Option<Nanos>> {
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
            match self.lines[number] {
                Line::Up => self.put_heartbeat(number, sockets, now),
                Line::AwaitsPong if now > self.since[number] + PONG_MAX_NS => {
                    bail!("connection {}: a heartbeat was not answered", self.share.first + number)
                }
                // One that is not authenticated yet will be, or fail, before a heartbeat matters; one
                // that the server has not come to yet stands for this one too.
                Line::Down | Line::AwaitsPong => {}
            }
        }
    }

    fn sweep_from(&mut self, from: usize, sockets: &mut Sockets, now: Nanos) -> Option<Nanos> {
        let under_way_max = (SWEEP_UNDER_WAY_MAX / self.share.workers).max(1);
        let mut next = from;
        while next < self.share.count && self.owed < under_way_max && self.lines[next] == Line::Up {
            self.put_heartbeat(next, sockets, now);
            next += 1;
        }
        self.heartbeats = Heartbeats::Sweep { next };
        None
    }

    fn put_heartbeat(&mut self, number: usize, sockets: &mut Sockets, now: Nanos) {
        sockets.send(self.share.first + number, |out| {
            put_heartbeat(out);
            (self.lines[number], self.since[number]) = (Line::AwaitsPong, now);
            self.owed += 1;
            self.sent += 1;
        });
    }

    /// The connection is open: authenticates it.
    pub(super) fn opened(&mut self, slot: usize, out: &mut Vec<u8>, now: Nanos) {
        let since = &mut self.since[slot - self.share.first];
        self.connect_latency.record(now.saturating_sub(*since));
        *since = now;
        if self.raw {
            self.is_up(now);
        } else {
            self.credentials.put_authenticate(slot, out);
            self.sent += 1;
        }
    }

    /// Takes an answer; says whether it belonged to the session.
    ///
    /// # Errors
    /// It is a failure, or out of place.
    #[inline]
    pub(super) fn answered(
        &mut self,
        slot: usize,
        answer: &Response<'_>,
        now: Nanos,
    ) -> anyhow::Result<bool> {
        let number = slot - self.share.first;
        match read_answer(slot, answer)? {
            SessionAnswer::NotMine => return Ok(false),
            SessionAnswer::Pong => {
                if self.lines[number] != Line::AwaitsPong {
                    bail!("connection {slot}: a heartbeat was answered that was never sent");
                }
                self.lines[number] = Line::Up;
                self.owed -= 1;
                self.pongs += u64::from(self.counting);
                self.heartbeat_latency.record(now.saturating_sub(self.since[number]));
            }
            SessionAnswer::Authenticated { heartbeat_interval_ms } => {
                if self.lines[number] != Line::Down {
                    bail!("connection {slot}: its authentication was answered twice");
                }
                self.lines[number] = Line::Up;
                self.auth_latency.record(now.saturating_sub(self.since[number]));
                if heartbeat_interval_ms > 0 && !self.interval_is_ours {
                    self.heartbeat_interval_ns = u64::from(heartbeat_interval_ms) * 1_000_000;
                }
                self.is_up(now);
            }
        }
        self.received += 1;
        Ok(true)
    }

    /// A connection that is lost is an error: nobody asked for it.
    pub(super) fn closed(&self, slot: usize, cause: &CloseCause) -> anyhow::Error {
        anyhow!("connection {slot}, one of {} up, was {cause}", self.up)
    }

    fn is_up(&mut self, now: Nanos) {
        self.up += 1;
        (self.all_up_at, self.waits_since) = (now, now);
        self.turns_since.get_or_insert(now);
    }
}
