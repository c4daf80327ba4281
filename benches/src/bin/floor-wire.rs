//! The floor of a wire: TLS, a WebSocket or both on bare sockets. It echoes, or sends one message to each connection again and
//! again. One thread with an edge-triggered epoll; no protocol and no backend.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tidegate_benches::wire::{Kind, Wire, put_message, server_config};
use tidegate_benches::{BUFFER_BYTES, Connection, Connections, Floor, Gone, Ready};

/// Echoes over a wire, or sends over it.
#[derive(Debug, Parser)]
struct Args {
    /// What stands between the sockets and the payload.
    #[arg(long)]
    wire: WireName,
    /// The certificate, in PEM.
    #[arg(long, default_value = ".tidegate/dev-cert.pem")]
    chain_file: PathBuf,
    /// Its key, in PEM.
    #[arg(long, default_value = ".tidegate/dev-key.pem")]
    key_file: PathBuf,
    /// Sends to this number of connections, once all are open, and does not echo.
    #[arg(long)]
    fan_out: Option<usize>,
    /// Bytes of a message that is sent.
    #[arg(long, default_value_t = 130)]
    bytes: usize,
    /// How often a second it is sent to each connection.
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WireName {
    Tcp,
    Tls,
    Ws,
    Wss,
}

/// The wires by descriptor, and memory that all share.
struct Wires {
    kind: Kind,
    by_fd: Vec<Option<Wire>>,
    echoes: bool,
    buffer: Vec<u8>,
    payload: Vec<u8>,
    out: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let has_websocket = matches!(args.wire, WireName::Ws | WireName::Wss);
    let has_tls = matches!(args.wire, WireName::Tls | WireName::Wss);
    let alpn = if has_websocket { "http/1.1" } else { "tidegate/1" };
    let tls = has_tls.then(|| server_config(&args.chain_file, &args.key_file, alpn)).transpose()?;
    let mut floor = Floor::listen()?;
    let mut connections = Connections::new(&floor)?;
    let mut wires = Wires {
        kind: Kind { tls, has_websocket },
        by_fd: Vec::new(),
        echoes: args.fan_out.is_none(),
        buffer: vec![0; BUFFER_BYTES],
        payload: Vec::new(),
        out: Vec::new(),
    };
    if let Some(count) = args.fan_out {
        while wires.open().count() < count {
            turn(&mut floor, &mut connections, &mut wires, None)?;
        }
        let interval = Duration::try_from_secs_f64(1.0 / args.rate).context("--rate")?;
        let payload: Vec<u8> = (0..args.bytes).map(|byte| byte.to_le_bytes()[0]).collect();
        let mut due = Instant::now();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                due += interval;
                wires.send_to_all(&payload, &mut connections);
            } else {
                let left = u64::try_from(left.as_nanos())?;
                turn(&mut floor, &mut connections, &mut wires, Some(left))?;
            }
        }
    }
    loop {
        turn(&mut floor, &mut connections, &mut wires, None)?;
    }
}

fn turn(
    floor: &mut Floor,
    connections: &mut Connections,
    wires: &mut Wires,
    timeout_ns: Option<u64>,
) -> Result<()> {
    floor.wait(timeout_ns)?;
    for ready in floor.ready() {
        match ready {
            Some(ready) => connections.with(ready.fd, |it| wires.serve(ready, it)),
            None => {
                let mut failed = None;
                floor.accept(|fd, socket| {
                    connections.insert(fd, socket);
                    if wires.by_fd.len() <= fd {
                        wires.by_fd.resize_with(fd + 1, || None);
                    }
                    match Wire::new(&wires.kind) {
                        Ok(wire) => wires.by_fd[fd] = Some(wire),
                        Err(error) => failed = Some(error),
                    }
                })?;
                failed.map_or(Ok(()), Err)?;
            }
        }
    }
    Ok(())
}

impl Wires {
    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        let is_open = |wire: &Option<Wire>| wire.as_ref().is_some_and(Wire::is_open);
        self.by_fd.iter().enumerate().filter(move |(_, wire)| is_open(wire)).map(|(fd, _)| fd)
    }

    fn serve(&mut self, ready: Ready, connection: &mut Connection) -> Result<(), Gone> {
        let served = self.try_serve(ready, connection);
        if served.is_err() {
            self.by_fd[ready.fd] = None;
        }
        served
    }

    fn try_serve(&mut self, ready: Ready, connection: &mut Connection) -> Result<(), Gone> {
        if connection.has_tail() {
            if !ready.writable || !connection.send_tail()? {
                return Ok(());
            }
        } else if !ready.readable {
            return Ok(());
        }
        let wire = self.by_fd[ready.fd].as_mut().ok_or(Gone)?;
        loop {
            let Some(count) = connection.receive(&mut self.buffer)? else { return Ok(()) };
            self.payload.clear();
            self.out.clear();
            let bytes = &mut self.buffer[..count];
            let received = wire.receive(bytes, &mut self.payload, &mut self.out);
            if self.echoes && !self.payload.is_empty() {
                wire.send(&self.payload, &mut self.out).map_err(|_| Gone)?;
            }
            let is_sent = self.out.is_empty() || connection.send(&self.out)?;
            received.map_err(|_| Gone)?;
            if !is_sent || count < self.buffer.len() {
                return Ok(());
            }
        }
    }

    /// Sends a message to each connection that has taken the last one. A WebSocket's frame is the same for all.
    fn send_to_all(&mut self, payload: &[u8], connections: &mut Connections) {
        let mut framed = Vec::new();
        if self.kind.has_websocket {
            put_message(payload, &mut framed);
        } else {
            framed.extend_from_slice(payload);
        }
        let open: Vec<usize> = self.open().collect();
        for fd in open {
            let Some(wire) = self.by_fd[fd].as_mut() else { continue };
            self.out.clear();
            connections.with(fd, |connection| {
                if connection.has_tail() {
                    return Ok(());
                }
                if self.kind.tls.is_none() {
                    return connection.send(&framed).map(drop);
                }
                wire.send_framed(&framed, &mut self.out).map_err(|_| Gone)?;
                connection.send(&self.out).map(drop)
            });
        }
    }
}
