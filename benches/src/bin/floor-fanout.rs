//! The floor of a fan-out: one message to each connection, in order of creation, by a plain loop of sends.
//!
//! What a socket has no room for is kept and sent when there is, and no round begins before all of
//! the last one is out: what is counted has been handed to the kernel in full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
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
    /// Rounds a second; 0: back to back.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
}

struct Fanout {
    connections: Connections,
    /// In order of creation.
    order: Vec<usize>,
    /// Connections whose message is not all out.
    unsent: usize,
    message: Vec<u8>,
    deliveries: Arc<AtomicU64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let deliveries = Arc::new(AtomicU64::new(0));
    let said = Arc::clone(&deliveries);
    let mut floor =
        Floor::listen_until(move || eprintln!("deliveries {}", said.load(Ordering::Relaxed)))?;
    let mut fanout = Fanout {
        connections: Connections::new(&floor)?,
        order: Vec::with_capacity(args.connections),
        unsent: 0,
        message: (0..args.bytes).map(|byte| byte.to_le_bytes()[0]).collect(),
        deliveries,
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    let interval_s = if args.rate > 0.0 { 1.0 / args.rate } else { 0.0 };
    let (mut rounds, mut started) = (0_u32, None);
    loop {
        let wait_ns = if fanout.order.len() < args.connections || fanout.unsent > 0 {
            None
        } else {
            let started: Instant = *started.get_or_insert_with(Instant::now);
            let due = Duration::try_from_secs_f64(f64::from(rounds) * interval_s)?;
            Some(u64::try_from(due.saturating_sub(started.elapsed()).as_nanos())?)
        };
        if wait_ns == Some(0) {
            fanout.round();
            rounds += 1;
        }
        floor.wait(if fanout.unsent > 0 { None } else { wait_ns })?;
        fanout.turn(&floor, &mut buffer)?;
    }
}

impl Fanout {
    fn round(&mut self) {
        let (mut unsent, mut sent) = (0, 0);
        for &fd in &self.order {
            self.connections.with(fd, |connection| {
                if connection.send(&self.message)? {
                    sent += 1;
                } else {
                    unsent += 1;
                }
                Ok(())
            });
        }
        self.unsent = unsent;
        self.deliveries.fetch_add(sent, Ordering::Relaxed);
    }

    fn turn(&mut self, floor: &Floor, buffer: &mut [u8]) -> anyhow::Result<()> {
        for ready in floor.ready() {
            let Some(ready) = ready else {
                floor.accept(|fd, socket| {
                    self.connections.insert(fd, socket);
                    self.order.push(fd);
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
                    self.deliveries.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
                result?;
                if ready.readable { connection.skip_input(buffer) } else { Ok(()) }
            });
        }
        Ok(())
    }
}
