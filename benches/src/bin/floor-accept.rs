//! The floor of a connection's whole life: accept, read, write, close.
//!
//! It closes when the client has, as a gateway does; `--close-first` closes after the first answer.

use clap::Parser;
use tidegate_benches::{BUFFER_BYTES, Connections, Floor, Gone};

/// Accepts, reads, writes back, closes.
#[derive(Debug, Parser)]
struct Args {
    /// Closes after the first answer instead of after the client.
    #[arg(long)]
    close_first: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut floor = Floor::listen()?;
    let mut connections = Connections::new(&floor)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        floor.wait(None)?;
        for ready in floor.ready() {
            match ready {
                Some(ready) => connections.with(ready.fd, |connection| {
                    connection.echo(ready, &mut buffer)?;
                    let over = args.close_first && !connection.has_tail();
                    if over { Err(Gone) } else { Ok(()) }
                }),
                None => floor.accept(|fd, socket| connections.insert(fd, socket))?,
            }
        }
    }
}
