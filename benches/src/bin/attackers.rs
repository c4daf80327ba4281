//! Clients that misbehave, of several kinds, from many source addresses. Each connects again when its connection has ended, as
//! often as `--tries-per-second` allows. `benches/limits` starts it beside phones that behave.
//!
//! | kind | what it does |
//! |---|---|
//! | `handshake` | begins a TLS handshake, and sends one byte of it a second |
//! | `frame` | begins a frame, and sends one byte of it a second |
//! | `garbage` | sends 256 random bytes |
//! | `churn` | connects, and closes at once |
//! | `login` | logs in with a token that is wrong, until it is closed |
//! | `deaf` | logs in, sends echoes of 4 KiB without end, and never reads |
//! | `member` | logs in, joins the room `show`, and never reads again |
//!
//! Each line on its standard input is answered with a JSON report of what happened since the last one. The end of the input ends
//! the process.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use serde_json::{Value, json};
use tidegate_benches::clients::{Poller, Sources, asks, connect};
use tidegate_protocol::Code;
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::message::AUTHENTICATE;

/// The longest sleep: how late a line of the standard input is read.
const SLEEP_MAX: Duration = Duration::from_millis(5);
/// The demo backend's echo, and its request to join a room.
const ECHO: i32 = 1;
const JOIN: i32 = 10;
/// The demo backend's `JoinRoom` of the room `show`.
const SHOW: &[u8] = b"\x0a\x04show";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Kind {
    Handshake,
    Frame,
    Garbage,
    Churn,
    Login,
    Deaf,
    Member,
}

/// Clients that misbehave.
#[derive(Debug, Parser)]
struct Args {
    /// The gateway's address for clients.
    #[arg(long)]
    connect: SocketAddr,
    /// The gateway's address for clients with TLS: for `handshake`.
    #[arg(long)]
    tls: Option<SocketAddr>,
    /// What they do; each kind has the same share of the connections and of the source addresses.
    #[arg(long, value_delimiter = ',', required = true)]
    kinds: Vec<Kind>,
    /// Connections at a time, of all kinds.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// The first attacker's user id.
    #[arg(long, default_value_t = 1_000_000_000)]
    first_user: u64,
    /// The first source address.
    #[arg(long, default_value = "127.66.0.1")]
    source: Ipv4Addr,
    /// Consecutive source addresses.
    #[arg(long, default_value_t = 100)]
    sources: u32,
    /// Connects a second of each kind, at most.
    #[arg(long, default_value_t = 1000.0)]
    tries_per_second: f64,
    /// SO_RCVBUF of `deaf` and `member`, in bytes; 0: the kernel's default.
    #[arg(long, default_value_t = 0)]
    receive_buffer_bytes: usize,
}

#[derive(Default)]
struct Attacker {
    socket: Option<OwnedFd>,
    client: Option<Client>,
    is_connected: bool,
    /// Bytes have come.
    is_answered: bool,
    /// Reads nothing more.
    is_deaf: bool,
    since: Option<Instant>,
    /// Bytes that were sent slowly.
    sent: usize,
}

/// What attackers of one kind have done since the last report.
#[derive(Debug, Default)]
struct Counts {
    tries: u64,
    connected: u64,
    logged_in: u64,
    failed_logins: u64,
    /// Connections that the gateway has closed without a byte.
    unanswered: u64,
    /// Connections that the gateway or the kernel has ended, and how long they lived in total.
    ended: u64,
    lived: Duration,
    goodbyes: BTreeMap<u32, u64>,
}

/// The attackers of one kind: the indices from `first` on.
struct Group {
    kind: Kind,
    /// Those without a connection.
    idle: VecDeque<usize>,
    /// When the next one may connect.
    next_try: Instant,
    counts: Counts,
}

struct Attackers {
    args: Args,
    poller: Poller,
    all: Vec<Attacker>,
    groups: Vec<Group>,
    buffer: Vec<u8>,
    /// The beginning of a TLS handshake.
    hello: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.tls.is_some() || !args.kinds.contains(&Kind::Handshake), "handshake needs --tls");
    Attackers::new(args)?.run(&asks())
}

impl Attackers {
    fn new(args: Args) -> Result<Self> {
        let (kinds, now) = (args.kinds.len(), Instant::now());
        let group = |(number, kind): (usize, &Kind)| Group {
            kind: *kind,
            idle: (number..args.connections).step_by(kinds).collect(),
            next_try: now,
            counts: Counts::default(),
        };
        // A record of a handshake with 512 bytes: a ClientHello of 508.
        let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        hello.resize_with(517, || fastrand::u8(..));
        Ok(Self {
            poller: Poller::new()?,
            all: (0..args.connections).map(|_| Attacker::default()).collect(),
            groups: args.kinds.iter().enumerate().map(group).collect(),
            buffer: vec![0; 64 * 1024],
            hello,
            args,
        })
    }

    fn run(&mut self, asked: &Receiver<String>) -> Result<()> {
        let mut second = Instant::now() + Duration::from_secs(1);
        loop {
            match asked.try_recv() {
                Ok(_) => println!("{}", self.report()),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            for number in 0..self.groups.len() {
                self.connect_due(number);
            }
            for index in self.poller.wait(SLEEP_MAX)? {
                self.serve(index);
            }
            if second <= Instant::now() {
                second += Duration::from_secs(1);
                (0..self.all.len()).for_each(|index| self.each_second(index));
            }
        }
    }

    fn kind(&self, index: usize) -> Kind {
        self.groups[index % self.groups.len()].kind
    }

    fn counts(&mut self, index: usize) -> &mut Counts {
        let count = self.groups.len();
        &mut self.groups[index % count].counts
    }

    fn report(&mut self) -> Value {
        let kinds = self.groups.len();
        let all = &self.all;
        let of_group = |(number, group): (usize, &mut Group)| {
            let counts = std::mem::take(&mut group.counts);
            let mine = (number..all.len()).step_by(kinds);
            let open = mine.filter(|index| all[*index].is_connected).count();
            let lived_ms = counts.lived.as_secs_f64() * 1e3 / counts.ended.max(1) as f64;
            let name = group.kind.to_possible_value().map(|value| value.get_name().to_owned());
            json!({
                "kind": name, "open": open, "tries": counts.tries, "connected": counts.connected,
                "logged_in": counts.logged_in, "failed_logins": counts.failed_logins,
                "ended": counts.ended, "unanswered": counts.unanswered, "lived_ms_mean": lived_ms, "goodbyes": counts.goodbyes,
            })
        };
        self.groups.iter_mut().enumerate().map(of_group).collect()
    }

    /// The source of an attacker. Those of one kind have addresses next to each other, which no other kind has.
    fn source(&self, index: usize) -> std::net::IpAddr {
        let kinds = self.groups.len();
        let each = (self.args.sources as usize / kinds).max(1);
        let sources = Sources { first: self.args.source, count: self.args.sources };
        sources.of((index % kinds) * each + (index / kinds) % each)
    }

    fn connect_due(&mut self, number: usize) {
        let now = Instant::now();
        let gap = Duration::from_secs_f64(1.0 / self.args.tries_per_second);
        // One that could not keep its rate does not catch up on more than this.
        let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        self.groups[number].next_try = self.groups[number].next_try.max(earliest);
        while self.groups[number].next_try <= now
            && let Some(index) = self.groups[number].idle.pop_front()
        {
            self.groups[number].next_try += gap;
            self.groups[number].counts.tries += 1;
            self.all[index] = Attacker { since: Some(now), ..Attacker::default() };
            let to = match self.kind(index) {
                Kind::Handshake => self.args.tls.unwrap_or(self.args.connect),
                _ => self.args.connect,
            };
            let opened = connect(self.source(index), to);
            match opened.and_then(|socket| self.poller.add(&socket, index).map(|()| socket)) {
                Ok(socket) => self.all[index].socket = Some(socket),
                Err(_) => self.end(index),
            }
        }
    }

    /// The connection is over: another one may take its place.
    fn end(&mut self, index: usize) {
        let attacker = std::mem::take(&mut self.all[index]);
        let counts = self.counts(index);
        counts.ended += 1;
        counts.lived += attacker.since.map_or(Duration::ZERO, |since| since.elapsed());
        let count = self.groups.len();
        self.groups[index % count].idle.push_back(index);
    }

    fn serve(&mut self, index: usize) {
        if self.all[index].socket.is_none() {
            return;
        }
        if !self.all[index].is_connected && !self.connected(index) {
            return;
        }
        if self.all[index].is_deaf {
            self.flush(index);
            return;
        }
        loop {
            let Some(socket) = &self.all[index].socket else { return };
            match recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Err(Errno::AGAIN | Errno::NOTCONN) => return self.flush(index),
                Err(Errno::INTR) => {}
                Ok((0, _)) | Err(_) => {
                    let is_answered = self.all[index].is_answered;
                    self.counts(index).unanswered += u64::from(!is_answered);
                    return self.end(index);
                }
                Ok((count, _)) => {
                    self.all[index].is_answered = true;
                    self.received(index, count);
                }
            }
            if self.all[index].is_deaf {
                return;
            }
        }
    }

    /// The socket has changed for the first time. Returns whether it is still there.
    fn connected(&mut self, index: usize) -> bool {
        let (kind, now) = (self.kind(index), Instant::now());
        let Some(socket) = &self.all[index].socket else { return false };
        let error = sockopt::socket_error(socket).unwrap_or_else(Err).err();
        let is_reset = error == Some(Errno::CONNRESET);
        if error.is_none() || is_reset {
            self.counts(index).connected += 1;
        }
        if error.is_some() {
            self.counts(index).unanswered += u64::from(is_reset);
            self.end(index);
            return false;
        }
        let user_id = self.args.first_user + index as u64;
        let buffer_bytes = self.args.receive_buffer_bytes;
        let attacker = &mut self.all[index];
        attacker.is_connected = true;
        match kind {
            Kind::Churn => {
                self.end(index);
                return false;
            }
            Kind::Garbage => {
                let garbage: [u8; 256] = std::array::from_fn(|_| fastrand::u8(..));
                // Of an error, the next read tells.
                let _ = attacker
                    .socket
                    .as_ref()
                    .map(|socket| send(socket, &garbage, SendFlags::NOSIGNAL));
            }
            Kind::Handshake | Kind::Frame => {}
            Kind::Login | Kind::Deaf | Kind::Member => {
                if buffer_bytes > 0
                    && let Some(socket) = &attacker.socket
                {
                    let _ = sockopt::set_socket_recv_buffer_size(socket, buffer_bytes);
                }
                let mut client = Client::new(now);
                let token = if kind == Kind::Login {
                    "wrong".to_owned()
                } else {
                    format!("token-{user_id}")
                };
                client.authenticate(now, user_id, &token);
                attacker.client = Some(client);
                self.flush(index);
            }
        }
        true
    }

    fn received(&mut self, index: usize, count: usize) {
        let now = Instant::now();
        let kind = self.kind(index);
        let mut client = self.all[index].client.take().unwrap_or_else(|| Client::new(now));
        let mut events = Vec::new();
        // What can't be read is an alert of TLS.
        let _ = client.receive(&self.buffer[..count], |event| events.push(event));
        for event in events {
            let counts = self.counts(index);
            match event {
                Event::Authenticated { .. } => {
                    counts.logged_in += 1;
                    if kind == Kind::Member {
                        client.request(now, JOIN, SHOW);
                    } else {
                        self.all[index].is_deaf = true;
                    }
                }
                Event::Answer { kind: JOIN, .. } => self.all[index].is_deaf = true,
                Event::Failed { kind: AUTHENTICATE, .. } => {
                    counts.failed_logins += 1;
                    client.authenticate(now, 7, "wrong");
                }
                Event::Goodbye(failure) => {
                    *counts.goodbyes.entry(failure.code.map_or(0, Code::number)).or_default() += 1;
                }
                _ => {}
            }
        }
        self.all[index].client = Some(client);
        self.flush(index);
    }

    fn flush(&mut self, index: usize) {
        let Attacker { socket: Some(socket), client: Some(client), .. } = &mut self.all[index]
        else {
            return;
        };
        while !client.outgoing().is_empty() {
            match send(&*socket, client.outgoing(), SendFlags::NOSIGNAL) {
                Ok(count) => drop(client.outgoing().split_to(count)),
                Err(Errno::AGAIN | Errno::NOTCONN) => return,
                Err(_) => return self.end(index),
            }
        }
    }

    /// What an attacker does each second.
    fn each_second(&mut self, index: usize) {
        if !self.all[index].is_connected {
            return;
        }
        let (kind, now) = (self.kind(index), Instant::now());
        let attacker = &mut self.all[index];
        let at = attacker.sent;
        let byte = match kind {
            Kind::Handshake => self.hello[at % self.hello.len()],
            // The length, 128 as a varint, comes first.
            Kind::Frame => *[0x80, 0x01, 0x08].get(at).unwrap_or(&0x01),
            Kind::Deaf if attacker.is_deaf => {
                if let Some(client) = &mut attacker.client
                    && client.outgoing().is_empty()
                {
                    for _ in 0..16 {
                        client.request(now, ECHO, &[7; 4096]);
                    }
                }
                return self.flush(index);
            }
            Kind::Member => {
                if let Some(client) = &mut attacker.client {
                    client.handle_timeout(now);
                }
                return self.flush(index);
            }
            _ => return,
        };
        let Some(socket) = &attacker.socket else { return };
        match send(socket, &[byte], SendFlags::NOSIGNAL) {
            Ok(_) => attacker.sent += 1,
            Err(Errno::AGAIN) => {}
            Err(_) => self.end(index),
        }
    }
}
