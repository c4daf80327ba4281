//! The floor of an echo: edge-triggered epoll, one receive, one send, and nothing else.

use std::sync::mpsc;
use std::thread;

use anyhow::Context as _;
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use tidegate_benches::{BUFFER_BYTES, Connections, Floor};

/// Sends back what it receives.
#[derive(Debug, Parser)]
struct Args {
    /// Threads, each with its own listener, epoll and descriptor table: together they hold more connections than one
    /// table may have.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
}

fn main() -> anyhow::Result<()> {
    let Args { threads } = Args::parse();
    let first = Floor::listen_on(0)?;
    let port = first.port()?;
    for _ in 1..threads {
        let (report, reports) = mpsc::channel();
        thread::Builder::new().spawn(move || {
            if let Err(error) = spawned_echo(port, &report) {
                eprintln!("floor-echo: {error:#}");
                std::process::exit(1);
            }
        })?;
        reports.recv().context("a thread has ended")?;
    }
    first.announce(|| ())?;
    echo(first)
}

fn spawned_echo(port: u16, listens: &mpsc::Sender<()>) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_FILES).context("cannot unshare the descriptor table")?;
    let floor = Floor::listen_on(port)?;
    listens.send(())?;
    echo(floor)
}

fn echo(mut floor: Floor) -> anyhow::Result<()> {
    let mut connections = Connections::new(&floor)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        floor.wait(None)?;
        for ready in floor.ready() {
            match ready {
                Some(ready) => connections.with(ready.fd, |it| it.echo(ready, &mut buffer)),
                None => floor.accept(|fd, socket| connections.insert(fd, socket))?,
            }
        }
    }
}
