//! A crowd of clients over several gateways, each of which keeps its place: it joins rooms, reads numbered pushes, and comes
//! back at the next gateway when its own is gone. At the end it says what every client saw.
//!
//! The payload of a push is text: its number, a space, and the time at which it was published, in microseconds since the
//! Unix epoch. Numbers of one room ascend. `benches/many-gateways` starts gateways, Redis, publishers and crowds.
//!
//! It writes `ready` when all clients are members, and a JSON report when its standard input ends. One process holds
//! as many clients as it may open descriptors.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use serde_json::json;
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::memberships::{Change, Delivery, Memberships};

/// The demo backend's request to join a room.
const JOIN: i32 = 10;

/// Numbers that are missing somewhere, of which the report names as many at most.
const MISSING_MAX: usize = 20_000;

/// Connections that are being opened at once, at most.
const OPENING_MAX: usize = 256;

/// A crowd of clients that keep their places.
#[derive(Debug, Parser)]
struct Args {
    /// Gateways' addresses for clients, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    gateways: Vec<SocketAddr>,
    /// The gateway with which all begin, counted from 0; without it they are spread.
    #[arg(long)]
    home: Option<usize>,
    /// How many clients.
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// The first client's user id.
    #[arg(long, default_value_t = 1)]
    first_user: u64,
    /// Rooms to join, separated by commas. Pushes of the first one are numbered.
    #[arg(long, value_delimiter = ',', default_value = "show")]
    rooms: Vec<String>,
    /// A client reconnects within this time, at random, in milliseconds.
    #[arg(long, default_value_t = 500)]
    spread_ms: u64,
}

#[derive(Debug, Default)]
struct Seen {
    /// The last number; 0: none.
    last: u64,
    /// It was told of a gap since.
    is_told: bool,
}

struct One {
    user_id: u64,
    gateway: usize,
    stream: Option<TcpStream>,
    is_connected: bool,
    client: Client,
    memberships: Memberships,
    seen: Seen,
    /// Rooms that it still has to join.
    to_join: usize,
    /// When its last connection was lost.
    lost_at: Option<Instant>,
}

/// What all clients saw.
struct Report {
    pushes: u64,
    repeated: u64,
    out_of_order: u64,
    /// Numbers that clients did not see, and how many did not.
    missing: BTreeMap<u64, u64>,
    missing_untold: u64,
    gaps_told: u64,
    complete: u64,
    refused: u64,
    lost: u64,
    came_back: u64,
    failed_attempts: u64,
    latency_us: Histogram<u64>,
    return_ms: Histogram<u64>,
    first_number: u64,
    last_number: u64,
}

struct Crowd {
    args: Args,
    poll: Poll,
    all: Vec<One>,
    /// When to connect which client.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    opening: usize,
    joined: usize,
    report: Report,
    buffer: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let poll = Poll::new().context("no epoll")?;
    let waker = Waker::new(poll.registry(), Token(usize::MAX)).context("no waker")?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    std::thread::spawn(move || {
        // Its end is the signal.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        over.store(true, Ordering::Release);
        drop(waker.wake());
    });
    let mut crowd = Crowd::new(args, poll)?;
    crowd.run(&is_over)?;
    writeln!(io::stdout(), "{}", crowd.summary())?;
    Ok(())
}

fn unix_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl Crowd {
    fn new(args: Args, poll: Poll) -> Result<Self> {
        let now = Instant::now();
        let one = |index: usize| One {
            user_id: args.first_user + index as u64,
            gateway: args.home.unwrap_or(index) % args.gateways.len(),
            stream: None,
            is_connected: false,
            client: Client::new(now),
            memberships: Memberships::default(),
            seen: Seen::default(),
            to_join: args.rooms.len(),
            lost_at: None,
        };
        let all = (0..args.clients).map(one).collect();
        let due = (0..args.clients).map(|index| Reverse((now, index))).collect();
        let report = Report {
            pushes: 0,
            repeated: 0,
            out_of_order: 0,
            missing: BTreeMap::new(),
            missing_untold: 0,
            gaps_told: 0,
            complete: 0,
            refused: 0,
            lost: 0,
            came_back: 0,
            failed_attempts: 0,
            latency_us: Histogram::new(3)?,
            return_ms: Histogram::new(3)?,
            first_number: 0,
            last_number: 0,
        };
        let (opening, joined, buffer) = (0, 0, vec![0; 64 * 1024]);
        Ok(Self { args, poll, all, due, opening, joined, report, buffer })
    }

    fn run(&mut self, is_over: &AtomicBool) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut heartbeats = Instant::now() + Duration::from_secs(1);
        while !is_over.load(Ordering::Acquire) {
            self.connect_due();
            self.poll.poll(&mut events, Some(Duration::from_millis(20)))?;
            let slots: Vec<_> = events
                .iter()
                .map(|event| event.token().0)
                .filter(|&slot| slot < self.all.len())
                .collect();
            for index in slots {
                self.serve(index);
            }
            let now = Instant::now();
            if heartbeats <= now {
                heartbeats = now + Duration::from_secs(1);
                for index in 0..self.all.len() {
                    if self.all[index].is_connected {
                        self.all[index].client.handle_timeout(now);
                        self.flush(index);
                    }
                }
            }
        }
        Ok(())
    }

    fn connect_due(&mut self) {
        let now = Instant::now();
        while self.opening < OPENING_MAX
            && let Some(&Reverse((at, index))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            let one = &mut self.all[index];
            let address = self.args.gateways[one.gateway];
            let interest = Interest::READABLE | Interest::WRITABLE;
            let opened = TcpStream::connect(address).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(index), interest)?;
                Ok(stream)
            });
            self.opening += 1;
            match opened {
                Ok(stream) => {
                    one.stream = Some(stream);
                    one.client = Client::new(now);
                    let token = format!("token-{}", one.user_id);
                    if one.lost_at.is_some() {
                        let resume = one.memberships.resume(16 * 1024);
                        one.client.resume(now, one.user_id, &token, &resume);
                    } else {
                        one.client.authenticate(now, one.user_id, &token);
                    }
                }
                Err(_) => self.lose(index),
            }
        }
    }

    /// Writes and reads what can be.
    fn serve(&mut self, index: usize) {
        self.flush(index);
        loop {
            let Some(stream) = &mut self.all[index].stream else { return };
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.lose(index),
                Ok(count) => {
                    let mut events = Vec::new();
                    let bytes = &self.buffer[..count];
                    let read = self.all[index].client.receive(bytes, |event| events.push(event));
                    events.into_iter().for_each(|event| self.on_event(index, event));
                    if read.is_err() {
                        return self.lose(index);
                    }
                    if count < self.buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.lose(index),
            }
        }
        self.flush(index);
    }

    fn flush(&mut self, index: usize) {
        let one = &mut self.all[index];
        let Some(stream) = &mut one.stream else { return };
        while !one.client.outgoing().is_empty() {
            match stream.write(one.client.outgoing()) {
                Ok(count) => drop(one.client.outgoing().split_to(count)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    return;
                }
                Err(_) => return self.lose(index),
            }
        }
    }

    /// The connection is gone: it reconnects to the next gateway.
    fn lose(&mut self, index: usize) {
        let one = &mut self.all[index];
        one.stream = None;
        if std::mem::take(&mut one.is_connected) {
            self.report.lost += 1;
            one.memberships.disconnected();
            one.lost_at = Some(Instant::now());
        } else {
            self.report.failed_attempts += 1;
            self.opening -= 1;
        }
        one.gateway = (one.gateway + 1) % self.args.gateways.len();
        let wait = Duration::from_millis(fastrand::u64(0..=self.args.spread_ms));
        self.due.push(Reverse((Instant::now() + wait, index)));
    }

    fn on_event(&mut self, index: usize, event: Event) {
        let (one, report) = (&mut self.all[index], &mut self.report);
        match event {
            Event::Authenticated { session, .. } => {
                one.is_connected = true;
                self.opening -= 1;
                let rooms = session.rooms.len() as u64;
                let changes = one.memberships.opened(&session);
                if let Some(lost_at) = one.lost_at {
                    report.came_back += 1;
                    report.complete += rooms - (changes.len() as u64).min(rooms);
                    let ms = u64::try_from(lost_at.elapsed().as_millis()).unwrap_or(u64::MAX);
                    // The histogram resizes automatically.
                    let _ = report.return_ms.record(ms);
                } else {
                    for room in &self.args.rooms {
                        one.client.request(Instant::now(), JOIN, &join(room));
                    }
                }
                changes.iter().for_each(|change| report.told(&mut one.seen, change));
            }
            Event::Joined(room) => {
                if let Some(change) = one.memberships.joined(&room) {
                    report.told(&mut one.seen, &change);
                }
            }
            Event::Answer { kind: JOIN, .. } => {
                one.to_join -= 1;
                if one.to_join == 0 {
                    self.joined += 1;
                    if self.joined == self.all.len() {
                        println!("ready");
                    }
                }
            }
            Event::Push { room, offset, biz_data, .. } => {
                let is_numbered = match one.memberships.pushed(room, offset) {
                    Delivery::New { room } | Delivery::AfterGap { room, .. } => {
                        room == self.args.rooms[0]
                    }
                    Delivery::Repeat { .. } => {
                        report.repeated += 1;
                        false
                    }
                    Delivery::ToUser | Delivery::UnknownRoom => false,
                };
                if is_numbered {
                    report.push(&mut one.seen, &biz_data);
                }
            }
            Event::Left { room } => one.memberships.left(&room),
            Event::Failed { .. } => report.refused += 1,
            Event::Goodbye(_) | Event::Pong { .. } | Event::Answer { .. } => {}
        }
    }

    fn summary(&self) -> serde_json::Value {
        let report = &self.report;
        let connected = self.all.iter().filter(|one| one.is_connected).count();
        let at_end = self.all.iter().filter(|one| one.seen.last == report.last_number).count();
        let quantiles = |histogram: &Histogram<u64>| {
            json!({
                "count": histogram.len(),
                "p50": histogram.value_at_quantile(0.5),
                "p99": histogram.value_at_quantile(0.99),
                "p999": histogram.value_at_quantile(0.999),
                "max": histogram.max(),
            })
        };
        json!({
            "clients": self.all.len(), "connected": connected, "at_last_number": at_end,
            "first_number": report.first_number, "last_number": report.last_number,
            "pushes": report.pushes, "repeated": report.repeated,
            "out_of_order": report.out_of_order,
            "missing": report.missing, "missing_untold": report.missing_untold,
            "gaps_told": report.gaps_told, "rooms_complete": report.complete,
            "refused": report.refused, "connections_lost": report.lost,
            "came_back": report.came_back, "failed_attempts": report.failed_attempts,
            "latency_us": quantiles(&report.latency_us), "return_ms": quantiles(&report.return_ms),
        })
    }
}

impl Report {
    fn told(&mut self, seen: &mut Seen, change: &Change) {
        match change {
            Change::Gap { .. } => {
                self.gaps_told += 1;
                seen.is_told = true;
            }
            Change::Refused { .. } => self.refused += 1,
            Change::NotKept { .. } => {}
        }
    }

    fn push(&mut self, seen: &mut Seen, biz_data: &[u8]) {
        let text = std::str::from_utf8(biz_data).unwrap_or_default();
        let mut words = text.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
        let (number, sent_us) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        self.pushes += 1;
        let _ = self.latency_us.record(unix_us().saturating_sub(sent_us));
        self.first_number = if self.first_number == 0 { number } else { self.first_number };
        self.last_number = self.last_number.max(number);
        if number <= seen.last {
            self.out_of_order += 1;
            return;
        }
        if seen.last > 0 {
            for missing in seen.last + 1..number {
                if self.missing.len() < MISSING_MAX {
                    *self.missing.entry(missing).or_default() += 1;
                }
                self.missing_untold += u64::from(!seen.is_told);
            }
        }
        (seen.last, seen.is_told) = (number, false);
    }
}

/// The demo backend's `JoinRoom`: the room's name is field 1.
fn join(room: &str) -> Vec<u8> {
    let length = u8::try_from(room.len()).expect("a short name");
    [&[0x0a, length], room.as_bytes()].concat()
}
