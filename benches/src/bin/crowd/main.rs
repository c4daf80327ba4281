//! A crowd of clients over several gateways. Each client joins rooms and checks the pushes that it receives. When its gateway
//! is gone, it resumes its rooms at the next one.
//!
//! The payload of a push is text: its number, a space, and the time at which it was published, in microseconds since the
//! Unix epoch. Numbers of one room ascend. A push to one user has that user's own numbers from 1 on, and a third word: the
//! user's id. `benches/many-gateways` starts gateways, Redis, publishers and crowds.
//!
//! It writes `ready` when all clients are members of their rooms. Each line on its standard input is answered with a JSON
//! report of what happened since the last one, and so is the end of the input, which ends the process. One process holds as many
//! clients as it may open descriptors.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use tidegate_benches::clients::connect;
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::memberships::{Delivery, Memberships};

mod report;

use report::{Received, Report};

/// The demo backend's request to join a room.
const JOIN: i32 = 10;

/// Connections that are being opened at once, at most.
const OPENING_MAX: usize = 256;

/// A crowd of clients that check what they receive.
#[derive(Debug, Parser)]
struct Args {
    /// Gateways' addresses for clients, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    gateways: Vec<SocketAddr>,
    /// The gateway to which all connect first, counted from 0; without it they are spread.
    #[arg(long)]
    home: Option<usize>,
    /// The address that the clients connect from. The kernel has some 28,000 ports for each.
    #[arg(long, default_value = "127.0.0.1")]
    source: IpAddr,
    /// How many clients.
    #[arg(long, default_value_t = 1000)]
    clients: usize,
    /// The first client's user id.
    #[arg(long, default_value_t = 1)]
    first_user: u64,
    /// Rooms to join, separated by commas; empty: none. Pushes of the first one are numbered.
    #[arg(long, value_delimiter = ',', default_value = "show")]
    rooms: Vec<String>,
    /// A client that has lost its connection connects again after a random time up to this one, in milliseconds.
    #[arg(long, default_value_t = 500)]
    spread_ms: u64,
}

struct One {
    user_id: u64,
    gateway: usize,
    stream: Option<TcpStream>,
    is_connected: bool,
    client: Client,
    memberships: Memberships,
    received: Received,
    /// Rooms that it still has to join.
    to_join: usize,
    /// When its last connection was lost.
    lost_at: Option<Instant>,
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
    let (asks, asked) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = io::stdin().lock().lines().map_while(Result::ok);
        while lines.next().is_some() && asks.send(()).is_ok() {
            drop(waker.wake());
        }
        drop(asks);
        drop(waker.wake());
    });
    Crowd::new(args, poll)?.run(&asked)
}

impl Crowd {
    fn new(mut args: Args, poll: Poll) -> Result<Self> {
        args.rooms.retain(|room| !room.is_empty());
        let now = Instant::now();
        let one = |index: usize| One {
            user_id: args.first_user + index as u64,
            gateway: args.home.unwrap_or(index) % args.gateways.len(),
            stream: None,
            is_connected: false,
            client: Client::new(now),
            memberships: Memberships::default(),
            received: Received::default(),
            to_join: args.rooms.len(),
            lost_at: None,
        };
        let all = (0..args.clients).map(one).collect();
        let due = (0..args.clients).map(|index| Reverse((now, index))).collect();
        let report = Report::new()?;
        let (opening, joined, buffer) = (0, 0, vec![0; 64 * 1024]);
        Ok(Self { args, poll, all, due, opening, joined, report, buffer })
    }

    /// Serves all clients and answers each ask for a report, until nobody can ask any more.
    fn run(&mut self, asked: &Receiver<()>) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut heartbeats = Instant::now() + Duration::from_secs(1);
        loop {
            match asked.try_recv() {
                Ok(()) => self.write_report()?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return self.write_report(),
            }
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
            let socket = connect(self.args.source, address).map_err(io::Error::from);
            let opened = socket.and_then(|socket| {
                let mut stream = TcpStream::from_std(std::net::TcpStream::from(socket));
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

    /// Writes and reads until the socket would block.
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

    /// The connection is gone: the client connects to the next gateway.
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
                    // The histogram grows by itself.
                    let _ = report.return_ms.record(ms);
                } else {
                    for room in &self.args.rooms {
                        one.client.request(Instant::now(), JOIN, &join(room));
                    }
                }
                let is_ready = one.lost_at.is_none() && self.args.rooms.is_empty();
                changes.iter().for_each(|change| report.on_change(&mut one.received, change));
                if is_ready {
                    self.count_ready();
                }
            }
            Event::Joined(room) => {
                if let Some(change) = one.memberships.joined(&room) {
                    report.on_change(&mut one.received, &change);
                }
            }
            Event::Answer { kind: JOIN, .. } => {
                one.to_join -= 1;
                if one.to_join == 0 {
                    self.count_ready();
                }
            }
            Event::Push { room, offset, biz_data, .. } => {
                let is_numbered = match one.memberships.pushed(room, offset) {
                    Delivery::New { room } | Delivery::AfterGap { room, .. } => {
                        self.args.rooms.first().is_some_and(|first| room == first)
                    }
                    Delivery::Repeat { .. } => {
                        report.repeated += 1;
                        false
                    }
                    Delivery::ToUser => {
                        report.on_user_push(&mut one.received, one.user_id, &biz_data);
                        false
                    }
                    Delivery::UnknownRoom => false,
                };
                if is_numbered {
                    report.on_room_push(&mut one.received, &biz_data);
                }
            }
            Event::Left { room } => one.memberships.left(&room),
            Event::Failed { .. } => report.refused += 1,
            Event::Goodbye(_) | Event::Pong { .. } | Event::Answer { .. } => {}
        }
    }

    /// One more client is connected and in its rooms.
    fn count_ready(&mut self) {
        self.joined += 1;
        if self.joined == self.all.len() {
            println!("ready");
        }
    }

    /// Writes the report, and begins the next one.
    fn write_report(&mut self) -> Result<()> {
        let report = std::mem::replace(&mut self.report, Report::new()?);
        let connected = self.all.iter().filter(|one| one.is_connected).count();
        let is_at_end = |one: &&One| one.received.last == report.last_number;
        let at_end = self.all.iter().filter(is_at_end).count();
        writeln!(io::stdout(), "{}", report.to_json(self.all.len(), connected, at_end))?;
        Ok(())
    }
}

/// The demo backend's `JoinRoom`: the room's name is field 1.
fn join(room: &str) -> Vec<u8> {
    let length = u8::try_from(room.len()).expect("a short name");
    [&[0x0a, length], room.as_bytes()].concat()
}
