//! The floor of a fan-out: sends one message to each connection in order of creation, in a plain loop.
//!
//! Bytes that a socket does not take are kept and sent later. No round begins before the last one is sent completely,
//! so
//! each counted message has been handed to the kernel in full.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use tidegate_benches::{BUFFER_BYTES, Connections, Floor};

/// Sends a message to each of many connections, again and again.
#[derive(Debug, Parser)]
struct Args {
    /// Connections to wait for before the first round.
    #[arg(long)]
    connections: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 130)]
    bytes: usize,
    /// Rounds per second; 0: without a pause.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Threads, each with its own epoll and descriptor table: together they hold more connections than one table may
    /// have. They take turns, so that the order is kept: the first accepts its share, then the second; in each round
    /// the first
    /// sends to its share, then the second.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

/// Passes the turn from thread to thread.
struct Turns {
    comes: Receiver<()>,
    next: Sender<()>,
}

impl Turns {
    fn wait(&self) -> anyhow::Result<()> {
        self.comes.recv().context("a thread has ended")
    }

    fn pass_on(&self) -> anyhow::Result<()> {
        self.next.send(()).context("a thread has ended")
    }
}

/// The work of one thread.
struct Share {
    connections: usize,
    message: Arc<[u8]>,
    /// Counts those of all threads.
    deliveries: Arc<AtomicU64>,
}

/// One thread.
struct Fanout {
    floor: Floor,
    connections: Connections,
    /// In order of creation.
    order: Vec<usize>,
    /// Connections whose message is not sent completely.
    unsent: usize,
    share: Share,
    buffer: Vec<u8>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let interval = match args.rate {
        0.0 => Duration::ZERO,
        rate => Duration::try_from_secs_f64(1.0 / rate).context("--rate")?,
    };
    let deliveries = Arc::new(AtomicU64::new(0));
    let message: Arc<[u8]> = (0..args.bytes).map(|byte| byte.to_le_bytes()[0]).collect();
    let listener = tidegate_benches::listener(0)?;
    let threads = usize::from(args.threads);
    let share = |thread| {
        let rest = usize::from(thread < args.connections % threads);
        Share {
            connections: args.connections / threads + rest,
            message: Arc::clone(&message),
            deliveries: Arc::clone(&deliveries),
        }
    };
    let (to_first, comes) = channel();
    let mut next = to_first.clone();
    for thread in 1..threads {
        // From the last thread to the second: each needs the channel to the one after it.
        let (to_it, comes) = channel();
        let turns = Turns { comes, next: mem::replace(&mut next, to_it) };
        spawn(listener.try_clone()?, share(threads - thread), turns)?;
    }
    let first = Fanout::new(listener, share(0))?;
    first.floor.announce(move || eprintln!("deliveries {}", deliveries.load(Ordering::Relaxed)))?;
    to_first.send(())?;
    first.run(&Turns { comes, next }, interval)
}

/// Starts a thread with its own descriptor table.
fn spawn(listener: OwnedFd, share: Share, turns: Turns) -> anyhow::Result<()> {
    let (report, reports) = channel();
    thread::Builder::new().spawn(move || {
        let run = || {
            unshare(CloneFlags::CLONE_FILES).context("cannot unshare the descriptor table")?;
            let fanout = Fanout::new(listener, share)?;
            report.send(())?;
            // Only the first thread waits between rounds.
            fanout.run(&turns, Duration::ZERO)
        };
        if let Err(error) = run() {
            eprintln!("floor-fanout: {error:#}");
            std::process::exit(1);
        }
    })?;
    reports.recv().context("a thread has ended")
}

impl Fanout {
    fn new(listener: OwnedFd, share: Share) -> anyhow::Result<Self> {
        let floor = Floor::from_listener(listener)?;
        let connections = Connections::new(&floor)?;
        let order = Vec::with_capacity(share.connections);
        Ok(Self { floor, connections, order, unsent: 0, share, buffer: vec![0; BUFFER_BYTES] })
    }

    fn run(mut self, turns: &Turns, interval: Duration) -> anyhow::Result<()> {
        turns.wait()?;
        self.floor.start_accepting()?;
        while self.order.len() < self.share.connections {
            self.turn(None)?;
        }
        self.floor.stop_accepting()?;
        turns.pass_on()?;

        turns.wait()?;
        let mut due = Instant::now();
        loop {
            loop {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.turn(Some(u64::try_from(left.as_nanos())?))?;
            }
            due += interval;
            self.round();
            while self.unsent > 0 {
                self.turn(None)?;
            }
            turns.pass_on()?;
            turns.wait()?;
        }
    }

    fn round(&mut self) {
        let (mut unsent, mut sent) = (0, 0);
        for &fd in &self.order {
            self.connections.with(fd, |connection| {
                if connection.send(&self.share.message)? {
                    sent += 1;
                } else {
                    unsent += 1;
                }
                Ok(())
            });
        }
        self.unsent = unsent;
        self.share.deliveries.fetch_add(sent, Ordering::Relaxed);
    }

    fn turn(&mut self, timeout_ns: Option<u64>) -> anyhow::Result<()> {
        self.floor.wait(timeout_ns)?;
        for ready in self.floor.ready() {
            let Some(ready) = ready else {
                self.floor.accept_while(|fd, socket| {
                    self.order.push(fd);
                    self.connections.insert(fd, socket);
                    self.order.len() < self.share.connections
                })?;
                continue;
            };
            self.connections.with(ready.fd, |connection| {
                let had_tail = connection.has_tail();
                let result = match had_tail && ready.writable {
                    true => connection.send_tail().map(|_| ()),
                    false => Ok(()),
                };
                if had_tail && (result.is_err() || !connection.has_tail()) {
                    self.unsent -= 1;
                    self.share.deliveries.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
                result?;
                if ready.readable { connection.skip_input(&mut self.buffer) } else { Ok(()) }
            });
        }
        Ok(())
    }
}
