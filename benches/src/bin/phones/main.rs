//! Phones that behave: they log in, wait as long as the gateway asks before they come back, and send requests in an open loop.
//! Unlike `tide bench`, they count what is refused and go on.
//!
//! Requests are due at random times (exponential gaps, so a Poisson process), whatever the answers do, and each is sent by
//! the next phone. A latency counts from the time at which its request was due. Each answer has to be the bytes that were sent.
//!
//! It writes `ready` when all phones were in once. Each line on its standard input is answered with a JSON report of what
//! happened since the last one; `rate N` also sets the requests a second. The end of the input ends the process. One process
//! holds as many phones as it may open descriptors.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde_json::json;
use tidegate_benches::clients::{Poller, Sources, asks, connect};
use tidegate_protocol::client::{Client, Event};
use tidegate_protocol::message::AUTHENTICATE;

mod report;

use report::Report;

/// The longest sleep: how late a line of the standard input is read.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Requests sent before sockets are read again.
const SENT_MAX: usize = 256;
/// A phone whose connection was lost without a goodbye waits this long, and up to twice as long.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Phones that log in, send requests in an open loop, and come back when they were turned away.
#[derive(Debug, Parser)]
struct Args {
    /// The gateway's address for clients.
    #[arg(long)]
    connect: SocketAddr,
    /// How many phones.
    #[arg(long, default_value_t = 1000)]
    phones: usize,
    /// The first phone's user id.
    #[arg(long, default_value_t = 1)]
    first_user: u64,
    /// A file with a line for each phone: its token. Without it the tokens fit a gateway with --auth demo.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// The first source address.
    #[arg(long, default_value = "127.0.0.1")]
    source: Ipv4Addr,
    /// Consecutive source addresses, used in rotation. The kernel has some 28,000 ports for each.
    #[arg(long, default_value_t = 1)]
    sources: u32,
    /// All phones make their first try within this time, in milliseconds.
    #[arg(long, default_value_t = 0)]
    arrive_ms: u32,
    /// Phones that connect or log in at once, at most.
    #[arg(long, default_value_t = 256)]
    opening_max: usize,
    /// Requests a second, all phones together.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// The requests' type; the backend must answer with the same bytes.
    #[arg(long = "type", default_value_t = 1)]
    kind: i32,
    /// Bytes of a request: at least 16.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
}

struct Phone {
    socket: Option<OwnedFd>,
    client: Client,
    is_in: bool,
    has_been_in: bool,
    tries: u32,
    first_try: Option<Instant>,
    /// Requests without an answer, in the order of their sequences: and when each was due.
    pending: VecDeque<(u64, Instant)>,
    /// How long a goodbye has asked it to wait.
    retry_after: Option<Duration>,
}

struct Phones {
    args: Args,
    /// Of each phone; empty: demo tokens.
    tokens: Vec<String>,
    poller: Poller,
    all: Vec<Phone>,
    /// When to connect which phone.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Phones that connect or log in. opening <= opening_max
    opening: usize,
    came_in: usize,
    next_sender: usize,
    rate: f64,
    next_request: Instant,
    in_flight: usize,
    report: Report,
    buffer: Vec<u8>,
}

fn main() -> Result<()> {
    Phones::new(Args::parse())?.run(&asks())
}

impl Phones {
    fn new(args: Args) -> Result<Self> {
        let now = Instant::now();
        let phone = |_| Phone {
            socket: None,
            client: Client::new(now),
            is_in: false,
            has_been_in: false,
            tries: 0,
            first_try: None,
            pending: VecDeque::new(),
            retry_after: None,
        };
        let arrival = |index| {
            let share = index as f64 / args.phones as f64;
            now + Duration::from_millis(args.arrive_ms.into()).mul_f64(share)
        };
        let tokens = match &args.tokens {
            Some(file) => std::fs::read_to_string(file)?.lines().map(str::to_owned).collect(),
            None => Vec::new(),
        };
        Ok(Self {
            tokens,
            poller: Poller::new()?,
            all: (0..args.phones).map(phone).collect(),
            due: (0..args.phones).map(|index| Reverse((arrival(index), index))).collect(),
            opening: 0,
            came_in: 0,
            next_sender: 0,
            rate: args.rate,
            next_request: now,
            in_flight: 0,
            report: Report::new()?,
            buffer: vec![0; 64 * 1024],
            args,
        })
    }

    /// Serves all phones and answers each line, until there are no more lines.
    fn run(&mut self, asked: &Receiver<String>) -> Result<()> {
        let mut heartbeats = Instant::now() + Duration::from_secs(1);
        loop {
            match asked.try_recv() {
                Ok(line) => self.answer(&line)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
            self.connect_due();
            self.send_due();
            let timeout = self.timeout();
            for index in self.poller.wait(timeout)? {
                self.serve(index)?;
            }
            let now = Instant::now();
            if heartbeats <= now {
                heartbeats = now + Duration::from_secs(1);
                for index in 0..self.all.len() {
                    if self.all[index].is_in {
                        self.all[index].client.handle_timeout(now);
                        self.flush(index);
                    }
                }
            }
        }
    }

    fn timeout(&self) -> Duration {
        let mut until = Instant::now() + SLEEP_MAX;
        if self.rate > 0.0 {
            until = until.min(self.next_request);
        }
        if self.opening < self.args.opening_max
            && let Some(Reverse((at, _))) = self.due.peek()
        {
            until = until.min(*at);
        }
        until.saturating_duration_since(Instant::now())
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        let report = std::mem::replace(&mut self.report, Report::new()?);
        let mut json = report.to_json();
        let tries = self.all.iter().map(|phone| phone.tries);
        json["phones"] = json!(self.all.len());
        json["in"] = json!(self.all.iter().filter(|phone| phone.is_in).count());
        json["in_flight"] = json!(self.in_flight);
        json["tries"] =
            json!({ "sum": tries.clone().map(u64::from).sum::<u64>(), "max": tries.max() });
        println!("{json}");
        if let Some(rate) = line.strip_prefix("rate ") {
            self.rate = rate.trim().parse()?;
            self.next_request = Instant::now();
        }
        Ok(())
    }

    fn connect_due(&mut self) {
        let now = Instant::now();
        let sources = Sources { first: self.args.source, count: self.args.sources };
        while self.opening < self.args.opening_max
            && let Some(&Reverse((at, index))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            self.opening += 1;
            let phone = &mut self.all[index];
            phone.tries += 1;
            phone.first_try.get_or_insert(now);
            phone.client = Client::new(now);
            let user_id = self.args.first_user + index as u64;
            let demo = || format!("token-{user_id}");
            let token = self.tokens.get(index).cloned().unwrap_or_else(demo);
            phone.client.authenticate(now, user_id, &token);
            let opened = connect(sources.of(index), self.args.connect);
            match opened.and_then(|socket| self.poller.add(&socket, index).map(|()| socket)) {
                Ok(socket) => phone.socket = Some(socket),
                Err(_) => self.lose(index),
            }
        }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        for _ in 0..SENT_MAX {
            if self.rate <= 0.0 || self.next_request > now {
                return;
            }
            let due = self.next_request;
            self.next_request += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / self.rate);
            let Some(index) = self.next_phone() else {
                self.report.unsent += 1;
                continue;
            };
            let phone = &mut self.all[index];
            let biz_data = payload(self.args.first_user + index as u64, self.args.bytes);
            let sequence = phone.client.request(now, self.args.kind, &biz_data);
            phone.pending.push_back((sequence, due));
            self.in_flight += 1;
            self.report.sent(now - due);
            self.flush(index);
        }
    }

    /// The next phone that is in.
    fn next_phone(&mut self) -> Option<usize> {
        let count = self.all.len();
        let from = self.next_sender;
        let found =
            (from..from + count).map(|index| index % count).find(|&index| self.all[index].is_in)?;
        self.next_sender = (found + 1) % count;
        Some(found)
    }

    /// Writes and reads until the socket would block.
    fn serve(&mut self, index: usize) -> Result<()> {
        self.flush(index);
        loop {
            let Some(socket) = &self.all[index].socket else { return Ok(()) };
            match recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
                Err(Errno::INTR) => {}
                Ok((0, _)) | Err(_) => break,
                Ok((count, _)) => {
                    let mut events = Vec::new();
                    let bytes = &self.buffer[..count];
                    let read = self.all[index].client.receive(bytes, |event| events.push(event));
                    for event in events {
                        self.on_event(index, event)?;
                    }
                    if read.is_err() {
                        self.report.wrong += 1;
                        break;
                    }
                }
            }
        }
        self.lose(index);
        Ok(())
    }

    fn flush(&mut self, index: usize) {
        let phone = &mut self.all[index];
        let Some(socket) = &phone.socket else { return };
        while !phone.client.outgoing().is_empty() {
            match send(socket, phone.client.outgoing(), SendFlags::NOSIGNAL) {
                Ok(count) => drop(phone.client.outgoing().split_to(count)),
                // A write that fails is followed by a read that says why, after what the gateway has sent before.
                Err(_) => return,
            }
        }
    }

    /// The connection is gone: the phone comes back when it may.
    fn lose(&mut self, index: usize) {
        let phone = &mut self.all[index];
        phone.socket = None;
        self.in_flight -= phone.pending.len();
        self.report.unanswered += phone.pending.len() as u64;
        phone.pending.clear();
        if std::mem::take(&mut phone.is_in) {
            self.report.lost += 1;
        } else {
            self.report.turned_away += 1;
            self.opening -= 1;
        }
        let wait =
            phone.retry_after.take().unwrap_or_else(|| RETRY_AFTER.mul_f64(1.0 + fastrand::f64()));
        self.due.push(Reverse((Instant::now() + wait, index)));
    }

    fn on_event(&mut self, index: usize, event: Event) -> Result<()> {
        let (phone, report) = (&mut self.all[index], &mut self.report);
        match event {
            Event::Authenticated { .. } => {
                phone.is_in = true;
                self.opening -= 1;
                if !std::mem::replace(&mut phone.has_been_in, true) {
                    report.logged_in(phone.first_try.map_or(Duration::ZERO, |at| at.elapsed()));
                    self.came_in += 1;
                    if self.came_in == self.args.phones {
                        println!("ready");
                    }
                }
            }
            Event::Answer { sequence, biz_data, .. } => {
                let Some(due) = take(&mut phone.pending, sequence) else { return Ok(()) };
                self.in_flight -= 1;
                report.answered(due.elapsed());
                let expected = payload(self.args.first_user + index as u64, self.args.bytes);
                report.wrong += u64::from(biz_data[..] != expected[..]);
            }
            Event::Failed { kind: AUTHENTICATE, failure, .. } => {
                report.goodbye(failure.code);
                phone.retry_after = Some(failure.retry_after).filter(|wait| !wait.is_zero());
                self.lose(index);
            }
            Event::Failed { sequence, failure, .. } => {
                let Some(due) = take(&mut phone.pending, sequence) else { return Ok(()) };
                self.in_flight -= 1;
                report.failed(failure.code, due.elapsed())?;
            }
            Event::Goodbye(failure) => {
                report.goodbye(failure.code);
                phone.retry_after = Some(failure.retry_after).filter(|wait| !wait.is_zero());
            }
            Event::Pong { .. } | Event::Push { .. } | Event::Joined(_) | Event::Left { .. } => {}
        }
        Ok(())
    }
}

/// Removes a request. Returns when it was due.
fn take(pending: &mut VecDeque<(u64, Instant)>, sequence: u64) -> Option<Instant> {
    let at = pending.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
    pending.remove(at).map(|(_, due)| due)
}

/// What a user sends.
fn payload(user_id: u64, bytes: usize) -> Vec<u8> {
    user_id.to_be_bytes().into_iter().cycle().take(bytes).collect()
}
